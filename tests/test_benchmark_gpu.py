"""The benchmark on a graphics card: what can be tested without one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import gpu

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("bench_gpu_step", BENCHMARKS / "gpu_step.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def job(script, **changes):
    return {
        "variant": "ours",
        "model": "quick",
        "method": "dpo",
        "pairs": 2,
        "prompt": 12,
        "response": 8,
        "steps": 4,
        "device": "cpu",
        "products": "float32",
        "threads": 1,
        **changes,
    }


def test_our_step_begins_at_log_2_for_dpo_and_learns_from_both_kinds_of_feedback(script):
    for method, start in (("dpo", 0.693147), ("rdro", None)):
        found = script.measure(job(script, method=method))
        assert len(found["losses"]) == 4 and found["seconds_per_step"] > 0
        assert start is None or found["losses"][0] == pytest.approx(start, abs=1e-5)


def test_checkpointing_changes_no_loss(script):
    plain, again = (script.measure(job(script, variant=name)) for name in ("ours", "ours-checkpointing"))
    assert again["losses"] == pytest.approx(plain["losses"], abs=1e-6)


def test_trl_trains_on_the_same_pairs_to_the_same_losses(script):
    pytest.importorskip("trl")
    plain, trl = (script.measure(job(script, variant=name)) for name in ("ours", "trl"))
    assert trl["losses"] == pytest.approx(plain["losses"], abs=1e-4)


def test_the_plan_counts_the_same_sequences_for_pairs_and_single_texts(script):
    tokens = {script.planned(job(script, method=method)).tokens for method in ("dpo", "rdro")}
    assert tokens == {2 * 2 * 20}
    assert script.MODELS["0.5B"] is gpu.SHAPES["Qwen/Qwen2.5-0.5B-Instruct"]


def test_without_a_card_the_script_says_so_and_stores_nothing(script):
    before = script.RESULTS.exists()
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu_step.py")], capture_output=True, text=True)
    if done.returncode == 2:
        assert "no CUDA card" in done.stdout and script.RESULTS.exists() == before


def test_the_table_in_the_readme_is_the_one_that_the_results_make(script):
    text = script.README.read_text(encoding="utf-8")
    part = text.split(script.BEGIN)[1].split(script.END)[0].strip()
    made = script.table(json.loads(script.RESULTS.read_text())) if script.RESULTS.exists() else script.EMPTY
    assert part == made.strip()


def test_losses_that_part_are_said(script):
    runs = [
        {"model": "a", "method": "dpo", "variant": name, "losses": losses, "products": "float32"}
        for name, losses in (("ours", [0.69, 0.5]), ("trl", [0.69, 0.6]))
    ]
    assert [run["agrees"] for run in script.compared(runs)] == [None, False]
