"""Two processes, weights in shards (FSDP version 2) or in copies (DDP): the run of one process, and its checkpoints.

Everything goes through `accelerate launch` and accelerate's own code, on gloo and without a card; what only a card does
(NCCL, streams, the memory that is saved) is not exercised here.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")
from language_models import tiny_model
from sharded_run import CASES, RESUMED, run, taken_up

from course_utils import launch
from course_utils.errors import CourseError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="launched with gloo on Linux only")
HERE = Path(__file__).resolve().parent
BACK = ("full", "moving", "lora")  # written by shards, gone on with by one process
PRACTICE = ["--method=dpo", "--steps=4", "--batch=8", "--learning-rate=3e-4", "--prompt=24", "--response=40"]
PRACTICE += ["--samples=2", "--checkpointing"]


def launched(*command: str, seconds: float = 480) -> subprocess.CompletedProcess:
    """Two processes through `accelerate launch`; a hang is an error."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    start += [str(launch.path("two_processes_cpu")), *command]
    return subprocess.run(start, env=quiet, capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All runs: those of one process, then a launch that also takes those up, then one process takes up the launch's."""
    folder = tmp_path_factory.mktemp("sharded")
    kept = dict(os.environ)
    results = {f"{name} one": run(case, folder / "one" / name) for name, case in CASES.items()}
    done = launched(str(HERE / "sharded_run.py"), "everything", str(folder))
    assert done.returncode == 0, done.stderr[-5000:]
    results |= json.loads((folder / "found.json").read_text(encoding="utf-8"))
    results |= {f"{name} shards to one": taken_up(folder, name, "shards", "one") for name in BACK}
    os.environ.clear()
    os.environ.update(kept)
    return folder, results


def agree(one, other):
    """Every step's loss, length of the gradient and margin; the held-out loss; the saved weights."""
    assert other["losses"] == pytest.approx(one["losses"], abs=2e-6)
    assert len(other["losses"]) == 4 and len({round(loss, 4) for loss in one["losses"]}) > 1  # it learns
    assert other["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert other["margins"] == pytest.approx(one["margins"], abs=1e-5)
    assert other["evaluated"] == pytest.approx(one["evaluated"], abs=2e-6)
    assert other["weights"].keys() == one["weights"].keys()
    assert other["weights"] == pytest.approx(one["weights"], rel=1e-5)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_the_weights_train_as_one_does(found, name):
    one, shards = found[1][f"{name} one"], found[1][f"{name} shards"]
    agree(one, shards)
    assert shards["in shards"] and shards["held"] < 0.51 * one["held"] and not one["in shards"]


@linux
@pytest.mark.slow
def test_two_processes_that_copy_the_weights_train_as_one_does(found):
    one, copies = found[1]["full one"], found[1]["full copies"]
    agree(one, copies)
    assert not copies["in shards"] and copies["held"] == one["held"]


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"), [*RESUMED, *((name, "shards", "one") for name in BACK)], ids=" ".join
)
def test_a_checkpoint_of_one_layout_goes_on_in_another(found, name, before, after):
    folder, results = found
    agree(results[f"{name} one"], results[f"{name} {before} to {after}"])
    assert results[f"{name} {before} to {after}"]["in shards"] == (after == "shards")
    # The second half was computed, not read: its checkpoint was written by the run that went on.
    assert (folder / f"{before} to {after}" / name / "checkpoint-4" / "alignment.json").is_file()


@linux
@pytest.mark.slow
def test_a_checkpoint_of_shards_has_the_files_of_one_process_and_nothing_that_must_be_trusted(found):
    import torch
    from transformers import AutoModelForCausalLM

    from course_utils.trl_bridge.checkpoints import read_optimizer

    folder = found[0]
    one, shards = (
        {file.name for file in (folder / kind / "full" / "checkpoint-2").iterdir()}
        for kind in ("one", "shards")
    )
    assert {name for name in one ^ shards if not name.startswith("rng_state")} == set()
    states = [
        read_optimizer(folder / kind / "full" / "checkpoint-2")[0]["state"] for kind in ("one", "shards")
    ]
    assert states[0].keys() == states[1].keys() and all(isinstance(name, str) for name in states[0])
    for name, state in states[0].items():
        torch.testing.assert_close(states[1][name]["exp_avg"], state["exp_avg"], atol=1e-6, rtol=1e-4)
    model = AutoModelForCausalLM.from_pretrained(folder / "shards" / "full" / "model")
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


@linux
@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_an_error_and_not_with_a_hang(tmp_path):
    done = launched(str(HERE / "sharded_run.py"), "killed", str(tmp_path))
    ended = time.time()
    assert done.returncode != 0 and "exitcode  : 9" in done.stderr
    assert ended - float((tmp_path / "died").read_text(encoding="utf-8")) < 60


@linux
@pytest.mark.slow
def test_align_goes_on_in_shards_with_what_one_process_began_and_prints_once(tmp_path):
    from safetensors.torch import load_file

    from course_utils.alignment_runs import practice_material
    from course_utils.cli import main

    material = practice_material(tmp_path, "qwen2")
    given = [*PRACTICE, "--model", str(material.model), "--data", str(material.data)]

    def alone(folder, *more):
        with pytest.raises(SystemExit) as end:
            main(["align", *given, "--out", str(tmp_path / folder), "--micro-batch", "4", *more])
        assert not end.value.code

    alone("whole")
    alone("parts", "--minutes", "0.0001")
    assert not (tmp_path / "parts" / "result.json").exists()
    begun = [
        "-m",
        "course_utils.alignment_runs",
        *given,
        "--out",
        str(tmp_path / "parts"),
        "--micro-batch",
        "2",
    ]
    done = launched(*begun)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("held out:") == 1 and done.stdout.count("4 of 4 updates") == 1
    whole, parts = (
        json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
        for name in ("whole", "parts")
    )
    assert [part["from"] for part in parts["sessions"]] == [0, 1] and parts["layout"] == "2 shards"
    first, second = ([row["loss"] for row in record["history"]] for record in (whole, parts))
    assert second == pytest.approx(first, abs=1e-6) and len(set(first)) == 4
    assert parts["samples"] == whole["samples"] and parts["parameters"] == whole["parameters"]
    for name, numbers in whole["evaluation"]["after"].items():
        assert parts["evaluation"]["after"][name] == pytest.approx(numbers, abs=1e-4)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-4


# -------------------- configurations


def environment_of(name, monkeypatch, *more):
    """What `accelerate launch` with this configuration puts into the environment of each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(launch.path(name)), "--main_process_port", "0", *more, "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return args, prepare_multi_gpu_env(args) if args.use_fsdp else {}


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [
        ("one_gpu", 1, 1),
        ("two_gpus", 2, 1),
        ("eight_gpus", 8, 1),
        ("two_nodes", 16, 2),
        ("two_processes_cpu", 2, 1),
    ],
)
def test_accelerate_reads_each_configuration_and_makes_what_is_meant(monkeypatch, name, processes, machines):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    config = load_config_from_file(str(launch.path(name)))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == ("no" if name == "two_processes_cpu" else "bf16")
    args, environment = environment_of(name, monkeypatch)
    assert args.use_fsdp == (name != "one_gpu")
    if name == "one_gpu":
        return
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type) and not plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy" and plugin.activation_checkpointing is False
    assert plugin.activation_checkpointing_offload is False
    for architecture in ("qwen2", "llama"):
        model, plugin = tiny_model(architecture), FullyShardedDataParallelPlugin()
        plugin.set_auto_wrap_policy(model)
        is_layer = fsdp2_prepare_auto_wrap_policy(plugin, model)
        assert [m for m in model.modules() if is_layer(m)] == list(model.model.layers)


def test_each_machine_of_two_is_told_its_number_and_where_to_meet(monkeypatch):
    given = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    args, _ = environment_of("two_nodes", monkeypatch, *given, "--main_process_port", "29577")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29577")


def test_a_configuration_can_be_listed_and_copied_once(tmp_path, capsys):
    from course_utils.cli import main

    for arguments in ([], ["two_gpus"], ["two_gpus", "--copy", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(["launch-config", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == list(launch.NAMES)
    assert Path("".join(lines[5:6])) == launch.path("two_gpus")
    assert (tmp_path / "two_gpus.yaml").read_bytes() == launch.path("two_gpus").read_bytes()
    with pytest.raises(CourseError, match="file-exists"):
        launch.copy("two_gpus", tmp_path)
    with pytest.raises(CourseError, match="unknown-choice"):
        launch.path("three_gpus")


# -------------------- what is refused


def test_ways_to_share_that_would_be_wrong_are_refused(monkeypatch):
    from course_utils.trl_bridge.arguments import require_supported
    from course_utils.trl_bridge.sharding import settle

    class CPUOffloadPolicy:
        """Of torch."""

    plugin = types.SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, cpu_offload=None)
    args = types.SimpleNamespace(optim="adamw_torch", fp16=False)

    def trainer(plugin_changes=None, args_changes=None):
        plugins, arguments = copy.copy(plugin), copy.copy(args)
        vars(plugins).update(plugin_changes or {})
        vars(arguments).update(args_changes or {})
        state = types.SimpleNamespace(fsdp_plugin=plugins)
        accelerator = types.SimpleNamespace(state=state)
        return types.SimpleNamespace(is_fsdp_enabled=True, accelerator=accelerator, args=arguments)

    good = trainer()
    settle(good)
    policy = good.accelerator.state.fsdp_plugin.mixed_precision_policy
    assert policy.param_dtype is None and str(policy.reduce_dtype) == "torch.float32"
    for changes in (
        ({"fsdp_version": 1},),
        ({"cpu_ram_efficient_loading": True},),
        ({"cpu_offload": CPUOffloadPolicy()},),
        (None, {"optim": "adafactor"}),
        (None, {"fp16": True}),
    ):
        with pytest.raises(CourseError, match=r"\[sharded-training: see"):
            settle(trainer(*changes))
    usual = {"n_gpu": 1, "deepspeed": None, "auto_find_batch_size": False, "world_size": 1}
    require_supported(types.SimpleNamespace(**usual))
    with pytest.raises(CourseError, match=r"\[sharded-training: see"):
        require_supported(types.SimpleNamespace(**{**usual, "deepspeed": "zero.json"}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CourseError, match=r"\[processes-apart: see"):
        require_supported(types.SimpleNamespace(**usual))
