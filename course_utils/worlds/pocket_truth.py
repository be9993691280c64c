"""The truth in a world of texts: win rates and the distance to the preferred distribution, with intervals.

Draw two responses from p_ref and let a judge choose. With W(y|x), the win rate of y against p_ref, the chosen
ones follow

    p+(y|x) = 2 p_ref(y|x) W(y|x)

whatever the judge. W is a mean over p_ref of a known function of features, so a large sample of features
gives it, and

    KL(p+ || policy) = E_{y ~ p_ref} [ 2W(y) ( log 2W(y) - log policy(y) + log p_ref(y) ) ]

is a mean over a second, independent sample. Both samples are random, and the interval counts both:

- The term with the log-ratio is linear in W, so an estimated W leaves it unbiased.
- 2W log 2W is convex, so an estimated W makes it too large by Var(W)/W to leading order; that is subtracted.
- The error of W is shared by all responses to a prompt. Its part of the variance is found by asking how the
  whole estimate moves with each member of the first sample.
- 2W and policy/p_ref both have mean 1 under p_ref. Subtracting 2W - 1 costs nothing and lowers the variance;
  `use_ratio` adds policy/p_ref - 1 as well, which makes every term non-negative and the estimate nearly exact
  close to p+. Far from it the ratio has heavy tails and the plain form is the safe one.

Prompts count equally, and each prompt's responses are averaged first (a stratified sample).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.statistics import Interval, normal_quantile

Preference = Callable[[Tensor, Tensor], Tensor]


def win_rates(preference: Preference, features: Tensor, prompt_index: Tensor, reference: Tensor) -> Tensor:
    """W of each response, [N], estimated with the features [prompts, M, 9] of a sample from p_ref."""
    return _opponents(preference, features, prompt_index, reference)[0]


def mean_win_rate(
    preference: Preference,
    features: Tensor,
    prompt_index: Tensor,
    reference: Tensor,
    confidence: float = 0.95,
) -> Interval:
    """How often the responses beat p_ref: the mean of W, with the error of both samples in its interval."""
    values, per_opponent = _opponents(preference, features, prompt_index, reference)
    return _interval(values, torch.ones_like(values), per_opponent, prompt_index, confidence)


def kl_to_preferred(
    preference: Preference,
    policy_log_prob: Tensor,
    ref_log_prob: Tensor,
    features: Tensor,
    prompt_index: Tensor,
    reference: Tensor,
    confidence: float = 0.95,
    use_ratio: bool = False,
) -> Interval:
    """KL(p+ || policy) from responses y ~ p_ref, and an independent sample of p_ref for W.

    With `policy_log_prob` equal to `ref_log_prob` it is KL(p+ || p_ref): what there is to learn.
    """
    log_ratio = (policy_log_prob - ref_log_prob).double()
    _check_finite(log_ratio, "kl_to_preferred")
    w, per_opponent = _opponents(preference, features, prompt_index, reference)
    bias = per_opponent.var(dim=1) / reference.shape[1] / w
    values = 2 * w * (torch.log(2 * w) - log_ratio) - bias - (2 * w - 1)
    slope = 2 * (torch.log(2 * w) - log_ratio)  # the derivative of a value by its W
    if use_ratio:
        values = values + torch.expm1(log_ratio)
    return _interval(values, slope, per_opponent, prompt_index, confidence)


def kl_to_reference(
    policy_log_prob: Tensor, ref_log_prob: Tensor, prompt_index: Tensor, confidence: float = 0.95
) -> Interval:
    """KL(policy || p_ref) from responses y ~ policy: the mean of their log-ratios."""
    log_ratio = (policy_log_prob - ref_log_prob).double()
    _check_finite(log_ratio, "kl_to_reference")
    return mean_over_prompts(log_ratio, prompt_index, confidence)


def mean_over_prompts(values: Tensor, prompt_index: Tensor, confidence: float = 0.95) -> Interval:
    """The mean of a number per response, every prompt counting equally."""
    return _interval(values.double(), None, None, prompt_index, confidence)


# -------------------- parts


def _opponents(
    preference: Preference, features: Tensor, prompt_index: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """W [N], and what it is the mean of, [N, M]: each response against the sample of its own prompt."""
    prompt_index = torch.as_tensor(prompt_index)
    per_opponent = torch.empty(len(features), reference.shape[1], dtype=torch.float64)
    for prompt in prompt_index.unique().tolist():
        rows = (prompt_index == prompt).nonzero().squeeze(-1)
        per_opponent[rows] = preference(features[rows].unsqueeze(1), reference[prompt].unsqueeze(0)).double()
    return per_opponent.mean(dim=1), per_opponent


def _interval(
    values: Tensor, slope: Tensor | None, per_opponent: Tensor | None, prompt_index: Tensor, confidence: float
) -> Interval:
    """The stratified mean of `values`, and its interval.

    Variance of the mean of one prompt = variance over its responses / n  +  variance over opponents / M,
    where an opponent's influence is the mean over responses of slope times its surprise P(y beats opponent) -
    W(y).
    """
    prompts = prompt_index.unique().tolist()
    means, variance = [], 0.0
    for prompt in prompts:
        rows = (prompt_index == prompt).nonzero().squeeze(-1)
        if len(rows) < 2:
            raise CourseError(
                "pocket-too-few-responses",
                f"prompt {prompt} has {len(rows)} response; an interval needs at least 2 of each prompt.",
                where="an estimate over prompts",
                remedy="draw the same number of responses, at least 2, to every prompt.",
            )
        means.append(values[rows].mean().item())
        variance += values[rows].var().item() / len(rows)
        if per_opponent is not None:
            surprise = per_opponent[rows] - per_opponent[rows].mean(dim=1, keepdim=True)
            influence = (slope[rows].unsqueeze(1) * surprise).mean(dim=0)
            variance += influence.var().item() / per_opponent.shape[1]
    estimate = sum(means) / len(prompts)
    half = normal_quantile(0.5 + confidence / 2) * variance**0.5 / len(prompts)
    return Interval(estimate, estimate - half, estimate + half, confidence, len(values))


def _check_finite(log_ratio: Tensor, where: str) -> None:
    if not bool(torch.isfinite(log_ratio).all()):
        bad = int((~torch.isfinite(log_ratio)).sum())
        raise CourseError(
            "pocket-not-finite",
            f"{bad} of {len(log_ratio)} log-ratios are not finite numbers.",
            where=where,
            remedy="the policy has diverged or gives probability zero: look at its loss before measuring it.",
        )
