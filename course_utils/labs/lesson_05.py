"""The checks of lesson 05: a step on a table, how fast the chosen rises, its mean drift, and when a ranking turns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from course_utils.labs.exercises import Case, Exercise, Mistake


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# 05.1


def table_step(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    """The table after the logit of the chosen went up, and that of the rejected down, by `push`."""
    return _stepped(probabilities, chosen, rejected, push, push)


def _scaled(probabilities: Tensor, chosen: int, rejected: int, up: float, down: float) -> Tensor:
    new = probabilities.clone()
    new[chosen] *= math.exp(up)
    new[rejected] *= math.exp(-down)
    return new


def _stepped(probabilities: Tensor, chosen: int, rejected: int, up: float, down: float) -> Tensor:
    new = _scaled(probabilities, chosen, rejected, up, down)
    return new / new.sum()


def _step_by_softmax(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    logits = probabilities.log()
    logits[chosen] += push
    logits[rejected] -= push
    return torch.softmax(logits, -1)


def _step_by_formula(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    """With the Z of the lesson."""
    z = 1 + probabilities[chosen] * (math.exp(push) - 1) - probabilities[rejected] * (1 - math.exp(-push))
    return _scaled(probabilities, chosen, rejected, push, push) / z


def _step_within_the_pair(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    new = _scaled(probabilities, chosen, rejected, push, push)
    pair = [chosen, rejected]
    new[pair] *= probabilities[pair].sum() / new[pair].sum()
    return new


def _step_of_probabilities(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    new = probabilities.clone()
    new[chosen] += push
    new[rejected] -= push
    return new


def _step_softmax_of_probabilities(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    return torch.softmax(_step_of_probabilities(probabilities, chosen, rejected, push), -1)


def _step_cases() -> Iterator[Case]:
    yield Case((_numbers(0.05, 0.35, 0.6), 0, 1, 0.5))
    yield Case((_numbers(0.1, 0.2, 0.3, 0.4), 3, 0, 1.2))
    yield Case((_numbers(0.5, 0.02, 0.2, 0.2, 0.08), 1, 0, 3.0))


# 05.2


def chosen_speed(gradient_chosen: Tensor, gradient_rejected: Tensor, h: Tensor, beta: float) -> Tensor:
    """The first-order change of log pi(chosen) under a step on its own pair, over the step size."""
    along = (gradient_chosen * (gradient_chosen - gradient_rejected)).sum(-1)
    return beta * torch.sigmoid(-beta * h) * along


def _speed_by_parts(gradient_chosen: Tensor, gradient_rejected: Tensor, h: Tensor, beta: float) -> Tensor:
    square = gradient_chosen.square().sum(-1)
    cross = torch.einsum("pw,pw->p", gradient_chosen, gradient_rejected)
    return (square - cross) * beta / (1 + (beta * h).exp())


def _weight(h: Tensor, beta: float) -> Tensor:
    return beta * torch.sigmoid(-beta * h)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(-1)


def _gradient_cases() -> Iterator[Case]:
    yield Case(
        (
            torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64),
            torch.tensor([[0.5, 1.0], [2.0, 1.0]], dtype=torch.float64),
            _numbers(0.0, 3.0),
            0.5,
        )
    )
    generator = torch.Generator().manual_seed(5)
    two = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    h = 4 * torch.randn(5, generator=generator, dtype=torch.float64)
    yield Case((two[0], two[1] + two[0], h, 0.3), "five pairs with random gradients")


# 05.3


def chosen_drift(reference: Tensor, preference: Tensor, policy: Tensor) -> Tensor:
    """E log policy/reference of the chosen response of a pair that the reference drew."""
    p_plus = 2 * reference * (preference @ reference)
    return (p_plus * (policy / reference).log()).sum()


def _drift_by_law(reference: Tensor, preference: Tensor, policy: Tensor) -> Tensor:
    p_plus = 2 * reference * (preference @ reference)
    before = (p_plus * (p_plus / reference).log()).sum()
    return before - (p_plus * (p_plus / policy).log()).sum()


def _drift_by_pairs(reference: Tensor, preference: Tensor, policy: Tensor) -> Tensor:
    """All pairs of draws, and both verdicts."""
    moved, total = (policy / reference).log(), torch.zeros((), dtype=reference.dtype)
    for a in range(len(reference)):
        for b in range(len(reference)):
            verdict = preference[a, b] * moved[a] + preference[b, a] * moved[b]
            total = total + reference[a] * reference[b] * verdict
    return total


def _drift_cases() -> Iterator[Case]:
    score = _numbers(-1.0, 0.2, 1.5)
    preference = torch.sigmoid(score[:, None] - score)
    yield Case((_numbers(0.5, 0.3, 0.2), preference, _numbers(0.2, 0.3, 0.5)))
    yield Case((_numbers(0.5, 0.3, 0.2), preference, _numbers(0.02, 0.08, 0.9)))
    cycle = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
    yield Case((_numbers(0.1, 0.6, 0.3), cycle, _numbers(0.25, 0.35, 0.4)), "a judge without a reward")


# 05.4


def ranking_threshold(ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """The DPO loss at which the policy's ranking of a pair turns."""
    return softplus(-beta * (ref_rejected - ref_chosen))


