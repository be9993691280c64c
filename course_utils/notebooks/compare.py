"""Numeric-aware comparison of two executions of one notebook.

The words have to be the same; the numbers have to agree within a stated tolerance. The tolerance is relative; a cell states its own
in its header (`# %% tolerance=0.02`), and everything else has to agree to `DEFAULT_TOLERANCE`. Claims are compared by
their verdict and by the tolerance or interval they state themselves, the table of all claims by its verdicts. A cell tagged `nbval-ignore-output` or `nbval-skip` is not compared.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.ledger import MIME as CLAIM
from course_utils.ledger import SYMBOL, VERDICTS

if TYPE_CHECKING:
    from nbformat import NotebookNode

DEFAULT_TOLERANCE = 1e-6
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")
LEDGER = re.compile(rf"(?:[{''.join(SYMBOL.values())}] \S+: (?:{'|'.join(VERDICTS)})\n?)+")
UNCOMPARED = {"nbval-ignore-output", "nbval-skip"}


@dataclass(frozen=True)
class Difference:
    """One place where two executions differ."""

    cell: int
    what: str

    def __str__(self) -> str:
        return f"cell {self.cell}: {self.what}"


def compare_notebooks(stored: NotebookNode, fresh: NotebookNode, tolerance: float = DEFAULT_TOLERANCE) -> list[Difference]:
    """Every place where the outputs of two executions differ by more than the stated tolerances."""
    if len(stored.cells) != len(fresh.cells):
        return [Difference(0, f"{len(stored.cells)} cells are stored, {len(fresh.cells)} were executed")]
    differences: list[Difference] = []
    for index, (before, after) in enumerate(zip(stored.cells, fresh.cells, strict=True), 1):
        if before.source != after.source:
            differences.append(Difference(index, "the cells are not the same"))
        elif before.cell_type == "code" and not UNCOMPARED & set(before.metadata.get("tags", [])):
            allowed = float(before.metadata.get("tolerance", tolerance))
            differences += [Difference(index, what) for what in _compare_cells(before, after, allowed)]
    return differences


def _compare_cells(before: Any, after: Any, tolerance: float) -> list[str]:
    one, other = _parts(before), _parts(after)
    if sorted(one) != sorted(other):
        return [f"it showed {', '.join(sorted(one)) or 'nothing'}; now {', '.join(sorted(other)) or 'nothing'}"]
    found: list[str] = []
    for kind, texts in one.items():
        if len(texts) != len(other[kind]):
            found.append(f"{len(texts)} outputs of {kind} were stored, {len(other[kind])} came now")
            continue
        for text, again in zip(texts, other[kind], strict=True):
            found += _compare_claims(text, again) if kind == CLAIM else compare_text(text, again, tolerance)
    return found


def _parts(cell: Any) -> dict[str, list[Any]]:
    # A claim's row is judged by its own numbers, not by the text that shows them; a picture only has to be there.
    parts: dict[str, list[Any]] = {}
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.setdefault(output.name, [""])[0] += output.text
            continue
        if output.output_type == "error":
            parts.setdefault("error", []).append(f"{output.ename}: {output.evalue}")
            continue
        data = output.get("data", {})
        for kind, value in data.items():
            if CLAIM in data and kind != CLAIM:
                continue
            if kind == "text/plain" and not "".join(value).strip():
                continue  # a progress line that has ended: it is shown only where the work takes long enough
            if kind == "text/html" and LEDGER.fullmatch(str(data.get("text/plain", ""))):
                continue  # the table of all claims: its text has the verdicts
            if kind == "application/vnd.jupyter.widget-view+json" or "application/vnd.jupyter.widget-view+json" in data:
                continue
            parts.setdefault(kind, []).append("" if kind.startswith("image/") else value)
    return parts


def compare_text(stored: str, fresh: str, tolerance: float) -> list[str]:
    """How two texts differ: in their words, or in a number by more than the relative tolerance."""
    stored, fresh = str(stored).replace("−", "-"), str(fresh).replace("−", "-")
    words, again = NUMBER.split(stored), NUMBER.split(fresh)
    if [" ".join(word.split()) for word in words] != [" ".join(word.split()) for word in again]:
        return [f"the words differ: {_excerpt(stored, fresh)}"]
    found = []
    for one, other in zip(NUMBER.findall(stored), NUMBER.findall(fresh), strict=True):
        if not math.isclose(float(one), float(other), rel_tol=tolerance, abs_tol=tolerance * 1e-3):
            found.append(f"{one} was stored, {other} came now (tolerance {tolerance:g})")
    return found


def _compare_claims(stored: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    name = stored.get("id", "?")
    if stored.get("id") != fresh.get("id") or stored.get("statement") != fresh.get("statement"):
        return [f"claim {name} became {fresh.get('id')}: {fresh.get('statement')}"]
    if stored["verdict"] != fresh["verdict"]:
        return [f"claim {name}: {stored['verdict']} was stored, {fresh['verdict']} came now"]
    interval = stored.get("interval")
    slack = (interval[1] - interval[0]) / 2 if interval else stored.get("tolerance") or 0.0
    slack = max(slack, 10.0 ** -stored.get("digits", 4) * abs(stored["measured"]), 1e-12)
    if abs(stored["measured"] - fresh["measured"]) > slack:
        return [f"claim {name}: {stored['measured']} was stored, {fresh['measured']} came now (allowed ± {slack:.3g})"]
    return []


def _excerpt(stored: str, fresh: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(stored, fresh, strict=False)) if a != b), min(len(stored), len(fresh)))
    start = max(0, at - 20)
    return f"{stored[start : at + 30]!r} against {fresh[start : at + 30]!r}"
