"""uLSIF and RuLSIF: theta in closed form, and the loss of every point left out without a single refit."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.errors import CourseError


def solve(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: Tensor, clip: bool) -> Tensor:
    """theta = (H + lambda I)**-1 h, H = alpha mean_p phi phi' + (1 - alpha) mean_q phi phi', h = mean_p phi.

    `phi_p` and `phi_q` are the features of the two samples. `clip` sets negative entries to zero afterwards.
    """
    second = alpha * _second_moment(phi_p) + (1 - alpha) * _second_moment(phi_q)
    factor = _factor(second + torch.diag(penalty))
    theta = torch.cholesky_solve(phi_p.mean(dim=0)[:, None], factor)[:, 0]
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
    # leaving out a point of p also takes it from h: (n h - phi_i) / (n - 1)
    ratio_p = _left_out(phi_p, without_p, alpha / (n - 1), n / (n - 1) * first, 1 / (n - 1), clip)
    ratio_q = _left_out(phi_q, without_q, (1 - alpha) / (m - 1), first, 0.0, clip)
    return (alpha * ratio_p**2 / 2 - ratio_p).mean() + (1 - alpha) * (ratio_q**2 / 2).mean() + 0.5


def _left_out(phi: Tensor, common: Tensor, weight: float, first: Tensor, own: float, clip: bool) -> Tensor:
    """The ratio at phi_i under (common - weight phi_i phi_i')**-1 (first - own phi_i), for every row i."""
    factor = _factor(common)
    pushed = phi @ torch.cholesky_inverse(factor)
    plain = torch.cholesky_solve(first[:, None], factor)[:, 0]
    leverage = (phi * pushed).sum(dim=1)
    ratio = phi @ plain - own * leverage  # before the rank-one correction
    share = weight * ratio / (1 - weight * leverage) - own
    if not clip:
        return phi @ plain + share * leverage
    return (phi * torch.addcmul(plain, share[:, None], pushed).clamp_min_(0)).sum(dim=1)


def _second_moment(phi: Tensor) -> Tensor:
    return phi.T @ phi / len(phi)


def _factor(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        remedy = "use regularisation > 0, fewer centres, or features that are not copies of each other"
        what = "the least-squares system is singular"
        raise CourseError("density-ratio-singular", what, where="least squares", remedy=remedy)
    return factor
