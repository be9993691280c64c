"""Properties of every objective: finite at extreme inputs, no reduction, equivariant to order, dtype kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example as example_of
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_helpers import NAMES, example

from course_utils import objectives
from course_utils.objectives._numerics import log1mexp, softplus

PROPERTY = settings(max_examples=12, deadline=None, derandomize=True)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EXTREME = st.sampled_from([-1e4, -300.0, -30.0, -1.0, 0.0, 1e-3, 1.0, 30.0, 300.0, 1e4])
# mathematics that overflows: exp of the log-ratio in these members of BPO
OVERFLOWING = {"bpo"}


def extreme_inputs(name, draw_value, rows, dtype):
    """Inputs of `name` whose floating numbers come from `draw_value`; log-ratios are then up to 2e4."""
    inputs = []
    for argument, plain in zip(objectives.get(name).inputs, example(name, rows=rows), strict=True):
        if not plain.is_floating_point():
            inputs.append(plain)
            continue
        value = torch.tensor([draw_value() for _ in range(plain.numel())], dtype=dtype).view(plain.shape)
        if name == "orpo":
            value = -value.abs() - 1e-3
        if name == "ddro" and argument == "policy":
            value = -value.abs()  # the far side of the wall is tested below
        if name == "ddro" and argument == "ref":
            value = torch.zeros_like(value)
        if argument.startswith("embedding"):
            value = value.clamp(-300, 300)  # their product is the score
        inputs.append(value)
    return inputs


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OVERFLOWING])
@PROPERTY
@given(data=st.data())
def test_loss_and_gradient_are_finite_at_extreme_inputs_in_every_dtype(name, data):
    values = data.draw(st.lists(EXTREME, min_size=7, max_size=7))
    for dtype in DTYPES:
        counter = iter(range(10**6))
        inputs = extreme_inputs(name, lambda c=counter: values[(next(c) * 5) % 7], 6, dtype)
        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
        loss = objectives.get(name).loss(*inputs)
        assert torch.isfinite(loss).all()
        assert loss.dtype == dtype
        floating = [x for x in inputs if x.is_floating_point()]
        for gradient in torch.autograd.grad(loss.sum(), floating, allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", ["logistic", "kliep", "lsif", "ba", "sba"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bpo_is_finite_up_to_where_its_exponential_overflows_and_infinite_beyond(divergence, dtype):
    limit = math.log(torch.finfo(dtype).max)
    power = {"logistic": 1e-9, "kliep": 1.0, "lsif": 2.0}.get(divergence, 1.5)
    inside = torch.tensor([0.9, -0.9], dtype=dtype) * min(limit / power, 1e4)
    h = inside.requires_grad_()
    zero = torch.zeros_like(inside)
    loss = objectives.bpo(h, zero, zero, zero, beta=1.0, divergence=divergence, lam=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    if divergence != "logistic":
        beyond = torch.tensor([-1.2 * limit], dtype=dtype, requires_grad=True)
        loss = objectives.bpo(beyond, zero[:1], zero[:1], zero[:1], beta=1.0, divergence=divergence, lam=0.5)
        (gradient,) = torch.autograd.grad(loss.sum(), beyond)
        assert (loss == math.inf).all() and (gradient == -math.inf).all()


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9))
def test_one_loss_for_each_example_whatever_their_order(name, seed, rows):
    inputs = example(name, rows=rows, seed=seed)
    loss = objectives.get(name).loss(*inputs)
    assert loss.shape == (rows,)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = objectives.get(name).loss(*(x[order] for x in inputs))
    assert torch.allclose(shuffled, loss[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["exo_rw", "dpo_rw", "brain"])
@PROPERTY
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6))
def test_the_order_of_the_responses_of_a_prompt_does_not_matter(name, seed, k):
    inputs = example(name, k=k, seed=seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    loss = objectives.get(name).loss
    assert torch.allclose(loss(*inputs), loss(*(x[:, order] for x in inputs)), atol=1e-12)
    assert (loss(*inputs) >= -1e-12).all()


@pytest.mark.parametrize("name", ["exo_rw", "dpo_rw", "brain"])
def test_a_constant_added_to_a_prompts_rewards_or_log_probabilities_changes_nothing(name):
    inputs = example(name)
    loss = objectives.get(name).loss
    for position in range(len(inputs)):
        shifted = [x + 3.0 if i == position else x for i, x in enumerate(inputs)]
        assert torch.allclose(loss(*shifted), loss(*inputs), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(name, dtype):
    assert objectives.get(name).loss(*example(name, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    inputs = example(name, rows=20)
    single = [x.float() if x.is_floating_point() else x for x in inputs]
    loss = objectives.get(name).loss
    assert torch.allclose(loss(*single).double(), loss(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed_in_place(name):
    inputs = example(name)
    before = [x.clone() for x in inputs]
    objectives.get(name).loss(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if objectives.get(n).feedback in ("paired", "unpaired")])
def test_paired_and_unpaired_losses_accept_a_table_of_any_shape(name):
    inputs = example(name, rows=6)
    flat = objectives.get(name).loss(*inputs)
    table = objectives.get(name).loss(*(x.view(2, 3) for x in inputs))
    assert torch.equal(table, flat.view(2, 3))


@pytest.mark.parametrize("alpha", [0.1, 0.39, 0.9])
@PROPERTY
@given(log_ratio=st.floats(-1e4, 1e4))
def test_the_gradient_of_rdro_is_bounded_by_one_everywhere(alpha, log_ratio):
    l = torch.full((2,), log_ratio, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([True, False])
    (slope,) = torch.autograd.grad(objectives.rdro(l, torch.zeros_like(l), labels, alpha).sum(), l)
    assert -1 <= float(slope[0]) <= alpha and 0 <= float(slope[1]) <= 1 - alpha


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_ddro_with_a_tangent_is_finite_on_both_sides_of_the_wall(t, dtype):
    l = torch.tensor([-1e4, -1.0, 0.0, math.log(1 / t), 1.0, 1e4] * 2, dtype=dtype, requires_grad=True)
    labels = torch.arange(12) < 6
    loss = objectives.ddro(l, torch.zeros_like(l), labels, t, past_wall="tangent")
    (slope,) = torch.autograd.grad(loss.sum(), l)
    assert torch.isfinite(loss).all() and torch.isfinite(slope).all()
    assert (slope[labels] <= 0).all() and (slope[~labels] >= 0).all()
    infinite = objectives.ddro(l, torch.zeros_like(l), labels, t, past_wall="inf")
    (slope,) = torch.autograd.grad(infinite[torch.isfinite(infinite)].sum(), l)
    assert torch.isfinite(slope).all() and (infinite[-1] == math.inf)


@given(x=st.floats(1e-300, 1e4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_log1mexp_has_full_precision(x):
    exact = math.log(-math.expm1(-x)) if x < 1 else math.log1p(-math.exp(-x))
    tensor = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value = log1mexp(tensor)
    (slope,) = torch.autograd.grad(value.sum(), tensor)
    assert float(value.detach()) == pytest.approx(exact, rel=1e-14, abs=1e-320)
    assert math.isfinite(float(slope))


@given(z=st.floats(-700, 700))
@example_of(z=21.0)
@example_of(z=30.0)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_softplus_has_full_precision_where_torchs_own_has_a_cut(z):
    exact = max(z, 0.0) + math.log1p(math.exp(-abs(z)))
    assert float(softplus(torch.tensor(z, dtype=torch.float64))) == pytest.approx(exact, rel=1e-14)
