"""Keeping results: one JSON for each run while an experiment is computed, and one for the whole that lessons read.

runs/experiments/<name>/<hash>.json     one run, with the code it came from; not part of the repository
data/results/<name>.json                all runs of the grid, with versions; part of it
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.experiments.experiment import Experiment, Settings, find, key_of
from course_utils.machine import versions
from course_utils.shipped import data_folder


def runs_folder() -> Path:
    """Where single runs are kept: runs/experiments beside `data`, or below the present folder without a clone."""
    root = data_folder().parent
    return (root if (root / "pyproject.toml").exists() else Path.cwd()) / "runs" / "experiments"


def results(name: str, recompute: bool = False, workers: int = 1) -> list[dict[str, Any]]:
    """The runs of an experiment: for each a dict of its settings, its result and its seconds.

    With `recompute` this machine computes them (what it has computed before is not computed again, and nothing that is
    stored is replaced). Otherwise the stored ones are read.
    """
    experiment = find(name)
    if recompute:
        from course_utils.experiments.running import compute

        runs = compute(experiment, workers=workers)
    else:
        runs = read_stored(experiment)["runs"]
    return [{**run["settings"], **run["result"], "seconds": run["seconds"]} for run in runs]


def store(experiment: Experiment, runs: list[dict[str, Any]]) -> Path:
    """Write the results that lessons read."""
    path = stored_path(experiment.name)
    whole = {
        "experiment": experiment.name,
        "about": experiment.about,
        "command": f"course experiments run {experiment.name}",
        "code": experiment.code(),
        "versions": versions(("course-utils", "torch", "transformers", "numpy")),
        "runs": runs,
    }
    _write(path, whole, f"{experiment.name}, all runs")
    return path


def stored_path(name: str) -> Path:
    """The file of an experiment's results."""
    return data_folder() / "results" / f"{name}.json"


def read_stored(experiment: Experiment) -> dict[str, Any]:
    """The stored results; refused if they are not those of this grid."""
    path = stored_path(experiment.name)
    if not path.exists():
        raise CourseError(
            "results-missing",
            f"the results of the experiment {experiment.name!r} are not stored here.",
            where=f"data/results/{path.name}",
            remedy=f"compute them: course experiments run {experiment.name}, or results(..., recompute=True).",
        )
    whole = json.loads(path.read_text(encoding="utf-8"))
    if [key_of(run["settings"]) for run in whole["runs"]] != [key_of(each) for each in experiment.grid]:
        raise CourseError(
            "results-of-another-grid",
            f"the stored results of {experiment.name!r} belong to another grid of settings.",
            where=f"data/results/{path.name}",
            remedy=f"compute them anew: course experiments run {experiment.name}.",
        )
    return whole


def read_run(folder: Path, experiment: Experiment, code: str, settings: Settings) -> dict[str, Any] | None:
    """One run that is there already, from the same code; None otherwise."""
    try:
        run = json.loads(_run_path(folder, experiment, settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {key: run[key] for key in ("settings", "result", "seconds")} if run.get("code") == code else None


def write_run(folder: Path, experiment: Experiment, code: str, run: dict[str, Any]) -> None:
    """Keep one run."""
    where = f"{experiment.name}, {key_of(run['settings'])}"
    _write(_run_path(folder, experiment, run["settings"]), {"code": code, **run}, where)


def _run_path(folder: Path, experiment: Experiment, settings: Settings) -> Path:
    return folder / experiment.name / f"{hashlib.sha256(key_of(settings).encode()).hexdigest()[:16]}.json"


def _write(path: Path, content: dict[str, Any], where: str) -> None:
    """Whole or not at all: written beside its place and renamed."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CourseError(
            "experiment-result",
            f"a result cannot be written as JSON: {error}.",
            where=where,
            remedy="return numbers, words, and lists and dicts of them; say None for a number that is not finite.",
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
