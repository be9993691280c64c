"""The terms of a loss: an objective with its settings, how much it counts, and how its losses are averaged.

A run has one objective and may have extra terms, other objectives of the registry that the same feedback can feed,
each with a weight: `extra_terms={"sft": 0.1}`. Here it is checked that every setting has a name that the loss knows.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.feedback import take_rows
from course_utils.training.examples import Layout

# Settings that may be a word instead of a number: the number is then computed for each batch (see `problem`).
COMPUTED = {"kl": "mismatched", "delta": "batch"}


@dataclass(frozen=True, eq=False)
class Term:
    """One objective in the loss. `over` is what the mean is taken over: "all", "each class" or "preferred"."""

    objective: Any
    inputs: tuple[str, ...]
    settings: dict[str, Any]
    weight: float
    over: str

    def losses(self, columns: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        """One loss for each example."""
        inputs = [columns[name] for name in self.inputs]
        there = {k: v.to(inputs[0].device) if isinstance(v, Tensor) else v for k, v in settings.items()}
        return self.objective.loss(*inputs, **there)

    def example_weights(self, rows: int, preferred: Tensor | None) -> Tensor:
        """What each loss of a batch counts, so that the weighted sum is the mean that was asked for."""
        if self.over == "all":
            return torch.full((rows,), self.weight / rows, dtype=torch.float64)
        first = preferred.double()
        weights = first / first.sum()
        if self.over == "each class":
            weights = weights + (1 - first) / (1 - first).sum()
        return self.weight * weights

    def settings_for(self, rows: Tensor | None, count: int) -> dict[str, Any]:
        """The settings for a batch: of a tensor with one entry per row of the feedback, the entries of the batch."""
        return {
            name: take_rows(value, rows) if rows is not None and _per_row(value, count) else value
            for name, value in self.settings.items()
        }


def main_term(objective: Any, settings: dict[str, Any], layout: Layout | None, reduction: str | None) -> Term:
    """The objective of a run."""
    inputs = inputs_of(objective)
    _check_settings(objective, settings, layout)
    over = "all"
    if layout is not None and "preferred" in layout.constants:
        reduction = reduction or objective.reduction
        over = "each class" if reduction == "classwise" else "all"
    elif reduction is not None:
        raise CourseError(
            "unknown-setting",
            f"reduction={reduction!r} was given, and {objective.name} has no two classes to average.",
            where="TrainingSettings(reduction=...)",
            remedy="leave it out: it is a setting of unpaired objectives.",
        )
    return Term(objective, inputs, settings, 1.0, over)


def extra_term(name: str, weight: float, available: set[str], unpaired: bool) -> Term:
    """Another objective of the registry, at its own defaults, fed by the same examples."""
    objective = objectives.get(name)
    inputs, over = inputs_of(objective), "all"
    if unpaired and objective.feedback == "chosen only":
        # In unpaired feedback the chosen responses are the rows that were preferred.
        inputs, over = ("policy",), "preferred"
    missing = [each for each in inputs if each not in available]
    if missing:
        raise CourseError(
            "feedback-of-another-kind",
            f"the extra term {name!r} needs {', '.join(missing)}, which this feedback does not give.",
            where="train(..., extra_terms={...})",
            remedy="use a term of the same kind of feedback; 'sft' goes with pairs and with unpaired feedback.",
        )
    return Term(objective, inputs, {}, float(weight), over)


def inputs_of(objective: Any) -> tuple[str, ...]:
    """The names of the tensors a loss is called with, in order."""
    parameters = inspect.signature(objective.loss).parameters.values()
    return tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)


def _check_settings(objective: Any, settings: dict[str, Any], layout: Layout | None) -> None:
    parameters = inspect.signature(objective.loss).parameters
    known = [name for name, p in parameters.items() if p.default is not inspect.Parameter.empty]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise CourseError(
                "unknown-setting",
                f"{objective.name} has no setting {name!r}; it has {', '.join(known) or 'none'}.",
                where=f"train(..., {name}=...)",
                remedy=f"did you mean {near[0]!r}?"
                if near
                else "what is no setting of it goes into settings=.",
            )
        if isinstance(value, Tensor) and value.dim() > 0 and value.numel() > 1:
            if layout is None or not _per_row(value, len(layout)):
                raise CourseError(
                    "feedback-lengths",
                    f"{name} has {len(value)} entries, and there are {0 if layout is None else len(layout)} examples.",
                    where=f"train(..., {name}=...)",
                    remedy="give one number, or one for each example in the order of the feedback.",
                )
        elif isinstance(value, str) and name in COMPUTED and value != COMPUTED[name]:
            raise CourseError(
                "unknown-choice",
                f"{name} = {value!r} is not known.",
                where=f"train(..., {name}=...)",
                remedy=f"give a number, or {COMPUTED[name]!r} to compute it from each batch.",
            )


def _per_row(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.numel() > 1 and len(value) == count
