# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Alignment as distribution learning", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 08 · Alignment as distribution learning
#
# Suppose that behind the preferences stands a language model, and alignment means finding it. Then PMLE, preference distillation and reverse KL find it, and DPO and RLHF do not. Change one
# line about where the labels come from, and it is the other way round. This lesson measures both.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. write down two data models for the same labels, and say which methods are consistent under which;
# 2. derive PMLE, preference distillation and reverse KL, and the point at which each of them ends;
# 3. explain the plateau of RLHF and the $1/n$ line, with the constant of each;
# 4. say what comparisons can never tell you, and what could.

# %% [markdown]
# ## Prerequisites
#
# Lessons 01, 03 and 04. About 90 minutes with the exercises. Test yourself:
#
# <details><summary>Which policy maximises E r − β KL(π ‖ π_ref)?</summary>π_ref exp(r/β) / Z.</details>
# <details><summary>Comparisons fix Bradley–Terry rewards up to what?</summary>One constant for each prompt.</details>
#
# *Not covered:* judges without a reward (04, 14), and bounds for finite classes of policies: the paper's theorems carry constants like $e^{4R}$; here we measure rates.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import torch
from torch import Tensor

from course_utils import experiments, ledger, plots, preferences, statistics
from course_utils.experiments import lesson_08 as bench
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import TrainingSettings, train
from course_utils.worlds import minimisers, pocket
from course_utils.worlds.finite import FiniteWorld

GAMMA = 0.5
RECOMPUTE = False  # True trains the seventy pocket policies of section 5 again: about 25 minutes

# %% [markdown]
# The world of the paper's figure 1: ten prompts with ten responses each, a wanted model $\pi^*$ and a reference $\pi_{ref}$, both a softmax of small random numbers. Two
# responses of the reference are compared. The judge goes by what $\pi^*$ says often, or by what $\pi^*$ says more often *than the reference does*: **two data models**, one line of code.
#
# *Predict: who finds $\pi^*$ under which?*

# %%
def draw_models(seed, prompts=10, responses=10, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, prompts, responses, generator=generator, dtype=torch.float64)
    return torch.softmax(scale * logits, -1)  # the wanted model, the reference


def world_of(truth, ref, data_model):  # beta of the reward model is GAMMA too
    goes_by = truth.log() if data_model == "language model" else (truth / ref).log()
    return FiniteWorld.from_rewards(ref, GAMMA * goes_by)


sizes, found = [4**k for k in range(5, 12)], {}
for name in ("language model", "reward"):
    rows = []
    for seed in statistics.seeds(8, 20):
        truth, ref = draw_models(seed)
        world = world_of(truth, ref, name)
        rows.append(bench.learning_curves(world, truth, sizes, GAMMA, seed))
    found[name] = torch.tensor(rows).double()  # seeds, sizes, (RLHF, reverse KL, PMLE, DPO, reference)

# %% tags=["figure"]
drawn, panels = plots.figure(2, width=5.6, height=4.3, sharey=True)
lines = ((0, "rlhf"), (1, "reverse_kl"), (2, "pmle"), (3, "dpo"))
words = (((1.2e3, 0.07, "PMLE", "pmle"), (8e4, 0.014, "DPO, β = γ", "dpo"),
          (7e5, 0.0031, "RLHF, best β", "rlhf"), (1.5e3, 0.0024, "reverse KL, best β", "reverse_kl")),
         ((1.2e3, 0.04, "DPO, β = γ", "dpo"), (1.5e5, 0.0135, "PMLE", "pmle"),
          (5e3, 0.0021, "RLHF, best β", "rlhf"), (3.2e5, 0.0018, "reverse KL, best β", "reverse_kl")))
for axes, name, made, texts in zip(panels, found, ("π*", "π*/π_ref"), words):
    for which, method in lines:
        look, columns = plots.look(method), found[name][:, :, which].T
        rows = [statistics.mean_interval(column) for column in columns]
        axes.loglog(sizes, columns.mean(1), **look.line())
        plots.interval_band(axes, sizes, [r.low for r in rows], [r.high for r in rows], look.color)
    axes.axhline(float(found[name][:, 0, 4].mean()), color=plots.GREY, linestyle=":")
    plots.label(axes, 7e5, 0.0108, "the reference", plots.GREY, va="bottom", xytext=(0, 0))
    axes.loglog(sizes, [360 / n for n in sizes], color=plots.INK, linestyle=":", linewidth=1)
    for n, height, text, method in (*texts, (4e5, 2.4e-4, "360/n", "truth")):
        plots.label(axes, n, height, text, plots.look(method).color, xytext=(0, 0))
    axes.set(title=f"labels from {made}", xlabel="comparisons (means of 20 seeds)", ylim=(5e-5, 1))
