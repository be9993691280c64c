# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "EXO: which divergence do you minimise?", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 06 · EXO: which divergence do you minimise?
#
# DPO and reinforcement learning have one optimum and two ways to miss it. EXO promises RL's way at DPO's price. This lesson measures when the promise
# holds: which policy, how many responses at a time, which version of the loss, and from which start.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. write the alignment target as a divergence, in both directions, and derive EXO-rw, DPO-rw and BRAIn from it;
# 2. say when the direction matters, and show it with one Gaussian and two modes;
# 3. measure how many responses a group needs before EXO's gradient is RL's;
# 4. tell EXO-pref from what its name suggests: compute the margin at which it stops, and find IPO inside it.

# %% [markdown]
# ## Prerequisites
#
# Lesson 04 (DPO and its target), the Kullback–Leibler divergence. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>Which policy maximises E r − β KL(π ‖ π_ref)?</summary>π* = π_ref exp(r/β) / Z.</details>
# <details><summary>KL(p ‖ q): what happens where p > 0 and q is nearly 0? And where q > 0 and p is nearly 0?</summary>It explodes; it costs nearly nothing.</details>
#
# *Not covered:* references that move (07), the general family of f-divergences, and on-policy training (03, 08).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math

import torch
from torch import Tensor

from course_utils import experiments, ledger, objectives, plots, preferences, statistics
from course_utils.experiments import lesson_06 as family
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.policies import GaussianPolicy
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% [markdown]
# A world with 61 responses on a line. Good answers live near −2 (share 0.6) and near +2 (share 0.4); in between there is nothing worth saying. The reference is wide, and the reward is such that, at $\beta=1$, the target
# $\pi^*=\pi_{ref}\,e^{r}/Z$ is exactly those two humps. The policy: a table, which can say everything, or *one* Gaussian, which cannot.

# %%
x = torch.linspace(-6, 6, 61, dtype=torch.float64)


def shape(mean, sd):
    return torch.softmax(-0.5 * ((x - mean) / sd) ** 2, -1)


