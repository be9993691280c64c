"""Traps of TRL and of transformers' trainer: each is reproduced, and the bridge is shown not to have it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math

import pytest
import torch
from test_trl_bridge import (
    TOKENIZER,
    labelled_rows,
    losses,
    made,
    pair_rows,
    pocket,
    refuses,
    trl_arguments,
)

from course_utils import objectives

MISSING = [name for name in ("trl", "transformers", "datasets") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

LOG2 = math.log(2)
NEWLINE = TOKENIZER("\n")["input_ids"]


@pytest.fixture(autouse=True)
def no_bars():
    import datasets

    datasets.disable_progress_bars()


def trls_dpo(folder, rows=None, model=None, ref_model="another", trainer=None, **changes):
    """TRL's own DPO trainer."""
    import datasets
    from trl import DPOTrainer

    return (trainer or DPOTrainer)(
        model=pocket() if model is None else model,
        ref_model=pocket(1) if ref_model == "another" else ref_model,
        args=trl_arguments(folder, "DPO", **changes),
        train_dataset=datasets.Dataset.from_list(pair_rows(chat=False) if rows is None else rows),
        processing_class=TOKENIZER,
    )


def trls_kto(folder, rows, trainer=None, **changes):
    """TRL's own KTO trainer."""
    import datasets
    from trl import KTOTrainer

    return (trainer or KTOTrainer)(
        model=pocket(),
        ref_model=pocket(1),
        args=trl_arguments(folder, "KTO", **changes),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )


def chat_completions(rows):
    """TRL wants chat responses beside chat prompts."""
    names = ("chosen", "rejected", "completion")
    return [
        {k: [{"role": "assistant", "content": v}] if k in names else v for k, v in row.items()}
        for row in rows
    ]


def first_batch(trainer, count=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def loss_of(trainer, batch):
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


# -------------------- references


def test_without_a_reference_trl_loads_it_from_the_disk_again(tmp_path):
    model = pocket()
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a fine-tune in memory
    theirs = trls_dpo(tmp_path, model=copy.deepcopy(loaded), ref_model=None, beta=0.5)
    assert abs(loss_of(theirs, first_batch(theirs)) - LOG2) > 1e-3

    from course_utils.trl_bridge import RegistryDPOTrainer

    ours = made(tmp_path, pair_rows(), "dpo", {"beta": 0.5}, copy.deepcopy(loaded), {"max_steps": 1})
    ours.train()
    bridge = RegistryDPOTrainer(
        copy.deepcopy(loaded),
        args=trl_arguments(tmp_path, "DPO"),
        train_dataset=pair_rows(),
        processing_class=TOKENIZER,
        objective_options={"beta": 0.5},
    )
    assert losses(ours)[0] == pytest.approx(LOG2, abs=1e-6)
    assert loss_of(bridge, first_batch(bridge)) == pytest.approx(LOG2, abs=1e-6)


def test_a_copy_of_a_model_that_trl_has_patched_still_answers_with_the_original(tmp_path):
    from course_utils.trl_bridge.reference import frozen_copy

    model = trls_dpo(tmp_path).model
    naive, ours = copy.deepcopy(model), frozen_copy(model)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        next(model.parameters()).add_(1.0)
        assert not torch.allclose(naive(input_ids=ids).logits, before)  # it went along
        assert torch.allclose(ours(input_ids=ids).logits, before)


def test_a_reference_in_another_precision_is_another_reference(tmp_path):
    model = pocket(spread=8.0)
    rows = pair_rows(chat=False)
    mixed = trls_dpo(tmp_path, rows, copy.deepcopy(model).bfloat16(), copy.deepcopy(model), beta=0.5)
    same = trls_dpo(
        tmp_path, rows, copy.deepcopy(model).bfloat16(), copy.deepcopy(model).bfloat16(), beta=0.5
    )
    assert abs(loss_of(mixed, first_batch(mixed)) - LOG2) > 1e-3
    assert loss_of(same, first_batch(same)) == pytest.approx(LOG2, abs=1e-6)
    with refuses("reference-precision"):
        made(tmp_path, rows, "dpo", model=copy.deepcopy(model).bfloat16(), ref_model=model)


def test_the_mixup_alpha_of_trl_multiplies_the_policy_as_ours_does():
    from trl.trainer.callbacks import SyncRefModelCallback

    from course_utils.references import mix_parameters

    policy, theirs, ours = pocket(0), pocket(1), pocket(1)
    SyncRefModelCallback.sync_target_model(policy, theirs, 0.6)
    mix_parameters(policy, ours, 0.6)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


# -------------------- defaults


def test_trls_defaults_are_made_for_a_gpu(tmp_path):
    from trl import DPOConfig, KTOConfig

    from course_utils.trl_bridge import training_arguments

    for config in (DPOConfig, KTOConfig):
        theirs = config(str(tmp_path), use_cpu=True)
        assert (theirs.bf16, theirs.gradient_checkpointing, theirs.learning_rate) == (True, True, 1e-6)
    if not torch.cuda.is_available():
        ours = training_arguments(tmp_path)
        assert (ours.bf16, ours.gradient_checkpointing) == (False, False)
        assert ours.learning_rate > 1e-6


def test_trl_calls_home_on_construction_and_the_bridge_does_not(tmp_path, monkeypatch):
    from trl.trainer import base_trainer

    from course_utils.trl_bridge import RegistryDPOTrainer

    calls = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: calls.append(args))
    RegistryDPOTrainer(
        pocket(), args=trl_arguments(tmp_path, "DPO"), train_dataset=pair_rows(), processing_class=TOKENIZER
    )
    assert not calls
    trls_dpo(tmp_path)
    assert calls


