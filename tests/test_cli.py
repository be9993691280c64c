"""The command line: what each command says, with which exit code, and that errors are for people."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.errors import CourseError

pytest.importorskip("typer")
nbformat = pytest.importorskip("nbformat")

from course_utils import cli  # noqa: E402
from course_utils.cli.common import stored  # noqa: E402
from course_utils.ledger import VERDICTS  # noqa: E402
from course_utils.notebooks.source import lessons, source_hash  # noqa: E402

HEADER = '# ---\n# jupyter:\n#   course: {{title: "{title}", world: finite, gpu: {gpu}}}\n# ---\n\n# %% part="task"\n'


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with two lessons on the CPU (one stored, one not) and one for a GPU; commands run inside it."""
    sources = tmp_path / "notebooks" / "src"
    sources.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        '[tool.course]\nrepository = "a/b"\nbranch = "main"\nlesson_seconds = 90\nlesson_memory_mb = 1200\n'
    )
    for name, title, gpu in (
        ("01_one", "The first", "none"),
        ("02_two", "The second", "none"),
        ("20_gpu", "Large", "required"),
    ):
        (sources / f"{name}.py").write_text(HEADER.format(title=title, gpu=gpu))
    store(tmp_path, "01_one", "print(1.0)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store(root: Path, name: str, source: str, text: str = "1.0\n") -> Path:
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    cell.outputs = [nbformat.v4.new_output("stream", text=text)]
    digest = source_hash(root / "notebooks" / "src" / f"{name}.py")
    facts = {"source_sha256": digest, "seconds": 12.3, "peak_memory_mb": 345}
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"course": facts}), path)
    return path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, what it printed, and what it printed as an error."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    return end.value.code or 0, printed.out, printed.err


def test_the_list_shows_each_lesson_with_its_needs_and_the_state_of_its_notebook(course, capsys):
    code, out, _ = run(capsys, "list")
    first, second, large = (
        next(line for line in out.splitlines() if line.split()[:1] == [nn]) for nn in ("01", "02", "20")
    )
    assert code == 0
    assert "The first" in first and "12 s" in first and "345 MB" in first and "up to date" in first
    assert "missing" in second and "required" in large
    (course / "notebooks" / "src" / "01_one.py").write_text(
        HEADER.format(title="The first", gpu="none") + "x = 1\n"
    )
    assert stored(lessons(course)[0])[0] == "older than its source"


def test_an_error_is_a_panel_with_its_id_and_what_to_do_and_never_a_traceback(course, capsys):
    code, _, err = run(capsys, "run", "99")
    assert code == 2 and "Traceback" not in err
    assert "unknown-lesson" in err and "There is no lesson '99'" in err and "What to do" in err
    assert "TROUBLESHOOTING.md" in err and "01_one" in err


def test_with_course_debug_the_same_error_is_raised(course, monkeypatch):
    monkeypatch.setenv("COURSE_DEBUG", "1")
    with pytest.raises(CourseError, match="99"):
        cli.main(["check", "99"])


def test_outside_a_course_the_answer_says_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("course_utils.notebooks.source.__file__", str(tmp_path / "source.py"))
    code, _, err = run(capsys, "list")
    assert code == 2 and "course-root" in err and "clone" in err


def test_check_prints_every_problem_with_its_place_and_remedy_and_fails(course, capsys, monkeypatch):
    from course_utils.notebooks import contract

    found = [contract.Problem("01_one", 7, "the picture [alt] is bare.", "Give it an alt text.")]
    monkeypatch.setattr(contract, "check_lesson", lambda lesson: found if lesson.name == "01_one" else [])
    code, out, _ = run(capsys, "check")
    assert code == 1
    assert "✗ 01_one, cell 7: the picture [alt] is bare." in out and "→ Give it an alt text." in out
    assert "1 problems in 1 of 3 lessons" in out
    monkeypatch.setattr(contract, "check_lesson", lambda lesson: [])
    assert run(capsys, "check")[0] == 0


def test_run_takes_the_cpu_lessons_and_its_exit_code_tells_whether_all_ran(course, capsys):
    pytest.importorskip("papermill")
    store(course, "02_two", "n = 1\nassert n == 2, 'n is one'")
    code, out, _ = run(capsys, "run", "02", "-p", "n=2")
    assert code == 1 and "✗ 02_two" in out and "AssertionError: n is one" in out
    assert "0 of 1 lessons ran to the end" in out and "The report: runs" in out
    assert (course / "runs" / "course" / "report.html").exists()
    names = [lesson.name for lesson in cli.lessons.choose(None)]
    assert names == ["01_one", "02_two"]


