"""The process that runs one notebook: `python -m course_utils.notebooks.worker`, started by `execute.py` and
by nothing else.

It reads one JSON request from standard input, executes the notebook with papermill, and writes JSON lines to
standard output: the kernel's number, each cell as it starts and ends, memory, and the result. When standard
input closes, whoever asked for this is gone: the kernel is ended and so is this process.

The kernel is always this interpreter. Kernel specifications, which a user may have pointed elsewhere, are not
consulted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from course_utils.notebooks.memory import Memory
from course_utils.notebooks.page import as_html
from course_utils.notebooks.processes import end_children, write_atomically

# jsonschema would use this package to check addresses that notebooks do not have; importing it takes three
# seconds.
sys.modules.setdefault("rfc3987_syntax", None)

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
TRACEBACK_LINES = 60


class Channel:
    """JSON lines to the process that asked. Everything else that is printed here goes to the log."""

    def __init__(self) -> None:
        # The kernel inherits file descriptor 1; it must not be able to write into the conversation.
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()


class Run:
    """One execution: what papermill's engine tells us as it goes, and the result at the end."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.client: Any = None  # nbclient's
        self.manager: Any = None  # jupyter_client's kernel manager
        self.notebook: Any = None
        self.memory: Memory | None = None
        self.code_cells: list[int] = []
        self.current = 0
        self.finished = 0
        self.first = self.last = self.cell_began = 0.0

    def on_notebook_start(self, notebook: Any) -> None:
        self.notebook = notebook
        self.code_cells = [
            index
            for index, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()
        ]
        look_after_sending(self.client.kc.shell_channel)
        pid = self.manager.provisioner.pid
        self.process = self.manager.provisioner.process
        self.memory = Memory(pid, lambda peak: self.channel.send("memory", peak_memory_mb=peak))
        self.channel.send("kernel", pid=pid, of=len(self.code_cells))
        self.first = self.last = time.monotonic()

    def on_cell_execute(self, cell: Any, cell_index: int) -> None:
        self.current, self.cell_began = cell_index, time.monotonic()
        self._cell("started", 0.0)

    def on_cell_executed(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        self.last = time.monotonic()
        self.memory.sample(children=False)
        on_purpose = "raises-exception" in cell.metadata.get("tags", [])
        if on_purpose or execute_reply["content"].get("status") != "error":
            self.finished += 1
            self._cell("finished", self.last - self.cell_began)

    def _cell(self, event: str, seconds: float) -> None:
        number = self.code_cells.index(self.current) + 1
        self.channel.send(
            event,
            index=self.current,
            number=number,
            of=len(self.code_cells),
            seconds=seconds,
            peak_memory_mb=self.memory.peak_mb,
        )

    def failed_cell(self) -> dict[str, Any] | None:
        """The cell whose error stopped the run, if one did."""
        cell = self.notebook.cells[self.current] if self.code_cells else {}
        if not cell or cell.metadata.get("papermill", {}).get("exception") is not True:
            return None
        error = next((output for output in cell.outputs if output.output_type == "error"), None)
        return {
            "index": self.current,
            "source": cell.source,
            "error_name": error.ename if error else "Error",
            "message": plain(error.evalue) if error else "",
            "traceback": plain("\n".join(error.traceback)) if error else "",
        }

    def dead_cell(self) -> dict[str, Any]:
        """The cell during which the kernel died."""
        return {
            "index": self.current,
            "source": self.notebook.cells[self.current].source,
            "error_name": "The kernel died",
            "message": why_dead(self.process.poll()),
            "traceback": "",
        }

    def engine(self) -> type:
        """papermill's engine, with our kernel manager and these hooks."""
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import Engine

        run = self
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

        class ThisInterpreter(AsyncKernelManager):
            @property
            def kernel_spec(self) -> KernelSpec:
                return KernelSpec(argv=argv, display_name="Python 3", language="python")

        class CourseEngine(Engine):
            @classmethod
            def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
                client = PapermillNotebookClient(
                    nb_man,
                    kernel_name="python3",
                    kernel_manager_class=ThisInterpreter,
                    startup_timeout=120,
                    timeout=None,
                    iopub_timeout=30,
                    record_timing=False,
                    on_notebook_start=run.on_notebook_start,
                    on_cell_execute=run.on_cell_execute,
                    on_cell_executed=run.on_cell_executed,
                )
                run.client, run.manager = client, client.create_kernel_manager()
                client.owns_km = True
                # In the run's own folder: it goes away with the run, also when the kernel is killed.
                run.manager.connection_file = str(Path(os.environ["JUPYTER_RUNTIME_DIR"], "kernel.json"))
                try:
                    client.execute()
                finally:
                    if run.memory is not None:
                        run.memory.finish()

        return CourseEngine


def execute(request: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Run the notebook of a request and write it. Returns the result as plain data."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import remove_error_markers

    run = Run(channel)
    papermill_engines.register("course", run.engine())
    notebook = nbformat.read(request["notebook"], as_version=4)
    # Whatever kernel the file names, it is this one; papermill needs the two entries to inject parameters.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    began, died = time.monotonic(), False
    try:
        papermill.execute_notebook(
            notebook,
            None,
            parameters=request["parameters"],
            engine_name="course",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            request_save_on_cell_execute=False,
            autosave_cell_every=0,
            cwd=request["working_directory"],
        )
    except PapermillExecutionError:
        pass  # papermill also objects to errors shown on purpose (tag raises-exception)
    except DeadKernelError:
        died, run.last = True, time.monotonic()
    notebook = remove_error_markers(run.notebook)
    failed = run.dead_cell() if died else run.failed_cell()
    status = "kernel died" if died else "failed" if failed else "succeeded"
    tidy(notebook)
    write_atomically(Path(request["output"]), nbformat.writes(notebook) + "\n")
    if request["html"]:
        page = Path(request["html"])
        page.unlink(missing_ok=True)
        try:
            write_atomically(page, as_html(notebook, page.stem))
        except Exception:  # the lesson ran: a page that cannot be made must not hide that
            traceback.print_exc()
    return {
        "status": status,
        "seconds": run.last - run.first,
        "total_seconds": time.monotonic() - began,
        "peak_memory_mb": run.memory.peak_mb,
        "cells": run.finished,
        "failed": failed,
    }


def look_after_sending(channel: Any) -> None:
    """Look for answers each time something has been sent to the kernel.

    nbclient answers a widget while it waits for the kernel. The sending can swallow the signal that the
    kernel's own answer has come, and without this a lesson with a slider waits for ever, now and then.
    """
    import zmq

    send = channel.send

    def send_and_look(message: Any) -> None:
        send(message)
        channel.socket.get(zmq.EVENTS)

    channel.send = send_and_look


def why_dead(code: int | None) -> str:
    """An exit code of a kernel in words."""
    if code == -9:
        return "it was killed by the system, which happens most often because memory ran out"
    if code is not None and code < 0:
        return f"it was ended by signal {-code}"
    return "it ended by itself" + (f", with exit code {code}" if code is not None else "")


def plain(text: str) -> str:
    """Text without terminal colours, and of bounded length."""
    lines = ANSI.sub("", text).splitlines()
    if len(lines) > TRACEBACK_LINES:
        half = TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines left out …", *lines[-half:]]
    return "\n".join(lines)


def tidy(notebook: Any) -> None:
    """Remove what papermill wrote about this run: times and paths are not part of a lesson."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds an empty list


def leave_with_parent(run: dict[str, Any]) -> None:
    """Wait until standard input closes; then whoever asked is gone, and the kernel must not stay behind."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):  # not sys.stdin: its lock would be held when this process ends
            pass
    if not run.get("finished"):
        end_children()
        shutil.rmtree(os.environ["JUPYTER_RUNTIME_DIR"], ignore_errors=True)  # made for this run alone
        os._exit(1)


def main() -> int:
    """Read a request, run it, report."""
    channel = Channel()
    request = json.loads(sys.stdin.readline())
    state: dict[str, Any] = {}
    threading.Thread(target=leave_with_parent, args=(state,), daemon=True).start()
    result = execute(request, channel)
    state["finished"] = True
    channel.send("result", **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
