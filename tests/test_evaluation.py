"""Evaluation: exact where the world is known, intervals that hold the truth where it is sampled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from language_models import byte_tokenizer, tiny_model

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.evaluation import (
    distinct_n,
    entropy,
    evaluate,
    idealised_ranking_accuracy,
    on_pairs,
    pair_log_probs,
    ranking_accuracy,
    ranking_threshold,
    reward_accuracy,
    win_rate,
)
from course_utils.feedback import Pairs
from course_utils.policies import LanguageModelPolicy, TablePolicy
from course_utils.preferences import draw_pairs
from course_utils.references import FrozenReference
from course_utils.statistics import Interval
from course_utils.worlds.finite import FiniteWorld

WORLD = FiniteWorld.random(prompts=3, responses=5, seed=2)
POLICY = TablePolicy(torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
PAIRS = draw_pairs(WORLD, 300, seed=0)


class Sampled:
    """A finite world that keeps its truth to itself: what can be known of it comes from samples."""

    def __init__(self, world: FiniteWorld) -> None:
        self.sample_prompts, self.sample_responses = world.sample_prompts, world.sample_responses
        self.preference_probability = world.preference_probability


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -------------------- finite worlds


def test_in_a_finite_world_every_number_is_the_sum_that_defines_it():
    found = evaluate(POLICY, WORLD)
    policy, ref, weights = POLICY.probabilities().detach(), WORLD.reference, WORLD.prompt_weights
    wins = torch.einsum("xa,xab,xb->x", policy, WORLD.preference, ref)
    preferred = 2 * ref * torch.einsum("xab,xb->xa", WORLD.preference, ref)
    expected = {
        "kl_to_truth": (preferred * (preferred / policy).log()).sum(-1),
        "kl_to_reference": (policy * (policy / ref).log()).sum(-1),
        "win_rate": wins,
        "entropy": -(policy * policy.log()).sum(-1),
        "reward": (policy * WORLD.reward).sum(-1),
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert isinstance(found[name], float) and abs(found[name] - float(weights @ values)) < 1e-12, name


def test_truth_reference_and_opponent_can_be_others():
    optimum = WORLD.rlhf_optimum(0.5)
    found = evaluate(POLICY, WORLD, truth=optimum, reference=FrozenReference(POLICY), opponent=optimum)
    assert abs(found["kl_to_truth"] - WORLD.kl(optimum, POLICY)) < 1e-14
    assert abs(found["kl_to_reference"]) < 1e-14
    assert abs(found["win_rate"] - WORLD.win_rate(POLICY, optimum)) < 1e-14
    assert evaluate(POLICY, WORLD, truth=lambda policy: 7.0)["kl_to_truth"] == 7.0
    cyclic = FiniteWorld.random(prompts=1, responses=3, judge="cyclic")
    assert "reward" not in evaluate(cyclic.reference, cyclic, reference=cyclic.reference)


def test_the_interval_of_a_sampled_win_rate_holds_the_exact_one_as_often_as_it_says():
    exact = win_rate(POLICY, WORLD)
    hidden = Sampled(WORLD)
    found = [win_rate(POLICY, hidden, samples=60, seed=seed) for seed in range(400)]
    held = sum(exact in interval for interval in found) / 400
    assert 0.92 < held < 0.98
    against_itself = win_rate(POLICY, hidden, POLICY, samples=4000)
    assert 0.5 in against_itself and against_itself.half_width < 0.02


# -------------------- comparisons


def test_log_probs_of_pairs_are_those_of_the_policy_without_a_gradient():
    chosen, rejected = pair_log_probs(POLICY, PAIRS)
    assert torch.equal(chosen, POLICY.log_prob(PAIRS.prompt, PAIRS.chosen))
    assert torch.equal(rejected, POLICY.log_prob(PAIRS.prompt, PAIRS.rejected))
    assert not chosen.requires_grad
    assert torch.equal(pair_log_probs(FrozenReference(POLICY), PAIRS)[0], chosen)


def test_accuracies_count_what_their_definitions_say_ties_included():
    chosen, rejected = tensor(-1, -2, -3, -4), tensor(-2, -2, -2, -1)
    assert ranking_accuracy(chosen, rejected).estimate == 0.5  # one higher, one tie: both are ranked right
    ref_chosen, ref_rejected = tensor(-1, -3, -5, -4), tensor(-2, -2, -2, -1)
    found = reward_accuracy(chosen, rejected, ref_chosen, ref_rejected)
    assert found.estimate == 0.5 and found.count == 4  # the first and the last did not move: no success
    # ten tokens at -1 each are likelier per token than two at -2, and less likely as a whole
    long, short = tensor(-10), tensor(-4)
    assert ranking_accuracy(long, short).estimate == 0.0
    assert ranking_accuracy(long, short, tensor(10), tensor(2)).estimate == 1.0


def test_before_training_nothing_has_drifted_and_no_reward_is_right():
    found = on_pairs(POLICY, PAIRS, FrozenReference(POLICY))
    assert found["reward_accuracy"].estimate == 0.0
    assert found["chosen_drift"].estimate == found["rejected_drift"].estimate == 0.0
    assert set(on_pairs(POLICY, PAIRS)) == {"ranking_accuracy"}


def test_drift_is_the_mean_change_of_the_log_probability():
    found = evaluate(POLICY, WORLD, pairs=PAIRS)
    ref = WORLD.reference.log()
    for name, side in (("chosen_drift", PAIRS.chosen), ("rejected_drift", PAIRS.rejected)):
        change = (POLICY.log_probabilities().detach() - ref)[PAIRS.prompt, side]
        assert abs(found[name].estimate - float(change.mean())) < 1e-12
        assert found[name].count == 300 and found[name].low < found[name].estimate < found[name].high


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 3.0])
def test_a_pair_is_ranked_right_exactly_if_its_dpo_loss_is_below_the_threshold(beta):
    draw = torch.Generator().manual_seed(int(100 * beta))
    four = 10 * torch.randn(4, 10_000, generator=draw, dtype=torch.float64)
    loss = objectives.dpo(*four, beta=beta)
    right = four[0] >= four[1]
    assert torch.equal(right, loss <= ranking_threshold(four[2], four[3], beta))
    assert 0.3 < float(right.double().mean()) < 0.7


def test_the_threshold_for_a_reference_that_is_wrong_by_so_many_nats():
    for c, loss in ((1, 0.644), (5, 0.474), (20, 0.127), (50, 0.0067)):
        assert abs(float(ranking_threshold(tensor(0), tensor(c), 0.1)) - loss) < 6e-4
    assert abs(float(ranking_threshold(tensor(0), tensor(0), 0.1)) - math.log(2)) < 1e-12


def test_idealised_ranking_accuracy_on_cases_that_can_be_checked_by_hand():
    # the reference is wrong by one nat, the judge is 3:1 for the chosen: log 3 / beta against 1
    ref_chosen, ref_rejected, judge = tensor(-2), tensor(-1), tensor(0.75)
    for beta, expected in ((1.0, 1.0), (math.log(3) - 1e-9, 1.0), (math.log(3) + 1e-9, 0.0), (2.0, 0.0)):
        assert idealised_ranking_accuracy(ref_chosen, ref_rejected, judge, beta).estimate == expected
    # a unanimous judge counts as 999 to 1
    unanimous = tensor(1.0)
    for beta, expected in ((math.log(999) - 1e-6, 1.0), (math.log(999) + 1e-6, 0.0)):
        assert idealised_ranking_accuracy(ref_chosen, ref_rejected, unanimous, beta).estimate == expected
    # a label against the judge's opinion cannot be learned from a reference that is indifferent
    assert idealised_ranking_accuracy(ref_chosen, ref_chosen, tensor(0.4), 0.1).estimate == 0.0


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_idealised_accuracy_is_the_accuracy_of_the_exact_optimum(beta):
    judged = WORLD.preference_probability(PAIRS.prompt, PAIRS.chosen, PAIRS.rejected)
    apart = PAIRS.take((judged - 0.5).abs().gt(1e-9).nonzero().flatten())  # not the same response twice
    judged = WORLD.preference_probability(apart.prompt, apart.chosen, apart.rejected)
    ref = pair_log_probs(TablePolicy(WORLD.reference.log()), apart)
    ideal = idealised_ranking_accuracy(*ref, judged, beta)
    optimum = TablePolicy.from_probabilities(WORLD.rlhf_optimum(beta))
    assert ideal == ranking_accuracy(*pair_log_probs(optimum, apart))
    assert 0.4 < ideal.estimate < 1.0


# -------------------- texts


def test_distinct_n_of_texts_that_repeat_and_of_texts_that_do_not():
    same = ["a b a b"] * 100  # the bigrams of a block: ab, ba; 150 of them
    assert distinct_n(same, 2).estimate == 2 / 150
    assert distinct_n(same, 1).estimate == 2 / 200
    fresh = [f"x{i} y{i} z{i}" for i in range(120)]
    found = distinct_n(fresh, 2)
    assert found.estimate == 1.0 and found.count == 2  # the last twenty texts do not fill a block


class TextWorld:
    """A judge that likes long texts and cannot say how much."""

    def __init__(self, model: Any, tokenizer: Any, error: str = "texts-no-reward") -> None:
        self.model, self.tokenizer, self.error = model, tokenizer, error

    def sample_prompts(self, n: int, generator: torch.Generator) -> list[str]:
        return [["tell me", "the soup"][i] for i in torch.randint(2, (n,), generator=generator).tolist()]

    def sample_responses(self, prompts: Any, generator: torch.Generator, proposal: Any = None) -> list[str]:
        return (proposal or LanguageModelPolicy(self.model, self.tokenizer, max_new_tokens=4)).sample(
            prompts, generator
        )

    def preference_probability(self, prompts: Any, first: Any, second: Any) -> torch.Tensor:
        longer = [len(a) - len(b) for a, b in zip(first, second, strict=True)]
        return torch.sigmoid(torch.tensor(longer, dtype=torch.float64))

    def reward_of(self, prompts: Any, responses: Any) -> torch.Tensor:
        raise CourseError(self.error, "there is no reward here.")


@pytest.fixture(scope="module")
def texts():
    with torch.random.fork_rng():
        tokenizer = byte_tokenizer()
        models = [tiny_model("qwen2", len(tokenizer), seed=seed, spread=6.0).eval() for seed in (0, 1)]
    policy = LanguageModelPolicy(models[0], tokenizer, max_new_tokens=1)
    return policy, TextWorld(models[1], tokenizer)


def test_of_a_language_model_entropy_and_kl_intervals_hold_the_exact_numbers(texts):
    # with one token to say, a response's distribution is a row of the vocabulary
    policy, world = texts
    rows = []
    for model in (policy.model, world.model):
        ids = [policy.tokenizer(prompt)["input_ids"] for prompt in ("tell me", "the soup")]
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([each])).logits[0, -1].double() for each in ids]
        rows.append(torch.stack([torch.log_softmax(row, -1) for row in logits]))
    p, q = rows
    exact_entropy = float(-(p.exp() * p).sum(-1).mean())
    exact_kl = float((p.exp() * (p - q)).sum(-1).mean())
    found = evaluate(policy, world, samples=6000, seed=1)
    assert exact_entropy in found["entropy"] and found["entropy"].half_width < 0.1
    assert exact_kl in found["kl_to_reference"] and found["kl_to_reference"].half_width < 0.1 * exact_kl
    assert found["length"].estimate == 1.0
    # the same draw as that of `entropy` alone: prompts, then responses, from one seed
    assert entropy(policy, world, samples=6000, seed=1) == found["entropy"]


def test_what_a_world_of_texts_can_say_is_reported_and_what_it_cannot_is_left_out(texts):
    policy, world = texts
    found = evaluate(policy, world, samples=120, truth=lambda policy: Interval(1.0, 0.9, 1.1, 0.95, 5))
    names = ["kl_to_truth", "kl_to_reference", "win_rate", "entropy", "length", "distinct_2"]
    assert list(found) == names
    assert all(isinstance(value, Interval) for value in found.values())
    assert "kl_to_truth" not in evaluate(policy, world, samples=20)
    with pytest.raises(CourseError, match="no reward here"):
        evaluate(policy, TextWorld(world.model, world.tokenizer, "another-error"), samples=20)
    world.win_rate_of_responses = lambda prompts, responses: torch.full((len(prompts),), 0.25)
    try:
        assert evaluate(policy, world, samples=20)["win_rate"].estimate == 0.25
    finally:
        del world.win_rate_of_responses


def test_pairs_of_texts_are_scored_like_the_policy_scores_them(texts):
    policy, world = texts
    pairs = Pairs(["tell me", "the soup"] * 40, ["kind", "warm and kind"] * 40, ["no", "the music"] * 40)
    chosen, _ = pair_log_probs(policy, pairs)
    with torch.no_grad():
        assert torch.allclose(chosen, policy.log_prob(pairs.prompt, pairs.chosen), rtol=0, atol=1e-5)
    found = evaluate(policy, world, samples=20, pairs=pairs)
    ref = LanguageModelPolicy(world.model, world.tokenizer)
    with torch.no_grad():
        change = policy.log_prob(pairs.prompt, pairs.chosen) - ref.log_prob(pairs.prompt, pairs.chosen)
    assert abs(found["chosen_drift"].estimate - float(change.mean())) < 1e-4
