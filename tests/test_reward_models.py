"""Reward models: maximum likelihood found another way, votes that find wrong labels, files that read back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from language_models import byte_tokenizer, tiny_model

from course_utils import objectives
from course_utils.encoding import batch_from_ids
from course_utils.errors import CourseError
from course_utils.feedback import Pairs
from course_utils.preferences import cyclic
from course_utils.reward_models import (
    SOFT_BT,
    FeatureRewardModel,
    LanguageRewardModel,
    Votes,
    drop,
    flip,
    pair_accuracy,
    reward_differences,
    soft_bt,
    train_ensemble,
    vote,
    with_features,
)
from course_utils.training import TrainingSettings, train

SIZE = 6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TASTE = normal(SIZE, seed=9)


def comparisons(n: int, seed: int = 0, strength: float = 1.0) -> Pairs:
    """Pairs of feature vectors, judged by a Bradley–Terry judge with a linear taste."""
    first, second = normal(n, SIZE, seed=2 * seed), normal(n, SIZE, seed=2 * seed + 1)
    chance = torch.sigmoid(strength * (first - second) @ TASTE)
    wins = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < chance
    wins = wins.unsqueeze(-1)
    return Pairs(torch.zeros(n), torch.where(wins, first, second), torch.where(wins, second, first))


def full_batch(steps: int = 300, **changes) -> TrainingSettings:
    return TrainingSettings(
        **{
            "steps": steps,
            "batch_size": None,
            "learning_rate": 0.1,
            "schedule": "cosine",
            **changes,
        }
    )


def newton(
    difference: torch.Tensor, margin: torch.Tensor | float = 0.0, smoothing: float = 0.0
) -> torch.Tensor:
    """Logistic regression of the comparisons by Newton's method: the maximum likelihood another way."""
    weight = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(difference @ weight - margin)
        hessian = (difference * (p * (1 - p)).unsqueeze(-1)).T @ difference
        weight = weight + torch.linalg.solve(hessian, difference.T @ ((1 - smoothing) - p))
    return weight


# -------------------- features


@pytest.mark.parametrize("how", ["plain", "margin", "smoothing"])
def test_a_linear_reward_model_is_the_maximum_likelihood_of_bradley_terry(how):
    pairs = comparisons(400, strength=0.4)
    margin = 0.3 * normal(400, seed=5).abs()
    knobs = {"plain": {}, "margin": {"margin": margin}, "smoothing": {"label_smoothing": 0.1}}[how]
    model = FeatureRewardModel(SIZE)
    train(model, pairs, "bt", settings=full_batch(500, learning_rate=0.2), progress=False, **knobs)
    expected = newton(
        pairs.chosen - pairs.rejected,
        margin if how == "margin" else 0.0,
        0.1 if how == "smoothing" else 0.0,
    )
    assert (model.layers[0].weight[0] - expected).abs().max() < 1e-5
    assert model.layers[0].bias.item() == 0.0  # the level of a reward is free: its gradient is exactly zero


def test_margins_follow_their_pairs_through_batches():
    pairs, margin = comparisons(64), normal(64, seed=5).abs()
    models = []
    for own in (margin, margin.flip(0)):
        model = FeatureRewardModel(SIZE)
        settings = TrainingSettings(steps=1, batch_size=8, learning_rate=0.1, seed=1)
        history = train(model, pairs, "bt", settings=settings, progress=False, margin=own).history
        models.append(history.column("loss")[0])
    from course_utils.training.order import DataOrder

    rows = DataOrder(64, 8, 1).batch(0)
    difference = reward_differences(FeatureRewardModel(SIZE), pairs)
    for loss, own in zip(models, (margin, margin.flip(0)), strict=True):
        expected = torch.nn.functional.softplus(own[rows] - difference[rows]).mean()
        assert abs(loss - float(expected)) < 1e-12


def test_features_may_come_from_a_table_a_function_or_the_data_themselves():
    table = normal(2, 3, SIZE)
    prompts, responses = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    by_table = FeatureRewardModel(SIZE, hidden=(4,), features_of=table)
    by_function = FeatureRewardModel(SIZE, hidden=(4,), features_of=lambda x, y: table[x, y])
    by_data = FeatureRewardModel(SIZE, hidden=(4,))
    expected = by_data.reward(prompts, table[prompts, responses])
    assert torch.equal(by_table.reward(prompts, responses), expected)
    assert torch.equal(by_function.reward(prompts, responses), expected)
    pairs = Pairs(prompts, responses, responses.flip(0))
    ready = with_features(pairs, lambda x, y: table[x, y])
    assert torch.equal(reward_differences(by_data, ready), reward_differences(by_table, pairs))
    assert not torch.equal(FeatureRewardModel(SIZE, seed=1).layers[0].weight, by_data.layers[0].weight)


