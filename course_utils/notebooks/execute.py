"""Execute one notebook in a fresh kernel of this very interpreter, and say how long it took and how much
memory it needed.

Each notebook runs in a process of its own (`worker.py`), which starts the kernel, runs papermill and
measures. That process talks to this one in JSON lines. So the memory measured is this lesson's alone, several
lessons can run side by side, and stopping a lesson is stopping one tree of processes: Ctrl-C leaves no kernel
behind, and neither does a crash on this side.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.machine import threads_for
from course_utils.notebooks.parameters import declared_parameters, fit_parameters
from course_utils.notebooks.processes import end_process_tree, kernel_environment, require

NEEDED = ("nbformat", "nbclient", "nbconvert", "papermill", "ipykernel", "psutil")
SUCCEEDED, FAILED, DIED = "succeeded", "failed", "kernel died"
TIMED_OUT, STOPPED = "timed out", "stopped"


@dataclass(frozen=True)
class FailedCell:
    """The cell at which a notebook stopped. `index` counts all cells of the executed notebook from 0."""

    index: int
    source: str
    error_name: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class CellEvent:
    """One code cell has started or finished. `number` counts code cells from 1 to `of`; `index` counts all
    cells from 0.
    """

    kind: str  # "kernel started", "started", "finished", "memory"
    index: int = 0
    number: int = 0
    of: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@dataclass(frozen=True)
class RunResult:
    """What one execution was: its outcome, its cost, and where it stopped if it stopped."""

    status: str
    seconds: float  # from the first cell to the last, without starting and stopping the kernel
    total_seconds: float  # all of it
    peak_memory_mb: float  # of the kernel and its children, in 10^6 bytes
    cells: int  # code cells that finished
    output_path: Path
    failed: FailedCell | None = None

    @property
    def ok(self) -> bool:
        """Whether every cell ran."""
        return self.status == SUCCEEDED

    def raise_if_failed(self, lesson: str) -> None:
        """Turn a run that did not succeed into an error for people."""
        if self.ok:
            return
        cell = self.failed or FailedCell(0, "", self.status, "")
        raise CourseError(
            "lesson-failed",
            f"The lesson {self.status} with {cell.error_name}: {cell.message}\n{cell.traceback}".rstrip(),
            where=f"{lesson}, cell {cell.index + 1}",
            remedy="read the last lines above; the partly executed notebook shows the cell in its place.",
        )


def run_notebook(
    notebook_path: Path | str,
    output_path: Path | str,
    parameters: dict[str, Any] | None = None,
    *,
    on_cell: Callable[[CellEvent], None] | None = None,
    timeout: float | None = None,
    working_directory: Path | str | None = None,
    html_path: Path | str | None = None,
    threads: int | None = None,
) -> RunResult:
    """Execute a notebook from top to bottom in a fresh kernel and write it, with its outputs, to
    `output_path`.

    The kernel works in the notebook's own folder, as it does for a reader (`working_directory` says
    otherwise: give it when the notebook to run is a temporary file). `timeout` is for all cells together, in
    seconds. `threads` limits the numerical libraries. With `html_path` an HTML rendering is written too. A
    failing cell is not an exception: read `.status` and `.failed`.
    """
    return NotebookRun(
        notebook_path,
        output_path,
        parameters,
        on_cell=on_cell,
        timeout=timeout,
        working_directory=working_directory,
        html_path=html_path,
        threads=threads,
    ).wait()


class NotebookRun:
    """A notebook that is being executed: `wait` for its result from one thread, `stop` it from any other."""

    def __init__(
        self,
        notebook_path: Path | str,
        output_path: Path | str,
        parameters: dict[str, Any] | None = None,
        *,
        on_cell: Callable[[CellEvent], None] | None = None,
        timeout: float | None = None,
        working_directory: Path | str | None = None,
        html_path: Path | str | None = None,
        threads: int | None = None,
    ) -> None:
        require(NEEDED, "lab")
        import nbformat

        self.notebook_path = Path(notebook_path).resolve()
        self.output_path = Path(output_path).resolve()
        notebook = nbformat.read(self.notebook_path, as_version=4)
        fitted = fit_parameters(parameters or {}, declared_parameters(notebook), self.notebook_path.stem)
        self._sources = [cell.source for cell in notebook.cells]
        self._on_cell = on_cell
        self._timeout = timeout
        self._current = 0
        self._finished = 0
        self._peak = 0.0
        self._stopped_as = ""
        self._kernel_pid: int | None = None
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="course-run-", ignore_cleanup_errors=True)
        self._began = time.monotonic()
        self._process = self._start(
            {
                "notebook": str(self.notebook_path),
                "output": str(self.output_path),
                "parameters": fitted,
                "working_directory": str(Path(working_directory or self.notebook_path.parent).resolve()),
                "html": str(Path(html_path).resolve()) if html_path else None,
            },
            threads,
        )

    def _start(self, request: dict[str, Any], threads: int | None) -> subprocess.Popen[str]:
        # A group of its own: Ctrl-C in the terminal reaches this process alone, which then ends the others in
        # order.
        apart: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        self._log = (Path(self._folder.name) / "worker.log").open("w+", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-m", "course_utils.notebooks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=kernel_environment(Path(self._folder.name), threads or threads_for()),
            **apart,
        )
        # The worker keeps reading: when this pipe closes, because we ended or were ended, it ends its kernel
        # and itself.
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return process

    def wait(self) -> RunResult:
        """Follow the execution to its end. Ctrl-C here stops the notebook first and is then passed on."""
        timer = threading.Timer(self._timeout or 0.0, self.stop, args=(TIMED_OUT,))
        timer.daemon = True
        try:
            final = self._follow(timer)
        except BaseException:
            self.stop()
            raise
        finally:
            timer.cancel()
            self._close()
        if final is not None:
            return final
        if self._stopped_as:
            return self._stopped_result()
        raise self._worker_error

    def _follow(self, timer: threading.Timer) -> RunResult | None:
        for line in self._process.stdout:
            message = json.loads(line)
            match message.pop("event"):
                case "kernel":
                    self._kernel_pid = message["pid"]
                    self._began = time.monotonic()
                    if self._timeout:
                        timer.start()
                    self._tell(CellEvent("kernel started", of=message["of"]))
                case "result":
                    failed = message.pop("failed")
                    return RunResult(
                        **message,
                        output_path=self.output_path,
                        failed=FailedCell(**failed) if failed else None,
                    )
                case kind:
                    event = CellEvent(kind, **message)
                    if kind == "started":
                        self._current = event.index
                    if kind == "finished":
                        self._finished = event.number
                    self._peak = max(self._peak, event.peak_memory_mb)
                    self._tell(event)
        return None

    def _tell(self, event: CellEvent) -> None:
        if self._on_cell is not None:
            self._on_cell(event)

    def stop(self, status: str = STOPPED) -> None:
        """End the kernel and its worker. Safe to call twice, from any thread."""
        with self._lock:
            if not self._stopped_as and self._process.poll() is None:
                self._stopped_as = status
            end_process_tree(self._process.pid, self._kernel_pid)

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        if self._process.poll() is None or self._process.returncode != 0:
            end_process_tree(self._process.pid, self._kernel_pid)
        self._log.seek(0)
        tail = "\n".join(self._log.read().splitlines()[-15:])
        self._log.close()
        self._folder.cleanup()
        self._worker_error = CourseError(
            "worker-failed",
            "The process that runs the notebook ended without a result "
            f"(exit code {self._process.returncode}).\n{tail}",
            where=self.notebook_path.name,
            remedy="run `course doctor`; if memory is short, close other programs or run with --jobs 1.",
        )

    def _stopped_result(self) -> RunResult:
        seconds = time.monotonic() - self._began
        message = f"stopped after {seconds:.0f} s"
        if self._stopped_as == TIMED_OUT:
            message = f"the whole lesson is allowed {self._timeout:g} s, and this cell was still running"
        source = self._sources[self._current] if self._current < len(self._sources) else ""
        failed = FailedCell(self._current, source, self._stopped_as.capitalize(), message)
        return RunResult(
            self._stopped_as, seconds, seconds, self._peak, self._finished, self.output_path, failed
        )
