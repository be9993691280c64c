"""Preferences: who judges, and what a comparison leaves behind.

A judge is a matrix P with P[a, b] = P(a preferred to b), so P + P^T = 1 and the diagonal is 1/2.
Bradley–Terry judges come from a score; cyclic judges have none; a mixed crowd averages judges that disagree.
Because every operation below is elementwise, it also works on the probabilities that a judging function
returned for a list of comparisons.

Feedback comes in four containers: `Pairs`, `Unpaired`, `Groups` and `SoftPairs`. Their columns are tensors in
a finite world and lists of strings where responses are texts. `draw_pairs`, `draw_unpaired`, `draw_groups`
and `draw_soft_pairs` ask any world that follows the protocol `World`; the same seed gives the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.feedback import (
    Column,
    Groups,
    Pairs,
    Seed,
    SoftPairs,
    Unpaired,
    choose,
    generator_from,
    join,
    require_both_classes,
    require_fraction,
    require_positive,
    sample_rows,
    take_rows,
)

__all__ = [
    "Column",
    "Groups",
    "Pairs",
    "Population",
    "Seed",
    "SoftPairs",
    "Unpaired",
    "World",
    "as_function",
    "bradley_terry",
    "bradley_terry_probability",
    "choose",
    "cyclic",
    "draw_groups",
    "draw_pairs",
    "draw_population_pairs",
    "draw_soft_pairs",
    "draw_unpaired",
    "generator_from",
    "join",
    "mixture_of_judges",
    "sample_rows",
    "take_rows",
    "with_label_noise",
]


# -------------------- judges


def bradley_terry(reward: Tensor | Sequence[float]) -> Tensor:
    """P(a preferred to b) = sigmoid(reward[a] - reward[b]): rewards [..., Y] become a judge [..., Y, Y]."""
    reward = torch.as_tensor(reward, dtype=torch.float64)
    return bradley_terry_probability(reward.unsqueeze(-1), reward.unsqueeze(-2))


def bradley_terry_probability(reward_first: Tensor, reward_second: Tensor) -> Tensor:
    """The same judge as a function of the two rewards of each comparison."""
    return torch.sigmoid(reward_first - reward_second)


def cyclic(n: int = 3, strength: float = 0.9) -> Tensor:
    """A cycle of n responses: each beats the next with probability `strength`. No score can express it.

    With n = 3 it is rock, paper, scissors. In general response i beats the next (n - 1) // 2 around the
    circle and loses to as many behind it; with an even n the response opposite is a tie.
    """
    if n < 3:
        raise CourseError(
            "setting-out-of-range",
            f"a cycle needs at least 3 responses, not {n}.",
            where="cyclic(n, strength)",
            remedy="use n = 3 for rock, paper, scissors.",
        )
    require_fraction(strength, "strength", "cyclic(n, strength)")
    index = torch.arange(n)
    ahead = (index.unsqueeze(0) - index.unsqueeze(1)) % n
    preference = torch.full((n, n), 0.5, dtype=torch.float64)
    preference[(ahead >= 1) & (ahead <= (n - 1) // 2)] = strength
    preference[ahead > n // 2] = 1.0 - strength
    return preference


def mixture_of_judges(judges: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """A mixed crowd: each comparison goes to one judge, drawn with these weights (equal when not given)."""
    if not judges:
        raise CourseError(
            "setting-out-of-range", "a crowd needs at least one judge.", where="mixture_of_judges"
        )
    stacked = torch.stack([torch.as_tensor(judge, dtype=torch.float64) for judge in judges])
    mixing = _mixing_weights(weights, len(judges), "mixture_of_judges(judges, weights)")
    return torch.tensordot(mixing, stacked, dims=1)


def with_label_noise(preference: Tensor, rate: float) -> Tensor:
    """The judge after each label is flipped with probability `rate`: (1 - rate) P + rate (1 - P)."""
    require_fraction(rate, "rate", "with_label_noise(preference, rate)")
    preference = torch.as_tensor(preference, dtype=torch.float64)
    return (1.0 - rate) * preference + rate * (1.0 - preference)


def as_function(preference: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A judge's matrix [X, Y, Y] (or [Y, Y] for every prompt) as a function of (prompts, first, second)."""

    def judge(prompts: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return preference[first, second] if preference.dim() == 2 else preference[prompts, first, second]

    return judge


# -------------------- worlds


@runtime_checkable
class World(Protocol):
    """What a world must answer so that feedback can be drawn from it.

    Prompts and responses are LongTensors in a finite world and lists of strings in a world of texts.
    `proposal` is whatever the world can sample from in place of its reference: a policy, or a table of
    probabilities.
    """

    def sample_prompts(self, n: int, generator: torch.Generator) -> Column: ...

    def sample_responses(
        self, prompts: Column, generator: torch.Generator, proposal: Any = None
    ) -> Column: ...

    def preference_probability(self, prompts: Column, first: Column, second: Column) -> Tensor: ...

    def reward_of(self, prompts: Column, responses: Column) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Population:
    """Groups of annotators who disagree, and their shares.

    A group is a world: all have the same prompts and responses, and each its own judge.
    """

    worlds: tuple[World, ...]
    weights: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        weights = _mixing_weights(self.weights, len(self.worlds), "Population(worlds, weights)")
        names = self.names or tuple(f"group {i}" for i in range(len(self.worlds)))
        if len(names) != len(self.worlds):
            raise CourseError(
                "feedback-lengths",
                f"{len(self.worlds)} groups but {len(names)} names.",
                where="Population(worlds, weights, names)",
                remedy="give one name per group, or none.",
            )
        object.__setattr__(self, "worlds", tuple(self.worlds))
        object.__setattr__(self, "weights", tuple(weights.tolist()))
        object.__setattr__(self, "names", tuple(names))

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{name} {weight:.0%}" for name, weight in zip(self.names, self.weights, strict=True)
        )
        return f"Population({shares})"

    def preference_probability(self, prompts: Column, first: Column, second: Column) -> Tensor:
        """What the crowd as a whole prefers: the groups' probabilities, averaged by their shares."""
        judgements = [world.preference_probability(prompts, first, second) for world in self.worlds]
        return mixture_of_judges(judgements, self.weights)


