r"""Alignment as distribution learning: PMLE, preference distillation and reverse KL.

Here preferences are taken to come from the language model pi* that is sought,

.. math:: P(a \succ b) = \sigma\Big(\gamma\log\frac{\pi^*(a|x)}{\pi^*(b|x)}\Big),

with no reference in it. Under that model these three find pi*, and DPO finds pi_ref (pi*)^(gamma/beta)
instead; if labels come from Bradley–Terry with r = beta log(pi*/pi_ref), DPO finds pi* and these do not.

Paper: Yun et al. 2025, "Alignment as Distribution Learning" (second version 2026, "Beyond RLHF"), arXiv
2506.01523.

Deviations from the paper: PMLE and distillation are given without the added KL term, as in the theorems;
add `reverse_kl(policy, ref, zeros, gamma=0, beta=beta)` of the policy's own samples.
`preference_distillation` returns the divergence itself, with minimum zero.
"""

from __future__ import annotations

from torch import Tensor

from . import _checks as check
from ._numerics import bernoulli_kl, softplus


def pmle(policy_chosen: Tensor, policy_rejected: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Preference maximum likelihood: DPO's likelihood without the reference.

    .. math:: L = -\log\sigma\Big(\gamma\log\frac{\pi_\theta(y_w|x)}{\pi_\theta(y_l|x)}\Big)

    Equation 4 of arXiv 2506.01523. policy_chosen and policy_rejected are sums of token log-probabilities;
    gamma > 0 is that of the preference model above (0.005 to 0.01 in the paper's runs, because sums over
    long responses are large).

    Gradient: -gamma sigma(-z) and +gamma sigma(-z) for the two log-probabilities, with
    z = gamma (log pi_theta(y_w) - log pi_theta(y_l)).

    Population minimiser: pi*, for pairs from any distribution with full support. Under Bradley–Terry with
    reward r that is proportional to exp(r/gamma).

    Assumes: preferences come from pi* as above.
    """
    check.check_positive("pmle", gamma=gamma)
    check.check_tensors("pmle", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    return softplus(-gamma * (policy_chosen - policy_rejected))


def preference_distillation(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float = 1.0
) -> Tensor:
    r"""Preference distillation: fit the preference probabilities that a reward model gives.

    .. math:: L = \mathrm{KL}\big(\mathrm{Bern}(\hat q)\,\|\,\mathrm{Bern}(q_\pi)\big), \qquad
              \hat q = \sigma(r_1 - r_2), \qquad
              q_\pi = \sigma\Big(\gamma\log\frac{\pi_\theta(y_1|x)}{\pi_\theta(y_2|x)}\Big)

    Equation 11 of arXiv 2506.01523.

    ======== ===============================================================================================
    symbol   meaning
    ======== ===============================================================================================
    policy_1 log pi_theta(y_1|x), summed over tokens; policy_2 likewise. The order of the two does not matter
    reward_1 r_1, from a Bradley–Terry reward model; reward_2 likewise
    gamma    the gamma > 0 of the preference model
    ======== ===============================================================================================

    Gradient: gamma (q_pi - q_hat) for policy_1 and its negative for policy_2.

    Population minimiser: pi* if the reward is that of pi* up to a constant, in general proportional to
    exp(r/gamma), where the loss is zero.

    Assumes: a reward model that is right about differences. The pairs may come from anywhere, also from
    the policy itself.
    """
    check.check_positive("preference_distillation", gamma=gamma)
    check.check_tensors(
        "preference_distillation", policy_1=policy_1, policy_2=policy_2, reward_1=reward_1, reward_2=reward_2
    )
    return bernoulli_kl(reward_1 - reward_2, gamma * (policy_1 - policy_2))


def reverse_kl(policy: Tensor, ref: Tensor, reward: Tensor, gamma: float = 1.0, beta: float = 0.0) -> Tensor:
    r"""Reverse KL on the policy's own samples: reward, an entropy bonus, and a pull towards the reference.

    .. math:: J(\pi_\theta) = E_{y\sim\pi_\theta}[-r(y)] - \gamma H(\pi_\theta)
                            + \beta\,\mathrm{KL}(\pi_\theta\,\|\,\pi_{ref}) = E_{y\sim\pi_\theta}[c(y)],
              \qquad c = -r + \gamma\log\pi_\theta + \beta\log\frac{\pi_\theta}{\pi_{ref}}

    Equation 15 of arXiv 2506.01523. The samples depend on the policy, and no gradient passes through
    sampling; so what is returned is a surrogate. Its value is c(y), so the mean over samples estimates J.
    Its gradient is c(y) grad log pi_theta(y), whose mean estimates grad J without bias: the gradient of
    the log-probabilities inside c has mean zero, so c is held constant.

    ====== =======================================================================================
    symbol meaning
    ====== =======================================================================================
    policy log pi_theta(y|x) of responses that this policy has just sampled, at temperature 1
    ref    log pi_ref(y|x)
    reward r(y). Subtracting a baseline changes the value and the noise, not the expected gradient
    gamma  gamma >= 0, weight of the entropy; 0 is RLHF
    beta   beta >= 0, weight of the divergence from the reference; the paper's runs use 0.05
    ====== =======================================================================================

    Gradient in policy: c(y); none in ref and reward.

    Population minimiser: pi_theta proportional to pi_ref^(beta/(beta+gamma)) exp(r/(beta+gamma)); with
    beta = 0 and r = gamma log pi* + constant it is pi*.

    Assumes: fresh samples from the policy. On old or reference samples the gradient is that of something
    else.
    """
    check.check_not_negative("reverse_kl", gamma=gamma, beta=beta)
    check.check_tensors("reverse_kl", policy=policy, ref=ref, reward=reward)
    log_policy = policy.detach()
    cost = -reward.detach() + gamma * log_policy + beta * (log_policy - ref.detach())
    return cost * (1 + policy - log_policy)
