"""The ledger: a claim, who made it, what was expected, what this machine measured, and whether it holds.

A row's verdict is computed from its numbers; nobody types it.

- *holds*: the measured value agrees with what was claimed.
- *holds with a correction*: it does not agree with the claim as published, and it does agree with the corrected value, which
  the row states together with the correction in words.
- *undecided*: the claim says "at least" or "at most", and the interval lies on both sides of the expected value: these
  measurements cannot tell. More seeds might.
- *does not hold*: none of these.

A value agrees with an expected one when their difference is within `tolerance`, or, for a stochastic measurement, when its
interval contains the expected value. For a claim of the form "at least" or "at most" the whole interval has to lie on that side.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from course_utils.errors import CourseError

MIME = "application/vnd.course.claim+json"
NOISE = 1e-6  # an identity is stated with a tolerance of at most this; what is measured beyond it is rounding
VERDICTS = ("holds", "holds with a correction", "undecided", "does not hold")
HOLDING = VERDICTS[:2]
SYMBOL = {"holds": "✓", "holds with a correction": "≈", "undecided": "○", "does not hold": "✗"}
COLOUR = {
    "holds": "#00714d",
    "holds with a correction": "#7a5200",
    "undecided": "#4a4a4a",
    "does not hold": "#a3341f",
}
Relation = Literal["equals", "at least", "at most"]


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    id: str
    source: str
    statement: str
    expected: float
    measured: float
    verdict: str
    relation: Relation = "equals"
    interval: tuple[float, float] | None = None
    tolerance: float | None = None
    corrected: float | None = None
    correction: str | None = None
    digits: int = 4

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": rows_html([asdict(self)]), MIME: asdict(self)}

    def __str__(self) -> str:
        return (
            f"{SYMBOL[self.verdict]} {self.id}: {self.statement} [{self.source}]\n"
            f"  expected {_expected(asdict(self))}, measured {_measured(asdict(self))}: {self.verdict}"
            + (f" ({self.correction})" if self.correction else "")
        )


_rows: dict[str, Claim] = {}


def claim(id: str, source: str, statement: str, expected: float, measured: float, *args: Any, **settings: Any) -> None:
    """Record a claim and display its row. The arguments are those of `judge`."""
    row = judge(id, source, statement, expected, measured, *args, **settings)
    _rows[row.id] = row
    _display(row)


def judge(
    id: str,
    source: str,
    statement: str,
    expected: float,
    measured: float,
    interval: tuple[float, float] | Any | None = None,
    tolerance: float | None = None,
    *,
    relation: Relation = "equals",
    corrected: float | None = None,
    correction: str | None = None,
    digits: int = 4,
) -> Claim:
    """The row of a claim with its verdict; nothing is recorded or displayed.

    `id` is "NN.word" (the lesson's number first). `source` says who claims it: a paper with its equation, a theorem, or "this course".
    `interval` is a pair (low, high), or anything with `.low` and `.high`. `digits` is the number of significant digits shown and stored.
    """
    if interval is not None and hasattr(interval, "low"):
        interval = (float(interval.low), float(interval.high))
    _refuse(id, expected, measured, interval, tolerance, relation, corrected, correction)
    if tolerance is None and interval is None and relation == "equals":
        tolerance = 1e-6

    def agrees(value: float) -> bool:
        low, high = interval if interval is not None else (measured, measured)
        slack = tolerance or 0.0
        if relation == "at least":
            return low >= value - slack
        if relation == "at most":
            return high <= value + slack
        return low - slack <= value <= high + slack

    if agrees(expected):
        verdict = "holds"
    elif corrected is not None and agrees(corrected):
        verdict = "holds with a correction"
    elif relation != "equals" and interval is not None and interval[0] <= expected <= interval[1]:
        verdict = "undecided"
    else:
        verdict = "does not hold"
    return Claim(
        id=id,
        source=source,
        statement=statement,
        expected=_round(expected, digits),
        measured=_round(_without_noise(measured, tolerance if interval is None else None), digits),
        verdict=verdict,
        relation=relation,
        interval=None if interval is None else (_round(interval[0], digits), _round(interval[1], digits)),
        tolerance=None if tolerance is None else float(tolerance),
        corrected=None if corrected is None else _round(corrected, digits),
        correction=correction,
        digits=digits,
    )


def _display(row: Claim) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(row)
        return
    display(row) if get_ipython() else print(row)


def _refuse(
    id: str,
    expected: float,
    measured: float,
    interval: tuple[float, float] | None,
    tolerance: float | None,
    relation: str,
    corrected: float | None,
    correction: str | None,
) -> None:
    problem = ""
    if len(id) < 4 or not id[:2].isdigit() or id[2] != ".":
        problem = f'the id {id!r} does not look like "01.slope"'
    elif relation not in ("equals", "at least", "at most"):
        problem = f"relation {relation!r} is not one of equals, at least, at most"
    elif any(value != value for value in (float(expected), float(measured), *(interval or ()))):
        problem = "a value is not a number (NaN)"
    elif interval is not None and not interval[0] <= interval[1]:
        problem = f"the interval {interval} runs backwards"
    elif tolerance is not None and not tolerance >= 0:
        problem = f"the tolerance {tolerance} is negative"
    elif (corrected is None) != (correction is None):
        problem = "a correction needs both its value (corrected=) and its words (correction=)"
    if problem:
        raise CourseError("claim", f"This claim cannot be recorded: {problem}.", where=f"claim {id!r}", remedy="mend the call.")


class Rows(list):
    """Rows of the ledger, shown as one table."""

    def _repr_html_(self) -> str:
        return rows_html(self)

    def __repr__(self) -> str:
        return "\n".join(f"{SYMBOL[row['verdict']]} {row['id']}: {row['verdict']}" for row in self)


def rows(lesson: str | None = None) -> Rows:
    """Every row recorded so far in this process (of one lesson, if its number is given), as one table."""
    return Rows(asdict(row) for row in _rows.values() if lesson is None or row.id.startswith(f"{lesson}."))


def clear() -> None:
    """Forget the rows recorded so far."""
    _rows.clear()


def collect(notebook: Any) -> list[dict[str, Any]]:
    """The rows stored in an executed notebook's outputs, in order."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get(MIME)
            if data is not None:
                found.append(json.loads(data) if isinstance(data, str) else dict(data))
    return found


def count_in_words(verdicts: Iterable[str]) -> str:
    """How often each verdict occurs: "89 hold, 1 is undecided, 28 do not hold"."""
    count = Counter(verdicts)
    one = {**dict(zip(VERDICTS, VERDICTS, strict=True)), "undecided": "is undecided"}
    many = dict(zip(VERDICTS, ("hold", "hold with a correction", "are undecided", "do not hold"), strict=True))
    return ", ".join(f"{count[v]} {(one if count[v] == 1 else many)[v]}" for v in VERDICTS if count[v])


def rows_html(rows: list[dict[str, Any]]) -> str:
    """The rows as an HTML table. A symbol and a word carry the verdict; the colour only repeats it."""
    body = "".join(
        "<tr style='vertical-align:top'>"
        f"<td style='text-align:left;color:{COLOUR[row['verdict']]}'>"
        f"<b>{SYMBOL[row['verdict']]} {row['verdict']}</b></td>"
        f"<td style='text-align:left'>{html.escape(row['statement'])}"
        + (f"<br><i>Correction: {html.escape(row['correction'])}</i>" if row.get("correction") else "")
        + f"</td><td style='text-align:left;white-space:nowrap'>{_expected(row)}</td>"
        f"<td style='text-align:left'>{_measured(row)}</td>"
        f"<td style='text-align:left'>{html.escape(row['source'])}</td></tr>"
        for row in rows
    )
    # Fixed widths, so that tables below one another line up.
    heads = {"verdict": 15, "claim": 40, "expected": 13, "measured": 17, "who says so": 15}
    head = "".join(f"<th scope='col' style='text-align:left;width:{width}%'>{name}</th>" for name, width in heads.items())
    return f"<table style='width:100%;table-layout:fixed'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def rows_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| claim | expected | measured | verdict | who says so |", "|---|--:|--:|---|---|"]
    for row in rows:
        statement = row["statement"] + (f" *Correction: {row['correction']}*" if row.get("correction") else "")
        verdict = f"{SYMBOL[row['verdict']]} {row['verdict']}"
        cells = (statement, _expected(row), _measured(row), verdict, row["source"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _round(value: float, digits: int) -> float:
    return float(f"{float(value):.{digits}g}")


def _without_noise(measured: float, tolerance: float | None) -> float:
    # Rounding noise far below a claim's tolerance differs between machines and means nothing: 3e-17 ± 1e-10 is recorded as 0.
    return round(measured / tolerance) * tolerance if tolerance and tolerance <= NOISE else measured


def _expected(row: dict[str, Any]) -> str:
    sign = {"equals": "", "at least": "≥ ", "at most": "≤ "}[row["relation"]]
    corrected = "" if row.get("corrected") is None else f" → {row['corrected']:g}"
    tolerance = row.get("tolerance")
    slack = f" ± {tolerance:g}".replace("e-0", "e-") if row["relation"] == "equals" and tolerance else ""
    return f"{sign}{row['expected']:.10g}{corrected}{slack}"


def _measured(row: dict[str, Any]) -> str:
    interval = row.get("interval")
    return f"{row['measured']:.10g}" + (f" [{interval[0]:.10g}, {interval[1]:.10g}]" if interval else "")
