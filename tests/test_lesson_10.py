"""What lesson 10 computes besides the package: scores from win rates, the constant of DDRO's 1/n line, a clamp, the way to the wall."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import objectives, preferences
from course_utils.experiments import lesson_10 as lesson
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld


def cyclic_world(strength: float = 0.9) -> FiniteWorld:
    reference = torch.tensor([[0.8, 0.15, 0.05]], dtype=torch.float64)
    return FiniteWorld(reference, preferences.cyclic(3, strength)[None])


@pytest.mark.parametrize("judge", ["bradley_terry", "cyclic", "random", "mixed"])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_scores_from_win_rates_give_the_limit_of_dpo_under_every_judge(judge, beta):
    world = FiniteWorld.random(1, 4, seed=5, judge=judge)
    scores = lesson.scores_from_win_rates(world.reference[0], world.win_rate_of_responses()[0])
    limit = torch.softmax(world.reference[0].log() + scores / beta, -1)
    assert torch.allclose(limit, world.population_minimiser("dpo", beta=beta)[0], atol=1e-8)


def test_the_best_beta_is_the_least_divergence_of_the_grid():
    world, betas = cyclic_world(), torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    truth = world.preferred_distribution()
    scores = lesson.scores_from_win_rates(world.reference[0], world.win_rate_of_responses()[0])
    each = [world.kl(truth, world.population_minimiser("dpo", beta=float(b))) for b in betas]
    found, at = lesson.best_beta(truth[0], world.reference[0], scores, betas)
    assert found == pytest.approx(min(each), abs=1e-10) and at == 2.0


@pytest.mark.parametrize("strength", [0.75, 0.95])
def test_the_constants_are_what_many_repeats_measure(strength):
    world, n, repeats = cyclic_world(strength), 20_000, 3_000
    counts = lesson.count_pairs(world, n, range(repeats))
    chosen, rejected = counts.sum(2) / n, counts.sum(1) / n
    many = FiniteWorld(world.reference.expand(repeats, -1), world.preference[0])
    fitted = many.population_minimiser("ddro", preferred=chosen, rejected=rejected)
    truth = world.preferred_distribution()
    for policy, constant in zip((fitted, chosen), lesson.error_constants(world), strict=True):
        measured = n * (truth * (truth / policy).log()).sum(1)
        assert abs(float(measured.mean()) - constant) < 4 * float(measured.std()) / math.sqrt(repeats)


def test_counted_pairs_add_up_and_follow_the_judge():
    world, n = cyclic_world(), 400_000
    counts = lesson.count_pairs(world, n, [1, 2])
    assert counts.sum((1, 2)).tolist() == [n, n] and not torch.equal(counts[0], counts[1])
    assert torch.allclose(counts.sum(2) / n, world.preferred_distribution().expand(2, -1), atol=4e-3)
    assert torch.allclose(counts.sum(1) / n, world.rejected_distribution().expand(2, -1), atol=4e-3)


def test_the_clamp_is_ddro_before_the_wall_and_flat_beyond():
    l = torch.tensor([-1.0, 0.5, 0.6, 1.5], dtype=torch.float64, requires_grad=True)
    down = torch.zeros(4, dtype=torch.bool)
    loss = lesson.ddro_clamped(l, torch.zeros(4).double(), down)
    slope = torch.autograd.grad(loss.sum(), l)[0]
    before = objectives.ddro(l.detach()[:3], torch.zeros(3).double(), down[:3])
    assert torch.allclose(loss[:3], before) and torch.isfinite(loss).all()
    assert slope[3] == 0 and torch.allclose(slope[:3], l.exp()[:3] / (2 - l.exp()[:3]))


def test_limits_on_texts_are_those_of_a_table_with_one_row_for_each_text():
    table = pocket.load_reference_features("sft", "qwen2")[:2, :10].double()
    betas = torch.tensor([1.0, 3.0], dtype=torch.float64)
    todo, limits = lesson.text_limits(table, "cyclic", betas)
    judge = pocket.load_world("cyclic").judge.preference_probability
    prefers = torch.stack([judge(rows[:, None], rows[None]) for rows in table])
    world = FiniteWorld(torch.full((2, 10), 1 / 10, dtype=torch.float64), prefers)
    truth = world.preferred_distribution()
    assert todo == pytest.approx(world.kl(truth), abs=1e-7)
    for beta, limit in zip(betas.tolist(), limits.tolist(), strict=True):
        assert limit == pytest.approx(world.kl(truth, world.population_minimiser("dpo", beta=beta)), abs=1e-6)


def test_the_token_log_ratios_of_a_text_add_up_to_its_own():
    world = pocket.load_world("cyclic")
    policy, generator = world.new_policy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    prompt, response = world.prompts[0], "good morning. i will bring the tea now."
    words, parts = lesson.token_log_ratios(world, policy, prompt, response)
    whole = world.log_prob(policy, [prompt], [response]) - world.log_prob(None, [prompt], [response])
    assert len(words) == len(parts) > 5 and abs(float(whole)) > 0.01
    assert float(parts.sum()) == pytest.approx(float(whole), abs=1e-4)
