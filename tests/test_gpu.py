"""What fits: parameters, activations and verdicts, against models that are built and tensors that are counted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
import warnings
from dataclasses import replace

import pytest
import torch

from course_utils import gpu
from course_utils.errors import CourseError
from course_utils.gpu import memory
from course_utils.gpu.cards import Precision

os.environ.setdefault("HF_HUB_OFFLINE", "1")
KINDS = ("qwen2", "llama", "qwen3")
SMALL = {
    "vocab_size": 120,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 352,
    "head_dim": 16,
}


def build(kind, device="cpu", **changes):
    transformers = pytest.importorskip("transformers")
    name = {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3"}[kind]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, "tie_word_embeddings": True, **changes})
    with torch.device(device):
        return getattr(transformers, f"{name}ForCausalLM")(config)


def kept_for_backward(model, rows, length, products, checkpointing=False):
    """Bytes that autograd keeps of one forward pass through the layers, parameters and copies of weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    widths = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.dim() == 2
    }
    seen, alive = {}, []

    def pack(tensor):
        place = tensor.untyped_storage()
        copy = products == "bfloat16" and tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in widths
        if place.data_ptr() not in own and not copy:
            seen[place.data_ptr()] = place.nbytes()
            alive.append(tensor)
        return tensor

    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    cast = torch.autocast("cpu", torch.bfloat16) if products == "bfloat16" else contextlib.nullcontext()
    ids = torch.randint(0, 100, (rows, length))
    with (
        warnings.catch_warnings(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        cast,
    ):
        warnings.simplefilter("ignore")
        model.model(input_ids=ids, use_cache=False)
    return sum(seen.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_parameters_are_those_of_the_model_that_is_built(kind, tied):
    model = build(kind, tie_word_embeddings=tied)
    assert gpu.shape_of(model).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", list(gpu.SHAPES))
def test_the_parameters_of_the_known_models_are_those_of_their_configs(name):
    shape = gpu.SHAPES[name]
    kind = "llama" if "lama" in name else "qwen3" if "Qwen3" in name else "qwen2"
    model = build(
        kind,
        device="meta",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.feed_forward,
    )
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_the_known_models_have_the_sizes_that_their_names_say():
    millions = {name: shape.parameters / 1e6 for name, shape in gpu.SHAPES.items()}
    assert millions["Qwen/Qwen2.5-0.5B-Instruct"] == pytest.approx(494.03, abs=0.01)
    assert millions["Qwen/Qwen2.5-1.5B-Instruct"] == pytest.approx(1543.71, abs=0.01)
    assert millions["Qwen/Qwen3-0.6B"] == pytest.approx(596.05, abs=0.01)
    assert millions["meta-llama/Llama-3.2-1B-Instruct"] == pytest.approx(1235.81, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("products", ["float32", "bfloat16", "pure bfloat16"])
def test_the_activations_are_those_that_autograd_keeps(kind, products):
    rows, length = 4, 64
    kept = []
    for layers in (2, 4):
        model = build(kind, num_hidden_layers=layers)
        model = model.bfloat16() if products == "pure bfloat16" else model
        kept.append(kept_for_backward(model, rows, length, products))
    each = (kept[1] - kept[0]) / 2 / (rows * length)
    assert memory.layer_bytes_per_token(gpu.shape_of(model), products) == each


@pytest.mark.parametrize("products", ["float32", "bfloat16", "pure bfloat16"])
def test_checkpointing_keeps_one_input_for_each_layer(products):
    rows, length = 4, 64
    kept = []
    for layers in (2, 4):
        model = build("qwen2", num_hidden_layers=layers)
        model = model.bfloat16() if products == "pure bfloat16" else model
        kept.append(kept_for_backward(model, rows, length, products, checkpointing=True))
    shapes = [gpu.shape_of(build("qwen2", num_hidden_layers=layers)) for layers in (2, 4)]
    planned = [memory.activation_bytes(shape, rows * length, products, True) for shape in shapes]
    assert planned[1] - planned[0] == kept[1] - kept[0]


def test_a_folder_with_a_config_is_enough_and_nothing_else_is_read(tmp_path):
    model = build("qwen2", tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    shape = gpu.shape_of(tmp_path)
    assert shape.parameters == sum(p.numel() for p in model.parameters()) and shape.tied
    untied = build("llama", tie_word_embeddings=False)
    untied.config.save_pretrained(tmp_path)
    assert gpu.shape_of(tmp_path).parameters == sum(p.numel() for p in untied.parameters())


def test_an_unknown_model_is_refused_with_the_names_that_are_known(tmp_path):
    with pytest.raises(CourseError, match=r"Qwen/Qwen2\.5-0\.5B"):
        gpu.shape_of("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(CourseError, match="mamba"):
        gpu.shape_of(tmp_path)


def test_sixteen_bytes_for_each_trained_weight_and_its_16_bit_copy():
    found = gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "dpo")
    parts = {part.name: part.bytes for part in found.parts}
    size = found.shape.parameters
    assert parts["weights"] + parts["gradients"] + parts["optimiser (adamw)"] == 16 * size
    assert parts["16-bit copies of the weights"] == 2 * found.shape.linear
    assert parts["reference"] == 0
    live = {part.name: part.bytes for part in gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", reference="live").parts}
    assert live["reference"] == 4 * size
    free = {part.name: part.bytes for part in gpu.plan("Qwen/Qwen2.5-0.5B", "simpo", reference="live").parts}
    assert free["reference"] == 0  # SimPO has no reference


def test_a_pair_is_two_sequences_an_unpaired_text_one_a_group_as_many_as_it_has():
    for method, sequences in (("dpo", 16), ("rdro", 8), ("exo_rw", 64), ("sft", 8)):
        assert gpu.plan("Qwen/Qwen2.5-0.5B", method, batch=8, group=8).sequences == sequences


def test_our_logits_do_not_grow_with_the_text_and_the_ordinary_ones_do():
    short, long = (gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", response=length) for length in (256, 512))
    sizes = [next(part for part in found.parts if part.name == "logits") for found in (short, long)]
    assert sizes[0].bytes == sizes[1].bytes
    shape = short.shape
    ordinary = [memory.ordinary_logit_bytes(shape, found.tokens, "bfloat16") for found in (short, long)]
    assert ordinary[1] > 1.3 * ordinary[0] > 10 * sizes[0].bytes


def test_more_of_anything_needs_more_memory_and_each_remedy_needs_less():
    base = {"batch": 8, "prompt": 256, "response": 256}
    plain = gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", **base).gib
    for more in (
        {"batch": 16},
        {"prompt": 512},
        {"response": 512},
        {"reference": "live"},
        {"products": "float32"},
    ):
        assert gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", **{**base, **more}).gib > plain
    for less in ({"checkpointing": True}, {"micro_batch": 2}, {"lora": 16}, {"optimizer": "adafactor"}):
        assert gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", **{**base, **less}).gib < plain


def test_a_remedy_fits_and_keeps_the_number_of_examples_of_a_step():
    for name in gpu.SHAPES:
        found = gpu.plan(name, "dpo", batch=16, reference="live")
        for card in gpu.CARDS.values():
            remedy = found.remedy(card)
            if remedy is None:
                assert "does not fit" in found.verdict(card)
                continue
            assert remedy[0].fits(card) and remedy[0].batch == 16
            assert 16 % remedy[0].micro_batch == 0
            assert (remedy[1] == "") == found.fits(card)


def test_half_a_billion_weights_fit_a_t4_in_full_and_three_billion_only_with_adapters():
    small = gpu.plan("Qwen/Qwen2.5-0.5B", "rdro", batch=8).remedy(gpu.CARDS["T4"])
    assert small is not None and small[0].lora is None
    large = gpu.plan("meta-llama/Llama-3.2-3B", "rdro", batch=8).remedy(gpu.CARDS["L4"])
    assert large is not None and large[0].lora and "LoRA" in large[1]


def test_operations_are_six_times_the_weights_for_each_token():
    shape = gpu.SHAPES["Qwen/Qwen2.5-0.5B-Instruct"]
    tokens = 1_000.0
    assert shape.operations(tokens, tokens, 0) == 6 * tokens * (
        shape.linear + shape.hidden * shape.vocabulary
    )
    found = gpu.plan(shape, "dpo", batch=8, micro_batch=2)
    assert found.operations() == gpu.plan(shape, "dpo", batch=8).operations()


def test_the_plan_reads_as_text_and_as_a_page():
    found = gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "rdro")
    for said in (str(found), found._repr_html_()):
        assert "together" in said and "T4 16 GB" in said and "activations" in said
    total = sum(part.gib for part in found.parts)
    assert f"{total:.2f}" in str(found)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch": 0},
        {"batch": 8, "micro_batch": 3},
        {"prompt": -1},
        {"reference": "none"},
        {"lora": 0},
        {"optimizer": "sgd"},
        {"products": "int8"},
        {"shards": 0},
        {"batch": 8, "shards": 3},
        {"batch": 8, "micro_batch": 4, "shards": 4},
        {"method": "bt"},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(bad):
    with pytest.raises(CourseError):
        gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", **{"method": "dpo", **bad})


def test_the_number_format_follows_what_the_card_can_do_without_emulation(monkeypatch):
    assert gpu.precision("cpu").products == "float32"
    assert gpu.precision("cuda", bf16=True).arguments == {"bf16": True, "fp16": False}
    assert gpu.precision("cuda", bf16=False).arguments == {"bf16": False, "fp16": True}
    asked = {}

    def supported(including_emulation=True):
        asked["emulation"] = including_emulation
        return including_emulation  # as a T4 answers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    found = gpu.precision()
    assert found == Precision("float32", "float16", found.why) and asked == {"emulation": False}


# -------------------- shards


def test_one_shard_is_the_plan_for_one_card_and_nothing_travels():
    for options in ({}, {"lora": 16}, {"reference": "live", "micro_batch": 2}, {"products": "float32"}):
        alone = gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", **options)
        assert gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", shards=1, reshard=False, **options).parts == alone.parts
        assert alone.traffic == () and alone.network_seconds(1.0) == 0


def test_the_weights_must_fit_a_card_whole_before_they_are_shared_out():
    deep = replace(gpu.SHAPES["meta-llama/Llama-3.2-3B-Instruct"], layers=60)
    many = gpu.plan(deep, batch=64, micro_batch=1, prompt=64, response=64, shards=64, checkpointing=True)
    whole = 4 * deep.parameters * (1 + memory.GAPS) + memory.CONTEXT
    assert many.gib * 2**30 < 0.8 * whole  # the step itself takes less
    assert many.peak_gib * 2**30 == pytest.approx(whole, rel=1e-12)
    assert many.gib < 22 < many.peak_gib and not many.fits(gpu.CARDS["L4"])


@pytest.mark.parametrize("options", [{}, {"lora": 16}, {"reference": "live"}, {"reshard": False}])
@pytest.mark.parametrize("passes", [1, 4])
def test_only_what_belongs_to_the_weights_is_divided(options, passes):
    found = {}
    for n in (1, 2, 8):
        made = gpu.plan("Qwen/Qwen2.5-1.5B", "dpo", batch=4 * n * passes, micro_batch=4, shards=n, **options)
        found[n] = {part.name: part.bytes for part in made.parts}
        assert made.gib * 2**30 == pytest.approx(sum(found[n].values()), rel=1e-12)
    for n in (2, 8):
        for name in ("weights", "gradients", "optimiser (adamw)"):
            assert found[n][name] * n == pytest.approx(found[1][name], rel=1e-12)
        for name in ("activations", "logits", "16-bit copies of the weights", "reference"):
            assert found[n].get(name) == found[1].get(name)
        whole = found[n].get("gradients, accumulated")
        assert whole == (found[1]["gradients"] if passes > 1 else None)


def test_the_traffic_of_n_cards_is_three_times_the_weights_and_a_little_less_for_tied_embeddings():
    shape = gpu.SHAPES["Qwen/Qwen2.5-0.5B-Instruct"]
    size, around = shape.parameters, shape.vocabulary * shape.hidden + shape.hidden
    for n in (2, 8):
        sent = sum(part.bytes for part in gpu.plan(shape, "dpo", batch=4 * n, shards=n).traffic)
        assert sent == pytest.approx((n - 1) / n * 4 * (3 * size - around), rel=1e-12)
        kept = sum(
            part.bytes for part in gpu.plan(shape, "dpo", batch=4 * n, shards=n, reshard=False).traffic
        )
        assert kept == pytest.approx((n - 1) / n * 4 * 2 * size, rel=1e-12)  # as much as an all-reduce
    more = gpu.plan(shape, "dpo", batch=64, micro_batch=4, shards=4)  # four passes
    sizes = {part.name.split(" ")[0]: part.bytes for part in more.traffic}
    assert sizes["reduce-scatter"] == 3 / 4 * 4 * size
    assert more.seconds(gpu.CARDS["L4"]) * 4 == pytest.approx(
        gpu.plan(shape, "dpo", batch=64, micro_batch=4).seconds(gpu.CARDS["L4"])
    )


def shard_as_accelerate_does(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard([model.model.norm, model.model.embed_tokens, model.lm_head], reshard_after_forward=False)
    return fully_shard(model)


def two_processes(rank, place, out):
    """What one of two processes holds, and what it sends, of a model in shards."""
    from torch.distributed.tensor.debug import CommDebugMode

    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = shard_as_accelerate_does(build("qwen2").train())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    ids = torch.arange(32).reshape(2, 16) + rank

    def bytes_of(tensors):
        return sum(t.to_local().nbytes for t in tensors if t is not None and hasattr(t, "to_local"))

    model.set_requires_gradient_sync(False)  # as accelerate does in every pass but the last
    model(input_ids=ids, use_cache=False).logits.float().sum().backward()
    groups = [m._get_fsdp_state()._fsdp_param_group for m in model.modules() if hasattr(m, "_get_fsdp_state")]
    members = {id(each): each for group in groups if group for each in group.fsdp_params}
    accumulated = sum(each._unsharded_param.grad.nbytes for each in members.values())
    model.set_requires_gradient_sync(True)
    with CommDebugMode() as counted:
        model(input_ids=ids, use_cache=False).logits.float().sum().backward()
    counts = {str(name).rpartition(".")[2]: number for name, number in counted.get_comm_counts().items()}
    grads = bytes_of(p.grad for p in model.parameters())
    optimizer.step()
    state = bytes_of(t for s in optimizer.state.values() for k, t in s.items() if k != "step")
    found = {"weights": bytes_of(model.parameters()), "gradients": grads, "state": state}
    found |= {"accumulated": accumulated, "counts": counts}
    with open(f"{out}/{rank}.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo is tested on Linux")
def test_two_processes_hold_and_send_what_the_plan_says(tmp_path):
    pytest.importorskip("transformers")
    torch.multiprocessing.spawn(two_processes, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    held = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    shape = gpu.shape_of(build("qwen2"))
    planned = gpu.plan(shape, "sft", batch=8, micro_batch=2, shards=2, products="float32")
    parts = {part.name: part.bytes for part in planned.parts}
    for process in held:
        assert process["weights"] == parts["weights"] == 2 * shape.parameters
        assert process["gradients"] == parts["gradients"]
        assert process["state"] == parts["optimiser (adamw)"]
        assert process["accumulated"] == parts["gradients, accumulated"]
        # Each layer is gathered twice, embeddings with the head once; the gradients of each are shared out once.
        gathers = sum(number for name, number in process["counts"].items() if "gather" in name)
        scatters = sum(number for name, number in process["counts"].items() if "reduce_scatter" in name)
        assert (gathers, scatters) == (2 * shape.layers + 1, shape.layers + 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo is tested on Linux")
def test_sharding_does_not_divide_the_16_bit_copies_that_autograd_keeps(tmp_path):
    pytest.importorskip("transformers")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = shard_as_accelerate_does(build("qwen2").train())
        shapes = {tuple(p.shape) for layer in model.model.layers for p in layer.parameters() if p.dim() == 2}
        shapes |= {shape[::-1] for shape in shapes}
        copies, alive = {}, []

        def pack(tensor):
            if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
                copies[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            model(input_ids=torch.arange(34).reshape(2, 17), use_cache=False)
    finally:
        torch.distributed.destroy_process_group()
    planned = {part.name: part.bytes for part in gpu.plan(gpu.shape_of(build("qwen2")), shards=2).parts}
    assert sum(copies.values()) == planned["16-bit copies of the weights"]


# -------------------- cost


def test_energy_is_power_times_time_times_cards_and_what_the_building_adds():
    plan = gpu.plan("Qwen/Qwen2.5-0.5B", "dpo", batch=64, micro_batch=4, shards=8)
    card = gpu.CARDS["A100-80"]
    seconds = 100 * max(plan.seconds(card), plan.network_seconds(0.9))
    assert plan.network_seconds(0.9) > plan.seconds(card)  # a slow network decides
    found = gpu.estimate(plan, card, 100, gigabytes=0.9, price=2.0, grams=300.0, pue=1.5)
    assert found.card_hours == pytest.approx(8 * seconds / 3600, rel=1e-12)
    assert found.kwh == pytest.approx(8 * seconds * 400 * 1.5 / 3.6e6, rel=1e-12)
    assert found.kwh == pytest.approx(plan.energy_kwh(card, 100, gigabytes=0.9, pue=1.5), rel=1e-12)
    assert found.money == pytest.approx(2 * found.card_hours) and not found.measured
    assert found.carbon_kg == pytest.approx(0.3 * found.kwh) and "at most" in str(found)


def test_a_record_is_measured_only_if_a_counter_was_read():
    record = {"seconds": 3600.0, "card": "NVIDIA A100-SXM4-80GB", "layout": "8 shards"}
    found = gpu.of_record(record)
    assert (found.card_hours, found.kwh, found.money, found.measured) == (8.0, 3.2, None, False)
    counted = gpu.of_record({**record, "energy_joules": 7.2e6}, pue=1.1, grams=100.0)
    assert counted.kwh == pytest.approx(2.2) and counted.carbon_kg == pytest.approx(0.22)
    assert counted.measured and "at most" not in str(counted)
    assert gpu.of_record({**record, "layout": "one process", "card": "Tesla T4"}).kwh == pytest.approx(0.07)
    assert gpu.of_record({**record, "card": "a new one"}, watts=500).kwh == pytest.approx(4.0)
    unknown = gpu.of_record({**record, "card": "a new one"}, grams=100.0)
    assert unknown.kwh is None and unknown.carbon_kg is None and "not known" in str(unknown)
    with pytest.raises(CourseError):
        gpu.of_record(record, pue=0.9)


def test_the_meter_reads_the_counters_where_there_are_some_and_otherwise_says_that_it_did_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu.energy_meter() as meter:
        pass
    assert meter.joules is None and "not measured" in str(meter)

    fake, readings = (
        types.ModuleType("pynvml"),
        iter([1_000, 5_000, 2_500, 8_000]),
    )  # of two cards, in millijoules
    fake.NVMLError = RuntimeError
    fake.nvmlInit = fake.nvmlShutdown = lambda: None
    fake.nvmlDeviceGetCount = lambda: 2
    fake.nvmlDeviceGetHandleByIndex = lambda index: index
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(readings)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with gpu.energy_meter() as meter:
        pass
    assert meter.joules == pytest.approx(4.5)

    def absent():
        raise RuntimeError("no driver")

    fake.nvmlInit = absent
    with gpu.energy_meter() as meter:
        pass
    assert meter.joules is None
