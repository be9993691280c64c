"""Shared by the tests of the objectives: random finite worlds, an exact minimiser, inputs for each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_utils import objectives

NAMES = objectives.names()


def random_policy(n: int, seed: int, spread: float = 1.0) -> Tensor:
    """A random distribution over n responses."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(spread * torch.randn(n, generator=generator, dtype=torch.float64), 0)


def random_numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def bradley_terry(reward: Tensor) -> Tensor:
    """P(a over b) for all pairs, from rewards."""
    return torch.sigmoid(reward[:, None] - reward[None, :])


def logit(p: Tensor) -> Tensor:
    return torch.log(p) - torch.log1p(-p)


def tilted(ref: Tensor, exponent: Tensor) -> Tensor:
    """ref exp(exponent), normalised."""
    return torch.softmax(ref.log() + exponent, 0)


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p.log() - q.log())).sum())


def all_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """values[a] and values[b] for every ordered pair (a, b), as two n by n tables."""
    n = len(values)
    return values[:, None].expand(n, n), values[None, :].expand(n, n)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 300) -> Tensor:
    """A local minimiser by Newton's method with absolute curvature and backtracking; infinity is a wall.

    Written for these tests, so that no test depends on the optimiser of a library to ten digits.
    """
    x = start.detach().clone()
    for _ in range(steps):
        point = x.clone().requires_grad_()
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        curvature = torch.stack(
            [torch.autograd.grad(g, point, retain_graph=True)[0] for g in gradient.reshape(-1)]
        )
        gradient = gradient.detach()
        value = float(value.detach())
        size, direction = torch.linalg.eigh((curvature + curvature.T) / 2)
        size = size.abs().clamp(min=1e-9 * float(size.abs().max()))
        # a softmax has one flat direction: no step along it
        step = -direction @ torch.where(size > 2e-9 * size.max(), (direction.T @ gradient) / size, 0.0)
        step = step * min(1.0, 2.0 / (1e-300 + float(step.abs().max())))
        slope = float(step @ gradient)
        if -slope < 1e-15 * (1 + abs(value)):
            # the loss can no longer tell the difference: one last full step, and done
            return x + step
        length = 1.0
        while length > 1e-9:
            trial = float(loss(x + length * step))
            if math.isfinite(trial) and trial <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            return x
        x = x + length * step
    return x


def minimise_policy(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The distribution that minimises `loss(log_probabilities)`, beginning at `start`."""
    return torch.softmax(minimise(lambda logits: loss(torch.log_softmax(logits, 0)), start.log()), 0)


def example(
    name: str, *, rows: int = 6, k: int = 3, seed: int = 0, scale: float = 1.0, dtype=torch.float64
) -> list[Tensor]:
    """Positional inputs of the objective `name`: random, of the kind that it expects."""
    generator = torch.Generator().manual_seed(seed)
    feedback = objectives.get(name).feedback

    def normal(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    inputs = []
    for argument in objectives.get(name).inputs:
        if argument == "preferred":
            inputs.append(torch.arange(rows) % 2 == 0)
        elif argument.startswith("len_"):
            inputs.append(torch.randint(1, 9, (rows,), generator=generator))
        elif argument.startswith("embedding"):
            inputs.append(normal(rows, 4))
        elif feedback == "group":
            inputs.append(normal(rows, k))
        elif name == "orpo":
            inputs.append(-normal(rows).abs() - 0.05)
        elif name == "ddro":
            # log-ratios inside the wall for every t up to 0.7
            inputs.append(torch.tanh(normal(rows)) * 0.17)
        else:
            inputs.append(normal(rows))
    return inputs
