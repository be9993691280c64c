"""From text to tensors: prompts and responses in one padded batch, with the tokens that count marked.

Three rules, each the answer to a mistake that is easy to make and hard to see:

* Prompt and response are tokenised apart, so no token straddles the boundary. The prompt has the same
  tokens whatever follows it, and they are the tokens the sampler saw.
* The end token is appended to a response exactly once, because "stop here" is part of what a policy learns.
* A row that is too long is an error unless you say what to cut, and what was cut is reported. A response
  that was cut gets no end token: it did not end there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from course_utils.errors import CourseError

Padding = Literal["right", "left"]
OverLength = Literal["error", "cut-prompt", "cut-response"]
Prompt = str | Sequence[dict[str, str]]
Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """N sequences of prompt and response, padded to one length L. All three tensors are [N, L].

    `attention_mask` is True on real tokens and False on padding (left or right); `response_mask` is True
    on the tokens whose log-probabilities are counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

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
    def response_lengths(self) -> Tensor:
        """Response tokens per row, the end token included: |y| of length-normalised objectives. Shape [N]."""
        return self.response_mask.sum(dim=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncodedBatch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.response_mask)
        return EncodedBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))

    def select(self, rows: Tensor | Ids) -> EncodedBatch:
        """Some of the rows, in the order asked for, without the columns that are padding in all of them."""
        rows = torch.as_tensor(rows, device=self.input_ids.device)
        used = self.attention_mask[rows].any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        tensors = (self.input_ids, self.attention_mask, self.response_mask)
        return EncodedBatch(*(tensor[rows, first:last] for tensor in tensors))


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """N comparisons: row i of `chosen` and row i of `rejected` answer the same prompt.

    With `share_prompt` both are scored in one row, prompt + chosen + rejected: the prompt is computed once.
    """

    chosen: EncodedBatch
    rejected: EncodedBatch
    share_prompt: bool = False

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise CourseError(
                "batch-shape",
                f"There are {len(self.chosen)} chosen and {len(self.rejected)} rejected responses.",
                where="EncodedPairs",
                remedy="Build the pairs with encode_pairs(...).",
            )

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncodedPairs:
        """The same pairs on another device."""
        chosen, rejected = (side.to(device, non_blocking) for side in (self.chosen, self.rejected))
        return replace(self, chosen=chosen, rejected=rejected)

    def select(self, rows: Tensor | Ids) -> EncodedPairs:
        """Some of the pairs, in the order asked for."""
        return replace(self, chosen=self.chosen.select(rows), rejected=self.rejected.select(rows))


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
    chat_template  write prompt and response with the tokenizer's chat template; a prompt is then a string
                   (one user turn) or a list of messages
    append_eos     end every response with the end token (`eos_id`, by default the tokenizer's), once
    max_length     the longest row allowed, in tokens; `over_length` says what happens to a longer one:
                   "error"         refuse it
                   "cut-prompt"    drop the oldest prompt tokens; the response keeps all of its tokens
                   "cut-response"  drop the last response tokens, and the end token with them
                   Both cuts warn with the number of rows they touched.
    """
    _check_counts(prompts, responses)
    end = _end_token(tokenizer, eos_id) if append_eos else None
    prompt_ids = encode_prompts(tokenizer, prompts, chat_template=chat_template)
    sides = [_encode_responses(tokenizer, prompts, responses, chat_template, end)]
    prompt_ids, sides = _fit(prompt_ids, sides, max_length, over_length)
    return batch_from_ids(prompt_ids, sides[0], pad_id=_pad_token(tokenizer), padding=padding)


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
    """Tokenise comparisons; the options are those of `encode`. A cut prompt is cut alike on both sides."""
    for side in (chosen, rejected):
        _check_counts(prompts, side)
    end = _end_token(tokenizer, eos_id) if append_eos else None
    prompt_ids = encode_prompts(tokenizer, prompts, chat_template=chat_template)
    sides = [_encode_responses(tokenizer, prompts, side, chat_template, end) for side in (chosen, rejected)]
    prompt_ids, sides = _fit(prompt_ids, sides, max_length, over_length)
    pad = _pad_token(tokenizer)
    batches = [batch_from_ids(prompt_ids, side, pad_id=pad, padding=padding) for side in sides]
    return EncodedPairs(*batches, share_prompt=share_prompt)


def encode_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], *, chat_template: bool = False
) -> list[list[int]]:
    """The prompts as token ids: what a sampler continues from, and what `encode` puts before a response."""
    if chat_template:
        texts = [_template(tokenizer, _messages(prompt), for_response=True) for prompt in prompts]
        # The template writes its own special tokens: adding them again would start the prompt with two.
        return _tokenise(tokenizer, texts, add_special_tokens=False)
    _check_text(prompts)
    rows = _tokenise(tokenizer, prompts, add_special_tokens=True)
    bare = _tokenise(tokenizer, prompts, add_special_tokens=False)
    # Some tokenizers close every text with the end token. A prompt is not over: take that one off again.
    end = [tokenizer.eos_token_id]
    closed = [ids[-1:] == end and plain[-1:] != end for ids, plain in zip(rows, bare, strict=True)]
    return [ids[:-1] if over else ids for ids, over in zip(rows, closed, strict=True)]


def batch_from_ids(
    prompt_ids: Sequence[Ids], response_ids: Sequence[Ids], *, pad_id: int = 0, padding: Padding = "right"
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
            remedy="Use padding='right'; log-probabilities are the same with both.",
        )
    pairs = list(zip(prompt_ids, response_ids, strict=True))
    for row, (prompt, response) in enumerate(pairs):
        _check_row(prompt, response, row)
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids, attention, counted = [], [], []
    for prompt, response in pairs:
        p, r = len(prompt), len(response)
        before, after = (0, width - p - r) if padding == "right" else (width - p - r, 0)
        ids.append([pad_id] * before + list(prompt) + list(response) + [pad_id] * after)
        attention.append([False] * before + [True] * (p + r) + [False] * after)
        counted.append([False] * (before + p) + [True] * r + [False] * after)
    return EncodedBatch(torch.tensor(ids), torch.tensor(attention), torch.tensor(counted))


# --- the parts ----------------------------------------------------------------------------------------


def _encode_responses(
    tokenizer: Any, prompts: Sequence[Prompt], responses: Sequence[str], chat_template: bool, end: int | None
) -> list[list[int]]:
    _check_text(responses)
    texts = _template_responses(tokenizer, prompts, responses, end) if chat_template else responses
    rows = _tokenise(tokenizer, texts, add_special_tokens=False)
    for row, (ids, response) in enumerate(zip(rows, responses, strict=True)):
        # Before the end token is added: "" would otherwise become a response of one token.
        _check_row([0], ids if response else [], row)
    return [ids if end is None or ids[-1] == end else [*ids, end] for ids in rows]


def _template_responses(
    tokenizer: Any, prompts: Sequence[Prompt], responses: Sequence[str], end: int | None
) -> list[str]:
    """Each response as the chat template writes it, without its end token and what follows that."""
    end_text = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id if end is None else end)
    texts = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        messages = _messages(prompt)
        before = _template(tokenizer, messages, for_response=True)
        whole = _template(tokenizer, [*messages, {"role": "assistant", "content": response}])
        text = whole[len(before) :]
        if not whole.startswith(before):
            raise CourseError(
                "chat-template-boundary",
                "With the response added, the chat template no longer begins with the prompt it wrote; "
                f"the prompt ends in {before[-40:]!r}, the whole reads {whole[-80:]!r}.",
                where=f"row {row}",
                remedy="Use a template that leaves earlier turns as they are, or write the text yourself "
                "and pass chat_template=False.",
            )
        if end_text in text:
            # Templates write a newline after the end token. Nobody generates it: it is not counted.
            text = text[: text.rindex(end_text)]
        elif not text.strip().endswith(response.strip()):
            raise CourseError(
                "chat-template-end",
                f"The chat template ends a response with {text[-20:]!r}, without the end token {end_text!r}.",
                where=f"row {row}",
                remedy="Pass eos_id=... with the id of the token that ends a turn in this template.",
            )
        texts.append(text)
    return texts


def _template(tokenizer: Any, messages: list[dict[str, str]], for_response: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=for_response, tokenize=False)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _tokenise(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]]


def _fit(
    prompt_ids: list[list[int]],
    sides: list[list[list[int]]],
    max_length: int | None,
    over_length: OverLength,
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Cut the rows that are longer than `max_length`, as `over_length` says, and say how many."""
    if over_length not in ("error", "cut-prompt", "cut-response"):
        raise CourseError(
            "unknown-over-length",
            f"over_length is {over_length!r}; it can be 'error', 'cut-prompt' or 'cut-response'.",
            where="encode",
            remedy="Say which part of a row that is too long may be dropped.",
        )
    if max_length is None:
        return prompt_ids, sides
    cut = 0
    for row, prompt in enumerate(prompt_ids):
        longest = max(len(side[row]) for side in sides)
        if len(prompt) + longest <= max_length:
            continue
        cut += 1
        room = max_length - (longest if over_length == "cut-prompt" else len(prompt))
        if over_length == "error" or room < 1:
            raise CourseError(
                "over-length",
                f"Prompt ({len(prompt)}) and response ({longest}) have more tokens than "
                f"max_length={max_length}"
                + ("." if over_length == "error" else f", even with {over_length}."),
                where=f"row {row}",
                remedy="Raise max_length, drop the row, or say what may be cut, over_length='cut-prompt' "
                "or 'cut-response'; at least one token of each must remain.",
            )
        if over_length == "cut-prompt":
            prompt_ids[row] = prompt[-room:]
        else:
            for side in sides:
                side[row] = side[row][:room]
    if cut:
        lost = (
            "prompts lost their first" if over_length == "cut-prompt" else "rows' responses lost their last"
        )
        message = f"{cut} of {len(prompt_ids)} {lost} tokens to fit max_length={max_length}."
        warnings.warn(message, UserWarning, stacklevel=3)
    return prompt_ids, sides


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


def _pad_token(tokenizer: Any) -> int:
    return int(next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0))


def _check_text(texts: Sequence[Any]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise CourseError(
                "not-text",
                f"A string is needed, and this is a {type(text).__name__}: {text!r:.60}.",
                where=f"row {row}",
                remedy="Lists of messages need chat_template=True; token ids go to batch_from_ids.",
            )


def _check_counts(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    for name, given in (("prompts", prompts), ("responses", responses)):
        if isinstance(given, str):
            raise CourseError(
                "batch-shape",
                f"The {name} are one string; a list of strings is needed.",
                where="encode",
                remedy="Put it in a list.",
            )
    if len(prompts) != len(responses) or not len(prompts):
        raise CourseError(
            "batch-shape",
            f"There are {len(prompts)} prompts and {len(responses)} responses.",
            where="encode",
            remedy="Pass one response per prompt, and at least one.",
        )


def _check_row(prompt: Ids, response: Ids, row: int) -> None:
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
