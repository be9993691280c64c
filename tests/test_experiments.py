"""Experiments: each run once, kept when it is finished, stored with the code it came from."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from course_utils import experiments
from course_utils.errors import CourseError
from course_utils.experiments import Experiment, all_experiments, compute, storage, store
from course_utils.experiments import experiment as definitions

MODULE = """
SCALE = 2.0


def helper(x):
    # a comment
    return SCALE * x


def other(x):
    return x


def run(x, seed):
    return {"value": helper(x) + seed}
"""


def module_from(folder, text):
    file = folder / "an_experiment.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("an_experiment", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["an_experiment"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment of four runs that the package finds, in an empty data folder."""
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    module = module_from(tmp_path, MODULE)
    one = Experiment(
        "99_one", module.run, [{"x": x, "seed": s} for x in (1.0, 3.0) for s in (0, 1)], "an example"
    )
    monkeypatch.setattr(definitions, "all_experiments", lambda: [one])
    monkeypatch.setattr(storage, "find", definitions.find)
    monkeypatch.setattr(storage, "runs_folder", lambda: tmp_path / "runs")
    return one


def test_a_run_is_one_call_and_results_come_in_the_order_of_the_grid(experiment, tmp_path):
    runs = compute(experiment, folder=tmp_path / "kept", progress=False)
    assert [run["result"]["value"] for run in runs] == [2.0, 3.0, 6.0, 7.0]
    assert [run["settings"] for run in runs] == list(experiment.grid)


def test_a_run_that_is_there_is_not_computed_again_and_one_that_failed_loses_no_other(experiment, tmp_path):
    calls = []

    def run(x, seed):
        calls.append((x, seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"value": x + seed}

    counted = Experiment(experiment.name, run, experiment.grid)
    with pytest.raises(KeyboardInterrupt):
        compute(counted, folder=tmp_path / "kept", progress=False)
    runs = compute(counted, folder=tmp_path / "kept", progress=False)
    assert calls == [(1.0, 0), (1.0, 1), (3.0, 0), (3.0, 0), (3.0, 1)]
    assert [each["result"]["value"] for each in runs] == [1.0, 2.0, 3.0, 4.0]


def test_a_run_of_other_code_is_computed_again_and_a_comment_is_not_other_code(tmp_path):
    def code(text):
        return Experiment("99_one", module_from(tmp_path, text).run, [{"x": 1.0, "seed": 0}]).code()

    first = code(MODULE)
    assert code(MODULE.replace("# a comment", "# another\n\n    # comment")) == first
    assert code(MODULE.replace("return x\n", "return -x\n")) == first  # what the run does not use
    assert code(MODULE.replace("SCALE = 2.0", "SCALE = 3.0")) != first
    assert code(MODULE.replace("SCALE * x", "SCALE + x")) != first


def test_what_is_stored_is_what_a_lesson_reads(experiment, tmp_path):
    store(experiment, compute(experiment, folder=tmp_path / "kept", progress=False))
    read = experiments.results("99_one")
    assert [(run["x"], run["seed"], run["value"]) for run in read] == [
        (1.0, 0, 2.0),
        (1.0, 1, 3.0),
        (3.0, 0, 6.0),
        (3.0, 1, 7.0),
    ]
    again = experiments.results("99_one", recompute=True)
    assert [run["value"] for run in again] == [run["value"] for run in read]


def test_missing_results_and_those_of_another_grid_are_refused(experiment, tmp_path):
    with pytest.raises(CourseError, match="results-missing"):
        experiments.results("99_one")
    path = store(experiment, compute(experiment, folder=tmp_path / "kept", progress=False))
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["runs"][0]["settings"]["x"] = 5.0
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(CourseError, match="results-of-another-grid"):
        experiments.results("99_one")
    with pytest.raises(CourseError, match="unknown-experiment"):
        experiments.results("98_two")


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, object()])
def test_a_result_that_is_not_plain_is_refused_with_its_settings(bad, tmp_path):
    experiment = Experiment("99_one", lambda seed: {"value": bad}, [{"seed": 3}])
    with pytest.raises(CourseError, match="experiment-result") as error:
        compute(experiment, folder=tmp_path, progress=False)
    assert "seed" in error.value.where


def test_a_result_may_not_hide_a_setting_and_a_grid_may_not_repeat_itself(tmp_path):
    with pytest.raises(CourseError, match="experiment-result"):
        compute(
            Experiment("99_one", lambda seed: {"seed": 1}, [{"seed": 3}]), folder=tmp_path, progress=False
        )
    for grid in ([], [{"seed": 1}, {"seed": 1}]):
        with pytest.raises(CourseError, match="experiment-grid"):
            Experiment("99_one", lambda seed: {}, grid)


def squared(x):
    return {"value": x * x}


def test_several_processes_give_the_same_runs_in_the_same_order(tmp_path):
    experiment = Experiment("99_squares", squared, [{"x": x} for x in (3, 1, 2)])
    runs = compute(experiment, workers=2, folder=tmp_path, progress=False)
    assert [run["result"]["value"] for run in runs] == [9, 1, 4]


@pytest.mark.parametrize("experiment", all_experiments(), ids=lambda one: one.name)
def test_stored_results_came_from_the_present_code_and_the_shipped_checkpoints(experiment):
    assert storage.read_stored(experiment)["code"] == experiment.code(), (
        f"course experiments run {experiment.name}"
    )
