"""One row per comparison: prompt + chosen + rejected, the prompt computed once.

The two responses must not see each other, and each must stand where it would stand alone. So the row comes
with its own attention mask (a token sees the past of the prompt and of its own response) and its own
positions (both responses begin right after the prompt). What comes out is what two separate rows would give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course_utils.encoding import EncodedBatch
from course_utils.errors import CourseError

PROMPT, CHOSEN, REJECTED, PADDING = range(4)


def padding_to_the_right(batch: EncodedBatch) -> tuple[Tensor | None, Tensor, Tensor]:
    """Token ids and response mask with all padding at the right, and which columns they came from.

    The columns are None if the padding was at the right already.
    """
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
    _check(counted.any(dim=1), "empty-response", "have no response token")
    _check(~counted[:, 0], "empty-prompt", "begin with the response, so nothing predicts its first token")
    return order, input_ids, counted


def stack(first: EncodedBatch, second: EncodedBatch) -> EncodedBatch:
    """The rows of both batches, padded at the right to one width."""
    width = max(first.input_ids.shape[1], second.input_ids.shape[1])

    def joined(name: str) -> Tensor:
        parts = (getattr(first, name), getattr(second, name))
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    return EncodedBatch(joined("input_ids"), joined("attention_mask"), joined("response_mask"))


def one_row_per_pair(chosen: EncodedBatch, rejected: EncodedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay each pair out as prompt + chosen + rejected.

    Returns, each [N, W]: the token ids; the position of each token in its own sequence; its segment (PROMPT,
    CHOSEN, REJECTED or PADDING); and the column that predicts it.
    """
    _, chosen_ids, in_chosen = padding_to_the_right(chosen)
    _, rejected_ids, in_rejected = padding_to_the_right(rejected)
    prompt = in_chosen.to(torch.uint8).argmax(dim=1)  # the first response column is the prompt's length
    width = min(chosen_ids.shape[1], rejected_ids.shape[1])
    in_prompt = torch.arange(width, device=prompt.device) < prompt[:, None]
    same = ((chosen_ids[:, :width] == rejected_ids[:, :width]) | ~in_prompt).all(dim=1)
    same &= prompt == in_rejected.to(torch.uint8).argmax(dim=1)
    for side, counted in ((chosen, in_chosen), (rejected, in_rejected)):
        # After the prompt, nothing but response: lengths that add up leave no room for anything else.
        same &= prompt + counted.sum(dim=1) == side.attention_mask.sum(dim=1)
    _check(same, "prompt-not-shared", "have not one prompt for both responses: use share_prompt=False")

    a, b = in_chosen.sum(dim=1)[:, None], in_rejected.sum(dim=1)[:, None]
    p = prompt[:, None]
    j = torch.arange(int((p + a + b).max()), device=p.device)[None]
    segment = (j >= p).long() + (j >= p + a).long() + (j >= p + a + b).long()
    position = torch.where(segment >= REJECTED, j - a, j)
    source = torch.where(segment >= REJECTED, position + chosen_ids.shape[1], position)
    both = torch.cat([chosen_ids, rejected_ids], dim=1)
    input_ids = both.gather(1, source.clamp(max=both.shape[1] - 1))
    # Both responses begin where the prompt ends: their first tokens are predicted by the same column.
    predictor = torch.where(j == p + a, p - 1, j - 1)
    return input_ids, position, segment, predictor


def pair_attention(config: Any, segment: Tensor) -> Tensor:
    """Who sees whom, [N, 1, W, W]: the past, in the prompt or in one's own response."""
    kind = getattr(config, "_attn_implementation", None)
    layers = getattr(config, "layer_types", None)
    windowed = "sliding_attention" in layers if layers else bool(getattr(config, "sliding_window", None))
    if kind not in ("sdpa", "eager") or windowed:
        what = "sliding-window attention" if windowed else f"attn_implementation={kind!r}"
        raise CourseError(
            "shared-prompt-attention",
            f"A shared prompt needs its own attention mask, which {what} would ignore.",
            where="pair_log_probs",
            remedy="Load the model with attn_implementation='sdpa', or use share_prompt=False.",
        )
    width = segment.shape[1]
    past = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    key, query = segment[:, None, :], segment[:, :, None]
    sees = (past & ((key == PROMPT) | (key == query)))[:, None]
    if kind == "sdpa":
        return sees
    # "eager" adds the mask to its scores instead of selecting with it.
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(sees.shape, device=segment.device).masked_fill(~sees, hidden)


def _check(right: Tensor, id: str, what: str) -> None:
    if not bool(right.all()):
        raise CourseError(
            id,
            f"{int((~right).sum())} of {len(right)} rows {what}.",
            where=f"row {int((~right).nonzero()[0])}",
            remedy="Build the batch with encode(...) or encode_pairs(...).",
        )
