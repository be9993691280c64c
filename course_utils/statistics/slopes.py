"""The exponent of a power law, such as the 1/2 in "the error falls like 1/sqrt(n)"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import checks
from course_utils.statistics.intervals import Interval, bootstrap_interval
from course_utils.statistics.quantiles import t_quantile


@dataclass(frozen=True)
class LogLogSlope:
    """y ~ exp(intercept) * x**slope.

    `slope` has Student's t limits from the scatter about the line (is it a line?); `over_repeats`, where
    repeats were given, has bootstrap limits for the same slope (would new runs agree?).
    """

    slope: Interval
    intercept: float
    over_repeats: Interval | None = None

    def predict(self, x: Any) -> np.ndarray:
        x = checks.array(x, "x", "LogLogSlope.predict", positive=True)
        return np.exp(self.intercept + self.slope.estimate * np.log(x))

    def __str__(self) -> str:
        repeats = "" if self.over_repeats is None else f"; over repeats {self.over_repeats}"
        return f"slope {self.slope}{repeats}"


def log_log_slope(
    x: Any, y: Any, confidence: float = 0.95, resamples: int = 4_000, seed: int = 0, method: str = "expanded"
) -> LogLogSlope:
    """The exponent of a power law, by least squares of log y on log x.

    `y` is [len(x)], or [repeats, len(x)]: then the line goes through the log of the mean over repeats, and
    whole repeats are resampled for `over_repeats`, so a repeat may follow one growing data set along x.
    """
    where = "log_log_slope"
    checks.confidence_level(confidence, where)
    x = checks.array(x, "x", where, least=3, positive=True)
    y = checks.array(y, "y", where, positive=True, axes=(1, 2))
    if y.shape[-1] != x.size:
        what = f"x has {x.size} values but the last axis of y has {y.shape[-1]}"
        remedy = "give y the shape [len(x)] or [repeats, len(x)]"
        raise CourseError("statistics-unpaired", what, where=where, remedy=remedy)
    if x.min() == x.max():
        what = f"all x are {x[0]:g}, so there is no slope"
        raise CourseError("statistics-out-of-range", what, where=where, remedy="measure at several x")
    log_x = np.log(x)
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)

    def slope_of(repeats: np.ndarray) -> float:
        return float(centred @ np.log(repeats.mean(axis=0)) / spread)

    repeats = y.reshape(-1, x.size)
    log_y, slope = np.log(repeats.mean(axis=0)), slope_of(repeats)
    intercept = float(log_y.mean() - slope * log_x.mean())
    residual = log_y - intercept - slope * log_x
    error = math.sqrt(float(residual @ residual) / (x.size - 2) / spread)
    half = t_quantile(0.5 + confidence / 2, x.size - 2) * error
    line = Interval(slope, slope - half, slope + half, confidence, x.size)
    if len(repeats) == 1:
        return LogLogSlope(line, intercept)
    over_repeats = bootstrap_interval(repeats, slope_of, confidence, resamples, seed, method)
    return LogLogSlope(line, intercept, over_repeats)
