"""Lesson 22: best-of-n weights, drift of the tokens drawn, refusals and their correction, power, and the real path on stand-ins."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("transformers")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from course_utils import real_models
from course_utils.errors import CourseError
from course_utils.experiments import lesson_22
from course_utils.labs.lesson_22 import prompts_needed
from course_utils.real_models_stand_ins import stand_ins as make_stand_ins


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return make_stand_ins("Qwen2", tmp_path_factory.mktemp("stand-ins"))


def test_the_weights_of_the_best_of_n_are_those_of_all_draws_with_replacement():
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7], [5.0, 4.0, 3.0, 2.0]], dtype=torch.float64)
    counted = torch.zeros_like(scores)
    for row in range(2):
        for drawn in itertools.product(range(4), repeat=3):
            counted[row, max(drawn, key=lambda i: float(scores[row, i]))] += 4**-3
    assert torch.allclose(lesson_22.best_of(3, scores), counted, atol=1e-12)
    assert torch.allclose(lesson_22.best_of(1, scores), torch.full_like(scores, 0.25))


def test_log_odds_and_sigmoid_are_inverse():
    p = np.array([1e-9, 0.2, 0.5, 0.999])
    assert lesson_22.sigmoid(lesson_22.logit(p)) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("family", ["Qwen2", "Llama"])
def test_real_models_of_each_family_are_evaluated_from_folders(tmp_path, family):
    result = lesson_22.evaluate(**make_stand_ins(family, tmp_path), prompts=12)
    assert result["prompts"] == 12
    estimate, low, high = result["win_rate"]
    assert low <= estimate <= high and 0 < estimate < 1
    assert len(result["characters"]) == len(result["refusals"]) == 2
    assert json.loads(json.dumps(result)) == result
    assert result["versions"]["torch"] and {"commit", "card", "seconds"} <= set(result)


def test_a_policy_has_not_drifted_from_itself(stand_ins):
    result = lesson_22.evaluate(**(stand_ins | {"other": stand_ins["model"]}), prompts=12)
    assert result["drift"] == pytest.approx([0, 0, 0], abs=1e-5)


def test_the_log_ratio_of_the_tokens_drawn_is_what_sampling_says(stand_ins):
    from course_utils.sampling import generate

    policy, other = (
        real_models.load_policy(stand_ins[role], max_new_tokens=8) for role in ("model", "other")
    )
    drawn = generate(policy.model, policy.tokenizer, ["a", "bc"] * 10, max_new_tokens=8, seed=0)
    ratios = lesson_22.log_ratios(policy, other, drawn.batch(policy.tokenizer.pad_token_id), block=7)
    back = lesson_22.log_ratios(other, policy, drawn.batch(policy.tokenizer.pad_token_id))
    assert torch.allclose(ratios, -back, atol=1e-5)
    by_hand = []
    for prompt, response, said in zip(
        drawn.prompt_ids, drawn.response_ids, drawn.policy_log_probs, strict=True
    ):
        logits = other.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        by_hand.append(
            float(said) - float(logits.detach().log_softmax(-1)[range(len(response)), response].sum())
        )
    assert ratios.tolist() == pytest.approx(by_hand, abs=1e-4)


def test_the_minutes_end_an_evaluation_after_a_block(stand_ins):
    policy = real_models.load_policy(stand_ins["model"], max_new_tokens=2)
    rows = lesson_22.compare(policy, policy, lambda *_: torch.full((3,), 0.5), ["a"] * 9, minutes=0, block=3)
    assert len(rows) == 3


def test_models_with_different_words_are_refused(stand_ins, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(stand_ins["other"]))
    tokenizer.add_tokens(["<|more|>"])
    real_models.load_policy(stand_ins["other"]).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CourseError, match="different words"):
        lesson_22.evaluate(**(stand_ins | {"other": tmp_path}))


def test_phrases_are_found_whatever_the_case_and_the_apostrophe():
    assert lesson_22.refuses("I CAN\u2019T do that") and not lesson_22.refuses("It can be done")
    # The easy half of each list is told right, the hard half wrong: that is what the lists are for.
    assert [lesson_22.refuses(text) for text in lesson_22.REFUSED] == [True] * 5 + [False] * 5
    assert [lesson_22.refuses(text) for text in lesson_22.ANSWERED] == [False] * 5 + [True] * 5


def test_the_corrected_share_of_refusals_is_exact_when_the_errors_carry_over():
    label = np.repeat([1.0, 0.0], [40, 60])
    marked = np.concatenate([np.repeat([1.0, 0.0], [30, 10]), np.repeat([1.0, 0.0], [6, 54])])
    truth = np.repeat([1.0, 0.0], [80, 20])  # the list misses a quarter, and calls a tenth wrongly
    ours = np.concatenate([np.repeat([1.0, 0.0], [60, 20]), np.repeat([1.0, 0.0], [2, 18])])
    columns = np.stack([marked, label, ours, truth], 1)
    assert lesson_22.refusals_too_many(columns, corrected=False) == pytest.approx(0.62 - 0.8)
    assert lesson_22.refusals_too_many(columns, corrected=True) == pytest.approx(0, abs=1e-12)


def test_with_the_prompts_of_the_formula_four_evaluations_in_five_see_the_difference():
    values = np.random.default_rng(0).random(1000)
    n = prompts_needed(0.05, values.std())
    assert lesson_22.power(values, 0.05, n, repeats=1000) / 1000 == pytest.approx(0.8, abs=0.04)
    assert lesson_22.power(values, 0.0, n, repeats=1000) / 1000 == pytest.approx(0.05, abs=0.02)


def test_the_best_checkpoint_is_overstated_on_the_prompts_that_chose_it_alone():
    values = np.random.default_rng(0).random(1000)
    on_these, on_fresh = lesson_22.excess_of_the_best(values, k=2, n=100).mean(0)
    # The expected maximum of two standard normals is 1 / sqrt(pi).
    assert on_these == pytest.approx(values.std() / 10 / np.pi**0.5, rel=0.08)
    assert on_fresh == pytest.approx(0, abs=4 * values.std() / 10 / 2000**0.5)


def test_the_standard_error_of_the_predictions_is_too_small():
    both = np.array([lesson_22.shortcut_and_estimate(seed) for seed in range(60)])
    assert both[:, 0].mean() < 0.3 * both[:, 1].std()
