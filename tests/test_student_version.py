"""The student version runs from top to bottom untouched: nothing after an exercise depends on the learner's function."""

from pathlib import Path

import nbformat
import pytest

from course_utils.notebooks import build, source
from course_utils.notebooks.execute import run_notebook

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("lesson", source.lessons(ROOT), ids=lambda lesson: lesson.name)
def test_an_untouched_student_version_runs_and_every_check_says_not_attempted(lesson, tmp_path):
    if not lesson.on_cpu:
        pytest.skip("needs a GPU to be worth running")
    before, after = tmp_path / "student.ipynb", tmp_path / "ran.ipynb"
    nbformat.write(build.assemble(lesson, "student"), before)
    run = run_notebook(before, after, working_directory=lesson.notebook.parent, threads=1)
    assert run.ok, run.failed
    ran = nbformat.read(after, as_version=4)
    checks = [cell for cell in ran.cells if cell.metadata.get("part") == "check"]
    assert len(checks) >= 3
    for cell in checks:
        assert "○" in str(cell.outputs) and "not attempted yet" in str(cell.outputs)
