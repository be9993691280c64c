"""Data for the trainers: rows become feedback, feedback is measured against the longest length, and a run is cut
into batches.

A row is a dictionary or an object with attributes of these names:

    pairs     prompt, chosen, rejected
    unpaired  prompt, response (or completion), preferred (or label)
    groups    prompt, responses, rewards (one number for each response, the same count in every row)

A prompt is a text or a list of chat messages {"role", "content"}; a response is a text or one message of the
assistant. The answer is always one of the containers of `course_utils.feedback`, so from here on a run of a trainer
and a run of the teaching loop are the same.

Nothing is ever cut from a row. A row that is too long is an error, or it is dropped and counted: a response that lost
its end token would teach the policy never to stop, and a prompt that lost its question is another prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from course_utils.encoding import encode, encode_prompts
from course_utils.errors import CourseError
from course_utils.feedback import Groups, Pairs, Unpaired
from course_utils.training.order import DataOrder

Feedback = Pairs | Unpaired | Groups
OverLength = Literal["error", "drop"]

MEASURED_AT_ONCE = 256  # rows tokenised at a time: padding to one very long row would fill the memory
_MISSING = object()


# -------------------- rows


def feedback_from_rows(rows: Any) -> Feedback:
    """Rows (of a list, or of a data set that can be walked through) as `Pairs`, `Unpaired` or `Groups`."""
    if isinstance(rows, Pairs | Unpaired | Groups):
        return rows
    rows = list(rows)
    if not rows:
        raise CourseError(
            "no-rows",
            "there are no rows.",
            where="feedback_from_rows(rows)",
            remedy="check the filter or the file they come from.",
        )
    kind = _kind(rows[0])
    return {"pairs": _pairs, "unpaired": _unpaired, "groups": _groups}[kind](rows)


def is_chat(feedback: Feedback) -> bool:
    """Whether prompts are chat messages, which need the tokenizer's chat template."""
    return any(not isinstance(prompt, str) for prompt in feedback.prompt)


def _pairs(rows: list[Any]) -> Pairs:
    columns = {name: [_text(row, i, name) for i, row in enumerate(rows)] for name in ("chosen", "rejected")}
    return Pairs(_prompts(rows), columns["chosen"], columns["rejected"])


def _unpaired(rows: list[Any]) -> Unpaired:
    responses = [_text(row, i, "response", "completion") for i, row in enumerate(rows)]
    preferred = torch.tensor([_label(row, i) for i, row in enumerate(rows)])
    return Unpaired(_prompts(rows), responses, preferred)


def _groups(rows: list[Any]) -> Groups:
    responses = [
        [_as_text(each, i, "responses") for each in _value(row, i, "responses")] for i, row in enumerate(rows)
    ]
    rewards = [[float(each) for each in _value(row, i, "rewards", "reward")] for i, row in enumerate(rows)]
    sizes = {(len(a), len(b)) for a, b in zip(responses, rewards, strict=True)}
    if len(sizes) > 1 or any(a != b for a, b in sizes):
        raise CourseError(
            "group-sizes",
            f"the groups have (responses, rewards) of the sizes {sorted(sizes)[:4]}.",
            where="feedback_from_rows(rows)",
            remedy="give every prompt the same number of responses, and each response one reward.",
        )
    return Groups(_prompts(rows), responses, torch.tensor(rewards, dtype=torch.float64))


def _kind(row: Any) -> str:
    has = {
        name: _find(row, name) is not _MISSING
        for name in ("chosen", "rejected", "responses", "response", "completion", "preferred", "label")
    }
    if has["chosen"] and has["rejected"]:
        return "pairs"
    if has["responses"]:
        return "groups"
    if (has["response"] or has["completion"]) and (has["preferred"] or has["label"]):
        return "unpaired"
    names = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
    raise _wrong_row(0, f"it has {names}, which is neither a pair, nor a labelled response, nor a group")


