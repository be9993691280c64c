"""The functions that the objectives are made of, written so that they neither overflow nor lose digits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), to full precision everywhere.

    `torch.nn.functional.softplus` returns z itself beyond 20, wrong by up to 2e-9, which float64 shows.
    logsigmoid has no such cut.
    """
    return -F.logsigmoid(-z)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^-x) for x > 0, with full relative precision at both ends.

    Each of the two formulas sees only the numbers it is good for: an infinity that `where` discards would
    still turn the gradient into NaN.
    """
    small = x < math.log(2)
    one = torch.ones_like(x)
    near_zero = torch.log(-torch.expm1(-torch.where(small, x, one)))
    far = torch.log1p(-torch.exp(-torch.where(small, one, x)))
    return torch.where(small, near_zero, far)


def bernoulli_kl(logit_p: Tensor, logit_q: Tensor) -> Tensor:
    """KL(Bern(sigma(logit_p)) || Bern(sigma(logit_q))), elementwise."""
    return torch.sigmoid(logit_p) * (F.logsigmoid(logit_p) - F.logsigmoid(logit_q)) + torch.sigmoid(
        -logit_p
    ) * (F.logsigmoid(-logit_p) - F.logsigmoid(-logit_q))


def categorical_kl(score_p: Tensor, score_q: Tensor) -> Tensor:
    """KL(softmax(score_p) || softmax(score_q)) along the last dimension."""
    log_p, log_q = torch.log_softmax(score_p, dim=-1), torch.log_softmax(score_q, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
