"""One estimator on one pair of samples: how a width and a regularisation are fitted, and how they score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.density_ratios import convex, family, least_squares
from course_utils.density_ratios.models import Basis, RatioEstimate, RatioSettings, shuffled
from course_utils.errors import CourseError

METHODS = ("ulsif", "rulsif", "kliep", "logistic", "bregman")


@dataclass(frozen=True)
class Problem:
    """`coefficients`: "keep" (theta is free), "clip" (negatives to zero afterwards) or "nonnegative"."""

    method: str
    p: Tensor
    q: Tensor
    losses: family.Losses
    alpha: float = 0.0
    coefficients: str = "keep"
    closed_form: bool = False
    features: Callable[[Tensor], Tensor] | None = None
    centres: Tensor | None = None
    folds: int = 5
    seed: int = 0

    def basis(self, width: float | None) -> Basis:
        constant = self.losses.link == "exponential"
        return Basis(self.p.shape[1], self.centres, width, self.features, constant)

    def theta(self, phi_p: Tensor, phi_q: Tensor, penalty: Tensor, tolerance: float = 1e-10) -> Tensor:
        clip = self.coefficients == "clip"
        if self.closed_form:
            return least_squares.solve(phi_p, phi_q, self.alpha, penalty, clip)
        if self.coefficients == "nonnegative":
            return convex.minimise_nonnegative(phi_p, phi_q, self.losses, self.alpha, penalty, tolerance)
        start = torch.zeros(phi_p.shape[1], dtype=torch.float64)
        if self.losses.link == "linear":  # a ratio of mean one under q, positive where kernels are
            start += 1 / phi_q.sum(dim=1).mean()
        theta = convex.minimise(phi_p, phi_q, self.losses, self.alpha, penalty, start, tolerance)
        unbounded = self.losses.link == "exponential" and not bool(penalty.any())
        if unbounded and float((phi_p @ theta).min()) > float((phi_q @ theta).max()):
            what = "a threshold separates the two samples, so the log-ratio has no finite optimum"
            remedy = "use regularisation > 0, or a relative ratio"
            raise CourseError("density-ratio-no-convergence", what, where=self.method, remedy=remedy)
        return theta.clamp_min(0) if clip else theta

    def estimate(self, width: float | None, regularisation: float, score: float | None) -> RatioEstimate:
        basis = self.basis(width)
        phi_p, phi_q = basis(self.p), basis(self.q)
        theta = self.theta(phi_p, phi_q, basis.penalty(regularisation, phi_p.shape[1]))
        settings = RatioSettings(
            self.method, self.alpha, self.losses.link, self.coefficients, regularisation, width
        )
        return RatioEstimate(settings, theta, basis, score)

    def score(self, phi_p: Tensor, phi_q: Tensor, penalty: Tensor) -> float:
        """The held-out loss, smaller is better; infinite where a candidate has no optimum or gives log 0."""
        try:
            if self.closed_form:
                clip = self.coefficients == "clip"
                return float(least_squares.leave_one_out(phi_p, phi_q, self.alpha, penalty, clip))
            found = self._cross_validation(phi_p, phi_q, penalty)
        except CourseError as error:
            if error.id not in ("density-ratio-no-convergence", "density-ratio-singular"):
                raise
            return math.inf
        return found if math.isfinite(found) else math.inf

    def _cross_validation(self, phi_p: Tensor, phi_q: Tensor, penalty: Tensor) -> float:
        """Mean over the folds. KLIEP's is its likelihood: all denominator points serve every fold."""
        fold_p = shuffled(len(phi_p), self.seed) % self.folds
        fold_q = shuffled(len(phi_q), self.seed + 1) % self.folds
        found = 0.0
        for fold in range(self.folds):
            out_p, out_q = fold_p == fold, fold_q == fold
            if self.method == "kliep":
                theta = self.theta(phi_p[~out_p], phi_q, penalty, 1e-7)
                found += float(self.losses.numerator(phi_p[out_p] @ theta).mean())
            else:
                theta = self.theta(phi_p[~out_p], phi_q[~out_q], penalty, 1e-7)
                out = (phi_p[out_p], phi_q[out_q], self.losses, self.alpha, torch.zeros_like(penalty))
                found += float(convex.objective(theta, *out).detach())
        return found / self.folds


def stated(
    method: str,
    p: Tensor,
    q: Tensor,
    alpha: float,
    coefficients: str | None,
    generator: str | family.Function,
    link: str | None,
) -> Problem:
    """What the name of a method and its options stand for; combinations without a meaning are refused."""
    family.check_alpha(alpha, method)
    if alpha > 0 and method in ("ulsif", "kliep"):
        what, remedy = f"{method} estimates the plain ratio only", "use rulsif, logistic or bregman"
        raise CourseError("density-ratio-alpha", what, where=method, remedy=remedy)
    signs = {
        "ulsif": ("clip", "keep"),
        "rulsif": ("clip", "keep"),
        "bregman": ("keep", "clip", "nonnegative"),
    }
    signs = signs.get(method, (None,))
    among(coefficients, (None, *signs), "coefficients", method)
    among(link, (None, "linear", "exponential"), "link", method)
    coefficients = coefficients or signs[0]
    if method in ("ulsif", "rulsif"):
        return Problem(method, p, q, family.LEAST_SQUARES, alpha, coefficients, closed_form=True)
    if method == "kliep" and link == "exponential":
        return Problem(method, p, q, family.KLIEP_EXPONENTIAL)
    if method == "kliep":
        return Problem(method, p, q, family.KLIEP, coefficients="nonnegative")
    if method == "logistic":
        return Problem(method, p, q, family.LOGISTIC, alpha)
    generator = family.generator_named(generator, method)
    link = link or ("exponential" if generator is family.logistic else "linear")
    return Problem(method, p, q, family.losses(generator, link), alpha, coefficients)


def among(value: Any, allowed: tuple[Any, ...], name: str, where: str) -> None:
    if value not in allowed:
        remedy = f"choose one of {', '.join(str(one) for one in allowed)}"
        raise CourseError("density-ratio-option", f"{name} is {value!r}", where=where, remedy=remedy)
