"""The records that a data set is made of: a comparison, or one response with a thumb.

A prompt is a text, or a list of chat messages {"role", "content"} that ends with the user's turn. A response is
always a text: what the assistant says next. Records are frozen and hold nothing but these fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

Kind = Literal["pairs", "unpaired"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | list[Message]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)


class PairRow(_Record):
    """A comparison: for a prompt, the response that was chosen and the one that was rejected."""

    prompt: Prompt
    chosen: str
    rejected: str


class UnpairedRow(_Record):
    """A single response and whether it was preferred (a thumb up)."""

    prompt: Prompt
    response: str
    preferred: bool


Row = PairRow | UnpairedRow

_LABELS = {"true": True, "1": True, "false": False, "0": False}


def _label(value: Any) -> Any:
    """0 and 1, and the words that a CSV file writes, are labels too; everything else is left to be refused."""
    if isinstance(value, str):
        return _LABELS.get(value.strip().lower(), value)
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else value


class _Raw(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", defer_build=True)


class RawPair(_Raw):
    """A comparison as files hold it: responses may be messages, and may carry the conversation before them."""

    prompt: Prompt | None = None
    chosen: Prompt
    rejected: Prompt


class RawUnpaired(_Raw):
    """A labelled response as files hold it."""

    prompt: Prompt | None = None
    response: Prompt
    preferred: Annotated[bool, BeforeValidator(_label)]


def normalised(text: str) -> str:
    """The text with every run of white space as one blank: two texts that differ in nothing else are the same."""
    return " ".join(text.split())


def prompt_key(prompt: Prompt) -> str:
    """What makes two prompts the same."""
    if isinstance(prompt, str):
        return normalised(prompt)
    # A text as a prompt and the same text as the only user turn ask the same question.
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return normalised(prompt[0]["content"])
    return "\x1e".join(f"{turn['role']}\x1f{normalised(turn['content'])}" for turn in prompt)
