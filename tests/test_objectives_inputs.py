"""Wrong input is an error that says what, where and what to do; and the registry tells the truth."""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from objectives_helpers import NAMES, example

from course_utils import objectives
from course_utils.errors import CourseError


def refuses(identifier, function, *inputs, **settings):
    with pytest.raises(CourseError) as caught:
        function(*inputs, **settings)
    error = caught.value
    assert error.id == identifier, error
    assert error.what and error.where and error.remedy
    return error


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_refused_in_every_input_and_located(name):
    inputs = example(name)
    for position, argument in enumerate(objectives.get(name).inputs):
        if not inputs[position].is_floating_point():
            continue
        for value, identifier in (
            (math.nan, "nan-input"),
            (math.inf, "infinite-input"),
            (-math.inf, "infinite-input"),
        ):
            spoilt = [x.clone() for x in inputs]
            spoilt[position][4] = value
            error = refuses(identifier, objectives.get(name).loss, *spoilt)
            assert f"`{argument}`" in error.what
            assert "4" in error.what


@pytest.mark.parametrize("name", [name for name in NAMES if len(objectives.get(name).inputs) > 1])
def test_shapes_that_differ_are_refused_and_never_broadcast(name):
    inputs = example(name)
    for position in range(len(inputs)):
        spoilt = list(inputs)
        spoilt[position] = inputs[position][:1]
        error = refuses("shapes-differ", objectives.get(name).loss, *spoilt)
        assert "1" in error.what and "6" in error.what


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_lists_are_refused(name):
    inputs = example(name)
    first = next(i for i, x in enumerate(inputs) if x.is_floating_point())
    integers = [x.long() if i == first else x for i, x in enumerate(inputs)]
    refuses("not-floating", objectives.get(name).loss, *integers)
    lists = [x.tolist() if i == first else x for i, x in enumerate(inputs)]
    refuses("not-a-tensor", objectives.get(name).loss, *lists)


@pytest.mark.parametrize("name", [name for name in NAMES if objectives.get(name).feedback == "unpaired"])
def test_labels_that_are_not_boolean_are_refused(name):
    policy, ref, preferred = example(name)
    for labels in (preferred.long(), preferred.double(), preferred.tolist()):
        refuses("preferred-not-boolean", objectives.get(name).loss, policy, ref, labels)


POSITIVE = ["beta", "tau", "gamma", "lam", "s", "beta_chosen", "beta_rejected", "beta_policy", "beta_reward"]
MAY_BE_ZERO = {("simpo", "gamma"), ("reverse_kl", "gamma"), ("reverse_kl", "beta")}


@pytest.mark.parametrize(
    ("name", "setting"), [(n, s) for n in NAMES for s in objectives.get(n).defaults if s in POSITIVE]
)
def test_scales_must_be_positive(name, setting):
    loss, inputs = objectives.get(name).loss, example(name)
    for value in (-0.1, math.nan, math.inf, "0.1"):
        error = refuses("setting-out-of-range", loss, *inputs, **{setting: value})
        assert setting in error.what
    if (name, setting) in MAY_BE_ZERO:
        loss(*inputs, **{setting: 0.0})
    else:
        refuses("setting-out-of-range", loss, *inputs, **{setting: 0.0})


@pytest.mark.parametrize(("name", "setting"), [("rdro", "alpha"), ("rdro_pooled", "alpha"), ("ddro", "t")])
def test_the_share_of_the_mixture_is_strictly_between_zero_and_one(name, setting):
    for value in (0.0, 1.0, -0.2, 1.5, math.nan):
        refuses("setting-out-of-range", objectives.get(name).loss, *example(name), **{setting: value})


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "label_smoothing" in objectives.get(name).defaults]
)
def test_label_smoothing_is_below_one_half_and_exo_needs_some(name):
    loss, inputs = objectives.get(name).loss, example(name)
    for value in (0.5, 0.7, -0.1, math.nan):
        refuses("setting-out-of-range", loss, *inputs, label_smoothing=value)
    if name == "exo_pref":
        refuses("setting-out-of-range", loss, *inputs, label_smoothing=0.0)
    else:
        loss(*inputs, label_smoothing=0.0)


@pytest.mark.parametrize("name", [name for name in NAMES if objectives.get(name).feedback == "group"])
def test_a_group_needs_two_dimensions_and_two_responses(name):
    loss = objectives.get(name).loss
    refuses("group-too-small", loss, *example(name, k=1))
    refuses("group-too-small", loss, *(x[0] for x in example(name)))


