"""Said against happened: does "70 %" come true seven times in ten?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import checks
from course_utils.statistics.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class CalibrationBin:
    """The predictions from `low` to `high`: how many, their mean, how often the outcome was 1 (Wilson)."""

    low: float
    high: float
    count: int
    probability: float
    frequency: Interval


@dataclass(frozen=True)
class CalibrationCurve:
    """The occupied bins from low to high. The arrays are there to be plotted."""

    bins: tuple[CalibrationBin, ...]

    @property
    def counts(self) -> np.ndarray:
        return np.array([one.count for one in self.bins])

    @property
    def probability(self) -> np.ndarray:
        return np.array([one.probability for one in self.bins])

    @property
    def frequency(self) -> np.ndarray:
        return np.array([one.frequency.estimate for one in self.bins])

    @property
    def low(self) -> np.ndarray:
        return np.array([one.frequency.low for one in self.bins])

    @property
    def high(self) -> np.ndarray:
        return np.array([one.frequency.high for one in self.bins])

    @property
    def expected_calibration_error(self) -> float:
        return float(np.average(np.abs(self.probability - self.frequency), weights=self.counts))


def calibration_curve(
    probability: Any, outcome: Any, bins: int = 10, confidence: float = 0.95, equal_counts: bool = False
) -> CalibrationCurve:
    """Put the predictions into `bins` bins, of equal width or of equal counts, and count what came true.

    A prediction on an edge counts in the bin above it (1.0 in the last). If the judge is calibrated, a bin's
    mean prediction lies within its Wilson limits as often as `confidence` promises.
    """
    where = "calibration_curve"
    probability, outcome = checks.pairs(probability, outcome, where, 1, names=("probability", "outcome"))
    checks.whole_number(bins, "bins", where, least=1)
    low, high = float(probability.min()), float(probability.max())
    if low < 0 or high > 1:
        what, remedy = f"probabilities run from {low:g} to {high:g}", "apply the sigmoid to logits first"
        raise CourseError("statistics-out-of-range", what, where=where, remedy=remedy)
    if not np.isin(outcome, (0.0, 1.0)).all():
        what, remedy = "outcomes must be 0 or 1", "pass booleans; a rate has no Wilson interval"
        raise CourseError("statistics-out-of-range", what, where=where, remedy=remedy)
    edges = np.linspace(0, 1, bins + 1)
    if equal_counts:
        edges = np.unique(np.quantile(probability, edges))
        edges = edges if edges.size > 1 else np.repeat(edges, 2)
    place = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, edges.size - 2)
    found = []
    for index in np.unique(place):
        inside = place == index
        count, mean = int(inside.sum()), float(probability[inside].mean())
        frequency = wilson_interval(int(outcome[inside].sum()), count, confidence)
        found.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, mean, frequency))
    return CalibrationCurve(tuple(found))


def expected_calibration_error(
    probability: Any, outcome: Any, bins: int = 10, equal_counts: bool = False
) -> float:
    """Mean over predictions of |mean prediction - frequency| in their bin.

    It is never negative, so chance alone lifts it: a calibrated judge whose predictions spread evenly over
    [0, 1] scores about 0.31 sqrt(bins / n). Compare with that before calling a judge miscalibrated.
    """
    return calibration_curve(probability, outcome, bins, equal_counts=equal_counts).expected_calibration_error
