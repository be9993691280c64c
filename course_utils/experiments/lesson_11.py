"""What lesson 11 computes with: RDRO beside DDRO on the pocket model, and minimisers on tables of counts.

- `along_training` is the long computation: the same pairs, seeds, batches and clipping for every method.
- `minimiser` finds the policy with the least loss of RDRO, DDRO or SFT for many samples at once, by bisection.
- `dpo_minimiser` and `kto_nearest` are their competitors on pairs, each helped by an oracle.
- `premise_z` asks, with samples alone, whether the reference is the mixture of the two classes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from course_utils import objectives
from course_utils.experiments import Experiment

STEPS, WATCH = 80, 16  # updates; updates between two looks at pairs that were not trained on
PAIRS = 1_536
ROWS = 64  # responses in a batch, half of them chosen
LEARNING_RATE = 1e-3

# name: (objective, its settings)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rdro": ("rdro", {"alpha": 0.5}),
    "ddro": ("ddro", {"t": 0.5, "past_wall": "tangent"}),
    "sft": ("sft", {}),
    "dpo": ("dpo", {"beta": 1.0}),
}


@functools.cache
def _world() -> Any:
    from course_utils.worlds import pocket

    return pocket.load_world("bradley_terry")


@functools.cache
def _pairs(n: int, seed: int) -> Any:
    from course_utils import preferences

    return preferences.draw_pairs(_world(), n, seed=seed)


def along_training(arm: str, seed: int) -> dict[str, Any]:
    """Train one policy; the length of every gradient before clipping, log-ratios on the way, the policy at the end."""
    from course_utils.training import TrainingSettings, train

    world, (objective, own) = _world(), ARMS[arm]
    policy, held = world.new_policy(), _pairs(192, 500)
    start = {side: world.log_prob(None, held.prompt, getattr(held, side)) for side in ("chosen", "rejected")}
    looks: list[dict[str, float]] = []

    def watch(model: Any, step: int) -> dict[str, float]:
        row: dict[str, float] = {"step": step}
        for side, before in start.items():
            log_ratio = world.log_prob(model, held.prompt, getattr(held, side)) - before
            row |= {f"mean_{side}": float(log_ratio.mean()), f"top_{side}": float(log_ratio.max())}
            row[f"past_{side}"] = float((log_ratio > math.log(2)).double().mean())
        looks.append({name: round(value, 4) for name, value in row.items()})
        return {}

    # a row of a comparison is two responses, a row of unpaired feedback is one
    settings = TrainingSettings(
        steps=STEPS,
        batch_size=ROWS if objective in ("rdro", "ddro") else ROWS // 2,
        learning_rate=LEARNING_RATE,
        warmup=8,
        schedule="linear",
        clip_gradient=1.0,
        seed=seed,
        evaluate_every=WATCH,
    )
    found = train(
        policy,
        _pairs(PAIRS, seed),
        objective,
        settings=settings,
        evaluate=watch,
        progress=False,
        **own,
    )
    drawn = world.draw(policy, 1, seed)
    return {
        "gradient": [round(float(g), 4) for g in found.history.curve("gradient_norm")[1]],
        "looks": looks,
        "kl": round(world.kl_to_preferred(policy, per_prompt=60).estimate, 4),
        "kl_start": round(world.kl_to_preferred(None, per_prompt=60).estimate, 4),
        "win_rate": round(world.win_rate(policy, per_prompt=40).estimate, 4),
        "texts": [[drawn.prompts[row], drawn.responses[row]] for row in (2, 10, 18)],
    }


EXPERIMENTS = (
    Experiment(
        "11_along_training",
        along_training,
        grid=[{"arm": arm, "seed": seed} for seed in range(5) for arm in ARMS],
        about="RDRO, DDRO, SFT and DPO on the same pairs: gradients along training, and the policy at the end",
    ),
)


# -------------------- slopes


def slope(method: str, log_ratio: Tensor, preferred: bool, **settings: Any) -> Tensor:
    """The derivative of an unpaired loss in the log-ratio, by autograd, one for each entry."""
    l = log_ratio.clone().requires_grad_(True)
    labels = torch.full(l.shape, preferred)
    loss = objectives.get(method).loss(l, torch.zeros_like(l), labels, **settings)
    return torch.autograd.grad(loss.sum(), l)[0]


# -------------------- samples as tables of fractions, [samples, responses]


def random_mixtures(worlds: int, responses: int, concentration: float, seed: int) -> tuple[Tensor, Tensor]:
    """p+ and p- from Dirichlet distributions, mixed with a thousandth of the uniform one so that nothing is impossible.

    A concentration of 2 gives p+ and p- that overlap; one of 0.15 gives a few large entries each, seldom the same.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = torch.full((2, worlds, responses), concentration, dtype=torch.float64)
    # A gamma variate by thinning its boosted form: Gamma(a) = Gamma(a + 1) U^(1/a).
    boosted = torch._standard_gamma(shape + 1, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, dtype=torch.float64)
    weight = boosted * uniform ** (1 / shape)
    plus, minus = 0.999 * weight / weight.sum(-1, keepdim=True) + 0.001 / responses
    return plus, minus


