"""The pocket language as a distribution: draw from it, know every probability and the entropy of the whole.

A `Recipe` says how often each choice is made. Choices are made in the order in which the response is written,
and each of them can be read back from the text, so the probability of a response is a product of the recipe's
numbers, and the entropy is a short sum. This is the only text distribution in the course whose entropy is
known, which is why a model's perplexity can be held against it.

Three recipes are given: BASE (mixed quality, what the base model learns), SFT (better than average, what the
fine-tuned model learns) and SKILLED (what a very good desk would say; nobody is trained on it, it shows how
much room is left).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from course_utils.errors import CourseError
from course_utils.worlds import pocket_phrases as phrases
from course_utils.worlds.pocket_features import find_prompt, is_grammatical, read_items
from course_utils.worlds.pocket_phrases import PROMPTS, Prompt

_TONES = (-1, 0, 1)


@dataclass(frozen=True)
class Recipe:
    """How often each choice is made. Rows of three are in the order rude, plain, polite."""

    name: str
    tone: tuple[float, float, float]
    correct: tuple[float, float, float]  # wrong, no answer, right
    sentiment: tuple[float, float, float]  # gloomy, none, bright
    hedged: float
    flattery: tuple[float, float, float]  # P(any flattery), by tone
    more_flattery: float  # P(one more adjective), after each
    details: tuple[tuple[float, ...], ...]  # P(0), P(1), ... details: one row per tone
    closing: float
    repeat: float = 0.06  # P(say an earlier detail, or the same adjective, again)


BASE = Recipe(
    name="base",
    tone=(0.30, 0.35, 0.35),
    correct=(0.35, 0.15, 0.50),
    sentiment=(0.20, 0.55, 0.25),
    hedged=0.30,
    flattery=(0.03, 0.20, 0.55),
    more_flattery=0.30,
    details=(
        (0.50, 0.25, 0.15, 0.07, 0.03),
        (0.36, 0.28, 0.20, 0.11, 0.05),
        (0.25, 0.28, 0.25, 0.15, 0.07),
    ),
    closing=0.35,
)

SFT = Recipe(
    name="sft",
    tone=(0.20, 0.35, 0.45),
    correct=(0.25, 0.12, 0.63),
    sentiment=(0.15, 0.60, 0.25),
    hedged=0.25,
    flattery=(0.03, 0.15, 0.45),
    more_flattery=0.25,
    details=(
        (0.45, 0.28, 0.17, 0.07, 0.03),
        (0.32, 0.30, 0.23, 0.10, 0.05),
        (0.22, 0.30, 0.28, 0.14, 0.06),
    ),
    closing=0.35,
)

SKILLED = Recipe(
    name="skilled",
    tone=(0.01, 0.09, 0.90),
    correct=(0.02, 0.02, 0.96),
    sentiment=(0.02, 0.58, 0.40),
    hedged=0.05,
    flattery=(0.05, 0.20, 0.25),
    more_flattery=0.05,
    details=((0.1, 0.2, 0.6, 0.1, 0.0), (0.05, 0.2, 0.65, 0.1, 0.0), (0.05, 0.15, 0.65, 0.15, 0.0)),
    closing=0.50,
    repeat=0.01,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (BASE, SFT, SKILLED)}


def recipe_named(name: str) -> Recipe:
    """One of BASE, SFT and SKILLED by its name."""
    if name not in RECIPES:
        raise CourseError(
            "pocket-unknown-name",
            f"there is no recipe {name!r}.",
            where="recipe_named(name)",
            remedy=f"use one of {', '.join(RECIPES)}.",
        )
    return RECIPES[name]


# -------------------- draw


def sample_response(prompt: Prompt, recipe: Recipe, rng: random.Random) -> str:
    """One response to this prompt, drawn from the recipe."""
    tone = rng.choices(_TONES, recipe.tone)[0]
    sentences = []
    if tone:
        sentences.append(rng.choice(phrases.OPENINGS[tone]))
    if rng.random() < recipe.flattery[tone + 1]:
        sentences.append("you are " + " and ".join(_sample_adjectives(recipe, rng)))
    sentences.append(_sample_core(prompt, recipe, rng))
    count = rng.choices(range(len(recipe.details[tone + 1])), recipe.details[tone + 1])[0]
    sentences += _sample_details(prompt.kind, count, recipe, rng)
    sentiment = rng.choices(_TONES, recipe.sentiment)[0]
    if sentiment:
        sentences.append(rng.choice(phrases.REMARKS[sentiment]))
    if rng.random() < recipe.closing:
        sentences.append(rng.choice(phrases.CLOSINGS[tone]))
    return ". ".join(sentences) + "."


def sample_corpus(
    recipe: Recipe, n: int, seed: int, prompts: Sequence[Prompt] = PROMPTS
) -> list[tuple[str, str]]:
    """n rows (prompt, response), prompts with equal weight. A seed gives the same rows on every machine."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(n):
        prompt = rng.choice(prompts)
        drawn.append((prompt.text, sample_response(prompt, recipe, rng)))
    return drawn


