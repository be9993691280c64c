r"""Objectives of one pair (chosen, rejected) with a reference: DPO and its relatives, IPO, SLiC, BPO.

Throughout, log-probabilities are SUMS over the response's tokens, and

.. math:: h = \log\frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)} - \log\frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}

is the difference of the two log-ratios. beta is the strength of the pull towards the reference: a LARGE
beta keeps the policy near it, because the same preference then asks for a smaller h.

In "population minimiser" below, P = P(a over b) is the true preference probability, and pairs cover every
two responses. Where a loss depends on h alone, "per pair" is the h that minimises P L(h) + (1-P) L(-h); a
policy reaches it for all pairs at once only if those numbers are differences of one function of the
response, as they are under Bradley–Terry for DPO.

Deviations from the papers and from libraries
- `ipo` is the paper's form, with sums. TRL's `ipo` divides each log-ratio by its number of tokens.
- `slic` measures the hinge relative to the reference, as RSO and TRL do; SLiC-HF has no reference in the
  hinge (pass zeros for the reference to get it) and adds a cross-entropy term (add `sft`).
- `bpo` leaves out additive constants, as the paper does. Its paper's value of lam could not be
  established; 0.5 is our choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks as check
from ._numerics import softplus


def _difference(
    where: str, policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> Tensor:
    """The difference h of the two log-ratios, after the checks."""
    check.check_pair(where, policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Direct preference optimisation: the Bradley–Terry likelihood with the policy's log-ratio as reward.

    .. math:: L = -(1-\varepsilon)\log\sigma(\beta h) - \varepsilon\log\sigma(-\beta h)

    Paper: Rafailov et al. 2023 (arXiv 2305.18290); eps > 0 is cDPO, see `cdpo`.

    =============== ========================================================================
    symbol          meaning
    =============== ========================================================================
    policy_chosen   log pi_theta(y_w|x), summed over tokens; policy_rejected likewise for y_l
    ref_chosen      log pi_ref(y_w|x); ref_rejected likewise
    beta            beta > 0; a large beta keeps the policy near the reference
    label_smoothing eps, the share of labels taken to be wrong, in [0, 0.5)
    =============== ========================================================================

    Gradient in h: -beta(sigma(-beta h) - eps); equal and opposite for the two log-probabilities.

    Population minimiser (no smoothing): beta h = logit P per pair. Under Bradley–Terry with reward r that
    is pi_theta proportional to pi_ref exp(r/beta). A pair that is always labelled the same way has none: h
    grows without end.

    Assumes: preferences follow Bradley–Terry.
    """
    check.check_positive("dpo", beta=beta)
    check.check_label_smoothing("dpo", label_smoothing)
    z = beta * _difference("dpo", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    if label_smoothing == 0.0:
        return softplus(-z)
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


def cdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Tensor:
    r"""Conservative DPO: DPO that takes a share of the labels to be wrong, so that its margin is finite.

    .. math:: L = -(1-\varepsilon)\log\sigma(\beta h) - \varepsilon\log\sigma(-\beta h)

    Note: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO". This is `dpo`
    with another default; the symbols are `dpo`'s.

    Gradient in h: -beta(sigma(-beta h) - eps), zero at beta h = logit(1-eps).

    Population minimiser: beta h = logit((1-eps) P + eps (1-P)) per pair: finite even for P = 1, and nearer
    to zero than the truth when P is the probability of the labels seen. It does not undo noise;
    `robust_dpo` does.

    Assumes: Bradley–Terry, and a margin that noisy labels should limit.
    """
    return dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, label_smoothing)


