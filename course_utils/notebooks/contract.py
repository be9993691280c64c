"""The contract that every stored lesson keeps; `course check` prints where it is broken.

Nothing here executes a lesson. Each problem says which lesson, which cell, what is wrong and what to do.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.notebooks.build import WIDGET_MIME, assemble, output_digest
from course_utils.notebooks.source import Lesson, settings, source_hash

if TYPE_CHECKING:
    from nbformat import NotebookNode

MAX_CODE_LINES = 25
MAX_CODE_COLUMNS = 105
MEDIAN_CODE_LINES = 8
MAX_MARKDOWN_WORDS = 120
MAX_CELLS = 60
MAX_WORDS = 3000
MIN_EXERCISES = 4
ROOMS = ("Objectives", "Prerequisites", "What we measured", "Common errors", "References", "Next")
MACHINE_PATH = re.compile(r"(/(home|root|Users|work|tmp|opt|var/folders)/[\w.-]+|[A-Z]:\\\\?Users\\)")


@dataclass(frozen=True)
class Problem:
    """One breach of the contract."""

    lesson: str
    cell: int | None
    what: str
    remedy: str

    def __str__(self) -> str:
        place = self.lesson if self.cell is None else f"{self.lesson}, cell {self.cell}"
        return f"{place}: {self.what} {self.remedy}"


def check_lesson(lesson: Lesson) -> list[Problem]:
    """Every breach of the contract in a stored lesson."""
    import nbformat

    if not lesson.notebook.exists():
        problems = [Problem(lesson.name, None, "the executed notebook is missing.", f"Run: course build {lesson.number}")]
        # What the build cannot mend is said before it.
        return problems + _broken(lesson, assemble(lesson), (_sizes, _rooms))
    try:
        notebook = nbformat.read(lesson.notebook, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return [Problem(lesson.name, None, f"not a valid notebook ({first}).", f"Run: course build {lesson.number}")]
    return check_notebook(lesson, notebook)


def check_notebook(lesson: Lesson, notebook: NotebookNode) -> list[Problem]:
    """The same for a notebook that is already in memory."""
    rules = (_source, _execution, _outputs, _sizes, _pictures, _rooms, _exercises, _budget)
    return _broken(lesson, notebook, rules)


def _broken(lesson: Lesson, notebook: NotebookNode, rules: Any) -> list[Problem]:
    problems: list[Problem] = []

    def note(cell: int | None, what: str, remedy: str) -> None:
        problems.append(Problem(lesson.name, cell, what, remedy))

    for rule in rules:
        rule(lesson, notebook, note)
    return sorted(problems, key=lambda problem: problem.cell or 0)


def _source(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    again = f"Run: course build {lesson.number}"
    stored = notebook.metadata.get("course", {})
    if not stored:
        note(None, "it was not made by the build.", again)
        return
    if stored.get("source_sha256") != source_hash(lesson.source):
        note(None, "the source has changed since the notebook was executed.", again)
    measured = {key: stored[key] for key in ("seconds", "peak_memory_mb") if key in stored}
    expected = assemble(lesson, measured=measured if len(measured) == 2 else None)
    if len(expected.cells) != len(notebook.cells):
        note(None, f"{len(notebook.cells)} cells are stored; the source has {len(expected.cells)}.", again)
        return
    for index, (cell, wanted) in enumerate(zip(notebook.cells, expected.cells, strict=True), 1):
        if cell.source != wanted.source or cell.cell_type != wanted.cell_type:
            note(index, "its text is not that of the source.", again)
    digests = stored.get("outputs", [])
    code = [(index, cell) for index, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]
    for (index, cell), digest in zip(code, digests, strict=False):
        if output_digest(cell) != digest:
            note(index, "its stored output was changed after the build.", again)
    if len(digests) != len(code):
        note(None, "the stamp of the stored outputs is incomplete.", again)


def _execution(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    count = 0
    for index, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        count += 1
        if cell.execution_count != count:
            note(index, f"execution count {cell.execution_count}, not {count}.", "Build it: a stored lesson ran once, top to bottom.")
        for output in cell.outputs:
            if output.output_type == "error":
                note(index, f"a stored error: {output.ename}.", "Mend the cell and build.")


def _outputs(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    if "widgets" in notebook.metadata:
        note(None, "it carries widget metadata, which makes GitHub refuse the page.", "Build it again.")
    for index, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if WIDGET_MIME in output.get("data", {}):
                note(index, "a stored widget view cannot be shown on a page.", "Build it again.")
            texts = [output.get("text", ""), *(str(v) for k, v in output.get("data", {}).items() if not k.startswith("image/"))]
            found = next((match for text in texts if (match := MACHINE_PATH.search(text))), None)
            if found:
                note(index, f"its output shows a folder of a machine ({found.group(0)}).", "Print a name instead of a path.")
            if any("Traceback (most recent call last)" in text for text in texts):
                note(index, "its output shows a traceback.", "Mend the cell.")


def words(markdown: str) -> int:
    """The words a reader reads in a markdown cell; formulas, addresses and tags are not words."""
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"<[^>]+>|https?://\S+", " ", text)
    return len(re.findall(r"[^\W_]+(?:['’\-–][^\W_]+)*", text))


def code_lines(source: str) -> int:
    """The lines of a code cell that are not blank."""
    return sum(1 for line in source.splitlines() if line.strip())


def _sizes(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    lengths, total = [], 0
    for index, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            count = words(cell.source)
            total += count
            if count > MAX_MARKDOWN_WORDS:
                note(index, f"{count} words; the limit is {MAX_MARKDOWN_WORDS}.", "Split or shorten the text.")
        elif cell.cell_type == "code":
            lengths.append(code_lines(cell.source))
            if lengths[-1] > MAX_CODE_LINES:
                note(index, f"{lengths[-1]} lines of code; the limit is {MAX_CODE_LINES}.", "Move it to course_utils and show it.")
            widest = max((len(line) for line in cell.source.splitlines()), default=0)
            if widest > MAX_CODE_COLUMNS:
                note(index, f"a line of {widest} characters runs off the page; the limit is {MAX_CODE_COLUMNS}.", "Break the line.")
    if lengths and statistics.median(lengths) > MEDIAN_CODE_LINES:
        note(None, f"the median code cell has {statistics.median(lengths):g} lines, over {MEDIAN_CODE_LINES}.", "Shorten the cells.")
    if len(notebook.cells) > MAX_CELLS:
        note(None, f"{len(notebook.cells)} cells; the limit is {MAX_CELLS}.", "Split the lesson.")
    if total > MAX_WORDS:
        note(None, f"{total} words; the limit is {MAX_WORDS}.", "Shorten the lesson.")


def _pictures(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    for index, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            tags = re.findall(r"<img\b[^>]*>", cell.source)
            images = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", cell.source)
            if any(not alt.strip() for alt, _ in images) or any(not re.search(r"alt\s*=\s*[\"'][^\"']+", tag) for tag in tags):
                note(index, "an image without alt text.", "Say in the alt text what the picture shows.")
            addresses = [address for _, address in images] + tags
            if any(re.search(r"latex|codecogs|equation|mathjax|formula", address, flags=re.IGNORECASE) for address in addresses):
                note(index, "a formula as an image.", "Write it in LaTeX between dollar signs.")
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.get("metadata", {}).get(kind, {}).get("alt", "").strip():
                    note(index, "a figure without alt text.", "Show it with plots.show(figure, alt=…).")
            for tag in re.findall(r"<img\b[^>]*>", str(output.get("data", {}).get("text/html", ""))):
                if not re.search(r"alt\s*=\s*[\"'][^\"']+", tag):
                    note(index, "an image without alt text in its output.", "Give the <img> an alt text.")


def _rooms(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = set(re.findall(r"^##\s+(.+?)\s*$", text, flags=re.MULTILINE))
    for room in ROOMS:
        if room not in headings:
            note(None, f"the heading “## {room}” is missing.", "Every lesson has it; see CONTRIBUTING.md.")


def _exercises(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    tasks = {cell.metadata["exercise"] for cell in notebook.cells if cell.metadata.get("part") == "task"}
    checked = {cell.metadata["exercise"] for cell in notebook.cells if cell.metadata.get("part") == "check"}
    if len(tasks) < MIN_EXERCISES:
        note(None, f"{len(tasks)} exercises; at least {MIN_EXERCISES} are wanted.", "Add exercises.")
    if tasks and not tasks - checked:
        note(None, "no open-ended exercise.", "Add one whose task cell says open=true.")
    for index, cell in enumerate(notebook.cells, 1):
        if cell.metadata.get("part") == "solution" and cell.cell_type == "code":
            shown = " ".join(str(output.get("data", {}).get("text/plain", output.get("text", ""))) for output in cell.outputs)
            if "✓" not in shown:
                note(index, "the solution does not pass its own check.", "Mend the solution or the check.")


def _budget(lesson: Lesson, notebook: NotebookNode, note: Any) -> None:
    limits = settings(lesson.source.resolve().parents[2])
    stored = notebook.metadata.get("course", {})
    for key, limit, unit in (("seconds", limits.lesson_seconds, "s"), ("peak_memory_mb", limits.lesson_memory_mb, "MB")):
        value = stored.get(key)
        if value is None:
            note(None, f"the stamp does not say its {key.replace('_', ' ')}.", "Build it again.")
        elif lesson.on_cpu and value > limit:
            note(None, f"{value:g} {unit}; the limit is {limit:g} {unit}.", "Make it lighter, or replay stored results.")
