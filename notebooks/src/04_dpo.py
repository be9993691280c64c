# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "DPO: the policy is the reward model", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 04 · DPO: the policy is the reward model
#
# Lesson 03 went from a reward to a policy. Read the same formula backwards and every policy is a reward model. This lesson derives DPO twice, trains it to its exact
# optimum, compares it with TRL's number, and measures what β and the length of a text do to it.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive DPO from the RLHF optimum, and again from Bradley–Terry alone;
# 2. write its loss and gradient, and say which pairs it works on;
# 3. say what β does to the optimum and to the first step: they point opposite ways;
# 4. predict what token means do to the target;
# 5. say what DPO has learned from a judge that has no reward.

# %% [markdown]
# ## Prerequisites
#
# Lessons 01 and 03. About 90 minutes with the exercises. Test yourself:
#
# <details><summary>Which policy maximises E r − β KL(π ‖ π_ref)?</summary>π_ref exp(r/β) / Z.</details>
# <details><summary>Under Bradley–Terry, what are the log-odds that a beats b?</summary>r(a) − r(b).</details>
#
# *Not covered:* why the chosen probability can fall (05), references that move (07).

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
from course_utils.experiments import lesson_04 as pocket_runs
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import TrainingSettings, train
from course_utils.worlds import minimisers, pocket
from course_utils.worlds.finite import FiniteWorld

RECOMPUTE = False  # True trains the 25 pocket policies again: about ten minutes

# %%
answers = ["Go to bed.", "Drink warm milk.", "Avoid screens.", "Keep a rhythm.",
           "All of these.", "You are great!"]
ref = torch.tensor([0.30, 0.24, 0.20, 0.14, 0.08, 0.04], dtype=torch.float64)
r = torch.tensor([-1.0, -0.4, 0.1, 0.6, 1.2, -0.6], dtype=torch.float64)
world = FiniteWorld.from_rewards(ref[None], r[None])
inn = pocket.load_world("bradley_terry")
runs = experiments.results("04_pocket_dpo", recompute=RECOMPUTE)


def learn(loss, beta, steps, rate=5.0):
    """Gradient descent on the expected loss of all pairs of answers, from the reference."""
    w, l = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T  # every winner, every loser
    logits, how_often = ref.log().clone(), ref[w] * ref[l] * world.preference[0, w, l]
    for _ in range(steps):
        logits.requires_grad_(True)
        p = torch.log_softmax(logits, -1)
        each = loss(p[w], p[l], ref.log()[w], ref.log()[l], beta)
        (slope,) = torch.autograd.grad(how_often @ each, logits)
        logits = (logits - rate * slope).detach()
    return torch.softmax(logits, -1)


def results(method, key, beta=None, rate=None):
    """One number of every seed of a setting on the pocket model."""
    setting = (method, beta, rate)
    return torch.tensor([run[key] for run in runs
                         if (run["method"], run.get("beta"), run.get("learning_rate")) == setting])

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.7)
for steps, colour, marker in [(0, "sand", "s"), (5, "sky", "^"), (2000, "blue", "o")]:
    inside = (learn(objectives.dpo, 1.0, steps) / ref).log()
    inside = inside - ref @ inside
    left.plot(r - ref @ r, inside, marker, color=plots.PALETTE[colour], markersize=7)
    side = {0: (-0.75, 0.18), 5: (0.75, 0.32), 2000: (0.95, 1.42)}[steps]
    plots.label(left, *side, f"{steps:,} steps", plots.PALETTE[colour], xytext=(0, 0), ha="center")
left.axline((0, 0), slope=1, color=plots.INK, linestyle=":")
left.set(xlabel="true reward (mean removed)", ylabel="β log π/π_ref (mean removed)")
left.set(ylim=(-1.05, 1.7), xlim=(-1, 1.7))
left.set_title("The policy becomes the reward")
methods = [("sft", None, "SFT", plots.GREY), ("dpo", 1.0, "DPO, β = 1", plots.PALETTE["sky"]),
           ("dpo", 0.1, "DPO, β = 0.1", plots.PALETTE["blue"])]
for method, b, name, colour in methods:
    x, y = [results(method, key, b) for key in ("kl_to_reference", "win_rate")]
    right.plot(x, y, "o", color=colour)
    plots.label(right, float(x.mean()), float(y.max()), name, colour, xytext=(0, 12), ha="center")
