"""The experiment of lesson 05: what DPO and its answers do to the probabilities of a pocket model.

512 pairs are read four times at a high learning rate: a setting made so that the chosen responses fall. Two further
DPO runs see 2,048 pairs once, at that rate and at a lower one. All runs of one seed share the first 512 pairs. Held-out
pairs are drawn afresh for each seed, so an interval over seeds contains the error of both.

A response of this world is a text, and texts can be listed: the probability of all training texts together is a sum,
exact. What all other texts have in common is read from samples of the policy.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from course_utils.experiments import Experiment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

PAIRS, HELD_OUT = 512, 400
STEPS, BATCH, LEARNING_RATE = 64, 32, 1e-3
PER_PROMPT, PER_PROMPT_KL = 20, 40
NEAR, FAR = 1.0, 3.0  # nats by which the reference ranks a pair wrong


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _pairs(count: int, seed: int) -> Any:
    from course_utils import preferences

    return preferences.draw_pairs(_world(), count, seed=seed)


# -------------------- measuring


def log_ratios(world: Any, policy: Any, pairs: Any) -> tuple[Tensor, Tensor]:
    """log pi/pi_ref of the chosen and of the rejected response of each pair."""
    moved = [
        world.log_prob(policy, pairs.prompt, texts) - world.log_prob(None, pairs.prompt, texts)
        for texts in (pairs.chosen, pairs.rejected)
    ]
    return moved[0], moved[1]


def total_probability(world: Any, policy: Any, rows: Iterable[tuple[str, str]]) -> float:
    """The probability that the policy says one of these texts, averaged over prompts: an exact sum."""
    listed = sorted(rows)
    if not listed:
        return 0.0
    prompts, texts = zip(*listed, strict=True)
    return float(world.log_prob(policy, prompts, texts).exp().sum()) / len(world.prompts)


def seen_texts(pairs: Any) -> dict[str, set[tuple[str, str]]]:
    """The training texts by role: only ever chosen, only ever rejected, both."""
    chosen = set(zip(pairs.prompt, pairs.chosen, strict=True))
    rejected = set(zip(pairs.prompt, pairs.rejected, strict=True))
    return {"chosen": chosen - rejected, "rejected": rejected - chosen, "both": chosen & rejected}


def kinds_of(world: Any, sample: Any) -> dict[str, Tensor]:
    """Of each sampled text: does it win at least half of its comparisons, is it worse, or is it no sentence?"""
    wins = world.win_rate_of_responses(sample.prompts, sample.responses)
    grammatical = sample.feature("grammatical") > 0
    return {
        "better": grammatical & (wins >= 0.5),
        "worse": grammatical & (wins < 0.5),
        "broken": ~grammatical,
    }


def flips(
    log_ref: Tensor, log_policy: Tensor, least: float = 0.0, most: float = float("inf")
) -> float | None:
    """The share of pairs ranked wrong by the reference, by between `least` and `most` nats, that the policy ranks
    right.
    """
    wrong = (log_ref < 0) & (-log_ref >= least) & (-log_ref < most)
    return None if not bool(wrong.any()) else float((log_policy[wrong] >= 0).double().mean())


def measured(world: Any, policy: Any, pairs: Any, held_out: Any, seed: int) -> dict[str, float | None]:
    """All numbers of one policy."""
    sample = world.draw(policy, PER_PROMPT, seed)
    rows = {"train": pairs, "held": held_out}
    found: dict[str, Any] = {}
    for name, some in rows.items():
        chosen, rejected = log_ratios(world, policy, some)
        found[f"chosen_{name}"], found[f"rejected_{name}"] = chosen.mean(), rejected.mean()
        found[f"fell_{name}"] = (chosen < 0).double().mean()
    ref = [world.log_prob(None, held_out.prompt, texts) for texts in (held_out.chosen, held_out.rejected)]
    before, after = ref[0] - ref[1], ref[0] + chosen - ref[1] - rejected
    found |= {"ranking_before": (before >= 0).double().mean(), "ranking": (after >= 0).double().mean()}
    found |= {
        "flipped": flips(before, after),
        "flipped_near": flips(before, after, most=NEAR),
        "flipped_far": flips(before, after, least=FAR),
    }
    for name, texts in seen_texts(pairs).items():
        found[f"mass_{name}"] = total_probability(world, policy, texts)
        found[f"mass_{name}_before"] = total_probability(world, None, texts)
    found |= {name: kind.double().mean() for name, kind in kinds_of(world, sample).items()}
    log_prob, ref_log_prob = sample.tokens.policy_log_probs, world._score(None, sample.tokens.batch())
    found |= {
        "kl_to_preferred": world.kl_to_preferred(policy, PER_PROMPT_KL, seed).estimate,
        "to_learn": world.kl_to_preferred(None, PER_PROMPT_KL, seed).estimate,
        "win_rate": world.win_rate_of_responses(sample.prompts, sample.responses).mean(),
        "kl_to_reference": (log_prob - ref_log_prob).mean(),
        "entropy": -log_prob.mean(),
        "words": sample.feature("words").mean(),
        "grammatical": sample.feature("grammatical").mean(),
    }
    return {name: None if value is None else round(float(value), 6) for name, value in found.items()}


# -------------------- the runs


def answers(
    method: str, seed: int, pairs: int = PAIRS, learning_rate: float = LEARNING_RATE, **own: float
) -> dict[str, Any]:
    """Train one policy, and measure it."""
    import torch

    from course_utils.training import TrainingSettings, train

    world, policy = _world(), _world().new_policy()
    feedback = _pairs(2048, seed).take(torch.arange(pairs))
    settings = TrainingSettings(
        steps=STEPS,
        batch_size=2 * BATCH if method == "kto" else BATCH,  # KTO counts responses
        learning_rate=learning_rate,
        schedule="linear",
        clip_gradient=1.0,
        seed=seed,
    )
    more: dict[str, Any] = {"kl": "mismatched"} if method == "kto" else {}
    train(policy, feedback, method, settings=settings, progress=False, **own, **more)
    first = feedback.take(torch.arange(PAIRS))
    return measured(world, policy, first, _pairs(HELD_OUT, 900 + seed), 70 + seed)


METHODS: list[dict[str, Any]] = [
    {"method": "sft"},
    {"method": "dpo", "beta": 0.1},
    {"method": "cdpo", "beta": 0.1, "label_smoothing": 0.1},
    {"method": "robust_dpo", "beta": 0.1, "label_smoothing": 0.1},
    {"method": "ipo", "tau": 0.1},
    {"method": "flex_dpo", "beta_chosen": 0.1, "beta_rejected": 0.08},
    {"method": "flex_dpo", "beta_chosen": 0.1, "beta_rejected": 0.02},
    {"method": "dpo_with_sft", "beta": 0.1, "sft_weight": 0.02},
    {"method": "simpo", "beta": 2.0, "gamma": 0.5},
    {"method": "kto", "beta": 0.1},
    {"method": "dpo", "beta": 0.1, "pairs": 2048},
    {"method": "dpo", "beta": 0.1, "pairs": 2048, "learning_rate": 3e-4},
]

# -------------------- for the lesson's own cells; no run uses them


def toy(
    shared: bool = True,
    chosen_at: float = 0.12,
    rejected_at: float = 0.12,
    beta_rejected: float = 0.1,
    sft_weight: float = 0.0,
    seeds: int = 5,
    steps: int = 400,
    hidden: int = 32,
    learning_rate: float = 1e-2,
) -> dict[str, Tensor]:
    """The toy of "3D-Properties": 4 prompts, 10 responses; prompt i's chosen response is i, its four rejected ones come
    from 4 to 7; 8 and 9 occur in no pair. Probabilities by role, [steps + 1, seeds].

    The paper's text names neither optimiser nor beta. Here: Adam, beta = 0.1, a network of two hidden ReLU layers with
    torch's usual initialisation, and an offset that makes it start exactly at the wanted table. With `shared=False` the
    network is a table.
    """
    import torch
    from torch.nn.functional import logsigmoid

    generator = torch.Generator().manual_seed(7)

    def uniform(inputs: int, *shape: int) -> Tensor:
        drawn = torch.rand(seeds, *shape, generator=generator, dtype=torch.float64)
        return (2 * drawn - 1) / inputs**0.5

    sizes = [4, hidden, hidden, 10]
    layers = [uniform(a, a, b) for a, b in itertools.pairwise(sizes)]
    offsets = [uniform(a, 1, b) for a, b in itertools.pairwise(sizes)]
    parameters = [*layers, *offsets] if shared else [torch.zeros(seeds, 4, 10, dtype=torch.float64)]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def logits() -> Tensor:
        if not shared:
            return parameters[0]
        active = torch.eye(4, dtype=torch.float64).expand(seeds, 4, 4)
        for layer, offset in zip(layers[:-1], offsets[:-1], strict=True):
            active = torch.relu(active @ layer + offset)
        return active @ layers[-1] + offsets[-1]

    start = torch.full((10,), (1 - 4 * chosen_at - 4 * rejected_at) / 2, dtype=torch.float64)
    start[:4], start[4:8] = chosen_at, rejected_at
    base = start.log() - logits().detach()
    rejected = torch.randint(4, 8, (seeds, 4, 4), generator=generator)
    own = torch.arange(4)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    path = []
    for step in range(steps + 1):
        log_policy = torch.log_softmax(base + logits(), dim=-1)
        path.append(log_policy.detach().exp())
        if step == steps:
            break
        moved = log_policy - start.log()
        z = 0.1 * moved[:, own, own].unsqueeze(-1) - beta_rejected * moved.gather(2, rejected)
        loss = -logsigmoid(z).mean((1, 2)) - sft_weight * log_policy[:, own, own].mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    whole = torch.stack(path)
    chosen = whole[:, :, own, own].mean(-1)
    return {
        "chosen": chosen,
        "others' chosen": whole[..., :4].sum(-1).mean(-1) - chosen,
        "rejected": whole[..., 4:8].sum(-1).mean(-1),
        "never compared": whole[..., 8:].sum(-1).mean(-1),
    }


def certain_pair(losses: dict[str, Callable[..., Tensor]], steps: int, rate: float) -> dict[str, list[float]]:
    """The margin h of one pair that is always labelled alike, for each loss: a table, gradient descent on its logits.

    The two logits move by rate * |dL/dh| each, in opposite directions, so h moves by twice that.
    """
    import torch

    h, path = torch.zeros(len(losses), dtype=torch.float64), []
    zero = torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        path.append(h.tolist())
        h.requires_grad_(True)
        total = sum(loss(each, zero, zero, zero) for loss, each in zip(losses.values(), h, strict=True))
        (slope,) = torch.autograd.grad(total, h)
        h = (h - 2 * rate * slope).detach()
    columns = zip(*[*path, h.tolist()], strict=True)
    return {name: list(column) for name, column in zip(losses, columns, strict=True)}


def gradients(policy: Any, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    """The gradient of log pi(text | prompt) in all weights, one row for each text."""
    import torch

    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        found = torch.autograd.grad(policy.log_prob([prompt], [text]).sum(), weights)
        rows.append(torch.cat([each.reshape(-1) for each in found]))
    return torch.stack(rows)


# What the tables and figures call the settings of METHODS, and where they differ from what all have in common.
USUAL = {"pairs": PAIRS, "learning_rate": LEARNING_RATE}
ANSWERS: dict[str, dict[str, Any]] = {
    "SFT on chosen": {"method": "sft"},
    "DPO": {"method": "dpo"},
    "cDPO": {"method": "cdpo"},
    "robust DPO": {"method": "robust_dpo"},
    "IPO": {"method": "ipo"},
    "Flex-DPO 0.08": {"method": "flex_dpo", "beta_rejected": 0.08},
    "Flex-DPO 0.02": {"method": "flex_dpo", "beta_rejected": 0.02},
    "DPO + SFT term": {"method": "dpo_with_sft"},
    "SimPO": {"method": "simpo"},
    "KTO": {"method": "kto"},
    "DPO, 2,048 pairs": {"method": "dpo", "pairs": 2048},
    "… and a gentle rate": {"method": "dpo", "pairs": 2048, "learning_rate": 3e-4},
}


def column(runs: Sequence[dict[str, Any]], answer: str, key: str) -> Any:
    """One number of every seed of one of the ANSWERS."""
    import numpy as np

    wanted = USUAL | ANSWERS[answer]
    return np.array([run[key] for run in runs if all((USUAL | run)[name] == wanted[name] for name in wanted)])


def compared(runs: Sequence[dict[str, Any]], answer: str, key: str) -> tuple[Any, str]:
    """Mean difference to DPO over the seeds, pair by pair, with its 95 % interval, and a word for it."""
    from course_utils.statistics import mean_interval

    row = mean_interval(column(runs, answer, key) - column(runs, "DPO", key))
    return row, "more" if row.low > 0 else "less" if row.high < 0 else "tie"


def print_means(runs: Sequence[dict[str, Any]], keys: dict[str, str]) -> None:
    """A table: the mean over the seeds of some numbers of each answer."""
    print(f"{'means of 5 seeds':20}", *(f"{title:>8}" for title in keys.values()))
    for name in ANSWERS:
        print(f"{name:20}", *(f"{column(runs, name, key).mean():8.2f}" for key in keys))


def print_differences(runs: Sequence[dict[str, Any]], keys: dict[str, str]) -> None:
    """A table: each answer less DPO, with intervals over the seeds."""
    print(f"\n{'less DPO (95 %)':20}", *(f"{title:26}" for title in keys.values()))
    for name in ANSWERS:
        if name != "DPO":
            cells = [compared(runs, name, key) for key in keys]
            parts = (f"{row.estimate:6.2f} [{row.low:5.2f}, {row.high:5.2f}] {word:4}" for row, word in cells)
            print(f"{name:20}", *parts)


# What people hope of the answers: the claim's name, who hopes, whose number less DPO's, which number.
HOPES = (
    ("cdpo", "Mitchell (2023), read as a remedy", "cDPO", "chosen_held"),
    ("flex", "Yan et al. (2024)", "Flex-DPO 0.02", "chosen_held"),
    ("flex_wins", "'holding it up is free'", "Flex-DPO 0.02", "win_rate"),
    ("sft_term", "a common remedy", "DPO + SFT term", "chosen_held"),
    ("sft_term_wins", "'holding it up is free'", "DPO + SFT term", "win_rate"),
)


IDEALISED_AT = (0.01, 0.1, 1, 5, 10)


def idealised(seed: int) -> dict[str, list[float]]:
    """The idealised ranking accuracy on the fresh pairs of a seed, for each beta of IDEALISED_AT."""
    from course_utils.evaluation import idealised_ranking_accuracy

    world, held = _world(), _pairs(HELD_OUT, 900 + seed)
    ref = [world.log_prob(None, held.prompt, texts) for texts in (held.chosen, held.rejected)]
    truth = world.preference_probability(held.prompt, held.chosen, held.rejected)
    return {"accuracy": [idealised_ranking_accuracy(*ref, truth, beta).estimate for beta in IDEALISED_AT]}


def account(world: Any, policy: Any, pairs: Any, seed: int = 1) -> dict[str, float]:
    """Where the probability is: on training texts, exactly; on kinds of texts, from samples of the policy."""
    sample = world.draw(policy, PER_PROMPT, seed)
    found = {
        f"training: {role}": total_probability(world, policy, texts)
        for role, texts in seen_texts(pairs).items()
    }
    return found | {name: float(rows.double().mean()) for name, rows in kinds_of(world, sample).items()}


def disjoint_tables(worlds: int = 1000, steps: int = 300, seed: int = 0) -> tuple[float, float]:
    """Random tables of 8 responses on which 0 to 2 are only ever chosen and 3 to 5 only ever rejected: DPO (beta = 1)
    by gradient descent. Returns the smallest change, in one step, of the chosen responses' total probability, and the
    share of chosen responses that end lower than they began.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    ref = torch.log_softmax(1.5 * torch.randn(worlds, 8, generator=generator, dtype=torch.float64), dim=-1)
    used = torch.rand(worlds, 3, 3, generator=generator) < 0.5
    log_policy, logits, worst = ref.clone(), ref.clone(), 1.0
    for _ in range(steps):
        before, moved = log_policy[:, :3].exp().sum(-1), log_policy - ref
        push = torch.sigmoid(moved[:, None, 3:6] - moved[:, :3, None]) * used
        logits[:, :3] += 0.5 * push.sum(2)
        logits[:, 3:6] -= 0.5 * push.sum(1)
        log_policy = torch.log_softmax(logits, dim=-1)
        worst = min(worst, float((log_policy[:, :3].exp().sum(-1) - before).min()))
    fell = (log_policy < ref - 1e-9)[:, :3][used.any(2)]
    return worst, float(fell.double().mean())


EXPERIMENTS = (
    Experiment(
        "05_answers",
        answers,
        grid=[{**each, "seed": seed} for seed in range(5) for each in METHODS],
        about="Answers to the falling chosen probability on the pocket model: drifts, mass, wins, KL, rankings.",
    ),
    Experiment(
        "05_idealised",
        idealised,
        grid=[{"seed": seed} for seed in range(5)],
        about="The ranking accuracy that DPO trained to perfection would have on each seed's fresh pairs, at five betas.",
    ),
)
