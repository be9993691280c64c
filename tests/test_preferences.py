"""Judges and draws: what a judge's matrix must satisfy, and that draws have the distribution they claim."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import preferences
from course_utils.errors import CourseError
from course_utils.preferences import (
    Groups,
    Pairs,
    Population,
    SoftPairs,
    Unpaired,
    World,
    as_function,
    bradley_terry,
    cyclic,
    draw_groups,
    draw_pairs,
    draw_population_pairs,
    draw_soft_pairs,
    draw_unpaired,
    mixture_of_judges,
    with_label_noise,
)
from course_utils.worlds.finite import FiniteWorld

REFERENCE = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]
REWARD = [[0.0, 1.0, -1.0, 2.0], [1.0, 0.0, 0.5, -0.5]]


def world() -> FiniteWorld:
    return FiniteWorld.from_rewards(REFERENCE, REWARD, prompt_weights=[0.3, 0.7])


class TextWorld:
    """The smallest world of texts: short reviews, and a judge that likes long ones."""

    words = ("fine", "lovely soup", "a warm, bright room")

    def sample_prompts(self, n, generator):
        return [f"review {i}" for i in torch.randint(3, (n,), generator=generator).tolist()]

    def sample_responses(self, prompts, generator, proposal=None):
        return [self.words[i] for i in torch.randint(3, (len(prompts),), generator=generator).tolist()]

    def preference_probability(self, prompts, first, second):
        return torch.sigmoid(self.reward_of(prompts, first) - self.reward_of(prompts, second))

    def reward_of(self, prompts, responses):
        return torch.tensor([len(response) / 5 for response in responses], dtype=torch.float64)


def is_a_judge(matrix: torch.Tensor) -> bool:
    return torch.allclose(matrix + matrix.mT, torch.ones_like(matrix), atol=1e-15) and bool(
        (matrix >= 0).all()
    )


# -------------------- judges


def test_bradley_terry_has_the_odds_of_the_exponentiated_rewards():
    judge = bradley_terry([[0.0, 1.0, 3.0], [2.0, 2.0, -1.0]])
    assert judge.shape == (2, 3, 3) and is_a_judge(judge)
    assert math.isclose(judge[0, 2, 1].item(), math.exp(3) / (math.exp(3) + math.exp(1)), abs_tol=1e-15)
    # Odds multiply along a chain: the property that a cycle breaks.
    odds = judge / (1 - judge)
    assert torch.allclose(odds[:, 0, 1] * odds[:, 1, 2], odds[:, 0, 2], rtol=1e-12)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9])
def test_a_cycle_treats_all_responses_alike_and_has_no_best(n):
    judge = cyclic(n, 0.8)
    assert is_a_judge(judge)
    assert torch.allclose(judge.mean(dim=1), torch.full((n,), 0.5, dtype=torch.float64), atol=1e-15)
    assert all(judge[i, (i + 1) % n] == 0.8 for i in range(n))
    assert torch.equal(judge.roll((1, 1), (0, 1)), judge)


def test_no_score_fits_a_cycle_better_than_no_score_at_all():
    w = FiniteWorld([1 / 3] * 3, cyclic(3, 0.9))
    assert torch.allclose(
        w.population_minimiser("bt"), torch.full((1, 3), 1 / 3, dtype=torch.float64), atol=1e-12
    )


def test_a_mixed_crowd_is_the_average_of_its_judges_and_is_not_bradley_terry():
    first, second = bradley_terry([0.0, 2.0, 4.0]), bradley_terry([4.0, 2.0, 0.0])
    crowd = mixture_of_judges([first, second], [0.25, 0.75])
    assert is_a_judge(crowd)
    assert math.isclose(
        crowd[0, 1].item(), 0.25 * first[0, 1].item() + 0.75 * second[0, 1].item(), abs_tol=1e-15
    )
    odds = crowd / (1 - crowd)
    assert abs(odds[0, 1] * odds[1, 2] - odds[0, 2]) > 0.1
    assert torch.allclose(mixture_of_judges([first, second]), torch.full((3, 3), 0.5, dtype=torch.float64))


def test_label_noise_shrinks_every_preference_towards_one_half_and_twice_is_composition():
    judge = bradley_terry([0.0, 1.0, 3.0])
    assert torch.allclose(with_label_noise(judge, 0.2) - 0.5, 0.6 * (judge - 0.5), atol=1e-15)
    assert torch.allclose(with_label_noise(judge, 1.0), judge.mT, atol=1e-15)
    assert is_a_judge(with_label_noise(judge, 0.2))
    twice = with_label_noise(with_label_noise(judge, 0.1), 0.2)
    assert torch.allclose(twice, with_label_noise(judge, 0.1 * 0.8 + 0.9 * 0.2), atol=1e-15)


def test_a_judge_as_a_function_reads_its_matrix():
    w = world()
    x, a, b = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1, 0])
    assert torch.equal(as_function(w.preference)(x, a, b), w.preference_probability(x, a, b))
    assert torch.equal(as_function(w.preference[0])(x, a, b), w.preference[0, a, b])


# -------------------- draws have the distribution they claim


def frequencies(prompt: torch.Tensor, *responses: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    counts = torch.zeros(shape, dtype=torch.float64)
    index = (prompt, *responses)
    return counts.index_put_(index, torch.ones(len(prompt), dtype=torch.float64), accumulate=True) / len(
        prompt
    )


def within_four_standard_errors(frequency: torch.Tensor, exact: torch.Tensor, n: int) -> bool:
    return bool(((frequency - exact).abs() <= 4 * (exact * (1 - exact) / n).sqrt() + 1e-12).all())


def test_drawn_pairs_have_the_exact_joint_distribution():
    w, n = world(), 200_000
    pairs = draw_pairs(w, n, seed=0)
    ref = w.reference
    drawn = ref.unsqueeze(2) * ref.unsqueeze(1)
    exact = w.prompt_weights[:, None, None] * 2 * drawn * w.preference
    assert within_four_standard_errors(
        frequencies(pairs.prompt, pairs.chosen, pairs.rejected, shape=(2, 4, 4)), exact, n
    )


def test_pairs_from_two_proposals_have_the_chosen_distribution_of_the_world():
    w, n = world(), 100_000
    first, second = [[0.7, 0.1, 0.1, 0.1]] * 2, [[0.1, 0.1, 0.1, 0.7]] * 2
    pairs = draw_pairs(w, n, seed=0, proposal=first, opponent=second)
    exact = w.prompt_weights.unsqueeze(1) * w.preferred_distribution(first, second)
    assert within_four_standard_errors(frequencies(pairs.prompt, pairs.chosen, shape=(2, 4)), exact, n)


@pytest.mark.parametrize("fraction", [None, 0.39])
def test_thumbs_up_follow_p_plus_and_thumbs_down_p_minus(fraction):
    w, n = world(), 100_000
    data = draw_unpaired(w, n, seed=1, fraction=fraction)
    assert len(data) == n and int(data.preferred.sum()) == round((fraction or 0.5) * n)
    for label, exact in ((True, w.preferred_distribution()), (False, w.rejected_distribution())):
        rows = data.preferred == label
        frequency = frequencies(data.prompt[rows], data.response[rows], shape=(2, 4))
        assert within_four_standard_errors(frequency, w.prompt_weights.unsqueeze(1) * exact, int(rows.sum()))
    # Shuffled: both classes occur in any run of rows.
    assert 0 < int(data.preferred[:100].sum()) < 100


def test_a_mixture_world_draws_from_its_own_classes_in_its_own_proportion():
    w, n = FiniteWorld.from_mixture([0.6, 0.3, 0.1], [0.1, 0.1, 0.8], 0.2), 50_000
    data = draw_unpaired(w, n, seed=1)
    assert int(data.preferred.sum()) == 10_000
    frequency = frequencies(data.prompt, data.response, shape=(1, 3))
    assert within_four_standard_errors(frequency, w.reference, n)
    up = data.preferred
    assert within_four_standard_errors(
        frequencies(data.prompt[up], data.response[up], shape=(1, 3)), w.preferred, 10_000
    )
    given = draw_unpaired(
        w, 1000, seed=1, preferred=[[1.0, 0.0, 0.0]], rejected=[[0.0, 0.0, 1.0]], fraction=0.5
    )
    assert torch.equal(given.response == 0, given.preferred)


def test_groups_are_independent_draws_with_their_rewards():
    w, n = world(), 50_000
    groups = draw_groups(w, n, size=3, seed=2)
    assert groups.responses.shape == groups.reward.shape == (n, 3)
    assert torch.equal(groups.reward, w.reward[groups.prompt.unsqueeze(1), groups.responses])
    exact = w.prompt_weights[:, None, None] * w.reference.unsqueeze(2) * w.reference.unsqueeze(1)
    columns = groups.responses[:, 0], groups.responses[:, 2]
    assert within_four_standard_errors(frequencies(groups.prompt, *columns, shape=(2, 4, 4)), exact, n)


def test_soft_pairs_keep_the_probability_of_the_judge():
    w = world()
    soft = draw_soft_pairs(w, 1000, seed=3)
    assert torch.equal(soft.probability, w.preference[soft.prompt, soft.first, soft.second])


def test_a_population_records_who_judged_and_each_group_judges_by_itself():
    agree = FiniteWorld(REFERENCE, bradley_terry([3.0, 1.0, 0.0, -1.0]))
    oppose = FiniteWorld(REFERENCE, bradley_terry([-3.0, -1.0, 0.0, 1.0]))
    crowd = Population((agree, oppose), (0.8, 0.2), ("many", "few"))
    n = 100_000
    pairs = draw_population_pairs(crowd, n, seed=0)
    assert torch.equal(pairs.annotator, torch.arange(n))
    shares = torch.bincount(pairs.group) / n
    assert within_four_standard_errors(shares, torch.tensor([0.8, 0.2]), n)
    for group, w in enumerate(crowd.worlds):
        rows = pairs.group == group
        exact = w.preferred_distribution() * 0.5
        frequency = frequencies(pairs.prompt[rows], pairs.chosen[rows], shape=(2, 4))
        assert within_four_standard_errors(frequency, exact, int(rows.sum()))
    x, a, b = torch.tensor([0]), torch.tensor([0]), torch.tensor([3])
    together = 0.8 * agree.preference[0, 0, 3] + 0.2 * oppose.preference[0, 0, 3]
    assert math.isclose(crowd.preference_probability(x, a, b).item(), together.item(), abs_tol=1e-15)
    assert "many 80%" in repr(crowd)


def test_an_annotator_keeps_the_same_group_through_all_comparisons():
    crowd = Population((world(), world()), (0.5, 0.5))
    pairs = draw_population_pairs(crowd, 5000, seed=4, annotators=50)
    for person in range(50):
        assert len(set(pairs.group[pairs.annotator == person].tolist())) == 1
    assert len(pairs.take(torch.arange(10)).group) == 10


# -------------------- seeds


DRAWS = {
    "pairs": lambda seed: draw_pairs(world(), 200, seed),
    "soft pairs": lambda seed: draw_soft_pairs(world(), 200, seed),
    "unpaired": lambda seed: draw_unpaired(world(), 200, seed),
    "unpaired with a fraction": lambda seed: draw_unpaired(world(), 200, seed, fraction=0.3),
    "groups": lambda seed: draw_groups(world(), 200, 3, seed),
    "population": lambda seed: draw_population_pairs(
        Population((world(), world())), 200, seed, annotators=20
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_seed_repeats_a_draw_and_another_seed_does_not(name):
    draw = DRAWS[name]
    torch.manual_seed(1)
    first = draw(0).columns()
    torch.manual_seed(2)
    again, other = draw(0).columns(), draw(1).columns()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_generator_goes_on_where_it_stopped():
    generator = torch.Generator().manual_seed(0)
    first, second = draw_pairs(world(), 100, generator), draw_pairs(world(), 100, generator)
    assert not torch.equal(first.chosen, second.chosen)


# -------------------- containers


def test_a_split_is_a_partition_and_batches_are_one_pass():
    pairs = Pairs(torch.arange(10), torch.arange(10) + 10, torch.arange(10) + 20)
    train, held_out = pairs.split(0.7, seed=0)
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted(train.prompt.tolist() + held_out.prompt.tolist()) == list(range(10))
    assert torch.equal(train.chosen, train.prompt + 10)
    batches = list(pairs.batches(4, seed=0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(x for batch in batches for x in batch.prompt.tolist()) == list(range(10))
    assert [batch.prompt.tolist() for batch in pairs.batches(4, seed=0)] == [
        b.prompt.tolist() for b in batches
    ]
    assert batches[0].prompt.tolist() != pairs.prompt.tolist()[:4]


def test_forgetting_the_pairs_keeps_every_response_with_its_thumb():
    pairs = draw_pairs(world(), 100, seed=0)
    data = pairs.unpaired()
    assert torch.equal(data.response[data.preferred], pairs.chosen)
    assert torch.equal(data.response[~data.preferred], pairs.rejected)


def test_texts_go_through_every_draw_and_container():
    w = TextWorld()
    assert isinstance(w, World) and isinstance(world(), World)
    pairs = draw_pairs(w, 2000, seed=0)
    assert isinstance(pairs, Pairs) and isinstance(pairs.chosen[0], str)
    longer = sum(len(c) > len(r) for c, r in zip(pairs.chosen, pairs.rejected, strict=True))
    shorter = sum(len(c) < len(r) for c, r in zip(pairs.chosen, pairs.rejected, strict=True))
    assert longer > 3 * shorter
    assert pairs.chosen == draw_pairs(w, 2000, seed=0).chosen != draw_pairs(w, 2000, seed=1).chosen
    data = draw_unpaired(w, 501, seed=0)
    assert isinstance(data, Unpaired) and len(data) == 501
    assert len(draw_unpaired(w, 50, seed=0, fraction=0.2).split(0.5, 0)[0].response) == 25
    groups = draw_groups(w, 20, 4, seed=0)
    assert isinstance(groups, Groups) and len(groups.responses) == 20 and len(groups.responses[0]) == 4
    assert groups.reward[7, 2] == len(groups.responses[7][2]) / 5
    assert isinstance(draw_soft_pairs(w, 5, seed=0), SoftPairs)
    assert "'" in repr(pairs) and "2,000 rows" in repr(pairs)


# -------------------- refusals


BAD = {
    "a cycle of two": (lambda: cyclic(2), "setting-out-of-range"),
    "a strength above one": (lambda: cyclic(3, 1.2), "setting-out-of-range"),
    "a noise rate below zero": (lambda: with_label_noise(cyclic(), -0.1), "setting-out-of-range"),
    "weights that do not sum to one": (
        lambda: mixture_of_judges([cyclic(), cyclic()], [1, 1]),
        "setting-out-of-range",
    ),
    "no judges": (lambda: mixture_of_judges([]), "setting-out-of-range"),
    "columns of two lengths": (
        lambda: Pairs(torch.arange(3), torch.arange(3), torch.arange(2)),
        "feedback-lengths",
    ),
    "one name for two groups": (lambda: Population((world(), world()), names=("a",)), "feedback-lengths"),
    "no rows": (lambda: draw_pairs(world(), 0, 0), "setting-out-of-range"),
    "half a row": (lambda: draw_unpaired(world(), 10.5, 0), "setting-out-of-range"),
    "batches of nothing": (lambda: list(draw_pairs(world(), 5, 0).batches(0, 0)), "setting-out-of-range"),
    "a fraction of two": (lambda: draw_unpaired(world(), 10, 0, fraction=2.0), "setting-out-of-range"),
    "p+ without p-": (lambda: draw_unpaired(world(), 10, 0, preferred=REFERENCE), "unpaired-one-class"),
    "groups without a reward": (
        lambda: draw_groups(FiniteWorld([1 / 3] * 3, preferences.cyclic()), 5, 2, 0),
        "world-no-reward",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_id(name):
    call, expected = BAD[name]
    with pytest.raises(CourseError) as caught:
        call()
    assert caught.value.id == expected
