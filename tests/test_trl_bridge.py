"""The bridge to real trainers: the same run as in the teaching loop, exact accumulation, exact resume, TRL's trainers."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from language_models import byte_tokenizer, tiny_model

from course_utils.errors import CourseError
from course_utils.policies import LanguageModelPolicy
from course_utils.references import MovingReference
from course_utils.training import TrainingSettings, train
from course_utils.training.order import DataOrder
from course_utils.trl_bridge.data import Dropped, StepBatches, feedback_from_rows, fit, rows_of_step

MISSING = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="not installed: peft")
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="not installed: trl")

LOG2 = math.log(2)
TOKENIZER = byte_tokenizer()
WORDS = ["the", "soup", "was", "warm", "and", "service", "kind", "music", "about", "me"]


def sentence(length, generator):
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))


def pair_rows(count=12, chat=True, seed=0):
    """Comparisons with responses of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        text = "tell me about " + sentence(2, generator)
        prompt = [{"role": "user", "content": text}] if chat else text
        # TRL tokenises prompt and response together: with the space in front no token straddles the boundary.
        space = "" if chat else " "
        chosen, rejected = (space + sentence(length, generator) for length in (1 + i % 3, 3 - i % 3))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def labelled_rows(preferred=3, rejected=9, chat=True):
    """Unpaired responses; the classes are of different sizes, so that pooled and class-wise means differ."""
    pairs = pair_rows(preferred + rejected, chat)
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen" if i < preferred else "rejected"],
            "label": i < preferred,
        }
        for i, row in enumerate(pairs)
    ]


def group_rows(count=8, size=3):
    generator = torch.Generator().manual_seed(4)
    return [
        {
            "prompt": row["prompt"],
            "responses": [sentence(1 + i, generator) for i in range(size)],
            "rewards": torch.randn(size, generator=generator).tolist(),
        }
        for row in pair_rows(count)
    ]


def pocket(seed=0, **settings):
    options = {"max_position_embeddings": 128, "eos_token_id": 2, "pad_token_id": 0, "num_hidden_layers": 1}
    return tiny_model(vocabulary=len(TOKENIZER), seed=seed, **{**options, **settings})


def lora(dropout=0.0):
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")


