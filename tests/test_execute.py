"""Executing a notebook: the right interpreter, honest figures, clear failures, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from course_utils.errors import CourseError
from course_utils.notebooks.parameters import declared_parameters, fit_parameters, parse_parameters

nbformat = pytest.importorskip("nbformat")
zmq = pytest.importorskip("zmq")
pytest.importorskip("zmq.asyncio")
psutil = pytest.importorskip("psutil")
pytest.importorskip("papermill")

from course_utils.notebooks.execute import CellEvent, run_notebook  # noqa: E402
from course_utils.notebooks.processes import kernel_environment  # noqa: E402
from course_utils.notebooks.worker import look_after_sending, plain, why_dead  # noqa: E402


def write(path: Path, *cells: str, tags: dict[int, list[str]] | None = None, kernel: str = "python3") -> Path:
    made = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    for index, names in (tags or {}).items():
        made[index].metadata["tags"] = names
    spec = {"kernelspec": {"name": kernel, "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=spec), path)
    return path


def printed(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One run that exercises what goes right, under a kernel specification that would go wrong."""
    folder = tmp_path_factory.mktemp("good")
    bogus = folder / "share" / "kernels" / "python3"
    bogus.mkdir(parents=True)
    (bogus / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "elsewhere", "language": "python"}'
    )
    path = write(
        folder / "lesson.ipynb",
        "seeds = 3\nalpha = 0.5",
        "import os, sys\nprint('seeds', seeds, 'alpha', alpha)\nprint(sys.executable)\nprint(os.getcwd())",
        "os.write(1, b'straight to the file descriptor\\n')\nNone",
        "import matplotlib.pyplot\nprint(matplotlib.get_backend())",
        "1 / 0",
        """
        from IPython.display import display
        display({"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "A line that falls"}}, raw=True)
        """,
        "print('the end')",
        tags={0: ["parameters"], 4: ["raises-exception"]},
        kernel="no-such-kernel",
    )
    events: list[CellEvent] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "share"))
        patch.setenv("MPLBACKEND", "agg")
        result = run_notebook(
            path,
            folder / "out" / "lesson.ipynb",
            {"seeds": 5},
            on_cell=events.append,
            html_path=folder / "out" / "lesson.html",
        )
    return result, events, folder


def test_a_good_notebook_runs_in_this_interpreter_and_in_its_own_folder(good):
    result, _, folder = good
    assert result.ok and result.failed is None and result.cells == 8  # seven, and the injected parameters
    lines = printed(result.output_path).splitlines()
    assert sys.executable in lines
    assert str(folder.resolve()) in lines
    assert "the end" in lines


def test_parameters_reach_the_cells_and_the_others_keep_their_defaults(good):
    assert "seeds 5 alpha 0.5" in printed(good[0].output_path)


def test_figures_go_inline_whatever_the_environment_says(good):
    assert "matplotlib_inline" in printed(good[0].output_path)


def test_the_cells_take_less_time_than_the_whole_run_and_events_come_in_order(good):
    result, events, _ = good
    assert 0 < result.seconds < result.total_seconds
    kinds = [event.kind for event in events if event.kind != "memory"]
    assert kinds == ["kernel started"] + ["started", "finished"] * 8
    assert [event.number for event in events if event.kind == "finished"] == list(range(1, 9))
    assert all(event.of == 8 for event in events if event.kind in ("started", "finished"))


