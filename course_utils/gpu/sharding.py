"""What changes when n cards share the weights (fully sharded data parallel, FSDP), and what travels between them.

Divided by n: the stored weights, the optimizer's state, and the gradients once they are added up. Whole again for a moment:
the layer that is computed and the one that is fetched meanwhile; embeddings and head from the beginning of a forward pass
to the end of its backward pass (accelerate 1.15 keeps tied ones together; it takes embeddings that are not tied apart in
between, as it does with a layer, so they travel once more than the plan says, and it holds them whole for less long).

Not divided: activations and logits, which belong to the card's own rows; the 16-bit copies, which autograd keeps of every
layer that it passed (a test counts them); a live or moving reference, which our trainer holds whole in each process; and
gradients while they are accumulated: accelerate adds up whole ones and shares them out after the last pass.

Before all that each process loads the whole weights, because it scores the reference with them: so the weights alone must
fit a card (`at_start`), however many there are.

A ring of n cards sends (n-1)/n of what is gathered or reduced past every link. The plan counts whole tensors and leaves out
that each is padded to a multiple of n rows.
"""

from __future__ import annotations

from typing import Any

from course_utils.gpu import memory
from course_utils.gpu.parts import Part

# Assumed: 10^9 bytes a second in each direction that a ring of cards reaches, about three quarters of what data sheets
# promise for one card. Measure yours: `all_reduce_perf` of NVIDIA's nccl-tests prints it as "busbw".
LINKS = {
    "NVLink 4": 340.0,
    "PCIe 4.0 x16": 24.0,
    "400 Gbit InfiniBand": 38.0,
    "25 Gbit Ethernet": 2.3,
    "10 Gbit Ethernet": 0.9,
}
IN_FLIGHT = 2  # layers that are whole at a time: one is computed, the next one is fetched


def held(total: float, shards: int) -> float:
    """Bytes of each card when so many share `total`."""
    return total / shards


def layer_parameters(plan: Any) -> float:
    """Parameters of one layer, adapters left out."""
    shape = plan.shape
    return (shape.parameters - around_parameters(plan)) / shape.layers


def around_parameters(plan: Any) -> int:
    """Parameters outside the layers: embeddings, head, last norm."""
    shape = plan.shape
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.hidden


def unit_bytes(plan: Any) -> tuple[float, float]:
    """Bytes of the weights of one layer, adapters included, and of what is around the layers."""
    adapters = 4 * plan.trained / plan.shape.layers if plan.lora else 0
    return plan.frozen_width * layer_parameters(plan) + adapters, plan.frozen_width * around_parameters(plan)


def gathered_bytes(plan: Any) -> float:
    """The most that is whole at a time."""
    layer, around = unit_bytes(plan)
    count = min(IN_FLIGHT, plan.shape.layers) if plan.reshard else plan.shape.layers
    return count * layer + around


def at_start(plan: Any) -> float:
    """Bytes before the weights are shared out: each process loads them whole, and scores the reference with them."""
    if plan.shards == 1:
        return 0.0
    layer, around = unit_bytes(plan)
    return memory.CONTEXT + (1 + memory.GAPS) * (plan.shape.layers * layer + around)


def gradient_parts(plan: Any) -> list[Part]:
    """Gradients: a shard of the sum, and whole ones until they are shared out."""
    trained, n = plan.trained, plan.shards
    shard = Part("gradients", held(4 * trained, n), f"4 B x {trained:,} / {n}")
    if plan.passes > 1:
        return [
            shard,
            Part("gradients, accumulated", 4 * trained, f"4 B x {trained:,}, whole for {plan.passes} passes"),
        ]
    if plan.lora:
        layer, around = 4 * trained / plan.shape.layers, 0
    else:
        layer, around = 4 * layer_parameters(plan), 4 * around_parameters(plan)
    return [
        shard,
        Part("gradients, one layer", layer + around, "whole until they are shared out, with the head's"),
    ]


def divided(plan: Any, parts: list[Part]) -> list[Part]:
    """The parts of a plan for one card as each of `plan.shards` cards has them."""
    n, found = plan.shards, []
    for part in parts:
        if part.name == "gradients":
            found += gradient_parts(plan)
        elif part.name == "weights" or part.name.startswith("optimiser"):
            found.append(Part(part.name, held(part.bytes, n), f"({part.how}) / {n}"))
        else:
            found.append(part)
        if part.name == "weights":
            count = f"{IN_FLIGHT} layers" if plan.reshard else "all layers"
            found.append(
                Part(
                    "gathered weights",
                    gathered_bytes(plan),
                    f"{count}, embeddings and head, whole for a moment",
                )
            )
    return found


def traffic(plan: Any) -> list[Part]:
    """What each card sends in an update, part by part; nothing with one card."""
    n = plan.shards
    if n == 1:
        return []
    ring = (n - 1) / n
    layer, around = unit_bytes(plan)
    layers, passes = plan.shape.layers * layer, plan.passes
    times = (2 if plan.reshard else 1) * passes
    share = f"{n - 1}/{n}"
    return [
        Part("all-gather of the layers", ring * times * layers, f"{share} x {layers:,.0f} B, {times} times"),
        Part(
            "all-gather of embeddings and head",
            ring * passes * around,
            f"{share} x {around:,.0f} B, {passes} times",
        ),
        Part(
            "reduce-scatter of the gradients",
            ring * 4 * plan.trained,
            f"{share} x 4 B x {plan.trained:,}, once",
        ),
    ]
