"""The checks of lesson 01: Bradley–Terry's likelihood and gradient, standard errors, Elo."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course_utils.labs.exercises import Case, Exercise, Mistake


def _comparisons(seed: int, players: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores, and `count` comparisons between two different players each."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(players, dtype=torch.float64, generator=generator)
    winners = torch.randint(players, (count,), generator=generator)
    losers = (winners + torch.randint(1, players, (count,), generator=generator)) % players
    return scores, winners, losers


def _comparison_cases() -> Iterator[Case]:
    """Two small ones that can be done by hand, one with positive scores only, and a larger one with many
    repeats.
    """
    yield Case((torch.tensor([0.0, 1.2, -0.3], dtype=torch.float64), torch.tensor([1]), torch.tensor([0])))
    yield Case(
        (
            torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64),
            torch.tensor([1, 1, 0, 2]),
            torch.tensor([0, 2, 2, 1]),
        )
    )
    yield Case(_comparisons(seed=1, players=5, count=40), "5 players with random scores and 40 comparisons")


# 01.1


def log_likelihood(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """The log-likelihood of the comparisons under Bradley–Terry."""
    return logsigmoid(scores[winners] - scores[losers]).sum()


def _log_likelihood_by_shares(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    strength = scores.exp()
    return (strength[winners] / (strength[winners] + strength[losers])).log().sum()


# 01.2


def gradient(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """The gradient of the log-likelihood with respect to the scores."""
    surprise = torch.sigmoid(scores[losers] - scores[winners])
    result = torch.zeros_like(scores)
    return result.index_add(0, winners, surprise).index_add(0, losers, -surprise)


def _gradient_by_autograd(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    leaf = scores.clone().requires_grad_(True)
    return torch.autograd.grad(log_likelihood(leaf, winners, losers), leaf)[0]


def _gradient_by_loop(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    result = torch.zeros_like(scores)
    for winner, loser in zip(winners.tolist(), losers.tolist(), strict=True):
        surprise = 1 - torch.sigmoid(scores[winner] - scores[loser])
        result[winner] += surprise
        result[loser] -= surprise
    return result


def _gradient_with_probability(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    probability = torch.sigmoid(scores[winners] - scores[losers])
    return torch.zeros_like(scores).index_add(0, winners, probability).index_add(0, losers, -probability)


def _gradient_of_winners(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    return torch.zeros_like(scores).index_add(0, winners, torch.sigmoid(scores[losers] - scores[winners]))


def _gradient_overwriting(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    surprise = torch.sigmoid(scores[losers] - scores[winners])
    result = torch.zeros_like(scores)
    result[winners] += surprise
    result[losers] -= surprise
    return result


def _gradient_assigning(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    surprise = torch.sigmoid(scores[losers] - scores[winners])
    result = torch.zeros_like(scores)
    result[winners] = surprise
    result[losers] = -surprise
    return result


# 01.3


def standard_errors(hessian: Tensor) -> Tensor:
    """The standard error of every score, with the scores summing to zero."""
    return torch.linalg.pinv(hessian, hermitian=True).diagonal().sqrt()


def _standard_errors_by_centring(hessian: Tensor) -> Tensor:
    """Adding 11'/Y makes the matrix invertible without touching the other directions; take it off again
    afterwards.
    """
    size = len(hessian)
    return (torch.linalg.inv(hessian + 1 / size) - 1 / size).diagonal().sqrt()


def _hessian_cases() -> Iterator[Case]:
    """Hessians of the negative log-likelihood of random comparisons between players who have all met."""
    for seed, players, count in ((1, 3, 30), (2, 4, 60), (3, 6, 200)):
        scores, winners, losers = _comparisons(seed, players, count)
        probability = torch.sigmoid(scores[winners] - scores[losers])
        difference = torch.nn.functional.one_hot(winners, players) - torch.nn.functional.one_hot(
            losers, players
        )
        difference = difference.to(torch.float64)
        hessian = difference.T @ ((probability * (1 - probability))[:, None] * difference)
        yield Case((hessian,), f"the Hessian of {count} comparisons between {players} players")


# 01.4


def elo_update(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    """The ratings after one game: one gradient step on its log-likelihood."""
    surprise = torch.sigmoid(ratings[loser] - ratings[winner])
    updated = ratings.clone()
    updated[winner] += step * surprise
    updated[loser] -= step * surprise
    return updated


def _elo_by_gradient(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    return ratings + step * gradient(ratings, torch.tensor([winner]), torch.tensor([loser]))


def _elo_moved(ratings: Tensor, winner: int, loser: int, up: Tensor, down: Tensor) -> Tensor:
    updated = ratings.clone()
    updated[winner] += up
    updated[loser] -= down
    return updated


def _elo_with_probability(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    move = step * torch.sigmoid(ratings[winner] - ratings[loser])
    return _elo_moved(ratings, winner, loser, move, move)


def _elo_of_winner(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    move = step * torch.sigmoid(ratings[loser] - ratings[winner])
    return _elo_moved(ratings, winner, loser, move, 0 * move)


def _elo_of_loser(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    move = step * torch.sigmoid(ratings[loser] - ratings[winner])
    return _elo_moved(ratings, winner, loser, 0 * move, move)


def _elo_reversed(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    return elo_update(ratings, winner, loser, -step)


def _elo_in_points(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    move = step * (1 - 1 / (1 + 10 ** ((ratings[loser] - ratings[winner]) / 400)))
    return _elo_moved(ratings, winner, loser, move, move)


def _elo_one_after_the_other(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    updated = ratings.clone()
    updated[winner] += step * torch.sigmoid(updated[loser] - updated[winner])
    updated[loser] -= step * torch.sigmoid(updated[loser] - updated[winner])
    return updated


def _elo_cases() -> Iterator[tuple[Tensor, int, int, float]]:
    yield torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64), 0, 1, 0.1
    yield torch.tensor([1.5, -0.5], dtype=torch.float64), 0, 1, 0.5
    yield torch.tensor([0.3, 0.1, 2.0, -0.7], dtype=torch.float64), 3, 2, 0.25


EXERCISES = (
    Exercise(
        id="01.1",
        title="The log-likelihood",
        truth=log_likelihood,
        cases=_comparison_cases,
        explain="Only differences of scores enter, so adding one number to every score changes nothing.",
        also_right=(
            _log_likelihood_by_shares,
            lambda scores, winners, losers: torch.log(torch.sigmoid(scores[winners] - scores[losers])).sum(),
            lambda scores, winners, losers: float(
                -torch.log1p(torch.exp(scores[losers] - scores[winners])).sum()
            ),
        ),
        mistakes=(
            Mistake(
                "mean instead of sum",
                "This is the mean over comparisons; the log-likelihood sums.",
                lambda scores, winners, losers: logsigmoid(scores[winners] - scores[losers]).mean(),
            ),
            Mistake(
                "loser minus winner",
                "This is the log-probability that the losers win: the difference is winner minus loser.",
                lambda scores, winners, losers: logsigmoid(scores[losers] - scores[winners]).sum(),
            ),
            Mistake(
                "negative log-likelihood",
                "This is the negative log-likelihood, a loss to make small; the log-likelihood has no minus "
                "in front.",
                lambda scores, winners, losers: -logsigmoid(scores[winners] - scores[losers]).sum(),
            ),
            Mistake(
                "share of raw scores",
                "This divides one score by the sum of both. Scores may be negative: their exponentials are "
                "what is compared, and that makes the sigmoid of the difference.",
                lambda scores, winners, losers: (
                    (scores[winners] / (scores[winners] + scores[losers])).log().sum()
                ),
            ),
            Mistake(
                "logarithm missing",
                "This sums the probabilities themselves: take the logarithm of each before summing.",
                lambda scores, winners, losers: torch.sigmoid(scores[winners] - scores[losers]).sum(),
            ),
            Mistake(
                "sum missing",
                "This is one number per comparison: sum them into one log-likelihood.",
                lambda scores, winners, losers: logsigmoid(scores[winners] - scores[losers]),
            ),
            Mistake(
                "product instead of sum",
                "This is the likelihood, a product of probabilities; its logarithm is a sum of "
                "log-probabilities.",
                lambda scores, winners, losers: torch.sigmoid(scores[winners] - scores[losers]).prod(),
            ),
        ),
    ),
    Exercise(
        id="01.2",
        title="The gradient, without autograd",
        truth=gradient,
        cases=_comparison_cases,
        explain="Its entries sum to zero: what a winner gains, a loser gives.",
        also_right=(_gradient_by_autograd, _gradient_by_loop),
        mistakes=(
            Mistake(
                "probability instead of surprise",
                "This moves the scores by p, the probability of what happened; the gradient moves them by "
                "the surprise, 1 - p, so that an expected win changes little.",
                _gradient_with_probability,
            ),
            Mistake(
                "losers forgotten",
                "Only the winners move here; every loser goes down by as much as its winner goes up.",
                _gradient_of_winners,
            ),
            Mistake(
                "repeats overwritten",
                "A player in several comparisons keeps only one of them: assigning through repeated indices "
                "overwrites. Add them up with `index_add_`.",
                _gradient_overwriting,
                (_gradient_assigning,),
            ),
            Mistake(
                "sign",
                "This is the gradient of the negative log-likelihood: winners must go up and losers down.",
                lambda scores, winners, losers: -gradient(scores, winners, losers),
            ),
            Mistake(
                "mean instead of sum",
                "This is divided by the number of comparisons; the log-likelihood is a sum, and so is its "
                "gradient.",
                lambda scores, winners, losers: gradient(scores, winners, losers) / len(winners),
            ),
        ),
    ),
    Exercise(
        id="01.3",
        title="The standard error of a score",
        truth=standard_errors,
        cases=_hessian_cases,
        explain="The pseudo-inverse leaves out the one direction that comparisons cannot see.",
        also_right=(
            _standard_errors_by_centring,
            lambda hessian: torch.sqrt(torch.diag(torch.linalg.pinv(hessian))),
        ),
        mistakes=(
            Mistake(
                "other scores taken as known",
                "This inverts each diagonal entry by itself, as if all the other scores were known: invert "
                "the whole matrix, then take the diagonal.",
                lambda hessian: 1 / hessian.diagonal().sqrt(),
            ),
            Mistake(
                "square root missing",
                "These are the variances: a standard error is the square root of a variance.",
                lambda hessian: torch.linalg.pinv(hessian, hermitian=True).diagonal(),
            ),
            Mistake(
                "ridge instead of pseudo-inverse",
                "A small ridge makes the matrix invertible, but its inverse is huge along the direction (1, "
                "..., 1) that the data say nothing about: use the pseudo-inverse, which leaves that "
                "direction out.",
                lambda hessian: (
                    (hessian + 1e-6 * torch.eye(len(hessian), dtype=hessian.dtype))
                    .inverse()
                    .diagonal()
                    .sqrt()
                ),
                tuple(
                    lambda hessian, ridge=ridge: (
                        torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=hessian.dtype))
                        .diagonal()
                        .sqrt()
                    )
                    for ridge in (1e-8, 1e-4, 1e-3)
                ),
            ),
            Mistake(
                "one score pinned",
                "These are errors relative to one answer whose score is held at zero; here the scores sum to "
                "zero: use the pseudo-inverse of the whole matrix.",
                lambda hessian: torch.cat(
                    [hessian.new_zeros(1), torch.linalg.inv(hessian[1:, 1:]).diagonal().sqrt()]
                ),
                (
                    lambda hessian: torch.cat(
                        [torch.linalg.inv(hessian[:-1, :-1]).diagonal().sqrt(), hessian.new_zeros(1)]
                    ),
                ),
            ),
            Mistake(
                "sign",
                "A variance came out negative: `hessian` is already that of the negative log-likelihood, so "
                "it needs no further minus.",
                lambda hessian: torch.linalg.pinv(-hessian, hermitian=True).diagonal().sqrt(),
                (
                    lambda hessian: torch.linalg.pinv(-hessian, hermitian=True).diagonal(),
                    lambda hessian: -torch.linalg.pinv(hessian, hermitian=True).diagonal().sqrt(),
                ),
            ),
            Mistake(
                "inverse of the root missing",
                "This is the square root of the diagonal of the Hessian, the information; the standard "
                "error comes from its inverse.",
                lambda hessian: hessian.diagonal().sqrt(),
            ),
        ),
    ),
    Exercise(
        id="01.4",
        title="One Elo update",
        truth=elo_update,
        cases=_elo_cases,
        explain="Elo is Bradley–Terry fitted online, one comparison at a time.",
        also_right=(_elo_by_gradient,),
        mistakes=(
            Mistake(
                "probability instead of surprise",
                "The move here grows with the probability of the win; it should be the surprise, 1 - p, so "
                "that beating a weaker player gains little.",
                _elo_with_probability,
            ),
            Mistake(
                "one player moves",
                "Only one of the two players moves here: what the winner gains, the loser gives.",
                _elo_of_winner,
                (_elo_of_loser,),
            ),
            Mistake(
                "sign",
                "The winner goes down and the loser up here: exchange the signs.",
                _elo_reversed,
            ),
            Mistake(
                "points instead of natural units",
                "This is the scale of chess, base 10 and 400 points; here ratings are scores in natural "
                "units, and p is the sigmoid of their difference.",
                _elo_in_points,
                (
                    lambda ratings, winner, loser, step: (
                        400
                        / math.log(10)
                        * _elo_in_points(
                            ratings / (400 / math.log(10)), winner, loser, step / (400 / math.log(10))
                        )
                    ),
                ),
            ),
            Mistake(
                "second move uses the first",
                "The loser's move is computed after the winner's rating has changed: compute the surprise "
                "once, from the ratings before the game.",
                _elo_one_after_the_other,
            ),
        ),
    ),
)
