"""The loss of one batch and its gradient: columns, one loss per example, their mean.

A batch may be computed in several pieces (`accumulate`). The weight of an example is settled for the whole batch
first, so that the pieces add up to the gradient of the whole, class by class where the classes are averaged apart.

Two settings may be words instead of numbers, and are then computed from each batch, without a gradient:
- `kl="mismatched"`: KTO's baseline, the mean log-ratio of responses under the prompt of the next row (`kto_kl`).
- `delta="batch"`: BCO's shift, half the sum of the two classes' mean rewards. The paper and TRL use a running mean of
  it; with all rows in every batch the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.references import FrozenReference, MovingReference
from course_utils.training.examples import Examples, OnPolicy, examples_for, lay_out, sampled_examples
from course_utils.training.order import DataOrder
from course_utils.training.settings import TrainingSettings, derived_seed
from course_utils.training.terms import COMPUTED, extra_term, main_term

COMPUTED_AT_ONCE = 64  # rows that pass the model at a time where nothing is learned from them
MAX_LISTED = 8


@dataclass(frozen=True)
class Measured:
    """What a batch showed: its loss, and how far log-probabilities have drifted from the reference's, on average."""

    loss: float
    drift: dict[str, float]
    rows: Tensor | None


class Problem:
    """Policy, feedback, objective and reference, put together: what does not change from step to step."""

    def __init__(
        self,
        policy: Any,
        feedback: Any,
        objective: Any,
        ref: Any,
        settings: TrainingSettings,
        loss_settings: dict[str, Any],
        extra_terms: Mapping[str, float] | None = None,
        proposal: Any = None,
        cache_dir: Any = None,
    ) -> None:
        self.settings, self.feedback, self.ref = settings, feedback, ref
        self.on_policy = objective.feedback == "on-policy" and isinstance(feedback, OnPolicy)
        layout = None if self.on_policy else lay_out(feedback, objective)
        self.count = len(feedback if self.on_policy else layout)
        if self.count == 0:
            raise CourseError(
                "nothing-to-train",
                "the feedback has no rows that this objective can learn from.",
                where="train(policy, feedback, objective)",
                remedy="check the filter that made it; 'sft' needs preferred rows.",
            )
        main = main_term(objective, loss_settings, layout, settings.reduction)
        self._rewards_model = not any(name.partition("_")[0] == "policy" for name in main.inputs)
        unpaired = layout is not None and "preferred" in layout.constants
        available = set(main.inputs) | self._free_columns(layout)
        extras = [extra_term(*term, available, unpaired) for term in (extra_terms or {}).items()]
        self.terms = [main, *extras]
        self.names = list(dict.fromkeys(name for term in self.terms for name in term.inputs))
        self._preferred = layout.constants["preferred"] if unpaired else None
        both = any(term.over != "all" for term in self.terms)
        self.order = DataOrder(self.count, settings.batch_size, settings.seed, self._preferred, both)
        self._examples = None if self.on_policy else examples_for(policy, layout, settings.share_prompt)
        self.ref_scores = None if ref is None else _Scores(ref, self._examples, cache_dir)
        self.proposal_scores = self.ref_scores
        if proposal is not None:
            self.proposal_scores = _Scores(proposal, self._examples, cache_dir)

    def _free_columns(self, layout: Any) -> set[str]:
        """What the examples can give beyond what the objective asks for."""
        if layout is None or self._rewards_model:
            return set()
        columns = {"policy" + ("_" + slot if slot else "") for slot in layout.responses}
        return columns | {"len" + ("_" + slot if slot else "") for slot in layout.responses}

    def gradient(self, policy: Any, step: int) -> Measured:
        """Add the gradient of this step's loss to the parameters."""
        rows = self.order.batch(step)
        examples, within = self._examples, rows
        if self.on_policy:
            seed = derived_seed(self.settings.seed, "responses", step)
            generator = torch.Generator().manual_seed(seed)
            examples, within = sampled_examples(policy, self.feedback, rows, generator), None
        try:
            return self._gradient(policy, examples, rows, within, step)
        except CourseError as error:
            if error.id == "training-not-finite":
                raise  # it says so already
            where = f"{error.where}, at step {step + 1}, {self.place(rows)}".removeprefix(", ")
            raise CourseError(error.id, error.what, where=where, remedy=error.remedy) from error

    def _gradient(
        self, policy: Any, examples: Examples, rows: Tensor | None, within: Tensor | None, step: int
    ) -> Measured:
        size = self.order.size
        preferred = self._preferred
        if preferred is not None and rows is not None:
            preferred = preferred[rows]
        computed = {name: self._computed(name, policy, examples, within) for name in self._words()}
        weights = [term.example_weights(size, preferred) for term in self.terms]
        drift_weights = _drift_weights(size, preferred)
        loss, drift = 0.0, {}
        for piece in self._pieces(size):
            some = _pick(within, piece)
            columns = self.columns(policy, examples, some)
            total = 0.0
            for term, weight in zip(self.terms, weights, strict=True):
                own = term.settings_for(None if self.on_policy else some, self.count)
                own |= computed if term is self.terms[0] else {}
                losses = term.losses(columns, own)
                part = (losses * _taken(weight, piece).to(losses)).sum()
                if not bool(torch.isfinite(part)):
                    bad = (~torch.isfinite(losses.detach().cpu())).nonzero().flatten()
                    place = self.place(_pick(rows, _pick(piece, bad) if len(bad) else piece))
                    raise not_finite("loss", float(part.detach()), place, step)
                total = total + part
            total.backward()
            loss += float(total.detach())
            for name, value in _drift(columns, drift_weights, piece).items():
                drift[name] = drift.get(name, 0.0) + value
        return Measured(loss, drift, rows)

    def _pieces(self, size: int) -> list[Tensor | None]:
        """A batch cut into places; None is the whole of it."""
        if self.settings.accumulate == 1:
            return [None]
        return list(torch.arange(size).split(math.ceil(size / self.settings.accumulate)))

    def columns(self, policy: Any, examples: Examples, rows: Tensor | None) -> dict[str, Tensor]:
        """The tensors that the losses are called with, by name."""
        sources = {name.partition("_")[0] for name in self.names}
        constants = examples.layout.constants
        tables: dict[str, dict[str, Tensor]] = {}
        if self._rewards_model:
            tables["reward"] = tables["embedding"] = examples.rewards(policy, rows)
        else:
            tables["policy"] = examples.log_probs(policy, rows)
        device = next(iter(next(iter(tables.values())).values())).device
        if self.ref_scores is not None and not self._rewards_model:
            tables["ref"] = tables["prior"] = self.ref_scores(examples, rows)
        if "proposal" in sources:
            tables["proposal"] = self.proposal_scores(examples, rows)
        if "len" in sources:
            tables["len"] = examples.lengths(rows)
        found = {}
        for name in dict.fromkeys([*self.names, *self._watched(tables)]):
            source, _, slot = name.partition("_")
            if source in tables:
                found[name] = tables[source][slot].to(device)
            else:
                found[name] = _taken(constants[name], rows).to(device)
        return found

    def _watched(self, tables: dict[str, Any]) -> list[str]:
        """Columns for the drift alone, where a reference was given to an objective that does not need it."""
        if "ref" not in tables or self.on_policy:
            return []
        slots = [slot for slot in tables["policy"] if slot in ("", "chosen", "rejected")]
        return [source + ("_" + slot if slot else "") for slot in slots for source in ("policy", "ref")]

    def _words(self) -> list[str]:
        settings = self.terms[0].settings
        return [name for name in COMPUTED if isinstance(settings.get(name), str)]

    @torch.no_grad()
    def _computed(self, name: str, policy: Any, examples: Examples, rows: Tensor | None) -> Tensor:
        if name == "kl":
            other = examples.mismatched(rows)
            places = [None] if rows is None else torch.arange(len(rows)).split(COMPUTED_AT_ONCE)
            now, ref = (
                torch.cat([other.log_probs(model, some)[""] for some in places])
                for model in (policy, self.ref_scores.model)
            )
            return objectives.kto_kl(now, ref)
        pieces = [None] if rows is None else rows.split(COMPUTED_AT_ONCE)
        parts = [self.columns(policy, examples, some) for some in pieces]
        now, ref, preferred = (
            torch.cat([part[key] for part in parts]) for key in ("policy", "ref", "preferred")
        )
        beta = self.terms[0].settings.get("beta", self.terms[0].objective.defaults["beta"])
        reward = beta * (now - ref)
        return 0.5 * (reward[preferred].mean() + reward[~preferred].mean())

    def place(self, rows: Tensor | None) -> str:
        """Rows of the feedback as text, the first few of them."""
        if rows is None:
            return f"all {self.count} rows"
        listed = ", ".join(map(str, rows[:MAX_LISTED].tolist()))
        return f"rows {listed}" + (f" and {len(rows) - MAX_LISTED} more" if len(rows) > MAX_LISTED else "")


class _Scores:
    """Log-probabilities of a model that is not trained: computed once if it stays, each time if it moves."""

    def __init__(self, ref: Any, examples: Examples | None, cache_dir: Any) -> None:
        self.model = ref.model if isinstance(ref, FrozenReference) else ref
        self._examples, self._table = examples, None
        if examples is not None and not isinstance(ref, MovingReference):
            self._table = examples.all_log_probs(self.model, cache_dir)

    @torch.no_grad()
    def __call__(self, examples: Examples, rows: Tensor | None) -> dict[str, Tensor]:
        if self._table is not None and examples is self._examples:
            return {slot: _taken(values, rows) for slot, values in self._table.items()}
        return examples.log_probs(self.model, rows)


def not_finite(what: str, value: float, rows: str, step: int) -> CourseError:
    """The end of a run whose numbers are no longer numbers."""
    return CourseError(
        "training-not-finite",
        f"the {what} is {value} at step {step + 1}; the policy keeps the weights it had before this step.",
        where=rows,
        remedy="lower the learning rate, set clip_gradient=1.0 or a warmup, and look at these rows: an empty or very "
        "long response, a reward or margin that is not a number. With checkpoint_dir the last checkpoint is good.",
    )


def _drift_weights(size: int, preferred: Tensor | None) -> dict[str, tuple[str, Tensor]]:
    """For the mean log-ratio of chosen and of rejected responses: their slot, and what each example counts."""
    if preferred is None:
        each = torch.full((size,), 1.0 / size, dtype=torch.float64)
        return {"chosen": ("_chosen", each), "rejected": ("_rejected", each)}
    classes = {"chosen": preferred.double(), "rejected": (~preferred).double()}
    return {name: ("", member / member.sum()) for name, member in classes.items() if bool(member.any())}


@torch.no_grad()
def _drift(
    columns: dict[str, Tensor], weights: dict[str, tuple[str, Tensor]], piece: Tensor | None
) -> dict[str, float]:
    """This piece's share of the mean log-ratios, where policy and reference were both asked."""
    found = {}
    for name, (slot, weight) in weights.items():
        policy, ref = columns.get(f"policy{slot}"), columns.get(f"ref{slot}")
        if policy is not None and ref is not None:
            log_ratio = (policy.detach() - ref).double().cpu()
            found[f"{name}_drift"] = float(_taken(weight, piece) @ log_ratio)
    return found


def _taken(values: Tensor, rows: Tensor | None) -> Tensor:
    """These entries; None takes all."""
    return values if rows is None else values[rows]


def _pick(rows: Tensor | None, places: Tensor | None) -> Tensor | None:
    """Of these rows the ones at these places; None is all rows, or all places."""
    if rows is None or places is None:
        return places if rows is None else rows
    return rows[places]
