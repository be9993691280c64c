"""Set the course up and run its tasks: `python3 course_utils/bootstrap.py [task]`, on any system, with or
without make.

This file uses the standard library alone and runs on any Python from 3.8, so that a Python that is too old
for the course gets a sentence that says what to install, and not a traceback. The Makefile is a thin skin
over the tasks below.
"""

from __future__ import annotations

import os
import sys

# Run as a script, Python looks for modules in this folder first: `statistics` would be the course's, not the
# standard library's.
if (
    __name__ == "__main__"
    and sys.path
    and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__))
):
    sys.path.pop(0)

import hashlib
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 14))  # from, up to but without
EXTRAS = "dev,trl"
WINDOWS = os.name == "nt"
PROGRAM = "python course_utils\\bootstrap.py" if WINDOWS else "make"

TASKS = {
    "setup": "make the virtual environment and install everything (every other task does this first)",
    "course": "run every CPU lesson and write a report: runs/course/report.html",
    "lab": "open JupyterLab on the lessons",
    "test": "check the style, the lessons and the package; run the finite lessons again and compare",
    "build": "execute the sources in notebooks/src and store the notebooks that readers open",
    "check": "check that every stored lesson keeps the contract",
    "bench": "run the benchmarks",
    "doctor": "say what this machine can do, and what to do about what it cannot",
    "lock": "write constraints.txt anew from the versions installed here",
    "clean": "delete runs/ and caches (not the virtual environment)",
    "help": "show this list",
}


class Problem(Exception):
    """Something a person has to mend: what it is, and how."""

    def __init__(self, what, remedy=""):
        super().__init__(what)
        self.what, self.remedy = what, remedy


# --- which Python, and in what state is the environment
# ------------------------------------------------------------


def supported(version) -> bool:
    """Whether the course runs on this version of Python."""
    return SUPPORTED[0] <= tuple(version[:2]) < SUPPORTED[1]


def version_of(command):
    """The version that a Python command answers with, or None when there is no such command."""
    try:
        text = subprocess.run(
            [*command, "-c", "import sys; print(*sys.version_info[:3])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30,
        ).stdout.decode()
        return tuple(map(int, text.split())) or None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def choose_python(wish, here=None, ask=version_of):
    """The command of a Python that the course supports: the wished one, this one, or another one on this
    machine.
    """
    if wish:
        version = ask([wish])
        if version is None:
            raise Problem(f"PYTHON={wish} cannot be run.", "Let PYTHON name a Python 3.11, 3.12 or 3.13.")
        if not supported(version):
            raise Problem(f"PYTHON={wish} is Python {_dotted(version)}.", install_python())
        return [wish]
    here = here or sys.version_info[:3]
    if supported(here):
        return [sys.executable]
    minors = range(SUPPORTED[1][1] - 1, SUPPORTED[0][1] - 1, -1)
    others = [["py", f"-3.{minor}"] if WINDOWS else [f"python3.{minor}"] for minor in minors]
    for command in others:
        version = ask(command)
        if version and supported(version):
            return command
    raise Problem(f"This is Python {_dotted(here)}; the course needs 3.11, 3.12 or 3.13.", install_python())


def install_python(platform=None):
    """How to get a Python that the course supports."""
    platform = platform or sys.platform
    if platform == "darwin":
        return "Install Python 3.12 (`brew install python@3.12`), then run the same command again."
    if platform == "win32":
        return "Install Python 3.12 (`winget install Python.Python.3.12`), then run the same command again."
    return (
        "Install Python 3.12 with its venv module (Debian, Ubuntu: `sudo apt install python3.12-venv`; "
        "Fedora: `sudo dnf install python3.12`; anywhere: `uv python install 3.12`), "
        "then run the same command again."
    )


def _dotted(version):
    return ".".join(map(str, version))


def fingerprint(root, version) -> str:
    """A hash of what the installation depends on. It changes, and the set-up runs again, when a pin or the
    Python changes.
    """
    digest = hashlib.sha256(_dotted(version[:2]).encode())
    for name in ("constraints.txt", "pyproject.toml"):
        path = root / name
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else b"")
    digest.update(os.environ.get("COURSE_TORCH", "").encode())
    return digest.hexdigest()


