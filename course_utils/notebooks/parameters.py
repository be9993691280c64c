"""Parameters of a lesson: the names in its cell tagged `parameters`, and the values given with `-p
name=value`.

A value takes the type of the lesson's default, so that `-p seeds=3` and `-p alpha=1` do what they seem to
say.
"""

from __future__ import annotations

import ast
from typing import Any

from course_utils.errors import CourseError

TYPES = (bool, int, float, str, list, type(None))


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """`["seeds=3", "name=dpo"]` as a dict of typed values: int, float, bool, None, list, otherwise str."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise CourseError(
                "parameter-syntax",
                f"{pair!r} is not a parameter.",
                where="-p",
                remedy="write -p name=value, for instance -p seeds=3 or -p 'alphas=[0.1, 0.5]'.",
            )
        values[name] = _value(text.strip())
    return values


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, tuple):
        value = list(value)
    return value if isinstance(value, TYPES) else text


def declared_parameters(notebook: Any) -> dict[str, Any]:
    """The parameters a notebook has, with their defaults (`...` where the default is not a plain value)."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            for statement in ast.parse(cell.source).body:
                if isinstance(statement, ast.Assign):
                    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
                elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    names = [statement.target.id]
                else:
                    continue
                try:
                    default = ast.literal_eval(statement.value) if statement.value is not None else ...
                except ValueError:
                    default = ...
                found.update(dict.fromkeys(names, default))
    return found


def fit_parameters(given: dict[str, Any], declared: dict[str, Any], lesson: str) -> dict[str, Any]:
    """The given values, in the types of the declared ones; an unknown name or another type is refused."""
    fitted: dict[str, Any] = {}
    for name, value in given.items():
        if name not in declared:
            known = ", ".join(f"{key}={default!r}" for key, default in declared.items() if default is not ...)
            rest = ", ".join(key for key, default in declared.items() if default is ...)
            listing = ", ".join(part for part in (known, rest) if part)
            raise CourseError(
                "unknown-parameter",
                f"This lesson has no parameter {name!r}.",
                where=lesson,
                remedy=f"its parameters, with their defaults, are: {listing}."
                if listing
                else "it has no parameters.",
            )
        fitted[name] = _as_default(name, value, declared[name], lesson)
    return fitted


def _as_default(name: str, value: Any, default: Any, lesson: str) -> Any:
    if default is ... or default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, str):
        return str(value)
    if isinstance(default, (list, tuple)):
        return list(value) if isinstance(value, (list, tuple)) else [value]
    raise CourseError(
        "parameter-type",
        f"The parameter {name!r} is of type {type(default).__name__} (default {default!r}); "
        f"{value!r} is of type {type(value).__name__}.",
        where=lesson,
        remedy=f"give a value like the default, for instance -p {name}={default}.",
    )
