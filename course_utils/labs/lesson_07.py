"""The checks of lesson 07: the effective beta, the soft update, and the comparison of two paths at equal KL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake

# 07.1


def effective_beta(beta: float, alpha: float, stage: int) -> float:
    """beta / (1 + alpha (stage - 1))."""
    return beta / (1 + alpha * (stage - 1))


def _effective_beta_by_adding(beta: float, alpha: float, stage: int) -> float:
    strength = 1 / beta
    for _ in range(stage - 1):
        strength += alpha / beta
    return 1 / strength


def _beta_cases() -> Iterator[tuple[float, float, int]]:
    yield 1.0, 1.0, 3
    yield 0.1, 0.6, 4
    yield 0.5, 0.25, 6


# 07.2


def move_reference(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """log of policy^alpha ref^(1 - alpha) / Z."""
    return torch.log_softmax(alpha * policy + (1 - alpha) * ref, dim=-1)


def _move_by_powers(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    mixed = policy.exp() ** alpha * ref.exp() ** (1 - alpha)
    return torch.log(mixed / mixed.sum(dim=-1, keepdim=True))


def _move_by_step(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    moved = ref + alpha * (policy - ref)
    return moved - torch.logsumexp(moved, dim=-1, keepdim=True)


def _tables(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    return tuple(torch.log_softmax(1.5 * drawn, dim=-1))


def _move_cases() -> Iterator[Case]:
    """One prompt that can be done by hand, and tables of several prompts."""
    half = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64))
    skew = torch.log(torch.tensor([[0.1, 0.1, 0.8]], dtype=torch.float64))
    yield Case((skew, half, 0.25), "one prompt, alpha = 0.25")
    yield Case((*_tables(1, 2, 4), 0.6), "two prompts with four responses, alpha = 0.6")
    yield Case((*_tables(2, 5, 3), 0.9), "five prompts with three responses, alpha = 0.9")


# 07.3


def at_equal_kl(kl_a: np.ndarray, truth_a: np.ndarray, kl_b: np.ndarray, truth_b: np.ndarray) -> float:
    """Mean of a - b over 101 KLs, equally spaced over the range that both paths cover."""
    grid = np.linspace(max(kl_a[0], kl_b[0]), min(kl_a[-1], kl_b[-1]), 101)
    return float((np.interp(grid, kl_a, truth_a) - np.interp(grid, kl_b, truth_b)).mean())


def _at_equal_kl_by_loop(
    kl_a: np.ndarray, truth_a: np.ndarray, kl_b: np.ndarray, truth_b: np.ndarray
) -> float:
    low, high = max(kl_a.min(), kl_b.min()), min(kl_a.max(), kl_b.max())
    total = 0.0
    for step in range(101):
        kl = low + (high - low) * step / 100
        total += np.interp(kl, kl_a, truth_a) - np.interp(kl, kl_b, truth_b)
    return total / 101


def _over(low: float, high: float, paths: tuple[np.ndarray, ...]) -> float:
    kl_a, truth_a, kl_b, truth_b = paths
    grid = np.linspace(low, high, 101)
    return float((np.interp(grid, kl_a, truth_a) - np.interp(grid, kl_b, truth_b)).mean())


def _by_trapezoids(kl_a: np.ndarray, truth_a: np.ndarray, kl_b: np.ndarray, truth_b: np.ndarray) -> float:
    grid = np.linspace(max(kl_a[0], kl_b[0]), min(kl_a[-1], kl_b[-1]), 101)
    gap = np.interp(grid, kl_a, truth_a) - np.interp(grid, kl_b, truth_b)
    return float((gap[1:] + gap[:-1]).mean() / 2)


def _path_cases() -> Iterator[Case]:
    """One path that goes farther on the same curve, one on another curve, and two that start at different KLs."""
    short, long = np.linspace(0, 1.5, 6), np.linspace(0, 6, 6)
    yield Case(
        (long, 2 * long - 0.4 * long**2, short, 2 * short - 0.4 * short**2), "the same curve, a goes farther"
    )
    yield Case((short, 1.5 * short, long, 1.2 * long - 0.3 * long**2), "two curves, b goes farther")
    first, second = np.array([0.2, 0.9, 2.5, 4.0]), np.array([0.0, 0.5, 1.0, 3.0])
    yield Case((first, np.sqrt(first), second, 0.8 * second - 0.1 * second**2), "two starts and two ends")


EXERCISES = (
    Exercise(
        id="07.1",
        title="The effective beta",
        truth=effective_beta,
        cases=_beta_cases,
        explain="The brake 1/beta is released by alpha/beta with every move of the reference.",
        also_right=(_effective_beta_by_adding,),
        mistakes=(
            Mistake(
                "one move too many",
                "In stage 1 the reference has not moved yet: after stage k it has moved k - 1 times.",
                lambda beta, alpha, stage: beta / (1 + alpha * stage),
            ),
            Mistake(
                "alpha forgotten",
                "This is the hard update, beta / k: a soft move goes only the share alpha of the way.",
                lambda beta, alpha, stage: beta / stage,
            ),
            Mistake(
                "beta grows",
                "This beta grows with the stages: the strength r/beta is multiplied by 1 + alpha (k - 1), so beta "
                "is divided.",
                lambda beta, alpha, stage: beta * (1 + alpha * (stage - 1)),
            ),
            Mistake(
                "geometric",
                "This shrinks beta by a constant factor. Each move adds the same alpha r/beta to the log-ratio: the "
                "strength grows linearly.",
                lambda beta, alpha, stage: beta * (1 - alpha) ** (stage - 1),
                (lambda beta, alpha, stage: beta * alpha ** (stage - 1),),
            ),
            Mistake(
                "alpha is the reference's share",
                "This uses 1 - alpha: alpha is the policy's share in the new reference.",
                lambda beta, alpha, stage: beta / (1 + (1 - alpha) * (stage - 1)),
            ),
            Mistake(
                "strength instead of beta",
                "This is 1 + alpha (k - 1), or the inverse temperature: beta is divided by it.",
                lambda beta, alpha, stage: (1 + alpha * (stage - 1)) / beta,
                (lambda beta, alpha, stage: 1 + alpha * (stage - 1),),
            ),
        ),
    ),
    Exercise(
        id="07.2",
        title="The soft update",
        truth=move_reference,
        cases=_move_cases,
        explain="Mixing log-probabilities multiplies powers of probabilities, and that is what the law needs.",
        also_right=(_move_by_powers, _move_by_step),
        mistakes=(
            Mistake(
                "alpha on the reference",
                "The reference is multiplied by alpha here. It is the policy's share: alpha = 1 must copy the policy.",
                lambda policy, ref, alpha: move_reference(policy, ref, 1 - alpha),
            ),
            Mistake(
                "not normalised",
                "This is the mixture of the log-probabilities as it comes; its exponentials do not sum to one. "
                "`torch.log_softmax` takes the missing log Z away.",
                lambda policy, ref, alpha: alpha * policy + (1 - alpha) * ref,
            ),
            Mistake(
                "probabilities mixed",
                "This mixes the probabilities. Here the log-probabilities are mixed, and normalised again.",
                lambda policy, ref, alpha: torch.log(alpha * policy.exp() + (1 - alpha) * ref.exp()),
            ),
            Mistake(
                "hard copy",
                "This is the policy itself, the hard update: alpha is not used.",
                lambda policy, ref, alpha: policy.clone(),
            ),
            Mistake(
                "probabilities returned",
                "This is the right mixture as probabilities; the exercise asks for their logarithms.",
                lambda policy, ref, alpha: move_reference(policy, ref, alpha).exp(),
            ),
            Mistake(
                "normalised over prompts",
                "Every row, the responses to one prompt, must sum to one: normalise over the last dimension.",
                lambda policy, ref, alpha: torch.log_softmax(alpha * policy + (1 - alpha) * ref, dim=0),
                (
                    lambda policy, ref, alpha: (
                        alpha * policy
                        + (1 - alpha) * ref
                        - torch.logsumexp((alpha * policy + (1 - alpha) * ref).flatten(), 0)
                    ),
                ),
            ),
        ),
    ),
    Exercise(
        id="07.3",
        title="At equal KL",
        truth=at_equal_kl,
        cases=_path_cases,
        explain="The first case is one curve: whoever goes farther on it has gained nothing.",
        also_right=(_at_equal_kl_by_loop,),
        mistakes=(
            Mistake(
                "equal steps",
                "This compares the paths step by step. One of them has gone farther by then: interpolate both at "
                "the same KLs.",
                lambda kl_a, truth_a, kl_b, truth_b: float((truth_a - truth_b).mean()),
                (lambda kl_a, truth_a, kl_b, truth_b: float(truth_a[-1] - truth_b[-1]),),
            ),
            Mistake(
                "beyond the common range",
                "Beyond the end of a path there is nothing to compare with; `np.interp` repeats its last value there "
                "without a word. Stop at the smaller of the two largest KLs.",
                lambda *paths: _over(max(paths[0][0], paths[2][0]), max(paths[0][-1], paths[2][-1]), paths),
                (
                    lambda *paths: _over(
                        min(paths[0][0], paths[2][0]), max(paths[0][-1], paths[2][-1]), paths
                    ),
                ),
            ),
            Mistake(
                "before the common range",
                "Where only one path has begun there is nothing to compare: start at the larger of the two smallest "
                "KLs.",
                lambda *paths: _over(min(paths[0][0], paths[2][0]), min(paths[0][-1], paths[2][-1]), paths),
                (lambda *paths: _over(0.0, min(paths[0][-1], paths[2][-1]), paths),),
            ),
            Mistake(
                "sign",
                "This is b minus a: a positive number should say that a is better.",
                lambda *paths: -at_equal_kl(*paths),
            ),
            Mistake(
                "only at the end",
                "This is the difference at the largest common KL; the mean over the whole common range is asked for.",
                lambda kl_a, truth_a, kl_b, truth_b: float(
                    np.interp(min(kl_a[-1], kl_b[-1]), kl_a, truth_a)
                    - np.interp(min(kl_a[-1], kl_b[-1]), kl_b, truth_b)
                ),
            ),
            Mistake(
                "area instead of mean",
                "This is the area between the paths over its width, the trapezoid rule: it gives the two ends half a "
                "vote. Take the plain mean of the 101 differences.",
                _by_trapezoids,
            ),
            Mistake(
                "sum instead of mean",
                "This is the sum of 101 differences: divide by their number.",
                lambda *paths: 101 * at_equal_kl(*paths),
            ),
        ),
    ),
)
