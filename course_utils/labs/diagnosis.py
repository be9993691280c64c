"""In which way the numbers of a wrong answer are off, said without giving the right ones away.

`diagnose` looks at all the cases together, for a wrong sign, one factor, one offset, rows and columns
exchanged, and so on. `first_wrong` says how many numbers of one case are off and in which direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_utils.labs.answers import as_numbers, in_words
from course_utils.labs.exercises import Tolerance


@dataclass(frozen=True)
class Comparison:
    """The numbers of one case, an answer's and the true ones, of one shape."""

    label: str
    got: np.ndarray
    want: np.ndarray


def diagnose(comparisons: list[Comparison], tolerance: Tolerance) -> str:
    """In which way the numbers are off, seen over all cases; '' if no simple pattern fits.

    A pattern must hold in every case. Those with a free constant need at least two numbers to be believed.
    """
    if not comparisons or any(one.got.dtype == bool for one in comparisons):
        return ""
    got = np.concatenate([one.got.ravel() for one in comparisons])
    want = np.concatenate([one.want.ravel() for one in comparisons])

    def fits(wanted: np.ndarray) -> bool:
        close = np.allclose(got, wanted, rtol=max(tolerance.relative, 1e-9), atol=tolerance.absolute)
        return bool(close and np.isfinite(wanted).all())

    def turned(change: Any) -> bool:
        pieces = [change(one.want) for one in comparisons]
        shapes = all(piece.shape == one.got.shape for piece, one in zip(pieces, comparisons, strict=True))
        return shapes and fits(np.concatenate([piece.ravel() for piece in pieces]))

    with np.errstate(all="ignore"):
        patterns = [
            (fits(-want), "The size is right and the sign is wrong."),
            (turned(np.transpose), "The numbers are right with rows and columns exchanged."),
            (turned(np.flip), "The numbers are right but in reversed order."),
            (fits(1 - want), "You computed one minus what is wanted."),
            (fits(np.exp(want)), "You computed the exponential of what is wanted: is a logarithm missing?"),
            (fits(np.log(want)), "You computed the logarithm of what is wanted."),
            (fits(want**2), "You computed the square of what is wanted: is a square root missing?"),
            (fits(np.sqrt(want)), "You computed the square root of what is wanted."),
            (fits(1 / want), "You computed one divided by what is wanted."),
        ]
    for holds, text in patterns:
        if holds:
            return text
    return _constant_pattern(comparisons, got, want, tolerance)


def _right_in_some_order(comparisons: list[Comparison], tolerance: Tolerance) -> bool:
    """Whether every case holds the right numbers, whatever their order."""
    return all(
        np.allclose(
            np.sort(one.got.ravel()), np.sort(one.want.ravel()), tolerance.relative, tolerance.absolute
        )
        for one in comparisons
    )


def _constant_pattern(
    comparisons: list[Comparison], got: np.ndarray, want: np.ndarray, tolerance: Tolerance
) -> str:
    """The patterns with a free constant: a factor, an offset, another order, or an answer that ignores its
    arguments.
    """
    if got.size < 2:
        return ""
    if (factor := _factor(got, want, tolerance)) is not None:
        return f"Every number is {factor:.4g} times what it should be."
    if (offset := _offset(got, want, tolerance)) is not None:
        return f"Every number is off by the same amount, {offset:+.4g}."
    if _right_in_some_order(comparisons, tolerance):
        return "The numbers are right but stand in another order."
    several = [one for one in comparisons if one.got.size > 1 and np.abs(one.want).max() > tolerance.absolute]
    if several and all(_factor(one.got, one.want, tolerance) is not None for one in several):
        return (
            "Within a case every number is off by one factor, and the factor differs from case to case: "
            "look for a sum, a mean or a normalisation."
        )
    if several and all(_offset(one.got, one.want, tolerance) is not None for one in several):
        return "Within a case every number is off by one amount, and the amount differs from case to case."
    if len(comparisons) > 1 and np.ptp(got) <= tolerance.absolute < np.ptp(want):
        return "Your answer is the same number everywhere: does it use every argument?"
    return ""


def _factor(got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> float | None:
    """The one factor between two lists of numbers, if there is one that is neither 0 nor 1."""
    largest = np.abs(want).argmax()
    want_largest, got_largest = float(want.flat[largest]), float(got.flat[largest])
    if abs(want_largest) <= tolerance.absolute or not np.isfinite(got).all():
        return None
    factor = got_largest / want_largest
    scale = max(tolerance.relative, 1e-9)
    same = np.allclose(got, factor * want, rtol=scale, atol=max(tolerance.absolute, scale * abs(got_largest)))
    return factor if same and factor != 0 else None


def _offset(got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> float | None:
    """The one amount between two lists of numbers, if there is one."""
    offsets = (got - want).ravel()
    if not np.isfinite(offsets).all():
        return None
    scale = tolerance.absolute + max(tolerance.relative, 1e-9) * max(1.0, float(np.abs(offsets).max()))
    return float(offsets.mean()) if np.ptp(offsets) <= scale else None


def first_wrong(one: Comparison, tolerance: Tolerance) -> str:
    """What is off in one case: how many numbers, and whether they are too large or too small."""
    if one.got.dtype == bool:
        wrong = one.got != one.want
        return f"{int(wrong.sum())} of {wrong.size} truth values are wrong for {one.label}."
    wrong = ~np.isclose(one.got, one.want, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    sign = np.sign(one.got - one.want)[wrong]
    if not np.isfinite(one.got[wrong]).all():
        direction = "infinite or NaN"
    elif (sign > 0).all() or (sign < 0).all():
        direction = "too large" if sign.flat[0] > 0 else "too small"
    else:
        direction = "wrong, some too large and some too small"
    if one.got.ndim == 0:
        return f"Your number is {direction} for {one.label}."
    where = ", ".join(str(int(index)) for index in np.argwhere(wrong)[0])
    count = "The" if wrong.all() else f"{int(wrong.sum())} of {wrong.size}"
    return f"{count} numbers are {direction} for {one.label}; the first of them is at index [{where}]."


def written_out(value: Any) -> str:
    """An argument in a few characters: small ones in full, larger ones by their shape."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        numbers = as_numbers(value)
        limit = 6 if numbers.ndim < 2 else 9
        return (
            _listed(numbers.tolist())
            if numbers.size <= limit
            else f"{in_words(value)} of shape {list(numbers.shape)}"
        )
    if isinstance(value, (list, tuple)) and len(value) <= 6:
        return "[" + ", ".join(written_out(item) for item in value) + "]"
    if isinstance(value, (list, tuple, dict)):
        return f"{in_words(value)} of {len(value)}"
    return _listed(value) if isinstance(value, (bool, int, float, str)) else in_words(value)


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_listed(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and value == int(value) else f"{value:.4g}"
    return repr(value)
