"""Experiments: what takes too long for a lesson is run once by a command, stored, and replayed by the lesson.

    course experiments list
    course experiments run 07_over_optimisation      writes data/results/07_over_optimisation.json

    runs = experiments.results("07_over_optimisation")                      what is stored
    runs = experiments.results("07_over_optimisation", recompute=True)      what this machine computes

An experiment is a function and a grid of its settings, seeds among them. One run is one call; each is written when it
is finished, so a command that was killed goes on where it was. The experiments of lesson NN are in `lesson_NN.py`.
"""

from course_utils.experiments.experiment import Experiment, all_experiments, find
from course_utils.experiments.running import compute
from course_utils.experiments.storage import results, store

__all__ = ["Experiment", "all_experiments", "compute", "find", "results", "store"]
