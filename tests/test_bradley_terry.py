"""Bradley–Terry: the maximum, its curvature, what can be identified, and Elo as a gradient step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import bradley_terry as bt
from course_utils.errors import CourseError


def random_scores(seed: int, count: int = 6) -> torch.Tensor:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores - scores.mean()


def judge(scores: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(scores[:, None] - scores[None, :])


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_population_gives_the_true_scores_back(seed):
    truth = random_scores(seed)
    found = bt.fit(judge(truth))
    assert torch.allclose(found.scores, truth, atol=1e-10)
    assert abs(bt.likelihood_gap(judge(truth))) < 1e-12


def test_gradient_and_hessian_agree_with_automatic_differentiation():
    wins = torch.rand(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 20
    scores = random_scores(1, 5).requires_grad_()
    (slope,) = torch.autograd.grad(bt.log_likelihood(scores, wins), scores)
    assert torch.allclose(slope, bt.gradient(scores.detach(), wins), atol=1e-10)
    second = torch.autograd.functional.hessian(lambda s: -bt.log_likelihood(s, wins), scores.detach())
    assert torch.allclose(second, bt.hessian(scores.detach(), wins), atol=1e-10)


@given(st.integers(0, 10_000), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_a_common_shift_changes_nothing(seed, shift):
    scores = random_scores(seed)
    wins = judge(random_scores(seed + 1)) * 10
    assert math.isclose(bt.log_likelihood(scores, wins), bt.log_likelihood(scores + shift, wins), rel_tol=1e-9)
    assert bt.hessian(scores, wins) @ torch.ones(6, dtype=torch.float64) == pytest.approx([0] * 6, abs=1e-12)


def test_standard_errors_are_those_of_the_constrained_model():
    wins = judge(random_scores(2)) * 40
    found = bt.fit(wins)
    # Another way: drop the last score (minus the sum of the others), invert there, and carry the covariance back.
    basis = torch.cat([torch.eye(5), -torch.ones(1, 5)]).double()
    covariance = basis @ torch.linalg.inv(basis.T @ found.hessian @ basis) @ basis.T
    assert torch.allclose(found.standard_errors, covariance.diagonal().sqrt(), atol=1e-12)


def test_standard_errors_are_the_spread_of_repeated_fits():
    truth, generator = random_scores(4, 4), torch.Generator().manual_seed(0)
    games = 200
    fits = []
    for _ in range(300):
        wins = torch.zeros(4, 4, dtype=torch.float64)
        for a in range(4):
            for b in range(a):
                won = (torch.rand(games, generator=generator) < judge(truth)[a, b]).sum()
                wins[a, b], wins[b, a] = won, games - won
        fits.append(bt.fit(wins).scores)
    ratio = torch.stack(fits).std(0) / bt.fit(judge(truth) * games).standard_errors
    assert ((ratio > 0.88) & (ratio < 1.12)).all()  # 300 repeats: a standard error of 4 %


def test_rock_paper_scissors_gets_equal_scores_and_a_gap_of_one_coin_per_pair():
    cycle = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
    assert bt.fit(cycle).scores.abs().max() < 1e-12
    coin = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert math.isclose(bt.likelihood_gap(cycle), coin, rel_tol=1e-12)


def test_a_response_that_never_loses_has_no_finite_score():
    wins = torch.tensor([[0, 5, 5], [0, 0, 3], [0, 2, 0.0]])
    with pytest.raises(CourseError, match="no maximum"):
        bt.fit(wins)


def test_two_islands_cannot_be_compared():
    wins = torch.zeros(4, 4)
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 1
    with pytest.raises(CourseError, match="No chain of wins"):
        bt.fit(wins)


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.tensor([[0, -1.0], [1, 0]]), torch.full((2, 2), torch.nan)])
def test_a_bad_table_is_refused(bad):
    with pytest.raises(CourseError, match="no table of wins"):
        bt.fit(bad)


@pytest.mark.parametrize(("games", "seed"), [(600, 2035992011), (400, 2185665103)])
def test_rounding_near_the_top_does_not_stall_the_fit(games, seed):
    # Two data sets on which the log-likelihood rises by less than its rounding before the gradient vanishes.
    truth = torch.tensor([-1.5, -0.7, -0.1, 0.4, 0.8, 1.1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(6, (games,), generator=generator)
    second = (first + torch.randint(1, 6, (games,), generator=generator)) % 6
    won = torch.rand(games, generator=generator, dtype=torch.float64) < judge(truth)[first, second]
    wins = bt.count_wins(torch.where(won, first, second), torch.where(won, second, first), 6)
    found = bt.fit(wins)
    assert bt.gradient(found.scores, wins).abs().max() < 1e-9 and found.steps < 10


def test_a_lopsided_table_still_has_its_maximum():
    found = bt.fit(torch.tensor([[0.0, 1e6], [1.0, 0.0]]))
    assert math.isclose(float(found.scores[0] - found.scores[1]), math.log(1e6), rel_tol=1e-6)


def test_counting_adds_up_and_refuses_ragged_lists():
    wins = bt.count_wins(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 0]), 3)
    assert wins.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(CourseError, match="one length"):
        bt.count_wins(torch.tensor([0, 1]), torch.tensor([1]), 3)


def test_one_elo_update_is_a_gradient_step_on_that_comparison():
    chosen, rejected = torch.tensor([2, 0, 2]), torch.tensor([1, 2, 0])
    history = bt.elo(chosen, rejected, 3, step=0.3)
    for index in range(3):
        wins = bt.count_wins(chosen[index : index + 1], rejected[index : index + 1], 3)
        assert torch.allclose(history[index + 1] - history[index], 0.3 * bt.gradient(history[index], wins), atol=1e-14)
    assert history.sum(1).abs().max() < 1e-14
