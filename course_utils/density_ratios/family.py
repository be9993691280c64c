"""The Bregman family: from a convex function f of the ratio to a loss that the true ratio minimises.

For the ratio p/q and an estimate r, the Bregman divergence of f, averaged under q, is up to a constant

    BR_f(r) = E_q[ f'(r) r - f(r) ] - E_p[ f'(r) ],

because E_q[ f'(r) p/q ] = E_p[ f'(r) ]: only expectations are left, so samples suffice. With the mixture
alpha p + (1 - alpha) q in the place of q the same loss estimates the relative ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course_utils.errors import CourseError

Function = Callable[[Tensor], Tensor]


def least_squares(ratio: Tensor) -> Tensor:
    """f of uLSIF and RuLSIF: the loss is E_q[r**2] / 2 - E_p[r] + 1/2."""
    return (ratio - 1) ** 2 / 2


def kl(ratio: Tensor) -> Tensor:
    """f of KLIEP: the loss is E_q[r] - E_p[log r]."""
    return ratio * ratio.log() - ratio


def logistic(ratio: Tensor) -> Tensor:
    """f of logistic regression, of DDRO and of RDRO: the loss is E_q[log(1 + r)] + E_p[log(1 + 1/r)]."""
    return ratio * ratio.log() - (1 + ratio) * ratio.log1p()


def power(lam: float) -> Function:
    """Basu's power divergence, f = (r**(1 + lam) - r) / lam: KLIEP's as lam -> 0, least squares at lam = 1."""
    if not lam > 0:
        what, remedy = f"lam must be positive, got {lam!r}", "for the limit at 0 use the generator 'kl'"
        raise CourseError("density-ratio-option", what, where="power", remedy=remedy)
    return lambda ratio: (ratio ** (1 + lam) - ratio) / lam


GENERATORS: dict[str, Function] = {"least-squares": least_squares, "kl": kl, "logistic": logistic}


def generator_named(generator: str | Function, where: str) -> Function:
    if callable(generator):
        return generator
    if generator not in GENERATORS:
        remedy = f"choose one of {', '.join(GENERATORS)}, or pass a convex function of a tensor"
        what = f"unknown generator {generator!r}"
        raise CourseError("density-ratio-option", what, where=where, remedy=remedy)
    return GENERATORS[generator]


def check_alpha(alpha: float, where: str) -> None:
    if not 0 <= alpha < 1:
        what = f"alpha must lie in [0, 1), got {alpha!r}"
        remedy = "0 is the plain ratio; the relative ratio of alpha = 1 is 1 everywhere"
        raise CourseError("density-ratio-alpha", what, where=where, remedy=remedy)


def derivative(f: Function) -> Function:
    """f', elementwise, by autograd; it can be differentiated again."""

    def slope(ratio: Tensor) -> Tensor:
        with torch.enable_grad():
            at = ratio if ratio.requires_grad else ratio.detach().requires_grad_()
            (found,) = torch.autograd.grad(f(at).sum(), at, create_graph=True)
        return found if ratio.requires_grad else found.detach()

    return slope


def bregman_loss(
    ratio_numerator: Tensor,
    ratio_denominator: Tensor,
    generator: str | Function = "least-squares",
    alpha: float = 0.0,
) -> Tensor:
    """The loss of an estimate, from its values on a numerator sample and on a denominator sample."""
    check_alpha(alpha, "bregman_loss")
    of_numerator, of_denominator = losses_of_ratio(generator_named(generator, "bregman_loss"))
    on_p, on_q = of_denominator(ratio_numerator).mean(), of_denominator(ratio_denominator).mean()
    return of_numerator(ratio_numerator).mean() + alpha * on_p + (1 - alpha) * on_q


def losses_of_ratio(f: Function) -> tuple[Function, Function]:
    """What a numerator point costs, -f'(r), and what a denominator point costs, f'(r) r - f(r)."""
    slope = derivative(f)
    return lambda ratio: -slope(ratio), lambda ratio: slope(ratio) * ratio - f(ratio)


@dataclass(frozen=True)
class Losses:
    """The same two costs as functions of the score theta . phi(x), the quantity that a linear model gives.

    `link` says what the score is: "linear", the ratio itself, or "exponential", its logarithm.
    """

    numerator: Function
    denominator: Function
    link: str


def losses(f: Function, link: str) -> Losses:
    """Any member of the family, straight from f."""
    of_numerator, of_denominator = losses_of_ratio(f)
    if link == "linear":
        return Losses(of_numerator, of_denominator, link)
    return Losses(lambda score: of_numerator(score.exp()), lambda score: of_denominator(score.exp()), link)


# The members with their derivatives worked out by hand: faster, and safe for a log-ratio of any size.
LEAST_SQUARES = Losses(lambda ratio: 1 - ratio, lambda ratio: (ratio**2 - 1) / 2, "linear")
KLIEP = Losses(lambda ratio: -ratio.log(), lambda ratio: ratio, "linear")
KLIEP_EXPONENTIAL = Losses(lambda log_ratio: -log_ratio, lambda log_ratio: log_ratio.exp(), "exponential")
# logsigmoid and not softplus: torch's softplus drops its exponential above 20, an error of 2e-9
LOGISTIC = Losses(
    lambda log_ratio: -logsigmoid(log_ratio), lambda log_ratio: -logsigmoid(-log_ratio), "exponential"
)
