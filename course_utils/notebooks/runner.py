"""Run several lessons: in order or side by side, keeping what has not changed, and going on when one fails.

Beside the executed notebooks stands `results.json`: one record for each lesson, written as soon as the lesson
has ended. A run that was interrupted therefore goes on where it stopped, and a second run of an unchanged
course takes a second.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from course_utils import ledger
from course_utils.errors import CourseError
from course_utils.machine import describe, probe, threads_for, versions
from course_utils.notebooks.execute import NEEDED, SUCCEEDED, CellEvent, NotebookRun
from course_utils.notebooks.parameters import declared_parameters, fit_parameters
from course_utils.notebooks.processes import require, write_atomically
from course_utils.notebooks.source import Lesson, settings

LIBRARIES = ("torch", "numpy", "matplotlib", "transformers", "datasets", "trl", "scipy", "ipykernel")
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What is known about the last run of one lesson; `results.json` is a list of these."""

    number: str
    name: str
    title: str
    world: str
    gpu: str
    status: str
    seconds: float
    total_seconds: float
    peak_memory_mb: float
    cells: int
    ran_at: str
    key: str
    notebook: str
    html: str
    parameters: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Any] | None = None
    claims: tuple[dict[str, Any], ...] = ()
    now: str = "ran"  # in this run: ran | kept (nothing had changed) | earlier (it was not asked for)

    @property
    def ok(self) -> bool:
        """Whether every cell ran."""
        return self.status == SUCCEEDED


@dataclass(frozen=True)
class LessonEvent:
    """What `on_event` is told: a lesson has started, moved on (`cell`), ended, or was kept."""

    kind: str  # "started", "cell", "ended", "kept"
    lesson: Lesson
    cell: CellEvent | None = None
    record: Record | None = None


@dataclass(frozen=True)
class CourseRun:
    """The outcome of a run of several lessons."""

    records: tuple[Record, ...]
    seconds: float
    out_dir: Path
    report: Path

    @property
    def ok(self) -> bool:
        """Whether every lesson that was asked for ran to its end."""
        return all(record.ok for record in self.records)


def run_lessons(
    lessons: list[Lesson],
    out_dir: Path | str,
    parameters: dict[str, Any] | None = None,
    jobs: int = 1,
    *,
    again: bool = False,
    on_event: Callable[[LessonEvent], None] | None = None,
    timeout: float | None = None,
) -> CourseRun:
    """Run lessons and write their executed notebooks, HTML pages, `results.json` and `report.html` into
    `out_dir`.

    A lesson that fails does not stop the others. A lesson is kept as it is when it succeeded before and
    neither its cells, the package, the shipped data, the parameters nor the libraries have changed; `again`
    runs it all the same. Ctrl-C ends every kernel, keeps what has been finished, and is passed on.
    """
    require(NEEDED, "lab")
    from course_utils.notebooks.report import write_report

    began = time.monotonic()
    work = _Work(lessons, Path(out_dir), parameters or {}, jobs, again, on_event, timeout)
    try:
        work.run()
    finally:
        work.save()
        report = write_report(work.out_dir)
    records = tuple(work.records[lesson.name] for lesson in lessons)
    return CourseRun(records, time.monotonic() - began, work.out_dir, report)


