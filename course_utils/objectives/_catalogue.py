r"""What the registry knows about each objective. The long form of every entry is the docstring of its loss.

In the equations l is a log-ratio, log pi_theta/pi_ref of a whole response, and h = l(chosen) - l(rejected).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import distribution, exo, pairwise, ratios, reference_free, reward, unpaired


@dataclass(frozen=True)
class Objective:
    """An objective and what there is to know about it.

    `feedback` says what one example is:

    - "paired": chosen and rejected response, with policy and reference log-probabilities
    - "reference-free pair": chosen and rejected response, policy log-probabilities only
    - "scored pair": two responses and their rewards
    - "reward pair": rewards or embeddings of a chosen and a rejected response
    - "chosen only": one preferred response
    - "unpaired": one response and whether it was preferred
    - "group": K responses of one prompt and their rewards, tensors of shape [batch, K]
    - "on-policy": one response that the policy itself has just sampled, and its reward

    `reduction` is read for unpaired feedback alone: "classwise" adds the means of the two classes, "pooled" takes one
    mean of all.
    """

    name: str
    title: str
    paper: str
    feedback: str
    needs_reference: bool
    loss: Callable[..., Tensor]
    equation: str
    assumes: str
    target: str
    reduction: str = "classwise"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the loss is called with, in order."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)

    @property
    def defaults(self) -> dict[str, float | str]:
        """The loss's settings and their defaults, read from its signature so that the two cannot differ."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


_H = r"h=\log\frac{\pi_\theta(y_w)}{\pi_{ref}(y_w)}-\log\frac{\pi_\theta(y_l)}{\pi_{ref}(y_l)}"
_L = r"l=\log\frac{\pi_\theta(y)}{\pi_{ref}(y)}"
_F = r"p_f\propto(\pi_\theta/\pi_{ref})^{\beta_\pi},\ p_r\propto e^{r/\beta_r}"

_BRADLEY_TERRY = "Preferences follow Bradley–Terry with a reward r."
_DISTRIBUTION = "Yun et al. 2025, arXiv 2506.01523"

