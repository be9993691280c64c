# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "References that move", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 07 · References that move
#
# DPO holds the policy near a reference. TR-DPO lets that reference follow. This lesson derives what that does, to the last digit: the same policies as before, met one after another. Then it over-optimises a proxy with and
# without it, and asks whether anything is gained.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive the law of a moving reference, and say for which losses, and in which space of mixing, it is exact;
# 2. read α and τ as a schedule for an effective β;
# 3. compare two methods at equal KL instead of at equal steps;
# 4. say when a moving reference hurts, and what TRL's arguments do.

# %% [markdown]
# ## Prerequisites
#
# Lessons 04 (DPO) and 03 (its target). About 70 minutes with the exercises. Test yourself:
#
# <details><summary>Which policy does DPO reach with infinite Bradley–Terry data?</summary>π = π_ref exp(r/β) / Z.</details>
# <details><summary>β is halved. Does that policy lie nearer to the reference, or farther from it?</summary>Farther: a small β is a weak brake.</details>
#
# *Not covered:* fresh comparisons from the new policy (12), EXO (06); of TR-IPO and TR-KTO, training on the pocket model.

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

from course_utils import experiments, ledger, plots, preferences, statistics
from course_utils.errors import CourseError
from course_utils.experiments import lesson_07 as moving
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.policies import MLPPolicy, TablePolicy
from course_utils.references import MovingReference
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% [markdown]
# Six answers to a guest, and two judges. The **proxy** labels the data, and loves praise. The **true** reward likes a little of it, and none of the gushing. We train on the proxy, and watch the truth. `stages` solves DPO
# exactly, moves the reference, solves again, and so on.

# %%
replies = ["wrong", "short", "right", "right, warm", "flattering", "gushing"]
pi0 = torch.tensor([[0.20, 0.28, 0.30, 0.12, 0.07, 0.03]], dtype=torch.float64)
truth = torch.tensor([[-1.5, 0.3, 1.0, 1.5, 0.2, -1.2]], dtype=torch.float64)
proxy = torch.tensor([[-0.8, 0.0, 0.6, 1.1, 1.6, 2.2]], dtype=torch.float64)
world = FiniteWorld.from_rewards(pi0, proxy)


def stages(objective, alpha, space="log-probabilities", count=6, **settings):
    """The exact policy after each stage; the reference moves between two stages."""
    policy, found = TablePolicy.from_probabilities(pi0), []
    ref = MovingReference(policy, alpha, every=1, space=space)
    for _ in range(count):
        best = world.population_minimiser(objective, reference=ref, proposal=pi0, **settings)
        with torch.no_grad():
            policy.logits.copy_(best.log())
        ref.after_step(policy)
        found.append(best)
    return found

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
fixed_look, moving_look = plots.look("dpo"), plots.look("tr_dpo")
curve = [world.rlhf_optimum(float(beta)) for beta in np.geomspace(60, 0.4, 80)]
kls = [world.kl(policy) for policy in curve]
left.plot(kls, [world.expected_reward(p, truth) for p in curve], color=fixed_look.color)
left.plot(kls, [world.expected_reward(p) for p in curve], color=plots.GREY, linestyle=":")
for alpha, colour, marker, size in ((1.0, moving_look.color, "P", 9),
                                    (0.4, plots.PALETTE["orange"], "o", 6)):
    met = stages("dpo", alpha, beta=3.0)
    left.plot([world.kl(p) for p in met], [world.expected_reward(p, truth) for p in met],
              marker, color=colour, markersize=size, markeredgecolor="white")
    right.plot(range(1, 7), [3 / (1 + alpha * k) for k in range(6)], color=colour, marker=marker)
