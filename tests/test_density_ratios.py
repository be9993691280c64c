"""The estimators reach closed forms, and agree with each other and with independent solutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch

from course_utils.density_ratios import (
    GENERATORS,
    RatioEstimate,
    RatioSettings,
    bregman,
    bregman_loss,
    convex,
    draw_centres,
    family,
    gaussian_kl,
    gaussian_pearson,
    gaussian_ratio,
    kl_divergence,
    kliep,
    logistic,
    median_distance,
    pearson_divergence,
    power,
    relative_ratio,
    rulsif,
    select,
    ulsif,
)
from course_utils.density_ratios.models import Basis, shuffled
from course_utils.errors import CourseError
from course_utils.statistics import log_log_slope, paired_bootstrap, seeds

EASY = (0.0, 1.0, 0.5, 1.0)  # p = N(0, 1), q = N(0.5, 1): a ratio of moderate size
HARD = (
    0.0,
    1.0,
    2.0,
    1.0,
)  # q two deviations away: the ratio exp(2 - 2x) grows beyond anything seen


def draw(pair, n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    p = pair[0] + pair[1] * torch.randn(n, generator=generator, dtype=torch.float64)
    return p, pair[2] + pair[3] * torch.randn(m, generator=generator, dtype=torch.float64)


def root_mean_square(estimate, pair, alpha=0.0):
    """sqrt(E[(estimate - truth)**2]) under q, or under the mixture, by a sum over a fine grid."""
    x = torch.linspace(-6, 8, 1401, dtype=torch.float64)
    mean_p, sd_p, mean_q, sd_q = pair
    p = torch.exp(-(((x - mean_p) / sd_p) ** 2) / 2) / sd_p
    q = torch.exp(-(((x - mean_q) / sd_q) ** 2) / 2) / sd_q
    weight = alpha * p + (1 - alpha) * q
    truth = relative_ratio(gaussian_ratio(*pair)(x), alpha)
    return float(((estimate.ratio(x) - truth) ** 2 * weight).sum().div(weight.sum()).sqrt())


P, Q = draw(EASY, 60, 45, 1)
CENTRES = draw_centres(P, 12)
LINE = {"features": lambda x: x}
KERNELS = {"centres": CENTRES, "width": 0.7}


# --------------------------------------------------------------------------------------- the Bregman family


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("generator", [*GENERATORS, power(0.5), lambda r: -r.log()])
def test_the_true_ratio_minimises_the_loss_of_every_generator(generator, alpha):
    p = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    of_p, of_q = family.losses_of_ratio(family.generator_named(generator, "test"))

    def loss(ratio):
        mixture = alpha * p + (1 - alpha) * q
        return (mixture * of_q(ratio) + p * of_p(ratio)).sum()

    truth = relative_ratio(p / q, alpha).requires_grad_()
    (slope,) = torch.autograd.grad(loss(truth), truth)
    assert slope.abs().max() < 1e-15
    bend = torch.autograd.functional.hessian(loss, truth.detach())
    assert torch.linalg.eigvalsh(bend).min() > 0
    for factor in (0.5, 0.9, 1.1, 3.0):
        assert loss(truth * factor) > loss(truth)


def test_bregman_loss_is_the_sum_over_the_samples_written_out():
    ratio_p, ratio_q = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    by_hand = {
        "least-squares": lambda: (ratio_q**2).mean() / 2 - ratio_p.mean() + 0.5,
        "kl": lambda: ratio_q.mean() - ratio_p.log().mean(),
        "logistic": lambda: (1 + ratio_q).log().mean() + (1 + 1 / ratio_p).log().mean(),
    }
    for name, value in by_hand.items():
        assert bregman_loss(ratio_p, ratio_q, name) == pytest.approx(float(value()), abs=1e-14)
    relative = bregman_loss(ratio_p, ratio_q, "kl", alpha=0.25)
    assert relative == pytest.approx(
        float(0.25 * ratio_p.mean() + 0.75 * ratio_q.mean() - ratio_p.log().mean()), abs=1e-14
    )


def test_the_hand_written_losses_of_the_members_are_those_of_their_generators():
    score = torch.linspace(0.2, 3, 9, dtype=torch.float64)
    pairs = [
        (family.LEAST_SQUARES, family.losses(family.least_squares, "linear")),
        (family.KLIEP, family.losses(family.kl, "linear")),
        (family.KLIEP_EXPONENTIAL, family.losses(family.kl, "exponential")),
        (family.LOGISTIC, family.losses(family.logistic, "exponential")),
    ]
    for by_hand, derived in pairs:
        assert by_hand.link == derived.link
        torch.testing.assert_close(by_hand.numerator(score), derived.numerator(score), rtol=0, atol=1e-14)
        torch.testing.assert_close(by_hand.denominator(score), derived.denominator(score), rtol=0, atol=1e-14)
    wide = torch.linspace(-60, 60, 25, dtype=torch.float64)
    exact = torch.logaddexp(wide, torch.zeros_like(wide))
    torch.testing.assert_close(family.LOGISTIC.denominator(wide), exact, rtol=1e-14, atol=0)
    torch.testing.assert_close(family.LOGISTIC.numerator(-wide), exact, rtol=1e-14, atol=0)


def test_the_power_generator_runs_from_kliep_to_least_squares():
    options = {**KERNELS, "regularisation": 0.05, "coefficients": "nonnegative"}
    least_squares = bregman(P, Q, "least-squares", **options).ratio(Q)
    # at lam = 1 it is r**2 - r, twice the least-squares one: twice the regularisation balances it
    doubled = bregman(P, Q, power(1.0), **{**options, "regularisation": 0.1}).ratio(Q)
    torch.testing.assert_close(doubled, least_squares, rtol=0, atol=1e-8)
    limit = bregman(P, Q, "kl", **options).ratio(Q)
    near, nearer = (bregman(P, Q, power(lam), **options).ratio(Q) for lam in (0.1, 0.001))
    assert (nearer - limit).abs().max() < (near - limit).abs().max() / 50


def test_the_gradient_and_the_hessian_are_those_of_central_differences():
    phi_p, phi_q = Basis(1, CENTRES, 0.7)(P[:, None]), Basis(1, CENTRES, 0.7)(Q[:, None])
    penalty = torch.linspace(0.1, 0.3, 12, dtype=torch.float64)
    theta = torch.linspace(0.2, 0.6, 12, dtype=torch.float64)
    for losses in (family.KLIEP, family.LOGISTIC, family.losses(power(0.4), "exponential")):
        options = (phi_p, phi_q, losses, 0.3, penalty)
        gradient, hessian = convex.gradient_and_hessian(theta, *options)
        steps = 1e-5 * torch.eye(12, dtype=torch.float64)
        slope = torch.stack(
            [convex.objective(theta + h, *options) - convex.objective(theta - h, *options) for h in steps]
        ).detach()
        bend = torch.stack(
            [
                convex.gradient_and_hessian(theta + h, *options)[0]
                - convex.gradient_and_hessian(theta - h, *options)[0]
                for h in steps
            ]
        )
        torch.testing.assert_close(slope / 2e-5, gradient, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(bend / 2e-5, hessian, rtol=1e-7, atol=1e-9)


# -------------------------------------------------------------------- every member against another solution


def test_on_a_finite_world_every_member_finds_the_exact_ratio():
    p = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 4, 3, 2]))
    q = torch.repeat_interleave(torch.arange(4), torch.tensor([8, 2, 6, 4]))
    truth = torch.tensor([0.25, 4.0, 1.0, 1.0], dtype=torch.float64)
    table = {"features": lambda x: torch.nn.functional.one_hot(x[:, 0].long(), 4), "regularisation": 0.0}
    outcomes = torch.arange(4)
    estimates = {
        "ulsif": ulsif(p, q, **table),
        "kliep": kliep(p, q, **table),
        "kliep exponential": kliep(p, q, link="exponential", **table),
        "logistic": logistic(p, q, **table),
        "bregman power": bregman(p, q, power(0.7), **table),
        "bregman exponential": bregman(p, q, "kl", link="exponential", **table),
    }
    for name, estimate in estimates.items():
        assert (estimate.ratio(outcomes) - truth).abs().max() < 1e-8, name
    for alpha in (0.1, 0.39, 0.9):
        relative = relative_ratio(truth, alpha)
        for estimate in (rulsif(p, q, alpha, **table), logistic(p, q, alpha, **table)):
            assert (estimate.ratio(outcomes) - relative).abs().max() < 1e-8


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("coefficients", ["keep", "clip"])
def test_the_general_estimator_with_the_least_squares_generator_is_the_closed_form(alpha, coefficients):
    options = {**KERNELS, "regularisation": 0.01, "coefficients": coefficients}
    closed = rulsif(P, Q, alpha, **options)
    general = bregman(P, Q, "least-squares", alpha=alpha, **options)
    torch.testing.assert_close(general.theta, closed.theta, rtol=0, atol=1e-8)
    torch.testing.assert_close(general.ratio(Q), closed.ratio(Q), rtol=0, atol=1e-8)
    assert bool((closed.theta < 0).any()) == (coefficients == "keep")


def test_the_closed_form_solves_the_normal_equations_of_the_paper():
    alpha, n, m = 0.2, len(P), len(Q)
    phi_p, phi_q = (np.exp(-((x.numpy()[:, None] - CENTRES.numpy().T) ** 2) / 0.98) for x in (P, Q))
    second = alpha / n * sum(np.outer(one, one) for one in phi_p)
    second += (1 - alpha) / m * sum(np.outer(one, one) for one in phi_q)
    theta = np.linalg.solve(second + 0.01 * np.eye(12), phi_p.mean(axis=0))
    found = rulsif(P, Q, alpha, **KERNELS, regularisation=0.01, coefficients="keep")
    np.testing.assert_allclose(found.theta, theta, rtol=1e-9)
    np.testing.assert_allclose(found.ratio(Q), phi_q @ theta, rtol=1e-9)


def test_nonnegative_least_squares_is_the_one_of_scipy_and_clipping_is_not():
    options = {**KERNELS, "regularisation": 0.01}
    phi_p, phi_q = Basis(1, CENTRES, 0.7)(P[:, None]), Basis(1, CENTRES, 0.7)(Q[:, None])
    second = phi_q.T @ phi_q / len(Q) + 0.01 * torch.eye(12, dtype=torch.float64)
    root = torch.linalg.cholesky(second)
    target = torch.linalg.solve_triangular(root, phi_p.mean(dim=0)[:, None], upper=False)[:, 0]
    expected, _ = scipy.optimize.nnls(root.T.numpy(), target.numpy())
    found = bregman(P, Q, "least-squares", coefficients="nonnegative", **options)
    np.testing.assert_allclose(found.theta, expected, atol=1e-8)
    clipped = bregman(P, Q, "least-squares", coefficients="clip", **options)
    assert (clipped.theta - found.theta).abs().max() > 0.01
    assert (found.theta >= 0).all() and (clipped.theta >= 0).all()


def test_kernels_keep_their_digits_far_from_the_origin():
    for shift in (0.0, 1e6):
        at = Basis(1, CENTRES + shift, 0.7)(P[:, None] + shift)
        expected = np.exp(-((P.numpy()[:, None] - CENTRES.numpy().T) ** 2) / 0.98)
        np.testing.assert_allclose(at, expected, atol=1e-8 if shift else 1e-14)


def test_kliep_satisfies_its_optimality_conditions_and_its_constraint():
    found = kliep(P, Q, centres=P[:, None], width=0.5)
    phi_p, phi_q = found.basis(P[:, None]), found.basis(Q[:, None])
    gradient = phi_q.mean(dim=0) - (phi_p / found.ratio(P)[:, None]).mean(dim=0)
    assert found.ratio(Q).mean() == pytest.approx(1.0, abs=1e-9)
    assert (found.theta >= 0).all() and gradient.min() > -1e-9
    assert (found.theta * gradient).abs().max() < 1e-9
    assert 3 <= (found.theta * phi_q.mean(dim=0) > 1e-4).sum() < 30  # a few kernels carry the fit


def test_kliep_is_the_limit_of_its_multiplicative_updates():
    found = kliep(P, Q, **KERNELS)
    phi_p, phi_q = found.basis(P[:, None]), found.basis(Q[:, None])
    # the likelihood of a mixture of the kernels, normalised under q, by expectation-maximisation
    components, share = phi_p / phi_q.mean(dim=0), torch.full((12,), 1 / 12, dtype=torch.float64)
    for _ in range(20_000):
        share = share * (components / (components @ share)[:, None]).mean(dim=0)
    torch.testing.assert_close(found.ratio(P), components @ share, rtol=0, atol=1e-4)
    reached = float((components @ share).log().mean())
    assert reached <= kl_divergence(found, P) + 1e-12
    assert reached == pytest.approx(kl_divergence(found, P), abs=1e-6)


def test_the_general_estimator_with_the_kl_generator_is_kliep():
    general = bregman(P, Q, "kl", coefficients="nonnegative", **KERNELS, regularisation=0.0)
    torch.testing.assert_close(general.ratio(Q), kliep(P, Q, **KERNELS).ratio(Q), rtol=0, atol=1e-7)
    exponential = bregman(P, Q, "kl", link="exponential", **LINE, regularisation=0.01)
    by_name = kliep(P, Q, link="exponential", **LINE, regularisation=0.01)
    torch.testing.assert_close(exponential.theta, by_name.theta, rtol=0, atol=1e-8)
    assert by_name.ratio(Q).mean() == pytest.approx(1.0, abs=1e-9)  # by the free constant


def test_logistic_is_an_independently_written_logistic_regression():
    x = np.concatenate([P.numpy(), Q.numpy()])
    design = np.stack([x, x**2, np.ones_like(x)], axis=1)
    label = np.arange(x.size) < len(P)
    weight = np.where(label, 1 / len(P), 1 / len(Q))
    theta = np.zeros(3)
    for _ in range(50):  # iteratively reweighted least squares
        chance = 1 / (1 + np.exp(-design @ theta))
        slope = design.T @ (weight * (label - chance)) - np.array([0.02, 0.02, 0]) * theta
        bend = (design.T * (weight * chance * (1 - chance))) @ design + np.diag([0.02, 0.02, 0])
        theta = theta + np.linalg.solve(bend, slope)
    found = logistic(P, Q, features=lambda z: torch.cat([z, z**2], dim=1), regularisation=0.02)
    np.testing.assert_allclose(found.theta, theta, atol=1e-10)
    np.testing.assert_allclose(found.ratio(x), np.exp(design @ theta), rtol=1e-9)
    np.testing.assert_allclose(found.log_ratio(x), design @ theta, rtol=1e-9, atol=1e-12)
    general = bregman(P, Q, "logistic", features=lambda z: torch.cat([z, z**2], dim=1), regularisation=0.02)
    np.testing.assert_allclose(general.theta, theta, atol=1e-8)


def test_relative_logistic_is_at_the_minimum_of_the_loss_of_rdro():
    alpha = 0.39
    found = logistic(P, Q, alpha, **LINE, regularisation=0.0)
    softplus = torch.nn.functional.softplus

    def rdro(theta):  # (1 + alpha) softplus(l) - l where preferred, (1 - alpha) softplus(l) where not
        l_p, l_q = theta[0] * P + theta[1], theta[0] * Q + theta[1]
        return ((1 + alpha) * softplus(l_p) - l_p).mean() + (1 - alpha) * softplus(l_q).mean()

    assert torch.autograd.functional.jacobian(rdro, found.theta).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(torch.autograd.functional.hessian(rdro, found.theta)).min() > 0.01


# ---------------------------------------------------------------------------------------------- invariances


def test_ulsif_is_rulsif_with_alpha_zero():
    for options in ({}, {"features": lambda x: torch.cat([x**0, x, x**2], dim=1), "coefficients": "keep"}):
        plain, relative = ulsif(P, Q, **options), rulsif(P, Q, alpha=0.0, **options)
        assert torch.equal(plain.theta, relative.theta)
        assert plain.score == relative.score
        assert plain.settings.width == relative.settings.width


def test_swapping_the_samples_inverts_the_ratio_of_logistic_regression():
    for options in (LINE, {"centres": CENTRES, "width": 0.7}):
        forward = logistic(P, Q, **options, regularisation=0.01)
        backward = logistic(Q, P, **options, regularisation=0.01)
        torch.testing.assert_close(
            forward.ratio(Q) * backward.ratio(Q), torch.ones_like(Q), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("method", ["ulsif", "rulsif", "kliep", "logistic"])
def test_the_order_of_the_rows_does_not_matter(method):
    shuffle = torch.Generator().manual_seed(3)
    again_p = P[torch.randperm(len(P), generator=shuffle)]
    again_q = Q[torch.randperm(len(Q), generator=shuffle)]
    options = {"centres": 20, "regularisation": 0.01 if method != "kliep" else 0.0}
    if method in ("kliep", "logistic"):
        options["width"] = 0.8  # their folds do depend on the order
    first, second = select(method, P, Q, **options), select(method, again_p, again_q, **options)
    torch.testing.assert_close(first.estimate.ratio(Q), second.estimate.ratio(Q), rtol=1e-7, atol=1e-7)
    if method in ("ulsif", "rulsif"):
        assert first.estimate.settings.width == pytest.approx(second.estimate.settings.width, rel=1e-12)
        torch.testing.assert_close(first.scores, second.scores, rtol=1e-9, atol=1e-12)


def test_moving_and_stretching_both_samples_moves_the_ratio_with_them():
    for method in ("ulsif", "rulsif", "kliep"):
        options = {"regularisation": 0.1 if method != "kliep" else 0.0, "centres": 15}
        before = select(method, P, Q, **options).estimate
        after = select(method, 10 * P - 3, 10 * Q - 3, **options).estimate
        assert after.settings.width == pytest.approx(10 * before.settings.width, rel=1e-9)
        torch.testing.assert_close(before.ratio(Q), after.ratio(10 * Q - 3), rtol=1e-6, atol=1e-6)


def test_points_of_two_columns_are_fitted_as_one_column_when_the_second_says_nothing():
    flat_p, flat_q = torch.stack([P, 0 * P], dim=1), torch.stack([Q, 0 * Q], dim=1)
    for method in ("ulsif", "kliep"):
        options = {"width": 0.7, "regularisation": 0.01, "centres": 10}
        one, two = (
            select(method, P, Q, **options).estimate,
            select(method, flat_p, flat_q, **options).estimate,
        )
        torch.testing.assert_close(one.ratio(Q), two.ratio(flat_q), rtol=1e-9, atol=1e-9)
    assert median_distance(flat_p, flat_q) == pytest.approx(median_distance(P, Q))


def test_centres_are_numerator_points_and_the_median_distance_is_the_median_of_all_distances():
    assert {float(one) for one in CENTRES} <= {float(one) for one in P}
    assert len(CENTRES) == 12 and len(set(CENTRES.flatten().tolist())) == 12
    assert torch.equal(draw_centres(P, 1000).flatten(), P.sort().values)
    assert not torch.equal(draw_centres(P, 12, seed=1), CENTRES)
    pooled = torch.cat([P, Q]).tolist()
    distances = [abs(a - b) for i, a in enumerate(pooled) for b in pooled[:i]]
    assert median_distance(P, Q) == pytest.approx(float(np.sort(distances)[(len(distances) - 1) // 2]))


def test_the_median_distance_of_a_thinned_sample_is_nearly_that_of_all_its_points():
    p, q = draw(EASY, 1200, 900, 4)
    whole, thinned = median_distance(p, q, most=1200), median_distance(p, q, most=200)
    assert thinned == pytest.approx(whole, rel=0.02)
    assert median_distance(p.flip(0), q.flip(0), most=200) == thinned


# ------------------------------------------------------------------------------------------ leaving one out


@pytest.mark.parametrize("coefficients", ["keep", "clip"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_analytic_leave_one_out_score_is_that_of_refitting_without_each_point(alpha, coefficients):
    for n, m, width, regularisation in [(14, 23, 0.5, 0.01), (23, 14, 1.0, 0.1), (6, 6, 0.3, 1.0)]:
        p, q = P[:n], Q[:m]
        options = {"centres": CENTRES, "width": width, "regularisation": regularisation}
        options["coefficients"] = coefficients
        found = select("rulsif", p, q, alpha=alpha, **options).scores.item()

        def without(p, q, options=options):
            return rulsif(p, q, alpha, **options)

        expected = 0.5
        for i in range(n):
            ratio = without(torch.cat([p[:i], p[i + 1 :]]), q).ratio(p[i : i + 1]).item()
            expected += (alpha * ratio**2 / 2 - ratio) / n
        for j in range(m):
            ratio = without(p, torch.cat([q[:j], q[j + 1 :]])).ratio(q[j : j + 1]).item()
            expected += (1 - alpha) * ratio**2 / 2 / m
        assert found == pytest.approx(expected, abs=1e-10)


def test_cross_validation_holds_out_what_it_scores():
    folds = 3
    fold_p, fold_q = shuffled(len(P), 0) % folds, shuffled(len(Q), 1) % folds
    assert sorted(torch.bincount(fold_p).tolist()) == [20, 20, 20]
    likelihood, loss = [], []
    for fold in range(folds):
        fit = kliep(P[fold_p != fold], Q, **KERNELS)
        likelihood.append(-kl_divergence(fit, P[fold_p == fold]))
        fit = logistic(P[fold_p != fold], Q[fold_q != fold], 0.2, **KERNELS, regularisation=0.1)
        held_out = (fit.ratio(P[fold_p == fold]), fit.ratio(Q[fold_q == fold]))
        loss.append(float(bregman_loss(*held_out, "logistic", alpha=0.2)))
    options = {"centres": CENTRES, "width": (0.7, 1.4), "folds": folds}
    assert select("kliep", P, Q, **options).scores[0, 0] == pytest.approx(np.mean(likelihood), abs=1e-6)
    found = select("logistic", P, Q, alpha=0.2, regularisation=0.1, **options)
    assert found.scores[0, 0] == pytest.approx(np.mean(loss), abs=1e-6)


def test_selection_keeps_the_candidate_with_the_smallest_held_out_loss():
    found = select("ulsif", P, Q, width=(0.2, 0.7, 2.0), regularisation=(0.001, 0.1), centres=CENTRES)
    assert found.scores.shape == (3, 2)
    row, column = divmod(int(found.scores.argmin()), 2)
    assert found.estimate.settings.width == (0.2, 0.7, 2.0)[row]
    assert found.estimate.settings.regularisation == (0.001, 0.1)[column]
    assert found.estimate.score == found.scores.min()
    alone = ulsif(P, Q, centres=CENTRES, width=(0.2, 0.7, 2.0)[row], regularisation=(0.001, 0.1)[column])
    assert alone.score == pytest.approx(found.estimate.score, abs=1e-14)
    assert torch.equal(alone.theta, found.estimate.theta)
    assert logistic(P, Q, **LINE, regularisation=0.1).score is None
    assert "ulsif" in str(alone) and "held-out loss" in str(alone)


def test_a_candidate_without_a_finite_held_out_loss_counts_as_infinite_and_is_never_chosen():
    options = {"generator": "kl", "link": "linear", "centres": CENTRES, "width": (0.1, 0.7)}
    found = select("bregman", P, Q, regularisation=(1e-6, 0.1), **options)
    assert found.scores[0, 0] == math.inf and not found.scores.isnan().any()
    assert found.estimate.score == found.scores.min() < math.inf
    with pytest.raises(CourseError, match="none of the 2 candidates"):
        select("kliep", P, Q + 1e4, width=(0.5, 0.6))


# -------------------------------------------------------------------------------- closed forms, divergences


def integral(f):
    return scipy.integrate.quad(f, -12, 12, epsabs=1e-13, epsrel=1e-12, limit=300)[0]


@pytest.mark.parametrize("pair", [EASY, HARD, (0.3, 0.8, -0.4, 1.3), (0.0, 1.0, 0.0, 0.6)])
def test_the_closed_forms_of_gaussians_are_those_of_numerical_integration(pair):
    p, q = scipy.stats.norm(*pair[:2]), scipy.stats.norm(*pair[2:])
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(gaussian_ratio(*pair)(x), p.pdf(x) / q.pdf(x), rtol=1e-12)
    kl = integral(lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)))
    assert gaussian_kl(*pair) == pytest.approx(kl, abs=1e-10)
    for alpha in (0.1, 0.5):

        def squares(z, alpha=alpha):
            mixture = alpha * p.pdf(z) + (1 - alpha) * q.pdf(z)
            return (p.pdf(z) - mixture) ** 2 / mixture

        assert gaussian_pearson(*pair, alpha=alpha) == pytest.approx(integral(squares) / 2, abs=1e-10)
    if 2 * pair[3] ** 2 > pair[1] ** 2:
        second = integral(lambda z: np.exp(2 * p.logpdf(z) - q.logpdf(z)))
        assert gaussian_pearson(*pair) == pytest.approx((second - 1) / 2, rel=1e-9)
    else:
        assert gaussian_pearson(*pair) == math.inf
        assert gaussian_pearson(*pair, alpha=0.01) < 1 / (2 * 0.01)


def test_the_relative_ratio_is_the_ratio_to_the_mixture_and_never_above_one_over_alpha():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 1000, generator=generator, dtype=torch.float64)
    for alpha in (0.0, 0.1, 0.39, 0.9):
        found = relative_ratio(p / q, alpha)
        torch.testing.assert_close(found, p / (alpha * p + (1 - alpha) * q), rtol=1e-13, atol=0)
    extreme = torch.cat([torch.logspace(-300, 300, 5000, dtype=torch.float64), torch.tensor([0.0, math.inf])])
    for alpha in torch.linspace(0.001, 0.999, 300).tolist():
        found = relative_ratio(extreme, alpha)
        assert (found <= 1 / alpha).all() and (found >= 0).all()
        assert found[-2] == 0 and found[-1] == 1 / alpha


def true_estimate(pair, alpha):
    """The true ratio, dressed as an estimate."""
    truth = gaussian_ratio(*pair)
    basis = Basis(1, features=lambda x: relative_ratio(truth(x), alpha))
    return RatioEstimate(RatioSettings("true", alpha), torch.ones(1, dtype=torch.float64), basis)


def test_the_pearson_divergence_weighs_each_sample_by_its_own_size():
    alpha, found = 0.3, rulsif(P[:20], Q, 0.3, **KERNELS, regularisation=0.1)
    ratio_p, ratio_q = found.ratio(P[:20]), found.ratio(Q)
    by_hand = (
        -(alpha / (2 * 20)) * (ratio_p**2).sum()
        - ((1 - alpha) / (2 * 45)) * (ratio_q**2).sum()
        + ratio_p.sum() / 20
        - 0.5
    )
    assert pearson_divergence(found, P[:20], Q) == pytest.approx(float(by_hand), abs=1e-13)
    loss = bregman_loss(ratio_p, ratio_q, "least-squares", alpha=alpha)
    # the Bregman loss of (r - 1)**2 / 2 is minus the divergence
    assert pearson_divergence(found, P[:20], Q) == pytest.approx(-float(loss), abs=1e-13)


def test_the_divergences_of_the_true_ratio_are_the_closed_forms():
    p, q = draw(EASY, 40_000, 120_000, 5)
    for alpha in (0.0, 0.1, 0.5):
        truth = true_estimate(EASY, alpha)
        r_p, r_q = truth.ratio(p), truth.ratio(q)
        error = (r_p - alpha * r_p**2 / 2).std() / 200 + ((1 - alpha) * r_q**2 / 2).std() / 346
        expected = gaussian_pearson(*EASY, alpha=alpha)
        assert pearson_divergence(truth, p, q) == pytest.approx(expected, abs=4 * float(error))
        assert 4 * float(error) < 0.3 * expected
    assert kl_divergence(true_estimate(EASY, 0.0), p) == pytest.approx(gaussian_kl(*EASY), abs=4 * 0.5 / 200)


# ------------------------------------------------------------------------------------ consistency, measured


def errors_of(method, pair, sizes, repeats, alpha=0.0, **options):
    """Root mean square errors, [repeats, sizes]; one seed a repeat."""
    options |= {"alpha": alpha} if alpha > 0 else {}
    found = np.empty((repeats, len(sizes)))
    for row, seed in enumerate(seeds(9, repeats)):
        for column, n in enumerate(sizes):
            found[row, column] = root_mean_square(method(*draw(pair, n, n, seed), **options), pair, alpha)
    return found


def constant_and_truth(x):
    return torch.cat([x**0, relative_ratio(gaussian_ratio(*EASY)(x), 0.2)], dim=1)


def log_truth(x):
    return relative_ratio(gaussian_ratio(*EASY)(x), 0.2).log()


@pytest.mark.parametrize(
    ("method", "alpha", "options"),
    [
        (logistic, 0.0, LINE),
        (kliep, 0.0, {**LINE, "link": "exponential"}),
        (bregman, 0.2, {"features": log_truth, "generator": "logistic"}),
        (rulsif, 0.2, {"features": constant_and_truth, "coefficients": "keep"}),
    ],
)
def test_where_the_model_holds_the_truth_the_error_falls_as_one_over_root_n(method, alpha, options):
    sizes = (40, 320, 2560)
    errors = errors_of(method, EASY, sizes, 24, alpha, regularisation=0.0, **options)
    found = log_log_slope(sizes, errors, confidence=0.99)
    assert -0.5 in found.over_repeats
    assert found.over_repeats.half_width < 0.22


@pytest.mark.parametrize(
    ("method", "alpha", "bound", "options"),
    [
        (ulsif, 0.0, 0.25, {}),
        (rulsif, 0.1, 0.13, {"coefficients": "keep"}),
        (rulsif, 0.5, 0.05, {"coefficients": "keep", "width": 2.5, "regularisation": 1e-5, "centres": 30}),
        (logistic, 0.5, 0.08, {"width": 2.5, "regularisation": 1e-4, "centres": 30}),
        (kliep, 0.0, 0.2, {"width": 1.5}),
    ],
)
def test_kernel_estimates_approach_the_truth_as_n_grows(method, alpha, bound, options):
    sizes = (100, 400, 1600)
    errors = errors_of(method, EASY, sizes, 8 if "width" in options else 5, alpha, **options)
    assert log_log_slope(sizes, errors, resamples=1000).over_repeats.high < -0.1
    assert errors.mean(axis=0)[-1] < bound


def test_clipping_theta_costs_accuracy_once_there_are_many_points():
    clipped = errors_of(rulsif, EASY, (1000,), 8, 0.1, coefficients="clip")
    kept = errors_of(rulsif, EASY, (1000,), 8, 0.1, coefficients="keep")
    assert paired_bootstrap(clipped[:, 0], kept[:, 0], higher_is_better=False).verdict == "b"


def test_where_the_ratio_explodes_the_relative_ratio_is_still_learned():
    plain = errors_of(ulsif, HARD, (1000,), 5)
    relative = errors_of(rulsif, HARD, (1000,), 5, alpha=0.1)
    # the standard deviations of the two true ratios, under q and under the mixture, are 7.3 and 1.9
    assert plain.min() > 4.0
    assert relative.max() < 0.6


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("id", "call"),
    [
        ("density-ratio-shape", lambda: ulsif(P, torch.stack([Q, Q], dim=1))),
        ("density-ratio-shape", lambda: ulsif(P[None, None], Q)),
        ("density-ratio-shape", lambda: ulsif(P, Q, **KERNELS).ratio(torch.zeros(3, 2))),
        ("density-ratio-shape", lambda: ulsif(P, Q, centres=torch.zeros(3, 2))),
        ("density-ratio-too-few", lambda: ulsif([], Q)),
        ("density-ratio-too-few", lambda: rulsif(P, [1.0])),
        ("density-ratio-not-finite", lambda: kliep([0.0, math.nan, 1.0], Q)),
        ("density-ratio-not-finite", lambda: logistic(P, [0.0, math.inf])),
        ("density-ratio-not-finite", lambda: relative_ratio(torch.tensor([-0.1]), 0.5)),
        ("density-ratio-not-finite", lambda: relative_ratio(torch.tensor([math.nan]), 0.5)),
        ("density-ratio-alpha", lambda: rulsif(P, Q, 1.0)),
        ("density-ratio-alpha", lambda: rulsif(P, Q, -0.1)),
        ("density-ratio-alpha", lambda: logistic(P, Q, math.nan)),
        ("density-ratio-not-finite", lambda: kl_divergence(kliep(P, Q, **KERNELS), P + 99)),
        ("density-ratio-alpha", lambda: relative_ratio(P.abs(), 1.0)),
        ("density-ratio-alpha", lambda: bregman_loss(P.abs(), Q.abs(), alpha=1.0)),
        ("density-ratio-alpha", lambda: gaussian_pearson(*EASY, alpha=1.5)),
        ("density-ratio-alpha", lambda: select("kliep", P, Q, alpha=0.1)),
        ("density-ratio-option", lambda: select("least-squares", P, Q)),
        ("density-ratio-option", lambda: ulsif(P, Q, coefficients="positive")),
        ("density-ratio-option", lambda: select("kliep", P, Q, coefficients="clip")),
        ("density-ratio-option", lambda: kliep(P, Q, link="log")),
        ("density-ratio-option", lambda: bregman(P, Q, "hinge")),
        ("density-ratio-option", lambda: ulsif(P, Q, width=0.0)),
        ("density-ratio-option", lambda: ulsif(P, Q, regularisation=-1.0)),
        ("density-ratio-option", lambda: ulsif(P, Q, width=[])),
        ("density-ratio-option", lambda: kliep(P, Q, folds=1)),
        ("density-ratio-option", lambda: draw_centres(P, 0)),
        ("density-ratio-option", lambda: power(0.0)),
        ("density-ratio-option", lambda: gaussian_ratio(0, 0, 1, 1)),
        ("density-ratio-features", lambda: ulsif(P, Q, features=lambda x: x[:3])),
        ("density-ratio-features", lambda: ulsif(P, Q, features=lambda x: 1 / (x * 0))),
        ("density-ratio-features", lambda: kliep(P, Q, features=lambda x: x)),
        ("density-ratio-width", lambda: ulsif(torch.zeros(5), torch.zeros(5))),
        (
            "density-ratio-singular",
            lambda: ulsif(P, Q, features=lambda x: torch.cat([x, 0 * x], 1), regularisation=0),
        ),
        ("density-ratio-no-convergence", lambda: logistic(P, P + 9, **LINE, regularisation=0)),
        ("density-ratio-no-convergence", lambda: kliep(P, Q + 1e4, width=0.5)),
    ],
)
def test_bad_input_is_refused_with_an_id(id, call):
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == id
    assert caught.value.remedy


@pytest.mark.parametrize(
    "fit", [lambda: logistic(P, Q, **LINE, regularisation=0.01), lambda: kliep(P, Q, **KERNELS)]
)
def test_a_fit_that_stops_short_of_its_minimum_is_refused(fit, monkeypatch):
    monkeypatch.setattr(convex, "STEPS", 2)
    with pytest.raises(CourseError) as caught:
        fit()
    assert caught.value.id == "density-ratio-no-convergence"
    assert "gradient is still" in str(caught.value)
