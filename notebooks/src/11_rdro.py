# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "RDRO: a ratio with a ceiling", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 11 · RDRO: a ratio with a ceiling
#
# DDRO aims at the right distribution and trains towards it beside a wall. Divide by the mixture instead, and the wall is gone: that is RDRO, one line of algebra. You derive it, measure what it buys, and break the one premise it stands on.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive RDRO's loss, and say why its gradients are bounded and where they turn round;
# 2. prove that its minimiser is $p_+$, and point at the step that needs the premise;
# 3. test the premise on your own data, and repair it;
# 4. see the pooled-mean trap in a trainer, and close it in two ways;
# 5. say what on-policy pairs make of RDRO, and how much one round can win.

# %% [markdown]
# ## Prerequisites
#
# Lessons 09 (ratios) and 10 (DDRO). About 90 minutes with the exercises. Test yourself:
#
# <details><summary>How large can p/(αp + (1−α)q) get?</summary>1/α, where q is zero.</details>
# <details><summary>What does DDRO need of r = π/π_ref, if π_ref is half p+ and half p−?</summary>r &lt; 2: beyond, p− would be negative.</details>
#
# *Not covered:* several rounds (12), a fair race of all methods (13), real models (21).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math

import numpy as np
import torch
from torch import Tensor

from course_utils import experiments, ledger, plots, statistics
from course_utils.experiments import lesson_11 as lesson
from course_utils.experiments.lesson_09 import JudgedTexts
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld
from course_utils.worlds.tables import kl

softplus = torch.nn.functional.softplus
RECOMPUTE = False
runs = experiments.results("11_along_training", recompute=RECOMPUTE)
of_arm = lambda arm: [run for run in runs if run["arm"] == arm]
slope = lesson.slope  # the derivative of a loss in the log-ratio, by autograd

# %% [markdown]
# One picture first. We train the pocket model twice on the same pairs, with the same seeds, batches and clipping: once with DDRO, once with RDRO. Five seeds each, computed beforehand (about 20 minutes with the controls); `RECOMPUTE = True` does it again.

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
orange, green = plots.look("ddro").color, plots.look("rdro").color
l = torch.linspace(-3, 3, 601, dtype=torch.float64)
before = l[l < math.log(2) - 0.01]
for liked, style in ((True, "--"), (False, "-")):
    left.plot(l, slope("rdro", l, liked), color=green, linestyle=style)
    left.plot(before, slope("ddro", before, liked), color=orange, linestyle=style)
left.axvline(math.log(2), color=plots.GREY, linestyle=":")
left.set(ylim=(-1.5, 3.2), xlabel="l = log π/π_ref", title="slope of the loss in l (α = t = ½)")
plots.label(left, 0.69, 2.9, "log 2: the wall", plots.GREY)
plots.label(left, -2.1, 1.0, "DDRO, rejected", orange)
plots.label(left, -2.9, -1.25, "DDRO, preferred", orange)
plots.label(left, 1.1, 0.72, "RDRO, rejected", green)
plots.label(left, 1.1, -0.3, "RDRO, preferred:\nzero at log 2", green)
for arm in ("ddro", "rdro"):
    for run in of_arm(arm):
        right.semilogy(run["gradient"], color=plots.look(arm).color, alpha=0.55, linewidth=1.1)
plots.label(right, 60, 3_000, "DDRO", orange)
plots.label(right, 42, 0.72, "RDRO", green)
right.set(xlabel="update", ylim=(0.4, 9_000), title="length of the gradient, 5 seeds each")
plots.show(drawn, alt="""Left: slopes of the losses against the log-ratio. DDRO's rejected slope
    grows without bound at log 2, its preferred slope is minus one throughout; RDRO's slopes stay
    between minus one and one half, and the preferred one crosses zero at log 2. Right,
    logarithmic: DDRO's gradient lengths jump above one thousand again and again; RDRO's stay near
    one, with a few peaks, the highest near ten.""")

# %% [markdown]
# Left, both losses, response by response. Right, what that does to a language model (before clipping): DDRO's gradient jumps a hundredfold or so, at times far more, as a rejected response nears the wall. Only the tangent that continues it there caps it, at slope 1,000. RDRO's stays near 1.3, with few peaks, at most tenfold. (A factor of four is mere scale: at $l=0$ the slopes are 1 and ¼.) Same data, same target. Why?
#
# ## 1 · Derive
#
# *Where did the wall come from?* DDRO's premise is $\pi_{ref}=t\,p_++(1-t)\,p_-$. It solves for $p_-$, puts $\pi_\theta$ in the place of $p_+$, and fits
#
# $$\frac{p_-}{p_+}\;\longleftarrow\;g_\theta=\frac{\pi_{ref}-t\,\pi_\theta}{(1-t)\,\pi_\theta}=\frac{1/r-t}{1-t},\qquad r=\frac{\pi_\theta}{\pi_{ref}}.$$
#
# A ratio of densities is positive. The **subtraction** is not, once $r\ge1/t$; and $\log(1+1/g)$, the loss of a rejected response, is infinite there.