def test_other_settings_outside_their_range_are_refused():
    policy, ref, preferred = example("kto")
    refuses("setting-out-of-range", objectives.kto, policy, ref, preferred, kl=-0.1)
    refuses("setting-out-of-range", objectives.kto, policy, ref, preferred, kl=torch.tensor(-0.1))
    refuses("setting-out-of-range", objectives.kto, policy, ref, preferred, desirable_weight=-1.0)
    refuses("shapes-differ", objectives.kto, policy, ref, preferred, kl=torch.zeros(3))
    refuses("nan-input", objectives.bco, policy, ref, preferred, delta=math.nan)
    refuses("setting-out-of-range", objectives.dpo_with_sft, *example("dpo"), sft_weight=-1.0)
    refuses("unknown-choice", objectives.bpo, *example("bpo"), divergence="scaled")
    assert "'sba'" in refuses("unknown-choice", objectives.bpo, *example("bpo"), divergence="sbaa").remedy
    refuses("unknown-choice", objectives.ddro, *example("ddro"), past_wall="clamp")
    refuses("setting-out-of-range", objectives.ddro, *example("ddro"), wall_distance=0.0)
    refuses("odd-embedding", objectives.gpm, torch.ones(4, 3), torch.ones(4, 3))
    refuses("nan-input", objectives.bt, *example("bt"), margin=math.nan)
    refuses("shapes-differ", objectives.bt, *example("bt"), margin=torch.zeros(2))


def test_lengths_and_probabilities_that_cannot_be_are_refused():
    for name in ("simpo", "orpo"):
        chosen, rejected, len_chosen, len_rejected = example(name)
        len_rejected[2] = 0
        error = refuses(
            "empty-response", objectives.get(name).loss, chosen, rejected, len_chosen, len_rejected
        )
        assert "2" in error.what and "len_rejected" in error.what
    inputs = example("orpo")
    inputs[0][1] = 0.0
    assert "1" in refuses("certain-response", objectives.orpo, *inputs).what


def test_an_example_beyond_the_wall_of_ddro_is_named():
    l = torch.tensor([0.1, 0.2, 0.7, -3.0], dtype=torch.float64)
    labels = torch.tensor([True, False, False, False])
    error = refuses("ddro-past-the-wall", objectives.ddro, l, torch.zeros_like(l), labels)
    assert "example 2" in error.what and "0.7" in error.what and "0.6931" in error.what
    # preferred responses have an edge only when t is above one half
    high = torch.tensor([5.0], dtype=torch.float64)
    objectives.ddro(high, 0 * high, labels[:1], t=0.5)
    assert (
        "preferred" in refuses("ddro-past-the-wall", objectives.ddro, high, 0 * high, labels[:1], t=0.8).what
    )


def test_reductions_refuse_a_batch_with_one_class_and_labels_of_another_shape():
    loss = torch.ones(3, dtype=torch.float64)
    for labels in (torch.tensor([True] * 3), torch.tensor([False] * 3)):
        refuses("one-class-batch", objectives.classwise_mean, loss, labels)
        assert float(objectives.pooled_mean(loss, labels)) == 1.0
    refuses("one-class-batch", objectives.pooled_mean, loss[:0], torch.ones(0, dtype=torch.bool))
    for reduction in (objectives.classwise_mean, objectives.pooled_mean):
        refuses("shapes-differ", reduction, loss.mean(), torch.tensor([True, False, True]))
        refuses("preferred-not-boolean", reduction, loss, torch.ones(3))
        refuses("not-a-tensor", reduction, [1.0], torch.tensor([True]))


# --- the registry ----------------------------------------------------------------------------------

