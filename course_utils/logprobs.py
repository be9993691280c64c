"""Sequence log-probabilities of a causal language model: lean in time and in memory.

log pi(y | x) = sum over the response tokens of  logit[y_t] - logsumexp(logits_t).

A step of preference learning needs one number per response token. The common way builds the logits of every
position, [rows, length, vocabulary], and a log_softmax of the same size; at a vocabulary of 151,936 words they fill
the memory before the model does. Here
* only positions that predict a response token reach the head;
* the head is applied to a slice of the vocabulary at a time, and the slice is dropped once it has been added to the
  running logsumexp. The backward pass computes each slice again (`ChunkedLogProbs`);
* padding is moved to the right first, where a causal model cannot see it: no padding mask is needed, and left and
  right padding give the same number;
* chosen and rejected may share one copy of their prompt (`EncodedPairs.share_prompt`).

The model is called as a whole, and the hidden states are taken from it at the door of its head. So wrappers work as
they are, and a model that changes the logits after its head (a scale, a soft cap) is noticed and refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from course_utils.encoding import (  # encoding is the first half of this subject: one import serves both
    EncodedBatch,
    EncodedPairs,
    batch_from_ids,
    encode,
    encode_pairs,
    encode_prompts,
)
from course_utils.errors import CourseError

__all__ = [
    "ChunkedLogProbs",
    "EncodedBatch",
    "EncodedPairs",
    "batch_from_ids",
    "encode",
    "encode_pairs",
    "encode_prompts",
    "pair_log_probs",
    "sequence_log_probs",
    "token_log_probs",
]

# How many logits are held at a time. On a CPU 2 million floats stay in the cache; a GPU wants larger products.
CHUNK_CPU, CHUNK_GPU = 2**21, 2**26
# Slices thinner than this waste the matrix product.
THINNEST = 512


def sequence_log_probs(
    model: Any, batch: EncodedBatch, *, chunk: int | None = None, per_token: bool = False
) -> torch.Tensor:
    """log pi(y | x) for every row of `batch`: shape [N], a sum over response tokens, differentiable.

    model      a transformers causal language model (or a wrapper around one)
    chunk      how many logits are held in memory at a time; the result does not depend on it
    per_token  return the terms instead: shape [N, L], in the layout of `batch`, zero outside the response

    The result is float32, or float64 for a float64 model.
    """
    order, input_ids, counted = _padding_to_the_right(batch)
    # Column j predicts column j + 1, so the last column is never needed as input.
    hidden, head = _hidden_states(model, input_ids=input_ids[:, :-1])
    predicted = counted[:, 1:].reshape(-1).nonzero().squeeze(-1)
    targets = input_ids[:, 1:].reshape(-1)[predicted]
    # index_select: the backward pass of boolean indexing is far slower on a CPU.
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, predicted)
    values = token_log_probs(rows, head.weight, targets, head.bias, chunk=chunk)
    table = values.new_zeros(counted[:, 1:].shape).masked_scatter(counted[:, 1:], values)
    if not per_token:
        return table.sum(dim=-1)
    if order is None:
        return torch.nn.functional.pad(table, (1, batch.input_ids.shape[1] - table.shape[1] - 1))
    shifted = torch.nn.functional.pad(table, (1, 0))
    return values.new_zeros(batch.input_ids.shape).scatter(1, order, shifted)


def pair_log_probs(
    model: Any, pairs: EncodedPairs, *, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi(chosen | x) and log pi(rejected | x), each of shape [N], from one forward pass."""
    if not pairs.share_prompt:
        both = sequence_log_probs(model, _stack(pairs.chosen, pairs.rejected), chunk=chunk)
        return both[: len(pairs)], both[len(pairs) :]

    input_ids, positions, segment, previous = _one_row_per_pair(pairs)
    hidden, head = _hidden_states(
        model,
        input_ids=input_ids[:, :-1],
        position_ids=positions[:, :-1],
        attention_mask=_pair_attention(model, segment[:, :-1]),
    )
    counted = (segment == 1) | (segment == 2)
    row, column = counted.nonzero(as_tuple=True)
    source = row * hidden.shape[1] + previous[row, column]
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, source)
    values = token_log_probs(rows, head.weight, input_ids[row, column], head.bias, chunk=chunk)
    table = values.new_zeros(counted.shape).masked_scatter(counted, values)
    return (table * (segment == 1)).sum(dim=-1), (table * (segment == 2)).sum(dim=-1)


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """log softmax(hidden @ weight.T + bias)[targets] for T positions, without ever holding T x V logits."""
    if chunk is None:
        chunk = CHUNK_CPU if hidden.device.type == "cpu" else CHUNK_GPU
    elif chunk < 1:
        raise CourseError(
            "bad-chunk",
            f"chunk is {chunk}; it is the number of logits held at a time.",
            where="token_log_probs",
            remedy="Leave it out, or pass a positive number.",
        )
    device = hidden.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return ChunkedLogProbs.apply(hidden, weight, targets, bias, chunk, compute)


