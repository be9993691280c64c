"""What an experiment is, where the experiments are found, and which code a result came from."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.shipped import data_folder

Settings = dict[str, Any]
_MODULE = re.compile(r"lesson_\d{2}$")


@dataclass(frozen=True, eq=False)
class Experiment:
    """A function, and the settings to call it with. `run(**settings)` returns what JSON can hold."""

    name: str
    run: Callable[..., dict[str, Any]]
    grid: Sequence[Settings]
    about: str = ""

    def __post_init__(self) -> None:
        keys = [key_of(settings) for settings in self.grid]
        if not keys or len(set(keys)) < len(keys):
            what = "has an empty grid" if not keys else "has the same settings twice"
            raise CourseError(
                "experiment-grid",
                f"the experiment {self.name!r} {what}.",
                where="Experiment(name, run, grid)",
                remedy="give each run settings of its own, such as a seed.",
            )

    def code(self) -> str:
        """A hash of the function, of what it uses of its own file and, if it trains them, of the pocket checkpoints.

        A run is used again only if it came from the same code. Comments and blank lines do not count.
        """
        text = _source_of(self.run)
        sums = data_folder() / "pocket" / "sha256sums.txt"
        if "pocket" in text and sums.exists():
            text += sums.read_text(encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def key_of(settings: Settings) -> str:
    """A readable name of one run's settings, the same on every machine."""
    return json.dumps(settings, sort_keys=True)


def all_experiments() -> list[Experiment]:
    """The experiments of all lessons."""
    import course_utils.experiments as package

    names = sorted(
        module.name for module in pkgutil.iter_modules(package.__path__) if _MODULE.match(module.name)
    )
    modules = [importlib.import_module(f"course_utils.experiments.{name}") for name in names]
    return [experiment for module in modules for experiment in module.EXPERIMENTS]


def find(name: str) -> Experiment:
    """An experiment by its name."""
    known = {experiment.name: experiment for experiment in all_experiments()}
    if name not in known:
        raise CourseError(
            "unknown-experiment",
            f"there is no experiment {name!r}.",
            where="experiments",
            remedy=f"use one of {', '.join(known) or '(there are none)'}.",
        )
    return known[name]


def matching(experiment: Experiment, only: Mapping[str, Any]) -> list[Settings]:
    """The settings of the grid that fit `only`: values as they are, or as they are written, {"seed": "0"}."""
    found = [
        settings
        for settings in experiment.grid
        if all(name in settings and _same(settings[name], value) for name, value in only.items())
    ]
    if not found:
        names = list(dict.fromkeys(name for settings in experiment.grid for name in settings))
        there = {
            name: list(dict.fromkeys(str(settings[name]) for settings in experiment.grid if name in settings))
            for name in names
        }
        listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in there.items())
        raise CourseError(
            "experiment-no-such-run",
            f"no run of {experiment.name!r} has {', '.join(f'{k}={v}' for k, v in only.items())}.",
            where="--only",
            remedy=f"its settings are {listed}.",
        )
    return found


def _same(value: Any, wanted: Any) -> bool:
    if value == wanted or str(value) == str(wanted):
        return True
    try:
        return bool(value == json.loads(str(wanted)))
    except ValueError:
        return False


def _source_of(function: Callable[..., Any]) -> str:
    """The source of a function and of everything in its own file that it uses, without comments and blank lines."""
    module = sys.modules[function.__module__]
    file = Path(inspect.getfile(function))
    lines = file.read_text(encoding="utf-8").splitlines()
    parts: dict[str, ast.stmt] = {}
    for node in ast.parse("\n".join(lines)).body:
        for name in _defined(node):
            parts[name] = node
    wanted, found = [function.__name__], {}
    while wanted:
        name = wanted.pop()
        node = parts.get(name)
        if node is None or name in found:
            continue
        found[name] = node
        wanted += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    text = [module.__name__]
    for node in sorted({id(node): node for node in found.values()}.values(), key=lambda node: node.lineno):
        segment = lines[node.lineno - 1 : node.end_lineno]
        text += [line.rstrip() for line in segment if line.strip() and not line.strip().startswith("#")]
    return "\n".join(text)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
