"""Comparisons to scores: the Bradley–Terry model by maximum likelihood, and Elo, its online cousin.

The model: response a is preferred to b with probability sigma(s_a - s_b). Everything here works on a table of wins,
`wins[a, b]` = how often a was preferred to b. The entries may be weights, so a judge's probabilities go in as they are and the
exact population is one more data set. float64 throughout.

Scores are fixed only up to a common shift; here they always sum to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course_utils.errors import CourseError


@dataclass(frozen=True)
class Fit:
    """The maximum-likelihood scores (summing to zero), how sure they are, and how well they explain the comparisons."""

    scores: Tensor
    standard_errors: Tensor
    hessian: Tensor
    log_likelihood: float
    steps: int


def count_wins(chosen: Tensor, rejected: Tensor, count: int) -> Tensor:
    """The table of wins [count, count] of a list of comparisons."""
    if chosen.shape != rejected.shape or chosen.dim() != 1:
        raise CourseError(
            "bt-comparisons",
            f"chosen has shape {tuple(chosen.shape)} and rejected {tuple(rejected.shape)}; two lists of one length are needed.",
            where="bradley_terry.count_wins",
            remedy="give one index of the winner and one of the loser for every comparison.",
        )
    wins = torch.zeros(count, count, dtype=torch.float64)
    return wins.index_put_((chosen, rejected), torch.ones(len(chosen), dtype=torch.float64), accumulate=True)


def log_likelihood(scores: Tensor, wins: Tensor) -> Tensor:
    """sum over a, b of wins[a, b] * log sigma(s_a - s_b)."""
    return (wins * logsigmoid(scores[:, None] - scores[None, :])).fill_diagonal_(0).sum()


def gradient(scores: Tensor, wins: Tensor) -> Tensor:
    """Its gradient: for each response, the wins it has minus the wins the scores expect."""
    played = wins + wins.T
    expected = played * torch.sigmoid(scores[:, None] - scores[None, :])
    return (wins - expected).fill_diagonal_(0).sum(1)


def hessian(scores: Tensor, wins: Tensor) -> Tensor:
    """The Hessian of the negative log-likelihood: a graph Laplacian whose edge a-b weighs played * p * (1 - p)."""
    probability = torch.sigmoid(scores[:, None] - scores[None, :])
    weight = ((wins + wins.T) * probability * (1 - probability)).fill_diagonal_(0)
    return torch.diag(weight.sum(1)) - weight


def standard_errors(hessian: Tensor) -> Tensor:
    """Standard errors of scores that sum to zero: the Hessian is singular along a common shift, so its pseudo-inverse."""
    return torch.linalg.pinv(hessian, hermitian=True).diagonal().sqrt()


def fit(wins: Tensor, tolerance: float = 1e-12, max_steps: int = 100) -> Fit:
    """Maximum likelihood by Newton's method with step halving.

    The maximum exists, and is unique up to a shift, exactly when every response can be reached from every other along a chain
    of wins (Ford, 1957); anything else is refused.
    """
    wins = _checked(wins)
    scores = torch.zeros(len(wins), dtype=torch.float64)
    for step in range(max_steps):  # noqa: B007  (how many steps it took is reported)
        slope = gradient(scores, wins)
        if slope.abs().max() <= tolerance * wins.sum():
            break
        move = torch.linalg.pinv(hessian(scores, wins), hermitian=True) @ slope
        before, length = log_likelihood(scores, wins), 1.0
        rounding = 1e-13 * (1 + before.abs())  # what the sum itself cannot resolve must not shorten a step
        while length > 1e-6 and log_likelihood(scores + length * move, wins) < before - rounding:
            length /= 2
        scores = scores + length * move
    else:
        raise CourseError(
            "bt-no-convergence",
            f"Newton's method did not reach the maximum in {max_steps} steps.",
            where="bradley_terry.fit",
            remedy="some wins are so rare that scores run far apart: add a small prior, or allow more steps.",
        )
    scores = scores - scores.mean()
    curvature = hessian(scores, wins)
    return Fit(scores, standard_errors(curvature), curvature, float(log_likelihood(scores, wins)), step)


def saturated_log_likelihood(wins: Tensor) -> float:
    """The best any model can do: every pair has a probability of its own, its observed fraction."""
    wins = _checked(wins, connected=False)
    fraction = wins / (wins + wins.T).clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.xlogy(wins, fraction).sum())


def likelihood_gap(wins: Tensor) -> float:
    """Nats per comparison that no score can explain: saturated minus Bradley–Terry log-likelihood, per comparison."""
    wins = _checked(wins)
    return (saturated_log_likelihood(wins) - fit(wins).log_likelihood) / float(wins.sum())


def elo(chosen: Tensor, rejected: Tensor, count: int, step: float | Tensor) -> Tensor:
    """Elo's scores after each comparison, [comparisons + 1, count], in natural-log units.

    One comparison moves winner and loser by step * (1 - sigma(s_winner - s_loser)): a stochastic gradient step of the
    log-likelihood. `step` is a number, or one number per comparison. (In chess: multiply scores by 400 / log 10.)
    """
    steps = torch.as_tensor(step, dtype=torch.float64).expand(len(chosen)).tolist()
    history = [[0.0] * count]
    for winner, loser, size in zip(chosen.tolist(), rejected.tolist(), steps, strict=True):
        scores = list(history[-1])
        surprise = (1 - math.tanh((scores[winner] - scores[loser]) / 2)) / 2  # 1 - sigma(s_winner - s_loser)
        scores[winner] += size * surprise
        scores[loser] -= size * surprise
        history.append(scores)
    return torch.tensor(history, dtype=torch.float64)


def _checked(wins: Tensor, connected: bool = True) -> Tensor:
    wins = torch.as_tensor(wins, dtype=torch.float64).clone()
    problem = ""
    if wins.dim() != 2 or wins.shape[0] != wins.shape[1] or len(wins) < 2:
        problem = f"a square table of at least two responses is needed, not the shape {tuple(wins.shape)}"
    elif not torch.isfinite(wins).all() or (wins < 0).any():
        problem = "an entry is negative or not finite"
    if problem:
        raise CourseError(
            "bt-wins",
            f"This is no table of wins: {problem}.",
            where="bradley_terry",
            remedy="let wins[a, b] count how often a was preferred to b.",
        )
    wins.fill_diagonal_(0)
    if connected:
        reach = (wins > 0).double() + torch.eye(len(wins), dtype=torch.float64)
        for _ in range(len(wins).bit_length()):
            reach = ((reach @ reach) > 0).double()
        missing = (reach == 0).nonzero()
        if len(missing):
            a, b = missing[0].tolist()
            raise CourseError(
                "bt-not-connected",
                f"No chain of wins leads from response {a} to response {b}, so the likelihood has no maximum: "
                "some scores run off to infinity.",
                where="bradley_terry.fit",
                remedy="collect comparisons until every response has, through others, both beaten and lost to every other; "
                "or add a small prior, for instance half a win in each direction of every pair.",
            )
    return wins
