"""The set-up: which Python, which state, which torch, and what is said when something cannot be done. Nothing is installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from course_utils import bootstrap, tasks
from course_utils.bootstrap import Problem, choose_python, fingerprint, remedy_for, state, torch_attempts

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    """A project's folder with its pins."""
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


@pytest.fixture
def venv(root):
    """A finished environment, as far as its files tell."""
    folder = root / ".venv"
    python = bootstrap.venv_python(folder)
    python.parent.mkdir(parents=True)
    python.write_text("")
    (folder / "pyvenv.cfg").write_text("home = somewhere\nversion = 3.11.7\n")
    (folder / ".course-begun").write_text("")
    bootstrap.stamp(folder, root, (3, 11, 7))
    return folder


def test_the_file_is_written_in_python_3_8_and_imports_the_standard_library_alone():
    tree = ast.parse(Path(bootstrap.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


def test_run_as_a_script_it_finds_the_standard_library_and_not_the_modules_beside_it():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "course_utils" / "bootstrap.py"), "help"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0 and "course" in done.stdout
    assert "torch" not in done.stderr


def test_this_python_is_chosen_when_it_is_supported_and_another_one_when_it_is_not():
    assert choose_python("", here=(3, 12, 1)) == [sys.executable]
    answers = {"3.13": (3, 13, 0), "3.12": None, "3.11": (3, 11, 9)}
    ask = lambda command: answers[re.search(r"3\.\d+", command[-1]).group()]  # noqa: E731
    assert choose_python(None, here=(3, 9, 2), ask=ask)[-1].endswith("3.13")
    answers["3.13"] = None
    assert choose_python(None, here=(3, 14, 0), ask=ask)[-1].endswith("3.11")


def test_without_any_supported_python_the_answer_names_what_to_install():
    with pytest.raises(Problem) as problem:
        choose_python(None, here=(3, 8, 18), ask=lambda command: None)
    assert "3.8.18" in problem.value.what and "3.12" in problem.value.remedy
    for platform, words in {"darwin": "brew", "win32": "winget", "linux": "apt install"}.items():
        assert words in bootstrap.install_python(platform)


def test_a_wished_python_is_used_or_refused_by_name():
    assert choose_python("mine", ask=lambda command: (3, 13, 0)) == ["mine"]
    for version, words in (((3, 10, 0), "is Python 3.10.0"), (None, "cannot be run")):
        with pytest.raises(Problem, match=words):
            choose_python("mine", ask=lambda command, version=version: version)


def test_the_state_of_an_environment_is_told_from_its_files(root, venv):
    assert state(root / "absent", root) == "missing"
    assert state(venv, root) == "ready"
    (root / "constraints.txt").write_text("torch==2.14.0\n")
    assert state(venv, root) == "outdated"
    (venv / ".course-setup").unlink()
    assert state(venv, root) == "half-made"


@pytest.mark.parametrize("damage", ["no Python", "an old Python", "only begun"])
def test_a_damaged_environment_counts_as_half_made(root, venv, damage):
    if damage == "no Python":
        bootstrap.venv_python(venv).unlink()
    elif damage == "an old Python":
        (venv / "pyvenv.cfg").write_text("version_info = 3.10.4.final.0\n")
    else:
        (venv / "pyvenv.cfg").unlink()
    assert state(venv, root) == "half-made"


def test_a_folder_that_is_no_environment_is_never_touched(root):
    mine = root / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert state(mine, root) == "foreign"
    with pytest.raises(Problem, match="not a virtual environment"):
        bootstrap.setup(mine, root)
    (mine / "pyvenv.cfg").write_text("version = 3.11.7\n")  # an environment of somebody's own, and broken
    with pytest.raises(Problem, match="not made by the course"):
        bootstrap.remove(mine, root)
    assert (mine / "thesis.txt").exists()


def test_a_ready_environment_costs_no_process_at_all(root, venv, monkeypatch):
    monkeypatch.setattr(subprocess, "call", None)
    monkeypatch.setattr(subprocess, "run", None)
    assert bootstrap.setup(venv, root) == bootstrap.venv_python(venv)


def test_the_fingerprint_follows_the_pins_and_the_python_but_not_line_endings(root):
    first = fingerprint(root, (3, 11, 7))
    assert fingerprint(root, (3, 11, 9)) == first != fingerprint(root, (3, 12, 7))
    (root / "constraints.txt").write_bytes(b"torch==2.13.0\r\n")
    assert fingerprint(root, (3, 11, 7)) == first
    (root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert fingerprint(root, (3, 11, 7)) != first


def test_an_interrupted_set_up_is_gone_on_with_and_a_broken_one_begun_anew(root, venv, monkeypatch):
    made = []
    monkeypatch.setattr(
        bootstrap, "install", lambda steps, venv, root, command: made.append((steps, command))
    )
    monkeypatch.setattr(bootstrap, "version_of", lambda command: (3, 11, 7))
    (venv / ".course-setup").unlink()
    (venv / "kept").write_text("")
    monkeypatch.setattr(bootstrap, "is_healthy", lambda python: True)
    bootstrap.setup(venv, root)
    assert made[-1][1] == [] and (venv / "kept").exists() and (venv / ".course-setup").exists()
    (venv / ".course-setup").unlink()
    monkeypatch.setattr(bootstrap, "is_healthy", lambda python: False)
    monkeypatch.setattr(bootstrap, "choose_python", lambda wish: ["python3.12"])
    bootstrap.setup(venv, root)
    assert made[-1][1] == ["python3.12"] and not (venv / "kept").exists()


def test_on_linux_torch_for_the_cpu_is_tried_twice_before_the_large_one():
    attempts = torch_attempts("py", "2.13.0", platform="linux")
    first, second, third = [" ".join(commands[-1]) for _, commands in attempts]
    assert first.endswith("torch==2.13.0+cpu")
    assert "uv pip install" in second and "--torch-backend=cpu" in second and second.endswith("torch==2.13.0")
    assert third.endswith("torch==2.13.0") and "GB" in attempts[2][0]
    assert all("http" not in word for _, commands in attempts for command in commands for word in command)


@pytest.mark.parametrize(("platform", "wish"), [("darwin", ""), ("win32", ""), ("linux", "gpu")])
def test_elsewhere_and_on_request_the_plain_torch_is_taken(platform, wish):
    attempts = torch_attempts("py", "2.13.0", platform=platform, wish=wish)
    assert [" ".join(commands[0]).split()[-1] for _, commands in attempts] == ["torch==2.13.0"]


class Recorder(bootstrap.Steps):
    """Steps that only write down what would be run; `refused` says which commands fail."""

    def __init__(self, log, refused=""):
        super().__init__(log, 4)
        self.refused, self.titles, self.commands = refused, [], []

    def _command(self, command) -> bool:
        self.commands.append(" ".join(map(str, command)))
        return not (self.refused and re.search(self.refused, self.commands[-1]))


def installed(root, venv, refused=""):
    log = venv / "setup.log"
    log.write_text("ERROR: No matching distribution found for torch\n")
    steps = Recorder(log, refused)
    bootstrap.install(steps, venv, root, ["python3.12"])
    return steps.commands


def test_torch_comes_before_everything_else_and_the_rest_keeps_to_the_pins(root, venv, monkeypatch):
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: "")
    monkeypatch.setattr(sys, "platform", "linux")
    commands = installed(root, venv)
    assert [re.search(r"-m venv|torch==\S+|-e \S+|-c import", line).group() for line in commands] == [
        "-m venv",
        "torch==2.13.0+cpu",
        "-e .[dev,trl]",
        "-c import",
    ]
    assert all("-c constraints.txt" in line for line in commands if " pip install " in line)


def test_a_second_attempt_is_the_same_step(root, venv, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: "")
    monkeypatch.setattr(sys, "platform", "linux")
    installed(root, venv, refused=r"\+cpu")
    out = capsys.readouterr().out
    assert "[2/4] torch for the CPU, with uv" in out and "[4/4] trying it out" in out and "CUDA" not in out


def test_a_torch_that_is_there_is_not_fetched_again(root, venv, monkeypatch):
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: "2.13.0")
    assert not [line for line in installed(root, venv) if "torch==" in line]


