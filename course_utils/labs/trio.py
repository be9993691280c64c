"""The cells of an exercise as each version of a lesson shows them: task, stub and check, then hints and
solution.

One source makes three versions. "reading" is the published notebook: hints and solutions are folded, and
everything runs. "student" has no solutions. "instructor" has them open, with the mistakes that each check
recognises.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from course_utils.errors import CourseError
from course_utils.labs.exercise_cells import ExerciseCells, read_exercises
from course_utils.labs.exercise_code import raise_in, stubs_in
from course_utils.labs.exercises import Exercise, find_exercise, not_attempted

VERSIONS = ("reading", "student", "instructor")
FULL_STAR, EMPTY_STAR = "★", "☆"
SOURCE_ONLY = (
    "stars",
    "minutes",
    "open",
    "lines_to_next_cell",
)  # shown in the text, or of no use to a reader


def render_exercises(
    notebook: NotebookNode,
    version: str,
    *,
    lesson: str | int | None = None,
    find: Callable[[str], Exercise] = find_exercise,
) -> NotebookNode:
    """A copy of a source notebook with its exercises made ready for one version; other cells are left as they
    are.

    `lesson` is the number that ids must begin with (see `read_exercises`); `find` gives the checked exercise
    of an id, which only the instructor version asks for.
    """
    if version not in VERSIONS:
        raise CourseError(
            "unknown-version",
            f"There is no version {version!r} of a lesson.",
            where="render_exercises",
            remedy=f"ask for one of {', '.join(VERSIONS)}.",
        )
    result = copy.deepcopy(notebook)
    role = {
        position: (exercise, part)
        for exercise in read_exercises(notebook, lesson=lesson)
        for part, position in exercise.cells.items()
    }
    cells: list[NotebookNode] = []
    for position, cell in enumerate(result.cells):
        if position not in role:
            cells.append(cell)
            continue
        exercise, part = role[position]
        _tidy(cell, exercise.id, part)
        cells += RENDER[part](cell, exercise, version)
        if part == "solution" and version == "instructor" and not exercise.open:
            cells.append(_mistakes(find(exercise.id)))
    result.cells = cells
    return result


def _tidy(cell: NotebookNode, id: str, part: str) -> None:
    cell.metadata["exercise"], cell.metadata["part"] = id, part
    for key in SOURCE_ONLY:
        cell.metadata.pop(key, None)


def _cell_id(id: str, part: str) -> str:
    return f"exercise-{id.replace('.', '-')}-{part}"


def _new_markdown(id: str, part: str, source: str) -> NotebookNode:
    metadata = {"exercise": id, "part": part}
    return new_markdown_cell(source, id=_cell_id(id, part), metadata=metadata)


def _folded(summary: str, text: str) -> str:
    """A fold; the empty lines make Jupyter and GitHub read what is inside as markdown."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def _task(cell: NotebookNode, exercise: ExerciseCells, version: str) -> list[NotebookNode]:
    stars = FULL_STAR * exercise.stars + EMPTY_STAR * (3 - exercise.stars)
    line = f"{stars} · about {exercise.minutes} minute{'s' * (exercise.minutes > 1)}"
    line += " · open-ended" * exercise.open
    cell.source = f"### Exercise {exercise.id} · {exercise.title}\n\n{line}\n\n{exercise.body}"
    return [cell]


def _stub(cell: NotebookNode, exercise: ExerciseCells, version: str) -> list[NotebookNode]:
    """The stub, with the kind message in place of every bare `raise NotImplementedError`."""
    lines = cell.source.splitlines()
    stubs = stubs_in(ast.parse(cell.source)).values()
    # from the last to the first, so that the line numbers of the others stay right
    for node in sorted((raise_in(function) for function in stubs), key=lambda node: -node.lineno):
        before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        kind = f'{before}raise NotImplementedError("{not_attempted(exercise.id)}")'
        lines[node.lineno - 1 : node.end_lineno] = [kind]
    cell.source = "\n".join(lines)
    return [cell]


def _check(cell: NotebookNode, exercise: ExerciseCells, version: str) -> list[NotebookNode]:
    return [cell]


def _hints(cell: NotebookNode, exercise: ExerciseCells, version: str) -> list[NotebookNode]:
    folds = (_folded(f"Hint {number}", hint) for number, hint in enumerate(exercise.hints, start=1))
    cell.source = "\n\n".join(folds)
    return [cell]


def _solution(cell: NotebookNode, exercise: ExerciseCells, version: str) -> list[NotebookNode]:
    if version == "student":
        text = f"*Your answer to exercise {exercise.id}: open this cell and write it here.*"
        return [_new_markdown(exercise.id, "answer", text)] if exercise.open else []
    if exercise.open:
        heading = "What a good answer contains"
        cell.source = (
            _folded(heading, cell.source) if version == "reading" else f"**{heading}**\n\n{cell.source}"
        )
    elif version == "reading":
        # JupyterLab folds by the first key, Colab by the second and the @title line, the book by the tag
        cell.metadata["jupyter"] = {**cell.metadata.get("jupyter", {}), "source_hidden": True}
        cell.metadata["cellView"] = "form"
        tags = list(cell.metadata.get("tags", []))
        cell.metadata["tags"] = tags if "hide-input" in tags else [*tags, "hide-input"]
        cell.source = f"# @title Solution {exercise.id} (folded: try first)\n{cell.source}"
    else:
        cell.source = f"# Solution {exercise.id}\n{cell.source}"
    return [cell]


def _mistakes(exercise: Exercise) -> NotebookNode:
    """What the check of an exercise recognises, for the instructor."""
    items = "\n".join(f"- *{mistake.name}*: {mistake.message}" for mistake in exercise.mistakes)
    heading = f"**Mistakes that the check of exercise {exercise.id} recognises, and what it says**"
    return _new_markdown(exercise.id, "mistakes", f"{heading}\n\n{items or 'None.'}")


RENDER = {"task": _task, "stub": _stub, "check": _check, "hints": _hints, "solution": _solution}
