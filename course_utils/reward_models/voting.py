r"""Votes on comparisons: several reward models say how strong each preference is, and which labels look wrong.

After "Secrets of RLHF II" (Wang et al. 2024, arXiv 2401.06080): several models trained on the same comparisons in
another order, from another start, each measure how much better the chosen response is. The mean of these differences
is the strength of the preference, and their spread says how sure it is. Weak pairs, often wrong labels, can be
flipped, dropped or softened, and the strength can serve as a margin.

Deviation from the paper: softening takes a rate of wrong labels for each pair, so that weak pairs can be softened and
strong ones left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from course_utils import objectives
from course_utils.feedback import Pairs, choose, require_fraction
from course_utils.objectives import Objective
from course_utils.statistics import Interval, seeds, wilson_interval
from course_utils.training import TrainingSettings, train

# -------------------- one model against comparisons


@torch.no_grad()
def reward_differences(model: Any, pairs: Pairs) -> Tensor:
    """How much better the model finds the chosen response of each pair, [N]."""
    return model.reward(pairs.prompt, pairs.chosen) - model.reward(pairs.prompt, pairs.rejected)


def pair_accuracy(model: Any, pairs: Pairs, confidence: float = 0.95) -> Interval:
    """How often the chosen response has the higher reward."""
    right = reward_differences(model, pairs) > 0
    return wilson_interval(int(right.sum()), len(pairs), confidence)


# -------------------- voting


@dataclass(frozen=True, eq=False)
class Votes:
    """What M reward models say about N pairs: differences [M, N] of the rewards of chosen and rejected."""

    differences: Tensor

    @property
    def strength(self) -> Tensor:
        """The mean difference of each pair, [N]; below zero the models would have chosen the other response."""
        return self.differences.mean(dim=0)

    @property
    def spread(self) -> Tensor:
        """The standard deviation of the differences of each pair, [N]."""
        return self.differences.std(dim=0)

    def weakest(self, share: float) -> Tensor:
        """Which pairs are the share with the lowest strength: a boolean tensor [N]."""
        require_fraction(share, "share", "Votes.weakest(share)")
        strength = self.strength
        weak = torch.zeros(len(strength), dtype=torch.bool)
        weak[strength.argsort(stable=True)[: round(share * len(strength))]] = True
        return weak

    def decile(self) -> Tensor:
        """The tenth of the pairs that each belongs to by strength, 0 (weakest) to 9, [N]."""
        rank = self.strength.argsort(stable=True).argsort()
        return rank * 10 // len(rank)

    def after_flip(self, flipped: Tensor) -> Votes:
        """The votes about the same pairs with the labels of these turned round."""
        return Votes(torch.where(flipped, -self.differences, self.differences))


def train_ensemble(
    make_model: Callable[[int], nn.Module],
    pairs: Pairs,
    members: int = 10,
    *,
    settings: TrainingSettings | None = None,
    objective: Any = "bt",
    seed: int = 0,
    progress: bool = False,
    **loss_settings: Any,
) -> list[nn.Module]:
    """Train `members` reward models on the same pairs, each with its own start and its own order of the data."""
    models = []
    for one in seeds(seed, members):
        model = make_model(one)
        own = replace(settings or TrainingSettings(), seed=one)
        train(model, pairs, objective, settings=own, progress=progress, **loss_settings)
        models.append(model)
    return models


def vote(models: Sequence[Any], pairs: Pairs) -> Votes:
    """What these models say about the pairs."""
    return Votes(torch.stack([reward_differences(model, pairs) for model in models]))


def with_features(pairs: Pairs, features_of: Callable[[Any, Any], Tensor]) -> Pairs:
    """The same comparisons with the features of a response in its place: read once, not at every step."""
    chosen, rejected = (features_of(pairs.prompt, side) for side in (pairs.chosen, pairs.rejected))
    return replace(pairs, chosen=chosen, rejected=rejected)


def flip(pairs: Pairs, which: Tensor) -> Pairs:
    """The same pairs with chosen and rejected exchanged where `which` is true."""
    chosen = _rowwise(which, pairs.rejected, pairs.chosen)
    return replace(pairs, chosen=chosen, rejected=_rowwise(which, pairs.chosen, pairs.rejected))


def drop(pairs: Pairs, which: Tensor) -> Pairs:
    """The pairs where `which` is false."""
    return pairs.take((~which).nonzero().flatten())


def soft_bt(
    reward_chosen: Tensor,
    reward_rejected: Tensor,
    wrong: float | Tensor = 0.0,
    margin: float | Tensor = 0.0,
) -> Tensor:
    r"""Bradley–Terry with a label that may be wrong, pair by pair: -(1-w) log sigma(z) - w log sigma(-z).

    z = r_w - r_l - m. `wrong` is the rate w, one number or one for each pair; with one number it is `objectives.bt`
    with label smoothing.
    """
    as_labelled = objectives.bt(reward_chosen, reward_rejected, margin)
    return (1 - wrong) * as_labelled + wrong * objectives.bt(reward_rejected, reward_chosen, -margin)


SOFT_BT = Objective(
    name="soft_bt",
    title="Bradley–Terry with soft labels",
    paper="Wang et al. 2024, arXiv 2401.06080, with one rate for each pair",
    feedback="reward pair",
    needs_reference=False,
    loss=soft_bt,
    equation=r"-(1-w)\log\sigma(r_w-r_l-m)-w\log\sigma(r_l-r_w+m)",
    assumes="One scale of quality, and labels that are wrong at the rate w.",
    target="Reward differences equal to logit((1-w) P + w (1-P)).",
)


def _rowwise(which: Tensor, first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) and first.dim() > 1:
        which = which.reshape(-1, *[1] * (first.dim() - 1))
    return choose(which, first, second)