_ENTRIES = [
    Objective(
        name="bt",
        title="Bradley–Terry",
        paper="Bradley and Terry 1952",
        feedback="reward pair",
        needs_reference=False,
        loss=reward.bt,
        equation=r"-\log\sigma(r_w-r_l-m)",
        assumes="One scale of quality: logit P(a over b) is a difference of two numbers.",
        target="Reward differences equal to logit P(a over b); the level of the rewards is free.",
    ),
    Objective(
        name="gpm",
        title="General preference model",
        paper="Zhang et al. 2024, arXiv 2410.02197",
        feedback="reward pair",
        needs_reference=False,
        loss=reward.gpm,
        equation=r"-\log\sigma(\langle Rv_w,v_l\rangle/\tau),\ R=\mathrm{blockdiag}((0,-1),(1,0))",
        assumes="Only that P(a over b) + P(b over a) = 1; cycles are allowed.",
        target="Scores equal to tau logit P(a over b), wherever 2k dimensions can represent them.",
    ),
    Objective(
        name="sft",
        title="SFT on the chosen",
        paper="Ouyang et al. 2022, arXiv 2203.02155",
        feedback="chosen only",
        needs_reference=False,
        loss=reference_free.sft,
        equation=r"-\log\pi_\theta(y_w)",
        assumes="The chosen responses are worth imitating.",
        target="The distribution of the chosen responses, p+.",
    ),
    Objective(
        name="dpo",
        title="DPO",
        paper="Rafailov et al. 2023, arXiv 2305.18290",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.dpo,
        equation=rf"-\log\sigma(\beta h),\ {_H}",
        assumes=_BRADLEY_TERRY,
        target="pi_ref exp(r/beta), normalised; none for a pair that is always labelled the same way.",
    ),
    Objective(
        name="cdpo",
        title="Conservative DPO",
        paper="Mitchell 2023, a note on DPO with noisy preferences",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.cdpo,
        equation=rf"-(1-\varepsilon)\log\sigma(\beta h)-\varepsilon\log\sigma(-\beta h),\ {_H}",
        assumes="Bradley–Terry, and a margin that noisy labels should limit.",
        target="On one pair beta h = logit((1-eps) P + eps (1-P)): finite, and nearer to zero than logit P.",
    ),
    Objective(
        name="robust_dpo",
        title="Provably robust DPO",
        paper="Chowdhury et al. 2024, arXiv 2403.00409",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.robust_dpo,
        equation=(
            r"\frac{-(1-\varepsilon)\log\sigma(\beta h)+\varepsilon\log\sigma(-\beta h)}{1-2\varepsilon},"
            + rf"\ {_H}"
        ),
        assumes="Bradley–Terry, and labels flipped at random at the known rate eps.",
        target="DPO's target on clean labels, pi_ref exp(r/beta).",
    ),
    Objective(
        name="ipo",
        title="IPO",
        paper="Azar et al. 2023, arXiv 2310.12036",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.ipo,
        equation=rf"(h-\tfrac1{{2\tau}})^2,\ {_H}",
        assumes="No preference model.",
        target="pi_ref exp(W/tau), normalised, with W the win rate; on one pair h = (2P-1)/(2 tau).",
    ),
    Objective(
        name="flex_dpo",
        title="Flex-DPO",
        paper="Yan et al. 2024, arXiv 2406.07327",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.flex_dpo,
        equation=r"-\log\sigma(\beta_+l_w-\beta_-l_l)," + rf"\ {_L}",
        assumes="Bradley–Terry, and that a falling chosen probability is the thing to prevent.",
        target="DPO's if the two betas are equal; otherwise no closed form.",
    ),
    Objective(
        name="dpo_with_sft",
        title="DPO with an SFT term",
        paper="compared in Yan et al. 2024, arXiv 2406.07327",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.dpo_with_sft,
        equation=rf"-\log\sigma(\beta h)-\lambda\log\pi_\theta(y_w),\ {_H}",
        assumes="Bradley–Terry, and chosen responses that are worth imitating.",
        target="No closed form: between DPO's target and the distribution of the chosen responses.",
    ),
    Objective(
        name="slic",
        title="SLiC hinge",
        paper="Zhao et al. 2023, arXiv 2305.10425; with a reference: Liu et al. 2023, arXiv 2309.06657",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.slic,
        equation=rf"\max(0,1-\beta h),\ {_H}",
        assumes="Only which of two responses is better matters, not how surely.",
        target="On one pair beta h = sign(2P-1), whatever P is.",
    ),
    Objective(
        name="bpo",
        title="BPO",
        paper="Kim et al. 2025, arXiv 2505.19601",
        feedback="paired",
        needs_reference=True,
        loss=pairwise.bpo,
        equation=rf"f'(R)R-f(R)-f'(1/R),\ R=e^{{-\beta h}},\ {_H}",
        assumes=_BRADLEY_TERRY,
        target="pi_ref exp(r/beta), normalised, for every member of the family.",
    ),
    Objective(
        name="simpo",
        title="SimPO",
        paper="Meng et al. 2024, arXiv 2405.14734",
        feedback="reference-free pair",
        needs_reference=False,
        loss=reference_free.simpo,
        equation=r"-\log\sigma(\tfrac{\beta}{|y_w|}\log\pi_\theta(y_w)-\tfrac{\beta}{|y_l|}\log\pi_\theta(y_l)-\gamma)",
        assumes="Bradley–Terry with the mean token log-probability as reward; early stopping anchors it.",
        target="exp(r/beta), normalised, at gamma = 0 and length one; gamma > 0 overstates preferences.",
    ),
    Objective(
        name="orpo",
        title="ORPO",
        paper="Hong et al. 2024, arXiv 2403.07691",
        feedback="reference-free pair",
        needs_reference=False,
        loss=reference_free.orpo,
        equation=(
            r"-a_w-\beta\log\sigma(\log\tfrac{e^{a_w}}{1-e^{a_w}}-\log\tfrac{e^{a_l}}{1-e^{a_l}}),"
            r"\ a=\tfrac1{|y|}\log\pi_\theta(y)"
        ),
        assumes="Chosen responses worth imitating, and no response that is certain.",
        target="No closed form; the odds part alone makes the odds proportional to exp(r), at length one.",
    ),
    Objective(
        name="kto",
        title="KTO",
        paper="Ethayarajh et al. 2024, arXiv 2402.01306",
        feedback="unpaired",
        needs_reference=True,
        loss=unpaired.kto,
        equation=r"\lambda_D\,\sigma(-\beta(l-z_0))\ \text{or}\ \lambda_U\,\sigma(\beta(l-z_0)),"
        + rf"\ {_L}",
        assumes="A fixed baseline, early stopping, and a value function that people share.",
        target="None inside: a response that is mostly rejected goes to probability zero.",
    ),
    Objective(
        name="bco",
        title="BCO",
        paper="Jung et al. 2024, arXiv 2404.04656",
        feedback="unpaired",
        needs_reference=True,
        loss=unpaired.bco,
        equation=r"-\log\sigma(\beta l-\delta)\ \text{or}\ -\log\sigma(\delta-\beta l)," + rf"\ {_L}",
        assumes="The log-odds of being preferred are the reward.",
        target="pi_ref (p+/p-)^(1/beta), normalised, with class-wise means and the matching delta: not p+.",
    ),
    Objective(
        name="exo_pref",
        title="EXO from preferences",
        paper="Ji et al. 2024, arXiv 2402.00856",
        feedback="paired",
        needs_reference=True,
        loss=exo.exo_pref,
        equation=r"\mathrm{KL}(\mathrm{Bern}(\sigma(\beta h))\,\|\,\mathrm{Bern}(1-\varepsilon)),"
        + rf"\ {_H}",
        assumes="Labels that are certain up to eps.",
        target="On one pair beta h = (2P-1) log((1-eps)/eps), which is not logit P.",
    ),
    Objective(
        name="exo_rw",
        title="EXO from rewards",
        paper="Ji et al. 2024, arXiv 2402.00856",
        feedback="group",
        needs_reference=True,
        loss=exo.exo_rw,
        equation=rf"\mathrm{{KL}}(p_f\,\|\,p_r),\ {_F}",
        assumes="Rewards on one scale for all responses of a prompt.",
        target="pi_ref exp(r/(beta_policy beta_reward)), normalised, if the policy can represent it.",
    ),
    Objective(
        name="dpo_rw",
        title="DPO from rewards",
        paper="Ji et al. 2024, arXiv 2402.00856",
        feedback="group",
        needs_reference=True,
        loss=exo.dpo_rw,
        equation=rf"\mathrm{{KL}}(p_r\,\|\,p_f),\ {_F}",
        assumes="Rewards on one scale for all responses of a prompt.",
        target="pi_ref exp(r/(beta_policy beta_reward)), normalised, if the policy can represent it.",
    ),
    Objective(
        name="brain",
        title="BRAIn",
        paper="Pandey et al. 2024, arXiv 2402.02479",
        feedback="group",
        needs_reference=True,
        loss=exo.brain,
        equation=r"\mathrm{KL}(\alpha\|\beta),\ \alpha\propto pe^{r/\gamma}/q,\ \beta\propto\pi_\theta/q",
        assumes="Rewards on one scale, and samples from the proposal q whose log-probabilities are given.",
        target="prior exp(r/gamma), normalised, for any proposal that covers it.",
    ),
    Objective(
        name="pmle",
        title="PMLE",
        paper=_DISTRIBUTION,
        feedback="reference-free pair",
        needs_reference=False,
        loss=distribution.pmle,
        equation=r"-\log\sigma(\gamma\log\tfrac{\pi_\theta(y_w)}{\pi_\theta(y_l)})",
        assumes="Preferences come from the model sought: P(a over b) = sigma(gamma log pi*(a)/pi*(b)).",
        target="pi*, which is exp(r/gamma), normalised, under Bradley–Terry.",
    ),
    Objective(
        name="preference_distillation",
        title="Preference distillation",
        paper=_DISTRIBUTION,
        feedback="scored pair",
        needs_reference=False,
        loss=distribution.preference_distillation,
        equation=(
            r"\mathrm{KL}(\mathrm{Bern}(\sigma(r_1-r_2))\,\|\,"
            r"\mathrm{Bern}(\sigma(\gamma\log\tfrac{\pi_\theta(y_1)}{\pi_\theta(y_2)})))"
        ),
        assumes="A reward model that is right about differences.",
        target="exp(r/gamma), normalised: pi* if the reward is gamma log pi* up to a constant.",
    ),
    Objective(
        name="reverse_kl",
        title="Reverse KL",
        paper=_DISTRIBUTION,
        feedback="on-policy",
        needs_reference=True,
        loss=distribution.reverse_kl,
        equation=r"E_{\pi_\theta}[-r]-\gamma H(\pi_\theta)+\beta\,\mathrm{KL}(\pi_\theta\,\|\,\pi_{ref})",
        assumes="Fresh samples from the policy, and a reward that can be trusted where the policy goes.",
        target="pi_ref^(beta/(beta+gamma)) exp(r/(beta+gamma)), normalised; exp(r/gamma) at beta = 0.",
    ),
    Objective(
        name="ddro",
        title="DDRO",
        paper="Higuchi and Suzuki 2025, arXiv 2505.07558",
        feedback="unpaired",
        needs_reference=True,
        loss=ratios.ddro,
        equation=r"\log(1+g)\ \text{or}\ \log(1+1/g),\ g=\frac{e^{-l}-t}{1-t}," + rf"\ {_L}",
        assumes="The reference is the mixture t p+ + (1-t) p-, and the policy stays below the wall at 1/t.",
        target="p+, for any preference structure, with class-wise means.",
    ),
    Objective(
        name="rdro",
        title="RDRO",
        paper="Takahashi et al. 2026, arXiv 2604.04410",
        feedback="unpaired",
        needs_reference=True,
        loss=ratios.rdro,
        equation=r"(1+\alpha)\log(1+e^l)-l\ \text{or}\ (1-\alpha)\log(1+e^l)," + rf"\ {_L}",
        assumes="The reference is the mixture alpha p+ + (1-alpha) p-.",
        target="p+, for any preference structure, with class-wise means.",
    ),
    Objective(
        name="rdro_pooled",
        title="RDRO for a pooled mean",
        paper="derived here from Takahashi et al. 2026, arXiv 2604.04410",
        feedback="unpaired",
        needs_reference=True,
        loss=ratios.rdro_pooled,
        equation=r"\log(1+e^l)+\tfrac1\alpha\log(1+e^{-l})\ \text{or}\ \log(1+e^l)," + rf"\ {_L}",
        assumes="The reference is the mixture alpha p+ + (1-alpha) p-; alpha is the share of preferred data.",
        target="p+, for any preference structure, with one plain mean.",
        reduction="pooled",
    ),
]

CATALOGUE: dict[str, Objective] = {entry.name: entry for entry in _ENTRIES}
