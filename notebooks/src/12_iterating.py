# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Iterating: alignment as a game of many rounds", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 12 · Iterating: alignment as a game of many rounds
#
# Align, draw new answers from the aligned policy, have them judged, align again. With an exact optimiser each round is a known map of evolutionary biology. This lesson derives where it leads, breaks it on a cycle, tries
# the cures, and holds three rounds on the pocket model against the exact law.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive the map of one round, and read it as replicator dynamics with win rate as fitness;
# 2. prove that it climbs under Bradley–Terry and spirals outward on a cycle;
# 3. say which cures change that: damping, averaging, a fixed reference, a reference that follows;
# 4. measure exploitability, and say why beating your predecessor is no evidence of progress.

# %% [markdown]
# ## Prerequisites
#
# Lessons 11 (RDRO) and 07 (references that move). About 75 minutes with the exercises. Test yourself:
#
# <details><summary>y₁, y₂ come from p_ref and a judge picks one. With W the win rate against p_ref, which distribution has the chosen one?</summary>p₊ = 2 p_ref W.</details>
# <details><summary>Rock, paper, scissors: which policy cannot be beaten?</summary>A third each: the Nash policy.</details>
#
# *Not covered:* judges learned from data that become stale, exploration, more than two players.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import base64
import io

import numpy as np
import torch
from torch import Tensor

from course_utils import experiments, ledger, plots, preferences, statistics
from course_utils.experiments import lesson_12 as iterating
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% [markdown]
# Three styles of answer, and two judges. One is Bradley–Terry. The other is a cycle: warm beats brief, brief beats thorough, thorough beats warm, nine times in ten. Both start from the same policy. A point in the triangle is a
# policy, a corner one that always answers in one style, a dot one round, the cross a third of each. The third picture is the same cycle with a cure from section 4. Below, the middle one moves, for 40 rounds instead of 25, three times; nothing is lost
# without it.

# %%
start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
cycle = preferences.cyclic(3, strength=0.9)
honest = preferences.bradley_terry(torch.tensor([0.0, 0.4, 1.0]))
climbing = iterating.rounds(start, lambda p: iterating.replicator(p, honest), 40)
spiral = iterating.rounds(start, lambda p: iterating.replicator(p, cycle), 40)
mended = iterating.following(start, cycle, leash=0.5, every=5, count=400)

# %% tags=["figure"]
corners = np.array([[0, 0], [1, 0], [0.5, 0.866]])


def triangle(axes, title):
    """An empty triangle of three styles, with the uniform policy marked."""
    axes.plot(*corners[[0, 1, 2, 0]].T, color=plots.GREY, linewidth=1)
    axes.plot(*corners.mean(0), "+", color=plots.INK, markersize=11)
    for (x, y), name in zip(corners, ("warm", "brief", "thorough")):
        axes.text(x, y + (0.03 if y else -0.08), name, ha="center")
    axes.set(aspect="equal", title=title, xlim=(-0.08, 1.08), ylim=(-0.11, 0.94))
    axes.axis("off")


drawn, panels = plots.figure(3, width=3.6, height=3.6)
for axes, path, title, colour in ((panels[0], climbing, "Bradley–Terry", "blue"),
                                  (panels[1], spiral[:26], "a cycle", "orange"),
                                  (panels[2], mended, "cycle, ref follows", "green")):
    triangle(axes, title)
    axes.plot(*(path.numpy() @ corners).T, color=plots.PALETTE[colour], marker=".", linewidth=1)
    axes.plot(*(start.numpy() @ corners), "o", color=plots.INK)
plots.show(drawn, alt="""Three triangles of policies, each path from the same black dot. Left, under
    Bradley-Terry, the path runs to the corner of the best answer. Middle, on a cycle, it spirals
    outward to the edge. Right, on the cycle with a reference that follows, it spirals inward to the
    centre.""")

# %% tags=["figure"]
from IPython.display import HTML, display
from PIL import Image

drawn, axes = plots.figure(width=3.6, height=3.6)
triangle(axes, "a cycle, round 0")
(line,) = axes.plot([], [], color=plots.PALETTE["orange"], linewidth=1)
(dot,) = axes.plot([], [], "o", color=plots.PALETTE["orange"])
frames, points = [], spiral.numpy() @ corners
for shown in range(41):
    line.set_data(*points[: shown + 1].T)
    dot.set_data(*points[shown : shown + 1].T)
    axes.set_title(f"a cycle, round {shown}")
    drawn.canvas.draw()
    frames.append(Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())).convert("RGB").quantize(16))
