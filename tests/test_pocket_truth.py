"""The estimators of the pocket world, against a finite world in which everything is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.worlds import pocket_truth
from course_utils.worlds.pocket_features import feature_table
from course_utils.worlds.pocket_judges import JUDGES
from course_utils.worlds.pocket_language import BASE, sample_corpus

PROMPT_COUNT, RESPONSE_COUNT = 2, 6


@dataclass(frozen=True)
class Finite:
    """Two prompts with six responses each: their features, a reference, a policy, and a judge."""

    features: Tensor  # [X, Y, 9]
    reference: Tensor  # [X, Y]
    policy: Tensor
    judge: str = "cyclic"

    def preference(self, first: Tensor, second: Tensor) -> Tensor:
        return JUDGES[self.judge].preference_probability(first, second)

    def win_rates(self) -> Tensor:
        judged = self.preference(self.features.unsqueeze(2), self.features.unsqueeze(1))
        return (judged * self.reference.unsqueeze(1)).sum(dim=-1)

    def kl_to_preferred(self, policy: Tensor) -> float:
        preferred = 2 * self.reference * self.win_rates()
        assert torch.allclose(preferred.sum(dim=-1), torch.ones(2, dtype=torch.float64))
        return (preferred * (preferred / policy).log()).sum(dim=-1).mean().item()

    def draw(self, count: int, table: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers of `count` responses to each prompt, [X, count]."""
        return torch.multinomial(table, count, replacement=True, generator=generator)

    def estimate(self, n: int, m: int, generator: torch.Generator, **options):
        """kl_to_preferred from n responses and m opponents to each prompt."""
        outer, inner = self.draw(n, self.reference, generator), self.draw(m, self.reference, generator)
        rows = torch.arange(PROMPT_COUNT).unsqueeze(1)
        return pocket_truth.kl_to_preferred(
            self.preference,
            self.policy[rows, outer].log().flatten(),
            self.reference[rows, outer].log().flatten(),
            self.features[rows, outer].flatten(0, 1),
            rows.expand(-1, n).flatten(),
            self.features[rows, inner],
            **options,
        )


def finite_world(judge: str = "cyclic", spread: float = 0.7) -> Finite:
    generator = torch.Generator().manual_seed(5)
    rows = feature_table(*zip(*sample_corpus(BASE, PROMPT_COUNT * RESPONSE_COUNT, seed=31), strict=True))
    logits = torch.randn(2, PROMPT_COUNT, RESPONSE_COUNT, generator=generator, dtype=torch.float64)
    reference = logits[0].softmax(dim=-1)
    policy = (reference.log() + spread * logits[1]).softmax(dim=-1)
    return Finite(rows.reshape(PROMPT_COUNT, RESPONSE_COUNT, -1), reference, policy, judge)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(len(values))


def test_win_rates_are_exact_when_the_sample_holds_every_response_in_its_proportion():
    world = finite_world("bradley_terry")
    even = Finite(world.features, torch.full((2, 6), 1 / 6, dtype=torch.float64), world.policy, world.judge)
    index = torch.arange(2).repeat_interleave(6)
    found = pocket_truth.win_rates(world.preference, world.features.flatten(0, 1), index, world.features)
    assert torch.allclose(found, even.win_rates().flatten(), atol=1e-12)


@pytest.mark.parametrize("judge", ["cyclic", "bradley_terry", "crowd"])
@pytest.mark.parametrize("use_ratio", [False, True])
def test_the_estimate_of_kl_to_the_preferred_distribution_is_unbiased(judge, use_ratio):
    world, generator = finite_world(judge), torch.Generator().manual_seed(1)
    found = [world.estimate(20, 40, generator, use_ratio=use_ratio).estimate for _ in range(300)]
    mean, error = mean_and_error(found)
    assert abs(mean - world.kl_to_preferred(world.policy)) < 4 * error
    assert error < 0.007  # the test can see a bias of this order


