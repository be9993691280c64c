"""The pocket world as the lessons use it: preferences, policies, the truth, and reading texts."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import preferences
from course_utils.errors import CourseError

pytest.importorskip("transformers")

from course_utils.worlds import pocket, pocket_truth
from course_utils.worlds.pocket_phrases import PROMPTS

SKY = "what colour is the sky?"


@pytest.fixture(scope="module")
def world():
    return pocket.load_world(judge="bradley_terry")


@pytest.fixture(scope="module")
def ruder(world):
    """A policy that is not the reference: the reference with its weights moved at random."""
    policy, generator = world.new_policy(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in policy.model.parameters():
            value.mul_(1 + 0.3 * torch.randn(value.shape, generator=generator))
    return policy


def test_the_pocket_world_follows_the_protocol_of_worlds(world):
    assert isinstance(world, preferences.World)
    pairs = preferences.draw_pairs(world, 40, seed=3)
    again = preferences.draw_pairs(world, 40, seed=3)
    assert (pairs.prompt, pairs.chosen, pairs.rejected) == (again.prompt, again.chosen, again.rejected)
    assert set(pairs.prompt) <= set(world.prompts)
    groups = preferences.draw_groups(world, 5, 3, seed=4)
    expected = torch.stack([world.reward_of([groups.prompt[i]] * 3, groups.responses[i]) for i in range(5)])
    assert torch.allclose(groups.reward.double(), expected)


def test_the_judge_chooses_the_response_with_the_higher_reward_more_often(world):
    pairs = preferences.draw_pairs(world, 300, seed=5)
    chosen, rejected = (
        world.reward_of(pairs.prompt, pairs.chosen),
        world.reward_of(pairs.prompt, pairs.rejected),
    )
    promised = world.preference_probability(pairs.prompt, pairs.chosen, pairs.rejected)
    assert torch.allclose(promised, torch.sigmoid(chosen - rejected))
    right, expected = (chosen > rejected).double().mean(), torch.maximum(promised, 1 - promised).mean()
    assert abs(right - expected) < 4.5 * 0.5 / math.sqrt(300)


def test_the_reference_beats_itself_half_of_the_time_and_has_not_moved(world):
    assert 0.5 in world.win_rate(world.model, per_prompt=25)
    report = world.report(world.new_policy(), per_prompt=10)
    assert abs(report.kl_to_reference.estimate) < 1e-6
    assert report.kl_to_preferred.estimate == pytest.approx(
        world.kl_to_preferred(per_prompt=10).estimate, abs=1e-6
    )


def test_what_there_is_to_learn_agrees_with_the_mean_over_chosen_responses(world):
    # KL(p+ || p_ref) = E_p+[log 2W], and the chosen response of an on-policy pair is a draw from p+.
    pairs = preferences.draw_pairs(world, 700, seed=6)
    gain = torch.log(2 * world.win_rate_of_responses(pairs.prompt, pairs.chosen))
    error = gain.std().item() / math.sqrt(len(gain))
    found = world.kl_to_preferred(per_prompt=50)
    assert 0.1 < found.estimate < 0.2
    assert abs(gain.mean().item() - found.estimate) < 4 * math.hypot(error, found.half_width / 1.96)


def test_the_mean_over_chosen_responses_confirms_the_kl_of_a_moved_policy(world, ruder):
    # The same KL from draws of p+: E_p+[log 2W + log p_ref - log policy].
    pairs = preferences.draw_pairs(world, 700, seed=7)
    w = world.win_rate_of_responses(pairs.prompt, pairs.chosen)
    log_prob, ref_log_prob = (world.log_prob(one, pairs.prompt, pairs.chosen) for one in (ruder, None))
    log_ratio = log_prob - ref_log_prob
    terms = torch.log(2 * w) - log_ratio
    found = world.kl_to_preferred(ruder, per_prompt=50)
    error = terms.std().item() / math.sqrt(len(terms))
    assert found.estimate > world.kl_to_preferred(per_prompt=50).estimate
    assert abs(terms.mean().item() - found.estimate) < 4 * math.hypot(error, found.half_width / 1.96)


def test_a_policy_and_its_bare_model_are_measured_alike(world, ruder):
    assert world.kl_to_reference(ruder, per_prompt=4) == world.kl_to_reference(ruder.model, per_prompt=4)
    assert world.kl_to_reference(ruder, per_prompt=4).low > 0
    with pytest.raises(CourseError, match="pocket-not-a-language-model"):
        world.win_rate("a policy")


def test_the_log_probabilities_are_those_the_sampler_saw(world):
    from course_utils.sampling import generate

    prompts = world.prompts
    drawn = generate(world.model, world.tokenizer, prompts, max_new_tokens=64, seed=8, batch_size=64)
    assert bool(drawn.finished.all())
    assert torch.allclose(
        world.log_prob(None, prompts, drawn.texts), drawn.policy_log_probs.double(), atol=1e-3
    )


class OftenSilent:
    """A model whose first token is the end token in most draws: the reference, with one bias moved."""

    def __init__(self, world, push):
        from course_utils.worlds.pocket_tokenizer import EOS_ID

        self.model = world.new_policy().model
        head, places = self.model.get_output_embeddings(), len(world.tokenizer)
        self.hook = head.register_forward_hook(
            lambda _, __, logits: logits + push * torch.nn.functional.one_hot(torch.tensor(EOS_ID), places)
        )


def test_feedback_never_holds_an_empty_response_and_measurements_may(world):
    silent = OftenSilent(world, push=9.0)
    sample = world.draw(silent, per_prompt=2, seed=11)
    assert "" in sample.responses
    texts = world.sample_responses(world.prompts, torch.Generator().manual_seed(2), silent)
    assert len(texts) == len(world.prompts) and all(text.strip() for text in texts)
    assert math.isfinite(world.kl_to_reference(silent, per_prompt=2, seed=11).estimate)
    with pytest.raises(CourseError, match="pocket-empty-responses"):
        world.sample_responses(world.prompts, torch.Generator().manual_seed(2), OftenSilent(world, push=60.0))


def test_training_a_new_policy_leaves_the_reference_as_it_was(world):
    policy = world.new_policy()
    assert all(value.requires_grad for value in policy.model.parameters())
    assert not any(value.requires_grad for value in world.model.parameters())
    with torch.no_grad():
        next(policy.model.parameters()).zero_()
    assert next(world.model.parameters()).abs().sum() > 0


def test_another_judge_sees_the_same_samples_and_a_new_reference_its_own(world, ruder):
    cyclic = world.with_judge("cyclic")
    assert cyclic.reference_table() is world.reference_table()
    assert cyclic.report(ruder, per_prompt=4).reward is None
    moved = world.with_reference(ruder)
    assert abs(moved.kl_to_reference(ruder, per_prompt=4).estimate) < 1e-6
    assert moved.reference_features is None


def test_a_population_of_pocket_worlds_judges_as_its_crowd_does(world):
    groups = tuple(world.with_judge(name) for name in ("hurried", "chatty"))
    population = preferences.Population(groups, (0.6, 0.4))
    pairs = preferences.draw_population_pairs(population, 60, seed=10, annotators=5)
    as_crowd = world.with_judge("crowd").preference_probability(pairs.prompt, pairs.chosen, pairs.rejected)
    assert torch.allclose(
        population.preference_probability(pairs.prompt, pairs.chosen, pairs.rejected), as_crowd
    )
    assert set(pairs.group.tolist()) == {0, 1}


def test_flattery_grows_in_the_win_rate_of_its_own_judge(world):
    fond = world.with_judge("flattery")
    rates = fond.win_rate_of_responses(
        [SKY] * 3,
        ["the sky is blue.", "you are kind. the sky is blue.", "you are kind and wise. the sky is blue."],
    )
    assert rates[0] < 0.5 < rates[1] < rates[2]
    # An unflattering response ties with its like, and scores sigmoid(-k) against k adjectives.
    adjectives = fond.reference_table()[0, :, pocket.FEATURE_NAMES.index("flattery")]
    assert PROMPTS[0].text == SKY
    assert rates[0].item() == pytest.approx(torch.sigmoid(-adjectives).mean().item())


def test_show_prints_prompt_response_and_what_the_judge_reads(world, capsys):
    world.show([(SKY, "good morning. you are kind. perhaps the sky is green. life is hard.")])
    shown = capsys.readouterr().out
    assert SKY in shown and "perhaps the sky is green" in shown
    for note in ("wrong, hedged", "polite", "0 details", "gloomy", "flattery 1", "13 words", "reward"):
        assert note in shown
    world.with_judge("cyclic").show(world.draw(per_prompt=1, seed=1), 4)
    shown = capsys.readouterr().out
    assert shown.count("guest") == 4 and "reward" not in shown


def test_distinct_n_is_one_when_nothing_repeats_and_falls_when_texts_are_alike():
    assert pocket.distinct_share(["a b c", "d e f"], 2) == 1.0
    assert pocket.distinct_share(["a b c", "a b c"], 2) == 0.5
    assert pocket.distinct_share([], 2) == 0.0


def test_a_report_reads_well(world):
    text = str(world.report(world.new_policy(), per_prompt=4))
    for words in ("win rate", "KL(p+ || policy)", "KL(policy || p_ref)", "reward", "distinct", "flattery"):
        assert words in text


def test_the_mean_reward_weighs_prompts_equally(world):
    sample = world.draw(per_prompt=6, seed=9)
    expected = world.judge.reward_of(sample.features).reshape(len(PROMPTS), 6).mean()
    assert world.mean_reward(world.model, per_prompt=6, seed=9).estimate == pytest.approx(expected.item())
    assert pocket_truth.mean_over_prompts(sample.feature("words"), sample.prompt_index).count == 144
