"""Layouts: which columns of a file mean what, and how one row of them becomes a record.

Recognised without being told (TRL's formats are among them):

    chosen, rejected [, prompt]     texts, or chat messages; the conversation may be repeated in both of them
    response or completion, preferred or label [, prompt]
    messages, preferred or label    a conversation; its last turn is the response
    chosen, rejected in the manner of HH-RLHF: "\\n\\nHuman: …\\n\\nAssistant: …", which becomes chat messages

Deviations: the turns of HH-RLHF are stripped of white space at both ends, and a conversation whose turns do not
alternate is refused (TRL's own script keeps it; some chat templates refuse it later, in the middle of a run).
A row whose two responses are equal is refused: it says nothing about a preference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from course_utils.datasets.account import Refused
from course_utils.datasets.records import (
    Kind,
    Message,
    PairRow,
    Prompt,
    RawPair,
    RawUnpaired,
    Row,
    UnpairedRow,
    normalised,
)
from course_utils.errors import CourseError

NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "response": ("response", "completion", "answer"),
    "preferred": ("preferred", "label"),
    "messages": ("messages", "conversation"),
}
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SURROGATE = re.compile("[\ud800-\udfff]")

EXPECTED = (
    "prompt, chosen, rejected; or chosen and rejected that hold the whole conversation; or prompt, completion (or "
    "response), label (or preferred); or messages and label"
)


@dataclass(frozen=True)
class Layout:
    """The kind of the rows and the column that plays each part."""

    kind: Kind
    columns: Mapping[str, str]


def layout_of(found: Iterable[str], columns: Mapping[str, str] | None, kind: Kind | None) -> Layout | None:
    """The layout of rows with these columns, or None if it is none of the known ones."""
    found = set(found)
    if columns is None:
        parts = {}
        for role, names in NAMES.items():
            present = [name for name in names if name in found]
            if present:
                parts[role] = present[0]
    else:
        parts = {role: name for role, name in columns.items() if name in found}
    pairs = {"chosen", "rejected"} <= parts.keys()
    unpaired = "preferred" in parts and ("response" in parts or "messages" in parts)
    if pairs and kind in (None, "pairs"):
        return Layout(
            "pairs", {role: parts[role] for role in ("prompt", "chosen", "rejected") if role in parts}
        )
    if not unpaired or kind == "pairs":
        return None
    wanted = ("prompt", "response", "preferred") if "response" in parts else ("messages", "preferred")
    return Layout("unpaired", {role: parts[role] for role in wanted if role in parts})


def named_columns(columns: Mapping[str, str] | None) -> dict[str, str] | None:
    """The reader's own mapping, {part: column of the file}, with the names of the parts checked."""
    if columns is None:
        return None
    unknown = sorted(str(name) for name in columns if name not in _ROLE_OF)
    if unknown:
        raise CourseError(
            "dataset-columns",
            f"columns= names parts that no row has: {', '.join(unknown)}.",
            where="load(columns={part: column of the file})",
            remedy="the parts are prompt, chosen, rejected, response, preferred and messages.",
        )
    return {_ROLE_OF[name]: column for name, column in columns.items()}


def unknown_columns(found: Iterable[str], where: str) -> CourseError:
    """The error for rows of no known layout."""
    names = sorted(str(name)[:60] for name in found)
    shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return CourseError(
        "dataset-columns",
        f"The columns ({shown or 'none'}) are of no known layout.",
        where=where,
        remedy=f"known are {EXPECTED}. For other names say which column is which: "
        'load(..., columns={"prompt": "question", "chosen": "better", "rejected": "worse"}).',
    )


def to_record(raw: Mapping[str, Any], layout: Layout, max_characters: int) -> Row:
    """One row of a file as a record; `Refused` if it cannot be one."""
    parts = {role: raw.get(column) for role, column in layout.columns.items()}
    missing = [layout.columns[role] for role, value in parts.items() if value is None and role != "prompt"]
    if missing or ("prompt" in parts and parts["prompt"] is None):
        raise Refused("missing field", ", ".join(missing or [layout.columns["prompt"]]))
    if "messages" in parts:
        parts["response"] = parts.pop("messages")
    if layout.kind == "pairs":
        record: Row = _pair(_structure(RawPair, parts))
    else:
        record = _unpaired(_structure(RawUnpaired, parts))
    _check_texts(record, max_characters)
    return record