def test_without_its_correction_a_small_sample_for_w_would_give_too_large_a_kl():
    world, generator = finite_world("bradley_terry"), torch.Generator().manual_seed(2)
    truth, m = world.kl_to_preferred(world.policy), 6
    corrected = [world.estimate(40, m, generator).estimate for _ in range(800)]
    mean, error = mean_and_error(corrected)
    w = world.win_rates()
    judged = world.preference(world.features.unsqueeze(2), world.features.unsqueeze(1))
    variance = (world.reference.unsqueeze(1) * (judged - w.unsqueeze(2)) ** 2).sum(dim=-1)
    leading_bias = (world.reference * variance / w).sum(dim=-1).mean().item() / m
    assert leading_bias > 5 * error  # what the plain form would be wrong by, were it not corrected
    assert abs(mean - truth) < 0.3 * leading_bias


@pytest.mark.parametrize(("n", "m"), [(150, 30), (30, 150)])
def test_the_interval_holds_the_truth_as_often_as_it_promises(n, m):
    # With few opponents the error of W dominates, with few responses the error of the outer mean.
    world, generator = finite_world("cyclic"), torch.Generator().manual_seed(3)
    truth = world.kl_to_preferred(world.policy)
    hits = sum(truth in world.estimate(n, m, generator) for _ in range(400))
    assert 0.925 < hits / 400 < 0.975


def test_what_there_is_to_learn_is_the_kl_of_the_reference_itself():
    world, generator = finite_world("bradley_terry"), torch.Generator().manual_seed(4)
    same = Finite(world.features, world.reference, world.reference, world.judge)
    assert world.kl_to_preferred(world.reference) in same.estimate(4000, 4000, generator, confidence=0.999)


def test_close_to_the_preferred_distribution_the_ratio_makes_the_estimate_nearly_exact():
    world, generator = finite_world("bradley_terry"), torch.Generator().manual_seed(6)
    preferred = 2 * world.reference * world.win_rates()
    there = Finite(world.features, world.reference, preferred, world.judge)
    plain = there.estimate(200, 400, generator)
    with_ratio = there.estimate(200, 400, generator, use_ratio=True)
    assert abs(with_ratio.estimate) < 0.003
    assert with_ratio.half_width < 0.2 * plain.half_width


def test_the_mean_win_rate_is_unbiased_and_its_interval_honest():
    world, generator = finite_world("cyclic"), torch.Generator().manual_seed(7)
    truth = (world.policy * world.win_rates()).sum(dim=-1).mean().item()
    rows, found = torch.arange(PROMPT_COUNT).unsqueeze(1), []
    for _ in range(400):
        outer, inner = world.draw(40, world.policy, generator), world.draw(40, world.reference, generator)
        index = rows.expand(-1, 40).flatten()
        features = world.features[rows, outer].flatten(0, 1)
        found.append(
            pocket_truth.mean_win_rate(world.preference, features, index, world.features[rows, inner])
        )
    mean, error = mean_and_error([one.estimate for one in found])
    assert abs(mean - truth) < 4 * error
    assert 0.92 < sum(truth in one for one in found) / 400 < 0.98


def test_the_kl_to_the_reference_is_the_mean_log_ratio_of_the_policys_own_responses():
    world, generator = finite_world(), torch.Generator().manual_seed(8)
    truth = (world.policy * (world.policy / world.reference).log()).sum(dim=-1).mean().item()
    rows, drawn = torch.arange(PROMPT_COUNT).unsqueeze(1), world.draw(20_000, world.policy, generator)
    found = pocket_truth.kl_to_reference(
        world.policy[rows, drawn].log().flatten(),
        world.reference[rows, drawn].log().flatten(),
        rows.expand(-1, 20_000).flatten(),
        confidence=0.999,
    )
    assert truth in found and found.half_width < 0.02


def test_prompts_count_equally_however_many_responses_each_has():
    values = torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0, 4.0])
    found = pocket_truth.mean_over_prompts(values, torch.tensor([0, 0, 1, 1, 1, 1]))
    assert (found.estimate, found.low, found.high) == (2.5, 2.5, 2.5)


def test_a_diverged_policy_and_a_single_response_are_refused():
    with pytest.raises(CourseError, match="pocket-not-finite"):
        pocket_truth.kl_to_reference(torch.tensor([0.0, math.nan]), torch.zeros(2), torch.tensor([0, 0]))
    with pytest.raises(CourseError, match="pocket-too-few-responses"):
        pocket_truth.mean_over_prompts(torch.tensor([1.0]), torch.tensor([0]))