def made(folder, rows, objective, options=None, model=None, arguments=None, **more):
    """A trainer with arguments of transformers."""
    from course_utils.trl_bridge import AlignmentTrainer, training_arguments

    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True}
    return AlignmentTrainer(
        pocket() if model is None else model,
        args=training_arguments(folder, use_cpu=True, **{**settings, **(arguments or {})}),
        train_data=rows,
        processing_class=TOKENIZER,
        objective=objective,
        objective_options=options,
        **more,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def furthest(first, second):
    """The largest difference of two models' weights."""
    return max(
        float((a - b).abs().max()) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def refuses(id):
    return pytest.raises(CourseError, match=rf"\[{id}: see")


# -------------------- the same run as the teaching loop

KINDS = {
    "dpo": (pair_rows, {"beta": 0.3}),
    "simpo": (pair_rows, {}),
    "rdro": (labelled_rows, {"alpha": 0.4}),
    "kto": (labelled_rows, {"kl": "mismatched"}),
    "bco": (labelled_rows, {"delta": "batch"}),
    "exo_rw": (group_rows, {"beta_policy": 0.5}),
    "preference_distillation": (lambda: group_rows(size=2), {"gamma": 0.5}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_run_makes_the_steps_of_the_teaching_loop(tmp_path, name):
    from course_utils.trl_bridge import AlignmentTrainer

    make, options = KINDS[name]
    settings = TrainingSettings(
        steps=3, batch_size=4, learning_rate=1e-2, seed=3, schedule="cosine", clip_gradient=1.0
    )
    policy = LanguageModelPolicy(pocket(), TOKENIZER, chat_template=True)
    trainer = AlignmentTrainer(
        copy.deepcopy(policy.model),
        args=settings,
        train_data=make(),
        processing_class=TOKENIZER,
        objective=name,
        objective_options=options,
        output_dir=tmp_path,
    )
    trainer.train()
    loop = train(policy, feedback_from_rows(make()), name, settings=settings, progress=False, **options)
    expected = loop.history.column("loss")
    assert losses(trainer) == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-6)
    assert max(expected) - min(expected) > 1e-3  # the run went somewhere
    assert furthest(trainer.model, policy.model) < 1e-6
    assert trainer.batch_loss.calls == 3


@pytest.mark.parametrize(("name", "options"), [("rdro", {"alpha": 0.4}), ("kto", {"kl": "mismatched"})])
def test_four_pieces_of_two_are_one_of_eight(tmp_path, name, options):
    runs = []
    for rows, pieces in ((8, 1), (2, 4)):
        arguments = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": pieces,
            "max_grad_norm": 0.0,
        }
        trainer = made(tmp_path, labelled_rows(), name, options, pocket().double(), arguments)
        trainer.train()
        runs.append(trainer)
    whole, cut = runs
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6, abs=1e-6)
    assert furthest(whole.model, cut.model) < 1e-6
    # the case that a mean for each piece gets wrong: pieces with one class, and with different numbers of both
    order, labels = cut.problem.order, cut.problem._preferred
    counts = [
        [int(labels[rows_of_step(order, step)[piece::4]].sum()) for piece in range(4)] for step in range(3)
    ]
    assert all(0 in step and 1 in step for step in counts)


def test_a_mean_for_each_piece_would_be_another_loss(tmp_path):
    arguments = {"per_device_train_batch_size": 8, "max_steps": 1}
    trainer = made(
        tmp_path, labelled_rows(), "rdro", {"alpha": 0.4}, arguments=arguments, ref_model=pocket(1)
    )
    trainer.train()
    rows = rows_of_step(trainer.problem.order, 0)
    policy = LanguageModelPolicy(pocket(), TOKENIZER, chat_template=True)
    from course_utils import objectives

    feedback = feedback_from_rows(labelled_rows()).take(rows)
    with torch.no_grad():
        log_prob = policy.log_prob(feedback.prompt, feedback.response)
        ref = LanguageModelPolicy(pocket(1), TOKENIZER, chat_template=True).log_prob(
            feedback.prompt, feedback.response
        )
        each = objectives.rdro(log_prob, ref, feedback.preferred, alpha=0.4)
        expected = float(objectives.classwise_mean(each, feedback.preferred))
        pooled = float(each.mean())
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - pooled) > 0.1


# -------------------- policy = reference


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("dpo", {}, LOG2),
        ("rdro", {"alpha": 0.39}, 2 * LOG2),
        ("ddro", {"t": 0.39}, 2 * LOG2 - math.log(1)),
        ("ipo", {"tau": 0.1}, 25.0),
        ("exo_pref", {"label_smoothing": 1e-3}, -LOG2 - 0.5 * math.log(1e-3 * (1 - 1e-3))),
    ],
)
def test_the_first_loss_is_that_of_policy_and_reference_being_equal(tmp_path, name, options, value):
    if name == "ddro":
        # at r = 1: log(1/(1-t) (1 + 1 - 2t)) = log 2 for both classes, whatever t is
        assert value == pytest.approx(2 * LOG2)
    rows = pair_rows() if name in ("dpo", "ipo", "exo_pref") else labelled_rows()
    trainer = made(
        tmp_path, rows, name, options, arguments={"max_steps": 1, "gradient_accumulation_steps": 2}
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("how", ["after a fine-tune in memory", "bf16 autocast", "bf16 weights", "LoRA"])
def test_the_first_loss_of_dpo_is_log_2_however_the_model_is_held(tmp_path, how):
    model, more, arguments = pocket(), {}, {"max_steps": 2}
    if how == "after a fine-tune in memory":
        model.save_pretrained(tmp_path / "saved")
        model.config._name_or_path = str(tmp_path / "saved")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02)
    elif how == "bf16 autocast":
        arguments["bf16"] = True
    elif how == "bf16 weights":
        model = model.bfloat16()
    else:
        pytest.importorskip("peft")
        more["peft_config"] = lora()
    trainer = made(tmp_path, pair_rows(), "dpo", {"beta": 0.5}, model, arguments, **more)
    trainer.train()
    first, second = losses(trainer)
    assert first == pytest.approx(LOG2, abs=1e-6)
    assert abs(second - LOG2) > 1e-5  # and then the policy moves


# -------------------- references


