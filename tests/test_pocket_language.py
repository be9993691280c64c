"""The pocket language: what is drawn can be read back, and its probabilities are those of the recipe."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.errors import CourseError
from course_utils.worlds import pocket_phrases as phrases
from course_utils.worlds.pocket_features import FEATURE_NAMES, PocketFeatures, column, feature_table, features
from course_utils.worlds.pocket_language import BASE, RECIPES, SFT, entropy, log_prob, sample_corpus
from course_utils.worlds.pocket_phrases import PROMPTS, split_words

SKY, SLEEP, SOUP = "what colour is the sky?", "how do i sleep better?", "my soup is cold."


def read(prompt: str, response: str) -> dict[str, int]:
    """The features that are not zero."""
    return {name: value for name, value in features(prompt, response)._asdict().items() if value}


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        (SKY, "the sky is blue.", {"correct": 1, "words": 4, "grammatical": 1}),
        (
            SKY,
            "it may be that the answer is green.",
            {"correct": -1, "hedged": 1, "words": 8, "grammatical": 1},
        ),
        (SKY, "i do not know. books say so. that is all.", {"details": 1, "words": 10, "grammatical": 1}),
        (SOUP, "you again. we will warm the soup.", {"correct": 1, "tone": -1, "words": 7, "grammatical": 1}),
        (
            SLEEP,
            "good morning. you are wise and wise and kind. you should go to bed early. start this week. start this week. "
            "it takes some time. life is good. i hope this helps.",
            {
                "correct": 1,
                "tone": 1,
                "details": 2,
                "sentiment": 1,
                "flattery": 3,
                "repeats": 2,
                "words": 32,
                "grammatical": 1,
            },
        ),
        # An answer to another prompt is wrong and out of place.
        (SKY, "grass is green.", {"correct": -1, "words": 3}),
        (SKY, "the sky is blue. the sky is green.", {"correct": -1, "words": 8}),
        # A detail of another kind of prompt counts for nothing.
        (SKY, "the sky is blue. there is no charge.", {"correct": 1, "words": 8}),
        # The order of the sentences belongs to the grammar.
        (SKY, "the sky is blue. good morning.", {"correct": 1, "tone": 1, "words": 6}),
        (SKY, "the sky is blue", {"correct": 1, "words": 4}),
        # Junk keeps the features that can be made out.
        (
            SKY,
            "kind blue the and wise wise zebra i hope this helps",
            {"tone": 1, "flattery": 3, "repeats": 1, "words": 11},
        ),
        (SKY, "", {}),
    ],
)
def test_the_features_are_those_a_person_reads_in_the_text(prompt, response, expected):
    assert read(prompt, response) == expected


def test_a_plus_in_tone_and_a_minus_cancel():
    assert features(SKY, "good morning. the sky is blue. now leave me alone.").tone == 0


def test_each_answer_is_right_for_exactly_one_prompt_of_its_family():
    for prompt in PROMPTS:
        for frame, answer in itertools.product(range(3), prompt.family):
            found = features(prompt.text, prompt.core(answer, frame) + ".")
            assert found.grammatical == 1
            assert found.correct == (1 if answer == prompt.answer else -1)


def test_everything_that_is_drawn_is_grammatical_and_has_a_probability():
    for recipe in RECIPES.values():
        rows = sample_corpus(recipe, 400, seed=11)
        assert column(feature_table(*zip(*rows, strict=True)), "grammatical").min() == 1
        assert all(-60 < log_prob(*row, recipe) < 0 for row in rows)


def test_the_same_seed_draws_the_same_corpus_and_another_seed_another():
    assert sample_corpus(BASE, 50, seed=1) == sample_corpus(BASE, 50, seed=1)
    assert sample_corpus(BASE, 50, seed=1) != sample_corpus(BASE, 50, seed=2)


def test_sentences_in_another_order_have_the_same_features_apart_from_grammar():
    shuffle = random.Random(4)
    for prompt, response in sample_corpus(BASE, 200, seed=12):
        sentences = response.removesuffix(".").split(". ")
        shuffle.shuffle(sentences)
        before, after = features(prompt, response), features(prompt, ". ".join(sentences) + ".")
        assert before._replace(grammatical=0) == after._replace(grammatical=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*phrases.vocabulary(), "zebra", "!", "7"]), max_size=40),
    st.sampled_from(PROMPTS),
)
def test_features_exist_for_any_row_of_words(words, prompt):
    found = features(prompt.text, " ".join(words))
    assert isinstance(found, PocketFeatures)
    assert found.correct in (-1, 0, 1) and found.tone in (-1, 0, 1) and found.sentiment in (-1, 0, 1)
    assert found.flattery == sum(word in phrases.ADJECTIVES for word in words)
    assert 0 <= found.details <= 6 and found.repeats >= 0
    assert found.words == sum(word.isalpha() for word in words)


def without_openings_flattery_and_remarks():
    """A recipe whose language is small enough to list: every core, up to two details, a closing."""
    flat = (0.5, 0.3, 0.2)
    return replace(
        BASE,
        tone=(0.2, 0.5, 0.3),
        sentiment=(0, 1, 0),
        flattery=(0, 0, 0),
        details=(flat, flat, flat),
        repeat=0.2,
    )


def list_every_response(prompt, recipe):
    """All responses of the small language, written down without the sampler."""
    answers = [prompt.core(answer, frame) for answer in prompt.family for frame in range(3)]
    cores = [hedge + core for hedge in ("", *(h + " " for h in phrases.HEDGES)) for core in answers] + list(
        phrases.NO_ANSWERS
    )
    details = phrases.DETAILS[prompt.kind]
    rows = [(), *((one,) for one in details), *itertools.product(details, repeat=2)]
    for tone in (-1, 0, 1):
        for opening in phrases.OPENINGS.get(tone, (None,)):
            for closing in (None, *phrases.CLOSINGS[tone]):
                for core, row in itertools.product(cores, rows):
                    yield ". ".join(part for part in (opening, core, *row, closing) if part) + "."


def test_the_probabilities_of_a_small_language_sum_to_one_and_give_its_entropy():
    recipe = without_openings_flattery_and_remarks()
    logs = [
        log_prob(SOUP, text, recipe) for text in list_every_response(phrases.prompts_by_text()[SOUP], recipe)
    ]
    assert len(logs) == (3 * 3 + 3 + 3 * 3) * (4 * 3 * 4 + 3) * (1 + 6 + 36)
    assert math.isclose(sum(map(math.exp, logs)), 1.0, abs_tol=1e-10)
    assert math.isclose(-sum(math.exp(value) * value for value in logs), entropy(recipe), abs_tol=1e-9)


def test_flattery_is_a_geometric_chain_whose_tail_is_known():
    recipe = replace(
        BASE,
        tone=(0, 1, 0),
        correct=(0, 1, 0),
        sentiment=(0, 1, 0),
        closing=0.0,
        flattery=(0, 0.4, 0),
        details=((1.0,),) * 3,
    )
    total = 3 * math.exp(log_prob(SKY, "i do not know.", recipe))
    for length in range(1, 6):
        for chain in itertools.product(phrases.ADJECTIVES, repeat=length):
            total += 3 * math.exp(log_prob(SKY, f"you are {' and '.join(chain)}. i do not know.", recipe))
    assert math.isclose(total, 1 - 0.4 * recipe.more_flattery**5, abs_tol=1e-10)


@pytest.mark.parametrize("recipe", [BASE, SFT], ids=lambda recipe: recipe.name)
def test_the_sampler_draws_with_the_frequencies_of_the_recipe(recipe):
    n = 8000
    rows = sample_corpus(recipe, n, seed=13)
    table = feature_table(*zip(*rows, strict=True))

    def close(found, expected):
        return abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)

    for value in (-1, 0, 1):
        assert close((column(table, "tone") == value).double().mean().item(), recipe.tone[value + 1])
        assert close((column(table, "correct") == value).double().mean().item(), recipe.correct[value + 1])
        assert close(
            (column(table, "sentiment") == value).double().mean().item(), recipe.sentiment[value + 1]
        )
        by_tone = table[column(table, "tone") == value]
        spoken = (column(by_tone, "flattery") > 0).double().mean().item()
        assert abs(spoken - recipe.flattery[value + 1]) < 4.5 * math.sqrt(0.25 / len(by_tone))
    logs = [-log_prob(*row, recipe) for row in rows]
    mean = sum(logs) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in logs)) / n
    assert abs(mean - entropy(recipe)) < 4.5 * error


def test_broken_text_has_probability_zero():
    assert log_prob(SKY, "blue sky the is.", BASE) == -math.inf
    assert log_prob(SKY, "good morning. the sky is blue. now leave me alone.", BASE) == -math.inf


def test_responses_are_short():
    lengths = [len(split_words(response)) for _, response in sample_corpus(BASE, 5000, seed=14)]
    assert 18 < sum(lengths) / len(lengths) < 24
    assert max(lengths) < 64


def test_an_unknown_prompt_is_an_error_that_shows_a_known_one():
    with pytest.raises(CourseError, match="pocket-unknown-prompt"):
        features("what colour is the moon?", "blue.")
    with pytest.raises(CourseError, match="feedback-lengths"):
        feature_table([SKY], ["the sky is blue.", "good morning."])


def test_a_table_has_one_column_per_feature():
    table = feature_table([SKY], ["good morning. the sky is blue."])
    assert table.shape == (1, len(FEATURE_NAMES))
    assert [column(table, name).item() for name in ("correct", "tone", "words")] == [1, 1, 6]
