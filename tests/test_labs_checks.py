"""The checks of the exercises: each mistake is told its own name, and nothing a learner writes breaks a
check.
"""

from __future__ import annotations

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_utils.errors import CourseError
from course_utils.labs import checks, lesson_00, lesson_01
from course_utils.labs.checks import check, evaluate, mutation_table
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

ALL = [exercise for lesson in lessons_with_exercises() for exercise in exercises(lesson)]
MUTANTS = [
    pytest.param(exercise, mistake, wrong, id=f"{exercise.id}-{mistake.name.replace(' ', '-')}-{position}")
    for exercise in ALL
    for mistake in exercise.mistakes
    for position, wrong in enumerate(mistake.variants, start=1)
]
RIGHT = [
    pytest.param(exercise, right, id=f"{exercise.id}-{position}")
    for exercise in ALL
    for position, right in enumerate((exercise.truth, *exercise.also_right))
]
each_exercise = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.id)


# Every exercise of every lesson


@pytest.mark.parametrize(("exercise", "right"), RIGHT)
def test_every_right_way_to_write_the_answer_passes(exercise, right):
    result = evaluate(exercise, right)
    assert result.passed, result.text


@pytest.mark.parametrize(("exercise", "mistake", "wrong"), MUTANTS)
def test_every_listed_mistake_is_told_its_own_message(exercise, mistake, wrong):
    result = evaluate(exercise, wrong)
    assert not result.passed
    assert (result.status, result.mistake, result.message) == ("wrong", mistake.name, mistake.message)


@each_exercise
def test_an_untouched_stub_is_not_attempted_and_not_passed(exercise):
    def stub(*arguments):
        raise NotImplementedError(not_attempted(exercise.id))

    def bare_stub(*arguments):
        raise NotImplementedError

    for answer in [Ellipsis] if exercise.is_value else [Ellipsis, stub, bare_stub]:
        result = evaluate(exercise, answer)
        assert (result.status, result.passed) == ("not attempted", False)


@each_exercise
def test_an_exercise_belongs_to_its_lesson_and_knows_at_least_two_mistakes(exercise):
    assert exercise in exercises(exercise.id[:2])
    assert len(exercise.mistakes) >= 2
    assert find_exercise(exercise.id) is exercise


@each_exercise
def test_every_message_is_a_plain_sentence(exercise):
    messages = [mistake.message for mistake in exercise.mistakes]
    assert len(set(messages)) == len(messages)
    for text in [*messages, exercise.explain]:
        assert re.fullmatch(r"[A-Z`].*\.", text), text
        assert len(text.split()) >= 4, text
        assert not re.search(r"!|\bsimply\b|\bjust\b|\bobviously\b", text), text
        assert len(text) <= 260, text


@each_exercise
def test_the_cases_are_the_same_each_time(exercise):
    first, second = ([repr(case.arguments) for case in exercise.all_cases()] for _ in range(2))
    assert first == second
    assert exercise.is_value or len(first) >= 2


def test_ids_are_unique_and_the_mutation_table_has_a_row_for_every_mistake():
    assert len({exercise.id for exercise in ALL}) == len(ALL)
    rows = mutation_table()
    assert len(rows) == len(MUTANTS)
    assert len({(row["exercise"], row["mutant"]) for row in rows}) == len(rows)
    assert all(row["caught"] and row["own_message"] for row in rows)
    assert mutation_table("01") == [row for row in rows if row["exercise"].startswith("01.")]


# The truths of lessons 00 and 01, computed another way


def cases_of(truth):
    [exercise] = [exercise for exercise in ALL if exercise.truth is truth]
    return exercise.all_cases()


def test_the_truths_of_lesson_00_agree_with_sums_done_by_hand():
    policy, reference, preference = cases_of(lesson_00.win_rate)[0].arguments
    pairs = [(a, b) for a in range(3) for b in range(3)]
    by_hand = sum(float(policy[a] * reference[b] * preference[a, b]) for a, b in pairs)
    assert lesson_00.win_rate(policy, reference, preference) == pytest.approx(by_hand, rel=1e-12)
    p, q = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p), torch.distributions.Categorical(q)
    )
    torch.testing.assert_close(lesson_00.kl_divergence(p, q), expected, rtol=1e-12, atol=0)


