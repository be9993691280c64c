"""The history of a run: one row for each step, as a table that prints itself, draws itself and can be saved.

Row `step` describes update number `step`: `loss`, `gradient_norm` (before clipping), `learning_rate` and the drifts
belong to the batch it was computed from, before the weights moved; evaluation columns to the weights after it. Row 0,
where there is one, holds only the evaluation of the untrained policy. `seconds` is the time spent on updates so far.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import Interval

FIRST = ("step", "loss", "gradient_norm", "learning_rate", "chosen_drift", "rejected_drift", "seconds")
SHOWN_FIRST, SHOWN_LAST = 3, 5
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class History:
    """Rows of numbers by column. A number that a row does not have is NaN in `column`."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = [dict(row) for row in rows or []]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. An interval becomes three columns: its estimate, `..._low` and `..._high`."""
        self.rows.append(_numbers(row))

    def add_to_last(self, values: Mapping[str, Any]) -> None:
        """Add columns to the last row."""
        self.rows[-1].update(_numbers(values))

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]

    def column(self, name: str) -> np.ndarray:
        """A column, one entry for each row."""
        if name not in self.columns:
            raise CourseError(
                "no-such-column",
                f"the history has no column {name!r}.",
                where="History.column(name)",
                remedy=f"its columns are {', '.join(self.columns) or 'none: it has no rows'}.",
            )
        return np.array([row.get(name, math.nan) for row in self.rows], dtype=float)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column, where it has a value: what a plot needs."""
        values = self.column(name)
        there = np.array([name in row for row in self.rows])
        return self.column("step")[there], values[there]

    def last(self, name: str) -> float:
        """The last value of a column."""
        return float(self.curve(name)[1][-1])

    def without(self, *names: str) -> History:
        """The same rows without some columns: `without("seconds")` is what two equal runs share."""
        return History([{k: v for k, v in row.items() if k not in names} for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        # As text, because NaN differs from itself and a float is written so that it can be read back exactly.
        return self._text() == other._text()

    __hash__ = None  # type: ignore[assignment]

    def save(self, path: str | Path) -> None:
        """Write the rows as JSON."""
        Path(path).write_text(self._text() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        return cls.from_plain(json.loads(Path(path).read_text(encoding="utf-8")))

    def plain(self) -> list[dict[str, Any]]:
        """The rows as JSON can hold them: numbers that are not finite become words."""
        return [{k: v if math.isfinite(v) else str(float(v)) for k, v in row.items()} for row in self.rows]

    @classmethod
    def from_plain(cls, rows: list[dict[str, Any]]) -> Self:
        """The rows again."""
        return cls(
            [{k: _WORDS.get(v, v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
        )

    def _text(self) -> str:
        return json.dumps(self.plain(), indent=0, allow_nan=False)

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)] if table else []
        return "\n".join(
            "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in table
        )

    def _repr_html_(self) -> str:
        head, *rows = self._table() or [["no rows"]]
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"

    def _table(self) -> list[list[str]]:
        """Names, and the first and last rows, as text."""
        names, rows = self.columns, self.rows
        if not rows:
            return []
        short = len(rows) <= SHOWN_FIRST + SHOWN_LAST + 1
        picked = rows if short else [*rows[:SHOWN_FIRST], None, *rows[-SHOWN_LAST:]]
        return [
            names,
            *(["..."] * len(names) if row is None else [_show(row.get(n)) for n in names] for row in picked),
        ]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Interval):
            found |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, int) and not isinstance(value, bool):
            found[name] = value
        else:
            found[name] = float(value)
    return found


def _show(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