panels[0].set_ylabel("KL(π* ‖ policy)")
plots.show(drawn, alt="""Two log-log panels: KL to the wanted model against comparisons, 20 seeds. Labels
    from pi*: PMLE and reverse KL fall as 360/n, RLHF and DPO level off at half the reference's distance.
    Labels from pi* over pi_ref: DPO and RLHF fall as 360/n, PMLE and reverse KL level off.""")

# %% [markdown]
# Left, the paper's picture: RLHF flattens at a **plateau**, though an oracle picks its β, and DPO joins it there; PMLE and reverse KL go on as $1/n$. Right: other labels, the same truth. Now
# DPO and RLHF follow the line, and PMLE stops at the same height as DPO on the left; reverse KL stops too, lower, because its pull brings part of the reference back.
#
# **Whoever says "consistent" must say under which data model.** Note also where the lines cross the reference: up to tens of thousands of comparisons, the consistent methods
# without an oracle are *worse* than doing nothing.

# %% [markdown]
# ## 1 · Derive
#
# *Question: what do labels know?* Bradley–Terry labels, $P(a\succ b)=\sigma(r_a-r_b)$, fix $r$ up to a constant per prompt. A **data model** says what $r$ is made of:
#
# $$\text{language model: } r=\gamma\log\pi^*\qquad\qquad\text{reward: } r=\beta\log\frac{\pi^*}{\pi_{ref}}.$$
#
# Solve for $\pi^*$: it is $e^{r/\gamma}/Z$ in the first, $\pi_{ref}\,e^{r/\beta}/Z$ in the second. The first is equation (2) of Yun et al.; the second is RLHF's target, which DPO assumes.
# Both are Bradley–Terry, and any $r$ at all fits either.

# %% [markdown]
# Put a policy in the place of $\pi^*$ and take the likelihood of the labels. The reward model gives DPO; the language model gives **PMLE** (their equation 4):
#
# $$L=-\log\sigma\Big(\gamma\log\frac{\pi_\theta(y_w)}{\pi_\theta(y_l)}\Big).$$
#
# **Preference distillation** (11) first fits a reward model $\hat r$, then replaces the label by its probability $\hat q=\sigma(\hat r_1-\hat r_2)$, and fits coin to coin:
# $L=\mathrm{KL}\big(\mathrm{Bern}(\hat q)\,\|\,\mathrm{Bern}(q_\pi)\big)$, $q_\pi=\sigma\big(\gamma\log\frac{\pi_\theta(y_1)}{\pi_\theta(y_2)}\big)$.

# %% [markdown]
# **Reverse KL** (15) asks for $\pi^*$ directly. In the first model $\gamma\log\pi^*=r-\gamma\log Z$, so
#
# $$\gamma\,\mathrm{KL}(\pi\|\pi^*)=E_\pi[\gamma\log\pi-r]+\gamma\log Z=E_\pi[-r]-\gamma H(\pi)+\text{const}.$$
#
# That is reinforcement learning with an entropy bonus; no normaliser is needed. In practice a pull $\beta\,\mathrm{KL}(\pi\|\pi_{ref})$ is added. *Predict: where does it end then, and for which γ is it RLHF?* Collect the logarithms:
#
# $$E_\pi\big[(\beta+\gamma)\log\pi-\beta\log\pi_{ref}-r\big]=(\beta+\gamma)\,\mathrm{KL}(\pi\|q)+\text{const},\quad q\propto\pi_{ref}^{\beta/(\beta+\gamma)}e^{r/(\beta+\gamma)}.$$
#
# It ends at $q$. With $\gamma=0$ that is RLHF's target, the whole reference; with $\beta=0$ it is $e^{r/\gamma}/Z$, none of it.

# %% [markdown] exercise="08.1" part="task" stars=1 minutes=8
# ### Preference distillation
# `policy_1` and `policy_2` are log-probabilities of two responses, the rewards those of a reward model. Return one divergence per pair.

# %% exercise="08.1" part="stub"
def distillation_loss(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float
) -> Tensor:
    """KL(Bern(q_hat) || Bern(q_pi)) of each pair."""
    raise NotImplementedError


# %% exercise="08.1" part="check"
check("08.1", distillation_loss)

# %% [markdown] exercise="08.1" part="hints"
# 1. $\mathrm{KL}(\mathrm{Bern}(q)\|\mathrm{Bern}(p))=q\log\frac qp+(1-q)\log\frac{1-q}{1-p}$.
# 2. γ multiplies the policy's difference, not the reward's.
# 3. `logsigmoid(z)` and `logsigmoid(-z)` are the logarithms of a coin's two sides.

# %% exercise="08.1" part="solution"
def distillation_loss(
    policy_1: Tensor, policy_2: Tensor, reward_1: Tensor, reward_2: Tensor, gamma: float
) -> Tensor:
    label, margin = reward_1 - reward_2, gamma * (policy_1 - policy_2)
    log, q = torch.nn.functional.logsigmoid, torch.sigmoid(label)
    return q * (log(label) - log(margin)) + (1 - q) * (log(-label) - log(-margin))