def _prompts(rows: list[Any]) -> list[Any]:
    return [_prompt(_value(row, i, "prompt"), i) for i, row in enumerate(rows)]


def _prompt(value: Any, row: int) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        messages = [{name: _find(message, name) for name in ("role", "content")} for message in value]
        if messages and all(isinstance(text, str) for message in messages for text in message.values()):
            return messages
    raise _wrong_row(row, f"its prompt is neither a text nor a list of messages: {value!r:.60}")


def _text(row: Any, index: int, *names: str) -> str:
    return _as_text(_value(row, index, *names), index, names[0])


def _as_text(value: Any, row: int, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        messages = list(value)
        if len(messages) == 1 and _find(messages[0], "role") == "assistant":
            text = _find(messages[0], "content")
            if isinstance(text, str):
                return text
    raise _wrong_row(row, f"its {name} is neither a text nor one message of the assistant: {value!r:.60}")


def _label(row: Any, index: int) -> bool:
    value = _value(row, index, "preferred", "label")
    if not isinstance(value, str) and value in (True, False):
        return bool(value)
    raise CourseError(
        "preferred-not-boolean",
        f"the label is {value!r}; it must be True (preferred) or False.",
        where=f"row {index}",
        remedy="translate the labels of the data set first, for instance label == 1.",
    )


def _value(row: Any, index: int, *names: str) -> Any:
    """The first of these columns that the row has."""
    for name in names:
        value = _find(row, name)
        if value is not _MISSING:
            return value
    raise _wrong_row(index, f"it has no {' or '.join(names)}, which the first row has")


def _find(row: Any, name: str) -> Any:
    return row.get(name, _MISSING) if isinstance(row, Mapping) else getattr(row, name, _MISSING)


def _wrong_row(row: int, what: str) -> CourseError:
    return CourseError(
        "row-shape",
        f"A row cannot be used: {what}.",
        where=f"row {row}",
        remedy="give prompt, chosen, rejected; or prompt, response, preferred; or prompt, responses, rewards.",
    )


# -------------------- length


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out because they are too long: `prompts` whose prompt alone is, and `responses`."""

    prompts: list[int] = field(default_factory=list)
    responses: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts) + len(self.responses)


def fit(
    feedback: Feedback,
    tokenizer: Any,
    *,
    chat_template: bool = False,
    max_length: int | None = None,
    over_length: OverLength = "error",
) -> tuple[Feedback, Dropped]:
    """The rows whose prompt and longest response have at most `max_length` tokens, and those that were dropped.

    over_length  "error" refuses a data set with longer rows, "drop" leaves them out and warns with their number
    """
    if over_length not in ("error", "drop"):
        raise CourseError(
            "unknown-over-length",
            f"over_length is {over_length!r}; a trainer knows 'error' and 'drop'.",
            where="fit(feedback, tokenizer)",
            remedy="Nothing is cut from a row here; say whether rows that are too long are an error.",
        )
    if chat_template and getattr(tokenizer, "chat_template", None) is None:
        raise CourseError(
            "no-chat-template",
            "the prompts are chat messages, and the tokenizer has no chat template to write them with.",
            where=type(tokenizer).__name__,
            remedy="use the tokenizer of an instruction-tuned model, set tokenizer.chat_template, or give texts.",
        )
    if max_length is None:
        return feedback, Dropped()
    prompts, totals = _lengths(feedback, tokenizer, chat_template)
    dropped = Dropped(
        [row for row, length in enumerate(prompts) if length >= max_length],
        [
            row
            for row, (prompt, total) in enumerate(zip(prompts, totals, strict=True))
            if prompt < max_length < total
        ],
    )
    if not len(dropped):
        return feedback, dropped
    longest = max(range(len(totals)), key=totals.__getitem__)
    what = (
        f"{len(dropped)} of {len(feedback)} rows have more than max_length={max_length} tokens (the longest "
        f"{totals[longest]}), {len(dropped.prompts)} of them in the prompt alone"
    )
    if over_length == "error" or len(dropped) == len(feedback):
        raise CourseError(
            "rows-too-long",
            f"{what}.",
            where=f"row {longest}",
            remedy="raise max_length, shorten the rows, or leave them out and count them with over_length='drop'."
            if len(dropped) < len(feedback)
            else "no row would be left: raise max_length.",
        )
    warnings.warn(f"{what}; they are left out.", UserWarning, stacklevel=3)
    out = set(dropped.prompts) | set(dropped.responses)
    return feedback.take(torch.tensor([row for row in range(len(feedback)) if row not in out])), dropped


def _lengths(feedback: Feedback, tokenizer: Any, chat_template: bool) -> tuple[list[int], list[int]]:
    """Tokens of each prompt, and of each prompt with its longest response."""
    columns = [
        column for name, column in feedback.columns().items() if name in ("chosen", "rejected", "response")
    ]
    if isinstance(feedback, Groups):
        columns = [list(column) for column in zip(*feedback.responses, strict=True)]
    prompts: list[int] = []
    totals: list[int] = []
    for start in range(0, len(feedback), MEASURED_AT_ONCE):
        some = slice(start, start + MEASURED_AT_ONCE)
        rows = feedback.prompt[some]
        try:
            ids = encode_prompts(tokenizer, rows, chat_template=chat_template)
            sides = [encode(tokenizer, rows, column[some], chat_template=chat_template) for column in columns]
        except CourseError as error:
            where = f"{error.where} of those from row {start} on" if start else error.where
            raise CourseError(error.id, error.what, where=where, remedy=error.remedy) from error
        prompts += [len(each) for each in ids]
        totals += torch.stack([side.attention_mask.sum(dim=1) for side in sides]).amax(dim=0).tolist()
    return prompts, totals


# -------------------- batches


class Places:
    """What the trainer believes to be its data set: as many places as there are rows.

    A batch is numbers only. Which rows they mean is settled by `DataOrder`, a function of seed and step, and the
    tokens are taken from the examples, which were tokenised once.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, place: int) -> int:
        return place


