"""Sequence log-probabilities of a causal language model: lean in time and in memory.

    log pi(y | x) = sum over the response tokens y_t of  logit_t[y_t] - logsumexp(logit_t)

Preference learning needs one number per response token. The common way builds the logits of every position,
[rows, length, vocabulary], and a log_softmax of the same size; at a vocabulary of 151,936 words these fill
the memory before the model does. Here

* only positions that predict a response token reach the head;
* the head is applied to a slice of the vocabulary at a time, and a slice is dropped once it has been added to
  the running logsumexp. The backward pass computes each slice again (`ChunkedLogProbs`);
* padding is moved to the right first, where a causal model cannot see it: no padding mask is needed, and left
  and right padding give the same number;
* chosen and rejected may share one copy of their prompt (`shared_prompt`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from course_utils.causal_lm import hidden_states, unwrapped
from course_utils.encoding import EncodedBatch, EncodedPairs
from course_utils.errors import CourseError
from course_utils.shared_prompt import (
    CHOSEN,
    REJECTED,
    one_row_per_pair,
    padding_to_the_right,
    pair_attention,
    stack,
)

# How many logits are held at a time. On a CPU 2 million stay in the cache; a GPU wants larger products.
CHUNK_CPU, CHUNK_GPU = 2**21, 2**26
# Slices thinner than this waste the matrix product. They bound the memory by T x 512 logits for T positions,
# which is of the order of the hidden states themselves.
THINNEST = 512


def sequence_log_probs(
    model: Any, batch: EncodedBatch, *, chunk: int | None = None, per_token: bool = False
) -> Tensor:
    """log pi(y | x) for every row of `batch`: shape [N], a sum over response tokens, differentiable.

    model      a transformers causal language model, or a wrapper around one
    chunk      how many logits are held in memory at a time; the result does not depend on it
    per_token  return the terms instead: shape [N, L], laid out like `batch`, zero outside the response

    The result is float32, or float64 for a float64 model.
    """
    order, input_ids, counted = padding_to_the_right(batch)
    # Column j predicts column j + 1, so the last column is never needed as input.
    hidden, head = hidden_states(model, input_ids=input_ids[:, :-1])
    targets, counted = input_ids[:, 1:], counted[:, 1:]
    place = counted.reshape(-1).nonzero().squeeze(-1)
    values = _at(hidden, head, place, targets.reshape(-1)[place], chunk)
    terms = _table(values, counted)
    if not per_token:
        return terms.sum(dim=-1)
    terms = torch.nn.functional.pad(terms, (1, 0))
    if order is None:
        return torch.nn.functional.pad(terms, (0, batch.input_ids.shape[1] - terms.shape[1]))
    return values.new_zeros(batch.input_ids.shape).scatter(1, order, terms)


def pair_log_probs(model: Any, pairs: EncodedPairs, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """log pi(chosen | x) and log pi(rejected | x), each of shape [N], from one forward pass."""
    if not pairs.share_prompt:
        both = sequence_log_probs(model, stack(pairs.chosen, pairs.rejected), chunk=chunk)
        return both[: len(pairs)], both[len(pairs) :]
    input_ids, position, segment, predictor = one_row_per_pair(pairs.chosen, pairs.rejected)
    hidden, head = hidden_states(
        model,
        input_ids=input_ids[:, :-1],
        position_ids=position[:, :-1],
        attention_mask=pair_attention(unwrapped(model).config, segment[:, :-1]),
    )
    counted = (segment == CHOSEN) | (segment == REJECTED)
    row, column = counted.nonzero(as_tuple=True)
    place = row * hidden.shape[1] + predictor[row, column]
    terms = _table(_at(hidden, head, place, input_ids[row, column], chunk), counted)
    return (terms * (segment == CHOSEN)).sum(dim=-1), (terms * (segment == REJECTED)).sum(dim=-1)


def token_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, *, chunk: int | None = None
) -> Tensor:
    """log softmax(hidden @ weight.T + bias)[targets] for T positions, without ever holding T x V logits."""
    device = hidden.device.type
    if chunk is None:
        chunk = CHUNK_CPU if device == "cpu" else CHUNK_GPU
    if chunk < 1:
        raise CourseError(
            "bad-chunk",
            f"chunk is {chunk}; it is the number of logits held at a time.",
            where="token_log_probs",
            remedy="Leave it out, or pass a positive number.",
        )
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return ChunkedLogProbs.apply(hidden, weight, targets, bias, chunk, compute)


class ChunkedLogProbs(torch.autograd.Function):
    """Head, log-softmax and gather in one function that stores no logits.

    With logits z_t = W h_t + b, p_t = softmax(z_t) and target y_t, the value is z_t[y_t] - logsumexp(z_t),
    and for an incoming gradient g_t

        dh_t = g_t (W[y_t] - W' p_t)     dW = sum_t g_t (e[y_t] - p_t) h_t'     db = sum_t g_t (e[y_t] - p_t)

    Both passes walk over slices of the vocabulary. A slice covers all T positions, so each row of W is read
    once and each row of its gradient is written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        chunk: int,
        compute: torch.dtype,
    ) -> Tensor:
        normaliser, target_logit = None, None
        for start, logits in _slices(hidden.to(compute), weight, bias, chunk):
            local = (targets - start).clamp(0, logits.shape[1] - 1)
            picked = logits.gather(1, local[:, None]).squeeze(1)
            target_logit = picked if target_logit is None else picked.where(targets >= start, target_logit)
            largest = logits.amax(dim=1)
            part = logits.sub_(largest[:, None]).exp_().sum(dim=1).log_().add_(largest)
            normaliser = part if normaliser is None else torch.logaddexp(normaliser, part)
        ctx.save_for_backward(hidden, weight, targets, bias, normaliser)
        ctx.chunk, ctx.compute = chunk, compute
        return target_logit - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, normaliser = ctx.saved_tensors
        want_hidden, want_weight, _, want_bias, _, _ = ctx.needs_input_grad
        h = hidden.to(ctx.compute)
        minus_gh = (h * -grad[:, None]).to(ctx.compute)
        mean_row = torch.zeros_like(h, dtype=grad.dtype) if want_hidden else None  # W' p
        grad_weight = torch.empty_like(weight) if want_weight else None
        grad_bias = torch.empty_like(bias) if want_bias else None
        for start, logits in _slices(h, weight, bias, ctx.chunk):
            rows = slice(start, start + logits.shape[1])
            p = logits.sub_(normaliser[:, None]).exp_()
            if want_bias:
                grad_bias[rows] = -(grad @ p)
            p = p.to(ctx.compute)
            if want_hidden:
                _product(p, weight[rows].to(ctx.compute), mean_row, add=True)
            if want_weight:
                _product(p.T, minus_gh, grad_weight[rows])
        grad_hidden = ((weight[targets] - mean_row) * grad[:, None]).to(hidden.dtype) if want_hidden else None
        if want_weight:
            grad_weight.index_add_(0, targets, minus_gh.to(weight.dtype), alpha=-1)
        if want_bias:
            grad_bias.index_add_(0, targets, grad.to(bias.dtype))
        return grad_hidden, grad_weight, None, grad_bias, None, None


