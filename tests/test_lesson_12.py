"""The mathematics of lesson 12: exact rounds, on a table and carried over to a sample of texts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from course_utils import preferences
from course_utils.experiments import lesson_12 as iterating
from course_utils.worlds.finite import FiniteWorld
from course_utils.worlds.pocket_judges import judge_named

START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CYCLE = preferences.cyclic(3, strength=0.9)


def test_a_plain_round_is_the_preferred_distribution_of_pairs_from_the_policy() -> None:
    world = FiniteWorld.random(1, 6, seed=4, judge="random")
    moved = iterating.replicator(world.reference[0], world.preference[0])
    torch.testing.assert_close(moved, world.preferred_distribution()[0], atol=1e-14, rtol=0)


@pytest.mark.parametrize("step", [1.0, 0.3, 0.01])
def test_every_round_on_a_cycle_leads_away_from_the_nash_policy_however_small_the_step(step: float) -> None:
    path = iterating.rounds(START, lambda p: iterating.replicator(p, CYCLE, step), 60)
    distance = -path.log().mean(-1)  # KL from the uniform policy up to a constant
    assert bool((distance.diff() > 0).all())
    torch.testing.assert_close(path.sum(-1), torch.ones(61, dtype=torch.float64))


def test_a_leashed_policy_rests_where_its_equation_says() -> None:
    leash = 0.2
    rest = iterating.rounds(START, lambda p: iterating.leashed(p, CYCLE, START, leash), 400)[-1]
    wanted = torch.softmax(START.log() + (1 - leash) / leash * torch.log(2 * CYCLE @ rest), dim=0)
    torch.testing.assert_close(rest, wanted, atol=1e-12, rtol=0)


def test_a_reference_that_follows_slowly_leads_to_the_nash_policy_and_a_hasty_one_does_not() -> None:
    exploitability = [
        float((CYCLE @ iterating.following(START, CYCLE, 0.5, every, 600)[-1]).max() - 0.5)
        for every in (1, 5)
    ]
    assert exploitability[0] > 0.3
    assert exploitability[1] < 1e-4


def test_rounds_on_a_sample_of_texts_are_the_rounds_of_the_table_of_its_kinds() -> None:
    judge = judge_named("cyclic")
    kinds = torch.zeros(3, 9, dtype=torch.float64)
    from course_utils.worlds.pocket_features import FEATURE_NAMES

    kinds[:, FEATURE_NAMES.index("grammatical")] = 1
    kinds[0, FEATURE_NAMES.index("tone")] = 1
    kinds[2, FEATURE_NAMES.index("details")] = 3
    copies = torch.tensor([5, 3, 2])
    table = kinds.repeat_interleave(copies, dim=0)[None]
    found = iterating.particle_rounds(SimpleNamespace(judge=judge, reference_table=lambda: table), 4)
    matrix = judge.preference_probability(kinds[:, None], kinds[None])
    path = iterating.rounds(START, lambda p: iterating.replicator(p, matrix), 4)
    torch.testing.assert_close(torch.tensor(found["styles"], dtype=torch.float64), path)
    torch.testing.assert_close(torch.tensor(found["win_rate"], dtype=torch.float64), path @ matrix @ START)
    step = ((path[1:] @ matrix) * path[:-1]).sum(-1)
    torch.testing.assert_close(torch.tensor(found["step_win"], dtype=torch.float64), step)


def test_head_to_head_is_the_mean_over_all_pairs_to_the_same_prompt() -> None:
    judge = judge_named("bradley_terry")
    generator = torch.Generator().manual_seed(0)
    draws = [
        SimpleNamespace(features=torch.rand(6, 9, generator=generator, dtype=torch.float64)) for _ in "ab"
    ]
    world = SimpleNamespace(judge=judge, prompts=["one", "two"])
    a, b = (draw.features for draw in draws)
    one_by_one = [
        float(judge.preference_probability(a[i], b[j]))
        for i in range(6)
        for j in range(6)
        if i // 3 == j // 3
    ]
    assert iterating.head_to_head(world, *draws) == pytest.approx(sum(one_by_one) / 18)
    assert iterating.head_to_head(world, draws[0], draws[0]) == pytest.approx(0.5)