def test_a_reference_asked_live_gives_the_numbers_of_one_scored_before(tmp_path):
    runs = [
        made(tmp_path, labelled_rows(), "rdro", reference=reference, ref_model=pocket(1))
        for reference in ("precomputed", "live")
    ]
    for trainer in runs:
        trainer.train()
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-6)
    assert abs(losses(runs[0])[0] - 2 * LOG2) > 0.05  # it is the other model
    assert furthest(runs[0].model, runs[1].model) < 1e-6


def test_the_table_of_the_reference_is_read_from_its_cache(tmp_path, monkeypatch):
    from course_utils import reference_cache

    made(tmp_path, labelled_rows(), "rdro", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(reference_cache, "_compute", lambda *_: pytest.fail("computed again"))
    trainer = made(
        tmp_path, labelled_rows(), "rdro", cache_dir=tmp_path / "cache", arguments={"max_steps": 1}
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(2 * LOG2, rel=1e-6)
    with pytest.raises(pytest.fail.Exception):
        made(tmp_path, labelled_rows(), "rdro", model=pocket(1), cache_dir=tmp_path / "cache")


@needs_peft
def test_the_reference_of_a_lora_run_is_the_model_without_its_adapter(tmp_path):
    base = pocket()
    kept = copy.deepcopy(base)
    runs = {}
    for reference in ("precomputed", "live"):
        trainer = made(
            tmp_path,
            pair_rows(),
            "dpo",
            {"beta": 0.5},
            copy.deepcopy(base),
            peft_config=lora(),
            reference=reference,
        )
        trainer.train()
        runs[reference] = trainer
    assert losses(runs["live"]) == pytest.approx(losses(runs["precomputed"]), abs=1e-6)
    tuned = runs["live"].model
    assert any(
        parameter.requires_grad for parameter in tuned.parameters()
    )  # asking it switched nothing off for good
    assert furthest(tuned.unload(), kept) == 0.0


def test_a_model_that_another_trainer_has_touched_is_copied_with_its_own_forward():
    from course_utils.trl_bridge.reference import frozen_copy

    model = pocket()
    original = model.forward
    model.forward = lambda *args, **kwargs: original(*args, **kwargs)  # as TRL's fused head and accelerate do
    ids = torch.tensor([[3, 4, 5]])
    copied = frozen_copy(model)
    before = copied(input_ids=ids).logits
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert torch.equal(copied(input_ids=ids).logits, before)
    assert not torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_moving_reference_follows_as_in_the_teaching_loop(tmp_path, kind):
    from course_utils.trl_bridge import AlignmentTrainer

    def moving(policy):
        return MovingReference.soft(policy, 0.6, 2) if kind == "soft" else MovingReference.hard(policy, 2)

    settings = TrainingSettings(steps=5, batch_size=4, learning_rate=1e-2, seed=1)
    policy = LanguageModelPolicy(pocket(), TOKENIZER, chat_template=True)
    model = copy.deepcopy(policy.model)
    rows = labelled_rows()
    ref = moving(model)
    trainer = AlignmentTrainer(
        model, args=settings, train_data=rows, processing_class=TOKENIZER, reference=ref, output_dir=tmp_path
    )
    trainer.train()
    loop = train(
        policy, feedback_from_rows(rows), "rdro", ref=moving(policy), settings=settings, progress=False
    )
    assert losses(trainer) == pytest.approx(loop.history.column("loss").tolist(), abs=1e-5)
    assert (ref.steps, ref.updates) == (5, 2)
    if kind == "hard":
        assert losses(trainer)[2] == pytest.approx(2 * LOG2, rel=1e-6)  # step 3 follows the first copy
        assert abs(losses(trainer)[1] - 2 * LOG2) > 1e-3


def test_references_that_would_be_silently_wrong_are_refused(tmp_path):
    model = pocket()
    with refuses("reference-is-the-policy"):
        made(tmp_path, pair_rows(), "dpo", model=model, ref_model=model)
    with refuses("reference-precision"):
        made(tmp_path, pair_rows(), "dpo", model=pocket().bfloat16(), ref_model=model)
    with refuses("reference-names-differ"):
        made(tmp_path, pair_rows(), "dpo", reference=MovingReference.hard(pocket(num_hidden_layers=2)))
    with refuses("unknown-choice"):
        made(tmp_path, pair_rows(), "dpo", reference=model)


@needs_peft
def test_adapters_that_would_be_silently_wrong_are_refused(tmp_path):
    from peft import get_peft_model

    adapted = get_peft_model(pocket(), lora())
    with refuses("reference-adapter-mix"):
        made(tmp_path, pair_rows(), "dpo", model=adapted, reference=MovingReference.soft(adapted, 0.5))
    with refuses("reference-names-differ"):
        plain = pocket()
        made(
            tmp_path,
            pair_rows(),
            "dpo",
            model=plain,
            peft_config=lora(),
            reference=MovingReference.hard(plain),
        )
    with refuses("adapter-already-there"):
        made(tmp_path, pair_rows(), "dpo", model=adapted, peft_config=lora())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    with refuses("adapter-already-trained"):
        made(tmp_path, pair_rows(), "dpo", model=adapted)


# -------------------- going on


def interrupted(folder, make, steps=5, every=2):
    """A run in one piece, and one that went on from its first checkpoint."""
    straight = make(folder / "straight", {"max_steps": steps})
    straight.train()
    first = make(folder / "cut", {"max_steps": steps, "save_steps": every})
    first.train()
    for path in (folder / "cut").glob("checkpoint-*"):
        if path.name != f"checkpoint-{every}":
            shutil.rmtree(path)
    second = make(folder / "cut", {"max_steps": steps, "save_steps": every})
    second.train(resume_from_checkpoint=True)
    return straight, second


@pytest.mark.parametrize("kind", ["moving reference", "LoRA with dropout"])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(tmp_path, kind):
    if kind == "LoRA with dropout":
        pytest.importorskip("peft")

    def make(folder, arguments):
        model = pocket()
        arguments = {**arguments, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        more = {"reference": MovingReference.soft(model, 0.6, 3)} if kind == "moving reference" else {}
        if not more:
            more = {"peft_config": lora(dropout=0.2)}
        return made(folder, labelled_rows(), "rdro", {"alpha": 0.4}, model, arguments, **more)

    straight, second = interrupted(tmp_path, make)
    assert losses(second) == losses(straight)
    assert len(losses(second)) == 5
    assert furthest(straight.model, second.model) == 0.0
    if kind == "moving reference":
        assert second.reference.steps == 5
        assert furthest(straight.reference.model, second.reference.model) == 0.0


def test_a_time_budget_stops_saves_and_the_run_goes_on(tmp_path):
    from course_utils.trl_bridge import TimeBudget

    straight = made(tmp_path / "straight", labelled_rows(), "rdro")
    straight.train()
    budget = TimeBudget(minutes=1e-6)
    made(tmp_path / "cut", labelled_rows(), "rdro", callbacks=[budget]).train()
    assert budget.stopped_at == 1
    roomy = TimeBudget(minutes=10)
    second = made(tmp_path / "cut", labelled_rows(), "rdro", callbacks=[roomy])
    second.train(resume_from_checkpoint=True)
    assert roomy.stopped_at is None
    assert losses(second) == losses(straight)
    assert furthest(straight.model, second.model) == 0.0
    with refuses("setting-out-of-range"):
        TimeBudget(minutes=0)


def test_a_checkpoint_of_another_run_or_half_a_checkpoint_is_refused(tmp_path):
    first = made(tmp_path, labelled_rows(), "rdro", arguments={"max_steps": 2, "save_steps": 1})
    first.train()
    for changed in ({"model": pocket(1)}, {"options": {"alpha": 0.3}}, {"rows": labelled_rows(4, 8)}):
        again = made(tmp_path, **{"rows": labelled_rows(), "objective": "rdro", **changed})
        with refuses("checkpoint-mismatch"):
            again.train(resume_from_checkpoint=True)
    # alignment.json is written last: a checkpoint without it was not finished, and the one before it is taken
    (tmp_path / "checkpoint-2" / "alignment.json").unlink()
    again = made(tmp_path, labelled_rows(), "rdro", arguments={"max_steps": 2})
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(first)
    shutil.rmtree(tmp_path / "checkpoint-1")
    with refuses("no-checkpoint"):
        again.train(resume_from_checkpoint=True)


def test_a_damaged_reference_in_a_checkpoint_is_noticed(tmp_path):
    from course_utils.trl_bridge.callbacks import RunFiles

    model = pocket()
    files = RunFiles({"objective": "rdro"}, MovingReference.hard(model, 1), None)
    (tmp_path / "checkpoint-7").mkdir()
    args = types.SimpleNamespace(output_dir=str(tmp_path))
    state = types.SimpleNamespace(global_step=7, is_world_process_zero=True)
    files.on_save(args, state, None)
    files.restore(tmp_path / "checkpoint-7")
    path = tmp_path / "checkpoint-7" / "reference.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with refuses("checkpoint-damaged"):
        files.restore(tmp_path / "checkpoint-7")
    assert "identity" in json.loads((tmp_path / "checkpoint-7" / "alignment.json").read_text())


# -------------------- what is logged


def test_metrics_are_means_over_all_examples_under_trls_names(tmp_path):
    arguments = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4, "max_steps": 1}
    trainer = made(tmp_path, pair_rows(), "dpo", {"beta": 0.3}, arguments=arguments, ref_model=pocket(1))
    trainer.train()
    feedback = feedback_from_rows(pair_rows())
    policy, ref = (LanguageModelPolicy(pocket(seed), TOKENIZER, chat_template=True) for seed in (0, 1))
    with torch.no_grad():
        chosen, rejected = (
            policy.log_prob(feedback.prompt, side) for side in (feedback.chosen, feedback.rejected)
        )
        ref_chosen, ref_rejected = (
            ref.log_prob(feedback.prompt, side) for side in (feedback.chosen, feedback.rejected)
        )
    rewards = 0.3 * (chosen - ref_chosen), 0.3 * (rejected - ref_rejected)
    expected = {
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/margins": (rewards[0] - rewards[1]).mean(),
        "rewards/accuracies": (rewards[0] > rewards[1]).double().mean(),
    }
    logged = trainer.state.log_history[0]
    for name, value in expected.items():
        assert logged[name] == pytest.approx(float(value), rel=1e-5), name


def test_the_evaluation_is_the_class_wise_mean_of_all_rows_however_they_are_cut(tmp_path):
    from course_utils import objectives

    rows = labelled_rows(2, 5)
    found = []
    for size in (3, 100):
        arguments = {
            "per_device_eval_batch_size": size,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "max_steps": 2,
        }
        trainer = made(
            tmp_path, labelled_rows(), "rdro", arguments=arguments, ref_model=pocket(1), eval_data=rows
        )
        found.append(trainer.evaluate())
    feedback = feedback_from_rows(rows)
    with torch.no_grad():
        log_probs = [
            LanguageModelPolicy(pocket(seed), TOKENIZER, chat_template=True).log_prob(
                feedback.prompt, feedback.response
            )
            for seed in (0, 1)
        ]
    expected = objectives.classwise_mean(objectives.rdro(*log_probs, feedback.preferred), feedback.preferred)
    for logs in found:
        assert logs["eval_loss"] == pytest.approx(float(expected), rel=1e-5)
        assert logs["eval_logps/chosen"] == pytest.approx(
            float(log_probs[0][feedback.preferred].mean()), rel=1e-5
        )
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2]


def test_a_loss_that_is_no_number_names_its_step_and_its_rows(tmp_path):
    trainer = made(tmp_path, labelled_rows(), "rdro", arguments={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(CourseError, match=r"step 2.*rows \d+, \d+, \d+, \d+|rows \d+.*step 2") as raised:
        trainer.train()
    assert raised.value.id in ("nan-input", "infinite-input", "training-not-finite")
    assert losses(trainer) == pytest.approx([2 * LOG2], rel=1e-6)


def test_the_display_of_the_course_takes_the_place_of_the_trainers(tmp_path, capsys):
    trainer = made(tmp_path, pair_rows(), "dpo", arguments={"disable_tqdm": False, "max_steps": 1})
    trainer.train()
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert "CourseProgress" in names
    assert not names & {"ProgressCallback", "PrinterCallback", "NotebookProgressCallback"}
    assert capsys.readouterr().out == ""
    assert trainer.args.report_to == []


# -------------------- data


def test_rows_of_every_form_become_the_same_feedback():
    plain = feedback_from_rows([{"prompt": "a", "response": "b", "preferred": True}])
    message = [{"role": "assistant", "content": "b"}]
    as_object = types.SimpleNamespace(prompt="a", response="b", preferred=True)
    others = [
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "completion": message, "label": True},
    ]
    for row in [as_object, *others]:
        found = feedback_from_rows([row])
        assert (found.prompt, found.response, found.preferred.tolist()) == (
            plain.prompt,
            plain.response,
            [True],
        )
    turn = types.SimpleNamespace(role="user", content="a")
    assert feedback_from_rows([{**pair_rows(1)[0], "prompt": [turn]}]).prompt == [
        [{"role": "user", "content": "a"}]
    ]
    groups = feedback_from_rows(group_rows())
    assert groups.reward.shape == (8, 3) and len(groups.responses[0]) == 3


@pytest.mark.parametrize(
    ("rows", "id", "where"),
    [
        ([], "no-rows", ""),
        ([{"text": "a"}], "row-shape", "row 0"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}],
            "row-shape",
            "row 1",
        ),
        ([{"prompt": 3, "chosen": "b", "rejected": "c"}], "row-shape", "row 0"),
        (
            [{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}],
            "row-shape",
            "row 0",
        ),
        ([{"prompt": "a", "response": "b", "label": -1}], "preferred-not-boolean", "row 0"),
        ([{"prompt": "a", "responses": ["b", "c"], "rewards": [1.0]}], "group-sizes", ""),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, id, where):
    with refuses(id) as raised:
        feedback_from_rows(rows)
    assert where in raised.value.where


def test_rows_that_are_too_long_are_an_error_or_counted_and_never_cut():
    rows = pair_rows(6, chat=False)
    rows[2]["chosen"] = " soup" * 57
    rows[4]["prompt"] = "soup " * 80
    feedback = feedback_from_rows(rows)
    with refuses("rows-too-long") as raised:
        fit(feedback, TOKENIZER, max_length=60)
    assert "2 of 6 rows" in raised.value.what and raised.value.where == "row 4"
    with pytest.warns(UserWarning, match="2 of 6 rows"):
        kept, dropped = fit(feedback, TOKENIZER, max_length=60, over_length="drop")
    assert dropped == Dropped(prompts=[4], responses=[2])
    assert kept.prompt == [row["prompt"] for i, row in enumerate(rows) if i not in (2, 4)]
    with refuses("rows-too-long"):
        fit(feedback, TOKENIZER, max_length=2, over_length="drop")  # never an empty data set
    with refuses("unknown-over-length"):
        fit(feedback, TOKENIZER, max_length=60, over_length="cut-response")


def test_the_longest_row_that_fits_keeps_its_end_token():
    feedback = feedback_from_rows(pair_rows(4))
    from course_utils.encoding import encode_pairs

    pairs = encode_pairs(TOKENIZER, feedback.prompt, feedback.chosen, feedback.rejected, chat_template=True)
    longest = int(max(side.attention_mask.sum(1).max() for side in (pairs.chosen, pairs.rejected)))
    assert len(fit(feedback, TOKENIZER, chat_template=True, max_length=longest)[1]) == 0
    with refuses("rows-too-long"):
        fit(feedback, TOKENIZER, chat_template=True, max_length=longest - 1)
    for side in (pairs.chosen, pairs.rejected):
        last = (side.attention_mask.sum(1) - 1)[:, None]
        assert (side.input_ids.gather(1, last) == TOKENIZER.eos_token_id).all()


def test_every_update_holds_both_classes_and_is_a_function_of_its_step():
    preferred = torch.tensor([i % 7 == 0 for i in range(35)])
    order = DataOrder(35, 8, seed=2, preferred=preferred)
    step = 0
    batches = StepBatches(order, pieces=2, step=lambda: step)
    first = list(batches)
    assert len(first) == len(batches) == 2 * 5
    for update in range(5):
        places = sorted(first[2 * update] + first[2 * update + 1])
        assert places == list(range(8 * update, 8 * update + 8))
        labels = preferred[rows_of_step(order, update)]
        assert 0 < int(labels.sum()) < 8
    seen = torch.cat([rows_of_step(order, update) for update in range(5)])
    assert set(seen.tolist()) == set(range(35))  # one epoch meets every row
    step = 7  # in the second epoch: it is walked from its beginning, and the trainer skips what it has done
    assert [places[0] // 8 for places in batches] == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    shared = [list(StepBatches(order, 2, lambda: 0, 2, process)) for process in (0, 1)]
    for a, b, whole in zip(shared[0], shared[1], first, strict=True):
        assert sorted(a + b) == sorted(set(a + b))
        assert len(a + b) == len(whole)
    with refuses("batch-too-small-to-share"):
        StepBatches(order, pieces=9, step=lambda: 0)


def test_no_key_of_a_batch_is_called_labels(tmp_path):
    trainer = made(tmp_path, labelled_rows(), "rdro")
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"places"}


# -------------------- what it is refused, what it brings along


def test_what_would_do_nothing_or_be_wrong_is_refused(tmp_path):
    from course_utils.trl_bridge import AlignmentTrainer
    from course_utils.trl_bridge.arguments import require_supported

    for objective in ("bt", "reverse_kl"):
        with refuses("objective-not-for-trainer"):
            made(tmp_path, pair_rows(), objective)
    with refuses("feedback-of-another-kind"):
        made(tmp_path, labelled_rows(), "dpo")
    with refuses("unknown-setting"):
        made(tmp_path, labelled_rows(), "rdro", {"beta": 0.1})
    with refuses("no-tokenizer"):
        AlignmentTrainer(pocket(), train_data=pair_rows(), objective="dpo", output_dir=tmp_path)
    with refuses("no-chat-template"):
        fit(feedback_from_rows(pair_rows()), byte_tokenizer(template=None), chat_template=True)
    usual = {"n_gpu": 1, "deepspeed": None, "auto_find_batch_size": False}
    require_supported(types.SimpleNamespace(**usual))
    for changed, id in (
        ({"n_gpu": 2}, "several-gpus-one-process"),
        ({"deepspeed": "zero.json"}, "sharded-training"),
        ({"auto_find_batch_size": True}, "setting-without-effect"),
    ):
        with refuses(id):
            require_supported(types.SimpleNamespace(**{**usual, **changed}))


def test_the_defaults_suit_a_cpu(tmp_path):
    from course_utils.trl_bridge import training_arguments

    arguments = training_arguments(tmp_path, use_cpu=True, bf16=False)
    assert (arguments.bf16, arguments.gradient_checkpointing, arguments.report_to) == (False, False, [])
    assert arguments.learning_rate == 1e-5 and str(arguments.save_strategy.value) == "no"
    if not torch.cuda.is_available():
        assert training_arguments(tmp_path).bf16 is False


def test_only_one_file_imports_trl_and_importing_the_package_brings_nothing_heavy():
    folder = Path(__file__).parents[1] / "course_utils" / "trl_bridge"
    importing = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "trl" for name in names):
                importing.add(path.name)
    assert importing == {"trl_trainers.py"}
    code = "import sys, course_utils.trl_bridge; print({'torch', 'transformers', 'trl'} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parents[1])
    assert done.stdout.strip() == "none", done.stderr


