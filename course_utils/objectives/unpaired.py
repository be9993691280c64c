r"""Objectives of one response and a thumb up or down, with a reference but no mixture premise: KTO and BCO.

l is the log-ratio log pi_theta(y|x) - log pi_ref(y|x), a sum over tokens.

Deviations from papers and libraries
- The baseline is an input. `kto_kl` makes KTO's from a batch; the loss itself looks at one example only.
- BCO's correction for a difference between the prompts of the two classes (its density-ratio weights) is
  not included.
- TRL averages KTO over the pooled batch. These losses have no claim that depends on it; say which mean
  you took.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks as check
from ._numerics import softplus


def kto_kl(policy: Tensor, ref: Tensor) -> Tensor:
    """KTO's baseline: the mean log-ratio of mismatched responses, not below zero and without a gradient.

    A mismatched response belongs to another prompt of the batch; the paper takes the next one.
    """
    check.check_tensors("kto_kl", policy=policy, ref=ref)
    return (policy - ref).detach().mean().clamp(min=0)


def kto(
    policy: Tensor,
    ref: Tensor,
    preferred: Tensor,
    beta: float = 0.1,
    kl: float | Tensor = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Kahneman–Tversky optimisation: a saturating value of the log-ratio above or below a baseline.

    .. math:: L = \begin{cases} \lambda_D\,\big(1 - \sigma(\beta(l - z_0))\big) & \text{preferred} \\
                                \lambda_U\,\big(1 - \sigma(\beta(z_0 - l))\big) & \text{non-preferred}
              \end{cases}

    Paper: Ethayarajh et al. 2024 (arXiv 2402.01306), without its additive constant, as in TRL.

    ================== ============================================================================
    symbol             meaning
    ================== ============================================================================
    policy, ref        log-probabilities, sums over tokens
    preferred          True where the response was preferred
    beta               beta > 0
    kl                 z_0 >= 0, the baseline (see `kto_kl`), a number or a tensor; held constant
    desirable_weight   lambda_D >= 0
    undesirable_weight lambda_U >= 0
    ================== ============================================================================

    Gradient in l: -lambda_D beta sigma(u) sigma(-u) for preferred and +lambda_U beta sigma(u) sigma(-u) for
    non-preferred, with u = beta (l - z_0): it vanishes for hopeless and for settled examples alike.

    Population minimiser: none inside. At one response the expected loss (class-wise means) is a constant
    plus sigma(u) (lambda_U p_- - lambda_D p_+), so a free log-ratio goes to one end or the other. A
    policy takes all probability from the responses with lambda_U p_- > lambda_D p_+ and shares it among
    the others, if there are any: the majority decides, response by response.

    Assumes: a fixed baseline, stopping early, and a value function that people share.
    """
    check.check_positive("kto", beta=beta)
    check.check_not_negative("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    check.check_tensors("kto", policy=policy, ref=ref)
    check.check_preferred("kto", preferred, policy)
    check.check_offset(
        "kto", "kl", kl, policy, not_negative="clamp the estimate at zero, as kto_kl(...) does."
    )
    baseline = kl.detach() if isinstance(kl, Tensor) else kl
    u = beta * (policy - ref - baseline)
    return torch.where(preferred, desirable_weight * torch.sigmoid(-u), undesirable_weight * torch.sigmoid(u))


def bco(
    policy: Tensor, ref: Tensor, preferred: Tensor, beta: float = 0.1, delta: float | Tensor = 0.0
) -> Tensor:
    r"""Binary classifier optimisation: logistic regression of the label on the implicit reward.

    .. math:: L = \begin{cases} -\log\sigma(\beta l - \delta) & \text{preferred} \\
                                -\log\sigma(\delta - \beta l) & \text{non-preferred} \end{cases}

    Paper: Jung et al. 2024 (arXiv 2404.04656). Symbols as in `kto`; delta shifts the reward
    beta l; the paper and TRL use a running mean of the average rewards of the two classes.

    Gradient in l: -beta sigma(delta - beta l) for preferred, beta sigma(beta l - delta) for non-preferred;
    bounded by beta.

    Population minimiser: with class-wise means beta l = delta + log(p_+/p_-) at each response, so
    pi_theta proportional to pi_ref (p_+/p_-)^(1/beta) when delta is the value that makes this a
    distribution. That is not p+. With a plain mean the log-odds of the classes are added to the shift.

    Assumes: the log-odds of being preferred are the reward.
    """
    check.check_positive("bco", beta=beta)
    check.check_tensors("bco", policy=policy, ref=ref)
    check.check_preferred("bco", preferred, policy)
    check.check_offset("bco", "delta", delta, policy)
    z = beta * (policy - ref) - (delta.detach() if isinstance(delta, Tensor) else delta)
    return torch.where(preferred, softplus(-z), softplus(z))