check("08.1", distillation_loss)

# %% [markdown]
# **And under the other data model?** A table can match the log-odds of the labels exactly, so at its optimum
#
# $$\text{DPO: }\beta\log\frac{\pi}{\pi_{ref}}=r+c,\qquad\qquad\text{PMLE: }\gamma\log\pi=r+c.$$
#
# Insert the reward that the *other* one assumes:
#
# $$\pi_{\text{DPO}}\propto\pi_{ref}\,(\pi^*)^{\gamma/\beta},\qquad\qquad\pi_{\text{PMLE}}\propto\Big(\frac{\pi^*}{\pi_{ref}}\Big)^{\beta/\gamma}.$$
#
# One multiplies by a reference that nobody asked for, the other divides by it. RLHF ends where DPO does; distillation, and reverse KL at $\beta=0$, where PMLE does. Can another β or γ mend
# it? $\pi_{ref}(\pi^*)^s\propto\pi^*$ says $\pi_{ref}\propto(\pi^*)^{1-s}$: only if the reference is itself a power of $\pi^*$, and the other asks the same. The uniform one is: power zero.

# %% [markdown]
# ## 2 · Implement
#
# All three are in the package. PMLE is DPO with a flat reference. Reverse KL learns from the policy's own samples, and no gradient passes through sampling; so the code returns a *surrogate*, whose gradient, cost times $\nabla\log\pi$, is right on average (03).
#
# *Predict: given the same comparisons and a table for a policy, how far apart do the three end?*

# %%
truth, ref = draw_models(seed=0)
wins = bench.count_pairs(world_of(truth, ref, "language model"), 16_384, seed=0)
trained = bench.pmle_of_counts(wins, GAMMA)  # by its own loss, without a reward model
told = FiniteWorld.from_rewards(ref, bench.fitted_reward(wins, pull=1e-9))  # a reward model
ends = [told.population_minimiser(m, gamma=GAMMA) for m in ("preference_distillation", "reverse_kl")]
claim("08.one_estimate", "derived here", expected=0, tolerance=1e-8,
      statement="a table: PMLE, distillation, reverse KL (beta = 0) end alike (largest difference)",
      measured=max(float((trained - end).abs().max()) for end in ends))

# %% [markdown] exercise="08.2" part="task" stars=2 minutes=12
# ### The gradient of reverse KL
# For a table, the expectation is a sum. Return the exact gradient of $E_\pi[\gamma\log\pi-r]$ in the logits of $\pi=\mathrm{softmax}$, without autograd.

# %% exercise="08.2" part="stub"
def reverse_kl_gradient(logits: Tensor, reward: Tensor, gamma: float) -> Tensor:
    """The gradient, the shape of logits."""
    raise NotImplementedError


# %% exercise="08.2" part="check"
check("08.2", reverse_kl_gradient)

# %% [markdown] exercise="08.2" part="hints"
# 1. Hold the cost $c_y=\gamma\log\pi_y-r_y$ constant: its own gradient has mean zero.
# 2. $\partial\pi_y/\partial z_k=\pi_y(1[y=k]-\pi_k)$.
# 3. The result is $\pi_k\,(c_k-E_\pi c)$.

# %% exercise="08.2" part="solution"
def reverse_kl_gradient(logits: Tensor, reward: Tensor, gamma: float) -> Tensor:
    policy = torch.softmax(logits, dim=-1)
    cost = gamma * policy.log() - reward
    return policy * (cost - (policy * cost).sum(dim=-1, keepdim=True))


check("08.2", reverse_kl_gradient)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# A small world with five responses and larger differences. The expected loss is a sum over all pairs, and Newton's method finds its minimum: no training, no noise. First the language-model data.

# %%
truth, ref = draw_models(seed=1, prompts=3, responses=5, scale=1.0)
labels = {name: world_of(truth, ref, name) for name in ("language model", "reward")}
no_reference = {"pmle": {}, "preference_distillation": {}, "reverse_kl": {"beta": 0.0}}
with_reference = {"dpo": {}, "reverse_kl": {"gamma": 0.0}}  # the second is RLHF


def largest_error(data_model, methods, expected, **settings):
    ends = [labels[data_model].population_minimiser(name, **own, **settings)
            for name, own in methods.items()]
    return max(float((end - expected / expected.sum(-1, keepdim=True)).abs().max()) for end in ends)


claim("08.find_it", "Yun et al. (2025), eq. 4, 11, 15",
      "labels from pi*: PMLE, distillation, reverse KL at beta = 0 end at pi* (largest error)",
      expected=0, tolerance=1e-8,
      measured=largest_error("language model", no_reference, truth, gamma=GAMMA))
