"""Exact optima of a finite world: the RLHF optimum, best-of-n, and the Nash policy, each prompt by itself.

The Nash policy is found with linear programming. The finite tier has no LP solver to lean on, so a small
simplex method is written out here (Bland's rule, hence no cycling and the same answer every time); the answer
is then certified by its duality gap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.errors import CourseError


def rlhf_optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """argmax of E_policy[r] - beta KL(policy || p_ref), which is p_ref exp(r / beta) / Z."""
    if not beta > 0:
        raise CourseError(
            "setting-out-of-range",
            f"beta = {beta} is not positive.",
            where="rlhf_optimum(beta)",
            remedy="beta is the price of one nat of KL: a small one moves far, a large one stays near.",
        )
    return torch.softmax(reference.log() + reward / beta, dim=-1)


def best_of_n(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    """The distribution of the response with the largest reward among n independent draws from the reference.

    The best draw lies at reward level v with probability F(v)^n - F(v-)^n, F the distribution function of the
    reward; within a level, where draws tie, each response keeps its share of the reference.
    """
    if int(n) != n or n < 1:
        raise CourseError(
            "setting-out-of-range",
            f"n = {n} is not a positive whole number.",
            where="best_of_n(n)",
            remedy="n is how many responses are drawn before the best is kept; n = 1 is the reference.",
        )
    tied = reward.unsqueeze(-1) == reward.unsqueeze(-2)
    below = reward.unsqueeze(-1) > reward.unsqueeze(-2)
    level = (tied * reference.unsqueeze(-2)).sum(dim=-1)
    lower = (below * reference.unsqueeze(-2)).sum(dim=-1)
    best = ((lower + level) ** n - lower**n) * reference / level
    return best / best.sum(dim=-1, keepdim=True)


def exploitability(preference: Tensor, policy: Tensor) -> Tensor:
    """[X]: max over opponents of their win rate against the policy, less 1/2.

    The game is symmetric with value 1/2, so the duality gap of playing the policy on both sides is twice this
    number.
    """
    return torch.einsum("xab,xb->xa", preference, policy).max(dim=-1).values - 0.5


def nash_policy(preference: Tensor, tolerance: float = 1e-9) -> Tensor:
    """A policy [X, Y] that no opponent beats with probability over 1/2, certified to the tolerance."""
    policy = torch.stack([_maximin(judge) for judge in preference])
    gap = exploitability(preference, policy).max().item()
    if not gap <= tolerance:
        raise CourseError(
            "nash-not-certified",
            f"an opponent beats the computed policy by {gap:.2g}, more than {tolerance:g}.",
            where="nash_policy()",
            remedy="the judge is close to degenerate; round its probabilities, or use fewer responses.",
        )
    return policy


def _maximin(judge: Tensor) -> Tensor:
    """The column player's optimal strategy of one matrix game with entries P[a, b] > 0, by the simplex
    method.

    With payoffs shifted to be positive, maximise sum(u) subject to (P + 1) u <= 1, u >= 0; the strategy is u
    / sum(u). It makes every opponent's win rate at most the value, 1/2. u = 0 is feasible, so no first phase
    is needed.
    """
    count = len(judge)
    tableau = torch.zeros(count + 1, 2 * count + 1, dtype=torch.float64)
    tableau[:count, :count] = judge + 1.0
    tableau[:count, count : 2 * count] = torch.eye(count, dtype=torch.float64)
    tableau[:count, -1] = 1.0
    tableau[count, :count] = -1.0
    basis = list(range(count, 2 * count))
    for _ in range(100 * count + 1000):
        improving = (tableau[count, :-1] < -1e-12).nonzero().flatten()
        if len(improving) == 0:
            break
        # Bland's rule: the lowest improving column, then the lowest basic variable among tied rows. It never
        # cycles.
        column = int(improving[0])
        rows = (tableau[:count, column] > 1e-12).nonzero().flatten().tolist()
        ratios = [(tableau[row, -1] / tableau[row, column]).item() for row in rows]
        least = min(ratios)
        tied = [row for row, ratio in zip(rows, ratios, strict=True) if ratio <= least + 1e-14]
        row = min(tied, key=lambda candidate: basis[candidate])
        tableau[row] /= tableau[row, column].clone()
        others = torch.arange(count + 1) != row
        tableau[others] -= tableau[others, column].unsqueeze(-1) * tableau[row]
        basis[row] = column
    strategy = torch.zeros(count, dtype=torch.float64)
    for row, variable in enumerate(basis):
        if variable < count:
            strategy[variable] = tableau[row, -1].clamp(min=0.0)
    return strategy / strategy.sum()