# -------------------- TRL's trainers


def trl_arguments(folder, kind, **changes):
    import trl

    usual = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    return getattr(trl, f"{kind}Config")(str(folder), **{**usual, **changes})


@needs_trl
@pytest.mark.parametrize(("objective", "chat"), [("dpo", True), ("rdro", False)])
def test_trls_dpo_trainer_makes_the_steps_of_ours(tmp_path, objective, chat):
    from course_utils.trl_bridge import RegistryDPOTrainer

    options = {"beta": 0.3} if objective == "dpo" else {"alpha": 0.4}
    rows = pair_rows(8, chat)  # all of them in every update: 8 pairs, or 16 responses
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    theirs = RegistryDPOTrainer(
        pocket(),
        args=trl_arguments(tmp_path, "DPO", **arguments),
        train_dataset=rows,
        processing_class=TOKENIZER,
        objective=objective,
        objective_options=options,
    )
    theirs.train()
    if objective == "rdro":
        arguments["per_device_train_batch_size"] = 8
    ours = made(tmp_path, rows, objective, options, arguments=arguments)
    ours.train()
    assert losses(theirs) == pytest.approx(losses(ours), abs=1e-5)
    assert abs(losses(ours)[0] - losses(ours)[-1]) > 1e-2
    assert furthest(theirs.model, ours.model) < 1e-4
    assert theirs.objective_calls == 6