# -------------------- batches


def test_kto_on_pairs_trains_on_batches_of_one_class(tmp_path):
    from course_utils.trl_bridge import RegistryKTOTrainer

    rows = pair_rows(8, chat=False)
    theirs = trls_kto(tmp_path, rows)
    chosen = [sum(batch["label"].tolist()) for batch in theirs.get_train_dataloader()]
    assert chosen == [4, 4, 0, 0]

    bridge = RegistryKTOTrainer(
        pocket(), args=trl_arguments(tmp_path, "KTO"), train_dataset=rows, processing_class=TOKENIZER
    )
    assert [sum(batch["label"].tolist()) for batch in bridge.get_train_dataloader()] == [2, 2, 2, 2]
    ours = made(tmp_path, rows, "rdro")
    labels = ours.problem._preferred
    assert [int(labels[ours.problem.order.batch(step)].sum()) for step in range(4)] == [2, 2, 2, 2]


def test_kto_pools_the_two_classes_in_one_mean(tmp_path):
    from course_utils.trl_bridge import RegistryKTOTrainer

    rows = labelled_rows(1, 3, chat=False)
    theirs = trls_kto(tmp_path, rows, loss_type="apo_zero_unpaired")
    batch = first_batch(theirs)
    with torch.no_grad():
        policy = theirs.compute_ref_log_probs(theirs.model, batch)[0]
        ref = theirs.compute_ref_log_probs(theirs.ref_model, batch)[0]
    preferred = batch["label"].bool()
    each = objectives.kto(policy, ref, preferred, beta=0.1)
    pooled, classwise = float(each.mean()), float(objectives.classwise_mean(each, preferred))
    assert loss_of(theirs, batch) == pytest.approx(pooled, abs=1e-5)

    bridge = RegistryKTOTrainer(
        pocket(), pocket(1), trl_arguments(tmp_path, "KTO"), rows, processing_class=TOKENIZER, objective="kto"
    )
    assert loss_of(bridge, first_batch(bridge)) == pytest.approx(classwise, abs=1e-5)
    assert abs(classwise - pooled) > 0.1


def test_one_class_in_a_batch_is_the_mean_of_that_class_in_the_bridge(tmp_path):
    from course_utils.trl_bridge.batch_loss import example_weights

    trainer = made(tmp_path, labelled_rows(), "rdro")
    for preferred in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        (weights,) = example_weights(trainer.problem.terms, preferred, 4)
        assert weights.tolist() == [0.25] * 4
    (weights,) = example_weights(trainer.problem.terms, torch.tensor([True, False, False, False]), 4)
    assert weights.tolist() == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])


