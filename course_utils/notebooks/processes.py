"""Processes and files as the notebook pipeline needs them: a clean environment, no process left behind, no
half-written file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

from course_utils.errors import CourseError

HOW_TO_INSTALL = (
    "run `make lab` in a clone (without make: python course_utils/bootstrap.py), "
    'or pip install "course-utils[{extra}]".'
)


def require(packages: tuple[str, ...], extra: str) -> None:
    """Refuse to go on, in plain words, when a package of an optional group is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CourseError(
            "missing-package",
            f"This needs packages that are not installed: {', '.join(missing)}.",
            remedy=HOW_TO_INSTALL.format(extra=extra),
        )


def kernel_environment(folder: Path, threads: int | None = None) -> dict[str, str]:
    """The environment of a worker and its kernel: this one, without the user's own Jupyter and IPython
    settings.
    """
    environment = dict(os.environ)
    for name in ("MPLBACKEND", "JUPYTER_PATH", "PYTHONSTARTUP"):
        environment.pop(name, None)  # figures go inline, and no other kernels or start-up files are found
    environment.update(
        JUPYTER_PREFER_ENV_PATH="1",
        JUPYTER_RUNTIME_DIR=str(folder),
        IPYTHONDIR=str(folder / "ipython"),
        PYDEVD_DISABLE_FILE_VALIDATION="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    # Threads that wait by spinning take the core from the thread they wait for. Where other programs run too,
    # a lesson took 130 s on two cores with spinning, 25 s without.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    here = Path(__file__).resolve().parents[2]
    if (here / "pyproject.toml").is_file():  # run from a clone: the kernel has to find the same course_utils
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), environment.get("PYTHONPATH")]))
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(name, str(threads))
    return environment


def end_process_tree(*pids: int | None, patience: float = 3.0) -> None:
    """End these processes and all that they started: politely, then firmly."""
    import psutil

    tree: dict[int, psutil.Process] = {}
    for pid in filter(None, pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if (
                process.create_time() >= psutil.Process().create_time() - 1
            ):  # a number in use again is not ours
                tree.update({each.pid: each for each in [process, *process.children(recursive=True)]})
    _end(list(tree.values()), patience)


def end_children(patience: float = 1.0) -> None:
    """End everything that this process started."""
    import psutil

    _end(psutil.Process().children(recursive=True), patience)


def _end(processes: list, patience: float) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience)


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
