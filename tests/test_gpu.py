"""What fits: parameters, activations and verdicts, against models that are built and tensors that are counted."""

from __future__ import annotations

import contextlib
import os
import warnings

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
