"""The estimators by name. They share these options:

features                 a function from points to [points, features]; without it, Gaussian kernels
centres                  how many numerator points carry a kernel, or the centres themselves
width, regularisation    a number; or several, or None for the usual grid, and the held-out loss decides
folds                    of the cross-validation, where the held-out loss needs refits
seed                     for the draw of the centres and of the folds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from course_utils.density_ratios.family import Function
from course_utils.density_ratios.models import RatioEstimate
from course_utils.density_ratios.selection import select

Features = Callable[[Tensor], Tensor] | None
Numbers = float | Sequence[float] | None


def ulsif(
    numerator: Any,
    denominator: Any,
    *,
    features: Features = None,
    centres: int | Tensor = 100,
    width: Numbers = None,
    regularisation: Numbers = None,
    coefficients: str = "clip",
    seed: int = 0,
) -> RatioEstimate:
    """Least squares, min E_q[r**2]/2 - E_p[r] + lambda |theta|**2 / 2 over r = theta . phi, in closed form.

    `coefficients="clip"` sets negative entries of theta to zero afterwards, as the paper does, so that the
    estimate is nowhere negative. "keep" leaves them: less biased, and better once there are many points.
    """
    shared = {"features": features, "centres": centres, "width": width, "regularisation": regularisation}
    return select("ulsif", numerator, denominator, coefficients=coefficients, seed=seed, **shared).estimate


def rulsif(
    numerator: Any,
    denominator: Any,
    alpha: float = 0.1,
    *,
    features: Features = None,
    centres: int | Tensor = 100,
    width: Numbers = None,
    regularisation: Numbers = None,
    coefficients: str = "clip",
    seed: int = 0,
) -> RatioEstimate:
    """The relative ratio p / (alpha p + (1 - alpha) q) by least squares; uLSIF with the mixture in the place
    of q.

    The true relative ratio is at most 1/alpha. The estimate is not forced to be.
    """
    shared = {"features": features, "centres": centres, "width": width, "regularisation": regularisation}
    mine = {"alpha": alpha, "coefficients": coefficients}
    return select("rulsif", numerator, denominator, seed=seed, **mine, **shared).estimate


def kliep(
    numerator: Any,
    denominator: Any,
    *,
    link: str = "linear",
    features: Features = None,
    centres: int | Tensor = 100,
    width: Numbers = None,
    regularisation: Numbers = None,
    folds: int = 5,
    seed: int = 0,
) -> RatioEstimate:
    """Maximum likelihood: the largest mean log-ratio over p's points, with mean ratio one over q's points.

    `link="linear"` is the paper's r = theta . phi with theta >= 0, for features that are nowhere negative;
    "exponential" models log r = theta . phi + constant instead, on any features.
    """
    shared = {"features": features, "centres": centres, "width": width, "regularisation": regularisation}
    return select("kliep", numerator, denominator, link=link, folds=folds, seed=seed, **shared).estimate


def logistic(
    numerator: Any,
    denominator: Any,
    alpha: float = 0.0,
    *,
    features: Features = None,
    centres: int | Tensor = 100,
    width: Numbers = None,
    regularisation: Numbers = None,
    folds: int = 5,
    seed: int = 0,
) -> RatioEstimate:
    """A classifier of p against q whose logit, theta . phi + constant, is the log-ratio; the samples weigh
    the same.

    With alpha > 0 it is a classifier of p against the mixture: RDRO's loss on a linear model of the log-
    ratio.
    """
    shared = {"features": features, "centres": centres, "width": width, "regularisation": regularisation}
    return select("logistic", numerator, denominator, alpha=alpha, folds=folds, seed=seed, **shared).estimate


def bregman(
    numerator: Any,
    denominator: Any,
    generator: str | Function = "least-squares",
    *,
    link: str | None = None,
    alpha: float = 0.0,
    features: Features = None,
    centres: int | Tensor = 100,
    width: Numbers = None,
    regularisation: Numbers = None,
    coefficients: str = "keep",
    folds: int = 5,
    seed: int = 0,
) -> RatioEstimate:
    """The whole family: any convex f(r) as `generator`, r = theta . phi ("linear") or its logarithm
    ("exponential").

    `coefficients` is "keep", "clip" (negatives to zero afterwards) or "nonnegative" (the minimum over theta
    >= 0). Without a `link`, "logistic" gets the exponential model, where its loss is convex, everything else
    the linear one.
    """
    shared = {"features": features, "centres": centres, "width": width, "regularisation": regularisation}
    mine = {"generator": generator, "link": link, "alpha": alpha, "coefficients": coefficients}
    return select("bregman", numerator, denominator, folds=folds, seed=seed, **mine, **shared).estimate
