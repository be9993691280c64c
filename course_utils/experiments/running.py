"""Running an experiment: each run once, in a thread of its own, written when it is finished.

The runs are computed by this process, by several on this machine, or by the workers of a Dask cluster (`cluster`).
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.experiments.cluster import each_on_cluster
from course_utils.experiments.experiment import Experiment, Settings, key_of, matching
from course_utils.experiments.storage import read_run, runs_folder, write_run
from course_utils.training.progress import progress_line

Run = dict[str, Any]


def compute(
    experiment: Experiment,
    *,
    workers: int = 1,
    cluster: str | None = None,
    only: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Run]:
    """All runs of an experiment, in the order of its grid. Those that are there already are not computed again.

    workers   processes that compute at the same time, each with one thread
    cluster   the address of a Dask scheduler: its workers compute instead, and this process writes what they found
    only      the runs with these settings alone, {"seed": 0}
    folder    where single runs are kept; runs/experiments unless given
    """
    folder = folder or runs_folder()
    code = experiment.code()
    grid = list(experiment.grid) if not only else matching(experiment, only)
    found = {key_of(settings): read_run(folder, experiment, code, settings) for settings in grid}
    missing = [settings for settings in grid if found[key_of(settings)] is None]
    done = len(grid) - len(missing)
    with progress_line(experiment.name, len(grid), done, progress) as report:
        for settings, run in _each(experiment, missing, workers, cluster):
            write_run(folder, experiment, code, run)
            found[key_of(settings)] = run
            done += 1
            report(done, f"{run['seconds']:.0f} s for the last")
    return [found[key_of(settings)] for settings in grid]


def kept_runs(experiment: Experiment, folder: Path | None = None) -> list[Run] | None:
    """All runs in the order of the grid if every one is there already, from the present code; None otherwise."""
    code = experiment.code()
    found = [read_run(folder or runs_folder(), experiment, code, settings) for settings in experiment.grid]
    whole = [run for run in found if run is not None]
    return whole if len(whole) == len(found) else None


def _each(
    experiment: Experiment, grid: list[Settings], workers: int, cluster: str | None = None
) -> Iterator[tuple[Settings, Run]]:
    if cluster is not None and grid:
        yield from each_on_cluster(cluster, experiment, grid)
        return
    if workers == 1 or len(grid) <= 1:
        for settings in grid:
            yield settings, one_run(experiment, settings)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        waiting = {pool.submit(one_run, experiment, settings): settings for settings in grid}
        try:
            for finished in concurrent.futures.as_completed(waiting):
                yield waiting[finished], finished.result()
        finally:
            pool.shutdown(cancel_futures=True)


def one_run(experiment: Experiment, settings: Settings) -> Run:
    """One run, in one thread: sums of floats depend on how many there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        result = experiment.run(**settings)
    finally:
        torch.set_num_threads(threads)
    taken = set(settings) & set(result)
    if taken:
        raise CourseError(
            "experiment-result",
            f"the result has names that are settings as well: {', '.join(sorted(taken))}.",
            where=f"{experiment.name}, {key_of(settings)}",
            remedy="name the numbers of a result differently from its settings.",
        )
    return {"settings": settings, "result": result, "seconds": round(time.perf_counter() - began, 2)}
