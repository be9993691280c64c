"""Intervals cover as often as they promise, slopes are exact, and scipy agrees where it has the same."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch

from course_utils.errors import CourseError
from course_utils.statistics import (
    Interval,
    bootstrap_interval,
    calibration_curve,
    expected_calibration_error,
    holm,
    log_log_slope,
    mean_interval,
    normal_quantile,
    paired_bootstrap,
    paired_permutation_test,
    seeds,
    t_quantile,
    wilson_interval,
)
from course_utils.statistics.intervals import _bca_levels, _expanded_levels
from course_utils.statistics.quantiles import _t_quantile_far

SAMPLE = np.random.default_rng(7).gamma(2.0, size=23)


# ------------------------------------------------------------------------------------------------- intervals


def test_an_interval_prints_as_many_digits_as_its_width_deserves():
    assert str(Interval(0.8312, 0.8004, 0.8611, 0.95, 20)) == "0.83 [0.80, 0.86] (95 %, n = 20)"
    assert str(Interval(0.8312, 0.8192, 0.8432, 0.95, 20)) == "0.831 [0.819, 0.843] (95 %, n = 20)"
    assert str(Interval(123456.0, 120000.0, 127000.0, 0.9, 5)) == "123456 [120000, 127000] (90 %, n = 5)"
    assert str(Interval(4.35e-5, 4.11e-5, 4.61e-5, 0.95, 3)) == "4.35e-05 [4.11e-05, 4.61e-05] (95 %, n = 3)"
    assert f"{Interval(0.8312, 0.8004, 0.8611, 0.999, 20):.1f}" == "0.8 [0.8, 0.9] (99.9 %, n = 20)"
    assert str(Interval(-0.52, -4.03, 2.98, 0.99, 3)) == "-0.5 [-4.0, 3.0] (99 %, n = 3)"
    assert str(Interval(2.5e9, 1.0e9, 4.0e9, 0.95, 3)) == "2.5e+09 [1.0e+09, 4.0e+09] (95 %, n = 3)"
    assert str(Interval(0.5, 0.5, 0.5, 0.95, 3)) == "0.5000 [0.5000, 0.5000] (95 %, n = 3)"
    assert str(Interval(0.0, 0.0, 0.0, 0.95, 2)) == "0 [0, 0] (95 %, n = 2)"
    assert str(Interval(1.0, -math.inf, math.inf, 0.95, 2)) == "1 [-inf, inf] (95 %, n = 2)"


def test_importing_the_statistics_loads_neither_torch_nor_scipy():
    code = "import sys, course_utils.statistics; print({'torch', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_value_is_in_an_interval_when_it_lies_between_the_limits():
    interval = Interval(0.5, 0.25, 0.75, 0.95, 4)
    assert 0.25 in interval and 0.75 in interval and 0.5 in interval
    assert 0.2499 not in interval and 0.7501 not in interval
    assert interval.half_width == 0.25


def test_the_mean_interval_is_the_one_of_scipy():
    ours = mean_interval(SAMPLE, 0.9)
    theirs = scipy.stats.t.interval(0.9, 22, loc=SAMPLE.mean(), scale=scipy.stats.sem(SAMPLE))
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-12)
    assert (ours.estimate, ours.confidence, ours.count) == (SAMPLE.mean(), 0.9, 23)


def test_a_tensor_of_low_precision_gives_the_same_interval_as_its_array():
    tensor = torch.tensor(SAMPLE, dtype=torch.bfloat16, requires_grad=True)
    assert mean_interval(tensor) == mean_interval(tensor.detach().float().numpy())


def test_the_mean_interval_covers_the_truth_as_often_as_it_promises():
    rng = np.random.default_rng(1)
    for confidence in (0.8, 0.95):
        covered = sum(0.3 in mean_interval(rng.normal(0.3, 2, size=5), confidence) for _ in range(4000))
        assert abs(covered / 4000 - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / 4000)


def test_the_wilson_interval_is_the_one_of_scipy():
    for successes, trials, confidence in [(0, 10, 0.95), (3, 10, 0.95), (10, 10, 0.9), (977, 1000, 0.99)]:
        ours = wilson_interval(successes, trials, confidence)
        theirs = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=1e-14)
        assert ours.estimate == successes / trials and ours.count == trials
    for trials in range(1, 300):
        assert wilson_interval(0, trials).low == 0.0 and 0.0 in wilson_interval(0, trials)
        assert wilson_interval(trials, trials).high == 1.0 and 1.0 in wilson_interval(trials, trials)


def test_the_wilson_interval_covers_about_as_often_as_it_promises_summed_over_all_outcomes():
    trials, truths = 40, np.linspace(0.05, 0.95, 181)
    chance = scipy.stats.binom.pmf(np.arange(trials + 1)[:, None], trials, truths)
    limits = [wilson_interval(count, trials) for count in range(trials + 1)]
    holds = np.array([[truth in interval for truth in truths] for interval in limits])
    coverage = (chance * holds).sum(axis=0)
    assert abs(coverage.mean() - 0.95) < 0.005
    assert coverage.min() > 0.90


def test_bca_limits_are_those_of_scipy_on_the_same_resamples():
    whole = np.array([0, 0, 0, 1, 1, 2, 5, 1, 0, 3])  # resampled means tie with the estimate
    for values, statistic in ((SAMPLE, np.mean), (SAMPLE, np.std), (whole, np.mean)):
        # no seed: its name differs between scipy versions, and the identity holds for any resamples
        theirs = scipy.stats.bootstrap((values,), statistic, method="BCa", n_resamples=2000)
        draws = theirs.bootstrap_distribution
        without_one = np.array([statistic(np.delete(values, row)) for row in range(values.size)])
        levels = _bca_levels(float(statistic(values)), draws, without_one, 0.95)
        ours = tuple(np.quantile(draws, levels))
        assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)


def test_the_bootstrap_interval_reads_these_levels_of_its_own_resamples():
    ours = {m: bootstrap_interval(SAMPLE, resamples=40_000, method=m) for m in ("percentile", "bca")}
    draws = np.random.default_rng(5).choice(SAMPLE, size=(40_000, SAMPLE.size)).mean(axis=1)
    without_one = (SAMPLE.sum() - SAMPLE) / (SAMPLE.size - 1)
    levels = {"percentile": (0.025, 0.975), "bca": _bca_levels(SAMPLE.mean(), draws, without_one, 0.95)}
    for method, interval in ours.items():
        low, high = np.quantile(draws, levels[method])
        # two independent sets of resamples: each limit is known to about 0.5 % of the width
        assert interval.low == pytest.approx(low, abs=0.02 * (high - low))
        assert interval.high == pytest.approx(high, abs=0.02 * (high - low))
    # the sample is skewed to the right, so BCa moves both limits that way
    assert ours["bca"].low > ours["percentile"].low and ours["bca"].high > ours["percentile"].high


def test_the_expanded_limits_of_a_mean_are_as_wide_as_students():
    values = np.random.default_rng(3).normal(size=12)
    expanded = bootstrap_interval(values, resamples=200_000, method="expanded")
    percentile = bootstrap_interval(values, resamples=200_000, method="percentile")
    student = mean_interval(values)
    # exactly so for a bootstrap distribution that is normal, with the standard error that resampling gives
    low, high = _expanded_levels(0.95, 12)
    assert low + high == pytest.approx(1, abs=1e-15)
    resampled_error = values.std(ddof=0) / math.sqrt(12)
    assert normal_quantile(high) * resampled_error == pytest.approx(student.half_width, rel=1e-12)
    assert expanded.half_width == pytest.approx(student.half_width, rel=0.06)
    assert percentile.half_width < 0.9 * student.half_width


def test_bca_covers_a_skewed_mean_from_sixty_values_and_expanded_limits_cover_from_five():
    rng = np.random.default_rng(11)
    many = rng.exponential(size=(700, 60))
    bca = np.mean([1.0 in bootstrap_interval(row, resamples=800, seed=i) for i, row in enumerate(many)])
    assert 0.915 < bca < 0.965
    few = rng.normal(size=(700, 5))
    covered = {
        method: np.mean(
            [0.0 in bootstrap_interval(row, resamples=2000, seed=1, method=method) for row in few]
        )
        for method in ("percentile", "bca", "expanded")
    }
    assert 0.78 < covered["percentile"] < 0.87  # what the module's docstring warns of
    assert 0.78 < covered["bca"] < 0.87
    assert 0.88 < covered["expanded"] < 0.955


def test_a_statistic_without_axis_gives_the_same_limits_as_one_with_axis():
    with_axis = bootstrap_interval(SAMPLE, np.median, resamples=500, seed=4)
    without = bootstrap_interval(SAMPLE, lambda values: np.median(values), resamples=500, seed=4)
    assert with_axis == without
    assert with_axis != bootstrap_interval(SAMPLE, np.median, resamples=500, seed=5)


def test_the_mean_has_the_same_bca_limits_by_its_short_cut_as_one_value_at_a_time():
    for method in ("bca", "expanded"):
        short = bootstrap_interval(SAMPLE, np.mean, resamples=500, seed=4, method=method)
        long = bootstrap_interval(
            SAMPLE, lambda values: np.mean(values), resamples=500, seed=4, method=method
        )
        assert (short.low, short.high) == pytest.approx((long.low, long.high), rel=1e-12)


def test_rows_are_resampled_together_when_the_statistic_needs_them_together():
    x = np.linspace(0, 1, 30)
    rows = np.stack([x, 3 * x], axis=1)  # perfectly correlated: any resample of rows has correlation one
    interval = bootstrap_interval(rows, lambda r: np.corrcoef(r.T)[0, 1], resamples=200, method="percentile")
    assert interval.low == pytest.approx(1.0) and interval.high == pytest.approx(1.0)


def test_equal_values_give_an_interval_without_width():
    for method in ("percentile", "bca", "expanded"):
        interval = bootstrap_interval([2.0] * 6, method=method, resamples=200)
        assert (interval.low, interval.high) == (2.0, 2.0)
    assert mean_interval([2.0] * 6).half_width == 0


# ----------------------------------------------------------------------------------------------------- seeds


def test_seeds_are_distinct_grow_without_change_and_differ_between_neighbouring_bases():
    assert seeds(0, 3) == [2968811710, 3677149159, 745650761]  # the same on every machine and numpy version
    assert seeds(5, 400)[:100] == seeds(5, 100)
    drawn = [seed for base in range(40) for seed in seeds(base, 200)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**32 for seed in drawn)
    assert seeds(0, 0) == []


def test_generators_from_neighbouring_seeds_are_uncorrelated():
    draws = np.stack([np.random.default_rng(seed).normal(size=2000) for seed in seeds(0, 20)])
    correlation = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(2000)
    assert correlation.std() == pytest.approx(1 / math.sqrt(2000), rel=0.25)


# ----------------------------------------------------------------------------------------------------- pairs


def test_the_paired_bootstrap_sees_a_small_difference_that_the_spread_of_prompts_would_hide():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=60)
    a, b = difficulty + 0.1 + 0.1 * rng.normal(size=60), difficulty + 0.1 * rng.normal(size=60)
    found = paired_bootstrap(a, b)
    assert found.verdict == "a" and 0.1 in found.difference
    assert paired_bootstrap(b, a).verdict == "b"
    assert paired_bootstrap(a, b, higher_is_better=False).verdict == "b"
    assert scipy.stats.ttest_ind(a, b).pvalue > 0.3
    assert str(found).endswith("a is better")


def test_the_verdict_is_a_tie_as_often_as_promised_when_there_is_no_difference():
    rng = np.random.default_rng(2)
    for count in (5, 25):
        ties = [
            paired_bootstrap(*rng.normal(size=(2, count)), resamples=2000, seed=seed).verdict == "tie"
            for seed in range(600)
        ]
        assert 0.88 < np.mean(ties) < 0.98


def test_the_exact_permutation_test_counts_every_swap():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.4, 1, size=9), rng.normal(size=9)
    found = paired_permutation_test(a, b)
    hits = sum(
        abs(sum(sign * one for sign, one in zip(signs, a - b, strict=True))) >= abs((a - b).sum()) - 1e-12
        for signs in itertools.product((-1, 1), repeat=9)
    )
    assert found.exact and found.p_value == hits / 2**9
    theirs = scipy.stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert found.p_value == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_random_permutation_test_agrees_with_the_exact_count():
    rng = np.random.default_rng(6)
    a = rng.normal(0.25, 1, size=21)
    found = paired_permutation_test(a, np.zeros(21), seed=3, resamples=40_000)
    sums = np.zeros(1)
    for one in a:
        sums = np.concatenate([sums + one, sums - one])
    exact = (np.abs(sums) >= abs(a.sum()) - 1e-9).mean()
    assert not found.exact
    assert abs(found.p_value - exact) < 4.5 * math.sqrt(exact * (1 - exact) / 40_000)


def test_five_seeds_cannot_reach_five_percent_and_a_p_value_is_never_zero():
    assert paired_permutation_test([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]).p_value == 2 / 32
    assert paired_permutation_test(np.arange(1, 31), np.zeros(30), resamples=100).p_value == 1 / 101
    assert paired_permutation_test([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


def test_ties_of_swapped_sums_count_in_spite_of_rounding():
    for tenths in itertools.permutations([1, 2, 3, -3, 7]):
        whole = paired_permutation_test(tenths, [0] * 5).p_value
        assert paired_permutation_test(np.array(tenths) / 10, [0] * 5).p_value == whole


def test_holm_is_the_closed_testing_of_bonferroni_over_all_subsets():
    rng = np.random.default_rng(8)
    for _ in range(20):
        p_values = rng.uniform(size=5) ** 3
        closed = [
            max(
                min(1.0, len(subset) * p_values[list(subset)].min())
                for size in range(1, 6)
                for subset in itertools.combinations(range(5), size)
                if index in subset
            )
            for index in range(5)
        ]
        assert holm(p_values) == pytest.approx(closed, abs=1e-15)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)


# ---------------------------------------------------------------------------------------------------- slopes


def test_the_slope_of_an_exact_power_law_is_exact():
    x = np.array([10.0, 30.0, 100.0, 1e3, 1e5])
    for exponent in (-0.5, -1.0, 2.25, 0.0):
        found = log_log_slope(x, 3.7 * x**exponent)
        assert found.slope.estimate == pytest.approx(exponent, abs=1e-12)
        assert found.intercept == pytest.approx(math.log(3.7), abs=1e-12)
        assert found.slope.half_width < 1e-11
        assert found.over_repeats is None
        assert found.predict([50.0]) == pytest.approx([3.7 * 50.0**exponent], rel=1e-11)
    repeats = np.array([[1.0], [2.0], [6.0]]) * x**-0.5
    found = log_log_slope(x, repeats, resamples=200)
    assert found.slope.estimate == pytest.approx(-0.5, abs=1e-12)
    assert found.intercept == pytest.approx(math.log(3.0), abs=1e-12)  # the line of the mean over repeats
    assert found.over_repeats.low == pytest.approx(-0.5, abs=1e-12)
    assert found.over_repeats.high == pytest.approx(-0.5, abs=1e-12)


def test_the_limits_of_a_slope_are_those_of_scipys_regression():
    rng = np.random.default_rng(9)
    x = np.geomspace(10, 1e4, 9)
    y = x**-0.7 * np.exp(0.2 * rng.normal(size=9))
    ours, theirs = log_log_slope(x, y, 0.9), scipy.stats.linregress(np.log(x), np.log(y))
    assert ours.slope.estimate == pytest.approx(theirs.slope, rel=1e-12)
    assert ours.intercept == pytest.approx(theirs.intercept, rel=1e-12)
    assert ours.slope.half_width == pytest.approx(scipy.stats.t.ppf(0.95, 7) * theirs.stderr, rel=1e-10)
    assert ours.slope.count == 9


def test_the_line_goes_through_the_log_of_the_mean_over_repeats():
    rng = np.random.default_rng(15)
    x = np.geomspace(1, 100, 5)
    repeats = rng.gamma(1.0, size=(7, 5)) / x
    theirs = scipy.stats.linregress(np.log(x), np.log(repeats.mean(axis=0)))
    ours = log_log_slope(x, repeats, resamples=200)
    assert (ours.slope.estimate, ours.intercept) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-12)


def test_both_kinds_of_slope_limits_cover_the_true_exponent():
    rng = np.random.default_rng(10)
    x = np.geomspace(10, 1e4, 6)
    line = over = 0
    for trial in range(400):
        y = x**-0.5 * rng.gamma(4.0, size=(10, 6))
        found = log_log_slope(x, y, resamples=400, seed=trial)
        line += -0.5 in found.slope
        over += -0.5 in found.over_repeats
        assert found.over_repeats.count == 10
    assert 0.915 < line / 400 < 0.98
    assert 0.90 < over / 400 < 0.975


# ----------------------------------------------------------------------------------------------- calibration


def test_the_calibration_curve_counts_what_a_hand_counts():
    curve = calibration_curve([0.05, 0.15, 0.12, 0.95, 1.0, 0.1], [0, 1, 0, 1, 1, 1], bins=10)
    assert curve.counts.tolist() == [1, 3, 2]  # 0.1 lies on an edge and counts above it
    assert curve.probability == pytest.approx([0.05, 0.37 / 3, 0.975])
    assert curve.frequency == pytest.approx([0, 2 / 3, 1])
    assert [round(one.low, 9) for one in curve.bins] == [0, 0.1, 0.9]
    assert curve.bins[1].frequency == wilson_interval(2, 3)
    assert curve.low.tolist() == [one.frequency.low for one in curve.bins]
    assert curve.high.tolist() == [one.frequency.high for one in curve.bins]
    by_hand = (1 * 0.05 + 3 * (2 / 3 - 0.37 / 3) + 2 * 0.025) / 6
    assert curve.expected_calibration_error == pytest.approx(by_hand, abs=1e-15)


def test_a_calibrated_judge_lies_within_its_limits_and_an_overconfident_one_does_not():
    rng = np.random.default_rng(12)
    truth = rng.uniform(0.02, 0.98, size=20_000)
    outcome = rng.uniform(size=20_000) < truth
    inside = total = 0
    for start in range(0, 20_000, 1000):
        part = slice(start, start + 1000)
        for one in calibration_curve(truth[part], outcome[part]).bins:
            inside, total = inside + (one.probability in one.frequency), total + 1
    assert 0.90 < inside / total < 0.99
    logit = np.log(truth / (1 - truth))
    overconfident = calibration_curve(torch.sigmoid(3 * torch.tensor(logit)), torch.tensor(outcome))
    outside = [one.probability not in one.frequency for one in overconfident.bins]
    assert sum(outside) >= 8
    assert overconfident.expected_calibration_error > 0.1


def test_chance_alone_lifts_the_calibration_error_by_the_amount_the_docstring_says():
    rng = np.random.default_rng(13)
    found = []
    for _ in range(200):
        truth = rng.uniform(size=1000)
        found.append(expected_calibration_error(truth, rng.uniform(size=1000) < truth, bins=10))
    assert np.mean(found) == pytest.approx(0.31 * math.sqrt(10 / 1000), rel=0.05)


def test_bins_of_equal_counts_hold_equal_counts():
    rng = np.random.default_rng(14)
    probability = rng.beta(0.5, 5, size=1000)
    curve = calibration_curve(probability, rng.uniform(size=1000) < probability, bins=8, equal_counts=True)
    assert curve.counts.tolist() == [125] * 8
    same = calibration_curve([0.3] * 5, [0, 1, 0, 0, 1], bins=4, equal_counts=True)
    assert same.counts.tolist() == [5] and same.frequency.tolist() == [0.4]


# ------------------------------------------------------------------------------------------------- quantiles


def test_the_t_quantile_is_the_one_of_scipy():
    for freedom in (1, 2, 3, 4, 5, 10, 29, 100, 999, 1000, 1001, 5000, 10**6):
        for probability in (1e-4, 0.005, 0.025, 0.2, 0.5, 0.6, 0.95, 0.975, 0.9995, 0.9999):
            theirs = scipy.stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(theirs, rel=1e-11, abs=1e-15)


def test_the_expansion_for_many_degrees_of_freedom_is_off_by_the_fifth_power():
    for probability in (0.7, 0.975):
        z = normal_quantile(probability)
        freedom = np.array([20, 40, 80])
        off = [abs(_t_quantile_far(z, v) - scipy.stats.t.ppf(probability, v)) for v in freedom.tolist()]
        assert log_log_slope(freedom, off).slope.estimate == pytest.approx(-5, abs=0.15)


def test_the_normal_quantile_is_the_one_of_scipy():
    for probability in (1e-9, 0.025, 0.5, 0.8, 0.975, 0.999999):
        theirs = scipy.stats.norm.ppf(probability)
        assert normal_quantile(probability) == pytest.approx(theirs, rel=1e-13, abs=1e-15)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("id", "call"),
    [
        ("statistics-too-few", lambda: mean_interval([])),
        ("statistics-too-few", lambda: mean_interval([1.0])),
        ("statistics-too-few", lambda: bootstrap_interval([1.0])),
        ("statistics-too-few", lambda: log_log_slope([1, 2], [1, 2])),
        ("statistics-too-few", lambda: holm([])),
        ("statistics-not-finite", lambda: mean_interval([1.0, math.nan])),
        ("statistics-not-finite", lambda: paired_bootstrap([1.0, 2.0], [math.inf, 2.0])),
        ("statistics-not-finite", lambda: holm([math.nan])),
        (
            "statistics-not-finite",
            lambda: bootstrap_interval(
                [0.0, 1.0, 2.0], lambda v: math.log(v.sum()) if v.sum() else -math.inf
            ),
        ),
        ("statistics-not-positive", lambda: log_log_slope([1, 2, 3], [1.0, 0.0, 2.0])),
        ("statistics-not-positive", lambda: log_log_slope([-1, 2, 3], [1.0, 1.0, 2.0])),
        ("statistics-unpaired", lambda: log_log_slope([1, 2, 3], [1.0, 1.0])),
        ("statistics-unpaired", lambda: paired_bootstrap([1, 2, 3], [1.0, 1.0])),
        ("statistics-unpaired", lambda: paired_permutation_test([1, 2, 3], [1.0, 1.0])),
        ("statistics-unpaired", lambda: calibration_curve([0.5], [0, 1])),
        ("statistics-shape", lambda: mean_interval([[1.0, 2.0], [3.0, 4.0]])),
        ("statistics-shape", lambda: mean_interval(3.0)),
        ("statistics-out-of-range", lambda: log_log_slope([2, 2, 2], [1.0, 1.0, 2.0])),
        ("statistics-out-of-range", lambda: calibration_curve([1.5], [1])),
        ("statistics-out-of-range", lambda: calibration_curve([0.5], [0.5])),
        ("statistics-out-of-range", lambda: holm([0.5, 1.2])),
        ("statistics-out-of-range", lambda: wilson_interval(4, 3)),
        ("statistics-option", lambda: wilson_interval(0, 0)),
        ("statistics-option", lambda: wilson_interval(0.5, 1)),
        ("statistics-option", lambda: mean_interval([1.0, 2.0], confidence=95)),
        ("statistics-option", lambda: bootstrap_interval([1.0, 2.0], method="studentised")),
        ("statistics-option", lambda: bootstrap_interval([1.0, 2.0], resamples=10)),
        ("statistics-option", lambda: calibration_curve([0.5], [1], bins=0)),
        ("statistics-option", lambda: seeds(-1, 2)),
        ("statistics-option", lambda: seeds(0.5, 2)),
        ("statistics-option", lambda: t_quantile(1.0, 3)),
        ("statistics-option", lambda: t_quantile(0.9, 0)),
        ("statistics-option", lambda: t_quantile(0.9, 2.5)),
        ("statistics-option", lambda: normal_quantile(0.0)),
        ("statistics-one-sided", lambda: bootstrap_interval(range(30), lambda v: float(len(set(v))))),
    ],
)
def test_bad_input_is_refused_with_an_id(id, call):
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == id
    assert caught.value.remedy
