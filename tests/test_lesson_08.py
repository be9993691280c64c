"""What lesson 08 computes besides the package: counted comparisons, their fits, and the judges of the two data models."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from course_utils import bradley_terry, objectives
from course_utils.experiments import lesson_08 as bench
from course_utils.labs.lesson_08 import price
from course_utils.worlds.finite import FiniteWorld


def world(seed=0, prompts=2, responses=4, gamma=0.5):
    rows = torch.randn(
        2, prompts, responses, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    truth, ref = torch.softmax(rows, -1)
    return FiniteWorld.from_rewards(ref, gamma * truth.log()), truth


def test_counted_comparisons_have_the_frequencies_of_independent_pairs_and_the_judge():
    w, _ = world()
    n = 2_000_000
    wins = bench.count_pairs(w, n, seed=1)
    assert wins.sum() == n
    expected = 2 * w.reference.unsqueeze(-1) * w.reference.unsqueeze(-2) * w.preference / 2
    assert (wins / n - expected).abs().max() < 5 * (0.25 / n) ** 0.5


def test_the_fitted_reward_is_the_maximum_of_the_likelihood():
    w, _ = world(3)
    wins = bench.count_pairs(w, 5_000, seed=2)
    expected = torch.stack([bradley_terry.fit(each).scores for each in wins])
    assert torch.allclose(bench.fitted_reward(wins, pull=1e-12), expected, atol=1e-9)


def test_pmle_of_counts_is_the_fitted_reward_over_gamma():
    w, _ = world(4)
    wins = bench.count_pairs(w, 5_000, seed=5)
    reward = torch.stack([bradley_terry.fit(each).scores for each in wins])
    assert torch.allclose(bench.pmle_of_counts(wins, 0.3), torch.softmax(reward / 0.3, -1), atol=1e-9)


def test_the_least_kl_is_that_of_the_best_rlhf_optimum():
    w, truth = world(6)
    betas = torch.logspace(-1, 1, 21, dtype=torch.float64)
    least, best = bench.least_kl(w, truth, torch.ones_like(betas), w.reward, betas)
    each = [w.kl(truth, w.rlhf_optimum(beta)) for beta in betas.tolist()]
    assert least == pytest.approx(min(each), abs=1e-12) and each[best] == min(each)


def test_the_price_of_a_nat_is_the_closed_form_near_uniform_and_what_repeats_measure_elsewhere():
    uniform = torch.full((10,), 0.1, dtype=torch.float64)
    assert float(price(uniform, uniform, 0.5)) == pytest.approx(9 / 0.25, rel=1e-9)
    w, truth = world(7, prompts=1, gamma=1.0)
    n, found = 200_000, []
    for seed in range(100):
        reward = bench.fitted_reward(bench.count_pairs(w, n, seed), pull=1e-9)
        found.append(n * w.kl(truth, torch.softmax(reward, -1)))
    found = torch.tensor(found)
    expected = float(price(truth[0], w.reference[0], 1.0))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / 10


class Texts:
    """Two prompts and four texts with known rewards and probabilities, in place of the pocket world."""

    reward = MappingProxyType({"a": 0.2, "b": -1.0, "c": 0.7, "d": 1.5})

    def reward_of(self, prompts, responses):
        return torch.tensor([self.reward[text] for text in responses], dtype=torch.float64)

    def log_prob(self, policy, prompts, responses):
        return torch.tensor([-1.0 - "abcd".index(text) for text in responses], dtype=torch.float64)


def test_the_two_judges_differ_by_the_log_probability_of_the_reference():
    prompts, first, second = ["p", "q"], ["a", "c"], ["b", "d"]
    by_model, by_ratio = (bench.Labelled(Texts(), name) for name in ("language model", "reward"))
    gap = torch.logit(by_model.preference_probability(prompts, first, second)) - torch.logit(
        by_ratio.preference_probability(prompts, first, second)
    )
    assert torch.allclose(gap, torch.full((2,), bench.TAU, dtype=torch.float64))
    assert torch.allclose(
        torch.logit(by_ratio.preference_probability(prompts, first, second)),
        bench.TAU * torch.tensor([1.2, -0.8], dtype=torch.float64),
    )


def test_a_baseline_comes_from_the_other_responses_to_the_prompt_alone():
    judge = bench.Labelled(Texts(), "reward")
    prompts, gamma = ["p", "p", "p", "q", "q"], 0.5
    texts = ["a", "b", "c", "d", "a"]
    plain = judge.reward_of(prompts, texts)
    found = plain - bench.with_baseline(judge, gamma)(prompts, texts)
    for row, prompt in enumerate(prompts):
        others = [i for i, other in enumerate(prompts) if other == prompt and i != row]
        expected = [plain[i] - gamma * Texts().log_prob(None, ["p"], [texts[i]])[0] for i in others]
        assert float(found[row]) == pytest.approx(float(sum(expected) / len(others)), abs=1e-12)


@pytest.mark.slow
def test_trl_cpo_without_its_sft_term_is_pmle():
    cpo = pytest.importorskip("trl.experimental.cpo")

    trainer = SimpleNamespace(
        alpha=0.0,
        beta=0.3,
        label_smoothing=0.0,
        loss_type="sigmoid",
        simpo_gamma=0.5,
        accelerator=SimpleNamespace(device="cpu"),
    )
    w, l = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = cpo.CPOTrainer.cpo_loss(trainer, w, l)[0]
    assert torch.allclose(losses, objectives.pmle(w, l, 0.3), atol=1e-12)
    assert cpo.CPOConfig.__dataclass_fields__["cpo_alpha"].default == 1.0
    assert cpo.CPOConfig.__dataclass_fields__["loss_type"].default == "sigmoid"
