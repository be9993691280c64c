"""Reading and validating the exercises of a lesson's source notebook.

The cells of one exercise carry `exercise="01.2"` and `part=...` in their metadata. The parts of an exercise
with a check are task, stub, check, hints and solution, in that order; those of an open exercise (`open=true`
on its task) are task, hints and solution. What an author can get wrong is found here, before a learner meets
it, and said with the id of the exercise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

from course_utils.labs.exercise_code import refuse, validate_code
from course_utils.labs.exercises import EXERCISE_ID

PARTS = ("task", "stub", "check", "hints", "solution")
OPEN_PARTS = ("task", "hints", "solution")
CELL_TYPES = {"task": "markdown", "stub": "code", "check": "code", "hints": "markdown"}
NUMBERED = re.compile(r"(\d+)\.\s+")


@dataclass(frozen=True)
class ExerciseCells:
    """One exercise of a source notebook. `cells` maps each part to the position of its cell."""

    id: str
    title: str
    stars: int
    minutes: int
    open: bool
    cells: Mapping[str, int]
    body: str
    hints: tuple[str, str, str]


def read_exercises(notebook: NotebookNode, *, lesson: str | int | None = None) -> list[ExerciseCells]:
    """The exercises of a source notebook, in order, each validated.

    `lesson` is the number that every id must begin with; without it, the number in the notebook's metadata or
    in its title counts.
    """
    number = _lesson_number(notebook, lesson)
    grouped: dict[str, dict[str, int]] = {}
    for position, cell in enumerate(notebook.cells):
        id, part = _identity(cell, number)
        if not id:
            continue
        parts = grouped.setdefault(id, {})
        if part in parts:
            refuse(
                "exercise-duplicate",
                id,
                f"has two cells with part={part!r}",
                "give each exercise its own id.",
            )
        parts[part] = position
    return [_read(notebook, id, parts) for id, parts in grouped.items()]


def _lesson_number(notebook: NotebookNode, lesson: str | int | None) -> str:
    if lesson is None:
        lesson = notebook.metadata.get("course", {}).get("number")
    if lesson is not None:
        return f"{int(lesson):02d}"
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    match = re.match(r"#\s+(\d{2})\b", first)
    return match[1] if match else ""


def _identity(cell: NotebookNode, number: str) -> tuple[str, str]:
    """The exercise and the part of a cell; two empty texts for a cell that belongs to no exercise."""
    id, part = (str(cell.metadata.get(key, "")).strip() for key in ("exercise", "part"))
    if not id and not part:
        return "", ""
    match = EXERCISE_ID.fullmatch(id)
    if not match:
        refuse("exercise-id", repr(id), "is not an id", 'write it as a text such as exercise="01.2".')
    if number and match[1] != number:
        refuse("exercise-id", id, f"stands in lesson {number}", f"begin its id with {number}.")
    if part not in PARTS:
        refuse("exercise-part", id, f"has a cell with part={part!r}", f"the parts are {', '.join(PARTS)}.")
    return id, part


def _read(notebook: NotebookNode, id: str, parts: dict[str, int]) -> ExerciseCells:
    if "task" not in parts:
        refuse("exercise-part", id, "has no task", 'add a markdown cell with part="task".')
    task = notebook.cells[parts["task"]]
    open_ended = _flag(task.metadata.get("open", False), id)
    wanted = OPEN_PARTS if open_ended else PARTS
    missing = [part for part in wanted if part not in parts]
    extra = [part for part in parts if part not in wanted]
    if missing:
        refuse(
            "exercise-part", id, f"lacks: {', '.join(missing)}", f"it needs the parts {', '.join(wanted)}."
        )
    if extra:
        refuse(
            "exercise-part", id, f"is open and has: {', '.join(extra)}", "take these cells or open=true away."
        )
    if list(parts) != list(wanted):
        refuse(
            "exercise-part", id, f"has its parts in the order {', '.join(parts)}", f"use {', '.join(wanted)}."
        )
    for part, position in parts.items():
        type_ = CELL_TYPES.get(part, "markdown" if open_ended else "code")
        if notebook.cells[position].cell_type != type_:
            refuse(
                "exercise-part", id, f"has a {part} that is not a {type_} cell", f"make it a {type_} cell."
            )
    title, body = _title_and_body(task.source, id)
    if not open_ended:
        stub, check, solution = (notebook.cells[parts[part]].source for part in ("stub", "check", "solution"))
        validate_code(id, stub, check, solution)
    return ExerciseCells(
        id=id,
        title=title,
        stars=_count(task, "stars", id, 1, 3),
        minutes=_count(task, "minutes", id, 1, 240),
        open=open_ended,
        cells=parts,
        body=body,
        hints=_three_hints(notebook.cells[parts["hints"]].source, id),
    )


def _flag(value: Any, id: str) -> bool:
    """A yes or no from a cell header, where it may have arrived as a text or a number."""
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0"):
        refuse("exercise-header", id, f"has open={value!r}", "write open=true, or leave it out.")
    return text in ("true", "1")


def _count(task: NotebookNode, key: str, id: str, least: int, most: int) -> int:
    value = str(task.metadata.get(key, "")).strip()
    if not value.isdecimal() or not least <= int(value) <= most:
        said = f"has {key}={value}" if value else f"does not say {key}"
        remedy = f"write {key}= and a whole number from {least} to {most} in the header of its task."
        refuse("exercise-header", id, said, remedy)
    return int(value)


def _title_and_body(source: str, id: str) -> tuple[str, str]:
    head, _, body = source.strip().partition("\n")
    if not head.startswith("### ") or not head[4:].strip():
        refuse("exercise-header", id, "has a task without a title", "begin its task with a line `### Title`.")
    if not body.strip():
        refuse(
            "exercise-header", id, "has a task without a text", "say what to write and what it should give."
        )
    return head[4:].strip(), body.strip()


def _three_hints(source: str, id: str) -> tuple[str, str, str]:
    """The items of the numbered list, each without its number and its indentation."""
    hints: list[list[str]] = []
    for line in source.strip().splitlines():
        match = NUMBERED.match(line)
        if match and int(match[1]) == len(hints) + 1:
            hints.append([line[match.end() :]])
        elif hints:
            hints[-1].append(re.sub(r"^ {1,3}", "", line))
        else:
            break
    texts = tuple("\n".join(lines).strip() for lines in hints)
    if len(texts) != 3 or not all(texts):
        remedy = "write a numbered list `1.`, `2.`, `3.` of three hints and nothing before it."
        refuse("exercise-hints", id, f"has {len(texts)} hints that can be read", remedy)
    return texts
