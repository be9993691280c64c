"""The experiments of lesson 02: reward models of what different readers see, and what wrong labels do to them.

Four readers of the same 2,000 comparisons: words alone (a bag of words), words with the prompt that they answer, the
nine features that the judge reads, and the pocket language model with a reward head, all of it trained. What each has
learned is then used to pick the best of n responses, and the true judge says what was picked.

For label noise the judge's features and the words are read by a small network that can learn 2,000 labels by heart.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from typing import Any

from course_utils.experiments import Experiment

PAIRS, HELD_OUT = 2_000, 2_000
DRAWN = 96  # responses to each prompt for the best of n
SIZES = (1, 2, 4, 8, 16, 32, 64)
NOISE, SHARE = 0.2, 0.2  # labels turned round; pairs that a remedy touches
MEMBERS = 6
KINDS = ("drawn", "order")


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _held_out() -> Any:
    from course_utils import preferences

    return preferences.draw_pairs(_world(), HELD_OUT, seed=900)


# -------------------- what a reader sees


def bag_of_words(prompts: Any, responses: Any) -> Any:
    """How often each word of the vocabulary occurs, [N, vocabulary]."""
    import torch

    tokenizer = _world().tokenizer
    counts = torch.zeros(len(responses), len(tokenizer), dtype=torch.float64)
    for row, words in enumerate(tokenizer(list(responses), add_special_tokens=False)["input_ids"]):
        counts[row].index_add_(
            0, torch.tensor(words, dtype=torch.long), torch.ones(len(words), dtype=torch.float64)
        )
    return counts


def words_and_prompt(prompts: Any, responses: Any) -> Any:
    """The bag of words, and once more in the place of its prompt: a word may mean something else elsewhere."""
    import torch

    words = bag_of_words(prompts, responses)
    number = {prompt: index for index, prompt in enumerate(_world().prompts)}
    place = torch.nn.functional.one_hot(torch.tensor([number[prompt] for prompt in prompts]), len(number))
    crossed = place.unsqueeze(-1) * words.clamp(max=1).unsqueeze(1)
    return torch.cat([words, crossed.flatten(1)], dim=1)


def judges_features(prompts: Any, responses: Any) -> Any:
    """The nine features that the judge reads, words counted in tens."""
    from course_utils.worlds.pocket import FEATURE_NAMES, feature_table

    table = feature_table(prompts, responses)
    table[:, FEATURE_NAMES.index("words")] /= 10
    return table


def features_and_words(prompts: Any, responses: Any) -> Any:
    """What the judge reads, and the words: much more than is needed, so noise can be learnt by heart."""
    import torch

    return torch.cat([judges_features(prompts, responses), bag_of_words(prompts, responses)], dim=1)


READERS = {
    "words": (bag_of_words, (), 300, 0.02),
    "words and prompt": (words_and_prompt, (), 300, 0.02),
    "judge's features": (judges_features, (64,), 600, 5e-3),
}


# -------------------- readers


def readers(reader: str, seed: int) -> dict[str, Any]:
    """Train one reader on 2,000 comparisons; held-out accuracy, calibration, and the best of n that it picks."""
    from course_utils import preferences
    from course_utils.reward_models import FeatureRewardModel, LanguageRewardModel, reward_differences
    from course_utils.training import TrainingSettings, train

    world, held_out = _world(), _held_out()
    pairs = preferences.draw_pairs(world, PAIRS, seed=seed)
    if reader == "language model":
        model: Any = LanguageRewardModel(
            copy.deepcopy(world.model).requires_grad_(True), world.tokenizer, seed=seed
        )
        settings = TrainingSettings(
            steps=100,
            batch_size=32,
            learning_rate=3e-3,
            schedule="linear",
            warmup=10,
            clip_gradient=1.0,
            seed=seed,
        )
        train(model, pairs, "bt", settings=settings, progress=False)
    elif reader in READERS:
        reads, hidden, steps, rate = READERS[reader]
        width = reads(pairs.prompt[:1], pairs.chosen[:1]).shape[1]
        model = FeatureRewardModel(width, hidden=hidden, seed=seed, features_of=reads)
        ready = replace(
            pairs, chosen=reads(pairs.prompt, pairs.chosen), rejected=reads(pairs.prompt, pairs.rejected)
        )
        plain = FeatureRewardModel(width, hidden=hidden, seed=seed)
        settings = TrainingSettings(
            steps=steps, batch_size=64, learning_rate=rate, schedule="linear", seed=seed
        )
        train(plain, ready, "bt", settings=settings, progress=False)
        model.layers = plain.layers
    else:
        model = _Untrained(reader)
    found = _against_the_judge(reward_differences(model, held_out).double())
    found["train_accuracy"] = round(float((reward_differences(model, pairs) > 0).double().mean()), 4)
    sample = world.draw(None, DRAWN, 500 + seed)
    texts = [text if text.strip() else "." for text in sample.responses]  # an empty one cannot be encoded
    proxy = model.reward(sample.prompts, texts).detach().double().reshape(-1, DRAWN)
    truth = world.reward_of(sample.prompts, sample.responses).reshape(-1, DRAWN)
    found["proxy"], found["truth"] = _best_of_n(proxy, proxy), _best_of_n(proxy, truth)
    found["ceiling"] = _best_of_n(truth, truth)
    for name in ("correct", "flattery", "tone", "words"):
        found[name] = _best_of_n(proxy, sample.feature(name).double().reshape(-1, DRAWN))
    best = proxy.argmax(dim=1)
    found["texts"] = [
        [sample.prompts[x * DRAWN], sample.responses[x * DRAWN + int(best[x])]] for x in (3, 9, 17)
    ]
    return found


class _Untrained:
    """Rewards that nobody trained: the length, and the log-probability under the reference."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reward(self, prompts: Any, responses: Any) -> Any:
        from course_utils.worlds.pocket import FEATURE_NAMES, feature_table

        if self.name == "length":
            return feature_table(prompts, responses)[:, FEATURE_NAMES.index("words")]
        return _world().log_prob(None, prompts, responses)


