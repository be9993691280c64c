"""The parts of README.md that are generated: the table of lessons and the ledger's summary.

`course build` rewrites them from the stored notebooks; a test fails when they are not what the notebooks say.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from course_utils import ledger
from course_utils.errors import CourseError
from course_utils.notebooks.build import stored_claims
from course_utils.notebooks.source import course_root, lessons


def generated(root: Path | None = None) -> dict[str, str]:
    """The generated parts of README.md by the name of their markers."""
    return {"lessons": lesson_table(root), "claims": claims_summary(root)}


def lesson_table(root: Path | None = None) -> str:
    """One row a lesson: number, title, world, cost, exercises."""
    import nbformat

    lines = ["| | lesson | world | on two cores | memory | exercises |", "|---|---|---|--:|--:|--:|"]
    for lesson in lessons(root):
        if not lesson.notebook.exists():
            continue
        notebook = nbformat.read(lesson.notebook, as_version=4)
        stamp = notebook.metadata.get("course", {})
        exercises = sum(cell.metadata.get("part") == "task" for cell in notebook.cells)
        seconds, memory = stamp.get("seconds", float("nan")), stamp.get("peak_memory_mb", float("nan"))
        lines.append(
            f"| {lesson.number} | [{lesson.title}](notebooks/{lesson.notebook.name}) | {lesson.world} "
            f"| {seconds:.0f} s | {memory:.0f} MB | {exercises} |"
        )
    return "\n".join(lines)


def claims_summary(root: Path | None = None) -> str:
    """How many claims hold, in a sentence, and for each lesson the same with the rows in a folded table."""
    rows = stored_claims(root)
    parts = [f"{len(rows)} claims measured so far: {_said(rows)}. Lesson by lesson:\n"]
    for lesson in lessons(root):
        own = [row for row in rows if row["lesson"] == lesson.name]
        if own:
            parts.append(
                f"<details><summary>{lesson.number} · {html.escape(lesson.title)} ({_said(own)})</summary>\n\n"
                f"{ledger.rows_markdown(own)}\n\n</details>"
            )
    return "\n".join(parts)


def _said(rows: list[dict[str, Any]]) -> str:
    return ledger.count_in_words(row["verdict"] for row in rows)


def with_generated_parts(text: str, root: Path | None = None) -> str:
    """The text of README.md with its generated parts made anew."""
    for name, part in generated(root).items():
        opening, closing = f"<!-- {name}: made by `course build` -->", f"<!-- /{name} -->"
        if opening not in text or closing not in text:
            raise CourseError(
                "readme-markers",
                f"README.md lacks the markers of its part {name!r}.",
                where="README.md",
                remedy=f"put the lines {opening} and {closing} where the table belongs.",
            )
        pattern = re.escape(opening) + r".*?" + re.escape(closing)
        text = re.sub(pattern, lambda _, o=opening, p=part, c=closing: f"{o}\n{p}\n{c}", text, flags=re.DOTALL)
    return text


def update_readme(root: Path | None = None) -> bool:
    """Rewrite the generated parts of README.md; say whether anything changed."""
    path = (root or course_root()) / "README.md"
    before = path.read_text(encoding="utf-8")
    after = with_generated_parts(before, root)
    if after == before:
        return False
    temporary = path.with_suffix(".md.part")
    temporary.write_text(after, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return True
