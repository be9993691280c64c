"""What this machine is and has: the probes that `doctor` judges and that a run's report names.

Nothing here judges, and nothing here fails: what cannot be found out is None. torch is imported only where a
device is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "torch",
    "numpy",
    "matplotlib",
    "pydantic",
    "typer",
    "rich",
    "transformers",
    "datasets",
    "safetensors",
    "papermill",
    "jupytext",
    "nbconvert",
    "jupyterlab",
    "psutil",
    "scipy",
    "trl",
    "accelerate",
    "peft",
)
# The variables by which hosts of notebooks announce themselves.
HOSTS = {
    "COLAB_RELEASE_TAG": "Colab",
    "COLAB_GPU": "Colab",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle",
    "BINDER_REPO_URL": "Binder",
    "BINDER_SERVICE_HOST": "Binder",
    "CODESPACES": "Codespaces",
}
MB = 1e6


@dataclass(frozen=True)
class Accelerator:
    """One graphics card, as torch sees it."""

    kind: str  # "cuda" or "mps"
    name: str
    memory_mb: float = 0.0
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False
    count: int = 1


@dataclass(frozen=True)
class Machine:
    """The facts about one machine. A test writes one down; `probe` finds this one's."""

    python: tuple[int, int, int]
    system: str  # "Linux", "Darwin", "Windows"
    processor: str  # "x86_64", "arm64", …
    cores: float
    memory_mb: float | None
    memory_available_mb: float | None
    memory_limit_mb: float | None  # of the container
    disk_free_mb: float | None
    versions: dict[str, str | None] = field(default_factory=dict)
    accelerator: Accelerator | None = None
    host: str = ""  # "Colab", "Kaggle", "Binder", "Codespaces", or nothing
    wsl: bool = False
    clone: bool = True
    torch_error: str = ""

    @property
    def platform(self) -> str:
        """The machine in a few words."""
        system = {"Darwin": "macOS"}.get(self.system, self.system)
        if self.wsl:
            system = "Linux in Windows (WSL)"
        if self.system == "Darwin" and self.processor == "arm64":
            system = "macOS, Apple Silicon"
        place = self.host or ("a clone of the course" if self.clone else "the installed package")
        return f"{system}, {self.processor}, {place}"

    @property
    def usable_memory_mb(self) -> float | None:
        """The memory that a lesson can count on now."""
        known = [value for value in (self.memory_available_mb, self.memory_limit_mb) if value is not None]
        return min(known) if known else None


def probe(device: bool = True) -> Machine:
    """The facts about this machine. `device=False` does not import torch."""
    accelerator, torch_error = find_accelerator() if device else (None, "")
    memory, available = find_memory()
    return Machine(
        python=sys.version_info[:3],
        system=platform.system(),
        processor=platform.machine(),
        cores=usable_cores(),
        memory_mb=memory,
        memory_available_mb=available,
        memory_limit_mb=container_memory_mb(),
        disk_free_mb=_quietly(lambda: shutil.disk_usage(Path.cwd()).free / MB),
        versions=versions(LIBRARIES),
        accelerator=accelerator,
        host=next((name for variable, name in HOSTS.items() if os.environ.get(variable)), ""),
        wsl="microsoft" in _read("/proc/version").lower(),
        clone=(Path(__file__).resolve().parents[1] / "notebooks" / "src").is_dir(),
        torch_error=torch_error,
    )


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each distribution, without importing any."""
    return {name: _quietly(lambda name=name: metadata.version(name)) for name in names}


def usable_cores() -> float:
    """Cores this process may use: those it is allowed to run on, or fewer where a container has a quota."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        cores = float(os.cpu_count() or 1)
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota, period = (
            _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        )
    limits = [
        _quietly(lambda: float(quota) / float(period)),
        _quietly(lambda: float(os.environ["CPU_LIMIT"])),
    ]
    return min([cores, *(limit for limit in limits if limit and limit > 0)])


def threads_for(jobs: int = 1) -> int:
    """Threads for each of `jobs` processes side by side, so that together they do not ask for more than there
    is.
    """
    return max(1, int(usable_cores()) // max(1, jobs))


def container_memory_mb() -> float | None:
    """The memory limit of the container, if there is one."""
    texts = [
        _read("/sys/fs/cgroup/memory.max"),
        _read("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        os.environ.get("MEM_LIMIT", ""),  # Binder and other JupyterHubs
    ]
    limits = [float(text) / MB for text in texts if text.strip().isdigit()]
    real = [limit for limit in limits if 0 < limit < 1e9]  # "no limit" is written as a number near 2^63
    return min(real) if real else None


def find_memory() -> tuple[float | None, float | None]:
    """The memory of the machine and what of it is free now, in 10^6 bytes."""
    try:
        import psutil

        memory = psutil.virtual_memory()
        return memory.total / MB, memory.available / MB
    except ImportError:
        pass
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemTotal" in lines:
        kilobytes = [
            float(lines.get(key, lines["MemTotal"]).split()[0]) for key in ("MemTotal", "MemAvailable")
        ]
        return kilobytes[0] * 1024 / MB, kilobytes[1] * 1024 / MB
    if sys.platform == "win32":
        return _windows_memory()
    total = _quietly(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MB)
    return total, None


def _windows_memory() -> tuple[float | None, float | None]:
    names = [
        "length",
        "load",
        "total",
        "available",
        "page_total",
        "page_free",
        "virtual_total",
        "virtual_free",
        "extended",
    ]

    class Status(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_ulong if index < 2 else ctypes.c_ulonglong) for index, name in enumerate(names)
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.total / MB, status.available / MB


def find_accelerator() -> tuple[Accelerator | None, str]:
    """The graphics card that torch can use, and why torch could not be asked if it could not."""
    try:
        import torch
    except ImportError as error:
        return None, "" if error.name == "torch" else str(error)
    except (
        OSError,
        RuntimeError,
    ) as error:  # installed, and broken: a library is missing, or of another kind
        return None, str(error).splitlines()[0]
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        capability = torch.cuda.get_device_capability(0)
        # Plain is_bf16_supported() counts emulation and says yes on a T4, which has no bf16.
        bf16 = capability >= (8, 0) and torch.cuda.is_bf16_supported(including_emulation=False)
        return Accelerator(
            "cuda", card.name, card.total_memory / MB, capability, bf16, torch.cuda.device_count()
        ), ""
    if torch.backends.mps.is_available():
        return Accelerator("mps", "Apple GPU", bf16=False), ""
    return None, ""


def describe(machine: Machine) -> dict[str, str]:
    """The machine as a report names it: no user names, no paths."""
    memory = machine.memory_limit_mb or machine.memory_mb
    return {
        "system": machine.platform,
        "cores": f"{machine.cores:g}",
        "memory": f"{memory / 1000:.1f} GB" if memory else "unknown",
        "Python": ".".join(map(str, machine.python)),
        "torch": machine.versions.get("torch") or "missing",
        "device": machine.accelerator.name if machine.accelerator else "CPU",
    }


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _quietly(find):
    with contextlib.suppress(Exception):
        return find()
    return None
