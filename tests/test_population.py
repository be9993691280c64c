"""Population losses against explicit sums, draws and numerical derivatives; minimisers against formulas."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.policies import GaussianPolicy, MLPPolicy, TablePolicy
from course_utils.preferences import cyclic, draw_groups, draw_pairs, draw_soft_pairs, draw_unpaired
from course_utils.worlds.finite import FiniteWorld

X, Y = 2, 4


def world(judge: str = "bradley_terry", seed: int = 3) -> FiniteWorld:
    made = FiniteWorld.random(X, Y, seed, judge)
    return FiniteWorld(made.reference, made.preference, made.reward, prompt_weights=[0.3, 0.7])


def some_policy(seed: int = 11, size: float = 0.5) -> torch.Tensor:
    """Log-probabilities near the reference of `world()`, so that DDRO is finite there."""
    noise = torch.randn(X, Y, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(world().reference.log() + size * noise, -1)


# -------------------- the loss itself


def test_the_population_loss_of_dpo_is_an_explicit_sum_over_prompts_and_pairs():
    w, log_policy, beta = world("random"), some_policy(), 0.7
    by_hand = 0.0
    for x, a, b in itertools.product(range(X), range(Y), range(Y)):
        h = (log_policy[x, a] - w.reference[x, a].log() - log_policy[x, b] + w.reference[x, b].log()).item()
        pair = w.prompt_weights[x] * w.reference[x, a] * w.reference[x, b]
        wins = w.preference[x, a, b]
        by_hand += pair * (
            wins * math.log1p(math.exp(-beta * h)) + (1 - wins) * math.log1p(math.exp(beta * h))
        )
    assert math.isclose(w.population_loss("dpo", log_policy, beta=beta).item(), by_hand.item(), abs_tol=1e-14)


@pytest.mark.parametrize("reduction", ["classwise", "pooled"])
def test_the_population_loss_of_rdro_is_an_explicit_sum_over_both_classes(reduction):
    w, log_policy, alpha = world("cyclic"), some_policy(), 0.3
    up, down = (1.0, 1.0) if reduction == "classwise" else (0.2, 0.8)
    by_hand = 0.0
    for x, y in itertools.product(range(X), range(Y)):
        l = (log_policy[x, y] - w.reference[x, y].log()).item()
        p, q = w.preferred_distribution()[x, y].item(), w.rejected_distribution()[x, y].item()
        terms = up * p * ((1 + alpha) * math.log1p(math.exp(l)) - l) + down * q * (1 - alpha) * math.log1p(
            math.exp(l)
        )
        by_hand += w.prompt_weights[x].item() * terms
    settings = {} if reduction == "classwise" else {"reduction": "pooled", "fraction": 0.2}
    assert math.isclose(
        w.population_loss("rdro", log_policy, alpha=alpha, **settings).item(), by_hand, abs_tol=1e-14
    )


def test_the_population_loss_of_exo_is_an_explicit_sum_over_triples():
    w, log_policy = world(), some_policy()
    by_hand = 0.0
    for x in range(X):
        for group in itertools.product(range(Y), repeat=3):
            members = list(group)
            f = torch.log_softmax((log_policy - w.reference.log())[x, members], -1)
            r = torch.log_softmax(w.reward[x, members] / 0.5, -1)
            by_hand += w.prompt_weights[x] * w.reference[x, members].prod() * (f.exp() * (f - r)).sum()
    exact = w.population_loss("exo_rw", log_policy, beta_reward=0.5, group_size=3)
    assert math.isclose(exact.item(), by_hand.item(), abs_tol=1e-14)


def test_pairs_of_two_proposals_are_judged_in_both_orders():
    w, log_policy, first, second = world("random"), some_policy(), some_policy(1).exp(), some_policy(2).exp()
    by_hand = 0.0
    for x, a, b in itertools.product(range(X), range(Y), range(Y)):
        margin = (log_policy[x, a] - log_policy[x, b]).item()
        wins, pair = w.preference[x, a, b], w.prompt_weights[x] * first[x, a] * second[x, b]
        by_hand += pair * (wins * math.log1p(math.exp(-margin)) + (1 - wins) * math.log1p(math.exp(margin)))
    exact = w.population_loss("pmle", log_policy, proposal=first, opponent=second)
    assert math.isclose(exact.item(), by_hand.item(), abs_tol=1e-14)


def columns(w: FiniteWorld, log_policy: torch.Tensor, kind: str, n: int) -> torch.Tensor:
    """The losses of n drawn examples, written out as a trainer would compute them."""
    ref = w.reference.log()
    if kind == "paired":
        d = draw_pairs(w, n, 0)
        c, r = (d.prompt, d.chosen), (d.prompt, d.rejected)
        return objectives.get("dpo").loss(log_policy[c], log_policy[r], ref[c], ref[r], beta=0.5)
    if kind == "reference-free pair":
        d = draw_pairs(w, n, 0)
        return objectives.get("pmle").loss(log_policy[d.prompt, d.chosen], log_policy[d.prompt, d.rejected])
    if kind == "reward pair":
        d = draw_pairs(w, n, 0)
        return objectives.get("bt").loss(log_policy[d.prompt, d.chosen], log_policy[d.prompt, d.rejected])
    if kind == "scored pair":
        d = draw_soft_pairs(w, n, 0)
        a, b = (d.prompt, d.first), (d.prompt, d.second)
        loss = objectives.get("preference_distillation").loss
        return loss(log_policy[a], log_policy[b], w.reward[a], w.reward[b])
    if kind == "chosen only":
        d = draw_pairs(w, n, 0)
        return objectives.get("sft").loss(log_policy[d.prompt, d.chosen])
    if kind == "group":
        d = draw_groups(w, n, 3, 0)
        x = d.prompt.unsqueeze(1)
        return objectives.get("dpo_rw").loss(log_policy[x, d.responses], ref[x, d.responses], d.reward)
    assert kind == "on-policy"
    d = draw_soft_pairs(w, n, 0, proposal=log_policy.exp())
    at = (d.prompt, d.first)
    return objectives.get("reverse_kl").loss(log_policy[at], ref[at], w.reward[at], gamma=0.5, beta=0.3)


KINDS = {
    "paired": ("dpo", dict(beta=0.5)),
    "reference-free pair": ("pmle", {}),
    "reward pair": ("bt", {}),
    "scored pair": ("preference_distillation", {}),
    "chosen only": ("sft", {}),
    "group": ("dpo_rw", dict(group_size=3)),
    "on-policy": ("reverse_kl", dict(gamma=0.5, beta=0.3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_population_loss_is_the_mean_of_a_large_draw(kind):
    w, log_policy = world(), some_policy()
    name, settings = KINDS[kind]
    assert objectives.get(name).feedback == kind
    losses = columns(w, log_policy, kind, 100_000)
    exact = w.population_loss(name, log_policy, **settings).item()
    error = losses.std().item() / math.sqrt(len(losses))
    assert abs(losses.mean().item() - exact) < 4 * error
    # The test has teeth: at another policy the loss is another number.
    assert abs(w.population_loss(name, some_policy(12), **settings).item() - exact) > 8 * error


@pytest.mark.parametrize("name", ["rdro", "ddro", "kto", "bco"])
def test_the_population_loss_of_unpaired_feedback_is_the_class_wise_mean_of_a_large_draw(name):
    w, log_policy, n = world("cyclic"), some_policy(size=0.1), 100_000
    data = draw_unpaired(w, n, 0)
    at = (data.prompt, data.response)
    losses = objectives.get(name).loss(log_policy[at], w.reference.log()[at], data.preferred)
    up, down = losses[data.preferred], losses[~data.preferred]
    error = math.sqrt((up.var().item() + down.var().item()) / (n / 2))
    exact = w.population_loss(name, log_policy).item()
    assert abs(objectives.classwise_mean(losses, data.preferred).item() - exact) < 4 * error


@pytest.mark.parametrize(
    "name", ["dpo", "pmle", "preference_distillation", "sft", "exo_rw", "rdro", "ddro", "bt"]
)
def test_the_gradient_of_the_population_loss_is_its_central_difference(name):
    w, logits = world(), some_policy(size=0.2).clone().requires_grad_(True)

    def loss(z):
        return w.population_loss(name, torch.log_softmax(z, -1))

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    for x, y in itertools.product(range(X), range(Y)):
        step = torch.zeros(X, Y, dtype=torch.float64)
        step[x, y] = 1e-5
        slope = (loss(logits.detach() + step) - loss(logits.detach() - step)) / 2e-5
        assert math.isclose(gradient[x, y].item(), slope.item(), abs_tol=1e-9)


def test_on_policy_samples_give_the_value_and_the_gradient_of_the_regularised_reward():
    w, logits = world(), some_policy().clone().requires_grad_(True)
    gamma, beta = 0.5, 0.3
    loss = w.population_loss("reverse_kl", torch.log_softmax(logits, -1), gamma=gamma, beta=beta)

    def objective(z):
        policy = torch.softmax(z, -1)
        return -w.expected_reward(policy) - gamma * w.entropy(policy) + beta * w.kl(policy)

    assert math.isclose(loss.item(), objective(logits.detach()), abs_tol=1e-14)
    (gradient,) = torch.autograd.grad(loss, logits)
    for x, y in itertools.product(range(X), range(Y)):
        step = torch.zeros(X, Y, dtype=torch.float64)
        step[x, y] = 1e-5
        slope = (objective(logits.detach() + step) - objective(logits.detach() - step)) / 2e-5
        assert math.isclose(gradient[x, y].item(), slope, abs_tol=1e-9)


def test_policies_and_tables_of_logs_are_the_same_argument():
    w, policy = world(), TablePolicy(some_policy())
    loss = w.population_loss("dpo", policy)
    assert loss.item() == w.population_loss("dpo", policy.log_probabilities()).item()
    loss.backward()
    assert policy.logits.grad.abs().max() > 0
    by_object = w.population_loss(objectives.get("dpo"), policy)
    assert by_object.item() == loss.item()


# -------------------- minimisers


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    return (p - q).abs().max().item()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_finds_the_rlhf_optimum_from_whatever_pairs_cover_everything(beta):
    w, elsewhere = world(), some_policy(5, 2.0).exp()
    assert distance(w.population_minimiser("dpo", beta=beta), w.rlhf_optimum(beta)) < 1e-10
    assert (
        distance(w.population_minimiser("dpo", beta=beta, proposal=elsewhere), w.rlhf_optimum(beta)) < 1e-10
    )


@pytest.mark.parametrize("judge", ["bradley_terry", "cyclic", "random", "mixed"])
@pytest.mark.parametrize("name", ["rdro", "ddro", "sft"])
def test_the_density_ratio_methods_find_p_plus_whatever_the_judge(name, judge):
    w = world(judge)
    assert distance(w.population_minimiser(name), w.preferred_distribution()) < 1e-10


@pytest.mark.parametrize("t", [0.1, 0.39, 0.5, 0.8])
def test_the_pooled_mean_misses_p_plus_unless_the_classes_are_equal_and_its_repair_does_not(t):
    w = FiniteWorld.from_mixture([0.40, 0.25, 0.15, 0.15, 0.05], [0.05, 0.10, 0.20, 0.25, 0.40], t)
    truth = w.preferred_distribution()
    assert distance(w.population_minimiser("rdro", alpha=t), truth) < 1e-10
    assert distance(w.population_minimiser("ddro", t=t), truth) < 1e-9
    assert distance(w.population_minimiser("rdro_pooled", alpha=t), truth) < 1e-10
    pooled = w.population_minimiser("rdro", alpha=t, reduction="pooled")
    assert (w.total_variation(pooled, truth) < 1e-9) == (t == 0.5)
    measured = {0.39: (0.0194, 0.086), 0.8: (0.0110, 0.056)}
    if t in measured:
        assert math.isclose(w.kl(truth, pooled), measured[t][0], abs_tol=5e-5)
        assert math.isclose(w.total_variation(pooled, truth), measured[t][1], abs_tol=5e-4)


def test_rdro_with_a_wrong_reference_moves_towards_p_plus_and_does_not_arrive():
    w = FiniteWorld.from_mixture([0.40, 0.25, 0.15, 0.15, 0.05], [0.05, 0.10, 0.20, 0.25, 0.40], 0.39)
    truth = w.preferred_distribution()
    for reference, measured in (([0.2] * 5, 0.0056), (w.rejected_distribution(), 0.278)):
        found = w.population_minimiser("rdro", alpha=0.39, reference=reference, start=reference)
        assert math.isclose(w.kl(truth, found), measured, abs_tol=5e-4)
        assert w.kl(truth, found) < w.kl(truth, reference)


def test_dpo_on_a_judge_that_is_not_bradley_terry_lands_where_the_pilot_measured():
    # The instance of the planning notes, drawn again from its seed.
    rng = np.random.default_rng(0)
    judge = np.full((5, 5), 0.5)
    for i, j in itertools.combinations(range(5), 2):
        judge[i, j] = rng.uniform(0.1, 0.9)
        judge[j, i] = 1 - judge[i, j]
    w = FiniteWorld(rng.dirichlet(np.ones(5) * 3), judge)
    truth = w.preferred_distribution()
    assert distance(w.population_minimiser("rdro"), truth) < 1e-10
    for beta, measured in {0.2: 1.77, 0.5: 0.316, 1.0: 0.047, 2.0: 0.0010, 4.0: 0.011, 8.0: 0.026}.items():
        assert math.isclose(w.kl(truth, w.population_minimiser("dpo", beta=beta)), measured, rel_tol=0.05)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["exo_rw", "dpo_rw"])
def test_reward_weighted_objectives_share_one_optimum_for_every_group_size(name, size):
    w = world()
    found = w.population_minimiser(name, beta_policy=0.8, beta_reward=0.5, group_size=size)
    assert distance(found, w.rlhf_optimum(0.8 * 0.5)) < 1e-8


def test_brain_finds_the_posterior_under_its_prior():
    w = world()
    found = w.population_minimiser("brain", gamma=0.7, group_size=3)
    assert distance(found, w.rlhf_optimum(0.7)) < 1e-8


@pytest.mark.parametrize("name", ["pmle", "preference_distillation"])
def test_without_a_reference_the_optimum_is_the_exponentiated_reward_alone(name):
    w = world()
    assert distance(w.population_minimiser(name, gamma=0.6), torch.softmax(w.reward / 0.6, -1)) < 1e-10


@pytest.mark.parametrize(("gamma", "beta"), [(0.5, 0.0), (0.5, 0.3), (0.0, 0.4)])
def test_reverse_kl_smooths_the_prior(gamma, beta):
    w = world()
    share = beta / (beta + gamma)
    expected = torch.softmax(share * w.reference.log() + w.reward / (beta + gamma), -1)
    assert distance(w.population_minimiser("reverse_kl", gamma=gamma, beta=beta), expected) < 1e-8


def test_bradley_terry_recovers_the_rewards_up_to_their_level():
    w = world()
    scores = w.population_minimiser("bt").log()
    gap = scores - w.reward
    assert (gap - gap.mean(-1, keepdim=True)).abs().max() < 1e-9


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_margins_of_ipo_and_exo_are_linear_in_the_preference(p):
    w = FiniteWorld([0.3, 0.7], [[0.5, p], [1 - p, 0.5]])

    def margin(found):
        ratio = (found / w.reference).log()
        return (ratio[0, 0] - ratio[0, 1]).item()

    assert math.isclose(margin(w.population_minimiser("ipo", tau=0.4)), (2 * p - 1) / 0.8, abs_tol=1e-9)
    exo = margin(w.population_minimiser("exo_pref", beta=0.5, label_smoothing=1e-3))
    assert math.isclose(exo, (2 * p - 1) * math.log(999) / 0.5, abs_tol=1e-7)


def test_a_start_in_the_region_of_negative_curvature_still_reaches_the_minimum():
    w = FiniteWorld([0.5, 0.5], [[0.5, 0.9], [0.1, 0.5]])
    misranked = torch.softmax(torch.tensor([[-5.0, 0.0]], dtype=torch.float64), -1)
    found = w.population_minimiser("exo_pref", beta=1.0, label_smoothing=0.01, start=misranked)
    assert math.isclose((found[0, 0] / found[0, 1]).log().item(), 0.8 * math.log(99), abs_tol=1e-8)


def test_labels_that_are_never_wrong_leave_dpo_without_an_optimum_and_smoothing_restores_it():
    w = FiniteWorld([0.3, 0.3, 0.4], [[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]])
    for beta in (0.1, 1.0):
        with pytest.raises(CourseError) as caught:
            w.population_minimiser("dpo", beta=beta)
        assert caught.value.id == "no-finite-minimum"
    w.population_minimiser("dpo", beta=1.0, label_smoothing=0.1)


def test_a_moving_start_does_not_move_the_minimum_of_a_convex_loss():
    w = world()
    assert (
        distance(w.population_minimiser("dpo", start=some_policy(9, 2.0).exp()), w.rlhf_optimum(0.1)) < 1e-10
    )


def test_another_minimiser_finds_the_same_table():
    optimize = pytest.importorskip("scipy.optimize")
    w = world("cyclic")

    def loss(flat):
        z = torch.tensor(flat.reshape(X, Y), requires_grad=True)
        value = w.population_loss("bpo", torch.log_softmax(z, -1), beta=0.5)
        (slope,) = torch.autograd.grad(value, z)
        return value.item(), slope.numpy().ravel()

    found = optimize.minimize(
        loss, w.reference.log().numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-10}
    )
    table = torch.softmax(torch.tensor(found.x.reshape(X, Y)), -1)
    assert distance(w.population_minimiser("bpo", beta=0.5), table) < 1e-6


# -------------------- policies that are not tables


def two_modes() -> FiniteWorld:
    """A grid, a broad reference, and a reward whose optimum at beta = 1 has two modes."""
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)
    reference = torch.softmax(-(x**2) / 18, -1)
    left = math.log(0.6) - 0.5 * ((x + 2) / 0.6) ** 2
    right = math.log(0.4) - 0.5 * ((x - 2) / 0.6) ** 2
    target = torch.log_softmax(torch.logaddexp(left, right), -1)
    return FiniteWorld.from_rewards(reference, target - reference.log())


@pytest.mark.parametrize(
    ("name", "settings", "mean", "sd"),
    [
        ("reverse_kl", dict(gamma=0.0, beta=1.0), -2.00, 0.60),
        ("exo_rw", dict(group_size=2), -0.10, 1.51),
        ("dpo_rw", dict(group_size=2), -0.11, 1.87),
    ],
)
def test_one_gaussian_on_two_modes_ends_where_the_pilot_measured(name, settings, mean, sd):
    w = two_modes()
    policy = GaussianPolicy(-1.0, 0.0, grid=torch.linspace(-6, 6, 121))
    w.fit_policy(name, policy, **settings)
    assert math.isclose(policy.mean.item(), mean, abs_tol=0.02)
    assert math.isclose(policy.log_sd.exp().item(), sd, abs_tol=0.02)


def test_a_network_with_enough_units_reaches_the_optimum_of_the_table():
    w = world()
    policy = MLPPolicy(X, Y, hidden=(8,), seed=0)
    value = w.fit_policy("dpo", policy, beta=0.5)
    assert distance(policy.probabilities().detach(), w.rlhf_optimum(0.5)) < 1e-5
    assert math.isclose(
        value, w.population_loss("dpo", w.rlhf_optimum(0.5).log(), beta=0.5).item(), abs_tol=1e-9
    )


# -------------------- refusals


def odd_objective(feedback: str) -> SimpleNamespace:
    return SimpleNamespace(name="odd", feedback=feedback, loss=lambda policy_chosen: policy_chosen)


BAD = {
    "an unknown kind": (
        lambda: world().population_loss(odd_objective("telepathy"), some_policy()),
        "population-feedback",
    ),
    "embeddings": (lambda: world().population_loss("gpm", some_policy()), "population-feedback"),
    "logits": (lambda: world().population_loss("dpo", torch.ones(X, Y)), "policy-not-a-distribution"),
    "another shape": (lambda: world().population_loss("dpo", torch.zeros(X, Y + 1)), "policy-shape"),
    "a huge group": (
        lambda: world().population_loss("exo_rw", some_policy(), group_size=16),
        "population-too-large",
    ),
    "p+ without p-": (
        lambda: world().population_loss("rdro", some_policy(), preferred=some_policy().exp()),
        "unpaired-one-class",
    ),
    "no reward": (lambda: world("cyclic").population_loss("exo_rw", some_policy()), "world-no-reward"),
    "an unknown reduction": (
        lambda: world().population_loss("rdro", some_policy(), reduction="median"),
        "setting-out-of-range",
    ),
    "an unknown name": (lambda: world().population_loss("nonesuch", some_policy()), "unknown-objective"),
    "an endless fit": (
        lambda: FiniteWorld([0.5, 0.5], [[0.5, 1.0], [0.0, 0.5]]).fit_policy(
            "dpo", TablePolicy([0.0, 0.0]), max_steps=5
        ),
        "no-finite-minimum",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_with_their_id(name):
    call, expected = BAD[name]
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == expected


def test_a_cycle_has_no_pull_for_bradley_terry_scores():
    w = FiniteWorld([0.5, 0.3, 0.2], cyclic(3, 0.9))
    found = w.population_minimiser("bt", proposal=[1 / 3] * 3)
    assert distance(found, torch.full((1, 3), 1 / 3, dtype=torch.float64)) < 1e-10
