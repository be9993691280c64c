"""Runs on real models, made with pocket ones: exact going on, stages, what is measured, what is stored, what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from course_utils import gpu
from course_utils.alignment_runs import RunSettings, align, align_in_stages, practice_material, results_table
from course_utils.alignment_runs.data import load_data
from course_utils.alignment_runs.practice import proof
from course_utils.alignment_runs.room import require_fit
from course_utils.alignment_runs.table import store
from course_utils.errors import CourseError

MISSING = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="not installed: peft")
SMALL = {
    "steps": 4, "batch": 8, "micro_batch": 4, "learning_rate": 3e-4, "prompt": 24, "response": 40, "samples": 2,
    "held_out": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return {
        kind: practice_material(tmp_path_factory.mktemp(kind), kind, rows=40) for kind in ("qwen2", "llama")
    }


@pytest.fixture(scope="module")
def make(material):
    def settings(folder, kind="qwen2", **changes):
        place = material[kind]
        return RunSettings(
            **{**SMALL, "model": str(place.model), "data": str(place.data), "out": str(folder), **changes}
        )

    return settings


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A run that was never stopped."""
    return align(make(tmp_path_factory.mktemp("whole") / "run"), quiet=True)


def test_the_practice_model_says_what_the_pocket_model_says(material):
    from course_utils.real_models import load_policy
    from course_utils.worlds import pocket

    for kind, place in material.items():
        world = pocket.load_world("bradley_terry", architecture=kind)
        rows = [json.loads(line) for line in place.data.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == 40 and all(row["chosen"] != row["rejected"] for row in rows)
        assert type(load_policy(place.model, device="cpu").model).__name__.lower().startswith(kind)
        prompts = [row["prompt"][0]["content"] for row in rows[:6]]
        said = [row["chosen"][0]["content"] for row in rows[:6]]
        policy = load_policy(place.model, device="cpu")
        ours, theirs = policy.log_prob(prompts, said).double(), world.log_prob(None, prompts, said)
        assert policy.chat_template and torch.allclose(ours, theirs, atol=1e-4)


def test_a_run_that_was_stopped_and_went_on_is_the_run_that_was_not(make, whole, tmp_path):
    settings = make(tmp_path / "run")
    first = align(settings, stop_after=1, quiet=True)
    second = align(settings, stop_after=2, quiet=True)
    assert [first.finished, first.step, second.finished, second.step] == [False, 1, False, 3]
    assert settings.command in repr(second) and not (settings.folder / "result.json").exists()
    last = align(settings, quiet=True)
    assert last.finished and last.losses == whole.losses
    assert last.record["evaluation"] == whole.record["evaluation"]
    assert last.record["samples"] == whole.record["samples"]
    assert [(part["from"], part["to"]) for part in last.record["sessions"]] == [(0, 1), (1, 3), (3, 4)]
    assert not (settings.folder / "checkpoints").exists()
    again = align(settings, quiet=True)
    assert again.record == json.loads((settings.folder / "result.json").read_text(encoding="utf-8"))


def test_the_time_budget_ends_a_session_after_an_update(make, tmp_path):
    found = align(make(tmp_path / "run", minutes=1e-6), quiet=True)
    assert not found.finished and found.step == 1
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "alignment.json").is_file()


def test_the_losses_are_those_of_the_teaching_loop(make, whole):
    from course_utils.real_models import load_policy
    from course_utils.training import TrainingSettings, train

    settings = whole.settings
    policy, (rows, _) = load_policy(settings.model, device="cpu"), load_data(settings)
    same = TrainingSettings(
        steps=4, batch_size=8, learning_rate=3e-4, schedule="linear", clip_gradient=1.0, accumulate=2
    )
    loop = train(policy, rows.pairs(), "dpo", settings=same, progress=False)
    assert loop.history.column("loss") == pytest.approx(whole.losses, abs=2e-5)
    assert max(whole.losses) - min(whole.losses) > 1e-4  # it did move


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_dpo_begins_at_log_2_and_what_is_measured_is_measured_on_the_saved_model(make, whole, tmp_path, kind):
    from course_utils.real_models import load_policy

    run = whole if kind == "qwen2" else align(make(tmp_path / "run", kind), quiet=True)
    assert run.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    before, after = (run.record["evaluation"][when] for when in ("before", "after"))
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6) and before["chosen_drift"][0] == 0
    _, held = load_data(run.settings)
    policy, start = load_policy(run.model, device="cpu"), load_policy(run.settings.model, device="cpu")
    pairs = held.pairs()
    with torch.no_grad():
        drift = {
            side: (policy.log_prob(pairs.prompt, texts) - start.log_prob(pairs.prompt, texts)).double()
            for side, texts in (("chosen", pairs.chosen), ("rejected", pairs.rejected))
        }
    for side, values in drift.items():
        assert after[f"{side}_drift"][0] == pytest.approx(float(values.mean()), abs=1e-5)
    loss = torch.nn.functional.softplus(-0.1 * (drift["chosen"] - drift["rejected"])).mean()
    assert after["loss"] == pytest.approx(float(loss), abs=1e-6)
    assert after["reward_accuracy"][0] == pytest.approx(
        float((drift["chosen"] > drift["rejected"]).double().mean())
    )


