"""Weights in shards over several processes: FSDP version 2, as `accelerate launch` with `fsdp_version: 2` asks for it.

Accelerate does the work: it cuts weights, gradients and optimizer state into as many pieces as there are processes, and
brings a layer together while it is computed. The numbers are those of one process. What is ours:

- The reference that stays is scored before the weights are cut, by the whole model in each process. A live or a moving
  reference is held whole by each process; with LoRA the live one is the sharded model without its adapter.
- Weights are brought together in the precision they are kept in, and gradients are added in float32; the products are
  made in bf16 by autocast, as they are in one process. Accelerate alone would cut bf16 copies of the weights, and keep
  the states between the layers in bf16 too: half the traffic, but then the policy at its first step is the reference
  up to rounding only. (Measured with the pocket model: the first update then ranks 53 % of the pairs right by rounding
  alone, where policy and reference are equal; so, 3 %, and ties.)
- Accelerate does not shard on a CPU. `shard_on_a_cpu` lets it, so that everything here can be tried, and is tested,
  with two processes and no card. What only a card does is not exercised there: NCCL, streams and prefetching, and the
  memory that is saved.

Two other ways are refused. FSDP version 1 flattens the weights of a layer into one tensor, so the head, which our
log-probabilities read, is no matrix outside the model's forward; torch and transformers give it up. DeepSpeed brings
its own engine for the backward pass, the clipping and the checkpoints, and none of it can be tested without a card.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError

WRAPPER = "_checkpoint_wrapped_module."  # what activation checkpointing puts into the name of a tensor


def is_sharded(model: Any) -> bool:
    """Whether the weights of this model are in shards."""
    return any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)


def to_be_sharded(trainer: Any) -> bool:
    """Whether this trainer's model is in shards, or will be when it trains."""
    return bool(getattr(trainer, "is_fsdp_enabled", False))


def shard_on_a_cpu(trainer: Any) -> None:
    """Let accelerate shard on a CPU where the launch asks for FSDP.

    Accelerate reads FSDP's settings from the launch on every machine, but switches to it only for cards. The two
    entries of its state that say "FSDP, with these settings" are set here; all that follows is its own code.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator = trainer.accelerator
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.device.type != "cpu" or accelerator.num_processes == 1:
        return
    settings = getattr(trainer.args, "fsdp_plugin_args", None) or {}
    state = accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def settle(trainer: Any) -> None:
    """Check the settings of FSDP, and keep weights and sums of gradients in the precision they have."""
    if not to_be_sharded(trainer):
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    refused = None
    if getattr(plugin, "fsdp_version", 1) != 2:
        refused = "FSDP version 1 was asked for", "write `fsdp_version: 2` into the launch configuration"
    elif plugin.cpu_ram_efficient_loading:
        refused = (
            "only the first process would load the weights, and every process scores the reference with them",
            "write `fsdp_cpu_ram_efficient_loading: false` into the launch configuration",
        )
    elif type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy":
        refused = (
            "the weights were to live in the memory of the processor, and log-probabilities read the head on the card",
            "write `fsdp_offload_params: false` into the launch configuration, and use more cards or LoRA",
        )
    elif trainer.args.fp16:
        refused = (
            "products in float16 need the loss to be scaled, by all processes alike",
            "use cards that have bf16 (capability 8.0 or newer), or give each card the whole model (torchrun)",
        )
    elif trainer.args.optim == "adafactor":
        refused = (
            "Adafactor keeps sums over whole rows and columns of a weight, and shards have parts of them",
            "use AdamW",
        )
    if refused:
        raise CourseError(
            "sharded-training", f"{refused[0]}.", where="AlignmentTrainer", remedy=f"{refused[1]}."
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)


# -------------------- whole weights out of shards. All processes must call these: they exchange the pieces.


def whole_weights(model: Any, trained_only: bool = False) -> dict[str, Tensor]:
    """The state dict of a sharded model, whole and in the memory of the processor; empty but in the first process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state = get_model_state_dict(model, options=options)
    # A tied tensor is one tensor again, so that a folder holds it once.
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        name, kept = name.replace(WRAPPER, ""), kept.replace(WRAPPER, "")
        if name in state and kept in state:
            state[name] = state[kept]
    return state


class Whole:
    """The tensors of a sharded model, whole, under the names that they had before: what a reference mixes.

    `before` is put in front of each name.
    """

    def __init__(self, model: Any, before: str = "") -> None:
        self.model, self.before = model, before

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for module in self.model.modules():
            if is_sharded(module):
                module.reshard()
        for name, parameter in self.model.named_parameters():
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            yield self.before + name.replace(WRAPPER, ""), whole

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.named_buffers():
            yield self.before + name.replace(WRAPPER, ""), tensor


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """While a model is measured: its weights whole in every process, so that no process waits for another.

    Inside, a forward pass exchanges nothing: processes may generate texts of different lengths. Each card needs room
    for the whole weights, which it needed when the reference was scored.
    """
    shards = [module for module in model.modules() if is_sharded(module)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
