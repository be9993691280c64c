"""Moving references: the exact laws of trust-region updates, and that parameters are matched by name."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from course_utils.errors import CourseError
from course_utils.policies import GaussianPolicy, MLPPolicy, TablePolicy
from course_utils.references import (
    FrozenReference,
    MovingReference,
    mix_log_probabilities,
    mix_parameters,
    mix_probabilities,
)
from course_utils.worlds.finite import FiniteWorld


def pilot_world() -> tuple[FiniteWorld, torch.Tensor]:
    """The instance of the planning notes, drawn again from its seed, and its uniform proposal."""
    rng = np.random.default_rng(5)
    reward = rng.normal(size=5)
    logits = torch.tensor(rng.normal(size=5) * 0.5)
    return FiniteWorld.from_rewards(torch.softmax(logits, -1), reward), torch.full(
        (1, 5), 0.2, dtype=torch.float64
    )


def stages(
    space: str, alpha: float, objective: str = "dpo", count: int = 6, **settings
) -> list[torch.Tensor]:
    """Solve the inner problem exactly, move the reference, and so on: the policy after each stage."""
    w, uniform = pilot_world()
    policy = TablePolicy.from_probabilities(w.reference)
    ref = MovingReference(policy, alpha, every=1, space=space)
    found = []
    for _ in range(count):
        best = w.population_minimiser(objective, reference=ref, proposal=uniform, **settings)
        with torch.no_grad():
            policy.logits.copy_(best.log())
        assert ref.after_step(policy)
        found.append(best)
    return found


def law(k: int, alpha: float, beta: float) -> torch.Tensor:
    """pi0 exp((1 + alpha (k - 1)) r / beta) / Z."""
    w, _ = pilot_world()
    return torch.softmax(w.reference.log() + (1 + alpha * (k - 1)) * w.reward / beta, -1)


@pytest.mark.parametrize("space", ["parameters", "log-probabilities"])
@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_dpo_with_a_moving_reference_obeys_the_law_of_a_shrinking_beta(space, alpha, beta):
    for k, found in enumerate(stages(space, alpha, beta=beta), start=1):
        assert (found - law(k, alpha, beta)).abs().max() < 1e-8


def test_mixing_probabilities_obeys_the_law_only_approximately():
    errors = [
        (found - law(k, 0.6, 1.0)).abs().max().item()
        for k, found in enumerate(stages("probabilities", 0.6, beta=1.0), 1)
    ]
    assert errors[0] < 1e-10
    assert 1e-3 < max(errors[1:3]) < 2e-2


def test_ipo_with_hard_updates_adds_the_same_log_ratio_at_every_stage():
    w, _ = pilot_world()
    ratios = [(found / w.reference).log() for found in stages("parameters", 1.0, "ipo", tau=1.0)]
    centred = [ratio - ratio.mean() for ratio in ratios]
    assert centred[0].abs().max() > 0.1
    for k, ratio in enumerate(centred, start=1):
        assert (ratio / k - centred[0]).abs().max() < 1e-9


def test_a_reference_moves_only_every_tau_steps():
    policy = TablePolicy([0.0, 0.0])
    ref = MovingReference.soft(policy, alpha=0.25, every=3)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[4.0, 0.0]]))
    moved = [ref.after_step(policy) for _ in range(7)]
    assert moved == [False, False, True, False, False, True, False]
    # After j updates the reference has gone 1 - (1 - alpha)^j of the way; alpha multiplies the policy.
    assert math.isclose(ref.model.logits[0, 0].item(), 4 * (1 - 0.75**2), abs_tol=1e-15)
    assert (ref.steps, ref.updates) == (7, 2)


def test_a_hard_update_is_an_exact_copy_and_not_an_alias():
    policy = MLPPolicy(2, 3, seed=1)
    ref = MovingReference.hard(policy, every=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    ref.after_step(policy)
    assert torch.equal(ref.log_probabilities(), policy.log_probabilities())
    with torch.no_grad():
        policy.layers[0].weight.add_(1.0)
    assert not torch.equal(ref.log_probabilities(), policy.log_probabilities())


def test_mixing_parameters_of_a_network_is_not_mixing_its_log_probabilities():
    before, after = MLPPolicy(2, 3, seed=1), MLPPolicy(2, 3, seed=2)
    in_weights, in_logs = (
        MovingReference(before, 0.5, 1),
        MovingReference(before, 0.5, 1, "log-probabilities"),
    )
    in_weights.after_step(after)
    in_logs.after_step(after)
    expected = mix_log_probabilities(after.log_probabilities(), before.log_probabilities(), 0.5)
    assert torch.allclose(in_logs.log_probabilities(), expected, atol=1e-15)
    assert not torch.allclose(in_weights.log_probabilities(), expected, atol=1e-3)
    for name, parameter in in_weights.model.named_parameters():
        average = 0.5 * (before.get_parameter(name) + after.get_parameter(name))
        assert torch.allclose(parameter, average, atol=1e-15)


def test_both_ways_of_mixing_tables_give_distributions():
    p, q = torch.log(torch.tensor([[0.7, 0.3]])), torch.log(torch.tensor([[0.1, 0.9]]))
    assert torch.allclose(mix_probabilities(p, q, 0.25).exp(), torch.tensor([[0.25, 0.75]]))
    geometric = (p.exp() ** 0.25) * (q.exp() ** 0.75)
    assert torch.allclose(mix_log_probabilities(p, q, 0.25).exp(), geometric / geometric.sum())


class Tied(nn.Module):
    """Two layers that share one weight, a float buffer and a counter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = self.embed.weight
        nn.init.constant_(self.embed.weight, value)
        self.register_buffer("scale", torch.tensor(value))
        self.register_buffer("count", torch.tensor(int(value)))


