"""The identity of a run: what must be equal for a run that goes on to be the same run.

Settings, objective, data, the shape of the policy and the content of a reference that stays. How often the run is
saved is not part of it, nor the weights that the policy had at first: a checkpoint brings its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.references import FrozenReference, MovingReference
from course_utils.training.settings import TrainingSettings


def identity_of(
    policy: Any,
    feedback: Any,
    objective: Any,
    ref: Any,
    settings: TrainingSettings,
    extra_terms: Mapping[str, float] | None,
    proposal: Any,
    loss_settings: dict[str, Any],
) -> dict[str, Any]:
    """What must be equal for a run to be the same run. How often it is saved is not part of it."""
    tensors = {name: (tuple(t.shape), str(t.dtype)) for name, t in named_tensors(policy).items()}
    reward = getattr(feedback, "reward", None)
    return {
        "objective": objective.name,
        "loss_settings": {
            k: v if isinstance(v, int | float | str) else fingerprint(v) for k, v in loss_settings.items()
        },
        "extra_terms": dict(extra_terms or {}),
        "settings": asdict(replace(settings, checkpoint_every=0)),
        "feedback": {
            "kind": type(feedback).__name__,
            "rows": len(feedback),
            "content": fingerprint(feedback.columns()),
            "reward": getattr(reward, "__qualname__", type(reward).__name__) if callable(reward) else None,
        },
        "policy": {"kind": type(policy).__name__, "tensors": fingerprint(tensors)},
        "reference": _kind_of(ref),
        "proposal": _kind_of(proposal),
    }


def _kind_of(ref: Any) -> dict[str, Any]:
    """A reference that stays is known by its content; one that moves carries its state in the checkpoint."""
    if isinstance(ref, MovingReference):
        return {"kind": "MovingReference", "alpha": ref.alpha, "every": ref.every, "space": ref.space}
    model = ref.model if isinstance(ref, FrozenReference) else ref
    content = fingerprint(named_tensors(model)) if isinstance(model, nn.Module) else None
    return {"kind": None if ref is None else "stays", "content": content}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor that two layers share appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def fingerprint(value: Any) -> str:
    """A short hash of tensors, texts, numbers, and lists and mappings of them."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"tensor {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        digest.update(f"mapping {len(value)}\n".encode())
        for key, each in value.items():
            digest.update(f"{key}\n".encode())
            _feed(digest, each)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for each in value:
            _feed(digest, each)
    else:
        digest.update(f"{type(value).__name__} {value!r}\n".encode())
