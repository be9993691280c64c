"""Population losses: the exact expectation of an objective in a finite world.

An objective returns one loss per example. Here the examples are not sampled: every possible one is listed
with its probability, and the losses are summed with these weights. What a loss is fed is read off the names
of its parameters:

    policy, policy_*     log-probabilities of the policy
    ref, ref_*, prior    log-probabilities of the reference
    proposal             log-probabilities of where the responses come from
    reward, reward_*     rewards of the world
    len_*                lengths: every response is one token long
    preferred            whether the response was preferred

with `chosen` and `rejected` for a judged pair, `1` and `2` for a pair that nobody judged. An objective that
has rewards and no policy, such as Bradley–Terry, scores the table itself: its rewards are `log_policy`.

The examples depend on the kind of feedback. Pairs: two independent responses of the proposal and the judge's
label. Unpaired: p+ and p-, class by class. Group: all tuples of K responses of the proposal. Chosen only: p+.
On-policy: the policy's own responses. `minimisers` finds where these losses are least.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.feedback import require_both_classes
from course_utils.worlds.tables import as_log_probabilities

if TYPE_CHECKING:
    from course_utils.worlds.finite import FiniteWorld

MAX_EXAMPLES = 2_000_000


def population_loss(world: FiniteWorld, objective: Any, log_policy: Any, **settings: Any) -> Tensor:
    """The exact expected loss, a scalar, differentiable in log_policy [X, Y].

    Settings that `expectation` knows choose the examples; the others go to the loss.
    """
    losses = expectation(world, objective, **settings)
    table = as_log_probabilities(log_policy, world.shape)
    if _has_policy(losses.objective):
        _require_normalised(table)
    return world.prompt_weights @ losses(table)


def expectation(
    world: FiniteWorld,
    objective: Any,
    *,
    reference: Any = None,
    proposal: Any = None,
    opponent: Any = None,
    preferred: Any = None,
    rejected: Any = None,
    reduction: str | None = None,
    fraction: float | None = None,
    reward: Any = None,
    group_size: int = 2,
    **settings: Any,
) -> Expectation:
    """List the examples of an objective in a world.

    - `reference`: what the loss sees as the reference (the world's, unless given); it need not be where the
      data come from.
    - `proposal`, `opponent`: where responses come from (the world's reference, unless given).
    - `preferred`, `rejected`: other distributions in place of p+ and p-.
    - `reduction`: "classwise", the sum of two class means, or "pooled", one mean in which `fraction` of the
      examples are preferred.
    - `reward`: another reward than the world's, such as a proxy.  `group_size`: K of a group.
    """
    objective = resolved(objective)
    source = world.probabilities(proposal)
    against = source if opponent is None else world.probabilities(opponent)
    slots = _slots(objective)
    kind = objective.feedback
    weighted_classes = (1.0, 1.0)
    if kind in ("unpaired", "chosen only"):
        require_both_classes(preferred, rejected, "population_loss(preferred=..., rejected=...)")
        own_data = proposal is None and opponent is None and preferred is None
        if preferred is None:
            preferred = world.preferred_distribution(proposal, opponent)
            rejected = world.rejected_distribution(proposal, opponent)
        chosen, others = world.probabilities(preferred), world.probabilities(rejected)
        if fraction is None:
            fraction = (own_data and world.preferred_fraction) or 0.5
        weighted_classes = _class_weights(reduction or getattr(objective, "reduction", "classwise"), fraction)
    if kind == "unpaired":
        examples = _single([chosen * weighted_classes[0], others * weighted_classes[1]])
    elif kind == "chosen only":
        examples = _single([chosen], slot="chosen")
    elif kind == "on-policy":
        examples = _single([torch.ones_like(source)])
    elif kind == "group":
        examples = _groups(source, group_size)
    elif kind in ("paired", "reference-free pair", "reward pair", "scored pair"):
        examples = _pairs(source, against, world.preference, judged="1" not in slots)
    else:
        raise _cannot(objective, f"its feedback is {kind!r}")
    needs_reward = any(name.startswith("reward") for name in _inputs(objective)) and _has_policy(objective)
    tables = {
        "ref": world.probabilities(reference).log(),
        "proposal": source.log(),
        "len": torch.ones_like(source),
        "reward": _reward(world, reward) if needs_reward else None,
    }
    tables["prior"] = tables["ref"]
    return Expectation(objective, settings, examples, tables, on_policy=kind == "on-policy")


@dataclass(frozen=True, eq=False)
class Examples:
    """Every possible example: prompt [N], responses by slot ([N] or [N, K]), probability, class."""

    prompt: Tensor
    responses: dict[str, Tensor]
    weight: Tensor
    preferred: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Expectation:
    """An objective with all its examples: called with log_policy [X, Y], the expected loss per prompt [X]."""

    objective: Any
    settings: dict[str, Any]
    examples: Examples
    tables: dict[str, Tensor | None]
    on_policy: bool

    def __call__(self, log_policy: Tensor) -> Tensor:
        examples = self.examples
        inputs = {name: self._column(name, log_policy) for name in _inputs(self.objective)}
        losses = self.objective.loss(**inputs, **self.settings)
        weight = examples.weight
        if self.on_policy:
            # A score-function surrogate has the right gradient when the sampling distribution is held fixed.
            weight = weight * log_policy.detach().exp()[examples.prompt, examples.responses[""]]
        return torch.zeros(len(log_policy), dtype=losses.dtype).index_add(0, examples.prompt, losses * weight)

    def _column(self, name: str, log_policy: Tensor) -> Tensor:
        """The column that a parameter of the loss names: a table, looked up at the responses of one slot."""
        if name == "preferred":
            return self.examples.preferred
        source, _, slot = name.partition("_")
        trained = source == "policy" or (source == "reward" and not _has_policy(self.objective))
        table = log_policy if trained else self.tables.get(source)
        if table is None or slot not in self.examples.responses:
            raise _cannot(self.objective, f"its parameter {name!r} is not a column of a finite world")
        response = self.examples.responses[slot]
        return table[self.examples.prompt.reshape(-1, *[1] * (response.dim() - 1)), response]


def _single(classes: list[Tensor], slot: str = "") -> Examples:
    """One response at a time, from one or two weighted classes [X, Y]; responses without weight are left
    out.
    """
    weight = torch.stack(classes)
    label, prompt, response = (weight > 0).nonzero(as_tuple=True)
    return Examples(prompt, {slot: response}, weight[label, prompt, response], preferred=label == 0)


def _pairs(first: Tensor, second: Tensor, preference: Tensor, judged: bool) -> Examples:
    """All pairs: (chosen, rejected) with the judge's probability, or (1, 2) as drawn when nobody judged."""
    drawn = first.unsqueeze(-1) * second.unsqueeze(-2)
    weight = drawn
    if judged:
        # (a chosen, b rejected) arises as first and second with a preferred, or the other way round.
        weight = (drawn + drawn.transpose(-1, -2)) * preference
    _require_size(weight.numel(), "pairs")
    prompt, a, b = (weight > 0).nonzero(as_tuple=True)
    names = ("chosen", "rejected") if judged else ("1", "2")
    return Examples(prompt, {names[0]: a, names[1]: b}, weight[prompt, a, b])


def _groups(source: Tensor, size: int) -> Examples:
    """All tuples of `size` independent responses."""
    prompts, responses = source.shape
    _require_size(prompts * responses**size * size, f"groups of {size} responses")
    tuples = torch.cartesian_prod(*[torch.arange(responses)] * size).reshape(-1, size)
    prompt = torch.arange(prompts).repeat_interleave(len(tuples))
    members = tuples.repeat(prompts, 1)
    weight = source[prompt.unsqueeze(-1), members].prod(dim=-1)
    kept = weight > 0
    return Examples(prompt[kept], {"": members[kept]}, weight[kept])


def _class_weights(reduction: str, fraction: float) -> tuple[float, float]:
    if reduction == "classwise":
        return 1.0, 1.0
    if reduction == "pooled" and 0.0 < fraction < 1.0:
        return fraction, 1.0 - fraction
    raise CourseError(
        "setting-out-of-range",
        f"reduction = {reduction!r} with fraction = {fraction} is not a way to average two classes.",
        where="population_loss(reduction=..., fraction=...)",
        remedy='use "classwise", or "pooled" with the fraction of preferred examples, between 0 and 1.',
    )


def resolved(objective: Any) -> Any:
    """The objective of that name in the registry, or the objective itself."""
    if not isinstance(objective, str):
        return objective
    from course_utils import objectives

    return objectives.get(objective)


def _inputs(objective: Any) -> tuple[str, ...]:
    parameters = inspect.signature(objective.loss).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty)


def _slots(objective: Any) -> set[str]:
    return {name.partition("_")[2] for name in _inputs(objective)}


def _has_policy(objective: Any) -> bool:
    return any(name.partition("_")[0] == "policy" for name in _inputs(objective))


def _reward(world: FiniteWorld, reward: Any) -> Tensor:
    from course_utils.worlds.validation import checked_reward

    return world.required_reward() if reward is None else checked_reward(reward, world.shape)


def _require_normalised(table: Tensor) -> None:
    error = (table.detach().exp().sum(dim=-1) - 1).abs().max().item()
    # Loose on purpose: a numerical derivative moves one entry a little and must still be allowed.
    if not error <= 1e-3:
        raise CourseError(
            "policy-not-a-distribution",
            f"the rows of log_policy are not log-probabilities (their sums are off by {error:.3g}).",
            where="population_loss(objective, log_policy)",
            remedy="pass torch.log_softmax(logits, dim=-1), or the log of a table of probabilities.",
        )


def _require_size(examples: int, what: str) -> None:
    if examples > MAX_EXAMPLES:
        raise CourseError(
            "population-too-large",
            f"listing all {what} takes {examples:,} numbers; the limit is {MAX_EXAMPLES:,}.",
            where="population_loss",
            remedy="use a smaller world or a smaller group, or estimate the loss from a draw (draw_groups).",
        )


def _cannot(objective: Any, why: str) -> CourseError:
    return CourseError(
        "population-feedback",
        f"{getattr(objective, 'name', objective)!r} has no population loss: {why}.",
        where="population_loss",
        remedy="use an objective of pairs, unpaired or chosen responses, groups, or on-policy samples.",
    )