def test_when_no_torch_can_be_had_the_end_of_the_log_and_a_remedy_are_shown(root, venv, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "installed_torch", lambda python: "")
    with pytest.raises(Problem) as problem:
        installed(root, venv, refused="torch==")
    assert "No matching distribution" in problem.value.what and "setup.log" in problem.value.what
    assert "network connection" in problem.value.remedy
    assert "[2/4]" in capsys.readouterr().out


def test_each_known_failure_has_a_remedy_of_its_own():
    logs = {
        "OSError: [Errno 28] No space left on device": "room on the disk",
        "The virtual environment was not created because ensurepip is not available": "python3-venv",
        "Failed to establish a new connection: getaddrinfo failed": "network",
        "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]": "PIP_CERT",
        "ERROR: ResolutionImpossible: for help visit": "lock",
        "something new": "Run the same command again",
    }
    for log, words in logs.items():
        assert words in remedy_for(log)


def test_cleaning_deletes_results_and_caches_and_nothing_else(root, venv, capsys):
    for name in (
        "runs/course",
        "notebooks/.ipynb_checkpoints",
        "course_utils/__pycache__",
        ".venv/x/__pycache__",
    ):
        (root / name).mkdir(parents=True)
    (root / "notebooks" / "01_one.ipynb").write_text("{}")
    assert bootstrap.clean(root) == 0
    assert not (root / "runs").exists() and not (root / "course_utils" / "__pycache__").exists()
    assert (root / "notebooks" / "01_one.ipynb").exists() and (venv / "x" / "__pycache__").exists()
    assert "deleted runs" in capsys.readouterr().out