def venv_python(venv) -> Path:
    """Where the environment's Python is."""
    return venv / "Scripts" / "python.exe" if WINDOWS else venv / "bin" / "python"


def state(venv, root) -> str:
    """ready | missing | outdated (a pin changed) | half-made (it was interrupted, or its Python is gone) |
    foreign.
    """
    if not venv.exists() or not any(name for name in os.listdir(str(venv)) if name != "setup.log"):
        return "missing"
    config = venv / "pyvenv.cfg"
    if not config.exists():
        return "half-made" if (venv / ".course-begun").exists() else "foreign"
    found = re.search(
        r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", config.read_text(encoding="utf-8"), re.MULTILINE
    )
    version = tuple(map(int, found.groups())) if found else (0, 0)
    if not venv_python(venv).exists() or not supported(version):
        return "half-made"
    written = venv / ".course-setup"
    if not written.exists():
        return "half-made"
    return (
        "ready" if written.read_text(encoding="utf-8").strip() == fingerprint(root, version) else "outdated"
    )


# --- the set-up ---------------------------------------------------------------------------------------------


def torch_version(constraints: str) -> str:
    """The pinned torch."""
    found = re.search(r"^torch==([\d.]+)", constraints, re.MULTILINE)
    return found.group(1) if found else ""


def torch_attempts(python, version, platform=None, wish=""):
    """Ways to get torch, to be tried in this order: (what to say, commands).

    The plain build for Linux brings several GB of CUDA libraries that a CPU lesson never uses. `+cpu` is
    found where an index or find-links holds it; otherwise uv knows where the CPU builds are kept.
    """
    exact = f"torch=={version}" if version else "torch"
    pip = [python, "-m", "pip", "install", "-c", "constraints.txt"]
    plain = [[*pip, exact]]
    if not (platform or sys.platform).startswith("linux") or wish == "gpu":
        return [("torch", plain)]
    uv = [
        python,
        "-m",
        "uv",
        "pip",
        "install",
        "--python",
        python,
        "-c",
        "constraints.txt",
        "--torch-backend=cpu",
        exact,
    ]
    return [
        ("torch for the CPU", [[*pip, exact + "+cpu"]] if version else []),
        ("torch for the CPU, with uv", [[python, "-m", "pip", "install", "uv"], uv]),
        ("torch with CUDA: no CPU build was found, this one takes several GB", plain),
    ]


REMEDIES = (
    ("No space left on device", "Make room on the disk: the environment takes about 2 GB."),
    (
        "ensurepip is not",
        "Install the venv module of this Python (Debian, Ubuntu: `sudo apt install python3-venv`).",
    ),
    (
        r"name resolution|getaddrinfo|NewConnectionError|ConnectTimeout|Network is unreachable",
        "Check the network connection.",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "Tell pip about your certificate: set PIP_CERT to its file."),
    (
        r"Permission denied|Access is denied",
        "Close programs that use the environment, and check who owns the folder.",
    ),
    (r"Microsoft Visual C\+\+", "A package has no build for this Python: use Python 3.12."),
    (
        "ResolutionImpossible",
        "The pins disagree with pyproject.toml: run the task `lock` in a fresh environment.",
    ),
    (
        r"No matching distribution|Could not find a version",
        "Check the network connection and pip's index settings (pip config list).",
    ),
)