def _against_the_judge(difference: Any) -> dict[str, Any]:
    """Held-out accuracy against drawn labels and against the true order; calibration; loss."""
    import torch

    from course_utils.statistics import calibration_curve

    world, held_out = _world(), _held_out()
    judged = world.preference_probability(held_out.prompt, held_out.chosen, held_out.rejected)
    clear = judged != 0.5
    # Every pair in an order of its own, or there would be nothing to calibrate: chosen is always right.
    turned = torch.rand(HELD_OUT, generator=torch.Generator().manual_seed(7)) < 0.5
    said = torch.sigmoid(torch.where(turned, -difference, difference))
    curve = calibration_curve(said, ~turned, bins=10)
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    order = (difference > 0) == (judged > 0.5)
    return {
        "accuracy": round(float(right.mean()), 4),
        "bayes": round(float(torch.maximum(judged, 1 - judged).mean()), 4),
        "bayes_here": round(float((judged > 0.5).double().mean() + 0.5 * (~clear).double().mean()), 4),
        "order": round(float(order[clear].double().mean()), 4),
        "loss": round(float(torch.nn.functional.softplus(-difference).mean()), 4),
        "calibration_error": round(curve.expected_calibration_error, 4),
        "said": [round(float(value), 4) for value in curve.probability],
        "happened": [round(float(value), 4) for value in curve.frequency],
    }


def _best_of_n(proxy: Any, value: Any) -> list[float]:
    """The expected value of the response that wins by proxy among n drawn ones, from many drawn ones [X, N].

    In order of the proxy, the i-th of N wins a random subset of n with probability C(i-1, n-1) / C(N, n).
    """
    import torch

    count = proxy.shape[1]
    ordered = value.gather(1, proxy.argsort(dim=1, stable=True)).mean(dim=0)
    weights = [[math.comb(i, n - 1) / math.comb(count, n) for i in range(count)] for n in SIZES]
    return [round(float(value), 4) for value in torch.tensor(weights, dtype=torch.float64) @ ordered]


# -------------------- label noise


@functools.cache
def _read_held_out() -> Any:
    held_out = _held_out()
    return replace(
        held_out,
        chosen=features_and_words(held_out.prompt, held_out.chosen),
        rejected=features_and_words(held_out.prompt, held_out.rejected),
    )


def _network(features: int, seed: int) -> Any:
    from course_utils.reward_models import FeatureRewardModel

    return FeatureRewardModel(features, hidden=(32,), seed=seed)