claim("08.miss_it", "derived here",
      "labels from pi*: DPO, RLHF end at pi_ref pi*^(gamma/beta)/Z, beta = .25, .5, 1 (largest error)",
      expected=0, tolerance=1e-8, measured=max(largest_error(
          "language model", with_reference, ref * truth ** (GAMMA / b), beta=b) for b in (0.25, 0.5, 1)))

# %% [markdown]
# Now the labels of the other data model, with $\beta=\gamma$. And the family between: reverse KL with a pull. It has a useful disguise: $\gamma\log\pi+\beta\log\frac{\pi}{\pi_{ref}}=(\beta+\gamma)\log\frac{\pi}{\pi_{ref}}+\gamma\log\pi_{ref}$, so it is RLHF at temperature $\beta+\gamma$ for
# the reward $r-\gamma\log\pi_{ref}$. Any RLHF code can run it.

# %%
mirrored = max(largest_error("reward", with_reference, truth, beta=GAMMA),
               largest_error("reward", no_reference, truth / ref, gamma=GAMMA))
claim("08.mirror", "derived here",
      "labels from pi*/pi_ref: DPO, RLHF end at pi*, the other three at pi*/pi_ref/Z (largest error)",
      expected=0, measured=mirrored, tolerance=1e-8)
world, off = labels["language model"], 0.0
for beta in (0.1, 0.5, 2.0):
    end = world.population_minimiser("reverse_kl", gamma=GAMMA, beta=beta)
    smooth = torch.softmax((beta * ref.log() + world.reward) / (beta + GAMMA), -1)
    disguised = world.rlhf_optimum(beta + GAMMA, reward=world.reward - GAMMA * ref.log())
    off = max(off, float((end - smooth).abs().max()), float((disguised - smooth).abs().max()))
claim("08.smoothing", "Yun et al. (2025), appendix B",
      "reverse KL ends at pi_ref^(b/(b+g)) exp(r/(b+g))/Z, and so does RLHF in disguise (largest error)",
      expected=0, measured=off, tolerance=1e-8)

# %% [markdown]
# **Why the plateau?** In logarithms, RLHF can only end on the line $\log\pi_{ref}+s\log\pi^*$, $s=\gamma/\beta$: it may learn as much of $\pi^*$ as it likes, and forgets nothing of the reference. Near the uniform distribution KL is half a mean square. Let $u=\log\pi_{ref}$ and
# $v=\log\pi^*$, centred, with equal variance $\sigma^2$ and unrelated. Then
#
# $$\mathrm{KL}(\pi^*\|\pi)\approx\tfrac12\overline{(v-u-sv)^2}=\tfrac12\big((1-s)^2+1\big)\sigma^2.$$
#
# At $s=0$, the reference: $\sigma^2$. At best, $s=1$: half of it. Here $\sigma^2=0.1^2\cdot\frac9{10}$.

# %%
plateau, at, start = [], [], []
grid = torch.logspace(-2, 2, 801).double()
for seed in statistics.seeds(9, 30):
    wanted, given = draw_models(seed)
    ten = world_of(wanted, given, "language model")
    least, best = bench.least_kl(ten, wanted, torch.ones_like(grid), ten.reward, grid)
    plateau.append(least), at.append(float(grid[best])), start.append(ten.kl(wanted))
height = statistics.mean_interval(plateau)
print(f"the reference: {statistics.mean_interval(start).estimate:.2e}; best beta: "
      f"{statistics.mean_interval(at).estimate:.2f}; half of sigma^2: {0.5 * 0.1**2 * 0.9:.2e}")
claim("08.plateau", "ten other worlds like figure 1 of Yun et al. (2025), computed for this course",
      "labels from pi*: KL(pi* || RLHF) with the exact reward and the best beta (30 worlds)",
      expected=4.35e-3, measured=height.estimate, interval=height)

# %% [markdown]
# **Why $1/n$, and why 360?** One comparison of $a$ and $b$ carries information $p(1-p)\,(e_a-e_b)(e_a-e_b)^\top$ about the rewards. Near uniform $p(1-p)=\frac14$, and $a,b$ are independent (one pair in ten says nothing: $a=b$), so on average it is
#
# $$H_1=\tfrac14\cdot\tfrac2A\Big(I-\tfrac1A\mathbf 1\mathbf 1^\top\Big)=\tfrac1{2A}P,$$
#
# with $P$ the projection that removes a common shift. A prompt gets $n/X$ of them, so $\operatorname{Cov}\hat r=\frac{X}{n}\,2A\,P$.

