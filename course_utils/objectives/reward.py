r"""Losses of reward models: Bradley–Terry, and the general preference model that can also fit a cycle.

Deviations from the papers: none. Prompt-dependent scales of the general preference model ("mixture"
heads) and the normalisation of embeddings are left to the model, because they are not part of the loss.
"""

from __future__ import annotations

from torch import Tensor

from course_utils.errors import CourseError

from . import _checks as check
from ._numerics import softplus


def bt(
    reward_chosen: Tensor,
    reward_rejected: Tensor,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Bradley–Terry negative log-likelihood of one comparison, the loss of a reward model.

    .. math:: L = -(1-\varepsilon) \log\sigma(z) - \varepsilon \log\sigma(-z), \qquad z = r_w - r_l - m

    Papers: Bradley and Terry 1952; margin: Touvron et al. 2023 (Llama 2, arXiv 2307.09288); margin and
    smoothing compared: Wang et al. 2024, "Secrets of RLHF II" (arXiv 2401.06080).

    =============== ======================================================================================
    symbol          meaning
    =============== ======================================================================================
    reward_chosen   r_w, the reward of the chosen response
    reward_rejected r_l, the reward of the rejected response
    margin          m, how much better the chosen response should be: a number, or one for each comparison
    label_smoothing eps, the share of labels taken to be wrong, in [0, 0.5)
    =============== ======================================================================================

    Gradient: dL/dr_w = -dL/dr_l = sigma(z) - (1-eps), bounded by one.

    Population minimiser: with margin 0 and smoothing 0, r_a - r_b = logit P(a over b). The level of the
    rewards is free: only differences are identified. With smoothing the margin of a pair is
    logit((1-eps) P + eps (1-P)), nearer to zero.

    Assumes: one scale of quality, so that logit P(a over b) is a difference of two numbers. A cycle has
    none.
    """
    check.check_tensors("bt", reward_chosen=reward_chosen, reward_rejected=reward_rejected)
    check.check_label_smoothing("bt", label_smoothing)
    check.check_offset("bt", "margin", margin, reward_chosen)
    z = reward_chosen - reward_rejected - margin
    if label_smoothing == 0.0:
        return softplus(-z)
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


def gpm_score(embedding_1: Tensor, embedding_2: Tensor) -> Tensor:
    r"""Skew-symmetric preference score s(1 over 2) = <R v_1, v_2> of embeddings [..., 2k].

    R is block-diagonal with k blocks ((0, -1), (1, 0)): each block turns a plane by a quarter, so
    s(1, 2) = -s(2, 1) exactly.
    """
    _check_embeddings("gpm_score", embedding_1=embedding_1, embedding_2=embedding_2)
    return _score(embedding_1, embedding_2)


def _check_embeddings(where: str, **embeddings: Tensor) -> None:
    check.check_tensors(where, **embeddings)
    shape = tuple(next(iter(embeddings.values())).shape)
    if not shape or shape[-1] % 2 != 0:
        raise CourseError(
            "odd-embedding",
            f"the embeddings have shape {shape}; their last dimension must be even.",
            where=where,
            remedy="give the reward head 2k outputs: 2 for one cycle, 4 or more when cycles are stacked.",
        )


def _score(embedding_1: Tensor, embedding_2: Tensor) -> Tensor:
    v, w = embedding_1.unflatten(-1, (-1, 2)), embedding_2.unflatten(-1, (-1, 2))
    # <R v, w>, block by block: the area between v and w, so exchanging them changes its sign and nothing else
    return (v[..., 0] * w[..., 1] - v[..., 1] * w[..., 0]).sum(-1)


def gpm(embedding_chosen: Tensor, embedding_rejected: Tensor, tau: float = 0.1) -> Tensor:
    r"""General preference model: a loss of embeddings that can represent any preference, cyclic ones too.

    .. math:: L = -\log\sigma(s/\tau), \qquad s = \langle R v_w, v_l \rangle, \qquad
              R = \operatorname{blockdiag}\begin{pmatrix} 0 & -1 \\ 1 & 0 \end{pmatrix}

    Paper: Zhang et al. 2024, "Beyond Bradley–Terry models" (arXiv 2410.02197).

    ================== =================================================================================
    symbol             meaning
    ================== =================================================================================
    embedding_chosen   v_w in R^(2k), last dimension 2k; one loss for each leading index
    embedding_rejected v_l, likewise
    tau                temperature tau > 0; the paper uses 0.1 here and 1 for its Bradley–Terry baseline
    ================== =================================================================================

    Gradient: dL/dv_w = -sigma(-s/tau) R^T v_l/tau and dL/dv_l = -sigma(-s/tau) R v_w/tau.

    Population minimiser: s(a over b) = tau logit P(a over b) wherever 2k dimensions can represent it; any
    skew-symmetric matrix of n responses can be represented with 2k = n (n even) or n - 1 (n odd) when
    lengths are free.

    Assumes: nothing about transitivity, only P(a over b) = 1 - P(b over a).
    """
    check.check_positive("gpm", tau=tau)
    _check_embeddings("gpm", embedding_chosen=embedding_chosen, embedding_rejected=embedding_rejected)
    return softplus(-_score(embedding_chosen, embedding_rejected) / tau)