def test_the_tilted_policy_has_the_highest_regularised_reward():
    reference, reward, beta = cases_of(lesson_00.tilt)[0].arguments
    best = lesson_00.tilt(reference, reward, beta)

    def objective(policy):
        return float(policy @ reward - beta * lesson_00.kl_divergence(policy, reference))

    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1):
        other = torch.softmax(best.log() + size * torch.randn(3, dtype=torch.float64, generator=generator), 0)
        assert objective(best) > objective(other)


def test_the_gradient_and_the_hessian_cases_of_lesson_01_agree_with_autograd():
    for case in cases_of(lesson_01.gradient):
        scores, winners, losers = case.arguments
        by_autograd = torch.func.grad(lesson_01.log_likelihood)(scores, winners, losers)
        torch.testing.assert_close(
            lesson_01.gradient(scores, winners, losers), by_autograd, rtol=1e-12, atol=1e-14
        )
    scores, winners, losers = torch.zeros(2, dtype=torch.float64), torch.tensor([0]), torch.tensor([1])
    hessian = -torch.func.hessian(lesson_01.log_likelihood)(scores, winners, losers)
    # two players, one even comparison: the difference has variance 4, each centred score a quarter of it
    torch.testing.assert_close(
        lesson_01.standard_errors(hessian), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_an_elo_update_keeps_the_mean_rating():
    for case in cases_of(lesson_01.elo_update):
        assert float(lesson_01.elo_update(*case.arguments).sum() - case.arguments[0].sum()) == pytest.approx(
            0, abs=1e-12
        )


# The framework, on exercises of its own


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * x


def scaled_cases():
    yield torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), 2.0
    yield torch.arange(1.0, 9.0, dtype=torch.float64), 0.5


SCALED = Exercise(
    id="99.1",
    title="Scaling",
    truth=scaled,
    cases=scaled_cases,
    mistakes=(
        Mistake("added", "This adds the factor.", lambda x, factor: x + factor),
        Mistake("summed", "This sums the result.", lambda x, factor: (factor * x).sum()),
    ),
)


def matrix_exercise():
    def cases():
        yield (torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64),)

    return Exercise(id="99.2", title="Matrix", truth=lambda m: m @ m, cases=cases)


def value_exercise(truth, *mistakes):
    return Exercise(id="99.3", title="A value", truth=truth, mistakes=mistakes)


def test_a_check_shows_one_line_and_returns_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr(checks, "find_exercise", lambda id: SCALED)
    result = check("99.1", scaled)
    assert result.passed and (result.exercise, result.mistake) == ("99.1", None)
    assert capsys.readouterr().out.strip() == "✓ Exercise 99.1 · Scaling: passed."


def test_an_unknown_id_is_an_error_that_lists_the_ids_of_the_lesson():
    with pytest.raises(CourseError, match=r"01\.1, 01\.2") as raised:
        check("01.77", lambda: None)
    assert raised.value.id == "unknown-exercise"
    for id in ("1", "gradient", "98.1"):
        with pytest.raises(CourseError, match="01"):
            find_exercise(id)
    assert exercises("98") == []


def test_a_recognised_mistake_is_named_even_with_another_shape_or_precision():
    assert evaluate(SCALED, lambda x, factor: x + factor).message == "This adds the factor."
    assert evaluate(SCALED, lambda x, factor: (factor * x).sum()).mistake == "summed"
    assert evaluate(SCALED, lambda x, factor: (x + factor).float()).mistake == "added"