# %% [markdown]
# The policy is $\hat\pi\propto e^{\hat r/\gamma}$, so errors of $\log\pi$ are those of $\hat r$ over γ. To second order, KL is half their variance under $\pi^*$, which near uniform is the mean of their squares. With $\operatorname{tr}P=A-1$:
#
# $$E\,\mathrm{KL}(\pi^*\|\hat\pi)\approx\tfrac12\cdot\tfrac1A\cdot\tfrac1{\gamma^2}\cdot\tfrac{2AX}{n}(A-1)=\frac{X(A-1)}{\gamma^2\,n}.$$
#
# Linear in $1/n$, because KL is quadratic in an error of order $1/\sqrt n$. Here $10\cdot9/0.25=360$. Mind the $1/\gamma^2$.

# %%
pmle = found["language model"][:, :, 2]
slope = statistics.log_log_slope(sizes[2:], pmle[:, 2:], seed=0).over_repeats
claim("08.slope", "Yun et al. (2025), theorems 4 and 7: rate 1/n",
      "labels from pi*: KL(pi* || PMLE) falls as n to the power -1, from 16,384 on (20 seeds)",
      expected=-1, measured=slope.estimate, interval=slope)
constant = statistics.mean_interval(sizes[-1] * pmle[:, -1])
claim("08.constant", "derived here: X(A-1)/gamma^2",
      "labels from pi*: n KL(pi* || PMLE) at n = 4,194,304 comparisons (20 seeds)",
      expected=360, measured=constant.estimate, interval=constant)
mirror = statistics.mean_interval(sizes[-1] * found["reward"][:, -1, 3])
claim("08.constant_mirror", "derived here: X(A-1)/beta^2",
      "labels from pi*/pi_ref: n KL(pi* || DPO) at n = 4,194,304 comparisons (20 seeds)",
      expected=360, measured=mirror.estimate, interval=mirror)
start = found["language model"][:, :, 4]
for i, n in enumerate(sizes):
    print(f"n = {n:9,}: PMLE {float(pmle[:, i].mean()):.4f}, reference {float(start[:, i].mean()):.4f}")
worse = statistics.paired_bootstrap(pmle[:, 2], start[:, 2]).difference
claim("08.small_n", "a reading of consistency in the paper's range (n up to 65,536)",
      "labels from pi*, n = 16,384: KL(pi* || PMLE) less that of the untouched reference (20 seeds)",
      expected=0, relation="at most", measured=worse.estimate, interval=worse)

# %% [markdown]
# Consistent is not the same as better: $360/n$ meets the reference's $\sigma^2$ at $n=360/0.009=40{,}000$, well inside the paper's range (these twenty worlds happen to lie a little farther from their references). What reverse KL with the best β gains over PMLE
# at small $n$ is the pull towards the reference, and the oracle that picked β looked at the truth.
#
# In a table the three methods are one estimator. They part where policies share weights: PMLE has only the labelled pairs, distillation can score any pair, reverse KL samples where the policy is.

# %% [markdown] exercise="08.3" part="task" stars=3 minutes=20
# ### What a nat costs
# Away from uniform the constant changes. For one prompt, labels from $\pi^*$, and pairs of independent responses of `ref`, return the asymptotic mean of $n\,\mathrm{KL}(\pi^*\|\hat\pi)$, PMLE's price, exactly.

# %% exercise="08.3" part="stub"
def price(truth: Tensor, ref: Tensor, gamma: float) -> Tensor:
    """The limit of n KL(truth || estimate): one number."""
    raise NotImplementedError


# %% exercise="08.3" part="check"
check("08.3", price)

# %% [markdown] exercise="08.3" part="hints"
# 1. Information about the rewards: off the diagonal $-2\,\pi_{ref}(a)\,\pi_{ref}(b)\,p_{ab}(1-p_{ab})$; its rows sum to zero.
# 2. The covariance is its pseudo-inverse (01).
# 3. $\frac12\operatorname{tr}\big((\operatorname{diag}\pi^*-\pi^*\pi^{*\top})\operatorname{Cov}\big)/\gamma^2$: half a variance under $\pi^*$.

# %% exercise="08.3" part="solution"
def price(truth: Tensor, ref: Tensor, gamma: float) -> Tensor:
    p = torch.sigmoid(gamma * (truth.log()[:, None] - truth.log()[None, :]))
    weight = (2 * torch.outer(ref, ref) * p * (1 - p)).fill_diagonal_(0)
    information = torch.diag(weight.sum(1)) - weight
    spread = torch.diag(truth) - torch.outer(truth, truth)
    return 0.5 * torch.trace(spread @ torch.linalg.pinv(information)) / gamma**2


check("08.3", price)

# %% [markdown]
# ## 4 · Break it on purpose
#
# **Under the wrong data model.** Infinitely many labels, the small world, each method with $\beta=\gamma$. *Predict: does a better fit to the labels warn you?*

