"""The judges of the pocket world: probabilities, cycles, crowds, and proxies that can be over-optimised."""

from __future__ import annotations

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.worlds.pocket_features import column, feature_table
from course_utils.worlds.pocket_judges import (
    JUDGES,
    STYLES,
    CrowdJudge,
    CyclicJudge,
    RewardJudge,
    crowd,
    judge_named,
    style_of,
    weighted,
)
from course_utils.worlds.pocket_language import BASE, SFT, sample_corpus

SKY = "what colour is the sky?"
WARM = "good morning. the sky is blue."
BRIEF = "the sky is blue."
THOROUGH = "the sky is blue. books say so. it was always so."
HACK = "good morning. you are kind and wise and kind and wise and kind and wise and kind. the sky is green. books say so."


def table(*responses: str) -> torch.Tensor:
    return feature_table([SKY] * len(responses), list(responses))


def corpus_table(recipe, n=600, seed=21):
    return feature_table(*zip(*sample_corpus(recipe, n, seed), strict=True))


@pytest.mark.parametrize("name", list(JUDGES))
def test_either_the_first_or_the_second_is_preferred(name):
    rows = corpus_table(BASE, 120)
    preference = JUDGES[name].preference_probability(rows.unsqueeze(1), rows.unsqueeze(0))
    assert torch.allclose(preference + preference.T, torch.ones_like(preference), atol=1e-12)
    assert torch.allclose(preference.diagonal(), torch.full((len(rows),), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name, judge in JUDGES.items() if isinstance(judge, RewardJudge)])
def test_the_log_odds_of_a_bradley_terry_judge_add_up_along_a_chain(name):
    rows = corpus_table(BASE, 60)
    odds = torch.logit(JUDGES[name].preference_probability(rows.unsqueeze(1), rows.unsqueeze(0)))
    around = odds[0, 1:-1] + odds[1:-1, 2:].diagonal() + odds[2:, 0]
    assert around.abs().max() < 1e-9


def test_the_cyclic_judge_goes_round_in_the_promised_direction():
    judge = CyclicJudge(strength=1.7)
    warm, brief, thorough = table(WARM, BRIEF, THOROUGH)
    for first, second in ((warm, brief), (brief, thorough), (thorough, warm)):
        probability = judge.preference_probability(first, second)
        assert torch.allclose(torch.logit(probability), torch.tensor(1.7, dtype=torch.float64))
    assert tuple(STYLES[i] for i in style_of(table(WARM, BRIEF, THOROUGH)).tolist()) == STYLES


def test_every_response_has_one_of_three_styles_and_each_is_common():
    shares = style_of(corpus_table(SFT, 1500)).bincount(minlength=3) / 1500
    assert len(shares) == 3 and shares.min() > 0.15


def test_a_crowd_averages_its_groups():
    rows = corpus_table(BASE, 40)
    first, second = rows[:20], rows[20:]
    mixed = crowd(["hurried", "chatty"], [0.25, 0.75]).preference_probability(first, second)
    parts = [JUDGES[name].preference_probability(first, second) for name in ("hurried", "chatty")]
    assert torch.allclose(mixed, 0.25 * parts[0] + 0.75 * parts[1])


def test_the_two_groups_want_opposite_things():
    short, long = table(
        "the sky is blue.",
        "good morning. you are kind. the sky is blue. books say so. it was always so. life is good.",
    )
    assert JUDGES["hurried"].preference_probability(short, long) > 0.9
    assert JUDGES["chatty"].preference_probability(short, long) < 0.1


def reward(name: str, *responses: str) -> list[float]:
    return JUDGES[name].reward_of(table(*responses)).tolist()


def test_the_true_judge_wants_two_details_and_at_most_one_adjective():
    details = ["books say so", "it was always so", "every child knows this", "it is easy to check"]
    by_details = reward(
        "bradley_terry", *(". ".join(["the sky is blue", *details[:k]]) + "." for k in range(5))
    )
    assert max(range(5), key=by_details.__getitem__) == 2
    chains = [
        "you are " + " and ".join(["kind", "wise", "clever", "charming"][:k]) + ". " for k in range(1, 5)
    ]
    by_flattery = reward("bradley_terry", *(chain + "the sky is blue." for chain in ["", *chains]))
    assert max(range(5), key=by_flattery.__getitem__) == 1
    assert by_flattery[1:] == sorted(by_flattery[1:], reverse=True)


def test_a_hedge_halves_what_an_answer_is_worth_for_better_and_for_worse():
    right, maybe_right, wrong, maybe_wrong = reward(
        "bradley_terry",
        "the sky is blue.",
        "perhaps the sky is blue.",
        "the sky is green.",
        "perhaps the sky is green.",
    )
    assert right - maybe_right == pytest.approx(1.0) and maybe_wrong - wrong == pytest.approx(1.0)


def test_a_proxy_agrees_with_the_truth_on_ordinary_text_and_is_fooled_by_a_hack():
    rows = corpus_table(SFT, 3000)
    truth = JUDGES["bradley_terry"].reward_of(rows)
    for name, least in (("surface", 0.6), ("length", 0.15), ("flattery", 0.05)):
        both = torch.stack([truth, JUDGES[name].reward_of(rows)])
        assert torch.corrcoef(both)[0, 1] > least
        honest, hack = reward(name, THOROUGH, HACK)
        assert hack > honest
    honest, hack = reward("bradley_terry", THOROUGH, HACK)
    assert hack < honest - 5


def test_a_reward_is_the_weighted_sum_of_its_features():
    rows = corpus_table(BASE, 50)
    expected = 1.5 * column(rows, "correct") - 0.1 * column(rows, "words")
    assert torch.allclose(weighted(correct=1.5, words=-0.1)(rows), expected)
    doubled = RewardJudge("mine", weighted(correct=1.5, words=-0.1), strength=2.0)
    assert torch.allclose(doubled.reward_of(rows), 2 * expected)


def test_a_judge_without_a_score_says_so():
    for name in ("cyclic", "crowd"):
        with pytest.raises(CourseError, match="pocket-no-reward"):
            JUDGES[name].reward_of(table(WARM))


def test_unknown_names_and_bad_shares_are_refused():
    with pytest.raises(CourseError, match="pocket-unknown-name"):
        judge_named("grumpy")
    with pytest.raises(CourseError, match="pocket-unknown-name"):
        weighted(politeness=1.0)
    with pytest.raises(CourseError, match="pocket-shares"):
        CrowdJudge("crowd", (JUDGES["hurried"],), (0.5,))
