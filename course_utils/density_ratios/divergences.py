"""Closed forms to hold the estimates against, and the divergences that a ratio gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.density_ratios.models import RatioEstimate, sample, two_samples
from course_utils.errors import CourseError


def relative_ratio(ratio: Tensor, alpha: float) -> Tensor:
    """r_alpha = r / (alpha r + 1 - alpha) = p / (alpha p + (1 - alpha) q): never above 1/alpha, whatever r
    is.

    Written as 1 / (alpha + (1 - alpha) / r), which keeps the bound in floating point, and at an infinite r
    too.
    """
    check_alpha(alpha, "relative_ratio")
    ratio = torch.as_tensor(ratio)
    if not (ratio >= 0).all():
        what = "a density ratio is never negative or NaN"
        remedy = "clip the estimate at zero first, and say so"
        raise CourseError("density-ratio-not-finite", what, where="relative_ratio", remedy=remedy)
    return ratio if alpha == 0 else 1 / (alpha + (1 - alpha) / ratio)


def pearson_divergence(estimate: RatioEstimate, numerator: Any, denominator: Any) -> float:
    """PE_alpha = E_mixture[ (r_alpha - 1)**2 ] / 2, estimated as Yamada et al. do, with n numerator and m
    denominator points:

        -alpha/(2n) sum r(x_i)**2 - (1 - alpha)/(2m) sum r(y_j)**2 + 1/n sum r(x_i) - 1/2.

    It is minus the least-squares loss: a lower bound in expectation for any fixed r, reached by the true one.
    Points that r was fitted to make it too large.
    """
    p, q = two_samples(numerator, denominator, "pearson_divergence")
    alpha, ratio_p, ratio_q = estimate.settings.alpha, estimate.ratio(p), estimate.ratio(q)
    squares = alpha / 2 * (ratio_p**2).mean() + (1 - alpha) / 2 * (ratio_q**2).mean()
    return float(ratio_p.mean() - squares - 0.5)


def kl_divergence(estimate: RatioEstimate, numerator: Any) -> float:
    """KL(p || q), or to the mixture for a relative ratio: the mean log-ratio over numerator points."""
    return float(estimate.log_ratio(sample(numerator, "numerator", "kl_divergence")).mean())


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


def check_alpha(alpha: float, where: str) -> None:
    if not 0 <= alpha < 1:
        what = f"alpha must lie in [0, 1), got {alpha!r}"
        remedy = "0 is the plain ratio; the relative ratio of alpha = 1 is 1 everywhere"
        raise CourseError("density-ratio-alpha", what, where=where, remedy=remedy)


def _check_gaussians(sd_p: float, sd_q: float, where: str) -> None:
    if not (sd_p > 0 and sd_q > 0):
        what = f"standard deviations must be positive, got {sd_p!r} and {sd_q!r}"
        raise CourseError("density-ratio-option", what, where=where, remedy="pass sd, not the variance")
