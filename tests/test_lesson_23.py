"""Lesson 23: its exercises against the package: weights of rows, bytes of the plan, the limit of the speed-up."""

from __future__ import annotations

import pytest
import torch

from course_utils import gpu, objectives
from course_utils.labs.lesson_23 import row_weights, sent_bytes, speed_up
from course_utils.training.terms import Term

SHAPE = gpu.SHAPES["Qwen/Qwen2.5-1.5B-Instruct"]


def test_averaged_over_processes_the_weights_give_the_sum_of_the_class_means():
    labels = [torch.tensor([True, True, False]), torch.tensor([False, False, False, True])]
    losses = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = [(w * part).sum() for w, part in zip(row_weights(labels), losses.split([3, 4]), strict=True)]
    whole = objectives.classwise_mean(losses, torch.cat(labels))
    assert float(sum(shares) / 2) == pytest.approx(float(whole), rel=1e-12)


def test_the_trainer_settles_the_same_weights_for_the_whole_update():
    labels = [torch.tensor([True, True, False]), torch.tensor([False, True, False])]
    every = torch.cat(labels)
    term = Term(objectives.get("rdro"), (), {}, 1.0, "each class")
    assert torch.allclose(2 * term.example_weights(6, every), torch.cat(row_weights(labels)), atol=1e-12)


@pytest.mark.parametrize("passes", [1, 4])
def test_the_exercise_counts_the_bytes_of_a_plan_whose_layers_are_kept(passes):
    made = gpu.plan(SHAPE, batch=8 * 4 * passes, micro_batch=4, shards=8, reshard=False)
    sent = sum(part.bytes for part in made.traffic)
    assert sent == pytest.approx(sent_bytes(SHAPE.parameters, 8, passes, False), rel=1e-12)
    # Taken apart in between, embeddings and head travel once only.
    twice = sum(part.bytes for part in gpu.plan(SHAPE, batch=32 * passes, micro_batch=4, shards=8).traffic)
    around = 7 / 8 * 4 * passes * (SHAPE.vocabulary * SHAPE.hidden + SHAPE.hidden)
    assert twice + around == pytest.approx(sent_bytes(SHAPE.parameters, 8, passes, True), rel=1e-12)


def test_the_speed_up_is_bounded_by_arithmetic_over_network():
    assert speed_up(1, 10.0, 4.0) == 1
    assert speed_up(10**9, 10.0, 4.0) == pytest.approx(2.5)
    assert speed_up(8, 10.0, 20.0) < 1