# %% [markdown]
# *Ask for another ratio.* Divide $p_+$ not by $p_-$ but by the mixture:
#
# $$r_\alpha=\frac{p_+}{\alpha p_++(1-\alpha)p_-}\;\le\;\frac1\alpha.$$
#
# By the premise (with $t=\alpha$) its denominator **is** $\pi_{ref}$. So the model of $r_\alpha$ is $r=\pi_\theta/\pi_{ref}=e^l$ itself: nothing is subtracted, every $l$ is allowed, and the truth is bounded because $p_+$ also stands in its own denominator. That is the one line.
#
# *The loss* is lesson 09's logistic one with the mixture as denominator, $\mathrm{sp}(z)=\log(1+e^z)$:
#
# $$E_{+}[\mathrm{sp}(-l)]+\underbrace{\alpha E_+[\mathrm{sp}(l)]+(1-\alpha)E_-[\mathrm{sp}(l)]}_{\text{the mixture}}.$$
#
# A preferred response costs $(1+\alpha)\,\mathrm{sp}(l)-l$, a rejected one $(1-\alpha)\,\mathrm{sp}(l)$. No clipping, no stabiliser, no β. Here $l$ is the sum over the response's tokens, and $E_+$, $E_-$ are means over *each class*. Keep that word in mind.

# %% [markdown]
# *Why is the minimiser $p_+$?* At one response, the derivative of the expected loss in $l$ is
#
# $$\big[(1+\alpha)\sigma(l)-1\big]p_++(1-\alpha)\sigma(l)\,p_-=\sigma(l)\,(p_++p_{mix})-p_+,$$
#
# with $p_{mix}=\alpha p_++(1-\alpha)p_-$. It is zero exactly at $e^l=p_+/p_{mix}$. Then $\pi_\theta=\pi_{ref}\,p_+/p_{mix}$, and **if** $\pi_{ref}=p_{mix}$, that is $p_+$. It sums to one by itself, so the constraint of being a distribution costs nothing. Without the premise it does not sum to one: remember this for section 4.
#
# *The slopes*, since $\mathrm{sp}'=\sigma$:
#
# | response | slope in $l$ | range | zero |
# |---|---|---|---|
# | preferred | $(1+\alpha)\,\sigma(l)-1$ | $(-1,\ \alpha)$ | at $l=\log\frac1\alpha$ |
# | rejected | $(1-\alpha)\,\sigma(l)$ | $(0,\ 1-\alpha)$ | never |
#
# *Predict: at α = ½, which way does a step move a **preferred** response whose log-ratio is already 1?* Bounded are these slopes, not the gradient of $\log\pi_\theta$ they multiply.
#
# ## 2 · Implement

# %% [markdown] exercise="11.1" part="task" stars=1 minutes=5
# ### The loss
# One number for each response: `preferred` is a boolean tensor. It must survive log-ratios of ±900.