plots.label(left, 1.0, 1.22, "proxy reward", plots.GREY)
plots.label(left, 0.95, 0.28, "true reward,\nevery fixed β", fixed_look.color)
plots.label(left, 0.02, -0.42, "markers: the stages of the right panel", plots.INK, xytext=(0, 0))
left.set(xlabel="KL from the original reference (nats)", ylabel="expected reward", ylim=(-0.6, 1.9))
left.set_title("the same road, walked farther")
plots.label(right, 3, 1.75, "soft, α = 0.4", plots.PALETTE["orange"])
plots.label(right, 1.5, 0.7, "hard, α = 1", moving_look.color, xytext=(0, 0))
right.set(xlabel="stage", ylabel="effective β", ylim=(0, 3.2), title="a β that shrinks")
plots.show(drawn, alt="""Left: expected reward against KL from the original reference. The proxy
    rises throughout; the true reward rises, peaks and falls. The stages of a hard and of a soft
    moving reference all lie on the curve of fixed references. Right: effective beta falls
    with the stage, faster for the hard update.""")

# %% [markdown]
# Left: the blue curve is what DPO reaches with a fixed reference, for every β. The markers are DPO with a reference that moves. They lie *on* the curve. A moving reference walks the same road, past the top and down the other
# side. Why exactly the same road, and is it so outside a table?
#
# ## 1 · Derive

# %% [markdown]
# *Question: what does one stage do?* Let the reference be any $\rho$. With Bradley–Terry labels of a reward $r$, DPO's expected loss is least where its margins are the judge's log-odds, for every two responses:
#
# $$\beta\Big[\log\frac{\pi(a)}{\rho(a)}-\log\frac{\pi(b)}{\rho(b)}\Big]=r(a)-r(b).$$
#
# So $\log\pi=\log\rho+g+\text{const}$ with $g=r/\beta$. Note what is absent: $g$ does not depend on $\rho$. Whatever the reference is, a stage adds the same $g$ on top of it.

# %% [markdown]
# *And the moves?* The soft update mixes with $\alpha$ as the **policy's** share; $\alpha=1$, the copy, is the hard one. Mix log-probabilities, dropping constants that $Z$ takes up:
#
# $$\log\rho_{k}=\alpha\log\pi_k+(1-\alpha)\log\rho_{k-1}=\log\rho_{k-1}+\alpha\,(\log\pi_k-\log\rho_{k-1})=\log\rho_{k-1}+\alpha g.$$
#
# Start at $\rho_0=\pi_0$. Before stage $k$ the reference has moved $k-1$ times, so $\log\rho_{k-1}=\log\pi_0+\alpha(k-1)g$, and the stage adds $g$:
#
# $$\boxed{\;\pi_k=\pi_0\,\exp\!\big((1+\alpha(k-1))\,r/\beta\big)/Z\;}$$

# %% [markdown]
# That is DPO's target at $\beta_{\text{eff}}=\beta/(1+\alpha(k-1))$ from the *original* reference. The brake is let go a little with each move, so the number of moves, steps divided by τ, is the true regulariser. As $k\to\infty$ nothing is
# left but the response with the largest reward.
#
# *Predict: which of DPO, IPO and KTO obey this law?*
#
# ## 2 · Implement

# %% [markdown] exercise="07.1" part="task" stars=1 minutes=5
# ### The effective beta
# Return the β of the fixed-reference DPO that gives the policy of stage `stage` (counted from 1).

# %% exercise="07.1" part="stub"
def effective_beta(beta: float, alpha: float, stage: int) -> float:
    """The beta of the same policy with a reference that stays."""
    raise NotImplementedError


# %% exercise="07.1" part="check"
check("07.1", effective_beta)

# %% [markdown] exercise="07.1" part="hints"
# 1. How often has the reference moved before stage 1? Before stage 2?
# 2. Every move adds α r/β to the log-ratio, the stage itself r/β.
# 3. Write (1 + α(k − 1)) r/β as r/β_eff.

# %% exercise="07.1" part="solution"
def effective_beta(beta: float, alpha: float, stage: int) -> float:
    return beta / (1 + alpha * (stage - 1))


check("07.1", effective_beta)

# %% [markdown] exercise="07.2" part="task" stars=1 minutes=8
# ### The soft update
# `policy` and `ref` are log-probabilities, [prompts, responses]. Mix the log-probabilities with `alpha` and return the new reference, again as log-probabilities.

