"""Closed forms to hold the estimates against, and the divergences that a ratio gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.density_ratios.family import check_alpha
from course_utils.density_ratios.models import RatioEstimate, sample, two_samples
from course_utils.errors import CourseError


def relative_ratio(ratio: Tensor, alpha: float) -> Tensor:
    """r_alpha = r / (alpha r + 1 - alpha) = p / (alpha p + (1 - alpha) q): at most 1/alpha, whatever r is.

    Written as 1 / (alpha + (1 - alpha) / r), which keeps that bound in floating point and at an infinite r.
    """
    check_alpha(alpha, "relative_ratio")
    ratio = torch.as_tensor(ratio)
    if not (ratio >= 0).all():
        what = "a density ratio is never negative or NaN"
        remedy = "clip the estimate at zero first, and say so"
        raise CourseError("density-ratio-not-finite", what, where="relative_ratio", remedy=remedy)
    return ratio if alpha == 0 else 1 / (alpha + (1 - alpha) / ratio)


def pearson_divergence(estimate: RatioEstimate, numerator: Any, denominator: Any) -> float:
    """PE_alpha = E_mixture[ (r_alpha - 1)**2 ] / 2, from n numerator points x and m denominator points y, as

        -alpha/(2n) sum r(x_i)**2 - (1 - alpha)/(2m) sum r(y_j)**2 + 1/n sum r(x_i) - 1/2

    (Yamada et al. 2011). It is minus the least-squares loss, so in expectation no fixed r gives more than the
    true one. The points that r was fitted to make it too large.
    """
    p, q = two_samples(numerator, denominator, "pearson_divergence")
    alpha, ratio_p, ratio_q = estimate.settings.alpha, estimate.ratio(p), estimate.ratio(q)
    squares = alpha / 2 * (ratio_p**2).mean() + (1 - alpha) / 2 * (ratio_q**2).mean()
    return float(ratio_p.mean() - squares - 0.5)


def kl_divergence(estimate: RatioEstimate, numerator: Any) -> float:
    """KL(p || q), or to the mixture for a relative ratio: the mean log-ratio over numerator points."""
    log_ratio = estimate.log_ratio(sample(numerator, "numerator", "kl_divergence"))
    if bad := int((~torch.isfinite(log_ratio)).sum()):
        what = (
            f"the estimate is not positive at {bad} of {len(log_ratio)} points, so it has no logarithm there"
        )
        remedy = "use kliep or logistic, a larger width, or pearson_divergence"
        raise CourseError("density-ratio-not-finite", what, where="kl_divergence", remedy=remedy)
    return float(log_ratio.mean())


def gaussian_ratio(mean_p: float, sd_p: float, mean_q: float, sd_q: float) -> Callable[[Any], Tensor]:
    """The true ratio of N(mean_p, sd_p**2) to N(mean_q, sd_q**2), as a function of x."""
    _check_gaussians(sd_p, sd_q, "gaussian_ratio")

    def ratio(x: Any) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64)
        return torch.exp(((x - mean_q) / sd_q) ** 2 / 2 - ((x - mean_p) / sd_p) ** 2 / 2) * (sd_q / sd_p)

    return ratio


def gaussian_kl(mean_p: float, sd_p: float, mean_q: float, sd_q: float) -> float:
    """KL(p || q) = log(sd_q / sd_p) + (sd_p**2 + (mean_p - mean_q)**2) / (2 sd_q**2) - 1/2."""
    _check_gaussians(sd_p, sd_q, "gaussian_kl")
    return math.log(sd_q / sd_p) + (sd_p**2 + (mean_p - mean_q) ** 2) / (2 * sd_q**2) - 0.5


def gaussian_pearson(mean_p: float, sd_p: float, mean_q: float, sd_q: float, alpha: float = 0.0) -> float:
    """PE_alpha(p || q) of two Gaussians, as (E_p[r_alpha] - 1) / 2.

    For alpha = 0, E_p[r] is a Gaussian integral, infinite where sd_p**2 >= 2 sd_q**2. For alpha > 0 it is
    finite always, and the trapezoid sum over +- 14 standard deviations is exact to rounding.
    """
    _check_gaussians(sd_p, sd_q, "gaussian_pearson")
    check_alpha(alpha, "gaussian_pearson")
    if alpha == 0:
        left = 2 * sd_q**2 - sd_p**2  # p**2 / q decays like a Gaussian only if this is positive
        if left <= 0:
            return math.inf
        mean = sd_q**2 / (sd_p * math.sqrt(left)) * math.exp((mean_p - mean_q) ** 2 / left)
        return (mean - 1) / 2
    z = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    relative = relative_ratio(gaussian_ratio(mean_p, sd_p, mean_q, sd_q)(mean_p + sd_p * z), alpha)
    return (float((density * relative).sum() * (z[1] - z[0])) - 1) / 2


def _check_gaussians(sd_p: float, sd_q: float, where: str) -> None:
    if not (sd_p > 0 and sd_q > 0):
        what = f"standard deviations must be positive, got {sd_p!r} and {sd_q!r}"
        raise CourseError("density-ratio-option", what, where=where, remedy="pass sd, not the variance")