def test_embeddings_fit_a_cycle_that_no_reward_can():
    judge = cyclic(3, strength=0.9)
    a, b = torch.tensor([(i, j) for i in range(3) for j in range(3) if i != j]).T
    wins = judge[a, b] > 0.5
    pairs = Pairs(torch.zeros(3), a[wins], b[wins])
    one_hot = torch.eye(3, dtype=torch.float64)
    gpm = FeatureRewardModel(3, outputs=2, features_of=lambda _, y: one_hot[y])
    train(gpm, pairs, "gpm", settings=full_batch(), progress=False)
    score = objectives.gpm_score(gpm.reward(None, pairs.chosen), gpm.reward(None, pairs.rejected))
    assert bool((score > 0).all())
    scalar = FeatureRewardModel(3, features_of=lambda _, y: one_hot[y])
    train(scalar, pairs, "bt", settings=full_batch(), progress=False)
    assert reward_differences(scalar, pairs).abs().max() < 1e-3  # rewards collapse to equality
    assert pair_accuracy(scalar, pairs).estimate < 1.0


# -------------------- voting


def test_votes_are_means_and_spreads_and_the_weakest_are_the_weakest():
    votes = Votes(torch.tensor([[1.0, -2.0, 0.5, 3.0], [3.0, -1.0, 0.1, 3.0]], dtype=torch.float64))
    assert votes.strength.tolist() == [2.0, -1.5, 0.3, 3.0]
    assert abs(float(votes.spread[0]) - math.sqrt(2)) < 1e-12 and float(votes.spread[3]) == 0.0
    assert votes.weakest(0.5).tolist() == [False, True, True, False]
    assert votes.weakest(0.0).sum() == 0 and votes.weakest(1.0).all()
    turned = votes.after_flip(votes.weakest(0.25))
    assert turned.strength.tolist() == [2.0, 1.5, 0.3, 3.0]
    many = Votes(torch.arange(40.0).flip(0).repeat(2, 1))
    assert many.decile().tolist() == [9 - i // 4 for i in range(40)]
    with pytest.raises(CourseError):
        votes.weakest(1.5)


def test_flipping_and_dropping_keep_every_other_row_as_it_was():
    pairs = Pairs(["a", "b", "c"], ["x", "y", "z"], ["u", "v", "w"], annotator=torch.tensor([4, 5, 6]))
    which = torch.tensor([True, False, True])
    turned = flip(pairs, which)
    assert (turned.chosen, turned.rejected) == (["u", "y", "w"], ["x", "v", "z"])
    assert turned.annotator.tolist() == [4, 5, 6] and flip(turned, which).chosen == pairs.chosen
    assert (drop(pairs, which).prompt, drop(pairs, which).chosen) == (["b"], ["y"])
    features = comparisons(3)
    assert torch.equal(flip(features, which).chosen[0], features.rejected[0])
    assert torch.equal(flip(features, which).chosen[1], features.chosen[1])


def test_an_ensemble_differs_in_start_and_order_and_comes_again_from_its_seed():
    pairs = comparisons(60)
    settings = TrainingSettings(steps=20, batch_size=8, learning_rate=0.02)
    made = [
        train_ensemble(FeatureRewardModel.maker(SIZE), pairs, 3, settings=settings, seed=s) for s in (0, 0, 1)
    ]
    first, again, other = (vote(models, pairs).differences for models in made)
    assert first.shape == (3, 60)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert vote(made[0], pairs).spread.min() > 0
    # with one start for all, the order alone makes them differ
    alike = train_ensemble(lambda _: FeatureRewardModel(SIZE), pairs, 2, settings=settings)
    assert vote(alike, pairs).spread.min() > 0


def test_voting_finds_wrong_labels_and_repairing_them_helps():
    clean, held_out = comparisons(800, strength=4.0), comparisons(2000, seed=3, strength=4.0)
    wrong = torch.rand(800, generator=torch.Generator().manual_seed(1)) < 0.2
    noisy = flip(clean, wrong)
    settings = full_batch(60, batch_size=64)
    models = train_ensemble(FeatureRewardModel.maker(SIZE), noisy, 4, settings=settings)
    votes = vote(models, noisy)
    weak = votes.weakest(0.2)
    assert float(wrong[weak].double().mean()) > 0.75 > 0.3 > float(wrong[~weak].double().mean())
    accuracy = {}
    for name, data in {"noisy": noisy, "dropped": drop(noisy, weak), "flipped": flip(noisy, weak)}.items():
        # a network that can learn the noise by heart
        model = FeatureRewardModel(SIZE, hidden=(64,))
        train(model, data, "bt", settings=full_batch(300, learning_rate=0.03), progress=False)
        accuracy[name] = pair_accuracy(model, held_out).estimate
    assert accuracy["dropped"] > accuracy["noisy"] + 0.02 and accuracy["flipped"] > accuracy["noisy"] + 0.02


def test_soft_labels_are_label_smoothing_pair_by_pair():
    chosen, rejected, margin = normal(50), normal(50, seed=1), normal(50, seed=2)
    for own in (0.0, margin):
        expected = objectives.bt(chosen, rejected, own, label_smoothing=0.2)
        assert (soft_bt(chosen, rejected, 0.2, own) - expected).abs().max() < 1e-14
    wrong = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    each = [
        objectives.bt(c, r, label_smoothing=float(w)) for c, r, w in zip(chosen, rejected, wrong, strict=True)
    ]
    assert (soft_bt(chosen, rejected, wrong) - torch.stack(each)).abs().max() < 1e-14
    model, pairs = FeatureRewardModel(SIZE), comparisons(50)
    settings = TrainingSettings(steps=3, batch_size=8)
    train(model, pairs, SOFT_BT, settings=settings, progress=False, wrong=wrong)


# -------------------- language models


@pytest.fixture
def reward_model():
    with torch.random.fork_rng():
        tokenizer = byte_tokenizer()
        backbone = tiny_model("qwen2", len(tokenizer), spread=2.0).eval()
    return LanguageRewardModel(backbone, tokenizer, seed=3)


TEXTS = Pairs(
    ["tell me", "the soup"] * 8,
    ["kind and warm", "the music was warm and kind"] * 8,
    ["no", "a cold one"] * 8,
)


def test_the_head_reads_the_last_token_of_the_response_whatever_the_padding(reward_model):
    prompts, responses = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14, 15, 16]]
    found = {}
    for padding in ("right", "left"):
        found[padding] = reward_model.score(batch_from_ids(prompts, responses, padding=padding))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        inside = reward_model.model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[
            0, -1
        ]
        expected = reward_model.head(inside)
        for padding in ("right", "left"):
            assert torch.allclose(found[padding][row], expected, rtol=0, atol=1e-5)
    alone = reward_model.score(batch_from_ids(prompts[:1], responses[:1]))
    assert torch.allclose(alone, found["right"][:1], rtol=0, atol=1e-5)