plots.plt.close(drawn)
buffer = io.BytesIO()
frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=160, loop=2)
alt = "Animation: a dot circles in the triangle; its second turn runs along the edge, corner to corner."
code = base64.b64encode(buffer.getvalue()).decode()
display(HTML(f'<img alt="{alt}" width="360" src="data:image/gif;base64,{code}">'))

# %% [markdown]
# ## 1 · Derive
#
# *Question: what does one round do?* Draw $y_1,y_2\sim p$ independently; a judge with any probabilities $P(a\succ b)=1-P(b\succ a)$ chooses. Write $W(y;p)=\sum_{y'}p(y')P(y\succ y')$, the win rate of $y$ against the policy. $y$ is chosen as
# the first response, or as the second:
#
# $$p_+(y)=p(y)\,W(y;p)+p(y)\,W(y;p)=2\,p(y)\,W(y;p).$$
#
# A consistent method with $p$ as its reference returns $p_+$. So the next policy is
#
# $$\boxed{\;p_{k+1}(y)=p_k(y)\cdot 2\,W(y;p_k)\;}$$
#
# This is the discrete **replicator equation**: a kind grows by its fitness over the mean fitness. Fitness is the win rate, and its mean is $\frac12$, because $\sum_y p(y)W(y;p)$ counts every pair from both sides.

# %% [markdown]
# Two things follow at once. No response can more than double in a round, as $W\le 1$: RDRO's bound $1/\alpha$. And **each round beats the one before**:
#
# $$P(p_{k+1}\succ p_k)=\sum_y 2p_kW\cdot W=2\,E[W^2]=\tfrac12+2\operatorname{Var}(W).$$

# %% [markdown]
# *Where does it lead under Bradley–Terry?* Two responses compare as
#
# $$\frac{p_{k+1}(a)}{p_{k+1}(b)}=\frac{p_k(a)}{p_k(b)}\cdot\frac{W(a;p_k)}{W(b;p_k)}.$$
#
# $W(a;p)=\sum_{y}p(y)\,\sigma(r(a)-r(y))$ increases with $r(a)$, whatever $p$ is. So the best response gains on each other one in every round, and takes all in the end. Near the end almost every opponent is the best response,
# $W(\text{best})\approx\frac12$, and the second loses by the factor $2\sigma(r_2-r_1)$ per round: no $\beta$ sets the pace, the judge does.

# %% [markdown]
# *And on a cycle?* Let $q$ be a Nash policy that gives every response some probability. Against it every response wins one half, so it wins one half against every $p$. Follow the distance from $q$:
#
# $$\mathrm{KL}(q\|p_{k+1})-\mathrm{KL}(q\|p_k)=-E_q\log 2W(y;p_k)\;\ge\;-\log E_q\,2W(y;p_k)=-\log 2P(q\succ p_k)=0.$$
#
# Jensen's inequality, strict unless all $W$ are equal. So **every round leads away** from the one policy nobody can beat, while it beats its predecessor.
#
# ## 2 · Implement

# %% [markdown] exercise="12.1" part="task" stars=1 minutes=5
# ### One exact round
# `judge[a, b]` is the probability that `a` is preferred to `b`. Return the distribution of the chosen response of a pair drawn from `policy`.

# %% exercise="12.1" part="stub"
def one_round(policy: Tensor, judge: Tensor) -> Tensor:
    """The policy after one round."""
    raise NotImplementedError


# %% exercise="12.1" part="check"
check("12.1", one_round)

# %% [markdown] exercise="12.1" part="hints"
# 1. The win rate is a mean of a row of the judge, weighted by the policy.
# 2. `judge @ policy` gives all win rates at once.
# 3. The chosen response may have been the first or the second.

# %% exercise="12.1" part="solution"
def one_round(policy: Tensor, judge: Tensor) -> Tensor:
    wins = judge @ policy
    return 2 * policy * wins


check("12.1", one_round)

# %% [markdown] exercise="12.2" part="task" stars=2 minutes=8
# ### What a round wins by
# Return the win rate of the policy after one exact round against the policy before it.

