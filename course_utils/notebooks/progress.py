"""What a person sees while lessons run: on a terminal a live display, elsewhere (a log, a pipe) one line for
each event that matters.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from course_utils.notebooks.runner import LessonEvent, Record
from course_utils.notebooks.source import Lesson

SYMBOL = {"succeeded": ("✓", "green"), "kept": ("=", "cyan")}
FAILED = ("✗", "red")


def stored_seconds(notebook: Path) -> float | None:
    """The seconds that a stored notebook took when it was built."""
    try:
        return float(json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["course"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Estimate:
    """The time left: what the notebooks say they take, corrected by how fast this machine has been so far."""

    UNKNOWN_SECONDS = 30.0
    OVERHEAD_SECONDS = 5.0  # starting and stopping a kernel, and the HTML page

    def __init__(self, lessons: list[Lesson], jobs: int) -> None:
        self._expected = {
            lesson.name: stored_seconds(lesson.notebook) or self.UNKNOWN_SECONDS for lesson in lessons
        }
        self._jobs = jobs
        self._running: dict[str, float] = {}
        self._left = set(self._expected)
        self._measured = self._foreseen = 0.0

    def started(self, name: str, now: float) -> None:
        self._running[name] = now

    def ended(self, name: str, seconds: float | None) -> None:
        """`seconds` is None for a lesson that was kept: it says nothing about the machine."""
        self._left.discard(name)
        self._running.pop(name, None)
        if seconds is not None:
            self._measured += seconds
            self._foreseen += self._expected[name]

    def seconds_left(self, now: float) -> float:
        """The estimate, in seconds."""
        pace = min(max(self._measured / self._foreseen, 0.2), 20.0) if self._foreseen else 1.0
        left = 0.0
        for name in self._left:
            whole = self._expected[name] * pace + self.OVERHEAD_SECONDS
            left += max(whole - (now - self._running[name]), 0.1 * whole) if name in self._running else whole
        return left / max(1, min(self._jobs, len(self._left) or 1))


class Progress(AbstractContextManager):
    """Shows the events of `run_lessons`: give it as `on_event`."""

    def __init__(self, lessons: list[Lesson], console: Console, jobs: int = 1) -> None:
        self.console, self.total = console, len(lessons)
        self.width = max([len(lesson.name) for lesson in lessons], default=10)
        self.estimate = Estimate(lessons, jobs)
        self.done = 0
        self.running: dict[str, dict[str, Any]] = {}
        self.began = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: LessonEvent) -> None:
        name, now = event.lesson.name, time.monotonic()
        if event.kind == "started":
            self.estimate.started(name, now)
            self.running[name] = {"began": now, "number": 0, "of": 0, "mb": 0.0}
            if not self.console.is_terminal:
                self.console.print(f"… {name}", highlight=False)
        elif event.kind == "cell":
            row, cell = self.running.get(name), event.cell
            if row is not None and cell is not None:
                row["of"] = cell.of or row["of"]
                row["number"] = cell.number or row["number"]
                row["mb"] = max(row["mb"], cell.peak_memory_mb)
        elif event.record is not None:
            self.running.pop(name, None)
            self.done += 1
            self.estimate.ended(name, None if event.kind == "kept" else event.record.seconds)
            self.console.print(self._line(event.record), highlight=False)

    def _line(self, record: Record) -> Text:
        kept = record.now == "kept"
        symbol, colour = SYMBOL.get("kept" if kept else record.status, FAILED)
        line = Text(f"{symbol} ", style=colour)
        line.append(f"{record.name:<{self.width}}", style="default")
        if kept:
            line.append(f"  unchanged, kept from {record.ran_at[:16].replace('T', ' ')} UTC", style="dim")
            return line
        line.append(f"  {record.seconds:6.1f} s  {record.peak_memory_mb:6.0f} MB", style="default")
        if not record.ok:
            cell = record.failed or {}
            reason = f"  {record.status} in cell {cell.get('index', 0) + 1}: {cell.get('error_name')}"
            first = str(cell.get("message", "")).split("\n")[0]
            line.append(f"{reason}: {first[:90]}" if first else reason, style="red")
        return line

    def _render(self) -> Group:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for name, row in self.running.items():
            table.add_row(
                Text("▸ ", style="blue") + Text(f"{name:<{self.width}}"),
                ProgressBar(total=max(row["of"], 1), completed=row["number"], width=20),
                Text(f"cell {row['number']}/{row['of']}" if row["of"] else "starting"),
                Text(f"{now - row['began']:.0f} s"),
                Text(f"{row['mb']:.0f} MB" if row["mb"] else ""),
            )
        left = self.estimate.seconds_left(now)
        footer = (
            f"{self.done} of {self.total} lessons, {duration(now - self.began)}, about {duration(left)} left"
        )
        return Group(table, Text(footer, style="dim"))


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
