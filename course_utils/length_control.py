r"""The win rate with the influence of length taken out, as AlpacaEval 2 does it (Dubois et al. 2024, arXiv 2404.04475).

Judges like long answers. A logistic regression says how much of a win is length:

    P(win | x) = sigma( theta + phi tanh( (len - len') / s ) + psi gamma_x ),        s = the deviation of len - len'

theta is the model, phi the judge's liking for length, gamma_x the difficulty of a prompt (left out unless given). The
length-controlled win rate is the mean of this probability with the length term set to zero: what the judge would say if both
responses were equally long. tanh is bounded, so that a few very long responses do not decide.

How this differs from the released code of AlpacaEval 2
- there the difficulties come from a file, fitted once to many models; here they are an argument, because your prompts are others;
- there an L1 penalty is chosen by cross-validation (the paper says L2), and two artificially long and short baselines are mixed in
  with a small weight; here the penalty is small and fixed, and no such baselines exist;
- the interval here is a bootstrap over prompts in which the regression is fitted anew each time; there, the standard error
  of the predictions is printed, which leaves out that the coefficients are uncertain.

What it cannot do: if a response is longer *because* it is better, that part is taken out as well; and a liking for
length of another shape than tanh is taken out only in part. Lesson 22 measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from course_utils.errors import CourseError
from course_utils.statistics import Interval, mean_interval

PENALTY = 1e-3  # of the squared coefficients, in the sum of losses: keeps a separable sample finite


@dataclass(frozen=True)
class LengthControl:
    """A win rate, with and without the influence of length."""

    raw: Interval
    controlled: Interval
    strength: float  # theta: the log-odds of winning at equal length and average difficulty
    liking_for_length: float  # phi: what tanh of the length difference adds to the log-odds
    difficulty: float | None  # psi

    def __str__(self) -> str:
        return (
            f"win rate {self.raw}; at equal length {self.controlled} "
            f"(liking for length {self.liking_for_length:+.2f} in the log-odds)"
        )


def length_controlled_win_rate(
    wins: Sequence[float],
    lengths: Sequence[float],
    other_lengths: Sequence[float],
    difficulty: Sequence[float] | None = None,
    *,
    samples: int = 200,
    seed: int = 0,
) -> LengthControl:
    """The win rate of one model against another on the same prompts, raw and at equal length.

    wins          for each prompt, the probability that the judge prefers our response: 0, 1, or between; a tie is 0.5
    lengths, other_lengths   of the two responses, in any unit
    difficulty    a number for each prompt, such as the mean log-odds of other models on it
    samples       of the bootstrap over prompts
    """
    won, ours, others = (np.asarray(values, dtype=float) for values in (wins, lengths, other_lengths))
    hard = None if difficulty is None else np.asarray(difficulty, dtype=float)
    _refuse(won, ours, others, hard)
    fitted = _fit(won, ours - others, hard)
    rng = np.random.default_rng(seed)
    again = []
    for _ in range(samples):
        rows = rng.integers(len(won), size=len(won))
        sample = _fit(won[rows], (ours - others)[rows], None if hard is None else hard[rows])
        again.append(_at_equal_length(sample, None if hard is None else hard[rows]))
    low, high = np.quantile(again, [0.025, 0.975])
    estimate = _at_equal_length(fitted, hard)
    return LengthControl(
        raw=mean_interval(won),
        controlled=Interval(float(estimate), float(min(low, estimate)), float(max(high, estimate)), 0.95, len(won)),
        strength=float(fitted[0]),
        liking_for_length=float(fitted[1]),
        difficulty=None if hard is None else float(fitted[2]),
    )


def _fit(won: np.ndarray, difference: np.ndarray, hard: np.ndarray | None) -> np.ndarray:
    """theta, phi (and psi): logistic regression with soft labels, each row once as a win and once as a loss."""
    from sklearn.linear_model import LogisticRegression

    deviation = difference.std()
    columns = [np.ones_like(won), np.tanh(difference / deviation) if deviation > 0 else np.zeros_like(won)]
    if hard is not None:
        columns.append(hard)
    design = np.column_stack(columns)
    model = LogisticRegression(C=1 / PENALTY, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
    labels = np.repeat([1, 0], len(won))
    model.fit(np.vstack([design, design]), labels, sample_weight=np.concatenate([won, 1 - won]))
    return model.coef_[0]


def _at_equal_length(fitted: np.ndarray, hard: np.ndarray | None) -> float:
    odds = fitted[0] if hard is None else fitted[0] + fitted[2] * hard
    return float(np.mean(1 / (1 + np.exp(-odds))))


def _refuse(won: np.ndarray, ours: np.ndarray, others: np.ndarray, hard: np.ndarray | None) -> None:
    problem = ""
    given = [won, ours, others] + ([] if hard is None else [hard])
    if len({values.shape for values in given}) > 1 or won.ndim != 1:
        problem = f"the numbers of prompts differ: {', '.join(str(values.shape) for values in given)}"
    elif len(won) < 10:
        problem = f"{len(won)} prompts are too few to fit a regression to"
    elif not all(np.isfinite(values).all() for values in given):
        problem = "a value is not finite"
    elif won.min() < 0 or won.max() > 1:
        problem = f"wins must lie between 0 and 1; they reach from {won.min():g} to {won.max():g}"
    elif won.min() == won.max() and won.max() in (0.0, 1.0):
        problem = f"every comparison was {'won' if won.max() else 'lost'}: there is nothing to explain"
    if problem:
        raise CourseError(
            "length-control",
            f"{problem}.",
            where="length_controlled_win_rate",
            remedy="pass one win probability and two lengths for each prompt, at least ten prompts, not all alike.",
        )
