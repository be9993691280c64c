"""The population minimiser of every objective, found in random finite worlds, is the one it claims."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from objectives_helpers import (
    all_pairs,
    bradley_terry,
    kl,
    logit,
    minimise,
    minimise_policy,
    random_numbers,
    random_policy,
    tilted,
)

from course_utils import objectives

# the minimiser is Newton's: it stops at rounding errors, so the tolerance can be far below what a lesson needs
TOLERANCE = 1e-9
SHARES = [0.1, 0.39, 0.5, 0.8]
SEEDS = [0, 1, 2]


def worst(found, expected) -> float:
    return float((found - expected).abs().max())


def paired_minimiser(loss, ref, preference, mu, **settings):
    """The policy that minimises a paired loss when pairs come from mu x mu and labels from `preference`."""
    weight = mu[:, None] * mu[None, :] * preference
    ref_chosen, ref_rejected = all_pairs(ref.log())

    def population(log_policy):
        return (weight * loss(*all_pairs(log_policy), ref_chosen, ref_rejected, **settings)).sum()

    return minimise_policy(population, ref)


def unpaired_population(loss, ref, p_plus, p_minus, weights=(1.0, 1.0), **settings):
    """Class-wise expectation of an unpaired loss: all responses once as preferred, once as not."""
    n = len(ref)
    preferred = torch.arange(2 * n) < n
    weight = torch.cat([weights[0] * p_plus, weights[1] * p_minus])

    def population(log_policy):
        policy, reference = log_policy.repeat(2), ref.log().repeat(2)
        value = loss(policy, reference, preferred, **settings)
        return (weight * value).sum()

    return population


def mixture(share, seed):
    p_plus, p_minus = random_policy(5, 10 + seed, 1.2), random_policy(5, 20 + seed, 1.2)
    return p_plus, p_minus, share * p_plus + (1 - share) * p_minus


# --- density ratios ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", SHARES)
def test_rdro_finds_the_preferred_distribution_when_the_reference_is_the_mixture(alpha, seed):
    p_plus, p_minus, ref = mixture(alpha, seed)
    found = minimise_policy(unpaired_population(objectives.rdro, ref, p_plus, p_minus, alpha=alpha), ref)
    assert worst(found, p_plus) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", SHARES)
def test_ddro_finds_the_preferred_distribution_when_the_reference_is_the_mixture(t, seed):
    p_plus, p_minus, ref = mixture(t, seed)
    population = unpaired_population(objectives.ddro, ref, p_plus, p_minus, t=t, past_wall="inf")
    assert worst(minimise_policy(population, ref), p_plus) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", [0.39, 0.8])
def test_the_tangent_leaves_the_minimiser_alone_when_it_is_far_from_the_wall(t, seed):
    p_plus, p_minus, ref = mixture(t, seed)
    assert float((t * p_plus / ref).max()) < math.exp(-1e-3)  # p+ is farther from the wall than wall_distance
    population = unpaired_population(objectives.ddro, ref, p_plus, p_minus, t=t, past_wall="tangent")
    assert worst(minimise_policy(population, ref), p_plus) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", SHARES)
def test_pooled_rdro_finds_the_preferred_distribution_with_a_plain_mean(alpha, seed):
    p_plus, p_minus, ref = mixture(alpha, seed)
    population = unpaired_population(
        objectives.rdro_pooled, ref, p_plus, p_minus, (alpha, 1 - alpha), alpha=alpha
    )
    assert worst(minimise_policy(population, ref), p_plus) < TOLERANCE


PILOT_PLUS = torch.tensor([0.40, 0.25, 0.15, 0.15, 0.05], dtype=torch.float64)
PILOT_MINUS = torch.tensor([0.05, 0.10, 0.20, 0.25, 0.40], dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha", "share", "expected"),
    [(0.39, 0.39, 0.0194), (0.5, 0.5, 0.0), (0.39, 0.5, 0.0), (0.2, 0.2, 0.380), (0.8, 0.8, 0.011)],
)
def test_a_plain_mean_of_rdro_misses_the_target_unless_half_of_the_data_is_preferred(alpha, share, expected):
    ref = alpha * PILOT_PLUS + (1 - alpha) * PILOT_MINUS
    population = unpaired_population(
        objectives.rdro, ref, PILOT_PLUS, PILOT_MINUS, (share, 1 - share), alpha=alpha
    )
    assert kl(PILOT_PLUS, minimise_policy(population, ref)) == pytest.approx(expected, abs=5e-4)


def test_rdro_goes_elsewhere_when_the_reference_is_not_the_mixture():
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    population = unpaired_population(objectives.rdro, uniform, PILOT_PLUS, PILOT_MINUS, alpha=0.39)
    assert kl(PILOT_PLUS, minimise_policy(population, uniform)) == pytest.approx(0.0056, abs=5e-5)


def test_the_wall_of_ddro_is_at_a_log_ratio_of_log_one_over_t():
    rejected = torch.tensor([False])
    for t in SHARES:
        edge = math.log(1 / t)
        for distance in (1e-2, 1e-4, 1e-6):
            l = torch.tensor([edge - distance], dtype=torch.float64, requires_grad=True)
            loss = objectives.ddro(l, torch.zeros_like(l), rejected, t=t)
            (slope,) = torch.autograd.grad(loss.sum(), l)
            # loss ~ -log(distance), slope ~ 1/distance: no bound
            assert float(slope) * distance == pytest.approx(1.0, rel=3 * distance + 1e-6 + abs(distance) / t)
        beyond = torch.tensor([edge + 1e-9], dtype=torch.float64)
        assert torch.isinf(objectives.ddro(beyond, 0 * beyond, rejected, t=t, past_wall="inf")).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_rdro_from_on_policy_pairs_is_the_reference_times_twice_the_win_rate_for_any_judge(seed):
    ref = random_policy(5, seed)
    noise = random_numbers(5, 5, seed=seed, scale=2.0)
    preference = torch.sigmoid(noise - noise.T)  # no scale of quality: cycles allowed
    win_rate = preference @ ref
    p_plus, p_minus = 2 * ref * win_rate, 2 * ref * (1 - win_rate)
    found = minimise_policy(unpaired_population(objectives.rdro, ref, p_plus, p_minus), ref)
    assert worst(found, ref * 2 * win_rate) < TOLERANCE


# --- pairs with a reference ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_dpo_finds_its_closed_form_from_bradley_terry_labels(beta, seed):
    ref, mu, reward = random_policy(5, seed), random_policy(5, 50 + seed), random_numbers(5, seed=seed)
    found = paired_minimiser(objectives.dpo, ref, bradley_terry(reward), mu, beta=beta)
    assert worst(found, tilted(ref, reward / beta)) < TOLERANCE


@pytest.mark.parametrize("divergence", ["logistic", "kliep", "lsif", "ba", "sba"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_member_of_bpo_finds_the_minimiser_of_dpo(divergence, seed):
    ref, mu, reward = random_policy(5, seed), random_policy(5, 50 + seed), random_numbers(5, seed=seed)
    found = paired_minimiser(
        objectives.bpo, ref, bradley_terry(reward), mu, beta=1.0, divergence=divergence, lam=0.7, s=3.0
    )
    assert worst(found, tilted(ref, reward)) < TOLERANCE


@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_robust_dpo_undoes_random_flips_and_conservative_dpo_does_not(noise, seed):
    ref, mu, reward = random_policy(5, seed), random_policy(5, 50 + seed), random_numbers(5, seed=seed)
    clean = bradley_terry(reward)
    flipped = (1 - noise) * clean + noise * (1 - clean)
    robust = paired_minimiser(objectives.robust_dpo, ref, flipped, mu, beta=1.0, label_smoothing=noise)
    assert worst(robust, tilted(ref, reward)) < TOLERANCE
    conservative = paired_minimiser(objectives.cdpo, ref, flipped, mu, beta=1.0, label_smoothing=noise)
    assert worst(conservative, tilted(ref, reward)) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_ipo_finds_the_win_rate_for_any_preferences_even_cyclic_ones(tau, seed):
    ref, mu = random_policy(5, seed), random_policy(5, 50 + seed)
    noise = random_numbers(5, 5, seed=seed, scale=2.0)
    preference = torch.sigmoid(noise - noise.T)
    found = paired_minimiser(objectives.ipo, ref, preference, mu, tau=tau)
    assert worst(found, tilted(ref, preference @ mu / tau)) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_exo_pref_finds_the_closed_form_of_linear_preferences_and_misses_bradley_terry(epsilon, seed):
    ref, mu, beta = random_policy(4, seed), random_policy(4, 50 + seed), 2.0
    quality = torch.tanh(random_numbers(4, seed=seed)) * 0.45
    linear = 0.5 + (quality[:, None] - quality[None, :]) / 2
    settings = {"beta": beta, "label_smoothing": epsilon}
    found = paired_minimiser(objectives.exo_pref, ref, linear, mu, **settings)
    scale = math.log((1 - epsilon) / epsilon) / beta
    assert worst(found, tilted(ref, quality * scale)) < TOLERANCE
    reward = random_numbers(4, seed=seed)
    assert worst(
        paired_minimiser(objectives.exo_pref, ref, bradley_terry(reward), mu, **settings),
        tilted(ref, reward / beta),
    ) > (1e-2 if epsilon == 1e-3 else 1e-4)


MARGIN_LAWS = {
    "dpo": (objectives.dpo, {"beta": 0.5}, lambda p: logit(p) / 0.5),
    "cdpo": (
        objectives.cdpo,
        {"beta": 0.5, "label_smoothing": 0.2},
        lambda p: logit(0.8 * p + 0.2 * (1 - p)) / 0.5,
    ),
    "robust_dpo": (
        objectives.robust_dpo,
        {"beta": 0.5, "label_smoothing": 0.2},
        # the inverse of flipping: what the clean probability was, if the one seen is p
        lambda p: logit((p - 0.2) / 0.6) / 0.5,
    ),
    "ipo": (objectives.ipo, {"tau": 0.5}, lambda p: (2 * p - 1) / (2 * 0.5)),
    "exo_pref": (
        objectives.exo_pref,
        {"beta": 0.5, "label_smoothing": 0.01},
        lambda p: (2 * p - 1) * math.log(99) / 0.5,
    ),
    "bpo": (objectives.bpo, {"beta": 0.5}, lambda p: logit(p) / 0.5),
}


@pytest.mark.parametrize("name", MARGIN_LAWS)
def test_the_margin_of_one_pair_follows_its_law_in_the_preference_probability(name):
    loss, settings, law = MARGIN_LAWS[name]
    p = torch.tensor([0.25, 0.5, 0.6, 0.75], dtype=torch.float64)
    zero = torch.zeros_like(p)

    def population(h):
        return (
            p * loss(h, zero, zero, zero, **settings) + (1 - p) * loss(zero, h, zero, zero, **settings)
        ).sum()

    assert worst(minimise(population, zero), law(p)) < TOLERANCE


def test_a_certain_pair_has_a_finite_margin_under_cdpo_and_exo_and_none_under_dpo():
    zero = torch.zeros(1, dtype=torch.float64)
    for loss in (objectives.cdpo, objectives.exo_pref):
        found = minimise(
            lambda h, loss=loss: loss(h, zero, zero, zero, beta=1.0, label_smoothing=0.01).sum(), zero
        )
        assert float(found) == pytest.approx(math.log(99), abs=TOLERANCE)
    h = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objectives.dpo(h, 0 * h, 0 * h, 0 * h, beta=1.0).sum(), h)
    assert (slope < 0).all()


def test_the_hinge_of_slic_goes_to_plus_or_minus_one_whatever_the_size_of_the_majority():
    margin = torch.linspace(-3, 3, 601, dtype=torch.float64)
    zero = torch.zeros_like(margin)
    for p, expected in ((0.51, 1.0), (0.9, 1.0), (0.49, -1.0), (0.2, -1.0)):
        loss = p * objectives.slic(margin, zero, zero, zero, beta=1.0) + (1 - p) * objectives.slic(
            zero, margin, zero, zero, beta=1.0
        )
        assert float(margin[loss.argmin()]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_flex_dpo_with_two_betas_lets_both_free_log_ratios_rise_together(seed):
    l = random_numbers(2, 50, seed=seed, scale=10.0).requires_grad_()
    zero, p = torch.zeros(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    loss = p * objectives.flex_dpo(l[0], l[1], zero, zero) + (1 - p) * objectives.flex_dpo(
        l[1], l[0], zero, zero
    )
    (gradient,) = torch.autograd.grad(loss.sum(), l)
    assert (gradient.sum(0) < 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_sft_term_pulls_dpo_to_the_distribution_of_the_chosen(seed):
    ref, reward = random_policy(5, seed), random_numbers(5, seed=seed)
    preference = bradley_terry(reward)
    chosen = 2 * ref * (preference @ ref)
    distance = [
        kl(
            chosen,
            paired_minimiser(objectives.dpo_with_sft, ref, preference, ref, beta=0.5, sft_weight=weight),
        )
        for weight in (0.0, 0.1, 1.0, 1000.0)
    ]
    assert kl(chosen, tilted(ref, reward / 0.5)) == pytest.approx(distance[0], abs=1e-9)
    assert distance[0] > distance[1] > distance[2] > distance[3]
    assert distance[3] < 1e-6


# --- pairs without a reference ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_sft_finds_the_distribution_of_the_chosen(seed):
    chosen = random_policy(5, seed)
    found = minimise_policy(lambda l: (chosen * objectives.sft(l)).sum(), torch.full_like(chosen, 0.2))
    assert worst(found, chosen) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_pmle_finds_the_model_behind_the_preferences_and_dpo_the_product_with_the_reference(seed):
    target, ref, mu, gamma = (
        random_policy(5, seed),
        random_policy(5, 30 + seed),
        random_policy(5, 60 + seed),
        0.5,
    )
    preference = bradley_terry(gamma * target.log())
    weight = mu[:, None] * mu[None, :] * preference
    found = minimise_policy(lambda l: (weight * objectives.pmle(*all_pairs(l), gamma=gamma)).sum(), ref)
    assert worst(found, target) < TOLERANCE
    product = paired_minimiser(objectives.dpo, ref, preference, mu, beta=gamma)
    assert worst(product, tilted(ref, target.log())) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_preference_distillation_finds_the_model_behind_the_reward_at_loss_zero(seed):
    target, ref, mu, gamma = (
        random_policy(5, seed),
        random_policy(5, 30 + seed),
        random_policy(5, 60 + seed),
        0.5,
    )
    reward = gamma * target.log() + 3.3
    weight = mu[:, None] * mu[None, :]

    def population(l):
        return (
            weight * objectives.preference_distillation(*all_pairs(l), *all_pairs(reward), gamma=gamma)
        ).sum()

    found = minimise_policy(population, ref)
    assert worst(found, target) < TOLERANCE
    assert float(population(found.log())) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_simpo_without_a_margin_forgets_the_reference(seed):
    mu, reward = random_policy(5, 50 + seed), random_numbers(5, seed=seed)
    weight, one = mu[:, None] * mu[None, :] * bradley_terry(reward), torch.ones(5, 5)

    def population(l):
        return (weight * objectives.simpo(*all_pairs(l), one, one, beta=2.0, gamma=0.0)).sum()

    assert worst(minimise_policy(population, mu), torch.softmax(reward / 2.0, 0)) < TOLERANCE


def test_the_margin_of_simpo_overstates_preferences_by_its_formula():
    p, gamma = torch.tensor([0.3, 0.5, 0.6, 0.9], dtype=torch.float64), 0.5
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4)

    def population(z):
        return (
            p * objectives.simpo(z, zero, one, one, beta=1.0, gamma=gamma)
            + (1 - p) * objectives.simpo(zero, z, one, one, beta=1.0, gamma=gamma)
        ).sum()

    rho, q = p / (1 - p), math.exp(-gamma)
    expected = torch.log((rho - 1 + torch.sqrt((rho - 1) ** 2 + 4 * rho * q**2)) / (2 * q))
    assert worst(minimise(population, zero), expected) < TOLERANCE
    assert (expected[p != 0.5].abs() > logit(p)[p != 0.5].abs()).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_odds_part_of_orpo_makes_the_odds_proportional_to_the_exponential_of_the_reward(seed):
    mu, reward = random_policy(5, 50 + seed), random_numbers(5, seed=seed)
    weight, one = mu[:, None] * mu[None, :] * bradley_terry(reward), torch.ones(5, 5)

    def odds_part(l):
        pair = (*all_pairs(l), one, one)
        return (weight * (objectives.orpo(*pair, beta=2.0) - objectives.orpo(*pair, beta=1.0))).sum()

    found = minimise_policy(odds_part, mu)
    assert worst(logit(found) - logit(found)[0], reward - reward[0]) < 10 * TOLERANCE


# --- unpaired, without the mixture premise ---------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_bco_finds_the_reference_times_a_power_of_the_ratio_of_the_classes(beta, seed):
    p_plus, p_minus, ref = mixture(0.5, seed)
    ratio = (p_plus / p_minus).log() / beta
    delta = -beta * float(torch.logsumexp(ref.log() + ratio, 0))
    population = unpaired_population(objectives.bco, ref, p_plus, p_minus, beta=beta, delta=delta)
    found = minimise_policy(population, ref)
    assert worst(found, tilted(ref, ratio)) < TOLERANCE
    assert worst(found, p_plus) > 1e-2


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0)])
def test_kto_drives_a_free_log_ratio_to_one_end_by_the_weighted_majority(weights):
    l = torch.linspace(-40, 40, 81, dtype=torch.float64).requires_grad_()
    zero, yes = torch.zeros(81, dtype=torch.float64), torch.ones(81, dtype=torch.bool)
    settings = {"kl": 0.3, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    for plus, minus in ((0.5, 0.2), (0.2, 0.5), (0.3, 0.2)):
        loss = plus * objectives.kto(l, zero, yes, **settings) + minus * objectives.kto(
            l, zero, ~yes, **settings
        )
        (slope,) = torch.autograd.grad(loss.sum(), l)
        assert (slope.sign() == math.copysign(1, weights[1] * minus - weights[0] * plus)).all()


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_policy_minimises_kto_by_giving_nothing_to_what_is_mostly_rejected(beta):
    p_plus = torch.tensor([0.55, 0.3, 0.15], dtype=torch.float64)
    p_minus = torch.tensor([0.15, 0.25, 0.6], dtype=torch.float64)
    ref = (p_plus + p_minus) / 2
    population = unpaired_population(objectives.kto, ref, p_plus, p_minus, beta=beta)
    tiny, steps = 1e-6, 60
    grid = [
        torch.tensor([a, b, steps - a - b], dtype=torch.float64) / steps * (1 - 3 * tiny) + tiny
        for a in range(steps + 1)
        for b in range(steps + 1 - a)
    ]
    best = min(grid, key=lambda p: float(population(p.log())))
    assert float(best[2]) == pytest.approx(tiny) and float(best[0]) > 0.1 and float(best[1]) > 0.1


# --- groups and the policy's own samples -----------------------------------------------------------


def group_minimiser(loss, mu, start, columns, k, **settings):
    """Exact expectation over all K-tuples from mu of a group loss; `columns` follow the policy."""
    index = torch.tensor(list(itertools.product(range(len(mu)), repeat=k)))
    weight = mu[index].prod(1)
    return minimise_policy(
        lambda l: (weight * loss(l[index], *(c[index] for c in columns), **settings)).sum(), start
    )


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("betas", [(1.0, 1.0), (0.5, 0.5), (0.5, 2.0)])
@pytest.mark.parametrize("name", ["exo_rw", "dpo_rw"])
def test_exo_rw_and_dpo_rw_find_the_same_optimum_when_the_policy_can_represent_it(name, betas, k):
    ref, reward = random_policy(4, k), random_numbers(4, seed=k)
    found = group_minimiser(
        objectives.get(name).loss,
        ref,
        ref,
        (ref.log(), reward),
        k,
        beta_policy=betas[0],
        beta_reward=betas[1],
    )
    assert worst(found, tilted(ref, reward / (betas[0] * betas[1]))) < TOLERANCE


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_brain_finds_the_posterior_from_any_proposal(gamma, k):
    prior, proposal, reward = random_policy(4, k), random_policy(4, 40 + k), random_numbers(4, seed=k)
    found = group_minimiser(
        objectives.brain, proposal, prior, (proposal.log(), prior.log(), reward), k, gamma=gamma
    )
    assert worst(found, tilted(prior, reward / gamma)) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_reverse_kl_on_the_policys_own_samples_finds_its_closed_form(beta, seed):
    ref, reward, gamma = random_policy(5, seed), random_numbers(5, seed=seed), 0.5
    logits = ref.log()
    for _ in range(60):
        point = logits.clone().requires_grad_()
        log_policy = torch.log_softmax(point, 0)
        policy = log_policy.exp().detach()
        # the exact expectation over samples: their probabilities are held constant, as sampling does
        loss = (policy * objectives.reverse_kl(log_policy, ref.log(), reward, gamma, beta)).sum()
        # natural gradient: the Fisher matrix of a softmax is undone by dividing by the probabilities
        logits = logits - 0.5 / (beta + gamma) * torch.autograd.grad(loss, point)[0] / policy
    expected = torch.softmax((beta * ref.log() + reward) / (beta + gamma), 0)
    assert worst(torch.softmax(logits, 0), expected) < TOLERANCE


# --- reward models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_bradley_terry_rewards_have_the_right_differences(seed):
    reward, mu = random_numbers(5, seed=seed), random_policy(5, seed)
    weight = mu[:, None] * mu[None, :] * bradley_terry(reward)
    found = minimise(
        lambda r: (weight * objectives.bt(*all_pairs(r))).sum(), torch.zeros(5, dtype=torch.float64)
    )
    assert worst(found - found[0], reward - reward[0]) < TOLERANCE


def test_no_reward_fits_a_cycle_but_the_general_preference_model_does():
    p = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]], dtype=torch.float64)
    off_diagonal = 1 - torch.eye(3, dtype=torch.float64)
    rewards = minimise(
        lambda r: (p * objectives.bt(*all_pairs(r))).sum(), torch.zeros(3, dtype=torch.float64)
    )
    assert worst(bradley_terry(rewards) * off_diagonal, p * off_diagonal) > 0.2

    def population(flat):
        v = flat.view(3, 2)
        pair = v[:, None, :].expand(3, 3, 2), v[None, :, :].expand(3, 3, 2)
        return (p * off_diagonal * objectives.gpm(*pair, tau=0.5)).sum()

    v = minimise(population, random_numbers(6, seed=0)).view(3, 2)
    score = objectives.gpm_score(v[:, None, :].expand(3, 3, 2), v[None, :, :].expand(3, 3, 2))
    assert worst(score * off_diagonal, 0.5 * logit(p) * off_diagonal) < TOLERANCE
