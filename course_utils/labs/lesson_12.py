"""The checks of lesson 12: one exact round, what a round wins by, the best reply, and a round on a leash."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake


def _policy(seed: int, responses: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(responses, dtype=torch.float64, generator=generator), dim=0)


def _judge(seed: int, responses: int) -> Tensor:
    """Any judge: each pair has a probability of its own, so that no score need describe it."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(responses, responses, dtype=torch.float64, generator=generator).triu(1)
    return upper + (1 - upper).T.tril(-1) + 0.5 * torch.eye(responses, dtype=torch.float64)


def _games() -> Iterator[Case]:
    """Rock, paper, scissors, which can be done by hand, and judges of four and six responses."""
    cycle = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
    yield Case((torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), cycle), "a cycle from (0.5, 0.3, 0.2)")
    yield Case((_policy(1, 4), _judge(2, 4)), "four responses")
    yield Case((_policy(3, 6), _judge(4, 6)), "six responses")


# 12.1


def one_round(policy: Tensor, judge: Tensor) -> Tensor:
    """2 p(y) W(y; p)."""
    return 2 * policy * (judge @ policy)


def _one_round_by_pairs(policy: Tensor, judge: Tensor) -> Tensor:
    both = policy[:, None] * policy[None, :]  # the probability of (first, second)
    return (both * judge).sum(1) + (both * (1 - judge)).sum(0)


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum()


# 12.2


def wins_by(policy: Tensor, judge: Tensor) -> Tensor:
    """The win rate of 2 p W against p: 1/2 + 2 Var(W)."""
    wins = judge @ policy
    return 0.5 + 2 * (policy * (wins - 0.5) ** 2).sum()


def _wins_by_playing(policy: Tensor, judge: Tensor) -> Tensor:
    return one_round(policy, judge) @ judge @ policy


def _variance(policy: Tensor, judge: Tensor) -> Tensor:
    return (policy * (judge @ policy - 0.5) ** 2).sum()


# 12.3


def exploitability(policy: Tensor, judge: Tensor) -> Tensor:
    """max over y of W(y; p), less 1/2."""
    return (judge @ policy).max() - 0.5


def _exploitability_by_loop(policy: Tensor, judge: Tensor) -> float:
    return max(float(row @ policy) for row in judge) - 0.5


# 12.4


def leashed_round(policy: Tensor, judge: Tensor, ref: Tensor, leash: float) -> Tensor:
    """ref^leash (2 p W)^(1 - leash) / Z."""
    return torch.softmax(leash * ref.log() + (1 - leash) * one_round(policy, judge).log(), dim=0)


def _leashed_by_powers(policy: Tensor, judge: Tensor, ref: Tensor, leash: float) -> Tensor:
    return _normalised(ref**leash * (policy * (judge @ policy)) ** (1 - leash))


def _leashed_games() -> Iterator[Case]:
    for number, (case, leash) in enumerate(zip(_games(), (0.5, 0.2, 0.7), strict=True)):
        policy, judge = case.arguments
        yield Case((policy, judge, _policy(20 + number, len(policy)), leash), f"{case.label}, leash {leash}")


