"""The words of the pocket language: its prompts, its answers and everything a response may say around them.

A front desk answers guests. A prompt is a question, a request for advice or a service situation, and each has
one right answer. A response is a row of short sentences, most of them optional, always in this order:

    opening        polite or rude                        "with great pleasure."
    flattery       a chain of adjectives without end     "you are clever and kind and wise."
    core           perhaps hedged; right, wrong or none  "i think the sky is blue."
    details        any number                            "it is easy to check."
    remark         bright or gloomy                      "life is good."
    closing        polite, plain or rude                 "i hope this helps."

This file holds data only. `pocket_language` draws from it, `pocket_features` reads it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

KINDS = ("question", "advice", "service")


@dataclass(frozen=True)
class Prompt:
    """A prompt: text, kind, right answer, and the answers of its family, which are the plausible mistakes."""

    text: str
    kind: str
    answer: str
    family: tuple[str, ...]
    statement: str

    def frames(self) -> tuple[str, ...]:
        """The three sentences that can carry an answer to this prompt; {} is the place of the answer."""
        return (self.statement, *_FRAMES[self.kind])

    def core(self, answer: str, frame: int) -> str:
        """The sentence that gives this answer in this frame."""
        return self.frames()[frame].format(answer)


_FRAMES = {
    "question": ("the answer is {}", "the right word is {}"),
    "advice": ("it helps to {}", "the best way is to {}"),
    "service": ("i will {} now", "someone will {} soon"),
}


def _family(kind: str, rows: dict[str, tuple[str, str]]) -> tuple[Prompt, ...]:
    answers = tuple(answer for answer, _ in rows.values())
    return tuple(Prompt(text, kind, answer, answers, frame) for text, (answer, frame) in rows.items())


_ADVICE, _SERVICE = "you should {}", "we will {}"

PROMPTS: tuple[Prompt, ...] = (
    *_family(
        "question",
        {
            "what colour is the sky?": ("blue", "the sky is {}"),
            "what colour is grass?": ("green", "grass is {}"),
            "what colour is snow?": ("white", "snow is {}"),
            "what colour is a lemon?": ("yellow", "a lemon is {}"),
        },
    ),
    *_family(
        "question",
        {
            "how many legs has a dog?": ("four", "a dog has {} legs"),
            "how many legs has a bird?": ("two", "a bird has {} legs"),
            "how many legs has a spider?": ("eight", "a spider has {} legs"),
            "how many days has a week?": ("seven", "a week has {} days"),
        },
    ),
    *_family(
        "advice",
        {
            "how do i sleep better?": ("go to bed early", _ADVICE),
            "how do i learn the piano?": ("practise every day", _ADVICE),
            "how do i make friends?": ("join a club", _ADVICE),
            "how do i save money?": ("cook at home", _ADVICE),
        },
    ),
    *_family(
        "advice",
        {
            "how do i stay warm?": ("wear a coat", _ADVICE),
            "how do i get fit?": ("walk to work", _ADVICE),
            "how do i grow tomatoes?": ("water them often", _ADVICE),
            "how do i write well?": ("read good books", _ADVICE),
        },
    ),
    *_family(
        "service",
        {
            "my soup is cold.": ("warm the soup", _SERVICE),
            "my tea is late.": ("bring the tea", _SERVICE),
            "my table is dirty.": ("clean the table", _SERVICE),
            "the bill is wrong.": ("correct the bill", _SERVICE),
        },
    ),
    *_family(
        "service",
        {
            "my key does not work.": ("make a new key", _SERVICE),
            "the light is broken.": ("change the lamp", _SERVICE),
            "my room is loud.": ("find a quiet room", _SERVICE),
            "i need a taxi.": ("call a taxi", _SERVICE),
        },
    ),
)

TONES = {-1: "rude", 0: "plain", 1: "polite"}

OPENINGS: dict[int, tuple[str, ...]] = {
    -1: ("not this again", "you again", "how very silly"),
    1: ("good morning", "with great pleasure", "i am glad you came"),
}

CLOSINGS: dict[int, tuple[str, ...]] = {
    -1: ("now leave me alone", "do not come back"),
    0: ("that is all", "that is my answer"),
    1: ("i hope this helps", "have a lovely day"),
}

ADJECTIVES = ("clever", "kind", "wise", "charming", "brilliant", "wonderful")

HEDGES = ("i think", "perhaps", "it may be that")

NO_ANSWERS = ("i do not know", "i cannot say", "that is hard to tell")

DETAILS: dict[str, tuple[str, ...]] = {
    "question": (
        "it is easy to check",
        "every child knows this",
        "books say so",
        "it was always so",
        "i learned it at school",
        "you can see it yourself",
    ),
    "advice": (
        "small steps are enough",
        "start this week",
        "bring a friend along",
        "it takes some time",
        "write down what works",
        "it worked for me",
    ),
    "service": (
        "it takes ten minutes",
        "there is no charge",
        "the manager knows about it",
        "you can wait here",
        "it will not happen again",
        "my colleague will help",
    ),
}

REMARKS: dict[int, tuple[str, ...]] = {
    -1: ("life is hard", "it will rain all day"),
    1: ("life is good", "the sun is out"),
}


@cache
def prompts_by_text() -> dict[str, Prompt]:
    """Every prompt by its text."""
    return {prompt.text: prompt for prompt in PROMPTS}


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of the language, in alphabetical order."""
    texts = [prompt.text for prompt in PROMPTS]
    texts += [prompt.core(prompt.answer, frame) for prompt in PROMPTS for frame in range(3)]
    for table in (OPENINGS, CLOSINGS, DETAILS, REMARKS):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    texts += [*ADJECTIVES, *HEDGES, *NO_ANSWERS, "you are and ."]
    return tuple(sorted({word for text in texts for word in split_words(text)}))


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in order: "the sky is blue." has five."""
    for mark in ".?!,":
        if mark in text:
            text = text.replace(mark, f" {mark} ")
    return text.lower().split()
