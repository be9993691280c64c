r"""Objectives that estimate a density ratio from unpaired feedback: DDRO and RDRO, and how to average them.

Both assume that the reference is the mixture of the two classes, pi_ref = t p_+ + (1-t) p_-, and read the
policy as a ratio, r = pi_theta / pi_ref = e^l. They differ in which ratio they fit:

====== ================================= =================== ========================================
method ratio                             in terms of r       range
====== ================================= =================== ========================================
DDRO   p_- / p_+                         (1/r - t) / (1 - t) positive only while r < 1/t: the wall
RDRO   p_+ / (alpha p_+ + (1-alpha) p_-) r                   at most 1/alpha; every r > 0 is allowed
====== ================================= =================== ========================================

Both losses are sums of an expectation over p+ and one over p-: average them with `classwise_mean`. One
plain mean over a mixed batch weighs the classes by their share of the data and has another minimiser;
`rdro_pooled` is the form that is right under a plain mean.

The losses follow from the Bregman divergence of f(r) = r log r - (1 + r) log(1 + r). Deviations from the
papers: none in the mathematics. The published DDRO has a stabiliser whose form we could not establish;
none is applied here. What happens beyond DDRO's wall is the keyword `past_wall`, an error unless you
choose otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course_utils.errors import CourseError

from . import _checks as check
from ._numerics import log1mexp, softplus

PAST_WALL = ("error", "inf", "tangent")


def classwise_mean(loss: Tensor, preferred: Tensor) -> Tensor:
    """Mean over the preferred examples plus mean over the non-preferred ones: E+[.] + E-[.].

    The two class means are added, whatever the share of each class. A batch with one class only is
    refused: half of the loss would be missing. (Shuffle unpaired data, or draw each batch with both
    classes.)
    """
    _check_reduction("classwise_mean", loss, preferred)
    count_preferred = int(preferred.sum())
    count_rejected = preferred.numel() - count_preferred
    if count_preferred == 0 or count_rejected == 0:
        raise CourseError(
            "one-class-batch",
            f"the batch has {count_preferred} preferred and {count_rejected} non-preferred examples.",
            where="classwise_mean",
            remedy="shuffle the data, or draw batches with both classes: the loss adds two class means.",
        )
    return loss[preferred].mean() + loss[~preferred].mean()


def pooled_mean(loss: Tensor, preferred: Tensor) -> Tensor:
    """The plain mean over the whole batch: for `rdro_pooled`, or to show what it does to the other losses.

    With a share pi of preferred examples it estimates pi E+[.] + (1 - pi) E-[.], which is not what DDRO
    and RDRO minimise.
    """
    _check_reduction("pooled_mean", loss, preferred)
    if loss.numel() == 0:
        raise CourseError(
            "one-class-batch",
            "the batch is empty, and the mean of nothing does not exist.",
            where="pooled_mean",
            remedy="check the filter or the sampler that made this batch.",
        )
    return loss.mean()


def _check_reduction(where: str, loss: Tensor, preferred: Tensor) -> None:
    # infinite and NaN losses pass: a mean that is not finite says so by itself
    check.check_floating(where, "loss", loss)
    check.check_preferred(where, preferred, loss, "the losses")


def _log_ratio(where: str, policy: Tensor, ref: Tensor, preferred: Tensor) -> Tensor:
    check.check_tensors(where, policy=policy, ref=ref)
    check.check_preferred(where, preferred, policy)
    return policy - ref


def rdro(policy: Tensor, ref: Tensor, preferred: Tensor, alpha: float = 0.5) -> Tensor:
    r"""Relative density ratio optimisation: logistic regression for a ratio that is bounded.

    .. math:: L = \begin{cases} (1+\alpha)\,\mathrm{softplus}(l) - l & \text{preferred} \\
                                (1-\alpha)\,\mathrm{softplus}(l)     & \text{non-preferred} \end{cases}
              \qquad l = \log\frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}

    to be averaged with `classwise_mean`. Paper: Takahashi et al. 2026 (arXiv 2604.04410); derived here
    from the Bregman divergence.

    ========= ================================================================================================
    symbol    meaning
    ========= ================================================================================================
    policy    log pi_theta(y|x), a sum over the response's tokens
    ref       log pi_ref(y|x), likewise
    preferred True where the response was preferred
    alpha     alpha in (0, 1): the share of p+ in the mixture that the reference is, not a free smoothing knob
    ========= ================================================================================================

    Gradient in l: (1+alpha) sigma(l) - 1 for preferred, in (-1, alpha), zero at l = log(1/alpha);
    (1-alpha) sigma(l) for non-preferred, in (0, 1-alpha). Bounded by one: there is no wall.

    Population minimiser (class-wise means): pi_theta = p_+, for any preference structure, if the
    reference is the mixture.

    Assumes: pi_ref = alpha p_+ + (1-alpha) p_-. When it is false the minimiser moves towards pi_ref
    p_+/(alpha p_+ + (1-alpha) p_-) and is not p+.
    """
    check.check_range(
        "rdro", "alpha", alpha, 0.0, 1.0, remedy="use the share of preferred examples in your data."
    )
    log_ratio = _log_ratio("rdro", policy, ref, preferred)
    # (1 + alpha) softplus(l) - l, written as two positive terms so that large l cancels nothing
    on_preferred = alpha * softplus(log_ratio) + softplus(-log_ratio)
    return torch.where(preferred, on_preferred, (1 - alpha) * softplus(log_ratio))


def rdro_pooled(policy: Tensor, ref: Tensor, preferred: Tensor, alpha: float = 0.5) -> Tensor:
    r"""RDRO rewritten for one plain mean over a mixed batch, where alpha is the share of preferred examples.

    .. math:: L = \begin{cases} \mathrm{softplus}(l) + \mathrm{softplus}(-l)/\alpha & \text{preferred} \\
                                \mathrm{softplus}(l) & \text{non-preferred} \end{cases}

    Multiplied by the class shares alpha and 1 - alpha, the two lines are RDRO's own, so the plain mean
    estimates the same expectation. Averaging `rdro` itself with a plain mean does not: with alpha = 0.39
    and 39 % preferred examples its minimiser misses p+.

    Paper: derived for this course from Takahashi et al. 2026 (arXiv 2604.04410). Symbols as in `rdro`.

    Gradient in l: sigma(l) - sigma(-l)/alpha for preferred, in (-1/alpha, 1); sigma(l) for non-preferred.

    Population minimiser (plain mean, share of preferred = alpha): pi_theta = p_+.

    Assumes: pi_ref = alpha p_+ + (1-alpha) p_-, and that alpha is the share of preferred examples in the
    data.
    """
    check.check_range(
        "rdro_pooled", "alpha", alpha, 0.0, 1.0, remedy="use the share of preferred examples in your data."
    )
    log_ratio = _log_ratio("rdro_pooled", policy, ref, preferred)
    on_preferred = softplus(log_ratio) + softplus(-log_ratio) / alpha
    return torch.where(preferred, on_preferred, softplus(log_ratio))


def ddro(
    policy: Tensor,
    ref: Tensor,
    preferred: Tensor,
    t: float = 0.5,
    past_wall: str = "error",
    wall_distance: float = 1e-3,
) -> Tensor:
    r"""Direct density ratio optimisation: logistic regression for the unbounded ratio g = p_-/p_+.

    .. math:: L = \begin{cases} \log(1+g) = \log\dfrac{1/r + 1 - 2t}{1-t} & \text{preferred} \\[1ex]
                                \log(1+1/g) = \log\dfrac{1/r + 1 - 2t}{1/r - t} & \text{non-preferred}
              \end{cases}
              \qquad g = \frac{1/r - t}{1-t}, \quad r = e^l = \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}

    to be averaged with `classwise_mean`. At t = 1/2: log 2 - l and log 2 - log(2-r). Paper: Higuchi and
    Suzuki 2025 (arXiv 2505.07558); general t derived here from the Bregman divergence.

    ============= ==================================================================================
    symbol        meaning
    ============= ==================================================================================
    policy, ref   log-probabilities, sums over the response's tokens; l is their difference
    preferred     True where the response was preferred
    t             share of p+ in the mixture that the reference is, in (0, 1)
    past_wall     what to do outside the domain of the loss: "error", "inf" or "tangent" (see below)
    wall_distance for "tangent": how far before the wall, in nats of l, the straight line begins
    ============= ==================================================================================

    Gradient in l: -1/(1 + (1-2t) r) for preferred (exactly -1 at t = 1/2: a plain SFT push);
    t r/(1 - t r) + (1-2t) r/(1 + (1-2t) r) for non-preferred, r/(2-r) at t = 1/2: it has no bound.

    The wall. A ratio g of two densities is positive, so r < 1/t. At r = 1/t the non-preferred loss is
    infinite: one rejected response whose log-probability rises by log(1/t), 0.69 nats at t = 1/2, ends
    the run. The preferred term is finite there; its formula ends only for t > 1/2, at r = 1/(2t-1), where
    it falls to minus infinity. Where a formula has ended,

    - `"error"` (default) raises and names the examples;
    - `"inf"` makes the loss +inf, which a line search backtracks from; the gradient there is zero, so
      never train through it;
    - `"tangent"` continues the term along its tangent, from `wall_distance` before r = 1/t on: a rejected
      response always, with a slope of about 1/wall_distance, a preferred one only if t > 1/2, with a
      slope of about -t/(1-t). Training survives, but it is no longer DDRO there: the minimiser is p+ only
      if p+/pi_ref stays below 1/t by that distance.

    Population minimiser (class-wise means): pi_theta = p_+, for any preference structure, if the
    reference is the mixture.

    Assumes: pi_ref = t p_+ + (1-t) p_-, and a policy that stays below the wall.
    """
    check.check_range("ddro", "t", t, 0.0, 1.0, remedy="use the share of preferred examples in your data.")
    check.check_choice("ddro", "past_wall", past_wall, PAST_WALL)
    check.check_range("ddro", "wall_distance", wall_distance, 1e-5, 1.0, low_included=True)
    log_ratio = _log_ratio("ddro", policy, ref, preferred)
    dtype = log_ratio.dtype
    if dtype in (torch.float16, torch.bfloat16):
        # near the wall a step of half precision, 0.004 nats, is longer than the distances that matter
        log_ratio = log_ratio.float()
    edge_rejected = math.log(1 / t)
    edge_preferred = math.inf if t <= 0.5 else -math.log(2 * t - 1)
    edge = torch.where(preferred, torch.full_like(log_ratio, edge_preferred), edge_rejected)

    outside = log_ratio >= edge
    if past_wall == "error" and bool(outside.any()):
        raise _past_the_wall(log_ratio, preferred, outside, t, edge_rejected, edge_preferred)

    # Where its value is replaced the formula must still see a number inside its domain, for the gradient.
    if past_wall == "tangent":
        bend = torch.where(preferred & (t <= 0.5), edge, edge_rejected - wall_distance)
        replaced = log_ratio > bend
    else:
        bend, replaced = torch.zeros_like(log_ratio), outside
    inside = torch.where(replaced, bend, log_ratio)
    loss = torch.where(preferred, _ddro_preferred(inside, preferred, t), _ddro_rejected(inside, preferred, t))
    if past_wall == "inf":
        loss = torch.where(outside, math.inf, loss)
    if past_wall == "tangent":
        slope = _ddro_slope(torch.where(replaced, bend, 0.0), preferred, t)
        loss = loss + torch.where(replaced, slope * (log_ratio - inside), 0.0)
    return loss.to(dtype)


def _ddro_preferred(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    """log(1 + g) = log(1 + (1 - 2t) r) - l - log(1 - t), wherever `preferred`."""
    l = torch.where(preferred, log_ratio, 0.0)
    return _log_one_plus(l, t) - l - math.log(1 - t)


def _ddro_rejected(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    """log(1 + 1/g) = log(1 + (1 - 2t) r) - log(1 - t r), wherever not `preferred`."""
    l = torch.where(preferred, 0.0, log_ratio)
    return _log_one_plus(l, t) - log1mexp(math.log(1 / t) - l)


def _log_one_plus(log_ratio: Tensor, t: float) -> Tensor:
    """log(1 + (1 - 2t) r), the term that both classes share."""
    if t == 0.5:
        return torch.zeros_like(log_ratio)
    if t < 0.5:
        return softplus(log_ratio + math.log(1 - 2 * t))
    return log1mexp(-math.log(2 * t - 1) - log_ratio)


def _ddro_slope(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    """The derivative of the loss in the log-ratio, as a number: the slope of the tangent."""
    r = log_ratio.exp()
    of_preferred = -1 / (1 + (1 - 2 * t) * r)
    of_rejected = t * r / (1 - t * r) + (1 - 2 * t) * r / (1 + (1 - 2 * t) * r)
    return torch.where(preferred, of_preferred, of_rejected)


def _past_the_wall(
    log_ratio: Tensor,
    preferred: Tensor,
    outside: Tensor,
    t: float,
    edge_rejected: float,
    edge_preferred: float,
) -> CourseError:
    """The error that names the first examples outside the domain of DDRO."""
    index = outside.nonzero()
    rows = []
    for row in index[: check.MAX_LISTED]:
        at = tuple(row.tolist())
        kind, edge = ("preferred", edge_preferred) if bool(preferred[at]) else ("rejected", edge_rejected)
        place = at[0] if len(at) == 1 else at
        rows.append(
            f"{kind} example {place} with log-ratio {float(log_ratio[at].detach()):.4g} >= {edge:.4g}"
        )
    more = len(index) - len(rows)
    what = "; ".join(rows) + (f"; and {more} more" if more > 0 else "")
    return CourseError(
        "ddro-past-the-wall",
        f"DDRO at t = {t:g} is not finite for {what}.",
        where="ddro",
        remedy=(
            "lower the learning rate, use rdro, whose ratio is bounded, or choose past_wall='tangent' "
            "and say so where you report the result."
        ),
    )
