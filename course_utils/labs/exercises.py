"""What an exercise is: a truth, cases to try it on, and the mistakes that people make.

The exercises of lesson NN are the tuple `EXERCISES` in `course_utils/labs/lesson_NN.py`, loaded when one of
them is asked for. Every mistake comes with a wrong implementation. That serves twice: a learner whose numbers
equal those of a mistake is told which mistake it is, and a test feeds every mistake to its own check and
expects exactly that message.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError

EXERCISE_ID = re.compile(r"(\d{2})\.(\d{1,2})")


@dataclass(frozen=True)
class Tolerance:
    """Two numbers agree when they differ by at most `absolute + relative * |truth|`."""

    relative: float = 1e-6
    absolute: float = 1e-9


@dataclass(frozen=True)
class Case:
    """One tuple of arguments. Without a label, the arguments themselves are written out."""

    arguments: tuple[Any, ...]
    label: str = ""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and what to tell them.

    `wrong` is the wrong function (or the wrong value); `also_wrong` holds other ways to write the same
    mistake.
    """

    name: str
    message: str
    wrong: Any
    also_wrong: tuple[Any, ...] = ()

    @property
    def variants(self) -> tuple[Any, ...]:
        return (self.wrong, *self.also_wrong)


@dataclass(frozen=True)
class Exercise:
    """An exercise with a check.

    `truth` is the right function, and `cases` a function that gives the same cases each time it is called.
    Without `cases` the answer is a value and `truth` is that value. `also_right` holds other right ways to
    write the function: they must pass. `explain` is shown when the answer passes: one sentence on what the
    reader now has.
    """

    id: str
    title: str
    truth: Any
    cases: Callable[[], Iterable[Case | tuple[Any, ...]]] | None = None
    mistakes: tuple[Mistake, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)
    explain: str = ""
    also_right: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        names = [mistake.name for mistake in self.mistakes]
        problem = ""
        if not EXERCISE_ID.fullmatch(self.id):
            problem = f"the id {self.id!r} is not of the form '01.2'"
        elif self.is_value == callable(self.truth):
            problem = "a truth that is a function needs `cases`, and one that is a value has none"
        elif len(set(names)) < len(names):
            problem = f"two mistakes have one name: {', '.join(names)}"
        if problem:
            raise CourseError(
                "exercise-definition",
                f"Exercise {self.id!r} is not well defined: {problem}.",
                where=f"Exercise {self.id!r}",
                remedy="correct the definition in course_utils/labs/lesson_NN.py.",
            )

    @property
    def is_value(self) -> bool:
        """Whether the answer is a value rather than a function."""
        return self.cases is None

    def all_cases(self) -> list[Case]:
        """The cases, each as a `Case`."""
        given = [] if self.cases is None else list(self.cases())
        return [case if isinstance(case, Case) else Case(tuple(case)) for case in given]


def not_attempted(id: str) -> str:
    """The message of an untouched stub."""
    return f"Exercise {id} is yours to write: replace this line."


def lessons_with_exercises() -> list[str]:
    """The numbers, such as "01", of the lessons that have checks."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(match[1] for name in names if (match := re.fullmatch(r"lesson_(\d{2})", name)))


def exercises(lesson: str | int) -> list[Exercise]:
    """The exercises of a lesson that have a check, in order; none if the lesson has no module of checks."""
    number = f"{int(lesson):02d}"
    if number not in lessons_with_exercises():
        return []
    return list(importlib.import_module(f"course_utils.labs.lesson_{number}").EXERCISES)


def find_exercise(id: str) -> Exercise:
    """The exercise with this id."""
    match = EXERCISE_ID.fullmatch(str(id))
    known = exercises(match[1]) if match else []
    for exercise in known:
        if exercise.id == id:
            return exercise
    if known:
        remedy = f"lesson {match[1]} has {', '.join(exercise.id for exercise in known)}."
    else:
        remedy = f"an id is written like '01.2'; lessons with checks: {', '.join(lessons_with_exercises())}."
    raise CourseError(
        "unknown-exercise", f"There is no exercise {id!r}.", where=f"check({id!r}, ...)", remedy=remedy
    )
