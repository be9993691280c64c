"""The peak memory of a kernel, and of nothing else."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.2


class Memory:
    """The peak memory of one kernel and its children, sampled in a thread; where the system keeps a
    high-water mark, that too.
    """

    def __init__(self, pid: int, tell: Callable[[float], None]) -> None:
        import psutil

        self._kernel = psutil.Process(pid)
        self._tell = tell
        self._children: list[psutil.Process] = []
        self._ended = threading.Event()
        self.peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak_mb(self) -> float:
        return self.peak / 1e6

    def _watch(self) -> None:
        turn, told = 0, 0.0
        while not self._ended.wait(SAMPLE_SECONDS):
            self.sample(children=turn % 5 == 0)
            turn += 1
            if self.peak_mb > told * 1.02:
                told = self.peak_mb
                self._tell(told)

    def sample(self, children: bool = True) -> None:
        import psutil

        with contextlib.suppress(psutil.Error, OSError):
            if children:  # looking for children means looking at every process: not each time
                self._children = self._kernel.children(recursive=True)
            now = self._of(self._kernel, shared=bool(self._children)) + sum(map(self._of, self._children))
            self.peak = max(self.peak, now, self._high_water())

    @staticmethod
    def _of(process: Any, shared: bool = True) -> int:
        import psutil

        with contextlib.suppress(psutil.Error, OSError):
            if shared and sys.platform == "linux":
                return process.memory_full_info().pss  # forked children share pages: count each page once
            return process.memory_info().rss
        return 0

    def _high_water(self) -> int:
        """What the system remembers of the kernel alone: a peak between two samples is in it."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            if sys.platform == "linux":
                status = Path(f"/proc/{self._kernel.pid}/status").read_text()
                return int(re.findall(r"^VmHWM:\s+(\d+)", status, flags=re.MULTILINE)[0]) * 1024
        if sys.platform == "win32":
            return self._kernel.memory_info().peak_wset
        return 0

    def finish(self) -> None:
        """Stop sampling. The kernel has ended and been waited for: the system's own figure for it is known
        now.
        """
        self._ended.set()
        self._thread.join(timeout=5)
        try:
            import resource
        except ImportError:  # Windows
            return
        maximum = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (
            maximum > own
        ):  # below that it may be the figure of this process, copied when the kernel was started
            self.peak = max(self.peak, maximum * unit)
