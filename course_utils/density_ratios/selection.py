"""Which width, which regularisation? Fit the whole grid, and keep what does best on points not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from course_utils.density_ratios import family
from course_utils.density_ratios.models import RatioEstimate, draw_centres, median_distance, two_samples
from course_utils.density_ratios.problem import METHODS, Problem, among, stated
from course_utils.errors import CourseError

WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2)  # times the median distance
REGULARISATIONS = {
    "ulsif": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "rulsif": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "kliep": (0.0,),
    "logistic": (1e-5, 1e-3, 1e-1),
    "bregman": (1e-3, 1e-2, 1e-1),
}


@dataclass(frozen=True)
class Selection:
    """The best estimate, and the held-out loss of every candidate: `scores` is [widths, regularisations]."""

    estimate: RatioEstimate
    widths: tuple[float | None, ...]
    regularisations: tuple[float, ...]
    scores: Tensor = field(repr=False)


def select(
    method: str,
    numerator: Any,
    denominator: Any,
    *,
    alpha: float = 0.0,
    features: Callable[[Tensor], Tensor] | None = None,
    centres: int | Tensor = 100,
    width: float | Sequence[float] | None = None,
    regularisation: float | Sequence[float] | None = None,
    coefficients: str | None = None,
    generator: str | family.Function = "least-squares",
    link: str | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Selection:
    """Fit `method` for every width and regularisation, and keep the pair with the smallest held-out loss.

    `width` and `regularisation` may be one number, several, or None for the usual grid. The loss is held out
    one point at a time for least squares (exactly, without refitting), in `folds` for the others. With one
    candidate nothing is selected, and only least squares, for which it is cheap, reports a score.
    """
    among(method, METHODS, "method", "select")
    p, q = two_samples(numerator, denominator, method)
    problem = stated(method, p, q, alpha, coefficients, generator, link)
    if not problem.closed_form and not 2 <= folds <= min(len(p), len(q)):
        what = f"{folds} folds for {len(p)} and {len(q)} points"
        remedy = "at least 2, at most one per point"
        raise CourseError("density-ratio-option", what, where=method, remedy=remedy)
    centres, widths = (
        (None, (None,)) if features is not None else _kernels(p, q, centres, width, method, seed)
    )
    problem = replace(problem, features=features, centres=centres, folds=folds, seed=seed)
    regularisations = _candidates(regularisation, "regularisation", method) or REGULARISATIONS[method]
    scores = _scores(problem, widths, regularisations)
    best = int(scores.nan_to_num(nan=math.inf).argmin())
    row, column = divmod(best, len(regularisations))
    score = None if scores.isnan().any() else float(scores[row, column])
    estimate = problem.estimate(widths[row], regularisations[column], score)
    return Selection(estimate, widths, regularisations, scores)


def _kernels(
    p: Tensor, q: Tensor, centres: int | Tensor, width: float | Sequence[float] | None, method: str, seed: int
) -> tuple[Tensor, tuple[float, ...]]:
    if isinstance(centres, int):
        centres = draw_centres(p, centres, seed)
    else:
        centres, _ = two_samples(centres, p, method)
    if width is not None:
        return centres, _candidates(width, "width", method, positive=True)
    distance = median_distance(p, q)
    return centres, tuple(factor * distance for factor in WIDTHS)


def _scores(problem: Problem, widths: tuple[float | None, ...], regularisations: tuple[float, ...]) -> Tensor:
    """The held-out losses; NaN where there is nothing to choose and a score would cost refits."""
    scores = torch.full((len(widths), len(regularisations)), math.nan, dtype=torch.float64)
    for row, width in enumerate(widths):
        basis = problem.basis(width)
        phi_p, phi_q = basis(problem.p), basis(problem.q)
        if problem.coefficients == "nonnegative" and min(float(phi_p.min()), float(phi_q.min())) < 0:
            remedy = 'use link="exponential", or features that are nowhere negative'
            what = "theta >= 0 makes a ratio only with features that are nowhere negative"
            raise CourseError("density-ratio-features", what, where=problem.method, remedy=remedy)
        if scores.numel() == 1 and not problem.closed_form:
            continue
        for column, regularisation in enumerate(regularisations):
            penalty = basis.penalty(regularisation, phi_p.shape[1])
            scores[row, column] = problem.score(phi_p, phi_q, penalty)
    if bool((scores == math.inf).all()) and scores.numel() > 1:
        what = f"none of the {scores.numel()} candidates has a finite held-out loss"
        remedy = "offer larger widths, or a larger regularisation"
        raise CourseError("density-ratio-no-convergence", what, where=problem.method, remedy=remedy)
    return scores


def _candidates(
    values: float | Sequence[float] | None, name: str, where: str, positive: bool = False
) -> tuple[float, ...]:
    if values is None:
        return ()
    found = tuple(float(one) for one in (values if hasattr(values, "__len__") else (values,)))
    if not found or not all(math.isfinite(one) and one >= 0 and (one > 0 or not positive) for one in found):
        what = f"{name} must be finite and {'above' if positive else 'at least'} 0, got {values!r}"
        remedy = "pass one number, several, or None for the usual grid"
        raise CourseError("density-ratio-option", what, where=where, remedy=remedy)
    return found
