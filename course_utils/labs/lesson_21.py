"""The checks of lesson 21: from ratings to a ceiling, how false a premise is at least, one class by bad luck."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake

# 21.1


def share_and_ceiling(ratings: Tensor, bar: float) -> tuple[float, float]:
    """The share of ratings at the bar or above it, and the logarithm of one over it."""
    alpha = float((ratings >= bar).double().mean())
    return alpha, -math.log(alpha)


def _ratings() -> Iterator[Case]:
    yield Case((torch.tensor([5.0, 4, 5, 3, 2, 4, 1, 5, 4, 2]), 5.0), "ten ratings, the bar at 5")
    yield Case((torch.tensor([1.0, 2, 3, 4, 5, 3, 3, 2]), 3.0), "eight ratings, the bar at 3")
    yield Case((torch.tensor([4.5, 1.0, 2.5, 2.5]), 2.5), "half points, the bar at 2.5")


def _ceiling(change: Callable[[float], float]) -> Callable[[Tensor, float], tuple[float, float]]:
    """The right share with another ceiling: for the mistakes."""

    def found(ratings: Tensor, bar: float) -> tuple[float, float]:
        alpha = share_and_ceiling(ratings, bar)[0]
        return alpha, change(alpha)

    return found


def _above(ratings: Tensor, bar: float) -> tuple[float, float]:
    alpha = float((ratings > bar).double().mean())
    return alpha, -math.log(alpha) if alpha else math.inf


def _rejected(ratings: Tensor, bar: float) -> tuple[float, float]:
    alpha = float((ratings < bar).double().mean())
    return alpha, -math.log(alpha)


def _mean_rating(ratings: Tensor, bar: float) -> tuple[float, float]:
    alpha = float(ratings.double().mean() / bar)
    return alpha, -math.log(alpha)


def _share_by_loop(ratings: Tensor, bar: float) -> tuple[float, float]:
    good = sum(1 for rating in ratings.tolist() if rating >= bar)
    return good / len(ratings), math.log(len(ratings) / good)


# 21.2


def at_least_so_false(before: Tensor, after: Tensor) -> float:
    """The mean gain minus 1.645 standard errors."""
    gain = after - before
    return float(gain.mean() - 1.645 * gain.std() / math.sqrt(len(gain)))


def _log_probs() -> Iterator[Case]:
    for seed, rows, rise in ((1, 40, 2.0), (2, 200, 0.3), (3, 25, -0.5)):
        generator = torch.Generator().manual_seed(seed)
        before = -40 - 12 * torch.rand(rows, dtype=torch.float64, generator=generator)
        after = before + rise + 1.5 * torch.randn(rows, dtype=torch.float64, generator=generator)
        yield Case((before, after), f"{rows} held-out responses")


def _gain_with(
    finish: Callable[[Tensor], Tensor | float],
) -> Callable[[Tensor, Tensor], float]:
    """Something else made of the gains: for the mistakes."""
    return lambda before, after: float(finish(after - before))


def _se(values: Tensor) -> Tensor:
    return values.std() / math.sqrt(len(values))


# 21.3


def one_class(size: int, alpha: float) -> float:
    """All of them preferred, or none."""
    return alpha**size + (1 - alpha) ** size


def _batches() -> Iterator[Case]:
    for size, alpha in ((2, 0.39), (4, 0.39), (8, 0.2), (3, 0.7)):
        yield Case((size, alpha), f"{size} rows, alpha {alpha}")


EXERCISES = (
    Exercise(
        id="21.1",
        title="From ratings to a ceiling",
        truth=share_and_ceiling,
        cases=_ratings,
        explain="The bar decides α, and α decides how far one response may move.",
        also_right=(_share_by_loop,),
        mistakes=(
            Mistake(
                "above the bar only",
                "A rating at the bar counts too: `>=`. UF-G's bar is 5, and no rating is above it.",
                _above,
            ),
            Mistake(
                "share of the rejected",
                "This is the share below the bar, 1 − α.",
                _rejected,
            ),
            Mistake(
                "mean rating",
                "This is the mean rating in units of the bar; α is a share of rows.",
                _mean_rating,
            ),
            Mistake(
                "ratio instead of its logarithm",
                "This is 1/α, the largest ratio; the ceiling of the log-ratio is its logarithm.",
                _ceiling(lambda alpha: 1 / alpha),
            ),
            Mistake(
                "sign",
                "The logarithm of α is negative: the pull on a preferred response ends at log 1/α, above zero.",
                _ceiling(math.log),
            ),
            Mistake(
                "logarithm of base 2",
                "Log-ratios are in nats: the natural logarithm.",
                _ceiling(lambda alpha: -math.log2(alpha)),
            ),
            Mistake(
                "odds of a label",
                "This is log((1 − α)/α), where a plain classifier of the labels would stand; RDRO's ratio has the mixture "
                "below, and ends at log 1/α.",
                _ceiling(lambda alpha: math.log((1 - alpha) / alpha)),
            ),
        ),
    ),
    Exercise(
        id="21.2",
        title="How false, at least?",
        truth=at_least_so_false,
        cases=_log_probs,
        explain="If this is above zero, the reference did not write the file, and you know by how many nats at least.",
        also_right=(
            lambda before, after: (
                (after - before).mean().item()
                - 1.645 * math.sqrt((after - before).var().item() / len(before))
            ),
        ),
        mistakes=(
            Mistake(
                "sign",
                "This is before minus after: if the reference did not write the file, `after` is the larger one.",
                lambda before, after: at_least_so_false(after, before),
            ),
            Mistake(
                "no interval",
                "This is the mean gain: the estimate. The bound lies 1.645 standard errors below.",
                _gain_with(lambda gain: gain.mean()),
            ),
            Mistake(
                "upper bound",
                "This is the upper end: a gain says how false the premise is *at least*.",
                _gain_with(lambda gain: gain.mean() + 1.645 * _se(gain)),
            ),
            Mistake(
                "standard deviation",
                "This subtracts 1.645 standard deviations of a row; the mean of n rows is √n times more certain.",
                _gain_with(lambda gain: gain.mean() - 1.645 * gain.std()),
            ),
            Mistake(
                "not paired",
                "This treats the two lists as independent samples. They are the same rows: take differences first.",
                lambda before, after: float(
                    after.mean() - before.mean() - 1.645 * (_se(after) ** 2 + _se(before) ** 2).sqrt()
                ),
            ),
            Mistake(
                "variance over n without the root",
                "This subtracts the variance of the mean; the standard error is its root.",
                _gain_with(lambda gain: gain.mean() - 1.645 * gain.var() / len(gain)),
            ),
            Mistake(
                "two-sided",
                "This is the lower end of the two-sided interval, 1.96 standard errors; asked is a one-sided bound.",
                _gain_with(lambda gain: gain.mean() - 1.96 * _se(gain)),
            ),
            Mistake(
                "divided by n",
                "This divides the squares by n, as numpy's `std` does unless told; an estimate has n − 1: `ddof=1`, or torch's.",
                _gain_with(lambda gain: gain.mean() - 1.645 * gain.std(correction=0) / math.sqrt(len(gain))),
            ),
            Mistake(
                "mean ratio",
                "This averages ratios instead of log-ratios: a few rows decide it, and it is no bound of the KL.",
                _gain_with(lambda gain: gain.exp().mean().log() - 1.645 * _se(gain)),
            ),
        ),
    ),
    Exercise(
        id="21.3",
        title="One class by bad luck",
        truth=one_class,
        cases=_batches,
        explain="With four rows at α = 0.39 it is about one batch in six.",
        also_right=(lambda size, alpha: math.pow(alpha, size) + math.pow(1 - alpha, size),),
        mistakes=(
            Mistake(
                "all preferred only",
                "This is the chance that all are preferred; all rejected is the other way to be of one class.",
                lambda size, alpha: alpha**size,
            ),
            Mistake(
                "all rejected only",
                "This is the chance that all are rejected; all preferred is the other way to be of one class.",
                lambda size, alpha: (1 - alpha) ** size,
            ),
            Mistake(
                "the other event",
                "This is the chance that both classes are there.",
                lambda size, alpha: 1 - alpha**size - (1 - alpha) ** size,
            ),
            Mistake(
                "as if the classes were equal",
                "This takes one half for α: unbalanced classes make it likelier.",
                lambda size, alpha: 2 * 0.5**size,
            ),
            Mistake(
                "product of the two",
                "The two events exclude each other: their chances are added, not multiplied.",
                lambda size, alpha: alpha**size * (1 - alpha) ** size,
            ),
            Mistake(
                "a second row like the first",
                "This is one power short: the first row is of a class as well, with its own probability.",
                lambda size, alpha: alpha ** (size - 1) + (1 - alpha) ** (size - 1),
            ),
        ),
    ),
)
