r"""Objectives that match two distributions over a few responses: EXO, its forward twin DPO-rw, and BRAIn.

Give K responses a distribution by what the policy says of them, and another by what the reward says; then
minimise a Kullback–Leibler divergence between the two. EXO takes the reverse one, KL(policy || reward);
DPO-rw and BRAIn the forward one.

Deviations from papers and code
- `exo_pref` smooths the label to (1 - eps, eps), as in the paper and TRL. The released code has log eps =
  -10 fixed, and does not normalise the label; TRL 1.16 raises at its own default of 0.
- `dpo_rw` and `brain` return the divergence itself, whose minimum is zero. Released code of DPO-rw
  returns the cross-entropy, which is larger by the entropy of the reward's distribution: a constant of
  the policy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks as check
from ._numerics import bernoulli_kl, categorical_kl


def exo_pref(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> Tensor:
    r"""Efficient exact optimisation from preferences: the reverse divergence to a smoothed label.

    .. math:: L = \mathrm{KL}\big(\mathrm{Bern}(\sigma(m))\,\|\,\mathrm{Bern}(1-\varepsilon)\big)
                = \sigma(m)\log\frac{\sigma(m)}{1-\varepsilon} + \sigma(-m)\log\frac{\sigma(-m)}{\varepsilon},
              \qquad m = \beta h

    with h the log-ratio log(pi_theta/pi_ref) of the chosen response minus that of the rejected one.
    Paper: Ji et al. 2024 (arXiv 2402.00856).

    =============== =============================================================================
    symbol          meaning
    =============== =============================================================================
    policy_chosen   log pi_theta(y_w|x), summed over tokens; the other three likewise
    beta            beta_pi > 0, the policy's exponent (TRL's beta is this one, not the reward's)
    label_smoothing eps in (0, 0.5): zero is refused, because the divergence is then infinite
    =============== =============================================================================

    Gradient in m: sigma(m) sigma(-m) (m - log((1-eps)/eps)). It is largest near m = 0 and vanishes for a
    badly mis-ranked pair (m very negative), where DPO's stays near -1.

    Population minimiser: per pair m = (2P-1) log((1-eps)/eps): linear in P like IPO's, and not logit P.
    With certain labels (P = 1) it is the finite margin log((1-eps)/eps), where cDPO with the same
    smoothing stops too.

    Assumes: labels that are certain up to eps. It is not consistent for Bradley–Terry labels.
    """
    check.check_positive("exo_pref", beta=beta)
    check.check_range(
        "exo_pref",
        "label_smoothing",
        label_smoothing,
        0.0,
        0.5,
        remedy="the reverse divergence needs a label that is not certain; the paper recommends 1e-3.",
    )
    check.check_pair("exo_pref", policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    target = torch.full_like(margin, math.log1p(-label_smoothing) - math.log(label_smoothing))
    return bernoulli_kl(margin, target)


def exo_rw(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float = 1.0, beta_reward: float = 1.0
) -> Tensor:
    r"""Efficient exact optimisation from rewards: the reverse divergence over K responses.

    .. math:: L = \mathrm{KL}(p_f\,\|\,p_r), \qquad
              p_f = \mathrm{softmax}_i\Big(\beta_\pi\log\frac{\pi_\theta(y_i|x)}{\pi_{ref}(y_i|x)}\Big),
              \qquad
              p_r = \mathrm{softmax}_i(r_i/\beta_r)

    Paper: Ji et al. 2024 (arXiv 2402.00856). One loss for each row.

    =========== =================================================================================
    symbol      meaning
    =========== =================================================================================
    policy      [batch, K], log pi_theta(y_i|x) summed over tokens, K >= 2 responses of one prompt
    ref         [batch, K], log pi_ref(y_i|x); the responses were sampled from the reference
    reward      [batch, K], r_i
    beta_policy beta_pi > 0
    beta_reward beta_r > 0, temperature of the reward
    =========== =================================================================================

    Gradient in f_i = beta_pi log(pi_theta/pi_ref)(y_i): p_f,i (log(p_f,i/p_r,i) - L). As K grows, at
    beta_pi = 1, it takes the direction of the gradient of the KL-regularised reward; at K = 2 it is far
    from it.

    Population minimiser: pi_theta proportional to pi_ref exp(r/(beta_pi beta_r)) for every K >= 2, if the
    policy can represent it; `dpo_rw` has the same. If it cannot, the reverse divergence prefers one mode
    (for large K).

    Assumes: rewards on one scale for all responses of a prompt.
    """
    check.check_positive("exo_rw", beta_policy=beta_policy, beta_reward=beta_reward)
    check.check_group("exo_rw", policy=policy, ref=ref, reward=reward)
    return categorical_kl(beta_policy * (policy - ref), reward / beta_reward)


def dpo_rw(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float = 1.0, beta_reward: float = 1.0
) -> Tensor:
    r"""DPO from rewards: the forward divergence between reward and policy over K responses, soft-label DPO.

    .. math:: L = \mathrm{KL}(p_r\,\|\,p_f)

    with p_f, p_r and the symbols of `exo_rw`. Paper: Ji et al. 2024 (arXiv 2402.00856). With K = 2 and a
    reward that makes p_r certain this is `dpo` with beta = beta_policy.

    Gradient in f_i: p_f,i - p_r,i, bounded by one.

    Population minimiser: pi_theta proportional to pi_ref exp(r/(beta_pi beta_r)) for every K >= 2, if the
    policy can represent it; if it cannot, the forward divergence covers all modes.

    Assumes: rewards on one scale for all responses of a prompt.
    """
    check.check_positive("dpo_rw", beta_policy=beta_policy, beta_reward=beta_reward)
    check.check_group("dpo_rw", policy=policy, ref=ref, reward=reward)
    return categorical_kl(reward / beta_reward, beta_policy * (policy - ref))


def brain(policy: Tensor, proposal: Tensor, prior: Tensor, reward: Tensor, gamma: float = 1.0) -> Tensor:
    r"""BRAIn: match the policy to the posterior "prior times goodness", on samples from any proposal.

    .. math:: L = \mathrm{KL}(\alpha\,\|\,\beta), \quad
              \alpha = \mathrm{softmax}_i\Big(\log p(y_i) + \frac{r_i}{\gamma} - \log q(y_i)\Big), \quad
              \beta = \mathrm{softmax}_i\big(\log\pi_\theta(y_i) - \log q(y_i)\big)

    Paper: Pandey et al. 2024 (arXiv 2402.02479), with the goodness that Bradley–Terry gives. One loss for
    each row.

    ======== =================================================================================
    symbol   meaning
    ======== =================================================================================
    policy   [batch, K], log pi_theta(y_i|x) summed over tokens
    proposal [batch, K], log q(y_i|x) of the distribution that the responses were sampled from
    prior    [batch, K], log p(y_i|x), usually the SFT model: the reference of this method
    reward   [batch, K], r_i
    gamma    gamma > 0, temperature of the reward
    ======== =================================================================================

    Gradient in log pi_theta(y_i): beta_i - alpha_i: the self-normalised baseline keeps its variance small
    and makes it a biased estimate of the gradient of the divergence between the full distributions.

    Population minimiser: pi_theta proportional to p exp(r/gamma), for any proposal that covers it. With
    proposal = prior it is `dpo_rw` with beta_policy = 1, and with K = 2 and a certain posterior it is
    `dpo` with beta = 1.

    Assumes: rewards on one scale, and log-probabilities of the proposal that are the ones it sampled
    with.
    """
    check.check_positive("brain", gamma=gamma)
    check.check_group("brain", policy=policy, proposal=proposal, prior=prior, reward=reward)
    return categorical_kl(prior + reward / gamma - proposal, policy - proposal)
