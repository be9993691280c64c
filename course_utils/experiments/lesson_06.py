"""The experiment of lesson 06: EXO and its relatives on the pocket model, held against the exact target.

And what its finite part needs: the best Gaussian for a set of groups, and the exact expected gradient of EXO-rw.

The judge is Bradley–Terry with a reward r, so the target pi* = p_ref exp(r) / Z is known up to Z, and Z is a mean over
responses of the reference. Each run reports both divergences to it: KL(pi* || policy) from samples of the reference
with weights exp(r) / Z, and KL(policy || pi*) from samples of the policy.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.experiments import Experiment

if TYPE_CHECKING:
    from torch import Tensor

RESPONSES = 3200  # to learn from, whatever the method: 1,600 pairs, or 400 groups of eight
TOGETHER = 64  # responses in one batch, whatever the method
STEPS = 60
LEARNING_RATE = 1e-3


# -------------------- the finite part


def best_gaussian(
    world: Any,
    grid: Tensor,
    objective: str,
    groups: Any,
    starts: tuple[tuple[float, float], ...] = ((-2, 0.6), (2, 0.6), (0, 2)),
) -> tuple[float, float, float]:
    """(loss, mean, sd) of the best Gaussian that L-BFGS finds for these groups, from several starts (mean, sd)."""
    import torch

    from course_utils import objectives
    from course_utils.policies import GaussianPolicy

    loss = objectives.get(objective).loss
    found = []
    for mean, sd in starts:
        policy = GaussianPolicy(mean, math.log(sd), grid=grid)
        ref = world.reference[0].log()[groups.responses]
        optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def value(policy: Any = policy, ref: Tensor = ref, optimiser: Any = optimiser) -> Tensor:
            optimiser.zero_grad()
            total = loss(policy.log_prob(None, groups.responses), ref, groups.reward).mean()
            total.backward()
            return total

        optimiser.step(value)
        found.append((value().item(), policy.mean.item(), policy.log_sd.exp().item()))
    return min(found)


def counts_of(draws: int, responses: int) -> Tensor:
    """Every way in which `draws` draws can fall on so many responses: [ways, responses]."""
    import torch

    bars = torch.combinations(torch.arange(draws + responses - 1), responses - 1)
    ends = torch.full((len(bars), 1), -1)
    return torch.cat([ends, bars, ends + draws + responses], dim=1).diff(dim=1).double() - 1


def expected_gradients(
    ref_logits: Tensor, reward: Tensor, logits: Tensor, size: int, beta: float = 0.5
) -> list[Tensor]:
    """Gradients in the policy's logits, exactly: of EXO-rw's expected loss, of KL(policy || pi*), and of J.

    A group matters only through how often each response occurs. A response that occurs c times is one with log c
    added to both scores; a multinomial weight says how likely such counts are.
    """
    import torch

    from course_utils import objectives

    ref, counts = torch.log_softmax(ref_logits, -1), counts_of(size, len(reward))
    weight = (math.lgamma(size + 1) - torch.lgamma(counts + 1).sum(1) + counts @ ref).exp()
    repeats = counts.clamp(min=1e-300).log()
    logits = logits.clone().requires_grad_(True)
    policy = torch.log_softmax(logits, -1)
    losses = objectives.exo_rw(
        policy + repeats, ref.expand_as(repeats), reward + beta * repeats, beta_reward=beta
    )
    divergence = (policy.exp() * (policy - torch.log_softmax(ref + reward / beta, -1))).sum()
    value = (policy.exp() * (reward - beta * (policy - ref))).sum()
    terms = (weight @ losses, divergence, value)
    return [torch.autograd.grad(term, logits, retain_graph=True)[0] for term in terms]


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two gradients."""
    return float(a @ b / (a.norm() * b.norm()))


def cosines(size: int, worlds: int) -> list[float]:
    """EXO-rw's cosine to reinforcement learning in so many random worlds of five responses, for groups of `size`."""
    import torch

    scale = torch.tensor([[0.7], [1.0], [0.5]], dtype=torch.float64)  # reference, reward, policy
    found = []
    for seed in range(worlds):
        rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exo, divergence, _ = expected_gradients(*(rows * scale), size)
        found.append(cosine(exo, divergence))
    return found