def _sample_core(prompt: Prompt, recipe: Recipe, rng: random.Random) -> str:
    correct = rng.choices((-1, 0, 1), recipe.correct)[0]
    if correct == 0:
        return rng.choice(phrases.NO_ANSWERS)
    others = [answer for answer in prompt.family if answer != prompt.answer]
    answer = prompt.answer if correct == 1 else rng.choice(others)
    hedge = rng.choice(phrases.HEDGES) + " " if rng.random() < recipe.hedged else ""
    return hedge + prompt.core(answer, rng.randrange(len(prompt.frames())))


def _sample_adjectives(recipe: Recipe, rng: random.Random) -> list[str]:
    chain = [rng.choice(phrases.ADJECTIVES)]
    while rng.random() < recipe.more_flattery:
        again = rng.random() < recipe.repeat
        others = [word for word in phrases.ADJECTIVES if word != chain[-1]]
        chain.append(chain[-1] if again else rng.choice(others))
    return chain


def _sample_details(kind: str, count: int, recipe: Recipe, rng: random.Random) -> list[str]:
    said: list[str] = []
    for _ in range(count):
        used = sorted(set(said))
        if used and rng.random() < recipe.repeat:
            said.append(rng.choice(used))
        else:
            said.append(rng.choice([text for text in phrases.DETAILS[kind] if text not in said]))
    return said


# -------------------- probability


def log_prob(prompt: str, response: str, recipe: Recipe) -> float:
    """log p(response | prompt) under a recipe, in nats; minus infinity outside the language."""
    asked, items = find_prompt(prompt), read_items(response)
    if not is_grammatical(asked, items):
        return -math.inf
    roles = {item.role: item for item in items}
    tone = roles["opening"].value if "opening" in roles else 0
    total = _log(recipe.tone[tone + 1])
    if tone:
        total -= math.log(len(phrases.OPENINGS[tone]))
    chain = [item.value for item in items if item.role == "adjective"]
    total += _log_chance(recipe.flattery[tone + 1], bool(chain))
    if chain:
        total += _log_prob_adjectives(chain, recipe)
    total += _log_prob_core(asked, roles, recipe)
    total += _log_prob_details(
        [item.value for item in items if item.role == "detail"], recipe.details[tone + 1], recipe, asked.kind
    )
    sentiment = roles["remark"].value if "remark" in roles else 0
    total += _log(recipe.sentiment[sentiment + 1])
    if sentiment:
        total -= math.log(len(phrases.REMARKS[sentiment]))
    total += _log_chance(recipe.closing, "closing" in roles)
    if "closing" in roles:
        fits = roles["closing"].value == tone
        total += -math.log(len(phrases.CLOSINGS[tone])) if fits else -math.inf
    return total


