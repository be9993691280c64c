"""The experiment of lesson 07: a proxy is over-optimised, with a reference that stays and with one that moves.

Pairs of responses of the original reference are labelled by a proxy judge, which likes flattery and length; the true
judge does not. DPO is trained on them against four references, and SFT on the chosen responses is the control. On the
way each policy is measured by both judges, and by its KL from the ORIGINAL reference: a moving reference simply goes
farther in the same number of steps, so policies are compared at equal KL.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_utils.experiments import Experiment

STEPS, EVERY, WATCH = (
    96,
    16,
    16,
)  # updates; updates between two moves of the reference; between two measurements
LEARNING_RATE = 1e-3
PAIRS = 3_072  # each is seen once
PER_PROMPT = 20

# name: (objective, beta, alpha of the move); alpha None is a reference that stays
ARMS: dict[str, tuple[str, float | None, float | None]] = {
    "fixed": ("dpo", 0.5, None),
    "fixed, small beta": ("dpo", 0.1, None),
    "soft": ("dpo", 0.5, 0.6),
    "hard": ("dpo", 0.5, 1.0),
    "sft": ("sft", None, None),
}


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _pairs(proxy: str, seed: int) -> Any:
    from course_utils import preferences

    return preferences.draw_pairs(_world().with_judge(proxy), PAIRS, seed=seed)


def measured(world: Any, proxy: str, policy: Any, per_prompt: int, seed: int) -> dict[str, float]:
    """What a draw of the policy shows: both judges' rewards, the KL from the original reference, a few features."""
    import torch

    from course_utils.logprobs import sequence_log_probs

    draw = world.draw(policy, per_prompt, seed)
    with torch.no_grad():
        ref_log_prob = sequence_log_probs(world.model, draw.tokens.batch())
    numbers = {
        "kl": (draw.tokens.policy_log_probs - ref_log_prob).mean(),
        "proxy": world.with_judge(proxy).reward_of(draw.prompts, draw.responses).mean(),
        "truth": world.reward_of(draw.prompts, draw.responses).mean(),
    }
    for name in ("flattery", "words", "correct", "grammatical"):
        numbers[name] = draw.feature(name).double().mean()
    return {name: round(float(value), 4) for name, value in numbers.items()}


def over_optimisation(arm: str, seed: int, proxy: str = "surface") -> dict[str, Any]:
    """Train one policy on the proxy's labels; its path of KL and both rewards, and three texts at the end."""
    from course_utils.references import MovingReference
    from course_utils.training import TrainingSettings, train

    world, (objective, beta, alpha) = _world(), ARMS[arm]
    policy = world.new_policy()
    path: list[dict[str, float]] = []

    def watch(model: Any, step: int) -> dict[str, float]:
        path.append({"step": step, **measured(world, proxy, model, PER_PROMPT, 1000 + seed)})
        return {}

    settings = TrainingSettings(
        steps=STEPS,
        batch_size=32,
        learning_rate=LEARNING_RATE,
        warmup=8,
        clip_gradient=1.0,
        seed=seed,
        evaluate_every=WATCH,
    )
    ref = None if alpha is None else MovingReference(policy, alpha, EVERY)
    own = {} if beta is None else {"beta": beta}
    train(
        policy,
        _pairs(proxy, seed),
        objective,
        ref=ref,
        settings=settings,
        evaluate=watch,
        progress=False,
        **own,
    )
    shown = world.draw(policy, 1, seed)
    return {"path": path, "texts": [[shown.prompts[row], shown.responses[row]] for row in (2, 10, 18)]}


# -------------------- comparing what was measured