def remedy_for(log: str) -> str:
    """What to do about a failed installation, from what pip wrote."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, log):
            return remedy
    return "Read the lines above; the rest is in the log. Run the same command again to go on from here."


class Steps:
    """The steps of the set-up as a person sees them: what is being done, and how long it takes."""

    def __init__(self, log_path, total, root=ROOT):
        self.log_path, self.total, self.root, self.count = log_path, total, root, 0

    def need(self, title, *commands) -> None:
        """Run a step that has to succeed."""
        if not self.run(title, *commands):
            tail = self.tail()
            raise Problem(f"{tail}\n\nThe set-up stopped. The log: {self.log_path}", remedy_for(tail))

    def run(self, title, *commands) -> bool:
        """Run one step's commands; False when one fails. All output goes to the log."""
        self.count += 1
        label = f"  [{self.count}/{self.total}] {title}"
        began, done = time.time(), threading.Event()
        live = sys.stdout.isatty()
        ticker = threading.Thread(target=self._tick, args=(label, began, done), daemon=True)
        if live:
            ticker.start()
        good = False
        try:
            good = all(self._command(command) for command in commands)
        finally:
            done.set()
            if live:
                ticker.join()
                sys.stdout.write("\r\033[K")
            say("{:<66} {:>5.0f} s{}".format(label, time.time() - began, "" if good else "   not possible"))
        return good

    def _command(self, command) -> bool:
        with open(str(self.log_path), "a", encoding="utf-8") as log:
            log.write("\n$ {}\n".format(" ".join(map(str, command))))
            log.flush()
            return (
                subprocess.call(
                    command, cwd=str(self.root), stdout=log, stderr=subprocess.STDOUT, env=pip_environment()
                )
                == 0
            )

    @staticmethod
    def _tick(label, began, done):
        while not done.wait(0.5):
            sys.stdout.write(f"\r{label:<66} {time.time() - began:>5.0f} s")
            sys.stdout.flush()

    def tail(self, lines=15) -> str:
        """The last lines of the log."""
        text = Path(self.log_path).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def pip_environment():
    """This environment, without the settings of another virtual environment or of a user's own packages."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PYTHONNOUSERSITE="1")
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"):
        environment.pop(name, None)
    return environment


def setup(venv, root=ROOT) -> Path:
    """Make the environment ready, whatever state it is in, and return its Python. At once when nothing
    changed.
    """
    condition = state(venv, root)
    python = venv_python(venv)
    if condition == "ready":
        return python
    if condition == "foreign":
        raise Problem(
            f"{venv} is there, and it is not a virtual environment.",
            "Move it away, or let VENV name another folder.",
        )
    healthy = condition != "missing" and is_healthy(python)
    command = [] if healthy else choose_python(os.environ.get("PYTHON"))
    explain = {
        "missing": "Setting the course up: once, a few minutes.",
        "outdated": "The pinned versions changed: bringing the environment up to date.",
        "half-made": "An earlier set-up did not finish: going on from there.",
    }
    say(explain[condition])
    if not healthy:
        remove(venv, root)
    venv.mkdir(parents=True, exist_ok=True)
    (venv / ".course-begun").write_text("The set-up of the course began here.\n", encoding="utf-8")
    if (venv / ".course-setup").exists():
        (venv / ".course-setup").unlink()
    log = venv / "setup.log"
    log.write_text("", encoding="utf-8")
    install(Steps(log, 4, root), venv, root, command)
    stamp(venv, root, version_of([str(python)]))
    return python


def stamp(venv, root, version) -> None:
    """Note that the environment is ready, and for which pins and which Python."""
    (venv / ".course-setup").write_text(fingerprint(root, version) + "\n", encoding="utf-8")


def is_healthy(python) -> bool:
    """Whether an environment can be gone on with: its Python runs, is a supported one, and has pip."""
    version = version_of([str(python)])
    if not version or not supported(version):
        return False
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.call([str(python), "-m", "pip", "--version"], **quiet) == 0


def remove(venv, root) -> None:
    """Delete an environment that cannot be repaired: the project's own, or one that this file began."""
    if venv.exists():
        if venv != root / ".venv" and not (venv / ".course-begun").exists():
            raise Problem(
                f"The environment {venv} does not work, and it was not made by the course.",
                "Delete it, or let VENV name another folder.",
            )
        shutil.rmtree(str(venv))


