"""The build: what is stored belongs to the source, carries badges, and holds no trace of the machine."""

from pathlib import Path

import nbformat
import pytest

from course_utils.notebooks import build, readme, source

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lesson():
    return source.select(["01"], ROOT)[0]


def test_assembling_twice_gives_the_same_notebook(lesson):
    assert nbformat.writes(build.assemble(lesson)) == nbformat.writes(build.assemble(lesson))


def test_badges_name_the_repository_and_the_measured_cost(lesson):
    cell = build.assemble(lesson, measured={"seconds": 12.3, "peak_memory_mb": 456}).cells[0].source
    place = source.settings(ROOT)
    assert cell.startswith("# 01 · Bradley–Terry")
    assert f"colab.research.google.com/github/{place.repository}/blob/{place.branch}/notebooks/01_bradley_terry.ipynb" in cell
    assert f"mybinder.org/v2/gh/{place.repository}/{place.branch}?urlpath=lab/tree/notebooks/01_bradley_terry.ipynb" in cell
    assert "12 s on two cores · 456 MB at the peak · no GPU needed" in cell


def test_the_repository_is_named_in_one_place():
    slug = source.settings(ROOT).repository
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks" / "src").glob("*.py")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "course_utils").rglob("*.py")]
    assert not any(slug in text for text in texts)
    assert f"https://github.com/{slug}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_set_up_cell_is_the_same_in_every_lesson():
    cells = [next(c for c in build.assemble(one).cells if c.cell_type == "code").source for one in source.lessons(ROOT)]
    first = {cell.split("\nimport ")[0] for cell in cells}
    assert len(first) == 1
    assert "--no-deps" in first.pop()


@pytest.mark.parametrize("version", ["reading", "student", "instructor"])
def test_each_version_is_a_valid_notebook(lesson, version):
    nbformat.validate(build.assemble(lesson, version))


def test_the_student_version_holds_no_solution(lesson):
    student = build.assemble(lesson, "student")
    assert not [cell for cell in student.cells if cell.metadata.get("part") == "solution" and cell.cell_type == "code"]
    assert "logsigmoid(scores[winners]" not in nbformat.writes(student)


def test_a_figure_is_shown_and_its_code_is_folded(lesson):
    folded = [cell for cell in build.assemble(lesson).cells if "figure" in cell.metadata.get("tags", [])]
    assert folded and all(cell.metadata["jupyter"]["source_hidden"] for cell in folded)


def test_outputs_lose_widgets_and_paths_and_keep_whole_streams():
    out = nbformat.v4.new_output
    outputs = [
        out("stream", name="stdout", text=f"wrote {ROOT}/data/x.json\n"),
        out("stream", name="stdout", text=f"home {Path.home()}/y\n"),
        out("display_data", data={build.WIDGET_MIME: {}, "text/plain": "interactive(...)"}),
        out("stream", name="stderr", text="a warning"),
    ]
    kept = build.clean_outputs(outputs, ROOT)
    assert [(one.name, one.text) for one in kept] == [
        ("stdout", "wrote ./data/x.json\nhome ~/y\n"),
        ("stderr", "a warning"),
    ]


def test_a_digest_notices_a_changed_digit():
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="0.0194")]
    before = build.output_digest(cell)
    cell.outputs[0].text = "0.0195"
    assert build.output_digest(cell) != before


def test_the_stored_claims_are_those_of_the_notebooks():
    import json

    stored = json.loads((ROOT / "data" / "results" / "claims.json").read_text(encoding="utf-8"))
    assert stored == build.stored_claims(ROOT)
    assert {row["lesson"] for row in stored} == {lesson.name for lesson in source.lessons(ROOT)}


def test_the_readme_says_what_the_notebooks_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_generated_parts(text, ROOT) == text
