"""Running several lessons: the order, what is kept, what a failure does, the estimate, and the report."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from course_utils.errors import CourseError

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

from course_utils.ledger import MIME, SYMBOL, VERDICTS  # noqa: E402
from course_utils.notebooks import runner  # noqa: E402
from course_utils.notebooks.execute import FailedCell, RunResult  # noqa: E402
from course_utils.notebooks.progress import Estimate, duration, stored_seconds  # noqa: E402
from course_utils.notebooks.report import report_html  # noqa: E402
from course_utils.notebooks.runner import load_records, run_lessons  # noqa: E402
from course_utils.notebooks.source import Lesson, lessons  # noqa: E402

CLAIM = {
    "id": "01.one",
    "source": "this course",
    "statement": "one & one <is> two",
    "expected": 2.0,
    "measured": 2.0,
    "verdict": "holds",
    "relation": "equals",
    "interval": None,
    "tolerance": 1e-6,
    "corrected": None,
    "correction": None,
    "digits": 4,
}
SHOW = f"from IPython.display import display\ndisplay({{'text/plain': 'x', {MIME!r}: {CLAIM!r}}}, raw=True)"


def course(root: Path, cells: dict[str, list[str]]) -> list[Lesson]:
    """A course of one's own: sources, stored notebooks, settings, and a file of the package."""
    (root / "notebooks" / "src").mkdir(parents=True)
    (root / "course_utils").mkdir()
    (root / "course_utils" / "objectives.py").write_text("beta = 0.1\n")
    (root / "pyproject.toml").write_text(
        '[tool.course]\nrepository = "a/b"\nbranch = "main"\nlesson_seconds = 90\nlesson_memory_mb = 1200\n'
    )
    for name, sources in cells.items():
        header = (
            f'# ---\n# jupyter:\n#   course: {{title: "Lesson {name}", world: finite, gpu: none}}\n# ---\n'
        )
        (root / "notebooks" / "src" / f"{name}.py").write_text(header)
        made = [nbformat.v4.new_code_cell(source) for source in sources]
        made[0].metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=made, metadata={"course": {"seconds": 12.5}})
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    return lessons(root)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Three lessons, of which the second fails; run once."""
    root = tmp_path_factory.mktemp("course")
    cells = {"01_one": ["n = 1", SHOW], "02_two": ["n = 2", "1 / 0"], "03_three": ["n = 3", "print(n)"]}
    chosen = course(root, cells)
    events: list[tuple[str, str]] = []
    first = run_lessons(
        chosen, root / "out", jobs=3, on_event=lambda event: events.append((event.kind, event.lesson.name))
    )
    return root, chosen, first, events


class QuickRun:
    """Stands in for a kernel: what is decided around an execution can be tested without one."""

    def __init__(self, path, output, parameters, *, html_path, working_directory, **_):
        self.path, self.output, self.page = path, output, html_path
        assert Path(working_directory).name == "notebooks"

    def wait(self) -> RunResult:
        shutil.copy(self.path, self.output)
        self.page.write_text("<p>page</p>")
        bad = "1 / 0" in self.path.read_text()
        failed = FailedCell(1, "1 / 0", "ZeroDivisionError", "division by zero") if bad else None
        return RunResult("failed" if bad else "succeeded", 1.0, 2.0, 100.0, 2, self.output, failed)

    def stop(self) -> None:
        """There is nothing to stop."""


@pytest.fixture
def again(ran, tmp_path, monkeypatch):
    """A copy of that course, to be changed and run without kernels."""
    monkeypatch.setattr(runner, "NotebookRun", QuickRun)
    shutil.copytree(ran[0], tmp_path / "course")
    return tmp_path / "course", lessons(tmp_path / "course")


def kinds(chosen, out, **options) -> dict[str, str]:
    return {record.name: record.now for record in run_lessons(chosen, out, **options).records}


def test_a_failed_lesson_does_not_stop_the_others_and_the_outcome_says_so(ran):
    _, _, first, events = ran
    assert [record.status for record in first.records] == ["succeeded", "failed", "succeeded"]
    assert not first.ok and first.records[1].failed["error_name"] == "ZeroDivisionError"
    assert [name for kind, name in events if kind == "ended"].count("02_two") == 1


def test_each_lesson_leaves_its_notebook_its_page_and_its_record(ran):
    root, _, _, _ = ran
    names = {path.name for path in (root / "out").iterdir()}
    pages = {f"{name}.{kind}" for name in ("01_one", "02_two", "03_three") for kind in ("ipynb", "html")}
    assert names == pages | {"results.json", "report.html"}
    assert [record.claims for record in load_records(root / "out")] == [(CLAIM,), (), ()]


def test_what_succeeded_and_has_not_changed_is_kept_and_the_failure_is_tried_again(again):
    root, chosen = again
    assert kinds(chosen, root / "out") == {"01_one": "kept", "02_two": "ran", "03_three": "kept"}


@pytest.mark.parametrize("change", ["cell", "package", "data", "parameter", "page", "again"])
def test_a_lesson_runs_again_when_anything_it_depends_on_has_changed(again, change):
    root, chosen = again
    lesson, options = chosen[2], {}
    if change == "cell":
        notebook = nbformat.read(lesson.notebook, as_version=4)
        notebook.cells[1].source = "print(n + 1)"
        nbformat.write(notebook, lesson.notebook)
    elif change == "package":
        (root / "course_utils" / "objectives.py").write_text("beta = 0.2\n")
    elif change == "data":
        (root / "data").mkdir()
        (root / "data" / "rows.json").write_text("[]")
    elif change == "parameter":
        options = {"parameters": {"n": 4}}
    elif change == "page":
        (root / "out" / "03_three.html").unlink()
    else:
        options = {"again": True}
    assert kinds([lesson], root / "out", **options) == {"03_three": "ran"}


def test_running_one_lesson_keeps_the_records_of_the_others(again):
    root, chosen = again
    run_lessons(chosen[:1], root / "out")
    assert {record.name: record.now for record in load_records(root / "out")} == {
        "01_one": "kept",
        "02_two": "earlier",
        "03_three": "earlier",
    }


def test_a_mistyped_parameter_is_refused_before_any_lesson_runs(again):
    root, chosen = again
    with pytest.raises(CourseError, match=r"no parameter 'm'(.|\n)*n=1"):
        run_lessons(chosen, root / "other", {"m": 1})
    assert not list((root / "other").glob("*.ipynb"))


def test_an_interrupted_run_keeps_what_was_finished(again):
    root, chosen = again

    def interrupt(event) -> None:
        if event.lesson.name == "03_three" and event.kind == "started":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lessons([chosen[0], chosen[2]], root / "fresh", on_event=interrupt)
    assert [record.name for record in load_records(root / "fresh")] == ["01_one"]
    assert "01_one" in (root / "fresh" / "report.html").read_text(encoding="utf-8")


def test_a_lesson_that_was_never_built_runs_from_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "NotebookRun", QuickRun)
    chosen = course(tmp_path, {"01_one": ["n = 1"]})
    chosen[0].notebook.unlink()
    source = chosen[0].source.read_text() + (
        '\n# %% [markdown]\n# # 01 · Lesson 01_one\n# A promise.\n\n# %% tags=["parameters"]\nn = 1\n'
    )
    chosen[0].source.write_text(source)
    assert run_lessons(chosen, tmp_path / "out", {"n": 2}).ok


def test_the_estimate_starts_from_the_stored_seconds_and_learns_how_fast_this_machine_is(ran):
    _, chosen, _, _ = ran
    assert stored_seconds(chosen[0].notebook) == 12.5
    assert stored_seconds(chosen[0].notebook.with_name("absent.ipynb")) is None
    estimate = Estimate(chosen, jobs=1)
    overhead = Estimate.OVERHEAD_SECONDS
    assert estimate.seconds_left(0.0) == pytest.approx(3 * (12.5 + overhead))
    estimate.started("01_one", 0.0)
    assert estimate.seconds_left(10.0) == pytest.approx(3 * (12.5 + overhead) - 10)
    estimate.ended("01_one", 25.0)  # twice as slow as where the notebooks were built
    assert estimate.seconds_left(25.0) == pytest.approx(2 * (25.0 + overhead))
    estimate.ended("02_two", None)  # kept: says nothing about speed
    assert estimate.seconds_left(25.0) == pytest.approx(25.0 + overhead)


def test_durations_are_said_in_words():
    assert [duration(value) for value in (0.4, 59.4, 60, 200, 3900)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 05 min",
    ]


class Page(HTMLParser):
    """Reads a page: which elements are open, what they load, what they say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.loads, self.ids, self.links, self.said = [], [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.ids.add(values.get("id"))
        if tag == "a":
            self.links.append(values["href"])
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def test_the_report_is_one_page_that_loads_nothing_and_whose_links_lead_somewhere(ran):
    root = ran[0]
    text = (root / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.loads == []
    assert not re.search(r"https?://|url\(|@import", text)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (root / "out" / link).exists()


def test_the_report_says_what_ran_what_failed_and_which_claims_hold_in_words(ran):
    page = Page((ran[0] / "out" / "report.html").read_text(encoding="utf-8"))
    assert "2 of 3 lessons ran from top to bottom; of 1 claims, 1 holds." in page.said
    assert "ZeroDivisionError: division by zero" in page.said and "1 / 0" in page.said
    assert f"{SYMBOL['holds']} holds" in page.said and "one & one <is> two" in page.said
    assert "✗ failed" in page.said and "✓ ran" in page.said


def test_the_report_counts_every_verdict_and_marks_what_is_over_a_limit(ran):
    results = json.loads((ran[0] / "out" / "results.json").read_text(encoding="utf-8"))
    rows = results["lessons"]
    rows[0]["claims"] = [{**CLAIM, "verdict": verdict} for verdict in VERDICTS for _ in range(2)]
    rows[0]["seconds"], rows[2]["peak_memory_mb"] = 91.0, 1300.0
    rows[1]["failed"]["traceback"] = ""
    said = Page(report_html(results)).said
    assert "failed in cell 2" in said and "ZeroDivisionError: division by zero" in said
    assert "of 8 claims, 2 hold, 2 hold with a correction, 2 are undecided, 2 do not hold" in said
    assert "Claims4 of 8hold, some with a correction" in said.replace("\n", "")
    assert said.count("over the limit") == 2 and "101%" in said


def test_an_empty_folder_has_a_report_too():
    assert "No lesson has run yet" in Page(report_html({"lessons": []})).said
