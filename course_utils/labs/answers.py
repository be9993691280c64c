"""Comparing an answer with the truth.

An answer may be a number, a tensor, an array, a truth value, a text, or a tuple, list or dictionary of these.
`compare` finds the first thing that differs: kind of object, shape, dtype, NaN, or numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_utils.labs.exercises import Tolerance

SINGLE_PRECISION = 1e-4  # the relative difference that float32 arithmetic may make

KINDS = {
    "nothing": "nothing (None)",
    "truth value": "a truth value (True or False)",
    "text": "a text",
    "number": "a number",
    "tensor": "a torch tensor",
    "array": "a numpy array",
    "list": "a list",
    "tuple": "a tuple",
    "dict": "a dictionary",
    "function": "a function",
}


@dataclass(frozen=True)
class Difference:
    """The first difference between an answer and the truth.

    `kind` is "kind", "shape", "dtype", "nan" or "value". For "value", `got` and `want` are the numbers;
    `where` names the part of a composed answer, such as "result 2 of 3".
    """

    kind: str
    text: str
    where: str = ""
    got: np.ndarray | None = None
    want: np.ndarray | None = None

    @property
    def sentence(self) -> str:
        return f"In {self.where}: {self.text}" if self.where else self.text[:1].upper() + self.text[1:]


def kind_of(value: Any) -> str:
    """What sort of answer this is, as a key of `KINDS`, or the name of its type."""
    if value is None:
        return "nothing"
    if isinstance(value, (bool, np.bool_)):
        return "truth value"
    if isinstance(value, (int, float, np.number)):
        return "number"
    for type_, kind in (
        (str, "text"),
        (torch.Tensor, "tensor"),
        (np.ndarray, "array"),
        (list, "list"),
        (tuple, "tuple"),
        (dict, "dict"),
    ):
        if isinstance(value, type_):
            return kind
    return "function" if callable(value) else type(value).__name__


def in_words(value: Any) -> str:
    """The kind of an answer in words, such as "a torch tensor"."""
    kind = kind_of(value)
    return KINDS.get(kind, f"an object of type {kind}")


def as_numbers(value: Any) -> np.ndarray:
    """A number, tensor or array as a numpy array: of booleans if it is one, of float64 otherwise."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().resolve_conj()
        value = value if value.dtype == torch.bool or value.is_complex() else value.to(torch.float64)
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind == "c":
        raise TypeError("complex numbers are not compared")
    return array if array.dtype == bool else array.astype(np.float64)


def same_contents(before: Any, after: Any) -> bool:
    """Whether an argument still holds what it held; objects that are not data are taken to be unchanged."""
    if kind_of(before) != kind_of(after):
        return False
    if isinstance(before, (torch.Tensor, np.ndarray)):
        old, new = as_numbers(before), as_numbers(after)
        return old.shape == new.shape and bool(np.array_equal(old, new, equal_nan=old.dtype != bool))
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same_contents, before, after))
    if isinstance(before, dict):
        return list(before) == list(after) and all(same_contents(before[key], after[key]) for key in before)
    return before == after if isinstance(before, (bool, int, float, str)) and before == before else True


def compare(got: Any, want: Any, tolerance: Tolerance) -> Difference | None:
    """The first difference between `got` and `want`, or None if they agree.

    A Python number is accepted for a scalar tensor and the other way round; texts are compared without case
    and outer spaces.
    """
    return _compare(got, want, tolerance, "")


def _compare(got: Any, want: Any, tolerance: Tolerance, where: str) -> Difference | None:
    have, need = kind_of(got), kind_of(want)
    if need == "text":
        if have != "text":
            return _other_kind(got, want, where)
        same = got.strip().casefold() == want.strip().casefold()
        return None if same else Difference("value", "this is another text than the right one.", where)
    if need in ("list", "tuple"):
        return _compare_sequences(got, want, tolerance, where)
    if need == "dict":
        return _compare_dicts(got, want, tolerance, where)
    if have not in ("truth value", "number", "tensor", "array"):
        return _other_kind(got, want, where)
    return _compare_numbers(got, want, tolerance, where)


def _other_kind(got: Any, want: Any, where: str) -> Difference:
    text = f"your answer is {in_words(got)}; {in_words(want)} is wanted."
    if got is None:
        text = "nothing came back (None): is a `return` missing?"
    return Difference("kind", text, where)


