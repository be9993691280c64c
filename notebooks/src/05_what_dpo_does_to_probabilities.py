# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "What DPO does to probabilities", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 05 · What DPO does to probabilities
#
# You train on pairs, the loss falls, and the log-probability of the *chosen* response falls too. This lesson says where the probability went: by theorem, on tables, on
# networks, and on a language model whose texts can be counted.

# %% [markdown]
# ## Objectives
#
# You will be able to say when the chosen response cannot fall and when it must; derive its ceiling; account for the mass of chosen, rejected and never compared texts; say at which loss a ranking turns; and judge the usual
# answers: cDPO, robust DPO, IPO, Flex-DPO, an SFT term, SimPO, KTO.
#
# ## Prerequisites
#
# Lesson 04. About 100 minutes with the exercises. Test yourself:
#
# <details><summary>What is DPO's gradient in the two log-probabilities?</summary>−βσ(−βh) for the chosen, +βσ(−βh) for the rejected.</details>
# <details><summary>How is the chosen of two responses of π_ref distributed?</summary>p+ = 2 π_ref W, with W the win rate against π_ref.</details>
#
# *Not covered:* references that move (07), accounts token by token.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math

import torch
from torch import Tensor

from course_utils import evaluation, experiments, ledger, objectives, plots, preferences, statistics
from course_utils.experiments import lesson_05 as bench
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

RECOMPUTE = False  # True trains the 60 pocket policies again: about 25 minutes
runs = experiments.results("05_answers", recompute=RECOMPUTE)
desk = pocket.load_world("bradley_terry")

# %% [markdown]
# *"May I enter?"* Three answers: *No*, chosen; *Never*, rejected; *Yes*, in no pair. One policy is a table, three free logits. The other is the smallest network whose answers share
# weights: one number φ, "how much I refuse", that each answer reads with its own strength: No 1, Never 2, Yes −1. The same pair, the same DPO.

# %%
start = torch.tensor([0.45, 0.45, 0.10], dtype=torch.float64)
table, one_number = torch.eye(3).double(), torch.tensor([[1.0], [2.0], [-1.0]]).double()


def descend(features, steps=120, rate=0.5, beta=0.1):
    """DPO on No over Never; logits = log start + features @ weights. Probabilities, step by step."""
    weights, path = torch.zeros(features.shape[1], dtype=torch.float64), []
    for _ in range(steps + 1):
        log_policy = torch.log_softmax(start.log() + features @ weights, -1)
        path.append(log_policy.exp())
        moved = log_policy - start.log()
        push = beta * torch.sigmoid(-beta * (moved[0] - moved[1]))
        weights = weights + rate * push * (features[0] - features[1])
    return torch.stack(path)


# %% tags=["figure"]
drawn, panels = plots.figure(3, width=3.9, height=3.4)
colours = [plots.look("dpo").color, plots.PALETTE["orange"], plots.PALETTE["sky"]]
answers, titles = ("No", "Never", "Yes"), ("A table", "One shared number")
places = [[(60, 0.83), (60, 0.13), (6, 0.02)], [(88, 0.13), (3, 0.53), (50, 0.88)]]
for axes, features, title, at in zip(panels, (table, one_number), titles, places):
    rows = zip(answers, colours, ("-", "--", ":"), descend(features).T, at)
    for answer, colour, style, y, (x, level) in rows:
        axes.plot(y, color=colour, linestyle=style)
        plots.label(axes, x, level, answer, colour, xytext=(0, 0))
    axes.set(xlabel="step", ylabel="probability", title=title, ylim=(-0.05, 1.05))
axes, ceiling = panels[2], bench.column(runs, "DPO", "to_learn").mean()
sides = (("chosen_held", colours[0], "o"), ("rejected_held", colours[1], "v"))
for place, name in enumerate(("SFT on chosen", "DPO")):
    for key, colour, marker in sides:
        axes.plot([place] * 5, bench.column(runs, name, key), marker, color=colour)
axes.axhline(ceiling, color=plots.INK, linestyle=":")
plots.label(axes, 0.4, ceiling, "ceiling of the chosen", xytext=(0, -12))
plots.label(axes, 1.1, -0.55, "chosen", colours[0], xytext=(0, 0))
plots.label(axes, 1.1, -1.45, "rejected", colours[1], xytext=(0, 0))
axes.set(xticks=[0, 1], xticklabels=["SFT", "DPO"], xlim=(-0.5, 1.8), title="Pocket model (5 seeds)")
axes.set_ylabel("mean log π/π_ref, fresh pairs")
plots.show(drawn, alt="""Left: on a table No rises towards one, Never and Yes fall. Middle: with one
    shared number No rises a little and then falls, Never falls, and Yes takes nearly everything.
    Right: fresh pairs of the pocket model: SFT leaves the chosen near a dotted ceiling just above
    zero, DPO takes the chosen down by more than half a nat and the rejected down further.""")

# %% [markdown]
# Left, what everybody expects. Middle, the nightmare: to prefer *No* to *Never*, it learns to say *Yes*. Right, what people see in their logs. *Predict: does the middle picture's cause make the right one, or another?*
#
# ## 1 · Derive
#
# DPO sees a difference, $h=\log\frac{\pi(y_w)}{\pi_{ref}(y_w)}-\log\frac{\pi(y_l)}{\pi_{ref}(y_l)}$: both terms may fall. **One pair on a table:** $\pi=e^z/\sum e^z$, and $h$ contains $z_w-z_l$ alone, so the gradient is $-\beta\sigma(-\beta h)$ at $z_w$, the opposite at $z_l$, else zero. After any number of steps the logits have moved by $(+a,-a,0,\dots)$, $h=2a$:
#
# $$\pi'_w=\frac{\pi_w e^{a}}{Z},\quad \pi'_l=\frac{\pi_l e^{-a}}{Z},\quad \pi'_y=\frac{\pi_y}{Z},\qquad Z=1+\pi_w(e^a-1)-\pi_l(1-e^{-a}).$$
#
# $Z<e^a$: **the chosen rises**. Bystanders gain while $\frac{dZ}{da}=\pi_we^a-\pi_le^{-a}<0$, that is while the pair is ranked wrong, $h<c:=\log\frac{\pi_{ref}(y_l)}{\pi_{ref}(y_w)}$. Then they give back.