def _structure(model: Any, parts: dict[str, Any]) -> Any:
    try:
        return model.model_validate(parts)
    except ValidationError as error:
        # Of the alternatives of a union, the error that lies deepest is the one that tells most.
        found = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
        if found["type"] == "string_unicode":
            raise Refused("not UTF-8", str(found["loc"][0])) from None
        place = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or part in _PLACES)
        raise Refused("wrong type", f"{place}: {found['msg'].lower()}") from None
    except RecursionError:
        raise Refused("wrong type", "nested too deeply") from None


_PLACES = {"prompt", "chosen", "rejected", "response", "preferred", "role", "content"}


def _pair(raw: RawPair) -> PairRow:
    if raw.prompt is None and isinstance(raw.chosen, str) and isinstance(raw.rejected, str):
        sides = [hh_messages(raw.chosen), hh_messages(raw.rejected)]
    else:
        sides = [raw.chosen, raw.rejected]
    before, chosen = _prompt_and_response(raw.prompt, sides[0])
    other, rejected = _prompt_and_response(raw.prompt, sides[1])
    if before != other:
        raise Refused("prompts differ", "chosen and rejected answer different conversations")
    _check_prompt(before)
    if normalised(chosen) == normalised(rejected):
        raise Refused("identical responses")
    return PairRow(prompt=before, chosen=chosen, rejected=rejected)


def _unpaired(raw: RawUnpaired) -> UnpairedRow:
    prompt, response = _prompt_and_response(raw.prompt, raw.response)
    _check_prompt(prompt)
    return UnpairedRow(prompt=prompt, response=response, preferred=raw.preferred)


def _prompt_and_response(prompt: Prompt | None, response: Prompt) -> tuple[Prompt, str]:
    """Prompt and response, wherever the prompt stands: in a column of its own, in the conversation, or in both."""
    if isinstance(response, str):
        if prompt is None:
            raise Refused("no prompt", "a response that is a text needs a prompt")
        return prompt, response
    if not response or response[-1]["role"] != "assistant":
        raise Refused("no assistant turn at the end")
    before, last = response[:-1], response[-1]["content"]
    if prompt is None:
        return before, last
    if not before:
        return _as_messages(prompt), last
    if isinstance(prompt, str):
        same = normalised(before[-1]["content"]) == normalised(prompt)
    else:
        same = before == prompt
    if not same:
        raise Refused("prompts differ", "the prompt is not the one of the conversation")
    return before, last


def _as_messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def hh_messages(text: str) -> list[Message]:
    """A dialogue in the manner of HH-RLHF as chat messages."""
    start, *parts = _TURN.split(text)
    if start.strip() or not parts:
        raise Refused("no prompt", "there is no prompt column and no Human: turn")
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[who], "content": what.strip()}
        for who, what in zip(parts[::2], parts[1::2], strict=True)
    ]


def _check_prompt(prompt: Prompt) -> None:
    """Turns alternate after an optional system message, and the user speaks last."""
    if isinstance(prompt, str):
        return
    turns = [message["role"] for message in prompt]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns:
        raise Refused("empty prompt")
    if turns[-1] != "user" or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise Refused("turns do not alternate")


def _check_texts(record: Row, longest: int) -> None:
    texts = {"prompt": record.prompt if isinstance(record.prompt, str) else record.prompt[-1]["content"]}
    if not texts["prompt"].strip():
        raise Refused("empty prompt")
    for name in ("chosen", "rejected", "response"):
        text = record.__dict__.get(name)
        if text is not None:
            if not text.strip():
                raise Refused("empty response", name)
            texts[name] = text
    if not isinstance(record.prompt, str):
        texts["prompt"] = "".join(message["content"] for message in record.prompt)
    for name, text in texts.items():
        if len(text) > longest:
            raise Refused("too long", f"{name} has {len(text):,} characters, allowed are {longest:,}")
        if _SURROGATE.search(text):
            raise Refused("not UTF-8", name)


def cell(text: str) -> Any:
    """A cell of a CSV file: chat messages when it is a JSON list of objects with role and content, else the text."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    chat = all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in value)
    return value if chat else text