def test_what_is_stored_says_what_a_reader_needs(whole):
    record = json.loads((whole.settings.folder / "result.json").read_text(encoding="utf-8"))
    assert record["proves"] == "code" and record["settings"]["learning_rate"] == 3e-4
    assert record["versions"]["torch"] and record["seconds"] > 0 and record["tokens_per_second"] > 0
    assert record["memory_gib"]["planned"] > 0.7 and record["memory_gib"]["peak"] is None
    assert len(record["history"]) == 4 and {"loss", "rewards/accuracies", "logps/chosen"} <= set(
        record["history"][0]
    )
    assert [set(each) for each in record["samples"]] == [{"prompt", "before", "after"}] * 2
    assert (whole.model / "model.safetensors").is_file() and (whole.model / "tokenizer").is_dir()


def test_the_tokens_are_those_of_the_rows_that_were_drawn(make, tmp_path):
    """All rows in every update: their tokens, counted text by text."""
    settings = make(tmp_path / "run", steps=2, batch=30, micro_batch=10, held_out=0.25, method="sft")
    run = align(settings, quiet=True)
    rows, _ = load_data(settings)
    from course_utils.real_models import load_policy

    tokenizer = load_policy(settings.model, device="cpu").tokenizer
    lengths = []
    for row in rows:
        talk = [*row.prompt, {"role": "assistant", "content": row.chosen}]
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert len(rows) <= 30 and run.record["tokens"] == 2 * sum(lengths)


@needs_peft
def test_the_model_of_the_second_stage_is_the_folder_of_the_first(make, tmp_path):
    from course_utils.real_models import load_policy

    first, second = (
        make(tmp_path / name, method=name, lora=rank, steps=2, save_every=1)
        for name, rank in (("sft", None), ("dpo", 4))
    )
    results = align_in_stages([first, second], quiet=True)
    assert [run.finished for run in results] == [True, True]
    assert results[1].settings.model == str(results[0].model)
    assert results[1].record["stages"] == ["sft", "dpo, LoRA 4"]
    assert results[1].record["base"] == first.model
    # The reference of DPO is what SFT left: at the first update the loss is log 2.
    assert results[1].losses[0] == pytest.approx(math.log(2), abs=1e-6)
    shape = gpu.shape_of(results[0].model)
    assert results[1].record["parameters"]["trained"] == gpu.memory.lora_parameters(shape, 4)
    # Adapters were added to the weights that are saved, and the saved model is what was measured.
    _, held = load_data(results[1].settings)
    said = load_policy(results[1].model, device="cpu").log_prob(held.pairs().prompt, held.pairs().chosen)
    after = results[1].record["evaluation"]["after"]["chosen_log_prob"][0]
    assert float(said.detach().double().mean()) == pytest.approx(after, abs=1e-4)


def test_stages_end_at_one_that_is_unfinished(make, tmp_path):
    first, second = (make(tmp_path / name, method=name) for name in ("sft", "dpo"))
    found = align_in_stages([first, second], stop_after=1, quiet=True)
    assert len(found) == 1 and not found[0].finished and not (tmp_path / "dpo").exists()


def test_no_prompt_is_on_both_sides(make, tmp_path):
    train, held = load_data(make(tmp_path))
    assert {str(row.prompt) for row in train}.isdisjoint(str(row.prompt) for row in held)
    rows = Path(make(tmp_path).data).read_text(encoding="utf-8").splitlines(keepends=True)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(rows[:5]), encoding="utf-8")
    train, held = load_data(make(tmp_path, data=folder, held_out_rows=3))
    assert len(held) == 3 and {str(row.prompt) for row in train}.isdisjoint(str(row.prompt) for row in held)
    (folder / "test.jsonl").rename(folder / "other.jsonl")
    with pytest.raises(CourseError) as error:
        load_data(make(tmp_path, data=folder))
    assert error.value.id == "run-splits"


def test_another_runs_folder_is_refused_with_the_difference(make, whole):
    with pytest.raises(CourseError, match=r"seed: saved 0, now 1") as error:
        align(replace(whole.settings, seed=1), quiet=True)
    assert error.value.id == "run-of-other-settings"


