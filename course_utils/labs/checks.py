"""`check("01.2", my_function)`: compares an answer with the truth, and names the mistake if it knows it.

A check never raises because of what a learner wrote. It shows one line and returns a `CheckResult`. The order
of the questions: was it attempted, did it run, is it right, is it one of the mistakes we know, and otherwise:
in which way is it off?

Out of scope: a function that never returns. Interrupt the kernel; nothing else is lost.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_utils.labs import calling
from course_utils.labs.answers import Difference, compare, in_words
from course_utils.labs.diagnosis import Comparison, diagnose, first_wrong, written_out
from course_utils.labs.exercises import (
    Case,
    Exercise,
    Mistake,
    Tolerance,
    exercises,
    find_exercise,
    lessons_with_exercises,
    not_attempted,
)

__all__ = [
    "Case",
    "CheckResult",
    "Exercise",
    "Mistake",
    "Tolerance",
    "check",
    "evaluate",
    "exercises",
    "find_exercise",
    "mutation_table",
    "not_attempted",
]

# A symbol, a colour and a word each: colour is never the only cue. The colours are told apart by colour-blind
# readers.
LOOKS = {
    "passed": ("✓", "#009E73", "passed."),
    "wrong": ("✗", "#D55E00", "not right yet."),
    "error": ("✗", "#D55E00", "your code stopped."),
    "not attempted": ("○", "#767676", "not attempted yet."),
}
PRINTED_LINES = 10


@dataclass(frozen=True)
class CheckResult:
    """What a check found. `mistake` is the name of the recognised mistake, if there is one."""

    status: str
    message: str
    mistake: str | None
    exercise: str
    title: str = ""
    printed: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def text(self) -> str:
        """The line a check shows, as plain text."""
        symbol, _, word = LOOKS[self.status]
        title = f" · {self.title}" if self.title else ""
        line = " ".join(
            part for part in (f"{symbol} Exercise {self.exercise}{title}:", word, self.message) if part
        )
        return f"{line}\nYour function printed, for the first case:\n{self.printed}" if self.printed else line

    @property
    def html(self) -> str:
        """The line a check shows, with colour."""
        symbol, colour, word = LOOKS[self.status]
        title = f" · {self.title}" if self.title else ""
        head = html.escape(f"Exercise {self.exercise}{title}: {word}")
        message = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(self.message, quote=False))
        printed = ""
        if self.printed:
            lines = html.escape(self.printed, quote=False)
            printed = f"<br>Your function printed, for the first case:<pre>{lines}</pre>"
        return (
            f'<div style="border-left: 4px solid {colour}; padding: 0.2em 0.8em">'
            f'<strong style="color: {colour}">{symbol}</strong> '
            f"<strong>{head}</strong> {message}{printed}</div>"
        )

    def _ipython_display_(self) -> None:
        """Nothing: `check` has shown it already, and a result at the end of a cell would be shown twice."""


def check(id: str, answer: Any) -> CheckResult:
    """Check an answer to the exercise `id`: show one line, and return what was found."""
    result = evaluate(find_exercise(id), answer)
    _show(result)
    return result


def evaluate(exercise: Exercise, answer: Any) -> CheckResult:
    """What `check` finds, without showing it."""

    def result(status: str, message: str, mistake: str | None = None, printed: str = "") -> CheckResult:
        return CheckResult(status, message, mistake, exercise.id, exercise.title, _first_lines(printed))

    if answer is Ellipsis:
        return result("not attempted", "")
    if exercise.is_value:
        return _evaluate_value(exercise, answer, result)
    if not callable(answer):
        name = getattr(exercise.truth, "__name__", "my_function")
        return result(
            "error",
            f"The check needs the function itself and got {in_words(answer)}: "
            f'write `check("{exercise.id}", {name})`, without parentheses after the name.',
        )
    return _evaluate_function(exercise, answer, result)


def _evaluate_value(exercise: Exercise, answer: Any, result: Callable[..., CheckResult]) -> CheckResult:
    if answer is None:
        return result("wrong", "Your answer is None: put your value in its place.")
    if callable(answer):
        return result("error", "The check needs a value and got a function.")
    difference = _compare(answer, exercise.truth, exercise.tolerance)
    if difference is None:
        return result("passed", exercise.explain)
    for mistake in exercise.mistakes:
        if any(_same(answer, wrong, exercise.tolerance) for wrong in mistake.variants):
            return result("wrong", mistake.message, mistake.name)
    if difference.kind != "value" or difference.got is None:
        return result("wrong", difference.sentence)
    comparison = Comparison("this question", difference.got, difference.want)
    pattern = diagnose([comparison], exercise.tolerance)
    return result("wrong", pattern or first_wrong(comparison, exercise.tolerance))


def _evaluate_function(exercise: Exercise, answer: Any, result: Callable[..., CheckResult]) -> CheckResult:
    cases = exercise.all_cases()
    names = calling.parameter_names(exercise.truth)
    if not calling.accepts(answer, cases[0].arguments):
        return result(
            "error", f"Your function must take these arguments, in this order: `{', '.join(names)}`."
        )
    outcomes, printed = [], ""
    for case in cases:
        outcome = calling.call(answer, case.arguments, names)
        printed = printed or outcome.printed
        if outcome.error is not None:
            if calling.left_unwritten(outcome.error, answer):
                return result("not attempted", "", printed=printed)
            return result(
                "error", _error_message(outcome.error, answer, _label(case, names)), printed=printed
            )
        outcomes.append(outcome)
    answers = [outcome.value for outcome in outcomes]
    truths = _outputs(exercise.truth, cases)
    differences = [_compare(*pair, exercise.tolerance) for pair in zip(answers, truths, strict=True)]
    if all(difference is None for difference in differences):
        changed = next((name for outcome in outcomes for name in outcome.changed), None)
        if changed is None:
            return result("passed", exercise.explain, printed=printed)
        return result(
            "wrong",
            f"The numbers are right, but your function changes its argument `{changed}` in place: "
            f"work on a copy, such as `{changed}.clone()`, so that the caller keeps the old one.",
            printed=printed,
        )
    if all(value is None for value in answers):
        return result("wrong", "Your function returned nothing: is the `return` missing?", printed=printed)
    for mistake in exercise.mistakes:
        for wrong in mistake.variants:
            mistaken = _outputs(wrong, cases, or_none=True)
            if mistaken is not None and all(
                _same(mine, theirs, exercise.tolerance)
                for mine, theirs in zip(answers, mistaken, strict=True)
            ):
                return result("wrong", mistake.message, mistake.name, printed=printed)
    labels = [_label(case, names) for case in cases]
    return result("wrong", _guidance(labels, truths, differences, exercise.tolerance), printed=printed)


def _compare(got: Any, want: Any, tolerance: Tolerance) -> Difference | None:
    """`compare`, for any object a learner may return: one that cannot be compared is a difference in kind."""
    try:
        return compare(got, want, tolerance)
    except Exception:
        return Difference(
            "kind", f"your answer is {in_words(got)} that cannot be compared; {in_words(want)} is wanted."
        )


def _same(got: Any, wrong: Any, tolerance: Tolerance) -> bool:
    """Whether an answer is that of a mistake; a lower precision does not hide the mistake."""
    difference = _compare(got, wrong, tolerance)
    return difference is None or (difference.kind == "dtype" and difference.got is not None)


def _outputs(function: Callable[..., Any], cases: list[Case], *, or_none: bool = False) -> list[Any] | None:
    """What one of the course's own functions gives for every case; None if it fails and `or_none`."""
    values = []
    for case in cases:
        outcome = calling.call(function, case.arguments)
        if outcome.error is not None:
            if or_none:
                return None
            raise outcome.error
        values.append(outcome.value)
    return values