@needs_trl
@pytest.mark.parametrize("adapter", [False, True])
def test_trls_kto_trainer_makes_the_steps_of_ours(tmp_path, adapter):
    from course_utils.trl_bridge import RegistryKTOTrainer

    if adapter:
        pytest.importorskip("peft")
    rows, options = labelled_rows(), {"alpha": 0.4}
    more = {"peft_config": lora()} if adapter else {}
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    theirs = RegistryKTOTrainer(
        pocket(),
        args=trl_arguments(tmp_path, "KTO", **arguments),
        train_dataset=rows,
        processing_class=TOKENIZER,
        objective="rdro",
        objective_options=options,
        **more,
    )
    theirs.train()
    ours = made(tmp_path, rows, "rdro", options, arguments=arguments, **more)
    ours.train()
    assert losses(theirs) == pytest.approx(losses(ours), abs=1e-5)
    assert losses(ours)[0] != pytest.approx(losses(ours)[-1], abs=1e-4)
    assert theirs.objective_calls == 6
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        found, expected = (trainer.state.log_history[1][name] for trainer in (theirs, ours))
        assert found == pytest.approx(expected, abs=1e-3), name


@needs_trl
def test_trls_trainers_refuse_weights_in_shards():
    from course_utils.trl_bridge.trl_trainers import _FromRegistry

    class Launched:
        """A trainer under `accelerate launch` with FSDP."""

        is_fsdp_enabled, is_deepspeed_enabled = True, False

        def create_accelerator_and_postprocess(self):
            """Nothing."""

    class Theirs(_FromRegistry, Launched):
        """In the place of TRL's."""

    with refuses("sharded-training"):
        Theirs().create_accelerator_and_postprocess()
    Launched.is_fsdp_enabled = False
    Theirs().create_accelerator_and_postprocess()