def test_a_card_that_is_too_small_is_refused_with_the_options_that_help():
    plan = gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "dpo", batch=16)
    require_fit(plan, gpu.CARDS["H200"])
    with pytest.raises(CourseError) as error:
        require_fit(plan, gpu.CARDS["T4"])
    assert error.value.id == "card-too-small" and "--checkpointing" in error.value.remedy
    with pytest.raises(CourseError, match=r"shorter texts") as error:
        require_fit(plan, gpu.Card("tiny", 0.5, 1, 1))


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"micro_batch": 3}, {"minutes": 0}, {"held_out": 1.0}, {"lora": 0}]
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(CourseError) as error:
        RunSettings(**changes)
    assert error.value.id == "run-setting"


def test_the_command_makes_the_same_settings(make, tmp_path, monkeypatch):
    import shlex

    from typer.testing import CliRunner

    from course_utils import alignment_runs
    from course_utils.cli import app

    seen = []
    monkeypatch.setattr(alignment_runs, "align", lambda settings: seen.append(settings) or RunResultStub())
    wanted = make(tmp_path / "a run", options={"beta": 0.2}, checkpointing=True, lora=8)
    done = CliRunner().invoke(app, shlex.split(wanted.command)[1:])
    assert done.exit_code == 0, done.output
    assert seen == [wanted]


class RunResultStub:
    finished = False


def stored(folder, name, seed, accuracy, proves="result", **settings):
    interval = [accuracy, accuracy - 0.1, accuracy + 0.1, 200]
    record = {
        "proves": proves, "base": "Qwen/Qwen2.5-0.5B-Instruct", "stages": ["sft", "dpo"], "card": "H200",
        "settings": {**RunSettings(seed=seed).plain(), **settings},
        "evaluation": {"after": dict.fromkeys(("reward_accuracy", "ranking_accuracy", "chosen_drift"), interval)},
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def test_the_table_holds_results_only_and_groups_seeds(tmp_path):
    from course_utils.statistics import mean_interval

    empty = results_table(tmp_path)
    assert len(empty) == 0 and "course align" in str(empty) and "--store" in str(empty)
    assert "course align" in empty._repr_html_()
    stored(tmp_path, "a", 0, 0.6)
    stored(tmp_path, "b", 1, 0.7)
    stored(tmp_path, "c", 0, 0.9, steps=50)
    stored(tmp_path, "d", 0, 0.99, proves="code")
    table = results_table(tmp_path)
    assert len(table) == 2 and table.passed_over == 1 and "0.990" not in str(table)
    over_seeds, interval = table.rows[0], mean_interval([0.6, 0.7])
    assert over_seeds[4] == "2" and over_seeds[5] == f"0.650 [{interval.low:.3f}, {interval.high:.3f}] s"
    assert table.rows[1][5] == "0.900 [0.800, 1.000] r" and table.rows[0][8] == "–"
    stored(tmp_path, "e", 1, 0.7)
    with pytest.raises(CourseError, match="2 seeds") as error:
        results_table(tmp_path)
    assert error.value.id == "run-stored-twice"


def test_a_run_that_proves_the_code_is_never_stored_as_a_result(whole, tmp_path):
    with pytest.raises(CourseError) as error:
        store(whole.settings, tmp_path)
    assert error.value.id == "run-not-storable" and not list(tmp_path.iterdir())
    assert proof(494_032_768, 5_000) == "result"
    assert proof(324_000, 5_000) == "code" and proof(494_032_768, 64) == "code"


def test_rows_that_are_too_long_are_neither_trained_on_nor_measured_nor_answered(make, material, tmp_path):
    lines = [json.loads(line) for line in material["qwen2"].data.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(lines):
        if number % 3 == 0:  # longer than the model can read
            row["prompt"][0]["content"] += " more words" * 100
    data = tmp_path / "some_long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    settings = make(tmp_path / "run", data=str(data), steps=1, samples=20)
    with pytest.warns(UserWarning, match="they are left out"):
        record = align(settings, quiet=True).record
    _, held = load_data(settings)
    short = [row for row in held if "more words" not in row.prompt[0]["content"]]
    assert 0 < len(short) < len(held) and record["rows"]["held_out"] == len(short)
    assert record["evaluation"]["after"]["chosen_drift"][3] == len(short)
    assert len(record["samples"]) == len({row.prompt[0]["content"] for row in short})


def test_energy_is_stored_only_where_every_session_was_measured(whole):
    from course_utils.alignment_runs.saving import energy_of
    from course_utils.gpu.cost import of_record

    assert whole.record["energy_joules"] is None and whole.record["sessions"][0]["joules"] is None
    assert energy_of([{"joules": 1.5}, {"joules": 2.0}]) == 3.5
    assert energy_of([{"joules": 1.5}, {"joules": None}]) is None
    assert energy_of([{"joules": 1.5}, {}]) is None and energy_of([]) is None
    assert of_record({**whole.record, "energy_joules": 3.6e6}).kwh == pytest.approx(1.0)