# %% [markdown] exercise="05.1" part="task" stars=1 minutes=8
# ### A step on a table
# The logit of the chosen response goes up by `push`, that of the rejected one down by `push`. Return the new probabilities.

# %% exercise="05.1" part="stub"
def table_step(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    """The table after the two logits moved."""
    raise NotImplementedError


# %% exercise="05.1" part="check"
check("05.1", table_step)

# %% [markdown] exercise="05.1" part="hints"
# 1. Adding to a logit multiplies a probability, before normalising.
# 2. By $e^{a}$ and $e^{-a}$; then divide *all* entries by the new sum.
# 3. Work on a copy: `new = probabilities.clone()`.

# %% exercise="05.1" part="solution"
def table_step(probabilities: Tensor, chosen: int, rejected: int, push: float) -> Tensor:
    new = probabilities.clone()
    new[chosen] *= math.exp(push)
    new[rejected] *= math.exp(-push)
    return new / new.sum()


check("05.1", table_step)

# %% [markdown]
# **Several pairs** add up. If no response is chosen in one pair and rejected in another, logits of chosen ones only rise, of rejected ones only fall: the chosen *together* gain. *Predict: does each of them?*
#
# **Shared weights.** Let $g_y=\nabla_\theta\log\pi(y)$. A small step of size η on one pair moves $\theta$ by $\eta\beta\sigma(-\beta h)(g_w-g_l)$, hence
#
# $$\Delta\log\pi(y_w)=\eta\,\beta\,\sigma(-\beta h)\,\big(\|g_w\|^2-g_w\!\cdot g_l\big).$$
#
# The chosen falls exactly if $g_w\cdot g_l>\|g_w\|^2$. On a table $g_y=e_y-\pi$, and the bracket is $1-\pi_w+\pi_l>0$. With logits $z_0+W\varphi$ it is $(W_w-\overline W)\cdot(W_w-W_l)$, $\overline W$ the mean under π: negative for *No* once *Never* has lost its weight.

# %% [markdown] exercise="05.2" part="task" stars=2 minutes=10
# ### How fast the chosen rises
# For each pair: the rate of change of $\log\pi(y_w)$ per unit of learning rate, from the two gradients [pairs, weights] and the difference $h$ [pairs].

# %% exercise="05.2" part="stub"
def chosen_speed(gradient_chosen: Tensor, gradient_rejected: Tensor, h: Tensor, beta: float) -> Tensor:
    """First-order change of log pi(chosen) under a step on its own pair, over the step size."""
    raise NotImplementedError


# %% exercise="05.2" part="check"
check("05.2", chosen_speed)

# %% [markdown] exercise="05.2" part="hints"
# 1. The weights move along $g_w-g_l$, scaled by $\beta\sigma(-\beta h)$.
# 2. A first-order change is the inner product of $g_w$ with that movement.
# 3. `(a * b).sum(-1)` is the inner product of each row.

# %% exercise="05.2" part="solution"
def chosen_speed(gradient_chosen: Tensor, gradient_rejected: Tensor, h: Tensor, beta: float) -> Tensor:
    along = (gradient_chosen * (gradient_chosen - gradient_rejected)).sum(-1)
    return beta * torch.sigmoid(-beta * h) * along


check("05.2", chosen_speed)

# %% [markdown]
# **Two laws for every policy**, table or transformer. The chosen response of a fresh pair is distributed as $p^+$, so on average
#
# $$E\log\tfrac{\pi(y_w)}{\pi_{ref}(y_w)}=\sum_y p^+\log\tfrac{\pi}{\pi_{ref}}=\mathrm{KL}(p^+\|\pi_{ref})-\mathrm{KL}(p^+\|\pi). \tag{1}$$
#
# A **ceiling**, $\mathrm{KL}(p^+\|\pi_{ref})$, reached only by $\pi=p^+$, the target of SFT on the chosen. If both responses came from $\pi_{ref}$, then $p^++p^-=2\pi_{ref}$, and
#
# $$E\log\tfrac{\pi(y_w)}{\pi_{ref}(y_w)}+E\log\tfrac{\pi(y_l)}{\pi_{ref}(y_l)}=-2\,\mathrm{KL}(\pi_{ref}\|\pi). \tag{2}$$
#
# Since their difference is $E[h]$, the chosen moves by $\frac12E[h]-\mathrm{KL}(\pi_{ref}\|\pi)$, the rejected by $-\frac12E[h]-\mathrm{KL}(\pi_{ref}\|\pi)$: half the margin each, less a price that both pay. The chosen falls when the price exceeds half the margin. On its training pairs a
# policy can do better, by memory. (Asked in 2023, an author of DPO said: after SFT on the chosen, they cannot rise. That is law (1) with its ceiling at zero.)

# %% [markdown] exercise="05.3" part="task" stars=2 minutes=12
# ### The chosen's drift, without a sample
# One prompt: `reference` and `policy` [Y], and `preference[a, b]`, the probability that a beats b. Pairs are two draws of the reference. Return the mean of $\log\pi(y_w)/\pi_{ref}(y_w)$.

# %% exercise="05.3" part="stub"
def chosen_drift(reference: Tensor, preference: Tensor, policy: Tensor) -> Tensor:
    """E log policy/reference of the chosen response of a pair: one number."""
    raise NotImplementedError


# %% exercise="05.3" part="check"
check("05.3", chosen_drift)

# %% [markdown] exercise="05.3" part="hints"
# 1. The win rate of each response is an average of its row of `preference`.
# 2. A response can be chosen as the first or as the second draw: p+ = 2 × reference × win rate.
# 3. Average the log-ratio with the weights p+.

# %% exercise="05.3" part="solution"
def chosen_drift(reference: Tensor, preference: Tensor, policy: Tensor) -> Tensor:
    p_plus = 2 * reference * (preference @ reference)
    return (p_plus * (policy / reference).log()).sum()


check("05.3", chosen_drift)

# %% [markdown]
# ## 2 · Implement
#
# In which coordinate is a push equal? "3D-Properties" differentiates DPO in the *probabilities*: there the rejected one's gradient is $\pi_w/\pi_l$ times the chosen one's and explodes as $\pi_l\to0$. *Predict: what reaches the logits of a table, which is what training
# moves?*

# %%
def slopes(low, of):
    """The gradient of DPO's loss at pi = (0.5, low, rest), in probabilities or in logits."""
    p = torch.tensor([0.5, low, 0.5 - low], dtype=torch.float64)
    leaf = (p if of == "probabilities" else p.log()).clone().requires_grad_(True)
    log_policy = leaf.log() if of == "probabilities" else torch.log_softmax(leaf, -1)
    ref = torch.tensor([0.5, 0.3], dtype=torch.float64).log()
    return torch.autograd.grad(objectives.dpo(log_policy[0], log_policy[1], *ref, beta=0.1), leaf)[0]


ratios = []
for low in (0.3, 1e-3, 1e-6, 1e-12):
    by_probability, by_logit = (slopes(low, of) for of in ("probabilities", "logits"))
    ratios.append(float(-by_probability[1] / by_probability[0]) * low / 0.5)
    print(f"rejected at {low:5g}: in probabilities", [f"{g:.3g}" for g in by_probability[:2].tolist()],
          "in logits", [f"{g:.3g}" for g in by_logit[:2].tolist()])
claim("05.coordinates", "Yan et al. (2024), corollary 1",
      "DPO in probabilities: rejected over chosen gradient, over pi_w/pi_l (farthest from 1)",
      expected=1, measured=max(ratios, key=lambda ratio: abs(ratio - 1)), tolerance=1e-9)
claim("05.explosion", "Yan et al. (2024), corollary 2, read as a statement about training",
      "on a table DPO's logit gradient grows as the rejected vanishes (at 1e-12 over at 0.3)",
      expected=1, relation="at least",
      measured=float(slopes(1e-12, "logits").abs().max() / slopes(0.3, "logits").abs().max()))

# %% [markdown]
# Both corollaries are right, and about a coordinate in which nobody trains. In log-probabilities the pushes are equal; on a table they fade. So the explosion explains nothing yet. What does it, then?
#
# ## 3 · Verify against the exact optimum
#
# First the table: one pair; many pairs with disjoint roles, by the thousand; and the first-order condition, on policies whose answers read two shared numbers with random strengths.

# %%
push = torch.linspace(0, 3, 3001, dtype=torch.float64)
pair = torch.tensor([0.05, 0.35, 0.6], dtype=torch.float64)
factors = torch.stack([push.exp(), (-push).exp(), torch.ones_like(push)], -1)
after = pair * factors / (factors @ pair)[:, None]
claim("05.bystanders", "derived here",
      "one pair on a table: bystanders have most at h = c, where the ranking turns",
      expected=math.log(0.35 / 0.05), measured=2 * float(push[after[:, 2].argmax()]), tolerance=2e-3)

worst, fell = bench.disjoint_tables()
claim("05.table_together", "derived here",
      "1,000 tables, no response in both roles: the chosen together never lose (worst step)",
      expected=0, relation="at least", measured=worst, tolerance=1e-12)
claim("05.table_each", "'on a table the chosen rise'",
      "1,000 such tables: share of single chosen responses that end lower",
      expected=0, measured=fell, tolerance=1e-9)
random = torch.Generator().manual_seed(0)
W = torch.randn(2000, 6, 2, generator=random, dtype=torch.float64)
p = torch.softmax(torch.randn(2000, 6, generator=random, dtype=torch.float64), -1)
speed = ((W[:, 0] - (p[..., None] * W).sum(1)) * (W[:, 0] - W[:, 1])).sum(-1)
stepped = p.log() + 1e-6 * (W @ (W[:, 0] - W[:, 1])[..., None])[..., 0]
rose = torch.log_softmax(stepped, -1)[:, 0] > p[:, 0].log()
print(f"two shared numbers: the chosen falls at once in {float((speed < 0).double().mean()):.0%}")
claim("05.condition", "derived here",
      "2,000 policies, two shared numbers: the sign of |g_w|² − g_w·g_l is the first step's (share)",
      expected=1, measured=float((rose == (speed > 0)).double().mean()), tolerance=1e-9)

# %% [markdown]
# Together they never lose, each may: a chosen response with few pairs is overtaken by another with many. So even "a table shows no fall" needs three conditions: roles disjoint, mass counted together, logits moved by their gradients.
#
# Real pairs are not disjoint: what wins here loses there. *Predict: a table, all pairs, DPO's exact optimum at β = 0.1. Does the mean log-ratio of the chosen lie above zero?*

# %%
ref6 = torch.tensor([[0.30, 0.24, 0.20, 0.14, 0.08, 0.04]], dtype=torch.float64)
reward = torch.tensor([[-1.0, -0.4, 0.1, 0.6, 1.2, -0.6]], dtype=torch.float64)
world = FiniteWorld.from_rewards(ref6, reward)
p_plus, p_minus = world.preferred_distribution(), world.rejected_distribution()
betas = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0]
optima = [world.rlhf_optimum(beta) for beta in betas]
drifts = torch.stack([torch.cat([p_plus, p_minus]) @ (pi / ref6).log()[0] for pi in optima])
law_1 = drifts.new_tensor([world.kl(p_plus) - world.kl(p_plus, pi) for pi in optima])
law_2 = drifts.new_tensor([-2 * world.kl(ref6, pi) for pi in optima])
claim("05.ceiling", "law (1), derived here",
      "mean log π/π_ref of the chosen = KL(p+ to ref) − KL(p+ to π), eleven betas (largest error)",
      expected=0, measured=float((drifts[:, 0] - law_1).abs().max()), tolerance=1e-10)
