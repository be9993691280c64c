"""What this machine can do for the course, and what to do about what it cannot: `course doctor`, `python -m
course_utils.doctor`.

`diagnose` judges the facts that `machine.probe` found. It is a pure function, so its judgements about
machines that we do not have are tested too.
"""

from __future__ import annotations

import html
import re
import sys
from dataclasses import dataclass

from course_utils.machine import Machine, probe

OK, NOTE, PROBLEM = "ok", "note", "problem"
SYMBOL = {OK: "✓", NOTE: "•", PROBLEM: "✗"}
COLOUR = {OK: "#00714d", NOTE: "#7a5200", PROBLEM: "#a3341f"}
STYLE = {OK: "green", NOTE: "yellow", PROBLEM: "red"}

PYTHON = ((3, 11), (3, 14))  # from, up to but without
# Library, the versions the course is written for, and what needs it. A test holds this against
# pyproject.toml.
SUPPORTED = (
    ("torch", ">=2.6", "every lesson"),
    ("numpy", ">=1.26", "every lesson"),
    ("matplotlib", ">=3.9", "every lesson"),
    ("transformers", ">=4.57.6,<6", "pocket and GPU lessons"),
    ("datasets", ">=4.0", "GPU lessons"),
    ("papermill", ">=2.6", "course run"),
    ("jupytext", ">=1.16.6", "course build"),
    ("trl", ">=1.16,<1.17", "comparisons with TRL"),
)
CPU_MEMORY_MB = 1200
GPU_FULL_MB, GPU_LORA_MB = 14_000, 7_000
DISK_MB = 3_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is here, how that is judged, and what to do."""

    subject: str
    value: str
    status: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a machine, always the same subjects in the same order."""

    findings: tuple[Finding, ...]
    lessons: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the CPU lessons run here."""
        return self.lessons[0].status != PROBLEM

    @property
    def rows(self) -> tuple[Finding, ...]:
        """The findings, then what they mean for the lessons."""
        return self.findings + self.lessons

    def __str__(self) -> str:
        width = max(len(row.subject) for row in self.rows)
        lines = []
        for row in self.rows:
            lines.append(f"{SYMBOL[row.status]} {row.status:<8} {row.subject:<{width}}  {row.value}")
            if row.remedy:
                lines.append(f"{'':<{width + 13}}→ {row.remedy}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            "<tr style='vertical-align:top'>"
            f"<td style='text-align:left;white-space:nowrap;color:{COLOUR[row.status]}'>"
            f"<b>{SYMBOL[row.status]} {row.status}</b></td>"
            f"<td style='text-align:left'>{html.escape(row.subject)}</td>"
            f"<td style='text-align:left'>{html.escape(row.value)}"
            + (f"<br>→ {html.escape(row.remedy)}" if row.remedy else "")
            + "</td></tr>"
            for row in self.rows
        )
        head = "".join(
            f"<th scope='col' style='text-align:left'>{name}</th>" for name in ("", "what", "here")
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def summary() -> Diagnosis:
    """The diagnosis of this machine, as lesson 00 shows it."""
    return diagnose(probe())


def diagnose(machine: Machine) -> Diagnosis:
    """Judge a machine."""
    python = _python(machine)
    memory = _memory(machine)
    libraries = tuple(_library(machine, *entry) for entry in SUPPORTED)
    findings = (
        python,
        _platform(machine),
        _cores(machine),
        memory,
        _disk(machine),
        _device(machine),
        *libraries,
    )
    return Diagnosis(
        findings, (_cpu_lessons(machine, python, memory, libraries), _gpu_lessons(machine, libraries))
    )


def _python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    (low, high) = PYTHON
    if low <= machine.python[:2] < high:
        return Finding("Python", version, OK)
    wanted = f"the course needs {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}"
    return Finding(
        "Python", f"{version}: {wanted}", PROBLEM, python_remedy(machine.system, machine.host, machine.clone)
    )


def python_remedy(system: str, host: str = "", clone: bool = True) -> str:
    """How to get a Python that the course supports."""
    if host == "Colab":
        return "choose another runtime version under Runtime > Change runtime type."
    if host:
        return "open the course anew from the badge in its README: the badge brings the right Python."
    install = {
        "Darwin": "install Python 3.12 (`brew install python@3.12`, or the installer of the Python site)",
        "Windows": "install Python 3.12 (`winget install Python.Python.3.12`)",
    }.get(system, "install Python 3.12 with your package manager, or `uv python install 3.12`")
    return f"{install}, then run `python3.12 course_utils/bootstrap.py`." if clone else f"{install}."


def _platform(machine: Machine) -> Finding:
    if machine.system == "Darwin" and machine.processor == "x86_64":
        return Finding(
            "platform",
            f"{machine.platform}: torch is no longer made for Intel Macs",
            PROBLEM,
            "on a Mac with Apple Silicon install an arm64 Python; on an Intel Mac use Colab or Binder.",
        )
    if machine.system == "Windows" and machine.processor.lower() == "arm64":
        return Finding("platform", machine.platform, NOTE, "if torch cannot be installed, use Python in WSL.")
    return Finding("platform", machine.platform, OK)


def _cores(machine: Machine) -> Finding:
    if machine.cores < 2:
        return Finding(
            "cores", f"{machine.cores:g}", NOTE, "lessons take about twice the minutes printed on them."
        )
    return Finding("cores", f"{machine.cores:g}", OK)


def _memory(machine: Machine) -> Finding:
    usable = machine.usable_memory_mb
    if usable is None:
        return Finding("memory", "not known", NOTE, f"a CPU lesson needs up to {CPU_MEMORY_MB / 1000:g} GB.")
    value = f"{usable / 1000:.1f} GB usable"
    if machine.memory_limit_mb is not None:
        value += f" (this container is limited to {machine.memory_limit_mb / 1000:.1f} GB)"
    if usable >= 2 * CPU_MEMORY_MB:
        return Finding("memory", value, OK)
    if usable >= CPU_MEMORY_MB:
        return Finding(
            "memory", value, NOTE, "open one lesson at a time, and shut its kernel down before the next."
        )
    return Finding("memory", value, PROBLEM, f"{_more_memory(machine)}: a CPU lesson needs up to 1.2 GB.")


def _more_memory(machine: Machine) -> str:
    if machine.host:
        return "shut down the other kernels (Kernel > Shut Down All Kernels)"
    if machine.wsl:
        return "give WSL more memory (`memory=4GB` under [wsl2] in .wslconfig), or close other programs"
    if machine.memory_limit_mb is not None and machine.memory_limit_mb < 2 * CPU_MEMORY_MB:
        return "give the container more memory (with Docker: --memory=4g)"
    return "close other programs and notebooks"


def _disk(machine: Machine) -> Finding:
    free = machine.disk_free_mb
    if free is None:
        return Finding("disk", "not known", NOTE)
    value = f"{free / 1000:.0f} GB free" if free >= 10_000 else f"{free / 1000:.1f} GB free"
    if free >= DISK_MB or machine.versions.get("torch"):
        return Finding("disk", value, OK)
    return Finding("disk", value, PROBLEM, "make room: the libraries take about 2 GB.")


def _device(machine: Machine) -> Finding:
    card = machine.accelerator
    if machine.torch_error:
        return Finding("device", f"torch does not start: {machine.torch_error}", PROBLEM, _install(machine))
    if card is None:
        return Finding("device", "CPU", OK)
    if card.kind == "mps":
        return Finding("device", f"{card.name} (MPS), and the CPU", OK)
    several = f"{card.count} × " if card.count > 1 else ""
    bf16 = "bf16" if card.bf16 else "no bf16"
    capability = ".".join(map(str, card.capability))
    value = f"{several}{card.name}, {card.memory_mb / 1000:.0f} GB, capability {capability}, {bf16}"
    if card.bf16:
        return Finding("device", value, OK)
    return Finding("device", value, NOTE, "the GPU lessons choose fp32 or fp16 here by themselves.")


def _library(machine: Machine, name: str, supported: str, purpose: str) -> Finding:
    version = machine.versions.get(name)
    needed = purpose == "every lesson" or (name == "transformers" and machine.host != "Colab")
    if version is None:
        return Finding(
            name, f"missing; for {purpose}", PROBLEM if needed else NOTE, _install(machine, name, supported)
        )
    if _within(version, supported):
        return Finding(name, version, OK)
    age = (
        "too new"
        if all(_within(version, part) for part in supported.split(",") if part.startswith(">="))
        else "too old"
    )
    remedy = _install(machine, name, supported)
    return Finding(
        name, f"{version}: {age}, the course is written for {supported}", PROBLEM if needed else NOTE, remedy
    )


def _install(machine: Machine, name: str = "", supported: str = "") -> str:
    if machine.host in ("Colab", "Kaggle") and name == "trl":
        return f'optional: %pip install "{name}{supported}", then restart the runtime as it asks.'
    if machine.host in ("Colab", "Kaggle"):
        return (
            f'%pip install "{name}{supported}"'
            if name not in ("", "torch", "numpy")
            else "restart with a fresh runtime."
        )
    if machine.host:
        return "open the course anew from the badge in its README."
    if not machine.clone:
        extra = "trl" if name == "trl" else "lab"
        return f'pip install "course-utils[{extra}]"'
    return (
        "python course_utils\\bootstrap.py"
        if machine.system == "Windows"
        else "make lab (it sets .venv up first)"
    )


def _within(version: str, supported: str) -> bool:
    """Whether a version lies in a range such as ">=4.57.6,<6". Only >= and < are written in this project."""
    have = _numbers(version)
    for part in supported.split(","):
        sign, limit = re.fullmatch(r"(>=|<)([\d.]+)", part).groups()
        if (have >= _numbers(limit)) is not (sign == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = [int(number) for number in re.match(r"\d+(?:\.\d+)*", version).group().split(".")]
    return tuple(found + [0] * (4 - len(found)))


def _cpu_lessons(
    machine: Machine, python: Finding, memory: Finding, libraries: tuple[Finding, ...]
) -> Finding:
    core = [row for row in libraries if row.status == PROBLEM]
    obstacles = [row.subject for row in (python, _platform(machine), memory, *core) if row.status == PROBLEM]
    if machine.torch_error:
        obstacles.append("torch")
    if obstacles:
        return Finding("CPU lessons", f"will not run here: see {', '.join(obstacles)}", PROBLEM, "")
    seconds = "90 s each at most" if machine.cores >= 2 else "up to three minutes each"
    return Finding("CPU lessons", f"run here, {seconds}", OK)


def _gpu_lessons(machine: Machine, libraries: tuple[Finding, ...]) -> Finding:
    card, subject = machine.accelerator, "GPU lessons"
    colab = (
        "choose a T4 under Runtime > Change runtime type" if machine.host == "Colab" else "open them on Colab"
    )
    if card is None or card.kind != "cuda":
        return Finding(
            subject, "only as a rehearsal with a pocket-sized model", NOTE, f"for the real size, {colab}."
        )
    if card.memory_mb < GPU_LORA_MB:
        return Finding(
            subject, f"{card.memory_mb / 1000:.0f} GB is too little", NOTE, f"for the real size, {colab}."
        )
    if any(row.subject in ("trl", "transformers", "datasets") and row.status != OK for row in libraries):
        return Finding(
            subject,
            "the card is large enough; libraries are missing",
            NOTE,
            "see trl, transformers and datasets.",
        )
    if card.memory_mb < GPU_FULL_MB:
        return Finding(subject, "run here with LoRA; a full fine-tune needs about 14 GB", OK)
    return Finding(subject, "run here; lesson 20 says what fits before anything is downloaded", OK)


def main() -> int:
    """Print the diagnosis; exit 1 when the CPU lessons will not run."""
    diagnosis = summary()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    print(diagnosis)
    return 0 if diagnosis.ok else 1


if __name__ == "__main__":
    sys.exit(main())