# %% exercise="11.1" part="stub"
def rdro_loss(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    """RDRO's loss of each response."""
    raise NotImplementedError


# %% exercise="11.1" part="check"
check("11.1", rdro_loss)

# %% [markdown] exercise="11.1" part="hints"
# 1. `torch.where(preferred, a, b)` takes `a` where the response was preferred.
# 2. Which of the three terms of the loss does a preferred response enter? Two.
# 3. `torch.nn.functional.softplus` does not overflow; `log(1 + exp(l))` does.

# %% exercise="11.1" part="solution"
def rdro_loss(log_ratio: Tensor, preferred: Tensor, alpha: float) -> Tensor:
    of_preferred = softplus(-log_ratio) + alpha * softplus(log_ratio)
    return torch.where(preferred, of_preferred, (1 - alpha) * softplus(log_ratio))


check("11.1", rdro_loss)

# %%
line = torch.linspace(-40, 40, 4_001, dtype=torch.float64)
alphas = [0.05, 0.2, 0.39, 0.5, 0.8, 0.95]
steepest = max(float(slope("rdro", line, liked, alpha=a).abs().max())
               for a in alphas for liked in (True, False))
near = torch.tensor([math.log(2) - 1e-3], dtype=torch.float64)
print(f"DDRO, rejected, 0.001 before the wall: slope {float(slope('ddro', near, False)):.0f}")
claim("11.slope", "derived here, from the bounded ratio of Takahashi et al. (2026)",
      "the steepest slope of RDRO's loss in l, both classes, six alphas, l from -40 to 40",
      expected=1, relation="at most", measured=steepest)
turn = [float(slope("rdro", -torch.tensor([a], dtype=torch.float64).log(), True, alpha=a))
        for a in alphas]
claim("11.saturation", "derived here",
      "RDRO's slope for a preferred response is zero at l = log(1/alpha) (largest of six alphas)",
      expected=0, measured=max(map(abs, turn)), tolerance=1e-12)
print(f"log(1/alpha): {math.log(1 / 0.39):.2f} nats at 0.39, {math.log(1 / 0.5):.2f} at 0.5")

# %% [markdown]
# **Saturation.** A preferred response is pushed up to $\log(1/\alpha)$, and *down* beyond. That is for the whole response, not for each token: at these two shares under a nat, however long the text. SFT's and DPO's slopes never turn. It looks like a brake; section 5 shows that it is knowledge.
#
# In the package: `objectives.rdro`, averaged by `objectives.classwise_mean`. **In TRL 1.16** there is no RDRO. The nearest host is `KTOTrainer`: unpaired data, sums of token log-probabilities. Replace its loss, and mind `losses.nanmean()`: one mean over both classes. (`desirable_weight` = 1/π and `undesirable_weight` = 1/(1 − π) mend that; section 4.)
#
# ## 3 · Verify against the exact optimum

# %%
plus = torch.tensor([[0.40, 0.25, 0.15, 0.15, 0.05]], dtype=torch.float64)
minus = torch.tensor([[0.05, 0.10, 0.20, 0.25, 0.40]], dtype=torch.float64)
mixed = lambda t: FiniteWorld.from_mixture(plus, minus, t)
share, world = 0.39, mixed(0.39)
off = lambda t: float((mixed(t).population_minimiser("rdro", alpha=t) - plus).abs().max())
claim("11.consistent", "Takahashi et al. (2026), abstract: statistically consistent",
      "reference = mixture, class-wise means: RDRO's minimiser is p+ (largest error, four alphas)",
      expected=0, measured=max(map(off, (0.1, 0.39, 0.5, 0.8))), tolerance=1e-9)

# %% [markdown]
# *Now by hand.* The data are mixed with a true share of 0.39. Move the α of the **loss**. Left, the two slopes and the point where the preferred one turns. Right, the minimiser. *Predict before you move: what happens as α goes to 1? As it goes to 0?*

# %% tags=["figure", "nbval-ignore-output"]
def by_alpha(alpha):
    drawn, (left, right) = plots.figure(2, width=4.6)
    for liked, style in ((True, "--"), (False, "-")):
        left.plot(l, slope("rdro", l, liked, alpha=alpha), color=green, linestyle=style)
    left.axhline(0, color=plots.GREY, linewidth=1)
    left.plot(-math.log(alpha), 0, "o", color=plots.INK)
    left.set(xlabel="l", ylim=(-1.05, 1.05), title=f"slopes; log(1/α) = {-math.log(alpha):.2f}")
    plots.label(left, -2.9, -0.6, "preferred", green)
    plots.label(left, -2.9, 0.25, "rejected", green)
    found = world.population_minimiser("rdro", alpha=alpha)
    right.bar(range(5), found[0], color=green, width=0.6)
    right.plot(range(5), plus[0], "_", color=plots.INK, markersize=26, markeredgewidth=2.5)
    right.plot(range(5), world.reference[0], "_", color=plots.GREY, markersize=26, markeredgewidth=2.5)
    plots.label(right, 0, 0.40, "p+", xytext=(18, 3))
    plots.label(right, 4, 0.264, "p_ref", plots.GREY, xytext=(-12, 11))
    right.set(xlabel="response", ylim=(0, 0.6), ylabel="probability")
    right.set_title(f"minimiser: KL(p+ || π) = {abs(world.kl(plus, found)):.4f}")
    return drawn


plots.slider(by_alpha, alpha=(0.05, 0.95, 0.39), alt="""Left: the slopes of RDRO's loss against the
    log-ratio; the preferred one crosses zero at 0.94. Right: bars of the minimiser for five responses
    reach exactly the marks of p+, not those of the reference, at alpha = 0.39, the true share.""")

# %% [markdown]
# At the true share the bars meet $p_+$. As α goes to 1 every ratio is bounded by 1, and nothing may leave $\pi_{ref}$. As it goes to 0 the loss becomes the plain classifier's, whose ratio is $p_+/p_-$: too much.
#
# **From loss to distance.** “Tighter guarantees” than DDRO's, says the abstract; we could not see the theorem. Here is one of our own. A small excess loss means a small distance:
#
# $$\mathrm{TV}(\pi_\theta,p_+)\;\le\;(1+B)\,(1+\tfrac1\alpha)\sqrt{\text{excess}/8},\qquad B\ge\max r.$$
#
# *Proof.* Let $\eta=\frac{r_\alpha}{1+r_\alpha}$, $s=\sigma(l)$. The loss is a cross-entropy with weight $p_++p_{mix}$, so the excess is $E_{p_++p_{mix}}\mathrm{KL}(\eta\|s)\ge2E_{p_{mix}}(\eta-s)^2$ (Pinsker). Since $r=\frac s{1-s}$,
#
# $$|r-r_\alpha|=(1+r)(1+r_\alpha)|s-\eta|\le(1+B)(1+\tfrac1\alpha)|s-\eta|,$$
#
# and $\mathrm{TV}=\frac12E_{p_{mix}}|r-r_\alpha|\le\frac12(1+B)(1+\frac1\alpha)\sqrt{\text{excess}/2}$. ∎ For DDRO the step from loss to ratio loses a factor $\sup p_-/p_+$, which has no bound.

# %%
generator = torch.Generator().manual_seed(0)
draws = torch.randn(3, 2_000, 6, generator=generator, dtype=torch.float64)
p, q, policy = torch.softmax(2 * draws, dim=-1)
alpha = 0.05 + 0.9 * torch.rand(2_000, 1, generator=generator, dtype=torch.float64)
mix = alpha * p + (1 - alpha) * q
risk = lambda pi: (p * softplus(-(pi / mix).log()) + mix * softplus((pi / mix).log())).sum(1)
largest = torch.maximum((policy / mix).amax(1), 1 / alpha[:, 0])
bound = (1 + largest) * (1 + 1 / alpha[:, 0]) * ((risk(policy) - risk(p)) / 8).sqrt()
claim("11.bound", "derived here",
      "TV to p+ as a share of the bound by RDRO's excess loss: largest of 2,000 random policies",
      expected=1, relation="at most",
      measured=float((0.5 * (policy - p).abs().sum(1) / bound).max()))

# %% [markdown]
# ### On-policy pairs: the premise for free
#
# *Where would a reference be exactly the mixture?* Draw two responses from it, let a judge pick one. Each response drawn is chosen or rejected, so half of $p_+$ plus half of $p_-$ is $\pi_{ref}$, whoever judges: $\alpha=\frac12$. With $W(y)$ the win rate of $y$ against $\pi_{ref}$,
#
# $$p_+(y)=2\,\pi_{ref}(y)\,W(y),\qquad r_{1/2}(y)=2\,W(y).$$
#
# The relative density ratio **is twice the win rate**. No scores, no Bradley–Terry; the ceiling $1/\alpha=2$ is the response that always wins.

# %%
crowd = FiniteWorld.random(1, 8, seed=0, judge="mixed")  # two groups that disagree: no scores fit
judges = [crowd] + [FiniteWorld.random(3, 8, seed, judge) for judge in ("cyclic", "random")
                    for seed in (1, 2)]
errors = [(one.population_minimiser("rdro", alpha=0.5) / one.reference
           - 2 * one.win_rate_of_responses()).abs().max() for one in judges]
claim("11.twice", "derived in the course; any judge",
      "on-policy pairs: RDRO's policy over the reference is 2 W (largest error, five judges)",
      expected=0, measured=float(max(errors)), tolerance=1e-9)
betas = [0.1, 0.25, 0.5, 1, 2, 3, 4, 8]
gaps = [crowd.kl(crowd.preferred_distribution(), crowd.population_minimiser("dpo", beta=beta))
        for beta in betas]
print("KL(p+ || DPO):", {beta: round(gap, 4) for beta, gap in zip(betas, gaps)})
claim("11.dpo", "derived in the course: DPO has another target",
      "on-policy pairs judged by a crowd: how far DPO's limit stays from p+, best of 8 betas (nats)",
      expected=0.001, relation="at least", measured=min(gaps))

# %% [markdown]
# DPO comes nearest between β = 2 and 4, not at the usual 0.1. That is no accident: for weak preferences $2W\approx1+2(W-\frac12)\approx e^{s/2}$ with Bradley–Terry scores $s$ (centred), which is DPO's target at β = 2. Smaller β is not worse; it aims beyond $p_+$.
#
# *And how much can one round win?* The win rate of $p_+$ over $\pi_{ref}$ is $E_{p_+}W=2E[W^2]$. Think of three draws, judged in pairs: $E[W^2]$ is the probability that the first beats both others. Only one of three can. So $3E[W^2]\le1$, and $p_+$ wins at most **two games in three**.

# %%
upper = torch.rand(2_000, 6, 6, generator=generator, dtype=torch.float64).triu(1)
judge = upper + (1 - upper).transpose(1, 2).tril(-1) + torch.eye(6, dtype=torch.float64) / 2
ref = torch.softmax(draws[0], dim=-1)
wins = (judge @ ref[:, :, None])[:, :, 0]
claim("11.two_thirds", "derived here",
      "on-policy pairs: win rate of p+ over the reference, the largest of 2,000 random judges",
      expected=2 / 3, relation="at most", measured=float((2 * ref * wins**2).sum(1).max()))
ranks = torch.arange(200.0, dtype=torch.float64)
strict = FiniteWorld(torch.full((1, 200), 1 / 200), torch.sign(ranks[:, None] - ranks)[None] / 2 + 0.5,
                     ranks[None])
target = strict.preferred_distribution()
print(f"a judge never in doubt, 200 responses: p+ wins {strict.win_rate(target):.4f}, and differs "
      f"from best-of-2 by {strict.total_variation(target, strict.best_of_n(2)):.4f}")

# %% [markdown]
# $p_+$ is the judge's **best of two**, blurred by its doubts. So one round of RDRO on pairs is a careful step, and its target is fixed by the data: there is no knob to go farther. That is what lesson 12 iterates.
#
# ## 4 · Break it on purpose
#
# **The premise.** The same data, share 0.39, but the reference is something else. The loss still asks for $r_\alpha=p_+/p_{mix}$, so the policy goes towards $\pi_{ref}\,r_\alpha$, as near as a distribution can come (where $E_{ref}[r_\alpha]\neq1$, not quite). *Predict: the reference is already $p_+$. Does RDRO stay?*

# %%
references = {"uniform": torch.full((1, 5), 0.2).double(), "p-": minus,
              "0.7 p+ + 0.3 p-": 0.7 * plus + 0.3 * minus, "p+ (SFT on the chosen)": plus,
              "SFT on everything": share * plus + (1 - share) * minus}
after = {}
for name, ref in references.items():
    found = world.population_minimiser("rdro", alpha=share, reference=ref)
    after[name] = abs(world.kl(plus, found))
    total = float((ref * plus / world.reference).sum())
    print(f"{name:23} KL(p+ || .): {abs(world.kl(plus, ref)):.4f} -> {after[name]:.4f}   "
          f"E_ref[r] = {total:.3f}")
claim("11.uniform", "planning figures of the course",
      "a uniform reference in place of the mixture: KL(p+ || RDRO), one five-response world",
      expected=0.0056, measured=after["uniform"], tolerance=5e-5)
claim("11.chosen_first", "practice: SFT on the chosen, then align",
      "p+ itself as the reference, not the mixture: RDRO leaves p+ by (nats, five responses)",
      expected=0.01, relation="at least", measured=after["p+ (SFT on the chosen)"])
claim("11.everything_first", "derived here",
      "perfect SFT on chosen and rejected gives the mixture as reference: KL(p+ || RDRO)",
      expected=0, measured=after["SFT on everything"], tolerance=1e-9)

# %% [markdown]
# It does not stay: it multiplies by $r_\alpha$ once more. The common recipe, SFT on the *chosen* and then align, hands RDRO the wrong reference even in the limit of infinite data. SFT on **everything** hands it the right one. In the authors’ example the responses are GPT-3.5's and the reference is Llama-3.1-8B-Instruct: no mixture of them. RDRO may still help there; the proof is silent.
#
# *Can you notice?* If the premise holds, then $E_{ref}[h]=\alpha E_+[h]+(1-\alpha)E_-[h]$ for **every** statistic $h$ of a response.

# %% [markdown] exercise="11.2" part="task" stars=2 minutes=10
# ### Test the premise
# You have values of one statistic $h$ (length, or $\log\pi_{ref}(y)$) on samples of the reference, on preferred and on rejected responses. Return the gap, reference minus mixture, in units of its standard error.

# %% exercise="11.2" part="stub"
def premise_z(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    """How many standard errors E_ref[h] lies from alpha E+[h] + (1 - alpha) E-[h]."""
    raise NotImplementedError


# %% exercise="11.2" part="check"
check("11.2", premise_z)

# %% [markdown] exercise="11.2" part="hints"
# 1. Three independent means: the variance of a mean is `x.var() / len(x)`.
# 2. A weight $w$ on a mean multiplies its variance by $w^2$.
# 3. Add the three variances, then take the root.

# %% exercise="11.2" part="solution"
def premise_z(of_ref: Tensor, of_preferred: Tensor, of_rejected: Tensor, alpha: float) -> float:
    gap = of_ref.mean() - alpha * of_preferred.mean() - (1 - alpha) * of_rejected.mean()
    variance = of_ref.var() / len(of_ref) + alpha**2 * of_preferred.var() / len(of_preferred)
    return float(gap / (variance + (1 - alpha) ** 2 * of_rejected.var() / len(of_rejected)).sqrt())


check("11.2", premise_z)

# %% tags=["nbval-ignore-output"]
texts = pocket.load_world("bradley_terry")  # 24,576 responses of its reference are shipped
base = texts.draw(pocket.load("base")[0], per_prompt=40, seed=1).features.double()
own, other = JudgedTexts(texts.reference_features), JudgedTexts(base.reshape(24, 40, 9))
for name, source in (("own pairs", own), ("base model's", other)):
    up, down = source.piles(300, seed=1)
    z = [lesson.premise_z(own.features[:, i], up[:, i], down[:, i], 0.5) for i in range(9)]
    print(f"{name:13}", dict(zip(pocket.FEATURE_NAMES, [round(value, 1) for value in z])))

# %% [markdown]
# Nine features of texts, 300 judged pairs: drawn from the pocket reference, or from the *base* model it was tuned from. They refute the wrong premise, and leave the right one alone (of nine, one beyond ±3 comes by chance once in forty; here a little oftener, since the two of a pair share a prompt and so are not quite independent). The test sees only what $h$ sees: take several.
#
# **The wrong α.** The reference is the mixture, and the loss is told another share. The slider showed the direction; how dear is it, and is it dearer to say too much or too little?

# %%
told = lambda a, where=world: kl(where.preferred, where.population_minimiser("rdro", alpha=a)).abs()
print({a: round(float(told(a)), 4) for a in (0.1, 0.2, 0.3, 0.39, 0.5, 0.6, 0.8)}, "KL(p+ || .)")
many = FiniteWorld.from_mixture(*lesson.random_mixtures(200, 8, 2.0, seed=5), share)
much = statistics.mean_interval(told(share + 0.15, many) - told(share - 0.15, many))
claim("11.alpha", "this course",
      "true share 0.39: RDRO told 0.15 too much loses more than 0.15 too little (KL, 200 worlds)",
      expected=0, relation="at least", measured=much.estimate, interval=much)

# %% [markdown]
# **The pooled-mean trap.** The authors say: set α to the preferred fraction π of the data. Most trainers say: average the batch. Together they weigh the classes by π and 1 − π, and the stationary ratio is
#
# $$r=\frac{\pi\,p_+}{\pi\alpha\,p_++(1-\pi)(1-\alpha)\,p_-},$$
#
# which is $r_\alpha$ only if $\pi=\frac12$. At $\pi=\alpha$ the share is counted **twice**: by α, where it belongs, and by the mean, where it does not.

# %%
trap = {}
for t, fraction in ((0.5, 0.5), (0.39, 0.5), (0.39, 0.39), (0.2, 0.2), (0.8, 0.8)):
    found = mixed(t).population_minimiser("rdro", alpha=t, reduction="pooled", fraction=fraction)
    distances = [abs(world.kl(plus, found)), world.total_variation(plus, found)]
    trap[t, fraction] = [*distances, mixed(t).total_variation(plus)]
    print(t, fraction, "KL {:.4f}, TV {:.3f} (untrained {:.3f})".format(*trap[t, fraction]))

# %%
claim("11.trap_39", "planning figures of the course",
      "RDRO with a pooled mean, alpha = preferred fraction = 0.39: KL(p+ || .)",
      expected=0.0194, measured=trap[0.39, 0.39][0], tolerance=5e-5)
claim("11.trap_20", "planning figures of the course",
      "RDRO with a pooled mean, alpha = preferred fraction = 0.2: TV from p+",
      expected=0.396, measured=trap[0.2, 0.2][1], tolerance=5e-4)
errors = [float((mixed(t).population_minimiser(name, alpha=t) - plus).abs().max())
          for t in (0.2, 0.39, 0.8) for name in ("rdro", "rdro_pooled")]
claim("11.mended", "derived here",
      "class-wise means, or rdro_pooled: the minimiser is p+ again (largest error, three alphas)",
      expected=0, measured=max(errors), tolerance=1e-9)

# %% [markdown]
# At one preferred response in five, the pooled loss keeps most of the distance it started with, with infinite data, and no training curve would tell.
#
# Two ways out. *Weights* $1/\pi$ and $1/(1-\pi)$ give `classwise_mean`, for any data. *A loss made for one mean* has them multiplied in, for π = α: $\mathrm{sp}(l)+\mathrm{sp}(-l)/\alpha$ for preferred, $\mathrm{sp}(l)$ for rejected: `objectives.rdro_pooled`.

# %% [markdown] exercise="11.3" part="task" stars=2 minutes=10
# ### Mend a trainer that takes one mean
# Return one weight per response, so that `(weights * loss).mean()` is $E_+[\text{loss}]+E_-[\text{loss}]$, the sum of the two class means.

# %% exercise="11.3" part="stub"
def mending_weights(preferred: Tensor) -> Tensor:
    """Weights that turn one plain mean into the sum of two class means."""
    raise NotImplementedError


# %% exercise="11.3" part="check"
check("11.3", mending_weights)

# %% [markdown] exercise="11.3" part="hints"
# 1. Write both out as sums: $\frac1N\sum w_i\,\text{loss}_i$ against $\frac1{n_+}\sum_++\frac1{n_-}\sum_-$.
# 2. So a preferred response needs $w=N/n_+$.
# 3. `preferred.double().mean()` is $n_+/N$.

# %% exercise="11.3" part="solution"
def mending_weights(preferred: Tensor) -> Tensor:
    share = preferred.double().mean()
    return torch.where(preferred, 1 / share, 1 / (1 - share))


check("11.3", mending_weights)

# %% [markdown] exercise="11.4" part="task" stars=3 minutes=30 open=true
# ### A share that depends on the prompt
# Easy prompts get 80 % thumbs up, hard ones 20 %; each prompt's reference is its own mixture. You train one RDRO with class-wise means over all data and α = 0.5. Is $p_+$ still the minimiser at each prompt? If not, mend it. And why do on-policy pairs not have the problem?

# %% [markdown] exercise="11.4" part="hints"
# 1. The class means weigh a prompt by its share *within the class*: $\frac{t_x}{\bar t}$ and $\frac{1-t_x}{1-\bar t}$. Redo the derivative of section 1.
# 2. What does the stationary ratio sum to under the reference?
# 3. Which loss of this lesson needs only one mean?

# %% [markdown] exercise="11.4" part="solution"
# A good answer finds the stationary ratio $\frac{t_x}{\bar t}\cdot\frac{p_+}{p_{ref}}$ at prompt $x$: right up to a factor that the normalisation must undo, so the minimiser is not $p_+$ (it computes by how much, on two prompts). It mends it with `rdro_pooled` at $\alpha_x=t_x$ and one mean, where the prompt's weights are $t_x$ and $1-t_x$ and everything cancels; it says that $t_x$ must then be estimated, with few thumbs per prompt, and what shrinking it towards the mean does. On-policy pairs give one chosen and one rejected to each prompt: $t_x=\frac12$ everywhere.

# %% [markdown]
# ## 5 · On the bench with the others
#
# **Finite samples.** Thirty responses, 20 random worlds whose $p_+$ and $p_-$ hardly overlap, reference = mixture, share 0.39. We solve each loss *exactly* on the counts (a Lagrange multiplier and bisection, see `lesson.minimiser`), so optimisation plays no part. The control is SFT: the observed frequencies of the preferred.
#
# *Predict the order at n = 10,000.* One extra contestant: DDRO with $r<1/t$ at **every** response, not only where a rejected one was seen.
#
# Then the crowd of section 3, where DPO and KTO can take part, each helped by an oracle: DPO by the β whose limit is nearest to $p_+$, KTO (it has no minimiser inside) by the nearest point of its path.

# %%
sizes = [100, 1_000, 10_000, 100_000]
goal, bad = lesson.random_mixtures(20, 30, 0.15, seed=0)
generator = torch.Generator().manual_seed(1)
up = torch.cat([lesson.fractions(goal, int(share * n), generator) for n in sizes])
down = torch.cat([lesson.fractions(bad, n - int(share * n), generator) for n in sizes])
mixture = (share * goal + (1 - share) * bad).repeat(4, 1)
apart = {}
for name, method, walled in (("sft", "sft", False), ("ddro", "ddro", False),
                             ("walled", "ddro", True), ("rdro", "rdro", False)):
    found = lesson.minimiser(method, up, down, mixture, share, walled)
    apart[name] = (0.5 * (found - goal.repeat(4, 1)).abs().sum(1)).reshape(4, 20).T
target, ref = crowd.preferred_distribution()[0], crowd.reference[0]
generator = torch.Generator().manual_seed(2)
wins = torch.cat([lesson.pair_fractions(ref, crowd.preference[0], 20, n, generator) for n in sizes])
chosen, rejected = wins.sum(2), wins.sum(1)
best_beta = betas[int(np.argmin(gaps))]
policies = {"sft": chosen, "dpo": lesson.dpo_minimiser(wins, ref, best_beta),
            "ddro": lesson.minimiser("ddro", chosen, rejected, ref.expand_as(chosen), 0.5),
            "rdro": lesson.minimiser("rdro", chosen, rejected, ref.expand_as(chosen), 0.5)}
pairs = {name: 0.5 * (policy - target).abs().sum(1) for name, policy in policies.items()}
pairs["kto"] = lesson.kto_nearest(chosen, rejected, ref, target)
pairs = {name: distances.reshape(4, 20).T for name, distances in pairs.items()}

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=5.2, height=3.8)
shift = {True: {"walled": 0.75, "rdro": 1.15},
         False: {"rdro": 0.72, "dpo": 0.82, "kto": 1.2, "ddro": 1.0, "sft": 1.4}}
for axes, table in ((left, apart), (right, pairs)):
    for name, distances in table.items():
        look = plots.look("ddro" if name == "walled" else name)
        style = look.line() | ({"linestyle": ":", "marker": "^"} if name == "walled" else {})
        rows = [statistics.mean_interval(column) for column in distances.T]
        axes.loglog(sizes, [row.estimate for row in rows], **style)
        low, high = [row.low for row in rows], [row.high for row in rows]
        plots.interval_band(axes, sizes, low, high, look.color)
        text = {"walled": "DDRO, wall everywhere", "sft": "SFT"}.get(name, look.label)
        plots.label(axes, sizes[-1], rows[-1].estimate * shift[axes is left].get(name, 1), text,
                    look.color)
    axes.set(xlim=(80, 6e6), ylim=(1.1e-3, 0.3), xticks=sizes)
left.set(xlabel="n, both classes together", ylabel="distance to p+ (TV)")
left.set_title("p+ and p− hardly overlap (20 worlds)")
right.set(xlabel="pairs", title="on-policy pairs, a crowd (20 repeats)")
plots.show(drawn, alt="""Distance to p+ against sample size, log-log, 95 % bands. Left: RDRO and
    DDRO with a wall everywhere fall together along a line of slope minus one half; SFT runs
    parallel at about twice the distance; plain DDRO stays near 0.1 and falls late. Right: RDRO
    and DDRO fall together, SFT above them; DPO and KTO level off near 0.04.""")

# %%
at = sizes.index(10_000)
for name, expected, slack in (("rdro", 0.0083, 0.0015), ("sft", 0.019, 0.0025), ("ddro", 0.131, 0.015)):
    found = statistics.mean_interval(apart[name][:, at])
    claim(f"11.apart_{name}", "planning figures, 20 other worlds (slack set after a first run)",
          f"p+ and p- hardly overlap, n = 10,000: TV of {plots.look(name).label} to p+ (20 worlds)",
          expected=expected, measured=found.estimate, interval=found, tolerance=slack)
same = statistics.paired_bootstrap(apart["walled"][:, at], apart["rdro"][:, at]).difference
claim("11.walled", "this course: the missing ceiling is DDRO's loss of data, not its ratio",
      "DDRO held at r <= 1/t everywhere errs no more than RDRO (TV difference, n = 10,000, 20 worlds)",
      expected=0, relation="at most", measured=same.estimate, interval=same)
rate = statistics.log_log_slope(sizes, apart["rdro"].numpy(), seed=0).over_repeats
saved = float(apart["sft"][:, at].mean() / apart["rdro"][:, at].mean()) ** 2
print(f"at n = 10,000 SFT would need {saved:.1f} times the data to err as little as RDRO")
claim("11.rate", "theory of M-estimators",
      "p+ and p- hardly overlap: RDRO's TV to p+ falls as this power of n (20 worlds)",
      expected=-0.5, measured=rate.estimate, interval=rate)

# %% [markdown]
# RDRO needs about a quarter of SFT's data: it also reads the rejected, and knows the reference. Plain DDRO stays behind, though solved *exactly* (the planning figure was not). What mends it is the ceiling $r\le1/t$ where no rejected response happened to be seen: there DDRO's preferred slope never turns. With it, DDRO errs a little *less* than RDRO. **The ceiling is knowledge**: $p_-\ge0$. Right, classes overlap: RDRO leads at 100 pairs, later the two tie; DPO and KTO aim elsewhere.
#
# **On the pocket model**: 80 updates on 1,536 pairs of its own responses, one learning rate for all (of two tried with one seed); DDRO continued along its tangent past the wall. Controls: SFT on the chosen, the untouched reference.

# %%
ratio = own.truth
print(f"p+ itself: win rate {float((ratio**2).mean() / 2):.3f}, largest ratio {ratio.max():.2f}")
print(f"reference: KL(p+ || .) {runs[0]['kl_start']:.3f}, win rate .500")
column = lambda arm, name: statistics.mean_interval([run[name] for run in of_arm(arm)])
for arm in lesson.ARMS:
    past = statistics.mean_interval([run["looks"][-1]["past_chosen"] for run in of_arm(arm)])
    print(f"{plots.look(arm).label:18} KL {column(arm, 'kl'):.3f}  "
          f"win rate {column(arm, 'win_rate'):.3f}  "
          f"chosen above log 2: {past.estimate:.1%}")
largest = lambda arm: [math.log10(max(run["gradient"])) for run in of_arm(arm)]
factor = statistics.paired_bootstrap(largest("ddro"), largest("rdro")).difference
claim("11.gradient", "Takahashi et al. (2026), abstract: DDRO is unstable, its ratio often diverges",
      "pocket model: largest gradient of a run, DDRO over RDRO, tenfold or more (log10, 5 seeds)",
      expected=1, relation="at least", measured=factor.estimate, interval=factor)
ends = {arm: [run["kl"] for run in of_arm(arm)] for arm in lesson.ARMS}
for other in ("ddro", "sft", "dpo"):
    gap = statistics.paired_bootstrap(ends["rdro"], ends[other]).difference
    name = plots.look(other).label + (" (beta 1)" if other == "dpo" else "")
    claim(f"11.pocket_{other}", "this course",
          f"pocket model, one learning rate: RDRO ends nearer to p+ than {name} (KL, 5 seeds)",
          expected=0, relation="at most", measured=gap.estimate, interval=gap)

# %% [markdown]
# Clipping saves DDRO from the jumps, and pays: a clipped batch follows one response. DPO, here at β = 1, wins **more** games than $p_+$ itself, and ends about as far from it as the reference began. It has another task. If you want the judge's best, RDRO's target is too modest; if you want what was preferred, DPO overshoots. Some chosen responses pass log 2 under every method, though the truth has none: shared weights carry them. Judge by eye:

# %% tags=["nbval-ignore-output"]
draws = [texts.draw(per_prompt=1, seed=seed) for seed in range(5)]  # the same random numbers
start = [[one.prompts[row], one.responses[row]] for one in draws for row in (2, 10, 18)]
after = [row for run in of_arm("rdro") for row in run["texts"]]
changed = [number for number in range(15) if start[number] != after[number]]
print(f"{15 - len(changed)} of 15 texts stay the same to the letter; three that do not:\n")
for heading, shown in (("BEFORE", start), ("AFTER RDRO", after)):
    print(heading + "\n")
    texts.show([shown[number] for number in changed[:3]])

# %% [markdown]
# ## When to use it
#
# When you have thumbs up and down, and want **what was preferred**, no more: RDRO has no β to tune, no wall, and its answer does not depend on a preference model. On-policy pairs make the premise exact. With data from elsewhere, do SFT on everything first, test the premise, set α to the preferred share, average by class.
#
# Not when you want to climb beyond $p_+$ in one round, or have preferred responses only: then SFT is the same idea. And where $p_+$ and $p_-$ overlap well, DDRO and RDRO estimate equally well (at $t=\frac12$ with equal classes DDRO *is* maximum likelihood); what is left to RDRO is the calm.
#
# ## What we measured

# %%
ledger.rows("11")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | hardly anything is learnt, α small | the pooled-mean trap: class-wise means, or `rdro_pooled` |
# | `one-class-batch` | a batch without one class: its mean does not exist; draw both |
# | the policy leaves good responses it started with | the reference was tuned on the chosen alone: the premise is false |
# | log-ratios never pass a nat | saturation at log(1/α): that is the target, not a bug |
# | log-ratios of tens of nats | token means instead of sums: the ceiling then holds for each token |
# | “larger α is safer” | it pulls to the reference, and costs more than a small one |

# %% [markdown]
# ## References
#
# - H. Takahashi et al. (2026). *Relative density ratio optimization*, arXiv 2604.04410. RDRO; abstract and README only: theorems and tables were not accessible, so none is quoted. The loss is derived here.
# - R. Higuchi, T. Suzuki (2025), arXiv 2505.07558: DDRO, lesson 10.
# - M. Yamada et al. (2011), arXiv 1106.4729: the relative ratio, lesson 09.
# - M. Sugiyama, T. Suzuki, T. Kanamori (2012). *Density Ratio Estimation in Machine Learning*: the Bregman family.
# - K. Ethayarajh et al. (2024), arXiv 2402.01306: KTO. R. Rafailov et al. (2023), arXiv 2305.18290: DPO.
#
# ## Next
#
# **12 · Iterating**: two thirds a round, and then again: the win rate becomes fitness.
