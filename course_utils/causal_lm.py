"""What the course asks of a causal language model: its head, its hidden states, a quiet moment to score in.

The model is called as a whole, and the hidden states are taken from it at the door of its head. So wrappers
around a model work as they are, and a model that changes the logits after its head (a scale, a soft cap) is
noticed and refused instead of being silently wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError


def unwrapped(model: Any) -> Any:
    """The language model inside DistributedDataParallel and its relatives."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module
    return model


def output_head(model: Any) -> nn.Linear:
    """The linear layer that turns hidden states into logits."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    # Exactly nn.Linear: a subclass (an adapter, a quantised layer) may do more than weight and bias say. FSDP puts
    # a class of its own in front of a layer's, which brings the weight together and computes nothing.
    kinds = [kind for kind in type(head).__mro__ if not kind.__name__.startswith("FSDP")]
    if nn.Linear not in kinds[:1]:
        raise CourseError(
            "unsupported-head",
            f"The output head of {type(inner).__name__} is a {type(head).__name__}, not a linear layer.",
            where="output_head",
            remedy="Use a causal language model, and leave its head out of adapters and quantisation.",
        )
    return head


def hidden_states(model: Any, **inputs: Tensor) -> tuple[Tensor, nn.Linear]:
    """The hidden states that `model` hands to its head, [N, L, d], and the head.

    The head itself is given one position only; it shows whether the model changes its logits afterwards.
    """
    head = output_head(model)
    seen: dict[str, Tensor] = {}

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen["hidden"] = arguments[0]
        return (arguments[0][:1, :1],)

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        seen["logits"] = output

    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        for hook in hooks:
            hook.remove()
    raw = seen["logits"]
    if logits is not raw and not torch.allclose(logits.float(), raw.float(), rtol=0, atol=0, equal_nan=True):
        raise CourseError(
            "logits-changed-after-head",
            f"{type(model).__name__} changes its logits after the head (a scale or a soft cap): where the "
            f"head gave {raw.flatten()[0]:.6g}, the model returned {logits.flatten()[0]:.6g}.",
            where="hidden_states",
            remedy="Use a model without it (Qwen and Llama have none), or switch it off in the config.",
        )
    return seen["hidden"], head


@contextlib.contextmanager
def scoring_mode(model: Any) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # Not model.train(): a module that was kept in evaluation mode on purpose must stay there.
        for module in training:
            module.training = True