def fractions(probabilities: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The fractions of each response among n draws, for each row of probabilities."""
    drawn = torch.multinomial(probabilities, n, replacement=True, generator=generator)
    return torch.zeros_like(probabilities).scatter_add_(1, drawn, torch.ones_like(drawn).double()) / n


def minimiser(
    method: str, plus: Tensor, minus: Tensor, ref: Tensor, share: float, walled: bool = False
) -> Tensor:
    """The policies [R, Y] with the least class-wise loss, from fractions of preferred and of rejected responses.

    method: "rdro" and "ddro" (share is their alpha and t), or "sft". walled: DDRO's ratio stays below 1/t at every
    response, as two densities demand, and not only where a rejected response was seen.

    The loss is a sum of one function of r = policy / ref for each response, and ref r sums to one. So at the minimum
    slope(r) + multiplier * ref = 0 at each response, with one multiplier, found by bisection. A response never seen
    has no slope: what probability the others leave is shared among these in proportion to the reference.
    """
    seen = (plus + minus) > 0

    def total(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.where(seen, _ratio(method, plus, minus, multiplier[:, None] * ref, share, walled), 0.0)
        return ref * ratio, (ref * ratio).sum(1)

    policy, mass = total(torch.zeros(len(plus), dtype=plus.dtype))
    unseen = (ref * ~seen).sum(1)
    left_over = (mass < 1) & (unseen > 0)
    low, high = torch.full_like(mass, 0.0 if method == "sft" else -1.0), torch.full_like(mass, 2.0)
    for _ in range(46):
        middle = (low + high) / 2
        above = total(middle)[1] > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    shared = policy + ref * ~seen * ((1 - mass) / unseen.clamp_min(1e-300))[:, None]
    found = torch.where(left_over[:, None], shared, total(high)[0])
    return found / found.sum(1, keepdim=True)


def _ratio(method: str, plus: Tensor, minus: Tensor, weight: Tensor, share: float, walled: bool) -> Tensor:
    """The r at which the slope in r, plus `weight`, is zero: the smallest such r."""
    if method == "sft":
        return plus / weight.clamp_min(1e-300)
    if method == "rdro":
        # ((share + 1) plus + (1 - share) minus) / (1 + r) - plus / r + weight = 0 is a quadratic in r.
        middle = share * plus + (1 - share) * minus + weight
        root = (middle**2 + 4 * weight * plus).clamp_min(0).sqrt()
        return 2 * plus / (middle + root).clamp_min(1e-12)
    s = 1 - 2 * share
    edge = math.log(1 / share)
    low = torch.full_like(plus, -60.0)
    high = torch.where((minus > 0) | walled, edge, 60.0)
    for _ in range(46):
        middle = (low + high) / 2
        r = middle.exp()
        slope = ((1 - share) * minus / (1 - share * r).clamp_min(1e-300) - plus / r) / (1 + s * r) + weight
        slope = torch.where(minus > 0, slope, weight - plus / (r * (1 + s * r)))
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return ((low + high) / 2).exp()


def pair_fractions(ref: Tensor, judge: Tensor, repeats: int, n: int, generator: torch.Generator) -> Tensor:
    """[repeats, Y, Y]: how often a was chosen over b among n pairs of the reference, as fractions."""
    responses = len(ref)
    weight = (2 * ref[:, None] * ref[None, :] * judge).flatten()
    drawn = fractions(weight.expand(repeats, -1) / weight.sum(), n, generator)
    return drawn.reshape(repeats, responses, responses)


def dpo_minimiser(wins: Tensor, ref: Tensor, beta: float, pull: float = 1e-4) -> Tensor:
    """DPO's policies [R, Y] from fractions of wins [R, Y, Y]: ref exp(scores / beta), normalised.

    The scores are Bradley-Terry's, by Newton's method. `pull` draws them a little to zero, for a response that never
    lost has no finite score.
    """
    scores = torch.zeros(wins.shape[:2], dtype=wins.dtype)
    met, eye = wins + wins.transpose(1, 2), torch.eye(wins.shape[1], dtype=wins.dtype)
    for _ in range(40):
        won = torch.sigmoid(scores[:, :, None] - scores[:, None, :])
        gradient = wins.sum(2) - (met * won).sum(2) - pull * scores
        weight = met * won * (1 - won)
        hessian = torch.diag_embed(weight.sum(2)) - weight + pull * eye
        step = torch.linalg.solve(hessian, gradient)
        scores = scores + step / (step.abs().amax(1, keepdim=True) / 2).clamp_min(1)
    return torch.softmax(ref.log() + scores / beta, dim=1)


def kto_nearest(
    plus: Tensor, minus: Tensor, ref: Tensor, truth: Tensor, steps: int = 150, learning_rate: float = 0.04
) -> Tensor:
    """The smallest total variation from the truth that KTO passes on its way, [R]: stopped by an oracle.

    KTO has no minimiser inside, so where it stops is a choice; Adam from the reference, beta = 1, baseline 0.
    """
    logits = ref.log().expand(len(plus), -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    yes = torch.ones_like(plus, dtype=torch.bool)
    start = ref.log().expand(len(plus), -1)
    nearest = torch.full((len(plus),), 1.0, dtype=plus.dtype)
    for _ in range(steps):
        policy = torch.log_softmax(logits, dim=1)
        nearest = torch.minimum(nearest, 0.5 * (policy.detach().exp() - truth).abs().sum(1))
        loss = (plus * objectives.kto(policy, start, yes, beta=1.0)).sum()
        loss = loss + (minus * objectives.kto(policy, start, ~yes, beta=1.0)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nearest


# -------------------- the premise, from samples


def premise_z(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    """How many standard errors E_ref[h] lies from alpha E+[h] + (1 - alpha) E-[h], given samples of a statistic h."""
    parts = ((of_ref, 1.0), (of_preferred, -alpha), (of_rejected, alpha - 1))
    gap = sum(weight * values.mean() for values, weight in parts)
    variance = sum(weight**2 * values.var() / len(values) for values, weight in parts)
    return float(gap / variance.sqrt())
