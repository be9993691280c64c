"""The settings of a training run: how many steps, how large, in what order. The same settings, the same run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from course_utils.errors import CourseError

OPTIMIZERS = ("adamw", "sgd", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine")
REDUCTIONS = ("classwise", "pooled")


@dataclass(frozen=True)
class TrainingSettings:
    """How a policy is trained.

    steps             updates of the optimizer
    batch_size        rows of feedback for one update; None (or more than there are) takes all rows every time
    accumulate        compute an update's gradient in so many pieces: less memory, the same gradient
    learning_rate     the largest learning rate
    schedule          "constant", or "linear" or "cosine" down to zero at the last step
    warmup            updates over which the learning rate first rises from zero
    optimizer         "adamw" (Adam, while weight_decay is zero), "sgd" or "rmsprop"
    clip_gradient     shorten a gradient that is longer than this; None never does
    reduction         unpaired objectives: "classwise" adds the means of the two classes, "pooled" takes one mean;
                      None takes what the objective is made for
    seed              of the order of the data, of samples from the policy, and of dropout where a model has it
    evaluate_every    updates between evaluations; 0 evaluates at the beginning and at the end
    checkpoint_every  updates between checkpoints; 0 writes one at the end
    share_prompt      language models: compute the prompt of a comparison once for both responses
    """

    steps: int = 500
    batch_size: int | None = 64
    learning_rate: float = 1e-3
    seed: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip_gradient: float | None = None
    accumulate: int = 1
    reduction: str | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 0
    share_prompt: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("accumulate", 1),
            ("warmup", 0),
            ("evaluate_every", 0),
            ("checkpoint_every", 0),
        ):
            _require_whole(name, getattr(self, name), least)
        if self.batch_size is not None:
            _require_whole("batch_size", self.batch_size, 1)
        _require_number("learning_rate", self.learning_rate, above=0.0)
        _require_number("weight_decay", self.weight_decay, above=0.0, included=True)
        if self.clip_gradient is not None:
            _require_number("clip_gradient", self.clip_gradient, above=0.0)
        _require_choice("optimizer", self.optimizer, OPTIMIZERS)
        _require_choice("schedule", self.schedule, SCHEDULES)
        if self.reduction is not None:
            _require_choice("reduction", self.reduction, REDUCTIONS)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of an update; the first update is number 0."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "linear":
            return self.learning_rate * rising * (1 - step / self.steps)
        if self.schedule == "cosine":
            return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * rising

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer for these parameters."""
        options = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, **options)
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, **options)
        return torch.optim.AdamW(parameters, **options)

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that happens every so many updates, and after the last, happens now."""
        return step == self.steps or (every > 0 and step % every == 0)


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose. Distinct purposes get unrelated seeds, and none depends on what came before.

    So nothing random has a state that a checkpoint would have to carry: the step number is enough.
    """
    text = "/".join(map(str, (int(seed), *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CourseError(
            "setting-out-of-range",
            f"{name} = {value!r} is not a whole number of at least {least}.",
            where=f"TrainingSettings({name}=...)",
            remedy=f"give {name} as an int.",
        )


def _require_number(name: str, value: object, above: float, included: bool = False) -> None:
    good = isinstance(value, int | float) and math.isfinite(value)
    if not good or not (value >= above if included else value > above):
        raise CourseError(
            "setting-out-of-range",
            f"{name} = {value!r} is not {'at least' if included else 'above'} {above:g}.",
            where=f"TrainingSettings({name}=...)",
            remedy=f"give {name} as a finite number.",
        )


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CourseError(
            "unknown-choice",
            f"{name} = {value!r} is not known.",
            where=f"TrainingSettings({name}=...)",
            remedy=f"use one of {', '.join(choices)}.",
        )
