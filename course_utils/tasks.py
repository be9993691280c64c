"""The tasks behind the Makefile, run by the environment's Python: `python -m course_utils.tasks course`.

`bootstrap.py` makes the environment ready and then comes here; the names and their explanations are in its
table TASKS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_HEADER = """\
# The versions with which the course was last tested, all of them (direct and indirect).
# Made by `make lock` on Python {python} from the installed environment; do not edit by hand.
#
# Used as constraints: a line counts only where its package is needed at all, so a package for one system or
# one Python alone does no harm elsewhere. Made on the oldest supported Python, for which versions are the
# hardest to find. Packages that only other systems need (Windows, macOS) are not pinned. `torch` is pinned
# without the name of its build, so that the CPU build and the CUDA build both fit.
"""
NOT_LOCKED = {"pip", "setuptools", "wheel", "uv", "course-utils"}


def course(arguments: list[str]) -> int:
    """Run every CPU lesson and write the report."""
    return _cli("run", *arguments)


def build(arguments: list[str]) -> int:
    """Execute the sources and store the notebooks."""
    return _cli("build", *arguments)


def check(arguments: list[str]) -> int:
    """Check the contract of the stored lessons."""
    return _cli("check", *arguments)


def doctor(arguments: list[str]) -> int:
    """Say what this machine can do."""
    return _cli("doctor", *arguments)


def lab(arguments: list[str]) -> int:
    """Open JupyterLab on the first lesson."""
    first = next(iter(sorted((ROOT / "notebooks").glob("*.ipynb"))), None)
    page = f"/lab/tree/notebooks/{first.name}" if first else "/lab"
    return _run("jupyterlab", f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url={page}", *arguments)


def test(arguments: list[str]) -> int:
    """Style, then the contract, then the tests together with a fresh execution of the finite lessons."""
    from course_utils.machine import usable_cores

    for title, module, *rest in (
        ("Style", "ruff", "check", "."),
        ("The contract of the lessons", "course_utils.cli", "check"),
    ):
        print(f"— {title}", flush=True)
        code = _run(module, *rest)
        if code:
            return code
    stored = finite_notebooks()
    print(f"— The tests, and {len(stored)} finite lessons executed again", flush=True)
    workers = min(int(usable_cores()), 8)
    # loadfile: the cells of one notebook share a kernel, so they stay in one process, and in order.
    side_by_side = ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    return _run("pytest", *side_by_side, *pytest_arguments(stored), *arguments, threads=1)


def pytest_arguments(stored: list[str]) -> list[str]:
    """What pytest is asked to run: the tests, and these notebooks through nbval."""
    if not stored:
        return ["tests"]
    return [
        "tests",
        *stored,
        "--nbval",
        "--nbval-current-env",
        "--nbval-cell-timeout=120",
        "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
    ]


def finite_notebooks() -> list[str]:
    """The stored lessons of the finite world, which run in seconds and always give the same."""
    from course_utils.notebooks.source import lessons

    finite = [lesson for lesson in lessons(ROOT) if lesson.world == "finite" and lesson.on_cpu]
    return [lesson.notebook.relative_to(ROOT).as_posix() for lesson in finite if lesson.notebook.exists()]


def bench(arguments: list[str]) -> int:
    """Run the benchmarks one after the other."""
    found = sorted((ROOT / "benchmarks").glob("[!_]*.py"))
    chosen = [path for path in found if not arguments or path.stem in arguments]
    print("Benchmarks: " + (", ".join(path.stem for path in chosen) or "none here"), flush=True)
    codes = []
    for path in chosen:
        print(f"— {path.stem}", flush=True)
        codes.append(subprocess.call([sys.executable, str(path)], cwd=ROOT, env=environment()))
    return max(codes, default=0)


def lock(arguments: list[str]) -> int:
    """Write constraints.txt from what is installed here."""
    from course_utils import bootstrap
    from course_utils.notebooks.processes import write_atomically

    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    text = locked(installed, ".".join(map(str, sys.version_info[:2])))
    write_atomically(ROOT / "constraints.txt", text)
    if (Path(sys.prefix) / ".course-setup").exists():
        bootstrap.stamp(Path(sys.prefix), ROOT, sys.version_info)  # what is installed is what is pinned now
    print(f"constraints.txt: {text.count('==')} packages")
    return 0


def locked(installed: dict[str, str], python: str) -> str:
    """The text of constraints.txt. No addresses, no paths, no names of builds."""
    lines = [
        f"{name}=={version.split('+')[0]}"
        for name, version in sorted(installed.items(), key=lambda item: item[0].lower())
        if name.lower().replace("_", "-") not in NOT_LOCKED
    ]
    return LOCK_HEADER.format(python=python) + "\n".join(lines) + "\n"


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment, with our kernels preferred and, if asked, a limit to the threads of one
    process.
    """
    values = dict(os.environ, JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), values.get("PATH", "")])
    values.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        values.setdefault("OMP_NUM_THREADS", str(threads))
    return values


def _run(module: str, *arguments: str, threads: int | None = None) -> int:
    return subprocess.call([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment(threads))


def _cli(*arguments: str) -> int:
    return _run("course_utils.cli", *arguments)


TASKS = {task.__name__: task for task in (course, lab, test, build, check, bench, doctor, lock)}


if __name__ == "__main__":
    try:
        sys.exit(TASKS[sys.argv[1]](sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
