"""The order of the data: which rows of the feedback make up the batch of a step.

The answer is a function of the seed and the step alone. Rows come in random order, all of them once before any comes
again, and each pass has an order of its own. Batches are cut from this endless list, so each has the full size and
one may span the end of a pass. For unpaired feedback the two classes are two such lists, and each batch takes from
both in proportion, to the nearest row: no batch is left with one class by bad luck.
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.training.settings import derived_seed


class DataOrder:
    """Batches of row numbers. With `preferred`, both classes are in every batch (if `both_classes` asks for it)."""

    def __init__(
        self,
        rows: int,
        batch_size: int | None,
        seed: int,
        preferred: Tensor | None = None,
        both_classes: bool = True,
    ) -> None:
        self.rows = rows
        self.size = rows if batch_size is None else min(batch_size, rows)
        self._streams = [_Stream(torch.arange(rows), derived_seed(seed, "order", "all"))]
        if preferred is None:
            return
        classes = [preferred.nonzero().flatten(), (~preferred).nonzero().flatten()]
        if both_classes and (min(map(len, classes)) == 0 or self.size < 2):
            raise CourseError(
                "one-class-batch",
                f"the feedback has {len(classes[0])} preferred and {len(classes[1])} non-preferred rows, and a batch "
                f"has {self.size}.",
                where="train(...)",
                remedy="give rows of both classes and a batch of at least two; for an objective whose loss is one "
                "plain mean, set reduction='pooled'.",
            )
        if min(map(len, classes)) == 0:
            return
        self._streams = [
            _Stream(members, derived_seed(seed, "order", name))
            for members, name in zip(classes, ("preferred", "rejected"), strict=True)
        ]
        self._count, self._both = len(classes[0]), both_classes

    def batch(self, step: int) -> Tensor | None:
        """The rows of this step's batch; None means all rows, in their own order."""
        if self.size == self.rows:
            return None
        start, stop = step * self.size, (step + 1) * self.size
        if len(self._streams) == 1:
            return self._streams[0].take(start, stop)
        first, last = self._preferred_before(start), self._preferred_before(stop)
        parts = self._streams[0].take(first, last), self._streams[1].take(start - first, stop - last)
        return torch.cat(parts)

    def _preferred_before(self, position: int) -> int:
        """How many of the first `position` rows drawn are preferred: their share, rounded to the nearest row."""
        one_each = position // self.size
        share = (2 * position * self._count + self.rows) // (2 * self.rows)
        if not self._both:
            return share
        # Where a class is rarer than one in a batch, every batch has one of it.
        if self._count < self.rows / self.size:
            return one_each
        if self.rows - self._count < self.rows / self.size:
            return position - one_each
        return share


class _Stream:
    """An endless list: these rows in random order, then again in another."""

    def __init__(self, rows: Tensor, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._kept: dict[int, Tensor] = {}

    def take(self, start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            turn, place = divmod(start, len(self._rows))
            count = min(stop - start, len(self._rows) - place)
            parts.append(self._pass(turn)[place : place + count])
            start += count
        return torch.cat(parts) if parts else self._rows[:0]

    def _pass(self, turn: int) -> Tensor:
        if turn not in self._kept:
            generator = torch.Generator().manual_seed(derived_seed(self._seed, turn))
            self._kept = {turn: self._rows[torch.randperm(len(self._rows), generator=generator)]}
        return self._kept[turn]
