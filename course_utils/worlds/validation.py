"""What a finite world accepts: each check returns the value in float64, made exact, or refuses it with a
reason.

Rows that sum to one within 1e-6 (float32 input, typed decimals) are rescaled, so that every identity
afterwards holds to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.worlds.tables import as_table

TOLERANCE = 1e-6


def checked_rows(values: Any, name: str, positive: bool = False) -> Tensor:
    """Distributions over responses, [X, Y]."""
    table = _finite(as_table(values).detach(), name)
    if table.dim() == 1:
        table = table.unsqueeze(0)
    if table.dim() != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise CourseError(
            "world-shape",
            f"{name} has shape {list(table.shape)}.",
            where="FiniteWorld",
            remedy="give a table [X, Y] (or [Y] for one prompt) with at least two responses.",
        )
    if bool((table < 0).any()) or (positive and bool((table <= 0).any())):
        x, y = divmod(int(table.argmin()), table.shape[1])
        bound = "positive" if positive else "at least zero"
        raise CourseError(
            "world-support",
            f"{name}[{x}, {y}] = {table[x, y].item():g}; every probability must be {bound}.",
            where="FiniteWorld",
            remedy="give every response some probability: a ratio to a reference of zero is not defined.",
        )
    sums = table.sum(dim=-1, keepdim=True)
    worst = int((sums - 1).abs().argmax())
    if abs(sums[worst].item() - 1) > TOLERANCE:
        raise CourseError(
            "world-row-sums",
            f"row {worst} of {name} sums to {sums[worst].item():.6f}, not to 1.",
            where="FiniteWorld",
            remedy="divide each row by its sum, or pass logits through torch.softmax(logits, dim=-1) first.",
        )
    return table / sums


def checked_preference(values: Any, shape: tuple[int, int]) -> Tensor:
    """A judge [X, Y, Y]: probabilities with P + P^T = 1 (so 1/2 on the diagonal)."""
    prompts, responses = shape
    judge = _finite(as_table(values).detach(), "preference")
    if judge.dim() == 2:
        # One judge for all prompts is the common case; expand keeps it a single table in memory.
        judge = judge.unsqueeze(0).expand(prompts, -1, -1)
    if tuple(judge.shape) != (prompts, responses, responses):
        raise CourseError(
            "world-shape",
            f"preference has shape {list(judge.shape)} but the reference is {list(shape)}.",
            where="FiniteWorld",
            remedy=f"give {[prompts, responses, responses]}, or [{responses}, {responses}] for one judge.",
        )
    if bool(((judge < 0) | (judge > 1)).any()):
        raise CourseError(
            "world-preference-range",
            f"preference has entries from {judge.min().item():.3g} to {judge.max().item():.3g}.",
            where="FiniteWorld",
            remedy="entries are probabilities; for scores use preferences.bradley_terry(reward).",
        )
    gap = (judge + judge.transpose(-1, -2) - 1).abs()
    if gap.max().item() > TOLERANCE:
        x, rest = divmod(int(gap.argmax()), responses * responses)
        a, b = divmod(rest, responses)
        raise CourseError(
            "world-preference-asymmetric",
            f"P[{a}, {b}] + P[{b}, {a}] is off from 1 by {gap[x, a, b].item():.6f} for prompt {x}.",
            where="FiniteWorld",
            remedy="fill the matrix so that P[b, a] = 1 - P[a, b], with 0.5 on the diagonal.",
        )
    return 0.5 * (judge + 1 - judge.transpose(-1, -2))


def checked_reward(values: Any, shape: tuple[int, int]) -> Tensor:
    """Rewards [X, Y]."""
    reward = _finite(as_table(values).detach(), "reward")
    if reward.dim() == 1:
        reward = reward.unsqueeze(0)
    if tuple(reward.shape) == (1, shape[1]):
        reward = reward.expand(shape)
    if tuple(reward.shape) != tuple(shape):
        raise CourseError(
            "world-shape",
            f"reward has shape {list(reward.shape)} but the reference is {list(shape)}.",
            where="FiniteWorld",
            remedy=f"give one reward per prompt and response: {list(shape)}.",
        )
    return reward


def checked_weights(values: Any, prompts: int) -> Tensor:
    """Weights of the prompts [X]; uniform when not given."""
    if values is None:
        return torch.full((prompts,), 1.0 / prompts, dtype=torch.float64)
    weights = _finite(as_table(values).detach(), "prompt_weights")
    if tuple(weights.shape) != (prompts,):
        raise CourseError(
            "world-shape",
            f"prompt_weights has shape {list(weights.shape)} but there are {prompts} prompts.",
            where="FiniteWorld",
            remedy="give one weight per prompt.",
        )
    if bool((weights <= 0).any()) or abs(weights.sum().item() - 1) > TOLERANCE:
        raise CourseError(
            "world-row-sums",
            f"prompt_weights {weights.tolist()} are not positive numbers that sum to 1.",
            where="FiniteWorld",
            remedy="divide the weights by their sum, and leave out prompts of weight zero.",
        )
    return weights / weights.sum()


def checked_names(names: Any, count: int, field: str, letter: str) -> tuple[str, ...]:
    """Display names; x0, x1, ... or y0, y1, ... when not given."""
    names = (
        tuple(f"{letter}{i}" for i in range(count)) if names is None else tuple(str(name) for name in names)
    )
    if len(names) != count:
        raise CourseError(
            "world-shape",
            f"{len(names)} names for {count} {field}.",
            where=f"FiniteWorld({field}=...)",
            remedy="give one name each, or none.",
        )
    return names


def require_mixture_fraction(t: float | None) -> None:
    """t, the share of p+ in the mixture, lies strictly between 0 and 1."""
    if t is None or not 0.0 < t < 1.0:
        raise CourseError(
            "setting-out-of-range",
            f"t = {t} is not strictly between 0 and 1.",
            where="FiniteWorld.from_mixture(preferred, rejected, t)",
            remedy="t is the share of preferred responses: 0.5 for pairs, 0.39 for UltraFeedback's UF-G.",
        )


def checked_mixture(reference: Tensor, preferred: Any, rejected: Any, t: float | None) -> dict[str, Any]:
    """p+, p- and t, whose mixture must be the reference."""
    where = "FiniteWorld(preferred, rejected, preferred_fraction)"
    if preferred is None or rejected is None:
        raise CourseError(
            "world-mixture",
            "a mixture needs p+, p- and t; one of them is missing.",
            where=where,
            remedy="use FiniteWorld.from_mixture(preferred, rejected, t).",
        )
    require_mixture_fraction(t)
    preferred, rejected = checked_rows(preferred, "preferred"), checked_rows(rejected, "rejected")
    fits = preferred.shape == rejected.shape == reference.shape
    gap = (reference - t * preferred - (1 - t) * rejected).abs().max().item() if fits else float("inf")
    if gap > 1e-6:
        raise CourseError(
            "world-mixture",
            f"the reference is not t p+ + (1 - t) p- with t = {t} (largest difference {gap:.2g}).",
            where=where,
            remedy="use FiniteWorld.from_mixture; a wrong one goes into population_loss(reference=...).",
        )
    return {"preferred": preferred, "rejected": rejected, "preferred_fraction": float(t)}


def _finite(table: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(table).all()):
        raise CourseError(
            "world-not-finite",
            f"{name} contains NaN or infinity.",
            where="FiniteWorld",
            remedy="look for a division by zero or a log of zero where the table was made.",
        )
    return table