def test_a_learner_who_changes_the_argument_spoils_no_case_and_is_told():
    def in_place(x, factor):
        x *= factor
        return x

    first, second = evaluate(SCALED, in_place), evaluate(SCALED, in_place)
    assert first == second
    assert first.status == "wrong" and "changes its argument `x` in place" in first.message
    assert evaluate(SCALED, scaled).passed


def test_a_learner_who_returns_one_buffer_for_all_cases_is_compared_case_by_case():
    buffer = torch.zeros(8, dtype=torch.float64)

    def reusing(x, factor):
        buffer[: len(x)] = factor * x
        return buffer[: len(x)]

    assert evaluate(SCALED, reusing).passed


def test_an_error_in_the_learners_code_is_shown_with_its_line():
    def broken(x, factor):
        y = x * factor
        return y[100]

    result = evaluate(SCALED, broken)
    assert (result.status, result.passed) == ("error", False)
    assert "IndexError" in result.message
    assert "In line 3 of `broken`: `return y[100]`" in result.message
    assert "x = [1, -2, 3] and factor = 2" in result.message


def test_an_error_inside_a_helper_or_a_library_names_the_learners_own_line():
    def helper(x):
        raise ValueError(f"at {0x7F3A99B0C1D0:#x}")

    def calling_helper(x, factor):
        return helper(x)

    result = evaluate(SCALED, calling_helper)
    assert "In line 2 of `helper`" in result.message
    assert "0x7f3a" not in result.message
    result = evaluate(SCALED, lambda x, factor: x @ torch.ones(50, dtype=torch.float64))
    assert result.status == "error" and "RuntimeError" in result.message and "line 1" in result.message


def test_exit_recursion_and_a_wrong_signature_do_not_escape():
    def leaves(x, factor):
        raise SystemExit(3)

    def endless(x, factor):
        return endless(x, factor)

    assert evaluate(SCALED, leaves).status == "error"
    assert "RecursionError" in evaluate(SCALED, endless).message
    result = evaluate(SCALED, lambda x: x)
    assert result.status == "error" and "`x, factor`" in result.message


def test_an_interrupt_by_the_reader_goes_through():
    def interrupted(x, factor):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(SCALED, interrupted)


def test_a_library_that_does_not_implement_something_is_an_error_and_not_an_untouched_stub():
    library = {}
    exec(compile("def f(x):\n    raise NotImplementedError", "a_library.py", "exec"), library)
    assert evaluate(SCALED, lambda x, factor: library["f"](x)).status == "error"

    def read_from_nowhere(x, factor):
        return torch.empty(3, device="meta").cpu()

    result = evaluate(SCALED, read_from_nowhere)
    assert result.status == "error" and result.message.startswith("NotImplementedError: Cannot copy")


def test_what_is_printed_is_shown_once_below_the_line(capsys):
    def chatty(x, factor):
        print("x has", len(x), "entries")
        return factor * x

    result = evaluate(SCALED, chatty)
    assert capsys.readouterr().out == ""
    assert result.passed and result.printed == "x has 3 entries"
    assert "x has 3 entries" in result.text and "x has 3 entries" in result.html

    def very_chatty(x, factor):
        print("\n".join(map(str, range(500))))
        return factor * x

    assert len(evaluate(SCALED, very_chatty).printed.splitlines()) == checks.PRINTED_LINES + 1


