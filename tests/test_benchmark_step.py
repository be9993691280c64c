"""The benchmark of a training step: its count of operations, its table, and a smoke run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def step():
    specification = importlib.util.spec_from_file_location("bench_step", BENCHMARKS / "step.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shared", [False, True])
def test_the_floor_counts_the_operations_that_a_step_performs(step, shared):
    from course_utils.encoding import EncodedPairs, batch_from_ids
    from course_utils.logprobs import pair_log_probs

    size = step.Size(600, 32, 2, 4, 2, 48, prompt=7, response=5, pairs=3, steps=1)
    variants = sys.modules["_step_variants"]
    model, (prompts, chosen, rejected) = variants.build_model(size), variants.build_data(size)
    model.config._attn_implementation = "eager"  # its matrix products can be counted
    sides = [batch_from_ids(prompts, side) for side in (chosen, rejected)]
    with FlopCounterMode(display=False) as counter:
        first, second = pair_log_probs(model, EncodedPairs(*sides, share_prompt=shared))
        (first - second).sum().backward()

    # What the program does and the floor does not ask for: the head once more in the backward pass, the head at
    # the one position that `hidden_states` looks at, and scores of tokens that do not see each other.
    again = 2 * size.hidden * size.vocabulary * 2 * size.pairs * size.response
    probe = 2 * size.hidden * size.vocabulary
    p, r = size.prompt, size.response - 1
    width = p + 2 * r + 1 if shared else p + r  # a shared row keeps the end of the first response
    rows = size.pairs if shared else 2 * size.pairs
    seen = p * (p + 1) / 2 * (1 if shared else 2) + 2 * (r * p + r * (r + 1) / 2)
    unseen = 3 * 2 * size.layers * 2 * size.hidden * (rows * width**2 - size.pairs * seen)
    kept_end = 0.0
    if shared:
        per_token = size.layers * (2 * size.hidden * (size.hidden + size.hidden // 2) + 3 * size.hidden * 48)
        kept_end = 3 * 2 * per_token * size.pairs
    assert counter.get_total_flops() == size.flops(shared) + again + probe + unseen + kept_end


def result_of(step, seconds: float) -> dict:
    """A made-up result with two variants."""
    size = step.asdict(step.QUICK["quick"])
    runs = [
        {"size": "a", "variant": variant, "seconds_per_step": t, "times_floor": 2.0, "peak_mb": peak,
         "start_mb": 100.0, "loss_gap": 0.0, "agrees": True}
        for variant, t, peak in (("lean", seconds, 300.0), ("trl-precomputed", 1.0, 900.0))
    ]  # fmt: skip
    machine = {"processor": "P", "threads": 2, "system": "S", "python": "3", "torch": "1", "trl": None}
    sizes = {"a": {**size, "response_logits_mb": 5.0}}
    return {"machine": machine, "rates": {"float32": 1e9, "bfloat16": 2e9}, "sizes": sizes, "runs": runs}


def test_the_table_shows_ratios_against_trl(step):
    rows = [
        line for line in step.table(result_of(step, 0.25)).splitlines() if line.startswith("| this course")
    ]
    assert rows == ["| this course | 250 | 2.0 | 4.00 | 300 | 0.33 | 200 | 0.25 | yes |"]


def test_writing_the_table_replaces_what_stood_between_the_markers(step, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{step.BEGIN}\nold\n{step.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(step, "README", readme)
    for seconds in (0.25, 0.5):
        step.write_table(result_of(step, seconds))
        text = readme.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{step.BEGIN}\n") and text.endswith(f"{step.END}\nafter\n")
        assert "old" not in text and text.count("| this course |") == 1


def test_the_readme_shows_the_stored_results(step):
    if not step.RESULTS.exists():
        pytest.skip("the benchmark has not been run yet")
    stored = json.loads(step.RESULTS.read_text(encoding="utf-8"))
    between = step.README.read_text(encoding="utf-8").split(step.BEGIN)[1].split(step.END)[0]
    assert between == "\n" + step.table(stored)
    assert all(run["agrees"] for run in stored["runs"])


@pytest.mark.slow
def test_a_quick_run_measures_three_variants_with_the_same_losses(tmp_path):
    output = tmp_path / "quick.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "step.py"),
        "--quick",
        "--threads",
        "1",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [run["variant"] for run in result["runs"]] == ["lean", "lean-shared", "naive"]
    first = result["runs"][0]["losses"]
    assert len(first) == 6 and first[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
    assert len(set(first)) > 1  # it trains: the losses do not agree by standing still
    for run in result["runs"]:
        assert run["agrees"] and run["loss_gap"] < 1e-5
        assert run["peak_mb"] >= run["start_mb"] > 0 and run["seconds_per_step"] > 0
        assert run["times_floor"] > 1
    assert str(Path.home()) not in output.read_text(encoding="utf-8")
