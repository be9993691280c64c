"""Runs of an experiment on a Dask cluster that is there already: `course experiments run NAME --cluster ADDRESS`.

    dask scheduler                                           on one machine; it prints its ADDRESS
    dask worker ADDRESS --nthreads 1                         on each that computes, as often as it has processors to give

Workers need the same version of the course: each proves it with the hash of the experiment's code. Results come back
one by one and are written by the process that asked, so a worker that dies costs the runs it was at (Dask gives them to
another), and a submitter that dies costs nothing that was finished. Dask sends code and results as pickles: use it on a
network that you trust.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from course_utils.errors import CourseError
from course_utils.experiments.experiment import Experiment, Settings

SECONDS_TO_CONNECT = 15


def each_on_cluster(
    address: str, experiment: Experiment, grid: list[Settings]
) -> Iterator[tuple[Settings, dict[str, Any]]]:
    """Settings and runs, as they are finished by the workers of the cluster at this address."""
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CourseError(
            "cluster-unreachable",
            f"no Dask scheduler answers at {address}: {error}.",
            where="--cluster",
            remedy="start one (dask scheduler), and give the address that it prints, such as tcp://host:8786.",
        ) from error
    with client:
        code = experiment.code()
        _require_workers(client, experiment, code)
        waiting = {
            client.submit(checked_run, experiment, code, settings, pure=False): settings for settings in grid
        }
        try:
            for finished in distributed.as_completed(waiting, loop=client.loop):
                yield waiting[finished], finished.result()
        finally:
            client.cancel([future for future in waiting if not future.done()])


def checked_run(experiment: Experiment, code: str, settings: Settings) -> dict[str, Any]:
    """One run on a worker, if it has the same code: a worker may have joined after the others were asked."""
    from course_utils.experiments.running import one_run

    present = experiment.code()
    if present != code:
        raise _other_code(experiment, {"a worker": present}, code)
    return one_run(experiment, settings)


def code_here(experiment: Experiment) -> str:
    """The hash of an experiment's code, as the process that is asked finds it."""
    return experiment.code()


def _require_workers(client: Any, experiment: Experiment, code: str) -> None:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise CourseError(
            "cluster-without-workers",
            "the Dask cluster has no workers, so nothing would ever be computed.",
            where="--cluster",
            remedy="start one or more: dask worker ADDRESS --nthreads 1.",
        )
    several = [name for name, each in workers.items() if each["nthreads"] > 1]
    if several:
        raise CourseError(
            "cluster-threads",
            f"{len(several)} of {len(workers)} workers run several tasks in one process (the first: {several[0]}).",
            where="--cluster",
            remedy="start workers with --nthreads 1, and more of them: a run sets torch's threads for its whole process.",
        )
    try:
        found = client.run(code_here, experiment)
    except Exception as error:  # whatever a worker without this package, or with an older one, raises
        raise CourseError(
            "cluster-other-code",
            f"a worker cannot read the experiment {experiment.name!r}: {type(error).__name__}: {error}.",
            where="--cluster",
            remedy="install the same version of the course in the workers' environment, and start them anew.",
        ) from error
    if set(found.values()) != {code}:
        raise _other_code(experiment, found, code)


def _other_code(experiment: Experiment, found: dict[str, str], code: str) -> CourseError:
    other = {worker: each for worker, each in found.items() if each != code}
    worker, first = next(iter(other.items()))
    return CourseError(
        "cluster-other-code",
        f"{worker} has other code for {experiment.name!r} ({first}; here {code}), and {len(other) - 1} more.",
        where="--cluster",
        remedy="install the same version of the course in the workers' environment, and start them anew.",
    )


def _distributed() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise CourseError(
            "missing-package",
            "a cluster is used through Dask's package `distributed`, which is not installed.",
            where="--cluster",
            remedy='pip install "course-utils[cluster]"; or leave --cluster out, and use --workers.',
        ) from error
    return distributed
