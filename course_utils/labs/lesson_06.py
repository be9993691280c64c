"""The checks of lesson 06: the loss of EXO-rw, its gradient, and the margin at which EXO-pref stops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# 06.1


def exo_rw(policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float, beta_reward: float) -> Tensor:
    """KL(p_f || p_r) of each group."""
    log_f = torch.log_softmax(beta_policy * (policy - ref), dim=-1)
    log_r = torch.log_softmax(reward / beta_reward, dim=-1)
    return (log_f.exp() * (log_f - log_r)).sum(dim=-1)


def _exo_rw_by_definition(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float, beta_reward: float
) -> Tensor:
    f = ((policy - ref).exp()) ** beta_policy
    f = f / f.sum(-1, keepdim=True)
    r = (reward / beta_reward).exp()
    r = r / r.sum(-1, keepdim=True)
    return (f * torch.log(f / r)).sum(-1)


def _exo_rw_by_torch(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float, beta_reward: float
) -> Tensor:
    log_f = (beta_policy * (policy - ref)).log_softmax(-1)
    log_r = (reward / beta_reward).log_softmax(-1)
    return torch.nn.functional.kl_div(log_r, log_f, reduction="none", log_target=True).sum(-1)


def _divergence(score_p: Tensor, score_q: Tensor, dim: int = -1) -> Tensor:
    log_p, log_q = torch.log_softmax(score_p, dim), torch.log_softmax(score_q, dim)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _loss_cases() -> Iterator[Case]:
    """One small group with round numbers; several groups; a pair; log-probabilities as long texts have them."""
    yield Case(
        (
            torch.tensor([[-1.0, -2.0, -1.5]], dtype=torch.float64),
            torch.tensor([[-1.2, -1.0, -2.0]], dtype=torch.float64),
            torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64),
            0.5,
            2.0,
        )
    )
    yield Case(
        (_normal(1, 4, 6) - 3, _normal(2, 4, 6) - 3, _normal(3, 4, 6), 1.0, 0.5),
        "4 groups of 6 random responses, beta_policy = 1, beta_reward = 0.5",
    )
    yield Case(
        (_normal(4, 5, 2) - 40, _normal(5, 5, 2) - 40, _normal(6, 5, 2), 0.3, 0.7),
        "5 pairs with log-probabilities near -40, beta_policy = 0.3, beta_reward = 0.7",
    )


# 06.2


def exo_gradient(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    """The gradient of EXO-rw's loss in the scores f."""
    log_f = torch.log_softmax(f, dim=-1)
    gap = log_f - torch.log_softmax(reward / beta_reward, dim=-1)
    return log_f.exp() * (gap - (log_f.exp() * gap).sum(dim=-1, keepdim=True))


def _exo_gradient_by_autograd(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    leaf = f.clone().requires_grad_(True)
    return torch.autograd.grad(_divergence(leaf, reward / beta_reward).sum(), leaf)[0]


def _exo_gradient_by_scores(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    """The normalisers of both softmaxes are constants of a group: the centring takes them away."""
    p = torch.softmax(f, dim=-1)
    gap = f - reward / beta_reward
    return p * gap - p * (p * gap).sum(dim=-1, keepdim=True)


def _gap(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    return torch.log_softmax(f, dim=-1) - torch.log_softmax(reward / beta_reward, dim=-1)


def _gradient_cases() -> Iterator[Case]:
    yield Case(
        (
            torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64),
            torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64),
            0.5,
        )
    )
    yield Case((_normal(7, 3, 5), _normal(8, 3, 5), 2.0), "3 groups of 5 random scores, beta_reward = 2")
    yield Case((3 * _normal(9, 4, 2), _normal(10, 4, 2), 0.4), "4 pairs with large scores, beta_reward = 0.4")


# 06.3


def exo_margin(preference: Tensor, label_smoothing: float) -> Tensor:
    """The margin of EXO-pref's minimum."""
    return (2 * preference - 1) * math.log((1 - label_smoothing) / label_smoothing)


def _exo_margin_as_mean_log_odds(preference: Tensor, label_smoothing: float) -> Tensor:
    log_odds = torch.logit(torch.tensor([1 - label_smoothing, label_smoothing], dtype=torch.float64))
    return preference * log_odds[0] + (1 - preference) * log_odds[1]


def _exo_margin_of_the_released_code(preference: Tensor, label_smoothing: float) -> Tensor:
    """Log-labels 0 and log eps, not normalised."""
    return -(2 * preference - 1) * math.log(label_smoothing)


def _margin_cases() -> Iterator[Case]:
    yield Case((torch.tensor([0.5, 0.75, 1.0], dtype=torch.float64), 0.1))
    yield Case((torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64), 1e-3))
    yield Case((torch.tensor([0.2, 0.8], dtype=torch.float64), 0.3))


