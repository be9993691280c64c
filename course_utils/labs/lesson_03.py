"""The checks of lesson 03: the RLHF optimum, the leave-one-out baseline, the clipped loss, best-of-n."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# 03.1


def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy with the largest E r - beta KL(policy || reference)."""
    return torch.softmax(reference.log() + reward / beta, dim=-1)


def _optimum_by_weights(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    weights = reference * torch.exp(reward / beta)
    return weights / weights.sum()


def _optimum_cases() -> Iterator[Case]:
    yield Case((_numbers(0.5, 0.3, 0.2), _numbers(0.0, 1.0, 2.0), 0.5))
    yield Case((_numbers(0.1, 0.2, 0.3, 0.4), _numbers(1.0, -0.5, 0.3, 0.0), 2.0))
    yield Case((_numbers(0.9, 0.1), _numbers(-1.0, 1.0), 0.7))


# 03.2


def leave_one_out(reward: Tensor) -> Tensor:
    """Each reward less the mean of the others in its row."""
    others = (reward.sum(dim=-1, keepdim=True) - reward) / (reward.shape[-1] - 1)
    return reward - others


def _leave_one_out_by_scale(reward: Tensor) -> Tensor:
    size = reward.shape[-1]
    return (reward - reward.mean(dim=-1, keepdim=True)) * size / (size - 1)


def _leave_one_out_by_loop(reward: Tensor) -> Tensor:
    result = torch.zeros_like(reward)
    for i in range(reward.shape[-1]):
        others = torch.cat([reward[..., :i], reward[..., i + 1 :]], dim=-1)
        result[..., i] = reward[..., i] - others.mean(dim=-1)
    return result


def _group_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(3)
    yield Case((torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.5, -2.0]], dtype=torch.float64),))
    yield Case((torch.tensor([[3.0, 1.0], [2.5, 2.0]], dtype=torch.float64),))
    yield Case(
        (5 + torch.randn(3, 4, generator=generator, dtype=torch.float64),),
        "3 prompts with groups of 4 random rewards near 5",
    )


# 03.3