def test_a_check_leaves_the_random_numbers_of_the_notebook_alone():
    def noisy(x, factor):
        return factor * x + (torch.rand(1).item() + 10 * np.random.rand() + 100 * random.random())

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    first = evaluate(SCALED, noisy)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    # the notebook has drawn numbers since, and the check gives the same line all the same
    assert evaluate(SCALED, noisy) == first and not first.passed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, factor: None, "returned nothing: is the `return` missing?"),
        (lambda x, factor: [2.0], "is a list; a torch tensor is wanted"),
        (lambda x, factor: scaled, "is a function; a torch tensor is wanted"),
        (lambda x, factor: object(), "an object of type object"),
        (lambda x, factor: 1.0, "a single number; shape [3] is wanted"),
        (lambda x, factor: (factor * x).numpy(), "is a numpy array; a torch tensor is wanted"),
        (lambda x, factor: (factor * x)[:2], "has shape [2]; [3] is wanted"),
        (lambda x, factor: (factor * x)[:, None], "The count of numbers is right."),
        (lambda x, factor: factor * x > 0, "holds truth values (True or False); numbers are wanted"),
        (lambda x, factor: (factor * x).float(), "as far as float32 can tell, but float64 is wanted"),
        (lambda x, factor: factor * x / (x - x), "infinite"),
        (lambda x, factor: (factor * x).log(), "1 of 3 numbers are NaN"),
        (lambda x, factor: x * float("nan"), "3 of 3 numbers are NaN"),
        (lambda x, factor: -factor * x, "the sign is wrong"),
        (lambda x, factor: 3 * factor * x, "Every number is 3 times what it should be"),
        (lambda x, factor: factor * x + 0.25, "off by the same amount, +0.25"),
        (lambda x, factor: factor * x - x.mean(), "Within a case every number is off by one amount"),
        (lambda x, factor: factor * x / x.sum(), "Within a case every number is off by one factor"),
        (lambda x, factor: (factor * x).flip(0), "in reversed order"),
        (lambda x, factor: (factor * x).roll(1), "in another order"),
        (lambda x, factor: (factor * x).exp(), "is a logarithm missing?"),
        (lambda x, factor: (factor * x) ** 2, "is a square root missing?"),
        (lambda x, factor: 1 / (factor * x), "one divided by what is wanted"),
        (lambda x, factor: 1 - factor * x, "one minus what is wanted"),
        (lambda x, factor: torch.ones_like(x), "does it use every argument?"),
        (lambda x, factor: torch.zeros_like(x), "does it use every argument?"),
        (
            lambda x, factor: (factor * x * (1 + 1e-5)).float(),
            "as far as float32 can tell, but float64 is wanted",
        ),
        (lambda x, factor: (factor * x).long(), "holds whole numbers (int64); float64 is wanted"),
        (
            lambda x, factor: (factor * x).clamp(min=-1),
            "1 of 3 numbers are too large for x = [1, -2, 3] and factor = 2",
        ),
    ],
)
def test_an_unknown_mistake_is_described_without_giving_the_answer_away(answer, words):
    result = evaluate(SCALED, answer)
    assert (result.status, result.mistake) == ("wrong", None)
    assert words in result.message
    assert "[2, -4, 6]" not in result.message


def test_an_answer_right_in_some_cases_says_in_how_many():
    result = evaluate(SCALED, lambda x, factor: factor * x if factor > 1 else -factor * x)
    assert "1 of 2 cases are right" in result.message
    assert "In the cases that are wrong: The size is right and the sign is wrong." in result.message


def test_a_transposed_matrix_is_recognised_with_equal_and_with_exchanged_shape():
    exercise = matrix_exercise()
    assert "rows and columns exchanged" in evaluate(exercise, lambda m: (m @ m).T).message

    def cases():
        yield (torch.ones(2, 3, dtype=torch.float64),)

    wide = Exercise(id="99.2", title="Wide", truth=lambda m: 2 * m, cases=cases)
    assert "Rows and columns are exchanged." in evaluate(wide, lambda m: 2 * m.T).message


def test_a_number_is_accepted_for_a_scalar_tensor_and_the_other_way_round():
    def cases():
        yield (torch.tensor([1.0, 2.0], dtype=torch.float64),)

    tensor_truth = Exercise(id="99.4", title="Sum", truth=lambda x: x.sum(), cases=cases)
    number_truth = Exercise(id="99.4", title="Sum", truth=lambda x: float(x.sum()), cases=cases)
    for exercise in (tensor_truth, number_truth):
        for answer in (
            lambda x: x.sum(),
            lambda x: 3,
            lambda x: 3.0,
            lambda x: np.float64(3),
            lambda x: np.array(3.0),
        ):
            assert evaluate(exercise, answer).passed
        assert "[1]; a single number is wanted" in evaluate(exercise, lambda x: x.sum()[None]).message
        assert not evaluate(exercise, lambda x: True).passed


