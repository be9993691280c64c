"""Running a learner's function without letting it disturb anything.

The function gets copies of its arguments, so a case cannot be spoilt for the next one. What it prints is
kept, not shown in the middle of the check. Random numbers are drawn from a fixed seed, and the notebook's own
random state is put back afterwards. An error becomes part of the outcome. What this cannot do is stop a
function that never returns: interrupt the kernel for that.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import linecache
import random
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_utils.labs.answers import same_contents


@dataclass(frozen=True)
class Outcome:
    """What came of one call: a value or an error, what was printed, and which arguments were changed in
    place.
    """

    value: Any = None
    error: BaseException | None = None
    printed: str = ""
    changed: tuple[str, ...] = ()


def copied(value: Any) -> Any:
    """A copy that shares no memory with `value`; what cannot be copied is returned as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad and value.is_floating_point())
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


@contextlib.contextmanager
def _undisturbed() -> Iterator[io.StringIO]:
    """Fixed random seeds and captured printing inside; the notebook's own random state afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    printed = io.StringIO()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield printed
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def call(function: Callable[..., Any], arguments: tuple[Any, ...], names: list[str] | None = None) -> Outcome:
    """Call `function` on copies of `arguments`. `names` are the arguments' names, to say which one was
    changed.
    """
    given = copied(arguments)
    with _undisturbed() as printed:
        try:
            value = copied(function(*given))
        # SystemExit: a stray exit() must not end the kernel. An interrupt by the reader goes through.
        except (Exception, SystemExit) as error:
            return Outcome(error=error, printed=printed.getvalue())
    names = names or [f"number {position}" for position in range(1, len(given) + 1)]
    changed = tuple(
        name
        for name, before, after in zip(names, arguments, given, strict=False)
        if not same_contents(before, after)
    )
    return Outcome(value=value, printed=printed.getvalue(), changed=changed)


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters, or none where Python cannot say."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def accepts(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether the function can be called with this many arguments by position (True where Python cannot
    say).
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def error_text(error: BaseException) -> str:
    """The type and the first line of an error, without memory addresses: outputs of a notebook are
    compared.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"0x[0-9a-fA-F]{4,}", "0x…", lines[0]) if lines else ""
    text = text if len(text) <= 300 else text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _file_of(function: Callable[..., Any]) -> str:
    """The file or the notebook cell that a function was written in; '' for what was not written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_filename if code is not None else ""


def line_in_answer(error: BaseException, function: Callable[..., Any]) -> tuple[str, int, str]:
    """Where in the learner's code an error arose: function, line counted from its `def`, the line itself.

    The name is empty if no line of the learner's own file was running.
    """
    found = ("", 0, "")
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == _file_of(function):
            line = linecache.getline(frame.f_code.co_filename, number).strip()
            found = (frame.f_code.co_name, number - frame.f_code.co_firstlineno + 1, line)
    return found


def left_unwritten(error: BaseException, function: Callable[..., Any]) -> bool:
    """Whether the error is the stub's own NotImplementedError, and not one that something it calls raised."""
    if not isinstance(error, NotImplementedError):
        return False
    frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
    line = linecache.getline(frame.f_code.co_filename, number)
    return frame.f_code.co_filename == _file_of(function) and (not line or "NotImplementedError" in line)
