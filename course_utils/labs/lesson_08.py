"""The checks of lesson 08: distillation's loss, the gradient of reverse KL, what a nat costs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from course_utils.labs.exercises import Case, Exercise, Mistake


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# 08.1


def distillation_loss(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float
) -> Tensor:
    """KL(Bern(q_hat) || Bern(q_pi)) of each pair."""
    return _bernoulli(reward_1 - reward_2, gamma * (policy_1 - policy_2))


def _bernoulli(label: Tensor, margin: Tensor) -> Tensor:
    """KL(Bern(sigmoid(label)) || Bern(sigmoid(margin)))."""
    q = torch.sigmoid(label)
    return q * (logsigmoid(label) - logsigmoid(margin)) + (1 - q) * (logsigmoid(-label) - logsigmoid(-margin))


def _distillation_by_torch(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float
) -> Tensor:
    q = torch.sigmoid(reward_1 - reward_2)
    cross = binary_cross_entropy_with_logits(gamma * (policy_1 - policy_2), q, reduction="none")
    return cross + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)


def _distillation_by_probabilities(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float
) -> Tensor:
    """By the model's own definition: pi^gamma shared out between the two."""
    first, second = (gamma * policy_1).exp(), (gamma * policy_2).exp()
    said = first / (first + second)
    q = torch.sigmoid(reward_1 - reward_2)
    return q * (q / said).log() + (1 - q) * ((1 - q) / (1 - said)).log()


def _distillation_cases() -> Iterator[Case]:
    hand = [torch.tensor([value], dtype=torch.float64) for value in (-1.0, -2.0, 0.7, 0.2)]
    yield Case((*hand, 0.5))
    rows = _normal(1, 4, 6)
    yield Case((rows[0] - 3, rows[1] - 3, rows[2], rows[3], 0.3), "six random pairs, gamma = 0.3")
    rows = _normal(2, 4, 4)
    yield Case((2 * rows[0] - 5, 2 * rows[1] - 5, rows[2], rows[3], 1.5), "four random pairs, gamma = 1.5")


# 08.2


def reverse_kl_gradient(logits: Tensor, reward: Tensor, gamma: float) -> Tensor:
    """The gradient of E_policy[-r + gamma log policy] in the logits."""
    log_policy = torch.log_softmax(logits, dim=-1)
    cost = gamma * log_policy - reward
    policy = log_policy.exp()
    return policy * (cost - (policy * cost).sum(dim=-1, keepdim=True))


def _gradient_by_autograd(logits: Tensor, reward: Tensor, gamma: float) -> Tensor:
    leaf = logits.clone().requires_grad_(True)
    log_policy = torch.log_softmax(leaf, dim=-1)
    (gradient,) = torch.autograd.grad((log_policy.exp() * (gamma * log_policy - reward)).sum(), leaf)
    return gradient


def _gradient_by_jacobian(logits: Tensor, reward: Tensor, gamma: float) -> Tensor:
    policy = torch.softmax(logits, dim=-1)
    jacobian = torch.diag_embed(policy) - policy.unsqueeze(-1) * policy.unsqueeze(-2)
    return (jacobian @ (gamma * policy.log() - reward).unsqueeze(-1)).squeeze(-1)


def _centred(logits: Tensor, cost: Tensor) -> Tensor:
    policy = torch.softmax(logits, dim=-1)
    return policy * (cost - (policy * cost).sum(dim=-1, keepdim=True))


def _gradient_cases() -> Iterator[Case]:
    yield Case(
        (
            torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64),
            torch.tensor([1.0, 0.2, -0.4], dtype=torch.float64),
            0.5,
        )
    )
    yield Case((_normal(5, 4), _normal(6, 4), 1.3), "four responses with random logits, gamma = 1.3")
    yield Case((_normal(7, 3, 5), _normal(8, 3, 5), 0.25), "three prompts with five responses, gamma = 0.25")


# 08.3


def price(truth: Tensor, ref: Tensor, gamma: float) -> Tensor:
    """The limit of n KL(truth || estimate) for n comparisons of pairs from ref, one prompt."""
    return 0.5 * torch.trace(_spread(truth) @ torch.linalg.pinv(_information(truth, ref, gamma))) / gamma**2


def _information(truth: Tensor, ref: Tensor, gamma: float, *, ordered: bool = False) -> Tensor:
    """Fisher information of one comparison about the rewards: off the diagonal -2 ref ref p (1 - p)."""
    margin = gamma * (truth.log().unsqueeze(-1) - truth.log().unsqueeze(-2))
    weight = (1 if ordered else 2) * torch.outer(ref, ref) * torch.sigmoid(margin) * torch.sigmoid(-margin)
    weight = weight - torch.diag(weight.diagonal())
    return torch.diag(weight.sum(-1)) - weight


def _spread(p: Tensor) -> Tensor:
    return torch.diag(p) - torch.outer(p, p)


