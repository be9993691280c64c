"""The two quantiles that intervals are made of: the normal one, and Student's, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from course_utils.errors import CourseError
from course_utils.statistics import checks

NORMAL = NormalDist()


def normal_quantile(probability: float) -> float:
    """The z with P(Z <= z) = probability, for a standard normal Z."""
    _inside(probability, "normal_quantile")
    return NORMAL.inv_cdf(probability)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The t with P(T <= t) = probability, for Student's T with a whole number of degrees of freedom.

    Bisection on the closed form of the distribution (Abramowitz and Stegun 26.7.3 and 26.7.4): eleven digits
    or more for probabilities between 0.0001 and 0.9999.
    """
    _inside(probability, "t_quantile")
    v = checks.whole_number(degrees_of_freedom, "degrees_of_freedom", "t_quantile", least=1)
    if v > 1000:
        return _t_quantile_far(NORMAL.inv_cdf(probability), v)
    if probability < 0.5:
        return -t_quantile(1 - probability, v)
    low, high, inner = 0.0, 1.0, 2 * probability - 1
    while _t_between(high, v) < inner:
        low, high = high, 2 * high
    if inner == 0:
        return 0.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _t_between(middle, v) < inner else (low, middle)
    return high


def _t_between(t: float, v: int) -> float:
    """P(-t < T < t)."""
    angle = math.atan2(t, math.sqrt(v))
    sine, cosine = math.sin(angle), math.cos(angle)
    if v == 1:
        return 2 * angle / math.pi
    term = total = sine * cosine if v % 2 else sine
    for k in range(3 if v % 2 else 2, v - 1, 2):  # each term has two more powers of the cosine
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 * (angle + total) / math.pi if v % 2 else total


def _t_quantile_far(z: float, v: int) -> float:
    """Many degrees of freedom: the expansion in 1/v about the normal quantile (Abramowitz, Stegun 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4


def _inside(probability: float, where: str) -> None:
    if not 0 < probability < 1:
        what = f"probability must lie strictly between 0 and 1, got {probability!r}"
        raise CourseError(
            "statistics-option", what, where=where, remedy="the quantiles of 0 and 1 are infinite"
        )