# %%
fits = {}
for data_model, w in labels.items():
    for name in ("pmle", "dpo"):
        own = {"gamma" if name == "pmle" else "beta": GAMMA}
        end = w.population_minimiser(name, **own)
        fits[data_model, name] = float(w.population_loss(name, end.log(), **own)), abs(w.kl(truth, end))
        loss, distance = fits[data_model, name]
        print(f"labels: {data_model:14}  {name:4}: loss {loss:.6f}, KL(pi* || policy) {distance:.4f}")
print(f"the reference, for comparison: KL {world.kl(truth):.4f}")
claim("08.same_fit", "derived here",
      "a table: PMLE and DPO fit either model's labels equally well (largest difference of losses)",
      expected=0, tolerance=1e-10,
      measured=max(abs(fits[name, "pmle"][0] - fits[name, "dpo"][0]) for name in labels))

# %% [markdown]
# In a table no number of comparisons can warn you. Both methods explain Bradley–Terry labels as well as anything can: any $r$ is $\gamma\log$ of *some* model, and $\beta\log$ of some other
# over the reference. Which of the two you want is not in the data. It is a decision about a **base measure**: does the reward count relative to everything that can be said, or to what
# the reference would say?
#
# **Two more settings that no comparison fixes**: γ, and the pull towards the reference that the paper's runs add and its theorems leave out. Labels hold PMLE with a curvature of order
# $\gamma^2$, so what counts is $\beta/\gamma^2$; on summaries the paper has $10^{-5}/0.01^2=0.1$.

# %%
world = labels["language model"]
for guess in (0.25, 0.5, 1.0):
    end = world.population_minimiser("pmle", gamma=guess)
    power = torch.softmax(GAMMA / guess * truth.log(), -1)
    print(f"gamma taken as {guess:4}: KL {abs(world.kl(truth, end)):.4f}; "
          f"distance from pi*^(true/guess): {float((end - power).abs().max()):.6f}")
like = minimisers.expectation(world, "pmle", gamma=GAMMA)
pulled = {}
for ratio in (0.01, 0.1, 1.0):
    end = minimisers.minimise_rows(
        lambda l, c=ratio * GAMMA**2: like(l) + c * (l.exp() * (l - ref.log())).sum(-1), ref.log())
    pulled[ratio] = world.kl(truth, end)
    print(f"beta / gamma^2 = {ratio:4}: KL(pi* || policy) {pulled[ratio]:.6f}")
claim("08.pull", "eq. 5 as run (table 5), read with theorem 4, which has no pull",
      "labels from pi*: PMLE with a pull of beta = 0.1 gamma^2 ends at pi* (KL(pi* || policy))",
      expected=0, measured=pulled[0.1], tolerance=1e-6)

# %% [markdown]
# A wrong γ is a wrong temperature. The pull biases: it buys sanity in small samples, and must shrink as data grow.
#
# ## 5 · On the bench with the others
#
# **Texts.** One target, $\pi^*=\pi_{ref}\,e^{r}/Z$ with the true judge's $r$, and two judges who both know it: one labels by $\tau\log\pi^*$, the other by $\tau\log\frac{\pi^*}{\pi_{ref}}=\tau r$; $\tau=\frac12$. First live: distillation before the first judge.

# %% tags=["nbval-ignore-output"]
inn = pocket.load_world("bradley_terry")
judge, policy = bench.Labelled(inn, "language model"), inn.new_policy()
texts = preferences.draw_groups(judge, 480, 2, seed=1)
settings = TrainingSettings(steps=20, batch_size=24, learning_rate=1e-3, clip_gradient=1.0)
train(policy, texts, "preference_distillation", gamma=bench.TAU, settings=settings, progress=False)
for title, model in (("BEFORE", None), ("AFTER 20 steps of preference distillation", policy)):
    print(f"{title}\n")
    inn.show(inn.draw(model, per_prompt=1, seed=3), 3)

# %% [markdown]
# Then six methods, which differ in two things only: what they learn from, and whether the reference stands under the policy. All are told τ, and get 40 steps of 48 responses; five seeds,
# stored. SFT on the chosen is the control. *forward* is $\mathrm{KL}(\pi^*\|\pi)$, *reverse* $\mathrm{KL}(\pi\|\pi^*)$. The rewards are the judge's own, exact: more than a label tells. So compare *within* a column.
#
# | | labels | rewards of pairs | own samples |
# |---|---|---|---|
# | **no reference** | PMLE | distillation | reverse KL |
# | **with reference** | DPO | DPO-rw (soft labels) | RLHF |
#
# *Predict: here π\* already holds the reference. What goes wrong in the texts when it is counted twice, and when it is divided out?*

# %% tags=["nbval-ignore-output"]
runs = experiments.results("08_two_data_models", recompute=RECOMPUTE)


def over_seeds(number, data_model, method):
    return [run[number] for run in runs if (run["data_model"], run["method"]) == (data_model, method)]