def _log_prob_adjectives(chain: list[str], recipe: Recipe) -> float:
    total = -math.log(len(phrases.ADJECTIVES)) + _log(1 - recipe.more_flattery)
    for before, after in pairwise(chain):
        total += _log(recipe.more_flattery) + _log_chance(recipe.repeat, after == before)
        total -= 0.0 if after == before else math.log(len(phrases.ADJECTIVES) - 1)
    return total


def _log_prob_core(prompt: Prompt, roles: dict, recipe: Recipe) -> float:
    if "no answer" in roles:
        return _log(recipe.correct[1]) - math.log(len(phrases.NO_ANSWERS))
    total = _log_chance(recipe.hedged, "hedge" in roles) - math.log(len(prompt.frames()))
    total -= math.log(len(phrases.HEDGES)) if "hedge" in roles else 0.0
    if roles["core"].value == prompt.answer:
        return total + _log(recipe.correct[2])
    return total + _log(recipe.correct[0]) - math.log(len(prompt.family) - 1)


def _log_prob_details(said: list[str], counts: tuple[float, ...], recipe: Recipe, kind: str) -> float:
    if len(said) >= len(counts):
        return -math.inf
    total, used = _log(counts[len(said)]), set()
    for text in said:
        if used:
            total += _log_chance(recipe.repeat, text in used)
        total -= math.log(len(used) if text in used else len(phrases.DETAILS[kind]) - len(used))
        used.add(text)
    return total


# -------------------- entropy


def entropy(recipe: Recipe) -> float:
    """The entropy of a response given its prompt, in nats, exactly. It is the same for every prompt.

    The chain rule: the entropy of each choice, weighted by the probability that this choice is reached.
    """
    total = sum(map(_entropy, (recipe.tone, recipe.correct, recipe.sentiment))) + _coin(recipe.closing)
    answered = recipe.correct[0] + recipe.correct[2]
    hedging = _coin(recipe.hedged) + recipe.hedged * math.log(len(phrases.HEDGES))
    total += answered * (hedging + math.log(3)) + recipe.correct[0] * math.log(3)
    total += recipe.correct[1] * math.log(len(phrases.NO_ANSWERS))
    for sentiment in (-1, 1):
        total += recipe.sentiment[sentiment + 1] * math.log(len(phrases.REMARKS[sentiment]))
    for tone, share in zip(_TONES, recipe.tone, strict=True):
        by_tone = math.log(len(phrases.OPENINGS[tone])) if tone else 0.0
        by_tone += recipe.closing * math.log(len(phrases.CLOSINGS[tone]))
        any_flattery = recipe.flattery[tone + 1]
        by_tone += _coin(any_flattery) + any_flattery * _adjective_entropy(recipe)
        by_tone += _detail_entropy(recipe.details[tone + 1], recipe.repeat)
        total += share * by_tone
    return total


def _adjective_entropy(recipe: Recipe) -> float:
    further = recipe.more_flattery / (1 - recipe.more_flattery)  # expected adjectives after the first
    step = _coin(recipe.repeat) + (1 - recipe.repeat) * math.log(len(phrases.ADJECTIVES) - 1)
    return math.log(len(phrases.ADJECTIVES)) + (1 + further) * _coin(recipe.more_flattery) + further * step


def _detail_entropy(counts: tuple[float, ...], repeat: float) -> float:
    size = len(phrases.DETAILS["question"])
    total, reached = _entropy(counts), 1.0
    used = {0: 1.0}  # how many distinct details so far, with what probability
    for chance in counts[:-1]:
        reached -= chance
        step, after = 0.0, {}
        for number, share in used.items():
            again = repeat if number else 0.0
            known = again * math.log(number) if number else 0.0
            step += share * (_coin(again) + known + (1 - again) * math.log(size - number))
            after[number] = after.get(number, 0.0) + share * again
            after[number + 1] = after.get(number + 1, 0.0) + share * (1 - again)
        total, used = total + reached * step, after
    return total


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _log_chance(probability: float, happened: bool) -> float:
    return _log(probability if happened else 1 - probability)


def _entropy(probabilities: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def _coin(probability: float) -> float:
    return _entropy((probability, 1 - probability))