def _slices(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Slices of the vocabulary, all in the same memory: where each starts, and its logits [T, width]."""
    count, size = hidden.shape[0], weight.shape[0]
    width = min(size, max(chunk // max(1, count), THINNEST))
    accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    memory = hidden.new_empty(count * width, dtype=accumulate)
    for start in range(0, size, width):
        part = weight[start : start + width]
        logits = memory[: count * part.shape[0]].view(count, -1)
        _product(hidden, part.to(hidden.dtype).T, logits)
        if bias is not None:
            logits += bias[start : start + width]
        yield start, logits


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> None:
    """left @ right, written or added into `out`, which may have more precision than the factors."""
    if left.dtype == out.dtype:
        torch.addmm(out, left, right, out=out) if add else torch.mm(left, right, out=out)
    else:
        out.add_(left @ right) if add else out.copy_(left @ right)


def _at(hidden: Tensor, head: torch.nn.Linear, place: Tensor, targets: Tensor, chunk: int | None) -> Tensor:
    """Log-probabilities of `targets` at the flat positions `place`."""
    # index_select: on a CPU the backward pass of boolean indexing is many times slower.
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, place)
    return token_log_probs(rows, head.weight, targets, head.bias, chunk=chunk)


def _table(values: Tensor, counted: Tensor) -> Tensor:
    """The values back at their places, zero elsewhere."""
    return values.new_zeros(counted.shape).masked_scatter(counted, values)