claim("05.price", "law (2), derived here",
      "mean log π/π_ref of chosen and of rejected add to −2 KL(ref to π) (largest error)",
      expected=0, measured=float((drifts.sum(1) - law_2).abs().max()), tolerance=1e-10)
claim("05.table_optimum", "'the chosen cannot fall on a table'",
      "a table, DPO's exact optimum, beta = 0.1: mean log-ratio of the chosen (nats)",
      expected=0, relation="at least", measured=float(drifts[0, 0]))
wins = [round(world.win_rate(pi), 3) for pi in (optima[0], p_plus)]
print("against the reference that optimum and p+ win", *wins)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
rows = (("chosen", colours[0], "-", (0.22, -0.9)), ("rejected", colours[1], "--", (0.42, -2.6)))
for (name, colour, style, at), y in zip(rows, drifts.T):
    left.plot(betas, y, color=colour, linestyle=style)
    plots.label(left, *at, name, colour, xytext=(0, 0))
left.axhline(world.kl(p_plus), color=plots.INK, linestyle=":")
plots.label(left, 0.21, world.kl(p_plus), "ceiling KL(p+ ‖ π_ref)", xytext=(0, 8))
left.set(xscale="log", xlim=(0.19, 11), ylim=(-4, 0.5))
left.set(xlabel="β", ylabel="mean log π/π_ref (nats)")
left.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
left.set_title("A table at DPO's exact optimum")
rows = (("chosen", "-", (4.6, 0.34)), ("rejected", "--", (0.3, 0.37)), ("bystander", ":", (0.1, 0.73)))
for (name, style, at), colour, y in zip(rows, colours, after.T):
    right.plot(2 * push, y, color=colour, linestyle=style)
    plots.label(right, *at, name, colour, xytext=(0, 0))
