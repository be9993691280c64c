"""What the statistics refuse, and how they say so."""

from __future__ import annotations

from typing import Any

import numpy as np

from course_utils.errors import CourseError


def array(
    values: Any, name: str, where: str, least: int = 1, positive: bool = False, axes: tuple[int, ...] = (1,)
) -> np.ndarray:
    """Anything array-like as float64, refused when too short, not finite, or not positive if it must be."""
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu().double().numpy()
    found = np.asarray(values, dtype=float)
    if found.ndim not in axes:
        what = f"{name} has shape {found.shape}, expected {' or '.join(map(str, axes))} axes"
        raise CourseError(
            "statistics-shape", what, where=where, remedy="flatten it, or pick the axis you mean"
        )
    if found.size == 0 or len(found) < least:
        what = f"{name} has {len(found)} values, at least {least} are needed"
        raise CourseError("statistics-too-few", what, where=where, remedy="measure more often")
    if bad := int((~np.isfinite(found)).sum()):
        what = f"{name} holds {bad} of {found.size} values that are NaN or infinite"
        remedy = "find the run that produced them; do not drop them silently"
        raise CourseError("statistics-not-finite", what, where=where, remedy=remedy)
    if positive and found.min() <= 0:
        what = f"{name} must be positive to have a logarithm, its smallest value is {found.min():g}"
        remedy = "an error of exactly 0 lies on no power law: leave that point out, and say so"
        raise CourseError("statistics-not-positive", what, where=where, remedy=remedy)
    return found


def pairs(
    a: Any, b: Any, where: str, least: int, names: tuple[str, str] = ("a", "b")
) -> tuple[np.ndarray, np.ndarray]:
    a, b = array(a, names[0], where, least), array(b, names[1], where, least)
    if a.size != b.size:
        what = f"{names[0]} has {a.size} values but {names[1]} has {b.size}"
        remedy = "both sides need the same prompts or seeds, in the same order"
        raise CourseError("statistics-unpaired", what, where=where, remedy=remedy)
    return a, b


def confidence_level(confidence: float, where: str) -> None:
    if not 0 < confidence < 1:
        what = f"confidence must lie between 0 and 1, got {confidence!r}"
        raise CourseError("statistics-option", what, where=where, remedy="pass 0.95 for a 95 % interval")


def whole_number(value: Any, name: str, where: str, least: int) -> int:
    """An int, or a number of another type (a tensor of one element, 3.0) that is whole."""
    if not float(value).is_integer() or value < least:
        what = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise CourseError("statistics-option", what, where=where, remedy=f"pass an int, {least} or more")
    return int(value)