CONTRACT = {
    "bt": "reward_chosen, reward_rejected, margin=0.0",
    "gpm": "embedding_chosen, embedding_rejected, tau=0.1",
    "dpo": "policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.0",
    "ipo": "policy_chosen, policy_rejected, ref_chosen, ref_rejected, tau=0.1",
    "flex_dpo": "policy_chosen, policy_rejected, ref_chosen, ref_rejected, "
    "beta_chosen=0.1, beta_rejected=0.08",
    "simpo": "policy_chosen, policy_rejected, len_chosen, len_rejected, beta, gamma",
    "exo_pref": "policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.001",
    "exo_rw": "policy, ref, reward, beta_policy=1.0, beta_reward=1.0",
    "dpo_rw": "policy, ref, reward, beta_policy, beta_reward",
    "brain": "policy, proposal, prior, reward, gamma",
    "pmle": "policy_chosen, policy_rejected, gamma=1.0",
    "preference_distillation": "policy_1, policy_2, reward_1, reward_2, gamma=1.0",
    "reverse_kl": "policy, ref, reward, gamma, beta",
    "kto": "policy, ref, preferred, beta=0.1, kl=0.0, desirable_weight=1.0, undesirable_weight=1.0",
    "bco": "policy, ref, preferred",
    "ddro": "policy, ref, preferred, t=0.5",
    "rdro": "policy, ref, preferred, alpha=0.5",
    "rdro_pooled": "policy, ref, preferred, alpha",
    "bpo": "policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, divergence='sba', lam, s",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_signatures_keep_the_contract(name):
    parameters = list(inspect.signature(objectives.get(name).loss).parameters.values())
    for parameter, promised in zip(parameters, CONTRACT[name].split(", "), strict=False):
        argument, _, default = promised.partition("=")
        assert parameter.name == argument
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if default:
            assert repr(parameter.default) == default
    assert len(parameters) >= len(CONTRACT[name].split(", "))
    assert getattr(objectives, name) is objectives.get(name).loss


FEEDBACK = {
    "paired": ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"),
    "reference-free pair": ("policy_chosen", "policy_rejected"),
    "scored pair": ("policy_1", "policy_2", "reward_1", "reward_2"),
    "reward pair": (),
    "chosen only": ("policy_chosen",),
    "unpaired": ("policy", "ref", "preferred"),
    "group": ("policy",),
    "on-policy": ("policy", "ref", "reward"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_registry_describes_the_loss_as_it_is(name):
    objective = objectives.get(name)
    assert objective.name == name
    expected = FEEDBACK[objective.feedback]
    assert objective.inputs[: len(expected)] == expected
    assert objective.needs_reference == any(x.startswith("ref") or x == "prior" for x in objective.inputs)
    signature = inspect.signature(objective.loss).parameters
    assert list(signature) == [*objective.inputs, *objective.defaults]
    assert all(signature[key].default == value for key, value in objective.defaults.items())
    for text in (objective.title, objective.paper, objective.assumes, objective.target, objective.equation):
        assert text.strip() == text and text
    assert objective.assumes.endswith(".") and objective.target.endswith(".")
    assert objective.equation.count("{") == objective.equation.count("}")
    # explicit defaults give the same loss, so an experiment can pass them on
    inputs = example(name)
    assert torch.equal(objective.loss(*inputs), objective.loss(*inputs, **objective.defaults))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_of_a_loss_is_its_reference(name):
    text = inspect.getdoc(objectives.get(name).loss)
    for part in (".. math::", "Gradient", "Population minimiser", "Assumes:"):
        assert part in text
    symbols_elsewhere = "ymbols" in text and "`" in text
    for argument in inspect.signature(objectives.get(name).loss).parameters:
        assert argument in text or symbols_elsewhere or argument.startswith(("policy", "ref")), argument


def test_equations_use_a_small_set_of_known_latex_commands():
    words = "log sigma frac tfrac pi theta beta gamma tau alpha lambda varepsilon delta mathrm langle rangle"
    known = {f"\\{word}" for word in f"{words} text max propto".split()} | {"\\,", "\\|", "\\ "}
    for name in NAMES:
        commands = set(re.findall(r"\\(?:[a-zA-Z]+|.)", objectives.get(name).equation))
        assert commands <= known, (name, commands - known)


def test_the_registry_is_complete_and_ordered_and_its_table_is_text():
    assert len(NAMES) == len(set(NAMES)) == 25
    rows = objectives.table()
    assert [row["name"] for row in rows] == NAMES
    assert all(isinstance(value, str) for row in rows for value in row.values())
    assert all(row["equation"].startswith("$") and row["equation"].endswith("$") for row in rows)


def test_changing_the_defaults_that_were_handed_out_changes_nothing():
    objectives.get("dpo").defaults["beta"] = 7.0
    assert objectives.get("dpo").defaults["beta"] == 0.1
    with pytest.raises(AttributeError):
        objectives.get("dpo").name = "other"


@pytest.mark.parametrize(
    ("asked", "proposed"),
    [
        ("RDRO", "rdro"),
        ("exo-pref", "exo_pref"),
        ("dop", "dpo"),
        ("distillation", "preference_distillation"),
        ("General preference model", "gpm"),
        ("conservative dpo", "cdpo"),
    ],
)
def test_an_unknown_name_proposes_what_was_probably_meant(asked, proposed):
    error = refuses("unknown-objective", objectives.get, asked)
    assert repr(proposed) in error.remedy.split("The names are")[0]


def test_an_unknown_name_that_resembles_nothing_lists_the_names():
    error = refuses("unknown-objective", objectives.get, "zzz")
    assert "did you mean" not in error.remedy and "rdro_pooled" in error.remedy


def test_objectives_import_torch_and_the_standard_library_alone():
    for path in Path(objectives.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module]
            else:
                continue
            for module in imported:
                root = module.split(".")[0]
                assert root in {*sys.stdlib_module_names, "torch"} or module == "course_utils.errors", (
                    path.name
                )
