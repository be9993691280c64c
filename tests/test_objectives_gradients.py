"""Gradients of every objective: autograd against central differences and the docstring's formula."""

from __future__ import annotations

import math

import pytest
import torch
from objectives_helpers import NAMES, example, random_numbers, random_policy

from course_utils import objectives

sigma = torch.sigmoid
STEP = 1e-5


def central_difference(function, inputs, position):
    """d sum(function) / d inputs[position], one entry at a time."""
    base = inputs[position]
    result = torch.zeros_like(base)
    for index in range(base.numel()):
        moved = []
        for sign in (1, -1):
            shifted = base.clone()
            shifted.view(-1)[index] += sign * STEP
            moved.append(function(*inputs[:position], shifted, *inputs[position + 1 :]).sum())
        result.view(-1)[index] = (moved[0] - moved[1]) / (2 * STEP)
    return result


def gradients(function, inputs):
    """Gradients of the summed loss in every floating input; zeros where an input does not matter."""
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    floating = [x for x in inputs if x.is_floating_point()]
    found = torch.autograd.grad(function(*inputs).sum(), floating, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(floating, found, strict=True)]


CASES = [(name, {}) for name in NAMES if name != "reverse_kl"] + [
    ("bt", {"margin": 0.7, "label_smoothing": 0.2}),
    ("dpo", {"label_smoothing": 0.3}),
    ("ddro", {"t": 0.2}),
    ("ddro", {"t": 0.7}),
    ("ddro", {"t": 0.7, "past_wall": "tangent", "wall_distance": 0.3}),
    ("rdro", {"alpha": 0.39}),
    ("rdro_pooled", {"alpha": 0.39}),
    ("kto", {"kl": 0.4, "desirable_weight": 2.0, "undesirable_weight": 0.5}),
    ("bco", {"delta": 0.4}),
    *(("bpo", {"divergence": divergence}) for divergence in ("logistic", "kliep", "lsif", "ba")),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_autograd_agrees_with_central_differences(name, settings):
    def loss(*inputs):
        return objectives.get(name).loss(*inputs, **settings)

    inputs = example(name, seed=3)
    positions = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    for position, found in zip(positions, gradients(loss, inputs), strict=True):
        expected = central_difference(loss, inputs, position)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8), objectives.get(name).inputs[position]


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_depends_on_its_own_example_alone(name):
    inputs = example(name, seed=4)
    loss = objectives.get(name).loss
    whole = loss(*inputs)
    one = loss(*(x[2:3] for x in inputs))
    assert torch.equal(whole[2:3], one)


def paired(formula):
    """Expected gradients of (policy_chosen, policy_rejected, ref_chosen, ref_rejected) from dL/dh."""

    def expected(inputs):
        h = (inputs[0] - inputs[2]) - (inputs[1] - inputs[3])
        slope = formula(h)
        return [slope, -slope, -slope, slope]

    return expected


def unpaired(on_preferred, on_rejected):
    def expected(inputs):
        policy, ref, preferred = inputs
        slope = torch.where(preferred, on_preferred(policy - ref), on_rejected(policy - ref))
        return [slope, -slope]

    return expected


def bpo_slope(power_of_r):
    # dL/dh = -beta dL/d(log R), R = e^(-beta h)
    return paired(lambda h: -0.3 * power_of_r(torch.exp(-0.3 * h)))


def exo_rw_slope(inputs):
    f = 0.7 * (inputs[0] - inputs[1])
    p_f, p_r = torch.softmax(f, -1), torch.softmax(inputs[2] / 0.4, -1)
    loss = (p_f * (p_f / p_r).log()).sum(-1, keepdim=True)
    return [0.7 * p_f * ((p_f / p_r).log() - loss)]


def simpo_slope(inputs):
    policy_chosen, policy_rejected, len_chosen, len_rejected = inputs
    z = 1.5 * (policy_chosen / len_chosen - policy_rejected / len_rejected)
    return [-1.5 * sigma(0.4 - z) / len_chosen, 1.5 * sigma(0.4 - z) / len_rejected]


def orpo_slope(inputs):
    chosen, rejected = inputs[0] / inputs[2], inputs[1] / inputs[3]
    p_w, p_l = chosen.exp(), rejected.exp()
    o = torch.log(p_w / (1 - p_w)) - torch.log(p_l / (1 - p_l))
    pull = 0.3 * sigma(-o)
    return [(-1 - pull / (1 - p_w)) / inputs[2], pull / (1 - p_l) / inputs[3]]


