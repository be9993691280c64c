"""The cache of reference log-probabilities: found by content, whole or absent, checked when read."""

from __future__ import annotations

import copy
import json
import os
import warnings

import pytest
import torch
from language_models import random_batch, tiny_model

from course_utils import reference_cache
from course_utils.encoding import EncodedBatch, EncodedPairs
from course_utils.errors import CourseError
from course_utils.logprobs import pair_log_probs, sequence_log_probs
from course_utils.reference_cache import cache_key, reference_log_probs, weights_hash


@pytest.fixture
def model():
    return tiny_model(vocabulary=60)


@pytest.fixture
def batches():
    return [random_batch(3, seed=seed, vocabulary=60) for seed in (0, 10)]


@pytest.fixture
def count_forwards(model):
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_values_are_the_log_probs_in_the_order_of_the_data(model, batches, tmp_path):
    expected = torch.cat([sequence_log_probs(model, batch) for batch in batches])
    for _ in range(2):
        values = reference_log_probs(model, batches, cache_dir=tmp_path)
        assert torch.equal(values, expected) and not values.requires_grad
    assert torch.equal(reference_log_probs(model, batches), expected)


def test_pairs_come_back_as_chosen_and_rejected(model, batches, tmp_path):
    pairs = EncodedPairs(*batches)
    for _ in range(2):
        values = reference_log_probs(model, [pairs], cache_dir=tmp_path)
        for one, other in zip(values, pair_log_probs(model, pairs), strict=True):
            assert torch.equal(one, other)


def test_a_second_call_reads_and_does_not_compute(model, batches, tmp_path, count_forwards):
    reference_log_probs(model, batches, cache_dir=tmp_path)
    assert len(count_forwards) == 2
    reference_log_probs(model, iter(batches), cache_dir=tmp_path)
    assert len(count_forwards) == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_the_same_rows_in_other_batches_are_the_same_entry(model, batches):
    left = [random_batch(3, "left", seed=seed, vocabulary=60) for seed in (0, 10)]
    single = [batch.select([row]) for batch in batches for row in range(3)]
    assert cache_key(model, batches) == cache_key(model, left) == cache_key(model, single)
    assert cache_key(copy.deepcopy(model), batches) == cache_key(model, batches)


def test_whatever_changes_the_numbers_changes_the_key(model, batches):
    keys = {cache_key(model, batches)}

    def is_new(m, b=batches) -> bool:
        before = len(keys)
        keys.add(cache_key(m, b))
        return len(keys) > before

    nudged = copy.deepcopy(model)
    with torch.no_grad():
        last = list(nudged.parameters())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))
    assert is_new(nudged)
    assert is_new(copy.deepcopy(model).bfloat16())
    assert is_new(copy.deepcopy(model).double())
    turned = copy.deepcopy(model)
    turned.config.rms_norm_eps = 1e-3
    assert is_new(turned)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_new(model)
    assert is_new(model, batches[::-1])
    assert is_new(model, batches[:1])
    assert is_new(model, [EncodedPairs(*batches)])
    one = batches[0]
    token = one.input_ids.clone()
    token[0, 0] = token[0, 0] % 50 + 3
    assert is_new(model, [EncodedBatch(token, one.attention_mask, one.response_mask), batches[1]])
    counted = one.response_mask.clone()
    counted[counted.sum(1).argmax(), counted[counted.sum(1).argmax()].nonzero()[0]] = False
    assert is_new(model, [EncodedBatch(one.input_ids, one.attention_mask, counted), batches[1]])


def test_what_does_not_change_the_numbers_does_not_change_the_key(model, batches):
    expected = cache_key(model, batches)
    moved = copy.deepcopy(model)
    moved.config._name_or_path = "somewhere/else"
    assert cache_key(moved.eval(), batches) == expected
    for parameter in moved.parameters():
        parameter.requires_grad_(False)
    assert cache_key(moved, batches) == expected
    filled = [
        EncodedBatch(b.input_ids + 5 * ~b.attention_mask, b.attention_mask, b.response_mask) for b in batches
    ]
    assert cache_key(model, filled) == expected