target, ref = 0.6 * shape(-2, 0.6) + 0.4 * shape(2, 0.6), shape(0, 3)
world = FiniteWorld.from_rewards(ref, (target / ref).log())
tables = {name: world.population_minimiser(name, group_size=2)[0] for name in ("exo_rw", "dpo_rw")}
pairs, groups = (preferences.draw_groups(world, 48_000 // K, K, seed=0) for K in (2, 64))
# %% tags=["figure"]
canvas, panels = plots.figure(3, width=3.9, sharey=True)
violet, blue = plots.look("exo_rw").color, plots.look("dpo").color
titles = ("a table, pairs: they agree", "one Gaussian, pairs: both wide",
          "one Gaussian, groups of 64: apart")
curves = [tables] + [{name: shape(*family.best_gaussian(world, x, name, drawn)[1:])
                      for name in tables} for drawn in (pairs, groups)]
places = [((-1.5, 0.115), (-1.5, 0.1)), ((0.2, 0.062), (2.8, 0.026)), ((-1.5, 0.115), (2.8, 0.026))]
for axes, title, curve, (first, second) in zip(panels, titles, curves, places):
    axes.fill_between(x, target, color="#dddddd", linewidth=0)
    axes.plot(x, curve["exo_rw"], color=violet)
    axes.plot(x, curve["dpo_rw"], color=violet, linestyle=":", linewidth=2.5)
    plots.label(axes, *first, "EXO-rw", violet)
    plots.label(axes, *second, "DPO-rw (dotted)", violet)
    axes.set(title=title, xlabel="response", ylim=(0, 0.165))
plots.label(panels[0], 2.4, 0.06, "target", plots.GREY)
panels[0].set_ylabel("probability")
plots.show(canvas, alt="""Three panels with the same two-humped grey target. Left: with a table
    the curves of EXO-rw and DPO-rw lie on the target. Middle: one Gaussian trained on pairs; both
    curves are wide and cover the gap between the humps. Right: one Gaussian trained on groups of
    64; EXO-rw sits on the higher, left hump, DPO-rw is wide.""")

# %% [markdown]
# Left: where the policy can say everything, the direction of the divergence makes no difference. Right: where it cannot, EXO-rw picks the higher mode and DPO-rw covers both (two losses of section 1; with pairs, DPO-rw is DPO). The middle panel is the one usually left out: the same small
# policy, EXO in its usual form with *pairs*, and no mode is sought. By the end you can say why.

# %% [markdown]
# ## 1 · Derive
#
# *Question: what does RL minimise?* Insert $\log\pi^* = \log\pi_{ref} + r/\beta - \log Z$ into the objective of lesson 03:
#
# $$J(\pi)=E_\pi[r]-\beta\,\mathrm{KL}(\pi\|\pi_{ref})
# =\beta\,E_\pi\!\Big[\tfrac r\beta-\log\tfrac{\pi}{\pi_{ref}}\Big]=\beta\log Z-\beta\,\mathrm{KL}(\pi\,\|\,\pi^*).$$
#
# So RL minimises the **reverse** divergence: it pays for saying what $\pi^*$ would not. DPO fits $\pi$ to labels that $\pi^*$ explains, which is maximum likelihood: a **forward** divergence, between labels of pairs. The full one, $\mathrm{KL}(\pi^*\|\pi)$, pays for *not* saying
# what $\pi^*$ would. Both are zero at $\pi=\pi^*$, and only there.

# %% [markdown]
# We have no samples of $\pi^*$, and RL's own samples are costly. So take $K$ responses of the reference, and give them two distributions, what the policy says of them and what the reward says:
#
# $$p_f(i)=\operatorname{softmax}_i\Big(\beta_\pi\log\tfrac{\pi_\theta(y_i)}{\pi_{ref}(y_i)}\Big),\qquad p_r(i)=\operatorname{softmax}_i\big(r_i/\beta_r\big).$$
#
# **EXO-rw** minimises $\mathrm{KL}(p_f\|p_r)$, **DPO-rw** $\mathrm{KL}(p_r\|p_f)$ (for $K=2$: DPO, the label replaced by its probability). Either is zero only if $\beta_\pi\log(\pi_\theta/\pi_{ref})$ and $r/\beta_r$ differ by a constant in every group, so in both cases
# $\pi_\theta=\pi_{ref}\exp\big(r/(\beta_\pi\beta_r)\big)/Z$: a policy that can do that has one optimum, for every $K\ge2$.

# %% [markdown]
# *And if it cannot?* Let $K$ grow, at $\beta_\pi=1$. Since $E_{\pi_{ref}}[\pi/\pi_{ref}]=1$, the sum in the softmax tends to $K$, so $p_f(i)\to\frac1K\frac{\pi(y_i)}{\pi_{ref}(y_i)}$, and likewise
# $p_r(i)\to\frac1K\frac{\pi^*(y_i)}{\pi_{ref}(y_i)}$. Then
#
# $$\sum_i p_f(i)\log\frac{p_f(i)}{p_r(i)}\;\longrightarrow\;E_{\pi_{ref}}\Big[\frac{\pi}{\pi_{ref}}\log\frac{\pi}{\pi^*}\Big]=\mathrm{KL}(\pi\|\pi^*).$$
#
# EXO's promise, exactly RL's divergence, is a statement about large $K$. At $K=2$ the softmax compares two numbers. *Predict: how large must $K$ be?*
#
# ## 2 · Implement

# %% [markdown] exercise="06.1" part="task" stars=1 minutes=8
# ### The loss of EXO-rw
# `policy` and `ref` are log-probabilities; they and `reward` are [batch, K]. Return one divergence $\mathrm{KL}(p_f\|p_r)$ per row.

# %% exercise="06.1" part="stub"
def exo_rw(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float, beta_reward: float
) -> Tensor:
    """KL(p_f || p_r) of each group: [batch]."""
    raise NotImplementedError


# %% exercise="06.1" part="check"
check("06.1", exo_rw)

# %% [markdown] exercise="06.1" part="hints"
# 1. Work with logarithms: `torch.log_softmax(..., dim=-1)` twice.
# 2. A temperature divides the reward; an exponent multiplies the log-ratio.
# 3. The weights of the sum are the first argument of the divergence: the policy's.

# %% exercise="06.1" part="solution"
def exo_rw(
    policy: Tensor, ref: Tensor, reward: Tensor, beta_policy: float, beta_reward: float
) -> Tensor:
    log_f = torch.log_softmax(beta_policy * (policy - ref), dim=-1)
    log_r = torch.log_softmax(reward / beta_reward, dim=-1)
    return (log_f.exp() * (log_f - log_r)).sum(dim=-1)


check("06.1", exo_rw)

# %% [markdown] exercise="06.2" part="task" stars=2 minutes=12
# ### Its gradient, without autograd
# With $f_i=\beta_\pi\log(\pi_\theta/\pi_{ref})(y_i)$, return $\partial L/\partial f_i$ of EXO-rw for one or many groups. (DPO-rw's is $p_f(i)-p_r(i)$.)

# %% exercise="06.2" part="stub"
def exo_gradient(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    """dL/df, the shape of f."""
    raise NotImplementedError


# %% exercise="06.2" part="check"
check("06.2", exo_gradient)

# %% [markdown] exercise="06.2" part="hints"
# 1. For a softmax, $\partial p_i/\partial f_j = p_i(1[i=j]-p_j)$.
# 2. $\sum_i p_i\,\partial\log p_i/\partial f_j = 0$, so only the weights need differentiating.
# 3. What is left: $p_j$ times how far $\log(p_f/p_r)$ of $j$ lies above its own mean under $p_f$. That mean is $L$.

# %% exercise="06.2" part="solution"
def exo_gradient(f: Tensor, reward: Tensor, beta_reward: float) -> Tensor:
    log_f = torch.log_softmax(f, dim=-1)
    gap = log_f - torch.log_softmax(reward / beta_reward, dim=-1)
    loss = (log_f.exp() * gap).sum(dim=-1, keepdim=True)
    return log_f.exp() * (gap - loss)


check("06.2", exo_gradient)

# %% [markdown]
# Look at the factor $p_f(j)$ in front. A response that the policy has given up gets almost no gradient, however good it is: the reverse divergence forgives what is not said. DPO-rw's gradient $p_f-p_r$ keeps pulling.
#
# ## 3 · Verify against the exact optimum
#
# First the table. Losses are summed over *all* groups with their probabilities, and Newton's method finds the minimum.

# %%
small, error = FiniteWorld.random(responses=5, seed=3), 0.0
for name, K, b_policy, b_reward in [(n, *row) for n in tables for row in (
        (2, 1.0, 1.0), (3, 0.5, 0.5), (4, 0.5, 0.2))]:
    found = small.population_minimiser(name, beta_policy=b_policy, beta_reward=b_reward, group_size=K)
    error = max(error, float((found - small.rlhf_optimum(b_policy * b_reward)).abs().max()))
claim("06.shared_optimum", "Ji et al. (2024)",
      "with a table, EXO-rw and DPO-rw both reach the target, K = 2, 3, 4 (largest error)",
      expected=0, measured=error, tolerance=1e-8)

# %% [markdown]
# Now the gradient. With five responses a group of $K$ matters only through how often each response occurs, so the *exact* expected gradient is a sum over such counts (`family.expected_gradients`, twenty lines). We hold it against the
# gradient of $\mathrm{KL}(\pi\|\pi^*)$, which by the first derivation is $-\nabla J/\beta$; here $\beta=\frac12$.

# %%
instance = torch.tensor([[-0.15, -1.41, -0.16, -0.61, 2.33], [2.04, -2.56, 0.42, -0.57, -0.45],
                         [0.11, -0.18, -0.14, -0.33, -0.53]]).double()  # reference, reward, policy
one = {K: family.expected_gradients(*instance, K) for K in (2, 4, 8, 16, 32)}
for K, (exo, divergence, _) in one.items():
    length = float(exo.norm() / divergence.norm())
    print(f"K = {K:2}: cosine {family.cosine(exo, divergence):.3f}, length {length:.3f} of RL's")
gap = float((one[2][1] + 2 * one[2][2]).abs().max())
print(f"grad KL and -grad J / beta differ by {gap:.6f}")

# %%
for K in (2, 32):
    claim(f"06.cosine_{K}", "Ji et al. (2024), an asymptotic statement",
          f"one world: EXO-rw's gradient points where RL's does (cosine), K = {K}",
          expected=1, measured=family.cosine(*one[K][:2]), tolerance=0.02)
many = {K: family.cosines(K, worlds=100) for K in (2, 4, 8, 16)}
average = statistics.bootstrap_interval(many[2], seed=0)
print(f"mean cosine at K = 2 over 100 random worlds: {average}; the smallest: {min(many[2]):.2f}")

# %% [markdown]
# The word *asymptotically* carries weight: with pairs the gradient may point far from RL's, and in this world it is 2 % as long (Adam hides lengths, not directions). How bad depends on the world, so never quote one cosine alone.
#
# Now the one Gaussian. *Predict: at which $K$ does its mean jump from the middle to the left mode?*

# %%
Ks, means = [2, 4, 6, 8, 16, 64], {"exo_rw": [], "dpo_rw": []}
for K in Ks:
    draws = [preferences.draw_groups(world, 16_000 // K, K, seed) for seed in range(5)]
    for name, found in means.items():
        middle = [family.best_gaussian(world, x, name, drawn)[1] for drawn in draws]
        found.append(statistics.mean_interval(middle))
for slug, K in (("06.mode_4", 4), ("06.mode_16", 16)):
    found = means["exo_rw"][Ks.index(K)]
    claim(slug, "the usual reading of the two-mode figure of Ji et al. (2024)",
          f"groups of {K}: EXO-rw's best Gaussian sits on the higher mode (its mean, 5 seeds)",
          expected=-2, measured=found.estimate, interval=found, tolerance=0.1)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9)
for name, found in means.items():
    left.plot(Ks, [m.estimate for m in found], **plots.look(name).line())
    plots.interval_band(left, Ks, [m.low for m in found], [m.high for m in found], violet)
for height, name in ((-2, "higher mode"), (2, "lower mode")):
    left.axhline(height, color=plots.GREY, linestyle=":")
    plots.label(left, 2, height + 0.2, name, plots.GREY, xytext=(0, 0))
plots.label(left, 16, -1.75, "EXO-rw", violet)
plots.label(left, 16, -0.05, "DPO-rw", violet)
left.set(xscale="log", xlabel="responses in a group, K", ylabel="mean of the best Gaussian")
left.set(title="the jump (5 seeds)", ylim=(-2.4, 2.6))
right.plot(list(many), list(many.values()), color=plots.GREY, alpha=0.15, linewidth=1)
line = [family.cosine(exo, divergence) for exo, divergence, _ in one.values()]
right.plot(list(one), line, **plots.look("exo_rw").line())
plots.label(right, 8, 0.82, "the printed world", violet)
plots.label(right, 5.5, 0.55, "100 random worlds", plots.GREY)
right.set(xscale="log", xlabel="responses in a group, K", title="cosine to RL's gradient")
for axes, ticks in ((left, [2, 4, 8, 16, 32, 64]), (right, [2, 4, 8, 16, 32])):
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
plots.show(drawn, alt="""Left: mean of the best Gaussian against group size. DPO-rw drifts from
    -0.1 to -0.4; EXO-rw follows it up to K = 4, then jumps to -2, the higher mode. Right: the
    cosine of EXO-rw's gradient to that of RL rises to one with K in 100 worlds; at K = 2 it lies
    between 0.4 and 1.""")

# %% [markdown]
# It is a jump, between 4 and 6 here, because two minima trade places. For a pair with margins $m$ (policy) and $m^*$ (reward) both directions are $\frac12\sigma'(m^*)(m-m^*)^2$ to second order: the direction enters only beyond it. A second reason, plausible though not measured here: two responses from the empty middle are often compared with each other alone; only a large group puts them beside both modes at once, where they look as bad
# as they are. One target, one reference: expect the jump elsewhere in yours.
#
# ## 4 · Break it on purpose
#
# **The start.** So far we took the *best* of several minima. Training takes the nearest.

# %%
exact = GaussianPolicy(0.0, math.log(3.0), grid=x)  # the reference itself: where training starts
rule = torch.optim.SGD(exact.parameters(), lr=0.05)
for _ in range(2000):
    rule.zero_grad()
    policy = exact.log_probabilities()[0]
    (policy.exp() * (policy - target.log())).sum().backward()
    rule.step()
print(f"exact KL(policy || target): mean {exact.mean.item():.2f}, sd {exact.log_sd.exp().item():.2f}")
claim("06.start", "the mode-seeking picture, taken as a statement about training",
      "EXO-rw, K = 64, started at the reference, ends on the higher mode (its mean)",
      expected=-2, tolerance=0.1,
      measured=family.best_gaussian(world, x, "exo_rw", groups, starts=((0, 3),))[1])

# %% [markdown]
# Even the exact reverse divergence has a local minimum that covers both modes, and the reference lies in its basin. "Mode-seeking" describes the best solution, not the one you get.
#
# **EXO-pref.** With labelled pairs and no rewards, EXO takes a smoothed label: $1-\varepsilon$ for the chosen, $\varepsilon$ for the rejected. With $m=\beta h$, the margin of DPO:
#
# $$L=\mathrm{KL}\big(\mathrm{Bern}(\sigma(m))\,\|\,\mathrm{Bern}(1-\varepsilon)\big).$$
#
# *Predict: if the judge prefers $a$ with probability $P$, which margin does it learn? DPO learns $\operatorname{logit}P$.*

# %% [markdown]
# Write $c=\log\frac{1-\varepsilon}{\varepsilon}$. As $\sigma'=\sigma(1-\sigma)$ and $\log\sigma(m)-\log\sigma(-m)=m$,
#
# $$\frac{dL}{dm}=\sigma(m)\,\sigma(-m)\,(m-c),\qquad\text{and for the flipped label}\quad\sigma(m)\,\sigma(-m)\,(m+c).$$
#
# Weight them with $P$ and $1-P$: the sum vanishes at $m=(2P-1)\,c$. Why not $\operatorname{logit}P$? A forward divergence averages the *labels*; a reverse one averages their *log-odds*, $Pc+(1-P)(-c)$. And $(m-c)$ is IPO's gradient: EXO-pref is IPO with each pair weighted by $\sigma(m)\sigma(-m)$.

# %% [markdown] exercise="06.3" part="task" stars=2 minutes=8
# ### The margin at which EXO-pref stops
# The judge prefers the first of two responses with probability `preference`. Return the margin $m=\beta h$ with the smallest expected loss.

# %% exercise="06.3" part="stub"
def exo_margin(preference: Tensor, label_smoothing: float) -> Tensor:
    """The margin of EXO-pref's minimum for each preference probability."""
    raise NotImplementedError


# %% exercise="06.3" part="check"
check("06.3", exo_margin)

# %% [markdown] exercise="06.3" part="hints"
# 1. Set the weighted sum of the two gradients to zero; the factor σ(m)σ(−m) is never zero.
# 2. At P = 1/2 the margin must be 0, at P = 1 it must be c.
# 3. c is the log-odds of the smoothed label, a positive number.

# %% exercise="06.3" part="solution"
def exo_margin(preference: Tensor, label_smoothing: float) -> Tensor:
    c = math.log((1 - label_smoothing) / label_smoothing)
    return (2 * preference - 1) * c


check("06.3", exo_margin)

# %%
error = 0.0
for P in (0.55, 0.7, 0.9):
    two = FiniteWorld([[0.5, 0.5]], torch.tensor([[0.5, P], [1 - P, 0.5]], dtype=torch.float64))
    margin = float(torch.logit(two.population_minimiser("exo_pref", beta=1.0)[0, 0]))
    print(f"P = {P}: EXO-pref stops at {margin:.3f}, DPO at logit P = {math.log(P / (1 - P)):.3f}")
    error = max(error, abs(margin - (2 * P - 1) * math.log(999)))
claim("06.margin_law", "derived here", "EXO-pref stops at (2P - 1) log((1 - eps)/eps) (largest error)",
      expected=0, measured=error, tolerance=1e-8)

goal, missed = small.rlhf_optimum(1.0), {}
for name, more in (("dpo", {}), ("exo_pref", {}), ("exo_pref", {"label_smoothing": 0.119})):
    found = small.population_minimiser(name, beta=1.0, **more)
    missed[name, *more.values()] = small.kl(goal, found)
    print(name, more, f"KL(target || policy) = {abs(small.kl(goal, found)):.4f}")
print(f"the reference, for comparison: {small.kl(goal):.4f}")
claim("06.not_bradley_terry", "what the name suggests: exact optimisation of the RLHF target",
      "with Bradley-Terry labels EXO-pref reaches the target (KL(target || policy), eps = 0.001)",
      expected=0, measured=missed["exo_pref",], tolerance=1e-6)

# %% [markdown]
# With infinite data, and a table that could represent the target, EXO-pref at the recommended ε ends *farther* from it than where it started, in this world. It exaggerates small preferences: at $P=\frac12$ its slope is $2c\approx14$, that of $\operatorname{logit}P$ is 4. So $c=2$,
# ε = σ(−2) ≈ 0.119, repairs the slope, not the curve. "Exact" belongs to EXO-rw with true rewards.
#
# **Mis-ranked pairs.** Follow the gradient as the margin of a pair goes down.

# %% tags=["figure"]
margin = torch.linspace(-12, 10, 400, dtype=torch.float64, requires_grad=True)
drawn, axes = plots.figure(width=7.0, height=3.3)
for name, more in (("dpo", {}), ("cdpo", {"label_smoothing": 1e-3}), ("exo_pref", {})):
    losses = objectives.get(name).loss(margin, *[0 * margin] * 3, beta=1.0, **more)
    (slope,) = torch.autograd.grad(losses.sum(), margin)
    look = plots.look(name)
    axes.plot(margin.detach(), -slope, color=look.color, linestyle=look.linestyle)
axes.axvline(math.log(999), color=plots.GREY, linestyle=":")
plots.label(axes, math.log(999), 1.6, "log((1 − ε)/ε)", plots.GREY)
plots.label(axes, -11.8, 1.12, "DPO and cDPO: full force", blue, xytext=(0, 0))
plots.label(axes, -11.8, 0.13, "EXO-pref: gives it up", violet, xytext=(0, 0))
plots.label(axes, 0.9, 1.55, "EXO-pref", violet)
axes.set(xlabel="margin m of the pair (negative: it is ranked wrong)")
axes.set(ylabel="push on the margin, −dL/dm", title="what one pair pulls (ε = 0.001)")
plots.show(drawn, alt="""Push of one pair on its margin. DPO and cDPO pull with force one while
    the margin is very negative and fade when it is positive; EXO-pref pulls hardest near zero,
    about 1.8, fades to nothing below minus eight, and its pull ends at log 999, about 6.9, where cDPO's
    ends too.""")

# %%
m = torch.tensor([-8.0, 0.0], dtype=torch.float64, requires_grad=True)
exo, dpo = (torch.autograd.grad(objectives.get(name).loss(m, *[0 * m] * 3, beta=1.0).sum(), m)[0]
            for name in ("exo_pref", "dpo"))
print(f"at m = -8: EXO-pref {exo[0]:.4f}, DPO {dpo[0]:.4f}; at m = 0: {exo[1]:.3f}, {dpo[1]:.3f}")
claim("06.vanishing", "derived here", "at margin -8 EXO-pref's gradient is under 1 % of DPO's (ratio)",
      expected=0.01, relation="at most", measured=float(exo[0] / dpo[0]))

h = (4 * torch.randn(200, generator=torch.Generator().manual_seed(0)).double()).requires_grad_(True)
tau = 0.3 / (2 * math.log(999))  # IPO's, for the same margin at P = 1, at beta = 0.3
exo = torch.autograd.grad(objectives.exo_pref(h, *[0 * h] * 3, beta=0.3).sum(), h)[0]
ipo = torch.autograd.grad(objectives.ipo(h, *[0 * h] * 3, tau=tau).sum(), h)[0]
weight = 0.3**2 / 2 * torch.sigmoid(0.3 * h.detach()) * torch.sigmoid(-0.3 * h.detach())
claim("06.weighted_ipo", "derived here",
      "EXO-pref's gradient is IPO's times beta^2 sigma(m) sigma(-m) / 2 (largest error, 200 pairs)",
      expected=0, measured=float((exo - weight * ipo).abs().max()), tolerance=1e-12)

# %% [markdown]
# Every margin starts at zero, so at first EXO-pref only pulls harder than DPO, about 3.5 times. The forgetting comes later, for pairs that the other pairs push down: a help if their labels are wrong, a loss if they are the hard ones.
#
# **Which ε?** The paper, says TRL, recommends 0.001. The paper's own code fixes $\log\varepsilon=-10$ with a label that does not sum to one; its `--label_smooth`, by default 0.1, reaches no loss. TRL's default is 0. And a public branch for f-PO takes the sum over a pair before the product, not after.

# %%
m = torch.linspace(0, 15, 15_001, dtype=torch.float64)
log_f = torch.nn.functional.logsigmoid(torch.stack([m, -m]))
log_label = torch.tensor([[0.0], [-10.0]], dtype=torch.float64)  # as released
released = (log_f.exp() * (log_f - log_label)).sum(0)
misplaced = (log_f.exp() * (log_f - log_label).sum(0)).mean(0)  # one bracket elsewhere
print(f"misplaced sum: loss {misplaced[0]:.1f} at m = 0, {misplaced[-1]:.1f} at m = 15, and on down")
claim("06.smoothing_code", "released code, src/align_stage/loss.py",
      "the released code stops a certain pair where the paper's eps = 0.001 does (margin)",
      expected=math.log(999), measured=float(m[released.argmin()]), tolerance=1e-3, corrected=10,
      correction="log eps is fixed at -10; --label_smooth is parsed and never used")
default, refuses = family.trl_exo_default()
claim("06.smoothing_trl", "TRL's paper index: loss_type='exo_pair', beta=0.1, no label_smoothing",
      f"the recipe runs at TRL 1.16's default label_smoothing = {default:g} (1 yes, 0 ValueError)",
      expected=1, measured=int(default > 0 or not refuses), tolerance=0)

# %% [markdown]
# Three places, three numbers, and margins of 6.9, 10 and (for 0.1) 2.2. At $\beta=0.1$ these ask for log-ratios ten times as large: at ε = 0.001, $h=69$.
#
# ## 5 · On the bench with the others
#
# **BRAIn, the forward sibling.** It takes responses from *any* proposal $q$ and weights them by importance, normalised within the group: with the prior $p$ (our $\pi_{ref}$),
#
# $$\alpha=\operatorname{softmax}_i\big(\log p+r/\gamma-\log q\big),\quad \beta=\operatorname{softmax}_i\big(\log\pi_\theta-\log q\big),\quad L=\mathrm{KL}(\alpha\|\beta).$$
#
# (α and β are the paper's letters: two distributions over the group, no temperature.) At $q=p$ this is DPO-rw. As $K$ grows it tends to $\mathrm{KL}(\pi^*\|\pi_\theta)$ for any $q$ that can draw every response. *Predict: what does normalising do to its gradient at $K=8$?*

# %%
scores = [torch.randn(100, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
          for s in range(3)]
theirs = objectives.brain(scores[0], scores[1], scores[1], scores[2], gamma=0.7)
ours = objectives.dpo_rw(scores[0], scores[1], scores[2], beta_reward=0.7)
claim("06.brain_sibling", "Pandey et al. (2024), read here",
      "with the prior as proposal, BRAIn is DPO-rw (largest difference, 100 groups)",
      expected=0, measured=float((theirs - ours).abs().max()), tolerance=1e-12)
for K in (8, 64):  # target N(0, 1); prior, policy and proposal N(1, 1)
    y = 1 + torch.randn(20_000, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    mean = torch.ones(len(y), 1, dtype=torch.float64, requires_grad=True)
    prior, reward = -0.5 * (y - 1) ** 2, 0.5 * (y - 1) ** 2 - 0.5 * y**2
    loss = objectives.brain(-0.5 * (y - mean) ** 2, prior, prior, reward).sum()
    normalised = torch.autograd.grad(loss, mean)[0][:, 0]
    unbiased = (reward.exp() * (1 - y)).mean(1)  # plain importance weights; Z = 1
    for name, values in (("BRAIn", normalised), ("plain importance weights", unbiased)):
        print(f"K = {K:2}, {name}: mean {values.mean():.3f}, variance {values.var():.3f}")

# %% [markdown]
# A small part of the variance, bought with a gradient that is too short on average; larger groups pay the bias back.
#
# **The pocket model**, a judge with a known reward, and $\beta=1$: the target is $\pi^*=\pi_{ref}\,e^{r}/Z$, and *both* divergences to it can be measured, because $Z$ is a mean over reference samples. First one run, live, read by eye.

# %% tags=["nbval-ignore-output"]
desk = pocket.load_world("bradley_terry")
policy = desk.new_policy()
texts = preferences.draw_groups(desk, 240, 8, seed=1)
settings = TrainingSettings(steps=30, batch_size=8, learning_rate=1e-3, clip_gradient=1.0)
train(policy, texts, "exo_rw", settings=settings, progress=False)
for title, model in (("BEFORE", None), ("AFTER 30 steps of EXO-rw, K = 8", policy)):
    print(f"{title}\n")
    desk.show(desk.draw(model, per_prompt=1, seed=3), 3)

# %% [markdown]
# Now seven runs over five seeds, stored. Every method gets 3,200 fresh responses, 64 in a batch, 60 steps, one learning rate: DPO and EXO-pref as judged pairs, SFT the chosen ones, the others in groups with rewards; BRAIn draws from the *base* model. *Predict: does
# the direction of the divergence show? Do rewards beat labels?*

# %% tags=["nbval-ignore-output"]
RECOMPUTE = False  # True: about 16 minutes on one core
runs = experiments.results("06_exo_family", recompute=RECOMPUTE)


def over_seeds(number, method, size=0):
    return [run[number] for run in runs if (run["method"], run.get("size", 0)) == (method, size)]


rows = [("sft", 0, "SFT"), ("dpo", 0, "DPO"), ("exo_pref", 0, "EXO-pref"),
        ("exo_rw", 2, "EXO-rw, K = 2"), ("exo_rw", 8, "EXO-rw, K = 8"),
        ("dpo_rw", 8, "DPO-rw, K = 8"), ("brain", 8, "BRAIn, K = 8")]
numbers = ("forward", "reverse", "kl_to_reference", "reward", "grammatical")
print(f"{'mean of 5 seeds':16}", *(f"{name:>16}" for name in numbers))
start = family.divergences(desk, None)  # the reference, untouched
print(f"{'the reference':16}", *(f"{start[number]:16.3f}" for number in numbers))
for method, size, name in rows:
    cells = [statistics.mean_interval(over_seeds(number, method, size)).estimate for number in numbers]
    print(f"{name:16}", *(f"{cell:16.3f}" for cell in cells))

# %% tags=["figure"]
drawn, panels = plots.figure(2, width=4.7, height=3.4, sharey=True)
titles = ("KL(π* ‖ policy): DPO's direction", "KL(policy ‖ π*): RL's direction")
for axes, number, title in zip(panels, numbers, titles):
    for place, (method, size, _) in enumerate(reversed(rows)):
        look, values = plots.look(method), over_seeds(number, method, size)
        found = statistics.bootstrap_interval(values, method="expanded")
        limits = [[found.estimate - found.low], [found.high - found.estimate]]
        axes.errorbar(found.estimate, place, xerr=limits, color=look.color,
                      marker=look.marker, capsize=3)
        axes.plot(values, [place - 0.28] * len(values), "|", color=look.color, markersize=6)
    axes.axvline(start[number], color=plots.GREY, linestyle=":")
    plots.label(axes, start[number], 6.2, "reference", plots.GREY)
    axes.set(title=title, xlabel="nats per response", xlim=(0, None), ylim=(-0.6, 6.6))
panels[0].set_yticks(range(len(rows)), [name for *_, name in reversed(rows)])
plots.show(drawn, alt="""Two panels, one for each divergence to the target, with a row for each
    method: mean, 95 % interval and the five seeds. In both, the reference is far out, SFT and DPO
    are nearer, EXO-rw with pairs nearer still, and BRAIn, EXO-rw and DPO-rw with groups of eight
    nearest. EXO-pref is far out and its seeds scatter widely.""")

# %%
def row(slug, source, number, a, b, statement, relation="at least"):
    """A claim on the paired difference a - b over the five seeds."""
    found = statistics.paired_bootstrap(over_seeds(number, *a), over_seeds(number, *b)).difference
    claim(slug, source, f"pocket model, 5 seeds: {statement}", expected=0, relation=relation,
          measured=found.estimate, interval=found)


exo, dpo_rw, dpo, exo_pref, sft = ("exo_rw", 8), ("dpo_rw", 8), ("dpo", 0), ("exo_pref", 0), ("sft", 0)
one_optimum = "derived here: one optimum, if the model can say it"
row("06.bench_reverse", one_optimum, "reverse", exo, dpo_rw,
    "EXO-rw and DPO-rw tie in KL(policy || target), K = 8 (difference)", "equals")
row("06.bench_forward", one_optimum, "forward", exo, dpo_rw,
    "EXO-rw and DPO-rw tie in KL(target || policy), K = 8 (difference)", "equals")
row("06.bench_overshoot", "derived here: the margin law", "kl_to_reference", exo_pref, dpo,
    "EXO-pref goes farther from the reference than DPO (nats)")
row("06.bench_rewards", "this course", "forward", dpo, exo,
    "groups with rewards beat labelled pairs: DPO minus EXO-rw in KL(target || policy)")
row("06.bench_control", "this course", "forward", sft, dpo,
    "DPO comes nearer to the target than SFT: SFT minus DPO in KL(target || policy)")

# %% [markdown]
# Rewards in groups beat as many labelled responses by far, and more than four bits: eight rewards say by how much. $K=8$ beats $K=2$. The direction should not matter at the optimum. After equal steps, still on the way, DPO-rw is ahead in the divergence that it minimises; in EXO's own the interval only just holds zero, and leans DPO-rw's way. So on this model, at this length of training, EXO's
# direction buys nothing. EXO-pref overshoots, as derived, and its seeds scatter most. SFT helps, and aims at another target: the distribution of chosen responses. One learning rate for all: another might turn neighbours round.

# %% [markdown] exercise="06.4" part="task" stars=3 minutes=30 open=true
# ### A language model that cannot
# Make the pocket policy poor until the direction matters: freeze all but one tensor, enlarge $K$, sharpen the target. Find a setting in which EXO-rw and DPO-rw part, or show that you cannot.

# %% [markdown] exercise="06.4" part="hints"
# 1. `tensor.requires_grad_(name == "model.norm.weight")` over `policy.model.named_parameters()` leaves 96 parameters; they want a larger learning rate, near 0.03.
# 2. `family.divergences(desk, policy)` measures both divergences at $\beta=1$. To sharpen the target, give it a world whose judge's reward is multiplied.
# 3. Train both to the end before you compare, with the same groups: a slower method looks like another divergence.

# %% [markdown] exercise="06.4" part="solution"
# A good answer holds everything but the direction equal, shows that both runs have converged (twice the steps change nothing), and predicts the sign first: EXO-rw ahead in KL(π‖π*), DPO-rw ahead in KL(π*‖π). It gives the paired differences in *both*, over at least five seeds, with
# intervals. In a trial run with one seed, even the 96 parameters of the last norm came close to the target, so a negative result is a full answer. Look at texts too: a lost mode shows as few distinct responses to a prompt.

# %% [markdown]
# ## When to use it
#
# EXO-rw where you trust a reward, can score large groups, the policy is too small for the target and one mode is wanted: seen here for a Gaussian, not for a language model. Elsewhere DPO-rw did as well. BRAIn when the responses come from another model. EXO-pref when labels are nearly certain: otherwise it is a saturating IPO.
#
# **In TRL 1.16**: `DPOConfig(loss_type="exo_pair", label_smoothing=1e-3, beta=…)`. `beta` is $\beta_\pi$ (the paper index says $\beta_r$, which EXO-pref does not have); `label_smoothing` is ε; above ½ it reverses the preference, unchecked. There is no EXO-rw and no BRAIn. TRL 0.9 and 0.24 set ε = 0.001 silently.
#
# ## What we measured

# %%
ledger.rows("06")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | "EXO is mode-seeking", said of pairs | that is large $K$, and the best of several minima |
# | `ValueError: Label smoothing must be …` | `exo_pair` at TRL's default; set 0.001 |
# | margins far beyond DPO's | they aim at $c/\beta$: 69 nats at β = 0.1 |
# | some pairs never learn | far below zero a margin feels no gradient: fewer steps, larger ε, or DPO |
# | a loss just below zero | the label does not sum to one |
# | a loss that falls for ever | a sum in the wrong place |
# | the policy learns the opposite | a copied formula with $\log(\pi_{ref}/\pi_\theta)$ in the sigmoid: the ratio is upside down |

# %% [markdown]
# ## References
#
# - H. Ji et al. (2024). *Towards Efficient Exact Optimization of Language Model Alignment.* arXiv 2402.00856; eq. (16), as TRL cites it, is EXO-pref. Code: haozheji/exact-optimization, `src/align_stage/loss.py`.
# - G. Pandey et al. (2024). *BRAIn.* arXiv 2402.02479.
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, eq. (4), the target, and (7), the loss.
# - M. G. Azar et al. (2023), arXiv 2310.12036, eq. (17): IPO.
# - TRL, pull request 1735; `dpo_trainer.py` and `dpo_config.py` of 1.16.0.
#
# ## Next
#
# **07 · References that move**: the other half of the target, $\pi_{ref}$, need not stand still.
