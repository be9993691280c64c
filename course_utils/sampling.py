"""Drawing responses from a causal language model: batched, cached, and reproducible.

A draw inverts the cumulative distribution at a uniform number. All uniform numbers are drawn at the start,
one row per sample, so a sample depends on the seed and on its place in the list, and neither on the batch it
was computed in nor on other uses of random numbers. (Rounding differs a little between batch sizes; it can
move a draw that falls within 1e-6 of a boundary.)

Identical prompts are computed once and share their cached keys and values; finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.causal_lm import scoring_mode, unwrapped
from course_utils.encoding import EncodedBatch, Prompt, batch_from_ids, encode_prompts
from course_utils.errors import CourseError

# Finished rows leave once they are this share of the batch: leaving costs a copy of the cache.
LEAVE_AT = 1 / 8


@dataclass(frozen=True, eq=False)
class Samples:
    """Responses in the order of the prompts, all samples of one prompt together.

    log_probs         summed over tokens, under the distribution sampled from (after temperature and top-p)
    policy_log_probs  under the model itself: what `sequence_log_probs` gives
    finished          False where `max_new_tokens` came before the end token
    texts             None if the prompts were token ids
    """

    prompt_ids: list[list[int]]  # one per sample
    response_ids: list[list[int]]
    prompt_index: Tensor  # which prompt each sample answers
    finished: Tensor
    log_probs: Tensor
    policy_log_probs: Tensor
    texts: list[str] | None

    def __len__(self) -> int:
        return len(self.response_ids)

    def batch(self, pad_id: int = 0) -> EncodedBatch:
        """Prompts and sampled responses as they are, ready for `sequence_log_probs`."""
        return batch_from_ids(self.prompt_ids, self.response_ids, pad_id=pad_id)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt] | Sequence[Sequence[int]],
    *,
    samples_per_prompt: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | torch.Generator,
    batch_size: int = 256,
    eos_id: int | Sequence[int] | None = None,
    chat_template: bool = False,
) -> Samples:
    """Draw responses to `prompts`.

    tokenizer    encodes text prompts and decodes responses; None if the prompts are token ids
    temperature  divides the logits; 0 takes the most probable token
    top_p        draw from the smallest set of most probable tokens that holds at least this probability
    seed         a number, or a torch.Generator on the CPU
    batch_size   how many samples at a time; a pocket model is fastest with 1,000 or more
    eos_id       the end token or tokens, by default the tokenizer's, else the model's; () for none
    """
    _check_settings(samples_per_prompt, max_new_tokens, temperature, top_p, batch_size)
    if tokenizer is None:
        ids = [list(prompt) for prompt in prompts]
    else:
        ids = encode_prompts(tokenizer, prompts, chat_template=chat_template)
    _check_prompts(ids, unwrapped(model).config, max_new_tokens)
    ends = _end_tokens(tokenizer, model, eos_id)
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    index = torch.arange(len(ids)).repeat_interleave(samples_per_prompt)
    prompt_ids = [ids[i] for i in index.tolist()]
    count = len(prompt_ids)
    uniform = torch.rand(count, max_new_tokens, generator=generator, dtype=torch.float64)
    tokens = torch.zeros(count, max_new_tokens, dtype=torch.long)
    lengths = torch.zeros(count, dtype=torch.long)
    finished = torch.zeros(count, dtype=torch.bool)
    log_probs = torch.zeros(2, count, dtype=torch.float64)
    # Prompts of one length together: less padding.
    order = torch.tensor([len(prompt) for prompt in prompt_ids]).argsort(stable=True)
    with scoring_mode(model):
        for live in order.split(batch_size):
            decoder = _Decoder(model, [prompt_ids[i] for i in live.tolist()])
            for step in range(max_new_tokens):
                token, values = _draw(decoder.logits, uniform[live, step], temperature, top_p)
                # A finished row that has not left yet is drawn for, but nothing of it is kept.
                going = ~finished[live]
                rows = live[going]
                tokens[rows, step] = token[going]
                lengths[rows] += 1
                log_probs[:, rows] += values[:, going]
                finished[rows] = torch.isin(token[going], ends)
                going = ~finished[live]
                if not going.any() or step + 1 == max_new_tokens:
                    break
                if (~going).sum() >= LEAVE_AT * len(live):
                    decoder.keep(going)
                    live, token = live[going], token[going]
                decoder.advance(token)
    responses = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    texts = None
    if tokenizer is not None:
        texts = tokenizer.batch_decode(
            responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    sampled, policy = log_probs if decoder.logits.dtype == torch.float64 else log_probs.float()
    return Samples(prompt_ids, responses, index, finished, sampled, policy, texts)


def sampling_log_probs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The log-probabilities that are sampled from, [N, V]: temperature first, then top-p, then normalised.

    top-p keeps the smallest set of most probable tokens whose probability is at least `top_p`; of tokens that
    are equally probable, those with the smaller id come first.
    """
    if temperature == 0:
        best = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1])
        return best.to(logits.dtype).log()
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    if top_p == 1:
        return log_p
    ranked, order = log_p.sort(dim=-1, descending=True, stable=True)
    p = _wide(ranked).exp()
    # A token goes if the more probable ones hold enough without it. The tolerance is for their rounding.
    goes = p.cumsum(dim=-1) - p > top_p - 1e-6
    goes[..., 0] = False
    return torch.log_softmax(log_p.masked_fill(goes.scatter(-1, order, goes), -torch.inf), dim=-1)