# %% exercise="12.2" part="stub"
def wins_by(policy: Tensor, judge: Tensor) -> Tensor:
    """How often a response of the new policy is preferred to one of the old."""
    raise NotImplementedError


# %% exercise="12.2" part="check"
check("12.2", wins_by)

# %% [markdown] exercise="12.2" part="hints"
# 1. The new policy is $2pW$, and $W$ is already the win rate against the old one.
# 2. So you need a second moment of $W$ under the old policy.
# 3. $E[W]=\frac12$, hence $2E[W^2]=\frac12+2\operatorname{Var}(W)$.

# %% exercise="12.2" part="solution"
def wins_by(policy: Tensor, judge: Tensor) -> Tensor:
    wins = judge @ policy
    return 0.5 + 2 * (policy * (wins - 0.5) ** 2).sum()


check("12.2", wins_by)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# RDRO, DDRO and SFT on the chosen are solved for the exact optimum of one round: four prompts, five responses, a judge of arbitrary probabilities. *Predict: which of the three finds $2pW$? And can DPO, with a well-chosen β?*

# %%
world = FiniteWorld.random(prompts=4, responses=5, seed=3, judge="random")
target = 2 * world.reference * world.win_rate_of_responses()
errors = [float((world.population_minimiser(name, **own) - target).abs().max())
          for name, own in (("rdro", {"alpha": 0.5}), ("ddro", {"t": 0.5}), ("sft", {}))]
claim("12.one_round", "derived here; lessons 10 and 11",
      "on-policy pairs, any judge: RDRO, DDRO and SFT on the chosen all return 2 p W (largest error)",
      expected=0, measured=max(errors), tolerance=1e-6)
betas = np.geomspace(0.3, 10, 30)
gaps = [world.kl(target, world.population_minimiser("dpo", beta=float(beta))) for beta in betas]
print(f"DPO comes nearest at beta = {betas[int(np.argmin(gaps))]:.1f}")
claim("12.dpo_round", "DPO in the place of RDRO",
      "the same pairs: some beta gives DPO this optimum (least KL of 30 betas)",
      expected=0, measured=min(gaps), tolerance=1e-6)

# %% [markdown]
# In the *optimum* of on-policy pairs, SFT on the chosen and the two ratio methods are one. They differ in how they get there from finite data (lesson 11). DPO fits scores, and
# comes near only at $\beta\approx 2$, since $2\sigma(z)\approx e^{z/2}$ for small $z$.
# Now the law's consequences, and the pace of the end.

# %%
scores = torch.tensor([0.0, 0.5, 1.0, 1.8, 2.0], dtype=torch.float64)
judge = preferences.bradley_terry(scores)
rare = torch.tensor([0.40, 0.30, 0.20, 0.08, 0.02], dtype=torch.float64)  # the best is the rarest
path = iterating.rounds(rare, lambda p: iterating.replicator(p, judge), 300)
claim("12.climbs", "derived here",
      "Bradley–Terry: after 300 rounds the best response has all (its share)",
      expected=1, measured=float(path[-1, 4]), tolerance=1e-6)
claim("12.doubling", "derived here; RDRO's bound 1/alpha", "no response more than doubles in a round",
      expected=2, relation="at most", measured=float((path[1:] / path[:-1]).max()))
pace = path[-1, 3] / path[-2, 3]
law = 2 * torch.sigmoid(scores[3] - scores[4])
print(f"pace of the second best at the end: {pace:.4f} a round; 2 sigma(r2 - r1) = {law:.4f}")

# %% [markdown]
# ## 4 · Break it on purpose
#
# **The cycle.** *Predict, before you run it: the policy beats its predecessor in each of forty rounds. Does the fortieth beat the start? Do all?*

# %%
against_last = ((spiral[1:] @ cycle) * spiral[:-1]).sum(-1)
against_start = spiral[1:] @ cycle @ start
print("every round beats the one before:", bool((against_last > 0.5).all()))
print("rounds that lose to the start:", [k + 1 for k, w in enumerate(against_start.tolist()) if w < 0.5])
claim("12.predecessor", "what a chart of win rates against the last checkpoint suggests",
      "beating the predecessor in every round, no round loses to the start (smallest win rate)",
      expected=0.5, relation="at least", measured=float(against_start.min()))

