"""The experiment of lesson 08: two data models on the pocket model, and the methods made for either.

One truth, pi* = p_ref exp(r) / Z with the reward r of the true judge, and two ways in which it may have made the labels:

    "language model"   P(a over b) = sigmoid(tau log[pi*(a) / pi*(b)])             (Yun et al. 2025, eq. 2)
    "reward"           P(a over b) = sigmoid(tau log[(pi*/p_ref)(a) / (pi*/p_ref)(b)])       (what DPO assumes)

Three methods put no reference under the policy (PMLE, preference distillation, reverse KL), three do (DPO, DPO with soft
labels, RLHF). All know tau. Responses, batches, steps and learning rate are the same for all.

And what the finite part needs: tables of counted comparisons, drawn at once however many they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.experiments import Experiment

if TYPE_CHECKING:
    from torch import Tensor

TAU = 0.5
STEPS, TOGETHER = 40, 48  # updates; responses in one batch, whatever the method
LEARNING_RATE = 1e-3

# name: (objective, settings). The first three have no reference in them, the next three do.
METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "pmle": ("pmle", {"gamma": TAU}),
    "preference_distillation": ("preference_distillation", {"gamma": TAU}),
    "reverse_kl": ("reverse_kl", {"gamma": TAU, "beta": 0.0}),
    "dpo": ("dpo", {"beta": TAU}),
    "dpo_rw": ("dpo_rw", {"beta_policy": TAU}),
    "rlhf": ("reverse_kl", {"gamma": 0.0, "beta": TAU}),
    "sft": ("sft", {}),
}


# -------------------- the finite part


def count_pairs(world: Any, n: int, seed: int) -> Tensor:
    """How often a was chosen over b, [X, Y, Y], in n comparisons of two independent responses of the reference.

    All at once: n to each prompt, then to each pair of responses, then to the winner, so a million costs what a hundred does.
    """
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    wins = np.zeros((*world.shape, world.shape[1]))
    each = rng.multinomial(n, world.prompt_weights.numpy())
    for x, (count, ref) in enumerate(zip(each, world.reference.numpy(), strict=True)):
        drawn = rng.multinomial(count, np.outer(ref, ref).ravel() / ref.sum() ** 2).reshape(len(ref), -1)
        won = rng.binomial(drawn, world.preference[x].numpy())
        wins[x] = won + (drawn - won).T
    return torch.from_numpy(wins)


def fitted_reward(wins: Tensor, pull: float = 1e-3) -> Tensor:
    """The Bradley–Terry reward of counted comparisons, [X, Y], by Newton's method.

    `pull` is a tiny quadratic pull to zero, so that a response that never won has a finite reward.
    """
    import torch

    both = wins + wins.transpose(-1, -2)
    eye = torch.eye(wins.shape[-1], dtype=wins.dtype)
    reward = torch.zeros(wins.shape[:-1], dtype=wins.dtype)
    for _ in range(60):
        p = torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))
        slope = wins.sum(-1) - (both * p).sum(-1) - pull * reward
        weight = both * p * (1 - p) * (1 - eye)
        curvature = torch.diag_embed(weight.sum(-1)) - weight + pull * eye
        move = torch.linalg.solve(curvature, slope)
        # Far from the top a full step may overshoot: no score moves by more than 2 at once.
        move = move / (move.abs().amax(-1, keepdim=True) / 2).clamp(min=1)
        reward = reward + move
        if move.abs().max() < 1e-12:
            break
    return reward - reward.mean(-1, keepdim=True)


def pmle_of_counts(wins: Tensor, gamma: float) -> Tensor:
    """The table of probabilities [X, Y] with the least PMLE loss on counted comparisons, from the uniform one."""
    import torch

    from course_utils import objectives
    from course_utils.worlds.minimisers import minimise_rows

    def losses(log_policy: Tensor) -> Tensor:
        chosen = log_policy.unsqueeze(-1).expand_as(wins)
        return (wins * objectives.pmle(chosen, chosen.transpose(-1, -2), gamma)).sum((-1, -2)) / wins.sum()

    return minimise_rows(losses, torch.zeros(wins.shape[:-1], dtype=wins.dtype), tolerance=1e-13)


def least_kl(
    world: Any, truth: Tensor, ref_power: Tensor, reward: Tensor, temperature: Tensor
) -> tuple[float, int]:
    """The least KL(truth || policy) over policies p_ref^a exp(reward / T) / Z, one for each entry of a and T, and which.

    RLHF has a = 1 and T = beta; reverse KL has a = beta / (beta + gamma) and T = beta + gamma.
    """
    import torch

    a, temperature = ref_power.view(-1, 1, 1), temperature.view(-1, 1, 1)
    found = torch.log_softmax(a * world.reference.log() + reward / temperature, dim=-1)
    divergence = (truth * (truth.log() - found)).sum(-1) @ world.prompt_weights
    best = int(divergence.argmin())
    return float(divergence[best]), best


def learning_curves(
    world: Any, truth: Tensor, sizes: Sequence[int], gamma: float, seed: int
) -> list[list[float]]:
    """KL(truth || policy) after each number of comparisons: one row a size, one column a policy.

    RLHF and reverse KL at the best beta (the truth picks it); PMLE; DPO with beta = gamma; the reference. In a table all
    follow from the fitted reward: none needs training.
    """
    import torch

    log_ref, rows = world.reference.log(), []
    betas = torch.logspace(-3, 3, 121, dtype=torch.float64)
    with_zero = torch.cat([betas.new_zeros(1), betas])
    for n in sizes:
        reward = fitted_reward(count_pairs(world, n, seed))
        rlhf, _ = least_kl(world, truth, torch.ones_like(betas), reward, betas)
        smooth, _ = least_kl(world, truth, with_zero / (with_zero + gamma), reward, with_zero + gamma)
        pmle, dpo = (torch.softmax(power * log_ref + reward / gamma, -1) for power in (0, 1))
        rows.append([rlhf, smooth, world.kl(truth, pmle), world.kl(truth, dpo), world.kl(truth)])
    return rows


# -------------------- the pocket model


@dataclass(frozen=True, eq=False)
class Labelled:
    """The pocket world before a judge that goes by tau log pi*, or by tau log (pi*/p_ref). A world of `preferences`."""

    world: Any
    data_model: str

    def sample_prompts(self, n: int, generator: Any) -> list[str]:
        return self.world.sample_prompts(n, generator)

    def sample_responses(self, prompts: Sequence[str], generator: Any, proposal: Any = None) -> list[str]:
        return self.world.sample_responses(prompts, generator, proposal)

    def reward_of(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """What the labels go by; log Z of the prompt is left out, because only differences count."""
        reward = self.world.reward_of(prompts, responses)
        if self.data_model == "language model":
            reward = reward + reference_log_prob(self.world, prompts, responses)
        return TAU * reward

    def preference_probability(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> Any:
        both = self.reward_of([*prompts, *prompts], [*first, *second])
        return (both[: len(prompts)] - both[len(prompts) :]).sigmoid()


def reference_log_prob(world: Any, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """log p_ref of texts. A policy may say nothing at all: then it is that of the end token alone."""
    import torch

    from course_utils.encoding import batch_from_ids, encode_prompts
    from course_utils.logprobs import sequence_log_probs

    said = torch.tensor([bool(text.strip()) for text in responses])
    values = torch.empty(len(responses), dtype=torch.float64)
    for kept, some in ((True, said), (False, ~said)):
        rows = some.nonzero().flatten().tolist()
        if rows and kept:
            values[some] = world.log_prob(None, [prompts[i] for i in rows], [responses[i] for i in rows])
        elif rows:
            ids = encode_prompts(world.tokenizer, [prompts[i] for i in rows])
            batch = batch_from_ids(ids, [[world.tokenizer.eos_token_id]] * len(rows))
            with torch.no_grad():
                values[some] = sequence_log_probs(world.model, batch).double()
    return values


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _feedback(data_model: str, kind: str, seed: int) -> Any:
    """Labelled pairs, or groups of two with rewards: the same number of responses of the reference."""
    from course_utils import preferences

    judge, n = Labelled(_world(), data_model), STEPS * TOGETHER // 2
    if kind == "pairs":
        return preferences.draw_pairs(judge, n, seed=seed)
    return preferences.draw_groups(judge, n, 2, seed=seed)


def with_baseline(judge: Any, gamma: float) -> Any:
    """A reward for on-policy training, less a baseline that keeps its noise small and its expected gradient as it is.

    The cost of a response is -reward + gamma log pi. What is taken off is the mean of reward - gamma log p_ref over the
    OTHER responses to the same prompt in the batch: at the start that centres the whole cost, log pi included.
    """
    import torch

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> Any:
        values = judge.reward_of(prompts, responses)
        centred = (
            values if gamma == 0 else values - gamma * reference_log_prob(judge.world, prompts, responses)
        )
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        group = torch.tensor([names[prompt] for prompt in prompts])
        count = torch.bincount(group)[group]
        total = torch.zeros(len(names), dtype=values.dtype).index_add(0, group, centred)[group]
        return values - (total - centred) / (count - 1)

    return reward


def aligned(data_model: str, method: str, seed: int, steps: int = STEPS) -> Any:
    """Train one policy with one method on the labels, rewards or judge of one data model."""
    from course_utils.training import OnPolicy, TrainingSettings, train

    world, (objective, options) = _world(), METHODS[method]
    policy = world.new_policy()
    rows = TOGETHER
    if objective == "reverse_kl":
        judge = Labelled(world, data_model)
        feedback = OnPolicy(
            world.prompts * (rows // len(world.prompts)), with_baseline(judge, options["gamma"])
        )
    else:
        soft = method in ("preference_distillation", "dpo_rw")
        feedback = _feedback(data_model, "groups" if soft else "pairs", seed)
        rows //= 2
    settings = TrainingSettings(
        steps=steps,
        batch_size=rows,
        learning_rate=LEARNING_RATE,
        schedule="linear",
        clip_gradient=1.0,
        seed=seed,
    )
    train(policy, feedback, objective, settings=settings, progress=False, **options)
    return policy


@functools.cache
def _target(world: Any, per_prompt: int) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Responses of the reference with log p_ref and log(pi*/p_ref), and log Z of each prompt."""
    import torch

    table = world.reference_table()
    reward = world.judge.reward_of(table)
    log_z = torch.logsumexp(reward, dim=1) - math.log(reward.shape[1])
    sample = world.draw(per_prompt=per_prompt, seed=70_000)
    log_tilt = world.judge.reward_of(sample.features) - log_z[sample.prompt_index]
    return sample, sample.tokens.policy_log_probs.double(), log_tilt, log_z