def _price_in_log_probabilities(truth: Tensor, ref: Tensor, gamma: float) -> Tensor:
    """The same from the information about log pi itself, which is gamma^2 times that about the reward."""
    information = gamma**2 * _information(truth, ref, gamma)
    size = len(truth)
    inverse = torch.linalg.inv(information + 1 / size) - 1 / size
    return 0.5 * ((inverse @ truth) * -truth).sum() + 0.5 * (inverse.diagonal() * truth).sum()


def _price_cases() -> Iterator[Case]:
    yield Case(
        (*[torch.softmax(_normal(seed, 4), -1) for seed in (9, 10)], 0.5), "four responses, gamma = 0.5"
    )
    yield Case(
        (*[torch.softmax(_normal(seed, 6), -1) for seed in (11, 12)], 0.3), "six responses, gamma = 0.3"
    )
    yield Case(
        (*[torch.softmax(_normal(seed, 3), -1) for seed in (13, 14)], 1.4), "three responses, gamma = 1.4"
    )


EXERCISES = (
    Exercise(
        id="08.1",
        title="Preference distillation",
        truth=distillation_loss,
        cases=_distillation_cases,
        explain="With certain labels it is PMLE; its minimum is zero, so you can see when it is done.",
        also_right=(_distillation_by_torch, _distillation_by_probabilities),
        mistakes=(
            Mistake(
                "entropy of the label missing",
                "This is the cross-entropy: its gradient is right, but its minimum is the entropy of the labels, not "
                "zero. Subtract that entropy.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: binary_cross_entropy_with_logits(
                    gamma * (policy_1 - policy_2), torch.sigmoid(reward_1 - reward_2), reduction="none"
                ),
            ),
            Mistake(
                "divergence the wrong way round",
                "The two coins have changed places: the label's probability comes first and weights the terms.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: _bernoulli(
                    gamma * (policy_1 - policy_2), reward_1 - reward_2
                ),
            ),
            Mistake(
                "gamma on the reward too",
                "Here gamma multiplies the rewards as well. It belongs to the policy's side alone: the reward is already "
                "in units of log-odds.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: _bernoulli(
                    gamma * (reward_1 - reward_2), gamma * (policy_1 - policy_2)
                ),
                (
                    lambda policy_1, policy_2, reward_1, reward_2, gamma: _bernoulli(
                        gamma * (reward_1 - reward_2), policy_1 - policy_2
                    ),
                ),
            ),
            Mistake(
                "gamma missing",
                "Here gamma does not appear: the policy's log-odds are gamma times the difference of its log-probabilities.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: _bernoulli(
                    reward_1 - reward_2, policy_1 - policy_2
                ),
            ),
            Mistake(
                "gamma divided",
                "The difference of log-probabilities is divided by gamma here: multiply.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: _bernoulli(
                    reward_1 - reward_2, (policy_1 - policy_2) / gamma
                ),
            ),
            Mistake(
                "the label made hard",
                "The better response is treated as always preferred. That is PMLE: distillation keeps how sure the "
                "reward model is.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: (
                    -logsigmoid(gamma * (policy_1 - policy_2) * torch.sign(reward_1 - reward_2))
                ),
            ),
            Mistake(
                "half of the divergence",
                "Only the first outcome is counted. A coin has two sides: add the term with 1 - q.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: (
                    torch.sigmoid(reward_1 - reward_2)
                    * (logsigmoid(reward_1 - reward_2) - logsigmoid(gamma * (policy_1 - policy_2)))
                ),
            ),
            Mistake(
                "mean over pairs",
                "This is one number for the whole batch: return one divergence for each pair.",
                lambda policy_1, policy_2, reward_1, reward_2, gamma: distillation_loss(
                    policy_1, policy_2, reward_1, reward_2, gamma
                ).mean(),
                (
                    lambda policy_1, policy_2, reward_1, reward_2, gamma: distillation_loss(
                        policy_1, policy_2, reward_1, reward_2, gamma
                    ).sum(),
                ),
            ),
        ),
    ),
    Exercise(
        id="08.2",
        title="The gradient of reverse KL",
        truth=reverse_kl_gradient,
        cases=_gradient_cases,
        explain="It vanishes exactly where the cost is the same for every response: gamma log pi = r + constant.",
        also_right=(_gradient_by_autograd, _gradient_by_jacobian),
        mistakes=(
            Mistake(
                "mean cost not subtracted",
                "The costs are not centred. Raising a logit takes probability from all other responses: subtract the "
                "mean cost under the policy.",
                lambda logits, reward, gamma: (
                    torch.softmax(logits, -1) * (gamma * torch.log_softmax(logits, -1) - reward)
                ),
            ),
            Mistake(
                "plus gamma kept",
                "The derivative of p log p brings a 1 + log p; the softmax takes that 1 away again, and here it stayed.",
                lambda logits, reward, gamma: (
                    reverse_kl_gradient(logits, reward, gamma) + gamma * torch.softmax(logits, -1)
                ),
            ),
            Mistake(
                "probability missing",
                "The centred cost is not multiplied by the probability of its response.",
                lambda logits, reward, gamma: (
                    gamma * torch.log_softmax(logits, -1)
                    - reward
                    - (torch.softmax(logits, -1) * (gamma * torch.log_softmax(logits, -1) - reward)).sum(
                        -1, keepdim=True
                    )
                ),
            ),
            Mistake(
                "entropy forgotten",
                "Here gamma does not act: without its entropy the policy ends on the one best response.",
                lambda logits, reward, gamma: _centred(logits, -reward),
            ),
            Mistake(
                "entropy with the wrong sign",
                "The cost holds + gamma log pi: a likely response is a dear one, and that keeps the policy wide.",
                lambda logits, reward, gamma: _centred(
                    logits, -reward - gamma * torch.log_softmax(logits, -1)
                ),
            ),
            Mistake(
                "sign",
                "This is the direction downhill; the gradient of the cost points uphill: exchange the sign.",
                lambda logits, reward, gamma: -reverse_kl_gradient(logits, reward, gamma),
            ),
            Mistake(
                "one mean for all prompts",
                "The mean cost is summed over all prompts here: each row of logits is a policy of its own and has its own "
                "mean. Sum over the last dimension alone.",
                lambda logits, reward, gamma: (
                    torch.softmax(logits, -1)
                    * (
                        gamma * torch.log_softmax(logits, -1)
                        - reward
                        - (torch.softmax(logits, -1) * (gamma * torch.log_softmax(logits, -1) - reward)).sum()
                    )
                ),
            ),
            Mistake(
                "plain mean of the costs",
                "The mean cost is a plain mean over the responses here: it is the mean under the policy, so weight each "
                "cost with its probability.",
                lambda logits, reward, gamma: (
                    torch.softmax(logits, -1)
                    * (gamma * logits - reward - (gamma * logits - reward).mean(-1, keepdim=True))
                ),
                (
                    lambda logits, reward, gamma: (
                        torch.softmax(logits, -1)
                        * (
                            gamma * torch.log_softmax(logits, -1)
                            - reward
                            - (gamma * torch.log_softmax(logits, -1) - reward).mean(-1, keepdim=True)
                        )
                    ),
                ),
            ),
        ),
    ),
    Exercise(
        id="08.3",
        title="What a nat costs",
        truth=price,
        cases=_price_cases,
        explain="Near the uniform distribution it is (A - 1)/gamma^2 for each prompt.",
        also_right=(_price_in_log_probabilities,),
        mistakes=(
            Mistake(
                "gamma once",
                "The factor gamma enters through the policy twice: log pi = r/gamma, and KL is quadratic in it. Divide by gamma "
                "squared.",
                lambda truth, ref, gamma: price(truth, ref, gamma) * gamma,
            ),
            Mistake(
                "gamma missing",
                "This is the price of the reward, not of the policy: log pi = r/gamma. Divide by gamma squared.",
                lambda truth, ref, gamma: price(truth, ref, gamma) * gamma**2,
            ),
            Mistake(
                "twice too much",
                "This is twice the price. Either the 1/2 of a KL (half a variance, to second order) is missing, or a pair "
                "was counted in one order only: it is drawn as (a, b) and as (b, a).",
                lambda truth, ref, gamma: 2 * price(truth, ref, gamma),
                (
                    lambda truth, ref, gamma: (
                        0.5
                        * torch.trace(
                            _spread(truth) @ torch.linalg.pinv(_information(truth, ref, gamma, ordered=True))
                        )
                        / gamma**2
                    ),
                ),
            ),
            Mistake(
                "every comparison a fair coin",
                "Each comparison is taken to carry 1/4: it carries p(1 - p), with p the judge's probability.",
                lambda truth, ref, gamma: (
                    0.5
                    * torch.trace(
                        _spread(truth)
                        @ torch.linalg.pinv(_information(torch.full_like(truth, 1 / len(truth)), ref, gamma))
                    )
                    / gamma**2
                ),
            ),
            Mistake(
                "judge without gamma",
                "The judge's log-odds are gamma times the difference of log-probabilities: gamma is missing in p.",
                lambda truth, ref, gamma: (
                    0.5
                    * torch.trace(_spread(truth) @ torch.linalg.pinv(_information(truth, ref, 1.0)))
                    / gamma**2
                ),
            ),
            Mistake(
                "other rewards taken as known",
                "The diagonal was inverted alone, as if all other rewards were known: take the pseudo-inverse of the "
                "whole matrix.",
                lambda truth, ref, gamma: (
                    0.5
                    * (_spread(truth).diagonal() / _information(truth, ref, gamma).diagonal()).sum()
                    / gamma**2
                ),
            ),
            Mistake(
                "spread under the reference",
                "KL(pi* || estimate) is a variance under pi*, not under the distribution of the pairs.",
                lambda truth, ref, gamma: (
                    0.5
                    * torch.trace(_spread(ref) @ torch.linalg.pinv(_information(truth, ref, gamma)))
                    / gamma**2
                ),
            ),
        ),
    ),
)
