"""The rows of a run: what is trained on and what is held out, as feedback that the method can learn from.

A method that compares two responses is refused on labelled single responses; one that learns from labels takes a
comparison as two labelled responses. RDRO's alpha and DDRO's t are the share of preferred responses, so where the
settings leave them open they are read off the rows.
"""

from __future__ import annotations

from typing import Any

from course_utils import datasets, objectives
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.where import longest_row
from course_utils.errors import CourseError

HELD_OUT = ("test", "validation", "valid", "eval", "dev")
# What the share of preferred responses is called by the methods that are told it.
FRACTION = {"rdro": "alpha", "rdro_pooled": "alpha", "ddro": "t"}
FROM_PAIRS = ("paired", "reference-free pair", "chosen only", "unpaired")
FROM_LABELS = ("chosen only", "unpaired")


def load_data(settings: RunSettings) -> tuple[datasets.PreferenceData, datasets.PreferenceData]:
    """Rows to train on and rows to measure with, without a prompt in common."""
    splits = datasets.load_splits(settings.data, limit=settings.rows)
    names = list(splits)
    if len(names) == 1:
        train, held = splits[names[0]].split(1 - settings.held_out, settings.seed)
    else:
        kept = next((name for name in HELD_OUT if name in names), None)
        if kept is None or "train" not in names:
            raise CourseError(
                "run-splits",
                f"the data have the splits {', '.join(names)}; one to train on and one to hold out are not among them.",
                where=settings.data,
                remedy=f"give one file, which is then split by prompt, or name the splits train and {HELD_OUT[0]}.",
            )
        clean = splits.without_leakage(kept)
        train, held = clean["train"], clean[kept]
    few = range(min(len(held), settings.held_out_rows))
    return train, held.take(few, "not measured")


def feedback_of(settings: RunSettings, data: datasets.PreferenceData) -> Any:
    """The rows as the trainer takes them. For SFT on all responses every one of them counts as chosen."""
    import torch

    from course_utils.feedback import Unpaired

    if settings.responses == "all":
        every = data.unpaired()
        return Unpaired(every.prompt, every.response, torch.ones(len(every), dtype=torch.bool))
    return data.pairs() if data.kind == "pairs" else data.unpaired()


def fitting(settings: RunSettings, policy: Any, rows: datasets.PreferenceData) -> datasets.PreferenceData:
    """The rows that are short enough to be trained on: longer ones are not measured either, nor answered."""
    from course_utils.trl_bridge.data import fit

    limit = longest_row(settings, policy.model)
    feedback = rows.pairs() if rows.kind == "pairs" else rows.unpaired()
    how = {"chat_template": policy.chat_template, "max_length": limit, "over_length": "drop"}
    _, dropped = fit(feedback, policy.tokenizer, **how)
    out = {*dropped.prompts, *dropped.responses}
    return rows.take([row for row in range(len(rows)) if row not in out], f"more than {limit} tokens")


def require_feedback(settings: RunSettings, data: datasets.PreferenceData) -> None:
    """Refuse a method that these rows cannot feed, before a model is loaded."""
    kind = objectives.get(settings.method).feedback
    paired = data.kind == "pairs"
    if kind in (FROM_PAIRS if paired else FROM_LABELS):
        return
    rows = "comparisons" if paired else "single responses with labels, which nobody compared with one another"
    if kind in FROM_PAIRS:
        remedy = "choose a method that learns from labels (rdro, ddro, kto, bco), or data with chosen and rejected."
    else:
        remedy = "rows of a file carry no rewards: train it with AlignmentTrainer on Groups, or with training.train."
    raise CourseError(
        "feedback-of-another-kind",
        f"{settings.method} learns from {kind!r} feedback, and the rows are {rows}.",
        where=f"align, {data.account.source}",
        remedy=remedy,
    )


def options_of(settings: RunSettings, data: datasets.PreferenceData) -> tuple[dict[str, Any], str]:
    """The settings of the objective for these rows, and a sentence about a share that was read off them."""
    options, name = dict(settings.options), FRACTION.get(settings.method)
    wall = ""
    if settings.method == "ddro" and "past_wall" not in options:
        # One held-out response past the wall would end the run before the model is saved.
        options["past_wall"] = "tangent"
        wall = "; past DDRO's wall its loss goes on in a straight line (past_wall = tangent)"
    if name is None:
        return options, ""
    share = data.alpha
    found = f"{share:.4f}, the share of preferred responses among the rows to train on"
    if data.kind == "pairs":
        found = "0.5: the rows are comparisons, so half of the responses are preferred"
    if name in options:
        return options, f"{name} = {options[name]:g}, as given; the rows say {found}{wall}"
    if not 0 < share < 1:
        return options, f"one class only: {found}"  # the trainer refuses it, and says why
    return {**options, name: share}, f"{name} = {found}{wall}"