names = {"pmle": "PMLE", "preference_distillation": "distillation", "reverse_kl": "reverse KL",
         "dpo": "DPO", "dpo_rw": "DPO-rw, K = 2", "rlhf": "RLHF", "sft": "SFT"}
numbers = ("forward", "reverse", "entropy", "words", "reward", "grammatical")
start = bench.measured(inn, None)
print(f"{'mean of 5 seeds':16}" + "".join(f"{number:>12}" for number in numbers))
print(f"{'the reference':16}" + "".join(f"{start[number]:12.3f}" for number in numbers))
for data_model in labels:
    print(f"labels: {data_model}")
    for method, name in names.items():
        cells = [sum(over_seeds(number, data_model, method)) / 5 for number in numbers]
        print(f"  {name:14}" + "".join(f"{cell:12.3f}" for cell in cells))

# %% tags=["figure"]
drawn, panels = plots.figure(2, width=4.9, height=3.6, sharey=True)
for axes, data_model, made in zip(panels, labels, ("π*", "π*/π_ref")):
    for place, method in enumerate(reversed(names)):
        look, values = plots.look(method), over_seeds("forward", data_model, method)
        mean = statistics.bootstrap_interval(values, method="expanded")
        limits = [[mean.estimate - mean.low], [mean.high - mean.estimate]]
        axes.errorbar(mean.estimate, place, xerr=limits, color=look.color, marker=look.marker,
                      capsize=3)
        axes.plot(values, [place - 0.28] * len(values), "|", color=look.color, markersize=6)
    axes.axvline(start["forward"], color=plots.GREY, linestyle=":")
    plots.label(axes, start["forward"], 6.45, "reference", plots.GREY)
    axes.axhspan(3.5, 6.8, color=plots.PALETTE["pink"], alpha=0.06, linewidth=0)
    axes.axhspan(0.5, 3.5, color=plots.PALETTE["blue"], alpha=0.06, linewidth=0)
    axes.set(title=f"labels from {made}", xlabel="KL(π* ‖ policy), nats per response")
    axes.set(xlim=(0, None), ylim=(-0.6, 6.8))
panels[0].set_yticks(range(7), list(reversed(names.values())))
plots.show(drawn, alt="""Two panels, a row for each method: mean KL to one target, 95 % interval, five
    seeds. Labels from pi*: PMLE, distillation and reverse KL lie left of the untouched reference, DPO,
    DPO-rw and RLHF far to the right of it. Labels from pi* over pi_ref: DPO, DPO-rw and RLHF lie left of
    it, PMLE on it, distillation touching it, reverse KL far to the right. SFT: a little right, then
    left.""")

# %%
def row(slug, data_model, worse, better, source="derived here: 08.miss_it and 08.mirror", **more):
    """A claim on the paired difference of KL(pi* || policy) over the five seeds."""
    a, b = (over_seeds("forward", data_model, method) for method in (worse, better))
    gap = statistics.paired_bootstrap(a, b).difference
    made = {"language model": "pi*", "reward": "pi*/pi_ref"}[data_model]
    statement = (f"pocket model, labels from {made}: KL(pi* || {names[worse]}) minus "
                 f"KL(pi* || {names[better]}) (nats, 5 seeds)")
    claim(slug, source, statement, expected=0, relation="at least",
          measured=gap.estimate, interval=gap, **more)
    return gap


row("08.bench_labels", "language model", "dpo", "pmle")
row("08.bench_labels_mirror", "reward", "pmle", "dpo")
row("08.bench_samples", "language model", "rlhf", "reverse_kl")
row("08.bench_samples_mirror", "reward", "reverse_kl", "rlhf")
said = '"consistently outperforms or matches RLHF and DPO" (abstract, v1)'
row("08.bench_abstract", "language model", "dpo", "preference_distillation", source=said)
row("08.bench_abstract_mirror", "reward", "dpo", "preference_distillation",
    source=f"{said}, if it is taken for any labels")
at_home = {"language model": ("pmle", "preference_distillation"), "reward": ("dpo", "dpo_rw")}
for name, method in ((name, method) for name, methods in at_home.items() for method in methods):
    gap = statistics.paired_bootstrap(*(over_seeds("forward", name, m) for m in ("sft", method)))
    print(f"labels: {name}: SFT minus {names[method]}: {gap.difference}")

# %% tags=["nbval-ignore-output"]
for data_model, method in (("language model", "dpo"), ("reward", "pmle")):
    print(f"{names[method].upper()}, labels: {data_model}\n")
    inn.show([tuple(text) for text in over_seeds("texts", data_model, method)[0]], 3)