def at_equal_kl(
    kl_a: Sequence[float],
    truth_a: Sequence[float],
    kl_b: Sequence[float],
    truth_b: Sequence[float],
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    """Mean difference a - b of the true reward over the KLs that both paths cover (within limits); linear in between."""
    import numpy as np

    grid = np.linspace(max(min(kl_a), min(kl_b), low), min(max(kl_a), max(kl_b), high), 101)
    curves = []
    for kl, truth in ((kl_a, truth_a), (kl_b, truth_b)):
        order = np.argsort(kl)  # measured with noise, a path may step back a little
        curves.append(np.interp(grid, np.asarray(kl)[order], np.asarray(truth)[order]))
    return float((curves[0] - curves[1]).mean())


def column(runs: Sequence[dict[str, Any]], arm: str, name: str) -> Any:
    """[seeds, measurements] of one arm."""
    import numpy as np

    return np.array([[point[name] for point in run["path"]] for run in runs if run["arm"] == arm])


def difference_at_end(runs: Sequence[dict[str, Any]], a: str, b: str, name: str) -> Any:
    """Mean difference a - b over the seeds after the last step, with an interval."""
    from course_utils.statistics import paired_bootstrap

    return paired_bootstrap(column(runs, a, name)[:, -1], column(runs, b, name)[:, -1]).difference


def difference_at_equal_kl(
    runs: Sequence[dict[str, Any]], a: str, b: str, low: float = -math.inf, high: float = math.inf
) -> Any:
    """Mean difference a - b of the true reward at equal KL over the seeds, with an interval."""
    from course_utils.statistics import bootstrap_interval

    columns = (column(runs, arm, name) for arm in (a, b) for name in ("kl", "truth"))
    values = [at_equal_kl(*rows, low, high) for rows in zip(*columns, strict=True)]
    return bootstrap_interval(values, method="expanded")


def certain_pair(
    alpha: float | None, every: int, steps: int = 4000, beta: float = 0.1, learning_rate: float = 0.5
) -> list[float]:
    """Gradient descent on one pair that is always labelled alike: its log-ratio margin h from the ORIGINAL reference.

    A table moves the two logits by learning_rate * beta * sigma(-beta (h - h_ref)) each, in opposite directions. The
    margin of the reference, h_ref, moves by alpha every so many steps; alpha None is a reference that stays.
    """
    margin, ref, path = 0.0, 0.0, [0.0]
    for step in range(1, steps + 1):
        margin += 2 * learning_rate * beta / (1 + math.exp(beta * (margin - ref)))
        if alpha is not None and step % every == 0:
            ref += alpha * (margin - ref)
        path.append(margin)
    return path


def trl_rules() -> dict[str, float]:
    """What TRL's source says of its moving reference; it is read, not imported. Where TRL is absent: what 1.16.0 says.

    policy_share   the factor of the policy when ref_model_mixup_alpha = 0.6
    alpha, every   the defaults
    peft_refused   1 if DPOTrainer refuses sync_ref_model with an adapter
    """
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return {"policy_share": 0.6, "alpha": 0.6, "every": 512, "peft_refused": 1}
    config, trainer, rule = (
        (Path(found.origin).parent / "trainer" / f"{part}.py").read_text(encoding="utf-8")
        for part in ("dpo_config", "dpo_trainer", "callbacks")
    )
    policy_first = "target_param.data.mul_(1.0 - alpha).add_(copy_param.data, alpha=alpha)" in rule
    block = trainer.partition("if args.sync_ref_model:")[2][:200]
    alpha = re.search(r"ref_model_mixup_alpha: float = field\(\s*default=([\d.]+)", config)
    every = re.search(r"ref_model_sync_steps: int = field\(\s*default=(\d+)", config)
    return {
        "policy_share": 0.6 if policy_first else math.nan,
        "alpha": float(alpha[1]) if alpha else math.nan,
        "every": float(every[1]) if every else math.nan,
        "peft_refused": float("is_peft_model" in block and "NotImplementedError" in block),
    }


EXPERIMENTS = (
    Experiment(
        "07_over_optimisation",
        over_optimisation,
        grid=[{"arm": arm, "seed": seed} for seed in range(5) for arm in ARMS],
        about="A proxy over-optimised by DPO on the pocket model: a reference that stays, soft and hard ones; SFT as control.",
    ),
)