def test_an_executed_notebook_carries_no_traces_of_papermill_and_the_page_keeps_alternative_texts(good):
    result, _, folder = good
    text = result.output_path.read_text(encoding="utf-8")
    assert "papermill" not in text and "iopub" not in text
    assert 'alt="A line that falls"' in (folder / "out" / "lesson.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["lesson.html", "lesson.ipynb"]


def test_threads_are_limited_and_wait_without_spinning_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    found = kernel_environment(tmp_path, threads=2)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert kernel_environment(tmp_path, threads=2)["OMP_NUM_THREADS"] == "1"


def test_a_failure_names_its_cell_and_its_error_in_plain_text_and_later_cells_do_not_run(tmp_path):
    path = write(tmp_path / "lesson.ipynb", "x = 1", "x += 1", "assert x == 3, 'x is two'", "print('never')")
    result = run_notebook(path, tmp_path / "out.ipynb")
    assert result.status == "failed" and result.cells == 2
    assert (result.failed.index, result.failed.error_name) == (2, "AssertionError")
    assert result.failed.message == "x is two"
    assert "assert x == 3" in result.failed.source and "\x1b" not in result.failed.traceback
    assert "never" not in printed(tmp_path / "out.ipynb")
    assert len(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells) == 4  # nothing was put in between
    with pytest.raises(CourseError, match="x is two"):
        result.raise_if_failed("99_lesson")


def test_a_kernel_that_dies_is_called_dead_and_its_exit_code_is_said(tmp_path):
    path = write(tmp_path / "lesson.ipynb", "import os", "os._exit(3)", "print('never')")
    result = run_notebook(path, tmp_path / "out.ipynb")
    assert result.status == "kernel died" and result.cells == 1
    assert result.failed.index == 1 and result.failed.traceback == ""
    assert "exit code 3" in result.failed.message
    assert "memory ran out" in why_dead(-9)


@pytest.mark.parametrize(
    "allocate",
    [
        "block = bytearray(200_000_000)\ndel block",
        "import subprocess, sys\n"
        "code = 'import time; block = bytearray(200_000_000); time.sleep(2)'\n"
        "subprocess.run([sys.executable, '-c', code])",
    ],
    ids=["in the kernel", "in a child of the kernel"],
)
def test_the_peak_counts_memory_that_was_given_back_and_no_more(tmp_path, good, allocate):
    ours = bytearray(400_000_000)  # memory of the process that asks is not the lesson's
    result = run_notebook(write(tmp_path / "lesson.ipynb", allocate), tmp_path / "out.ipynb")
    del ours
    assert result.ok
    assert 200 < result.peak_memory_mb < 400
    assert good[0].peak_memory_mb < 200


@pytest.mark.parametrize("look", [True, False], ids=["looking", "not looking"])
def test_sending_while_an_answer_arrives_loses_the_answer_unless_one_looks(look):
    """What made lessons with sliders wait for ever, now and then: jupyter_client sends past the event loop."""

    async def wait_for_the_answer() -> bool:
        context = zmq.asyncio.Context()
        kernel, ours = (
            zmq.Socket(zmq.Context.shadow(context.underlying), zmq.ROUTER),
            context.socket(zmq.DEALER),
        )
        try:
            ours.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
            past_the_loop = zmq.Socket.shadow(ours.underlying)
            channel = SimpleNamespace(socket=ours, send=past_the_loop.send)
            if look:
                look_after_sending(channel)
            channel.send(b"execute")
            identity, _ = kernel.recv_multipart()
            answer = asyncio.ensure_future(ours.recv())
            await asyncio.sleep(0.1)
            kernel.send_multipart([identity, b"done"])
            time.sleep(0.2)  # the answer comes while the loop is busy ...
            channel.send(b"widget")  # ... and something is sent before the loop has seen it
            done, _ = await asyncio.wait([answer], timeout=1)
            answer.cancel()
            return bool(done)
        finally:
            kernel.close(0)
            ours.close(0)
            context.destroy(0)

    assert asyncio.run(wait_for_the_answer()) is look


def test_a_notebook_with_many_sliders_does_not_wait_for_ever(tmp_path):
    pytest.importorskip("ipywidgets")
    slider = """
        import ipywidgets
        from IPython.display import display
        handle = ipywidgets.FloatSlider()
        display(ipywidgets.VBox([handle, ipywidgets.interactive_output(lambda x: print(x), {"x": handle})]))
    """
    path = write(tmp_path / "lesson.ipynb", *[slider] * 25)
    assert run_notebook(path, tmp_path / "out.ipynb", timeout=60).ok


def test_a_notebook_that_takes_too_long_is_ended_and_says_where_it_was(tmp_path):
    path = write(tmp_path / "lesson.ipynb", "import os; print(os.getpid())", "import time\ntime.sleep(600)")
    pids: list[int] = []
    # Other tests in this process may have left children, such as the tracker of multiprocessing.
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def note(event: CellEvent) -> None:
        if event.kind == "started" and event.index == 1:
            children = psutil.Process().children(recursive=True)
            pids.extend(child.pid for child in children if child.pid not in before)

    result = run_notebook(path, tmp_path / "out.ipynb", on_cell=note, timeout=5)
    assert result.status == "timed out" and result.failed.index == 1
    assert "5 s" in result.failed.message
    assert pids and not any(alive(pid) for pid in pids)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise on Windows")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_ending_the_command_leaves_no_kernel_behind(tmp_path, end):
    path = write(tmp_path / "lesson.ipynb", "import time\ntime.sleep(600)")
    code = f"""
        import psutil
        from course_utils.notebooks.execute import run_notebook

        def tell(event):
            if event.kind == "started":
                print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)

        run_notebook({str(path)!r}, {str(tmp_path / "out.ipynb")!r}, on_cell=tell)
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    pids = [int(pid) for pid in command.stdout.readline().split()]
    assert len(pids) >= 2 and all(alive(pid) for pid in pids)  # the worker and the kernel
    command.send_signal(end)
    _, complaint = command.communicate(timeout=30)
    deadline = time.monotonic() + 40
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if alive(pid)]
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(folder.iterdir())  # nor a temporary folder
    assert end is signal.SIGKILL or "KeyboardInterrupt" in complaint


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_values_on_the_command_line_get_their_types():
    given = ["a=3", "b=0.5", "c=true", "d=dpo", "e=[1, 2]", "f=1,2", "g=None", "h=x=y", "i='3'", "j="]
    wanted = {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": "dpo",
        "e": [1, 2],
        "f": [1, 2],
        "g": None,
        "h": "x=y",
        "i": "3",
    }
    assert parse_parameters(given) == {**wanted, "j": ""}
    for wrong in ("seeds", "=3", "2x=1"):
        with pytest.raises(CourseError, match="not a parameter"):
            parse_parameters([wrong])


def test_values_take_the_type_of_the_default_and_other_types_are_refused(tmp_path):
    source = "seeds: int = 3\nalpha = 0.5\nname = 'dpo'\ngrid = [0.1]\nquick = False\nsize = 2 * 3"
    notebook = nbformat.read(write(tmp_path / "x.ipynb", source, tags={0: ["parameters"]}), as_version=4)
    declared = declared_parameters(notebook)
    given = {"alpha": 1, "name": 123, "grid": 0.2, "seeds": 5, "size": 9}
    fitted = fit_parameters(given, declared, "99_x")
    assert fitted == {"alpha": 1.0, "name": "123", "grid": [0.2], "seeds": 5, "size": 9}
    assert isinstance(fitted["alpha"], float)
    for wrong in ({"seeds": 0.5}, {"seeds": True}, {"quick": 1}, {"alpha": "x"}):
        with pytest.raises(CourseError, match="is of type"):
            fit_parameters(wrong, declared, "99_x")


def test_an_unknown_parameter_is_answered_with_the_list_of_known_ones_before_anything_runs(tmp_path):
    path = write(tmp_path / "lesson.ipynb", "seeds = 3\nalpha = 0.5", tags={0: ["parameters"]})
    with pytest.raises(CourseError, match=r"no parameter 'seed'(.|\n)*seeds=3, alpha=0.5"):
        run_notebook(path, tmp_path / "out.ipynb", {"seed": 5})
    assert not (tmp_path / "out.ipynb").exists()


def test_long_tracebacks_lose_their_middle_and_their_colours():
    text = plain("\n".join(f"\x1b[31mline {number}\x1b[0m" for number in range(200)))
    assert "\x1b" not in text and "line 0\n" in text and text.endswith("line 199")
    assert "140 lines left out" in text
