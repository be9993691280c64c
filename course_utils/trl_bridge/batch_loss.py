"""The loss of a micro-batch: its share of the loss of the whole update, and what is logged beside it.

An update may be computed in pieces (gradient accumulation, several processes). What each example counts is settled
for the whole update first, so the shares add up to the same loss and gradient whatever the pieces are: 4 pieces of 2
are 1 of 8, class by class where the classes are averaged apart, and also where a piece holds one class only.

The tensors that an objective is called with come from `training.problem`, which the teaching loop uses as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.objectives import Objective
from course_utils.training.problem import Problem, not_finite
from course_utils.training.terms import Term

MEANS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def require_trainable_objective(objective: Objective) -> None:
    """Objectives of reward models and of samples from the policy have no data set of responses to train on."""
    if objective.feedback in ("reward pair", "on-policy"):
        raise CourseError(
            "objective-not-for-trainer",
            f"{objective.name} learns from {objective.feedback!r} feedback, which is no data set of responses.",
            where="AlignmentTrainer(objective=...)",
            remedy="train it with course_utils.training.train; reward models with course_utils.reward_models.",
        )


def example_weights(terms: list[Term], preferred: Tensor | None, rows: int) -> list[Tensor]:
    """What each example of an update counts, for each term of the loss.

    With class-wise means an update of one class is the mean of that class: the sum of nothing, over a count that is
    at least one, is zero. (`Term.example_weights` refuses nothing and would divide zero by zero.)
    """
    weights = []
    for term in terms:
        members = rows if preferred is None else int(preferred.sum())
        if term.over == "each class" and members in (0, rows):
            weights.append(torch.full((rows,), term.weight / rows, dtype=torch.float64))
        elif term.over == "preferred" and members == 0:
            weights.append(torch.zeros(rows, dtype=torch.float64))
        else:
            weights.append(term.example_weights(rows, preferred))
    return weights


class BatchLoss:
    """The terms of a problem on one micro-batch after the other; counts its calls and gathers what is logged."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.calls = problem, 0
        self._sums: dict[str, list[Tensor | float]] = {}
        self._loss, self._steps = 0.0, set()

    def share(
        self,
        policy: Any,
        examples: Any,
        rows: Tensor | None,
        weights: list[Tensor],
        computed: Mapping[str, Tensor],
        step: int,
    ) -> Tensor:
        """The weighted sum of the losses of these examples. `rows` are row numbers of the feedback; None is all."""
        self.calls += 1
        try:
            return self._share(policy, examples, rows, weights, computed, step)
        except CourseError as error:
            if error.id == "training-not-finite":
                raise  # it says where already
            where = f"{error.where}, at step {step + 1}, {self._place(rows)}".removeprefix(", ")
            raise CourseError(error.id, error.what, where=where, remedy=error.remedy) from error

    def _share(
        self,
        policy: Any,
        examples: Any,
        rows: Tensor | None,
        weights: list[Tensor],
        computed: Mapping[str, Tensor],
        step: int,
    ) -> Tensor:
        columns = self.problem.columns(policy, examples, rows)
        total: Any = 0.0
        for index, (term, weight) in enumerate(zip(self.problem.terms, weights, strict=True)):
            own = term.settings_for(rows, self.problem.count) | (dict(computed) if index == 0 else {})
            losses = term.losses(columns, own)
            part = (losses * weight.to(losses)).sum()
            if not bool(torch.isfinite(part)):
                raise not_finite("loss", float(part.detach()), self._place(rows), step)
            total = total + part
        self._watch(columns, computed)
        self._loss += float(total.detach())
        self._steps.add(step)
        return total

    def _place(self, rows: Tensor | None) -> str:
        return "the rows of this batch" if rows is None else self.problem.place(rows)

    def whole_batch_settings(self, policy: Any, examples: Any, rows: Tensor | None) -> dict[str, Tensor]:
        """Settings that are words and are computed from a whole update, such as KTO's baseline."""
        return {name: self.problem._computed(name, policy, examples, rows) for name in self.problem._words()}

    # -------------------- what is logged

    @torch.no_grad()
    def _watch(self, columns: Mapping[str, Tensor], computed: Mapping[str, Tensor]) -> None:
        columns = {name: values.detach() for name, values in columns.items()}
        chosen, rejected = _sides(columns, self.problem.terms[0])
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            for kind, values in side.items():
                self._add(f"{kind}/{name}", values)
        if "rewards" in chosen and "preferred" not in columns and "rewards" in rejected:
            margin = chosen["rewards"] - rejected["rewards"]
            self._add("rewards/margins", margin)
            self._add("rewards/accuracies", (margin > 0).to(margin))
        for name, value in computed.items():
            self._add(name, torch.as_tensor(value).reshape(1))

    def _add(self, name: str, values: Tensor) -> None:
        have = self._sums.setdefault(name, [0.0, 0.0])
        have[0] = have[0] + values.double().sum().cpu()
        have[1] = have[1] + values.numel()

    def metrics(self, reduce: Any = None, processes: int = 1) -> dict[str, float]:
        """Means over everything since the last call, under TRL's names; `reduce` adds them up over processes.

        "loss" is the mean over steps of the whole update's loss, in all its digits (older trainers log four).
        """
        names = [*MEANS, *(name for name in self._sums if name not in MEANS)]
        rows = [[float(v) for v in self._sums.get(name, (0.0, 0.0))] for name in names]
        table = torch.tensor([*rows, [self._loss, len(self._steps) / processes]], dtype=torch.float64)
        self._sums, self._loss, self._steps = {}, 0.0, set()
        if reduce is not None:
            table = reduce(table)
        named = zip([*names, "loss"], table, strict=True)
        found = {name: float(total / count) for name, (total, count) in named if count}
        if "rewards/margins" not in found and {"rewards/chosen", "rewards/rejected"} <= found.keys():
            # Unpaired responses: the difference of the two means, as TRL's KTO trainer logs it.
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found


