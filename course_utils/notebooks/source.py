"""Where lessons live, and how a source file is read.

`notebooks/src/NN_name.py` (jupytext percent) is what an author edits; `notebooks/NN_name.ipynb` is what a reader opens.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from nbformat import NotebookNode

WORLDS = ("finite", "pocket", "real")
GPU = ("none", "optional", "required")
LESSON_FILE = re.compile(r"^(\d\d)_[a-z0-9_]+$")


@dataclass(frozen=True)
class CourseSettings:
    """What pyproject.toml says under [tool.course]."""

    repository: str
    branch: str
    lesson_seconds: float
    lesson_memory_mb: float


@dataclass(frozen=True)
class Lesson:
    """One lesson: its number, its name, and the two files that hold it."""

    number: str
    name: str
    title: str
    world: str
    gpu: str
    source: Path
    notebook: Path

    @property
    def on_cpu(self) -> bool:
        """Whether the lesson belongs to the CPU course."""
        return self.gpu == "none"


def course_root() -> Path:
    """The project's folder: the nearest one, from here or from this file, that holds notebooks/src."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "notebooks" / "src").is_dir() and (folder / "pyproject.toml").is_file():
                return folder
    raise CourseError(
        "course-root",
        "The course's files were not found: no folder above this one has notebooks/src and pyproject.toml.",
        where=str(Path.cwd().name),
        remedy="clone the repository and run the command from inside it; the installed package alone has no lessons.",
    )


@cache
def settings(root: Path | None = None) -> CourseSettings:
    """The settings of the course, read from pyproject.toml."""
    path = (root or course_root()) / "pyproject.toml"
    with path.open("rb") as file:
        table = tomllib.load(file)["tool"]["course"]
    return CourseSettings(**table)


def lessons(root: Path | None = None) -> list[Lesson]:
    """Every lesson of the course, in order."""
    root = root or course_root()
    return [read_lesson(path) for path in sorted((root / "notebooks" / "src").glob("[0-9]*.py"))]


def select(numbers: list[str], root: Path | None = None) -> list[Lesson]:
    """The lessons with these numbers or names (all when none are given)."""
    every = lessons(root)
    if not numbers:
        return every
    chosen = []
    for wanted in numbers:
        stem = Path(wanted).stem
        found = [lesson for lesson in every if stem in (lesson.number, lesson.number.lstrip("0"), lesson.name)]
        if not found:
            known = ", ".join(lesson.name for lesson in every)
            raise CourseError(
                "unknown-lesson",
                f"There is no lesson {wanted!r}.",
                remedy=f"give a number such as 01 or a name. The lessons are: {known}.",
            )
        chosen += [lesson for lesson in found if lesson not in chosen]
    return chosen


def read_lesson(path: Path) -> Lesson:
    """What the header of a source file says about its lesson."""
    if not LESSON_FILE.match(path.stem):
        raise CourseError(
            "lesson-header",
            f"{path.name} is not named like a lesson.",
            where=f"notebooks/src/{path.name}",
            remedy="name it NN_name.py: two digits, then lower-case words joined by underscores.",
        )
    header = _header(path)
    problems = [key for key in ("title", "world", "gpu") if key not in header]
    if not problems:
        problems = [f"world={header['world']!r}"] * (header["world"] not in WORLDS)
        problems += [f"gpu={header['gpu']!r}"] * (header["gpu"] not in GPU)
    if problems:
        raise CourseError(
            "lesson-header",
            f"The header lacks or misstates: {', '.join(problems)}.",
            where=f"notebooks/src/{path.name}",
            remedy='write `course: {title: "…", world: finite | pocket | real, gpu: none | optional | required}` '
            "under `jupyter:` in the first lines.",
        )
    return Lesson(
        number=path.stem[:2],
        name=path.stem,
        title=str(header["title"]),
        world=str(header["world"]),
        gpu=str(header["gpu"]),
        source=path,
        notebook=path.parent.parent / f"{path.stem}.ipynb",
    )


def _header(path: Path) -> dict[str, Any]:
    # Only the header is parsed here, so that `course list` stays quick and needs no jupytext.
    text = path.read_text(encoding="utf-8")
    match = re.search(r"^#\s+course: \{(.*)\}\s*$", text[:2000], flags=re.MULTILINE)
    pairs = re.findall(r'(\w+):\s*(?:"([^"]*)"|([^,}"]+))', match.group(1)) if match else []
    return {key: quoted or bare.strip() for key, quoted, bare in pairs}


def read_source(path: Path) -> NotebookNode:
    """The source as a notebook: no outputs, placeholders for the repository filled in."""
    import jupytext

    text = path.read_text(encoding="utf-8")
    place = settings(path.resolve().parents[2])
    text = text.replace("{{repository}}", place.repository).replace("{{branch}}", place.branch)
    return jupytext.reads(text, fmt="py:percent")


def source_hash(path: Path) -> str:
    """A hash of what the author wrote; line endings do not count."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    return hashlib.sha256(text.encode()).hexdigest()
