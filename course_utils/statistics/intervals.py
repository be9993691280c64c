"""An estimate with its limits, for one sample; and the seeds that make the sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import checks
from course_utils.statistics.quantiles import NORMAL, normal_quantile, t_quantile

CHUNK = 4_000_000  # resampled numbers held in memory at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and the limits around it. `truth in interval` asks whether the limits hold a value.

    As text, "0.83 [0.80, 0.86] (95 %, n = 20)", with as many digits as the width deserves; a format such as
    f"{interval:.3f}" sets them by hand.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __contains__(self, value: float) -> bool:
        return bool(self.low <= value <= self.high)

    def __format__(self, spec: str) -> str:
        spec = spec or _readable_spec(self.estimate, self.low, self.high)
        numbers = f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{numbers} ({100 * self.confidence:g} %, n = {self.count})"

    def __str__(self) -> str:
        return format(self, "")


def seeds(base: int, count: int) -> list[int]:
    """`count` distinct seeds in [0, 2**32), grown from one `base` by numpy's SeedSequence.

    Neighbouring bases give unrelated lists, where base, base + 1, ... would share all but one of their seeds.
    A longer list starts with the shorter one, so adding repeats keeps those already run. 32 bits, because
    `numpy.random.seed` and with it the `set_seed` of transformers take no more.
    """
    base = checks.whole_number(base, "base", "seeds", least=0)
    count = checks.whole_number(count, "count", "seeds", least=0)
    drawn = np.random.SeedSequence(base).generate_state(count + 64, np.uint32)
    return list(dict.fromkeys(drawn.tolist()))[:count]


def mean_interval(values: Any, confidence: float = 0.95) -> Interval:
    """Mean with Student's limits, mean +- t s / sqrt(n): exact for normal values, however few."""
    checks.confidence_level(confidence, "mean_interval")
    values = checks.array(values, "values", "mean_interval", least=2)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(values.size)
    half = t_quantile(0.5 + confidence / 2, values.size - 1) * error
    return Interval(mean, mean - half, mean + half, confidence, values.size)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score limits: inside [0, 1], and of sensible width at 0 and at 1."""
    checks.confidence_level(confidence, "wilson_interval")
    successes = checks.whole_number(successes, "successes", "wilson_interval", least=0)
    trials = checks.whole_number(trials, "trials", "wilson_interval", least=1)
    if successes > trials:
        what = f"{successes} successes in {trials} trials"
        remedy = "pass the successes first, then the trials"
        raise CourseError("statistics-out-of-range", what, where="wilson_interval", remedy=remedy)
    z2, share = normal_quantile(0.5 + confidence / 2) ** 2, successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else centre - half  # at the ends the limit is exact: no rounding there
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high, confidence, trials)


def bootstrap_interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "bca",
) -> Interval:
    """Limits for any statistic of the values, from resampling them with replacement.

    `values` is [n], or [n, columns] for a statistic of rows. A statistic that takes `axis` (np.mean,
    np.median) is computed for all resamples at once. `method` is "percentile" (quantiles of the resampled
    statistic), "bca" (the same, corrected for bias and skew: Efron 1987) or "expanded" (widened for few
    values: Hesterberg 2015; use it below about 20).
    """
    where = "bootstrap_interval"
    values = checks.array(values, "values", where, least=2, axes=(1, 2))
    checks.confidence_level(confidence, where)
    checks.whole_number(resamples, "resamples", where, least=100)
    if method not in ("percentile", "bca", "expanded"):
        remedy = 'choose "percentile", "bca" or "expanded"'
        raise CourseError("statistics-option", f"unknown method {method!r}", where=where, remedy=remedy)
    estimate = float(statistic(values))
    draws = _resampled(values, statistic, resamples, np.random.default_rng(seed))
    if method == "percentile":
        levels = _two_sided((1 - confidence) / 2)
    elif method == "expanded":
        levels = _expanded_levels(confidence, len(values))
    else:
        levels = _bca_levels(estimate, draws, _without_each(values, statistic), confidence)
    low, high = np.quantile(draws, levels)
    return Interval(estimate, float(low), float(high), confidence, len(values))


def _without_each(values: np.ndarray, statistic: Callable[..., Any]) -> np.ndarray:
    """The statistic with each value left out in turn."""
    if statistic is np.mean and values.ndim == 1:  # at once, where one by one would cost n**2
        return (values.sum() - values) / (values.size - 1)
    return np.array([statistic(np.delete(values, row, axis=0)) for row in range(len(values))], dtype=float)


def _two_sided(tail: float) -> tuple[float, float]:
    return tail, 1 - tail


def _expanded_levels(confidence: float, count: int) -> tuple[float, float]:
    """The level at which a normal quantile times the bootstrap's standard error is Student's half width."""
    student = t_quantile((1 - confidence) / 2, count - 1)
    return _two_sided(NORMAL.cdf(math.sqrt(count / (count - 1)) * student))


def _bca_levels(
    estimate: float, draws: np.ndarray, without_one: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Efron's levels: moved by the bias of the draws and by the skew of the leave-one-out values."""
    tails = _two_sided((1 - confidence) / 2)
    if draws.min() == draws.max():
        return tails
    below = float((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    if not 0 < below < 1:
        what = "all resampled statistics lie on one side of the estimate, so BCa cannot correct the bias"
        remedy = 'use method="percentile", and ask whether it can be bootstrapped at all (a maximum cannot)'
        raise CourseError("statistics-one-sided", what, where="bootstrap_interval", remedy=remedy)
    pull = without_one.mean() - without_one
    spread = float((pull**2).sum())
    skew = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    shift = NORMAL.inv_cdf(below)
    low, high = (shift + NORMAL.inv_cdf(tail) for tail in tails)
    return NORMAL.cdf(shift + low / (1 - skew * low)), NORMAL.cdf(shift + high / (1 - skew * high))


def _resampled(
    values: np.ndarray, statistic: Callable[..., Any], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    try:
        at_once = values.ndim == 1 and "axis" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature to read
        at_once = False
    rows, found = max(1, CHUNK // len(values)), []
    for start in range(0, resamples, rows):
        picks = rng.integers(0, len(values), size=(min(rows, resamples - start), len(values)))
        some = statistic(values[picks], axis=1) if at_once else [statistic(values[pick]) for pick in picks]
        found.append(np.asarray(some, dtype=float))
    draws = np.concatenate(found)
    if bad := int((~np.isfinite(draws)).sum()):
        what = f"the statistic is not finite in {bad} of {resamples} resamples"
        remedy = "use a statistic that exists for every resample, or more values"
        raise CourseError("statistics-not-finite", what, where="bootstrap_interval", remedy=remedy)
    return draws


def _readable_spec(estimate: float, low: float, high: float) -> str:
    """As many digits as the width deserves: one of the half width, or two where it begins with a 1 or a 2.

    And never fewer than two of the largest number, so that a wide interval does not round its estimate away.
    """
    largest, half = max(abs(estimate), abs(low), abs(high)), (high - low) / 2
    if not (math.isfinite(largest) and math.isfinite(half)) or largest == 0:
        return ".3g"
    step = max(half, 1e-6 * largest) if half > 0 else 1e-3 * largest
    exponent = math.floor(math.log10(step) + 1e-9)
    size = math.floor(math.log10(largest))
    decimals = max(-exponent + (step / 10.0**exponent < 3), 1 - size)
    if largest < 1e-3 or largest >= 1e7:
        return f".{size + decimals}e"
    return f".{max(0, decimals)}f"
