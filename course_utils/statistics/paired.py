"""Two methods on the same prompts or seeds: who is better, and is it chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import checks
from course_utils.statistics.intervals import CHUNK, Interval, bootstrap_interval


@dataclass(frozen=True)
class PairedComparison:
    """Mean of a - b over the pairs, and who is better: "a", "b", or "tie" when the limits hold zero."""

    difference: Interval
    verdict: str

    def __str__(self) -> str:
        return f"a - b = {self.difference}: {'tie' if self.verdict == 'tie' else self.verdict + ' is better'}"


@dataclass(frozen=True)
class PermutationTest:
    """Mean of a - b, and the two-sided p-value under swaps of a and b within each pair."""

    difference: float
    p_value: float
    exact: bool
    count: int

    def __str__(self) -> str:
        how = "exact" if self.exact else "Monte Carlo"
        return f"a - b = {self.difference:.4g}, p = {self.p_value:.3g} ({how}, n = {self.count})"


def paired_bootstrap(
    a: Any,
    b: Any,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    method: str = "expanded",
    higher_is_better: bool = True,
) -> PairedComparison:
    """Who is better? Mean of a - b over the pairs with bootstrap limits; zero inside them is a tie.

    Set `higher_is_better=False` for a loss, a KL or an error.
    """
    a, b = checks.pairs(a, b, "paired_bootstrap", least=2)
    difference = bootstrap_interval(a - b, np.mean, confidence, resamples, seed, method)
    if 0 in difference:
        return PairedComparison(difference, "tie")
    return PairedComparison(difference, "a" if (difference.low > 0) == higher_is_better else "b")


def paired_permutation_test(a: Any, b: Any, seed: int = 0, resamples: int = 20_000) -> PermutationTest:
    """Were a and b interchangeable within each pair, how often would |mean(a - b)| be at least as large?

    All 2**n swaps are counted for n <= 20, and `seed` is not used; otherwise `resamples` random ones, the
    observed one counted among them, so that p is never zero. With n pairs p is at least 2 / 2**n: five seeds
    cannot reach 0.05.
    """
    a, b = checks.pairs(a, b, "paired_permutation_test", least=1)
    checks.whole_number(resamples, "resamples", "paired_permutation_test", least=100)
    difference = a - b
    # sums that are equal but for rounding must count as equal
    edge = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()
    exact = difference.size <= 20
    if exact:
        sums = np.zeros(1)
        for one in difference:
            sums = np.concatenate([sums + one, sums - one])
        p_value = float((np.abs(sums) >= edge).mean())
    else:
        rng, hits, rows = np.random.default_rng(seed), 1, max(1, CHUNK // difference.size)
        for start in range(0, resamples, rows):
            size = (min(rows, resamples - start), difference.size)
            signs = 2.0 * rng.integers(0, 2, size=size, dtype=np.int8) - 1.0
            hits += int((np.abs(signs @ difference) >= edge).sum())
        p_value = hits / (resamples + 1)
    return PermutationTest(float(difference.mean()), p_value, exact, difference.size)


def holm(p_values: Any) -> np.ndarray:
    """Holm's adjusted p-values, in the order given, for a family of tests.

    Calling those below 0.05 real makes one false call or more in at most 5 % of such families.
    """
    p_values = checks.array(p_values, "p_values", "holm")
    if p_values.min() < 0 or p_values.max() > 1:
        what = f"p-values lie in [0, 1], got {p_values.min():g} to {p_values.max():g}"
        remedy = "pass p-values, not test statistics"
        raise CourseError("statistics-out-of-range", what, where="holm", remedy=remedy)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(p_values.size, 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