EXERCISES = (
    Exercise(
        id="06.1",
        title="The loss of EXO-rw",
        truth=exo_rw,
        cases=_loss_cases,
        explain="It is zero exactly where log(policy/ref) and the reward agree up to a constant and a scale.",
        also_right=(_exo_rw_by_torch, _exo_rw_by_definition),
        mistakes=(
            Mistake(
                "forward divergence",
                "This is KL(p_r || p_f), the loss of DPO-rw: the weights of the sum must be the policy's, p_f.",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    reward / beta_reward, beta_policy * (policy - ref)
                ),
            ),
            Mistake(
                "reference forgotten",
                "Here the reference does not appear in p_f: its scores are beta_policy times log(policy/ref).",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    beta_policy * policy, reward / beta_reward
                ),
            ),
            Mistake(
                "reference upside down",
                "The log-ratio has its sign reversed: it is log policy minus log ref.",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    beta_policy * (ref - policy), reward / beta_reward
                ),
            ),
            Mistake(
                "temperature multiplied",
                "`beta_reward` multiplies the reward here. It is a temperature: divide by it, so that a small "
                "one makes p_r sharp.",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    beta_policy * (policy - ref), reward * beta_reward
                ),
            ),
            Mistake(
                "exponent divided",
                "`beta_policy` divides the log-ratio here. It is an exponent of policy/ref: multiply by it.",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    (policy - ref) / beta_policy, reward / beta_reward
                ),
            ),
            Mistake(
                "softmax over the batch",
                "The softmax runs over the rows here. A group is one row: use dim=-1.",
                lambda policy, ref, reward, beta_policy, beta_reward: _divergence(
                    beta_policy * (policy - ref), reward / beta_reward, dim=0
                ),
            ),
            Mistake(
                "mean over responses",
                "This is the divergence divided by K: a divergence sums over responses.",
                lambda policy, ref, reward, beta_policy, beta_reward: (
                    exo_rw(policy, ref, reward, beta_policy, beta_reward) / policy.shape[-1]
                ),
            ),
            Mistake(
                "mean over groups",
                "This is one number for the whole batch: return one divergence for each group.",
                lambda policy, ref, reward, beta_policy, beta_reward: exo_rw(
                    policy, ref, reward, beta_policy, beta_reward
                ).mean(),
                (
                    lambda policy, ref, reward, beta_policy, beta_reward: exo_rw(
                        policy, ref, reward, beta_policy, beta_reward
                    ).sum(),
                ),
            ),
            Mistake(
                "entropy of the policy missing",
                "This is the cross-entropy between p_f and p_r. Without the term sum p_f log p_f the policy "
                "would collapse onto the best response of each group.",
                lambda policy, ref, reward, beta_policy, beta_reward: (
                    -(
                        torch.softmax(beta_policy * (policy - ref), -1)
                        * torch.log_softmax(reward / beta_reward, -1)
                    ).sum(-1)
                ),
            ),
        ),
    ),
    Exercise(
        id="06.2",
        title="Its gradient, without autograd",
        truth=exo_gradient,
        cases=_gradient_cases,
        explain="Its entries sum to zero, and each carries p_f in front: what the policy has given up feels nothing.",
        also_right=(_exo_gradient_by_autograd, _exo_gradient_by_scores),
        mistakes=(
            Mistake(
                "gradient of the forward divergence",
                "This is p_f - p_r, the gradient of DPO-rw.",
                lambda f, reward, beta_reward: torch.softmax(f, -1) - torch.softmax(reward / beta_reward, -1),
            ),
            Mistake(
                "loss not subtracted",
                "The normaliser of the softmax was not differentiated: subtract the loss from each log-ratio. "
                "As a check, a gradient through a softmax sums to zero.",
                lambda f, reward, beta_reward: torch.softmax(f, -1) * _gap(f, reward, beta_reward),
            ),
            Mistake(
                "plus one kept",
                "The derivative of p log p brings a 1 + log p, and the softmax takes that 1 away again: it is "
                "still in your answer.",
                lambda f, reward, beta_reward: (
                    exo_gradient(f, reward, beta_reward) + torch.softmax(f, dim=-1)
                ),
            ),
            Mistake(
                "weights of the reward",
                "The factor in front and the mean use p_r here: both belong to the policy's p_f.",
                lambda f, reward, beta_reward: (
                    torch.softmax(reward / beta_reward, -1)
                    * (
                        _gap(f, reward, beta_reward)
                        - (torch.softmax(reward / beta_reward, -1) * _gap(f, reward, beta_reward)).sum(
                            -1, keepdim=True
                        )
                    )
                ),
            ),
            Mistake(
                "policy's weight missing",
                "The log-ratio is centred, and not multiplied by p_f.",
                lambda f, reward, beta_reward: (
                    _gap(f, reward, beta_reward)
                    - (torch.softmax(f, -1) * _gap(f, reward, beta_reward)).sum(-1, keepdim=True)
                ),
            ),
            Mistake(
                "sign",
                "This is the step downhill; the gradient points uphill: exchange the sign.",
                lambda f, reward, beta_reward: -exo_gradient(f, reward, beta_reward),
            ),
            Mistake(
                "temperature forgotten",
                "`beta_reward` is not used, or not as a divisor of the reward.",
                lambda f, reward, beta_reward: exo_gradient(f, reward, 1.0),
                (lambda f, reward, beta_reward: exo_gradient(f, reward, 1 / beta_reward),),
            ),
            Mistake(
                "plain mean subtracted",
                "The mean that is subtracted counts all responses alike: it must be the mean under p_f, which is "
                "the loss.",
                lambda f, reward, beta_reward: (
                    torch.softmax(f, -1)
                    * (_gap(f, reward, beta_reward) - _gap(f, reward, beta_reward).mean(-1, keepdim=True))
                ),
            ),
        ),
    ),
    Exercise(
        id="06.3",
        title="The margin at which EXO-pref stops",
        truth=exo_margin,
        cases=_margin_cases,
        explain="It is linear in P, as IPO's is: a reverse divergence averages the log-odds of the labels.",
        also_right=(_exo_margin_as_mean_log_odds,),
        mistakes=(
            Mistake(
                "Bradley–Terry",
                "This is logit P, where DPO stops. It does not depend on the smoothing; EXO-pref's margin does.",
                lambda preference, label_smoothing: torch.logit(preference),
            ),
            Mistake(
                "cDPO",
                "This is the log-odds of the averaged label, where cDPO stops: a forward divergence averages "
                "labels. EXO-pref's is reverse and averages their log-odds.",
                lambda preference, label_smoothing: torch.logit(
                    (1 - label_smoothing) * preference + label_smoothing * (1 - preference)
                ),
            ),
            Mistake(
                "certain label",
                "This is the margin of a pair that is always labelled the same way, P = 1: it must depend on P.",
                lambda preference, label_smoothing: torch.full_like(
                    preference, math.log((1 - label_smoothing) / label_smoothing)
                ),
            ),
            Mistake(
                "flipped labels forgotten",
                "This weights the label with P and forgets the flipped one, which pulls the other way with 1 - P: "
                "an undecided judge, P = 1/2, must give 0.",
                lambda preference, label_smoothing: (
                    preference * math.log((1 - label_smoothing) / label_smoothing)
                ),
            ),
            Mistake(
                "sign",
                "The margin is negative where the first response is preferred: c = log((1 - eps)/eps) is positive.",
                lambda preference, label_smoothing: -exo_margin(preference, label_smoothing),
            ),
            Mistake(
                "half of it",
                "This is half the margin: P c + (1 - P)(-c) is (2P - 1) c, not (P - 1/2) c.",
                lambda preference, label_smoothing: 0.5 * exo_margin(preference, label_smoothing),
            ),
            Mistake(
                "label not normalised",
                "This takes c = -log eps, as the released code does with log-labels 0 and log eps; with a label "
                "that sums to one it is log((1 - eps)/eps).",
                _exo_margin_of_the_released_code,
            ),
        ),
    ),
)