class _Work:
    """The state that the threads of one call of `run_lessons` share."""

    def __init__(
        self,
        lessons: list[Lesson],
        out_dir: Path,
        parameters: dict[str, Any],
        jobs: int,
        again: bool,
        on_event: Callable[[LessonEvent], None] | None,
        timeout: float | None,
    ) -> None:
        self.lessons, self.out_dir, self.jobs, self.again = lessons, out_dir, max(1, jobs), again
        self.on_event, self.timeout = on_event, timeout
        self.root = lessons[0].source.resolve().parents[2] if lessons else Path.cwd()
        self.started_at = _now()
        self.machine = describe(probe(device=any(lesson.gpu != "none" for lesson in lessons)))
        self.shared = shared_key(self.root)
        self.lock = threading.Lock()
        self.active: set[NotebookRun] = set()
        self.stopping = False
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self.records = {record.name: replace(record, now="earlier") for record in load_records(out_dir)}
        # All notebooks are read before the first one runs: a mistyped parameter is said at once.
        self.plan = [(lesson, *self._prepare(lesson, parameters)) for lesson in lessons]

    def _prepare(self, lesson: Lesson, parameters: dict[str, Any]) -> tuple[Path, dict[str, Any], str]:
        import nbformat

        path = lesson.notebook
        if path.exists():
            notebook = nbformat.read(path, as_version=4)
        else:  # not built yet: run what the source describes
            from course_utils.notebooks.build import assemble

            notebook = assemble(lesson)
            path = self.out_dir / "assembled" / lesson.notebook.name
            write_atomically(path, nbformat.writes(notebook) + "\n")
        fitted = fit_parameters(parameters, declared_parameters(notebook), lesson.name)
        cells = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
        return path, fitted, _hash([self.shared, cells, fitted])

    def run(self) -> None:
        waiting = list(self.plan)
        pending: set[Future[None]] = set()
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or pending:
                    while waiting and len(pending) < self.jobs:
                        pending.add(pool.submit(self._one, *waiting.pop(0)))
                    # The short timeout lets Ctrl-C through on Windows, where waiting alone would hold it
                    # back.
                    done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            active = list(self.active)
        for run in active:
            run.stop()

    def _one(self, lesson: Lesson, path: Path, parameters: dict[str, Any], key: str) -> None:
        executed, page = self.out_dir / lesson.notebook.name, self.out_dir / f"{lesson.name}.html"
        before = self.records.get(lesson.name)
        if (
            not self.again
            and before
            and before.ok
            and before.key == key
            and executed.exists()
            and page.exists()
        ):
            self._note(replace(before, now="kept"))
            self._tell(LessonEvent("kept", lesson, record=self.records[lesson.name]))
            return
        with self.lock:
            if self.stopping:
                return
            run = NotebookRun(
                path,
                executed,
                parameters,
                on_cell=lambda cell: self._tell(LessonEvent("cell", lesson, cell)),
                timeout=self.timeout,
                working_directory=lesson.notebook.parent,
                html_path=page,
                threads=threads_for(self.jobs),
            )
            self.active.add(run)
        self._tell(LessonEvent("started", lesson))
        facts = {
            "number": lesson.number,
            "name": lesson.name,
            "title": lesson.title,
            "world": lesson.world,
            "gpu": lesson.gpu,
            "ran_at": _now(),
            "key": key,
            "parameters": parameters,
        }
        try:
            result = run.wait()
            values = asdict(result)
            values.pop("output_path")
        except CourseError as error:
            failed = {
                "index": 0,
                "source": "",
                "error_name": error.id,
                "message": error.what,
                "traceback": "",
            }
            values = {
                "status": "failed",
                "seconds": 0.0,
                "total_seconds": 0.0,
                "peak_memory_mb": 0.0,
                "cells": 0,
            }
            values["failed"] = failed
        finally:
            with self.lock:
                self.active.discard(run)
        if self.stopping:
            return
        written = values["status"] in ("succeeded", "failed", "kernel died") and executed.exists()
        record = Record(
            **facts,
            **values,
            notebook=executed.name if written else "",
            html=page.name if written and page.exists() else "",
            claims=tuple(_claims(executed)) if written else (),
        )
        self._note(record)
        self._tell(LessonEvent("ended", lesson, record=record))

    def _note(self, record: Record) -> None:
        with self.lock:
            self.records[record.name] = record
        self.save()

    def _tell(self, event: LessonEvent) -> None:
        if self.on_event is not None:
            with self.lock:
                self.on_event(event)

    def save(self) -> None:
        with self.lock:
            place = settings(self.root)
            results = {
                "format": FORMAT,
                "started": self.started_at,
                "finished": _now(),
                "machine": self.machine,
                "lesson_seconds": place.lesson_seconds,
                "lesson_memory_mb": place.lesson_memory_mb,
                "lessons": [asdict(self.records[name]) for name in sorted(self.records)],
            }
            write_atomically(
                self.out_dir / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n"
            )


def load_results(out_dir: Path | str) -> dict[str, Any]:
    """What `results.json` in this folder says; without lessons when there is none of this format."""
    try:
        results = json.loads((Path(out_dir) / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"lessons": []}
    return results if results.get("format") == FORMAT else {"lessons": []}


def load_records(out_dir: Path | str) -> list[Record]:
    """The records in a folder, in the order of the lessons."""
    return [Record(**{**row, "claims": tuple(row["claims"])}) for row in load_results(out_dir)["lessons"]]


def shared_key(root: Path) -> str:
    """A hash of all that every lesson depends on: the package, the shipped data, Python and the libraries."""
    parts: list[Any] = [versions(LIBRARIES), platform.machine(), platform.python_version()]
    for folder in ("course_utils", "data"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                parts.append(
                    (path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
                )
    return _hash(parts)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _claims(executed: Path) -> list[dict[str, Any]]:
    import nbformat

    return ledger.collect(nbformat.read(executed, as_version=4))
