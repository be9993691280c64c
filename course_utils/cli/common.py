"""What the commands share: the screen, the choice of lessons, paths as people read them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from course_utils.notebooks.source import Lesson

Numbers = Annotated[list[str] | None, typer.Argument(metavar="NN", help="Lessons, by number or name.")]


def console() -> Console:
    """Where output goes. In a file or a pipe, lines are long enough for a table."""
    return Console(width=None if sys.stdout.isatty() else 130)


def choose(numbers: list[str] | None) -> list[Lesson]:
    """The lessons with these numbers; without any, those of the CPU course."""
    from course_utils.notebooks.source import select

    chosen = select(numbers or [])
    if not numbers:
        chosen = [lesson for lesson in chosen if lesson.on_cpu]
    if not chosen:
        raise CourseError(
            "no-lessons", "There are no lessons here yet.", where="notebooks/src", remedy="write one."
        )
    return chosen


def stored(lesson: Lesson) -> tuple[str, dict[str, Any]]:
    """The condition of a lesson's stored notebook, and what is stamped on it."""
    import json

    from course_utils.notebooks.source import source_hash

    try:
        course = json.loads(lesson.notebook.read_text(encoding="utf-8"))["metadata"]["course"]
    except FileNotFoundError:
        return "missing", {}
    except (ValueError, KeyError):
        return "not built by the course", {}
    same = course.get("source_sha256") == source_hash(lesson.source)
    return "up to date" if same else "older than its source", course


def shorten(path: Path) -> str:
    """A path as seen from here, where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