class ChunkedLogProbs(torch.autograd.Function):
    """The head, log-softmax and gather in one function that stores no logits.

    With p_t = softmax(W h_t + b) and target y_t,  l_t = (W h_t + b)[y_t] - logsumexp(W h_t + b), and for an incoming
    gradient g_t

        dl/dh_t = g_t (W[y_t] - W' p_t)      dl/dW = sum_t g_t (e[y_t] - p_t) h_t'      dl/db = sum_t g_t (e[y_t] - p_t)

    Both passes walk over slices of the vocabulary: a slice holds all T positions, so every row of W is read once and
    every row of its gradient is written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        chunk: int,
        compute: torch.dtype,
    ) -> torch.Tensor:
        h = hidden.detach().to(compute)
        slices = _Slices(h, weight, bias, chunk)
        normaliser, target_logit = None, None
        for start, logits in slices:
            local = targets - start
            inside = (local >= 0) & (local < logits.shape[1])
            picked = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
            target_logit = picked if target_logit is None else torch.where(inside, picked, target_logit)
            largest = logits.amax(dim=1)
            part = logits.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest)
            normaliser = part if normaliser is None else torch.logaddexp(normaliser, part)
        ctx.save_for_backward(hidden, weight, targets, bias, normaliser)
        ctx.chunk, ctx.compute = chunk, compute
        return target_logit - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, bias, normaliser = ctx.saved_tensors
        wants_hidden, wants_weight, _, wants_bias, _, _ = ctx.needs_input_grad
        h = hidden.detach().to(ctx.compute)
        scaled = (h * -grad[:, None]).to(ctx.compute)
        expected = torch.zeros_like(h, dtype=grad.dtype) if wants_hidden else None  # W' p, the mean row of W
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        slices = _Slices(h, weight, bias, ctx.chunk)
        for start, logits in slices:
            end = start + logits.shape[1]
            p = logits.sub_(normaliser[:, None]).exp_()
            if wants_bias:
                grad_bias[start:end] = -(grad @ p)
            p = p.to(ctx.compute)
            if wants_hidden:
                part = weight[start:end].detach().to(ctx.compute)
                expected = expected.addmm_(p, part) if p.dtype == expected.dtype else expected.add_(p @ part)
            if wants_weight:
                _product(p.T, scaled, grad_weight[start:end])
        grad_hidden = None
        if wants_hidden:
            grad_hidden = ((weight.detach()[targets] - expected) * grad[:, None]).to(hidden.dtype)
        if wants_weight:
            grad_weight.index_add_(0, targets, scaled.to(weight.dtype), alpha=-1)
        if wants_bias:
            grad_bias.index_add_(0, targets, grad.to(bias.dtype))
        return grad_hidden, grad_weight, None, grad_bias, None, None


class _Slices:
    """The logits, a slice of the vocabulary at a time, always in the same memory: (start, logits [T, width])."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, chunk: int) -> None:
        self.hidden, self.weight, self.bias = hidden, weight.detach(), bias
        # THINNEST bounds the memory by T x 512, which is of the order of the hidden states themselves.
        self.width = min(weight.shape[0], max(chunk // max(1, hidden.shape[0]), THINNEST))

    def __iter__(self):
        accumulate = torch.float64 if self.hidden.dtype == torch.float64 else torch.float32
        count, size = self.hidden.shape[0], self.weight.shape[0]
        memory = self.hidden.new_empty(count * self.width, dtype=accumulate)
        for start in range(0, size, self.width):
            part = self.weight[start : start + self.width]
            logits = memory[: count * part.shape[0]].view(count, -1)
            _product(self.hidden, part.to(self.hidden.dtype).T, logits)
            if self.bias is not None:
                logits += self.bias[start : start + self.width]
            yield start, logits


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """left @ right written into `out`, which may have more precision than the factors."""
    return torch.mm(left, right, out=out) if left.dtype == out.dtype else out.copy_(left @ right)


# --- the model ----------------------------------------------------------------------------------------------------


def unwrapped(model: Any) -> Any:
    """The language model inside DistributedDataParallel and its relatives."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module
    return model


def output_head(model: Any) -> torch.nn.Linear:
    """The linear layer that turns hidden states into logits."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    # Exactly nn.Linear: a subclass (an adapter, a quantised layer) may do more than weight and bias say.
    if type(head) is not torch.nn.Linear:
        raise CourseError(
            "unsupported-head",
            f"The output head of {type(inner).__name__} is a {type(head).__name__}; a plain linear layer is needed.",
            where="output_head",
            remedy="Use a causal language model, and leave its head out of adapters and quantisation.",
        )
    return head


def _hidden_states(model: Any, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.nn.Linear]:
    """The hidden states that `model` hands to its head, and the head.

    The head itself is given one position only; that one shows whether the model changes its logits afterwards.
    """
    head = output_head(model)
    seen: dict[str, torch.Tensor] = {}

    def before(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        seen["hidden"] = arguments[0]
        return (arguments[0][:1, :1],)

    def after(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
        seen["logits"] = output

    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    try:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        for hook in hooks:
            hook.remove()
    raw = seen["logits"]
    if logits is not raw and not torch.allclose(logits.float(), raw.float(), rtol=0, atol=0, equal_nan=True):
        raise CourseError(
            "logits-changed-after-head",
            f"{type(model).__name__} changes its logits after the head (a scale or a soft cap), which would make every "
            f"log-probability here wrong: the head gave {raw.flatten()[0]:.6g}, the model {logits.flatten()[0]:.6g}.",
            where="sequence_log_probs",
            remedy="Use a model of the Qwen or Llama family, or switch the scaling off in its config if it allows that.",
        )
    return seen["hidden"], head


# --- layouts ------------------------------------------------------------------------------------------------------


def _padding_to_the_right(batch: EncodedBatch) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """The columns taken (None: the first ones), the token ids and the response mask, all padding at the right."""
    lengths = batch.attention_mask.sum(dim=1)
    width = int(lengths.max())
    column = torch.arange(batch.input_ids.shape[1], device=lengths.device)
    order = None
    input_ids, counted = batch.input_ids, batch.response_mask & batch.attention_mask
    if not torch.equal(batch.attention_mask, column < lengths[:, None]):
        # Sorting "is padding" moves the padding to the right and, being stable, keeps the tokens in order.
        order = (~batch.attention_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        input_ids, counted = input_ids.gather(1, order), counted.gather(1, order)
    input_ids, counted = input_ids[:, :width], counted[:, :width]
    for wrong, id, what in (
        (~counted.any(dim=1), "empty-response", "has no response token"),
        (counted[:, 0], "empty-prompt", "begins with the response, so nothing predicts its first token"),
    ):
        if bool(wrong.any()):
            raise CourseError(
                id,
                f"{int(wrong.sum())} of {len(batch)} rows: the row {what}.",
                where=f"row {int(wrong.nonzero()[0])}",
                remedy="Give every row at least one prompt token (a begin token will do) and one response token.",
            )
    return order, input_ids, counted


def _stack(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    """The rows of both batches, padded at the right to one width."""
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])

    def joined(name: str) -> torch.Tensor:
        parts = (getattr(first, name), getattr(second, name))
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    return EncodedBatch(joined("input_ids"), joined("attention_mask"), joined("response_mask"))


def _one_row_per_pair(pairs: EncodedPairs) -> tuple[torch.Tensor, ...]:
    """Lay each pair out as prompt + chosen + rejected.

    Returns, each [N, W]: the token ids; the position of each token in its own sequence; its segment (0 prompt, 1 chosen,
    2 rejected, 3 padding); and the column that predicts it.
    """
    _, chosen_ids, chosen = _padding_to_the_right(pairs.chosen)
    _, rejected_ids, rejected = _padding_to_the_right(pairs.rejected)
    prompt = chosen.to(torch.uint8).argmax(dim=1)
    a, b = chosen.sum(dim=1), rejected.sum(dim=1)
    _check_shared(pairs, chosen_ids, rejected_ids, chosen, rejected, prompt)

    p, end_a, end_b = prompt[:, None], (prompt + a)[:, None], (prompt + a + b)[:, None]
    j = torch.arange(int(end_b.max()), device=p.device)[None]
    in_rejected = (j >= end_a) & (j < end_b)
    segment = (j >= p).long() + (j >= end_a).long() + (j >= end_b).long()
    position = torch.where(in_rejected, j - a[:, None], j)
    source = torch.where(in_rejected, position + chosen_ids.shape[1], position)
    both = torch.cat([chosen_ids, rejected_ids], dim=1)
    input_ids = both.gather(1, source.clamp(max=both.shape[1] - 1))
    # Both responses begin where the prompt ends: their first tokens are predicted by the same column.
    previous = torch.where(j == end_a, p - 1, j - 1)
    return input_ids, position, segment, previous


def _check_shared(pairs: EncodedPairs, chosen_ids, rejected_ids, chosen, rejected, prompt) -> None:
    """A shared prompt must be one prompt, followed by nothing but the response."""
    width = min(chosen_ids.shape[1], rejected_ids.shape[1])
    outside = torch.arange(width, device=prompt.device)[None] >= prompt[:, None]
    same = ((chosen_ids[:, :width] == rejected_ids[:, :width]) | outside).all(dim=1)
    same &= prompt == rejected.to(torch.uint8).argmax(dim=1)
    for ids, counted, side in ((chosen_ids, chosen, pairs.chosen), (rejected_ids, rejected, pairs.rejected)):
        column = torch.arange(ids.shape[1], device=prompt.device)[None]
        length = side.attention_mask.sum(dim=1)[:, None]
        same &= (counted == ((column >= prompt[:, None]) & (column < length))).all(dim=1)
    if not bool(same.all()):
        raise CourseError(
            "prompt-not-shared",
            f"{int((~same).sum())} of {len(pairs)} pairs do not have one prompt followed by two whole responses.",
            where=f"row {int((~same).nonzero()[0])}",
            remedy="Build the pairs with encode_pairs(...), or score them with share_prompt=False.",
        )


def _pair_attention(model: Any, segment: torch.Tensor) -> torch.Tensor:
    """Who sees whom, [N, 1, W, W]: the past, in the prompt or in one's own response."""
    config = unwrapped(model).config
    kind = getattr(config, "_attn_implementation", None)
    layers = getattr(config, "layer_types", None)
    window = "sliding_attention" in layers if layers else bool(getattr(config, "sliding_window", None))
    if kind not in ("sdpa", "eager") or window:
        raise CourseError(
            "shared-prompt-attention",
            f"A shared prompt needs its own attention mask, which {'a sliding window' if window else repr(kind)} ignores.",
            where="pair_log_probs",
            remedy="Load the model with attn_implementation='sdpa', or use share_prompt=False.",
        )
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    key, query = segment[:, None, :], segment[:, :, None]
    allowed = (causal & ((key == 0) | (key == query)))[:, None]
    if kind == "sdpa":
        return allowed
    # "eager" adds the mask to its scores instead of selecting with it.
    return torch.zeros(allowed.shape, device=segment.device).masked_fill(~allowed, torch.finfo(torch.float32).min)