def flex_slope(inputs):
    z = 0.3 * (inputs[0] - inputs[2]) - 0.2 * (inputs[1] - inputs[3])
    return [-0.3 * sigma(-z), 0.2 * sigma(-z)]


def ddro_slope(t):
    def rejected(l):
        r = l.exp()
        return t * r / (1 - t * r) + (1 - 2 * t) * r / (1 + (1 - 2 * t) * r)

    return unpaired(lambda l: -1 / (1 + (1 - 2 * t) * l.exp()), rejected)


def gpm_slope(inputs):
    rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)] * 2)
    chosen, rejected = inputs
    s = ((chosen @ rotation.T) * rejected).sum(-1, keepdim=True)
    weight = -sigma(-s / 0.5) / 0.5
    return [weight * (rejected @ rotation), weight * (chosen @ rotation.T)]


LOGIT = math.log(0.9 / 0.1)
FORMULAS = [
    ("bt", {"label_smoothing": 0.1}, lambda x: [sigma(x[0] - x[1]) - 0.9, 0.9 - sigma(x[0] - x[1])]),
    ("gpm", {"tau": 0.5}, gpm_slope),
    ("sft", {}, lambda x: [-torch.ones_like(x[0])]),
    ("dpo", {"beta": 0.3}, paired(lambda h: -0.3 * sigma(-0.3 * h))),
    ("cdpo", {"beta": 0.3, "label_smoothing": 0.1}, paired(lambda h: -0.3 * (sigma(-0.3 * h) - 0.1))),
    (
        "robust_dpo",
        {"beta": 0.3, "label_smoothing": 0.1},
        paired(lambda h: -0.3 * (sigma(-0.3 * h) + 0.1 / 0.8)),
    ),
    ("ipo", {"tau": 0.3}, paired(lambda h: 2 * (h - 1 / 0.6))),
    ("flex_dpo", {"beta_chosen": 0.3, "beta_rejected": 0.2}, flex_slope),
    ("dpo_with_sft", {"beta": 0.3, "sft_weight": 0.0}, paired(lambda h: -0.3 * sigma(-0.3 * h))),
    ("slic", {"beta": 0.3}, paired(lambda h: -0.3 * (0.3 * h < 1).double())),
    ("bpo", {"beta": 0.3, "divergence": "logistic"}, bpo_slope(lambda r: sigma(r.log()))),
    ("bpo", {"beta": 0.3, "divergence": "kliep"}, bpo_slope(lambda r: r + 1)),
    ("bpo", {"beta": 0.3, "divergence": "lsif"}, bpo_slope(lambda r: 2 * r**2 + 2 / r)),
    ("bpo", {"beta": 0.3, "divergence": "ba", "lam": 0.7}, bpo_slope(lambda r: 1.7 * (r**1.7 + r**-0.7))),
    (
        "bpo",
        {"beta": 0.3, "divergence": "sba", "lam": 0.7, "s": 3.0},
        bpo_slope(lambda r: (r**1.7 + r**-0.7) / 3),
    ),
    ("simpo", {"beta": 1.5, "gamma": 0.4}, simpo_slope),
    ("orpo", {"beta": 0.3}, orpo_slope),
    (
        "kto",
        {"beta": 0.3, "kl": 0.2, "desirable_weight": 2.0},
        unpaired(
            lambda l: -2 * 0.3 * sigma(0.3 * (l - 0.2)) * sigma(-0.3 * (l - 0.2)),
            lambda l: 0.3 * sigma(0.3 * (l - 0.2)) * sigma(-0.3 * (l - 0.2)),
        ),
    ),
    (
        "bco",
        {"beta": 0.3, "delta": 0.2},
        unpaired(lambda l: -0.3 * sigma(0.2 - 0.3 * l), lambda l: 0.3 * sigma(0.3 * l - 0.2)),
    ),
    (
        "exo_pref",
        {"beta": 0.3, "label_smoothing": 0.1},
        paired(lambda h: 0.3 * sigma(0.3 * h) * sigma(-0.3 * h) * (0.3 * h - LOGIT)),
    ),
    ("exo_rw", {"beta_policy": 0.7, "beta_reward": 0.4}, exo_rw_slope),
    (
        "dpo_rw",
        {"beta_policy": 0.7, "beta_reward": 0.4},
        lambda x: [0.7 * (torch.softmax(0.7 * (x[0] - x[1]), -1) - torch.softmax(x[2] / 0.4, -1))],
    ),
    (
        "brain",
        {"gamma": 0.4},
        lambda x: [torch.softmax(x[0] - x[1], -1) - torch.softmax(x[2] + x[3] / 0.4 - x[1], -1)],
    ),
    (
        "pmle",
        {"gamma": 0.4},
        lambda x: [-0.4 * sigma(-0.4 * (x[0] - x[1])), 0.4 * sigma(-0.4 * (x[0] - x[1]))],
    ),
    (
        "preference_distillation",
        {"gamma": 0.4},
        lambda x: [
            0.4 * (sigma(0.4 * (x[0] - x[1])) - sigma(x[2] - x[3])),
            -0.4 * (sigma(0.4 * (x[0] - x[1])) - sigma(x[2] - x[3])),
        ],
    ),
    (
        "reverse_kl",
        {"gamma": 0.4, "beta": 0.3},
        lambda x: [-x[2] + 0.4 * x[0] + 0.3 * (x[0] - x[1]), 0 * x[1], 0 * x[2]],
    ),
    ("ddro", {"t": 0.2}, ddro_slope(0.2)),
    ("ddro", {"t": 0.5}, unpaired(lambda l: -torch.ones_like(l), lambda l: l.exp() / (2 - l.exp()))),
    ("ddro", {"t": 0.7}, ddro_slope(0.7)),
    ("rdro", {"alpha": 0.39}, unpaired(lambda l: 1.39 * sigma(l) - 1, lambda l: 0.61 * sigma(l))),
    ("rdro_pooled", {"alpha": 0.39}, unpaired(lambda l: sigma(l) - sigma(-l) / 0.39, lambda l: sigma(l))),
]


