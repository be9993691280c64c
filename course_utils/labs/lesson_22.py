"""The checks of lesson 22: how many prompts a difference needs, a win rate at equal length, and one without position."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake
from course_utils.statistics import normal_quantile

LEVEL, POWER = normal_quantile(0.975), normal_quantile(0.8)

# 22.1


def prompts_needed(difference: float, deviation: float) -> int:
    """Prompts to see a difference at the two-sided 5 % level in 80 % of evaluations."""
    return _prompts(LEVEL + POWER, difference, deviation)


def _prompts(quantiles: float, difference: float, deviation: float) -> int:
    return math.ceil((quantiles * deviation / difference) ** 2)


def _differences() -> Iterator[Case]:
    yield Case((0.02, 0.5), "verdicts, two points")
    yield Case((0.05, 0.31), "probabilities, five points")
    yield Case((-0.03, 0.24), "three points worse")


# 22.2


def at_equal_length(theta: float, phi: float, psi: float, delta: Tensor, gamma: Tensor) -> float:
    """The length-controlled win rate."""
    return float(torch.sigmoid(theta + psi * gamma).mean())


def _fits() -> Iterator[Case]:
    """Fits of evaluations in which our answers are longer, and difficulty matters."""
    for seed, theta, phi, psi in ((1, 0.4, 1.0, 0.8), (2, -0.6, 0.7, 1.5), (3, 1.1, -0.5, -2.0)):
        generator = torch.Generator().manual_seed(seed)
        delta, gamma = torch.randn(2, 12, dtype=torch.float64, generator=generator)
        yield Case((theta, phi, psi, 50 * (delta + 0.8), gamma + 0.3), f"theta {theta}, phi {phi}, psi {psi}")


def _with_length(theta: float, phi: float, psi: float, delta: Tensor, gamma: Tensor) -> float:
    return float(torch.sigmoid(theta + phi * torch.tanh(delta / delta.std()) + psi * gamma).mean())


def _with_length_by_population(theta: float, phi: float, psi: float, delta: Tensor, gamma: Tensor) -> float:
    scaled = torch.tanh(delta / delta.std(correction=0))
    return float(torch.sigmoid(theta + phi * scaled + psi * gamma).mean())


def _at_mean_length(theta: float, phi: float, psi: float, delta: Tensor, gamma: Tensor) -> float:
    scaled = torch.tanh(delta.mean() / delta.std())
    return float(torch.sigmoid(theta + phi * scaled + psi * gamma).mean())


# 22.3


def without_position(ours_first: Tensor, ours_second: Tensor) -> Tensor:
    """P(ours preferred) from the mean of our log-odds in both orders."""
    return torch.sigmoid((torch.logit(ours_first) - torch.logit(ours_second)) / 2)


def _by_odds(ours_first: Tensor, ours_second: Tensor) -> Tensor:
    """The geometric mean of the odds."""
    odds = (ours_first / (1 - ours_first) * (1 - ours_second) / ours_second).sqrt()
    return odds / (1 + odds)


def _orders() -> Iterator[Case]:
    """A judge with log-odds d, who adds 1 (or takes 0.5) for the first place."""
    for seed, liking in ((1, 1.0), (2, -0.5), (3, 0.3)):
        d = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
        yield Case((torch.sigmoid(d + liking), torch.sigmoid(liking - d)), f"a first place worth {liking}")


EXERCISES = (
    Exercise(
        id="22.1",
        title="How many prompts",
        truth=prompts_needed,
        cases=_differences,
        explain="Half the difference costs four times the prompts; half the deviation saves as much.",
        also_right=(
            lambda difference, deviation: float(prompts_needed(difference, deviation)),
            lambda difference, deviation: -int(-(((LEVEL + POWER) ** 2) * deviation**2 / difference**2) // 1),
        ),
        mistakes=(
            Mistake(
                "power forgotten",
                "With these prompts the difference lies at the very edge of the interval, so it is seen in only half "
                "of the evaluations: add the 0.8 quantile for the power.",
                lambda difference, deviation: _prompts(LEVEL, difference, deviation),
            ),
            Mistake(
                "one-sided",
                "This uses the 0.95 quantile: a two-sided 5 % level leaves 2.5 % on each side.",
                lambda difference, deviation: _prompts(normal_quantile(0.95) + POWER, difference, deviation),
            ),
            Mistake(
                "square missing",
                "The standard error falls with the square root of n, so n grows with the square of the ratio.",
                lambda difference, deviation: math.ceil((LEVEL + POWER) * deviation / abs(difference)),
            ),
            Mistake(
                "squares added",
                "The two distances lie behind one another: add the quantiles first, then square.",
                lambda difference, deviation: _prompts(math.sqrt(LEVEL**2 + POWER**2), difference, deviation),
            ),
            Mistake(
                "deviation forgotten",
                "The deviation of one value is missing: calmer values need fewer prompts.",
                lambda difference, deviation: _prompts(LEVEL + POWER, difference, 1.0),
            ),
            Mistake(
                "wrong quantile for power",
                "This takes the power two-sided (0.9) as well: 80 % of evaluations is the 0.8 quantile.",
                lambda difference, deviation: _prompts(LEVEL + normal_quantile(0.9), difference, deviation),
            ),
            Mistake(
                "rounded down",
                "Round up: with one prompt fewer the power is a little below 80 %.",
                lambda difference, deviation: prompts_needed(difference, deviation) - 1,
            ),
            Mistake(
                "two samples",
                "This is for two separate samples, which cost twice the variance; here there is one mean.",
                lambda difference, deviation: _prompts(math.sqrt(2) * (LEVEL + POWER), difference, deviation),
            ),
        ),
    ),
    Exercise(
        id="22.2",
        title="At equal length",
        truth=at_equal_length,
        cases=_fits,
        explain="Difficulty stays, length goes: phi and delta do not enter at all.",
        also_right=(
            lambda theta, phi, psi, delta, gamma: (1 / (1 + torch.exp(-theta - psi * gamma))).mean(),
            lambda theta, phi, psi, delta, gamma: (
                sum(1 / (1 + math.exp(-theta - psi * g)) for g in gamma.tolist()) / len(gamma)
            ),
        ),
        mistakes=(
            Mistake(
                "length left in",
                "The length term is still in it: this is the fitted raw win rate. Set that term to zero.",
                _with_length,
                (_with_length_by_population,),
            ),
            Mistake(
                "mean length instead of equal length",
                "This sets the length difference to its mean; equal length is a difference of zero.",
                _at_mean_length,
            ),
            Mistake(
                "difficulty dropped",
                "This is the win rate on a prompt of difficulty zero: keep psi gamma of each prompt.",
                lambda theta, phi, psi, delta, gamma: float(torch.sigmoid(torch.tensor(theta))),
            ),
            Mistake(
                "log-odds averaged",
                "This averages the log-odds and then takes the sigmoid; a win rate is a mean of probabilities.",
                lambda theta, phi, psi, delta, gamma: float(torch.sigmoid((theta + psi * gamma).mean())),
            ),
            Mistake(
                "mean missing",
                "This is one probability for each prompt: return their mean.",
                lambda theta, phi, psi, delta, gamma: torch.sigmoid(theta + psi * gamma),
            ),
            Mistake(
                "sigmoid missing",
                "These are log-odds: pass them through the sigmoid before you average.",
                lambda theta, phi, psi, delta, gamma: float((theta + psi * gamma).mean()),
            ),
        ),
    ),
    Exercise(
        id="22.3",
        title="Without position",
        truth=without_position,
        cases=_orders,
        explain="The liking for a place has opposite signs in the two log-odds, and cancels exactly.",
        also_right=(_by_odds,),
        mistakes=(
            Mistake(
                "probabilities averaged",
                "This averages probabilities: right for equal models, nearer to one half than the truth for others. "
                "Average log-odds.",
                lambda ours_first, ours_second: (ours_first + 1 - ours_second) / 2,
            ),
            Mistake(
                "second order not turned",
                "Where ours stands second, P(first) is the probability that *theirs* wins: turn it round.",
                lambda ours_first, ours_second: torch.sigmoid(
                    (torch.logit(ours_first) + torch.logit(ours_second)) / 2
                ),
                (lambda ours_first, ours_second: (ours_first + ours_second) / 2,),
            ),
            Mistake(
                "sum instead of mean",
                "These are the log-odds of both orders added: divide by two.",
                lambda ours_first, ours_second: torch.sigmoid(
                    torch.logit(ours_first) - torch.logit(ours_second)
                ),
            ),
            Mistake(
                "one order",
                "This uses one order alone, and the first place is still in it.",
                lambda ours_first, ours_second: ours_first,
                (lambda ours_first, ours_second: 1 - ours_second,),
            ),
            Mistake(
                "their win rate",
                "This is the probability that theirs is preferred: exchange the signs.",
                lambda ours_first, ours_second: 1 - without_position(ours_first, ours_second),
            ),
            Mistake(
                "log-odds returned",
                "These are log-odds: a probability is their sigmoid.",
                lambda ours_first, ours_second: (torch.logit(ours_first) - torch.logit(ours_second)) / 2,
            ),
        ),
    ),
)