# %% [markdown] exercise="12.3" part="task" stars=1 minutes=6
# ### The best reply
# Some lose. So each checkpoint can beat the last for ever while nothing is gained. Ask instead how far above one half *any* opponent can get.
#
# Return the exploitability of a policy: the win rate of the best opponent against it, less 1/2.

# %% exercise="12.3" part="stub"
def exploitability(policy: Tensor, judge: Tensor) -> Tensor:
    """How far above one half the best opponent gets."""
    raise NotImplementedError


# %% exercise="12.3" part="check"
check("12.3", exploitability)

# %% [markdown] exercise="12.3" part="hints"
# 1. An opponent is a policy too, but its win rate is an average over its responses.
# 2. So the best opponent can always say one thing only.
# 3. `judge @ policy` holds the win rate of each response against the policy.

# %% exercise="12.3" part="solution"
def exploitability(policy: Tensor, judge: Tensor) -> Tensor:
    return (judge @ policy).max() - 0.5


check("12.3", exploitability)

# %% [markdown]
# A policy with exploitability zero is a **Nash policy**: nobody beats it. It exists for every judge (von Neumann's minimax theorem), and linear programming finds it. Under Bradley–Terry it is the best response; on a cycle a mixture.
#
# *The cures.* First **damping**: go only a share $s$ of the way, $p\,(1-s+s\,2W)$. *Predict: is there a small enough $s$?*

# %%
desk = FiniteWorld(start[None], cycle[None])
nash = desk.nash_policy()[0]
print("Nash policy:", [round(share, 4) for share in nash.tolist()])
print("its exploitability is below 1e-9:", bool(desk.exploitability(nash[None]) < 1e-9))


def from_nash(path):
    """KL(Nash || policy) along a path."""
    return (nash * (nash / path).log()).sum(-1)


def damped(step, count):
    return iterating.rounds(start, lambda p: iterating.replicator(p, cycle, step), count)


growth = {step: float(from_nash(damped(step, 200)).diff().min()) for step in (0.5, 0.2, 0.05, 0.01)}
print("least growth of the KL in a round:", {step: f"{value:.1g}" for step, value in growth.items()})
claim("12.outward", "derived here",
      "every plain round leads away from Nash (least growth of KL, 40 rounds)",
      expected=0, relation="at least", measured=float(from_nash(spiral).diff().min()))
claim("12.damping", "a natural hope",
      "a step of 0.01 ends the spiral: KL to Nash does not grow (least growth, 200 rounds)",
      expected=0, relation="at most", measured=growth[0.01], digits=2)

# %% [markdown]
# No. The proof above holds word for word with $1-s+s\,2W$ in place of $2W$: its mean under $q$ is still 1. Damping makes the spiral slow, not tame.
#
# **Averaging.** Keep all policies and answer from one at random: the policy $\bar p_K=\frac1K\sum p_k$. *Predict for full steps and for small ones.*

