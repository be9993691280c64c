"""A changed number is caught: by nbval over a stored lesson, and by our own comparison with stated tolerances."""

import copy
import subprocess
import sys

import nbformat
import pytest

from course_utils import ledger
from course_utils.notebooks.compare import compare_notebooks, compare_text


def notebook(text: str, **metadata) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("print(value)", metadata=metadata)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "same"),
    [
        ("KL = 0.019412", "KL = 0.019412", 0, True),
        ("KL = 0.019412", "KL =  0.019412\n", 0, True),
        ("KL = 0.019412", "KL = 0.019413", 1e-6, False),
        ("KL = 0.019412", "KL = 0.0195", 0.01, True),
        ("KL = 0.019412", "TV = 0.019412", 1, False),
        ("1e-3 and 5", "0.001 and 5.0", 1e-9, True),
        ("step 10 of 20", "step 10 of 21", 1e-3, False),
        ("−0.5", "-0.5", 0, True),
        ("nan", "0.5", 1, False),
        ("[0.1, 0.2]", "[0.1, 0.2, 0.3]", 1, False),
    ],
)
def test_words_have_to_be_equal_and_numbers_close(one, other, tolerance, same):
    assert (not compare_text(one, other, tolerance)) is same


def test_a_cell_states_its_own_tolerance():
    strict = compare_notebooks(notebook("loss 0.500"), notebook("loss 0.505"))
    assert [str(difference) for difference in strict] == ["cell 1: 0.500 was stored, 0.505 came now (tolerance 1e-06)"]
    assert not compare_notebooks(notebook("loss 0.500", tolerance=0.02), notebook("loss 0.505", tolerance=0.02))


def test_a_cell_that_says_so_is_not_compared():
    tags = {"tags": ["nbval-ignore-output"]}
    assert not compare_notebooks(notebook("12.1 s", **tags), notebook("13.4 s", **tags))


def test_the_table_of_all_claims_is_compared_by_its_verdicts():
    def table(measured: float) -> nbformat.NotebookNode:
        row = ledger.asdict(ledger.judge("01.x", "us", "a number", expected=1.0, measured=measured, tolerance=0.5))
        made, rows = notebook(""), ledger.Rows([row])
        data = {"text/plain": repr(rows), "text/html": rows._repr_html_()}
        made.cells[0].outputs = [nbformat.v4.new_output("execute_result", data=data)]
        return made

    assert not compare_notebooks(table(1.0), table(1.2))
    assert compare_notebooks(table(1.0), table(2.0))


def test_a_missing_output_is_a_difference():
    empty = notebook("")
    empty.cells[0].outputs = []
    assert compare_notebooks(notebook("0.5"), empty)


def test_a_progress_line_that_has_ended_is_no_difference():
    slow = notebook("loss 0.5")
    slow.cells[0].outputs.append(nbformat.v4.new_output("display_data", {"text/plain": ""}))
    assert compare_notebooks(notebook("loss 0.5"), slow) == []
    slow.cells[0].outputs[1].data["text/plain"] = "something"
    assert compare_notebooks(notebook("loss 0.5"), slow)


def with_claim(measured: float) -> nbformat.NotebookNode:
    row = ledger.judge("01.slope", "theory", "error falls as n^-1/2", -0.5, measured, (measured - 0.02, measured + 0.02))
    cell = nbformat.v4.new_code_cell("claim")
    cell.outputs = [nbformat.v4.new_output("execute_result", data=row._repr_mimebundle_(), execution_count=1)]
    return nbformat.v4.new_notebook(cells=[cell])


def test_a_claim_is_compared_by_its_interval_and_its_verdict():
    assert not compare_notebooks(with_claim(-0.5), with_claim(-0.51))
    assert "does not hold came now" in str(compare_notebooks(with_claim(-0.5), with_claim(-0.44))[0])
    assert "was stored" in str(compare_notebooks(with_claim(-0.481), with_claim(-0.519))[0])


@pytest.mark.slow
def test_nbval_and_the_comparison_see_one_altered_value(tmp_path):
    truth = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 2\nprint('KL =', x / 8)")])
    truth.cells[0].execution_count = 1
    truth.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="KL = 0.25\n")]
    truth.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    altered = copy.deepcopy(truth)
    altered.cells[0].outputs[0].text = "KL = 0.26\n"
    nbformat.write(truth, tmp_path / "truth.ipynb")
    nbformat.write(altered, tmp_path / "altered.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q"]

    def run(name: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    passed, failed = run("truth.ipynb"), run("altered.ipynb")
    assert passed.returncode == 0, passed.stdout
    assert failed.returncode == 1 and "0.26" in failed.stdout
    assert str(compare_notebooks(altered, truth)[0]).startswith("cell 1: 0.26 was stored, 0.25 came now")