def test_a_key_called_labels_switches_the_scaling_of_accumulated_losses(tmp_path):
    from transformers import Trainer, TrainingArguments

    class Means(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(input_ids=inputs["input_ids"]).logits.pow(2).mean()

        def log(self, logs, *args, **kwargs):
            seen.append(logs)

    found = {}
    for key in ("labels", "tokens"):
        seen = []
        rows = [{"input_ids": torch.tensor([3, 4, 5]), key: torch.tensor([3, 4, 5])} for _ in range(4)]
        Means(
            pocket(),
            TrainingArguments(
                str(tmp_path),
                max_steps=1,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=4,
                logging_steps=1,
                remove_unused_columns=False,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=rows,
        ).train()
        found[key] = next(logs["loss"] for logs in seen if "loss" in logs)
    assert found["labels"] == pytest.approx(4 * found["tokens"], rel=1e-3)
    trainer = made(tmp_path, labelled_rows(), "rdro")
    assert "labels" not in next(iter(trainer.get_train_dataloader()))


# -------------------- tokens


def test_a_max_length_below_the_prompt_empties_trls_data_without_an_error(tmp_path):
    from course_utils.trl_bridge import RegistryDPOTrainer

    rows = chat_completions(pair_rows())
    theirs = trls_dpo(tmp_path, rows, max_length=8)
    assert len(theirs.train_dataset) == 0
    for over_length in ("error", "drop"):
        with refuses("rows-too-long"):
            made(tmp_path, pair_rows(), "dpo", max_length=8, over_length=over_length)
        with refuses("rows-too-long"):
            RegistryDPOTrainer(
                pocket(),
                args=trl_arguments(tmp_path, "DPO", max_length=8),
                train_dataset=pair_rows(),
                processing_class=TOKENIZER,
                over_length=over_length,
            )


def test_truncation_takes_the_end_token_off(tmp_path):
    from course_utils.trl_bridge import RegistryDPOTrainer

    rows = pair_rows(4, chat=False)
    whole = trls_dpo(tmp_path, rows)
    row = whole.train_dataset[0]
    length = len(row["prompt_ids"]) + 2
    for row in (whole.train_dataset[i] for i in range(4)):
        assert row["chosen_ids"][-1] == TOKENIZER.eos_token_id
    cut = first_batch(trls_dpo(tmp_path, rows, max_length=length))
    assert not (cut["input_ids"] == TOKENIZER.eos_token_id).any(dim=1).all()
    with refuses("rows-too-long"):
        RegistryDPOTrainer(
            pocket(),
            args=trl_arguments(tmp_path, "DPO", max_length=length),
            train_dataset=rows,
            processing_class=TOKENIZER,
        )


def test_chatml_trains_the_newline_after_the_end_and_the_bridge_does_not(tmp_path):
    from course_utils.trl_bridge import RegistryDPOTrainer

    theirs = trls_dpo(tmp_path, chat_completions(pair_rows()))
    ids = theirs.train_dataset[0]["chosen_ids"]
    assert ids[-2:] == [TOKENIZER.eos_token_id, *NEWLINE]

    bridge = RegistryDPOTrainer(
        pocket(), args=trl_arguments(tmp_path, "DPO"), train_dataset=pair_rows(), processing_class=TOKENIZER
    ).bridge
    batch = first_batch(theirs)
    examples = bridge._examples(batch, bridge._preferred(batch))
    for side in (examples._encoded.chosen, examples._encoded.rejected):
        last = (side.response_mask.long() * torch.arange(side.input_ids.shape[1])).argmax(dim=1)
        assert (side.input_ids.gather(1, last[:, None]) == TOKENIZER.eos_token_id).all()
    tokens = int(
        examples._encoded.chosen.response_mask.sum() + examples._encoded.rejected.response_mask.sum()
    )
    assert tokens == int(batch["completion_mask"].sum()) - len(batch["input_ids"])  # one newline a row
    # the same rows, tokenised by us, have the same tokens
    ours = made(tmp_path, pair_rows(), "dpo").problem._examples._encoded.select(range(4))
    assert torch.equal(ours.chosen.response_lengths, examples._encoded.chosen.response_lengths)


# -------------------- losses


def test_a_loss_in_an_old_hook_is_never_called(tmp_path):
    from trl import DPOTrainer, KTOTrainer

    from course_utils.trl_bridge import RegistryDPOTrainer

    class OldDPO(DPOTrainer):
        def dpo_loss(self, *args, **kwargs):
            raise AssertionError("called")

    class OldKTO(KTOTrainer):
        def kto_loss(self, *args, **kwargs):
            raise AssertionError("called")

    old, plain = trls_dpo(tmp_path, trainer=OldDPO), trls_dpo(tmp_path)
    assert loss_of(old, first_batch(old)) == loss_of(plain, first_batch(plain))
    old = trls_kto(tmp_path, labelled_rows(2, 2, chat=False), trainer=OldKTO)
    assert loss_of(old, first_batch(old)) > 0
    ours = RegistryDPOTrainer(
        pocket(), args=trl_arguments(tmp_path, "DPO"), train_dataset=pair_rows(), processing_class=TOKENIZER
    )
    assert ours.objective_calls == 0
    loss_of(ours, first_batch(ours))
    assert ours.objective_calls == 1


def test_names_that_mean_something_else_in_trl(tmp_path):
    rows = pair_rows(4, chat=False)
    theirs = trls_dpo(tmp_path, rows, beta=0.3)
    batch = first_batch(theirs)
    with torch.no_grad():
        policy = theirs.compute_ref_log_probs(theirs.model, batch)
        ref = theirs.compute_ref_log_probs(theirs.ref_model, batch)
    dpo = float(objectives.dpo(*policy, *ref, beta=0.3).mean())
    assert loss_of(theirs, batch) == pytest.approx(dpo, abs=1e-5)

    # f_divergence_type="reverse_kl" is plain DPO, not the reverse-KL objective
    assert theirs.f_divergence_type == "reverse_kl"
    # "robust" is provably robust DPO (without noise: DPO), not RDRO
    theirs.loss_types = ["robust"]
    both, ref_both, preferred = torch.cat(policy), torch.cat(ref), torch.arange(8) < 4
    rdro = float(objectives.classwise_mean(objectives.rdro(both, ref_both, preferred), preferred))
    assert loss_of(theirs, batch) == pytest.approx(dpo, abs=1e-5)
    assert abs(rdro - dpo) > 0.1
    # "ipo" divides by the length, the paper's form does not
    theirs.loss_types = ["ipo"]
    ipo = float(objectives.ipo(*policy, *ref, tau=0.3).mean())
    assert abs(loss_of(theirs, batch) - ipo) > 1e-2
    ours = made(tmp_path, rows, "ipo", {"tau": 0.3}, arguments={"max_steps": 1}, ref_model=pocket(1))
    ours.train()
    assert losses(ours)[0] == pytest.approx(ipo, rel=1e-5)


def test_exo_pair_raises_at_its_own_default_and_exo_pref_trains(tmp_path):
    with pytest.raises(ValueError, match=r"[Ll]abel smoothing"):
        trls_dpo(tmp_path, loss_type=["exo_pair"])
    ours = made(tmp_path, pair_rows(), "exo_pref", arguments={"max_steps": 1})
    ours.train()
    assert math.isfinite(losses(ours)[0])


def test_unused_columns_are_removed_by_default_and_ours_are_not(tmp_path):
    import datasets
    from transformers import Trainer, TrainingArguments

    usual = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "logging_steps": 1}
    plain = Trainer(
        pocket(),
        TrainingArguments(str(tmp_path), **usual),
        train_dataset=datasets.Dataset.from_list([{"prompt_ids": [3], "chosen_ids": [4]}]),
        data_collator=lambda rows: rows,
    )
    with contextlib.suppress(StopIteration), pytest.raises(ValueError, match="No columns"):
        next(iter(plain.get_train_dataloader()))
    ours = made(tmp_path, pair_rows(), "dpo", arguments={"remove_unused_columns": True, "max_steps": 1})
    ours.train()
    assert losses(ours)[0] == pytest.approx(LOG2, abs=1e-6)
