"""What lesson 06 computes besides the package: exact expected gradients of EXO-rw, and TRL's default smoothing."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.experiments import lesson_06 as family
from course_utils.policies import GaussianPolicy
from course_utils.preferences import draw_groups
from course_utils.worlds.finite import FiniteWorld


@pytest.mark.parametrize(("draws", "responses"), [(2, 3), (4, 5), (7, 2)])
def test_counts_are_all_ways_to_draw_and_their_multinomial_weights_sum_to_one(draws, responses):
    counts = family.counts_of(draws, responses)
    assert len({tuple(row) for row in counts.tolist()}) == math.comb(draws + responses - 1, responses - 1)
    assert counts.min() == 0 and torch.equal(counts.sum(1), torch.full((len(counts),), float(draws)).double())
    p = torch.softmax(torch.arange(responses, dtype=torch.float64), -1)
    weight = math.lgamma(draws + 1) - torch.lgamma(counts + 1).sum(1) + counts @ p.log()
    assert float(weight.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_gradient_by_counts_is_that_of_the_sum_over_all_groups(size):
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    found, divergence, value = family.expected_gradients(*rows, size, beta=0.5)
    world = FiniteWorld.from_rewards(torch.softmax(rows[0], -1), rows[1])
    logits = rows[2].clone().requires_grad_(True)
    log_policy = torch.log_softmax(logits, -1).unsqueeze(0)
    loss = world.population_loss("exo_rw", log_policy, beta_reward=0.5, group_size=size)
    assert torch.allclose(found, torch.autograd.grad(loss, logits)[0], atol=1e-12)
    assert torch.allclose(divergence, -value / 0.5, atol=1e-12)


def test_the_direction_becomes_that_of_reinforcement_learning_as_groups_grow():
    means = [sum(family.cosines(size, worlds=10)) / 10 for size in (2, 8, 32)]
    assert means[0] < means[1] < means[2] < 1
    assert means[2] > 0.98


def test_the_best_gaussian_has_no_better_neighbour():
    grid = torch.linspace(-6, 6, 31, dtype=torch.float64)
    ref = torch.softmax(-(grid**2) / 18, -1)
    world = FiniteWorld.from_rewards(ref, -((grid - 1) ** 2))
    groups = draw_groups(world, 400, 4, seed=0)
    from course_utils import objectives

    def loss(mean, sd):
        policy = GaussianPolicy(mean, math.log(sd), grid=grid)
        table = policy.log_prob(None, groups.responses)
        return float(objectives.exo_rw(table, ref.log()[groups.responses], groups.reward).mean().detach())

    least, mean, sd = family.best_gaussian(world, grid, "exo_rw", groups, starts=((0, 2), (2, 1)))
    assert loss(mean, sd) == pytest.approx(least, abs=1e-9)
    for a, b in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        assert loss(mean + a, sd + b) > least


@pytest.mark.slow
def test_trl_refuses_its_own_default_smoothing_as_the_lesson_reads_in_its_source(tmp_path_factory):
    trl = pytest.importorskip("trl")
    default, refuses = family.trl_exo_default()
    assert (
        default == trl.DPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), bf16=False).label_smoothing
    )
    import datasets
    from test_objectives_trl import arguments, rows, tiny_model, tokenizer

    assert refuses
    with pytest.raises(ValueError, match="Label smoothing must be greater"):
        trl.DPOTrainer(
            model=tiny_model(1),
            args=trl.DPOConfig(**arguments(tmp_path_factory), loss_type=["exo_pair"]),
            train_dataset=datasets.Dataset.from_list(rows()),
            processing_class=tokenizer(),
        )
