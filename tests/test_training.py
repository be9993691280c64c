"""Training: it ends where the mathematics says, in any number of pieces, and goes on to the bit after a kill."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.feedback import Groups, Pairs, SoftPairs, Unpaired
from course_utils.policies import GaussianPolicy, LanguageModelPolicy, MLPPolicy, TablePolicy
from course_utils.preferences import draw_groups, draw_pairs, draw_soft_pairs, draw_unpaired
from course_utils.references import FrozenReference, MovingReference
from course_utils.statistics import Interval
from course_utils.training import History, OnPolicy, TrainingSettings, progress, train
from course_utils.training.examples import EncodedExamples, PlainExamples, lay_out
from course_utils.training.order import DataOrder
from course_utils.training.problem import Problem
from course_utils.worlds.finite import FiniteWorld

ROOT = Path(__file__).resolve().parents[1]
WORLD = FiniteWorld.random(prompts=2, responses=4, seed=1)
ONE = FiniteWorld.random(prompts=1, responses=4, seed=3)


def table() -> TablePolicy:
    return TablePolicy(WORLD.reference.log())


def settings(steps: int = 6, **changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"steps": steps, "batch_size": 8, "learning_rate": 0.05, **changes})


def quietly(*arguments: Any, **options: Any) -> Any:
    return train(*arguments, progress=False, **options)


def numbers(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def on_policy() -> OnPolicy:
    return OnPolicy(WORLD.sample_prompts(40, torch.Generator().manual_seed(0)), WORLD.reward_of)


PAIRS = draw_pairs(WORLD, 40, seed=0)
UNPAIRED = draw_unpaired(WORLD, 41, seed=0, fraction=0.3)
GROUPS = draw_groups(WORLD, 40, 3, seed=0)
SOFT = draw_soft_pairs(WORLD, 40, seed=0)

# One run for every kind of feedback, and for every way in which a batch is more than the sum of its rows.
RUNS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "pairs": (PAIRS, "dpo", {}),
    "pairs with an SFT term": (PAIRS, "dpo", {"extra_terms": {"sft": 0.3}}),
    "pairs without a reference": (PAIRS, "simpo", {}),
    "unpaired, class by class": (UNPAIRED, "rdro", {"alpha": 0.3}),
    "unpaired with an SFT term": (UNPAIRED, "rdro", {"alpha": 0.3, "extra_terms": {"sft": 0.3}}),
    "unpaired, one mean": (UNPAIRED, "rdro_pooled", {"alpha": 0.3}),
    "KTO with its baseline": (UNPAIRED, "kto", {"kl": "mismatched"}),
    "BCO with its shift": (UNPAIRED, "bco", {"delta": "batch"}),
    "groups": (GROUPS, "exo_rw", {}),
    "groups and a proposal": (GROUPS, "brain", {"proposal": TablePolicy(torch.zeros(2, 4))}),
    "scored pairs": (SOFT, "preference_distillation", {}),
    "chosen only": (PAIRS, "sft", {}),
    "on-policy": (on_policy(), "reverse_kl", {"beta": 0.1}),
}


# -------------------- it ends where the mathematics says

MINIMISERS = {
    "dpo": (draw_pairs, {"beta": 0.5}),
    "ipo": (draw_pairs, {"tau": 0.5}),
    "exo_pref": (draw_pairs, {"beta": 0.5, "label_smoothing": 0.1}),
    "pmle": (draw_pairs, {}),
    "sft": (draw_pairs, {}),
    "rdro": (draw_unpaired, {}),
    "rdro_pooled": (draw_unpaired, {}),
}


def chi_square(name: str, policy: TablePolicy, feedback: Any, target: torch.Tensor, **knobs: Any) -> float:
    """The squared distance of the trained policy from the population's, in units of its sampling error.

    An estimate that minimises a mean of n losses is off by H^-1 times the mean gradient, whose covariance the rows
    show (the "sandwich"). All derivatives are central differences at the population's minimiser.
    """
    logits = target.log()
    # as many rows of the problem as there are examples, class by class where the classes are averaged apart
    probe = TablePolicy(logits)
    problem = Problem(
        probe,
        feedback,
        objectives.get(name),
        FrozenReference(TablePolicy(ONE.reference.log())),
        TrainingSettings(batch_size=None),
        knobs,
    )
    term = problem.terms[0]
    weights = term.example_weights(problem.count, problem._preferred)

    def losses(at: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            probe.logits.copy_(at)
            return term.losses(problem.columns(probe, problem._examples, None), knobs)

    def gradients(at: torch.Tensor, width: float = 1e-5) -> torch.Tensor:
        steps = width * torch.eye(4, dtype=torch.float64)
        return torch.stack([(losses(at + s) - losses(at - s)) / (2 * width) for s in steps], dim=1)

    width = 1e-3
    hessian = torch.stack(
        [
            (weights @ gradients(logits + s) - weights @ gradients(logits - s)) / (2 * width)
            for s in width * torch.eye(4, dtype=torch.float64)
        ]
    )
    rows = gradients(logits)
    classes = [torch.ones(len(rows), dtype=torch.bool)]
    if term.over == "each class":
        classes = [problem._preferred, ~problem._preferred]
    meat = sum(
        len(rows[c]) * float(weights[c][0]) ** 2 * torch.cov(rows[c].T) for c in classes if bool(c.any())
    )
    bread = torch.linalg.pinv(hessian, rtol=1e-6)
    covariance = bread @ meat @ bread.T
    off = policy.log_probabilities().detach()[0] - target.log()[0]
    off = off - off.mean()
    return float(off @ torch.linalg.pinv(covariance, rtol=1e-6) @ off)


@pytest.mark.parametrize("name", MINIMISERS)
def test_full_batch_training_ends_at_the_population_minimiser_within_the_sampling_error(name):
    draw, knobs = MINIMISERS[name]
    feedback = draw(ONE, 2000, 7)
    policy = TablePolicy(ONE.reference.log())
    run = settings(200, batch_size=None, learning_rate=0.1, schedule="cosine")
    result = quietly(policy, feedback, name, settings=run, **knobs)
    target = ONE.population_minimiser(name, **knobs)
    assert result.history.last("gradient_norm") < 1e-4  # it is at a minimum, of the sample
    distance = chi_square(name, policy, feedback, target, **knobs)
    # three free numbers: a chi-square variable of three degrees of freedom is below 21.1 with probability 0.9999
    assert 0.01 < distance < 21.1


@pytest.mark.parametrize("name", ["preference_distillation", "exo_rw", "dpo_rw", "brain"])
def test_objectives_of_rewards_end_exactly_at_the_population_minimiser(name):
    # with rewards in place of labels every sample agrees on the optimum: there is no sampling error at all
    soft = name == "preference_distillation"
    feedback = draw_soft_pairs(ONE, 200, seed=0) if soft else draw_groups(ONE, 200, 3, seed=0)
    policy = TablePolicy(ONE.reference.log())
    run = settings(600, batch_size=None, learning_rate=0.1, schedule="cosine")
    quietly(policy, feedback, name, settings=run)
    optimum = torch.softmax(ONE.reward, -1) if soft else ONE.rlhf_optimum(1.0)
    assert (policy.probabilities() - optimum).abs().max() < 1e-8


def test_reverse_kl_on_its_own_samples_reaches_the_regularised_optimum():
    policy = TablePolicy(ONE.reference.log())
    prompts = OnPolicy(torch.zeros(256, dtype=torch.long), ONE.reward_of)
    run = settings(400, batch_size=None, learning_rate=0.05, schedule="cosine")
    quietly(policy, prompts, "reverse_kl", settings=run, gamma=0.0, beta=0.5)
    assert ONE.kl(policy, ONE.rlhf_optimum(0.5)) < 1e-3 < ONE.kl(ONE.reference, ONE.rlhf_optimum(0.5))


def test_networks_and_gaussians_train_with_the_same_loop():
    network = MLPPolicy(2, 4, hidden=(8,), seed=0)
    before = WORLD.kl(WORLD.preferred_distribution(), network)
    run = settings(200, batch_size=None, learning_rate=0.02)
    quietly(network, draw_pairs(WORLD, 2000, seed=0), "sft", settings=run)
    assert WORLD.kl(WORLD.preferred_distribution(), network) < 0.01 < before
    # maximum likelihood of a Gaussian is the mean and the standard deviation
    drawn = 2.0 + 0.5 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaussian = GaussianPolicy()
    points = Pairs(torch.zeros(500), drawn, drawn)
    quietly(gaussian, points, "sft", settings=settings(600, batch_size=None, schedule="cosine"))
    assert abs(gaussian.mean.item() - float(drawn.mean())) < 1e-6
    assert abs(math.exp(gaussian.log_sd.item()) - float(drawn.std(correction=0))) < 1e-6


FIRST = {
    "dpo": (PAIRS, {"beta": 0.3}, math.log(2)),
    "ipo": (PAIRS, {"tau": 0.2}, 1 / (4 * 0.2**2)),
    "slic": (PAIRS, {}, 1.0),
    # at l = 0: (1 + alpha) log 2 for a preferred and (1 - alpha) log 2 for a rejected response; the two means add up
    "rdro": (UNPAIRED, {"alpha": 0.3}, 2 * math.log(2)),
    "ddro": (UNPAIRED, {"t": 0.5}, 2 * math.log(2)),
    "kto": (UNPAIRED, {}, 1.0),
    "bco": (UNPAIRED, {}, 2 * math.log(2)),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_loss_is_what_a_policy_equal_to_its_reference_must_have(name):
    feedback, knobs, expected = FIRST[name]
    result = quietly(table(), feedback, name, settings=settings(1), **knobs)
    assert abs(result.history.column("loss")[0] - expected) < 1e-12


def test_the_pooled_mean_of_rdro_starts_at_another_loss():
    share = float(UNPAIRED.preferred.double().mean())
    run = settings(1, batch_size=None, reduction="pooled")
    result = quietly(table(), UNPAIRED, "rdro", settings=run, alpha=0.3)
    expected = (share * 1.3 + (1 - share) * 0.7) * math.log(2)
    assert abs(result.history.column("loss")[0] - expected) < 1e-12


# -------------------- the same numbers, computed another way


@pytest.mark.parametrize("moving", [False, True], ids=["frozen reference", "moving reference"])
@pytest.mark.parametrize("name", ["dpo", "rdro"])
def test_a_loop_written_by_hand_gives_the_same_losses_and_weights(name, moving):
    run = settings(9, schedule="cosine", warmup=3, clip_gradient=0.05, weight_decay=0.01, seed=4)
    by_course, by_hand = table(), table()
    feedback = PAIRS if name == "dpo" else UNPAIRED
    ref = MovingReference.soft(by_course, 0.6, every=2) if moving else None
    history = quietly(by_course, feedback, name, ref=ref, settings=run).history

    own_ref = MovingReference.soft(by_hand, 0.6, every=2) if moving else FrozenReference(by_hand)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1.0, weight_decay=0.01)
    order = DataOrder(len(feedback), 8, 4, None if name == "dpo" else feedback.preferred)
    losses = []
    for step in range(9):
        batch = feedback.take(order.batch(step))
        if name == "dpo":
            sides = [batch.chosen, batch.rejected]
            scores = [m.log_prob(batch.prompt, side) for m in (by_hand, own_ref) for side in sides]
            loss = objectives.dpo(*scores).mean()
        else:
            scores = [m.log_prob(batch.prompt, batch.response) for m in (by_hand, own_ref)]
            each = objectives.rdro(*scores, batch.preferred)
            loss = objectives.classwise_mean(each, batch.preferred)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
        rising, falling = min(1.0, (step + 1) / 3), 0.5 * (1 + math.cos(math.pi * step / 9))
        optimizer.param_groups[0]["lr"] = 0.05 * rising * falling
        optimizer.step()
        own_ref.after_step(by_hand)
        losses.append(loss.item())
    assert np.abs(history.column("loss") - losses).max() < 1e-12
    assert (numbers(by_course) - numbers(by_hand)).abs().max() < 1e-12


@pytest.mark.parametrize("name", RUNS)
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(name):
    feedback, objective, knobs = RUNS[name]
    whole = quietly(table(), feedback, objective, settings=settings(), **knobs)
    for pieces in (2, 3, 8):  # 3 does not divide the batch
        parts = quietly(table(), feedback, objective, settings=settings(accumulate=pieces), **knobs)
        for column in ("loss", "gradient_norm"):
            assert np.abs(whole.history.column(column) - parts.history.column(column)).max() < 1e-12
        assert (numbers(whole.policy) - numbers(parts.policy)).abs().max() < 1e-12
        for column in {"chosen_drift", "rejected_drift"} & set(whole.history.columns):
            assert np.abs(whole.history.column(column) - parts.history.column(column)).max() < 1e-12


def test_the_recorded_gradient_norm_is_that_before_clipping_and_the_step_has_the_clipped_length():
    policy = table()
    expected = numbers(policy)
    batch = PAIRS.take(DataOrder(40, 8, 0).batch(0))
    scores = [policy.log_prob(batch.prompt, side) for side in (batch.chosen, batch.rejected)]
    loss = objectives.dpo(*scores, *(s.detach() for s in scores), beta=2.0).mean()
    norm = float(torch.autograd.grad(loss, policy.logits)[0].norm())
    run = settings(1, optimizer="sgd", learning_rate=0.7, clip_gradient=0.01)
    result = quietly(policy, PAIRS, "dpo", settings=run, beta=2.0)
    assert abs(result.history.column("gradient_norm")[0] - norm) < 1e-14 and norm > 0.1
    moved = float((numbers(policy) - expected).norm())
    assert abs(moved - 0.7 * 0.01) < 1e-6


def test_drift_is_the_mean_log_ratio_of_the_batch_before_its_step():
    run = settings(4, batch_size=None)
    policy, before = table(), table().log_probabilities().detach()
    stages = []
    result = quietly(
        policy,
        UNPAIRED,
        "rdro",
        settings=replace(run, evaluate_every=1),
        evaluate=lambda p, step: stages.append(p.log_probabilities().clone()) or {},
    )
    # the drift of row k belongs to the weights after k - 1 updates
    for row, log_policy in zip(result.history.rows[1:], stages, strict=False):
        log_ratio = (log_policy - before)[UNPAIRED.prompt, UNPAIRED.response]
        assert abs(row["chosen_drift"] - float(log_ratio[UNPAIRED.preferred].mean())) < 1e-12
        assert abs(row["rejected_drift"] - float(log_ratio[~UNPAIRED.preferred].mean())) < 1e-12
    assert result.history.rows[3]["chosen_drift"] != 0.0


def test_a_reference_given_to_an_objective_without_one_is_measured_and_changes_nothing():
    plain = quietly(table(), PAIRS, "simpo", settings=settings())
    watched = quietly(table(), PAIRS, "simpo", ref=FrozenReference(table()), settings=settings())
    assert "chosen_drift" in watched.history.columns and "chosen_drift" not in plain.history.columns
    assert torch.equal(numbers(plain.policy), numbers(watched.policy))


def test_a_setting_with_one_entry_per_example_goes_with_its_rows():
    @dataclass(frozen=True)
    class Weighted:
        name = "weighted"
        feedback = "paired"
        needs_reference = True

        @staticmethod
        def loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, weight=1.0):
            return weight * objectives.dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected)

    weight = (torch.arange(40) < 20).double()
    policy, half = table(), table()
    everything = settings(5, batch_size=None, optimizer="sgd")
    quietly(policy, PAIRS, Weighted(), settings=everything, weight=weight)
    # twice the mean over half of the rows is the weighted mean over all of them
    run = replace(everything, learning_rate=0.025)
    quietly(half, PAIRS.take(torch.arange(20)), "dpo", settings=run)
    assert (numbers(policy) - numbers(half)).abs().max() < 1e-14
    in_batches = quietly(table(), PAIRS, Weighted(), settings=settings(5), weight=weight)
    assert (numbers(in_batches.policy) - numbers(policy)).abs().max() > 1e-6


def test_the_baselines_of_kto_and_bco_are_computed_from_the_batch():
    policy = TablePolicy(torch.tensor([[2.0, 0.1, -0.3, 0], [0.4, 0.2, 0, 2.3]]))
    ref = FrozenReference(TablePolicy(torch.zeros(2, 4)))
    batch = UNPAIRED.take(DataOrder(41, 20, 0, UNPAIRED.preferred).batch(0))
    scores = [model.log_prob(batch.prompt, batch.response).detach() for model in (policy, ref)]
    others = torch.cat([batch.response[1:], batch.response[:1]])
    kl = sum(sign * m.log_prob(batch.prompt, others).mean() for sign, m in ((1, policy), (-1, ref))).item()
    reward = 0.7 * (scores[0] - scores[1])
    delta = 0.5 * (reward[batch.preferred].mean() + reward[~batch.preferred].mean()).item()
    assert kl > 0.01 and abs(kl - float((scores[0] - scores[1]).mean())) > 0.01 and abs(delta) > 0.01
    each = {
        "kto": objectives.kto(*scores, batch.preferred, beta=0.7, kl=kl),
        "bco": objectives.bco(*scores, batch.preferred, beta=0.7, delta=delta),
    }
    for name, word in (("kto", {"kl": "mismatched"}), ("bco", {"delta": "batch"})):
        trained = TablePolicy(policy.logits)
        loss = quietly(
            trained, UNPAIRED, name, ref=ref, settings=settings(1, batch_size=20), beta=0.7, **word
        ).history.last("loss")
        assert abs(loss - float(objectives.classwise_mean(each[name], batch.preferred))) < 1e-12


def test_gradients_left_over_from_before_do_not_enter_the_first_step():
    clean, used = table(), table()
    used.log_prob(PAIRS.prompt, PAIRS.chosen).sum().backward()
    quietly(clean, PAIRS, "dpo", settings=settings(1))
    quietly(used, PAIRS, "dpo", settings=settings(1))
    assert torch.equal(numbers(clean), numbers(used))


# -------------------- the order of the data


def test_every_row_comes_once_before_any_comes_again():
    order = DataOrder(23, 5, seed=0)
    drawn = torch.cat([order.batch(step) for step in range(23)])
    for turn in drawn.split(23):
        assert sorted(turn.tolist()) == list(range(23))
    assert not torch.equal(drawn[:23], drawn[23:46])


def test_a_batch_depends_on_the_seed_and_its_step_alone():
    forward, other = DataOrder(23, 5, seed=0), DataOrder(23, 5, seed=1)
    expected = [forward.batch(step) for step in range(12)]
    backward = DataOrder(23, 5, seed=0)
    assert all(torch.equal(backward.batch(step), expected[step]) for step in reversed(range(12)))
    assert not all(torch.equal(other.batch(step), expected[step]) for step in range(12))


@pytest.mark.parametrize("count", [1, 3, 15, 29])
def test_batches_of_unpaired_rows_hold_both_classes_in_proportion(count):
    preferred = torch.arange(30) % 30 < count
    order = DataOrder(30, 6, 0, preferred)
    drawn = [order.batch(step) for step in range(50)]
    of_class = [int(preferred[rows].sum()) for rows in drawn]
    assert all(len(rows) == 6 and 0 < k < 6 for rows, k in zip(drawn, of_class, strict=True))
    share = min(max(count / 30, 1 / 6), 5 / 6)
    assert all(abs(k - 6 * share) < 1 for k in of_class)
    assert abs(sum(of_class) - 300 * share) <= 0.5


def test_a_pooled_mean_keeps_the_share_of_the_data_even_if_a_class_is_rare():
    preferred = torch.arange(100) < 5
    order = DataOrder(100, 10, 0, preferred, both_classes=False)
    of_class = [int(preferred[order.batch(step)].sum()) for step in range(20)]
    assert sum(of_class) == 10 and min(of_class) == 0


def test_one_class_alone_is_refused_for_class_means_and_accepted_for_one_mean():
    liked = UNPAIRED.take(UNPAIRED.preferred.nonzero().flatten())
    with pytest.raises(CourseError) as error:
        quietly(table(), liked, "rdro", settings=settings(1))
    assert error.value.id == "one-class-batch"
    quietly(table(), liked, "rdro", settings=settings(1, reduction="pooled"))


# -------------------- the same settings, the same run


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name):
    feedback, objective, knobs = RUNS[name]
    runs = [
        quietly(table(), feedback, objective, settings=settings(seed=seed), **knobs) for seed in (5, 5, 6)
    ]
    same, again, other = (run.history.without("seconds") for run in runs)
    assert same == again and torch.equal(numbers(runs[0].policy), numbers(runs[1].policy))
    assert same != other and not torch.equal(numbers(runs[0].policy), numbers(runs[2].policy))


class WithDropout(MLPPolicy):
    """A network whose hidden layer drops units while it trains."""

    def log_probabilities(self):
        hidden = self.layers[1](self.layers[0](torch.eye(self.prompts, dtype=torch.float64)))
        return torch.log_softmax(
            self.layers[2](torch.nn.functional.dropout(hidden, 0.5, self.training)), dim=-1
        )


def test_the_global_random_state_is_neither_used_nor_moved():
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        policy = WithDropout(2, 4, seed=0)
        quietly(policy, PAIRS, "dpo", ref=FrozenReference(policy.eval()), settings=settings())
        quietly(policy.train(), PAIRS, "sft", settings=settings())
        quietly(table(), on_policy(), "reverse_kl", settings=settings())
        assert torch.equal(torch.get_rng_state(), before)
        found.append(numbers(policy))
    assert torch.equal(*found)


# -------------------- history


def test_the_history_has_the_columns_of_a_run_and_evaluation_where_it_happened():
    seen = []

    def evaluate(policy, step):
        seen.append(step)
        assert not torch.is_grad_enabled()
        return {"kl": WORLD.kl(policy), "win": Interval(0.5, 0.4, 0.6, 0.95, 10)}

    run = settings(10, evaluate_every=4)
    history = quietly(table(), PAIRS, "dpo", settings=run, evaluate=evaluate).history
    assert seen == [0, 4, 8, 10]
    names = ["step", "loss", "gradient_norm", "learning_rate", "chosen_drift", "rejected_drift", "seconds"]
    assert history.columns == [*names, "kl", "win", "win_low", "win_high"]
    assert history.column("step").tolist() == list(range(11))
    assert np.isnan(history.column("loss")[0]) and np.isfinite(history.column("loss")[1:]).all()
    steps, kl = history.curve("kl")
    assert steps.tolist() == [0, 4, 8, 10] and abs(kl[0]) < 1e-15 < 1e-4 < kl[-1]
    assert [history.last(name) for name in ("win", "win_low", "win_high")] == [0.5, 0.4, 0.6]
    assert (np.diff(history.column("seconds")[1:]) > 0).all()
    with pytest.raises(CourseError) as error:
        history.column("los")
    assert error.value.id == "no-such-column"


def test_a_history_is_saved_and_read_back_to_the_bit_with_numbers_that_are_not_finite(tmp_path):
    history = History([{"step": 0, "kl": math.inf}, {"step": 1, "loss": 0.1 + 0.2, "kl": math.nan}])
    history.save(tmp_path / "history.json")
    again = History.load(tmp_path / "history.json")
    assert again == history and again.rows[1]["loss"] == 0.1 + 0.2 and again.rows[0]["step"] == 0
    assert again.rows[0]["kl"] == math.inf and math.isnan(again.rows[1]["kl"])
    assert History([{"step": 1, "loss": 0.3}]) != History([{"step": 1, "loss": 0.1 + 0.2}])
    json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)  # strict JSON


def test_a_long_history_shows_its_first_and_last_rows():
    shown = History([{"step": step, "loss": 1 / (step + 1)} for step in range(100)])._repr_html_()
    assert shown.count("<tr>") == 1 + 3 + 1 + 5 and "<th>loss</th>" in shown
    assert "<td>99</td>" in shown and "<td>50</td>" not in shown
    assert repr(History()) == "" and "no rows" in History()._repr_html_()


def test_progress_is_silent_when_asked_and_leaves_nothing_in_a_notebook(capfd, monkeypatch):
    quietly(table(), PAIRS, "dpo", settings=settings(3))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    train(table(), PAIRS, "dpo", settings=settings(3))
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 3 and "dpo: step 2 of 3, loss 0.6" in err
    monkeypatch.setenv("COURSE_PROGRESS", "0")
    train(table(), PAIRS, "dpo", settings=settings(3))
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv("COURSE_PROGRESS")

    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, data, **_):
            shown.append(data["text/plain"])

    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda data, **_: shown.append(data["text/plain"]) or Handle())
    train(table(), PAIRS, "dpo", settings=settings(3))
    assert len(shown) == 4 and "step 3 of 3" in shown[2] and shown[3] == ""
    assert progress.duration(59.4) == "59 s" and progress.duration(3700) == "1 h 1 min"


# -------------------- runs that end early


class Broken:
    """An objective with a loss that is infinite at one row, and a gradient that is at another."""

    name, feedback, needs_reference = "broken", "paired", True

    @staticmethod
    def loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, factor=1.0, root=1.0):
        root = torch.as_tensor(root, dtype=torch.float64)
        infinite_slope = (policy_chosen - policy_chosen.detach() + root).clamp(min=0).sqrt()
        return (
            objectives.dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected) * factor + infinite_slope
        )


@pytest.mark.parametrize("what", ["loss", "length of the gradient"])
def test_a_run_that_is_no_longer_finite_stops_and_says_where(what, tmp_path):
    values = torch.ones(40, dtype=torch.float64)
    values[17] = math.inf if what == "loss" else 0.0
    knob = {"factor": values} if what == "loss" else {"root": values}
    order = DataOrder(40, 8, 0)
    stop = next(step for step in range(5) if 17 in order.batch(step).tolist())
    policy, good = table(), table()
    run = settings(10, checkpoint_every=1)
    with pytest.raises(CourseError) as error:
        quietly(policy, PAIRS, Broken(), settings=run, checkpoint_dir=tmp_path, **knob)
    assert error.value.id == "training-not-finite"
    assert f"the {what} is" in error.value.what and f"step {stop + 1};" in error.value.what
    listed = "rows 17." if what == "loss" else f"rows {order.batch(stop)[0]}, "
    assert listed in str(error.value) and "learning rate" in error.value.remedy
    # the weights are those of the last good step, the history is at hand, the checkpoint is there
    if stop:
        quietly(good, PAIRS, Broken(), settings=replace(run, steps=stop, checkpoint_every=0), **knob)
    assert torch.equal(numbers(policy), numbers(good))
    assert len(error.value.history) == stop and policy.logits.grad is None
    assert len(list(tmp_path.glob("step-*"))) == min(2, stop)


def test_an_error_of_the_objective_says_at_which_step_and_rows_it_happened():
    with pytest.raises(CourseError) as error:
        quietly(table(), UNPAIRED, "ddro", settings=settings(200, learning_rate=0.5))
    assert error.value.id == "ddro-past-the-wall"
    assert "at step" in error.value.where and "rows" in error.value.where
    assert len(error.value.history) > 0


MISTAKES = {
    "feedback-of-another-kind": lambda: train(table(), GROUPS, "dpo"),
    "unknown-setting": lambda: train(table(), PAIRS, "dpo", betta=0.1),
    "feedback-lengths": lambda: train(table(), PAIRS, "dpo", beta=torch.ones(3)),
    "reference-is-the-policy": lambda: train(policy := table(), PAIRS, "dpo", ref=policy),
    "reference-not-a-policy": lambda: train(table(), PAIRS, "dpo", ref=WORLD.reference),
    "nothing-to-train": lambda: train(table().requires_grad_(False), PAIRS, "dpo"),
    "setting-without-effect": lambda: train(table(), PAIRS, "dpo", settings=settings(evaluate_every=5)),
    "setting-out-of-range": lambda: settings(learning_rate=-1.0),
    "unknown-choice": lambda: settings(optimizer="adamm"),
    "one-class-batch": lambda: train(table(), UNPAIRED, "rdro", settings=settings(batch_size=1)),
}


@pytest.mark.parametrize("id", MISTAKES)
def test_a_mistake_is_named(id):
    with pytest.raises(CourseError) as error:
        MISTAKES[id]()
    assert error.value.id == id and error.value.remedy


def test_feedback_of_one_kind_serves_the_objectives_that_need_less():
    # pairs can be taken apart into thumbs, and their chosen responses stand alone
    taken_apart = quietly(table(), PAIRS, "rdro", settings=settings(batch_size=None))
    before = quietly(table(), PAIRS.unpaired(), "rdro", settings=settings(batch_size=None))
    assert torch.equal(numbers(taken_apart.policy), numbers(before.policy))
    liked = UNPAIRED.take(UNPAIRED.preferred.nonzero().flatten())
    alone = lay_out(UNPAIRED, objectives.get("sft")).responses["chosen"]
    assert torch.equal(alone, liked.response)
    two = draw_groups(WORLD, 10, 2, seed=0)
    scored = lay_out(two, objectives.get("preference_distillation"))
    assert torch.equal(scored.responses["2"], two.responses[:, 1])
    assert torch.equal(scored.constants["reward_1"], two.reward[:, 0])


# -------------------- checkpoints


def stopped_at(step: int):
    """An evaluation that ends the run, as a kill would, after this many updates."""

    def evaluate(policy: Any, now: int) -> dict[str, float]:
        if now == step:
            raise KeyboardInterrupt
        return {"sum": float(numbers(policy).sum())}

    return evaluate


RESUMED = {
    "adam and a moving reference": ("pairs", {}, lambda p: MovingReference.soft(p, 0.6, every=2)),
    "adam and a moving table": (
        "pairs",
        {},
        lambda p: MovingReference.soft(p, 0.6, every=2, space="probabilities"),
    ),
    "sgd": (
        "unpaired, class by class",
        {"optimizer": "sgd", "schedule": "linear", "warmup": 2},
        lambda p: None,
    ),
    "rmsprop in pieces": ("KTO with its baseline", {"optimizer": "rmsprop", "accumulate": 3}, lambda p: None),
    "samples from the policy": ("on-policy", {"schedule": "cosine"}, FrozenReference),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("every", [1, 3])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(name, every, tmp_path):
    kind, changes, make_ref = RESUMED[name]
    feedback, objective, knobs = RUNS[kind]
    run = settings(8, evaluate_every=1, checkpoint_every=every, **changes)

    def go(folder: Path | None, stop: int = -1) -> Any:
        policy = table()
        kept = {"checkpoint_dir": folder} if folder else {}
        own = run if folder else replace(run, checkpoint_every=0)
        ref = make_ref(policy)
        return quietly(
            policy, feedback, objective, ref=ref, settings=own, evaluate=stopped_at(stop), **kept, **knobs
        )

    expected = go(None)
    for stop in range(1, 9):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            go(folder, stop)
        result = go(folder)
        assert result.resumed_from == (stop - 1) // every * every
        assert torch.equal(numbers(result.policy), numbers(expected.policy))
        assert result.history.without("seconds") == expected.history.without("seconds")
        if isinstance(result.ref, MovingReference):
            assert torch.equal(numbers(result.ref.model), numbers(expected.ref.model))
            assert (result.ref.steps, result.ref.updates) == (8, 4)


def checkpointed(folder: Path, steps: int = 6, **changes: Any) -> Any:
    run = settings(steps, checkpoint_every=2, **changes)
    return quietly(table(), PAIRS, "dpo", settings=run, checkpoint_dir=folder)


def test_a_finished_run_is_read_and_not_computed_again(tmp_path):
    first = checkpointed(tmp_path)
    again = checkpointed(tmp_path)
    assert again.resumed_from == 6 and again.history == first.history
    assert torch.equal(numbers(first.policy), numbers(again.policy))


def test_the_last_two_checkpoints_are_kept_in_open_formats_and_nothing_half_written(tmp_path):
    left = tmp_path / f".step-00000002.{'0' * 32}.part"
    left.mkdir()
    (left / "policy.safetensors").write_bytes(b"half")
    mine = tmp_path / "notes.txt"
    mine.write_text("not the course's")
    checkpointed(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "step-00000004", "step-00000006"]
    files = {p.name for p in (tmp_path / "step-00000006").iterdir()}
    assert files == {"policy.safetensors", "optimizer.safetensors", "state.json", "sha256.json"}


def damage(place: Path, how: str) -> None:
    file = place / ("sha256.json" if "sums" in how else "policy.safetensors")
    content = file.read_bytes()
    if how == "a file is missing":
        file.unlink()
    elif "flipped" in how:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(content[: len(content) // 2])


@pytest.mark.filterwarnings("ignore:The checkpoint step-00000006 is damaged")
@pytest.mark.parametrize(
    "how", ["weights are cut short", "a bit is flipped", "the sums are cut short", "a file is missing"]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(how, tmp_path):
    expected = checkpointed(tmp_path)
    damage(tmp_path / "step-00000006", how)
    with pytest.warns(UserWarning, match="step-00000006 is damaged"):
        result = checkpointed(tmp_path)
    assert result.resumed_from == 4
    assert torch.equal(numbers(result.policy), numbers(expected.policy))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpointed(tmp_path).resumed_from == 6  # it was written again, whole
    for place in tmp_path.glob("step-*"):
        damage(place, how)
    policy = table()
    run = settings(6, checkpoint_every=2, evaluate_every=1)
    with pytest.warns(UserWarning, match="step-00000004 is damaged"), pytest.raises(KeyboardInterrupt):
        quietly(policy, PAIRS, "dpo", settings=run, checkpoint_dir=tmp_path, evaluate=stopped_at(3))
    # a new beginning, whose first checkpoint is kept although the damaged ones were of later steps
    assert [place.name for place in tmp_path.glob("step-*")] == ["step-00000002"]


def test_a_disk_that_fails_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == 9:  # in the middle of the second checkpoint
            raise OSError("no space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="no space"):
        checkpointed(tmp_path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000002"]
    expected = quietly(table(), PAIRS, "dpo", settings=settings(6))
    result = checkpointed(tmp_path)
    assert result.resumed_from == 2 and torch.equal(numbers(result.policy), numbers(expected.policy))


def test_a_checkpoint_of_another_run_is_refused_and_the_differences_are_named(tmp_path):
    checkpointed(tmp_path)

    def refusal(*arguments: Any, **options: Any) -> str:
        with pytest.raises(CourseError) as error:
            quietly(*arguments, checkpoint_dir=tmp_path, **options)
        assert error.value.id == "checkpoint-mismatch"
        return error.value.what

    run = settings(6, checkpoint_every=2)
    what = refusal(table(), PAIRS, "dpo", settings=replace(run, learning_rate=0.01, seed=1), beta=0.2)
    assert "settings.learning_rate: saved 0.05, now 0.01" in what and "settings.seed: saved 0, now 1" in what
    assert "loss_settings.beta: saved None, now 0.2" in what and "steps" not in what
    assert "feedback.content" in refusal(table(), PAIRS.shuffled(0), "dpo", settings=run)
    assert "objective: saved 'dpo', now 'pmle'" in refusal(table(), PAIRS, "pmle", settings=run)
    assert "policy.kind" in refusal(MLPPolicy(2, 4), PAIRS, "dpo", ref=FrozenReference(table()), settings=run)
    # the policy was trained in memory and is used again: its copy is not the reference of the first run
    trained = TablePolicy(WORLD.preferred_distribution().log())
    assert "reference.content" in refusal(trained, PAIRS, "dpo", settings=run)
    moving = MovingReference.hard(table(), every=3)
    assert "reference.kind" in refusal(table(), PAIRS, "dpo", ref=moving, settings=run)


def test_a_run_from_the_beginning_does_not_overwrite_checkpoints(tmp_path):
    checkpointed(tmp_path)
    with pytest.raises(CourseError) as error:
        quietly(table(), PAIRS, "dpo", settings=settings(), checkpoint_dir=tmp_path, resume=False)
    assert error.value.id == "checkpoint-mismatch" or error.value.id == "checkpoint-exists"
    run = settings(6, checkpoint_every=2)
    with pytest.raises(CourseError) as error:
        quietly(table(), PAIRS, "dpo", settings=run, checkpoint_dir=tmp_path, resume=False)
    assert error.value.id == "checkpoint-exists"


# -------------------- language models

PROMPTS = ["tell me", "the soup", "music and", "abab"] * 6
TEXTS = Pairs(
    PROMPTS,
    ["kind and warm", "the music was warm", "abab", "yes"] * 6,
    ["no", "cold the service", "the", "a b c d"] * 6,
)


def language_model(seed: int = 0, **changes: Any) -> LanguageModelPolicy:
    from language_models import byte_tokenizer, tiny_model

    with torch.random.fork_rng():  # the helper seeds the global generator
        tokenizer = byte_tokenizer()
        model = tiny_model("qwen2", len(tokenizer), seed=seed, spread=2.0, **changes).eval()
    return LanguageModelPolicy(model, tokenizer, max_new_tokens=6)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("share_prompt", [False, True])
def test_the_first_dpo_loss_of_a_language_model_is_log_2_and_training_lowers_it(share_prompt):
    run = settings(8, learning_rate=2e-3, share_prompt=share_prompt)
    history = quietly(language_model(), TEXTS, "dpo", settings=run).history
    assert abs(history.column("loss")[0] - math.log(2)) < 1e-6
    assert history.column("loss")[-1] < 0.65
    assert history.last("chosen_drift") > history.last("rejected_drift")


def test_the_first_rdro_loss_of_a_language_model_is_twice_log_2():
    result = quietly(language_model(), TEXTS, "rdro", settings=settings(1), alpha=0.4)
    assert abs(result.history.column("loss")[0] - 2 * math.log(2)) < 1e-6


def test_encoded_examples_give_the_log_probs_of_the_policy_for_every_layout():
    policy = language_model()
    groups = Groups(PROMPTS[:4], [["warm", "kind", "no"]] * 4, torch.zeros(4, 3))
    rows = torch.tensor([3, 1])
    for feedback, name in ((TEXTS, "dpo"), (TEXTS, "rdro"), (groups, "exo_rw"), (TEXTS, "sft")):
        layout = lay_out(feedback, objectives.get(name))
        plain, encoded = PlainExamples(layout), EncodedExamples.from_texts(layout, policy)
        some, everything = plain.log_probs(policy, rows), plain.log_probs(policy, None)
        for slot, values in encoded.log_probs(policy, rows).items():
            assert values.shape == some[slot].shape
            assert torch.allclose(values, some[slot], rtol=0, atol=1e-5)
        for slot, values in encoded.all_log_probs(policy).items():
            assert torch.allclose(values, everything[slot], rtol=0, atol=1e-5) and not values.requires_grad
    alone = lay_out(TEXTS, objectives.get("kto"))
    plain, encoded = PlainExamples(alone), EncodedExamples.from_texts(alone, policy)
    expected = plain.mismatched(rows).log_probs(policy, None)[""]
    assert torch.allclose(encoded.mismatched(rows).log_probs(policy, None)[""], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, plain.log_probs(policy, rows)[""], rtol=0, atol=1e-2)


def test_the_lengths_of_texts_are_counted_in_tokens_with_the_end_token():
    policy = language_model()
    examples = EncodedExamples.from_texts(lay_out(TEXTS, objectives.get("simpo")), policy)
    for slot, texts in (("chosen", TEXTS.chosen), ("rejected", TEXTS.rejected)):
        expected = [len(policy.tokenizer(text)["input_ids"]) + 1 for text in texts]
        assert examples.lengths(None)[slot].tolist() == expected


def test_batches_of_texts_in_pieces_have_the_gradient_of_the_whole():
    groups = Groups(
        PROMPTS, [["warm", "kind", "no"]] * 24, torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    )
    rewarded = OnPolicy(PROMPTS, lambda _, texts: torch.tensor([float(len(text)) for text in texts]))
    for feedback, name in ((TEXTS, "rdro"), (groups, "exo_rw"), (rewarded, "reverse_kl")):
        for_run = {}
        for pieces in (1, 2):
            run = settings(2, accumulate=pieces, learning_rate=1e-3, optimizer="sgd")
            for_run[pieces] = quietly(language_model(), feedback, name, settings=run)
        losses = [result.history.column("loss") for result in for_run.values()]
        assert np.abs(losses[0] - losses[1]).max() < 1e-5 * np.abs(losses[0]).max()
        moved = [numbers(result.policy) - numbers(language_model()) for result in for_run.values()]
        assert (moved[0] - moved[1]).abs().max() < 1e-3 * moved[0].abs().max()


def test_a_frozen_reference_is_asked_once_and_then_found_in_the_cache(tmp_path):
    calls = []
    ref = FrozenReference(language_model())
    ref.model.model.register_forward_hook(lambda *_: calls.append(1))
    run = settings(3, learning_rate=1e-3)
    first = quietly(language_model(), TEXTS, "dpo", ref=ref, settings=run, cache_dir=tmp_path)
    assert len(calls) == 1  # 24 rows are one batch
    second = quietly(language_model(), TEXTS, "dpo", ref=ref, settings=run, cache_dir=tmp_path)
    assert len(calls) == 1 and first.history.without("seconds") == second.history.without("seconds")
    # a moving reference that has not moved yet gives the same run, asked live
    live = quietly(
        language_model(), TEXTS, "dpo", ref=MovingReference.hard(language_model(), 100), settings=run
    )
    assert np.abs(live.history.column("loss") - first.history.column("loss")).max() < 1e-6


# -------------------- killed

STEPS = {"finite": 40, "language": 14}


def run_to_be_killed(kind: str, folder: str | None, out: str | None) -> None:
    """One run in a process of its own, slow enough to be killed in the middle."""
    torch.set_num_threads(1)
    policy = table() if kind == "finite" else language_model()

    def evaluate(policy: Any, step: int) -> dict[str, float]:
        time.sleep(0.01 if folder else 0.0)
        return {"sum": float(numbers(policy).double().sum())}

    run = settings(
        STEPS[kind],
        learning_rate=0.02 if kind == "finite" else 1e-3,
        schedule="cosine",
        evaluate_every=1,
        checkpoint_every=0 if folder is None else 2 if kind == "finite" else 1,
    )
    feedback, objective = (PAIRS, "dpo") if kind == "finite" else (TEXTS, "rdro")
    ref = MovingReference.soft(policy, 0.6, every=3)
    kept = {} if folder is None else {"checkpoint_dir": folder}
    result = quietly(policy, feedback, objective, ref=ref, settings=run, evaluate=evaluate, **kept)
    if out is not None:
        from safetensors.torch import save_file

        save_file({"policy": numbers(policy), "ref": numbers(ref.model)}, f"{out}.safetensors")
        result.history.without("seconds").save(f"{out}.json")


def newest(folder: Path) -> int:
    return max((int(place.name[-8:]) for place in folder.glob("step-*")), default=0)


@pytest.mark.parametrize("kind", ["finite", "language"])
def test_a_process_killed_again_and_again_ends_with_the_bits_of_one_that_was_left_alone(kind, tmp_path):
    how = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(how)
    if how == "forkserver":
        context.set_forkserver_preload([__name__, "transformers.models.qwen2.modeling_qwen2"])

    def start(folder: Path | None, out: str | None) -> Any:
        places = (None if folder is None else str(folder), None if out is None else str(tmp_path / out))
        process = context.Process(target=run_to_be_killed, args=(kind, *places))
        process.start()
        return process

    alone = start(None, "alone")
    folder = tmp_path / "run"
    chance = random.Random(f"{kind} {time.time_ns()}")  # the claim is about any point in time
    kills, reached = 5 if how == "forkserver" else 2, []
    for kill in range(kills):
        process = start(folder, None)
        target = newest(folder) + chance.randint(1, max(1, (STEPS[kind] - 4) // kills))
        deadline = time.monotonic() + 120
        while newest(folder) < min(target, STEPS[kind] - 2) and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode != 0, f"kill {kill} came too late"
        reached.append(newest(folder))
    assert 0 < reached[0] < STEPS[kind]
    last = start(folder, "killed")
    for process in (last, alone):
        process.join()
        assert process.exitcode == 0
    for ending in ("safetensors", "json"):
        assert (tmp_path / f"killed.{ending}").read_bytes() == (tmp_path / f"alone.{ending}").read_bytes()


# -------------------- the house


def test_training_needs_neither_transformers_nor_safetensors_nor_rich():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "trl", "datasets", "safetensors", "rich", "IPython", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from course_utils import evaluation, reward_models
from course_utils.errors import CourseError
from course_utils.policies import TablePolicy
from course_utils.preferences import draw_pairs
from course_utils.training import TrainingSettings, train
from course_utils.worlds.finite import FiniteWorld
world = FiniteWorld.random(responses=4, seed=1)
pairs, policy = draw_pairs(world, 50, seed=0), TablePolicy(world.reference.log())
settings = TrainingSettings(steps=5)
train(policy, pairs, "dpo", settings=settings, evaluate=lambda p, step: evaluation.evaluate(p, world, pairs=pairs))
try:
    train(policy, pairs, "dpo", settings=settings, checkpoint_dir="nowhere")
except CourseError as error:
    print(error.id)
print(sorted({"transformers", "safetensors", "rich"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["missing-package", "[]"], done.stderr


def test_every_kind_of_feedback_in_the_registry_can_be_trained():
    feedbacks = {
        "paired": PAIRS,
        "reference-free pair": PAIRS,
        "scored pair": SOFT,
        "chosen only": PAIRS,
        "unpaired": UNPAIRED,
        "group": GROUPS,
        "on-policy": on_policy(),
    }
    trained = 0
    for name in objectives.names():
        objective = objectives.get(name)
        if objective.feedback == "reward pair":
            continue  # reward models: see test_reward_models
        result = quietly(table(), feedbacks[objective.feedback], objective, settings=settings(2))
        assert np.isfinite(result.history.column("loss")).all(), name
        trained += 1
    assert trained >= 20
    assert isinstance(SOFT, SoftPairs) and isinstance(UNPAIRED, Unpaired)
