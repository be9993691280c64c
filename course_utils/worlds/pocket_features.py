"""Reading a response: features that are exact for the pocket language and defined for any row of words.

The reader goes through the words from left to right and takes the longest phrase it knows at each place; a
word that starts no known phrase is set aside. Features are counts of what was found, so they exist for broken
text too. A text is `grammatical` when nothing was set aside and the sentences belong to this prompt and stand
in the language's order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.worlds import pocket_phrases as phrases
from course_utils.worlds.pocket_phrases import Prompt, split_words


class PocketFeatures(NamedTuple):
    """What a judge sees of a response.

    correct      1 right, 0 no answer, -1 wrong (one wrong answer outweighs a right one)
    tone         1 polite, 0 plain, -1 rude: the sign of polite minus rude sentences
    details      distinct details that fit the prompt
    hedged       1 if an answer is hedged
    sentiment    1 bright, 0 none, -1 gloomy: the sign of bright minus gloomy remarks
    flattery     flattering adjectives
    repeats      details said again, and adjectives said twice in a row
    words        words, without punctuation
    grammatical  1 if the text belongs to the language
    """

    correct: int
    tone: int
    details: int
    hedged: int
    sentiment: int
    flattery: int
    repeats: int
    words: int
    grammatical: int


FEATURE_NAMES: tuple[str, ...] = PocketFeatures._fields


@dataclass(frozen=True)
class Item:
    """One thing that the reader found. `value` is an adjective, an answer, a phrase, or a tone."""

    role: str
    value: str | int = ""
    words: str = ""
    prompts: frozenset[str] = frozenset()


# One letter per sentence, in the language's order. A flattering sentence is F and one A per adjective, joined
# by &.
_LETTERS = {
    "opening": "O",
    "flattery": "F",
    "adjective": "A",
    "and": "&",
    "hedge": "H",
    "core": "C",
    "no answer": "N",
    "detail": "D",
    "remark": "R",
    "closing": "K",
    "stop": ".",
}
_GRAMMAR = re.compile(r"(O\.)?(FA(&A)*\.)?(H?C\.|N\.)(D\.)*(R\.)?(K\.)?")


@cache
def _known_phrases() -> dict[str, list[tuple[tuple[str, ...], Item]]]:
    """Every phrase by its first word, the longest first."""
    found: dict[tuple[str, ...], Item] = {}

    def add(text: str, role: str, value: str | int = "", prompts: frozenset[str] = frozenset()) -> None:
        words = tuple(split_words(text))
        if words in found:  # "the answer is blue" fits several prompts
            prompts = prompts | found[words].prompts
        found[words] = Item(role, value, " ".join(words), prompts)

    for tone, texts in phrases.OPENINGS.items():
        for text in texts:
            add(text, "opening", tone)
    for tone, texts in phrases.CLOSINGS.items():
        for text in texts:
            add(text, "closing", tone)
    for sentiment, texts in phrases.REMARKS.items():
        for text in texts:
            add(text, "remark", sentiment)
    for kind, texts in phrases.DETAILS.items():
        fitting = frozenset(prompt.text for prompt in phrases.PROMPTS if prompt.kind == kind)
        for text in texts:
            add(text, "detail", text, fitting)
    for prompt in phrases.PROMPTS:
        for answer in prompt.family:
            for frame in range(len(prompt.frames())):
                add(prompt.core(answer, frame), "core", answer, frozenset({prompt.text}))
    for text in phrases.NO_ANSWERS:
        add(text, "no answer")
    for text in phrases.HEDGES:
        add(text, "hedge")
    for text in phrases.ADJECTIVES:
        add(text, "adjective", text)
    add("you are", "flattery")
    add("and", "and")
    add(".", "stop")
    by_first: dict[str, list[tuple[tuple[str, ...], Item]]] = {}
    for words in sorted(found, key=len, reverse=True):
        by_first.setdefault(words[0], []).append((words, found[words]))
    return by_first


def read_items(response: str) -> list[Item]:
    """The phrases of a response in order; a word that starts no known phrase is an item of role "unknown"."""
    words, known, items, place = tuple(split_words(response)), _known_phrases(), [], 0
    while place < len(words):
        for phrase, item in known.get(words[place], ()):
            if words[place : place + len(phrase)] == phrase:
                items.append(item)
                place += len(phrase)
                break
        else:
            items.append(Item("unknown", words[place], words[place]))
            place += 1
    return items


def find_prompt(text: str) -> Prompt:
    """The prompt with this text."""
    prompt = phrases.prompts_by_text().get(text)
    if prompt is None:
        raise CourseError(
            "pocket-unknown-prompt",
            f"the pocket language has no prompt {text!r}.",
            where="a prompt of the pocket world",
            remedy="use one of `pocket.PROMPTS`, in its own spelling, for instance 'what colour is the sky?'.",
        )
    return prompt


def is_grammatical(prompt: Prompt, items: Sequence[Item]) -> bool:
    """Whether the sentences stand in the language's order and belong to this prompt."""
    letters = "".join(_LETTERS.get(item.role, "?") for item in items)
    fits = all(prompt.text in item.prompts for item in items if item.role in ("core", "detail"))
    return fits and _GRAMMAR.fullmatch(letters) is not None


@lru_cache(maxsize=200_000)
def features(prompt: str, response: str) -> PocketFeatures:
    """The features of a response to a prompt, for any row of words."""
    asked, items = find_prompt(prompt), read_items(response)
    answers, details, tone, sentiment, flattery, repeats, hedged = set(), set(), 0, 0, 0, 0, 0
    last_adjective = None
    for position, item in enumerate(items):
        if item.role == "core":
            right = item.value == asked.answer and prompt in item.prompts
            answers.add(1 if right else -1)
            hedged |= int(position > 0 and items[position - 1].role == "hedge")
        elif item.role == "detail" and prompt in item.prompts:
            repeats += item.value in details
            details.add(item.value)
        elif item.role in ("opening", "closing"):
            tone += item.value
        elif item.role == "remark":
            sentiment += item.value
        elif item.role == "adjective":
            flattery += 1
            repeats += item.value == last_adjective
        if item.role not in ("and", "flattery", "stop"):
            last_adjective = item.value if item.role == "adjective" else None
    return PocketFeatures(
        correct=-1 if -1 in answers else int(1 in answers),
        tone=_sign(tone),
        details=len(details),
        hedged=hedged,
        sentiment=_sign(sentiment),
        flattery=flattery,
        repeats=repeats,
        words=sum(word.isalpha() for word in split_words(response)),
        grammatical=int(is_grammatical(asked, items)),
    )


def feature_table(prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """The features of many responses, [N, 9], in the order of FEATURE_NAMES."""
    if len(prompts) != len(responses):
        raise CourseError(
            "feedback-lengths",
            f"{len(prompts)} prompts but {len(responses)} responses.",
            where="feature_table(prompts, responses)",
            remedy="give one prompt per response; repeat the prompt where it has several.",
        )
    rows = [features(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(FEATURE_NAMES))


def column(table: Tensor, name: str) -> Tensor:
    """One feature of a table [..., 9], by name."""
    return table[..., FEATURE_NAMES.index(name)]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