def _threshold_cases() -> Iterator[Case]:
    yield Case((_numbers(-12.0, -10.0, -9.0), _numbers(-10.0, -12.0, -9.5), 0.5))
    yield Case((_numbers(-30.0, -22.0), _numbers(-10.0, -21.0), 0.1))
    yield Case((_numbers(-8.0), _numbers(-9.0), 2.0))


EXERCISES = (
    Exercise(
        id="05.1",
        title="A step on a table",
        truth=table_step,
        cases=_step_cases,
        explain="The chosen rises whatever the push; whether the bystanders gain depends on how the pair is ranked.",
        also_right=(_step_by_softmax, _step_by_formula),
        mistakes=(
            Mistake(
                "not normalised",
                "These do not sum to one: divide all entries by their new sum.",
                lambda probabilities, chosen, rejected, push: _scaled(
                    probabilities, chosen, rejected, push, push
                ),
            ),
            Mistake(
                "bystanders held fixed",
                "Only the pair is normalised here, so that bystanders keep what they had. A softmax divides every "
                "entry by the same sum.",
                _step_within_the_pair,
            ),
            Mistake(
                "push added to the probabilities",
                "The push is added to probabilities here. It is added to logits, which are logarithms: a "
                "probability is multiplied by exp(push).",
                _step_of_probabilities,
                (
                    lambda probabilities, chosen, rejected, push: (
                        _step_of_probabilities(probabilities, chosen, rejected, push).clamp_min(0)
                        / _step_of_probabilities(probabilities, chosen, rejected, push).clamp_min(0).sum()
                    ),
                ),
            ),
            Mistake(
                "softmax of probabilities",
                "The softmax is taken of probabilities here: logits are their logarithms.",
                _step_softmax_of_probabilities,
            ),
            Mistake(
                "rejected left alone",
                "Only the chosen logit moves here: that is SFT. DPO pushes the rejected one down by as much.",
                lambda probabilities, chosen, rejected, push: _stepped(
                    probabilities, chosen, rejected, push, 0.0
                ),
            ),
            Mistake(
                "chosen left alone",
                "Only the rejected logit moves here: the chosen one goes up by as much.",
                lambda probabilities, chosen, rejected, push: _stepped(
                    probabilities, chosen, rejected, 0.0, push
                ),
            ),
            Mistake(
                "sign",
                "Chosen and rejected are exchanged: the chosen logit goes up.",
                lambda probabilities, chosen, rejected, push: _stepped(
                    probabilities, chosen, rejected, -push, -push
                ),
            ),
            Mistake(
                "half the push",
                "Each logit moves by half of `push` here. It is their difference, and with it h, that moves by twice "
                "the push.",
                lambda probabilities, chosen, rejected, push: _stepped(
                    probabilities, chosen, rejected, push / 2, push / 2
                ),
            ),
        ),
    ),
    Exercise(
        id="05.2",
        title="How fast the chosen rises",
        truth=chosen_speed,
        cases=_gradient_cases,
        explain="It is negative exactly where the inner product of the two gradients exceeds the first one's square.",
        also_right=(
            _speed_by_parts,
            lambda gradient_chosen, gradient_rejected, h, beta: torch.stack(
                [
                    beta / (1 + math.exp(beta * float(each))) * (w @ (w - l))
                    for w, l, each in zip(gradient_chosen, gradient_rejected, h, strict=True)
                ]
            ),
        ),
        mistakes=(
            Mistake(
                "rejected forgotten",
                "This is the chosen gradient's square alone, as if only the chosen were trained. The step also "
                "pushes the rejected down, which moves the same weights.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    _weight(h, beta) * _dot(gradient_chosen, gradient_chosen)
                ),
            ),
            Mistake(
                "rejected added",
                "The rejected gradient is added here: DPO moves the weights along the difference, chosen minus "
                "rejected.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    _weight(h, beta) * _dot(gradient_chosen, gradient_chosen + gradient_rejected)
                ),
            ),
            Mistake(
                "speed of h",
                "This is how fast the difference h grows, which is never negative. Asked for is the chosen alone: its "
                "own gradient times the movement.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    _weight(h, beta) * (gradient_chosen - gradient_rejected).square().sum(-1)
                ),
            ),
            Mistake(
                "speed of the rejected",
                "This is the change of the rejected log-probability: multiply the movement by the chosen's gradient.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    _weight(h, beta) * _dot(gradient_rejected, gradient_chosen - gradient_rejected)
                ),
            ),
            Mistake(
                "weight of the right pairs",
                "The weight here grows with h, so it works hardest on pairs that are right already: take the sigmoid "
                "of minus beta h.",
                lambda gradient_chosen, gradient_rejected, h, beta: chosen_speed(
                    gradient_chosen, gradient_rejected, -h, beta
                ),
            ),
            Mistake(
                "weight forgotten",
                "The weight beta sigma(-beta h) is missing: it has no sign, but it says how fast.",
                lambda gradient_chosen, gradient_rejected, h, beta: _dot(
                    gradient_chosen, gradient_chosen - gradient_rejected
                ),
            ),
            Mistake(
                "beta in front missing",
                "One factor beta is missing: the loss contains beta h, so its derivative in h has beta in front.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    chosen_speed(gradient_chosen, gradient_rejected, h, beta) / beta
                ),
            ),
            Mistake(
                "beta inside missing",
                "The sigmoid is taken of h; the margin is beta times h.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    beta * torch.sigmoid(-h) * _dot(gradient_chosen, gradient_chosen - gradient_rejected)
                ),
            ),
            Mistake(
                "summed over pairs",
                "This is one number for all pairs: sum over weights, not over pairs.",
                lambda gradient_chosen, gradient_rejected, h, beta: chosen_speed(
                    gradient_chosen, gradient_rejected, h, beta
                ).sum(),
                (
                    lambda gradient_chosen, gradient_rejected, h, beta: chosen_speed(
                        gradient_chosen, gradient_rejected, h, beta
                    ).mean(),
                ),
            ),
            Mistake(
                "sign",
                "The sign is turned: descent moves against the loss's gradient, and so along chosen minus rejected.",
                lambda gradient_chosen, gradient_rejected, h, beta: (
                    -chosen_speed(gradient_chosen, gradient_rejected, h, beta)
                ),
            ),
        ),
    ),
    Exercise(
        id="05.3",
        title="The chosen's drift, without a sample",
        truth=chosen_drift,
        cases=_drift_cases,
        explain="No policy makes it larger than KL(p+ to the reference).",
        also_right=(_drift_by_law, _drift_by_pairs),
        mistakes=(
            Mistake(
                "factor two missing",
                "The weights sum to one half here: a response can be chosen as the first or as the second draw.",
                lambda reference, preference, policy: chosen_drift(reference, preference, policy) / 2,
            ),
            Mistake(
                "drift of the rejected",
                "This is the rejected response's drift: the win rate of a is an average of row a of `preference`.",
                lambda reference, preference, policy: chosen_drift(reference, preference.T, policy),
            ),
            Mistake(
                "averaged over the reference",
                "This averages over the reference's responses, chosen and rejected alike. The chosen ones are "
                "distributed as p+.",
                lambda reference, preference, policy: (reference * (policy / reference).log()).sum(),
            ),
            Mistake(
                "averaged over the policy",
                "This averages over what the policy says, which is KL(policy to reference). Pairs come from the "
                "reference, and the chosen ones are distributed as p+.",
                lambda reference, preference, policy: (policy * (policy / reference).log()).sum(),
            ),
            Mistake(
                "opponents counted equally",
                "All opponents count alike here; they come from the reference, with its probabilities.",
                lambda reference, preference, policy: (
                    2 * reference * preference.mean(1) * (policy / reference).log()
                ).sum(),
            ),
            Mistake(
                "reference's log-probability forgotten",
                "This is the mean log-probability of the chosen; the drift counts from the reference's own.",
                lambda reference, preference, policy: (
                    2 * reference * (preference @ reference) * policy.log()
                ).sum(),
            ),
            Mistake(
                "logarithm missing",
                "This averages the ratio; the drift is the mean of its logarithm.",
                lambda reference, preference, policy: (
                    2 * reference * (preference @ reference) * (policy / reference)
                ).sum(),
                (
                    lambda reference, preference, policy: (
                        (2 * reference * (preference @ reference) * (policy / reference)).sum().log()
                    ),
                ),
            ),
            Mistake(
                "win rates alone",
                "These weights are win rates: a response must also be drawn, so multiply by twice its reference "
                "probability.",
                lambda reference, preference, policy: (
                    (preference @ reference) * (policy / reference).log()
                ).sum(),
            ),
            Mistake(
                "sum missing",
                "This is one number per response: sum them.",
                lambda reference, preference, policy: (
                    2 * reference * (preference @ reference) * (policy / reference).log()
                ),
            ),
        ),
    ),
    Exercise(
        id="05.4",
        title="The loss at which a ranking turns",
        truth=ranking_threshold,
        cases=_threshold_cases,
        explain="Where the reference ranks a pair right, the threshold is above log 2, the loss before training.",
        also_right=(
            lambda ref_chosen, ref_rejected, beta: -logsigmoid(beta * (ref_rejected - ref_chosen)),
            lambda ref_chosen, ref_rejected, beta: torch.log1p((beta * (ref_chosen - ref_rejected)).exp()),
        ),
        mistakes=(
            Mistake(
                "sign of c",
                "The sign of c is turned: it is large where the reference prefers the *rejected* response, and then the "
                "loss must fall far.",
                lambda ref_chosen, ref_rejected, beta: softplus(beta * (ref_rejected - ref_chosen)),
            ),
            Mistake(
                "beta missing",
                "Beta is missing: the margin at which the ranking turns is beta c.",
                lambda ref_chosen, ref_rejected, beta: softplus(ref_chosen - ref_rejected),
            ),
            Mistake(
                "logs divided",
                "This divides one log-probability by the other: the logarithm of a ratio is a difference of logs.",
                lambda ref_chosen, ref_rejected, beta: softplus(-beta * ref_rejected / ref_chosen),
                (lambda ref_chosen, ref_rejected, beta: softplus(-beta * ref_chosen / ref_rejected),),
            ),
            Mistake(
                "logarithm missing",
                "This is sigma(beta c), a probability: the loss there is minus its logarithm.",
                lambda ref_chosen, ref_rejected, beta: torch.sigmoid(beta * (ref_rejected - ref_chosen)),
            ),
            Mistake(
                "minus missing",
                "This is negative, and a loss is not: put a minus in front of the logarithm.",
                lambda ref_chosen, ref_rejected, beta: logsigmoid(beta * (ref_rejected - ref_chosen)),
            ),
            Mistake(
                "margin instead of loss",
                "This is the margin beta c at which the ranking turns; asked for is DPO's loss there.",
                lambda ref_chosen, ref_rejected, beta: beta * (ref_rejected - ref_chosen),
            ),
            Mistake(
                "beta outside",
                "Beta stands in front of the loss here; it belongs inside the sigmoid.",
                lambda ref_chosen, ref_rejected, beta: beta * softplus(ref_chosen - ref_rejected),
            ),
            Mistake(
                "log 2 for every pair",
                "This is log 2, DPO's loss before training, whatever the pair. Below it the margin is positive; "
                "whether the ranking is right depends on the reference.",
                lambda ref_chosen, ref_rejected, beta: torch.full_like(ref_chosen, math.log(2)),
            ),
            Mistake(
                "mean over pairs",
                "This is one number for all pairs: every pair has a threshold of its own.",
                lambda ref_chosen, ref_rejected, beta: ranking_threshold(
                    ref_chosen, ref_rejected, beta
                ).mean(),
            ),
        ),
    ),
)
