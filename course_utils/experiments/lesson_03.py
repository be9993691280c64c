"""The experiment of lesson 03: policy gradient on the pocket model, with the true reward and with a proxy, leash or none.

Every prompt gets a group of responses in every batch, and a response's reward is counted from the mean of the others in
its group: the leave-one-out baseline. The objective is `reverse_kl` with gamma = 0, reward minus beta times KL.

With the true judge's reward r and beta the target is p_ref exp(r / beta) / Z. Z is a mean over responses of the
reference, so the value of the target, beta log Z, is known, and with it the distance that is left:
KL(policy || target) = (beta log Z - E r + beta KL(policy || p_ref)) / beta.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from course_utils.experiments import Experiment

GROUP = 4  # responses to each of the 24 prompts in a batch
STEPS = 32
LEARNING_RATE = 2e-3
PER_PROMPT = 20  # responses for the measurements before and after; eight on the way


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


def leave_one_out(reward: Any) -> Any:
    """The reward function of a world's judge, with each response counted from the others to its prompt in the batch."""
    import torch

    def advantage(prompts: list[str], responses: list[str]) -> Any:
        values = reward(prompts, responses)
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        group = torch.tensor([names[prompt] for prompt in prompts])
        count = torch.bincount(group)[group]
        total = torch.zeros(len(names), dtype=values.dtype).index_add(0, group, values)[group]
        return values - (total - values) / (count - 1)

    return advantage


def target_value(world: Any, beta: float) -> float:
    """beta log Z, the largest value that E r - beta KL can have, averaged over prompts."""
    import torch

    table = world.reference_table()
    reward = world.judge.reward_of(table)
    log_z = torch.logsumexp(reward / beta, dim=1) - math.log(reward.shape[1])
    return beta * float(log_z.mean())


def measured(world: Any, judge: str, policy: Any, per_prompt: int, seed: int) -> dict[str, float]:
    """What a draw of the policy shows: the rewarded judge, the true one, the KL, and a few features."""
    import torch

    from course_utils.logprobs import sequence_log_probs

    draw = world.draw(policy, per_prompt, seed)
    rewarded = world.with_judge(judge).reward_of(draw.prompts, draw.responses)
    truth = world.reward_of(draw.prompts, draw.responses)
    with torch.no_grad():
        ref_log_prob = sequence_log_probs(world.model, draw.tokens.batch())
    moved = draw.tokens.policy_log_probs - ref_log_prob
    numbers = {"rewarded": rewarded.mean(), "truth": truth.mean(), "kl": moved.mean()}
    for name in ("words", "flattery", "correct", "grammatical"):
        numbers[name] = draw.feature(name).double().mean()
    return {name: round(float(value), 4) for name, value in numbers.items()}


def leash(judge: str, beta: float | None, seed: int) -> dict[str, Any]:
    """Train one policy; the path of rewarded judge, true judge and KL, and some texts.

    With a beta: policy gradient on that judge's reward. Without one: the control, SFT on chosen responses.
    """
    from course_utils import preferences
    from course_utils.training import OnPolicy, TrainingSettings, train

    world = _world()
    policy = world.new_policy()
    prompts = [prompt for prompt in world.prompts for _ in range(GROUP)]
    path: list[dict[str, float]] = []

    def watch(model: Any, step: int) -> dict[str, float]:
        count = PER_PROMPT if step in (0, STEPS) else 8
        path.append({"step": step, **measured(world, judge, model, count, 1000 + seed)})
        return {}

    settings = TrainingSettings(
        steps=STEPS,
        batch_size=len(prompts),
        learning_rate=LEARNING_RATE,
        clip_gradient=1.0,
        seed=seed,
        schedule="linear",
        evaluate_every=8,
    )
    common = {"settings": settings, "evaluate": watch, "progress": False}
    if beta is None:
        pairs = preferences.draw_pairs(world, STEPS * len(prompts) // 2, seed=seed)
        train(policy, pairs, "sft", **common)
    else:
        feedback = OnPolicy(prompts, leave_one_out(world.with_judge(judge).reward_of))
        train(policy, feedback, "reverse_kl", gamma=0.0, beta=beta, **common)
    shown = world.draw(policy, 1, seed)
    texts = [[shown.prompts[row], shown.responses[row]] for row in (2, 10, 18)]
    return {"path": path, "texts": texts}


RUNS = [("bradley_terry", 1.0), ("surface", 0.0), ("surface", 1.0), ("bradley_terry", None)]

EXPERIMENTS = (
    Experiment(
        "03_leash",
        leash,
        grid=[{"judge": judge, "beta": beta, "seed": seed} for seed in range(5) for judge, beta in RUNS],
        about="Policy gradient on the pocket model: the true reward and a proxy, with and without the leash; SFT as control.",
    ),
)
