"""The contract: every rule is broken once on purpose, and `course check` has to say which cell and why."""

import copy
from pathlib import Path

import nbformat
import pytest

from course_utils.errors import CourseError
from course_utils.notebooks import build, contract, source

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lesson():
    return source.select(["01"], ROOT)[0]


@pytest.fixture(scope="module")
def stored(lesson):
    return nbformat.read(lesson.notebook, as_version=4)


@pytest.mark.parametrize("lesson", source.lessons(ROOT), ids=lambda lesson: lesson.name)
def test_every_stored_lesson_keeps_the_contract(lesson):
    assert [str(problem) for problem in contract.check_lesson(lesson)] == []


def code(notebook, with_output=False):
    return next(
        (index, cell)
        for index, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code" and (cell.outputs or not with_output)
    )


def change_output(notebook):
    index, cell = code(notebook, with_output=True)
    cell.outputs[0].setdefault("data", {})["text/plain"] = "0.9999"
    return index, "changed after the build"


def change_text(notebook):
    notebook.cells[5].source += " And more."
    return 6, "not that of the source"


def change_count(notebook):
    index, cell = code(notebook)
    cell.execution_count = 7
    return index, "execution count 7, not 1"


def add_error(notebook):
    index, cell = code(notebook)
    cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]
    return index, "stored error: ValueError"


def add_path(notebook):
    index, cell = code(notebook)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="saved to /home/ada/course")]
    return index, "folder of a machine"


def add_widget(notebook):
    index, cell = code(notebook)
    cell.outputs = [nbformat.v4.new_output("display_data", data={build.WIDGET_MIME: {"model_id": "x"}})]
    return index, "widget view"


def add_widget_metadata(notebook):
    notebook.metadata["widgets"] = {}
    return None, "widget metadata"


def lose_alt_text(notebook):
    for index, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata = {}
                return index, "figure without alt text"
    raise AssertionError("lesson 01 has no figure")


def add_markdown_image(notebook):
    notebook.cells[2].source += "\n![](picture.png)"
    return 3, "image without alt text"


def add_formula_image(notebook):
    notebook.cells[2].source += "\n![the loss](https://latex.example/eq.png)"
    return 3, "formula as an image"


def add_long_code(notebook):
    index, cell = code(notebook)
    cell.source = "\n".join(f"x{i} = {i}" for i in range(30))
    return index, "30 lines of code"


def add_wide_code(notebook):
    index, cell = code(notebook)
    cell.source += "\n" + "x = " + "1 + " * 40 + "1"
    return index, "runs off the page"


def add_long_text(notebook):
    notebook.cells[2].source = "word " * 130
    return 3, "130 words"


def add_many_cells(notebook):
    notebook.cells += [nbformat.v4.new_markdown_cell("text") for _ in range(30)]
    return None, "the limit is 60"


def lose_a_room(notebook):
    for cell in notebook.cells:
        cell.source = cell.source.replace("## Objectives", "## Aims")
    return None, "“## Objectives” is missing"


def lose_exercises(notebook):
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("exercise") != "01.2"]
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("exercise") != "01.3"]
    return None, "3 exercises"


def fail_a_solution(notebook):
    for index, cell in enumerate(notebook.cells, 1):
        if cell.metadata.get("part") == "solution" and cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="✗ Exercise 01.1: wrong")]
            return index, "does not pass its own check"
    raise AssertionError("lesson 01 has no solution")


def be_slow(notebook):
    notebook.metadata["course"]["seconds"] = 91.0
    return None, "91 s; the limit is 90 s"


def be_large(notebook):
    notebook.metadata["course"]["peak_memory_mb"] = 1201
    return None, "1201 MB; the limit is 1200 MB"


def lose_the_stamp(notebook):
    del notebook.metadata["course"]
    return None, "not made by the build"


def have_an_older_source(notebook):
    notebook.metadata["course"]["source_sha256"] = "0" * 64
    return None, "source has changed"


BREACHES = [value for name, value in list(globals().items()) if callable(value) and name.startswith(
    ("change_", "add_", "lose_", "fail_", "be_", "have_"))]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_breach_is_named_with_its_cell(breach, lesson, stored):
    notebook = copy.deepcopy(stored)
    cell, what = breach(notebook)
    found = [problem for problem in contract.check_notebook(lesson, notebook) if what in problem.what]
    assert found, f"nothing said {what!r}"
    assert cell in [problem.cell for problem in found]
    assert all(problem.remedy for problem in found)


def test_a_missing_or_broken_notebook_is_one_clear_problem(lesson, tmp_path):
    import dataclasses

    absent = dataclasses.replace(lesson, notebook=tmp_path / "01_bradley_terry.ipynb")
    assert "missing" in contract.check_lesson(absent)[0].what
    absent.notebook.write_text("{ not json", encoding="utf-8")
    assert "not a valid notebook" in contract.check_lesson(absent)[0].what


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("one two three", 3),
        ("a formula $x + y = z$ here", 3),
        ("display $$\\frac{a}{b}$$ done", 2),
        ("a [link](https://example.org/with/words) here", 3),
        ("Bradley–Terry is one word, don't you think", 7),
    ],
)
def test_words_are_what_a_reader_reads(text, count):
    assert contract.words(text) == count


def test_an_unknown_lesson_is_refused_with_the_known_ones():
    with pytest.raises(CourseError, match="01_bradley_terry"):
        source.select(["99"], ROOT)


def test_a_source_without_a_header_is_refused(tmp_path):
    path = tmp_path / "07_nothing.py"
    path.write_text("# %%\nprint(1)\n", encoding="utf-8")
    with pytest.raises(CourseError, match="title, world, gpu"):
        source.read_lesson(path)