right.axvline(math.log(7), color=plots.GREY, linestyle=":")
plots.label(right, math.log(7), 0.95, "h = c: the ranking turns", plots.GREY)
right.set(xlabel="h, what DPO has learned of the pair", ylabel="probability", ylim=(0, 1))
right.set_title("One pair on a table")
plots.show(drawn, alt="""Left: at DPO's exact optimum both mean log-ratios fall steeply as beta gets
    smaller; the chosen is above zero only for large beta and never above the dotted ceiling. Right: as
    h grows the chosen rises, the rejected falls, and the bystander rises until h = c, then falls.""")

# %% [markdown]
# No network, no optimiser, the exact RLHF target, and the chosen lose nats. Nothing is wrong: that policy says the best answer nearly always, and most *chosen* answers are not the best. A log-ratio that averages over them must fall.
#
# **When does a ranking turn?** $\beta h=\beta\log\frac{\pi(y_w)}{\pi(y_l)}+\beta c$, with $c$ as above. The policy ranks right, $\pi(y_w)\ge\pi(y_l)$, if and only if $h\ge c$; and the loss falls in $h$. Hence
#
# $$\text{ranked right}\iff L\le-\log\sigma(\beta c).$$

# %% [markdown] exercise="05.4" part="task" stars=2 minutes=8
# ### The loss at which a ranking turns
# From the reference's log-probabilities of chosen and rejected, one threshold a pair.

