"""One loop for every objective and every world.

    pairs = draw_pairs(world, 10_000, seed=0)
    policy = TablePolicy(world.reference.log())
    result = train(policy, pairs, "dpo", beta=0.1, settings=TrainingSettings(steps=300, learning_rate=0.05))
    result.history.column("loss")

The policy is trained in place: a table, a network, a Gaussian, a language model, a reward model. A policy is trained
in the mode it is in. Models from transformers come in evaluation mode, without dropout, and that is what the
identities of the lessons need (at the first step DPO's loss is log 2).

With `checkpoint_dir` a run that was stopped anywhere, by a kill or a power cut, goes on when the same call is made
again, and ends with the same numbers to the last bit on the same machine.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.references import FrozenReference, MovingReference
from course_utils.training.checkpoints import (
    Checkpoint,
    Checkpoints,
    optimizer_state,
    restore_module,
    restore_optimizer,
)
from course_utils.training.history import History
from course_utils.training.identity import identity_of, named_tensors
from course_utils.training.problem import Problem, not_finite
from course_utils.training.progress import duration, progress_line
from course_utils.training.settings import TrainingSettings, derived_seed

Evaluation = Callable[[Any, int], Mapping[str, Any]]


@dataclass(frozen=True, eq=False, repr=False)
class TrainingResult:
    """What a run leaves: the policy (trained in place), its history, and the reference it was trained against."""

    policy: Any
    history: History
    ref: Any
    objective: str
    settings: TrainingSettings
    resumed_from: int = 0

    @property
    def seconds(self) -> float:
        """Time spent on updates, without evaluation and checkpoints."""
        return self.history.last("seconds")

    def __repr__(self) -> str:
        _, loss = self.history.curve("loss")
        resumed = f", resumed from step {self.resumed_from}" if self.resumed_from else ""
        took = duration(self.seconds)
        return f"{self.objective}: {self.settings.steps} steps in {took}, loss {loss[0]:.4g} to {loss[-1]:.4g}{resumed}"


def train(
    policy: Any,
    feedback: Any,
    objective: Any,
    *,
    ref: Any = None,
    settings: TrainingSettings | None = None,
    evaluate: Evaluation | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    extra_terms: Mapping[str, float] | None = None,
    proposal: Any = None,
    cache_dir: str | Path | None = None,
    **loss_settings: Any,
) -> TrainingResult:
    """Train a policy on feedback by the gradient of an objective.

    feedback        Pairs, Unpaired, Groups, SoftPairs, or OnPolicy (prompts and a reward) for "on-policy"
    objective       a name of the registry, or an Objective
    ref             a FrozenReference, a MovingReference, or another policy that stays as it is; None takes a frozen
                    copy of the policy where the objective needs a reference
    evaluate        evaluate(policy, step) gives numbers (or intervals) for the history; held-out data belong here
    checkpoint_dir  where checkpoints are written and, with `resume`, found
    extra_terms     other objectives to add, with weights: {"sft": 0.1}
    proposal        the policy that drew the groups of "brain"; None says it was the reference
    cache_dir       language models: where the reference's log-probabilities are kept for other runs
    loss_settings   settings of the objective, such as beta=0.1: a number, or a tensor with one entry per example
    """
    settings = settings or TrainingSettings()
    objective = objectives.get(objective) if isinstance(objective, str) else objective
    parameters = _trainable(policy)
    _require_effect(settings, evaluate, checkpoint_dir)
    ref = _reference(policy, ref, objective)
    problem = Problem(
        policy, feedback, objective, ref, settings, loss_settings, extra_terms, proposal, cache_dir
    )
    optimizer = settings.make_optimizer(parameters)
    optimizer.zero_grad()  # nothing left over from what was computed with this policy before
    history, first, keeper = History(), 0, None
    if checkpoint_dir is not None:
        identity = identity_of(
            policy, feedback, objective, ref, settings, extra_terms, proposal, loss_settings
        )
        keeper = Checkpoints(checkpoint_dir, identity)
        found = keeper.latest()
        if found is not None:
            _require_resume(resume, checkpoint_dir)
            history, first = _restore(found, policy, optimizer, ref)
    if evaluate is not None and not len(history):
        history.append({"step": 0, **_evaluated(evaluate, policy, 0)})

    device = parameters[0].device
    seconds = history.last("seconds") if first else 0.0
    with progress_line(objective.name, settings.steps, first, progress) as report:
        for index in range(first, settings.steps):
            began, step = time.perf_counter(), index + 1
            try:
                with _own_randomness(settings.seed, index, device):
                    batch = problem.gradient(policy, index)
                norm = _clipped(parameters, settings.clip_gradient)
                if not math.isfinite(norm):
                    raise not_finite("length of the gradient", norm, problem.place(batch.rows), index)
            except CourseError as error:
                optimizer.zero_grad()
                error.history = history  # what led there: for whoever wants to look
                raise
            rate = settings.learning_rate_at(index)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            if ref is not None and hasattr(ref, "after_step"):
                ref.after_step(policy)
            seconds += time.perf_counter() - began
            row = {"step": step, "loss": batch.loss, "gradient_norm": norm, "learning_rate": rate}
            history.append({**row, **batch.drift, "seconds": seconds})
            if evaluate is not None and settings.is_due(settings.evaluate_every, step):
                history.add_to_last(_evaluated(evaluate, policy, step))
            if keeper is not None and settings.is_due(settings.checkpoint_every, step):
                keeper.write(step, *_state(policy, optimizer, ref, history))
            report(step, f"loss {batch.loss:.4g}")
    return TrainingResult(policy, history, ref, objective.name, settings, first)


# -------------------- before the first step


def _trainable(policy: Any) -> list[nn.Parameter]:
    parameters = [p for p in policy.parameters() if p.requires_grad] if isinstance(policy, nn.Module) else []
    if not parameters:
        raise CourseError(
            "nothing-to-train",
            f"the {type(policy).__name__} has no parameters that can be trained.",
            where="train(policy, feedback, objective)",
            remedy="give a policy such as TablePolicy, MLPPolicy or LanguageModelPolicy; if you froze it, call "
            "policy.requires_grad_(True).",
        )
    return parameters


def _require_effect(settings: TrainingSettings, evaluate: Any, checkpoint_dir: Any) -> None:
    """A setting that nothing reads is a mistake waiting to be believed."""
    for name, needs, given in (
        ("evaluate_every", "evaluate", evaluate),
        ("checkpoint_every", "checkpoint_dir", checkpoint_dir),
    ):
        if getattr(settings, name) and given is None:
            raise CourseError(
                "setting-without-effect",
                f"{name} = {getattr(settings, name)} was set, and {needs} was not given.",
                where="train(policy, feedback, objective, settings=...)",
                remedy=f"give {needs}=..., or leave {name} at 0.",
            )


def _reference(policy: Any, ref: Any, objective: Any) -> Any:
    """The reference of the run. One that shares its weights with the policy would move without a word: refused."""
    if ref is None:
        return FrozenReference(policy) if objective.needs_reference else None
    model = ref.model if isinstance(ref, FrozenReference) else ref
    if not isinstance(ref, FrozenReference) and not hasattr(ref, "log_prob"):
        raise CourseError(
            "reference-not-a-policy",
            f"a {type(ref).__name__} cannot say how likely a response is.",
            where="train(..., ref=...)",
            remedy="give FrozenReference(policy), MovingReference(policy, ...), or a policy; a table of probabilities "
            "becomes one with TablePolicy.from_probabilities(table).",
        )
    if isinstance(model, nn.Module):
        own = {parameter.data_ptr() for parameter in policy.parameters() if parameter.requires_grad}
        if any(parameter.data_ptr() in own for parameter in model.parameters()):
            raise CourseError(
                "reference-is-the-policy",
                "policy and reference share their weights, so the reference would be trained along.",
                where="train(..., ref=...)",
                remedy="leave ref out, or pass FrozenReference(policy), which makes a copy.",
            )
    return ref


def _require_resume(resume: bool, checkpoint_dir: Any) -> None:
    if not resume:
        raise CourseError(
            "checkpoint-exists",
            f"{Path(checkpoint_dir).name} holds checkpoints, and resume=False asks for a run from the beginning.",
            where="train(..., checkpoint_dir=..., resume=False)",
            remedy="give an empty folder, or delete that one if its run is not needed.",
        )


# -------------------- saving and restoring


def _state(
    policy: Any, optimizer: Any, ref: Any, history: History
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    tensors = {"policy": named_tensors(policy)}
    tensors["optimizer"], numbers = optimizer_state(optimizer)
    state: dict[str, Any] = {"optimizer": numbers, "history": history.plain(), "torch": torch.__version__}
    if isinstance(ref, MovingReference):
        saved = ref.state_dict()
        tensors["reference"] = saved.pop("tensors")
        state["reference"] = saved
    return state, tensors


def _restore(found: Checkpoint, policy: Any, optimizer: Any, ref: Any) -> tuple[History, int]:
    restore_module(policy, found.tensors["policy"])
    restore_optimizer(optimizer, found.tensors["optimizer"], found.state["optimizer"])
    if isinstance(ref, MovingReference):
        ref.load_state_dict({**found.state["reference"], "tensors": found.tensors["reference"]})
    return History.from_plain(found.state["history"]), found.step


# -------------------- within a step


def _evaluated(evaluate: Evaluation, policy: Any, step: int) -> dict[str, Any]:
    with torch.no_grad():
        return {name: value for name, value in evaluate(policy, step).items() if name != "step"}


def _clipped(parameters: list[nn.Parameter], longest: float | None) -> float:
    """The length of the gradient as it came; afterwards it is at most `longest`."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if longest is not None:
        nn.utils.clip_grads_with_norm_(parameters, longest, norm)
    return float(norm)


@contextlib.contextmanager
def _own_randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout can only draw from torch's global generators: they are seeded for this step, and put back after it."""
    devices = [device] if device.type == "cuda" else []
    own = derived_seed(seed, "dropout", step)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(own)
        if devices:
            torch.cuda.manual_seed(own)
        yield
