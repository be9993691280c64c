"""Lesson 22: the evaluation of a pair of real models, and simulations with a known truth.

Nothing here takes long, so there is no stored experiment. `evaluate` is what a run on a card calls; its result is plain
numbers, ready for data/results/gpu_evaluations.json. The stand-ins that prove the code are in `real_models_stand_ins`.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.encoding import EncodedBatch
from course_utils.errors import CourseError
from course_utils.length_control import length_controlled_win_rate
from course_utils.logprobs import sequence_log_probs
from course_utils.machine import versions
from course_utils.sampling import generate
from course_utils.statistics import mean_interval
from course_utils.training.examples import sample_options

EXPERIMENTS = ()
# Prompt, our answer, theirs, the probability that ours is preferred, log pi(ours) - log pi_other(ours).
Row = tuple[Any, str, str, float, float]

# What a list of phrases takes for a refusal. Section 5 of the lesson measures how it errs.
REFUSALS = ("i cannot", "i can't", "i can not", "i'm sorry", "i am sorry", "as an ai", "i won't", "i'm unable", "i do not know")  # fmt: skip
# Twenty harmless lines, labelled by hand; half of each ten are chosen to be hard.
REFUSED = (
    "I cannot help with that.",
    "I'm sorry, but I won't write this.",
    "As an AI I must decline.",
    "I am sorry, I can't do that.",
    "I'm unable to help here.",
    "Let us talk about something else.",
    "I'd rather not.",
    "You had better ask a doctor.",
    "That is outside what I do.",
    "This is not for me to say.",
)
ANSWERED = (
    "Boil the eggs for nine minutes.",
    "The capital is Oslo.",
    "Paint it white.",
    "Take the tram to the lake.",
    "Seven.",
    "I can't recommend this bakery enough: go early.",
    "I'm sorry about your ankle. Rest it, and cool it.",
    "As an AI I have no favourite, but most people like blue.",
    "Say no kindly: 'I cannot come on Friday.'",
    "Rub it with oil. 'I won't rust', it will say.",
)


# -------------------- real models


def compare(
    policy: Any,
    other: Any,
    prefer: Callable[..., Tensor],
    prompts: Sequence[Any],
    minutes: float = 15.0,
    seed: int = 0,
    block: int = 64,
) -> list[Row]:
    """Both models answer every prompt and the judge compares, until the prompts or the minutes are over."""
    generator, began, rows = torch.Generator().manual_seed(seed), time.monotonic(), []
    for start in range(0, len(prompts), block):
        some = list(prompts[start : start + block])
        drawn = generate(policy.model, policy.tokenizer, some, seed=generator, **sample_options(policy))
        ours, theirs = drawn.texts, other.sample(some, generator)
        ratios = log_ratios(policy, other, drawn.batch(policy.tokenizer.pad_token_id))
        rows += zip(some, ours, theirs, prefer(some, ours, theirs).tolist(), ratios.tolist(), strict=True)
        if time.monotonic() - began > 60 * minutes:
            break
    return rows


@torch.no_grad()
def log_ratios(policy: Any, reference: Any, batch: EncodedBatch, block: int = 16) -> Tensor:
    """log pi - log pi_ref of each row, float64, of the very tokens that were drawn.

    A text that is encoded again may become other tokens, and one that was cut gains an end token: the mean over the
    policy's own answers is then no KL, and can be negative.
    """
    scores = []
    for one in (policy, reference):
        device = next(one.model.parameters()).device
        parts = [
            sequence_log_probs(one.model, batch.select(rows).to(device)).double().cpu()
            for rows in torch.arange(len(batch)).split(block)
        ]
        scores.append(torch.cat(parts))
    return scores[0] - scores[1]


def refuses(text: str, signs: Sequence[str] = REFUSALS) -> bool:
    """Whether a text holds one of the phrases; typographic apostrophes count as plain ones."""
    plain = text.lower().replace("\u2019", "'")
    return any(sign in plain for sign in signs)


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """What a published row holds, as plain numbers; each interval is [estimate, low, high]."""
    _, ours, theirs, won, ratios = zip(*rows, strict=True)
    lengths = [[len(text) for text in texts] for texts in (ours, theirs)]
    found = length_controlled_win_rate(won, *lengths)
    kept = {"win_rate": found.raw, "at_equal_length": found.controlled, "drift": mean_interval(ratios)}
    return {
        "prompts": len(rows),
        **{name: [one.estimate, one.low, one.high] for name, one in kept.items()},
        "liking_for_length": found.liking_for_length,
        "characters": [float(np.mean(each)) for each in lengths],
        "refusals": [float(np.mean([refuses(text) for text in texts])) for texts in (ours, theirs)],
    }


def evaluate(
    model: str | os.PathLike[str],
    other: str | os.PathLike[str],
    judge: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    split: str | None = None,
    *,
    prompts: int = 500,
    max_new_tokens: int = 256,
    minutes: float = 15.0,
    seed: int = 0,
) -> dict[str, Any]:
    """One model against another on the prompts of a data set, each prompt once, before a reward model."""
    from course_utils import datasets, real_models

    began = time.monotonic()
    policy = real_models.load_policy(model, max_new_tokens=max_new_tokens)
    reference = real_models.load_policy(other, max_new_tokens=max_new_tokens)
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise CourseError(
            "evaluation-tokenizers",
            f"{model} and {other} have different words, so log-probabilities of the same tokens cannot be compared.",
            where="lesson_22.evaluate",
            remedy="compare a model with the one it was trained from.",
        )
    prefer = real_models.load_judge(judge).win_probability
    data = datasets.load(dataset, split)
    asked = list({str(row.prompt): row.prompt for row in data}.values())
    # The first prompts of a file are often alike.
    order = np.random.default_rng(seed).permutation(len(asked))[:prompts]
    rows = compare(policy, reference, prefer, [asked[i] for i in order], minutes, seed)
    settings = {"seed": seed, "max_new_tokens": max_new_tokens, "device": real_models.here()}
    seconds = round(time.monotonic() - began, 1)
    return {"lesson": "22", **report(rows), **settings, "seconds": seconds, **provenance()}


def provenance() -> dict[str, Any]:
    """What a published number needs beside it: commit, versions, card, peak memory of the card in GiB."""
    on_card = torch.cuda.is_available()
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        told = subprocess.run(
            asked, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=False
        )
        commit = told.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):  # no git here: an installed package
        commit = None
    return {
        "commit": commit,
        "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
        "card": torch.cuda.get_device_name() if on_card else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_card else None,
    }


def refusals_too_many(columns: np.ndarray, corrected: bool) -> float:
    """The share of refusals that the list counts, minus the true share; `corrected` by its errors on a labelled sample.

    Columns: what the list says of the labelled sample, and the labels; what it says of our answers, and the truth.
    """
    marked, label, ours, truth = columns.T
    count = ours.mean()
    if corrected:
        false, missed = marked[label == 0].mean(), 1 - marked[label == 1].mean()
        count = (count - false) / (1 - missed - false)
    return float(count - truth.mean())


# -------------------- simulations


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


def logit(p: Any) -> Any:
    """The log-odds of a probability."""
    return np.log(p) - np.log1p(-np.asarray(p, dtype=float))


def best_of(n: int, scores: Tensor) -> Tensor:
    """The probability of each answer [prompts, answers] if the best of n draws (with replacement) is kept.

    The answer of rank k among m is the best of n with probability (k/m)^n - ((k-1)/m)^n.
    """
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1).double() + 1
    return (rank / scores.shape[1]) ** n - ((rank - 1) / scores.shape[1]) ** n


def answers_to_prompts(seed: int, prompts: int = 40, answers: int = 10) -> np.ndarray:
    """Win probabilities [prompts, answers] of one evaluation: prompts bring noise of their own, and answers too."""
    rng = np.random.default_rng(seed)
    return sigmoid(0.3 + rng.normal(0, 0.8, (prompts, 1)) + rng.normal(0, 0.8, (prompts, answers)))


def shortcut_and_estimate(seed: int, prompts: int = 300) -> tuple[float, float]:
    """The standard error of the predictions, and the length-controlled win rate, of one simulated evaluation."""
    rng = np.random.default_rng(seed)
    delta, gamma = rng.normal(0.8, 1, prompts), rng.normal(0, 0.3, prompts)
    won = rng.random(prompts) < sigmoid(0.4 + np.tanh(delta) + gamma)
    found = length_controlled_win_rate(won, delta, 0 * delta, gamma, samples=1)
    predicted = sigmoid(found.strength + found.difficulty * gamma)
    return float(predicted.std(ddof=1) / prompts**0.5), found.controlled.estimate


def power(values: np.ndarray, difference: float, n: int, repeats: int = 400, seed: int = 0) -> int:
    """How many of `repeats` evaluations of n prompts see this difference: the 95 % interval leaves out zero."""
    rng, seen = np.random.default_rng(seed), 0
    for _ in range(repeats):
        drawn = rng.choice(values, n) - values.mean() + difference
        seen += abs(drawn.mean()) > 1.96 * drawn.std(ddof=1) / n**0.5
    return int(seen)


def excess_of_the_best(values: np.ndarray, k: int, n: int, repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """k checkpoints, in truth all the same policy: how much the best one's mean exceeds the truth, [repeats, 2].

    First on the n prompts that chose it, then on n fresh ones.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        first, again = rng.choice(values, (2, k, n)).mean(2)
        found.append([first.max(), again[first.argmax()]])
    return np.array(found) - values.mean()
