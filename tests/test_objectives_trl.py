"""Our losses against TRL's own trainers on the same batch: equal, or different as documented."""

from __future__ import annotations

import contextlib
import importlib.util
import io

import pytest
import torch

from course_utils import objectives

MISSING = [name for name in ("trl", "transformers", "datasets") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

WORDS = [
    "[pad]",
    "[end]",
    "tell",
    "me",
    "about",
    "a",
    "cat",
    "dog",
    "red",
    "old",
    "kind",
    "rude",
    "sleeps",
    "eats",
]
BETA = 0.3


def rows(n=6):
    generator = torch.Generator().manual_seed(0)

    def sentence(length):
        return " ".join(WORDS[i] for i in torch.randint(5, len(WORDS), (length,), generator=generator))

    # responses of different lengths, so that sums and means of token log-probabilities differ
    return [
        {"prompt": "tell me about", "chosen": " " + sentence(2 + i), "rejected": " " + sentence(7 - i)}
        for i in range(n)
    ]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[pad]", eos_token="[end]")


def tiny_model(seed):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    # large initial weights: the two models must disagree, or every loss would sit at its value at zero
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    ).eval()


def arguments(tmp_path_factory):
    return {
        "output_dir": str(tmp_path_factory.mktemp("trl")),
        "per_device_train_batch_size": 6,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "beta": BETA,
    }


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory):
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    with contextlib.redirect_stdout(io.StringIO()):
        return DPOTrainer(
            model=tiny_model(1),
            ref_model=tiny_model(2),
            args=DPOConfig(**arguments(tmp_path_factory), loss_type=["exo_pair"], label_smoothing=0.1),
            train_dataset=datasets.Dataset.from_list(rows()),
            processing_class=tokenizer(),
        )


def pair_of(trainer, index):
    """TRL's batch of one pair, its four log-probabilities and its two lengths."""
    batch = trainer.data_collator([trainer.train_dataset[index]])
    with torch.no_grad():
        policy_chosen, policy_rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        ref_chosen, ref_rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    lengths = batch["completion_mask"].sum(1)
    return batch, (policy_chosen, policy_rejected, ref_chosen, ref_rejected), lengths.split(1)


def trl_loss(trainer, batch, loss_type, label_smoothing):
    trainer.loss_types, trainer.label_smoothing = [loss_type], label_smoothing
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


@pytest.mark.parametrize(
    ("loss_type", "label_smoothing", "ours"),
    [
        ("sigmoid", 0.0, lambda *pair: objectives.dpo(*pair, beta=BETA)),
        ("exo_pair", 0.1, lambda *pair: objectives.exo_pref(*pair, beta=BETA, label_smoothing=0.1)),
        ("exo_pair", 1e-3, lambda *pair: objectives.exo_pref(*pair, beta=BETA)),
        ("hinge", 0.0, lambda *pair: objectives.slic(*pair, beta=BETA)),
        (
            "bco_pair",
            0.0,
            lambda w, l, ref_w, ref_l: (
                objectives.bco(w, ref_w, torch.tensor([True]), beta=BETA)
                + objectives.bco(l, ref_l, torch.tensor([False]), beta=BETA)
            ),
        ),
        ("robust", 0.2, lambda *pair: objectives.robust_dpo(*pair, beta=BETA, label_smoothing=0.2)),
    ],
)
def test_every_pair_has_the_loss_that_trl_gives_it(dpo_trainer, loss_type, label_smoothing, ours):
    margins = []
    for index in range(6):
        batch, pair, _ = pair_of(dpo_trainer, index)
        margins.append(float((pair[0] - pair[2]) - (pair[1] - pair[3])))
        expected = trl_loss(dpo_trainer, batch, loss_type, label_smoothing)
        assert float(ours(*pair)) == pytest.approx(expected, rel=2e-6, abs=1e-6)
    # the pairs must be able to tell losses apart: margins of both signs, away from zero
    assert min(margins) < -1 and max(margins) > 1


def test_trl_divides_ipo_by_the_length_and_the_paper_does_not(dpo_trainer):
    for index in range(6):
        batch, (policy_chosen, policy_rejected, ref_chosen, ref_rejected), (long, short) = pair_of(
            dpo_trainer, index
        )
        theirs = trl_loss(dpo_trainer, batch, "ipo", 0.0)
        sums = objectives.ipo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, tau=BETA)
        means = objectives.ipo(
            policy_chosen / long, policy_rejected / short, ref_chosen / long, ref_rejected / short, tau=BETA
        )
        assert float(means) == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert abs(float(sums) - theirs) > 1e-3


def test_kto_is_trls_on_one_batch_with_trls_own_baseline(tmp_path_factory):
    import datasets
    from trl import KTOConfig, KTOTrainer

    unpaired = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in rows(3)
        for kind in ("chosen", "rejected")
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = KTOTrainer(
            model=tiny_model(1),
            ref_model=tiny_model(2),
            args=KTOConfig(**arguments(tmp_path_factory), desirable_weight=1.5, undesirable_weight=0.5),
            train_dataset=datasets.Dataset.from_list(unpaired),
            processing_class=tokenizer(),
        )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(6)])
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
        policy, policy_mismatched = trainer.compute_ref_log_probs(trainer.model, batch)
        ref, ref_mismatched = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    preferred = torch.as_tensor(batch["label"], dtype=torch.bool)
    assert preferred.any() and not preferred.all()
    losses = objectives.kto(
        policy,
        ref,
        preferred,
        beta=BETA,
        kl=objectives.kto_kl(policy_mismatched, ref_mismatched),
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    assert float(losses.mean()) == pytest.approx(theirs, rel=2e-6, abs=1e-6)
    # the baseline is at work: above zero, where its clamp would hide it
    assert float(objectives.kto_kl(policy_mismatched, ref_mismatched)) > 0.5
