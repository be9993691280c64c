"""What is measured before and after a run: on held-out rows, and in samples to read.

The log-probabilities of every held-out row are kept from before, so that drift and accuracies are paired: the same rows
under both models. A drift is log pi after minus log pi before, in nats per response.
"""

from __future__ import annotations

from typing import Any

import torch

from course_utils.datasets import PreferenceData
from course_utils.statistics import Interval, mean_interval, wilson_interval
from course_utils.training.examples import Layout, examples_for

Rows = dict[str, list[float]]


@torch.no_grad()
def log_probs_of(policy: Any, held: PreferenceData) -> Rows:
    """log pi of every held-out response: "chosen" and "rejected", of pairs or of labelled responses."""
    if held.kind == "pairs":
        pairs = held.pairs()
        layout = Layout(pairs.prompt, {"chosen": pairs.chosen, "rejected": pairs.rejected})
        found = examples_for(policy, layout).all_log_probs(policy, None)
        return {side: values.double().cpu().tolist() for side, values in found.items()}
    texts = held.unpaired()
    found = examples_for(policy, Layout(texts.prompt, {"": texts.response})).all_log_probs(policy, None)
    values, preferred = found[""].double().cpu(), texts.preferred.cpu()
    return {"chosen": values[preferred].tolist(), "rejected": values[~preferred].tolist()}


def evaluation(rows: Rows, before: Rows, paired: bool) -> dict[str, Any]:
    """Log-probabilities and, against those of before, drift and accuracies: [estimate, low, high, rows]."""
    found: dict[str, Any] = {}
    drift = {}
    for side in ("chosen", "rejected"):
        now, then = (torch.tensor(each[side], dtype=torch.float64) for each in (rows, before))
        drift[side] = now - then
        if len(now) > 1:
            found[f"{side}_log_prob"] = plain(mean_interval(now))
            found[f"{side}_drift"] = plain(mean_interval(drift[side]))
    if paired:
        chosen, rejected = (torch.tensor(rows[side], dtype=torch.float64) for side in ("chosen", "rejected"))
        ranked, rewarded = chosen >= rejected, drift["chosen"] > drift["rejected"]
        found["ranking_accuracy"] = plain(wilson_interval(int(ranked.sum()), len(ranked)))
        found["reward_accuracy"] = plain(wilson_interval(int(rewarded.sum()), len(rewarded)))
    return found


def answers(policy: Any, prompts: list[Any], response: int, seed: int, longest: int) -> list[str]:
    """One response to each prompt, within the longest text that the model reads; the same seed, the same draws."""
    from course_utils.encoding import encode_prompts
    from course_utils.sampling import generate

    if not prompts:
        return []
    asked = encode_prompts(policy.tokenizer, prompts, chat_template=policy.chat_template)
    room = longest - max(len(ids) for ids in asked)
    drawn = generate(
        policy.model,
        policy.tokenizer,
        prompts,
        max_new_tokens=max(1, min(response, room)),
        seed=seed,
        batch_size=16,
        chat_template=policy.chat_template,
    )
    return drawn.texts


def different_prompts(held: PreferenceData, count: int) -> list[Any]:
    """The first prompts of the held-out rows, each once."""
    found: dict[str, Any] = {}
    for row in held:
        found.setdefault(repr(row.prompt), row.prompt)
    return list(found.values())[:count]


def plain(interval: Interval) -> list[float]:
    """An interval as JSON keeps it."""
    return [interval.estimate, interval.low, interval.high, interval.count]