EXERCISES = (
    Exercise(
        id="12.1",
        title="One exact round",
        truth=one_round,
        cases=_games,
        explain="It needs no normalisation: the mean win rate of a policy against itself is 1/2.",
        also_right=(_one_round_by_pairs, lambda policy, judge: _normalised(policy * (judge @ policy))),
        mistakes=(
            Mistake(
                "no factor 2",
                "These sum to 1/2. A response is chosen as the first or as the second of the pair, hence the 2.",
                lambda policy, judge: policy * (judge @ policy),
            ),
            Mistake(
                "the rejected",
                "This is p-, the distribution of the rejected responses. W(y) is a row of the judge: y preferred to "
                "the others.",
                lambda policy, judge: 2 * policy * (judge.T @ policy),
                (lambda policy, judge: 2 * policy * (1 - judge @ policy),),
            ),
            Mistake(
                "uniform opponents",
                "The opponents are drawn from the policy, not uniformly: weight the columns of the judge by it.",
                lambda policy, judge: 2 * policy * judge.mean(1),
                (lambda policy, judge: _normalised(policy * judge.mean(1)),),
            ),
            Mistake(
                "the policy forgotten",
                "This is 2 W, the ratio of the new policy to the old. Multiply by the old one.",
                lambda policy, judge: 2 * (judge @ policy),
                (lambda policy, judge: _normalised(judge @ policy),),
            ),
            Mistake(
                "exponential weights",
                "Here the win rate stands in an exponent, as in multiplicative weights. On-policy pairs give a plain "
                "product.",
                lambda policy, judge: _normalised(policy * torch.exp(judge @ policy)),
                (lambda policy, judge: _normalised(policy * torch.exp(2 * (judge @ policy))),),
            ),
            Mistake(
                "the old policy",
                "This is the policy as it was: nothing has been judged yet.",
                lambda policy, judge: policy.clone(),
            ),
        ),
    ),
    Exercise(
        id="12.2",
        title="What a round wins by",
        truth=wins_by,
        cases=_games,
        explain="It is above one half whenever two responses differ in win rate, on a cycle too.",
        also_right=(
            _wins_by_playing,
            lambda policy, judge: 2 * (policy * (judge @ policy) ** 2).sum(),
        ),
        mistakes=(
            Mistake(
                "one variance",
                "The factor is missing: the new policy is 2 p W, so the excess is twice the variance.",
                lambda policy, judge: 0.5 + _variance(policy, judge),
            ),
            Mistake(
                "unweighted variance",
                "Responses count by their probability: the variance is taken under the policy.",
                lambda policy, judge: 0.5 + 2 * (judge @ policy).var(),
                (lambda policy, judge: 0.5 + 2 * (judge @ policy).var(correction=0),),
            ),
            Mistake(
                "standard deviation",
                "This uses the standard deviation of W. E[2 W^2] contains its square.",
                lambda policy, judge: 0.5 + 2 * _variance(policy, judge).sqrt(),
            ),
            Mistake(
                "the excess alone",
                "This is what lies above one half. The win rate is asked for.",
                lambda policy, judge: 2 * _variance(policy, judge),
            ),
            Mistake(
                "the old policy wins",
                "This is the old policy's win rate against the new one: one minus what is asked for.",
                lambda policy, judge: 0.5 - 2 * _variance(policy, judge),
            ),
            Mistake(
                "against itself",
                "This is a policy against itself, which is 1/2 whatever the judge.",
                lambda policy, judge: policy @ judge @ policy,
                (lambda policy, judge: one_round(policy, judge) @ judge @ one_round(policy, judge),),
            ),
        ),
    ),
    Exercise(
        id="12.3",
        title="The best reply",
        truth=exploitability,
        cases=_games,
        explain="Zero exactly at a Nash policy, and it needs no knowledge of which policy that is.",
        also_right=(_exploitability_by_loop, lambda policy, judge: 0.5 - (policy @ judge).min()),
        mistakes=(
            Mistake(
                "the worst reply",
                "This is how little the weakest opponent wins. The strongest one is the danger.",
                lambda policy, judge: (judge @ policy).min() - 0.5,
                (
                    lambda policy, judge: 0.5 - (judge @ policy).min(),
                    lambda policy, judge: (policy @ judge).max() - 0.5,
                ),
            ),
            Mistake(
                "one half forgotten",
                "This is the best opponent's win rate. Take 1/2 off, so that an unbeatable policy has zero.",
                lambda policy, judge: (judge @ policy).max(),
            ),
            Mistake(
                "uniform policy",
                "The opponent plays against this policy: weight the columns by it.",
                lambda policy, judge: judge.mean(1).max() - 0.5,
            ),
            Mistake(
                "the policy replies",
                "This is the policy against itself, always zero. The opponent may choose any response.",
                lambda policy, judge: policy @ judge @ policy - 0.5,
            ),
            Mistake(
                "one fixed response each",
                "This is the largest entry of the judge: the best reply to one response, not to the whole policy.",
                lambda policy, judge: judge.max() - 0.5,
            ),
        ),
    ),
    Exercise(
        id="12.4",
        title="A round on a leash",
        truth=leashed_round,
        cases=_leashed_games,
        explain="With leash 0 it is the plain round, with leash 1 the reference.",
        also_right=(_leashed_by_powers,),
        mistakes=(
            Mistake(
                "leash on the round",
                "A long leash must lead to the reference: the exponent `leash` belongs to it, 1 - leash to the round.",
                lambda policy, judge, ref, leash: leashed_round(policy, judge, ref, 1 - leash),
            ),
            Mistake(
                "not normalised",
                "These do not sum to one: divide by Z, or use `torch.softmax` of the logarithms.",
                lambda policy, judge, ref, leash: ref**leash * one_round(policy, judge) ** (1 - leash),
            ),
            Mistake(
                "probabilities mixed",
                "This mixes the probabilities. Here the logarithms are mixed, and normalised again.",
                lambda policy, judge, ref, leash: leash * ref + (1 - leash) * one_round(policy, judge),
            ),
            Mistake(
                "leashed to the policy",
                "This is damping: it is pulled back to the present policy, which moves away with it. The reference stays.",
                lambda policy, judge, ref, leash: leashed_round(policy, judge, policy, leash),
            ),
            Mistake(
                "no round",
                "This mixes the reference and the old policy; the judge is never asked.",
                lambda policy, judge, ref, leash: _normalised(ref**leash * policy ** (1 - leash)),
            ),
            Mistake(
                "the reference as proposal",
                "The pairs come from the present policy; here both responses are the reference's.",
                lambda policy, judge, ref, leash: leashed_round(ref, judge, ref, leash),
            ),
        ),
    ),
)