def test_a_parameter_that_a_lesson_does_not_have_is_refused(course, capsys):
    pytest.importorskip("papermill")
    code, _, err = run(capsys, "run", "01", "-p", "speed=2")
    assert code == 2 and "unknown-parameter" in err and "it has no parameters" in err


def test_a_missing_package_is_named_together_with_the_way_to_get_it(course, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jupytext" else find(name))
    code, _, err = run(capsys, "check")
    assert code == 2 and "missing-package" in err and "jupytext" in err and "course-utils[lab]" in err
    monkeypatch.undo()
    monkeypatch.chdir(course)
    monkeypatch.setitem(sys.modules, "nbformat", None)
    code, _, err = run(capsys, "compare", "notebooks/01_one.ipynb", "notebooks/01_one.ipynb")
    assert code == 2 and "nbformat is not installed" in err


def test_compare_tells_two_executions_apart_by_their_numbers(course, capsys):
    other = course / "again"
    other.mkdir()
    fresh = store(course, "02_two", "print(1.0)", "1.0000000001\n")
    fresh.rename(other / "01_one.ipynb")
    assert run(capsys, "compare", "notebooks", "again")[0] == 0
    store(course, "02_two", "print(1.0)", "1.1\n").rename(other / "01_one.ipynb")
    code, out, _ = run(capsys, "compare", "notebooks/01_one.ipynb", "again/01_one.ipynb")
    assert code == 1 and "1 differences" in out


def test_claims_shows_the_ledger_with_words_and_counts(course, capsys):
    code, _, err = run(capsys, "claims")
    assert code == 2 and "no-claims" in err
    folder = course / "data" / "results"
    folder.mkdir(parents=True)
    facts = {
        "source": "this course",
        "expected": 0.5,
        "measured": 0.51,
        "relation": "at least",
        "interval": [0.5, 0.52],
    }
    rows = [
        {"id": f"01.{n}", "statement": "a [bold] claim", "verdict": verdict, **facts}
        for n, verdict in enumerate(VERDICTS)
    ]
    (folder / "claims.json").write_text(json.dumps(rows))
    code, out, _ = run(capsys, "claims")
    assert code == 0 and "a [bold] claim" in out and "≥ 0.5" in out and "0.51 [0.5, 0.52]" in out
    assert "4 claims: 1 holds, 1 holds with a correction, 1 is undecided, 1 does not hold" in out


def test_the_mutants_are_shown_and_a_missed_one_fails(capsys, monkeypatch):
    from course_utils.labs import checks

    row = {"exercise": "01.2", "mutant": "forgot the root", "caught": True, "own_message": True}
    monkeypatch.setattr(checks, "mutation_table", lambda number: [row])
    assert run(capsys, "labs", "mutants")[0] == 0
    monkeypatch.setattr(checks, "mutation_table", lambda number: [row, {**row, "own_message": False}])
    code, out, _ = run(capsys, "labs", "mutants", "01")
    assert code == 1 and "2 mistakes, 1 missed" in out


def test_labs_are_written_where_one_asks_for_them(course, capsys, monkeypatch):
    pytest.importorskip("jupytext")
    from course_utils.labs import build

    asked = []
    monkeypatch.setattr(
        build, "build_labs", lambda root, out, numbers: asked.append((root, out, numbers)) or [out]
    )
    code, out, _ = run(capsys, "labs", "build", "01", "--out", "class")
    assert code == 0 and asked == [(course, Path("class"), ["01"])] and "1 notebooks in class" in out


def test_the_doctor_prints_a_row_for_everything_and_its_exit_code_is_its_verdict(capsys, monkeypatch):
    from course_utils import doctor

    found = [doctor.Finding("memory", "0.5 GB", doctor.PROBLEM, "close other programs")]
    sick = doctor.Diagnosis(tuple(found), (doctor.Finding("CPU lessons", "will not run", doctor.PROBLEM),))
    monkeypatch.setattr(doctor, "summary", lambda: sick)
    code, out, _ = run(capsys, "doctor")
    assert code == 1 and "✗ problem" in out and "→ close other programs" in out


def test_the_version_is_shown_and_a_wrong_option_is_explained(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith("course 0.")
    code, _, err = run(capsys, "--nonsense")
    assert code == 2 and "No such option" in err


def test_the_command_line_starts_without_the_heavy_libraries():
    code = (
        "import sys; from course_utils import cli\n"
        "try: cli.main(['list'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'nbformat', 'papermill', 'jupytext', 'IPython'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr
