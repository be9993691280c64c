"""Feedback: what comparisons leave behind, in four containers, `Pairs`, `Unpaired`, `Groups` and `SoftPairs`.

Each is a frozen dataclass of columns with one entry per row. Columns are tensors in a finite world; where
prompts and responses are texts they are lists of strings, and every operation here accepts both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from course_utils.errors import CourseError

Column = Tensor | list[Any]
Seed = int | torch.Generator


class _Feedback:
    """What the four containers share: rows, splits and batches. A field that is None is no column."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise CourseError(
                "feedback-lengths",
                f"the columns have different numbers of rows: {lengths}.",
                where=type(self).__name__,
                remedy="give every column one entry per row.",
            )

    def columns(self) -> dict[str, Column]:
        """The columns that are filled, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def __repr__(self) -> str:
        columns = self.columns()
        shown = min(3, len(self))
        lines = [f"{type(self).__name__}: {len(self):,} rows ({', '.join(columns)})"]
        for i in range(shown):
            lines.append("  " + "  ".join(f"{name}={_show(column[i])}" for name, column in columns.items()))
        if len(self) > shown:
            lines.append("  ...")
        return "\n".join(lines)

    def take(self, rows: Tensor) -> Self:
        """These rows, in this order."""
        return replace(self, **{name: take_rows(column, rows) for name, column in self.columns().items()})

    def shuffled(self, seed: Seed) -> Self:
        """The same rows in a random order."""
        return self.take(torch.randperm(len(self), generator=generator_from(seed)))

    def split(self, fraction: float, seed: Seed) -> tuple[Self, Self]:
        """Two disjoint random parts: the first holds this fraction of the rows, the second the rest."""
        require_fraction(fraction, "fraction", f"{type(self).__name__}.split(fraction, seed)")
        order = torch.randperm(len(self), generator=generator_from(seed))
        first = round(fraction * len(self))
        return self.take(order[:first]), self.take(order[first:])

    def batches(self, size: int, seed: Seed) -> Iterator[Self]:
        """One shuffled pass over the rows; the last batch may be smaller."""
        require_positive(size, "size", f"{type(self).__name__}.batches(size, seed)")
        order = torch.randperm(len(self), generator=generator_from(seed))
        for rows in order.split(size):
            yield self.take(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(_Feedback):
    """Comparisons: for a prompt, the response that was chosen and the one that was rejected."""

    prompt: Column
    chosen: Column
    rejected: Column
    annotator: Tensor | None = None
    group: Tensor | None = None

    def unpaired(self) -> Unpaired:
        """Forget who was compared with whom: first all chosen responses, then all rejected ones."""
        count = len(self)
        labels = torch.cat([torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)])
        return Unpaired(join(self.prompt, self.prompt), join(self.chosen, self.rejected), labels)


@dataclass(frozen=True, eq=False, repr=False)
class Unpaired(_Feedback):
    """Single responses with a thumb up or down: `preferred` is a boolean tensor."""

    prompt: Column
    response: Column
    preferred: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Groups(_Feedback):
    """K responses to each prompt with their rewards: responses [N, K] (or N lists of K texts), reward [N,
    K].
    """

    prompt: Column
    responses: Column
    reward: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SoftPairs(_Feedback):
    """Comparisons whose label is a probability: how likely `first` is preferred to `second`."""

    prompt: Column
    first: Column
    second: Column
    probability: Tensor


def generator_from(seed: Seed) -> torch.Generator:
    """A generator from an int seed; a generator is passed through, so several draws can share one stream."""
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(int(seed))


def sample_rows(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row of probabilities [N, Y], by inverting the cumulative distribution."""
    cumulative = probabilities.cumsum(dim=-1)
    uniform = torch.rand(len(probabilities), 1, generator=generator, dtype=torch.float64)
    index = (uniform * cumulative[:, -1:] >= cumulative).sum(dim=-1)
    return index.clamp(max=probabilities.shape[-1] - 1)


def take_rows(column: Column, rows: Tensor) -> Column:
    """Rows of a column, be it a tensor or a list."""
    return column[rows] if isinstance(column, Tensor) else [column[i] for i in rows.tolist()]


def choose(first_wins: Tensor, first: Column, second: Column) -> Column:
    """Row by row, `first` where the condition holds and `second` elsewhere."""
    if isinstance(first, Tensor):
        return torch.where(first_wins, first, second)
    return [a if wins else b for wins, a, b in zip(first_wins.tolist(), first, second, strict=True)]


def join(first: Column, second: Column) -> Column:
    """Two columns, one after the other."""
    return torch.cat([first, second]) if isinstance(first, Tensor) else list(first) + list(second)


def require_both_classes(preferred: Any, rejected: Any, where: str) -> None:
    """p+ and p- are given together or not at all."""
    if (preferred is None) != (rejected is None):
        raise CourseError(
            "unpaired-one-class",
            "only one of `preferred` and `rejected` was given.",
            where=where,
            remedy="give both distributions, or neither and let the judge of the world decide.",
        )


def require_fraction(value: float, name: str, where: str) -> None:
    """A probability or a share, from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise CourseError(
            "setting-out-of-range",
            f"{name} = {value} is not between 0 and 1.",
            where=where,
            remedy=f"{name} is a probability or a share: give a number from 0 to 1.",
        )


def require_positive(value: int, name: str, where: str) -> None:
    """A count of at least one."""
    if int(value) != value or value < 1:
        raise CourseError(
            "setting-out-of-range",
            f"{name} = {value} is not a positive whole number.",
            where=where,
            remedy=f"give {name} as an int of at least 1.",
        )


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return "[" + ", ".join(_show(entry) for entry in value) + "]"
    text = str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...") if isinstance(value, str) else text
