"""The checks of lesson 04: the log-ratio that a preference asks for, DPO's loss and gradient, p+ from log-ratios."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course_utils.labs.exercises import Case, Exercise, Mistake


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# 04.1


def wanted_log_ratio(preference: Tensor, beta: float) -> Tensor:
    """The difference of log-ratios at which DPO's expected loss on a pair is least."""
    return torch.logit(preference) / beta


def _preference_cases() -> Iterator[Case]:
    yield Case((_numbers(0.75, 0.5, 0.1), 0.1))
    yield Case((_numbers(0.9, 0.99, 0.3), 2.0))
    yield Case((_numbers(0.6), 0.5))


# 04.2


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """DPO's loss of each pair."""
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -logsigmoid(margin)


def _loss_by_odds(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    odds = torch.exp(-beta * ((policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)))
    return torch.log1p(odds)


def _pair_cases() -> Iterator[Case]:
    yield Case((_numbers(-10.0), _numbers(-12.0), _numbers(-11.0), _numbers(-11.5), 0.5))
    yield Case(
        (_numbers(-20.0, -8.0), _numbers(-15.0, -9.0), _numbers(-18.0, -8.5), _numbers(-16.0, -6.0), 0.3)
    )
    generator = torch.Generator().manual_seed(4)
    four = -15 + 3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    yield Case((*four.unbind(), 0.2), "six pairs with random log-probabilities")


# 04.3


def chosen_gradient(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The derivative of each pair's loss in log pi(chosen)."""
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -beta * torch.sigmoid(-margin)


def _gradient_by_autograd(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    leaf = policy_chosen.clone().requires_grad_(True)
    return torch.autograd.grad(dpo_loss(leaf, policy_rejected, ref_chosen, ref_rejected, beta).sum(), leaf)[0]


def _margin(w: Tensor, l: Tensor, ref_w: Tensor, ref_l: Tensor, beta: float) -> Tensor:
    return beta * ((w - ref_w) - (l - ref_l))


# 04.4


def preferred_from(reference: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    """The distribution of chosen responses that a policy's implicit reward predicts."""
    reward = beta * log_ratio
    wins = torch.sigmoid(reward[:, None] - reward[None, :]) @ reference
    return 2 * reference * wins


def _preferred_by_loop(reference: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    total = torch.zeros_like(reference)
    for a in range(len(reference)):
        for b in range(len(reference)):
            p = torch.sigmoid(beta * (log_ratio[a] - log_ratio[b]))
            total[a] += reference[a] * reference[b] * p
            total[b] += reference[a] * reference[b] * (1 - p)
    return total


def _table_cases() -> Iterator[Case]:
    yield Case((_numbers(0.5, 0.3, 0.2), _numbers(0.0, 1.0, -2.0), 0.5))
    yield Case((_numbers(0.6, 0.1, 0.1, 0.2), _numbers(-1.0, 4.0, 0.5, 0.0), 0.3))
    yield Case((_numbers(0.9, 0.1), _numbers(-0.2, 1.1), 1.5))


EXERCISES = (
    Exercise(
        id="04.1",
        title="The log-ratio that a preference asks for",
        truth=wanted_log_ratio,
        cases=_preference_cases,
        explain="It is infinite for P = 1: a pair that is always labelled the same way has no optimum.",
        also_right=(
            lambda preference, beta: (preference / (1 - preference)).log() / beta,
            lambda preference, beta: (preference.log() - torch.log1p(-preference)) / beta,
        ),
        mistakes=(
            Mistake(
                "beta multiplies",
                "Beta multiplies here. The loss sees beta times the log-ratio, so the log-ratio itself is the "
                "log-odds divided by beta.",
                lambda preference, beta: beta * torch.logit(preference),
            ),
            Mistake(
                "beta missing",
                "These are the log-odds, which beta times the log-ratio must equal: divide by beta.",
                lambda preference, beta: torch.logit(preference),
            ),
            Mistake(
                "logarithm of the probability",
                "This is log P. The loss has two parts, with weights P and 1 - P: what balances them is the "
                "logarithm of the odds, P / (1 - P).",
                lambda preference, beta: preference.log() / beta,
            ),
            Mistake(
                "odds without logarithm",
                "These are the odds; the sigmoid undoes a logarithm of odds.",
                lambda preference, beta: preference / (1 - preference) / beta,
            ),
            Mistake(
                "sign",
                "The sign is turned: a response that usually wins must gain against the other.",
                lambda preference, beta: -torch.logit(preference) / beta,
            ),
            Mistake(
                "sigmoid instead of its inverse",
                "This applies the sigmoid to P; you need its inverse.",
                lambda preference, beta: torch.sigmoid(preference) / beta,
            ),
            Mistake(
                "IPO's answer",
                "This is linear in P: it is what IPO's squared loss asks for. The logistic loss asks for log-odds.",
                lambda preference, beta: (2 * preference - 1) / (2 * beta),
            ),
        ),
    ),
    Exercise(
        id="04.2",
        title="DPO's loss",
        truth=dpo_loss,
        cases=_pair_cases,
        explain="Where the policy equals the reference the margin is zero, so the first loss is log 2.",
        also_right=(
            _loss_by_odds,
            lambda w, l, ref_w, ref_l, beta: -torch.log(torch.sigmoid(_margin(w, l, ref_w, ref_l, beta))),
        ),
        mistakes=(
            Mistake(
                "mean over the batch",
                "This is the mean over pairs; return one loss for each pair.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(_margin(w, l, ref_w, ref_l, beta)).mean(),
            ),
            Mistake(
                "reference forgotten",
                "The reference is missing: each log-probability counts from the reference's own.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(beta * (w - l)),
            ),
            Mistake(
                "chosen and rejected exchanged",
                "This rewards the rejected response: the margin is chosen minus rejected.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(-_margin(w, l, ref_w, ref_l, beta)),
            ),
            Mistake(
                "reference exchanged",
                "The reference enters with the wrong sign: the policy's difference minus the reference's.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(beta * ((w - l) + (ref_w - ref_l))),
            ),
            Mistake(
                "beta outside",
                "Beta stands in front of the loss; it belongs inside the sigmoid, where it multiplies the log-ratios.",
                lambda w, l, ref_w, ref_l, beta: -beta * logsigmoid(_margin(w, l, ref_w, ref_l, 1.0)),
            ),
            Mistake(
                "beta divides",
                "Beta divides here. The reward is beta times the log-ratio.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(_margin(w, l, ref_w, ref_l, 1 / beta)),
            ),
            Mistake(
                "beta missing",
                "Beta is missing: the margin is beta times the difference of log-ratios.",
                lambda w, l, ref_w, ref_l, beta: -logsigmoid(_margin(w, l, ref_w, ref_l, 1.0)),
            ),
            Mistake(
                "logarithm missing",
                "This is a probability: the loss is minus its logarithm.",
                lambda w, l, ref_w, ref_l, beta: torch.sigmoid(_margin(w, l, ref_w, ref_l, beta)),
                (lambda w, l, ref_w, ref_l, beta: -torch.sigmoid(_margin(w, l, ref_w, ref_l, beta)),),
            ),
            Mistake(
                "minus missing",
                "This is the log-likelihood, to be made large; a loss is its negative.",
                lambda w, l, ref_w, ref_l, beta: logsigmoid(_margin(w, l, ref_w, ref_l, beta)),
            ),
        ),
    ),
    Exercise(
        id="04.3",
        title="The gradient's weight",
        truth=chosen_gradient,
        cases=_pair_cases,
        explain="The derivative in the rejected log-probability is this number with the other sign.",
        also_right=(
            _gradient_by_autograd,
            lambda w, l, ref_w, ref_l, beta: beta * (torch.sigmoid(_margin(w, l, ref_w, ref_l, beta)) - 1),
        ),
        mistakes=(
            Mistake(
                "weight of the right pairs",
                "The weight here grows with the margin, so it works hardest on pairs that are right already: take "
                "the sigmoid of minus the margin.",
                lambda w, l, ref_w, ref_l, beta: -beta * torch.sigmoid(_margin(w, l, ref_w, ref_l, beta)),
            ),
            Mistake(
                "beta in front missing",
                "The chain rule gives one more factor: the margin changes by beta when log pi(chosen) changes by one.",
                lambda w, l, ref_w, ref_l, beta: -torch.sigmoid(-_margin(w, l, ref_w, ref_l, beta)),
            ),
            Mistake(
                "sign",
                "The sign is turned: raising the chosen log-probability lowers the loss.",
                lambda w, l, ref_w, ref_l, beta: beta * torch.sigmoid(-_margin(w, l, ref_w, ref_l, beta)),
            ),
            Mistake(
                "beta inside missing",
                "The sigmoid is taken of the difference of log-ratios; the margin is beta times that.",
                lambda w, l, ref_w, ref_l, beta: -beta * torch.sigmoid(-_margin(w, l, ref_w, ref_l, 1.0)),
            ),
            Mistake(
                "reference forgotten",
                "The reference has no gradient of its own, but it moves the margin and so the weight.",
                lambda w, l, ref_w, ref_l, beta: -beta * torch.sigmoid(-beta * (w - l)),
            ),
            Mistake(
                "mean over the batch",
                "This is divided by the number of pairs: return the derivative of each pair's own loss.",
                lambda w, l, ref_w, ref_l, beta: chosen_gradient(w, l, ref_w, ref_l, beta) / len(w),
            ),
            Mistake(
                "derivative of the sigmoid",
                "This is the derivative of the sigmoid itself; of its logarithm one factor remains.",
                lambda w, l, ref_w, ref_l, beta: (
                    -beta
                    * torch.sigmoid(_margin(w, l, ref_w, ref_l, beta))
                    * torch.sigmoid(-_margin(w, l, ref_w, ref_l, beta))
                ),
            ),
        ),
    ),
    Exercise(
        id="04.4",
        title="What the reward model inside predicts",
        truth=preferred_from,
        cases=_table_cases,
        explain="It sums to one without normalising, because P(a over b) + P(b over a) = 1.",
        also_right=(_preferred_by_loop,),
        mistakes=(
            Mistake(
                "the policy itself",
                "This is the policy, reference times exp(log-ratio). Asked for is the distribution of the response "
                "that wins a comparison of two reference responses.",
                lambda reference, log_ratio, beta: torch.softmax(reference.log() + log_ratio, -1),
                (lambda reference, log_ratio, beta: reference * log_ratio.exp(),),
            ),
            Mistake(
                "tilt by the reward",
                "This tilts the reference by exp(reward). The winner of one comparison has the odds of a sigmoid, "
                "averaged over opponents.",
                lambda reference, log_ratio, beta: torch.softmax(reference.log() + beta * log_ratio, -1),
            ),
            Mistake(
                "factor two missing",
                "This sums to one half: a response can win as the first or as the second of the two.",
                lambda reference, log_ratio, beta: preferred_from(reference, log_ratio, beta) / 2,
            ),
            Mistake(
                "opponents counted equally",
                "All opponents count alike here; they come from the reference, with its probabilities.",
                lambda reference, log_ratio, beta: (
                    2 * reference * torch.sigmoid(beta * (log_ratio[:, None] - log_ratio[None, :])).mean(1)
                ),
            ),
            Mistake(
                "rejected instead of chosen",
                "This is the distribution of the response that loses.",
                lambda reference, log_ratio, beta: preferred_from(reference, -log_ratio, beta),
            ),
            Mistake(
                "beta missing",
                "Beta is missing: the implicit reward is beta times the log-ratio.",
                lambda reference, log_ratio, beta: preferred_from(reference, log_ratio, 1.0),
            ),
            Mistake(
                "win rates alone",
                "These are win rates: a response must also be drawn, so multiply by twice its reference probability.",
                lambda reference, log_ratio, beta: (
                    torch.sigmoid(beta * (log_ratio[:, None] - log_ratio[None, :])) @ reference
                ),
            ),
        ),
    ),
)