def clipped_loss(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's clipped loss of each response."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def _clipped_by_cases(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    ratio = log_ratio.exp()
    kept = torch.where(advantage > 0, ratio.clamp(max=1 + epsilon), ratio.clamp(min=1 - epsilon))
    return -kept * advantage


def _clipped_ratio(log_ratio: Tensor, epsilon: float) -> Tensor:
    return log_ratio.exp().clamp(1 - epsilon, 1 + epsilon)


def _clip_cases() -> Iterator[Case]:
    """Both signs of the advantage, with ratios below, inside and above the band."""
    log_ratio = _numbers(-0.8, -0.1, 0.0, 0.1, 0.9, -0.8, -0.1, 0.0, 0.1, 0.9)
    advantage = _numbers(1.0, 2.0, 1.0, 0.5, 1.5, -1.0, -2.0, -1.0, -0.5, -1.5)
    for epsilon in (0.2, 0.4):
        yield Case(
            (log_ratio, advantage, epsilon),
            f"ten responses, ratios from 0.45 to 2.46, advantages of both signs, epsilon = {epsilon}",
        )


# 03.4


def best_of_n(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    """The distribution of the response with the largest of n rewards; no two rewards are equal."""
    order = reward.argsort()
    reached = reference[order].cumsum(0)
    best = torch.empty_like(reference)
    best[order] = reached**n - (reached - reference[order]).clamp(min=0) ** n
    return best


def _best_by_comparison(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    not_above = (reward[None, :] <= reward[:, None]).to(reference) @ reference
    return not_above**n - (not_above - reference) ** n


def _best_sorted(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    order = reward.argsort()
    return best_of_n(reference, reward, n)[order]


def _best_in_given_order(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    reached = reference.cumsum(0)
    return reached**n - (reached - reference) ** n


def _not_above(reference: Tensor, reward: Tensor) -> Tensor:
    return (reward[None, :] <= reward[:, None]).to(reference) @ reference


def _best_by_density(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    return n * reference * _not_above(reference, reward) ** (n - 1)


def _best_by_normalised_density(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    weights = _best_by_density(reference, reward, n)
    return weights / weights.sum()


def _best_cases() -> Iterator[Case]:
    yield Case((_numbers(0.5, 0.3, 0.2), _numbers(0.0, 2.0, 1.0), 2))
    yield Case((_numbers(0.1, 0.4, 0.3, 0.2), _numbers(1.5, -0.5, 0.3, 0.9), 4))
    yield Case((_numbers(0.3, 0.24, 0.2, 0.14, 0.08, 0.04), _numbers(-1.0, -0.4, 0.1, 0.6, 1.2, -0.6), 3))


EXERCISES = (
    Exercise(
        id="03.1",
        title="The optimum",
        truth=optimum,
        cases=_optimum_cases,
        explain="The reference says what may be said, the reward tilts it, and beta says how far.",
        also_right=(_optimum_by_weights,),
        mistakes=(
            Mistake(
                "beta the wrong way round",
                "This multiplies the reward by beta. Beta is a price: a large one keeps the policy near the "
                "reference, so the reward is divided by it.",
                lambda reference, reward, beta: torch.softmax(reference.log() + beta * reward, dim=-1),
            ),
            Mistake(
                "reference forgotten",
                "This is exp(r / beta), normalised: right for a uniform reference only. Multiply by the "
                "reference first.",
                lambda reference, reward, beta: torch.softmax(reward / beta, dim=-1),
            ),
            Mistake(
                "sign",
                "This makes good responses rare: a cost would enter with a minus, a reward does not.",
                lambda reference, reward, beta: torch.softmax(reference.log() - reward / beta, dim=-1),
            ),
            Mistake(
                "not normalised",
                "These weights do not sum to one: divide by their sum, which is Z.",
                lambda reference, reward, beta: reference * torch.exp(reward / beta),
            ),
            Mistake(
                "reference not as a logarithm",
                "Inside a softmax the reference has to be a log-probability: softmax(log p_ref + r / beta).",
                lambda reference, reward, beta: torch.softmax(reference + reward / beta, dim=-1),
            ),
            Mistake(
                "Z without the reference",
                "Z is the sum of p_ref exp(r / beta); here it is the sum of exp(r / beta), and the result "
                "does not sum to one.",
                lambda reference, reward, beta: reference * torch.softmax(reward / beta, dim=-1),
            ),
            Mistake(
                "log-probabilities",
                "These are log-probabilities: return the probabilities themselves.",
                lambda reference, reward, beta: torch.log_softmax(reference.log() + reward / beta, dim=-1),
            ),
        ),
    ),
    Exercise(
        id="03.2",
        title="The leave-one-out baseline",
        truth=leave_one_out,
        cases=_group_cases,
        explain="The baseline of a response does not contain its own reward, so the gradient stays unbiased.",
        also_right=(_leave_one_out_by_scale, _leave_one_out_by_loop),
        mistakes=(
            Mistake(
                "own reward in the baseline",
                "This subtracts the mean of the whole group, the response itself included: every advantage "
                "is (K - 1) / K of what it should be. Average the others only.",
                lambda reward: reward - reward.mean(dim=-1, keepdim=True),
            ),
            Mistake(
                "sum of the others divided by K",
                "There are K - 1 others: divide their sum by K - 1.",
                lambda reward: reward - (reward.sum(dim=-1, keepdim=True) - reward) / reward.shape[-1],
            ),
            Mistake(
                "divided by the standard deviation",
                "This also divides by the group's standard deviation, as GRPO does. That makes the size of "
                "the rewards disappear and changes the target: leave it out.",
                lambda reward: (
                    (reward - reward.mean(dim=-1, keepdim=True)) / reward.std(dim=-1, keepdim=True)
                ),
                (
                    lambda reward: leave_one_out(reward) / reward.std(dim=-1, keepdim=True),
                    lambda reward: (
                        (reward - reward.mean(dim=-1, keepdim=True))
                        / (reward.std(dim=-1, keepdim=True) + 1e-4)
                    ),
                ),
            ),
            Mistake(
                "mean over all prompts",
                "This baseline mixes prompts: each row is a group of its own, so average over the last "
                "dimension.",
                lambda reward: reward - reward.mean(),
                (lambda reward: reward - (reward.sum() - reward) / (reward.numel() - 1),),
            ),
            Mistake(
                "the baseline itself",
                "This is the mean of the others: subtract it from the response's own reward.",
                lambda reward: (reward.sum(dim=-1, keepdim=True) - reward) / (reward.shape[-1] - 1),
            ),
            Mistake(
                "sign",
                "This is positive for the bad ones: it is own reward minus the others' mean.",
                lambda reward: -leave_one_out(reward),
            ),
            Mistake(
                "sum of the others",
                "This subtracts the sum of the other rewards: the baseline is their mean.",
                lambda reward: reward - (reward.sum(dim=-1, keepdim=True) - reward),
            ),
        ),
    ),
    Exercise(
        id="03.3",
        title="The clipped loss",
        truth=clipped_loss,
        cases=_clip_cases,
        explain="Where the policy has already moved far enough the way the advantage points, the gradient is zero.",
        also_right=(_clipped_by_cases,),
        mistakes=(
            Mistake(
                "clipped only",
                "This is the clipped term alone. A response that moved the wrong way then gets no gradient "
                "back: take the smaller of the clipped and the unclipped term.",
                lambda log_ratio, advantage, epsilon: -_clipped_ratio(log_ratio, epsilon) * advantage,
            ),
            Mistake(
                "maximum instead of minimum",
                "This takes the larger of the two terms, the optimistic one: PPO takes the smaller, so that "
                "the objective is a lower bound.",
                lambda log_ratio, advantage, epsilon: (
                    -torch.maximum(
                        log_ratio.exp() * advantage, _clipped_ratio(log_ratio, epsilon) * advantage
                    )
                ),
            ),
            Mistake(
                "sign",
                "This is the objective, to be made large: the loss is its negative.",
                lambda log_ratio, advantage, epsilon: -clipped_loss(log_ratio, advantage, epsilon),
            ),
            Mistake(
                "minimum of the ratios",
                "This takes the smaller ratio and multiplies afterwards. With a negative advantage that is "
                "the larger product: multiply each ratio by the advantage, then compare.",
                lambda log_ratio, advantage, epsilon: (
                    -torch.minimum(log_ratio.exp(), _clipped_ratio(log_ratio, epsilon)) * advantage
                ),
            ),
            Mistake(
                "not clipped",
                "This is the importance-weighted loss without a clip: several epochs on one batch can then "
                "run away.",
                lambda log_ratio, advantage, epsilon: -log_ratio.exp() * advantage,
            ),
            Mistake(
                "log-ratio clipped around one",
                "The ratio is the exponential of the log-ratio: clip that, between 1 - epsilon and 1 + "
                "epsilon.",
                lambda log_ratio, advantage, epsilon: (
                    -torch.minimum(
                        log_ratio * advantage, log_ratio.clamp(1 - epsilon, 1 + epsilon) * advantage
                    )
                ),
            ),
            Mistake(
                "averaged",
                "This is one number: return one loss for each response.",
                lambda log_ratio, advantage, epsilon: clipped_loss(log_ratio, advantage, epsilon).mean(),
            ),
        ),
    ),
    Exercise(
        id="03.4",
        title="Best of n, exactly",
        truth=best_of_n,
        cases=_best_cases,
        explain="Only the order of the rewards matters: best-of-n does not know how much better the best is.",
        also_right=(_best_by_comparison,),
        mistakes=(
            Mistake(
                "in sorted order",
                "The probabilities are right and in the order of the rewards: put them back in the order in "
                "which the responses were given.",
                _best_sorted,
            ),
            Mistake(
                "not sorted",
                "This takes the responses as if they came sorted from worst to best: F(y) is the "
                "probability of drawing something no better than y.",
                _best_in_given_order,
            ),
            Mistake(
                "the density of a continuous reward",
                "This is n p F^(n-1), the density for a continuous reward. A table has atoms: take the difference "
                "F^n - (F - p)^n.",
                _best_by_density,
                (_best_by_normalised_density,),
            ),
            Mistake(
                "the distribution function",
                "This is F^n, the probability that the best is no better than y: subtract the probability "
                "that it is worse than y.",
                lambda reference, reward, n: _not_above(reference, reward) ** n,
            ),
            Mistake(
                "worst of n",
                "This is the worst of n: count the probability of what is no better than y, not of what is "
                "no worse.",
                lambda reference, reward, n: best_of_n(reference, -reward, n),
            ),
            Mistake(
                "probabilities to the power n",
                "This sharpens the reference and never looks at the reward.",
                lambda reference, reward, n: reference**n / (reference**n).sum(),
                (lambda reference, reward, n: reference**n,),
            ),
        ),
    ),
)
