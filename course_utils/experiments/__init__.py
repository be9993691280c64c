"""Experiments: what takes too long for a lesson is run once by a command, stored, and replayed by the lesson.

    course experiments list
    course experiments run 07_over_optimisation      writes data/results/07_over_optimisation.json

    runs = experiments.results("07_over_optimisation")                      what is stored
    runs = experiments.results("07_over_optimisation", recompute=True)      what this machine computes

    course experiments run 07_over_optimisation --only seed=0 arm=soft --again     one run here, beside the stored one
    experiments.again("07_over_optimisation", seed=0, arm="soft")                  the same in a notebook

An experiment is a function and a grid of its settings, seeds among them. One run is one call; each is written when it
is finished, so a command that was killed goes on where it was. The experiments of lesson NN are in `lesson_NN.py`.
Processes of this machine compute (`--workers`), or the workers of a Dask cluster (`--cluster ADDRESS`).
"""

from course_utils.experiments.experiment import Experiment, all_experiments, find
from course_utils.experiments.rerun import Again, again
from course_utils.experiments.running import compute
from course_utils.experiments.storage import results, store

__all__ = ["Again", "Experiment", "again", "all_experiments", "compute", "find", "results", "store"]
