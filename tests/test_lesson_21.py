"""The mathematics of lesson 21: what a gain in log-probability says of the premise, and the push of a pooled mean."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import objectives
from course_utils.labs import lesson_21


def distributions(seed, count, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(1.5 * torch.randn(count, size, generator=generator, dtype=torch.float64), dim=-1)


def test_the_mean_gain_is_a_difference_of_two_divergences_and_never_more_than_the_first():
    for seed in range(5):
        m, ref, q = distributions(seed, 3)
        gain = (m * (q / ref).log()).sum()
        kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
        assert float(gain) == pytest.approx(float(kl(m, ref) - kl(m, q)), abs=1e-12)
        assert gain <= kl(m, ref)
        assert (m * (q / m).log()).sum() <= 0  # the premise holds: no model gains


def test_the_mean_ratio_is_one_for_every_model_exactly_if_the_premise_holds():
    m, ref, q = distributions(7, 3)
    assert float((m * q / m).sum()) == pytest.approx(1, abs=1e-12)
    assert float((m * m / ref).sum()) > 1.01


def test_all_responses_of_a_file_have_the_mixture_as_their_density():
    plus, minus = distributions(8, 2)
    alpha, rows = 0.39, 200_000
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(rows, generator=generator) < alpha
    drawn = torch.where(
        labels,
        torch.multinomial(plus, rows, replacement=True, generator=generator),
        torch.multinomial(minus, rows, replacement=True, generator=generator),
    )
    share = torch.bincount(drawn, minlength=6) / rows
    assert torch.allclose(share.double(), alpha * plus + (1 - alpha) * minus, atol=5e-3)


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
def test_class_means_balance_the_first_update_of_rdro_and_one_mean_does_not(alpha):
    preferred = torch.arange(100) < round(100 * alpha)
    push = {}
    for reduce in (objectives.classwise_mean, objectives.pooled_mean):
        l = torch.zeros(100, dtype=torch.float64, requires_grad=True)
        loss = reduce(objectives.rdro(l, torch.zeros_like(l), preferred, alpha=alpha), preferred)
        push[reduce.__name__] = float(torch.autograd.grad(loss, l)[0].sum())
    assert push["classwise_mean"] == pytest.approx(0, abs=1e-12)
    assert push["pooled_mean"] == pytest.approx((1 - alpha) * (1 - 2 * alpha) / 2, abs=1e-12)


def test_the_ceiling_of_exercise_1_is_where_rdros_pull_ends():
    alpha, ceiling = lesson_21.share_and_ceiling(torch.tensor([5.0, 5, 1, 2, 3]), 5.0)
    l = torch.tensor([ceiling], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(
        objectives.rdro(l, 0 * l.detach(), torch.tensor([True]), alpha=alpha).sum(), l
    )
    assert float(slope[0]) == pytest.approx(0, abs=1e-12)
    assert lesson_21.one_class(1, 0.3) == 1 and math.isclose(lesson_21.one_class(2, 0.5), 0.5)