def _sides(columns: Mapping[str, Tensor], term: Term) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Log-probabilities and rewards of the better and of the worse responses."""
    if "policy_chosen" in columns or "policy_1" in columns:
        names = ("chosen", "rejected") if "policy_chosen" in columns else ("1", "2")
        first, second = (_side(columns, f"_{name}", name, term) for name in names)
        if names[0] == "1":
            better = columns["reward_1"] >= columns["reward_2"]
            pairs = {kind: (first[kind], second[kind]) for kind in first}
            first = {kind: torch.where(better, a, b) for kind, (a, b) in pairs.items()}
            second = {kind: torch.where(better, b, a) for kind, (a, b) in pairs.items()}
        return first, second
    values = _side(columns, "", "", term)
    if "preferred" in columns:
        preferred = columns["preferred"]
        return {k: v[preferred] for k, v in values.items()}, {k: v[~preferred] for k, v in values.items()}
    if "reward" in columns and columns["reward"].dim() == 2:
        best, worst = (
            columns["reward"].max(dim=1).indices[:, None],
            columns["reward"].min(dim=1).indices[:, None],
        )
        return tuple({k: v.gather(1, at).squeeze(1) for k, v in values.items()} for at in (best, worst))
    return values, {}


def _side(columns: Mapping[str, Tensor], suffix: str, name: str, term: Term) -> dict[str, Tensor]:
    """One response of each row: its log-probability, and beta times its log-ratio where there is a reference."""
    policy, ref = columns.get(f"policy{suffix}"), columns.get(f"ref{suffix}")
    if policy is None:
        return {}
    known = {**term.objective.defaults, **term.settings}
    beta = known.get(f"beta_{name}", known.get("beta", 1.0))
    found = {"logps": policy}
    if ref is not None and isinstance(beta, int | float):
        found["rewards"] = beta * (policy - ref)
    return found


def settings_per_row(options: Mapping[str, Any]) -> list[str]:
    """Names of settings that have one entry for each row."""
    return [name for name, value in options.items() if isinstance(value, Tensor) and value.numel() > 1]


def added_up(trainer: Any) -> Any:
    """A function that adds a table of numbers up over the processes of a trainer; None where there is one."""
    if trainer.args.world_size == 1:
        return None
    return lambda table: trainer.accelerator.reduce(table.to(trainer.args.device), reduction="sum").cpu()
