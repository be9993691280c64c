"""The other commands: the ledger, the doctor, the versions for classes. Each imports what it needs when it
runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from course_utils.cli.common import Numbers, console, shorten
from course_utils.errors import CourseError

VERDICT_STYLE = {
    "holds": "green",
    "holds with a correction": "yellow",
    "undecided": "bright_black",
    "does not hold": "red",
}


def claims() -> None:
    """The ledger: every claim of the course, what was expected and measured, and whether it holds."""
    import json

    from course_utils.ledger import SYMBOL, count_in_words
    from course_utils.notebooks.source import course_root

    path = course_root() / "data" / "results" / "claims.json"
    if not path.exists():
        raise CourseError("no-claims", "No claims have been collected yet.", remedy="run: course build")
    rows = json.loads(path.read_text(encoding="utf-8"))
    table = Table("Verdict", "Claim", "Expected", "Measured", "Who says so", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        interval = f" [{row['interval'][0]:g}, {row['interval'][1]:g}]" if row.get("interval") else ""
        corrected = f" → {row['corrected']:g}" if row.get("corrected") is not None else ""
        sign = {"at least": "≥ ", "at most": "≤ "}.get(row["relation"], "")
        table.add_row(
            Text(f"{SYMBOL[row['verdict']]} {row['verdict']}", style=VERDICT_STYLE[row["verdict"]]),
            Text(f"{row['id']}  {row['statement']}"),
            f"{sign}{row['expected']:g}{corrected}",
            Text(f"{row['measured']:g}{interval}"),
            Text(row["source"]),
        )
    screen = console()
    screen.print(table)
    counts = count_in_words(row["verdict"] for row in rows)
    screen.print(f"\n{len(rows)} claims: {counts}.", highlight=False)


def doctor() -> None:
    """What this machine can do for the course, and what to do about what it cannot."""
    from course_utils.doctor import STYLE, SYMBOL, summary

    diagnosis = summary()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in diagnosis.rows:
        value = Text(row.value)
        if row.remedy:
            value.append(f"\n→ {row.remedy}", style="dim")
        table.add_row(Text(f"{SYMBOL[row.status]} {row.status}", style=STYLE[row.status]), row.subject, value)
    console().print(table)
    raise typer.Exit(0 if diagnosis.ok else 1)


def labs_build(
    numbers: Numbers = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write them.")] = Path("labs"),
) -> None:
    """Write the student and the instructor version of lessons (all, if none are named)."""
    from course_utils.labs.build import build_labs
    from course_utils.notebooks.processes import require
    from course_utils.notebooks.source import course_root

    require(("nbformat", "jupytext"), "lab")
    written = build_labs(course_root(), out, numbers or None)
    console().print(f"{len(written)} notebooks in {shorten(out)}", highlight=False, soft_wrap=True)


def labs_mutants(
    number: Annotated[str | None, typer.Argument(metavar="[NN]", help="One lesson.")] = None,
) -> None:
    """Hand every known mistake to its own check: each has to be caught, and told what it is."""
    from course_utils.labs.checks import mutation_table

    table, missed = Table("Exercise", "Mistake", "Caught", "Told its own mistake", box=None), 0
    for row in mutation_table(number):
        good = bool(row["caught"] and row["own_message"])
        missed += not good
        marks = [
            Text("✓", style="green") if row[key] else Text("✗", style="red")
            for key in ("caught", "own_message")
        ]
        table.add_row(str(row["exercise"]), Text(str(row["mutant"])), *marks)
    screen = console()
    screen.print(table)
    screen.print(
        f"{len(table.rows)} mistakes, {missed} missed.", style="red" if missed else "green", highlight=False
    )
    raise typer.Exit(1 if missed else 0)


def experiments_list() -> None:
    """The experiments: how many runs each has, how long they took, and whether they are stored."""
    import json

    from course_utils.experiments import all_experiments
    from course_utils.experiments.storage import stored_path

    table = Table("Experiment", "Runs", "Stored", "What it measures", box=None, padding=(0, 2, 0, 0))
    for experiment in all_experiments():
        path = stored_path(experiment.name)
        stored = "no"
        if path.exists():
            whole = json.loads(path.read_text(encoding="utf-8"))
            seconds = sum(run["seconds"] for run in whole["runs"])
            same = whole["code"] == experiment.code()
            stored = f"{seconds:,.0f} s" if same else f"{seconds:,.0f} s, by other code"
        table.add_row(experiment.name, str(len(experiment.grid)), stored, Text(experiment.about))
    console().print(table)


def experiments_run(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Experiments, as `list` names them.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes at the same time, one thread each.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Compute on the workers of this Dask scheduler instead."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE...", help="Only the runs with these settings.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Compute here what is there already, and show it beside the stored."),
    ] = False,
) -> None:
    """Compute experiments and store their results under data/results. A run that is there is not computed again.

    With --only the rest of the grid is left for later, and results are stored when every run is there.
    With --again nothing is stored.
    """
    from course_utils.experiments import compute, find, store
    from course_utils.experiments.experiment import matching
    from course_utils.experiments.rerun import computed_again
    from course_utils.experiments.running import kept_runs

    wanted = _conditions([*(only or []), *(name for name in names if "=" in name)])
    for experiment in [find(name) for name in names if "=" not in name]:
        if again:
            for settings in matching(experiment, wanted):
                console().print(
                    repr(computed_again(experiment.name, settings)), markup=False, highlight=False
                )
            continue
        runs = compute(experiment, workers=workers, cluster=cluster, only=wanted)
        whole = runs if not wanted else kept_runs(experiment)
        seconds = sum(run["seconds"] for run in runs)
        kept = f"{len(experiment.grid)} in the grid, not all of them there: nothing stored yet"
        console().print(
            f"{experiment.name}: {len(runs)} runs, {seconds:,.0f} s of computing, "
            + (kept if whole is None else shorten(store(experiment, whole)))
        )


def _conditions(texts: list[str]) -> dict[str, str]:
    """ "method=dpo", "seed=0" or "method=dpo,seed=0" as names and values."""
    found: dict[str, str] = {}
    for text in [part for each in texts for part in each.split(",")]:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise CourseError(
                "experiment-no-such-run",
                f"{text!r} is not of the form KEY=VALUE.",
                where="--only",
                remedy="write, for example, --only method=dpo seed=0.",
            )
        found[name.strip()] = value.strip()
    return found
