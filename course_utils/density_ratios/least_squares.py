"""uLSIF and RuLSIF: theta in closed form, and the loss of every point left out without a single refit."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.errors import CourseError


def solve(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: Tensor, clip: bool) -> Tensor:
    """theta = (H + lambda I)**-1 h, with H = alpha mean_p phi phi' + (1 - alpha) mean_q phi phi', h = mean_p
    phi.

    `phi_p` and `phi_q` are the features of the two samples. `clip` sets negative entries to zero afterwards.
    """
    second = alpha * _second_moment(phi_p) + (1 - alpha) * _second_moment(phi_q)
    theta = _solve(second + torch.diag(penalty), phi_p.mean(dim=0))
    return theta.clamp_min(0) if clip else theta


def leave_one_out(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: Tensor, clip: bool) -> Tensor:
    """mean_p[ alpha r**2 / 2 - r ] + (1 - alpha) mean_q[ r**2 / 2 ] + 1/2, each fitted without its point.

    Without point i of p, H + lambda I is A - c phi phi', with c = alpha / (n - 1) and A the same for all i:
        (A - c phi phi')**-1 v = A**-1 v + c A**-1 phi (phi' A**-1 v) / (1 - c phi' A**-1 phi)
    (Sherman and Morrison). Likewise without point j of q, where c = (1 - alpha) / (m - 1).
    """
    n, m = len(phi_p), len(phi_q)
    second_p, second_q, first = _second_moment(phi_p), _second_moment(phi_q), phi_p.mean(dim=0)
    without_p = alpha * n / (n - 1) * second_p + (1 - alpha) * second_q + torch.diag(penalty)
    without_q = alpha * second_p + (1 - alpha) * m / (m - 1) * second_q + torch.diag(penalty)
    ratio_p = _left_out(phi_p, without_p, (n * first - phi_p) / (n - 1), alpha / (n - 1), clip)
    ratio_q = _left_out(phi_q, without_q, first.expand(m, -1), (1 - alpha) / (m - 1), clip)
    return (alpha * ratio_p**2 / 2 - ratio_p).mean() + (1 - alpha) * (ratio_q**2 / 2).mean() + 0.5


def _left_out(phi: Tensor, common: Tensor, first: Tensor, weight: float, clip: bool) -> Tensor:
    """For every row i, the ratio at phi_i under theta_i = (common - weight phi_i phi_i')**-1 first_i."""
    plain, pushed = _solve(common, first.T).T, _solve(common, phi.T).T
    share = weight * (phi * plain).sum(dim=1) / (1 - weight * (phi * pushed).sum(dim=1))
    theta = plain + share[:, None] * pushed
    return (phi * (theta.clamp_min(0) if clip else theta)).sum(dim=1)


def _second_moment(phi: Tensor) -> Tensor:
    return phi.T @ phi / len(phi)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        remedy = "use regularisation > 0, fewer centres, or features that are not copies of each other"
        what = "the least-squares system is singular"
        raise CourseError("density-ratio-singular", what, where="least squares", remedy=remedy)
    column = right[:, None] if right.ndim == 1 else right
    return torch.cholesky_solve(column, factor).reshape(right.shape)
