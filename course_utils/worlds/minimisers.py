"""Minimisers of population losses: the best table, and the best policy of a smaller family.

The table is found by Newton's method, other policies by L-BFGS. A table has its own logits for each prompt,
so its Hessian is one small matrix per prompt. Steps use the absolute values of its eigenvalues (a step along
negative curvature goes downhill too) and are halved until the loss falls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.worlds.population import expectation, resolved
from course_utils.worlds.tables import as_log_probabilities, as_probabilities

if TYPE_CHECKING:
    from course_utils.worlds.finite import FiniteWorld

FAR = 25.0  # nats; a policy that went further while the loss became flat is on its way to infinity
FLAT = 1e-12


def population_minimiser(
    world: FiniteWorld, objective: Any, *, start: Any = None, tolerance: float = 1e-10, **settings: Any
) -> Tensor:
    """The table of probabilities [X, Y] at which the expected loss is least, to a gradient below `tolerance`.

    Newton's method in the logits of each prompt, from the reference (or `start`). Where a loss has several
    minima it finds one near the start; where it has none, as for DPO with labels that are never wrong, it
    says so.
    """
    parameters = inspect.signature(resolved(objective).loss).parameters
    if "past_wall" in parameters:
        # A line search must be able to look beyond DDRO's wall, see an infinite loss there, and step back.
        settings.setdefault("past_wall", "inf")
    losses = expectation(world, objective, **settings)
    log_start = (world.reference if start is None else as_probabilities(start, world.shape)).log()
    return minimise_rows(losses, log_start, tolerance=tolerance, exact_hessian=not losses.on_policy)


def fit_policy(
    world: FiniteWorld,
    objective: Any,
    policy: nn.Module,
    *,
    tolerance: float = 1e-8,
    max_steps: int = 2000,
    **settings: Any,
) -> float:
    """Train a policy with shared or few parameters to a minimum of the expected loss, in place; returns the
    loss.

    L-BFGS from where the policy is. A policy that cannot represent the table of `population_minimiser` ends
    elsewhere.
    """
    losses = expectation(world, objective, **settings)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=max_steps,
        max_eval=4 * max_steps,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = world.prompt_weights @ losses(as_log_probabilities(policy, world.shape))
        loss.backward()
        return loss

    optimiser.step(closure)
    loss = closure()
    steepest = max(parameter.grad.abs().max().item() for parameter in parameters)
    optimiser.zero_grad()
    if not steepest <= 100 * tolerance:
        raise CourseError(
            "no-finite-minimum",
            f"no minimum was found: after {max_steps} steps the largest gradient is {steepest:.2g}.",
            where="fit_policy",
            remedy="give it more steps or another start; a loss without a finite optimum never gets there.",
        )
    return loss.item()


def minimise_rows(
    losses: Callable[[Tensor], Tensor],
    log_start: Tensor,
    *,
    tolerance: float = 1e-10,
    exact_hessian: bool = True,
    max_steps: int = 500,
) -> Tensor:
    """Probabilities [X, Y] that minimise losses(log_probabilities) -> [X], row by row, from log_start.

    With `exact_hessian=False` only values and first derivatives of `losses` are trusted, as for score-
    function surrogates, and the Hessian comes from central differences of the gradient.
    """
    logits = torch.log_softmax(log_start, dim=-1)
    start = logits
    for _ in range(max_steps):
        gradient, hessian = _derivatives(losses, logits, exact_hessian)
        step, flattest = _step(gradient, hessian)
        done = (gradient.abs().amax(dim=-1) <= tolerance) & (step.abs().amax(dim=-1) <= 1e-3)
        if bool(done.all()):
            moved = (torch.log_softmax(logits, dim=-1) - start).abs().amax(dim=-1)
            if bool(((moved > FAR) & (flattest < FLAT)).any()):
                break
            # The step is known and tiny: taking it doubles the number of correct digits.
            return torch.softmax(logits + step, dim=-1)
        step = torch.where(done.unsqueeze(-1), torch.zeros_like(step), step)
        length = _line_search(losses, logits, step, gradient)
        logits = torch.log_softmax(logits + length.unsqueeze(-1) * step, dim=-1)
    moved = (logits - start).abs().max().item()
    raise CourseError(
        "no-finite-minimum",
        f"no minimum was found: the largest gradient is {gradient.abs().max().item():.2g} "
        f"and the policy is {moved:.3g} nats from where it started.",
        where="population_minimiser",
        remedy="under DPO a pair that is always labelled the same way has no finite optimum: "
        "add label noise or label smoothing.",
    )


def _derivatives(losses: Callable[[Tensor], Tensor], logits: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Gradient [X, Y] and Hessian [X, Y, Y] of each row's loss in its own logits."""
    count = logits.shape[-1]
    if exact:
        variable = logits.clone().requires_grad_(True)
        total = losses(torch.log_softmax(variable, dim=-1)).sum()
        (gradient,) = torch.autograd.grad(total, variable, create_graph=True)
        rows = []
        for y in range(count):
            (row,) = torch.autograd.grad(gradient[:, y].sum(), variable, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(logits) if row is None else row)
        return gradient.detach(), torch.stack(rows, dim=1)
    width = 1e-4
    rows = []
    for direction in torch.eye(count, dtype=logits.dtype):
        above, below = (
            _gradient(losses, logits + width * direction),
            _gradient(losses, logits - width * direction),
        )
        rows.append((above - below) / (2 * width))
    hessian = torch.stack(rows, dim=1)
    return _gradient(losses, logits), 0.5 * (hessian + hessian.transpose(-1, -2))


def _gradient(losses: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    variable = logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses(torch.log_softmax(variable, dim=-1)).sum(), variable)
    return gradient


def _step(gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The Newton step [X, Y] with |eigenvalues|, and the smallest of them [X] apart from the one for a
    common shift.
    """
    count = gradient.shape[-1]
    # Adding a constant to all logits changes nothing: that direction gets curvature one, and no gradient lies
    # along it.
    values, vectors = torch.linalg.eigh(hessian + torch.full_like(hessian, 1.0 / count))
    values = values.abs()
    along = torch.einsum("xij,xi->xj", vectors, gradient)
    # A direction without curvature and without slope (rounding aside) is left alone.
    ignored = along.abs() <= 1e-15
    scaled = torch.where(ignored, torch.zeros_like(along), -along / values.clamp(min=1e-30))
    step = torch.einsum("xij,xj->xi", vectors, scaled)
    # No single step changes a log-probability by more than 20 nats.
    step = step / (step.abs().amax(dim=-1, keepdim=True) / 20.0).clamp(min=1.0)
    return step, values.amin(dim=-1)


def _line_search(
    losses: Callable[[Tensor], Tensor], logits: Tensor, step: Tensor, gradient: Tensor
) -> Tensor:
    """A length [X] for each row's step, halved until the loss falls."""

    def value(candidate: Tensor) -> Tensor:
        return losses(torch.log_softmax(candidate, dim=-1)).detach()

    before = value(logits)
    slope = (gradient * step).sum(dim=-1)
    length = torch.ones(len(logits), dtype=logits.dtype)
    for _ in range(60):
        after = value(logits + length.unsqueeze(-1) * step)
        # Rounding in the loss itself must not reject the last, tiny steps.
        bound = before + 1e-4 * length * slope + 1e-14 * (1 + before.abs())
        accepted = torch.isfinite(after) & (after <= bound)
        if bool(accepted.all()):
            break
        length = torch.where(accepted, length, 0.5 * length)
    return length