# -------------------- draws


def draw_pairs(world: World, n: int, seed: Seed, proposal: Any = None, opponent: Any = None) -> Pairs:
    """n comparisons: two independent responses (from the reference, or the given proposal), and the judge
    picks one.

    `opponent` draws the second response from elsewhere; without it both come from the same place.
    """
    generator = generator_from(seed)
    prompts, first, second = _draw_two(world, n, generator, proposal, opponent)
    chosen, rejected = _judged(world.preference_probability(prompts, first, second), first, second, generator)
    return Pairs(prompts, chosen, rejected)


def draw_soft_pairs(
    world: World, n: int, seed: Seed, proposal: Any = None, opponent: Any = None
) -> SoftPairs:
    """n comparisons that keep the judge's probability in place of a label."""
    prompts, first, second = _draw_two(world, n, generator_from(seed), proposal, opponent)
    return SoftPairs(prompts, first, second, world.preference_probability(prompts, first, second))


def draw_unpaired(
    world: World,
    n: int,
    seed: Seed,
    proposal: Any = None,
    *,
    fraction: float | None = None,
    preferred: Any = None,
    rejected: Any = None,
) -> Unpaired:
    """n responses with thumbs, in random order. Where they come from:

    - by default, n / 2 comparisons of two responses (as `draw_pairs` draws them), split into preferred and
      rejected;
    - with `fraction`, that share of the rows is preferred: each row is one side of a comparison of its own;
    - with `preferred` and `rejected` (two distributions, p+ and p-), the rows are drawn from these. A world
      that was made from a mixture does so by itself, and its own fraction is used when none is given.

    The number of preferred rows is round(fraction * n), not random.
    """
    require_positive(n, "n", "draw_unpaired(world, n, seed)")
    generator = generator_from(seed)
    if preferred is None and rejected is None and proposal is None:
        preferred, rejected = getattr(world, "preferred", None), getattr(world, "rejected", None)
        if preferred is not None and fraction is None:
            fraction = getattr(world, "preferred_fraction", None)
    require_both_classes(preferred, rejected, "draw_unpaired(world, n, seed)")
    if preferred is None and fraction is None:
        pairs = draw_pairs(world, (n + 1) // 2, generator, proposal)
        return pairs.unpaired().take(torch.randperm(2 * len(pairs), generator=generator)[:n])
    fraction = 0.5 if fraction is None else fraction
    require_fraction(fraction, "fraction", "draw_unpaired(world, n, seed)")
    labels = torch.arange(n) < round(fraction * n)
    if preferred is None:
        pairs = draw_pairs(world, n, generator, proposal)
        prompts, chosen, others = pairs.prompt, pairs.chosen, pairs.rejected
    else:
        prompts = world.sample_prompts(n, generator)
        chosen = world.sample_responses(prompts, generator, preferred)
        others = world.sample_responses(prompts, generator, rejected)
    return Unpaired(prompts, choose(labels, chosen, others), labels).shuffled(generator)


def draw_groups(world: World, n: int, size: int, seed: Seed, proposal: Any = None) -> Groups:
    """n prompts with `size` independent responses each, and the world's reward for every response."""
    require_positive(n, "n", "draw_groups(world, n, size, seed)")
    require_positive(size, "size", "draw_groups(world, n, size, seed)")
    generator = generator_from(seed)
    prompts = world.sample_prompts(n, generator)
    drawn = [world.sample_responses(prompts, generator, proposal) for _ in range(size)]
    reward = torch.stack([world.reward_of(prompts, responses) for responses in drawn], dim=1)
    if isinstance(drawn[0], Tensor):
        return Groups(prompts, torch.stack(drawn, dim=1), reward)
    return Groups(prompts, [list(row) for row in zip(*drawn, strict=True)], reward)


def draw_population_pairs(
    population: Population, n: int, seed: Seed, proposal: Any = None, annotators: int | None = None
) -> Pairs:
    """n comparisons judged by members of a population, with the annotator and the annotator's group on
    record.

    With `annotators`, so many people are assigned to groups once and then share the comparisons; without it
    every comparison has an annotator of its own.
    """
    require_positive(n, "n", "draw_population_pairs(population, n, seed)")
    generator = generator_from(seed)
    people = n if annotators is None else annotators
    require_positive(people, "annotators", "draw_population_pairs(population, n, seed)")
    shares = torch.tensor(population.weights, dtype=torch.float64)
    group_of = sample_rows(shares.expand(people, -1), generator)
    annotator = torch.arange(n)
    if annotators is not None:
        annotator = torch.randint(people, (n,), generator=generator)
    group = group_of[annotator]
    prompts, first, second = _draw_two(population.worlds[0], n, generator, proposal, None)
    by_group = torch.stack(
        [world.preference_probability(prompts, first, second) for world in population.worlds]
    )
    probability = by_group.gather(0, group.unsqueeze(0)).squeeze(0)
    chosen, rejected = _judged(probability, first, second, generator)
    return Pairs(prompts, chosen, rejected, annotator, group)


def _draw_two(
    world: World, n: int, generator: torch.Generator, proposal: Any, opponent: Any
) -> tuple[Column, Column, Column]:
    require_positive(n, "n", "drawing pairs")
    prompts = world.sample_prompts(n, generator)
    first = world.sample_responses(prompts, generator, proposal)
    second = world.sample_responses(prompts, generator, proposal if opponent is None else opponent)
    return prompts, first, second


def _judged(
    probability: Tensor, first: Column, second: Column, generator: torch.Generator
) -> tuple[Column, Column]:
    first_wins = torch.rand(len(probability), generator=generator, dtype=torch.float64) < probability
    return choose(first_wins, first, second), choose(first_wins, second, first)


def _mixing_weights(weights: Sequence[float] | None, count: int, where: str) -> Tensor:
    mixing = torch.full((count,), 1.0 / max(count, 1), dtype=torch.float64)
    if weights is not None:
        mixing = torch.as_tensor(weights, dtype=torch.float64)
    good = (
        len(mixing) == count
        and count > 0
        and bool((mixing >= 0).all())
        and abs(mixing.sum().item() - 1) < 1e-6
    )
    if not good:
        raise CourseError(
            "setting-out-of-range",
            f"{count} judges or groups need as many weights >= 0 that sum to one, not {mixing.tolist()}.",
            where=where,
            remedy="divide the weights by their sum, and give one per judge or group.",
        )
    return mixing