def test_answers_that_need_gradients_pass_and_keep_their_argument():
    def cases():
        yield (torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True),)

    exercise = Exercise(id="99.5", title="Square", truth=lambda x: x**2, cases=cases)
    assert evaluate(exercise, lambda x: x * x).passed
    assert evaluate(exercise, lambda x: x.detach() * x.detach()).passed


def test_tuples_dictionaries_texts_and_truth_values_are_compared_by_part():
    def cases():
        yield (torch.tensor([1.0, 4.0], dtype=torch.float64),)

    def truth(x):
        return x.sum(), {"mean": x.mean(), "name": "even"}, True, x > 2

    exercise = Exercise(id="99.6", title="Parts", truth=truth, cases=cases)

    def answer(total=None, mean=None, name=" Even", flag=True, keys=("mean", "name"), above=None):
        def function(x):
            entries = {"mean": x.mean() if mean is None else mean, "name": name, "extra": 0}
            above_ = x > 2 if above is None else above
            return [x.sum() if total is None else total, {key: entries[key] for key in keys}, flag, above_]

        return evaluate(exercise, function)

    assert answer().passed
    assert answer(total=-5.0).message.startswith("In result 1 of 4: The size is right and the sign is wrong.")
    assert answer(mean=3.0).message.startswith(
        "In the entry 'mean' in result 2 of 4: Your number is too large"
    )
    assert "another text" in answer(name="odd").message
    assert "result 3 of 4: your answer holds numbers" in answer(flag=1).message
    assert "missing: 'name'" in answer(keys=("mean",)).message
    assert "too many: 'extra'" in answer(keys=("mean", "name", "extra")).message
    assert "2 of 2 truth values are wrong" in answer(above=torch.tensor([True, False])).message
    assert "4 are wanted" in evaluate(exercise, lambda x: (x.sum(), 2)).message
    assert "a tuple is wanted" in evaluate(exercise, lambda x: x.sum()).message


def test_a_value_exercise_takes_a_value():
    half = Mistake("half", "This is half of it.", 21)
    exercise = value_exercise(42.0, half)
    assert evaluate(exercise, 42).passed and evaluate(exercise, torch.tensor(42.0)).passed
    assert evaluate(exercise, ...).status == "not attempted"
    assert evaluate(exercise, 21.0).message == half.message
    assert evaluate(exercise, -42).message == "The size is right and the sign is wrong."
    assert evaluate(exercise, 40).message == "Your number is too small for this question."
    assert "None" in evaluate(exercise, None).message
    assert evaluate(exercise, lambda: 42).status == "error"
    assert evaluate(exercise, "42").message == "Your answer is a text; a number is wanted."
    assert evaluate(value_exercise("gamma"), "Gamma ").passed
    assert not evaluate(value_exercise(True), 1).passed


def test_a_value_given_for_a_function_says_to_leave_the_parentheses_away():
    result = evaluate(SCALED, torch.ones(3))
    assert result.status == "error" and '`check("99.1", scaled)`' in result.message


def test_an_answer_that_cannot_be_compared_is_wrong_and_not_a_crash():
    class Hostile(float):
        def __float__(self):
            raise RuntimeError("no")

    for answer in (
        lambda x, factor: torch.complex(factor * x, 0 * x),
        lambda x, factor: (factor * x).to_sparse(),
        lambda x, factor: torch.empty(3, device="meta"),
        lambda x, factor: np.array(["a", "b", "c"]),
        lambda x, factor: Hostile(2),
        lambda x, factor: (value for value in x),
    ):
        result = evaluate(SCALED, answer)
        assert result.status == "wrong" and result.message
    result = evaluate(SCALED, lambda x, factor: torch.complex(factor * x, 0 * x))
    assert result.message.startswith("Your answer is a torch tensor of dtype complex128 that cannot be read")