def test_makefile_bootstrap_and_tasks_know_the_same_tasks():
    targets = set(
        re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    )
    assert targets == set(bootstrap.TASKS)
    assert set(tasks.TASKS) == set(bootstrap.TASKS) - {"setup", "clean", "help"}
    assert all(name in bootstrap.usage() for name in bootstrap.TASKS)


def test_an_unknown_task_is_answered_with_the_list():
    with pytest.raises(Problem) as problem:
        bootstrap.main(["curse"])
    assert "course, lab, test" in problem.value.remedy


def test_the_pins_name_versions_alone_and_cover_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin) for pin in pins)
    names = {re.split("==", pin)[0].lower().replace("_", "-") for pin in pins}
    assert not names & tasks.NOT_LOCKED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    direct = {re.match(r"[a-z-]+", line).group() for group in groups for line in group} - {"course-utils"}
    assert direct <= names


def test_the_written_pins_have_no_builds_and_no_tools_of_installation():
    text = tasks.locked(
        {"torch": "2.13.0+cpu", "Jinja2": "3.1.6", "pip": "25.0", "course-utils": "0.1.0"}, "3.11"
    )
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "Jinja2==3.1.6",
        "torch==2.13.0",
    ]


def test_the_tests_are_one_call_of_pytest_with_the_finite_lessons_through_nbval():
    assert tasks.pytest_arguments([]) == ["tests"]
    arguments = tasks.pytest_arguments(["notebooks/01_one.ipynb"])
    assert arguments[:2] == ["tests", "notebooks/01_one.ipynb"] and "--nbval-current-env" in arguments
    sanitize = next(word for word in arguments if "sanitize" in word).partition("=")[2]
    assert (ROOT / sanitize).exists()