# %%
def average_exploitability(step, count):
    """Largest exploitability of the running average over the second half of the rounds."""
    path = damped(step, count)
    running = path.cumsum(0) / torch.arange(1, count + 2)[:, None]
    return float((running @ cycle.T).amax(-1)[count // 2:].max() - 0.5)


stays = torch.unique_consecutive(damped(1.0, 600).argmax(-1), return_counts=True)[1]
print("full steps, rounds with the same favourite:", stays[:-1].tolist())
claim("12.average_full", "averaging as a cure",
      "full steps: the running average comes to rest at Nash (exploitability, rounds 300 to 600)",
      expected=0, measured=average_exploitability(1.0, 600), tolerance=0.02)
claim("12.average_small", "theory of no-regret learning",
      "steps of 0.05: the running average comes near Nash (exploitability, rounds 2,000 to 4,000)",
      expected=0, measured=average_exploitability(0.05, 4000), tolerance=0.02)

# %% [markdown]
# With full steps the visits to the corners last longer and longer, and the average swings with them. With small steps it comes near. But a language model's average is thousands of checkpoints.
#
# **A leash.** Pull each round back to a reference that stays: $p_{k+1}\propto p_{\text{ref}}^{\lambda}\,(2p_kW)^{1-\lambda}$.

# %% [markdown] exercise="12.4" part="task" stars=2 minutes=8
# ### A round on a leash
# Mix the logarithms of the reference (share `leash`) and of an exact round (share `1 - leash`), and return the policy.

# %% exercise="12.4" part="stub"
def leashed_round(policy: Tensor, judge: Tensor, ref: Tensor, leash: float) -> Tensor:
    """The policy after one round that is pulled back to the reference."""
    raise NotImplementedError


# %% exercise="12.4" part="check"
check("12.4", leashed_round)

# %% [markdown] exercise="12.4" part="hints"
# 1. The exact round is exercise 12.1.
# 2. leash = 1 must give the reference, leash = 0 the plain round.
# 3. `torch.softmax` of a mixture of logarithms normalises it.

# %% exercise="12.4" part="solution"
def leashed_round(policy: Tensor, judge: Tensor, ref: Tensor, leash: float) -> Tensor:
    plain = 2 * policy * (judge @ policy)
    return torch.softmax(leash * ref.log() + (1 - leash) * plain.log(), dim=0)


check("12.4", leashed_round)

# %% [markdown]
# It can rest only where $\log p=\log p_{\text{ref}}+\frac{1-\lambda}{\lambda}\log 2W(y;p)+\text{const}$: an equilibrium *on a leash*, not the Nash policy. To get there, move the reference, as TR-DPO does (lesson 07): copy it from the policy, but only
# after the leashed rounds have nearly come to rest. Each stage then starts from the last equilibrium.
#
# *Predict what happens with a copy after every round.*

# %%
held = iterating.rounds(start, lambda p: iterating.leashed(p, cycle, start, 0.2), 200)
print("leash 0.2 comes to rest:", bool((held[-1] - held[-2]).abs().max() < 1e-9))
claim("12.leash_nash", "the leash as a cure", "it rests at the Nash policy (exploitability)",
      expected=0, measured=float(desk.exploitability(held[-1:])), tolerance=0.01)
for every in (1, 5, 20):
    moved = iterating.following(start, cycle, 0.5, every, 400)
    gap = desk.exploitability(moved[-1:])[0]
    print(f"leash 0.5, copied every {every:2} rounds: exploitability {gap:.4f}")
claim("12.following", "this course, after TR-DPO",
      "copied every 5 rounds: the last policy is near Nash (exploitability, 400 rounds)",
      expected=0, measured=float(desk.exploitability(mended[-1:])), tolerance=0.01)

# %% tags=["figure"]
drawn, axes = plots.figure(width=7.4, height=3.7)
lines = {"plain rounds": (spiral, "orange"), "step 0.2": (damped(0.2, 400), "sand"),
         "leash 0.2, ref stays": (held, "violet"), "leash 0.5, ref copied every 5": (mended, "green")}
places = (40, 0.3), (300, 0.35), (200, 0.061), (215, 0.022)
for (name, (path, colour)), (x, y) in zip(lines.items(), places):
    axes.plot((path @ cycle.T).amax(-1) - 0.5, color=plots.PALETTE[colour])
    plots.label(axes, x, y, name, plots.PALETTE[colour])
axes.axhline(0, color=plots.INK, linestyle=":")
axes.set(xlabel="round", ylabel="exploitability", xlim=(0, 405), ylim=(-0.02, 0.44))
axes.set_title("Four ways round a cycle")
plots.show(drawn, alt="""Exploitability against rounds. Plain rounds reach 0.4 within forty; damped
    rounds swing ever wider; a fixed leash comes to rest near 0.06; a reference copied every
    five rounds falls to zero.""")

# %% [markdown]
# Copied after *every* round, the reference is the policy itself: $p_k^{\lambda}(2p_kW)^{1-\lambda}=p_k(2W)^{1-\lambda}$ is damping again, in the exponent, and it spirals. Copied every 5 rounds, a stage ends near its equilibrium, where $W$ is measured against
# the policy it *leads to*, no longer against the one it left: here the path turns inward. Every 20 rounds is as safe and slower: 400 rounds hold only 20 copies. One game, and measured, not proved.

# %% [markdown]
# ## 5 · On the bench with the others
#
# **The pocket model, three rounds.** Each round draws 384 pairs from the *present* policy, `draw_pairs(world, 384, seed, proposal=policy)`, has the world's judge choose, and trains 12 steps with the round's first policy as reference: RDRO, DPO (β = 1), SFT on
# the chosen. The exact law needs no training: weight 1,024 responses of the reference per prompt by $2W$, again and again.
#
# *Predict: who stays nearest to the law, under Bradley–Terry and under the pocket cycle of styles?*

# %%
RECOMPUTE = False  # True: 10 to 30 minutes on one core
runs = experiments.results("12_three_rounds", recompute=RECOMPUTE)
base = pocket.load_world("bradley_terry")
worlds = {name: base.with_judge(name) for name in ("bradley_terry", "cyclic")}
SEEDS = len({run["seed"] for run in runs})
law = {name: iterating.particle_rounds(own, 8) for name, own in worlds.items()}
for name in worlds:
    print(f"{name}: win rate against the first policy\n  {'exact law':18}",
          *(f"{value:.3f}" for value in law[name]["win_rate"][1:4]))
    for arm in iterating.ARMS:
        found = iterating.column(runs, name, arm, "win_rate").mean(0)
        print(f"  {plots.look(arm).label:18}", *(f"{value:.3f}" for value in found))

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.7)
left.plot(range(4), law["bradley_terry"]["win_rate"][:4], color=plots.INK)
plots.label(left, 3, law["bradley_terry"]["win_rate"][3], "exact law")
styles = torch.tensor(law["cyclic"]["styles"])
right.plot(styles[:, 2], styles[:, 1], ".-", color=plots.INK)
plots.label(right, float(styles[6, 2]), float(styles[6, 1]), "exact law,\n8 rounds", xytext=(8, -4))
for shift, arm in zip((-0.08, 0, 0.08), iterating.ARMS):
    look = plots.look(arm)
    wins = iterating.column(runs, "bradley_terry", arm, "win_rate")
    half = [statistics.mean_interval(row).half_width for row in wins.T.tolist()]
    left.errorbar(np.arange(1, 4) + shift, wins.mean(0), yerr=half, capsize=3, **look.line())
    each = iterating.column(runs, "cyclic", arm, "styles")
    shares = torch.cat([styles[:1], each.mean(0)])
    right.plot(shares[:, 2], shares[:, 1], **look.line())
    right.plot(each[:, -1, 2], each[:, -1, 1], look.marker, color=look.color, alpha=0.35, markersize=4)
plots.label(right, float(styles[0, 2]), float(styles[0, 1]), "start", xytext=(-18, -13))
left.legend(fontsize=8, loc="lower right")
left.set(xlabel="round", ylabel="win rate against the first policy", xlim=(-0.1, 3.9), xticks=range(4))
left.set_title(f"Bradley–Terry ({SEEDS} seeds, 95 %)")
right.set(xlabel="share of thorough", ylabel="share of brief")
right.set_title(f"cyclic (means; pale: round 3, {SEEDS} seeds)")
plots.show(drawn, alt="""Left: win rate against the first policy over three rounds under Bradley-Terry;
    the exact law rises above the trained methods. Right: shares of thorough and brief answers
    under the cyclic judge; the law goes to fewer thorough, then bends to fewer brief; the methods
    follow its first part.""")

# %%
def last(judge, arm, name="win_rate"):
    return iterating.column(runs, judge, arm, name)[:, -1]


path = iterating.column(runs, "bradley_terry", "rdro", "win_rate")
found = statistics.mean_interval((path[:, 2] - path[:, 0]).tolist())
claim("12.pocket_climbs", "derived here",
      f"Bradley–Terry, RDRO: round 3 minus round 1, win rate ({SEEDS} seeds)",
      expected=0, relation="at least", measured=found.estimate, interval=found)
found = statistics.mean_interval(last("bradley_terry", "rdro").tolist())
claim("12.pocket_law", "the exact law, taken over to 12 steps a round",
      f"Bradley–Terry, RDRO: the win rate after three rounds is the law's ({SEEDS} seeds)",
      expected=law["bradley_terry"]["win_rate"][3], measured=found.estimate, interval=found)
steps = np.diff(law["cyclic"]["win_rate"])
claim("12.pocket_turn", "the law, on the pocket cycle", "the win rate against the first policy never"
      " falls while each round beats the last (least change, 8 exact rounds)", expected=0,
      relation="at least", measured=float(steps.min()))
print("exact rounds against the first policy:", *(f"{w:.3f}" for w in law["cyclic"]["win_rate"]))
print(f"least win rate of a round against the one before: {min(law['cyclic']['step_win']):.3f}")
for judge in worlds:
    found = statistics.mean_interval((last(judge, "rdro") - last(judge, "sft")).tolist())
    claim(f"12.pocket_sft_{judge}", "what one hopes of RDRO",
          f"{judge}: RDRO minus SFT on the chosen, win rate after three rounds ({SEEDS} seeds)",
          expected=0, relation="at least", measured=found.estimate, interval=found)

# %% [markdown]
# Under Bradley–Terry every method's mean rises in each round, and stays below the law: twelve steps are not an optimum. The three lie close together. SFT on the chosen has the same optimum as RDRO, so it is the control that matters: with only three seeds it is undecided,
# under both judges, which of the two wins more. On the pocket cycle brief answers gain first, as the law says; follow the black line further, and thorough ones return. Three rounds look like progress; from round 6 on the law's win rate falls.
#
# Read one run by eye: the third round of RDRO under each judge.

# %%
for judge, own in worlds.items():
    print(f"--- {judge}, RDRO, after three rounds, seed 0\n")
    own.show([row for run in runs if (run["judge"], run["arm"], run["seed"]) == (judge, "rdro", 0)
              for row in run["texts"]], 3)

# %% [markdown] exercise="12.5" part="task" stars=3 minutes=30 open=true
# ### A cure without a schedule
# "Copied every five rounds" hides a choice: too often and it spirals, too seldom and it crawls. Invent a rule that sees only what a training run can see (win rates of its own samples, old checkpoints, KL) and brings the *last* policy
# to Nash on random cyclic judges of five or more responses.

# %% [markdown] exercise="12.5" part="hints"
# 1. Has the leashed policy come to rest? The win rate of this round's policy against the last one tells: it is 1/2 + 2 Var(W) for plain rounds.
# 2. Another family looks ahead: judge against where the policy would be after the next round.
# 3. `FiniteWorld.random(judge="cyclic", responses=5, seed=...)` makes games; `world.exploitability` is for the final judgement only.

# %% [markdown] exercise="12.5" part="solution"
# A good answer states what the rule sees, counts judged comparisons and not rounds, and reports exploitability of the last policy over at least 30 random games against the fixed schedule with the same number of comparisons. It checks games
# whose Nash policy leaves responses out, and says what happens with estimated win rates: noise in $W$ is itself a push outward.

# %% [markdown]
# ## When to use it
#
# Iterate where one scale is plausible (lesson 01's gap test) and new comparisons can be bought: fresh pairs keep RDRO's premise exact, since the reference *is* the mixture. Stop by a judge you did not train on. Where preferences may be
# cyclic or a crowd's, hold a reference, move it seldom, and report win rates against *several old* policies: those against the last one alone show a spiral as progress.
#
# **In TRL 1.16** `trl.experimental.online_dpo.OnlineDPOTrainer` draws pairs from the present policy. Its reference stays fixed, the first model or your `ref_model`: a leash of strength `beta` (0.1), no
# replicator round. Nash-MD's trainer is gone.
#
# ## What we measured

# %%
print("trainers of fresh pairs in TRL:", iterating.trl_trainers())
ledger.rows("12")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | every checkpoint beats the last, users see no gain | a cycle: test against several old checkpoints, or measure exploitability |
# | probabilities explode after some fifty exact rounds | the map squares the sum, so rounding doubles each round: normalise |
# | the second round learns nothing new | its pairs still came from the first policy: pass `proposal=policy` |
# | damping did not help | it slows a spiral, a held reference stops it |
# | the average looks good, the model does not | the average is a policy of many checkpoints, not the last one |

# %% [markdown]
# ## References
#
# - P. D. Taylor, L. B. Jonker (1978). *Evolutionary stable strategies and game dynamics.* Mathematical Biosciences 40. The replicator, mostly in continuous time.
# - J. von Neumann (1928). *Zur Theorie der Gesellschaftsspiele.* The minimax theorem.
# - J. P. Bailey, G. Piliouras (2018). *Multiplicative Weights Update in Zero-Sum Games.* The spiral outward.
# - R. Munos et al. (2023). *Nash Learning from Human Feedback*, arXiv 2312.00886: a leash, and the last policy.
# - A. Gorbatovski et al. (2024), arXiv 2404.09656: TR-DPO.
# - H. Takahashi et al. (2026): RDRO; R. Higuchi, T. Suzuki (2025): DDRO.
#
# ## Next
#
# **13 · One bench**: all methods, the same data, the same budget.
