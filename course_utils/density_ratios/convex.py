"""Every other loss: theta by Newton's method in float64, free or with theta >= 0.

A point's loss depends on theta only through its score theta . phi(x), so two numbers a point, the slope and
the curvature of its loss, give the gradient and the Hessian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.density_ratios.family import Function, Losses
from course_utils.errors import CourseError

ACCEPTED = 1e-6  # the largest gradient entry that still counts as a minimum
STEPS = 200


def objective(
    theta: Tensor, phi_p: Tensor, phi_q: Tensor, losses: Losses, alpha: float, penalty: Tensor
) -> Tensor:
    """mean_p num + alpha mean_p den + (1 - alpha) mean_q den + lambda |theta|**2 / 2, with the two `losses`."""
    score_p, score_q = phi_p @ theta, phi_q @ theta
    mixture = (1 - alpha) * losses.denominator(score_q).mean()
    if alpha > 0:
        mixture = mixture + alpha * losses.denominator(score_p).mean()
    return losses.numerator(score_p).mean() + mixture + (penalty * theta**2).sum() / 2


def gradient_and_hessian(
    theta: Tensor, phi_p: Tensor, phi_q: Tensor, losses: Losses, alpha: float, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """Both derivatives of the objective in theta."""
    score_p, score_q = phi_p @ theta, phi_q @ theta
    slope_p, bend_p = _slope_and_bend(losses.numerator, score_p)
    if alpha > 0:
        slope, bend = _slope_and_bend(losses.denominator, score_p)
        slope_p, bend_p = slope_p + alpha * slope, bend_p + alpha * bend
    slope_q, bend_q = _slope_and_bend(losses.denominator, score_q)
    weight_p, weight_q = 1 / len(phi_p), (1 - alpha) / len(phi_q)
    gradient = weight_p * phi_p.T @ slope_p + weight_q * phi_q.T @ slope_q + penalty * theta
    hessian = torch.diag(penalty)
    for phi, bend in ((phi_p, weight_p * bend_p), (phi_q, weight_q * bend_q)):
        if bool(bend.any()):  # a loss that is linear in the score does not bend
            hessian = hessian + phi.T @ (phi * bend[:, None])
    return gradient, hessian


def minimise(
    phi_p: Tensor,
    phi_q: Tensor,
    losses: Losses,
    alpha: float,
    penalty: Tensor,
    start: Tensor,
    tolerance: float = 1e-10,
) -> Tensor:
    """Newton's method with step halving. Where the loss is not finite its domain ends, and no step goes there."""
    theta = start
    value = float(objective(theta, phi_p, phi_q, losses, alpha, penalty).detach())
    for _ in range(STEPS):
        gradient, hessian = gradient_and_hessian(theta, phi_p, phi_q, losses, alpha, penalty)
        if not float(gradient.abs().max()) > tolerance:
            break
        step, length = -_solve_positive(hessian, gradient), 1.0
        while length > 1e-10:
            trial = theta + length * step
            found = float(objective(trial, phi_p, phi_q, losses, alpha, penalty).detach())
            # near the minimum the decrease drowns in rounding, and a full step is still right
            if found <= value + 1e-4 * length * float(gradient @ step) + 1e-15 * abs(value):
                theta, value = trial, found
                break
            length /= 2
        else:
            break
    gradient, _ = gradient_and_hessian(theta, phi_p, phi_q, losses, alpha, penalty)
    return _accept(theta, float(gradient.abs().max()))


def minimise_nonnegative(
    phi_p: Tensor, phi_q: Tensor, losses: Losses, alpha: float, penalty: Tensor, tolerance: float = 1e-10
) -> Tensor:
    """The minimum over theta >= 0, by a primal-dual interior-point method.

    At the minimum gradient = z, theta >= 0, z >= 0 and theta z = 0; the last is reached through theta z = mu,
    mu -> 0 (Boyd and Vandenberghe 2004, section 11.7). Features are first scaled to mean one under q, where
    narrow kernels differ by many orders of magnitude.
    """
    scale = phi_q.mean(dim=0)
    if not float(scale.min()) > 0:
        what = f"{int((scale <= 0).sum())} of {len(scale)} features are zero on every denominator point"
        remedy = "use a larger width: where q has no points, the ratio has no bound"
        raise CourseError("density-ratio-no-convergence", what, where="interior point", remedy=remedy)
    phi_p, phi_q, penalty = phi_p / scale, phi_q / scale, penalty / scale**2
    theta = torch.full_like(scale, 1 / len(scale))
    dual = 0.1 / theta
    gradient, hessian = gradient_and_hessian(theta, phi_p, phi_q, losses, alpha, penalty)
    for _ in range(STEPS):
        gap = float(theta @ dual)
        if gap < tolerance and float((gradient - dual).abs().max()) < tolerance:
            break
        mu = 0.1 * gap / len(theta)
        step = _solve_positive(hessian + torch.diag(dual / theta), gradient - mu / theta).neg()
        dual_step = mu / theta - dual - dual / theta * step
        length = min(1.0, _until_zero(theta, step), _until_zero(dual, dual_step))
        before = _distance(gradient - dual, theta * dual - mu)
        while length > 1e-12:
            trial, trial_dual = theta + length * step, dual + length * dual_step
            gradient, hessian = gradient_and_hessian(trial, phi_p, phi_q, losses, alpha, penalty)
            if _distance(gradient - trial_dual, trial * trial_dual - mu) <= (1 - 0.01 * length) * before:
                theta, dual = trial, trial_dual
                break
            length /= 2
        else:
            gradient, _ = gradient_and_hessian(theta, phi_p, phi_q, losses, alpha, penalty)
            break
    return _accept(theta, max(float((gradient - dual).abs().max()), float(theta @ dual))) / scale


def _until_zero(value: Tensor, step: Tensor) -> float:
    down = step < 0
    return float((-0.995 * value[down] / step[down]).min()) if bool(down.any()) else 1.0


def _distance(*parts: Tensor) -> float:
    return float(torch.cat(parts).norm())


def _accept(theta: Tensor, off: float) -> Tensor:
    if not off <= ACCEPTED:
        what = f"the fit stopped where the gradient is still {off:.2g}"
        remedy = "use a larger regularisation or width, or coefficients='nonnegative' for a linear model"
        raise CourseError("density-ratio-no-convergence", what, where="Newton's method", remedy=remedy)
    return theta


def _slope_and_bend(loss: Function, score: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        at = score.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at).sum(), at, create_graph=True)
        if not slope.requires_grad:  # the loss is linear in the score
            return slope, torch.zeros_like(slope)
        (bend,) = torch.autograd.grad(slope.sum(), at, allow_unused=True)
    return slope.detach(), torch.zeros_like(score) if bend is None else bend


def _solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix**-1 right, with just enough added to the diagonal that the step goes downhill."""
    added, identity = 0.0, torch.eye(len(matrix), dtype=matrix.dtype)
    scale = float(matrix.diagonal().abs().mean())
    for _ in range(60):
        factor, failed = torch.linalg.cholesky_ex(matrix + added * identity)
        if not failed:
            return torch.cholesky_solve(right[:, None], factor)[:, 0]
        added = max(10 * added, 1e-14 * scale, 1e-300)
    return right
