"""Running an experiment: each run once, in a thread of its own, written when it is finished."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.experiments.experiment import Experiment, Settings, key_of
from course_utils.experiments.storage import read_run, runs_folder, write_run
from course_utils.training.progress import progress_line

Run = dict[str, Any]


def compute(
    experiment: Experiment, *, workers: int = 1, folder: Path | None = None, progress: bool = True
) -> list[Run]:
    """All runs of an experiment, in the order of its grid. Those that are there already are not computed again.

    workers   processes that compute at the same time, each with one thread
    folder    where single runs are kept; runs/experiments unless given
    """
    folder = folder or runs_folder()
    code = experiment.code()
    found = {key_of(settings): read_run(folder, experiment, code, settings) for settings in experiment.grid}
    missing = [settings for settings in experiment.grid if found[key_of(settings)] is None]
    done = len(experiment.grid) - len(missing)
    with progress_line(experiment.name, len(experiment.grid), done, progress) as report:
        for settings, run in _each(experiment, missing, workers):
            write_run(folder, experiment, code, run)
            found[key_of(settings)] = run
            done += 1
            report(done, f"{run['seconds']:.0f} s for the last")
    return [found[key_of(settings)] for settings in experiment.grid]


def _each(experiment: Experiment, grid: list[Settings], workers: int) -> Iterator[tuple[Settings, Run]]:
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
