r"""Objectives without a reference: SimPO and ORPO for pairs, and SFT on the chosen, the control.

Log-probabilities are SUMS over the response's tokens, as everywhere; SimPO and ORPO divide them by the
lengths that you pass.

Deviations from papers and libraries: ORPO's likelihood term is the mean over one response's tokens, so
that the loss is one number for each example; TRL averages over all tokens of the batch.
"""

from __future__ import annotations

from torch import Tensor

from course_utils.errors import CourseError

from . import _checks as check
from ._numerics import log1mexp, softplus


def sft(policy_chosen: Tensor) -> Tensor:
    r"""Negative log-likelihood of the chosen response: the control that every preference method has to beat.

    .. math:: L = -\log\pi_\theta(y_w|x)

    policy_chosen is the sum of the log-probabilities of the response's tokens. Add it to any other
    objective as `loss + weight * sft(policy_chosen)`. (Ouyang et al. 2022, arXiv 2203.02155, mix it in
    the same way.)

    Gradient in the log-probability: -1.

    Population minimiser: the distribution of the chosen responses. For pairs from pi_ref that is
    p_+ = 2 pi_ref(y) W(y), with W the win rate against pi_ref.

    Assumes: the chosen responses are worth imitating. It cannot learn from what was rejected.
    """
    check.check_tensors("sft", policy_chosen=policy_chosen)
    return -policy_chosen


def simpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    len_chosen: Tensor,
    len_rejected: Tensor,
    beta: float = 2.0,
    gamma: float = 0.5,
) -> Tensor:
    r"""SimPO: the mean log-probability of a token as reward, with a margin to exceed, and no reference.

    .. math:: L = -\log\sigma(z - \gamma), \qquad
              z = \frac{\beta}{|y_w|}\log\pi_\theta(y_w|x) - \frac{\beta}{|y_l|}\log\pi_\theta(y_l|x)

    Paper: Meng, Xia and Chen 2024 (arXiv 2405.14734). gamma is the margin after beta was applied, as in
    the paper and in TRL.

    ============= ===============================================================
    symbol        meaning
    ============= ===============================================================
    policy_chosen log pi_theta(y_w|x), a sum over tokens; policy_rejected likewise
    len_chosen    |y_w|, number of tokens, at least 1; len_rejected likewise
    beta          beta > 0, a scale: a SMALLER beta asks for a larger difference
    gamma         gamma >= 0, the margin
    ============= ===============================================================

    Gradient: -beta sigma(gamma - z)/|y_w| for the chosen log-probability, +beta sigma(gamma - z)/|y_l|
    for the rejected.

    Population minimiser: with gamma = 0 and equal lengths of one token, pi_theta proportional to
    exp(r/beta) under Bradley–Terry: a softmax of the reward that has forgotten pi_ref. With gamma > 0 per
    pair e^z = (rho - 1 + sqrt((rho-1)^2 + 4 rho q^2)) / (2 q), with rho = P/(1-P) and q = e^-gamma: the
    margin overstates every preference.

    Assumes: Bradley–Terry with the mean log-probability as reward, and that early stopping replaces the
    reference.
    """
    check.check_positive("simpo", beta=beta)
    check.check_not_negative("simpo", gamma=gamma)
    check.check_tensors("simpo", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    check.check_length("simpo", policy_chosen, len_chosen=len_chosen, len_rejected=len_rejected)
    z = beta * (policy_chosen / len_chosen - policy_rejected / len_rejected)
    return softplus(gamma - z)


def orpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    len_chosen: Tensor,
    len_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    r"""ORPO: likelihood of the chosen response and a penalty on the odds ratio, in one stage.

    .. math:: L = -a_w - \beta\log\sigma(o), \qquad a = \frac{1}{|y|}\log\pi_\theta(y|x), \qquad
              o = \log\frac{e^{a_w}}{1-e^{a_w}} - \log\frac{e^{a_l}}{1-e^{a_l}}

    Paper: Hong, Lee and Thorne 2024 (arXiv 2403.07691); their lambda is beta here, as in TRL. Symbols as
    in `simpo`.

    Gradient: in a_w, -1 - beta sigma(-o) / (1 - e^a_w); in a_l, beta sigma(-o) / (1 - e^a_l).

    Population minimiser: of the odds part alone, o = logit P, so under Bradley–Terry (one-token
    responses) the odds pi/(1-pi) are proportional to e^r. The whole loss has no closed form: it lies
    between that and the distribution of the chosen.

    Assumes: chosen responses worth imitating, and probabilities below one (a response that is certain has
    infinite odds).
    """
    check.check_positive("orpo", beta=beta)
    check.check_tensors("orpo", policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    check.check_length("orpo", policy_chosen, len_chosen=len_chosen, len_rejected=len_rejected)
    mean_chosen, mean_rejected = policy_chosen / len_chosen, policy_rejected / len_rejected
    for name, mean in (("policy_chosen", mean_chosen), ("policy_rejected", mean_rejected)):
        certain = mean >= 0
        if bool(certain.any()):
            raise CourseError(
                "certain-response",
                f"`{name}` is >= 0 at index {check.listed(certain.nonzero())}: the odds are infinite.",
                where="orpo",
                remedy="check that you passed log-probabilities (below zero) computed in float32.",
            )
    log_odds = (mean_chosen - log1mexp(-mean_chosen)) - (mean_rejected - log1mexp(-mean_rejected))
    return -mean_chosen + beta * softplus(-log_odds)
