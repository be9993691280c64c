"""Experiments: each run once, kept when it is finished, stored with the code it came from."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import pytest

from course_utils import experiments
from course_utils.cli import main
from course_utils.errors import CourseError
from course_utils.experiments import Experiment, all_experiments, compute, storage, store
from course_utils.experiments import experiment as definitions
from course_utils.experiments.experiment import matching
from course_utils.experiments.running import kept_runs

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


# -------------------- single runs


@pytest.fixture
def grid():
    return Experiment(
        "99_squares", squared, [{"x": x, "name": name} for name in ("a", "b") for x in (1, 2.5)], ""
    )


def test_only_takes_settings_as_values_or_as_they_are_written(grid):
    assert matching(grid, {"x": 2.5}) == matching(grid, {"x": "2.5"}) == [grid.grid[1], grid.grid[3]]
    assert matching(grid, {"x": "1.0", "name": "b"}) == [grid.grid[2]]
    assert matching(grid, {}) == list(grid.grid)
    none = Experiment("99_none", squared, [{"x": None}, {"x": "None at all"}])
    assert matching(none, {"x": "null"}) == matching(none, {"x": None}) == [{"x": None}]


@pytest.mark.parametrize("only", [{"x": 3}, {"y": 1}, {"x": 1, "name": "c"}])
def test_settings_that_no_run_has_are_refused_and_those_there_are_are_listed(grid, only):
    with pytest.raises(CourseError, match="experiment-no-such-run") as error:
        matching(grid, only)
    assert "2.5" in error.value.remedy and "name" in error.value.remedy


def test_only_computes_the_runs_asked_for_and_the_whole_is_there_when_the_last_was(experiment, tmp_path):
    kept = tmp_path / "kept"
    assert [
        run["result"]["value"] for run in compute(experiment, only={"seed": 1}, folder=kept, progress=False)
    ] == [3.0, 7.0]
    assert kept_runs(experiment, kept) is None
    compute(experiment, only={"seed": 0}, folder=kept, progress=False)
    assert [run["result"]["value"] for run in kept_runs(experiment, kept)] == [2.0, 3.0, 6.0, 7.0]


def test_a_run_again_stands_beside_the_stored_one_and_replaces_nothing(experiment, tmp_path):
    path = store(experiment, compute(experiment, folder=tmp_path / "kept", progress=False))
    whole = json.loads(path.read_text(encoding="utf-8"))
    whole["runs"][2]["result"]["value"] = -1.0
    path.write_text(json.dumps(whole), encoding="utf-8")
    before = path.read_bytes()
    found = experiments.again("99_one", x=3.0, seed=0)
    assert found.rows()[0] == ("value", -1.0, 6.0)
    assert found.stored_code_is_present and path.read_bytes() == before
    assert not (tmp_path / "runs").exists()
    assert "-1" in repr(found) and "<td>6</td>" in found._repr_html_()
    with pytest.raises(CourseError, match="experiment-no-such-run"):
        experiments.again("99_one", x=3.0)


def test_the_command_takes_conditions_with_and_without_commas(experiment, tmp_path, monkeypatch):
    from course_utils.experiments import running

    monkeypatch.setattr("course_utils.experiments.find", definitions.find)
    monkeypatch.setattr(running, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr("course_utils.experiments.rerun.find", definitions.find)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["experiments", "run", "99_one", *arguments])
        return ended.value.code

    assert run("--only", "x=1.0", "seed=1") == 0
    assert len(list((tmp_path / "runs" / "99_one").iterdir())) == 1
    assert not storage.stored_path("99_one").exists()
    assert run("--only", "x=1.0,seed=0") == 0
    assert run("--only", "x=3.0") == 0
    assert storage.stored_path("99_one").exists()
    stored = storage.stored_path("99_one").read_bytes()
    assert run("--only", "x=1.0,seed=0", "--again") == 0
    assert storage.stored_path("99_one").read_bytes() == stored
    assert run("--only", "x=7") == 2


# -------------------- a cluster


def noted(x, folder, dies):
    """Square x, leave a note of having done so; with `dies`, the first process to come here is killed."""
    notes = Path(folder)
    first = notes / f"first {x}"
    if dies and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (notes / f"{x} {uuid.uuid4().hex}").touch()
    time.sleep(0.05)
    return {"value": x * x, "process": os.getpid()}


pytestmark = pytest.mark.filterwarnings("ignore:Port 8787 is already in use")


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    made = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    )
    yield made
    made.close()


def on_cluster(folder, xs, dies=()):
    return Experiment("99_noted", noted, [{"x": x, "folder": str(folder), "dies": x in dies} for x in xs])


def times_computed(folder):
    return sorted(name.name.split()[0] for name in folder.iterdir() if not name.name.startswith("first"))


def test_the_workers_of_a_cluster_compute_the_same_runs_in_the_same_order(cluster, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    experiment = on_cluster(notes, range(12))
    runs = compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    assert [run["result"]["value"] for run in runs] == [x * x for x in range(12)]
    processes = {run["result"]["process"] for run in runs}
    assert len(processes) == 2 and os.getpid() not in processes


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_killed_worker_loses_nothing_that_was_finished_and_its_runs_go_to_another(cluster, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    experiment = on_cluster(notes, range(8), dies=(3,))
    runs = compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    assert [run["result"]["value"] for run in runs] == [x * x for x in range(8)]
    assert (notes / "first 3").exists()
    kept = [storage.read_run(tmp_path, experiment, experiment.code(), each) for each in experiment.grid]
    assert kept == runs


def test_a_killed_submitter_goes_on_where_it_was_and_nothing_finished_is_computed_twice(
    cluster, tmp_path, monkeypatch
):
    from course_utils.experiments import running

    notes = tmp_path / "notes"
    notes.mkdir()
    experiment = on_cluster(notes, range(6))
    written = []

    def write_two(folder, experiment, code, run):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(str(run["settings"]["x"]))
        storage.write_run(folder, experiment, code, run)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(running, "write_run", write_two)
        compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    time.sleep(0.5)  # what the workers were at
    runs = compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    assert [run["result"]["value"] for run in runs] == [x * x for x in range(6)]
    assert all(times_computed(notes).count(x) == 1 for x in written)
    assert set(times_computed(notes)) == set("012345")
    before = times_computed(notes)
    compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    assert times_computed(notes) == before


def test_a_worker_with_other_code_is_refused_before_and_during_the_computation(
    cluster, tmp_path, monkeypatch
):
    from course_utils.experiments.cluster import checked_run

    experiment = on_cluster(tmp_path, range(2))
    with pytest.raises(CourseError, match="cluster-other-code"):
        checked_run(experiment, "of another version", dict(experiment.grid[0]))
    monkeypatch.setattr(Experiment, "code", lambda self: "of another version")
    with pytest.raises(CourseError, match="cluster-other-code") as error:
        compute(experiment, cluster=cluster.scheduler_address, folder=tmp_path, progress=False)
    assert "tcp://" in str(error.value)  # the worker is named: it was asked before anything was sent
    assert not (tmp_path / experiment.name).exists()


def test_a_cluster_that_cannot_compute_is_refused_with_what_to_do(monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    from course_utils.experiments import cluster as own

    monkeypatch.setattr(own, "SECONDS_TO_CONNECT", 1)
    experiment = on_cluster(tmp_path, range(2))
    with pytest.raises(CourseError, match="cluster-unreachable"):
        compute(experiment, cluster="tcp://127.0.0.1:9", folder=tmp_path, progress=False)
    monkeypatch.setattr(own, "SECONDS_TO_CONNECT", 15)
    options = {"processes": False, "dashboard_address": None, "silence_logs": 50}
    for workers, threads, refused in ((0, 1, "cluster-without-workers"), (1, 2, "cluster-threads")):
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=threads, **options) as made,
            pytest.raises(CourseError, match=refused),
        ):
            compute(experiment, cluster=made.scheduler_address, folder=tmp_path, progress=False)


def test_without_dask_the_error_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CourseError, match="course-utils\\[cluster\\]"):
        compute(on_cluster(tmp_path, range(2)), cluster="tcp://127.0.0.1:9", folder=tmp_path, progress=False)


@pytest.mark.parametrize("experiment", all_experiments(), ids=lambda one: one.name)
def test_stored_results_came_from_the_present_code_and_the_shipped_checkpoints(experiment):
    assert storage.read_stored(experiment)["code"] == experiment.code(), (
        f"course experiments run {experiment.name}"
    )
