"""The length-controlled win rate before judges whose liking for length is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from course_utils.errors import CourseError
from course_utils.length_control import length_controlled_win_rate


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def judged(theta, phi, prompts=4000, longer=60.0, seed=0, hard=0.0, soft=True):
    """Responses longer by `longer` on average, and a judge whose log-odds are theta + phi tanh(difference / deviation)."""
    rng = np.random.default_rng(seed)
    ours, others = rng.normal(200 + longer, 50, prompts), rng.normal(200, 50, prompts)
    difference = ours - others
    gamma = rng.normal(size=prompts)
    p = sigmoid(theta + phi * np.tanh(difference / difference.std()) + hard * gamma)
    wins = p if soft else (rng.random(prompts) < p).astype(float)
    return wins, ours, others, gamma


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.7])
@pytest.mark.parametrize("phi", [0.0, 1.0, -0.8])
def test_a_judge_that_likes_length_through_tanh_is_seen_through_exactly(theta, phi):
    wins, ours, others, _ = judged(theta, phi)
    found = length_controlled_win_rate(wins, ours, others, samples=2)
    assert found.strength == pytest.approx(theta, abs=1e-4)
    assert found.liking_for_length == pytest.approx(phi, abs=1e-4)
    assert found.controlled.estimate == pytest.approx(sigmoid(theta), abs=1e-4)


def test_equal_models_of_unequal_length_win_half_at_equal_length_though_the_raw_rate_says_otherwise():
    wins, ours, others, _ = judged(0.0, 1.5)
    found = length_controlled_win_rate(wins, ours, others, samples=2)
    assert found.raw.low > 0.6
    assert found.controlled.estimate == pytest.approx(0.5, abs=1e-4)


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    truth, held = sigmoid(0.3), 0
    for seed in range(60):
        wins, ours, others, _ = judged(0.3, 1.0, prompts=300, seed=seed, soft=False)
        held += truth in length_controlled_win_rate(wins, ours, others, samples=60, seed=seed).controlled
    assert 51 <= held <= 60


def test_swapping_the_models_turns_the_win_rate_round():
    wins, ours, others, _ = judged(0.4, 0.9, prompts=200, soft=False)
    one = length_controlled_win_rate(wins, ours, others, samples=2)
    two = length_controlled_win_rate(1 - wins, others, ours, samples=2)
    assert one.controlled.estimate + two.controlled.estimate == pytest.approx(1, abs=1e-6)
    assert one.liking_for_length == pytest.approx(two.liking_for_length, abs=1e-5)


def test_the_unit_of_length_does_not_matter():
    wins, ours, others, _ = judged(0.4, 0.9, prompts=200)
    words = length_controlled_win_rate(wins, ours, others, samples=2).controlled
    letters = length_controlled_win_rate(wins, 5.3 * ours, 5.3 * others, samples=2).controlled
    assert words.estimate == pytest.approx(letters.estimate, abs=1e-6)


def test_difficulty_is_a_third_term_and_the_rate_averages_over_prompts():
    wins, ours, others, gamma = judged(0.5, 1.0, hard=1.2)
    found = length_controlled_win_rate(wins, ours, others, gamma, samples=2)
    assert found.difficulty == pytest.approx(1.2, abs=1e-3)
    assert found.controlled.estimate == pytest.approx(sigmoid(0.5 + 1.2 * gamma).mean(), abs=1e-4)


def test_length_that_comes_with_quality_is_taken_out_too():
    # The judge reads quality alone; better responses happen to be longer. The control cannot know that.
    rng = np.random.default_rng(0)
    quality = rng.normal(0.5, 1, 4000)
    ours, others = 200 + 50 * quality + rng.normal(0, 5, 4000), np.full(4000, 200.0)
    found = length_controlled_win_rate(sigmoid(quality), ours, others, samples=2)
    assert found.raw.estimate - found.controlled.estimate > 0.05


def test_responses_of_equal_length_leave_the_raw_rate():
    wins = np.random.default_rng(0).random(50)
    found = length_controlled_win_rate(wins, [7] * 50, [7] * 50, samples=2)
    assert found.controlled.estimate == pytest.approx(wins.mean(), abs=1e-4)


def test_the_same_seed_gives_the_same_interval():
    wins, ours, others, _ = judged(0.4, 0.9, prompts=100)
    assert length_controlled_win_rate(wins, ours, others, seed=3, samples=20) == length_controlled_win_rate(
        wins, ours, others, seed=3, samples=20
    )


@pytest.mark.parametrize(
    "bad",
    [
        ([0.5] * 9, [1] * 9, [2] * 9),
        ([0.5] * 10, [1] * 9, [2] * 10),
        ([1.5] * 10, [1] * 10, [2] * 10),
        ([1.0] * 10, [1] * 10, [2] * 10),
        ([0.5] * 10, [float("nan")] * 10, [2] * 10),
    ],
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(CourseError, match="length_controlled_win_rate"):
        length_controlled_win_rate(*bad)