# --- the parts ----------------------------------------------------------------------------------------


def _draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row, [N], and its log-probabilities, [2, N]: as sampled, and under the model."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    log_p = sampling_log_probs(logits, temperature, top_p)
    cumulative = _wide(log_p).exp().cumsum(dim=-1)
    # The first token whose cumulative probability exceeds the uniform number: never one of probability 0.
    point = uniform.to(cumulative.dtype).to(logits.device)[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[-1] - 1)
    changed = temperature != 1 or top_p < 1
    of_model = torch.log_softmax(logits, dim=-1) if changed else log_p
    values = torch.stack([table.gather(-1, token).squeeze(-1) for table in (log_p, of_model)])
    return token.squeeze(-1).cpu(), values.cpu().double()


def _wide(values: Tensor) -> Tensor:
    """In float64, so that sums over a large vocabulary stay exact. Apple's GPUs have none."""
    return values if values.device.type == "mps" else values.double()


class _Decoder:
    """A batch of sequences under way: `logits` of the next token, [rows, V], and the cache behind them."""

    def __init__(self, model: Any, prompts: list[list[int]]) -> None:
        self.model = model
        self.device = next(unwrapped(model).parameters()).device
        unique = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        width = max(map(len, unique))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in unique])
        lengths = torch.tensor([[len(prompt)] for prompt in unique])
        self.mask = (torch.arange(width) >= width - lengths).to(self.device)
        # Without padding there is nothing to mask, and the model may use its fastest attention.
        self.padded = not bool(self.mask.all())
        position = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        self._run(ids.to(self.device), position, logits_to_keep=1)
        self.position = position[:, -1:]
        if len(unique) < len(prompts):
            self.keep(torch.tensor([unique[tuple(prompt)] for prompt in prompts]))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only: a boolean mask, or indices, which may repeat."""
        rows = (rows.nonzero().squeeze(-1) if rows.dtype == torch.bool else rows).to(self.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.position, self.logits = self.mask[rows], self.position[rows], self.logits[rows]

    def advance(self, tokens: Tensor) -> None:
        """Append one token to each row."""
        if self.padded:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        self.position = self.position + 1
        self._run(tokens.to(self.device)[:, None], self.position, past_key_values=self.cache)

    def _run(self, ids: Tensor, position: Tensor, **options: Any) -> None:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask.long() if self.padded else None,
            position_ids=position,
            use_cache=True,
            return_dict=True,
            **options,
        )
        self.cache, self.logits = output.past_key_values, output.logits[:, -1]


def _end_tokens(tokenizer: Any, model: Any, eos_id: int | Sequence[int] | None) -> Tensor:
    inner = unwrapped(model)
    sources = (tokenizer, getattr(inner, "generation_config", None), inner.config)
    found = [eos_id, *(getattr(source, "eos_token_id", None) for source in sources)]
    end = next((value for value in found if value is not None), None)
    if end is None:
        raise CourseError(
            "no-end-token",
            "Neither the tokenizer nor the model has an end token, so every sample would have full length.",
            where="generate",
            remedy="Pass eos_id=..., or eos_id=() if full length is what you want.",
        )
    return torch.tensor([end] if isinstance(end, int) else list(end), dtype=torch.long)


def _check_settings(
    samples_per_prompt: int, max_new_tokens: int, temperature: float, top_p: float, batch_size: int
) -> None:
    for name, value, right, rule in (
        ("samples_per_prompt", samples_per_prompt, samples_per_prompt >= 1, "at least 1"),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
    ):
        if not right:
            raise CourseError(
                "bad-sampling-setting",
                f"{name} is {value}; it must be {rule}.",
                where="generate",
                remedy="Change it. Plain sampling from the policy is temperature=1 and top_p=1.",
            )


def _check_prompts(prompts: list[list[int]], config: Any, max_new_tokens: int) -> None:
    if not prompts or not all(prompts):
        raise CourseError(
            "empty-prompt",
            "There is no prompt, or one without tokens: nothing to continue from.",
            where=f"row {prompts.index([])}" if prompts else "generate",
            remedy="Start the prompt with a begin token, or with any text.",
        )
    most = getattr(config, "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if most is not None and longest + max_new_tokens > most:
        raise CourseError(
            "over-length",
            f"The longest prompt has {longest} tokens; with max_new_tokens={max_new_tokens} it passes the "
            f"{most} positions that the model knows.",
            where="generate",
            remedy="Shorten the prompt or lower max_new_tokens.",
        )
