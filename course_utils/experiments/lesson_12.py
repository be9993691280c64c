"""What lesson 12 computes with: exact rounds of iterated alignment on tables, and three rounds on the pocket model.

- `replicator`, `rounds`, `leashed`, `following` are the exact rounds. `particle_rounds` carries the exact law over to a
  world of texts: a large sample of the reference is reweighted, and nothing is trained.
- `three_rounds` is the long computation. Pairs are drawn from the present policy (`draw_pairs(..., proposal=policy)`),
  the present policy is the round's reference, and the world's judge chooses.

Deviation from large-scale practice: a round here is 12 updates, short of its optimum, so that three rounds of three
methods, two judges and three seeds stay a matter of minutes.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.experiments import Experiment

ROUNDS, STEPS, PAIRS = 3, 12, 384  # in a round each pair is seen once
LEARNING_RATE = 1e-3
PER_PROMPT = 20

ARMS: dict[str, dict[str, float]] = {"rdro": {"alpha": 0.5}, "dpo": {"beta": 1.0}, "sft": {}}


# -------------------- exact rounds on a table


def replicator(policy: Tensor, judge: Tensor, step: float = 1.0) -> Tensor:
    """One exact round, damped by step: (1 - step) p(y) + step 2 p(y) W(y; p).

    The sum is kept at one by hand: the map squares it, so rounding would double with every round.
    """
    moved = policy * (1 - step + step * 2 * (judge @ policy))
    return moved / moved.sum()


def leashed(policy: Tensor, judge: Tensor, ref: Tensor, leash: float) -> Tensor:
    """One exact round, pulled back to a fixed reference: ref^leash (2 p W)^(1 - leash) / Z."""
    moved = replicator(policy, judge).clamp_min(1e-300).log()
    return torch.softmax(leash * ref.log() + (1 - leash) * moved, dim=-1)


def rounds(start: Tensor, update: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The policies of `count` rounds, [count + 1, Y], the start first."""
    met = [start]
    for _ in range(count):
        met.append(update(met[-1]))
    return torch.stack(met)


def following(start: Tensor, judge: Tensor, leash: float, every: int, count: int) -> Tensor:
    """Leashed rounds whose reference is copied from the policy every `every` rounds, [count + 1, Y]."""
    met, ref = [start], start
    for index in range(1, count + 1):
        met.append(leashed(met[-1], judge, ref, leash))
        if index % every == 0:
            ref = met[-1].clamp_min(1e-300)
    return torch.stack(met)


# -------------------- exact rounds in a world of texts


def particle_rounds(world: Any, count: int = ROUNDS) -> dict[str, list[Any]]:
    """What exact rounds do to a world of texts: the law p 2W as weights on a large sample of its reference.

    win_rate   against the first reference, after 0, 1, ... rounds
    step_win   of each round's policy against the one before it (from round 1 on)
    styles     shares of warm, brief, thorough
    """
    from course_utils.worlds.pocket_judges import style_of

    table = world.reference_table().double()
    beats = [world.judge.preference_probability(rows[:, None], rows[None]).double() for rows in table]
    style = torch.nn.functional.one_hot(style_of(table).long(), 3).double()
    weight = torch.full(table.shape[:2], 1 / table.shape[1], dtype=torch.float64)
    first, found = weight, {"win_rate": [0.5], "step_win": [], "styles": []}
    found["styles"].append(torch.einsum("xm,xms->s", weight, style).div(len(table)).tolist())
    for _ in range(count):
        wins = torch.stack([judge @ row for judge, row in zip(beats, weight, strict=True)])
        after = weight * 2 * wins
        found["step_win"].append(float((after * wins).sum(1).mean()))
        weight = after / after.sum(1, keepdim=True)
        against = torch.stack([judge @ row for judge, row in zip(beats, first, strict=True)])
        found["win_rate"].append(float((weight * against).sum(1).mean()))
        found["styles"].append(torch.einsum("xm,xms->s", weight, style).div(len(table)).tolist())
    return found


# -------------------- the pocket model


@functools.cache
def _world(judge: str) -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry").with_judge(judge)


def head_to_head(world: Any, first: Any, second: Any) -> float:
    """How often responses of one draw are preferred to those of another, over all pairs to the same prompt."""
    a = first.features.reshape(len(world.prompts), -1, first.features.shape[-1])
    b = second.features.reshape(len(world.prompts), -1, second.features.shape[-1])
    return float(world.judge.preference_probability(a[:, :, None], b[:, None]).double().mean())


def three_rounds(judge: str, arm: str, seed: int) -> dict[str, Any]:
    """One policy through three rounds; after each, its win rate against the first reference and the round before."""
    from course_utils import preferences
    from course_utils.training import TrainingSettings, train
    from course_utils.worlds.pocket_judges import style_of

    world = _world(judge)
    policy, before = world.new_policy(), None
    path: list[dict[str, Any]] = []
    for k in range(ROUNDS):
        pairs = preferences.draw_pairs(world, PAIRS, seed=10 * seed + k, proposal=policy)
        # a row of a comparison is two responses, a row of unpaired feedback is one
        settings = TrainingSettings(
            steps=STEPS,
            batch_size=64 if arm == "rdro" else 32,
            learning_rate=LEARNING_RATE,
            warmup=2,
            clip_gradient=1.0,
            seed=10 * seed + k,
        )
        # train() freezes a copy of the policy it is given: the round's reference
        train(policy, pairs, arm, settings=settings, progress=False, **ARMS[arm])
        now = world.draw(policy, PER_PROMPT, 1000 + 10 * seed + k)
        share = torch.bincount(style_of(now.features).long(), minlength=3).double() / len(now)
        win_rate = float(world.win_rate_of_responses(now.prompts, now.responses).mean())
        path.append(
            {
                "win_rate": round(win_rate, 4),
                "step_win": round(win_rate if before is None else head_to_head(world, now, before), 4),
                "styles": [round(float(value), 4) for value in share],
                "correct": round(float(now.feature("correct").double().mean()), 4),
                "grammatical": round(float(now.feature("grammatical").double().mean()), 4),
            }
        )
        before = now
    shown = world.draw(policy, 1, seed)
    return {"path": path, "texts": [[shown.prompts[row], shown.responses[row]] for row in (2, 10, 18)]}


EXPERIMENTS = (
    Experiment(
        "12_three_rounds",
        three_rounds,
        grid=[
            {"judge": judge, "arm": arm, "seed": seed}
            for seed in range(3)
            for judge in ("bradley_terry", "cyclic")
            for arm in ARMS
        ],
        about="Three rounds of RDRO, DPO and SFT on pairs of the present policy",
    ),
)


def column(runs: list[dict[str, Any]], judge: str, arm: str, name: str) -> Tensor:
    """A measurement after each round, [seeds, rounds] (styles: [seeds, rounds, 3])."""
    chosen = [run["path"] for run in runs if (run["judge"], run["arm"]) == (judge, arm)]
    return torch.tensor([[row[name] for row in path] for path in chosen], dtype=torch.float64)


def trl_trainers() -> dict[str, bool]:
    """Which trainers of fresh pairs TRL ships, by its folders (nothing is imported). Where TRL is absent: as 1.16.0."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return {"online_dpo": True, "nash_md": False, "xpo": False}
    root = Path(found.origin).parent
    names = {path.stem for path in root.rglob("*_trainer.py")}
    return {name: f"{name}_trainer" in names for name in ("online_dpo", "nash_md", "xpo")}
