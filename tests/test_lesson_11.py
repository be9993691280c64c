"""The helpers of lesson 11: minimisers on tables of counts, found by another way than the package's own."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import bradley_terry
from course_utils.experiments import lesson_11 as lesson
from course_utils.worlds.finite import FiniteWorld

SHARE = 0.39


def sampled(n: int, concentration: float = 2.0, responses: int = 6, worlds: int = 5, seed: int = 3):
    """Fractions of preferred and rejected responses in samples of n, and the true p+ and p_ref."""
    plus, minus = lesson.random_mixtures(worlds, responses, concentration, seed)
    generator = torch.Generator().manual_seed(seed)
    up = lesson.fractions(plus, int(SHARE * n), generator)
    down = lesson.fractions(minus, n - int(SHARE * n), generator)
    return up, down, SHARE * plus + (1 - SHARE) * minus, plus, minus


@pytest.mark.parametrize(("method", "setting"), [("rdro", "alpha"), ("ddro", "t")])
def test_the_bisection_finds_what_newton_finds_in_the_package(method, setting):
    up, down, ref, _, _ = sampled(5_000)
    assert float(torch.minimum(up, down).min()) > 0  # every response was seen in both classes
    judge = torch.full((5, 6, 6), 0.5, dtype=torch.float64)
    world = FiniteWorld(ref, judge)
    newton = world.population_minimiser(method, preferred=up, rejected=down, **{setting: SHARE})
    assert float((lesson.minimiser(method, up, down, ref, SHARE) - newton).abs().max()) < 1e-8


@pytest.mark.parametrize(
    ("method", "walled"), [("rdro", False), ("ddro", False), ("ddro", True), ("sft", False)]
)
def test_from_exact_frequencies_every_method_returns_the_preferred_distribution(method, walled):
    _, _, ref, plus, minus = sampled(10)
    found = lesson.minimiser(method, plus, minus, ref, SHARE, walled)
    assert float((found - plus).abs().max()) < 1e-9


@pytest.mark.parametrize("method", ["rdro", "ddro"])
def test_no_step_of_probability_between_two_responses_lowers_the_loss(method):
    up, down, ref, _, _ = sampled(200, concentration=0.3)
    found = lesson.minimiser(method, up, down, ref, SHARE, walled=True)

    def loss(policy):
        r = policy / ref
        if method == "rdro":
            on_up, on_down = (1 + SHARE) * torch.log1p(r) - r.log(), (1 - SHARE) * torch.log1p(r)
        else:
            g = (1 / r - SHARE) / (1 - SHARE)
            on_up, on_down = torch.log1p(g), torch.log1p(1 / g)
        zero = torch.zeros_like(r)
        return (torch.where(up > 0, up * on_up, zero) + torch.where(down > 0, down * on_down, zero)).sum(1)

    least = loss(found)
    for a in range(6):
        for b in range(6):
            moved = found.clone()
            step = torch.minimum(1e-4 * torch.ones(5, dtype=torch.float64), 0.5 * found[:, a])
            moved[:, a] -= step
            moved[:, b] += step
            inside = (moved[:, b] < ref[:, b] / SHARE) | (method == "rdro")
            assert bool((loss(moved) >= least - 1e-12)[inside].all())


def test_a_wall_everywhere_holds_every_ratio_below_one_over_t():
    up, down, ref, _, _ = sampled(200, concentration=0.15, responses=12)
    free = lesson.minimiser("ddro", up, down, ref, SHARE) / ref
    held = lesson.minimiser("ddro", up, down, ref, SHARE, walled=True) / ref
    assert float(free.max()) > 1 / SHARE
    seen = (up + down) > 0
    assert float(held[seen].max()) <= 1 / SHARE + 1e-7


def test_every_policy_is_a_distribution_even_where_responses_were_never_seen():
    up, down, ref, _, _ = sampled(30, concentration=0.15, responses=30)
    assert bool(((up + down) == 0).any())
    for method in ("rdro", "ddro", "sft"):
        found = lesson.minimiser(method, up, down, ref, SHARE)
        assert bool((found >= 0).all()) and float((found.sum(1) - 1).abs().max()) < 1e-12


def test_dpo_on_counts_is_bradley_terry_tilting_the_reference():
    ref = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    judge = torch.sigmoid(torch.tensor([[0.0, 1, 2, -1]]).T.double() - torch.tensor([0.0, 1, 2, -1]))
    wins = lesson.pair_fractions(ref, judge, 2, 4_000, torch.Generator().manual_seed(0))
    assert float((wins.sum((1, 2)) - 1).abs().max()) < 1e-12
    found = lesson.dpo_minimiser(wins, ref, beta=2.0, pull=1e-12)
    for one, policy in zip(wins, found, strict=True):
        expected = torch.softmax(ref.log() + bradley_terry.fit(one * (1 - torch.eye(4))).scores / 2, 0)
        assert float((policy - expected).abs().max()) < 1e-7


def test_the_premise_is_not_refuted_when_it_is_true_and_is_when_it_is_false():
    generator = torch.Generator().manual_seed(0)
    draw = lambda mean, n: mean + torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    preferred, rejected = draw(1.0, 400), draw(-1.0, 600)
    mixture = torch.cat([draw(1.0, 4_000), draw(-1.0, 6_000)])
    assert abs(lesson.premise_z(mixture, preferred, rejected, 0.4)) < 3
    assert lesson.premise_z(mixture + 0.5, preferred, rejected, 0.4) > 5


def test_the_slopes_are_the_formulas_of_the_lesson():
    l = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for alpha in (0.2, 0.5):
        up, down = lesson.slope("rdro", l, True, alpha=alpha), lesson.slope("rdro", l, False, alpha=alpha)
        assert float((up - ((1 + alpha) * torch.sigmoid(l) - 1)).abs().max()) < 1e-12
        assert float((down - (1 - alpha) * torch.sigmoid(l)).abs().max()) < 1e-12
    below = torch.tensor([math.log(2) - 0.5], dtype=torch.float64)
    ratio = below.exp()
    assert float((lesson.slope("ddro", below, False) - ratio / (2 - ratio)).abs().max()) < 1e-12
