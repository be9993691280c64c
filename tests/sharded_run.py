"""What the processes of test_sharded.py do: train a tiny model alone, then sharded over all of them, on the same batches."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from language_models import random_batch, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from course_utils import objectives
from course_utils.logprobs import sequence_log_probs

ROWS, STEPS = 4, 5


def train(architecture: str, rank: int, processes: int) -> tuple[list[float], float]:
    """Losses of each step, and the length of the last gradient. With one process nothing is sharded."""
    model = tiny_model(architecture, seed=0)
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    preferred = torch.arange(ROWS) < ROWS // 2
    mine = torch.arange(ROWS)[rank::processes]
    losses, norm = [], 0.0
    for step in range(STEPS):
        batch = random_batch(rows=ROWS, seed=step)
        policy = sequence_log_probs(model, batch.select(mine))
        ref = torch.linspace(-40, -30, ROWS)[mine]
        each = objectives.rdro(policy / 10, ref / 10, preferred[mine], alpha=0.4)
        # Processes average their gradients, and the shares are to be added.
        loss = each.sum() / (ROWS // 2) * processes
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        optimizer.step()
        optimizer.zero_grad()
        whole = loss.detach() / processes
        if processes > 1:
            dist.all_reduce(whole)
        losses.append(float(whole))
    return losses, norm


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    alone = train(sys.argv[1], 0, 1)
    sharded = train(sys.argv[1], rank, processes)
    if rank == 0:
        print(json.dumps({"alone": alone, "sharded": sharded}))
    dist.destroy_process_group()
