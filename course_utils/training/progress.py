"""Progress while a run goes on: one line with the time left, which is gone when the run is over.

On a terminal it is a bar (from rich, if that is installed). In a notebook it is a line that is updated in place and
emptied at the end, so nothing of it stays in a stored page. In a log it is a plain line every few seconds. The
environment variable COURSE_PROGRESS=0 silences all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[int, str], None]

NOTEBOOK_SECONDS, LOG_SECONDS = 0.5, 10.0


@contextlib.contextmanager
def progress_line(title: str, steps: int, done: int, shown: bool) -> Iterator[Report]:
    """Yields report(step, note), to be called after every step."""
    if not shown or os.environ.get("COURSE_PROGRESS") == "0":
        yield lambda step, note: None
        return
    if _in_notebook():
        with _notebook_line(title, steps, done) as report:
            yield report
    elif sys.stderr.isatty() and (bar := _rich_bar(title, steps, done)) is not None:
        with bar as report:
            yield report
    else:
        yield _timed(lambda text: print(text, file=sys.stderr, flush=True), title, steps, done, LOG_SECONDS)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
    )


def _timed(write: Callable[[str], None], title: str, steps: int, done: int, every: float) -> Report:
    """A report that writes a line at most every so many seconds."""
    began = last = time.monotonic()

    def report(step: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        left = (now - began) / max(1, step - done) * (steps - step)
        write(f"{title}: step {step} of {steps}, {note}, {duration(left)} left")

    return report


@contextlib.contextmanager
def _notebook_line(title: str, steps: int, done: int) -> Iterator[Report]:
    from IPython.display import display

    handle = None

    def write(text: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            handle.update({"text/plain": text}, raw=True)

    try:
        yield _timed(write, title, steps, done, NOTEBOOK_SECONDS)
    finally:
        if handle is not None:
            handle.update({"text/plain": ""}, raw=True)


def _rich_bar(title: str, steps: int, done: int) -> contextlib.AbstractContextManager[Report] | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        return None

    @contextlib.contextmanager
    def bar() -> Iterator[Report]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed} of {task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=steps, completed=done, note="")
            yield lambda step, note: progress.update(task, completed=step, note=note)

    return bar()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
