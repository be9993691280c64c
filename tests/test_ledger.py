"""The ledger: a verdict is computed from the numbers of its row."""

import re

import nbformat
import pytest

from course_utils import ledger
from course_utils.errors import CourseError
from course_utils.statistics import mean_interval


def verdict(expected, measured, **more):
    return ledger.judge("01.word", "theory", "a statement", expected, measured, **more).verdict


@pytest.mark.parametrize(
    ("expected", "measured", "more", "wanted"),
    [
        (0.5, 0.5 + 1e-7, {}, "holds"),
        (0.5, 0.5 + 1e-5, {}, "does not hold"),
        (0.5, 0.52, {"tolerance": 0.03}, "holds"),
        (-0.5, -0.46, {"interval": (-0.51, -0.41)}, "holds"),
        (-0.5, -0.46, {"interval": (-0.49, -0.43)}, "does not hold"),
        (-0.5, -0.46, {"interval": (-0.49, -0.43), "tolerance": 0.02}, "holds"),
        (1.0, 1.2, {"relation": "at least", "interval": (1.05, 1.35)}, "holds"),
        (1.0, 1.2, {"relation": "at least", "interval": (0.95, 1.45)}, "undecided"),
        (1.0, 1.2, {"relation": "at most", "interval": (0.95, 1.45)}, "undecided"),
        (1.0, 0.8, {"relation": "at least", "interval": (0.7, 0.9)}, "does not hold"),
        (1.0, 0.8, {"relation": "at most"}, "holds"),
        (1.0, 1.1, {"relation": "at most"}, "does not hold"),
        (2.0, 1.0, {"corrected": 1.0, "correction": "the sum, not the mean"}, "holds with a correction"),
        (2.0, 3.0, {"corrected": 1.0, "correction": "the sum, not the mean"}, "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_numbers(expected, measured, more, wanted):
    assert verdict(expected, measured, **more) == wanted


def test_an_interval_object_is_read_by_its_limits():
    row = ledger.judge("01.word", "theory", "a statement", 2.0, 2.0, mean_interval([1.0, 2.0, 3.0]))
    assert row.interval[0] < 2 < row.interval[1] and row.verdict == "holds"


def test_rounding_noise_below_the_tolerance_is_not_recorded():
    assert ledger.judge("01.word", "theory", "a statement", 0, 3.3e-17, tolerance=1e-10).measured == 0
    assert ledger.judge("01.word", "theory", "a statement", 0, 3.3e-9, tolerance=1e-10).measured == 3.3e-9
    assert ledger.judge("01.word", "this course", "a statement", 0, 1.2e-4, tolerance=2e-3).measured == 1.2e-4


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "slope"},
        {"measured": float("nan")},
        {"interval": (1.0, 0.0)},
        {"tolerance": -1.0},
        {"relation": "about"},
        {"corrected": 1.0},
        {"correction": "words alone"},
    ],
)
def test_a_malformed_claim_is_refused(bad):
    good = {"id": "01.word", "source": "theory", "statement": "a statement", "expected": 1.0, "measured": 1.0}
    with pytest.raises(CourseError):
        ledger.judge(**(good | bad))


def test_rows_survive_the_way_into_a_notebook_and_back():
    row = ledger.judge("01.word", "theory <1952>", "a & b", -0.5, -0.49, (-0.52, -0.46))
    cell = nbformat.v4.new_code_cell("claim()")
    cell.outputs = [nbformat.v4.new_output("execute_result", data=row._repr_mimebundle_(), execution_count=1)]
    notebook = nbformat.reads(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])), as_version=4)
    (found,) = ledger.collect(notebook)
    assert found["verdict"] == "holds" and found["interval"] == [-0.52, -0.46]
    assert "theory &lt;1952&gt;" in row._repr_mimebundle_()["text/html"]
    assert "-0.49 [-0.52, -0.46]" in ledger.rows_markdown([found])


def test_a_lesson_lists_its_own_rows_in_order():
    ledger.clear()
    for id in ("01.b", "02.a", "01.a"):
        ledger.claim(id, "theory", "a statement", 1, 1)
    assert [row["id"] for row in ledger.rows("01")] == ["01.b", "01.a"]
    assert len(ledger.rows()) == 3


def test_a_bar_in_a_statement_does_not_split_its_row_of_the_table():
    row = ledger.asdict(ledger.judge("01.x", "us", "KL(p || q) is zero", expected=0.0, measured=0.0, tolerance=1e-9))
    table = ledger.rows_markdown([row]).splitlines()
    assert "KL(p \\|\\| q)" in table[2]
    assert len(re.split(r"(?<!\\)\|", table[2])) == len(table[0].split("|"))