@pytest.mark.parametrize(("name", "settings", "formula"), FORMULAS)
def test_the_gradient_is_the_one_of_the_docstring(name, settings, formula):
    inputs = example(name, seed=5)
    found = gradients(lambda *x: objectives.get(name).loss(*x, **settings), inputs)
    expected = formula(inputs)
    for got, wanted in zip(found[: len(expected)], expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_every_objective_has_a_gradient_formula_under_test():
    assert {name for name, *_ in FORMULAS} == set(NAMES)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_reverse_kl_surrogate_has_the_value_and_the_gradient_of_the_exact_objective(beta):
    ref, reward, gamma = random_policy(5, 1).log(), random_numbers(5, seed=2), 0.5

    def exact(logits):
        l = torch.log_softmax(logits, 0)
        return (l.exp() * (-reward + gamma * l + beta * (l - ref))).sum()

    logits = random_numbers(5, seed=3).requires_grad_()
    l = torch.log_softmax(logits, 0)
    surrogate = (l.exp().detach() * objectives.reverse_kl(l, ref, reward, gamma, beta)).sum()
    (found,) = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(surrogate, exact(logits), rtol=1e-12)
    expected = central_difference(exact, [logits.detach()], 0)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    # a baseline changes the value and not the expected gradient
    l = torch.log_softmax(logits, 0)
    shifted = (l.exp().detach() * objectives.reverse_kl(l, ref, reward - 7.0, gamma, beta)).sum()
    assert torch.allclose(torch.autograd.grad(shifted, logits)[0], found, atol=1e-12)


def test_exo_gradients_vanish_for_a_badly_misranked_pair_and_those_of_dpo_do_not():
    h = torch.tensor([-80.0, 0.0], dtype=torch.float64)
    zero = torch.zeros_like(h)
    (exo, *_) = gradients(objectives.exo_pref, [h, zero, zero, zero])
    (dpo, *_) = gradients(objectives.dpo, [h, zero, zero, zero])
    margin = 0.1
    assert float(exo[0] / margin) == pytest.approx(-0.0050, abs=1e-4)
    assert float(dpo[0] / margin) == pytest.approx(-0.9997, abs=1e-4)
    assert float(exo[1] / margin) == pytest.approx(-1.727, abs=1e-3)


def test_no_gradient_flows_through_the_baselines_of_kto_and_bco():
    policy, ref, _ = example("kto", seed=1)
    policy = policy.requires_grad_()
    preferred = torch.ones(6, dtype=torch.bool)  # one class: nothing cancels what would leak
    for loss, name in ((objectives.kto, "kl"), (objectives.bco, "delta")):
        from_tensor = loss(policy, ref, preferred, **{name: (policy - ref).abs().mean()})
        from_number = loss(policy, ref, preferred, **{name: float((policy - ref).detach().abs().mean())})
        assert torch.allclose(
            torch.autograd.grad(from_tensor.sum(), policy)[0],
            torch.autograd.grad(from_number.sum(), policy)[0],
        )
    assert not objectives.kto_kl(policy, ref).requires_grad