right.axhline(0.5, color=plots.INK, linestyle=":")
right.margins(0.25, 0.22)
right.set(xlabel="KL to the reference (nats)", ylabel="win rate against the reference")
right.set_title("Pocket model: equal steps, equal pairs (5 seeds)")
plots.show(drawn, alt="""Left: implicit reward against true reward of six answers. At step 0 all are
    zero, after five steps they are part of the way, at the end all lie on the diagonal. Right: win rate
    against KL on the pocket model, five seeds each: SFT wins least and stays nearest, DPO with beta 1
    wins more, DPO with beta 0.1 wins about as often as that, farther away.""")

# %% [markdown]
# Left: nobody showed the policy a reward, only which of two answers won. At the end β times its log-ratio *is* the reward, up to a constant. Right: on a language model the same loss, with two β and
# the control, SFT on the chosen responses. By the end you can say why the left picture had to come out like this, and what moved the dots on the right.
#
# ## 1 · Derive
#
# *Question: can we reach the RLHF target without a reward model and without sampling?*
#
# **First way: invert the target.** Lesson 03 gave $\pi^*(y)=\pi_{ref}(y)\,e^{r(y)/\beta}/Z$. Take logarithms and solve for the reward:
#
# $$r(y)=\beta\log\frac{\pi^*(y)}{\pi_{ref}(y)}+\beta\log Z.$$

# %% [markdown]
# $Z=\sum_y\pi_{ref}(y)e^{r(y)/\beta}$ sums over every possible text: nobody can compute it. But it depends on the prompt alone, and Bradley–Terry sees only the *difference* of the rewards of two responses to one prompt:
#
# $$P(y_w\succ y_l)=\sigma\big(r(y_w)-r(y_l)\big)=\sigma\Big(\beta\log\frac{\pi^*(y_w)}{\pi_{ref}(y_w)}-\beta\log\frac{\pi^*(y_l)}{\pi_{ref}(y_l)}\Big).$$
#
# $\beta\log Z$ has cancelled. Put $\pi_\theta$ in the place of $\pi^*$ and take minus the log-likelihood of the labels: that is DPO,
#
# $$L=-\log\sigma(\beta h),\qquad h=\log\frac{\pi_\theta(y_w)}{\pi_{ref}(y_w)}-\log\frac{\pi_\theta(y_l)}{\pi_{ref}(y_l)}.$$

# %%
spread = []
for beta in (0.1, 1.0, 10.0):
    implied = beta * (world.rlhf_optimum(beta)[0] / ref).log()
    log_z = torch.logsumexp(ref.log() + r / beta, 0)
    print(f"β = {beta:4}: r − implied reward = {(r - implied).mean():.4f} for every answer")
    spread.append(float((r - implied - beta * log_z).abs().max()))
claim("04.inverse", "Rafailov et al. (2023), eq. (5)",
      "r = beta log(target/ref) + beta log Z: largest error, three betas",
      expected=0, measured=max(spread), tolerance=1e-10)

# %% [markdown]
# **Second way: no RLHF at all.** Assume a Bradley–Terry judge, and *choose* to write its score as $s_\theta(y)=\beta\log(\pi_\theta(y)/\pi_{ref}(y))$. Maximum likelihood (lesson 01) gives the same loss. Is that choice a restriction? No: any score $s$
# becomes such a log-ratio after a shift, $s-\beta\log Z$, and shifts cannot be seen in comparisons.
#
# What does it learn? For one pair that is labelled $a\succ b$ a fraction $P$ of the time,
#
# $$\frac{d}{dh}\big[-P\log\sigma(\beta h)-(1-P)\log\sigma(-\beta h)\big]=-\beta\,\big(P-\sigma(\beta h)\big).$$
#
# It is zero exactly at $\sigma(\beta h)=P$. Second derivative: $\beta^2\sigma(\beta h)\sigma(-\beta h)>0$, so this is the minimum.

# %% [markdown] exercise="04.1" part="task" stars=1 minutes=5
# ### The log-ratio that a preference asks for
# Solve $\sigma(\beta h)=P$ for $h$. *Predict first: with β = 0.1, how far apart in nats does a preference of 3 in 4 push two responses?*

# %% exercise="04.1" part="stub"
def wanted_log_ratio(preference: Tensor, beta: float) -> Tensor:
    """The difference h of log-ratios at which DPO's expected loss is least, for each preference."""
    raise NotImplementedError


# %% exercise="04.1" part="check"
check("04.1", wanted_log_ratio)

# %% [markdown] exercise="04.1" part="hints"
# 1. The inverse of the sigmoid is the log-odds.
# 2. σ(βh) = P means βh = log(P / (1 − P)).
# 3. `torch.logit` computes log-odds.

# %% exercise="04.1" part="solution"
def wanted_log_ratio(preference: Tensor, beta: float) -> Tensor:
    return torch.logit(preference) / beta


check("04.1", wanted_log_ratio)