def _guidance(
    labels: list[str], truths: list[Any], differences: list[Difference | None], tolerance: Tolerance
) -> str:
    """What is off in an answer that is none of the known mistakes."""
    first = next(position for position, difference in enumerate(differences) if difference is not None)
    difference = differences[first]
    if difference.kind != "value" or difference.got is None:
        return f"{difference.sentence} Seen for {labels[first]}."
    of = f"In {difference.where}: " if difference.where else ""
    wrong = [(label, one) for label, one in zip(labels, differences, strict=True) if one is not None]
    comparisons = [
        Comparison(label, one.got, one.want)
        for label, one in wrong
        if one.kind == "value" and one.got is not None and one.where == difference.where
    ]
    pattern = diagnose(comparisons, tolerance) if len(comparisons) == len(wrong) else ""
    right = len(truths) - len(wrong)
    count = f" {right} of {len(truths)} cases are right." if right else ""
    if pattern:
        only = "In the cases that are wrong: " if right else ""
        return f"{only}{of}{pattern} Seen for {labels[first]}.{count}"
    return f"{of}{first_wrong(comparisons[0], tolerance)}{count}"


def _label(case: Case, names: list[str]) -> str:
    if case.label:
        return case.label
    named = (
        names
        if len(names) == len(case.arguments)
        else [f"argument {k + 1}" for k in range(len(case.arguments))]
    )
    parts = [f"{name} = {written_out(value)}" for name, value in zip(named, case.arguments, strict=True)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _error_message(error: BaseException, answer: Any, label: str) -> str:
    name, number, line = calling.line_in_answer(error, answer)
    at = f" In line {number} of `{name}`" + (f": `{line}`" if line else "") + "." if name else ""
    return f"{calling.error_text(error).rstrip('.')}.{at} Seen for {label}."


def _first_lines(printed: str) -> str:
    lines = printed.rstrip().splitlines()
    return "\n".join([*lines[:PRINTED_LINES], "…"] if len(lines) > PRINTED_LINES else lines)


def _show(result: CheckResult) -> None:
    """Show the line: rich in a notebook, printed elsewhere."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display({"text/html": result.html, "text/plain": result.text}, raw=True)
            return
    try:
        print(result.text)
    except UnicodeEncodeError:  # a Windows console may know no ✓
        print(result.text.encode("ascii", "replace").decode())


def mutation_table(lesson: str | int | None = None) -> list[dict[str, Any]]:
    """Every known mistake handed to its own check, for one lesson or for all.

    One row each: `exercise`, `mutant`, `caught` (the check does not pass it), `own_message` (it is told its
    own mistake).
    """
    rows = []
    for number in lessons_with_exercises() if lesson is None else [lesson]:
        for exercise in exercises(number):
            for mistake in exercise.mistakes:
                for position, wrong in enumerate(mistake.variants, start=1):
                    result = evaluate(exercise, wrong)
                    rows.append(
                        {
                            "exercise": exercise.id,
                            "mutant": mistake.name + (f" ({position})" if position > 1 else ""),
                            "caught": not result.passed,
                            "own_message": (result.mistake, result.message)
                            == (mistake.name, mistake.message),
                        }
                    )
    return rows
