"""From source to executed notebook.

`assemble` makes the notebook that a source describes, without outputs. `build` executes it in a fresh kernel and stores what a
reader needs: badges, outputs free of this machine's traces, and a stamp that ties the outputs to the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import ledger
from course_utils.errors import CourseError
from course_utils.notebooks.source import (
    CourseSettings,
    Lesson,
    course_root,
    lessons,
    read_source,
    settings,
    source_hash,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from course_utils.notebooks.execute import CellEvent, RunResult

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
FIGURE_TAG = "figure"
KEPT_CELL_METADATA = ("tags", "exercise", "part", "jupyter", "cellView", "tolerance")


@dataclass(frozen=True)
class BuildResult:
    """What one build did."""

    lesson: Lesson
    run: RunResult
    written: bool
    claims: int


def assemble(lesson: Lesson, version: str = "reading", measured: dict[str, float] | None = None) -> NotebookNode:
    """The notebook of a lesson in one of its versions (reading, student, instructor), without outputs.

    `measured` holds "seconds" and "peak_memory_mb" once they are known; they go into the badges.
    """
    from course_utils.labs.trio import render_exercises

    notebook = render_exercises(read_source(lesson.source), version)
    place = settings(lesson.source.resolve().parents[2])
    notebook.cells[0].source = _with_badges(notebook.cells[0].source, lesson, place, measured)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index + 1:02d}"
        cell.metadata = type(cell.metadata)({key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata})
        if FIGURE_TAG in cell.metadata.get("tags", []):  # the picture matters here, not the code that draws it
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = type(notebook.metadata)(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def _with_badges(title: str, lesson: Lesson, place: CourseSettings, measured: dict[str, float] | None) -> str:
    heading, _, rest = title.partition("\n")
    if not heading.startswith(f"# {lesson.number} · {lesson.title}"):
        raise CourseError(
            "lesson-header",
            f"The first cell does not open with the title of the header: {heading!r}.",
            where=f"notebooks/src/{lesson.source.name}",
            remedy=f"let the first markdown cell begin with `# {lesson.number} · {lesson.title}`.",
        )
    path = f"notebooks/{lesson.notebook.name}"
    colab = f"https://colab.research.google.com/github/{place.repository}/blob/{place.branch}/{path}"
    binder = f"https://mybinder.org/v2/gh/{place.repository}/{place.branch}?urlpath=lab/tree/{path}"
    gpu = {"none": "no GPU needed", "optional": "a GPU helps", "required": "needs a GPU"}[lesson.gpu]
    facts = [gpu]
    if measured:
        facts = [f"{measured['seconds']:.0f} s on two cores", f"{measured['peak_memory_mb']:.0f} MB at the peak", gpu]
    badges = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})\n\n*{' · '.join(facts)}*"
    )
    return f"{heading}\n\n{badges}\n\n{rest.strip()}"


def build(lesson: Lesson, on_cell: Callable[[CellEvent], None] | None = None) -> BuildResult:
    """Execute a lesson and store it as the notebook that readers open. A lesson that fails is not stored."""
    import nbformat

    from course_utils.notebooks.execute import run_notebook

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, lesson.notebook.name), Path(folder, "executed.ipynb")
        nbformat.write(assemble(lesson), before)
        run = run_notebook(before, after, on_cell=on_cell, working_directory=lesson.notebook.parent)
        if not run.ok:
            return BuildResult(lesson, run, False, 0)
        executed = nbformat.read(after, as_version=4)
    measured = {"seconds": round(run.seconds, 1), "peak_memory_mb": round(run.peak_memory_mb)}
    notebook = assemble(lesson, measured=measured)
    root = lesson.source.resolve().parents[2]
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = clean_outputs(ran.outputs, root)
    stamp(notebook, lesson, measured)
    _write_atomically(notebook, lesson.notebook)
    return BuildResult(lesson, run, True, len(ledger.collect(notebook)))


def stamp(notebook: NotebookNode, lesson: Lesson, measured: dict[str, float]) -> None:
    """Tie the stored outputs to the source that made them."""
    notebook.metadata["course"] = {
        "number": lesson.number,
        "name": lesson.name,
        "title": lesson.title,
        "world": lesson.world,
        "gpu": lesson.gpu,
        "source_sha256": source_hash(lesson.source),
        **measured,
        "outputs": [output_digest(cell) for cell in notebook.cells if cell.cell_type == "code"],
    }


def output_digest(cell: Any) -> str:
    """A short hash of a code cell's outputs, so that a changed output is noticed without running anything."""
    text = json.dumps(cell.get("outputs", []), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def clean_outputs(outputs: list[Any], root: Path) -> list[Any]:
    """Outputs without widgets (a page without their state shows an error), without traces of this machine, with whole streams."""
    kept: list[Any] = []
    for output in outputs:
        if WIDGET_MIME in output.get("data", {}):
            continue
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text = without_paths(kept[-1].text + output.text, root)
                continue
            output.text = without_paths(output.text, root)
        for kind, value in output.get("data", {}).items():
            if isinstance(value, str) and not kind.startswith("image/"):
                output.data[kind] = without_paths(value, root)
        if "execution_count" in output:
            output.execution_count = output.get("execution_count")
        kept.append(output)
    return kept


def without_paths(text: str, root: Path) -> str:
    """Text with this machine's folders taken out."""
    for folder, name in ((str(root), "."), (str(Path.home()), "~"), (tempfile.gettempdir(), "<tmp>")):
        if len(folder) > 3:
            text = text.replace(folder, name)
    return re.sub(r"<tmp>[/\\]ipykernel_\d+[/\\]\d+\.py", "<cell>", text)


def _write_atomically(notebook: NotebookNode, path: Path) -> None:
    import nbformat

    temporary = path.with_suffix(".ipynb.part")
    nbformat.validate(notebook)
    temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def collect_claims(root: Path | None = None) -> list[dict[str, Any]]:
    """Gather the ledger's rows from all stored notebooks into data/results/claims.json, and return them."""
    rows = stored_claims(root)
    path = (root or course_root()) / "data" / "results" / "claims.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return rows


def stored_claims(root: Path | None = None) -> list[dict[str, Any]]:
    """The ledger's rows in all stored notebooks, each with its lesson's name."""
    import nbformat

    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for lesson in lessons(root):
        if not lesson.notebook.exists():
            continue
        for row in ledger.collect(nbformat.read(lesson.notebook, as_version=4)):
            if row["id"] in seen or not row["id"].startswith(f"{lesson.number}."):
                raise CourseError(
                    "claim",
                    f"The claim id {row['id']!r} is used twice, or does not begin with its lesson's number.",
                    where=f"{lesson.name} (and {seen.get(row['id'], lesson.name)})",
                    remedy="give each claim an id of its own: the lesson's number, a dot, a word.",
                )
            seen[row["id"]] = lesson.name
            rows.append({"lesson": lesson.name, **row})
    return rows
