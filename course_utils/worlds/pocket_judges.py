"""The judges of the pocket world: each reads the features of two responses and gives a probability.

A judge is a small frozen object with `preference_probability(first, second)` on tables of features [..., 9]
(see `pocket_features`), so every comparison, win rate and reward in the pocket world is exact.

    bradley_terry   the true judge: right, polite, about two details, not too much flattery, nothing twice
    linear          the same tastes with straight lines only: more is better, or worse, without end
    cyclic          warm beats brief, brief beats thorough, thorough beats warm: no reward can express it
    hurried, chatty two groups of guests with different tastes; `crowd` is the mixture of both
    flattery, length, surface     proxies: rewards that read the surface and can be over-optimised

A judge is data plus one formula, so a lesson can make its own:
`RewardJudge("mine", weighted(correct=1.0, words=-0.05))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.worlds.pocket_features import FEATURE_NAMES, column

STYLES = ("warm", "brief", "thorough")


@dataclass(frozen=True)
class Reward:
    """A reward of features: weights for straight lines, and the three bends of the true judge.

    best_details     with it, details cost `detail_bend` times the squared distance from this number
    free_flattery    adjectives up to this number are free of the weight `excess_flattery`
    hedged_share     what remains of `correct`, for better or worse, when the answer is hedged

    The weight of `grammatical` is what broken text pays; text of the language pays and earns nothing.
    """

    weights: tuple[tuple[str, float], ...]
    best_details: float | None = None
    detail_bend: float = 0.0
    free_flattery: float = 0.0
    excess_flattery: float = 0.0
    hedged_share: float = 1.0

    def __call__(self, features: Tensor) -> Tensor:
        """The reward of each row of features."""
        total = torch.zeros_like(features[..., 0])
        for name, weight in self.weights:
            value = column(features, name)
            if name == "correct":
                value = value * (1 - (1 - self.hedged_share) * column(features, "hedged"))
            if name == "grammatical":
                value = value - 1  # broken text pays; good grammar earns nothing
            total = total + weight * value
        if self.best_details is not None:
            total = total - self.detail_bend * (column(features, "details") - self.best_details) ** 2
        excess = (column(features, "flattery") - self.free_flattery).clamp(min=0)
        return total + self.excess_flattery * excess


def weighted(**weights: float) -> Reward:
    """A linear reward: `weighted(correct=1.0, words=-0.05)`."""
    unknown = sorted(set(weights) - set(FEATURE_NAMES))
    if unknown:
        raise CourseError(
            "pocket-unknown-name",
            f"there is no feature {', '.join(map(repr, unknown))}.",
            where="weighted(feature=weight, ...)",
            remedy=f"use some of {', '.join(FEATURE_NAMES)}.",
        )
    return Reward(tuple(weights.items()))


@dataclass(frozen=True)
class RewardJudge:
    """Bradley–Terry: P(first preferred) = sigmoid(strength (reward(first) - reward(second)))."""

    name: str
    reward: Reward
    strength: float = 1.0

    def reward_of(self, features: Tensor) -> Tensor:
        """The reward on the judge's own scale, so that sigmoid of a difference is the preference."""
        return self.strength * self.reward(features)

    def preference_probability(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.sigmoid(self.reward_of(first) - self.reward_of(second))


@dataclass(frozen=True)
class CyclicJudge:
    """Rock, paper, scissors between styles, plus a Bradley–Terry part on `quality`.

    The log-odds are +strength where the first style beats the second and -strength where it loses, plus the
    difference of quality. A broken text has no style to speak of, so quality also charges for bad grammar.
    """

    name: str = "cyclic"
    strength: float = 2.5
    quality: Reward = field(default_factory=lambda: weighted(correct=1.2, grammatical=3.0))

    def reward_of(self, features: Tensor) -> Tensor:
        raise _no_reward(self.name)

    def preference_probability(self, first: Tensor, second: Tensor) -> Tensor:
        ahead = (style_of(second) - style_of(first)) % 3  # 1: the first beats the second, 2: it loses
        cycle = torch.tensor([0.0, self.strength, -self.strength], dtype=first.dtype)[ahead]
        return torch.sigmoid(cycle + self.quality(first) - self.quality(second))


@dataclass(frozen=True)
class CrowdJudge:
    """Each comparison is judged by a member of one group, drawn with these shares."""

    name: str
    groups: tuple[RewardJudge | CyclicJudge, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        good = len(self.groups) == len(self.shares) > 0 and all(share >= 0 for share in self.shares)
        if not good or abs(sum(self.shares) - 1) > 1e-9:
            raise CourseError(
                "pocket-shares",
                f"{len(self.groups)} groups with shares {self.shares}.",
                where="CrowdJudge(name, groups, shares)",
                remedy="give one share per group, none negative, that sum to one.",
            )

    def reward_of(self, features: Tensor) -> Tensor:
        raise _no_reward(self.name)

    def preference_probability(self, first: Tensor, second: Tensor) -> Tensor:
        judged = [group.preference_probability(first, second) for group in self.groups]
        return sum(share * one for share, one in zip(self.shares, judged, strict=True))


Judge = RewardJudge | CyclicJudge | CrowdJudge


def style_of(features: Tensor) -> Tensor:
    """0 warm (polite, at most one detail), 1 brief (not polite, at most one), 2 thorough (two or more)."""
    warm_or_brief = torch.where(column(features, "tone") > 0, 0, 1)
    return torch.where(column(features, "details") >= 2, 2, warm_or_brief)


TRUE_REWARD = Reward(
    weights=(
        ("correct", 2.0),
        ("tone", 1.2),
        ("sentiment", 0.3),
        ("flattery", 0.4),
        ("repeats", -1.0),
        ("grammatical", 3.0),
    ),
    best_details=2.0,
    detail_bend=0.4,
    free_flattery=1.0,
    excess_flattery=-1.2,
    hedged_share=0.5,
)

LINEAR = weighted(
    correct=1.8,
    tone=1.2,
    details=0.5,
    hedged=-0.4,
    sentiment=0.3,
    flattery=-0.2,
    repeats=-1.0,
    grammatical=3.0,
)
HURRIED = weighted(correct=1.4, details=-1.0, flattery=-1.2, sentiment=-0.4, grammatical=3.0)
CHATTY = weighted(correct=0.5, tone=1.2, details=0.9, flattery=0.9, sentiment=0.7, grammatical=3.0)
SURFACE = weighted(correct=0.6, tone=0.9, details=0.3, flattery=0.8, words=0.04)

JUDGES: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        RewardJudge("bradley_terry", TRUE_REWARD),
        RewardJudge("linear", LINEAR),
        CyclicJudge("cyclic"),
        RewardJudge("hurried", HURRIED),
        RewardJudge("chatty", CHATTY),
        RewardJudge("flattery", weighted(flattery=1.0)),
        RewardJudge("length", weighted(words=0.15)),
        RewardJudge("surface", SURFACE),
    )
}
JUDGES["crowd"] = CrowdJudge("crowd", (JUDGES["hurried"], JUDGES["chatty"]), (0.6, 0.4))


def judge_named(judge: str | Judge) -> Judge:
    """A judge by its name; a judge is passed through."""
    if not isinstance(judge, str):
        return judge
    if judge not in JUDGES:
        raise CourseError(
            "pocket-unknown-name",
            f"there is no judge {judge!r}.",
            where="a judge of the pocket world",
            remedy=f"use one of {', '.join(JUDGES)}, or pass a judge object.",
        )
    return JUDGES[judge]


def crowd(groups: Sequence[str | Judge], shares: Sequence[float], name: str = "crowd") -> CrowdJudge:
    """A mixture of judges, given by name or as objects."""
    return CrowdJudge(name, tuple(judge_named(group) for group in groups), tuple(shares))


def _no_reward(name: str) -> CourseError:
    return CourseError(
        "pocket-no-reward",
        f"the judge {name!r} has no reward: its preferences do not come from a score.",
        where="reward_of",
        remedy="ask for preference_probability or win_rate, or use a Bradley–Terry judge.",
    )
