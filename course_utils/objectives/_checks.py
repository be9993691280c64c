"""Checks that every objective makes on its inputs, so that a mistake is named where it was made.

What is refused, and why:

- Tensors whose shapes differ. Broadcasting would turn a batch of pairs into a table of all combinations
  without a word.
- NaN, and infinite log-probabilities too: minus infinity says that a model cannot produce a response, and
  the log-ratio of two such numbers is undefined, so no loss here has both a value and a gradient for it.
- Numbers that are not floating point, `preferred` that is not boolean, settings outside their range.

What is allowed: any shape for a paired or unpaired objective (the loss has the same shape), any floating
dtype, positive "log-probabilities" (the log-density of a Gaussian policy may be positive), and tensors of
two dtypes, which torch promotes. The checks read the data, so on an accelerator they wait for it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from course_utils.errors import CourseError

MAX_LISTED = 5


def listed(index: Tensor) -> str:
    """The rows of `index` (from `nonzero`) as readable text, the first few of them."""
    rows = [tuple(row) if len(row) != 1 else row[0] for row in index[:MAX_LISTED].tolist()]
    more = len(index) - len(rows)
    return ", ".join(str(row) for row in rows) + (f" and {more} more" if more > 0 else "")


def check_tensors(where: str, **tensors: Tensor) -> None:
    """Refuse tensors that are not floating, not finite, or not all of one shape."""
    for name, tensor in tensors.items():
        check_floating(where, name, tensor)
    check_same_shape(where, **tensors)
    for name, tensor in tensors.items():
        check_finite(where, name, tensor)


def check_floating(where: str, name: str, tensor: Tensor) -> None:
    """Refuse what is not a tensor of floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise CourseError(
            "not-a-tensor",
            f"`{name}` is a {type(tensor).__name__}, not a torch tensor.",
            where=where,
            remedy=f"pass torch.tensor({name}, dtype=torch.float64), or what your policy returned.",
        )
    if not tensor.is_floating_point():
        raise CourseError(
            "not-floating",
            f"`{name}` holds {tensor.dtype}, and an objective needs floating-point numbers.",
            where=where,
            remedy=f"convert it, {name}.to(torch.float64); for token ids, pass their log-probabilities.",
        )


def check_same_shape(where: str, **tensors: Tensor) -> None:
    """Refuse tensors whose shapes differ: nothing here broadcasts."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise CourseError(
            "shapes-differ",
            "the inputs differ in shape: "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + ".",
            where=where,
            remedy="give every input one number for each example: a sum over the response's tokens.",
        )


def check_finite(where: str, name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity, and say at which examples they are."""
    if bool(torch.isfinite(tensor).all()):
        return
    is_nan = torch.isnan(tensor.detach())
    if bool(is_nan.any()):
        raise CourseError(
            "nan-input",
            f"`{name}` is NaN at {int(is_nan.sum())} of {tensor.numel()} places "
            f"(index {listed(is_nan.nonzero())}).",
            where=where,
            remedy="look one step earlier: too high a learning rate, a float16 overflow, an empty response.",
        )
    is_infinite = torch.isinf(tensor.detach())
    raise CourseError(
        "infinite-input",
        f"`{name}` is infinite at {int(is_infinite.sum())} of {tensor.numel()} places "
        f"(index {listed(is_infinite.nonzero())}).",
        where=where,
        remedy="leave out responses that a model cannot produce, and check masks and float16 overflow.",
    )


