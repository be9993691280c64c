"""What lesson 04 computes besides the package: DPO on token means and its exact optimum."""

from __future__ import annotations

import pytest
import torch

from course_utils import objectives
from course_utils.experiments import lesson_04 as lesson
from course_utils.worlds.finite import FiniteWorld
from course_utils.worlds.minimisers import minimise_rows


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_of_token_means_is_where_their_expected_loss_is_least(seed):
    ref, reward = torch.softmax(normal(5, seed=seed), -1), normal(5, seed=seed + 100)
    lengths = torch.randint(1, 12, (5,), generator=torch.Generator().manual_seed(seed)).double()
    judge = torch.sigmoid(reward[:, None] - reward)
    w, l = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    weights = ref[w] * ref[l] * judge[w, l]

    def loss(table):
        p = table[0]
        each = lesson.dpo_mean(p[w], p[l], ref.log()[w], ref.log()[l], lengths[w], lengths[l], beta=3.0)
        return (weights @ each).unsqueeze(0)

    found = minimise_rows(loss, ref.log()[None])[0]
    formula = lesson.mean_optimum(ref, reward, lengths, beta=3.0)
    assert float(formula.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(found.log(), formula.log(), atol=1e-7)


def test_with_one_length_for_all_token_means_are_dpo_with_a_smaller_beta():
    ref, reward = torch.softmax(normal(4, seed=1), -1), normal(4, seed=2)
    world = FiniteWorld.from_rewards(ref[None], reward[None])
    seven = torch.full((4,), 7.0, dtype=torch.float64)
    found = lesson.mean_optimum(ref, reward, seven, beta=2.0)
    assert torch.allclose(found, world.rlhf_optimum(2.0 / 7)[0], atol=1e-12)
    four = normal(4, 8, seed=3)
    same = torch.full((8,), 7.0, dtype=torch.float64)
    assert torch.allclose(
        lesson.dpo_mean(*four, same, same, beta=2.0), objectives.dpo(*four, beta=2.0 / 7), atol=1e-12
    )
