"""References: one that stays, and one that follows the policy (trust region: TR-DPO, TR-IPO, TR-KTO).

Every `every` steps a moving reference becomes alpha * policy + (1 - alpha) * reference. alpha = 1 is the hard
update, a copy; a smaller alpha is the soft one. alpha multiplies the POLICY, as in the paper and in TRL.

Where the mixing happens matters:

- "parameters": the weights are mixed, name by name. For a table these are its logits.
- "log-probabilities": the tables of log-probabilities are mixed and normalised again. For a table this is the
  same reference as "parameters". With the inner problem of DPO solved exactly, the policy after stage k is
  then pi0 exp((1 + alpha (k - 1)) r / beta) / Z: the effective beta shrinks.
- "probabilities": the tables of probabilities are mixed. The law then holds only approximately.

Deviation from the paper: it describes the soft update and the period as two methods; here, as in TRL, both
may be set at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.policies import TablePolicy

Space = Literal["parameters", "log-probabilities", "probabilities"]
SPACES = ("parameters", "log-probabilities", "probabilities")


def mix_log_probabilities(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """log of policy^alpha ref^(1 - alpha) / Z, from log-probabilities [..., Y]."""
    return torch.log_softmax(alpha * policy + (1 - alpha) * ref, dim=-1)


def mix_probabilities(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """log of alpha policy + (1 - alpha) ref, from log-probabilities [..., Y]."""
    return torch.log(alpha * policy.exp() + (1 - alpha) * ref.exp())


@torch.no_grad()
def mix_parameters(policy: nn.Module, ref: nn.Module, alpha: float) -> None:
    """ref <- alpha * policy + (1 - alpha) * ref, in place.

    It holds for every parameter and floating-point buffer; other buffers are copied. Tensors are matched by
    name, and both modules must have the same names and shapes. A tensor that two layers share is mixed once.
    """
    sources, targets = dict(_named_tensors(policy)), dict(_named_tensors(ref))
    _require_same_tensors(sources, targets, "mixing a reference with a policy")
    for name, target in targets.items():
        source = sources[name].to(device=target.device, dtype=target.dtype)
        if alpha == 1.0 or not target.is_floating_point():
            target.copy_(source)
        else:
            target.mul_(1.0 - alpha).add_(source, alpha=alpha)


class FrozenReference:
    """A copy of the policy at the moment of its making. It never moves."""

    def __init__(self, policy: nn.Module) -> None:
        self.model = _frozen_copy(policy)

    def after_step(self, policy: nn.Module) -> bool:
        """Nothing to do; a training loop may call it like that of a moving reference."""
        return False

    @torch.no_grad()
    def log_prob(self, prompts: Any, responses: Any) -> Tensor:
        """log p_ref(response | prompt), without a gradient."""
        return self.model.log_prob(prompts, responses)

    @torch.no_grad()
    def log_probabilities(self) -> Tensor:
        """log p_ref(y|x), [X, Y], where the policy has a table."""
        return self.model.log_probabilities()

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """p_ref(y|x), [X, Y], where the policy has a table."""
        return self.model.log_probabilities().exp()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here: plain numbers, and tensors under "tensors"."""
        return {"tensors": {name: tensor.detach().clone() for name, tensor in _named_tensors(self.model)}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, exactly."""
        targets = dict(_named_tensors(self.model))
        _require_same_tensors(state["tensors"], targets, "loading the state of a reference")
        for name, target in targets.items():
            target.copy_(state["tensors"][name])


class MovingReference(FrozenReference):
    """A reference that follows the policy: call `after_step(policy)` once after every optimiser step."""

    def __init__(
        self, policy: nn.Module, alpha: float = 1.0, every: int = 512, space: Space = "parameters"
    ) -> None:
        if not 0.0 < alpha <= 1.0:
            raise CourseError(
                "setting-out-of-range",
                f"alpha = {alpha} is not in (0, 1].",
                where="MovingReference(policy, alpha, every)",
                remedy="alpha is the policy's share in the new reference: 1 copies it, 0.6 is usual.",
            )
        if int(every) != every or every < 1:
            raise CourseError(
                "setting-out-of-range",
                f"every = {every} is not a positive whole number.",
                where="MovingReference(policy, alpha, every)",
                remedy="`every` counts optimiser steps between updates (tau in the paper); 512 is usual.",
            )
        if space not in SPACES:
            raise CourseError(
                "unknown-choice",
                f"space = {space!r} is not known.",
                where="MovingReference(policy, space=...)",
                remedy=f"use one of {', '.join(SPACES)}.",
            )
        self.alpha, self.every, self.space = float(alpha), int(every), space
        self.steps = 0
        self.updates = 0
        if space == "parameters":
            super().__init__(policy)
        else:
            super().__init__(TablePolicy(_table(policy)))

    @classmethod
    def soft(
        cls, policy: nn.Module, alpha: float = 0.6, every: int = 512, space: Space = "parameters"
    ) -> Self:
        """The soft update: a mixture of policy and reference."""
        return cls(policy, alpha, every, space)

    @classmethod
    def hard(cls, policy: nn.Module, every: int = 512) -> Self:
        """The hard update: a copy of the policy."""
        return cls(policy, 1.0, every)

    def after_step(self, policy: nn.Module) -> bool:
        """Count one optimiser step; update when `every` of them have passed. True if the reference moved."""
        self.steps += 1
        if self.steps % self.every != 0:
            return False
        self.update(policy)
        return True

    @torch.no_grad()
    def update(self, policy: nn.Module) -> None:
        """Move the reference towards the policy now."""
        if self.space == "parameters":
            mix_parameters(policy, self.model, self.alpha)
        else:
            mix = mix_log_probabilities if self.space == "log-probabilities" else mix_probabilities
            self.model.logits.copy_(mix(_table(policy), self.model.log_probabilities(), self.alpha))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here: plain numbers, and tensors under "tensors"."""
        settings = {"alpha": self.alpha, "every": self.every, "space": self.space}
        return {**settings, "steps": self.steps, "updates": self.updates, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, exactly; a state saved under other settings is refused."""
        mine, theirs = self.state_dict(), state
        different = {
            key: (theirs[key], mine[key]) for key in ("alpha", "every", "space") if theirs[key] != mine[key]
        }
        if different:
            raise CourseError(
                "reference-state",
                "the saved reference has other settings (saved, present): "
                + ", ".join(f"{key} {pair}" for key, pair in different.items())
                + ".",
                where="MovingReference.load_state_dict(state)",
                remedy="resume with the settings of the first run, or start a new run.",
            )
        super().load_state_dict(state)
        self.steps, self.updates = state["steps"], state["updates"]


def _frozen_copy(policy: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(policy).requires_grad_(False).eval()
    for parameter in frozen.parameters():
        parameter.grad = None
    return frozen


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    # Not state_dict(): it lists a tied tensor once under each of its names, and a soft update would then mix
    # it twice.
    yield from module.named_parameters()
    yield from module.named_buffers()


def _table(policy: Any) -> Tensor:
    if not hasattr(policy, "log_probabilities"):
        raise CourseError(
            "policy-without-table",
            f"a {type(policy).__name__} has no table of log-probabilities.",
            where="MovingReference(space=...)",
            remedy='mix in parameter space: space="parameters".',
        )
    return policy.log_probabilities().detach()


def _require_same_tensors(sources: dict[str, Tensor], targets: dict[str, Tensor], where: str) -> None:
    missing, extra = sorted(targets.keys() - sources.keys()), sorted(sources.keys() - targets.keys())
    shapes = [name for name in targets if name in sources and targets[name].shape != sources[name].shape]
    if missing or extra or shapes:
        raise CourseError(
            "reference-names-differ",
            f"policy and reference have different tensors: missing {missing[:3]}, "
            f"unexpected {extra[:3]}, of another shape {shapes[:3]}.",
            where=where,
            remedy="both must be the same architecture; merge an adapter (LoRA) into the policy first.",
        )
