"""Identities between objectives, and reference values computed in another way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from objectives_helpers import example, random_numbers

from course_utils import objectives

BETAS = [0.1, 1.0]
DTYPE = torch.float64


def close(left, right):
    return torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_dpo_is_bradley_terry_with_the_log_ratio_as_reward(beta):
    w, l, ref_w, ref_l = example("dpo")
    for epsilon in (0.0, 0.2):
        assert close(
            objectives.dpo(w, l, ref_w, ref_l, beta, epsilon),
            objectives.bt(beta * (w - ref_w), beta * (l - ref_l), label_smoothing=epsilon),
        )


def test_a_margin_has_to_be_exceeded_one_for_all_or_one_for_each():
    w, l = example("bt")
    one_each = torch.linspace(0.0, 2.0, 6, dtype=DTYPE)
    assert close(objectives.bt(w, l, 0.7), -F.logsigmoid(w - l - 0.7))
    assert close(objectives.bt(w, l, one_each), objectives.bt(w, l + one_each))
    assert (objectives.bt(w, l, 0.7) > objectives.bt(w, l)).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("divergence", ["logistic", "dpo"])
def test_dpo_is_the_logistic_member_of_bpo(beta, divergence):
    pair = example("dpo")
    assert close(objectives.dpo(*pair, beta), objectives.bpo(*pair, beta, divergence))


@pytest.mark.parametrize(
    ("divergence", "f"),
    [
        ("logistic", lambda r: (r * r.log() - (1 + r) * (1 + r).log()) / 2),
        ("kliep", lambda r: r * r.log() - r),
        ("lsif", lambda r: (r - 1) ** 2),
        ("ba", lambda r: (r**1.7 - r) / 0.7),
        ("sba", lambda r: (r**1.7 - r) / (3 * 0.7 * 1.7)),
    ],
)
def test_bpo_is_the_bregman_form_of_its_function_up_to_a_constant(divergence, f):
    pair = example("bpo", rows=20)
    h = (pair[0] - pair[2]) - (pair[1] - pair[3])
    r = torch.exp(-0.4 * h).requires_grad_()
    inverse = (1 / r.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(f(r).sum(), r)
    (slope_inverse,) = torch.autograd.grad(f(inverse).sum(), inverse)
    bregman = slope * r.detach() - f(r.detach()) - slope_inverse
    constant = bregman - objectives.bpo(*pair, 0.4, divergence, lam=0.7, s=3.0)
    assert float(constant.max() - constant.min()) < 1e-10


def test_brain_with_two_responses_and_a_certain_posterior_is_dpo():
    w, l, ref_w, ref_l = example("dpo")
    policy, proposal = torch.stack([w, l], -1), torch.stack([ref_w, ref_l], -1)
    certain = torch.tensor([0.0, -1e6], dtype=DTYPE).expand_as(policy)
    # proposal = prior, so the posterior is the softmax of the reward alone
    assert close(
        objectives.brain(policy, proposal, proposal, certain), objectives.dpo(w, l, ref_w, ref_l, beta=1.0)
    )


@pytest.mark.parametrize("beta", BETAS)
def test_dpo_rw_with_a_certain_label_is_dpo(beta):
    w, l, ref_w, ref_l = example("dpo")
    policy, ref = torch.stack([w, l], -1), torch.stack([ref_w, ref_l], -1)
    certain = torch.tensor([1.0, 0.0], dtype=DTYPE).expand_as(policy)
    assert close(
        objectives.dpo_rw(policy, ref, certain, beta_policy=beta, beta_reward=1e-4),
        objectives.dpo(w, l, ref_w, ref_l, beta),
    )


def test_brain_from_its_prior_is_dpo_rw():
    policy, prior, reward = example("exo_rw")
    assert close(
        objectives.brain(policy, prior, prior, reward, gamma=0.7),
        objectives.dpo_rw(policy, prior, reward, beta_reward=0.7),
    )


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.4])
def test_exo_pref_is_a_divergence_between_two_bernoulli_distributions(epsilon):
    pair = example("exo_pref", rows=50, scale=10.0)
    h = (pair[0] - pair[2]) - (pair[1] - pair[3])
    q = torch.sigmoid(0.3 * h)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(probs=q),
        torch.distributions.Bernoulli(probs=torch.tensor(1 - epsilon, dtype=DTYPE)),
    )
    assert torch.allclose(objectives.exo_pref(*pair, 0.3, epsilon), expected, rtol=1e-6, atol=1e-9)


def test_exo_pref_is_exo_rw_with_the_smoothed_label_as_reward():
    w, l, ref_w, ref_l = example("exo_pref")
    label = torch.tensor([math.log(0.9), math.log(0.1)], dtype=DTYPE).expand(len(w), 2)
    assert close(
        objectives.exo_pref(w, l, ref_w, ref_l, 0.3, 0.1),
        objectives.exo_rw(torch.stack([w, l], -1), torch.stack([ref_w, ref_l], -1), label, beta_policy=0.3),
    )


@pytest.mark.parametrize("name", ["exo_rw", "dpo_rw"])
def test_group_divergences_agree_with_torchs_own(name):
    policy, ref, reward = example(name, rows=8, k=5, seed=2)
    f, r = torch.log_softmax(0.7 * (policy - ref), -1), torch.log_softmax(reward / 0.4, -1)
    left, right = (f, r) if name == "exo_rw" else (r, f)
    expected = F.kl_div(right, left, log_target=True, reduction="none").sum(-1)
    assert close(objectives.get(name).loss(policy, ref, reward, 0.7, 0.4), expected)


def test_preference_distillation_is_soft_label_regression_less_the_entropy_of_the_label():
    policy_1, policy_2, reward_1, reward_2 = example("preference_distillation")
    q, z = torch.sigmoid(reward_1 - reward_2), 0.7 * (policy_1 - policy_2)
    soft = F.binary_cross_entropy_with_logits(z, q, reduction="none")
    entropy = torch.distributions.Bernoulli(probs=q).entropy()
    found = objectives.preference_distillation(policy_1, policy_2, reward_1, reward_2, 0.7)
    assert torch.allclose(found, soft - entropy, atol=1e-7)
    swapped = objectives.preference_distillation(policy_2, policy_1, reward_2, reward_1, 0.7)
    assert close(found, swapped)


def test_preference_distillation_of_a_certain_label_is_pmle_and_pmle_is_dpo_with_a_uniform_reference():
    w, l = example("pmle")
    sure, zero = torch.full_like(w, 1e4), torch.zeros_like(w)
    expected = objectives.pmle(w, l, 0.7)
    assert close(objectives.preference_distillation(w, l, sure, zero, 0.7), expected)
    assert close(objectives.dpo(w, l, zero - 3.0, zero - 3.0, 0.7), expected)


def test_ddro_at_one_half_has_the_published_form():
    policy, ref, preferred = example("ddro", rows=40)
    r = torch.exp(policy - ref)
    expected = torch.where(preferred, math.log(2) - torch.log(r), math.log(2) - torch.log(2 - r))
    assert close(objectives.ddro(policy, ref, preferred), expected)


@pytest.mark.parametrize("t", [0.1, 0.39, 0.5, 0.6, 0.7])
def test_ddro_is_logistic_regression_on_the_ratio_of_the_classes(t):
    policy, ref, preferred = example("ddro", rows=40)
    policy, ref = policy / 4, ref / 4  # keeps r below 1/t for every t here
    g = (torch.exp(ref - policy) - t) / (1 - t)
    assert (g > 0).all()
    expected = torch.where(preferred, torch.log1p(g), torch.log1p(1 / g))
    assert close(objectives.ddro(policy, ref, preferred, t), expected)


@pytest.mark.parametrize("alpha", [0.1, 0.39, 0.5, 0.8])
def test_rdro_is_weighted_logistic_regression_with_a_soft_label(alpha):
    policy, ref, preferred = example("rdro", rows=40, scale=5.0)
    l = policy - ref
    on_preferred = (1 + alpha) * F.binary_cross_entropy_with_logits(
        l, torch.full_like(l, 1 / (1 + alpha)), reduction="none"
    )
    on_rejected = (1 - alpha) * F.binary_cross_entropy_with_logits(l, torch.zeros_like(l), reduction="none")
    expected = torch.where(preferred, on_preferred, on_rejected)
    assert close(objectives.rdro(policy, ref, preferred, alpha), expected)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_the_plain_mean_of_pooled_rdro_is_the_class_wise_mean_of_rdro(alpha):
    policy, ref, _ = example("rdro", rows=40, scale=5.0)
    preferred = torch.arange(40) < 40 * alpha
    pooled = objectives.pooled_mean(objectives.rdro_pooled(policy, ref, preferred, alpha), preferred)
    classwise = objectives.classwise_mean(objectives.rdro(policy, ref, preferred, alpha), preferred)
    assert close(pooled, classwise)
    if alpha != 0.5:
        plain = objectives.pooled_mean(objectives.rdro(policy, ref, preferred, alpha), preferred)
        assert not torch.isclose(2 * plain, classwise, rtol=1e-3)


def test_class_means_are_added_and_a_plain_mean_is_plain():
    loss = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=DTYPE)
    preferred = torch.tensor([True, True, True, False])
    assert float(objectives.classwise_mean(loss, preferred)) == 12.0
    assert float(objectives.pooled_mean(loss, preferred)) == 4.0


def test_conservative_dpo_is_dpo_with_smoothing_and_robust_dpo_without_noise_is_dpo():
    pair = example("dpo")
    assert close(objectives.cdpo(*pair, 0.3, 0.2), objectives.dpo(*pair, 0.3, 0.2))
    assert close(objectives.robust_dpo(*pair, 0.3, 0.0), objectives.dpo(*pair, 0.3))


def test_robust_dpo_is_unbiased_for_the_clean_loss_under_flips():
    w, l, ref_w, ref_l = example("dpo")
    clean = objectives.dpo(w, l, ref_w, ref_l, 0.3)
    expected = 0.8 * objectives.robust_dpo(w, l, ref_w, ref_l, 0.3, 0.2) + 0.2 * objectives.robust_dpo(
        l, w, ref_l, ref_w, 0.3, 0.2
    )
    assert close(expected, clean)


def test_flex_dpo_with_equal_betas_is_dpo_and_an_sft_term_is_a_sum():
    pair = example("dpo")
    assert close(objectives.flex_dpo(*pair, 0.3, 0.3), objectives.dpo(*pair, 0.3))
    assert close(
        objectives.dpo_with_sft(*pair, 0.3, 0.05), objectives.dpo(*pair, 0.3) + 0.05 * objectives.sft(pair[0])
    )


def test_simpo_of_one_token_without_margin_is_pmle():
    w, l = example("pmle")
    one = torch.ones(len(w), dtype=torch.long)
    assert close(objectives.simpo(w, l, one, one, beta=0.7, gamma=0.0), objectives.pmle(w, l, 0.7))


def test_orpo_agrees_with_its_formula_written_in_probabilities():
    w, l, len_w, len_l = example("orpo", rows=30)
    p_w, p_l = torch.exp(w / len_w), torch.exp(l / len_l)
    odds = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    expected = -p_w.log() - 0.4 * torch.log(odds / (1 + odds))
    assert torch.allclose(objectives.orpo(w, l, len_w, len_l, 0.4), expected, rtol=1e-10)


def test_the_score_of_the_general_preference_model_is_skew_symmetric_and_uses_the_documented_matrix():
    v, w = random_numbers(20, 6, seed=1), random_numbers(20, 6, seed=2)
    rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DTYPE)] * 3)
    score = objectives.gpm_score(v, w)
    assert close(score, torch.einsum("ij,nj,ni->n", rotation, v, w))
    assert torch.equal(score, -objectives.gpm_score(w, v))
    assert float(objectives.gpm_score(v, v).abs().max()) == 0.0
    assert close(objectives.gpm(v, w, 0.5), -F.logsigmoid(score / 0.5))


def test_kto_at_the_reference_is_one_half_and_uses_the_batch_baseline():
    policy, ref, preferred = example("kto")
    assert close(objectives.kto(ref, ref, preferred), torch.full_like(ref, 0.5))
    shift = objectives.kto_kl(policy, ref)
    assert float(shift) == pytest.approx(max(0.0, float((policy - ref).mean())))
    assert float(objectives.kto_kl(ref - 1.0, ref)) == 0.0


def test_losses_at_the_reference_have_their_known_values():
    pair = [torch.full((2,), -5.0, dtype=DTYPE)] * 4
    half = torch.full((2,), math.log(2), dtype=DTYPE)
    assert close(objectives.dpo(*pair), half)
    assert close(objectives.ipo(*pair, tau=0.1), torch.full((2,), 25.0, dtype=DTYPE))
    assert close(objectives.slic(*pair), torch.ones(2, dtype=DTYPE))
    labels = torch.tensor([True, False])
    expected = torch.tensor([1.39 * math.log(2), 0.61 * math.log(2)], dtype=DTYPE)
    assert close(objectives.rdro(pair[0], pair[1], labels, 0.39), expected)
    assert close(objectives.ddro(pair[0], pair[1], labels, 0.5), half)


def test_the_tangent_of_ddro_meets_the_loss_in_value_and_slope_and_is_straight_beyond():
    for t in (0.2, 0.5, 0.8):
        bend = math.log(1 / t) - 0.05
        for preferred in (True, False):
            label = torch.tensor([preferred])

            def value_and_slope(x, label=label, t=t):
                l = torch.tensor([x], dtype=DTYPE, requires_grad=True)
                loss = objectives.ddro(l, torch.zeros_like(l), label, t, "tangent", wall_distance=0.05)
                (slope,) = torch.autograd.grad(loss.sum(), l)
                return float(loss.detach()), float(slope)

            value_before, slope_before = value_and_slope(bend - 1e-9)
            value_after, slope_after = value_and_slope(bend + 1e-9)
            assert value_before == pytest.approx(value_after, abs=1e-6)
            assert slope_before == pytest.approx(slope_after, rel=1e-6)
            if not preferred or t > 0.5:
                value_far, slope_far = value_and_slope(bend + 100.0)
                assert slope_far == pytest.approx(slope_after, rel=1e-9)
                assert value_far == pytest.approx(value_after + 100 * slope_after, rel=1e-6)
