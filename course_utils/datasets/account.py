"""The account of a reading: what was read, what was refused and why, and the table that shows it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = 3  # refused rows of each reason that are named


class Refused(Exception):
    """Raised inside this package for one row; it becomes a `Refusal` of the account and never leaves the package."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Refusal:
    """A row that was not taken: where it stands and why. Never what it says."""

    file: str
    row: int
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Report:
    """A table of (what, how much, remark), as text and as HTML."""

    title: str
    lines: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        first = max((len(line[0]) for line in self.lines), default=0)
        second = max((len(line[1]) for line in self.lines), default=0)
        body = [f"  {a:<{first}}  {b:>{second}}  {c}".rstrip() for a, b, c in self.lines]
        return "\n".join([self.title, *body])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th scope='row' style='text-align:left'>{html.escape(a)}</th>"
            f"<td style='text-align:right;white-space:nowrap'>{html.escape(b)}</td>"
            f"<td style='text-align:left'>{html.escape(c)}</td></tr>"
            for a, b, c in self.lines
        )
        return f"<table><caption>{html.escape(self.title)}</caption><tbody>{rows}</tbody></table>"


@dataclass(frozen=True)
class Account:
    """What was read of one split, row by row: read = kept + refused + dropped."""

    source: str
    split: str
    files: tuple[str, ...]
    kept: int
    refused: dict[str, int] = field(default_factory=dict)
    examples: tuple[Refusal, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    revision: str = ""
    stated_alpha: float | None = None
    complete: bool = True

    @property
    def read(self) -> int:
        """Rows that were looked at."""
        return self.kept + sum(self.refused.values()) + sum(self.dropped.values())

    def lines(self) -> list[tuple[str, str, str]]:
        """The lines of the table that tell of the reading."""
        shown = ", ".join(self.files[:3]) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        lines = [("files", f"{len(self.files)}", shown)]
        if self.revision:
            lines.append(("revision", self.revision[:12], "commit on the hub; later loads use the same"))
        lines.append(("rows read", f"{self.read:,}", "" if self.complete else "stopped at the limit"))
        lines += refusal_lines(self.refused, self.examples)
        lines += [
            (f"dropped: {reason}", f"{count:,}", "on request") for reason, count in self.dropped.items()
        ]
        lines += [("damage", "1", text) for text in self.damage]
        lines.append(("rows kept", f"{self.kept:,}", ""))
        return lines


def refusal_lines(
    refused: dict[str, int], examples: tuple[Refusal, ...] | list[Refusal]
) -> list[tuple[str, str, str]]:
    """One line for each reason, most frequent first, with the first rows it happened to."""
    lines = []
    for reason, count in sorted(refused.items(), key=lambda item: -item[1]):
        some = [example for example in examples if example.reason == reason]
        files = sorted({one.file for one in some})
        where = [f"{file}: " if len(files) > 1 else "" for file in files]
        for place, file in enumerate(files):
            mine = [one for one in some if one.file == file]
            where[place] += "row" + ("s " if len(mine) > 1 else " ") + ", ".join(str(one.row) for one in mine)
            details = list(dict.fromkeys(one.detail for one in mine if one.detail))
            where[place] += f" ({'; '.join(details)})" if details else ""
        where = "; ".join(where) + (", …" if count > len(some) else "")
        lines.append((f"refused: {reason}", f"{count:,}", where))
    return lines


class Tally:
    """The account while it is being written."""

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self.examples: list[Refusal] = []
        self.damage: list[str] = []
        self.kept = 0

    @property
    def read(self) -> int:
        """Rows so far."""
        return self.kept + sum(self.refused.values())

    def refuse(self, refusal: Refusal) -> None:
        """Count a row that is not taken."""
        count = self.refused.get(refusal.reason, 0)
        self.refused[refusal.reason] = count + 1
        if count < EXAMPLES:
            self.examples.append(refusal)


def short(path: Path | str) -> str:
    """The name of a file as reports write it."""
    return Path(path).name