def install(steps, venv, root, command) -> None:
    """The four steps. `command` is the Python that makes the environment; empty when one is there."""
    python = str(venv_python(venv))
    steps.need("virtual environment", *([[*command, "-m", "venv", str(venv)]] if command else []))
    constraints = root / "constraints.txt"
    pinned = torch_version(constraints.read_text(encoding="utf-8")) if constraints.exists() else ""
    if pinned and installed_torch(python) == pinned:
        steps.need("torch (it is there)")
    else:
        *first, last = torch_attempts(python, pinned, wish=os.environ.get("COURSE_TORCH", ""))
        for title, commands in first:
            if steps.run(title, *commands):
                break
            steps.count -= 1  # the next attempt is the same step
        else:
            steps.need(last[0], *last[1])
    project = [python, "-m", "pip", "install", *limits(root), "-e", f".[{EXTRAS}]"]
    steps.need("the libraries and the course", project)
    steps.need("trying it out", [python, "-c", "import torch, course_utils; assert torch.ones(2).sum() == 2"])


def limits(root):
    """The option of pip that keeps to the pinned versions."""
    return ["-c", "constraints.txt"] if (root / "constraints.txt").exists() else []


def installed_torch(python) -> str:
    """The torch of an environment, without the name of its build (+cpu)."""
    code = "from importlib.metadata import version; print(version('torch').split('+')[0])"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode().strip()


# --- the tasks ----------------------------------------------------------------------------------------------


def clean(root=ROOT) -> int:
    """Delete what can be made again: runs/ and caches."""
    gone = [root / "runs", root / "build"]
    caches = {"__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints"}
    for folder, names, _ in os.walk(str(root)):
        gone += [Path(folder, name) for name in names if name in caches]
        names[:] = [name for name in names if name not in caches and not name.startswith((".git", ".venv"))]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(str(path), ignore_errors=True)
            say(f"deleted {path.relative_to(root)}")
    return 0


def usage() -> str:
    """The tasks, as `help` shows them."""
    lines = ["Preference alignment, measured. What you can ask for:", ""]
    lines += [f"  {PROGRAM} {name:<8} {text}" for name, text in TASKS.items()]
    lines += [
        "",
        "PYTHON=… names the Python to use, VENV=… the environment (.venv);",
        "COURSE_TORCH=gpu asks for torch with CUDA.",
        "Options of a task: {}".format(
            PROGRAM + " course --jobs 2" if WINDOWS else 'make course ARGS="--jobs 2"'
        ),
    ]
    return "\n".join(lines)


def say(text) -> None:
    """Print at once, also when the output is a file, and whatever the terminal's encoding."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def main(arguments) -> int:
    """Run a task: set up first, then hand over to the environment's Python."""
    task, rest = (arguments[0], arguments[1:]) if arguments else ("setup", [])
    if task in ("help", "-h", "--help"):
        say(usage())
        return 0
    if task not in TASKS:
        raise Problem(f"There is no task {task!r}.", "The tasks are: {}.".format(", ".join(TASKS)))
    if task == "clean":
        return clean()
    os.chdir(str(ROOT))
    python = setup(Path(ROOT, os.path.expanduser(os.environ.get("VENV") or ".venv")))
    if task == "setup":
        say(f"Ready. The Python of the course: {python}")
        return 0
    command = [str(python), "-m", "course_utils.tasks", task, *rest]
    if WINDOWS:
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        say("\n{}\n{}".format(problem.what, problem.remedy and "What to do: " + problem.remedy))
        sys.exit(2)
    except KeyboardInterrupt:
        say("\nStopped. Run the same command again to go on from here.")
        sys.exit(130)