def trl_exo_default() -> tuple[float, bool]:
    """TRL's default label_smoothing, and whether its `exo_pair` refuses zero: read from its source, not imported.

    Where TRL is not installed, what 1.16.0 says.
    """
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        return 0.0, True
    config, trainer = (
        (Path(found.origin).parent / "trainer" / f"dpo_{part}.py").read_text(encoding="utf-8")
        for part in ("config", "trainer")
    )
    default = re.search(r"label_smoothing: float = field\(\s*default=([\d.]+)", config)
    refuses = '"exo_pair" in self.loss_types and self.label_smoothing == 0.0' in trainer
    return float(default[1]) if default else math.nan, refuses


# -------------------- the pocket model


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _feedback(size: int, source: str, seed: int) -> Any:
    """Pairs (size 0), or groups of `size`; `source` names the checkpoint that the responses are drawn from."""
    from course_utils import preferences

    if not size:
        return preferences.draw_pairs(_world(), RESPONSES // 2, seed=seed)
    proposal = None if source == "sft" else _checkpoint(source)
    return preferences.draw_groups(_world(), RESPONSES // size, size, seed=seed, proposal=proposal)


@functools.cache
def _checkpoint(name: str) -> Any:
    from course_utils.policies import LanguageModelPolicy
    from course_utils.worlds import pocket

    return LanguageModelPolicy(*pocket.load(name), max_new_tokens=pocket.MAX_NEW_TOKENS)


def log_normaliser(world: Any) -> Any:
    """log Z of each prompt: the mean of exp(r) over the large sample of the reference that the world ships with."""
    import torch

    table = world.reference_table()
    reward = world.judge.reward_of(table.reshape(-1, table.shape[-1])).reshape(table.shape[:2])
    return torch.logsumexp(reward, dim=1) - math.log(reward.shape[1])


def divergences(world: Any, policy: Any, per_prompt: int = 50) -> dict[str, float]:
    """Both divergences between a policy and pi* = p_ref exp(r) / Z, and what else its samples show."""
    log_z = log_normaliser(world)
    reference = world.draw(per_prompt=per_prompt, seed=70_000)
    log_target = world.reward_of(reference.prompts, reference.responses) - log_z[reference.prompt_index]
    log_ratio = world.log_prob(policy, reference.prompts, reference.responses) - world.log_prob(
        None, reference.prompts, reference.responses
    )
    weight = log_target.exp()
    # Weights have mean one, so taking weight - 1 away costs nothing and lowers the variance.
    forward = (weight * (log_target - log_ratio) - (weight - 1)).mean()
    own = world.draw(policy, per_prompt=per_prompt, seed=1)
    reward = world.reward_of(own.prompts, own.responses)
    moved = world.log_prob(policy, own.prompts, own.responses) - world.log_prob(
        None, own.prompts, own.responses
    )
    reverse = (moved - reward + log_z[own.prompt_index]).mean()
    return {
        "forward": round(float(forward), 5),
        "reverse": round(float(reverse), 5),
        "kl_to_reference": round(float(moved.mean()), 5),
        "reward": round(float(reward.mean()), 5),
        "correct": round(float((own.feature("correct") > 0).double().mean()), 5),
        "grammatical": round(float(own.feature("grammatical").mean()), 5),
    }


def exo_family(method: str, seed: int, size: int = 0, source: str = "sft") -> dict[str, Any]:
    """Train one policy with one method and measure it. All targets are at the same strength, beta = 1."""
    from course_utils.training import TrainingSettings, train

    world = _world()
    policy = world.new_policy()
    settings = TrainingSettings(
        steps=STEPS,
        batch_size=TOGETHER // (size or 2),
        learning_rate=LEARNING_RATE,
        schedule="linear",
        clip_gradient=1.0,
        seed=seed,
    )
    own = {"dpo": {"beta": 1.0}, "exo_pref": {"beta": 1.0}}.get(method, {})
    proposal = None if source == "sft" else _checkpoint(source)
    feedback = _feedback(size, source, seed)
    train(policy, feedback, method, settings=settings, proposal=proposal, progress=False, **own)
    return divergences(world, policy)


METHODS = [
    {"method": "sft"},
    {"method": "dpo"},
    {"method": "exo_pref"},
    {"method": "dpo_rw", "size": 8},
    {"method": "exo_rw", "size": 8},
    {"method": "exo_rw", "size": 2},
    {"method": "brain", "size": 8, "source": "base"},
]

EXPERIMENTS = (
    Experiment(
        "06_exo_family",
        exo_family,
        grid=[{**each, "seed": seed} for seed in range(5) for each in METHODS],
        about="EXO, DPO, BRAIn and SFT on the pocket model: both divergences to the target p_ref exp(r)/Z.",
    ),
)