def test_the_hash_of_weights_knows_names_and_shapes_and_reads_in_pieces(model, monkeypatch):
    whole = weights_hash(model)
    monkeypatch.setattr(reference_cache, "_PIECE", 1000)
    assert weights_hash(model) == whole

    class Two(torch.nn.Module):
        def __init__(self, first, second, shape):
            super().__init__()
            self.register_buffer(first, torch.arange(4.0).view(shape))
            self.register_buffer(second, torch.ones(2))

    hashes = [weights_hash(Two(*a)) for a in (("a", "b", (4,)), ("b", "a", (4,)), ("a", "b", (2, 2)))]
    assert len(set(hashes)) == 3


def test_adapters_switched_on_or_off_are_two_references(model, batches, tmp_path):
    peft = pytest.importorskip("peft")
    plain = torch.cat([sequence_log_probs(model, batch) for batch in batches])
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    policy = peft.get_peft_model(model, config)
    tuned = reference_log_probs(policy, batches, cache_dir=tmp_path)
    with policy.disable_adapter():
        reference = reference_log_probs(policy, batches, cache_dir=tmp_path)
    assert torch.equal(reference, plain.detach())
    assert not torch.allclose(tuned, reference)
    assert torch.equal(reference_log_probs(policy, batches, cache_dir=tmp_path), tuned)


# --- damage -------------------------------------------------------------------------------------------


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a flipped byte": lambda data, card: flip_a_byte(data),
    "a file cut short": lambda data, card: data.write_bytes(data.read_bytes()[:-4]),
    "no tensors": lambda data, card: data.unlink(),
    "half a card": lambda data, card: card.write_text(card.read_text()[:20]),
    "another card": lambda data, card: card.write_text(json.dumps({"key": "x", "sha256": "y"})),
    "a card that is a list": lambda data, card: card.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_announced_computed_again_and_repaired(model, batches, tmp_path, damage):
    expected = reference_log_probs(model, batches, cache_dir=tmp_path)
    DAMAGE[damage](next(tmp_path.glob("*.safetensors")), next(tmp_path.glob("*.json")))
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(reference_log_probs(model, batches, cache_dir=tmp_path), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(reference_log_probs(model, batches, cache_dir=tmp_path), expected)


@pytest.mark.parametrize("files_that_arrive", [0, 1])
def test_a_crash_while_writing_leaves_no_entry_and_no_litter(
    model, batches, tmp_path, monkeypatch, count_forwards, files_that_arrive
):
    arrived = []

    def replace(source, target):
        if len(arrived) == files_that_arrive:
            raise OSError("the disk is full")
        arrived.append(target)
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(reference_cache.os, "replace", replace)
    with pytest.raises(OSError, match="disk is full"):
        reference_log_probs(model, batches, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an unfinished entry is no entry: nothing to warn of
        reference_log_probs(model, batches, cache_dir=tmp_path)
    assert len(count_forwards) == 4


def test_nothing_of_a_half_written_file_is_ever_visible_under_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        reference_cache.os, "fsync", lambda _: seen.append(sorted(p.suffix for p in tmp_path.iterdir()))
    )
    reference_cache._write_whole(tmp_path / "entry.json", b"{}")
    assert seen == [[".part"]]
    assert [path.name for path in tmp_path.iterdir()] == ["entry.json"]


# --- how it is computed -------------------------------------------------------------------------------


def test_dropout_is_off_while_scoring_and_modes_come_back(batches):
    model = tiny_model(vocabulary=60, attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    values = reference_log_probs(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(values, reference_log_probs(model.eval(), batches))
    assert values.grad_fn is None


def test_a_reference_that_gives_nan_is_refused_and_not_stored(model, batches, tmp_path):
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(CourseError) as error:
        reference_log_probs(model, batches, cache_dir=tmp_path)
    assert error.value.id == "reference-not-finite"
    assert not list(tmp_path.iterdir())


def test_mixed_or_missing_batches_are_refused(model, batches):
    for wrong in ([], [batches[0], EncodedPairs(*batches)]):
        with pytest.raises(CourseError) as error:
            reference_log_probs(model, wrong)
        assert error.value.id == "batch-shape"
