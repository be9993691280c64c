"""The commands that execute, check and store lessons. Each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from course_utils.cli.common import Numbers, choose, console, shorten, stored


def list_lessons() -> None:
    """Every lesson: its world, what it needs, and whether its stored notebook is up to date."""
    from course_utils.notebooks.source import lessons

    table = Table("", "Lesson", "World", "GPU", "Seconds", "Memory", "Exercises", "Stored notebook", box=None)
    for column in (4, 5, 6):
        table.columns[column].justify = "right"
    for lesson in lessons():
        condition, course = stored(lesson)
        style = {"up to date": "green"}.get(condition, "yellow")
        table.add_row(
            lesson.number,
            lesson.title,
            lesson.world,
            lesson.gpu,
            f"{course['seconds']:.0f} s" if "seconds" in course else "",
            f"{course['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in course else "",
            str(lesson.source.read_text(encoding="utf-8").count('part="task"') or ""),
            Text(condition, style=style),
        )
    out = console()
    out.print(table if table.rows else "There are no lessons in notebooks/src yet.")


def run(
    numbers: Numbers = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Lessons side by side.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Run unchanged lessons too.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: runs/course.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one lesson may take; 0 for any.")] = 1800.0,
) -> None:
    """Run lessons from top to bottom (all CPU lessons, if none are named) and write a report.

    A lesson that ran before and has not changed is kept; so a second run is quick, and an interrupted one
    goes on.
    """
    from course_utils.ledger import count_in_words
    from course_utils.notebooks.parameters import parse_parameters
    from course_utils.notebooks.progress import Progress, duration
    from course_utils.notebooks.runner import run_lessons
    from course_utils.notebooks.source import course_root

    chosen, screen = choose(numbers), console()
    folder = out or course_root() / "runs" / "course"
    try:
        with Progress(chosen, screen, jobs) as progress:
            done = run_lessons(
                chosen,
                folder,
                parse_parameters(parameter or []),
                jobs,
                again=again,
                on_event=progress,
                timeout=timeout or None,
            )
    except KeyboardInterrupt:
        screen.print("Stopped; no kernel is left running. The same command goes on from here.")
        raise typer.Exit(130) from None
    bad = [record for record in done.records if not record.ok]
    good = len(done.records) - len(bad)
    claims = [claim for record in done.records for claim in record.claims]
    text = f"{good} of {len(done.records)} lessons ran to the end, {duration(done.seconds)}"
    text += f"; of {len(claims)} claims, {count_in_words(claim['verdict'] for claim in claims)}" if claims else ""
    screen.print(f"\n{text}.", style="red" if bad else "green", highlight=False)
    screen.print(f"The report: {shorten(done.report)}", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if bad else 0)


def check(numbers: Numbers = None) -> None:
    """Check that stored lessons keep the contract (all, if none are named). Nothing is executed."""
    from course_utils.notebooks.contract import check_lesson
    from course_utils.notebooks.processes import require
    from course_utils.notebooks.source import select

    require(("nbformat", "jupytext"), "lab")
    screen, broken, count = console(), 0, 0
    chosen = select(numbers or [])
    for lesson in chosen:
        problems = check_lesson(lesson)
        broken, count = broken + bool(problems), count + len(problems)
        for problem in problems:
            place = lesson.name if problem.cell is None else f"{lesson.name}, cell {problem.cell}"
            screen.print(f"[red]✗[/] [bold]{escape(place)}[/]: {escape(problem.what)}", highlight=False)
            screen.print(f"    → {escape(problem.remedy)}", highlight=False)
    if count:
        screen.print(
            f"\n{count} problems in {broken} of {len(chosen)} lessons.", style="red", highlight=False
        )
        raise typer.Exit(1)
    screen.print(f"[green]✓[/] {len(chosen)} lessons keep the contract.", highlight=False)


def build(
    numbers: Numbers = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only lessons whose source has changed.")] = False,
) -> None:
    """Execute sources and store the notebooks that readers open (all CPU lessons, if none are named)."""
    from course_utils.notebooks.build import build as build_lesson
    from course_utils.notebooks.build import collect_claims
    from course_utils.notebooks.execute import NEEDED
    from course_utils.notebooks.processes import require
    from course_utils.notebooks.readme import update_readme

    require((*NEEDED, "jupytext"), "lab")
    screen, failed = console(), 0
    for lesson in choose(numbers):
        if stale and stored(lesson)[0] == "up to date":
            continue
        with screen.status(lesson.name) as status:

            def on_cell(event: Any, name: str = lesson.name, status: Any = status) -> None:
                if event.kind == "started":
                    status.update(f"{name}, cell {event.number}/{event.of}")

            result = build_lesson(lesson, on_cell=on_cell)
        if result.written:
            facts = (
                f"{result.run.seconds:6.1f} s  {result.run.peak_memory_mb:6.0f} MB  {result.claims} claims"
            )
            screen.print(f"[green]✓[/] {lesson.name:<40} {facts}", highlight=False)
            continue
        failed += 1
        cell = result.run.failed
        screen.print(
            f"[red]✗[/] {lesson.name}: {result.run.status} in cell {cell.index + 1}", highlight=False
        )
        screen.print(Panel(Text(f"{cell.source}\n\n{cell.traceback or cell.message}"), border_style="red"))
    rows = collect_claims()
    screen.print(f"{len(rows)} claims in data/results/claims.json", highlight=False)
    if update_readme():
        screen.print("README.md: tables made anew", highlight=False)
    raise typer.Exit(1 if failed else 0)


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", exists=True, help="A notebook, or a folder of them.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B", exists=True, help="The same, executed again.")],
) -> None:
    """Compare the outputs of two executions: words exactly, numbers within their stated tolerances."""
    import nbformat

    from course_utils.notebooks.compare import compare_notebooks

    screen, found = console(), 0
    pairs = [(before, after)]
    if before.is_dir() and after.is_dir():
        pairs = [
            (path, after / path.name)
            for path in sorted(before.glob("*.ipynb"))
            if (after / path.name).exists()
        ]
    for one, other in pairs:
        differences = compare_notebooks(*(nbformat.read(path, as_version=4) for path in (one, other)))
        found += len(differences)
        for difference in differences:
            screen.print(f"[red]✗[/] {one.stem}, {escape(str(difference))}", highlight=False)
    screen.print(f"{len(pairs)} notebooks compared, {found} differences.", style="red" if found else "green")
    raise typer.Exit(1 if found else 0)