# %%
for beta in (0.05, 0.1, 0.5, 1.0):
    print(f"β = {beta:4}: 3 wins in 4 ask for h = {math.log(3) / beta:5.1f} nats,",
          f"probability ratio x {math.exp(math.log(3) / beta):.3g}")
moved = (world.rlhf_optimum(0.5)[0] / ref).log()
asked = torch.logit(world.preference[0]) / 0.5
claim("04.two_ways", "sections 4 and 5 of Rafailov et al. (2023)",
      "both derivations agree: logit(P)/beta is the target's difference of log-ratios, all pairs",
      expected=0, measured=float((moved[:, None] - moved - asked).abs().max()), tolerance=1e-9)

# %% [markdown]
# The two ways meet because Bradley–Terry makes $\operatorname{logit}P(a\succ b)=r(a)-r(b)$: all pairs can be right at once. Keep that condition in mind for section 4.
#
# ## 2 · Implement
#
# Log-probabilities are **sums** over the response's tokens, because $\log\pi(y)=\sum_t\log\pi(y_t\mid y_{<t})$: only the sum is the probability that the derivation speaks of.

# %% [markdown] exercise="04.2" part="task" stars=1 minutes=8
# ### DPO's loss
# Four summed log-probabilities a pair, one loss a pair. Use `torch.nn.functional.logsigmoid`.

