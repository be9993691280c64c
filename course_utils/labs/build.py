"""Writing the student and the instructor notebooks, without ever losing what a person wrote.

    DIR/student/NN_name.ipynb      exercises to do
    DIR/instructor/NN_name.ipynb   the same with solutions and the recognised mistakes
    DIR/course-labs.json           what this build wrote, with the sha256 of each file

A second build into the same directory replaces what the first one made. A file that somebody changed since,
or that the build did not make, stops it before anything is written.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_utils.errors import CourseError

MANIFEST = "course-labs.json"
LAB_VERSIONS = ("student", "instructor")
# what file managers and Jupyter leave behind without being asked
LEFTOVERS = {
    ".ipynb_checkpoints",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "__pycache__",
    ".virtual_documents",
}


def build_labs(root: Path | str, out: Path | str, lessons: Iterable[str | int] | None = None) -> list[Path]:
    """Write the student and instructor notebooks of the course at `root` into `out`, and return their paths.

    `lessons` chooses by number (`"01"`, `1`) or name (`"01_bradley_terry"`); without it, all are built.
    """
    from course_utils.notebooks.build import assemble
    from course_utils.notebooks.source import select

    wanted = [f"{lesson:02d}" if isinstance(lesson, int) else lesson for lesson in lessons or []]
    notebooks = {
        f"{version}/{lesson.name}.ipynb": assemble(lesson, version=version)
        for lesson in select(wanted, Path(root))
        for version in LAB_VERSIONS
    }
    return write_labs(out, notebooks)


def write_labs(out: Path | str, notebooks: Mapping[str, NotebookNode]) -> list[Path]:
    """Write notebooks under `out` by their relative names, with the manifest; refuse to overwrite a
    person's work.
    """
    out = Path(out)
    contents = {name: notebook_bytes(notebook) for name, notebook in notebooks.items()}
    made = _read_manifest(out)
    _refuse_foreign(out, made)
    _refuse_changed(out, made, contents)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            made[name] = _sha256(content)
    finally:  # a build that was interrupted still knows what it wrote
        manifest = {"made_by": "course labs build", "files": dict(sorted(made.items()))}
        (out / MANIFEST).write_bytes((json.dumps(manifest, indent=2) + "\n").encode())
    return [out / name for name in contents]


def notebook_bytes(notebook: NotebookNode) -> bytes:
    """A notebook as it is stored: without outputs, and the same bytes each time it is built."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        exercise, part = cell.metadata.get("exercise"), cell.metadata.get("part")
        cell.id = f"exercise-{exercise.replace('.', '-')}-{part}" if exercise else f"cell-{position:03d}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return (nbformat.writes(notebook).rstrip("\n") + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_manifest(out: Path) -> dict[str, str]:
    path = out / MANIFEST
    if not path.exists():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(sha256) for name, sha256 in files.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(
            "labs-manifest",
            f"The record of the earlier build cannot be read ({type(error).__name__}).",
            where=MANIFEST,
            remedy="build into a new directory.",
        ) from error


def _refuse_foreign(out: Path, made: Mapping[str, str]) -> None:
    """Stop if the directory holds anything that no earlier build made."""
    if out.exists() and not out.is_dir():
        raise CourseError(
            "labs-directory", "That is a file, not a directory.", where=str(out), remedy="name another."
        )
    known = {MANIFEST, *made}
    foreign = [
        name
        for path in sorted(out.rglob("*"))
        if path.is_file() and (name := path.relative_to(out).as_posix()) not in known
        if not LEFTOVERS & set(path.relative_to(out).parts)
    ]
    if foreign:
        raise CourseError(
            "labs-directory",
            f"The directory holds files that no earlier build made: {_listed(foreign)}.",
            where=str(out),
            remedy="build into an empty or a new directory.",
        )


def _refuse_changed(out: Path, made: Mapping[str, str], contents: Mapping[str, bytes]) -> None:
    """Stop if a file that would be written has been changed since it was made."""
    changed = [
        name
        for name, content in contents.items()
        if (path := out / name).is_file()
        and (found := _sha256(path.read_bytes())) != made.get(name)
        and found != _sha256(content)
    ]
    if changed:
        raise CourseError(
            "labs-changed",
            f"These files were changed since they were built: {_listed(changed)}. Nothing was overwritten.",
            where=str(out),
            remedy="move them elsewhere if you want to keep them, or delete them, and build again.",
        )


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