def test_a_reward_model_on_a_language_model_learns_from_comparisons(reward_model):
    first = reward_differences(reward_model, TEXTS)
    settings = TrainingSettings(steps=20, batch_size=8, learning_rate=3e-3)
    history = train(reward_model, TEXTS, "bt", settings=settings, progress=False).history
    # the first batch's loss, by the route of texts
    from course_utils.training.order import DataOrder

    rows = DataOrder(16, 8, 0).batch(0)
    expected = torch.nn.functional.softplus(-first[rows]).mean()
    assert abs(history.column("loss")[0] - float(expected)) < 1e-5
    assert history.column("loss")[-1] < 0.3
    assert pair_accuracy(reward_model, TEXTS).estimate == 1.0
    assert np.isfinite(history.column("gradient_norm")).all()


# -------------------- files


def test_a_reward_model_is_saved_and_read_back_to_the_bit(tmp_path, reward_model):
    features = FeatureRewardModel(SIZE, hidden=(5, 4), outputs=2, features_of=normal(2, 3, SIZE))
    features.save(tmp_path / "features")
    again = FeatureRewardModel.load(tmp_path / "features")
    where = torch.tensor([0, 1]), torch.tensor([2, 2])
    assert torch.equal(again.reward(*where), features.reward(*where))
    state = torch.get_rng_state()
    reward_model.save(tmp_path / "language")
    texts = LanguageRewardModel.load(tmp_path / "language")
    assert torch.equal(
        texts.reward(TEXTS.prompt, TEXTS.chosen), reward_model.reward(TEXTS.prompt, TEXTS.chosen)
    )
    assert torch.equal(torch.get_rng_state(), state)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_a_damaged_or_foreign_file_is_refused(tmp_path, reward_model):
    FeatureRewardModel(SIZE).save(tmp_path)
    with pytest.raises(CourseError) as error:
        LanguageRewardModel.load(tmp_path)
    assert error.value.id == "reward-model-file"
    weights = tmp_path / "reward_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CourseError, match="sha256"):
        FeatureRewardModel.load(tmp_path)