def collate(places: list[int]) -> dict[str, Tensor]:
    """A micro-batch. No key is called `labels`: that name would switch the trainer's own scaling of the loss."""
    return {"places": torch.tensor(places)}


class StepBatches:
    """The micro-batches of the steps, in order: `pieces` of them for each update and process.

    Place p of step s is the number s * size + p. The places of a step are dealt to the pieces like cards, so both
    classes of a balanced batch are in every piece that is large enough. There is nothing to save: an epoch begins at
    the step that `step()` says, which is the trainer's own count.
    """

    def __init__(
        self,
        order: DataOrder,
        pieces: int,
        step: Callable[[], int],
        processes: int = 1,
        process: int = 0,
    ) -> None:
        if order.size < pieces * processes:
            raise CourseError(
                "batch-too-small-to-share",
                f"an update has {order.size} rows, and they are shared by {pieces} accumulated pieces of "
                f"{processes} processes.",
                where="StepBatches",
                remedy="give more rows, a larger batch, or fewer gradient accumulation steps.",
            )
        self.order, self.pieces, self._step = order, pieces, step
        self.processes, self.process = processes, process

    @property
    def steps_per_epoch(self) -> int:
        """Updates until every row has been used at least once."""
        return -(-self.order.rows // self.order.size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.pieces

    def __iter__(self) -> Iterator[list[int]]:
        first = self._step() // self.steps_per_epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            for piece in range(self.pieces):
                mine = range(
                    piece * self.processes + self.process, self.order.size, self.pieces * self.processes
                )
                yield [step * self.order.size + place for place in mine]


def rows_of_step(order: DataOrder, step: int) -> Tensor:
    """The rows of a whole step, all pieces and processes together."""
    rows = order.batch(step)
    return torch.arange(order.rows) if rows is None else rows
