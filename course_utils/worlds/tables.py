"""Tables of probabilities [X, Y], and the distances between them, one number per prompt and
differentiable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.errors import CourseError


def as_table(values: Any) -> Tensor:
    """Tensor, array or nested list to a float64 tensor."""
    return (
        values.to(torch.float64)
        if isinstance(values, Tensor)
        else torch.as_tensor(np.asarray(values, dtype=np.float64))
    )


def as_probabilities(policy: Any, shape: tuple[int, int]) -> Tensor:
    """A policy as a table [X, Y]: a table ([Y] where there is one prompt), or an object with
    `.probabilities()`.
    """
    table = as_table(policy.probabilities() if hasattr(policy, "probabilities") else policy)
    table = fitted(table, shape, "policy")
    low, error = table.min().item(), (table.sum(dim=-1) - 1).abs().max().item()
    if not (low >= 0 and error < 1e-6):
        raise CourseError(
            "policy-not-a-distribution",
            f"a row is not a distribution (smallest entry {low:.3g}, sums off by up to {error:.3g}).",
            where="a policy given as a table",
            remedy="pass probabilities, not logits: torch.softmax(logits, dim=-1).",
        )
    return table


def as_log_probabilities(policy: Any, shape: tuple[int, int]) -> Tensor:
    """A policy's log-probabilities as a table [X, Y]: a table of logs, or an object with
    `.log_probabilities()`. Gradients pass.
    """
    table = policy.log_probabilities() if hasattr(policy, "log_probabilities") else policy
    return fitted(as_table(table), shape, "log_policy")


def fitted(table: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """The table as [X, Y]; one prompt may be given as [Y]."""
    if table.dim() == 1 and shape[0] == 1:
        table = table.unsqueeze(0)
    if tuple(table.shape) != tuple(shape):
        raise CourseError(
            "policy-shape",
            f"{name} has shape {list(table.shape)}; this world's tables are {list(shape)}.",
            where="a table for a finite world",
            remedy=f"give a table of shape {list(shape)}.",
        )
    return table


def entropy(p: Tensor) -> Tensor:
    """-sum p log p over responses, in nats."""
    return -torch.xlogy(p, p).sum(dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum p log(p / q) over responses, in nats; infinite where q misses a response of p."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q| over responses."""
    return 0.5 * (p - q).abs().sum(dim=-1)