def label_noise(labels: str, seed: int) -> dict[str, Any]:
    """Votes on 2,000 comparisons with wrong labels, and what each remedy gives on clean held-out comparisons.

    "order": the label is the true order, then 20 % are turned round. "drawn": the label is drawn from the judge, who
    is unsure about near ties, then 20 % are turned round.
    """
    import torch

    from course_utils import preferences
    from course_utils.reward_models import SOFT_BT, drop, flip, reward_differences, train_ensemble, vote
    from course_utils.statistics import seeds
    from course_utils.training import TrainingSettings, train

    world = _world()
    texts = preferences.draw_pairs(world, PAIRS, seed=seed)
    gap = world.reward_of(texts.prompt, texts.chosen) - world.reward_of(texts.prompt, texts.rejected)
    pairs = replace(
        texts,
        chosen=features_and_words(texts.prompt, texts.chosen),
        rejected=features_and_words(texts.prompt, texts.rejected),
    )
    if labels == "order":
        pairs, gap = flip(pairs, gap < 0), gap.abs()
    wrong = torch.rand(PAIRS, generator=torch.Generator().manual_seed(100 + seed)) < NOISE
    noisy, gap = flip(pairs, wrong), torch.where(wrong, -gap, gap)
    width = pairs.chosen.shape[1]

    def long(steps: int = 300, one: int = seed) -> TrainingSettings:
        return TrainingSettings(steps=steps, batch_size=128, learning_rate=7e-3, schedule="linear", seed=one)

    members = train_ensemble(lambda one: _network(width, one), noisy, MEMBERS, settings=long(60), seed=seed)
    votes = vote(members, noisy)
    strength, weak, decile = votes.strength, votes.weakest(SHARE), votes.decile()
    some = torch.rand(PAIRS, generator=torch.Generator().manual_seed(200 + seed)).argsort() < SHARE * PAIRS
    remedies: dict[str, tuple[Any, Any, int, dict[str, Any]]] = {
        "nothing": (noisy, "bt", 300, {}),
        "early stop": (noisy, "bt", 60, {}),
        "drop at random": (drop(noisy, some), "bt", 300, {}),
        "smooth": (noisy, "bt", 300, {"label_smoothing": NOISE}),
        "soft": (noisy, SOFT_BT, 300, {"wrong": torch.where(strength < 0, 0.4, 0.0).double()}),
        "margin": (noisy, "bt", 300, {"margin": strength}),
        "flip": (flip(noisy, weak), "bt", 300, {}),
        "flip and margin": (flip(noisy, weak), "bt", 300, {"margin": votes.after_flip(weak).strength}),
        "drop": (drop(noisy, weak), "bt", 300, {}),
        "clean labels": (pairs, "bt", 300, {}),
    }
    held_out = _read_held_out()
    found: dict[str, Any] = {"remedies": {}}
    for name, (data, objective, steps, knobs) in remedies.items():
        model = _network(width, seed)
        train(model, data, objective, settings=long(steps), progress=False, **knobs)
        found["remedies"][name] = _against_the_judge(reward_differences(model, held_out))
    mean = torch.stack([reward_differences(member, held_out) for member in members]).mean(0)
    found["remedies"]["ensemble mean"] = _against_the_judge(mean)
    alone = []
    for tenth, one in zip(range(10), seeds(seed, 10), strict=True):
        model = _network(width, one)
        train(
            model,
            noisy.take((decile == tenth).nonzero().flatten()),
            "bt",
            settings=long(80, one),
            progress=False,
        )
        alone.append(_against_the_judge(reward_differences(model, held_out))["order"])
    by_decile = [decile == tenth for tenth in range(10)]
    found |= {
        "alone": alone,
        "turned": [round(float(wrong[rows].double().mean()), 4) for rows in by_decile],
        "against_the_order": [round(float((gap[rows] < 0).double().mean()), 4) for rows in by_decile],
        "true_gap": [round(float(gap[rows].mean()), 4) for rows in by_decile],
        "strength": [round(float(strength[rows].mean()), 4) for rows in by_decile],
        "negative": round(float((strength < 0).double().mean()), 4),
        "precision": round(float(wrong[weak].double().mean()), 4),
        "recall": round(float(weak[wrong].double().mean()), 4),
    }
    return found


NAMES = (
    "words",
    "words and prompt",
    "judge's features",
    "language model",
    "length",
    "reference log-probability",
)

EXPERIMENTS = (
    Experiment(
        "02_readers",
        readers,
        grid=[{"reader": reader, "seed": seed} for seed in range(5) for reader in NAMES],
        about="Reward models of four readers and two controls: accuracy, calibration, and the best of n that each picks.",
    ),
    Experiment(
        "02_label_noise",
        label_noise,
        grid=[{"labels": labels, "seed": seed} for seed in range(5) for labels in KINDS],
        about="Voting on comparisons with a fifth of the labels turned round, and what each remedy gives; 5 seeds.",
    ),
)
