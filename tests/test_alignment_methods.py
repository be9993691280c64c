"""Methods through `align`: labelled responses, the share of preferred ones, references that move, what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from dataclasses import replace

import pytest
import torch

from course_utils import datasets, gpu
from course_utils.alignment_runs import RunSettings, align, align_in_stages, practice_material
from course_utils.alignment_runs.data import feedback_of, load_data, options_of
from course_utils.alignment_runs.preparing import load_policy_of, trainer_of
from course_utils.alignment_runs.room import require_fit
from course_utils.errors import CourseError

MISSING = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
SMALL = {
    "steps": 4, "batch": 8, "micro_batch": 4, "learning_rate": 3e-4, "prompt": 24, "response": 40, "samples": 0,
    "held_out": 0.25, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    places = {
        "pairs": practice_material(tmp_path_factory.mktemp("pairs"), rows=40),
        "labels": practice_material(tmp_path_factory.mktemp("labels"), rows=80, alpha=0.39),
    }

    def settings(kind, folder, method, **changes):
        place = places[kind]
        given = {
            "model": str(place.model),
            "data": str(place.data),
            "out": str(folder),
            "method": method,
            **changes,
        }
        return RunSettings(**{**SMALL, **given})

    return settings


@pytest.fixture(scope="module")
def labels(make, tmp_path_factory):
    """RDRO on labelled responses, never stopped."""
    return align(make("labels", tmp_path_factory.mktemp("run") / "rdro", "rdro"), quiet=True)


def loop_losses(settings, options=None, reference=None):
    """The same run in the teaching loop."""
    from course_utils.real_models import load_policy
    from course_utils.training import TrainingSettings, train

    rows, _ = load_data(settings)
    policy = load_policy(settings.model, device="cpu")
    same = TrainingSettings(
        steps=settings.steps,
        batch_size=8,
        learning_rate=3e-4,
        schedule="linear",
        clip_gradient=1.0,
        accumulate=2,
    )
    ref = None if reference is None else reference(policy)
    given = options_of(settings, rows)[0] if options is None else options
    run = train(
        policy, feedback_of(settings, rows), settings.method, ref=ref, settings=same, progress=False, **given
    )
    return run.history.column("loss")


def test_practice_labels_have_the_share_that_was_asked_for_and_the_best_rated_are_true(make, tmp_path):
    data = datasets.load(make("labels", tmp_path, "rdro").data)
    assert data.kind == "unpaired" and data.is_chat and len(data) == 80
    assert data.alpha == pytest.approx(round(0.39 * 80) / 80)
    from course_utils.worlds import pocket

    world = pocket.load_world("bradley_terry")
    reward = world.reward_of([row.prompt[0]["content"] for row in data], [row.response for row in data])
    preferred = torch.tensor([row.preferred for row in data])
    assert float(reward[preferred].mean() - reward[~preferred].mean()) > 0.3
    with pytest.raises(CourseError, match="0 of 20") as error:
        practice_material(tmp_path, rows=20, alpha=0.01)
    assert error.value.id == "run-setting"


def test_the_model_of_the_practice_wrote_the_rows_itself(make, tmp_path):
    """The premise of the ratio methods, put in on purpose: mean log-probability = minus the entropy, within noise."""
    from course_utils.worlds import pocket

    world, data = pocket.load_world("bradley_terry"), datasets.load(make("labels", tmp_path, "rdro").data)
    prompts = [row.prompt[0]["content"] for row in data]
    said = world.log_prob(None, prompts, [row.response for row in data]).double()
    drawn = world.sample_responses(prompts, torch.Generator().manual_seed(5))
    own = world.log_prob(None, prompts, drawn).double()
    difference = said - own
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(len(difference))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rdro", {}),
        ("ddro", {}),
        ("rdro_pooled", {}),
        ("kto", {"kl": "mismatched"}),
        ("bco", {}),
        (
            "bco",
            {"delta": "batch"},
        ),  # measured on all held-out rows at once: a piece of them may have one class
    ],
)
def test_labelled_responses_give_the_losses_of_the_teaching_loop(make, labels, tmp_path, method, options):
    run = (
        labels
        if method == "rdro"
        else align(make("labels", tmp_path / "run", method, options=options), quiet=True)
    )
    assert run.losses == pytest.approx(loop_losses(run.settings), abs=2e-5)
    assert len(set(run.losses)) > 1


@pytest.mark.parametrize("method", ["rdro", "ddro", "kto"])
def test_comparisons_feed_methods_that_learn_from_labels(make, tmp_path, method):
    run = align(make("pairs", tmp_path / "run", method), quiet=True)
    assert run.losses == pytest.approx(loop_losses(run.settings), abs=2e-5)
    assert run.record["preferred_fraction"] == 0.5
    assert (
        run.record["options"]
        == {
            "rdro": {"alpha": 0.5},
            "ddro": {"t": 0.5, "past_wall": "tangent"},
            "kto": {},
        }[method]
    )


def test_every_batch_of_labelled_responses_holds_both_classes_in_proportion(make, tmp_path):
    settings = make("labels", tmp_path / "run", "rdro")
    train, held = load_data(settings)
    trainer = trainer_of(settings, load_policy_of(settings), train, held, {"alpha": train.alpha}, None)
    preferred = torch.tensor([row.preferred for row in train])
    counts = [int(preferred[trainer.problem.order.batch(step)].sum()) for step in range(40)]
    assert set(counts) <= {math.floor(8 * train.alpha), math.ceil(8 * train.alpha)}
    assert abs(sum(counts) / (40 * 8) - train.alpha) < 1 / 320


def test_alpha_is_the_share_of_the_rows_unless_it_is_given(make, labels, tmp_path, capsys):
    train, _ = load_data(labels.settings)
    assert labels.record["options"] == {"alpha": train.alpha}
    assert labels.record["preferred_fraction"] == train.alpha != 0.5
    assert labels.record["settings"]["options"] == {}
    found, remark = options_of(labels.settings, train)
    assert found == {"alpha": train.alpha} and "share of preferred" in remark
    given = replace(
        labels.settings, out=str(tmp_path / "given"), options={"alpha": train.alpha}, minutes=1e-6
    )
    assert align(given).losses == labels.losses[:1]
    assert f"alpha = {train.alpha:g}, as given" in capsys.readouterr().out
    other = replace(given, out=str(tmp_path / "other"), options={"alpha": 0.9})
    assert align(other, quiet=True).losses[0] != labels.losses[0]
    t = options_of(replace(given, method="ddro", options={}), train)
    assert t[0] == {"t": train.alpha, "past_wall": "tangent"} and "straight line" in t[1]
    strict = options_of(replace(given, method="ddro", options={"past_wall": "error"}), train)
    assert strict[0] == {"t": train.alpha, "past_wall": "error"} and "straight line" not in strict[1]
    assert options_of(replace(given, method="kto", options={}), train) == ({}, "")


def test_step_0_of_rdro_is_two_logarithms_of_two_whatever_the_share(labels):
    # (1 + a) log 2 + (1 - a) log 2: two class means, added.
    assert labels.losses[0] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert labels.record["evaluation"]["before"]["loss"] == pytest.approx(2 * math.log(2), abs=1e-6)


def test_a_run_on_labels_that_was_stopped_is_the_run_that_was_not(labels, tmp_path):
    settings = replace(labels.settings, out=str(tmp_path / "run"))
    align(settings, stop_after=2, quiet=True)
    again = align(settings, quiet=True)
    assert again.losses == labels.losses and again.record["evaluation"] == labels.record["evaluation"]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("labels", "dpo"),
        ("labels", "exo_pref"),
        ("labels", "pmle"),
        ("labels", "exo_rw"),
        ("pairs", "exo_rw"),
        ("pairs", "preference_distillation"),
        ("pairs", "bt"),
    ],
)
def test_rows_that_cannot_feed_a_method_are_refused_before_a_model_is_loaded(make, tmp_path, kind, method):
    settings = make(kind, tmp_path / "run", method, model="no/such-model")
    with pytest.raises(CourseError, match=method) as error:
        align(settings, quiet=True)
    assert error.value.id == "feedback-of-another-kind"
    assert ("rdro" in error.value.remedy) == (kind == "labels" and method != "exo_rw")


@pytest.mark.parametrize("reference", ["soft", "hard"])
def test_a_moving_reference_goes_on_exactly_and_is_that_of_the_teaching_loop(make, tmp_path, reference):
    from course_utils.references import MovingReference

    settings = make("pairs", tmp_path / "whole", "dpo", reference=reference, ref_every=2, steps=5)
    whole = align(settings, quiet=True)
    stopped = replace(settings, out=str(tmp_path / "stopped"))
    for session in (1, 2):  # the second session ends in the middle of a period
        assert not align(stopped, stop_after=session, quiet=True).finished
    last = align(stopped, quiet=True)
    assert last.finished and last.losses == whole.losses
    assert last.record["evaluation"] == whole.record["evaluation"]
    moving = {
        "soft": lambda policy: MovingReference.soft(policy, 0.6, 2),
        "hard": lambda policy: MovingReference.hard(policy, 2),
    }
    assert whole.losses == pytest.approx(loop_losses(settings, reference=moving[reference]), abs=2e-5)
    if reference == "hard":  # the reference is the policy again after two updates: the loss is log 2
        assert whole.losses[2] == pytest.approx(math.log(2), abs=1e-6)
        assert whole.losses[1] != pytest.approx(math.log(2), abs=1e-5)


def test_a_reference_that_is_asked_live_gives_the_same_numbers(make, labels, tmp_path):
    live = align(replace(labels.settings, out=str(tmp_path / "live"), reference="live"), quiet=True)
    assert live.losses == pytest.approx(labels.losses, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": "moving"},
        {"reference": "soft", "ref_every": 2, "lora": 4},
        {"reference": "hard", "ref_every": 300},
        {"reference": "soft", "ref_every": 2, "ref_alpha": 0.0},
        {"reference": "soft", "ref_every": 2, "method": "pmle"},
        {"responses": "all"},
        {"responses": "none", "method": "sft"},
    ],
)
def test_references_that_cannot_be_are_refused(changes):
    with pytest.raises(CourseError) as error:
        RunSettings(**changes)
    assert error.value.id == "run-setting"
    with pytest.raises(CourseError, match="ref_every is 0"):
        RunSettings(ref_every=0)


def test_the_command_and_the_identity_name_the_reference():
    settings = RunSettings(method="dpo", reference="soft", ref_alpha=0.5, ref_every=20)
    assert "--reference soft --ref-alpha 0.5 --ref-every 20" in settings.command
    assert settings.called == "dpo, soft reference" and "dpo-softreference" in str(settings.folder)
    assert {"reference", "ref_alpha", "ref_every"} <= settings.identity().keys()
    from typer.testing import CliRunner

    from course_utils.cli import app

    help_text = CliRunner().invoke(app, shlex.split("align --help"), env={"COLUMNS": "200"}).output
    assert "--ref-every" in help_text and "--responses" in help_text


def test_the_plan_counts_the_second_model_of_a_reference_that_is_asked_again():
    words = {
        "precomputed": RunSettings(),
        "moving": RunSettings(reference="hard", ref_every=9),
        "live": RunSettings(method="kto", options={"kl": "mismatched"}),
    }
    assert {word: each.reference_word for word, each in words.items()} == {word: word for word in words}
    plan = gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "dpo", batch=16, micro_batch=2, reference="live")
    with pytest.raises(CourseError, match="no --reference"):
        require_fit(plan, gpu.CARDS["T4"])


def test_sft_on_all_responses_imitates_the_rejected_ones_too(make, tmp_path):
    settings = make("labels", tmp_path / "all", "sft", responses="all", learning_rate=1e-3, steps=6)
    run = align_in_stages([settings], quiet=True)[0]
    train, held = load_data(settings)
    assert len(feedback_of(settings, train)) == len(train)
    evaluation = run.record["evaluation"]
    counts = [sum(row.preferred == side for row in held) for side in (True, False)]
    for when in ("before", "after"):
        means = [evaluation[when][f"{side}_log_prob"][0] for side in ("chosen", "rejected")]
        pooled = -sum(n * mean for n, mean in zip(counts, means, strict=True)) / len(held)
        assert evaluation[when]["loss"] == pytest.approx(pooled, abs=1e-4)
    assert run.record["stages"] == ["sft on all"]
    saved = json.loads((run.settings.folder / "result.json").read_text(encoding="utf-8"))
    assert saved["settings"]["responses"] == "all"
