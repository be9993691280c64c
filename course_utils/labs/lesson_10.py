"""The checks of lesson 10: DDRO's loss, its gradient, and who hit the wall."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from course_utils import objectives
from course_utils.labs.exercises import Case, Exercise, Mistake

# 10.1


def ddro_loss(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    """log(1 + g) for preferred, log(1 + 1/g) for rejected, g = (1/r - t) / (1 - t)."""
    g = (torch.exp(-log_ratio) - t) / (1 - t)
    return torch.where(preferred, torch.log(1 + g), torch.log(1 + 1 / g))


def _with_g(make_g: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The loss with another g: for the mistakes."""

    def loss(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
        g = make_g(log_ratio, t)
        return torch.where(preferred, torch.log(1 + g), torch.log(1 + 1 / g))

    return loss


def _by_logits(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    log_g = torch.log(torch.expm1(-log_ratio - math.log(t))) + math.log(t / (1 - t))
    return softplus(torch.where(preferred, log_g, -log_g))


def _by_package(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    return objectives.ddro(log_ratio, torch.zeros_like(log_ratio), preferred, t=t)


def _loss_cases() -> Iterator[Case]:
    for number, t in enumerate((0.5, 0.3, 0.7)):
        generator = torch.Generator().manual_seed(number)
        log_ratio = 0.5 * torch.rand(6, generator=generator, dtype=torch.float64) - 0.2
        preferred = torch.tensor([True, False, True, False, False, True])
        yield Case((log_ratio, preferred, t), f"three responses of each class, t = {t}")


# 10.2


def ddro_gradient(log_ratio: Tensor, preferred: Tensor) -> Tensor:
    """-1 for preferred, r / (2 - r) for rejected."""
    r = log_ratio.exp()
    return torch.where(preferred, -torch.ones_like(r), r / (2 - r))


def _gradient_by_autograd(log_ratio: Tensor, preferred: Tensor) -> Tensor:
    l = log_ratio.detach().clone().requires_grad_(True)
    loss = torch.where(preferred, math.log(2) - l, math.log(2) - torch.log(2 - l.exp()))
    return torch.autograd.grad(loss.sum(), l)[0]


def _gradient_cases() -> Iterator[Case]:
    preferred = torch.tensor([True, False, False, False, True, False])
    yield Case((torch.zeros(6, dtype=torch.float64), preferred), "six responses that have not moved")
    moved = torch.tensor([0.4, -2.0, 0.3, 0.69, -1.0, 0.6], dtype=torch.float64)
    yield Case((moved, preferred), "log-ratios 0.4, -2, 0.3, 0.69, -1, 0.6")


# 10.3


def who_hit(token_log_ratio: Tensor, response_mask: Tensor, preferred: Tensor) -> tuple[int, int]:
    """The rejected row with the largest sum over its tokens, and the token that rose most in it."""
    tokens = token_log_ratio.masked_fill(~response_mask, 0.0)
    row = int(tokens.sum(1).masked_fill(preferred, -math.inf).argmax())
    return row, int(token_log_ratio[row].masked_fill(~response_mask[row], -math.inf).argmax())


def _who_hit_by_loop(token_log_ratio: Tensor, response_mask: Tensor, preferred: Tensor) -> tuple[int, int]:
    best, found = -math.inf, (0, 0)
    for row in range(len(preferred)):
        places = [i for i in range(token_log_ratio.shape[1]) if response_mask[row, i]]
        total = sum(float(token_log_ratio[row, i]) for i in places)
        if not preferred[row] and total > best:
            best, found = total, (row, max(places, key=lambda i, r=row: float(token_log_ratio[r, i])))
    return found


def _hit_with(
    score: Callable[[Tensor, Tensor], Tensor],
    place: Callable[[Tensor, Tensor], Tensor],
    everybody: bool = False,
) -> Callable[[Tensor, Tensor, Tensor], tuple[int, int]]:
    """The same with another score of a row or another choice of the token: for the mistakes."""

    def answer(token_log_ratio: Tensor, response_mask: Tensor, preferred: Tensor) -> tuple[int, int]:
        rows = score(token_log_ratio, response_mask)
        row = int((rows if everybody else rows.masked_fill(preferred, -math.inf)).argmax())
        return row, int(place(token_log_ratio[row], response_mask[row]).argmax())

    return answer


def _sum(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask).sum(1)


def _rise(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(~mask, -math.inf)


def _hit_cases() -> Iterator[Case]:
    tokens = torch.tensor(
        [
            [0.30, 0.30, 0.30, 0.20, 0.00, 0.0],  # preferred: allowed to rise
            [0.05, 0.10, 0.25, 0.15, 0.20, 0.9],  # the one: many small steps; the last place is padding
            [0.50, 0.10, 9.00, 9.00, 9.00, 9.0],  # the largest mean, a short text, and junk in the padding
            [0.60, -0.90, 0.10, 0.00, 0.05, 0.1],  # the largest single token
            [-0.10, -0.10, -0.20, -0.10, -0.90, 0.0],
        ],
        dtype=torch.float64,
    )
    mask = torch.arange(6) < torch.tensor([5, 5, 2, 6, 5])[:, None]
    preferred = torch.tensor([True, False, False, False, False])
    yield Case((tokens, mask, preferred), "five responses of two to six tokens, the first preferred")
    second = torch.tensor(
        [
            [0.20, -0.60, 0.40, 0.45, 0.30, 0.2],  # falls most at 1, rises most at 3
            [0.10, 0.20, 0.00, 0.00, 0.00, 0.0],
            [0.40, 0.40, 0.40, 0.10, 0.00, 0.0],
            [0.55, 0.30, 0.00, 0.00, 0.00, 7.0],
            [-0.5, -0.40, 0.70, 0.10, 0.00, 0.0],
        ],
        dtype=torch.float64,
    )
    mask = torch.arange(6) < torch.tensor([6, 4, 5, 2, 5])[:, None]
    preferred = torch.tensor([False, False, True, False, False])
    yield Case((second, mask, preferred), "five responses, the third preferred")


EXERCISES = (
    Exercise(
        id="10.1",
        title="DDRO's loss",
        truth=ddro_loss,
        cases=_loss_cases,
        explain="Two lines, and the mixture is in them: no sample of the reference is needed, only its log-probabilities.",
        also_right=(_by_logits, _by_package),
        mistakes=(
            Mistake(
                "the classes exchanged",
                "The classes are exchanged: log(1 + g) belongs to preferred responses, because g has p+ below.",
                lambda log_ratio, preferred, t: ddro_loss(log_ratio, ~preferred, t),
            ),
            Mistake(
                "1 - t forgotten",
                "Here g is 1/r - t. Dividing by 1 - t is missing: with r = 1 the two classes are equal, and g is 1.",
                _with_g(lambda l, t: torch.exp(-l) - t),
            ),
            Mistake(
                "t fixed at one half",
                "This is right at t = 1/2 only: t does not enter.",
                lambda log_ratio, preferred, t: ddro_loss(log_ratio, preferred, 0.5),
            ),
            Mistake(
                "r for 1/r",
                "Here r stands where 1/r belongs: p_ref / p_theta is exp(-log_ratio).",
                _with_g(lambda l, t: (torch.exp(l) - t) / (1 - t)),
            ),
            Mistake(
                "no mixture",
                "This takes g = 1/r, that is p- = p_ref: plain classification against the reference. Solve the mixture "
                "for p-.",
                _with_g(lambda l, t: torch.exp(-l)),
                also_wrong=(
                    lambda log_ratio, preferred, t: softplus(torch.where(preferred, -log_ratio, log_ratio)),
                ),
            ),
            Mistake(
                "one term for both classes",
                "Both classes get log(1 + g). A rejected response needs log(1 + 1/g), or nothing pushes it down.",
                lambda log_ratio, preferred, t: torch.log(1 + (torch.exp(-log_ratio) - t) / (1 - t)),
            ),
            Mistake(
                "averaged",
                "This is one number. Return one loss for each response: the class means are taken later.",
                lambda log_ratio, preferred, t: ddro_loss(log_ratio, preferred, t).mean(),
                also_wrong=(
                    lambda log_ratio, preferred, t: objectives.classwise_mean(
                        ddro_loss(log_ratio, preferred, t), preferred
                    ),
                ),
            ),
        ),
    ),
    Exercise(
        id="10.2",
        title="What pulls, and how hard",
        truth=ddro_gradient,
        cases=_gradient_cases,
        explain="Preferred responses pull alike wherever they are. A rejected one pulls harder the nearer it is to r = 2.",
        also_right=(_gradient_by_autograd,),
        mistakes=(
            Mistake(
                "the derivative in r",
                "This is the derivative in r. The log-ratio l is asked for, and dr/dl = r: multiply by r.",
                lambda log_ratio, preferred: torch.where(
                    preferred, -1 / log_ratio.exp(), 1 / (2 - log_ratio.exp())
                ),
                also_wrong=(
                    lambda log_ratio, preferred: torch.where(
                        preferred, -torch.ones_like(log_ratio), 1 / (2 - log_ratio.exp())
                    ),
                ),
            ),
            Mistake(
                "the sign",
                "All signs are turned: this is the direction of a step, the gradient is the opposite.",
                lambda log_ratio, preferred: -ddro_gradient(log_ratio, preferred),
            ),
            Mistake(
                "rejected falls",
                "For rejected responses the sign is wrong: their loss grows with l.",
                lambda log_ratio, preferred: -ddro_gradient(log_ratio, preferred).abs(),
            ),
            Mistake(
                "plain likelihood",
                "This pushes every rejected response down equally hard. Differentiate log 2 - log(2 - r).",
                lambda log_ratio, preferred: torch.where(
                    preferred, -torch.ones_like(log_ratio), torch.ones_like(log_ratio)
                ),
            ),
            Mistake(
                "the classifier's gradient",
                "These are sigmoids: the gradient of a plain classifier, bounded by one. DDRO's has a denominator 2 - r.",
                lambda log_ratio, preferred: torch.where(
                    preferred, -torch.sigmoid(-log_ratio), torch.sigmoid(log_ratio)
                ),
            ),
            Mistake(
                "the denominator",
                "The denominator is 2 - r, not 2 + r: it vanishes at the wall.",
                lambda log_ratio, preferred: torch.where(
                    preferred, -torch.ones_like(log_ratio), log_ratio.exp() / (2 + log_ratio.exp())
                ),
            ),
        ),
    ),
    Exercise(
        id="10.3",
        title="Who hit the wall?",
        truth=who_hit,
        cases=_hit_cases,
        explain="Run this on the batch that ended a run before you change a setting.",
        also_right=(_who_hit_by_loop,),
        mistakes=(
            Mistake(
                "preferred responses too",
                "This looks at preferred responses as well. At t = 1/2 they may rise as far as they like.",
                _hit_with(_sum, _rise, everybody=True),
            ),
            Mistake(
                "padding counted",
                "Padding is counted: `response_mask` says which places are tokens of the response.",
                _hit_with(lambda tokens, mask: tokens.sum(1), lambda tokens, mask: tokens),
            ),
            Mistake(
                "padding counted as a token",
                "The row is right, but the place you name is padding.",
                _hit_with(_sum, lambda tokens, mask: tokens),
            ),
            Mistake(
                "means instead of sums",
                "These are means over tokens. The wall stands in the sum, so a long text may pass it with small steps.",
                _hit_with(lambda tokens, mask: _sum(tokens, mask) / mask.sum(1), _rise),
            ),
            Mistake(
                "the largest token anywhere",
                "This finds the token that rose most in any rejected response. Its response need not have hit anything: "
                "find the response first.",
                _hit_with(lambda tokens, mask: _rise(tokens, mask).max(1).values, _rise),
            ),
            Mistake(
                "the largest change",
                "This takes the largest change, up or down. Only tokens that rose bring a response to the wall.",
                _hit_with(_sum, lambda tokens, mask: tokens.abs().masked_fill(~mask, -1.0)),
            ),
            Mistake(
                "total movement",
                "Here the movements are added without their signs. A token that falls takes the response away from the "
                "wall.",
                _hit_with(lambda tokens, mask: (tokens.abs() * mask).sum(1), _rise),
            ),
        ),
    ),
)