def test_a_tied_weight_is_mixed_once_floating_buffers_too_and_counters_are_copied():
    policy, ref = Tied(8.0), Tied(0.0)
    mix_parameters(policy, ref, 0.25)
    assert torch.equal(ref.embed.weight, torch.full((2, 2), 2.0))
    assert ref.head.weight is ref.embed.weight
    assert ref.scale.item() == 2.0
    assert ref.count.item() == 8


def test_parameters_are_matched_by_name_and_not_by_position():
    class Two(nn.Module):
        def __init__(self, order: str) -> None:
            super().__init__()
            for name in order:
                self.register_parameter(name, nn.Parameter(torch.zeros(2)))

    policy, ref = Two("ab"), Two("ba")
    with torch.no_grad():
        policy.a.fill_(1.0)
    mix_parameters(policy, ref, 1.0)
    assert torch.equal(ref.a, torch.ones(2)) and torch.equal(ref.b, torch.zeros(2))


def test_a_reference_never_asks_for_a_gradient():
    policy = TablePolicy([0.0, 1.0])
    for ref in (FrozenReference(policy), MovingReference.soft(policy)):
        assert not any(parameter.requires_grad for parameter in ref.model.parameters())
        assert not ref.log_prob(torch.tensor([0]), torch.tensor([1])).requires_grad
        assert not ref.log_probabilities().requires_grad


def test_a_frozen_reference_stays_what_it_was():
    policy = TablePolicy([0.0, 1.0])
    ref, before = FrozenReference(policy), policy.probabilities().detach().clone()
    with torch.no_grad():
        policy.logits.mul_(5.0)
    assert ref.after_step(policy) is False
    assert torch.equal(ref.probabilities(), before)
    looked_up = ref.log_prob(torch.tensor([0]), torch.tensor([1]))
    assert torch.allclose(looked_up, before.log()[0, [1]], atol=1e-15)


@pytest.mark.parametrize("space", ["parameters", "log-probabilities", "probabilities"])
def test_a_run_that_is_saved_and_resumed_equals_one_that_was_not(space):
    def policy_at(step: int) -> TablePolicy:
        return TablePolicy([math.sin(step), math.cos(3 * step), 0.1 * step])

    whole = MovingReference(policy_at(0), 0.3, 2, space)
    for step in range(1, 12):
        whole.after_step(policy_at(step))
    part = MovingReference(policy_at(0), 0.3, 2, space)
    for step in range(1, 6):
        part.after_step(policy_at(step))
    saved = copy.deepcopy(part.state_dict())
    json.dumps({key: value for key, value in saved.items() if key != "tensors"})
    part.after_step(policy_at(99))
    resumed = MovingReference(policy_at(50), 0.3, 2, space)
    resumed.load_state_dict(saved)
    for step in range(6, 12):
        resumed.after_step(policy_at(step))
    assert torch.equal(resumed.log_probabilities(), whole.log_probabilities())
    assert (resumed.steps, resumed.updates) == (whole.steps, whole.updates)


def test_a_frozen_reference_is_saved_and_restored_exactly():
    first, second = FrozenReference(MLPPolicy(2, 3, seed=1)), FrozenReference(MLPPolicy(2, 3, seed=2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.log_probabilities(), second.log_probabilities())


BAD = {
    "alpha of zero": (lambda: MovingReference(TablePolicy([0.0, 1.0]), alpha=0.0), "setting-out-of-range"),
    "alpha above one": (lambda: MovingReference(TablePolicy([0.0, 1.0]), alpha=1.1), "setting-out-of-range"),
    "every zero steps": (lambda: MovingReference(TablePolicy([0.0, 1.0]), every=0), "setting-out-of-range"),
    "an unknown space": (lambda: MovingReference(TablePolicy([0.0, 1.0]), space="weights"), "unknown-choice"),
    "another architecture": (
        lambda: MovingReference(TablePolicy([0.0, 1.0])).update(MLPPolicy(1, 2)),
        "reference-names-differ",
    ),
    "another size": (
        lambda: MovingReference(TablePolicy([0.0, 1.0])).update(TablePolicy([0.0, 1.0, 2.0])),
        "reference-names-differ",
    ),
    "a state of other settings": (
        lambda: MovingReference(TablePolicy([0.0, 1.0]), 0.5).load_state_dict(
            MovingReference(TablePolicy([0.0, 1.0]), 0.6).state_dict()
        ),
        "reference-state",
    ),
    "a table of a continuous policy": (
        lambda: MovingReference(GaussianPolicy(), space="log-probabilities"),
        "policy-without-table",
    ),
    "a table of a bare module": (
        lambda: MovingReference(nn.Linear(2, 2), space="probabilities"),
        "policy-without-table",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_references_are_refused_with_their_id(name):
    call, expected = BAD[name]
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == expected