@needs_trl
def test_our_logs_are_those_of_trls_own_dpo(tmp_path):
    import datasets
    from trl import DPOTrainer

    rows = pair_rows(8, chat=False)
    trl_trainer = DPOTrainer(
        model=pocket(),
        ref_model=pocket(1),
        args=trl_arguments(tmp_path, "DPO", per_device_train_batch_size=8, max_steps=2, beta=0.3),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    trl_trainer.train()
    arguments = {"per_device_train_batch_size": 8, "max_steps": 2}
    ours = made(tmp_path, rows, "dpo", {"beta": 0.3}, arguments=arguments, ref_model=pocket(1))
    ours.train()
    for theirs, mine in zip(trl_trainer.state.log_history[:2], ours.state.log_history[:2], strict=True):
        for name in (
            "loss",
            *(f"rewards/{each}" for each in ("chosen", "rejected", "margins", "accuracies")),
        ):
            assert mine[name] == pytest.approx(theirs[name], abs=2e-4), name
        for name in ("logps/chosen", "logps/rejected", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@needs_trl
def test_another_version_of_trl_is_refused_with_what_to_install():
    from course_utils.trl_bridge.trl_trainers import require_trl_version

    require_trl_version("1.16.3")
    for version in ("1.15.0", "1.17.0", "2.0.0.dev0"):
        with refuses("trl-version") as raised:
            require_trl_version(version)
        assert 'pip install "trl>=1.16,<1.17"' in raised.value.remedy


@needs_trl
def test_settings_of_trls_own_loss_are_refused(tmp_path):
    from course_utils.trl_bridge import RegistryDPOTrainer, RegistryKTOTrainer

    for changes in ({"beta": 0.5}, {"loss_type": ["ipo"]}, {"precompute_ref_log_probs": True}):
        with refuses("setting-without-effect"):
            RegistryDPOTrainer(
                pocket(),
                args=trl_arguments(tmp_path, "DPO", **changes),
                train_dataset=pair_rows(),
                processing_class=TOKENIZER,
            )
    with refuses("feedback-of-another-kind"):
        RegistryKTOTrainer(
            pocket(),
            args=trl_arguments(tmp_path, "KTO"),
            train_dataset=pair_rows(),
            processing_class=TOKENIZER,
            objective="dpo",
        )
    with refuses("model-not-loaded"):
        RegistryDPOTrainer(
            "a/name",
            args=trl_arguments(tmp_path, "DPO"),
            train_dataset=pair_rows(),
            processing_class=TOKENIZER,
        )
