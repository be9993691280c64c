"""The versions of a lesson: what each shows of an exercise, what an author is told, and what a build never
overwrites.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from course_utils.errors import CourseError
from course_utils.labs.build import MANIFEST, build_labs, notebook_bytes, write_labs
from course_utils.labs.exercise_cells import read_exercises
from course_utils.labs.exercises import find_exercise, not_attempted
from course_utils.labs.trio import VERSIONS, render_exercises

SOURCE = '''# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Bradley–Terry", world: finite, gpu: none}
# ---

# %% [markdown]
# # 01 · Bradley–Terry
# The promise.

# %%
import torch

from course_utils.labs.checks import check

# %% [markdown] exercise="01.4" part="task" stars=2 minutes=10
# ### Elo is one gradient step
# Write one online step. The ratings that come in stay as they are.
#
# A second paragraph.

# %% exercise="01.4" part="stub"
def elo_update(ratings: torch.Tensor, winner: int, loser: int, step: float = 0.1) -> torch.Tensor:
    """The ratings after one game."""
    raise NotImplementedError            # the build puts the kind message here

# %% exercise="01.4" part="check" tags=["keep"]
check("01.4", elo_update)

# %% [markdown] exercise="01.4" part="hints"
# 1. What is the gradient of one log-probability?
# 2. Use the surprise:
#    ```python
#    surprise = 1 - p
#    ```
# 3. Clone first.
#    - and add to two entries.

# %% exercise="01.4" part="solution"
def elo_update(ratings, winner: int, loser, step=0.1):
    surprise = torch.sigmoid(ratings[loser] - ratings[winner])
    updated = ratings.clone()
    updated[winner] += step * surprise
    updated[loser] -= step * surprise
    return updated

check("01.4", elo_update)

# %% [markdown]
# Text between two exercises.

# %% [markdown] exercise="01.6" part="task" stars=3 minutes=1 open=true
# ### Design a crowd
# Invent a crowd that no score can fit.

# %% [markdown] exercise="01.6" part="hints"
# 1. Think of rock, paper, scissors.
# 2. Mix two groups.
# 3. Look at the cycle.

# %% [markdown] exercise="01.6" part="solution"
# A cycle, and the share of comparisons that the best score gets wrong.

# %% [markdown]
# ## Next
'''


def source(change=None, wanted=None) -> nbformat.NotebookNode:
    """The source above, with a piece of text replaced."""
    text = SOURCE
    if change is not None:
        assert change in text, change
        text = text.replace(change, wanted)
    return jupytext.reads(text, fmt="py:percent")


def cell(notebook, id, part):
    found = [
        one
        for one in notebook.cells
        if (one.metadata.get("exercise"), one.metadata.get("part")) == (id, part)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def refused(error, change, wanted="", **options) -> str:
    with pytest.raises(CourseError) as raised:
        render_exercises(source(change, wanted), "reading", **options)
    assert raised.value.id == error
    assert raised.value.remedy
    return raised.value.what


# What each version shows


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_keeps_the_other_cells_and_leaves_the_source_alone(version):
    notebook = source()
    before = copy.deepcopy(notebook)
    rendered = render_exercises(notebook, version)
    assert notebook == before
    others = [one.source for one in notebook.cells if "exercise" not in one.metadata]
    assert [one.source for one in rendered.cells if "exercise" not in one.metadata] == others
    rendered.nbformat_minor = 5
    nbformat.validate(rendered)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_opens_with_its_id_stars_and_minutes(version):
    rendered = render_exercises(source(), version)
    assert cell(rendered, "01.4", "task").source == (
        "### Exercise 01.4 · Elo is one gradient step\n\n★★☆ · about 10 minutes\n\n"
        "Write one online step. The ratings that come in stay as they are.\n\nA second paragraph."
    )
    assert "\n\n★★★ · about 1 minute · open-ended\n\n" in cell(rendered, "01.6", "task").source


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stub_raises_the_kind_message_when_it_is_called(version):
    stub = cell(render_exercises(source(), version), "01.4", "stub").source
    assert stub.endswith(
        '\n    raise NotImplementedError("Exercise 01.4 is yours to write: replace this line.")'
    )
    names = {"torch": __import__("torch")}
    exec(stub, names)
    with pytest.raises(NotImplementedError, match=re.escape(not_attempted("01.4"))):
        names["elo_update"](None, 0, 1)


def test_a_stub_with_a_scaffold_two_functions_or_one_line_keeps_everything_else():
    notebook = source(
        "    raise NotImplementedError            # the build puts the kind message here",
        "    mean = ratings.mean()  # ü\n    raise NotImplementedError(\n        'x'\n    )\n\n"
        "def helper(n: int) -> int:\n    return n\n\n"
        "def second(n: int) -> int: raise NotImplementedError()",
    )
    solution = next(one for one in notebook.cells if one.metadata.get("part") == "solution")
    solution.source = "def second(n): return n\n\n" + solution.source
    stub = cell(render_exercises(notebook, "reading"), "01.4", "stub").source
    kind = f'raise NotImplementedError("{not_attempted("01.4")}")'
    assert stub.endswith(
        f"    mean = ratings.mean()  # ü\n    {kind}\n\ndef helper(n: int) -> int:\n    return n\n\n"
        f"def second(n: int) -> int: {kind}"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_each_hint_is_folded_by_itself(version):
    hints = cell(render_exercises(source(), version), "01.4", "hints").source
    folds = re.findall(r"<details>\n<summary>(.*?)</summary>\n\n(.*?)\n\n</details>", hints, flags=re.DOTALL)
    assert folds == [
        ("Hint 1", "What is the gradient of one log-probability?"),
        ("Hint 2", "Use the surprise:\n```python\nsurprise = 1 - p\n```"),
        ("Hint 3", "Clone first.\n- and add to two entries."),
    ]


def test_the_reading_version_folds_a_solution_in_jupyter_colab_and_the_book():
    rendered = render_exercises(source(), "reading")
    solution = cell(rendered, "01.4", "solution")
    assert solution.source.startswith("# @title Solution 01.4 (folded: try first)\ndef elo_update(")
    assert solution.metadata == {
        "exercise": "01.4",
        "part": "solution",
        "jupyter": {"source_hidden": True},
        "cellView": "form",
        "tags": ["hide-input"],
    }
    assert cell(rendered, "01.6", "solution").source == (
        "<details>\n<summary>What a good answer contains</summary>\n\n"
        "A cycle, and the share of comparisons that the best score gets wrong.\n\n</details>"
    )


def test_the_student_version_has_no_solution_and_a_place_for_an_open_answer():
    rendered = render_exercises(source(), "student")
    assert cell(rendered, "01.4", "solution") is None and cell(rendered, "01.6", "solution") is None
    text = "\n".join(one.source for one in rendered.cells)
    assert "surprise = torch.sigmoid" not in text and "best score gets wrong" not in text
    answer = cell(rendered, "01.6", "answer")
    assert answer.cell_type == "markdown" and "01.6" in answer.source
    assert cell(rendered, "01.4", "answer") is None
    parts = [one.metadata["part"] for one in rendered.cells if "part" in one.metadata]
    assert parts == ["task", "stub", "check", "hints", "task", "hints", "answer"]


def test_the_instructor_version_has_open_solutions_and_every_recognised_mistake():
    rendered = render_exercises(source(), "instructor")
    solution = cell(rendered, "01.4", "solution")
    assert solution.source.startswith("# Solution 01.4\ndef elo_update(")
    assert solution.metadata == {"exercise": "01.4", "part": "solution"}
    assert cell(rendered, "01.6", "solution").source.startswith("**What a good answer contains**\n\nA cycle")
    notes = cell(rendered, "01.4", "mistakes").source
    for mistake in find_exercise("01.4").mistakes:
        assert f"- *{mistake.name}*: {mistake.message}" in notes
    assert cell(rendered, "01.6", "mistakes") is None


def test_metadata_that_only_the_source_needs_is_left_out():
    for version in VERSIONS:
        rendered = render_exercises(source(), version)
        for one in rendered.cells:
            assert (
                not {"stars", "minutes", "open", "lines_to_next_cell"} & set(one.metadata)
                or "exercise" not in one.metadata
            )
        assert cell(rendered, "01.4", "check").metadata == {
            "exercise": "01.4",
            "part": "check",
            "tags": ["keep"],
        }


def test_an_answer_that_is_a_value_keeps_its_ellipsis():
    start, end = (
        SOURCE.index("def elo_update(ratings: torch"),
        SOURCE.index('# %% exercise="01.4" part="check"'),
    )
    text = SOURCE[:start] + "answer_01_4: float = ...\n\n" + SOURCE[end:]
    start, end = (
        text.index("def elo_update(ratings, "),
        text.index('check("01.4", elo_update)\n\n# %% [markdown]\n'),
    )
    text = (text[:start] + "answer_01_4 = 4.0\n" + text[end:]).replace("elo_update)", "answer_01_4)")
    rendered = render_exercises(jupytext.reads(text, fmt="py:percent"), "reading")
    assert cell(rendered, "01.4", "stub").source == "answer_01_4: float = ..."
    with pytest.raises(CourseError, match="gives `answer_01_4` no value"):
        changed = text.replace("answer_01_4 = 4.0", "other = 4.0")
        render_exercises(jupytext.reads(changed, fmt="py:percent"), "reading")


def test_header_values_may_arrive_as_texts_or_numbers():
    notebook = source()
    cell(notebook, "01.4", "task").metadata.update(stars="2", minutes="10", open="False")
    cell(notebook, "01.6", "task").metadata.update(stars="3", open=1)
    first, second = read_exercises(notebook)
    assert (first.stars, first.minutes, first.open) == (2, 10, False)
    assert (second.id, second.title, second.open) == ("01.6", "Design a crowd", True)


# What an author is told


def test_a_missing_part_is_named():
    for part, words in (("hints", "lacks: hints"), ("task", "has no task")):
        notebook = source()
        notebook.cells.remove(cell(notebook, "01.4", part))
        with pytest.raises(CourseError, match=words) as raised:
            render_exercises(notebook, "student")
        assert raised.value.id == "exercise-part" and "01.4" in raised.value.what
    assert "is open and has: stub, check" in refused("exercise-part", "minutes=10", "minutes=10 open=true")
    assert "part='stubb'" in refused("exercise-part", 'part="stub"', 'part="stubb"')


def test_parts_in_another_order_or_of_another_kind_are_refused():
    notebook = source()
    stub, check = notebook.cells.index(cell(notebook, "01.4", "stub")), cell(notebook, "01.4", "check")
    notebook.cells.remove(check)
    notebook.cells.insert(stub, check)
    with pytest.raises(CourseError, match="in the order task, check, stub"):
        render_exercises(notebook, "reading")
    what = refused(
        "exercise-part", '# %% [markdown] exercise="01.6" part="hints"', '# %% exercise="01.6" part="hints"'
    )
    assert "hints that is not a markdown cell" in what


def test_fewer_or_more_than_three_hints_are_refused():
    assert "2 hints" in refused("exercise-hints", "# 3. Look at the cycle.")
    assert "4 hints" in refused("exercise-hints", "# 3. Look at the cycle.", "# 3. Look.\n# 4. Look again.")
    assert "0 hints" in refused("exercise-hints", "# 1. Think of rock", "# Think of rock")
    assert "3 hints" in refused("exercise-hints", "# 2. Mix two groups.", "# 2. ")


def test_a_duplicate_id_and_an_id_of_another_lesson_are_refused():
    assert "two cells with part='task'" in refused("exercise-duplicate", "01.6", "01.4")
    assert "stands in lesson 01" in refused("exercise-id", "01.6", "02.6")
    assert "stands in lesson 07" in refused("exercise-id", "minutes=10", "minutes=10", lesson="07")
    assert "'1.6' is not an id" in refused("exercise-id", "01.6", "1.6")
    with pytest.raises(CourseError, match="'' is not an id"):
        notebook = source()
        del cell(notebook, "01.4", "stub").metadata["exercise"]
        render_exercises(notebook, "reading")


def test_a_stub_without_types_is_refused():
    assert "types for step" in refused("exercise-stub", "step: float = 0.1", "step=0.1")
    assert "types for the result" in refused("exercise-stub", " -> torch.Tensor:", ":")


def test_a_stub_that_leaves_nothing_to_write_or_gives_nothing_is_refused():
    kind = "raise NotImplementedError            # the build puts the kind message here"
    assert "leaves nothing to write" in refused("exercise-stub", kind, "return ratings")
    assert "`elo_update` that runs and gives nothing" in refused("exercise-stub", kind, "...")
    assert "runs and gives nothing" in refused("exercise-stub", kind, "pass")
    assert "leaves nothing to write" in refused("exercise-stub", kind, "raise ValueError")


@pytest.mark.parametrize(
    "signature",
    [
        "elo_update(ratings, winner: int, loser)",
        "elo_update(ratings, winner: int, loser, step)",
        "elo_update(ratings, winner: int, loser, step=0.2)",
        "elo_update(ratings, loser, winner, step=0.1)",
        "elo_update(ratings, winner: float, loser, step=0.1)",
        "elo_update(ratings, winner, loser, *, step=0.1)",
        "elo_update(ratings, winner, loser, step=0.1, **more)",
        "elo_update(ratings, winner, loser, step=0.1) -> float",
    ],
)
def test_a_solution_with_another_signature_is_refused(signature):
    what = refused("exercise-solution", "elo_update(ratings, winner: int, loser, step=0.1)", signature)
    assert "has a solution with `def elo_update(" in what


def test_a_solution_of_another_name_is_refused():
    what = refused("exercise-solution", "def elo_update(ratings, winner", "def elo(ratings, winner")
    assert "does not define `elo_update`" in what


def test_a_check_of_another_exercise_of_another_function_or_of_nothing_is_refused():
    stub = '# %% exercise="01.4" part="check" tags=["keep"]\n'
    for cell_text, words in (
        ('check("01.3", elo_update)', "calls `check('01.3', elo_update)`"),
        ('check("01.4", other)', "checks something else"),
        ('check("01.4")', "calls `check('01.4')`"),
        ('print("01.4", elo_update)', "calls no check"),
    ):
        assert words in refused("exercise-check", stub + 'check("01.4", elo_update)', stub + cell_text)
    solution = "    return updated\n\n"
    what = refused("exercise-check", solution + 'check("01.4", elo_update)', solution)
    assert "solution that calls no check" in what


def test_code_that_is_not_python_is_refused_with_its_line():
    assert "has a solution that is not Python" in refused(
        "exercise-syntax", "    updated = ratings.clone()", "    %time x"
    )
    assert "in line 3" in refused("exercise-syntax", "    updated = ratings.clone()", "    updated = = 1")


def test_a_task_needs_a_title_a_text_stars_and_minutes():
    assert "without a title" in refused("exercise-header", "# ### Design a crowd", "# Design a crowd")
    assert "without a text" in refused("exercise-header", "# Invent a crowd that no score can fit.\n")
    assert "does not say stars" in refused("exercise-header", "stars=2 ", "")
    assert "has stars=4" in refused("exercise-header", "stars=2", "stars=4")
    assert "has minutes=ten" in refused("exercise-header", "minutes=10", 'minutes="ten"')
    assert "has open='maybe'" in refused("exercise-header", "open=true", 'open="maybe"')


def test_an_unknown_version_and_an_exercise_without_a_check_are_refused():
    with pytest.raises(CourseError) as raised:
        render_exercises(source(), "teacher")
    assert raised.value.id == "unknown-version"
    with pytest.raises(CourseError) as raised:
        render_exercises(source("01.4", "01.44"), "instructor")
    assert raised.value.id == "unknown-exercise"


# What a build writes, and never overwrites


def rendered_set():
    return {
        f"{version}/01_bt.ipynb": render_exercises(source(), version) for version in ("student", "instructor")
    }


def test_a_build_writes_both_versions_and_the_same_bytes_each_time(tmp_path):
    paths = write_labs(tmp_path / "labs", rendered_set())
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "labs/student/01_bt.ipynb",
        "labs/instructor/01_bt.ipynb",
    ]
    first = {path: path.read_bytes() for path in [*paths, tmp_path / "labs" / MANIFEST]}
    assert write_labs(tmp_path / "labs", rendered_set()) == paths
    assert {path: path.read_bytes() for path in first} == first
    assert set(json.loads(first[tmp_path / "labs" / MANIFEST])["files"]) == {
        "student/01_bt.ipynb",
        "instructor/01_bt.ipynb",
    }
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        ids = [one.id for one in notebook.cells]
        assert len(set(ids)) == len(ids) and "exercise-01-4-stub" in ids


def test_outputs_and_widget_state_are_not_written():
    notebook = render_exercises(source(), "student")
    notebook.metadata["widgets"] = {"state": {}}
    code = next(one for one in notebook.cells if one.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("stream", text="secret")]
    code.execution_count = 7
    written = notebook_bytes(notebook)
    assert b"secret" not in written and b"widgets" not in written and b'"execution_count": 7' not in written
    assert code.execution_count == 7


def test_a_file_that_a_person_changed_is_named_and_nothing_is_overwritten(tmp_path):
    student, instructor = write_labs(tmp_path, rendered_set())
    mine = student.read_text(encoding="utf-8") + " "
    student.write_text(mine, encoding="utf-8")
    instructor.unlink()
    with pytest.raises(CourseError, match=r"student/01_bt\.ipynb") as raised:
        write_labs(tmp_path, rendered_set())
    assert raised.value.id == "labs-changed"
    assert student.read_text(encoding="utf-8") == mine and not instructor.exists()
    student.unlink()
    write_labs(tmp_path, rendered_set())
    assert student.exists() and instructor.exists()


def test_a_changed_file_that_holds_what_would_be_written_is_no_conflict(tmp_path):
    student, _ = write_labs(tmp_path, rendered_set())
    notebooks = rendered_set()
    notebooks["student/01_bt.ipynb"].cells[0].source = "# 01 · New"
    student.write_bytes(notebook_bytes(notebooks["student/01_bt.ipynb"]))
    write_labs(tmp_path, notebooks)
    assert "01 · New" in student.read_text(encoding="utf-8")


def test_a_new_version_of_a_lesson_replaces_what_an_earlier_build_made(tmp_path):
    write_labs(tmp_path, rendered_set())
    notebooks = rendered_set()
    notebooks["student/01_bt.ipynb"].cells[0].source = "# 01 · New"
    student = write_labs(tmp_path, notebooks)[0]
    assert "01 · New" in student.read_text(encoding="utf-8")
    extra = {"student/02_x.ipynb": rendered_set()["student/01_bt.ipynb"]}
    write_labs(tmp_path, extra)
    write_labs(tmp_path, notebooks)
    assert len(json.loads((tmp_path / MANIFEST).read_text())["files"]) == 3


def test_a_directory_with_other_files_is_refused_and_what_jupyter_leaves_behind_is_not(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CourseError, match=r"thesis\.tex") as raised:
        write_labs(tmp_path, rendered_set())
    assert raised.value.id == "labs-directory" and not (tmp_path / "student").exists()
    (tmp_path / "thesis.tex").unlink()
    write_labs(tmp_path, rendered_set())
    checkpoint = tmp_path / "student" / ".ipynb_checkpoints" / "01_bt-checkpoint.ipynb"
    checkpoint.parent.mkdir()
    checkpoint.write_text("{}")
    write_labs(tmp_path, rendered_set())
    (tmp_path / "student" / "notes.md").write_text("mine")
    with pytest.raises(CourseError, match=r"student/notes\.md"):
        write_labs(tmp_path, rendered_set())
    with pytest.raises(CourseError, match="not a directory"):
        write_labs(tmp_path / "student" / "notes.md", rendered_set())


def test_an_unreadable_manifest_stops_the_build(tmp_path):
    for text in ("{", "[]", '{"files": 3}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(CourseError) as raised:
            write_labs(tmp_path, rendered_set())
        assert raised.value.id == "labs-manifest"
        assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST]


def test_an_interrupted_build_still_knows_what_it_wrote(tmp_path, monkeypatch):
    real = Path.write_bytes

    def failing(path, content):
        if path.parent.name == "instructor":
            raise OSError("disk full")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="disk full"):
        write_labs(tmp_path, rendered_set())
    monkeypatch.undo()
    assert len(write_labs(tmp_path, rendered_set())) == 2


def test_build_labs_builds_the_chosen_lessons_of_a_course(tmp_path):
    root = tmp_path / "course"
    (root / "notebooks" / "src").mkdir(parents=True)
    (root / "pyproject.toml").write_text(
        '[tool.course]\nrepository = "some/where"\nbranch = "main"\n'
        "lesson_seconds = 90\nlesson_memory_mb = 1200\n"
    )
    for name in ("01_bradley_terry", "02_other"):
        text = SOURCE if name.startswith("01") else SOURCE.replace("01.", "02.").replace("# 01 ", "# 02 ")
        (root / "notebooks" / "src" / f"{name}.py").write_text(text, encoding="utf-8")
    paths = build_labs(root, tmp_path / "labs", lessons=[1])
    assert [path.relative_to(tmp_path / "labs").as_posix() for path in paths] == [
        "student/01_bradley_terry.ipynb",
        "instructor/01_bradley_terry.ipynb",
    ]
    assert "some/where" in paths[0].read_text(encoding="utf-8")
    with pytest.raises(CourseError) as raised:
        build_labs(root, tmp_path / "labs", lessons=["77"])
    assert raised.value.id == "unknown-lesson"


# The whole thing, in a kernel


def execute(notebook):
    from nbclient import NotebookClient

    notebook = copy.deepcopy(notebook)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


def test_in_a_kernel_every_check_shows_one_line_without_traces_of_the_machine():
    notebook = render_exercises(source(), "reading")
    stub = cell(notebook, "01.4", "stub").source
    mine = stub.rsplit("\n", 1)[0] + "\n    return ratings[99]\n\ncheck('01.4', elo_update)"
    notebook.cells.append(nbformat.v4.new_code_cell(mine))
    executed = execute(notebook)
    outputs = [cell(executed, "01.4", part).outputs for part in ("check", "solution")] + [
        executed.cells[-1].outputs
    ]
    lines = []
    for [output] in outputs:
        assert output.output_type == "display_data" and set(output.data) == {"text/plain", "text/html"}
        lines.append(output.data["text/plain"])
    title = find_exercise("01.4").title
    assert lines[0] == f"○ Exercise 01.4 · {title}: not attempted yet."
    assert lines[1].startswith(f"✓ Exercise 01.4 · {title}: passed.")
    assert "your code stopped. IndexError: " in lines[2]
    assert "In line 3 of `elo_update`: `return ratings[99]`." in lines[2]
    assert not re.search(
        r"0x[0-9a-f]{6,}|ipykernel", json.dumps([one.get("outputs") for one in executed.cells])
    )