def measured(world: Any, policy: Any, per_prompt: int = 40) -> dict[str, Any]:
    """KL(pi* || policy) from samples of the reference, KL(policy || pi*) from the policy's own, and three texts of these."""
    import torch

    from course_utils.logprobs import sequence_log_probs

    model = world.model if policy is None else policy.model

    def log_prob(model: Any, sample: Any) -> Tensor:
        with torch.no_grad():
            return sequence_log_probs(model, sample.tokens.batch()).double()

    reference, ref_log_prob, log_tilt, log_z = _target(world, per_prompt)
    weight = log_tilt.exp()
    # Weights have mean one, so taking weight - 1 away costs nothing and lowers the variance.
    log_ratio = log_prob(model, reference) - ref_log_prob
    forward = (weight * (log_tilt - log_ratio) - (weight - 1)).mean()
    own = world.draw(policy, per_prompt=per_prompt, seed=1)
    said = own.tokens.policy_log_probs.double()
    moved, reward = said - log_prob(world.model, own), world.judge.reward_of(own.features)
    numbers = {
        "forward": forward,
        "reverse": (moved - reward + log_z[own.prompt_index]).mean(),
        "kl_to_reference": moved.mean(),
        "entropy": -said.mean(),
        "reward": reward.mean(),
        "words": own.feature("words").double().mean(),
        "grammatical": own.feature("grammatical").double().mean(),
    }
    found: dict[str, Any] = {name: round(float(value), 5) for name, value in numbers.items()}
    rows = [prompt * per_prompt for prompt in (1, 9, 17)]
    return found | {"texts": [[own.prompts[row], own.responses[row]] for row in rows]}


def two_data_models(data_model: str, method: str, seed: int) -> dict[str, Any]:
    """Train and measure one policy."""
    return measured(_world(), aligned(data_model, method, seed))


EXPERIMENTS = (
    Experiment(
        "08_two_data_models",
        two_data_models,
        grid=[
            {"data_model": data_model, "method": method, "seed": seed}
            for seed in range(5)
            for data_model in ("language model", "reward")
            for method in METHODS
        ],
        about="Six methods and SFT on the pocket model, labels made by pi* or by pi*/p_ref: both divergences to pi*.",
    ),
)
