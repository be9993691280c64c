"""From text to tensors: prompts and responses in one padded batch, with the tokens that count marked.

Three rules, each the answer to a mistake that is easy to make and hard to see:

* Prompt and response are tokenised apart, so no token straddles the boundary. The prompt has the same tokens
  whatever follows it, and they are the tokens the sampler saw.
* The end token is appended to a response exactly once, because "stop here" is part of what a policy learns.
* A row that is too long is an error unless you say what to cut, and what was cut is reported. A response that was
  cut gets no end token: it did not end there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from course_utils.errors import CourseError

Padding = Literal["right", "left"]
OverLength = Literal["error", "cut-prompt", "cut-response"]
Prompt = str | Sequence[dict[str, str]]


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """N sequences of prompt and response, padded to one length L. All three tensors are [N, L].

    `attention_mask` is True on real tokens and False on padding (left or right); `response_mask` is True on the
    tokens whose log-probabilities are counted.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.input_ids.dim() != 2:
            raise CourseError(
                "batch-shape",
                f"A batch needs three tensors of one shape [rows, length]; got {shapes}.",
                where="EncodedBatch",
                remedy="Build the batch with encode(...) or batch_from_ids(...).",
            )
        # Masks are boolean from here on, whatever came in (tokenizers give 0 and 1).
        object.__setattr__(self, "attention_mask", self.attention_mask.bool())
        object.__setattr__(self, "response_mask", self.response_mask.bool())

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def response_lengths(self) -> torch.Tensor:
        """Response tokens per row, the end token included: |y| of length-normalised objectives. Shape [N]."""
        return self.response_mask.sum(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncodedBatch:
        """The same batch on another device."""
        return EncodedBatch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def select(self, rows: torch.Tensor | Sequence[int]) -> EncodedBatch:
        """Some of the rows, in the order asked for, without the columns that are padding in all of them."""
        rows = torch.as_tensor(rows, device=self.input_ids.device)
        picked = [getattr(self, field.name)[rows] for field in fields(self)]
        used = picked[1].any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        return EncodedBatch(*(tensor[:, first:last] for tensor in picked))


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """N comparisons: row i of `chosen` and row i of `rejected` answer the same prompt.

    With `share_prompt` the two are scored in one row, prompt + chosen + rejected, and the prompt is computed once.
    """

    chosen: EncodedBatch
    rejected: EncodedBatch
    share_prompt: bool = False

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise CourseError(
                "batch-shape",
                f"A batch of pairs needs as many rejected as chosen; got {len(self.rejected)} and {len(self.chosen)}.",
                where="EncodedPairs",
                remedy="Build the pairs with encode_pairs(...).",
            )

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncodedPairs:
        """The same pairs on another device."""
        chosen, rejected = (side.to(device, non_blocking) for side in (self.chosen, self.rejected))
        return replace(self, chosen=chosen, rejected=rejected)

    def select(self, rows: torch.Tensor | Sequence[int]) -> EncodedPairs:
        """Some of the pairs, in the order asked for."""
        return replace(self, chosen=self.chosen.select(rows), rejected=self.rejected.select(rows))


# --- from token ids -----------------------------------------------------------------------------------------------


def batch_from_ids(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    pad_id: int = 0,
    padding: Padding = "right",
) -> EncodedBatch:
    """Pad prompts and responses that are already token ids. Nothing is added or cut.

    The value of `pad_id` never matters to a log-probability; it only has to be a valid token id.
    """
    _check_counts(prompt_ids, response_ids)
    if padding not in ("right", "left"):
        raise CourseError(
            "unknown-padding",
            f"padding is {padding!r}; it can be 'right' or 'left'.",
            where="batch_from_ids",
            remedy="Use padding='right' unless you generate from the batch.",
        )
    for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        _check_row(prompt, response, row)
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    width = max(lengths)

    ids, attention, counted = [], [], []
    for prompt, response, length in zip(prompt_ids, response_ids, lengths, strict=True):
        before, after = (0, width - length) if padding == "right" else (width - length, 0)
        ids.append([pad_id] * before + list(prompt) + list(response) + [pad_id] * after)
        attention.append([False] * before + [True] * length + [False] * after)
        counted.append([False] * (before + len(prompt)) + [True] * len(response) + [False] * after)
    return EncodedBatch(torch.tensor(ids), torch.tensor(attention), torch.tensor(counted))


# --- from text ----------------------------------------------------------------------------------------------------


def encode(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    padding: Padding = "right",
    chat_template: bool = False,
    append_eos: bool = True,
    eos_id: int | None = None,
    max_length: int | None = None,
    over_length: OverLength = "error",
) -> EncodedBatch:
    """Tokenise prompts and responses and pad them into one batch.

    tokenizer      a transformers tokenizer, or anything called the same way
    chat_template  write prompt and response with the tokenizer's chat template; a prompt is then a string (one user
                   turn) or a list of messages
    append_eos     end every response with the end token (`eos_id`, by default the tokenizer's), once
    max_length     the longest row allowed, in tokens; `over_length` says what happens to a longer one:
                   "error"         refuse it
                   "cut-prompt"    drop the oldest prompt tokens; the response stays whole, with its end token
                   "cut-response"  drop the last response tokens; the end token goes with them
                   Both cuts warn with the number of rows they touched.
    """
    sides = _encode_sides(
        tokenizer, prompts, [responses], chat_template, append_eos, eos_id, max_length, over_length, padding
    )
    return sides[0]


def encode_pairs(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    share_prompt: bool = False,
    padding: Padding = "right",
    chat_template: bool = False,
    append_eos: bool = True,
    eos_id: int | None = None,
    max_length: int | None = None,
    over_length: OverLength = "error",
) -> EncodedPairs:
    """Tokenise comparisons; the options are those of `encode`. A cut prompt is cut alike for both responses."""
    sides = _encode_sides(
        tokenizer, prompts, [chosen, rejected], chat_template, append_eos, eos_id, max_length, over_length, padding
    )
    return EncodedPairs(sides[0], sides[1], share_prompt=share_prompt)


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt], *, chat_template: bool = False) -> list[list[int]]:
    """The prompts as token ids: exactly what a sampler continues from, and what `encode` puts before a response."""
    if chat_template:
        texts = [tokenizer.apply_chat_template(_messages(p), add_generation_prompt=True, tokenize=False) for p in prompts]
        # The template writes its own special tokens: adding them again would start the prompt with two.
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    _check_plain_text(prompts)
    rows = [list(ids) for ids in tokenizer(list(prompts), add_special_tokens=True)["input_ids"]]
    bare = [list(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    # Some tokenizers close every text with the end token. A prompt is not over: take that one off again.
    eos = tokenizer.eos_token_id
    return [ids[:-1] if ids[-1:] == [eos] and plain[-1:] != [eos] else ids for ids, plain in zip(rows, bare, strict=True)]


# --- the parts ----------------------------------------------------------------------------------------------------


def _encode_sides(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sides: list[Sequence[str]],
    chat_template: bool,
    append_eos: bool,
    eos_id: int | None,
    max_length: int | None,
    over_length: OverLength,
    padding: Padding,
) -> list[EncodedBatch]:
    """One batch per side (responses, or chosen and rejected), all with the same prompt tokens."""
    if over_length not in ("error", "cut-prompt", "cut-response"):
        raise CourseError(
            "unknown-over-length",
            f"over_length is {over_length!r}; it can be 'error', 'cut-prompt' or 'cut-response'.",
            where="encode",
            remedy="Say which part of a row that is too long may be dropped.",
        )
    for responses in sides:
        _check_counts(prompts, responses)
    end = _end_token(tokenizer, eos_id) if append_eos else None
    prompt_ids = encode_prompts(tokenizer, prompts, chat_template=chat_template)
    response_ids = []
    for responses in sides:
        texts = _template_responses(tokenizer, prompts, responses, end) if chat_template else list(responses)
        rows = [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for row, (ids, response) in enumerate(zip(rows, responses, strict=True)):
            # Refused before the end token is added: "" would otherwise become a response of one token.
            _check_row([0], ids if response else [], row)
        response_ids.append([ids if end is None or ids[-1] == end else [*ids, end] for ids in rows])

    if max_length is not None:
        cut = 0
        for row in range(len(prompt_ids)):
            answers = [side[row] for side in response_ids]
            if len(prompt_ids[row]) + max(map(len, answers)) > max_length:
                prompt_ids[row], answers = _cut(prompt_ids[row], answers, max_length, over_length, row)
                for side, answer in zip(response_ids, answers, strict=True):
                    side[row] = answer
                cut += 1
        if cut:
            what = "prompts lost their oldest" if over_length == "cut-prompt" else "responses lost their last"
            warnings.warn(
                f"{cut} of {len(prompt_ids)} {what} tokens to fit max_length={max_length}.", UserWarning, stacklevel=3
            )

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or 0)
    return [batch_from_ids(prompt_ids, side, pad_id=pad, padding=padding) for side in response_ids]


def _cut(
    prompt: list[int], answers: list[list[int]], max_length: int, over_length: OverLength, row: int
) -> tuple[list[int], list[list[int]]]:
    longest = max(map(len, answers))
    room = max_length - (longest if over_length == "cut-prompt" else len(prompt))
    if over_length == "error" or room < 1:
        raise CourseError(
            "over-length",
            f"The prompt has {len(prompt)} tokens and the response {longest}; max_length is {max_length}.",
            where=f"row {row}",
            remedy="Raise max_length, drop the row, or say what may be cut: over_length='cut-prompt' or 'cut-response' "
            "(at least one prompt token and one response token must remain).",
        )
    if over_length == "cut-prompt":
        return prompt[-room:], answers
    return prompt, [answer[:room] for answer in answers]


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _template_responses(
    tokenizer: Any, prompts: Sequence[Prompt], responses: Sequence[str], end: int | None
) -> list[str]:
    """Each response as the chat template writes it, without its end token and what follows that."""
    end_text = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id if end is None else end)
    texts = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        messages = _messages(prompt)
        before = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        answer = {"role": "assistant", "content": response}
        whole = tokenizer.apply_chat_template([*messages, answer], tokenize=False)
        text = whole[len(before) :]
        if not whole.startswith(before):
            raise CourseError(
                "chat-template-boundary",
                "With the response added, the chat template no longer begins with the prompt it wrote before; "
                f"the prompt ends in {before[-40:]!r}, the whole reads {whole[-80:]!r}.",
                where=f"row {row}",
                remedy="Use a template that leaves earlier turns as they are, or format the text yourself and pass "
                "chat_template=False.",
            )
        if end_text in text:
            # Templates write a newline after the end token. Nobody generates it, so it is not part of the response.
            text = text[: text.rindex(end_text)]
        elif not text.strip().endswith(response.strip()):
            raise CourseError(
                "chat-template-end",
                f"The chat template ends a response with {text[-20:]!r}, which lacks the end token {end_text!r}.",
                where=f"row {row}",
                remedy="Pass eos_id=... with the id of the token that ends a turn in this template.",
            )
        texts.append(text)
    return texts


def _end_token(tokenizer: Any, eos_id: int | None) -> int:
    end = tokenizer.eos_token_id if eos_id is None else eos_id
    if end is None:
        raise CourseError(
            "no-end-token",
            "The tokenizer has no end token, so a response could never say that it is over.",
            where="encode",
            remedy="Pass eos_id=..., or append_eos=False if responses are open-ended on purpose.",
        )
    return int(end)


def _check_plain_text(prompts: Sequence[Prompt]) -> None:
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise CourseError(
                "prompt-not-text",
                f"The prompt is a {type(prompt).__name__}, not a string.",
                where=f"row {row}",
                remedy="Lists of messages need chat_template=True; token ids go to batch_from_ids.",
            )


def _check_counts(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses) or not len(prompts):
        raise CourseError(
            "batch-shape",
            f"Prompts and responses must be two lists of one length, at least 1; got {len(prompts)} and {len(responses)}"
            + (" (a bare string counts its letters)." if isinstance(prompts, str) or isinstance(responses, str) else "."),
            where="encode",
            remedy="Pass one response per prompt, each in a list.",
        )


def _check_row(prompt: Sequence[int], response: Sequence[int], row: int) -> None:
    if not len(response):
        raise CourseError(
            "empty-response",
            "The response has no tokens.",
            where=f"row {row}",
            remedy="Drop the row: an empty response carries no preference that a policy could learn.",
        )
    if not len(prompt):
        raise CourseError(
            "empty-prompt",
            "The prompt has no tokens, so nothing predicts the first token of the response.",
            where=f"row {row}",
            remedy="Start the prompt with a begin token, or with any text.",
        )