def check_pair(
    where: str, policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> None:
    """The four log-probabilities of a paired objective."""
    check_tensors(
        where,
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
    )


def check_preferred(
    where: str, preferred: Tensor, like: Tensor, like_name: str = "the log-probabilities"
) -> None:
    """`preferred` is a boolean tensor with one entry for each example."""
    if not isinstance(preferred, Tensor) or preferred.dtype != torch.bool:
        got = preferred.dtype if isinstance(preferred, Tensor) else type(preferred).__name__
        raise CourseError(
            "preferred-not-boolean",
            f"`preferred` holds {got}; it must be a boolean tensor, True where the response was preferred.",
            where=where,
            remedy="write preferred = (label == 1), or torch.tensor([True, False, ...]).",
        )
    if preferred.shape != like.shape:
        raise CourseError(
            "shapes-differ",
            f"`preferred` has shape {tuple(preferred.shape)} and {like_name} {tuple(like.shape)}.",
            where=where,
            remedy="give one label for each response.",
        )


def check_offset(
    where: str, name: str, value: float | Tensor, like: Tensor, *, not_negative: str = ""
) -> None:
    """A number to subtract, one for all examples or one for each; `not_negative` says what to do if it is."""
    tensor = torch.tensor(float(value), dtype=torch.float64) if isinstance(value, Real) else value
    check_floating(where, name, tensor)
    if tensor.numel() != 1:
        check_same_shape(where, **{name: tensor, "the examples": like})
    check_finite(where, name, tensor)
    if not_negative and bool((tensor < 0).any()):
        check_range(
            where, name, float(tensor.detach().min()), 0.0, math.inf, low_included=True, remedy=not_negative
        )


def check_group(where: str, **tensors: Tensor) -> None:
    """The inputs of a group objective: [batch, K] with at least two responses for each prompt."""
    check_tensors(where, **tensors)
    name, tensor = next(iter(tensors.items()))
    if tensor.dim() < 2 or tensor.shape[-1] < 2:
        raise CourseError(
            "group-too-small",
            f"`{name}` has shape {tuple(tensor.shape)}; a group is K >= 2 responses of one prompt.",
            where=where,
            remedy="pass [batch, K]: one row for each prompt, one column for each of its responses.",
        )


def check_length(where: str, like: Tensor, **lengths: Tensor) -> None:
    """Response lengths in tokens: one positive number for each example."""
    for name, length in lengths.items():
        if not isinstance(length, Tensor):
            check_tensors(where, **{name: length})
        if length.shape != like.shape:
            raise CourseError(
                "shapes-differ",
                f"`{name}` has shape {tuple(length.shape)} and the log-probabilities {tuple(like.shape)}.",
                where=where,
                remedy="give the number of tokens of each response.",
            )
        # written so that a NaN length is caught too
        too_short = ~(length >= 1)
        if bool(too_short.any()):
            raise CourseError(
                "empty-response",
                f"`{name}` is below one token at index {listed(too_short.nonzero())}.",
                where=where,
                remedy="drop empty responses (truncation can cause them): a mean of no tokens is undefined.",
            )


def check_range(
    where: str,
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    low_included: bool = False,
    remedy: str = "",
) -> None:
    """A setting that must lie between `low` and `high` (both excluded, unless `low_included`)."""
    inside = isinstance(value, Real) and (low <= value if low_included else low < value) and value < high
    if not inside:
        bounds = f"{'[' if low_included else '('}{low:g}, {high:g})"
        raise CourseError(
            "setting-out-of-range",
            f"{name} = {value!r} is outside {bounds}.",
            where=where,
            remedy=remedy or f"choose {name} inside {bounds}.",
        )


def check_positive(where: str, **settings: float) -> None:
    """Settings that must be positive and finite, such as beta."""
    for name, value in settings.items():
        check_range(where, name, value, 0.0, math.inf, remedy=f"choose a positive number for {name}.")


def check_not_negative(where: str, **settings: float) -> None:
    """Settings that may be zero but not negative, such as a weight."""
    for name, value in settings.items():
        check_range(
            where,
            name,
            value,
            0.0,
            math.inf,
            low_included=True,
            remedy=f"choose zero or a positive number for {name}.",
        )


def check_label_smoothing(where: str, label_smoothing: float) -> None:
    """The assumed rate of wrong labels: from zero to just below one half."""
    check_range(
        where,
        "label_smoothing",
        label_smoothing,
        0.0,
        0.5,
        low_included=True,
        remedy="it is the share of labels assumed wrong: at one half a label carries no information.",
    )


def check_choice(where: str, name: str, value: str, choices: Sequence[str]) -> None:
    """A setting that is one of a few words."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        raise CourseError(
            "unknown-choice",
            f"{name} = {value!r} is not one of {', '.join(choices)}.",
            where=where,
            remedy=f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}.",
        )
