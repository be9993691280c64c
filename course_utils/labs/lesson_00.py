"""The checks of lesson 00: a win rate, a divergence, and the classical target, the tilted policy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake


def _distribution(generator: torch.Generator, size: int) -> Tensor:
    return torch.softmax(torch.randn(size, dtype=torch.float64, generator=generator), dim=0)


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def win_rate(policy: Tensor, reference: Tensor, preference: Tensor) -> float:
    """The probability that a response of the policy is preferred to one of the reference."""
    return float(policy @ preference @ reference)


def _win_rate_cases() -> Iterator[Case]:
    wins = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
    yield Case(
        (_vector(0.6, 0.3, 0.1), _vector(0.2, 0.2, 0.6), wins),
        "policy = [0.6, 0.3, 0.1], reference = [0.2, 0.2, 0.6] and three responses",
    )
    for size in (4, 6):
        generator = torch.Generator().manual_seed(size)
        scores = torch.randn(size, dtype=torch.float64, generator=generator)
        preference = torch.sigmoid(scores[:, None] - scores[None, :])
        policy, reference = _distribution(generator, size), _distribution(generator, size)
        yield Case((policy, reference, preference), f"a random policy and reference over {size} responses")


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), in nats."""
    return (p * (p / q).log()).sum()


def _kl_cases() -> Iterator[tuple[Tensor, Tensor]]:
    yield _vector(0.5, 0.5), _vector(0.9, 0.1)
    yield _vector(0.7, 0.2, 0.1), _vector(0.1, 0.3, 0.6)
    generator = torch.Generator().manual_seed(2)
    yield _distribution(generator, 12), _distribution(generator, 12)


def tilt(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy with the highest reward minus beta times its KL divergence from the reference."""
    weight = reference * torch.exp(reward / beta)
    return weight / weight.sum()


def _tilt_cases() -> Iterator[tuple[Tensor, Tensor, float]]:
    yield _vector(0.5, 0.3, 0.2), _vector(0.0, 1.0, 2.0), 0.5
    yield _vector(0.25, 0.25, 0.5), _vector(1.0, -1.0, 0.4), 2.0
    generator = torch.Generator().manual_seed(3)
    yield _distribution(generator, 8), torch.randn(8, dtype=torch.float64, generator=generator), 0.3


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum()


EXERCISES = (
    Exercise(
        id="00.1",
        title="The win rate of a policy",
        truth=win_rate,
        cases=_win_rate_cases,
        explain="This is exact: it weighs every pair of responses, where a benchmark draws some of them.",
        also_right=(
            lambda policy, reference, preference: (policy[:, None] * preference * reference[None, :]).sum(),
            lambda policy, reference, preference: torch.einsum("a,ab,b->", policy, preference, reference),
        ),
        mistakes=(
            Mistake(
                "preference transposed",
                "This is the probability that the reference wins: `preference[a, b]` is the probability "
                "that a is preferred to b, so rows belong to the policy and columns to the reference.",
                lambda policy, reference, preference: float(policy @ preference.T @ reference),
                (lambda policy, reference, preference: 1 - float(policy @ preference @ reference),),
            ),
            Mistake(
                "only the likeliest response",
                "This looks at the likeliest response alone; a win rate weighs every response with its "
                "probability.",
                lambda policy, reference, preference: float(preference[policy.argmax(), reference.argmax()]),
                (lambda policy, reference, preference: float(preference[policy.argmax()] @ reference),),
            ),
            Mistake(
                "probabilities left out",
                "This is the plain mean over pairs of responses; weigh each pair with `policy[a] * "
                "reference[b]`.",
                lambda policy, reference, preference: float(preference.mean()),
                (
                    lambda policy, reference, preference: float((policy @ preference).mean()),
                    lambda policy, reference, preference: float((preference @ reference).mean()),
                ),
            ),
        ),
    ),
    Exercise(
        id="00.2",
        title="The KL divergence",
        truth=kl_divergence,
        cases=_kl_cases,
        explain="It is zero only where the two distributions agree, and it is not symmetric.",
        also_right=(
            lambda p, q: torch.nn.functional.kl_div(q.log(), p, reduction="sum"),
            lambda p, q: float((p * (p.log() - q.log())).sum()),
        ),
        mistakes=(
            Mistake(
                "arguments swapped",
                "This is KL(q || p): in KL(p || q) the log-ratio is log(p/q) and its weights are `p`.",
                lambda p, q: (q * (q / p).log()).sum(),
            ),
            Mistake(
                "base two",
                "This is in bits, with the logarithm to base 2; the course measures in nats, with the "
                "natural logarithm.",
                lambda p, q: (p * (p / q).log2()).sum(),
                (lambda p, q: (p * (p / q).log10()).sum() / math.log10(2),),
            ),
            Mistake(
                "weights left out",
                "The log-ratios are not weighted: KL(p || q) is their mean under `p`, so multiply each by "
                "`p` and sum.",
                lambda p, q: (p / q).log().mean(),
                (lambda p, q: (p / q).log().sum(),),
            ),
            Mistake(
                "total variation",
                "This adds up absolute differences, which is the total variation distance; KL uses "
                "log-ratios.",
                lambda p, q: (p - q).abs().sum() / 2,
                (lambda p, q: (p - q).abs().sum(), lambda p, q: (p - q).abs().mean()),
            ),
            Mistake(
                "sign",
                "This is minus the divergence, and a divergence is never negative: check which way up the "
                "ratio is.",
                lambda p, q: (p * (q / p).log()).sum(),
            ),
        ),
    ),
    Exercise(
        id="00.3",
        title="Tilt a distribution",
        truth=tilt,
        cases=_tilt_cases,
        explain="This is the optimum of reward minus beta times KL: what RLHF and DPO aim at, and RDRO does not.",
        also_right=(
            lambda reference, reward, beta: torch.softmax(reference.log() + reward / beta, dim=0),
            lambda reference, reward, beta: _normalised(
                reference * torch.exp((reward - reward.max()) / beta)
            ),
        ),
        mistakes=(
            Mistake(
                "beta multiplies",
                "This multiplies the reward by `beta`; it is divided by it, so that a large beta keeps the "
                "policy near the reference.",
                lambda reference, reward, beta: _normalised(reference * torch.exp(beta * reward)),
                (lambda reference, reward, beta: reference * torch.exp(beta * reward),),
            ),
            Mistake(
                "not normalised",
                "These numbers do not sum to one: divide them by their sum Z.",
                lambda reference, reward, beta: reference * torch.exp(reward / beta),
            ),
            Mistake(
                "reference left out",
                "The reference is missing: this is the softmax of reward over beta, which tilts a uniform "
                "reference.",
                lambda reference, reward, beta: torch.softmax(reward / beta, dim=0),
                (lambda reference, reward, beta: torch.exp(reward / beta),),
            ),
            Mistake(
                "reward added",
                "The reward is added to the probabilities; it multiplies them, as `exp(reward / beta)`.",
                lambda reference, reward, beta: reference + reward,
                (
                    lambda reference, reward, beta: reference + reward / beta,
                    lambda reference, reward, beta: _normalised(reference + reward),
                    lambda reference, reward, beta: _normalised(reference + reward / beta),
                    lambda reference, reward, beta: torch.softmax(reference + reward / beta, dim=0),
                ),
            ),
            Mistake(
                "sign of the reward",
                "A higher reward must raise the probability: the exponent has the wrong sign.",
                lambda reference, reward, beta: _normalised(reference * torch.exp(-reward / beta)),
            ),
        ),
    ),
)
