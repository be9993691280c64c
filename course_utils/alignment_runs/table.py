"""The table of results: built from raw JSON, and only from runs on real models. While there is none it says how.

One row for each model, data set, line of stages and number of steps. With several seeds an interval is over seeds
(Student's, of the runs' estimates); with one it is over held-out rows, and the table says which.
"""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from course_utils.alignment_runs import records
from course_utils.alignment_runs.settings import RunSettings
from course_utils.errors import CourseError
from course_utils.shipped import data_folder
from course_utils.statistics import Interval, mean_interval

NUMBERS = ("reward_accuracy", "ranking_accuracy", "chosen_drift", "rejected_drift")
HEAD = ("model", "data", "stages", "updates", "seeds", *(name.replace("_", " ") for name in NUMBERS), "card")


def default_folder() -> Path:
    """Where stored runs lie."""
    return data_folder() / "results" / "gpu_runs"


@dataclass(frozen=True, eq=False, repr=False)
class ResultsTable:
    """Rows of cells under HEAD; none while nothing was run on a real model."""

    rows: tuple[tuple[str, ...], ...]
    runs: tuple[dict[str, Any], ...]
    passed_over: int
    command: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def empty(self) -> str:
        """What to say, and what to do, while there is no row."""
        return (
            "No real model has been trained yet: nothing was measured, so nothing is shown.\n"
            f"To fill this table, on a machine with a card:\n    {self.command} --store"
        )

    @property
    def _foot(self) -> str:
        return "Intervals: 95 %, over seeds where there are several (s), else over held-out rows (r)." + (
            f" {self.passed_over} runs that prove the code only are left out." if self.passed_over else ""
        )

    def __str__(self) -> str:
        if not self.rows:
            return self.empty
        widths = [max(map(len, column)) for column in zip(HEAD, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in (HEAD, *self.rows)
        ]
        return "\n".join([*lines, self._foot])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<pre>{html.escape(self.empty)}</pre>"
        head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{html.escape(self._foot)}</p>"


def results_table(folder: str | Path | None = None, settings: RunSettings | None = None) -> ResultsTable:
    """The stored runs, grouped. `settings` is the run that the empty table tells how to make."""
    place = default_folder() if folder is None else Path(folder)
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob("*.json"))]
    real = [run for run in runs if run.get("proves") == "result"]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in real:
        groups.setdefault(_group(run), []).append(run)
    rows = tuple(_row(group, members) for group, members in sorted(groups.items()))
    command = (settings or RunSettings(micro_batch=4)).command
    return ResultsTable(rows, tuple(real), len(runs) - len(real), command)


def store(settings: RunSettings, folder: str | Path | None = None) -> Path:
    """Copy the result of a finished run to where the table looks. One that proves the code only is refused."""
    source = settings.folder / records.RESULT
    found = records.read(source)
    if found is None or found["proves"] != "result":
        raise CourseError(
            "run-not-storable",
            f"{settings.folder} holds no finished run."
            if found is None
            else "the run proves the code: its model or its data are stand-ins.",
            where="store",
            remedy="finish the run first; results are those of a real model on real data.",
        )
    place = default_folder() if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, place / f"{replace(settings, out='').folder.name}.json"))


def _group(run: dict[str, Any]) -> tuple[str, ...]:
    settings = run["settings"]
    data, steps = Path(settings["data"]).name, str(settings["steps"])
    options = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
    stages = " → ".join(run["stages"]) + (f" ({options})" if options else "")
    return Path(run["base"]).name, data, stages, steps


def _row(group: tuple[str, ...], members: list[dict[str, Any]]) -> tuple[str, ...]:
    seeds = sorted({run["settings"]["seed"] for run in members})
    if len(seeds) < len(members):
        raise CourseError(
            "run-stored-twice",
            f"{', '.join(group)}: {len(members)} runs, and {len(seeds)} seeds.",
            where="results_table",
            remedy="keep one file for each seed.",
        )
    cells = [_cell(name, members) for name in NUMBERS]
    return (*group, str(len(seeds)), *cells, ", ".join(sorted({run["card"] for run in members})))


def _cell(name: str, members: list[dict[str, Any]]) -> str:
    found = [run["evaluation"]["after"].get(name) for run in members]
    if any(value is None for value in found):
        return "–"
    if len(found) == 1:
        estimate, low, high, count = found[0]
        over, interval = "r", Interval(estimate, low, high, 0.95, count)
    else:
        over, interval = "s", mean_interval([value[0] for value in found])
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}] {over}"