# %% exercise="04.2" part="stub"
def dpo_loss(policy_chosen: Tensor, policy_rejected: Tensor,
             ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """DPO's loss of each pair."""
    raise NotImplementedError


# %% exercise="04.2" part="check"
check("04.2", dpo_loss)

# %% [markdown] exercise="04.2" part="hints"
# 1. Two log-ratios: what the policy gives to a response, less what the reference gives.
# 2. Their difference, chosen minus rejected, times β is the margin.
# 3. The loss is minus the log of the sigmoid of the margin; no mean.

# %% exercise="04.2" part="solution"
def dpo_loss(policy_chosen: Tensor, policy_rejected: Tensor,
             ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -torch.nn.functional.logsigmoid(margin)


check("04.2", dpo_loss)

# %%
def dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1):
    chosen = policy_chosen - ref_chosen  # log-ratios: what training has done to each response
    rejected = policy_rejected - ref_rejected
    margin = beta * (chosen - rejected)  # the difference of the implicit rewards
    return -torch.nn.functional.logsigmoid(margin)


four = -15 + 5 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
claim("04.same_loss", "this course", "these lines equal objectives.dpo (1,000 pairs, largest error)",
      expected=0, measured=float((dpo(*four) - objectives.dpo(*four)).abs().max()), tolerance=1e-12)

# %% [markdown] exercise="04.3" part="task" stars=2 minutes=8
# ### The gradient's weight
# **The gradient.** From $\frac{d}{dz}(-\log\sigma(z))=-\sigma(-z)$ and the chain rule,
#
# $$\nabla_\theta L=-\beta\,\underbrace{\sigma(-\beta h)}_{\text{weight}}\,\big[\nabla_\theta\log\pi_\theta(y_w)-\nabla_\theta\log\pi_\theta(y_l)\big].$$
#
# The weight is the probability that the implicit reward model gives to the *wrong* order. *Predict its value at the first step, and for a pair that is wrong by a margin of 8.*
#
# Without autograd: the derivative of each pair's loss in $\log\pi_\theta(y_w)$.

# %% exercise="04.3" part="stub"
def chosen_gradient(policy_chosen: Tensor, policy_rejected: Tensor,
                    ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """d loss / d policy_chosen, one number for each pair."""
    raise NotImplementedError


# %% exercise="04.3" part="check"
check("04.3", chosen_gradient)

# %% [markdown] exercise="04.3" part="hints"
# 1. The margin as in the loss; then the derivative of −log σ at it.
# 2. That derivative is −σ(−margin).
# 3. The margin changes by β when log π(chosen) changes by one.

# %% exercise="04.3" part="solution"
def chosen_gradient(policy_chosen: Tensor, policy_rejected: Tensor,
                    ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    return -beta * torch.sigmoid(-margin)


check("04.3", chosen_gradient)

# %%
leaf = four.clone().requires_grad_(True)
slopes = torch.autograd.grad(dpo(*leaf).sum(), leaf)[0]
weight = torch.sigmoid(-0.1 * ((four[0] - four[2]) - (four[1] - four[3])))
print("margin: weight", {m: round(1 / (1 + math.exp(m)), 4) for m in (-8, -2, 0, 2, 8)})
claim("04.gradient", "Rafailov et al. (2023), section 4",
      "autograd: -beta sigma(-margin) for chosen, the opposite for rejected (largest error)",
      expected=0, measured=float((slopes[:2] - 0.1 * torch.stack([-weight, weight])).abs().max()),
      tolerance=1e-12)

# %% [markdown]
# Wrong pairs pull with nearly full force β, right ones let go, and at the start every pair weighs one half. In log-probabilities, chosen and rejected are pushed equally hard.
#
# ## 3 · Verify against the exact optimum
#
# *Predict: gradient descent on this loss sees probabilities of labels, never $r$. How near does it come to $\pi_{ref}e^{r/\beta}/Z$?* Descent runs with the lesson's own dozen lines; Newton's method then
# checks other β.

# %%
reached, target = learn(dpo, 1.0, 2000), world.rlhf_optimum(1.0)[0]
claim("04.optimum", "Rafailov et al. (2023), eq. (4) and (7)",
      "gradient descent on DPO's loss reaches ref exp(r/beta)/Z (largest error of a log-probability)",
      expected=0, measured=float((reached / target).log().abs().max()), tolerance=1e-6)
betas = [0.1, 0.3, 1.0, 3.0, 10.0]
best = {b: world.population_minimiser("dpo", beta=b) for b in betas}
claim("04.optimum_betas", "Rafailov et al. (2023), eq. (4) and (7)",
      "the same for beta from 0.1 to 10, by Newton's method (largest error)", expected=0,
      measured=max(float((best[b] / world.rlhf_optimum(b)).log().abs().max()) for b in betas),
      tolerance=1e-6)
distance = {b: world.kl(best[b]) for b in betas}
for b in betas:
    shown = [round(p, 3) for p in best[b][0].tolist()]
    print(f"β = {b:4}: {distance[b]:.4f} nats from the reference;", shown)

# %% [markdown]
# ## 4 · Break it on purpose
#
# **β, the wrong way round.** A widely copied tutorial (and more than one web page) says that increasing β increases “the impact of the difference” of the log-probabilities, “thereby increasing the divergence between the two models”. The lines above say the
# opposite. Whence the error? Look at the gradient: β stands in front of it. *Predict: after one small step, which policy is farther away, β = 0.1 or β = 1? And after many?*

# %%
rows = torch.tensor(betas[:4], dtype=torch.float64)[:, None]


def journey(steps, rate):
    """KL to the reference along plain gradient descent, one row for each beta."""
    logits, path = ref.log().expand(4, -1).clone(), []
    for _ in range(steps):
        score = rows * (torch.log_softmax(logits, 1) - ref.log())
        fitted = torch.sigmoid(score[:, :, None] - score[:, None, :])
        logits = logits + rate * rows * ref * ((world.preference[0] - fitted) @ ref)
        p = torch.softmax(logits, 1)
        path.append((p * (p / ref).log()).sum(1))
    return torch.stack(path, 1)


small = journey(1, rate=0.01)[:, 0]
claim("04.beta_far", "a widely copied tutorial",
      "a larger beta ends farther from the reference: KL(3) − KL(0.3)",
      expected=0, relation="at least", measured=distance[3.0] - distance[0.3])
claim("04.beta_first", "this course",
      "one small plain step: KL grows as beta squared, so KL(beta = 1) / KL(beta = 0.1) is 100",
      expected=100, measured=float(small[2] / small[0]), tolerance=1)
travelled = journey(10_000, rate=1.0)

# %% tags=["figure"]
drawn, axes = plots.figure(width=7.6, height=3.8)
looks = [("blue", "-"), ("sky", "--"), ("green", "-."), ("orange", ":")]
steps = torch.arange(1, travelled.shape[1] + 1)
for b, path, (colour, style) in zip(betas, travelled, looks):
    axes.loglog(steps, path, color=plots.PALETTE[colour], linestyle=style)
    axes.plot(16_000, distance[b], "*", color=plots.PALETTE[colour], markersize=12)
    plots.label(axes, 16_000, distance[b], f"β = {b:g}", plots.PALETTE[colour],
                xytext=(10, {0.1: 5, 0.3: -5}.get(b, 0)))
axes.set(xlim=(1, 70_000), xlabel="steps of plain gradient descent", ylim=(1e-6, 8))
axes.set_ylabel("KL to the reference (nats)")
axes.set_title("A large β starts faster and stops sooner (★ exact optimum)")
plots.show(drawn, alt="""KL to the reference against steps for beta 0.1, 0.3, 1 and 3. In the beginning
    the largest beta is ahead; the curves cross; each ends at its optimum or, for
    beta 0.1, just below it, and the smallest beta ends farthest.""")

# %% [markdown]
# Both are true: the *gradient* is proportional to β, the *target* moves away as β falls. β is the price of leaving. Stopped early, plain descent can make a large β look bold. Adam divides gradients by their own size
# and so removes much of the first effect.
#
# **Means instead of sums.** Some codes divide each log-ratio by its number of tokens $|y|$. The same derivative then asks for $\beta\,(\ell_a/|a|-\ell_b/|b|)=r(a)-r(b)$, where $\ell=\log(\pi/\pi_{ref})$. Every pair is satisfied by
#
# $$\ell(y)=|y|\,\big(r(y)/\beta+c\big),$$
#
# and $\sum_y\pi(y)=1$ fixes $c$ (the sum grows from 0 to ∞ with $c$). So token means target another policy: **rewards multiplied by length**.

# %%
lengths = torch.tensor([3.0, 4, 8, 5, 12, 9], dtype=torch.float64)
beta, mean_length = 1.0, float(ref @ lengths)
how_often = ref[:, None] * ref * world.preference[0]


def mean_loss(log_policy):
    per_token = (log_policy - ref.log()) / lengths
    margin = beta * mean_length * (per_token[:, :, None] - per_token[:, None, :])
    each = -torch.nn.functional.logsigmoid(margin)
    return (how_often * each).sum((1, 2))


by_mean = minimisers.minimise_rows(mean_loss, ref.log()[None])[0]
formula = pocket_runs.mean_optimum(ref, r, lengths, beta * mean_length)
claim("04.mean_optimum", "this course",
      "token means: the minimiser is ref exp(|y| (r/beta + c)) (largest error of a log-probability)",
      expected=0, measured=float((by_mean / formula).log().abs().max()), tolerance=1e-6)
by_sum = world.rlhf_optimum(beta)[0]
for text, n, before, s, m in zip(answers, lengths.int().tolist(), ref, by_sum, by_mean):
    print(f"{text:16} {n:2} tokens: reference {before:.3f}, sum {s:.3f}, mean {m:.3f}")

# %% [markdown]
# β was scaled by the mean length, so both losses start alike. Two answers of equal reward but unequal length no longer keep their ratio: where $r/\beta+c>0$ the longer one gains, below it the longer one loses.
#
# **A judge without a reward.** On a cycle no $\pi$ satisfies all pairs. What does DPO learn? Summing the derivative over the opponents $b$ of one response $a$,
#
# $$\frac{\partial L}{\partial \ell_a}=-\beta\,\pi_{ref}(a)\Big[\sum_b\pi_{ref}(b)P(a\succ b)-\sum_b\pi_{ref}(b)\,\sigma(\beta(\ell_a-\ell_b))\Big].$$
#
# At the optimum the bracket is zero: fitted and true **win rates against the reference agree**, for every judge. Twice $\pi_{ref}$ times the win rate is $p_+$, the distribution of the chosen response (lesson 00).

# %% [markdown] exercise="04.4" part="task" stars=2 minutes=12
# ### What the reward model inside predicts
# Draw two responses from the reference and let the policy's implicit reward judge. Return the distribution of the winner, from the reference, the log-ratios and β.

# %% exercise="04.4" part="stub"
def preferred_from(reference: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    """The distribution of the chosen response, if beta * log_ratio judges two reference responses."""
    raise NotImplementedError


# %% exercise="04.4" part="check"
check("04.4", preferred_from)

# %% [markdown] exercise="04.4" part="hints"
# 1. The probability that a beats b is the sigmoid of the difference of implicit rewards.
# 2. Average it over b with the reference's probabilities: the win rate of a.
# 3. A response can win as the first or as the second: 2 × reference × win rate.

# %% exercise="04.4" part="solution"
def preferred_from(reference: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    reward = beta * log_ratio
    wins = torch.sigmoid(reward[:, None] - reward[None, :]) @ reference
    return 2 * reference * wins


check("04.4", preferred_from)

# %%
three = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
cycle = FiniteWorld(three[None], preferences.cyclic(3, 0.9)[None])
p_plus = cycle.preferred_distribution()
ends = {b: cycle.population_minimiser("dpo", beta=b) for b in [0.1, 0.3, 1.0, 2.0, 3.0, 10.0]}
for b, p in ends.items():
    print(f"β = {b:4}: KL(p+ ‖ π) {cycle.kl(p_plus, p):.4f}, wins {cycle.win_rate(p):.3f},",
          f"best opponent wins {0.5 + float(cycle.exploitability(p)[0]):.3f}")
score = (ends[1.0] / three).log()[0]
predicted = 2 * three * (torch.sigmoid(score[:, None] - score) @ three)
claim("04.win_rates", "this course",
      "on a cycle too, the reward model inside DPO predicts p+ (largest error)",
      expected=0, measured=float((predicted - p_plus[0]).abs().max()), tolerance=1e-8)
claim("04.cycle_usual", "a tempting reading", "at beta = 0.1 the policy itself is p+ (KL, nats)",
      expected=0, measured=cycle.kl(p_plus, ends[0.1]), tolerance=1e-3)
claim("04.cycle_best", "this course",
      "the best of six betas brings the policy within 0.001 nats of p+ (KL)",
      expected=0, measured=min(cycle.kl(p_plus, p) for p in ends.values()), tolerance=1e-3)
weaker = [float((each.exploitability(p) - each.exploitability(each.reference))[0])
          for each, p in [(world, best[0.1]), (cycle, ends[0.1])]]
print(f"best opponent of policy − of reference: Bradley–Terry {weaker[0]:.3f}, cycle {weaker[1]:.3f}")
claim("04.exploited", "true in the Bradley–Terry world above",
      "DPO is harder to beat than its reference (best opponent's wins, beta = 0.1, change on the cycle)",
      expected=0, relation="at most", measured=weaker[1])

# %% [markdown]
# Win rates survive; which response beats which does not. That the policy passes so near p+ at β = 2 is no accident: near zero $\sigma(x)\approx\tfrac12e^{x/2}$, so for weak preferences $2\pi_{ref}\,\mathbb{E}\,\sigma\approx\pi_{ref}\,e^{s/2}$. At the usual β it is
# far away, and easier to beat than the reference. Here the Nash policy is uniform, and nothing beats it. Methods that aim at p+ come in lessons 10 and 11, Nash policies in 12 and 14.
#
# ## 5 · On the bench with the others
#
# **The pocket model.** First a short run; then 25 stored ones. *Predict the first loss, before anything has been learned.*

# %% tags=["nbval-ignore-output"]
pairs, policy = preferences.draw_pairs(inn, 1500, seed=0), inn.new_policy()
settings = TrainingSettings(steps=60, batch_size=32, learning_rate=1e-3, schedule="linear",
                            clip_gradient=1.0)
history = train(policy, pairs, "dpo", beta=0.1, settings=settings, progress=False).history
claim("04.log2", "the derivation", "the first loss is log 2: policy and reference are equal",
      expected=math.log(2), measured=float(history.curve("loss")[1][0]), tolerance=1e-5)
for name, model in [("BEFORE", None), ("AFTER", policy)]:
    print(f"{name}: win rate {inn.win_rate(model, per_prompt=15)}\n")
    inn.show(inn.draw(model, per_prompt=1, seed=3), 3)

# %% [markdown]
# **TRL's number.** Now the trained policy, 16 fresh pairs, and the same token ids for both codes. If TRL is installed, its own `DPOTrainer` computes the loss; if not, the cell says so and uses the formula of TRL 1.16's source.

# %% tags=["nbval-ignore-output"]
import contextlib, copy, importlib.metadata, io, tempfile, warnings
from course_utils.encoding import encode

fresh = preferences.draw_pairs(inn, 16, seed=5)
sides = [encode(inn.tokenizer, fresh.prompt, texts) for texts in (fresh.chosen, fresh.rejected)]
four = [inn.log_prob(model, fresh.prompt, texts)
        for model in (policy, None) for texts in (fresh.chosen, fresh.rejected)]


def trl_trainer(folder):
    import datasets
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(folder, report_to="none", bf16=False, gradient_checkpointing=False, use_cpu=True,
                     disable_tqdm=True, beta=0.1)
    one_row = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return DPOTrainer(copy.deepcopy(policy.model), copy.deepcopy(inn.model), args=args,
                          train_dataset=one_row, processing_class=inn.tokenizer)

# %% tags=["nbval-ignore-output"]
def token_ids(batch, wanted):
    return [ids[mask].tolist() for ids, mask in zip(batch.input_ids, wanted)]


prompts = token_ids(sides[0], sides[0].attention_mask & ~sides[0].response_mask)
columns = [prompts, *[token_ids(side, side.response_mask) for side in sides]]
examples = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row)) for row in zip(*columns)]
try:
    found = importlib.metadata.version("trl")
except importlib.metadata.PackageNotFoundError:
    found = "none"
if found.startswith("1.16"):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = trl_trainer(folder)
        batch = trainer.data_collator(examples)
        with torch.no_grad():
            theirs = float(trainer.compute_loss(trainer.model, batch))
            trainer.label_smoothing = 0.1
            smoothed = float(trainer.compute_loss(trainer.model, batch))
else:
    print(f"TRL 1.16 is not here (found: {found}), so its formula is used, not its code.")
    delta = (four[0] - four[2]) - (four[1] - four[3])
    theirs = smoothed = float(-torch.nn.functional.logsigmoid(0.1 * delta).mean())
print(f"TRL {theirs:.6f}; with label_smoothing=0.1: {smoothed:.6f}")

# %%
ours, conservative = float(dpo(*four).mean()), float(objectives.cdpo(*four, beta=0.1).mean())
claim("04.trl", 'TRL 1.16, loss_type="sigmoid"',
      "the lesson's DPO minus TRL's loss (or its formula, without TRL), same 16 pairs",
      expected=0, measured=ours - theirs, tolerance=1e-6)
claim("04.trl_smoothing", "Mitchell (2023); older TRL",
      "label_smoothing=0.1 turns sigmoid into cDPO (change of TRL's loss over that of cDPO)",
      expected=1, measured=(smoothed - theirs) / (conservative - ours), tolerance=1e-2)

# %% [markdown]
# TRL 1.16 reads `label_smoothing` for `robust`, `exo_pair`, `aot` and `aot_unpaired`; `sigmoid` ignores it in silence. Give TRL conversations with a chat template, or ids: plain strings are
# joined and tokenised *together*, which for the pocket tokenizer gives other ids, and a warning.
#
# The stored runs: equal pairs, equal steps, five seeds; token means use β = 2, about 0.1 times the length. KL and the drifts of held-out chosen and rejected responses are in nats; `correct` is 1 for right, −1 for wrong. The learning rate was halved after a first try in which DPO at β = 0.1 broke a run; the first rate is in the last line. *Predict: do chosen ones become likelier?*

# %%
print("                 wins   reward  KL    chosen rejected  words  correct")
for name, method, b in [("SFT", "sft", None), ("DPO β = 0.1", "dpo", 0.1), ("DPO β = 1", "dpo", 1.0),
                        ("token means", "dpo_mean", 2.0)]:
    keys = ("win_rate", "reward", "kl_to_reference", "chosen_drift", "rejected_drift", "words",
            "correct")
    print(f"{name:14}", "  ".join(f"{float(results(method, key, b).mean()):6.2f}" for key in keys))
broken = [f"{share:.2f}" for share in results("dpo", "grammatical", 0.1, 2e-3).tolist()]
print("grammatical texts at twice the learning rate, β = 0.1, by seed:", ", ".join(broken))


def over_seeds(slug, source, statement, values, expected=0, **relation):
    row = statistics.mean_interval(values)
    statement += " (5 seeds)"
    claim(f"04.{slug}", source, statement, expected, row.estimate, interval=row, **relation)


wins = results("dpo", "win_rate", 0.1)
over_seeds("pocket_win", "Rafailov et al. (2023)", "DPO beats its reference: win rate", wins, 0.5,
           relation="at least")
over_seeds("pocket_sft", "this course", "DPO minus SFT on chosen: win rate",
           wins - results("sft", "win_rate"), relation="at least")
over_seeds("pocket_beta", "section 3", "pocket model: KL(beta = 0.1) − KL(beta = 1)",
           relation="at least", values=results("dpo", "kl_to_reference", 0.1)
           - results("dpo", "kl_to_reference", 1.0))
over_seeds("chosen", "a common expectation", "DPO raises held-out chosen responses: log-ratio",
           results("dpo", "chosen_drift", 0.1), relation="at least")

# %%
over_seeds("flips", "a common shortcut", "sum and mean agree which response is ahead: pairs that flip",
           results("dpo", "flipped", 0.1))
over_seeds("lengths", "section 4", "token means leave lengths as sums do: words, mean − sum",
           results("dpo_mean", "words", 2.0) - results("dpo", "words", 0.1))
seen = pocket_runs.margins(inn, policy, preferences.draw_pairs(inn, 400, seed=990))
by_sum = seen["lr_chosen"] - seen["lr_rejected"]
by_mean = seen["lr_chosen"] / seen["len_chosen"] - seen["lr_rejected"] / seen["len_rejected"]
flips = (by_sum > 0) != (by_mean > 0)

# %% tags=["figure", "nbval-ignore-output"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.6)
for kind, colour, marker in [(~flips, plots.GREY, "."), (flips, plots.PALETTE["orange"], "x")]:
    left.plot(by_sum[kind], by_mean[kind], marker, color=colour, markersize=5)
_ = left.axhline(0, color=plots.INK, linewidth=0.8), left.axvline(0, color=plots.INK, linewidth=0.8)
left.text(0.03, 0.93, "× the order flips", color=plots.PALETTE["orange"], transform=left.transAxes)
left.set(xlabel="difference of summed log-ratios", ylabel="difference of means per token")
left.set_title("Held-out pairs: who is ahead?")
shown = [("sft", None, "SFT"), ("dpo", 0.1, "DPO\nβ = 0.1"), ("dpo", 1.0, "DPO\nβ = 1"),
         ("dpo_mean", 2.0, "token\nmeans")]
sides_of_a_pair = [("chosen_drift", -0.12, "blue", "o"), ("rejected_drift", 0.12, "orange", "v")]
for x, (method, b, name) in enumerate(shown):
    for key, side, colour, marker in sides_of_a_pair:
        row = statistics.mean_interval(results(method, key, b))
        right.errorbar(x + side, row.estimate, [[row.estimate - row.low], [row.high - row.estimate]],
                       fmt=marker, color=plots.PALETTE[colour], capsize=3)
right.axhline(0, color=plots.INK, linestyle=":")
right.set_xticks(range(4), [name for *_, name in shown])
for y, text, colour in [(0.14, "● chosen", "blue"), (0.05, "▼ rejected", "orange")]:
    right.text(0.03, y, text, color=plots.PALETTE[colour], transform=right.transAxes, weight="bold")
right.set(ylabel="log π/π_ref (nats)")
right.set_title("What training moved (5 seeds, 95 %)")
plots.show(drawn, alt="""Left: difference of mean against summed log-ratios of held-out pairs; crosses in
    the second and fourth quadrant change order. Right: drift of chosen and rejected responses. SFT lifts
    the chosen a little and lowers the rejected; DPO with beta 1 lowers the rejected more and leaves the
    chosen; DPO with beta 0.1 and token means lower both, the rejected most.""")

# %% [markdown] exercise="04.5" part="task" stars=3 minutes=25 open=true
# ### Choose β without the truth
# **What the runs say.** DPO won more than SFT. At β = 0.1 it went farther than at β = 1, for about as many wins, and lowered even the chosen responses (why: lesson 05). Means put another response ahead in 7 % of the pairs, and a policy trained on them wrote 0.8 words more.
#
# **Your turn.** You have 400 held-out pairs and no reward. Invent a rule that picks β for the pocket world, and measure what it costs in reward against the best β of your grid. Why is the held-out DPO loss with each β's own margin a tempting criterion?

# %% [markdown] exercise="04.5" part="hints"
# 1. The judge's noise is known by its preferences: which β h would a calibrated model have?
# 2. Lesson 01's calibration error can be computed for the implicit reward.
# 3. A calibrated implicit reward says nothing about how much KL you want to pay.

# %% [markdown] exercise="04.5" part="solution"
# A good answer separates two questions: how well the implicit reward model predicts labels (any β with enough steps can), and how far to move (a matter of price, which no pair can tell). It fixes steps and learning rate, uses
# the same seeds for each β, gives the paired difference with an interval, and reports when its rule picks the edge of the grid.

# %% [markdown]
# ## When to use it
#
# Use DPO when pairs are at hand, one taste judged them, and sampling is dear. Give each pair a chance to be labelled both ways, or stop early: unanimous labels have no optimum. Start near β = 0.1, and read *smaller* as *farther*.
#
# In TRL 1.16: `DPOConfig(beta=0.1, loss_type=["sigmoid"])` is this lesson. `sigmoid_norm` takes token means, and so does `ipo`: its equation (17) does not divide, its authors did, says TRL's source. `rewards/…` in the logs include β; `logps/…` do not count from the
# reference. There is no `reference_free`: see SimPO (05) and CPO (16). `sync_ref_model` is lesson 07.
#
# ## What we measured

# %%
ledger.rows("04")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | the first loss is not log 2 | dropout is on, or the reference is another model, in another precision or on other tokens |
# | larger β, and the policy moves more at first | the gradient is proportional to β; the optimum is not |
# | loss falls, samples fall apart | β too small or labels unanimous: the margin has no limit |
# | β = 0.1 does nothing | means over tokens: margins are smaller by the length |
# | responses grow or shrink | token means multiply the reward by the length |
# | label smoothing changes nothing | `sigmoid` in TRL 1.16 does not read it |

# %% [markdown]
# ## References
#
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, arXiv 2305.18290: eq. (4) the target, (5) the inverse, (6) the preference, (7) the loss; section 4 the gradient; theorem 1 that log-ratios are no restriction.
# - R. A. Bradley, M. E. Terry (1952). Lesson 01.
# - E. Mitchell (2023). *A note on DPO with noisy preferences and relationship to IPO*: cDPO.
# - M. G. Azar et al. (2023), arXiv 2310.12036, eq. (17): IPO.
# - TRL 1.16, `trainer/dpo_trainer.py` and `dpo_config.py`: read for this lesson.
#
# ## Next
#
# **05 · What DPO does to probabilities**: why the chosen response can become less likely.