def robust_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Tensor:
    r"""Provably robust DPO: an unbiased estimate, from flipped labels, of the DPO loss on clean ones.

    .. math:: L = \frac{-(1-\varepsilon)\log\sigma(\beta h) + \varepsilon\log\sigma(-\beta h)}{1-2\varepsilon}

    Paper: Chowdhury, Kini and Natarajan 2024 (arXiv 2403.00409). Not to be confused with RDRO. Symbols as
    in `dpo`; eps is the rate at which labels were flipped at random.

    Gradient in h: -beta(sigma(-beta h) + eps/(1-2 eps)): it never vanishes.

    Population minimiser: that of DPO on clean labels, beta h = logit P, when labels drawn with
    probability P were flipped at rate eps. On a pair that is always labelled the same way the loss falls
    without end, along a straight line of slope -eps/(1-2 eps).

    Assumes: Bradley–Terry, and random flips at a known rate.
    """
    check.check_positive("robust_dpo", beta=beta)
    check.check_label_smoothing("robust_dpo", label_smoothing)
    z = beta * _difference("robust_dpo", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return ((1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)) / (1 - 2 * label_smoothing)


def ipo(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, tau: float = 0.1
) -> Tensor:
    r"""Identity preference optimisation: least squares on the difference of log-ratios.

    .. math:: L = \Big(h - \frac{1}{2\tau}\Big)^2

    Paper: Azar et al. 2023 (arXiv 2310.12036), equation 17, with sums over tokens. TRL divides each
    log-ratio by its number of tokens; tau > 0 plays the part of beta. Symbols as in `dpo`.

    Gradient in h: 2 (h - 1/(2 tau)), which grows with the distance.

    Population minimiser: h = (2P-1)/(2 tau) per pair, finite even for P = 1. With both responses drawn
    from one distribution mu the policy is pi_theta proportional to pi_ref exp(W/tau), where W(y), the mean
    of P(y over y') for y' from mu, is the win rate.

    Assumes: no preference model; its target is the win rate, so a cycle does no harm.
    """
    check.check_positive("ipo", tau=tau)
    return (
        _difference("ipo", policy_chosen, policy_rejected, ref_chosen, ref_rejected) - 1 / (2 * tau)
    ).square()


def flex_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta_chosen: float = 0.1,
    beta_rejected: float = 0.08,
) -> Tensor:
    r"""Flex-DPO: DPO with a smaller weight on the rejected response, so that pushing it down earns less.

    .. math:: L = -\log\sigma(z), \qquad
              z = \beta_+ \log\frac{\pi_\theta(y_w|x)}{\pi_{ref}(y_w|x)}
                - \beta_- \log\frac{\pi_\theta(y_l|x)}{\pi_{ref}(y_l|x)}

    Paper: Yan et al. 2024, "3D-Properties" (arXiv 2406.07327). Log-probabilities as in `dpo`; beta_chosen
    is beta_+, beta_rejected is beta_-, both positive.

    Gradient: -beta_+ sigma(-z) for the chosen log-probability and +beta_- sigma(-z) for the rejected one.

    Population minimiser: DPO's if the two betas are equal. Otherwise there is no closed form: free
    log-ratios of both responses would rise together without end, and only the normalisation of the policy
    stops them.

    Assumes: Bradley–Terry, and that the fall of the chosen probability is the thing to prevent.
    """
    check.check_positive("flex_dpo", beta_chosen=beta_chosen, beta_rejected=beta_rejected)
    check.check_pair("flex_dpo", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    z = beta_chosen * (policy_chosen - ref_chosen) - beta_rejected * (policy_rejected - ref_rejected)
    return softplus(-z)


def dpo_with_sft(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    sft_weight: float = 0.02,
) -> Tensor:
    r"""DPO plus an SFT term on the chosen response: the usual answer to a falling chosen log-probability.

    .. math:: L = -\log\sigma(\beta h) - \lambda \log\pi_\theta(y_w|x)

    Compared in Yan et al. 2024, "3D-Properties" (arXiv 2406.07327). Any objective takes the term in the
    same way: `loss + weight * sft(policy_chosen)`. Symbols as in `dpo`; sft_weight is lambda >= 0, a weight
    on a SUM over tokens (0.02 is our default).

    Gradient: DPO's, and -lambda more for the chosen log-probability.

    Population minimiser: no closed form; between DPO's and the distribution of the chosen responses.

    Assumes: Bradley–Terry, and chosen responses that are worth imitating.
    """
    check.check_not_negative("dpo_with_sft", sft_weight=sft_weight)
    loss = dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta)
    return loss - sft_weight * policy_chosen