# %% exercise="07.2" part="stub"
def move_reference(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    """The log-probabilities of the new reference."""
    raise NotImplementedError


# %% exercise="07.2" part="check"
check("07.2", move_reference)

# %% [markdown] exercise="07.2" part="hints"
# 1. alpha = 1 must give the policy.
# 2. A weighted sum of log-probabilities is a log-probability only up to a constant per prompt.
# 3. `torch.log_softmax(..., dim=-1)` finds that constant.

# %% exercise="07.2" part="solution"
def move_reference(policy: Tensor, ref: Tensor, alpha: float) -> Tensor:
    return torch.log_softmax(alpha * policy + (1 - alpha) * ref, dim=-1)


check("07.2", move_reference)

# %% [markdown]
# For a table this is the same as mixing the *logits*, its parameters. For a network it is not: there one mixes **weights**, name by name, as the paper and TRL do. In the package: `MovingReference(policy, alpha, every)`; the training loop
# tells it after each step that a step has passed. Nothing else about DPO, IPO or KTO changes.

# %%
policy = TablePolicy.from_probabilities(pi0)
ref = MovingReference(policy, alpha=0.6, every=50)
pairs = preferences.draw_pairs(world, 4_000, seed=0)
settings = TrainingSettings(steps=200, batch_size=64, learning_rate=0.05)
train(policy, pairs, "dpo", ref=ref, settings=settings, beta=1.0, progress=False)
print(f"{ref.steps} steps, {ref.updates} moves")
print(f"KL from the original reference: policy {world.kl(policy):.1f}, reference {world.kl(ref):.1f}")

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# Each stage is solved by Newton's method and held against the law: six stages, hard and soft, in three spaces of mixing. TRL's documentation writes the update as $\pi_{ref}\leftarrow\alpha\pi_\theta+(1-\alpha)\pi_{ref}$. *Predict: read as
# probabilities, how far off is the law?*

# %%
def law_error(space, alphas=(1.0, 0.6, 0.2), objective="dpo"):
    """The largest difference between a stage's policy and the law, over six stages."""
    return max(float((found - world.rlhf_optimum(1.0 / (1 + alpha * k))).abs().max())
               for alpha in alphas for k, found in enumerate(stages(objective, alpha, space, beta=1.0)))


claim("07.law", "derived here",
      "mixing log-probabilities or logits, TR-DPO obeys the effective-beta law (6 stages, 3 alphas)",
      expected=0, measured=max(map(law_error, ("log-probabilities", "parameters"))), tolerance=1e-8)
claim("07.law_probabilities", "TRL's documentation of ref_model_mixup_alpha, read literally",
      "mixing probabilities, TR-DPO's soft updates obey the effective-beta law (largest error)",
      expected=0, measured=law_error("probabilities", (0.6, 0.2)), tolerance=1e-8)

# %% [markdown]
# A mixture of probabilities keeps what the old reference kept: the stages lag far behind the law. Now a network: three prompts through sixteen shared hidden units, rich enough for every target here. Its *weights* are mixed.

# %%
def network_error(alpha, seed, count=3):
    """Largest error of the law for a small network whose weights are mixed; L-BFGS solves each stage."""
    policy = MLPPolicy(3, 5, hidden=(16,), seed=seed)
    reward = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own = FiniteWorld.from_rewards(policy.probabilities().detach(), reward)
    ref, errors = MovingReference(policy, alpha, every=1), []
    for k in range(count):
        own.fit_policy("dpo", policy, reference=ref, proposal=own.reference, beta=1.0)
        wanted = own.rlhf_optimum(1 / (1 + alpha * k))
        errors.append(float((policy.probabilities().detach() - wanted).abs().max()))
        ref.after_step(policy)
    return max(errors)

# %%
claim("07.hard_network", "derived here",
      "hard updates obey the effective-beta law for a network too (3 networks, largest error)",
      expected=0, measured=max(network_error(1.0, seed) for seed in range(3)), tolerance=1e-5)
claim("07.soft_network", "the law, taken over to weights",
      "soft updates of weights obey the effective-beta law (alpha 0.6, 3 networks, largest error)",
      expected=0, measured=max(network_error(0.6, seed) for seed in range(3)), tolerance=1e-5)

# %% [markdown]
# So: **hard** updates obey the law wherever the policy can reach the target. **Soft** ones do so exactly in log-probabilities. In probabilities they do not; in weights roughly, as far as a network this small can tell.
#
# *Which other losses?* The derivation used only this: the minimiser is the reference plus a $g$ that does not know the reference. IPO's least squares give such a $g$, with pairs from a fixed source. KTO's does not exist: by majority vote a
# response's log-ratio runs to one end or the other (its docstring derives it).

# %%
error = 0.0
for alpha in (1.0, 0.6):
    ratios = [(found / pi0).log() for found in stages("ipo", alpha, tau=1.0)]
    first, *_ = steps = [ratio - ratio.mean() for ratio in ratios]
    error = max(error, *(float((step / (1 + alpha * k) - first).abs().max())
                         for k, step in enumerate(steps)))
claim("07.ipo", "derived here",
      "TR-IPO: log(pi/pi0) after stage k is 1 + alpha (k - 1) times the first (largest error)",
      expected=0, measured=error, tolerance=1e-8)
try:
    stages("kto", 1.0, count=1)
    exists = 1
except CourseError as problem:
    exists = 0
    print(str(problem).split("\n")[0])
claim("07.kto", "the law, taken over to TR-KTO",
      "KTO's first stage has a finite minimiser, as the effective-beta law needs (1 yes, 0 no)",
      expected=1, measured=exists, tolerance=0)

# %% [markdown]
# For TR-KTO there is no stage to finish: only early stopping keeps it anywhere, with a moving reference or without.
#
# ## 4 · Break it on purpose
#
# **Labels without doubt.** One pair, always labelled the same way: $r(a)-r(b)=\infty$, so DPO has no optimum, and the margin $h$ (log-ratio of chosen minus rejected, from $\pi_0$) grows for ever. But slowly: the gradient $\beta\,\sigma(-\beta h)$ fades.
# A moving reference looks back only to its last move. *Predict: does it slow this growth, or speed it up?*

# %% tags=["figure"]
runs = [("DPO, fixed", None, 1), ("soft, α = 0.6, every 512", 0.6, 512), ("hard, every 512", 1.0, 512),
        ("hard, every 64", 1.0, 64), ("hard, every step", 1.0, 1)]
colours = [fixed_look.color, plots.PALETTE["orange"], plots.PALETTE["violet"],
           plots.PALETTE["pink"], moving_look.color]
drawn, axes = plots.figure(width=7.4, height=3.6)
paths = {name: moving.certain_pair(alpha, every) for name, alpha, every in runs}
for (name, path), colour in zip(paths.items(), colours):
    axes.plot(path, color=colour)
    lift = {"hard, every step": 5, "hard, every 64": -5}.get(name, 0)
    plots.label(axes, 4000, path[-1], f"{name}: {path[-1]:.0f}", colour, xytext=(6, lift))
axes.set(xlim=(0, 5900), ylim=(0, 215), xlabel="gradient steps (β = 0.1, learning rate 0.5)")
axes.set(ylabel="margin from the original\nreference (nats)", title="one pair, never in doubt")
axes.set_xticks(range(0, 4001, 1000))
plots.show(drawn, alt="""Margin of one always-equally-labelled pair against steps. Fixed DPO bends
    over and ends near 36 nats after 4,000 steps; soft updates every 512 end near 91, hard ones
    every 512 near 120, every 64 near 185; a hard update at every step gives a straight
    line to 200.""")

# %%
claim("07.pair_slower", "a plain reading of 'mitigates over-optimisation'",
      "labels without doubt: moving the reference slows DPO's runaway (margin, hard 64 over fixed)",
      expected=1, relation="at most",
      measured=paths["hard, every 64"][-1] / paths["DPO, fixed"][-1])
certain = FiniteWorld([[0.5, 0.3, 0.2]], torch.tensor([[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]]).double())
policy = TablePolicy.from_probabilities(certain.reference)
watched = train(policy, preferences.draw_pairs(certain, 64, seed=0), "dpo", beta=0.1, progress=False,
                ref=MovingReference.hard(policy, every=1),
                settings=TrainingSettings(steps=100, learning_rate=0.1)).history.column("loss")
claim("07.log_two", "derived here",
      "DPO, reference copied after every step: the logged loss stays log 2, while the policy moves",
      expected=math.log(2), measured=float(watched[-1]), tolerance=1e-6)
print(f"meanwhile the policy moved {certain.kl(policy):.2f} nats")

# %% [markdown]
# It speeds it up, five times; copied after every step, each step sees $\sigma(0)=\frac12$ and the line is straight. The paper's motive was just this fading curvature, $\beta^2\sigma(\beta h)\sigma(-\beta h)$: moving the reference restores the gradient. For labels in doubt that helps a slow optimiser; for labels without doubt the
# fading gradient was the only brake. And the last row: when the reference is a fresh copy, loss, margins and accuracies say nothing, though the model is moving.

# %%
def curvature(h, beta=0.1):
    return beta**2 / (1 + math.exp(-beta * h)) / (1 + math.exp(beta * h))

print("curvature at h = 0, 50, 100:", *(f"{curvature(h):.2g}" for h in (0, 50, 100)))
lag = 0.0  # how many steps a reference updated after every step is behind a steady policy
for _ in range(50):
    lag = (1 - 0.6) * (lag + 1)
print(f"soft, alpha 0.6, at every step: the reference lags {lag:.3f} steps; (1 - a)/a = {0.4 / 0.6:.3f}")

# %% [markdown]
# The lag explains a confusion. Is the soft update made at every step, or every τ steps? Accounts of the paper present α and τ as two *separate* methods; TRL applies α every τ steps. With α = 0.6 at every step the reference is two thirds
# of a step behind: practically no reference.
#
# ## 5 · On the bench with the others
#
# **At equal steps a moving reference has simply gone farther.** So compare true rewards at equal KL from the *original* reference.

# %% [markdown] exercise="07.3" part="task" stars=2 minutes=12
# ### At equal KL
# Two paths, each with increasing KL and the true reward there. Interpolate both at 101 KLs, equally spaced over the range that both cover, and return the mean of $a-b$.

# %% exercise="07.3" part="stub"
def at_equal_kl(kl_a: np.ndarray, truth_a: np.ndarray, kl_b: np.ndarray, truth_b: np.ndarray) -> float:
    """Mean difference of the true reward at equal KL."""
    raise NotImplementedError


# %% exercise="07.3" part="check"
check("07.3", at_equal_kl)

# %% [markdown] exercise="07.3" part="hints"
# 1. The common range goes from the larger start to the smaller end.
# 2. `np.interp(grid, kl, truth)` interpolates; beyond the end it repeats the last value silently.
# 3. `np.linspace(low, high, 101)` gives the grid.

# %% exercise="07.3" part="solution"
def at_equal_kl(kl_a: np.ndarray, truth_a: np.ndarray, kl_b: np.ndarray, truth_b: np.ndarray) -> float:
    grid = np.linspace(max(kl_a[0], kl_b[0]), min(kl_a[-1], kl_b[-1]), 101)
    return float((np.interp(grid, kl_a, truth_a) - np.interp(grid, kl_b, truth_b)).mean())


check("07.3", at_equal_kl)

# %% [markdown]
# First the finite world. For each stage of a moving reference, bisection finds the β at which a *fixed* reference has the same KL; the law is not used. *Predict the difference of their true rewards, for each space of mixing.*

# %%
def benefit(policy):
    """True reward of a policy, less that of fixed-reference DPO at the same KL from pi0."""
    low, high = -6.0, 6.0  # log beta
    for _ in range(60):
        middle = (low + high) / 2
        wide = world.kl(world.rlhf_optimum(math.exp(middle))) > world.kl(policy)
        low, high = (middle, high) if wide else (low, middle)
    return world.expected_reward(policy, truth) - world.expected_reward(
        world.rlhf_optimum(math.exp(low)), truth)


exact = [benefit(found) for alpha in (1.0, 0.6) for found in stages("dpo", alpha, beta=1.0)]
claim("07.equal_kl_exact", "derived here",
      "finite world: a moving reference gains nothing at equal KL (true reward, worst of 12 stages)",
      expected=0, measured=max(map(abs, exact)), tolerance=1e-8)
mixed = [benefit(found) for found in stages("dpo", 0.2, "probabilities", beta=1.0)]
claim("07.equal_kl_probabilities", "the same, taken over to mixing probabilities",
      "finite world, probabilities mixed, alpha 0.2: nothing is lost at equal KL (worst of 6 stages)",
      expected=0, measured=min(mixed), tolerance=1e-8)

# %% [markdown]
# With each stage solved to the end, mixing log-probabilities stays on the road: nothing can be gained there, whatever α. Mixing probabilities leaves it, in this world for the worse: a mixture holds the old and the new at once, which costs KL without using it well.
#
# **The pocket model.** The proxy `surface` rewards flattery and length besides some right things; the true judge is `bradley_terry`. Read one run by eye: DPO on the proxy's labels, β = 0.5, the reference copied every ten steps.

# %% tags=["nbval-ignore-output"]
desk = pocket.load_world("bradley_terry")
labelled = preferences.draw_pairs(desk.with_judge("surface"), 1_280, seed=1)
policy = desk.new_policy()
settings = TrainingSettings(steps=40, batch_size=32, learning_rate=1e-3, clip_gradient=1.0)
ref = MovingReference.hard(policy, every=10)
train(policy, labelled, "dpo", beta=0.5, ref=ref, settings=settings, progress=False)
for title, model in (("BEFORE", None), ("AFTER 40 steps, reference moved 4 times", policy)):
    print(title, end="\n\n")
    desk.show(desk.draw(model, per_prompt=1, seed=3), 3)

# %% [markdown]
# Now five seeds, stored: 96 steps on 3,072 pairs of the original reference, each seen once. DPO at β = 0.5 with a reference that is fixed, soft (α = 0.6, every 16) or hard (every 16); a **fixed reference with β = 0.1**, near where the law ends; and
# SFT on the chosen responses. *Predict: at equal KL, who keeps more of the true reward?*

# %% tags=["nbval-ignore-output"]
RECOMPUTE = False  # True: about 18 minutes on one core
runs = experiments.results("07_over_optimisation", recompute=RECOMPUTE)
arms = {"sft": "SFT on the chosen", "fixed": "DPO, β = 0.5, fixed", "soft": "… soft, α = 0.6",
        "hard": "… hard", "fixed, small beta": "DPO, β = 0.1, fixed"}
numbers = ("kl", "proxy", "truth", "flattery", "words", "correct", "grammatical")
print(f"{'at the end, 5 seeds':20}", *(f"{name:>12}" for name in numbers))
for arm, title in arms.items():
    print(f"{title:20}", *(f"{moving.column(runs, arm, name)[:, -1].mean():12.2f}" for name in numbers))
start = (moving.column(runs, "hard", name)[:, 0].mean() for name in numbers)
print(f"{'the reference':20}", *(f"{value:12.2f}" for value in start))
print("\nAFTER 96 steps, hard, seed 0\n")
desk.show([row for run in runs if (run["arm"], run["seed"]) == ("hard", 0) for row in run["texts"]], 3)

# %% tags=["figure"]
drawn, panels = plots.figure(2, width=4.9, height=3.6)
colours = dict(zip(arms, [plots.look("sft").color, plots.GREY, plots.PALETTE["orange"],
                          moving_look.color, fixed_look.color]))
markers = dict(zip(arms, "s^oPD"))
for arm, title in arms.items():
    kl, true = (moving.column(runs, arm, name) for name in ("kl", "truth"))
    panels[0].plot(kl.mean(0), true.mean(0), label=title, color=colours[arm],
                   marker=markers[arm], markersize=5)
panels[0].legend(fontsize=8)
panels[0].set(xlabel="KL from the original reference (nats)", ylabel="true reward")
panels[0].set_title("the paths (means of 5 seeds)")
compared = [("fixed", "sft"), ("soft", "fixed"), ("hard", "fixed"),
            ("soft", "fixed, small beta"), ("hard", "fixed, small beta")]
for row, (a, b) in enumerate(compared):
    found = moving.difference_at_equal_kl(runs, a, b)
    panels[1].plot([found.low, found.high], [row, row], color=colours[a])
    panels[1].plot(found.estimate, row, markers[a], color=colours[a])
panels[1].axvline(0, color=plots.INK, linestyle=":")
short = {"fixed": "fixed 0.5", "fixed, small beta": "fixed 0.1", "sft": "SFT"}
panels[1].set_yticks(range(5), [f"{short.get(a, a)} − {short[b]}" for a, b in compared])
panels[1].set(xlabel="difference of true reward (95 %)", title="at equal KL", ylim=(-0.6, 4.6))
plots.show(drawn, alt="""Left: true reward against KL, means of five seeds, for SFT, DPO with a
    fixed reference at two betas, and soft and hard moving ones. SFT stops near 0.2 nats; the others
    rise to about 1.1 and fall again. Right: paired differences at equal KL with 95 percent
    intervals: fixed minus SFT is below zero, soft and hard minus fixed lie above or touch it.""")

# %%
farther = moving.difference_at_end(runs, "hard", "fixed", "kl")
claim("07.farther", "derived here; eps-DPO's authors report the same",
      "pocket model, 5 seeds: at equal steps the hard reference has gone farther (KL, nats)",
      expected=0, relation="at least", measured=farther.estimate, interval=farther)

# %%
for arm in ("hard", "soft"):
    found = moving.difference_at_equal_kl(runs, arm, "fixed, small beta")
    claim(f"07.equal_kl_{arm}", "Gorbatovski et al. (2024), abstract: TR mitigates over-optimisation",
          f"pocket DPO, 5 seeds: {arm}, beta 0.5, keeps more true reward at equal KL than fixed, 0.1",
          expected=0, relation="at least", measured=found.estimate, interval=found)

    for low, high in ((0, 1), (1, 9)):  # a split chosen after looking
        part = moving.difference_at_equal_kl(runs, arm, "fixed", low, high)
        print(f"{arm} minus fixed, both beta 0.5, KL {low} to {high}: {part:.2f}")
control = moving.difference_at_equal_kl(runs, "fixed", "sft")
claim("07.control", "what one expects of DPO",
      "pocket, 5 seeds: DPO, beta 0.5, keeps more true reward at equal KL than SFT, where SFT goes",
      expected=0, relation="at least", measured=control.estimate, interval=control)
for a, b in (("fixed", "sft"), ("hard", "fixed, small beta"), ("hard", "fixed")):
    kl_a, true_a, kl_b, true_b = (moving.column(runs, arm, name) for arm in (a, b)
                                  for name in ("kl", "truth"))
    rows = zip(np.sqrt(kl_a.clip(0)), true_a, np.sqrt(kl_b.clip(0)), true_b)
    bent = statistics.bootstrap_interval([moving.at_equal_kl(*row) for row in rows], method="expanded")
    print(f"{a} minus {b}, interpolated in the root of KL: {bent:.2f}")

# %% [markdown]
# Theory said zero; here a moving reference keeps about a tenth of a reward unit more. Against the smaller β the hard one's interval touches zero. Against the same β the gain lies beyond one nat, where the measured KL jumps and
# grammar suffers. The law compares *optima*; 96 steps reach none. So a benefit of the path, for one proxy and one learning rate. No brake: true reward still falls past its top.
#
# And the control: **SFT**, as far as it goes (two tenths of a nat), keeps more true reward than DPO.
#
# Sizes lean on straight lines between few measurements; a good path rises like $\sqrt{\mathrm{KL}}$ at first. Averaged over the root, differences shrink (last lines); signs stay.

# %% [markdown] exercise="07.4" part="task" stars=3 minutes=30 open=true
# ### A reference that knows when to stop
# The law says that the number of moves is the regulariser. Invent a rule that decides, from what training can see, whether to move the reference (`ref.update(policy)`), and test on the finite world or the pocket model whether it beats a
# fixed small β *at equal KL*.

# %% [markdown] exercise="07.4" part="hints"
# 1. Training sees the proxy only: held-out loss, KL from the original reference, entropy. The true reward is for the final judgement.
# 2. A cap on KL from the original reference is a rule; is it more than a choice of β?
# 3. To leave the road, the move must not be a mixture of log-probabilities: think of mixing probabilities, or of new comparisons drawn from the policy.

# %% [markdown] exercise="07.4" part="solution"
# A good answer predicts from the derivation whether its rule can leave the road at all: with a fixed data set, exact stages and log-probability mixing it cannot. It compares at equal KL, on at least five seeds, with a paired interval, and against a
# fixed reference whose β was chosen as carefully. A well-shown negative is a full answer. Rules that draw *new* comparisons change the data, not only the reference: that is lesson 12.

# %% [markdown]
# ## When to use it
#
# A moving reference is worth trying where β was set too large and you want to find the stopping point along the way: save a checkpoint at every move and choose on held-out data from the *true* judge. At
# equal KL its optima gain nothing; on the way to them we saw a small gain. It hurts where labels are certain, where nobody measures the KL from the original reference, and where memory is short: the reference cannot be precomputed.

# %%
rules = moving.trl_rules()
print(f"defaults: ref_model_mixup_alpha {rules['alpha']:g}, ref_model_sync_steps {rules['every']:g}")
claim("07.trl_alpha", "TRL 1.16, SyncRefModelCallback; a review of pull request 4935 says the reverse",
      "ref_model_mixup_alpha = 0.6 is the share of the policy in the new reference",
      expected=0.6, measured=rules["policy_share"], tolerance=0)
claim("07.trl_peft", "TRL issue 3108 (GRPO): with an adapter the reference is never synchronised",
      "sync_ref_model with an adapter runs, and does nothing (0) or is refused (1)",
      expected=0, measured=rules["peft_refused"], tolerance=0, corrected=1,
      correction="so it was; TRL 1.16 raises NotImplementedError")

# %% [markdown]
# **In TRL 1.16**: `DPOConfig(sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=512)`, also in `KTOConfig`. Both numbers apply at once: hard is `alpha=1`. It mixes *weights*, pairing them by position. It is refused with an adapter, because the
# reference is then the model with the adapter switched off, and with `precompute_ref_log_probs`. With fewer than 512 steps in your run, nothing ever moves.
#
# ## What we measured

# %%
ledger.rows("07")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | loss stuck at log 2, accuracy at chance, yet the model changes | the reference is a copy of the policy: measure from the original one |
# | "better" after equal steps | it went farther: compare at equal KL |
# | nothing differs from DPO | fewer steps than τ |
# | KL jumps after a move | a new stage begins: the effective β fell |
# | α the wrong way round | it is the policy's share |
# | stale log-probabilities | a cache of the reference's, and a reference that moves |

# %% [markdown]
# ## References
#
# - A. Gorbatovski et al. (2024). *Learn Your Reference Model for Real Good Alignment.* arXiv 2404.09656v4, abstract. TR-DPO, TR-IPO, TR-KTO.
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, eq. (4) and (7).
# - M. G. Azar et al. (2023), arXiv 2310.12036, eq. (17): IPO.
# - K. Ethayarajh et al. (2024), arXiv 2402.01306: KTO.
# - TRL 1.16.0: `callbacks.py` (`SyncRefModelCallback`), `dpo_config.py`, `dpo_trainer.py`; issues 1971, 1991, 3108 and pull request 1593.
#
# ## Next
#
# **08 · Alignment as distribution learning**: what if the target were the text itself, and not a reward with a leash?
