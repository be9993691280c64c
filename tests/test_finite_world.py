"""The finite world against mathematics: identities, closed forms, other ways of computing the same number."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from course_utils import preferences
from course_utils.errors import CourseError
from course_utils.policies import TablePolicy
from course_utils.worlds.finite import FiniteWorld
from course_utils.worlds.finite_optima import best_of_n
from course_utils.worlds.tables import kl

JUDGES = ["bradley_terry", "cyclic", "random", "mixed"]
UNIFORM3 = [1 / 3, 1 / 3, 1 / 3]
ROCK_PAPER_SCISSORS = preferences.cyclic(3, 0.9)


def world(judge: str = "bradley_terry", prompts: int = 3, responses: int = 5, seed: int = 7) -> FiniteWorld:
    """A random world whose prompts are not equally likely."""
    made = FiniteWorld.random(prompts, responses, seed, judge)
    weights = torch.arange(1.0, prompts + 1) / sum(range(1, prompts + 1))
    return FiniteWorld(made.reference, made.preference, made.reward, prompt_weights=weights)


# -------------------- identities


@pytest.mark.parametrize("judge", JUDGES)
def test_preferred_and_rejected_average_to_the_reference(judge):
    w = world(judge)
    preferred, rejected = w.preferred_distribution(), w.rejected_distribution()
    assert torch.allclose(preferred + rejected, 2 * w.reference, atol=1e-15)
    assert torch.allclose(preferred.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-14)
    assert bool((preferred > 0).all())


@pytest.mark.parametrize("judge", JUDGES)
def test_the_relative_density_ratio_of_on_policy_pairs_is_twice_the_win_rate(judge):
    w = world(judge)
    preferred, rejected = w.preferred_distribution(), w.rejected_distribution()
    ratio = preferred / (0.5 * preferred + 0.5 * rejected)
    assert torch.allclose(ratio, 2 * w.win_rate_of_responses(), atol=1e-14)
    assert ratio.max() <= 2


def test_win_rates_equal_an_explicit_sum_over_all_pairs():
    w, other = world("random"), world("random", seed=8).reference
    by_hand = torch.zeros(3, dtype=torch.float64)
    for x, a, b in itertools.product(range(3), range(5), range(5)):
        by_hand[x] += other[x, a] * w.reference[x, b] * w.preference[x, a, b]
    assert math.isclose(w.win_rate(other), float(w.prompt_weights @ by_hand), abs_tol=1e-15)
    assert math.isclose(w.win_rate(other) + w.win_rate(w.reference, other), 1.0, abs_tol=1e-15)
    assert math.isclose(w.win_rate(w.reference), 0.5, abs_tol=1e-15)


def test_the_chosen_of_two_different_proposals_is_what_enumeration_says():
    w, first, second = world("random"), world(seed=1).reference, world(seed=2).reference
    chosen, rejected = torch.zeros_like(first), torch.zeros_like(first)
    for x, a, b in itertools.product(range(3), range(5), range(5)):
        drawn, wins = first[x, a] * second[x, b], w.preference[x, a, b]
        chosen[x, a] += drawn * wins
        chosen[x, b] += drawn * (1 - wins)
        rejected[x, b] += drawn * wins
        rejected[x, a] += drawn * (1 - wins)
    assert torch.allclose(w.preferred_distribution(first, second), chosen, atol=1e-15)
    assert torch.allclose(w.rejected_distribution(first, second), rejected, atol=1e-15)


def test_distances_are_weighted_by_prompt_and_agree_with_their_definitions():
    w, q = world(), world(seed=9).reference
    divergence = distance = 0.0
    for x, y in itertools.product(range(3), range(5)):
        weight, p, r = w.prompt_weights[x].item(), q[x, y].item(), w.reference[x, y].item()
        divergence += weight * p * math.log(p / r)
        distance += weight * abs(p - r) / 2
    assert math.isclose(w.kl(q), divergence, abs_tol=1e-14)
    assert math.isclose(w.total_variation(q), distance, abs_tol=1e-14)
    assert math.isclose(w.kl(w.reference), 0.0, abs_tol=1e-15)
    uniform = torch.full((3, 5), 0.2, dtype=torch.float64)
    assert math.isclose(w.entropy(uniform), math.log(5), abs_tol=1e-14)
    assert math.isclose(w.kl(q, uniform), math.log(5) - w.entropy(q), abs_tol=1e-14)
    certain = torch.eye(5, dtype=torch.float64)[[0, 1, 2]]
    assert w.entropy(certain) == 0.0
    assert w.kl(uniform, certain) == math.inf


@pytest.mark.parametrize("t", [0.2, 0.39, 0.8])
def test_a_mixture_world_has_its_mixture_as_reference_and_its_classes_as_feedback(t):
    preferred, rejected = [0.40, 0.25, 0.15, 0.15, 0.05], [0.05, 0.10, 0.20, 0.25, 0.40]
    w = FiniteWorld.from_mixture(preferred, rejected, t)
    mixture = [t * p + (1 - t) * q for p, q in zip(preferred, rejected, strict=True)]
    assert torch.allclose(w.reference[0], torch.tensor(mixture, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(w.preferred_distribution(), torch.tensor([preferred], dtype=torch.float64))
    assert torch.allclose(w.rejected_distribution(), torch.tensor([rejected], dtype=torch.float64))
    # Its judge is Bayes' rule for "one came from p+, the other from p-".
    a, b = 0, 3
    posterior = preferred[a] * rejected[b] / (preferred[a] * rejected[b] + preferred[b] * rejected[a])
    assert math.isclose(w.preference[0, a, b].item(), posterior, abs_tol=1e-14)
    assert torch.allclose(w.preference, preferences.bradley_terry(w.reward), atol=1e-14)


def test_disjoint_classes_make_a_world_without_a_reward():
    w = FiniteWorld.from_mixture([0.5, 0.5, 0.0], [0.0, 0.0, 1.0], 0.25)
    assert w.reward is None
    assert w.preference[0].tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 1.0], [0.0, 0.0, 0.5]]


# -------------------- optima


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_random_perturbations_of_the_rlhf_optimum_lose(beta):
    w = world()
    best = w.rlhf_optimum(beta)

    def objective(policy):
        return w.expected_reward(policy) - beta * w.kl(policy)

    value = objective(best)
    # At the optimum the objective is beta times the log partition function.
    log_z = torch.logsumexp(w.reference.log() + w.reward / beta, dim=-1)
    assert math.isclose(value, beta * float(w.prompt_weights @ log_z), abs_tol=1e-12)
    generator = torch.Generator().manual_seed(0)
    for size in [1e-3, 0.1, 1.0]:
        for _ in range(20):
            noise = size * torch.randn(3, 5, generator=generator, dtype=torch.float64)
            assert objective(torch.softmax(best.log() + noise, -1)) < value


def test_rlhf_with_a_proxy_reward_uses_the_proxy():
    w = world()
    proxy = w.reward + 1.0
    assert torch.allclose(w.rlhf_optimum(0.5, reward=proxy), w.rlhf_optimum(0.5), atol=1e-15)
    assert not torch.allclose(w.rlhf_optimum(0.5, reward=-w.reward), w.rlhf_optimum(0.5), atol=1e-2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_equals_enumeration_over_all_draws_even_with_ties(n):
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    w = FiniteWorld.from_rewards(reference, [1.0, 2.0, 2.0, 0.0])
    exact = torch.zeros(4, dtype=torch.float64)
    for draws in itertools.product(range(4), repeat=n):
        chance = math.prod(reference[list(draws)].tolist())
        top = max(w.reward[0, list(draws)].tolist())
        winners = [y for y in draws if w.reward[0, y] == top]
        for y in winners:
            exact[y] += chance / len(winners)
    assert torch.allclose(w.best_of_n(n)[0], exact, atol=1e-15)


def test_best_of_n_agrees_with_monte_carlo():
    w, n, draws = world(prompts=1), 4, 200_000
    generator = torch.Generator().manual_seed(3)
    responses = torch.multinomial(w.reference[0], n * draws, replacement=True, generator=generator).view(
        draws, n
    )
    best = responses.gather(1, w.reward[0][responses].argmax(1, keepdim=True)).flatten()
    frequency = torch.bincount(best, minlength=5) / draws
    exact = w.best_of_n(n)[0]
    assert bool(((frequency - exact).abs() < 4 * (exact * (1 - exact) / draws).sqrt() + 1e-12).all())


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_kl_of_best_of_n_stays_below_its_known_bound_and_reaches_it_without_ties(n):
    bound = math.log(n) - (n - 1) / n
    for seed in range(5):
        w = world(seed=seed)
        assert w.kl(w.best_of_n(n)) <= bound + 1e-14
    # The bound is an equality for a continuous reward; a thousand equally likely responses come close.
    even = torch.full((1, 1000), 1e-3, dtype=torch.float64)
    best = best_of_n(even, torch.arange(1000.0, dtype=torch.float64).unsqueeze(0), n)
    distance = kl(best, even).item()
    assert bound - n / 1000 <= distance <= bound + 1e-14


def test_the_nash_policy_of_rock_paper_scissors_is_uniform_and_of_a_stretched_one_is_known():
    w = FiniteWorld([0.5, 0.3, 0.2], ROCK_PAPER_SCISSORS)
    assert torch.allclose(w.nash_policy()[0], torch.tensor(UNIFORM3, dtype=torch.float64), atol=1e-12)
    # Margins a over b, b over c, c over a: each weight is the margin of the duel that it is not part of.
    ab, bc, ca = 0.1, 0.2, 0.4
    judge = 0.5 + torch.tensor([[0, ab, -ca], [-ab, 0, bc], [ca, -bc, 0]], dtype=torch.float64)
    expected = torch.tensor([bc, ca, ab], dtype=torch.float64) / (ab + bc + ca)
    assert torch.allclose(FiniteWorld(UNIFORM3, judge).nash_policy()[0], expected, atol=1e-12)


def test_the_nash_policy_of_a_bradley_terry_world_is_the_best_response():
    w = world("bradley_terry", prompts=4, responses=8)
    assert torch.equal(w.nash_policy().argmax(-1), w.reward.argmax(-1))
    assert torch.allclose(w.nash_policy().max(-1).values, torch.ones(4, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("responses", [3, 6, 15])
def test_no_opponent_beats_the_nash_policy(judge, responses):
    w = world(judge, responses=responses)
    nash = w.nash_policy()
    assert w.exploitability(nash).abs().max() < 1e-9
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        opponent = torch.softmax(2 * torch.randn(3, responses, generator=generator, dtype=torch.float64), -1)
        assert w.win_rate(nash, opponent) >= 0.5 - 1e-9
        assert w.exploitability(opponent).min() >= 0


def test_the_nash_policy_agrees_with_a_linear_programming_library():
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(10):
        w = FiniteWorld.random(1, 7, seed, "random")
        # Maximise v subject to sum_a pi(a) P[a, b] >= v for every b.
        judge = w.preference[0].numpy()
        constraint = np.hstack([-judge.T, np.ones((7, 1))])
        found = optimize.linprog(
            np.r_[np.zeros(7), -1.0],
            A_ub=constraint,
            b_ub=np.zeros(7),
            A_eq=np.r_[np.ones(7), 0.0][None],
            b_eq=[1.0],
            bounds=[(0, None)] * 7 + [(None, None)],
        )
        assert math.isclose(found.x[-1], 0.5, abs_tol=1e-9)
        assert np.abs(w.nash_policy()[0].numpy() - found.x[:7]).max() < 1e-6


# -------------------- input


def test_lists_arrays_and_float32_become_exact_float64_tables():
    w = FiniteWorld(
        np.array([0.2, 0.3, 0.5], dtype=np.float32), ROCK_PAPER_SCISSORS.tolist(), reward=[1, 2, 3]
    )
    assert w.shape == (1, 3)
    for table in (w.reference, w.preference, w.reward, w.prompt_weights):
        assert table.dtype == torch.float64
    assert math.isclose(w.reference.sum().item(), 1.0, abs_tol=1e-15)
    assert torch.equal(w.preference + w.preference.mT, torch.ones(1, 3, 3, dtype=torch.float64))
    assert w.prompts == ("x0",) and w.responses == ("y0", "y1", "y2")
    policy = TablePolicy.from_probabilities([0.1, 0.2, 0.7])
    assert math.isclose(w.win_rate(policy), w.win_rate([0.1, 0.2, 0.7]), abs_tol=1e-14)
    assert "1 prompt," in repr(w)


REF, RPS = [0.5, 0.3, 0.2], ROCK_PAPER_SCISSORS
BAD_WORLDS = {
    "rows that do not sum to one": (dict(reference=[0.5, 0.3, 0.3], preference=RPS), "world-row-sums"),
    "a zero in the reference": (dict(reference=[0.5, 0.5, 0.0], preference=RPS), "world-support"),
    "a negative probability": (dict(reference=[0.9, 0.3, -0.2], preference=RPS), "world-support"),
    "a nan": (dict(reference=[0.5, 0.3, math.nan], preference=RPS), "world-not-finite"),
    "an infinite reward": (dict(reference=REF, preference=RPS, reward=[0, 1, math.inf]), "world-not-finite"),
    "a judge of another size": (dict(reference=[0.5, 0.5], preference=RPS), "world-shape"),
    "a reference of three dimensions": (dict(reference=[[[0.5, 0.5]]], preference=RPS), "world-shape"),
    "one response only": (dict(reference=[1.0], preference=[[0.5]]), "world-shape"),
    "a reward of another size": (dict(reference=REF, preference=RPS, reward=[0.0, 1.0]), "world-shape"),
    "scores in place of probabilities": (
        dict(reference=[0.5, 0.5], preference=[[0.5, 2.0], [-1.0, 0.5]]),
        "world-preference-range",
    ),
    "a judge that is not antisymmetric": (
        dict(reference=[0.5, 0.5], preference=[[0.5, 0.7], [0.7, 0.5]]),
        "world-preference-asymmetric",
    ),
    "a diagonal that is not one half": (
        dict(reference=[0.5, 0.5], preference=[[1.0, 0.7], [0.3, 0.5]]),
        "world-preference-asymmetric",
    ),
    "prompt weights that do not sum to one": (
        dict(reference=[REF, REF], preference=RPS, prompt_weights=[0.5, 0.6]),
        "world-row-sums",
    ),
    "too few prompt weights": (
        dict(reference=[REF, REF], preference=RPS, prompt_weights=[1.0]),
        "world-shape",
    ),
    "too many names": (dict(reference=REF, preference=RPS, responses=("a", "b")), "world-shape"),
    "half a mixture": (dict(reference=REF, preference=RPS, preferred=REF), "world-mixture"),
    "a mixture that is not the reference": (
        dict(reference=REF, preference=RPS, preferred=[0.2, 0.3, 0.5], rejected=REF, preferred_fraction=0.5),
        "world-mixture",
    ),
}


@pytest.mark.parametrize("name", BAD_WORLDS)
def test_bad_worlds_are_refused_with_their_id(name):
    arguments, expected = BAD_WORLDS[name]
    with pytest.raises(CourseError) as caught:
        FiniteWorld(**arguments)
    assert caught.value.id == expected
    assert caught.value.remedy


BAD_CALLS = {
    "a reward that is not there": (lambda: world("cyclic").rlhf_optimum(1.0), "world-no-reward"),
    "beta of zero": (lambda: world().rlhf_optimum(0.0), "setting-out-of-range"),
    "best of none": (lambda: world().best_of_n(0), "setting-out-of-range"),
    "an unknown judge": (lambda: FiniteWorld.random(judge="elo"), "setting-out-of-range"),
    "a policy of another shape": (lambda: world().win_rate([0.5, 0.5]), "policy-shape"),
    "logits as a policy": (lambda: world().kl(torch.zeros(3, 5)), "policy-not-a-distribution"),
    "t of one": (lambda: FiniteWorld.from_mixture(REF, [0.2, 0.3, 0.5], 1.0), "setting-out-of-range"),
    "classes of two sizes": (lambda: FiniteWorld.from_mixture(REF, [0.5, 0.5], 0.5), "world-shape"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused_with_their_id(name):
    call, expected = BAD_CALLS[name]
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == expected


def test_the_finite_tier_imports_with_transformers_and_trl_absent():
    code = (
        "import sys; sys.modules['transformers'] = None; sys.modules['trl'] = None\n"
        "import course_utils.preferences, course_utils.policies, course_utils.references\n"
        "import course_utils.worlds.finite as f\n"
        "w = f.FiniteWorld.random(); w.population_minimiser('dpo')\n"
        "assert 'scipy' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
