"""The checks of lesson 02: the loss with a margin, what noise does to a difference, the loss that undoes it, best of n."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from course_utils.labs.exercises import Case, Exercise, Mistake


def _normal(count: int, seed: int, scale: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, generator=generator, dtype=torch.float64)


# 02.1


def margin_loss(reward_chosen: Tensor, reward_rejected: Tensor, margin: Tensor) -> Tensor:
    """Minus log sigma of the difference less the margin, one for each comparison."""
    return softplus(margin - reward_chosen + reward_rejected)


def _margin_cases() -> Iterator[Case]:
    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    yield Case((column(1.0, 0.5), column(0.2, 1.1), column(0.5, 1.0)))
    yield Case(
        (_normal(20, 1), _normal(20, 2), _normal(20, 3).abs()), "20 comparisons with margins of their own"
    )


# 02.2


def noisy_difference(difference: Tensor, rate: float) -> Tensor:
    """The difference that fits labels turned round at this rate."""
    return torch.logit((1 - rate) * torch.sigmoid(difference) + rate * torch.sigmoid(-difference))


def _noise_cases() -> Iterator[Case]:
    yield Case((torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64), 0.2))
    yield Case((_normal(10, 4), 0.1), "10 random differences, a tenth turned round")
    yield Case((_normal(10, 5), 0.35), "10 random differences, 35 % turned round")


def corrected_loss(difference: Tensor, rate: float) -> Tensor:
    """Minus the log-probability of the label as it was seen, noise included."""
    return -torch.log((1 - rate) * torch.sigmoid(difference) + rate * torch.sigmoid(-difference))


# 02.3


def best_of_n(proxy: Tensor, truth: Tensor, n: int) -> float:
    """The expected truth of the response with the highest proxy among n of these, drawn without replacement."""
    count = len(proxy)
    ordered = truth[proxy.argsort()]
    weights = [math.comb(place, n - 1) / math.comb(count, n) for place in range(count)]
    return float(torch.tensor(weights, dtype=ordered.dtype) @ ordered)


def _best_by_subsets(proxy: Tensor, truth: Tensor, n: int) -> float:
    subsets = torch.combinations(torch.arange(len(proxy)), n)
    winners = subsets[torch.arange(len(subsets)), proxy[subsets].argmax(1)]
    return float(truth[winners].mean())


def _with_replacement(proxy: Tensor, truth: Tensor, n: int) -> float:
    edges = torch.linspace(0, 1, len(proxy) + 1, dtype=torch.float64) ** n
    return float((edges[1:] - edges[:-1]) @ truth[proxy.argsort()])


def _best_cases() -> Iterator[Case]:
    yield Case(
        (torch.tensor([0.3, 2.0, -1.0, 0.8]).double(), torch.tensor([1.0, -2.0, 0.5, 4.0]).double(), 2)
    )
    yield Case((_normal(9, 6), _normal(9, 7), 3), "9 responses, the best of 3")
    yield Case((_normal(12, 8), _normal(12, 9), 5), "12 responses, the best of 5")


EXERCISES = (
    Exercise(
        id="02.1",
        title="The loss with a margin",
        truth=margin_loss,
        cases=_margin_cases,
        explain="A pair whose difference equals its margin costs log 2, as an undecided pair does without one.",
        also_right=(
            lambda chosen, rejected, margin: -logsigmoid(chosen - rejected - margin),
            lambda chosen, rejected, margin: -torch.log(torch.sigmoid(chosen - rejected - margin)),
        ),
        mistakes=(
            Mistake(
                "margin added",
                "The margin makes the task easier here: it is subtracted from the difference, so that the chosen "
                "response must lead by that much.",
                lambda chosen, rejected, margin: -logsigmoid(chosen - rejected + margin),
            ),
            Mistake(
                "margin outside",
                "The margin is subtracted from the loss here, where it changes no gradient: it belongs inside the sigmoid.",
                lambda chosen, rejected, margin: -logsigmoid(chosen - rejected) - margin,
                (lambda chosen, rejected, margin: -logsigmoid(chosen - rejected) + margin,),
            ),
            Mistake(
                "margin as a weight",
                "The margin multiplies here, as a weight of the pair; it is subtracted from the difference.",
                lambda chosen, rejected, margin: -margin * logsigmoid(chosen - rejected),
                (lambda chosen, rejected, margin: -logsigmoid(margin * (chosen - rejected)),),
            ),
            Mistake(
                "rejected minus chosen",
                "This rewards the rejected response: the difference is chosen minus rejected.",
                lambda chosen, rejected, margin: -logsigmoid(rejected - chosen - margin),
            ),
            Mistake(
                "sign",
                "This is the log-probability, which is to be large; a loss is its negative.",
                lambda chosen, rejected, margin: logsigmoid(chosen - rejected - margin),
            ),
            Mistake(
                "hinge",
                "This is the hinge max(0, margin - difference), which forgets a pair once it leads by its margin; "
                "Bradley–Terry takes -log sigma, which never quite does.",
                lambda chosen, rejected, margin: torch.relu(margin - chosen + rejected),
            ),
            Mistake(
                "mean taken",
                "This is one number: return a loss for each comparison.",
                lambda chosen, rejected, margin: -logsigmoid(chosen - rejected - margin).mean(),
                (lambda chosen, rejected, margin: -logsigmoid(chosen - rejected - margin).sum(),),
            ),
        ),
    ),
    Exercise(
        id="02.2",
        title="The loss that undoes known noise",
        truth=corrected_loss,
        cases=_noise_cases,
        explain="It is bounded by log(1 / rate): a pair that contradicts everything else is given up.",
        also_right=(
            lambda difference, rate: -torch.log(rate + (1 - 2 * rate) * torch.sigmoid(difference)),
            lambda difference, rate: -logsigmoid(noisy_difference(difference, rate)),
        ),
        mistakes=(
            Mistake(
                "label smoothing",
                "This is label smoothing: the mixture of two logarithms. The probability of the label that was seen is "
                "a mixture of probabilities, and its logarithm comes last.",
                lambda difference, rate: (
                    -(1 - rate) * logsigmoid(difference) - rate * logsigmoid(-difference)
                ),
            ),
            Mistake(
                "unbiased but unbounded",
                "This is the backward correction: its mean over the noise is the clean loss, and its minimiser is right "
                "too, but it has no lower bound. Write the likelihood of the label that was seen.",
                lambda difference, rate: (
                    (-(1 - rate) * logsigmoid(difference) + rate * logsigmoid(-difference)) / (1 - 2 * rate)
                ),
            ),
            Mistake(
                "noise ignored",
                "This is the plain loss: the label may be wrong at the given rate.",
                lambda difference, rate: -logsigmoid(difference),
            ),
            Mistake(
                "shares exchanged",
                "The shares are exchanged: 1 - rate of the labels are right.",
                lambda difference, rate: (
                    -torch.log((1 - rate) * torch.sigmoid(-difference) + rate * torch.sigmoid(difference))
                ),
            ),
            Mistake(
                "sign",
                "This is the log-likelihood; a loss is its negative.",
                lambda difference, rate: torch.log(rate + (1 - 2 * rate) * torch.sigmoid(difference)),
            ),
            Mistake(
                "other side forgotten",
                "Only right labels are counted here: with probability `rate` the label comes from the other side.",
                lambda difference, rate: -torch.log((1 - rate) * torch.sigmoid(difference)),
            ),
        ),
    ),
    Exercise(
        id="02.3",
        title="Best of n, from one sample",
        truth=best_of_n,
        cases=_best_cases,
        explain="One sample of N gives the whole curve up to n = N, without drawing anything twice.",
        also_right=(_best_by_subsets,),
        mistakes=(
            Mistake(
                "with replacement",
                "This draws n with replacement, so that one response may be drawn twice: count subsets, C(i-1, n-1) of "
                "C(N, n).",
                _with_replacement,
            ),
            Mistake(
                "chosen by the truth",
                "This picks by the true reward, the best that could be: the proxy picks, the truth is only read.",
                lambda proxy, truth, n: best_of_n(truth, truth, n),
            ),
            Mistake(
                "proxy reported",
                "This is the expected proxy of the pick; the question is its truth.",
                lambda proxy, truth, n: best_of_n(proxy, proxy, n),
            ),
            Mistake(
                "worst of n",
                "This is the worst of n by the proxy: the last in ascending order wins most subsets.",
                lambda proxy, truth, n: best_of_n(-proxy, truth, n),
            ),
            Mistake(
                "only the first n",
                "This looks at the first n responses only, one draw of many: average over all subsets of size n.",
                lambda proxy, truth, n: float(truth[:n][proxy[:n].argmax()]),
            ),
            Mistake(
                "always the best of all",
                "This is the best of all N: with n < N it is often not among those drawn.",
                lambda proxy, truth, n: float(truth[proxy.argmax()]),
            ),
            Mistake(
                "mean of the top n",
                "This averages the n best by the proxy; the best of n is one response, the best of n random ones.",
                lambda proxy, truth, n: float(truth[proxy.argsort(descending=True)[:n]].mean()),
            ),
        ),
    ),
)
