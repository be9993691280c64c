"""The lessons of the pocket world and of real models, executed again: no error, the same words, every claim with its stored verdict.

Training in floats is chaotic in the last digits, so a cell that trains says that its output may differ; claims are
compared by their verdicts, which may not depend on the machine. A lesson of real models runs here with tiny models: that
proves its code, and the page says so.
"""

import nbformat
import pytest

from course_utils import ledger
from course_utils.notebooks.compare import compare_notebooks
from course_utils.notebooks.execute import run_notebook
from course_utils.notebooks.source import course_root, lessons

TRAINED = [
    lesson for lesson in lessons(course_root()) if lesson.world in ("pocket", "real") and lesson.gpu != "required"
]


def verdicts(notebook) -> dict[str, str]:
    return {row["id"]: row["verdict"] for row in ledger.collect(notebook)}


@pytest.mark.slow
@pytest.mark.parametrize("lesson", TRAINED, ids=lambda lesson: lesson.name)
def test_a_lesson_that_trains_language_models_gives_the_same_again(lesson, tmp_path):
    done = tmp_path / lesson.notebook.name
    result = run_notebook(lesson.notebook, done, working_directory=lesson.notebook.parent, threads=1)
    assert result.status == "succeeded", result.failed
    stored, fresh = (nbformat.read(path, as_version=4) for path in (lesson.notebook, done))
    assert verdicts(fresh) == verdicts(stored)
    assert not [str(difference) for difference in compare_notebooks(stored, fresh)]