def slic(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    r"""Hinge loss on the difference of log-ratios: SLiC's calibration loss, relative to the reference.

    .. math:: L = \max(0,\ 1 - \beta h)

    Papers: Zhao et al. 2023, SLiC-HF (arXiv 2305.10425), whose hinge has no reference; Liu et al. 2023,
    RSO (arXiv 2309.06657), for the form with one, which is TRL's "hinge". Symbols as in `dpo`.

    Gradient in h: -beta while beta h < 1, and zero beyond.

    Population minimiser: beta h = sign(2P-1) per pair: the majority wins, by a margin that does not
    depend on P.

    Assumes: only which of two responses is better matters, not how surely.
    """
    check.check_positive("slic", beta=beta)
    return torch.relu(
        1 - beta * _difference("slic", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    )


BPO_DIVERGENCES = ("logistic", "dpo", "kliep", "lsif", "ba", "sba")


def bpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    divergence: str = "sba",
    lam: float = 0.5,
    s: float = 4.0,
) -> Tensor:
    r"""Bregman preference optimisation: DPO as one of a family that fits a ratio of preferences.

    .. math:: L_f = f'(R)R - f(R) - f'(1/R), \qquad
              R = e^{-\beta h} \ \text{fits}\ \frac{P(y_l \succ y_w)}{P(y_w \succ y_l)}

    =================== ================================ ===========================================
    divergence          f                                L, without constants
    =================== ================================ ===========================================
    "logistic" or "dpo" (R log R - (1+R) log(1+R)) / 2   log(1+R), which is DPO
    "kliep"             R log R - R                      R + log R
    "lsif"              (R-1)^2                          R^2 - 2/R
    "ba"                (R^(1+lam) - R) / lam            R^(1+lam) - (1+1/lam) R^(-lam)
    "sba"               "ba" divided by s (1+lam)        R^(1+lam) / (s (1+lam)) - R^(-lam) / (s lam)
    =================== ================================ ===========================================

    Paper: Kim et al. 2025 (arXiv 2505.19601), which uses s = 4. Log-probabilities and beta as in `dpo`;
    lam > 0 is a power and s > 0 a scale; the first three members ignore both.

    Gradient in log R = -beta h: in the table's order sigma(log R); R + 1; 2 R^2 + 2/R;
    (1+lam) (R^(1+lam) + R^(-lam)); (R^(1+lam) + R^(-lam)) / s.

    Population minimiser: beta h = logit P per pair for every member, so pi_ref exp(r/beta) under
    Bradley–Terry.

    Assumes: Bradley–Terry, as DPO does. On a pair that is always labelled the same way h grows without
    end, and apart from "logistic" so does the gain: the loss falls in a straight line for "kliep", and
    exponentially, with a growing gradient, for the last three. Where an exponential exceeds the dtype
    (float32: beyond (1+lam) |beta h| = 88) loss and gradient are infinite; nothing is clipped.
    """
    check.check_positive("bpo", beta=beta, lam=lam, s=s)
    check.check_choice("bpo", "divergence", divergence, BPO_DIVERGENCES)
    log_r = -beta * _difference("bpo", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    if divergence in ("logistic", "dpo"):
        return softplus(log_r)
    if divergence == "kliep":
        return log_r.exp() + log_r
    if divergence == "lsif":
        return (2 * log_r).exp() - 2 * (-log_r).exp()
    basu = ((1 + lam) * log_r).exp() - (1 + 1 / lam) * (-lam * log_r).exp()
    return basu if divergence == "ba" else basu / (s * (1 + lam))