def test_the_line_has_a_word_and_a_symbol_besides_its_colour_and_its_html_is_escaped():
    def broken(x, factor):
        raise ValueError("<script>alert(1)</script> & `code`")

    answers = {"passed": scaled, "wrong": lambda x, factor: x, "error": broken, "not attempted": ...}
    for status, answer in answers.items():
        result = evaluate(SCALED, answer)
        symbol, colour, word = checks.LOOKS[status]
        assert result.status == status
        assert result.text.startswith(symbol) and word in result.text
        assert symbol in result.html and word in result.html and colour in result.html
    result = evaluate(SCALED, broken)
    assert (
        "<script>" not in result.html
        and "&lt;script&gt;" in result.html
        and "<code>code</code>" in result.html
    )


def test_in_a_notebook_the_line_is_displayed_once_and_a_result_displays_nothing(monkeypatch):
    shown = []
    ipython = SimpleNamespace(get_ipython=lambda: object(), display=None)
    display = SimpleNamespace(display=lambda data, raw: shown.append((data, raw)))
    monkeypatch.setitem(checks.sys.modules, "IPython", ipython)
    monkeypatch.setitem(checks.sys.modules, "IPython.display", display)
    monkeypatch.setattr(checks, "find_exercise", lambda id: SCALED)
    result = check("99.1", ...)
    [(data, raw)] = shown
    assert raw and set(data) == {"text/html", "text/plain"}
    assert data["text/plain"] == "○ Exercise 99.1 · Scaling: not attempted yet."
    assert result._ipython_display_() is None and len(shown) == 1


def test_a_console_that_knows_no_symbols_still_gets_the_line(monkeypatch):
    written = []

    def ascii_print(text):
        text.encode("ascii")
        written.append(text)

    monkeypatch.setattr(checks, "print", ascii_print, raising=False)
    checks._show(evaluate(SCALED, scaled))
    assert written == ["? Exercise 99.1 ? Scaling: passed."]


def test_a_label_given_by_the_author_and_long_arguments_are_written_short():
    def cases():
        yield Case((torch.arange(50, dtype=torch.float64), 2.0), "fifty numbers")
        yield torch.arange(50, dtype=torch.float64), 3.0

    exercise = Exercise(id="99.7", title="Long", truth=scaled, cases=cases)
    assert "for fifty numbers;" in evaluate(exercise, lambda x, factor: factor * x + x**2).message
    result = evaluate(exercise, lambda x, factor: factor * x + (factor > 2) * x**2)
    assert "for x = a torch tensor of shape [50] and factor = 3;" in result.message


def test_the_tolerance_is_the_exercises_own():
    loose = Exercise(
        id="99.8", title="Loose", truth=scaled, cases=scaled_cases, tolerance=Tolerance(relative=1e-2)
    )
    almost = lambda x, factor: 1.001 * factor * x  # noqa: E731
    assert evaluate(loose, almost).passed and not evaluate(SCALED, almost).passed


def test_a_badly_defined_exercise_is_refused():
    for arguments in (
        {"id": "1.2", "truth": 1.0},
        {"id": "99.1", "truth": scaled},
        {"id": "99.1", "truth": 1.0, "cases": scaled_cases},
        {"id": "99.1", "truth": 1.0, "mistakes": (Mistake("a", "A.", 1), Mistake("a", "B.", 2))},
    ):
        with pytest.raises(CourseError) as raised:
            Exercise(title="Bad", **arguments)
        assert raised.value.id == "exercise-definition"


def test_a_mistake_that_fails_itself_matches_nobody():
    def broken(x, factor):
        raise ValueError

    exercise = Exercise(
        id="99.9",
        title="Broken",
        truth=scaled,
        cases=scaled_cases,
        mistakes=(Mistake("broken", "It breaks.", broken),),
    )
    assert evaluate(exercise, lambda x, factor: x).mistake is None
    assert evaluate(exercise, broken).status == "error"
