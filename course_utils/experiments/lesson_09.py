"""What lesson 09 computes with: exact minimisers on a table, honest refits, and piles of judged texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils import density_ratios
from course_utils.experiments.experiment import Experiment
from course_utils.worlds import pocket_judges, pocket_truth

EXPERIMENTS: tuple[Experiment, ...] = ()  # the lesson is quick enough without


def minimiser(f: Callable[[Tensor], Tensor], p: Tensor, q: Tensor) -> Tensor:
    """The ratios at which sum q (f'(r) r - f(r)) - sum p f'(r) is least, by Newton's method in log r."""
    slope = torch.func.vmap(torch.func.grad(f))

    def loss(log_ratio: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return (q * (slope(ratio) * ratio - f(ratio)) - p * slope(ratio)).sum()

    log_ratio = torch.zeros_like(p)
    for _ in range(60):
        gradient, hessian = torch.func.grad(loss)(log_ratio), torch.func.hessian(loss)(log_ratio)
        log_ratio = log_ratio - (gradient / hessian.diagonal().abs().clamp_min(1e-12)).clamp(-1, 1)
    return log_ratio.exp()


def refitted_score(p: Tensor, q: Tensor, fitted: density_ratios.RatioEstimate) -> float:
    """RuLSIF's leave-one-out score at alpha = 1/2, by fitting again without each point, one after the other."""
    chosen = fitted.settings
    same = {
        "centres": fitted.basis.centres,
        "width": chosen.width,
        "regularisation": chosen.regularisation,
        "coefficients": chosen.coefficients,
    }
    left_out_p, left_out_q = [], []
    for i in range(len(p)):
        others = torch.arange(len(p)) != i
        left_out_p.append(density_ratios.rulsif(p[others], q, 0.5, **same).ratio(p[i : i + 1]))
    for i in range(len(q)):
        others = torch.arange(len(q)) != i
        left_out_q.append(density_ratios.rulsif(p, q[others], 0.5, **same).ratio(q[i : i + 1]))
    of_p, of_q = torch.cat(left_out_p), torch.cat(left_out_q)
    return float((0.25 * of_p**2 - of_p).mean() + 0.25 * (of_q**2).mean() + 0.5)


class JudgedTexts:
    """The features of the shipped responses, a judge, and the true ratio p+/p_ref = 2 W of each."""

    def __init__(self, table: Tensor, judge: str = "bradley_terry") -> None:
        self.prompts, self.per_prompt = table.shape[:2]
        self.features = table.flatten(0, 1)
        self._prefers = pocket_judges.judge_named(judge).preference_probability
        numbers = torch.arange(self.prompts).repeat_interleave(self.per_prompt)
        self.truth = 2 * pocket_truth.win_rates(self._prefers, self.features, numbers, table)

    def piles(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Features of n chosen and n rejected responses, from n comparisons."""
        generator = torch.Generator().manual_seed(seed)
        start = self.per_prompt * torch.randint(self.prompts, (n,), generator=generator)
        rows = [start + torch.randint(self.per_prompt, (n,), generator=generator) for _ in range(2)]
        first, second = self.features[rows[0]], self.features[rows[1]]
        draw = torch.rand(n, generator=generator, dtype=torch.float64)
        wins = (draw < self._prefers(first, second))[:, None]
        return torch.where(wins, first, second), torch.where(wins, second, first)

    def distance(self, ratio: Tensor) -> float:
        """KL(p+ || p_ref times this ratio, normalised), in nats: a mean over the shipped responses."""
        ratio = ratio.clamp_min(1e-6)
        return float((self.truth * (self.truth.log() - ratio.log())).mean() + ratio.mean().log())