# %% exercise="05.4" part="stub"
def ranking_threshold(ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """A pair is ranked right exactly if its DPO loss is at most this."""
    raise NotImplementedError


# %% exercise="05.4" part="check"
check("05.4", ranking_threshold)

# %% [markdown] exercise="05.4" part="hints"
# 1. c is positive where the reference ranks the pair wrong.
# 2. A ratio of probabilities is a *difference* of log-probabilities.
# 3. `torch.nn.functional.softplus(-x)` is −log σ(x).

# %% exercise="05.4" part="solution"
def ranking_threshold(ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return -torch.nn.functional.logsigmoid(beta * (ref_rejected - ref_chosen))


check("05.4", ranking_threshold)

# %%
four = -20 + 6 * torch.randn(4, 10_000, generator=random, dtype=torch.float64)
right_way = four[0] >= four[1]
low_loss = objectives.dpo(*four, beta=0.1) <= evaluation.ranking_threshold(four[2], four[3], beta=0.1)
claim("05.threshold", "Chen et al. (2024), theorem 4.1",
      "10,000 random points: ranked right, or loss above −log σ(βc), but not both (exceptions)",
      expected=0, measured=int((right_way != low_loss).sum()), tolerance=0)
perfect = four.clone()  # the rejected moved to where IPO's loss is zero
perfect[1] = perfect[0] - (four[2] - four[3]) - 1 / (2 * 0.1)
ranked_wrong, above = perfect[0] < perfect[1], four[3] - four[2] > 5
odd = (objectives.ipo(*perfect, tau=0.1) > 1e-20) | (ranked_wrong != above)
claim("05.ipo_threshold", "Chen et al. (2024), proposition A.7, and its converse",
      "zero IPO loss (tau = 0.1) ranks wrong exactly where c > 1/(2 tau) = 5 nats (exceptions)",
      expected=0, measured=int(odd.sum()), tolerance=0)
for c in (1.0, 5.0, 20.0, 50.0):
    needed = evaluation.ranking_threshold(torch.tensor(-c), torch.tensor(0.0), beta=0.1)
    print(f"wrong by {c:2.0f} nats: the loss must fall below {float(needed):.4f}")

# %% [markdown]
# So the condition, not the slogan "DPO does not learn rankings": a pair that the reference ranks wrong by 1 nat turns early; by 50, only when its loss is nearly zero. And long texts easily differ by many nats.
#
# ## 4 · Break it on purpose
#
# **The toy of 3D-Properties.** Four prompts, ten responses; prompt $i$ prefers response $i$ to four draws from 4 to 7; 8 and 9 occur in no pair. The paper's claim: the chosen falls, and mass goes to the unseen. The same DPO on a table and on a network, from two of the paper's starts, and two of its answers: *Flex-DPO*, $-\log\sigma\big(\beta_+\log\frac{\pi(y_w)}{\pi_{ref}(y_w)}-\beta_-\log\frac{\pi(y_l)}{\pi_{ref}(y_l)}\big)$ with $\beta_-<\beta_+$, pushes the rejected less; an *SFT term* adds $-\gamma\log\pi(y_w)$. *Predict where the mass goes.*

# %%
toys = {"table": bench.toy(shared=False), "network": bench.toy(),
        "chosen at 0.02": bench.toy(chosen_at=0.02),
        "Flex-DPO": bench.toy(beta_rejected=0.02), "SFT term": bench.toy(sft_weight=0.02)}
for name, found in toys.items():
    print(f"{name:15} chosen: peak {found['chosen'].max(0).values.mean():.2f}; at the end",
          ", ".join(f"{role} {float(path[-1].mean()):.2f}" for role, path in found.items()))


def over_five(slug, source, statement, values, expected=0.0, relation="at least"):
    row = statistics.mean_interval(values)
    claim(f"05.{slug}", source, f"{statement} (5 seeds)", expected, row.estimate, row, relation=relation)


chosen, unseen = toys["network"]["chosen"], toys["network"]["never compared"]
others = toys["chosen at 0.02"]["chosen"].max(0).values
over_five("toy_fall", "Yan et al. (2024), toy",
          "toy network: probability that the chosen lose, from their peak to the end",
          chosen.max(0).values - chosen[-1], 0.01)
over_five("toy_unseen", "Yan et al. (2024), corollary 3",
          "toy network: probability gained by responses that are in no pair of any prompt",
          unseen[-1] - unseen[0])
over_five("toy_start", "Yan et al. (2024): both started at 0.12 does best",
          "toy network: peak of the chosen's probability, started at 0.12 less started at 0.02",
          chosen.max(0).values - others, 0.01)

# %% [markdown]
# The fall reproduces on the network and not on the table; the better start does not. The mass goes elsewhere than the paper says: to *other prompts' chosen responses*, which no pair of this prompt mentions. Shared weights carried the praise over.
#
# **A pair that is always labelled alike.** $P=1$ has no optimum. On a table, by small steps, $m=\beta h$ follows $\dot m=2\beta^2\sigma(-m)$, so $e^m+m=1+2\beta^2t$: for large $t$, $\beta h\approx\log(2\beta^2t)$. *Predict the three others.* With $\ell=-\log\sigma$ and $\varepsilon=0.1$: cDPO is $(1-\varepsilon)\ell(m)+\varepsilon\,\ell(-m)$, for doubted labels; robust DPO, unbiased if labels flip at random, *subtracts*: $\frac{(1-\varepsilon)\ell(m)-\varepsilon\,\ell(-m)}{1-2\varepsilon}$; IPO is $\big(h-\frac1{2\tau}\big)^2$.

# %%
certain = {"dpo": objectives.dpo, "cdpo": objectives.cdpo, "robust_dpo": objectives.robust_dpo,
           "ipo": lambda *four: 0.1 * objectives.ipo(*four)}  # a tenth, so that steps do not overshoot
margins = bench.certain_pair(certain, 4000, 0.5)
print("h after 4,000 steps:", {name: round(path[-1], 1) for name, path in margins.items()})
m = 0.1 * margins["dpo"][-1]
print(f"DPO: e^m + m = {math.exp(m) + m:.1f}; 1 + 2 beta^2 t = {1 + 2 * 0.1**2 * 0.5 * 4000:.1f}")
m, at = 0.0, {}
for t in range(1, 1_000_001):
    m += 0.1 / (1 + math.exp(m))
    at[t] = m
claim("05.log_growth", "derived here",
      "DPO, a certain pair: growth of beta h per e-fold of time, 1e5 to 1e6 steps",
      expected=1, measured=(at[1_000_000] - at[100_000]) / math.log(10), tolerance=1e-3)
stops = []
for name, limit in (("cdpo", math.log(9) / 0.1), ("ipo", 1 / (2 * 0.1))):
    h = torch.tensor(limit, dtype=torch.float64, requires_grad=True)
    stops.append(float(torch.autograd.grad(certain[name](h, *torch.zeros(3).double()), h)[0].abs()))
claim("05.stops", "Mitchell (2023); Azar et al. (2023), eq. (17)",
      "a certain pair: cDPO, IPO rest at h = logit(0.9)/beta, 1/(2 tau) (largest gradient there)",
      expected=0, measured=max(stops), tolerance=1e-9)
claim("05.robust_runs", "what its name suggests",
      "robust DPO rests on a certain pair: growth of h in the last 1,000 of 4,000 steps", expected=0,
      measured=margins["robust_dpo"][-1] - margins["robust_dpo"][-1001], tolerance=0.1)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
shown = [("table", plots.GREY, "-", (115, 0.5)), ("network", colours[0], "-", (230, 0.22)),
         ("Flex-DPO", plots.PALETTE["green"], ":", (110, 0.79)),
         ("SFT term", plots.PALETTE["sand"], "--", (90, 1.05))]
for name, colour, style, place in shown:
    rows = [statistics.mean_interval(values) for values in toys[name]["chosen"]]
    left.plot([row.estimate for row in rows], color=colour, linestyle=style)
    low, high = [row.low for row in rows], [row.high for row in rows]
    plots.interval_band(left, range(len(rows)), low, high, colour)
    plots.label(left, *place, name, colour, xytext=(0, 0))
left.set(xlabel="step", ylabel="probability of the chosen", ylim=(0, 1.12))
left.set_title("The toy (5 seeds, 95 %)")
places = {"dpo": (2500, 26), "cdpo": (1300, 12.5), "robust_dpo": (130, 34), "ipo": (25, 7)}
for name, place in places.items():
    look = plots.look(name)
    right.plot(range(1, 4001), margins[name][1:], color=look.color, linestyle=look.linestyle)
    plots.label(right, *place, look.label, look.color, xytext=(0, 0))
right.set(xscale="log", xlabel="step", ylabel="margin h (nats)", ylim=(0, 50))
right.set_title("One certain pair (table)")
plots.show(drawn, alt="""Left: probability of the chosen in the toy. On a table it rises steadily; on a
    network with DPO it peaks early near 0.33 and falls; Flex-DPO peaks near one and falls a little;
    with an SFT term it goes to one. Right: margin of a certain pair against log time: IPO stops at 5,
    cDPO near 22, DPO grows like a straight line, robust DPO faster.""")

# %% [markdown]
# IPO stops, cDPO is about to, DPO grows like $\log t$. Robust DPO takes flips for granted, so a pair that always agrees is evidence beyond certainty: it runs, in the end along a straight line in time.
#
# ## 5 · On the bench with the others
#
# **The pocket model**, under conditions that provoke the fall: 512 pairs, four times each, a high learning rate. The probability of *all training texts* is an exact sum; what the rest is worth is read from samples. *Predict: at the start, does a pair's own
# rejected response drag its chosen one down?*

# %% tags=["nbval-ignore-output"]
pairs, fresh = preferences.draw_pairs(desk, 512, seed=0), preferences.draw_pairs(desk, 200, seed=990)
policy, path = desk.new_policy(), []
g_w, g_l = (bench.gradients(policy, pairs.prompt[:24], texts[:24])
            for texts in (pairs.chosen, pairs.rejected))
drag = (g_w * g_l).sum(-1) / g_w.square().sum(-1)
print(f"g_w·g_l / |g_w|², 24 pairs: {float(drag.min()):.2f} to {float(drag.max()):.2f}")


def watch(model, step):
    some = (fresh, pairs.take(torch.arange(200)))
    log_ratios = [each for each_set in some for each in bench.log_ratios(desk, model, each_set)]
    path.append([step, *(float(each.mean()) for each in log_ratios)])
    return {}


settings = TrainingSettings(steps=64, batch_size=32, learning_rate=1e-3, schedule="linear",
                            clip_gradient=1.0, evaluate_every=32)
train(policy, pairs, "dpo", beta=0.1, settings=settings, evaluate=watch, progress=False)
for name, model in (("BEFORE", None), ("AFTER", policy)):
    print(f"\n{name}: win rate {desk.win_rate(model, per_prompt=10)}\n")
    desk.show(desk.draw(model, per_prompt=1, seed=3), 3)
claim("05.drag", "a common explanation: a pair's own rejected drags its chosen down",
      "pocket model, 24 pairs before training: the largest g_w·g_l / |g_w|² is at least 1",
      expected=1, relation="at least", measured=float(drag.max()), digits=1)

# %% tags=["nbval-ignore-output"]
before, after_training = (bench.account(desk, model, pairs) for model in (None, policy))
for name, share in before.items():
    print(f"{name:28} before {share:.4f}  after {after_training[name]:.4f}")
broken, better = (bench.column(runs, "DPO", kind) - before[kind] for kind in ("broken", "better"))
over_five("account", "'the mass goes to nonsense'",
          "pocket model, DPO: probability that broken texts gain, less what better ones gain",
          broken - better)

# %% tags=["figure", "nbval-ignore-output"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.6)
steps, held_w, held_l, train_w, train_l = torch.tensor(path).T
lines = [(train_w, colours[0], ":", "chosen, training"), (held_w, colours[0], "-", "chosen, fresh"),
         (train_l, colours[1], ":", "rejected, training"), (held_l, colours[1], "-", "rejected, fresh"),
         ((held_w + held_l) / 2, plots.GREY, "--", "half their sum")]
for values, colour, style, name in lines:
    left.plot(steps, values, color=colour, linestyle=style)
    plots.label(left, 64, float(values[-1]), name, colour)
left.axhline(ceiling, color=plots.INK, linestyle=":")
plots.label(left, 86, ceiling, "ceiling", xytext=(0, -11))
left.set(xlabel="step", ylabel="mean log π/π_ref (nats)", xlim=(0, 112), xticks=range(0, 65, 16))
left.set_title("One run: both pay the price")
names = ["training: chosen", "training: rejected", "better", "worse", "broken"]
change = [math.log2(after_training[name] / before[name]) for name in names]
bars = right.barh(range(5), change, color=[*colours[:2], *[plots.GREY] * 3])
shown = [f"{before[n]:.3f} → {after_training[n]:.3f}" for n in names]
right.bar_label(bars, shown, padding=3, fontsize=9)
right.axvline(0, color=plots.INK, linewidth=0.8)
right.set(yticks=range(5), yticklabels=names, xlabel="total probability: doublings")
right.set_title("Where the mass went")
right.margins(x=0.6)
plots.show(drawn, alt="""Left: mean log-ratios during training. On fresh pairs chosen and rejected both
    fall, the rejected more; on training pairs the chosen fall less; half the sum of the fresh ones is
    the price. Right: total probability before and after: training texts lose, better texts gain, worse
    ones lose, and the few broken ones multiply.""")

# %% [markdown]
# The account: training texts hold one percent of the mass; nearly all that a policy says was in no pair. Chosen texts hardly change, rejected ones lose, *worse* texts most; *better* texts gain, and so, less, do broken ones: the rate is high.
#
# The cause? At the start no pair looked at has section 1's conflict with its own rejected response (other pairs and later steps were not looked at). But law (2) needs no shared weight: the policy takes probability from most of what the reference says, and fresh chosen responses are drawn from there, as on the table.
#
# **The usual answers**, equal steps, five seeds. SimPO has no reference and divides by length; KTO reads single responses.

# %%
keys = {"chosen_held": "chosen", "rejected_held": "rejected", "fell_held": "fell", "win_rate": "wins",
        "chosen_train": "training", "kl_to_preferred": "KL p+", "kl_to_reference": "KL ref",
        "words": "words", "grammatical": "gramm.", "flipped": "flipped"}
bench.print_means(runs, keys)
print("chosen, rejected: mean log-ratios, fresh pairs; fell: share of fresh chosen that lost; training:")
print("chosen, training pairs; KL p+: KL(p+ ‖ π); KL ref: KL(π ‖ π_ref); flipped: wrong pairs turned")
bench.print_differences(runs, {key: keys[key] for key in ("chosen_held", "win_rate", "kl_to_preferred")})
what = {"chosen_held": "mean log π/π_ref of fresh chosen texts (nats)", "win_rate": "win rate"}

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=5.2, height=4.2)
at = {"DPO + SFT term": (14, -16), "Flex-DPO 0.08": (-6, 36), "IPO": (14, 6), "DPO": (-16, 1),
      "DPO, 2,048 pairs": (4, -44), "cDPO": (-20, 9), "robust DPO": (-14, -3), "SimPO": (-10, -4),
      "… and a gentle rate": (-10, -12), "KTO": (6, -14)}
for place, name in enumerate(names := list(reversed(bench.ANSWERS))):
    for key, colour, marker in sides:
        row = statistics.mean_interval(bench.column(runs, name, key))
        left.errorbar(row.estimate, place, xerr=row.half_width, fmt=marker, color=colour, capsize=3)
    wins = statistics.mean_interval(bench.column(runs, name, "win_rate"))
    x, y = bench.column(runs, name, "chosen_held").mean(), wins.estimate
    look = plots.look({"dpo_with_sft": "sft"}.get(method := bench.ANSWERS[name]["method"], method))
    right.errorbar(x, y, yerr=wins.half_width, fmt=look.marker, color=look.color, elinewidth=0.5)
    right.annotate(name, (x, y), xytext=(off := at.get(name, (8, 3))), textcoords="offset points",
                   fontsize=8, ha="left" if off[0] > 0 else "right",
                   arrowprops={"arrowstyle": "-", "color": plots.GREY, "linewidth": 0.6})
left.axvline(ceiling, color=plots.INK, linestyle=":")
left.set(yticks=range(len(names)), yticklabels=names, xlabel="mean log π/π_ref, fresh pairs")
left.set_title("● chosen, ▼ rejected; dotted: ceiling")
right.set(xlabel="chosen: mean log π/π_ref, fresh pairs", ylabel="win rate")
right.set_title("How far the chosen fell, and who wins (95 %)")
right.margins(0.2)
plots.show(drawn, alt="""Left: drift of chosen and rejected for twelve settings with 95 percent
    intervals; all stay below the ceiling, KTO is lowest. Right: win rate against the drift of the
    chosen: from minus 0.6 to minus 0.2 it hardly changes; where the chosen does not fall, fewer
    comparisons are won.""")

# %%
own = {key: bench.column(runs, "DPO", key) for key in (*keys, "to_learn", "ranking")}
over_five("pocket_fall", "the field's question", f"pocket model, DPO: {what['chosen_held']}",
          own["chosen_held"], relation="at most")
over_five("pocket_law", "law (1)", f"pocket model, DPO: {what['chosen_held']}, less what law (1) says",
          own["chosen_held"] - (own["to_learn"] - own["kl_to_preferred"]), relation="equals")
for slug, source, name, key in bench.HOPES:
    over_five(slug, source, f"pocket model: {name} less DPO, {what[key]}",
              bench.column(runs, name, key) - own[key])

# %% [markdown]
# **Reading it.** On fresh pairs DPO, robust DPO, SimPO and KTO lose most (KTO's seeds differ widely), and law (1) gives the number. IPO, the SFT term and Flex-DPO at 0.08 lose about half as much and win as often: ties, so the other half bought no wins. Flex-DPO at 0.02 and the gentle rate lose nothing and win less: in equal steps they moved less. cDPO saves little; robust DPO loses more. Of eleven intervals, one that just clears zero is weak.
#
# **Rankings.** The *idealised ranking accuracy* (Chen et al., corollary 3.3) is perfect training's: $\log\frac{\pi(y_w)}{\pi(y_l)}=\frac{\operatorname{logit}P}{\beta}-c$. They compare with its median over five β. *Predict: how far below is DPO, and which wrong pairs does it turn?*

# %% tags=["nbval-ignore-output"]
ideal = torch.tensor([run["accuracy"] for run in experiments.results("05_idealised", RECOMPUTE)])
before_dpo = bench.column(runs, "DPO", "ranking_before")
print("idealised, β = 0.01, 0.1, 1, 5, 10:", [f"{share:.2f}" for share in ideal.mean(0).tolist()])
print(f"the reference {before_dpo.mean():.2f}, DPO (β = 0.1) {own['ranking'].mean():.2f}")
near, far = (bench.column(runs, "DPO", f"flipped_{where}") for where in ("near", "far"))
over_five("gap", "Chen et al. (2024): 19 to 59 points",
          "pocket model: idealised (their median over five β) less DPO's ranking accuracy",
          ideal.median(1).values.numpy() - own["ranking"], 0.19)
over_five("gap_same_beta", "Chen et al. (2024): 19 to 59 points, read at DPO's own beta",
          "pocket model: idealised at beta = 0.1 less ranking accuracy of DPO at beta = 0.1",
          ideal[:, 1].numpy() - own["ranking"], 0.19)
over_five("flips", "Chen et al. (2024), their models: under 10 %",
          "pocket model: share of pairs ranked wrong by the reference that DPO turns", own["flipped"],
          0.1, relation="at most")
print(f"turned: {near.mean():.0%} of those wrong by < 1 nat, {far.mean():.0%} of those by > 3 nats:",
      "what stays wrong stands at a large c")
over_five("flips_near", "theorem 4.1, read here",
          "pocket model, DPO: share turned of pairs wrong by < 1 nat, less of those by > 3",
          near - far, 0.3)

# %% [markdown] exercise="05.5" part="task" stars=3 minutes=30 open=true
# ### Which pairs make the chosen fall?
# Score the 512 training pairs by something that you can compute before training: edit distance, $g_w\cdot g_l/\|g_w\|^2$, $|c|$, or the judge's $P$. Train on the better half by your score and on a random half. Does the chosen fall less, and do you pay in wins?

# %% [markdown] exercise="05.5" part="hints"
# 1. Equal numbers of pairs and steps, the same seeds for both halves.
# 2. Law (2) says what a falling chosen costs: compare at equal margin, not at equal steps.
# 3. Measure on fresh pairs; on the training pairs memory helps the smaller set.

# %% [markdown] exercise="05.5" part="solution"
# A good answer names its score before training, uses at least five seeds, and gives paired differences with intervals, of the chosen drift *and* of the win rate. It compares at equal mean margin, because a half that teaches less also falls less. Razin et al. filter by similarity of hidden embeddings;
# here, where no pair has the conflict at the start, expect a small effect, and say so if it is a tie.

# %% [markdown]
# ## When to use it
#
# A falling chosen is no error by itself, nor a wrong ranking at a large $c$. Watch three numbers on *fresh* pairs: the margin, half the sum of both log-ratios (minus the price, if the reference wrote the pairs), and wins. If only the price grows, move less: a lower rate, a larger β, IPO, an SFT term. cDPO bounds certain pairs; robust DPO is for known flips.
#
# **TRL 1.16:** `loss_type=["sigmoid", "sft"]` with `loss_weights` adds the SFT term, a *mean over tokens*; `label_smoothing` acts in `robust`, not in `sigmoid`; `ipo` divides by length. `CPOTrainer` with `loss_type="simpo"` is SimPO only with `cpo_alpha=0`. No Flex-DPO.
#
# ## What we measured

# %%
ledger.rows("05")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | chosen log-probability falls | look at the margin and at KL(π_ref ‖ π) first: law (2) |
# | it rises on training pairs and falls on fresh ones | memory; laws are about fresh pairs |
# | "rankings are not learned" | $c$ is large: compare the loss with −log σ(βc) |
# | far below the idealised accuracy | at which β? A median over five is not your own |
# | log-probabilities divided by each other | a ratio of probabilities is a difference of logs (a released script divides) |
# | robust DPO runs away | ε > 0 and clean, repeated pairs: the loss falls without end |
# | IPO in TRL does not follow eq. (17) | it divides by the length, as agreed with the authors, its source says |

# %% [markdown]
# ## References
#
# - Y. Yan et al. (2024). *3D-Properties*, arXiv 2406.07327: corollaries 1–3, Flex-DPO, the toy.
# - A. Chen et al. (2024), arXiv 2405.19534, on rankings: corollary 3.3, theorem 4.1, proposition A.7.
# - N. Razin et al. (2024). *Unintentional unalignment*, arXiv 2410.08847: No, Never, Yes; embeddings.
# - A. Pal et al. (2024). *Smaug*, arXiv 2402.13228: DPO-Positive.
# - E. Mitchell (2023): issue 32 of his DPO repository; *A note on DPO with noisy preferences*: cDPO.
# - Robust DPO: arXiv 2403.00409. IPO: 2310.12036, eq. (17). SimPO: 2405.14734. KTO: 2402.01306.
# - TRL 1.16: `trainer/dpo_trainer.py`, `kto_trainer.py`, `experimental/cpo/`.
#
# ## Next
#
# **06 · EXO**: which divergence do you minimise?