def _compare_sequences(got: Any, want: Any, tolerance: Tolerance, where: str) -> Difference | None:
    if kind_of(got) not in ("list", "tuple"):
        return _other_kind(got, want, where)
    if len(got) != len(want):
        return Difference("shape", f"your answer has {len(got)} results; {len(want)} are wanted.", where)
    for position, (mine, theirs) in enumerate(zip(got, want, strict=True), start=1):
        inside = f"result {position} of {len(want)}" + (f" in {where}" if where else "")
        if difference := _compare(mine, theirs, tolerance, inside):
            return difference
    return None


def _compare_dicts(got: Any, want: Any, tolerance: Tolerance, where: str) -> Difference | None:
    if kind_of(got) != "dict":
        return _other_kind(got, want, where)
    missing = [repr(key) for key in want if key not in got]
    extra = [repr(key) for key in got if key not in want]
    if missing or extra:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"too many: {', '.join(extra)}"] * bool(
            extra
        )
        return Difference("shape", f"the keys of your dictionary differ ({'; '.join(parts)}).", where)
    for key in want:
        inside = f"the entry {key!r}" + (f" in {where}" if where else "")
        if difference := _compare(got[key], want[key], tolerance, inside):
            return difference
    return None


def _compare_numbers(got: Any, want: Any, tolerance: Tolerance, where: str) -> Difference | None:
    try:
        mine = as_numbers(got)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        dtype = f" of dtype {_dtype(got)}" * bool(_dtype(got))
        return Difference(
            "kind", f"your answer is {in_words(got)}{dtype} that cannot be read as numbers.", where
        )
    theirs = as_numbers(want)
    single = theirs.ndim == 0 and mine.ndim == 0
    if not single and kind_of(got) != kind_of(want):
        if theirs.ndim and not mine.ndim:
            return Difference(
                "shape", f"your answer is a single number; shape {_shape(theirs)} is wanted.", where
            )
        if theirs.ndim:
            return _other_kind(got, want, where)
    if mine.shape != theirs.shape:
        return Difference("shape", _shape_text(mine, theirs), where)
    if (mine.dtype == bool) != (theirs.dtype == bool):
        names = {True: "truth values (True or False)", False: "numbers"}
        text = f"your answer holds {names[mine.dtype == bool]}; {names[theirs.dtype == bool]} are wanted."
        return Difference("dtype", text, where)
    if theirs.dtype == bool:
        same = np.array_equal(mine, theirs)
        return None if same else Difference("value", "some truth values are wrong.", where, mine, theirs)
    dtype_text = _dtype_problem(got, want)
    relative = max(tolerance.relative, SINGLE_PRECISION) if dtype_text else tolerance.relative
    if np.allclose(mine, theirs, rtol=relative, atol=tolerance.absolute, equal_nan=True):
        return Difference("dtype", dtype_text, where, mine, theirs) if dtype_text else None
    if np.isnan(mine).any() and not np.isnan(theirs).any():
        count = "your answer is" if single else f"{int(np.isnan(mine).sum())} of {mine.size} numbers are"
        text = f"{count} NaN: look for 0/0, inf - inf, or a logarithm or square root of a negative number."
        return Difference("nan", text, where, mine, theirs)
    return Difference("value", "the numbers are not right yet.", where, mine, theirs)


def _shape(numbers: np.ndarray) -> str:
    return str(list(numbers.shape))


def _shape_text(got: np.ndarray, want: np.ndarray) -> str:
    if want.ndim == 0:
        return f"your answer has shape {_shape(got)}; a single number is wanted."
    text = f"your answer has shape {_shape(got)}; {_shape(want)} is wanted."
    if got.shape == want.shape[::-1]:
        return text + " Rows and columns are exchanged."
    if got.size == want.size:
        return text + " The count of numbers is right."
    return text


def _dtype(value: Any) -> str:
    """The dtype of a tensor or array, such as "float64"; '' for a Python number."""
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else ""


def _dtype_problem(got: Any, want: Any) -> str:
    """A sentence if a tensor or array of reduced precision came back where float64 is wanted, else ''."""
    have, need = _dtype(got), _dtype(want)
    if need != "float64" or have in ("", "float64"):
        return ""
    if have.startswith(("int", "uint")):
        return f"your answer holds whole numbers ({have}); float64 is wanted."
    return (
        f"the numbers agree as far as {have} can tell, but float64 is wanted: give new tensors the dtype of "
        "the argument, such as `torch.zeros(n, dtype=scores.dtype)`."
    )