# %% [markdown]
# The same six methods, one target; only the judge's rule has changed, and each method's place with it. Counted twice, the reference sharpens: DPO's texts become short and alike, and all
# three end *farther* from the target than no training. Divided out, it flattens: texts grow long and odd, entropy climbs, most with reverse KL, which goes looking for them; PMLE and, just, distillation tie with no training.
#
# SFT stays behind every method at home, behind DPO only just. Reverse KL on the left and RLHF on the right nearly agree: they are one algorithm, section 3's disguise, and only rounding parts them. One learning rate,
# one τ, told to everybody: neighbours may change places elsewhere.

# %% [markdown] exercise="08.4" part="task" stars=3 minutes=30 open=true
# ### Which data model? Ask demonstrations
# Comparisons cannot choose the base measure. Samples of $\pi^*$ can. Given comparisons (so $\hat r$) and $m$ demonstrations, fit $\pi\propto\pi_{ref}^{\,a}\,e^{b\hat r}$ by maximum likelihood: $a=0$ is the language model, $a=1$ the reward. How many demonstrations tell them apart, in the small world and in the 10 × 10 one?

# %% [markdown] exercise="08.4" part="hints"
# 1. It is an exponential family with two features, $\log\pi_{ref}$ and $\hat r$: the gradient is observed mean minus expected mean.
# 2. $b$ is $1/\gamma$ or $1/\beta$; leave it free, or a wrong temperature will look like a wrong $a$.
# 3. The Fisher information of $a$, after $b$ is fitted, tells how many demonstrations you need before you simulate.

# %% [markdown] exercise="08.4" part="solution"
# A good answer derives the standard error of $a$ from the covariance of the two features under $\pi^*$, predicts $m$, and confirms it with repeats in *both* data models. In the 10 × 10
# world $\log\pi_{ref}$ has variance near $0.009$, so a standard error of one half needs about 500 demonstrations if $r$ is made of $\pi^*$, and twice as many if it is made of the ratio,
# which contains $-\log\pi_{ref}$; more with $\hat r$. It says what fails: if $\log\pi_{ref}$ and $r$ are nearly collinear, nothing can tell. The best answers note that $a$
# between 0 and 1 is reverse KL with $\beta/(\beta+\gamma)=a$.

# %% [markdown]
# ## When to use it
#
# Ask first what the reward is relative to. If the reference is a starting point and nothing more, choose no reference, and read for long, odd texts. If what it says is part of what you
# want, DPO or RLHF, and read for short ones, all alike. Either way you pay $1/\gamma^2$ or $1/\beta^2$ in comparisons. Distillation where a reward model is at hand, reverse KL where sampling
# is cheap, PMLE where there are only labels and many of them. On real texts nobody knows the data model: version 1 of the paper says "consistently outperforms or matches RLHF and DPO",
# version 2 "competitive with strong baselines".

# %% [markdown]
# **In TRL 1.16**: PMLE is `CPOTrainer` (in `trl.experimental.cpo`) with `loss_type="sigmoid"`, `cpo_alpha=0`, `beta`=γ; its default `cpo_alpha=1` adds SFT, and its help text for `beta` speaks of a reference that this loss does not have. Distillation is absent (`DistillationTrainer` imitates a teacher's tokens); `OnlineDPOTrainer`, with hard labels and a reference, comes nearest. Reverse KL is `RLOOTrainer` with `beta`=β+γ and the reward
# $r-\gamma\log\pi_{ref}$. `GRPOConfig.entropy_coef` is a mean over *tokens*, not $\gamma H$ of a response.

# %% [markdown]
# ## What we measured

# %%
ledger.rows("08")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | "DPO is inconsistent", or "PMLE is" | the data model is missing from the sentence |
# | equal losses, different policies | labels fix $r$, not the base measure |
# | short texts, all alike | the reference is counted twice |
# | long, odd texts, rising entropy | the reference is divided out |
# | PMLE worse than no training | few pairs, small γ: the error is near $X(A-1)/(\gamma^2n)$ |
# | PMLE's loss hardly moves at γ = 0.005 | γ scales long sums, and is the temperature of the result |
# | reverse KL wanders | the baseline leaves $\gamma\log\pi$ out: centre the whole cost |

# %% [markdown]
# ## References
#
# - J. Yun et al. (2025). *Alignment as Distribution Learning*; v2 (2026): *Beyond RLHF.* arXiv 2506.01523. Eq. (2) the data model; (4), (5) PMLE; (11) distillation; (14), (15) reverse KL; theorems 4, 6, 7; figure 1, appendices B and D.1 (silent on how pairs are drawn). No official code known.
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, eq. (4), the target, and (7), the loss.
# - H. Xu et al. (2024). *Contrastive Preference Optimization.* arXiv 2401.08417. PMLE plus SFT.
# - TRL 1.16.0: `experimental/cpo/cpo_trainer.py`, `trainer/rloo_trainer.py`, `trainer/grpo_config.py`.
#
# ## Next
#
# **09 · Estimating density ratios**: what preferences compare are ratios. There is a classical way to learn those.
