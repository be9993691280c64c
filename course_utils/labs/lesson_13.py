"""The checks of lesson 13: a paired interval, choosing on validation, and Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from course_utils.labs.exercises import Case, Exercise, Mistake
from course_utils.statistics import t_quantile

# 13.1


def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Student's 95 % limits of the mean of a - b, seed by seed."""
    difference = a - b
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    half = t_quantile(0.975, len(difference) - 1) * error
    return float(difference.mean() - half), float(difference.mean() + half)


def _paired_by_hand(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    n = len(a)
    mean = sum(a - b) / n
    variance = sum((x - y - mean) ** 2 for x, y in zip(a, b, strict=True)) / (n - 1)
    half = t_quantile(0.975, n - 1) * (variance / n) ** 0.5
    return mean - half, mean + half


def _unpaired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    error = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    half = t_quantile(0.975, len(a) - 1) * error
    return float(a.mean() - b.mean() - half), float(a.mean() - b.mean() + half)


def _with(
    a: np.ndarray, b: np.ndarray, quantile: float, ddof: int = 1, root: bool = True
) -> tuple[float, float]:
    d = a - b
    half = quantile * d.std(ddof=ddof) / (np.sqrt(len(d)) if root else 1)
    return float(d.mean() - half), float(d.mean() + half)


def _scores(seed: int, count: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0.6, 0.05, count)
    return shared + rng.normal(shift, 0.01, count), shared + rng.normal(0, 0.012, count)


def _score_cases() -> Iterator[Case]:
    yield Case((np.array([0.62, 0.58, 0.66]), np.array([0.60, 0.55, 0.65])), "three seeds, by hand")
    yield Case(_scores(1, 5, 0.02), "five seeds, a better by 0.02")
    yield Case(_scores(2, 12, -0.01), "twelve seeds, b better by 0.01")


# 13.2


def honest_scores(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The test score of the setting that validation chose, for each method."""
    chosen = validation.argmax(axis=1)
    return test[np.arange(len(test)), chosen]


def _honest_by_loop(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    found = []
    for row in range(len(test)):
        best = max(range(validation.shape[1]), key=lambda column: validation[row, column])
        found.append(float(test[row, best]))
    return np.array(found)


def _score_tables() -> Iterator[Case]:
    validation = np.array([[0.50, 0.60, 0.55], [0.70, 0.40, 0.65], [0.52, 0.51, 0.58]])
    test = np.array([[0.58, 0.54, 0.53], [0.61, 0.45, 0.66], [0.50, 0.57, 0.55]])
    yield Case((validation, test), "three methods, three settings")
    rng = np.random.default_rng(5)
    for methods, settings in ((6, 4), (3, 8)):
        truth = rng.normal(0.55, 0.03, (methods, settings))
        noise = rng.normal(0, 0.03, (2, methods, settings))
        yield Case((truth + noise[0], truth + noise[1]), f"{methods} methods, {settings} settings")


# 13.3


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    count = len(p_values)
    adjusted, largest = np.empty(count), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (count - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def _holm_at_once(p_values: np.ndarray) -> np.ndarray:
    order = np.argsort(p_values)
    steps = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    found = np.empty(len(p_values))
    found[order] = np.minimum(1, np.maximum.accumulate(steps))
    return found


def _sorted_only(p_values: np.ndarray) -> np.ndarray:
    return np.sort(holm_adjusted(p_values))


def _not_monotone(p_values: np.ndarray) -> np.ndarray:
    order, count = np.argsort(p_values), len(p_values)
    found = np.empty(count)
    found[order] = np.minimum(1, np.sort(p_values) * (count - np.arange(count)))
    return found


def _hochberg_false_discovery(p_values: np.ndarray) -> np.ndarray:
    order, count = np.argsort(p_values), len(p_values)
    steps = np.sort(p_values) * count / np.arange(1, count + 1)
    found = np.empty(count)
    found[order] = np.minimum(1, np.minimum.accumulate(steps[::-1])[::-1])
    return found


def _wrong_end(p_values: np.ndarray) -> np.ndarray:
    order, count = np.argsort(p_values), len(p_values)
    steps = np.sort(p_values) * np.arange(1, count + 1)
    found = np.empty(count)
    found[order] = np.minimum(1, np.maximum.accumulate(steps))
    return found


def _uncapped(p_values: np.ndarray) -> np.ndarray:
    order, count = np.argsort(p_values), len(p_values)
    found = np.empty(count)
    found[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(count, 0, -1))
    return found


def _p_cases() -> Iterator[Case]:
    yield Case((np.array([0.04, 0.01, 0.03]),), "three comparisons: 0.04, 0.01, 0.03")
    yield Case((np.array([0.002, 0.4, 0.012, 0.03, 0.9, 0.012]),), "six, two of them equal")
    yield Case((np.array([0.6, 0.7, 0.3, 0.2]),), "four, none of them small")


EXERCISES = (
    Exercise(
        id="13.1",
        title="A paired interval",
        truth=paired_interval,
        cases=_score_cases,
        explain="What the two methods share, the data and the test texts of a seed, is gone from the difference.",
        also_right=(_paired_by_hand,),
        mistakes=(
            Mistake(
                "unpaired",
                "This adds the variances of a and b, as if they had nothing in common. Take the difference seed by "
                "seed first: what a seed does to both then cancels.",
                _unpaired,
            ),
            Mistake(
                "normal quantile",
                "This multiplies by 1.96. With few seeds the spread itself is uncertain: Student's quantile at n - 1 "
                "degrees of freedom is larger, 2.78 for five seeds.",
                lambda a, b: _with(a, b, 1.959963984540054),
                (lambda a, b: _with(a, b, 1.96),),
            ),
            Mistake(
                "n instead of n - 1",
                "This divides by n in the variance (ddof=0), which is too small by a factor (n - 1)/n.",
                lambda a, b: _with(a, b, t_quantile(0.975, len(a) - 1), ddof=0),
            ),
            Mistake(
                "no square root of n",
                "This is the spread of single differences. The mean of n of them is surer: divide by sqrt(n).",
                lambda a, b: _with(a, b, t_quantile(0.975, len(a) - 1), root=False),
            ),
            Mistake(
                "b minus a",
                "This is the interval of b - a. Above zero should mean that a is larger.",
                lambda a, b: paired_interval(b, a),
            ),
            Mistake(
                "one-sided",
                "This uses the 0.95 quantile: 5 % in each tail make an interval of 90 %.",
                lambda a, b: _with(a, b, t_quantile(0.95, len(a) - 1)),
            ),
            Mistake(
                "degrees of freedom",
                "This has n degrees of freedom; the mean has used up one of them, so n - 1 are left.",
                lambda a, b: _with(a, b, t_quantile(0.975, len(a))),
                (lambda a, b: _with(a, b, t_quantile(0.975, 2 * len(a) - 2)),),
            ),
        ),
    ),
    Exercise(
        id="13.2",
        title="Choose on validation, report on test",
        truth=honest_scores,
        cases=_score_tables,
        explain="The maximum over settings was taken where it does not count, so the number that is left is unbiased.",
        also_right=(_honest_by_loop,),
        mistakes=(
            Mistake(
                "best on test",
                "This chooses on the test scores that it reports: the largest of several noisy numbers is too large "
                "on average.",
                lambda validation, test: test.max(axis=1),
            ),
            Mistake(
                "validation reported",
                "This reports the validation score of the chosen setting, which was chosen for being large. Report "
                "its test score.",
                lambda validation, test: validation.max(axis=1),
            ),
            Mistake(
                "one setting for all",
                "This takes the setting that is best on average over methods. Each method has its own scale of beta: "
                "choose for each.",
                lambda validation, test: test[:, int(validation.mean(axis=0).argmax())],
            ),
            Mistake(
                "worst setting",
                "This takes the setting with the smallest validation score; these are win rates, larger is better.",
                lambda validation, test: test[np.arange(len(test)), validation.argmin(axis=1)],
            ),
            Mistake(
                "mean over settings",
                "This averages over all settings. Nobody would use the bad ones: choose one first.",
                lambda validation, test: test.mean(axis=1),
            ),
            Mistake(
                "best of both",
                "This chooses by the mean of validation and test, so test scores still decide what is reported.",
                lambda validation, test: test[np.arange(len(test)), (validation + test).argmax(axis=1)],
            ),
        ),
    ),
    Exercise(
        id="13.3",
        title="Many comparisons",
        truth=holm_adjusted,
        cases=_p_cases,
        explain="Compare these with 0.05: one false call or more in at most 5 % of such tables.",
        also_right=(_holm_at_once,),
        mistakes=(
            Mistake(
                "Bonferroni",
                "This multiplies every p-value by their number (Bonferroni). It is valid, and needlessly strict: after "
                "the smallest, one comparison fewer is left.",
                lambda p: np.minimum(1, len(p) * p),
            ),
            Mistake(
                "not monotone",
                "A larger p-value has a smaller adjusted one here. Each must be at least as large as the one before: "
                "take the running maximum.",
                _not_monotone,
            ),
            Mistake(
                "not in the order given",
                "The numbers are right and stand in sorted order. Put them back where their p-values were.",
                _sorted_only,
            ),
            Mistake(
                "wrong end",
                "This multiplies the smallest p-value by 1 and the largest by their number. It is the other way round.",
                _wrong_end,
            ),
            Mistake(
                "false discovery rate",
                "This is Benjamini and Hochberg's: it bounds the share of false calls among the calls, not the chance "
                "of any.",
                _hochberg_false_discovery,
            ),
            Mistake(
                "above one",
                "A p-value cannot exceed 1: cap it.",
                _uncapped,
            ),
        ),
    ),
)
