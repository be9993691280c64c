"""The checks of lesson 09: one loss for all ratios, relative least squares, a tail exponent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_utils.density_ratios import GENERATORS
from course_utils.labs.exercises import Case, Exercise, Mistake

Function = Callable[[Tensor], Tensor]

# 09.1


def _slope(f: Function) -> Function:
    return torch.func.vmap(torch.func.grad(f))


def bregman_loss(ratio_p: Tensor, ratio_q: Tensor, f: Function) -> Tensor:
    """E_q[f'(r) r - f(r)] - E_p[f'(r)], from samples."""
    slope = _slope(f)
    return (slope(ratio_q) * ratio_q - f(ratio_q)).mean() - slope(ratio_p).mean()


def _bregman_by_autograd(ratio_p: Tensor, ratio_q: Tensor, f: Function) -> float:
    slopes = []
    for ratio in (ratio_p, ratio_q):
        ratio = ratio.detach().requires_grad_(True)
        slopes.append(torch.autograd.grad(f(ratio).sum(), ratio)[0])
    return float((slopes[1] * ratio_q - f(ratio_q)).mean() - slopes[0].mean())


def _bregman_cases() -> Iterator[Case]:
    for number, (name, f) in enumerate(GENERATORS.items()):
        generator = torch.Generator().manual_seed(number)
        ratio_p = torch.rand(7, generator=generator, dtype=torch.float64) + 0.3
        ratio_q = torch.rand(5, generator=generator, dtype=torch.float64) + 0.2
        yield Case((ratio_p, ratio_q, f), f"seven points of p, five of q, and the generator of {name}")


# 09.2


def rulsif_theta(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: float) -> Tensor:
    """theta = (H + penalty I)^-1 h."""
    second = alpha * phi_p.T @ phi_p / len(phi_p) + (1 - alpha) * phi_q.T @ phi_q / len(phi_q)
    return torch.linalg.solve(second + penalty * torch.eye(phi_p.shape[1]).to(phi_p), phi_p.mean(0))


def _theta(
    phi_p: Tensor,
    phi_q: Tensor,
    alpha: float,
    penalty: float,
    *,
    second_p: Callable[[Tensor], Tensor] = lambda phi: phi.T @ phi / len(phi),
    second_q: Callable[[Tensor], Tensor] = lambda phi: phi.T @ phi / len(phi),
    first: Tensor | None = None,
    spread: float = 1.0,
) -> Tensor:
    """The same with one part exchanged: for the mistakes."""
    second = alpha * second_p(phi_p) + (1 - alpha) * second_q(phi_q)
    mean = phi_p.mean(0) if first is None else first
    return torch.linalg.solve(second + spread * penalty * torch.eye(phi_p.shape[1]).to(phi_p), mean)


def _sum_of_squares(phi: Tensor) -> Tensor:
    return phi.T @ phi


def _theta_cases() -> Iterator[Case]:
    for number, (n, m, alpha, penalty) in enumerate(((6, 9, 0.5, 0.1), (12, 5, 0.2, 0.3), (8, 8, 0.8, 0.01))):
        generator = torch.Generator().manual_seed(number)
        phi_p = torch.rand(n, 3, generator=generator, dtype=torch.float64)
        phi_q = torch.rand(m, 3, generator=generator, dtype=torch.float64)
        label = f"{n} points of p, {m} of q, three features, alpha = {alpha}, penalty = {penalty}"
        yield Case((phi_p, phi_q, alpha, penalty), label)


# 09.3


def tail_exponent(sd_p: float, sd_q: float) -> float:
    """The a of P(r > t) ~ t^-a under q."""
    return math.inf if sd_p <= sd_q else sd_p**2 / (sd_p**2 - sd_q**2)


def _exponent_cases() -> Iterator[tuple[float, float]]:
    yield 1.0, 0.5
    yield 1.0, 0.8
    yield 2.0, 1.9
    yield 3.0, 1.0
    yield 0.5, 1.0


Exponent = Callable[[float, float], float]


def _where_p_is_wider(formula: Exponent) -> Exponent:
    """The formula where there is such a tail, infinity elsewhere: for the mistakes in the formula alone."""
    return lambda sd_p, sd_q: math.inf if sd_p <= sd_q else formula(sd_p, sd_q)


EXERCISES = (
    Exercise(
        id="09.1",
        title="One loss for all",
        truth=bregman_loss,
        cases=_bregman_cases,
        explain="Change f and you have uLSIF, KLIEP, logistic regression: one line serves the whole family.",
        also_right=(_bregman_by_autograd,),
        mistakes=(
            Mistake(
                "sums instead of means",
                "These are sums. The samples have different sizes, so only means estimate the expectations.",
                lambda ratio_p, ratio_q, f: (
                    (_slope(f)(ratio_q) * ratio_q - f(ratio_q)).sum() - _slope(f)(ratio_p).sum()
                ),
            ),
            Mistake(
                "p and q exchanged",
                "The points of p and of q have changed places: the denominator's points carry f'(r) r - f(r).",
                lambda ratio_p, ratio_q, f: bregman_loss(ratio_q, ratio_p, f),
            ),
            Mistake(
                "f' forgotten over p",
                "Over p this takes the mean of r itself; the formula has f'(r). For least squares the two differ "
                "by a constant only, for the others the minimum moves.",
                lambda ratio_p, ratio_q, f: (
                    (_slope(f)(ratio_q) * ratio_q - f(ratio_q)).mean() - ratio_p.mean()
                ),
            ),
            Mistake(
                "f forgotten over q",
                "Over q this is E[f'(r) r]; the - f(r) is missing.",
                lambda ratio_p, ratio_q, f: (_slope(f)(ratio_q) * ratio_q).mean() - _slope(f)(ratio_p).mean(),
            ),
            Mistake(
                "the sign over p",
                "The mean over p is added; it is subtracted. As written the loss asks for small ratios where p is.",
                lambda ratio_p, ratio_q, f: (
                    (_slope(f)(ratio_q) * ratio_q - f(ratio_q)).mean() + _slope(f)(ratio_p).mean()
                ),
            ),
            Mistake(
                "one pooled mean",
                "This divides both sums by the number of all points. Each expectation has its own sample, so "
                "each sum is divided by its own size.",
                lambda ratio_p, ratio_q, f: (
                    ((_slope(f)(ratio_q) * ratio_q - f(ratio_q)).sum() - _slope(f)(ratio_p).sum())
                    / (len(ratio_p) + len(ratio_q))
                ),
            ),
        ),
    ),
    Exercise(
        id="09.2",
        title="Relative least squares (RuLSIF) in closed form",
        truth=rulsif_theta,
        cases=_theta_cases,
        explain="At alpha = 0 this is uLSIF. Nothing was iterated: that is why its models are so quickly chosen.",
        also_right=(
            lambda phi_p, phi_q, alpha, penalty: (
                torch.linalg.inv(
                    alpha * torch.einsum("na,nb->ab", phi_p, phi_p) / len(phi_p)
                    + (1 - alpha) * torch.einsum("na,nb->ab", phi_q, phi_q) / len(phi_q)
                    + penalty * torch.eye(phi_p.shape[1], dtype=phi_p.dtype)
                )
                @ phi_p.mean(0)
            ),
        ),
        mistakes=(
            Mistake(
                "plain uLSIF",
                "This is uLSIF: H has the second moments of q alone. The mixture adds alpha times those of p.",
                lambda phi_p, phi_q, alpha, penalty: rulsif_theta(phi_p, phi_q, 0.0, penalty),
            ),
            Mistake(
                "alpha on the wrong sample",
                "Here alpha weighs q; it is the share of p in the mixture.",
                lambda phi_p, phi_q, alpha, penalty: rulsif_theta(phi_p, phi_q, 1 - alpha, penalty),
            ),
            Mistake(
                "h from q",
                "This takes h from q; it is the mean of the features over p, the numerator.",
                lambda phi_p, phi_q, alpha, penalty: _theta(
                    phi_p, phi_q, alpha, penalty, first=phi_q.mean(0)
                ),
            ),
            Mistake(
                "sums in H",
                "H has sums where h has a mean: divide each second moment by the number of its points.",
                lambda phi_p, phi_q, alpha, penalty: _theta(
                    phi_p, phi_q, alpha, penalty, second_p=_sum_of_squares, second_q=_sum_of_squares
                ),
            ),
            Mistake(
                "no penalty",
                "The penalty on the diagonal is missing: with many kernels H alone is nearly singular.",
                lambda phi_p, phi_q, alpha, penalty: rulsif_theta(phi_p, phi_q, alpha, 0.0),
            ),
            Mistake(
                "penalty counted twice",
                "The penalty is twice too large: the derivative of lambda |theta|^2 / 2 is lambda theta.",
                lambda phi_p, phi_q, alpha, penalty: rulsif_theta(phi_p, phi_q, alpha, 2 * penalty),
            ),
            Mistake(
                "covariance instead of second moment",
                "This subtracts the means: a covariance. H is the plain mean of phi phi^T.",
                lambda phi_p, phi_q, alpha, penalty: _theta(
                    phi_p,
                    phi_q,
                    alpha,
                    penalty,
                    second_p=lambda phi: torch.cov(phi.T, correction=0),
                    second_q=lambda phi: torch.cov(phi.T, correction=0),
                ),
            ),
        ),
    ),
    Exercise(
        id="09.3",
        title="When is the variance finite?",
        truth=tail_exponent,
        cases=_exponent_cases,
        explain="Above 2 the mean of n weights errs like n^-1/2; between 1 and 2 only like n^-(1 - 1/a).",
        also_right=(
            lambda sd_p, sd_q: 1 / (1 - (sd_q / sd_p) ** 2) if sd_p > sd_q else float("inf"),
            _where_p_is_wider(lambda sd_p, sd_q: 1 / (2 * sd_q**2 * (0.5 / sd_q**2 - 0.5 / sd_p**2))),
        ),
        mistakes=(
            Mistake(
                "standard deviations not squared",
                "These are standard deviations; the formula has variances.",
                _where_p_is_wider(lambda sd_p, sd_q: sd_p / (sd_p - sd_q)),
                (lambda sd_p, sd_q: sd_p / (sd_p - sd_q),),
            ),
            Mistake(
                "q in the numerator",
                "Numerator and roles are exchanged: it is the variance of p over the difference.",
                _where_p_is_wider(lambda sd_p, sd_q: sd_q**2 / (sd_p**2 - sd_q**2)),
                (lambda sd_p, sd_q: sd_q**2 / (sd_p**2 - sd_q**2),),
            ),
            Mistake(
                "the sign of the difference",
                "The difference has the wrong sign: a is positive where p is the wider one.",
                _where_p_is_wider(lambda sd_p, sd_q: sd_p**2 / (sd_q**2 - sd_p**2)),
                (lambda sd_p, sd_q: sd_p**2 / (sd_q**2 - sd_p**2),),
            ),
            Mistake(
                "upside down",
                "This is one over the exponent.",
                _where_p_is_wider(lambda sd_p, sd_q: (sd_p**2 - sd_q**2) / sd_p**2),
                (lambda sd_p, sd_q: (sd_p**2 - sd_q**2) / sd_p**2,),
            ),
            Mistake(
                "the ratio of variances",
                "This is the ratio of the variances. The exponent is the variance of p over the difference.",
                _where_p_is_wider(lambda sd_p, sd_q: sd_p**2 / sd_q**2),
                (lambda sd_p, sd_q: sd_p**2 / sd_q**2,),
            ),
            Mistake(
                "a narrow p forgotten",
                "The formula is right where p is the wider one. Where it is not, the ratio has no such tail: return "
                "`math.inf` if sd_p <= sd_q.",
                lambda sd_p, sd_q: sd_p**2 / (sd_p**2 - sd_q**2),
            ),
            Mistake(
                "the rate instead of the exponent",
                "This is 1 - 1/a, the rate at which the mean's error shrinks where the variance is infinite; return a.",
                _where_p_is_wider(lambda sd_p, sd_q: (sd_q / sd_p) ** 2),
                (lambda sd_p, sd_q: (sd_q / sd_p) ** 2,),
            ),
        ),
    ),
)
