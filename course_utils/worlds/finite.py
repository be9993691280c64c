"""The finite world: a few prompts, a few responses, and everything known in float64.

A `FiniteWorld` holds the reference p_ref(y|x), a judge P(a preferred to b | x) and, where there is one, a
reward. From these it computes win rates, the preferred and rejected distributions p+ and p-, every optimum
(in `finite_optima`) and the exact expected loss of any objective with its minimiser (in `population`).
Nothing here is estimated.

Tables are [X, Y]: one row per prompt. A world of one prompt may be given as [Y] (and [Y, Y] for the judge)
and becomes X = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from course_utils import preferences
from course_utils.errors import CourseError
from course_utils.worlds import finite_optima, minimisers, population
from course_utils.worlds.tables import as_probabilities, entropy, kl, total_variation
from course_utils.worlds.validation import (
    checked_mixture,
    checked_names,
    checked_preference,
    checked_reward,
    checked_rows,
    checked_weights,
    require_mixture_fraction,
)

Table = Tensor | Sequence[Any]
JudgeName = Literal["bradley_terry", "cyclic", "random", "mixed"]


@dataclass(frozen=True, eq=False, repr=False)
class FiniteWorld:
    """A world whose truth is a table.

    `preferred`, `rejected` and `preferred_fraction` are filled only in a world made by `from_mixture`, where
    thumbs come straight from p+ and p- and p_ref = t p+ + (1 - t) p-. Otherwise p+ and p- are those of on-
    policy pairs.
    """

    reference: Tensor
    preference: Tensor
    reward: Tensor | None = None
    prompt_weights: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    responses: tuple[str, ...] | None = None
    preferred: Tensor | None = None
    rejected: Tensor | None = None
    preferred_fraction: float | None = None

    def __post_init__(self) -> None:
        reference = checked_rows(self.reference, "reference", positive=True)
        shape = tuple(reference.shape)
        checked = {
            "reference": reference,
            "preference": checked_preference(self.preference, shape),
            "reward": None if self.reward is None else checked_reward(self.reward, shape),
            "prompt_weights": checked_weights(self.prompt_weights, shape[0]),
            "prompts": checked_names(self.prompts, shape[0], "prompts", "x"),
            "responses": checked_names(self.responses, shape[1], "responses", "y"),
        }
        if self.preferred is not None or self.rejected is not None or self.preferred_fraction is not None:
            checked |= checked_mixture(reference, self.preferred, self.rejected, self.preferred_fraction)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # -------------------- making worlds

    @classmethod
    def from_rewards(cls, reference: Table, reward: Table, **settings: Any) -> FiniteWorld:
        """A Bradley–Terry world: P(a preferred to b) = sigmoid(reward[a] - reward[b])."""
        reference = checked_rows(reference, "reference", positive=True)
        reward = checked_reward(reward, tuple(reference.shape))
        return cls(reference, preferences.bradley_terry(reward), reward, **settings)

    @classmethod
    def from_mixture(cls, preferred: Table, rejected: Table, t: float, **settings: Any) -> FiniteWorld:
        """A world whose reference is the mixture t p+ + (1 - t) p-, and whose thumbs come from p+ and p-.

        Its judge answers the question that such data pose: one of two responses came from p+ and the other
        from p-; which is which? That judge is Bradley–Terry with reward log(p+ / p-). A pair drawn from this
        world is two responses of the reference put before it.
        """
        preferred, rejected = checked_rows(preferred, "preferred"), checked_rows(rejected, "rejected")
        if preferred.shape != rejected.shape:
            raise CourseError(
                "world-shape",
                f"preferred is {list(preferred.shape)} and rejected is {list(rejected.shape)}.",
                where="FiniteWorld.from_mixture(preferred, rejected, t)",
                remedy="give both distributions over the same prompts and responses.",
            )
        require_mixture_fraction(t)
        agree = preferred.unsqueeze(-1) * rejected.unsqueeze(-2)
        either = agree + agree.transpose(-1, -2)
        # Two responses that only p+ (or only p-) can produce are never compared; the judge is indifferent.
        judge = torch.where(either > 0, agree / either.clamp(min=torch.finfo(torch.float64).tiny), 0.5)
        reward = preferred.log() - rejected.log()
        return cls(
            t * preferred + (1 - t) * rejected,
            judge,
            reward if bool(torch.isfinite(reward).all()) else None,
            preferred=preferred,
            rejected=rejected,
            preferred_fraction=t,
            **settings,
        )

    @classmethod
    def random(
        cls, prompts: int = 1, responses: int = 5, seed: int = 0, judge: JudgeName = "bradley_terry"
    ) -> FiniteWorld:
        """A random world: a softmax reference, and a judge that is Bradley–Terry, cyclic, arbitrary, or a
        mixed crowd of two.

        Only the Bradley–Terry world has a reward.
        """
        generator = preferences.generator_from(seed)

        def normal() -> Tensor:
            return torch.randn(prompts, responses, generator=generator, dtype=torch.float64)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

        reference = torch.softmax(normal(), dim=-1)
        if judge == "bradley_terry":
            return cls.from_rewards(reference, normal())
        if judge == "cyclic":
            strengths = uniform(0.6, 0.95, prompts).tolist()
            orders = [torch.randperm(responses, generator=generator) for _ in range(prompts)]
            cycles = [preferences.cyclic(responses, strength) for strength in strengths]
            pairs = zip(cycles, orders, strict=True)
            return cls(reference, torch.stack([cycle[order][:, order] for cycle, order in pairs]))
        if judge == "random":
            upper = uniform(0.05, 0.95, prompts, responses, responses).triu(diagonal=1)
            half = 0.5 * torch.eye(responses, dtype=torch.float64)
            lower = (1.0 - upper).transpose(-1, -2).tril(diagonal=-1)
            return cls(reference, upper + lower + half)
        if judge == "mixed":
            share = uniform(0.3, 0.7, 1).item()
            crowd = [preferences.bradley_terry(2.0 * normal()) for _ in range(2)]
            return cls(reference, preferences.mixture_of_judges(crowd, [share, 1.0 - share]))
        raise CourseError(
            "setting-out-of-range",
            f"judge = {judge!r} is not known.",
            where="FiniteWorld.random(judge=...)",
            remedy='use "bradley_terry", "cyclic", "random" or "mixed".',
        )

    # -------------------- protocol

    @property
    def shape(self) -> tuple[int, int]:
        """(number of prompts, number of responses)."""
        return tuple(self.reference.shape)

    def sample_prompts(self, n: int, generator: torch.Generator) -> Tensor:
        """n prompts, drawn with the prompt weights."""
        return preferences.sample_rows(self.prompt_weights.expand(n, -1), generator)

    def sample_responses(self, prompts: Tensor, generator: torch.Generator, proposal: Any = None) -> Tensor:
        """One response to each prompt, from the reference or from the given proposal."""
        return preferences.sample_rows(self.probabilities(proposal)[prompts], generator)

    def preference_probability(self, prompts: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """P(first preferred to second | prompt) for each row."""
        return self.preference[prompts, first, second]

    def reward_of(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """The reward of each response to its prompt."""
        return self.required_reward()[prompts, responses]

    # -------------------- measuring

    def probabilities(self, policy: Any = None) -> Tensor:
        """A policy as a constant table [X, Y]: from a table or an object with `.probabilities()`."""
        return self.reference if policy is None else as_probabilities(policy, self.shape).detach()

    def required_reward(self) -> Tensor:
        """The reward, or an error where the judge has none."""
        if self.reward is None:
            raise CourseError(
                "world-no-reward",
                "this world has a judge but no reward.",
                where="a quantity that is defined by a reward was asked for",
                remedy="make the world with FiniteWorld.from_rewards, or pass reward=... to it.",
            )
        return self.reward

    def win_rate_of_responses(self, opponent: Any = None) -> Tensor:
        """W(y) = P(y preferred to a response of the opponent), [X, Y]; the opponent is the reference
        unless given.
        """
        return torch.einsum("xab,xb->xa", self.preference, self.probabilities(opponent))

    def win_rate(self, policy: Any, opponent: Any = None) -> float:
        """How often a response of the policy is preferred to one of the opponent (the reference unless
        given).
        """
        wins = (self.probabilities(policy) * self.win_rate_of_responses(opponent)).sum(dim=-1)
        return float(self.prompt_weights @ wins)

    def preferred_distribution(self, proposal: Any = None, opponent: Any = None) -> Tensor:
        """p+, the distribution of the chosen response of a comparison.

        Of two responses of one proposal it is 2 q(y) P(y preferred to q): with the reference, 2 p_ref W. In a
        world made from a mixture it is the given p+, unless a proposal asks for on-policy pairs.
        """
        if self.preferred is not None and proposal is None and opponent is None:
            return self.preferred
        first = self.probabilities(proposal)
        second = first if opponent is None else self.probabilities(opponent)
        return first * self.win_rate_of_responses(second) + second * self.win_rate_of_responses(first)

    def rejected_distribution(self, proposal: Any = None, opponent: Any = None) -> Tensor:
        """p-, the distribution of the rejected response of a comparison: 2 q(y) (1 - P(y preferred to q))."""
        if self.rejected is not None and proposal is None and opponent is None:
            return self.rejected
        first = self.probabilities(proposal)
        second = first if opponent is None else self.probabilities(opponent)
        return first * (1 - self.win_rate_of_responses(second)) + second * (
            1 - self.win_rate_of_responses(first)
        )

    def entropy(self, policy: Any = None) -> float:
        """Entropy in nats, averaged over prompts."""
        return float(self.prompt_weights @ entropy(self.probabilities(policy)))

    def kl(self, p: Any, q: Any = None) -> float:
        """KL(p || q) in nats, averaged over prompts; q is the reference unless given."""
        return float(self.prompt_weights @ kl(self.probabilities(p), self.probabilities(q)))

    def total_variation(self, p: Any, q: Any = None) -> float:
        """Half the L1 distance, averaged over prompts; q is the reference unless given."""
        return float(self.prompt_weights @ total_variation(self.probabilities(p), self.probabilities(q)))

    def expected_reward(self, policy: Any = None, reward: Any = None) -> float:
        """E r under the policy (the reference unless given), with the world's reward or another one."""
        table = self.required_reward() if reward is None else checked_reward(reward, self.shape)
        return float(self.prompt_weights @ (self.probabilities(policy) * table).sum(dim=-1))

    # -------------------- optima and population losses

    def rlhf_optimum(self, beta: float, reward: Any = None) -> Tensor:
        """The maximiser of E r - beta KL(policy || p_ref): p_ref exp(r / beta) / Z."""
        table = self.required_reward() if reward is None else checked_reward(reward, self.shape)
        return finite_optima.rlhf_optimum(self.reference, table, beta)

    def best_of_n(self, n: int, reward: Any = None) -> Tensor:
        """The exact distribution of the best of n reference responses. Its KL is
        `world.kl(world.best_of_n(n))`.
        """
        table = self.required_reward() if reward is None else checked_reward(reward, self.shape)
        return finite_optima.best_of_n(self.reference, table, n)

    def nash_policy(self) -> Tensor:
        """The policy that no other policy beats; when there are several, one of them."""
        return finite_optima.nash_policy(self.preference)

    def exploitability(self, policy: Any) -> Tensor:
        """[X]: the best opponent's win rate against the policy, less 1/2. Zero exactly at a Nash policy."""
        return finite_optima.exploitability(self.preference, self.probabilities(policy))

    def population_loss(self, objective: Any, log_policy: Any, **settings: Any) -> Tensor:
        """The exact expected loss of an objective at log_policy [X, Y]; see
        `course_utils.worlds.population`.
        """
        return population.population_loss(self, objective, log_policy, **settings)

    def population_minimiser(self, objective: Any, **settings: Any) -> Tensor:
        """The policy [X, Y] with the smallest expected loss; see `course_utils.worlds.minimisers`."""
        return minimisers.population_minimiser(self, objective, **settings)

    def fit_policy(self, objective: Any, policy: torch.nn.Module, **settings: Any) -> float:
        """Train a policy of a smaller family in place; returns its loss. See
        `course_utils.worlds.minimisers`.
        """
        return minimisers.fit_policy(self, objective, policy, **settings)

    def __repr__(self) -> str:
        prompts, responses = self.shape
        judge = "a judge without a reward" if self.reward is None else "a reward"
        if self.preferred is not None:
            judge = f"p+ and p- given, t = {self.preferred_fraction:g}"
        return f"FiniteWorld({prompts} prompt{'s' * (prompts > 1)}, {responses} responses, {judge})"
