"""The reference of a trainer's run: which model it is, and when it is asked.

    "precomputed"    every row is scored once, before the first step
    "live"           it is asked with every batch: slower, the same numbers
    MovingReference  it is asked with every batch, and follows the policy

Without `ref_model` the reference is the policy as it is in memory when the trainer is made. (TRL loads it again from
the disk, from the place that the model's config names: after a fine-tune in memory that is another model.) With LoRA
it is the same model with its adapter off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from course_utils.causal_lm import scoring_mode, unwrapped
from course_utils.errors import CourseError
from course_utils.references import FrozenReference, MovingReference
from course_utils.training.identity import fingerprint, named_tensors
from course_utils.trl_bridge.sharding import Whole, is_sharded


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """A causal language model and its tokenizer, as the examples of the training package want to be asked."""

    model: Any
    tokenizer: Any
    chat_template: bool = False

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters."""
        return self.model.parameters()


class AdapterOff:
    """A LoRA model without its adapter, without dropout and without gradients: the model it was made from."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **inputs: Tensor) -> Any:
        with scoring_mode(self._model), self._model.disable_adapter():
            return self._model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class LiveReference(MovingReference):
    """A reference that is asked with every batch. It stays, or somebody else moves its model."""

    def __init__(self, scored: ScoredModel) -> None:
        self.model = scored

    def after_step(self, policy: nn.Module) -> bool:
        """Nothing to do."""
        return False


def has_adapter(model: Any) -> bool:
    """Whether this is a peft model."""
    return hasattr(unwrapped(model), "disable_adapter") and hasattr(unwrapped(model), "peft_config")


def with_adapter(model: Any, peft_config: Any) -> Any:
    """The model with a fresh adapter."""
    try:
        from peft import get_peft_model
    except ModuleNotFoundError as error:
        raise CourseError(
            "missing-package",
            "a LoRA adapter needs peft, which is not installed.",
            where="AlignmentTrainer(peft_config=...)",
            remedy='pip install peft, or pip install "course-utils[trl]".',
        ) from error
    if has_adapter(model):
        raise CourseError(
            "adapter-already-there",
            "the model has an adapter already, and peft_config asks for another one.",
            where="AlignmentTrainer(model, peft_config=...)",
            remedy="merge the first one with model.merge_and_unload(), or leave peft_config out.",
        )
    return get_peft_model(model, peft_config)


def frozen_copy(model: Any) -> Any:
    """A copy in memory that nothing trains.

    Trainers hang a forward of their own on a model (TRL its fused head, accelerate its autocast), and a copy of such
    a forward would still call the original: it is taken off, so that the copy answers for itself.
    """
    copied = FrozenReference(model).model
    vars(copied).pop("forward", None)
    return copied


def reference_model(policy: Any, ref_model: Any, needed_later: bool) -> Any:
    """The model that the reference's log-probabilities come from.

    `needed_later` says that it is asked after the policy has begun to move, so that the policy itself will not do.
    """
    if ref_model is not None:
        _require_other_weights(policy, ref_model)
        _require_same_precision(policy, ref_model)
        return ref_model.to(next(policy.parameters()).device).eval()
    if has_adapter(policy):
        _require_fresh_adapter(policy)
        return AdapterOff(policy)
    return frozen_copy(policy) if needed_later else policy


@contextlib.contextmanager
def scoring_the_reference(policy: Any, model: Any) -> Iterator[None]:
    """While all rows are scored: with adapters off, so that a cache files the numbers under the right name."""
    with policy.disable_adapter() if isinstance(model, AdapterOff) else contextlib.nullcontext():
        yield


def require_movable(moving: MovingReference, policy: Any) -> Any:
    """The model inside a moving reference, if it can follow this policy."""
    module = moving.model
    inner = module.model if hasattr(module, "tokenizer") else module
    mine = {name: tensor.shape for name, tensor in named_tensors(policy).items()}
    theirs = {name: tensor.shape for name, tensor in named_tensors(inner).items()}
    if moving.space != "parameters" or mine != theirs:
        raise CourseError(
            "reference-names-differ",
            f"the moving reference is made of {len(theirs)} tensors, the policy of {len(mine)}"
            + (
                ", some of other names or shapes."
                if moving.space == "parameters"
                else f"; it mixes {moving.space}."
            ),
            where="AlignmentTrainer(reference=MovingReference(...))",
            remedy="make it from the same model, MovingReference.soft(model) or .hard(model), before the trainer; with "
            "LoRA give both the model that get_peft_model returned.",
        )
    if has_adapter(policy) and moving.alpha != 1.0:
        raise CourseError(
            "reference-adapter-mix",
            f"alpha = {moving.alpha} would mix the two factors of a LoRA adapter apart, and the product of two "
            "mixtures is not the mixture of two products.",
            where="AlignmentTrainer(reference=MovingReference(...))",
            remedy="use the hard update, MovingReference.hard(model), or fine-tune all weights.",
        )
    _require_other_weights(policy, inner)
    _require_same_precision(policy, inner)
    inner.to(next(policy.parameters()).device)
    return inner


def follow(moving: MovingReference, policy: Any) -> None:
    """Let a moving reference see that the policy has made a step."""
    # Made from a LanguageModelPolicy: the names of its tensors begin with `model.`
    inside = hasattr(moving.model, "tokenizer")
    if is_sharded(policy):
        policy = Whole(policy, "model." if inside else "")
    elif inside:
        policy = nn.ModuleDict({"model": policy})
    moving.after_step(policy)


def content_of(model: Any) -> str:
    """A short hash of the weights of a reference, without adapters that are off."""
    off = isinstance(model, AdapterOff)
    tensors = named_tensors(model._model if off else model)
    return fingerprint(
        {name: tensor for name, tensor in tensors.items() if not (off and _of_an_adapter(name))}
    )


# -------------------- checks


def _of_an_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _require_other_weights(policy: Any, ref_model: Any) -> None:
    own = {p.data_ptr() for p in policy.parameters() if p.requires_grad}
    if any(parameter.data_ptr() in own for parameter in ref_model.parameters()):
        raise CourseError(
            "reference-is-the-policy",
            "policy and reference share their weights, so the reference would be trained along.",
            where="AlignmentTrainer(ref_model=...)",
            remedy="leave ref_model out: the reference is then the policy as it is now.",
        )


def _require_same_precision(policy: Any, ref_model: Any) -> None:
    kinds = [
        {
            str(p.dtype)
            for name, p in model.named_parameters()
            if p.is_floating_point() and not _of_an_adapter(name)
        }
        for model in (policy, ref_model)
    ]
    if kinds[0] != kinds[1]:
        raise CourseError(
            "reference-precision",
            f"the policy is {', '.join(sorted(kinds[0]))} and the reference {', '.join(sorted(kinds[1]))}.",
            where="AlignmentTrainer(ref_model=...)",
            remedy="load both with the same dtype: rounding alone would give every response a log-ratio.",
        )


def _require_fresh_adapter(policy: Any) -> None:
    trained = [
        name
        for name, parameter in policy.named_parameters()
        if "lora_B" in name and bool((parameter.detach() != 0).any())
    ]
    if trained:
        raise CourseError(
            "adapter-already-trained",
            f"the adapter is not at zero ({len(trained)} of its matrices), so the model without it is not the "
            "policy that training begins with.",
            where="AlignmentTrainer(model=...)",
            remedy="say which reference you mean with ref_model=...; or make the adapter part of the model with "
            "model.merge_and_unload() and give peft_config for a new one.",
        )


def require_reference_word(reference: Any) -> None:
    """ "precomputed", "live" or a moving reference."""
    if reference not in ("precomputed", "live") and not isinstance(reference, MovingReference):
        raise CourseError(
            "unknown-choice",
            f"reference = {reference!r:.60} is not known.",
            where="AlignmentTrainer(reference=...)",
            remedy="use 'precomputed', 'live', or MovingReference.soft(model) or .hard(model); a model is ref_model.",
        )
