# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "DDRO: a policy as a density ratio", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 10 · DDRO: a policy as a density ratio
#
# If the reference is a mixture of what people like and what they reject, a policy *is* a density ratio, and lesson 09 says how to fit one. The result finds $p_+$ under every judge. It also has a wall in it, and you will drive a language model into it.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive DDRO from one identity, and say when the identity is true;
# 2. say for *what* it is consistent, and why DPO, at its best β, is not;
# 3. predict where the loss ends, and read off which text and token hit it;
# 4. say what the gradient does there, and what a clamp, a tangent and a smaller step do about it.

# %% [markdown]
# ## Prerequisites
#
# Lessons 04 and 09. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>Two responses of the reference, W(y) the win rate of y: what is the density of the chosen one?</summary>p₊(y) = 2 p_ref(y) W(y).</details>
# <details><summary>Where does DPO end under a Bradley–Terry judge?</summary>At π_ref exp(r/β)/Z.</details>
#
# *Not covered:* a false mixture, pooled means, and the cure (11).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math
from dataclasses import replace

import torch
from torch import Tensor

from course_utils import experiments, ledger, objectives, plots, preferences, statistics
from course_utils.experiments import lesson_10 as lesson
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

RECOMPUTE = False  # True trains the 76 pocket policies again: about 25 minutes

# %% [markdown]
# The finite world: three answers and a rock-paper-scissors judge. From $n$ comparisons three methods each fit a table. DPO may choose its β afterwards, by looking at the truth; nobody else may.

# %%
ref = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)
world = FiniteWorld(ref[None], preferences.cyclic(3, 0.9)[None])
p_plus, p_minus = world.preferred_distribution(), world.rejected_distribution()
betas = torch.logspace(-1, 1.3, 121, dtype=torch.float64)
sizes, seeds = [4**k for k in range(5, 11)], statistics.seeds(10, 120)
curves = [lesson.estimates(world, lesson.count_pairs(world, n, seeds), betas) for n in sizes]
scores = lesson.scores_from_win_rates(ref, world.win_rate_of_responses()[0])
gap, at = lesson.best_beta(p_plus[0], ref, scores, betas)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.6)
constants = dict(zip(("ddro", "sft"), lesson.error_constants(world)))
for name in ("dpo", "sft", "ddro"):
    look, rows = plots.look(name), [statistics.mean_interval(curve[name]) for curve in curves]
    left.loglog(sizes, [row.estimate for row in rows], **look.line())
    plots.interval_band(left, sizes, [row.low for row in rows], [row.high for row in rows], look.color)
for name, c in constants.items():
    left.loglog(sizes, [c / n for n in sizes], color=plots.INK, linestyle=":", linewidth=1)
plots.label(left, 2e4, 9.5e-4, "DPO, best β", plots.look("dpo").color)
plots.label(left, 2.5e4, 1.4e-4, "SFT on the chosen", plots.look("sft").color)
plots.label(left, 4e3, 2.2e-5, "DDRO", plots.look("ddro").color, xytext=(0, 0))
left.set(xlabel="comparisons", ylabel="KL(p+ ‖ policy)", title="Two reach p+, one stops")
l = torch.linspace(-2, 0.6928, 400, dtype=torch.float64)
orange = plots.look("ddro").color
right.plot(l, l.exp() / (2 - l.exp()), color=orange)
right.plot([-2, 1.1], [1, 1], color=plots.GREY, linestyle="--")
right.axvline(math.log(2), color=plots.INK, linewidth=3)
plots.label(right, -1.9, 1.25, "any preferred response", plots.GREY, va="bottom", xytext=(0, 0))
plots.label(right, -0.75, 0.22, "a rejected response", orange, xytext=(0, 0), va="top")
plots.label(right, math.log(2), 30, "the wall", xytext=(5, 0))
right.set(yscale="log", ylim=(0.06, 1_000), xlabel="log-ratio l (nats)", xlim=(-2, 1.2))
right.set(ylabel="size of the gradient in l", title="and in the road, a wall")
plots.show(drawn, alt="""Left, log-log: KL to p+ against comparisons. SFT and, at half its height, DDRO
    fall along dotted 1/n lines; DPO at its best beta is flat near 0.0017. Right: the gradient of a
    rejected response grows without bound as its log-ratio nears 0.69; a preferred one's is one.""")

# %% [markdown]
# Left: DDRO falls as $1/n$, at half the height of counting; DPO stops. Right: its price. A rejected response that *gains* 0.69 nats meets an infinite force. The dotted lines are not fits: section 3 computes them.

# %% [markdown]
# ## 1 · Derive
#
# *Question: how can two piles, liked and rejected, determine a policy without any model of the judge?* Assume one identity,
#
# $$p_{ref}(y)=t\,p_+(y)+(1-t)\,p_-(y).$$
#
# Is it ever true? Draw two responses from the reference, let *anyone* choose: $p_+=2p_{ref}W$, $p_-=2p_{ref}(1-W)$, and the mean of the two is $p_{ref}$. So on-policy pairs make it exact, with $t=\frac12$, for every judge. Elsewhere it is an assumption (11).

# %% [markdown]
# The identity says that the rejected pile holds no second unknown. Solve it for $p_-$, divide by $p_+$, and write $r=p_+/p_{ref}$:
#
# $$\frac{p_-}{p_+}=\frac{1/r-t}{1-t}=:g .$$
#
# Now put the policy in the place of $p_+$: $r=\pi_\theta/p_{ref}=e^{l}$, with $l$ the **sum** of the token log-ratios. Every policy claims a value of $p_-/p_+$ for every text, and $g=p_-/p_+$ exactly when $\pi_\theta=p_+$.

# %% [markdown]
# Which loss has this ratio as its minimiser? Lesson 09's $\mathrm{BR}_f$, numerator $p_-$, denominator $p_+$, with the logistic $f(g)=g\log g-(1+g)\log(1+g)$:
#
# $$L=E_{p_+}\big[\log(1+g)\big]+E_{p_-}\big[\log(1+1/g)\big].$$
#
# At $t=\frac12$: $1+g=2/r$ and $1+1/g=2/(2-r)$, so
#
# $$L=E_{p_+}\big[\log 2-l\big]+E_{p_-}\big[\log 2-\log(2-r)\big].$$
#
# That is **DDRO**: plain SFT on the liked pile, and a second term. *Predict: for which $r$ does the second term not exist?*
#
# ## 2 · Implement

# %% [markdown] exercise="10.1" part="task" stars=1 minutes=8
# ### DDRO's loss
# For any $t$: one loss for each response, from its log-ratio and its class. Plain formulas will do here; the package's version stays exact near the wall.

# %% exercise="10.1" part="stub"
def ddro_loss(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    """DDRO's loss of each response; `preferred` is True for the liked pile."""
    raise NotImplementedError


# %% exercise="10.1" part="check"
check("10.1", ddro_loss)

# %% [markdown] exercise="10.1" part="hints"
# 1. $1/r$ is `torch.exp(-log_ratio)`.
# 2. $g=(1/r-t)/(1-t)$.
# 3. `torch.where(preferred, a, b)` picks $\log(1+g)$ or $\log(1+1/g)$.

# %% exercise="10.1" part="solution"
def ddro_loss(log_ratio: Tensor, preferred: Tensor, t: float) -> Tensor:
    g = (torch.exp(-log_ratio) - t) / (1 - t)
    return torch.where(preferred, torch.log(1 + g), torch.log(1 + 1 / g))


check("10.1", ddro_loss)

# %%
def ddro(log_ratio, preferred, t=0.5):
    g = (torch.exp(-log_ratio) - t) / (1 - t)  # the policy's claim about p-/p+
    return torch.where(preferred, torch.log(1 + g), torch.log(1 + 1 / g))


l = torch.linspace(-3, 0.15, 40, dtype=torch.float64)
up = torch.arange(40) % 2 == 0
off = max(float((ddro(l, up, t) - objectives.ddro(l, 0 * l, up, t=t)).abs().max())
          for t in (0.2, 0.5, 0.8))
print(f"largest difference to objectives.ddro: {off:.6f}")
g = (torch.exp(-l) - 0.5) / 0.5
reverse = torch.where(up, torch.log(1 + 1 / (1 / g)), torch.log(1 + 1 / g))  # fit p+/p- = 1/g
claim("10.direction", "derived here",
      "with the logistic f it is the same loss whether p-/p+ or p+/p- is fitted (difference)",
      expected=0, measured=float((reverse - ddro(l, up)).abs().max()), tolerance=1e-12)

# %% [markdown]
# The row above may surprise you: with this $f$ the *direction* of the ratio does not matter. So the wall is not the fault of putting $p_+$ below; what makes it is that the model's ratio contains a subtraction, $1/r-t$.
#
# ## 3 · Verify against the exact optimum
#
# No samples: every response with its probability, and Newton's method.

# %%
mix = float((0.5 * (p_plus + p_minus) - world.reference).abs().max())
claim("10.mixture", "derived here",
      "on-policy pairs: (p+ + p-)/2 is p_ref, on a cycle too (largest error)",
      expected=0, measured=mix, tolerance=1e-12)
worst = 0.0
for judge in ("bradley_terry", "cyclic", "random", "mixed"):
    one = FiniteWorld.random(3, 5, seed=3, judge=judge)
    plus, minus = one.preferred_distribution(), one.rejected_distribution()
    ends = [one.population_minimiser("ddro")]
    ends += [FiniteWorld.from_mixture(plus, minus, t).population_minimiser("ddro", t=t)
             for t in (0.2, 0.39, 0.8)]
    worst = max(worst, *[float((end - plus).abs().max()) for end in ends])
claim("10.any_judge", "Higuchi & Suzuki (2025), abstract",
      "DDRO ends at p+ whatever the preference structure (4 kinds of judge, 4 t; largest error)",
      expected=0, measured=worst, tolerance=1e-8)

# %% [markdown]
# **And DPO?** Its limit is $p_{ref}\,e^{s/\beta}/Z$, where the scores $s$ reproduce the win rates (04): $\sum_b p_{ref}(b)\,\sigma(s_a-s_b)=W(a)$. It *knows* $W$; but it exponentiates $s/\beta$ where $p_+$ multiplies by $2W$. For weak preferences $2\sigma(x)\approx e^{x/2}$ and β = 2 nearly serves. Nearly.
#
# *Predict: take a Bradley–Terry judge with the same win rates, that is, the scores $s$ themselves. Is DPO's policy nearer to $p_+$ under this honest twin than under the cycle?*

# %%
print(f"to learn: {world.kl(p_plus):.4f} nats; DPO's limit at its best β, {at:.1f}: {gap:.5f}")
twin = FiniteWorld.from_rewards(ref[None], scores[None])
off = [twin.population_minimiser("dpo", beta=b) - world.population_minimiser("dpo", beta=b)
       for b in (0.5, 2.0, 8.0)] + [twin.preferred_distribution() - p_plus]
claim("10.twin", "derived here",
      "the cycle's Bradley-Terry twin has the same p+, and DPO ends at the same policy (largest error)",
      expected=0, measured=float(torch.stack(off).abs().max()), tolerance=1e-8)

# %% [markdown]
# It is the same policy and the same $p_+$, so the same gap. **The cycle is not what DPO fails at.** "Consistent" needs an object: DDRO is consistent *for $p_+$*; DPO, under Bradley–Terry, for its own target, which is not $p_+$. And DDRO does not see the cycle either: its two piles know $W$, not who beats whom.
#
# **The dotted lines.** Differentiate $-\log\pi$ and $-\log(2p_{ref}-\pi)$ at $\pi=p_+$, where $2p_{ref}-\pi=p_-$: a comparison adds $-1/p_+$ at its chosen and $+1/p_-$ at its rejected response, and the mean Hessian is diagonal, $\frac1{p_+}+\frac1{p_-}$. Its inverse, kept on $\sum\pi=1$, turns the covariance $V$ of one comparison's gradient into that of the error $\delta$; and KL is $\frac12\sum\delta^2/p_+$:
#
# $$n\,E\,\mathrm{KL}(p_+\|\hat\pi)\to\tfrac12\operatorname{tr}\big(\mathrm{diag}(1/p_+)\,M V M\big),\qquad M=D-\tfrac{D\mathbf 1\mathbf 1^\top D}{\mathbf 1^\top D\,\mathbf 1},\; D=\mathrm{diag}\big(\tfrac{p_+p_-}{p_++p_-}\big).$$
#
# Counting the chosen gives $(K-1)/2$ for $K$ answers.

# %%
slope = statistics.log_log_slope(sizes, torch.stack([c["ddro"] for c in curves], 1)).over_repeats
claim("10.slope", "Higuchi & Suzuki (2025): consistent; the rate is derived here",
      "cyclic judge: DDRO's KL(p+ || policy) falls as n to the power -1 (120 seeds)",
      expected=-1, measured=slope.estimate, interval=slope)
last = statistics.mean_interval(curves[-1]["dpo"])
claim("10.dpo_reaches", "what consistency would mean",
      "a million comparisons: DPO at its best beta is at p+ (KL, 120 seeds)",
      expected=0, measured=last.estimate, interval=last)
claim("10.dpo_limit", "derived here", "it is at its limit instead, the best beta's gap (KL, 120 seeds)",
      expected=gap, measured=last.estimate, interval=last, tolerance=5e-6)
large = [n * c["ddro"] for n, c in zip(sizes, curves) if n > 10_000]
height = statistics.mean_interval(torch.stack(large).mean(0))
claim("10.constant", "derived here, the formula above",
      "n KL(p+ || DDRO) for n > 10,000 is the formula's constant (120 seeds)",
      expected=constants["ddro"], measured=height.estimate, interval=height)
saved = statistics.mean_interval(curves[2]["ddro"] - curves[2]["sft"])
claim("10.beats_counting", "derived here",
      "n = 16,384: DDRO is nearer to p+ than SFT on the chosen (KL difference, 120 seeds)",
      expected=0, relation="at most", measured=saved.estimate, interval=saved)
print(f"constants: DDRO {constants['ddro']:.3f}, SFT {constants['sft']:.3f}")

# %% [markdown]
# Why better than counting the chosen? The rejected are data too, and $p_{ref}$ is *known*: DDRO knows that both piles must add up to it. SFT throws half away. (This advantage rests on the identity; SFT is consistent without it.)
#
# ## 4 · Break it on purpose
#
# $g$ is a ratio of densities, so it is positive, so $r<1/t$. Nothing tells the policy.

# %% [markdown] exercise="10.2" part="task" stars=2 minutes=10
# ### What pulls, and how hard
# At $t=\frac12$, without autograd: the derivative of each response's loss in its log-ratio $l$.

# %% exercise="10.2" part="stub"
def ddro_gradient(log_ratio: Tensor, preferred: Tensor) -> Tensor:
    """d loss / d log_ratio, one number for each response."""
    raise NotImplementedError


# %% exercise="10.2" part="check"
check("10.2", ddro_gradient)

# %% [markdown] exercise="10.2" part="hints"
# 1. Preferred: the loss is $\log2-l$.
# 2. Rejected: the outer derivative of $-\log(2-r)$ in $r$ is $1/(2-r)$.
# 3. $r=e^l$, so $dr/dl=r$.

# %% exercise="10.2" part="solution"
def ddro_gradient(log_ratio: Tensor, preferred: Tensor) -> Tensor:
    r = log_ratio.exp()
    return torch.where(preferred, -torch.ones_like(r), r / (2 - r))


check("10.2", ddro_gradient)

# %%
l = torch.tensor([-2, -1, 0, 0.3, 0.5, 0.6, 0.65, 0.69], dtype=torch.float64, requires_grad=True)
down = torch.zeros(8, dtype=torch.bool)
slope = torch.autograd.grad(objectives.ddro(l, 0 * l, down).sum(), l)[0]
r = l.detach().exp()
print("l → gradient:", {round(a, 2): round(b, 2) for a, b in zip(l.tolist(), slope.tolist())})
claim("10.gradient", "derived here",
      "a rejected response's gradient in l is r/(2 - r) (largest relative error)",
      expected=0, measured=float((slope / (r / (2 - r)) - 1).abs().max()), tolerance=1e-9)


def wall(t, low=-1.0, high=3.0):
    """The log-ratio at which a rejected response's loss ends, by bisection."""
    for _ in range(60):
        middle = torch.tensor([(low + high) / 2], dtype=torch.float64)
        loss = objectives.ddro(middle, 0 * middle, down[:1], t=t, past_wall="inf")
        low, high = (float(middle), high) if torch.isfinite(loss) else (low, float(middle))
    return low


claim("10.wall", "derived here",
      "the wall stands at log(1/t): 0.69 nats at t = 1/2 (four t, largest error)", expected=0,
      measured=max(abs(wall(t) + math.log(t)) for t in (0.2, 0.39, 0.5, 0.8)), tolerance=1e-9)

# %% [markdown]
# A force that grows without bound should keep a text from the wall: a *barrier*. It can, for a text that is in the batch, if steps are small. But a rejected text that has not been drawn yet has not pushed. *Predict: the pocket model, 48 texts a step, learning rate 0.001. How many steps? And will it be one odd token, or many?*

# %% tags=["nbval-ignore-output"]
inn = pocket.load_world("cyclic")
untouched = inn.kl_to_preferred(None, per_prompt=60, seed=3).estimate  # for section 5
feedback = preferences.draw_pairs(inn, 960, seed=1_000).unpaired()
policy, history, batch = lesson.to_the_wall(inn, feedback, learning_rate=1e-3, seed=0)
norms = history.curve("gradient_norm")[1]
print(f"ended at step {len(history) + 1}; gradient norms before:", [round(x, 1) for x in norms.tolist()])
if batch is not None:
    log_ratio, whole, others = lesson.gradients_at_the_wall(inn, policy, batch)
    row = int(torch.where(batch.preferred, -math.inf, log_ratio).argmax())
    words, parts = lesson.token_log_ratios(inn, policy, batch.prompt[row], batch.response[row])
    print(f"row {row} of the batch, rejected, l = {float(log_ratio[row]):.4f}: {batch.prompt[row]}")
    print(*(f"{word}({part:+.2f})" if abs(part) > 0.03 else word for word, part in zip(words, parts)))
    print(f"gradient norm with it {float(whole.norm()):.0f}, without it {float(others.norm()):.0f}")

# %% [markdown]
# The numbers in brackets are nats. In our run no single token did it: at nearly every *choice* the text made, that choice became a little likelier; the words between are certain and stayed. The sum passes 0.69.
#
# Past the wall the loss has no gradient. Both norms are those of its *tangent*, taken 0.001 nats before the wall: the one text counts with a slope of about 1,000.
#
# Is this seed typical? Eight seeds, two learning rates, stored:

# %%
crashes = experiments.results("10_into_the_wall", recompute=RECOMPUTE)
fast, slow = ([run for run in crashes if run["learning_rate"] == rate] for rate in (1e-3, 3e-4))
hit = [run for run in fast if run["step"] is not None]
for name, runs, side in (("fast", fast, "at least"), ("slow", slow, "at most")):
    ended = sum(run["step"] is not None for run in runs)
    rate = statistics.wilson_interval(ended, len(runs))
    claim(f"10.{name}", "this course", f"learning rate {runs[0]['learning_rate']:g}: {side} half of "
          "the runs end at the wall within 40 steps (share, 8 seeds)",
          expected=0.5, relation=side, measured=rate.estimate, interval=rate)
print("ended at step", sorted(run["step"] for run in hit))
print("2W of the text that hit:", sorted(round(run["truth"], 2) for run in hit))
turned, share, wanted = (statistics.mean_interval([run[key] for run in hit])
                         for key in ("cosine", "share", "truth"))
claim("10.hijack", "this course",
      "there the batch's gradient (tangent) points where that one text's does (mean cosine, 8 seeds)",
      expected=0.9, relation="at least", measured=turned.estimate, interval=turned)
claim("10.one_token", "a natural guess",
      "one token makes at least half of the text's log-ratio (mean share, 8 seeds)",
      expected=0.5, relation="at least", measured=share.estimate, interval=share)
claim("10.who", "a natural guess", "the text that hits is one that p+ raises: 2W ≥ 1 (mean, 8 seeds)",
      expected=1, relation="at least", measured=wanted.estimate, interval=wanted)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.7)
for run in hit:
    path = [0.0, *torch.tensor([part for _, part in run["tokens"]]).cumsum(0).tolist()]
    left.plot(range(len(path)), path, color=orange, alpha=0.45, linewidth=1.4)
    left.plot(len(path) - 1, path[-1], "v", color=orange)
left.axhline(math.log(2), color=plots.INK, linewidth=3)
plots.label(left, 0.3, math.log(2), "the wall: log 2", xytext=(0, 9))
left.set(xlabel="token of the response", ylabel="log-ratio so far (nats)", ylim=(-0.15, 1.05))
left.set_title("Eight texts on their way to the wall")
for place, key, colour in ((0, "usual_norm", plots.GREY), (1, "others_norm", plots.PALETTE["blue"]),
                           (2, "norm", orange)):
    right.plot([place] * len(hit), [run[key] for run in hit], "o", color=colour, alpha=0.7)
right.set(yscale="log", xlim=(-0.5, 2.5), ylabel="length of the gradient", ylim=(3, 5_000))
right.set_xticks([0, 1, 2], ["median before", "at the wall,\nwithout the text", "at the wall,\nwith it"])
right.set_title("One text in 48 (tangent past the wall)")
plots.show(drawn, alt="""Left: cumulated log-ratio over the tokens of the eight texts that ended a run:
    most climb in several steps, one nearly in a single step, and all end above log 2. Right: lengths of
    the gradient: near seven before; without the text up to 21, but above 800 in one run; with it 700
    and more.""")

# %% [markdown]
# Both guesses stay undecided with eight runs; five of these texts are ones that $p_+$ *lowers*. In a first pass every text is new, and before its turn it can be carried up by what it shares with liked ones. Then one text in 48 writes nearly the whole update (in the one run with a lower cosine, two texts were past the wall). Clipping shortens the gradient and keeps its direction: the others have all but lost their vote.

# %% [markdown] exercise="10.3" part="task" stars=2 minutes=10
# ### Who hit the wall?
# A run has ended. From the token log-ratios of its batch, $[\text{rows},\text{tokens}]$, return `(row, token)`: the rejected response with the largest log-ratio, and the token that rose most *in it*.

# %% exercise="10.3" part="stub"
def who_hit(token_log_ratio: Tensor, response_mask: Tensor, preferred: Tensor) -> tuple[int, int]:
    """(row, token), two ints; response_mask is True where a place holds a token of the response."""
    raise NotImplementedError


# %% exercise="10.3" part="check"
check("10.3", who_hit)

# %% [markdown] exercise="10.3" part="hints"
# 1. A response's log-ratio is the sum over its own tokens: mask first.
# 2. `masked_fill(preferred, -math.inf)` takes preferred rows out of the race.
# 3. Inside the row, fill the padding with $-\infty$ before `argmax`.

# %% exercise="10.3" part="solution"
def who_hit(token_log_ratio: Tensor, response_mask: Tensor, preferred: Tensor) -> tuple[int, int]:
    total = token_log_ratio.masked_fill(~response_mask, 0.0).sum(1)
    row = int(total.masked_fill(preferred, -math.inf).argmax())
    return row, int(token_log_ratio[row].masked_fill(~response_mask[row], -math.inf).argmax())


check("10.3", who_hit)

# %% [markdown]
# **What can one do?** Take smaller steps (no proof, but 0.0003 got through 40). Or change the loss beyond the wall. A *clamp* holds $l$ at the wall: finite, and flat. A *tangent* goes on as a straight line (`past_wall="tangent"`). *Predict: start each from a policy that is already past the wall. Which comes back?*

# %%
clamped = replace(objectives.get("ddro"), name="ddro_clamped", loss=lesson.ddro_clamped)
past = torch.tensor([[0.74, 0.135, 0.125]], dtype=torch.float64)  # r = 2.5 for the third answer
tangent = {"past_wall": "tangent"}
ends = {"tangent": world.population_minimiser("ddro", start=past, **tangent),
        "clamp": world.population_minimiser(clamped, start=past)}
for name, end in ends.items():
    print(f"{name:8}: ends at r =", [round(x, 3) for x in (end / ref)[0].tolist()])
for name, who, words in (("clamp", "a natural cure", "a clamp"),
                         ("tangent", "derived here", "the tangent")):
    claim(f"10.{name}", who, f"started past the wall, {words} returns to p+ (KL)",
          expected=0, measured=world.kl(p_plus, ends[name]), tolerance=1e-6)
for distance in (0.1, 0.25, 0.3, 0.5):
    bent = world.population_minimiser("ddro", wall_distance=distance, **tangent)
    print(f"tangent from {distance} nats before the wall: KL(p+ ‖ π) = {world.kl(p_plus, bent):.4f}")
yes, t = torch.ones(1, dtype=torch.bool), 0.8
for distance in (1e-1, 1e-3, 1e-9):
    l = torch.tensor([math.log((1 - distance) / (2 * t - 1))], dtype=torch.float64)
    loss = float(objectives.ddro(l, 0 * l, yes, t=t))
    print(f"t = 0.8, r a share {distance:g} below {1 / (2 * t - 1):.2f}: preferred loss {loss:.2f}")

# %% [markdown]
# The clamp is a one-way door: past it nothing pushes back, and the policy settles farther from $p_+$ than the reference was. The tangent comes back; its minimiser is $p_+$ as long as $\log(p_+/p_{ref})$, here at most $\log 1.52$, stays before the bend: one 0.3 nats before the wall is too early.
#
# **Above $t=\frac12$ a second wall.** The preferred loss, $\log\frac{1/r+1-2t}{1-t}$, falls to *minus infinity* at $r=1/(2t-1)$. A text that is liked and never rejected in your sample is pulled there: a finite sample need not have a best policy.
#
# The remaining fix is lesson 11's: **fit a ratio without a subtraction.**

# %% [markdown]
# ## 5 · On the bench with the others
#
# First without a language model: let 512 shipped responses to each prompt be the whole world. DPO's limit follows from their win rates. *Predict: under which judge is it farther from $p_+$, the cyclic or the Bradley–Terry one?*

# %%
table, limits = pocket.load_reference_features("sft", "qwen2")[:, :512], {}
some = torch.tensor([0.1, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12], dtype=torch.float64)
for judge in ("cyclic", "bradley_terry"):
    todo, left_over = lesson.text_limits(table, judge, some)
    limits[judge] = todo, left_over
    print(f"{judge:13}: to learn {todo:.4f} nats; DPO's best limit {float(left_over.min()):.5f}, "
          f"at β = {float(some[left_over.argmin()]):g}; at β = 0.1: {float(left_over[0]):.2f}")
left_open = {judge: float(left_over.min()) / todo for judge, (todo, left_over) in limits.items()}
claim("10.blame", "a tempting reading of the abstract",
      "the cycle is to blame: DPO's best limit misses a larger share of KL(p+ || p_ref) under the "
      "cyclic judge than under Bradley-Terry (difference)",
      expected=0, relation="at least", measured=left_open["cyclic"] - left_open["bradley_terry"])

# %% [markdown]
# The other way round: this Bradley–Terry judge is the more decided one, and where preferences are strong, $2\sigma(x)$ and $e^{x/2}$ part. Under the cyclic judge DPO at β = 2 misses less than a fiftieth of what there is to learn. At the usual β = 0.1 it is far worse than doing nothing.
#
# Now the language model, cyclic judge, 40 updates for everybody, from 60, 240 or 960 comparisons. DDRO runs with the tangent, at the rate that kept clear of the wall. *Predict the order.*

# %%
runs = experiments.results("10_as_data_grow", recompute=RECOMPUTE)
methods = {"DDRO": ("ddro", None), "SFT": ("sft", None),
           **{f"DPO, β = {b:g}": ("dpo", b) for b in lesson.DPO_BETAS}}
found = {name: {n: [run["kl_to_preferred"] for run in runs if run["pairs"] == n
                    and (run["method"], run.get("beta")) == which] for n in lesson.SIZES}
         for name, which in methods.items()}
for name, by_size in found.items():
    print(f"{name:11}", "   ".join(f"{n:3}: {statistics.mean_interval(v)}" for n, v in by_size.items()))

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.8)
looks = {"DDRO": ("ddro", "-", 0.82), "SFT": ("sft", "--", 0.9), "DPO, β = 1": ("dpo", ":", 1.0),
         "DPO, β = 2": ("dpo", "--", 1.1), "DPO, β = 4": ("dpo", "-", 1.21)}
for name, (method, style, shift) in looks.items():
    rows, look = [statistics.mean_interval(v) for v in found[name].values()], plots.look(method)
    half = [row.high - row.estimate for row in rows]  # the intervals are symmetric
    left.errorbar([n * shift for n in lesson.SIZES], [row.estimate for row in rows], half, label=name,
                  color=look.color, linestyle=style, marker=look.marker, capsize=2, linewidth=1.3)
left.axhline(untouched, color=plots.GREY, linestyle=":")
plots.label(left, 48, untouched * 0.95, "the untouched reference", plots.GREY, va="top", xytext=(0, 0))
left.legend(loc="upper right")
left.set(xscale="log", yscale="log", xlabel="comparisons", ylabel="KL(p+ ‖ policy)", ylim=(0.03, 0.22))
left.set_xticks([60, 240, 960], ["60", "240", "960"])
left.set_yticks([0.04, 0.06, 0.1, 0.2], ["0.04", "0.06", "0.1", "0.2"])
left.minorticks_off()
left.set_title("The pocket model (4 seeds)")
looks = ("pink", 0.11, 0.27, "cyclic judge"), ("violet", 1.1, 1.0, "Bradley–Terry judge")
for (start, ends), (colour, x, y, word) in zip(limits.values(), looks):
    right.loglog(some, ends, "o-", color=plots.PALETTE[colour], markersize=4)
    right.axhline(start, color=plots.PALETTE[colour], linestyle=":")
    plots.label(right, x, y, word, plots.PALETTE[colour], xytext=(0, 0))
right.set(xlabel="β", ylabel="KL(p+ ‖ DPO's limit)", title="Where DPO would end (dotted: the start)")
plots.show(drawn, alt="""Left: all methods fall from far above the reference to about its level; DPO at
    beta 4 is lowest at 60, and level with DDRO at 960. Right: DPO's limit against beta, a deep valley
    at beta 2 for the cyclic judge, a shallower one at 4 for the Bradley-Terry judge.""")

# %%
mean_of = lambda name, n: sum(found[name][n]) / len(found[name][n])
few, many = lesson.SIZES[0], lesson.SIZES[-1]
best = {n: min((name for name in found if name[:3] == "DPO"), key=lambda name: mean_of(name, n))
        for n in lesson.SIZES}
print(f"the untouched reference: {untouched:.3f}")
print("DPO's best β, chosen on these very runs:", {n: name[9:] for n, name in best.items()})


def compare(slug, statement, a, b):
    """Claim that the mean of a - b over seeds is at most zero."""
    difference = statistics.mean_interval([x - y for x, y in zip(a, b)])
    claim(f"10.{slug}", "this course", f"pocket model: {statement} (KL difference, 4 seeds)",
          expected=0, relation="at most", measured=difference.estimate, interval=difference)


compare("few", f"from {few} comparisons DDRO is nearer than DPO at its best beta",
        found["DDRO"][few], found[best[few]][few])
compare("many", f"from {many} comparisons DDRO is nearer than DPO at its best beta",
        found["DDRO"][many], found[best[many]][many])
compare("sft", f"from {many} comparisons DDRO is nearer than SFT",
        found["DDRO"][many], found["SFT"][many])

# %% [markdown]
# Consistency is a promise about large $n$, and 960 comparisons for 24 prompts are not large. From 60 and from 240 **every** method ends, on average, farther from $p_+$ than the untouched reference. With few, a large β, a short leash, does least harm: β = 4, whose limit is far worse than that of β = 2 (right), makes the best estimate of the three. DDRO has no such brake. From 960 the order is undecided, against SFT too, and the best end barely nearer than the reference.
#
# Read the texts of two that cannot be told apart:

# %%
for name, (method, beta) in (("DDRO", methods["DDRO"]), ("SFT", methods["SFT"])):
    run = next(run for run in runs if (run["method"], run["pairs"], run["seed"]) == (method, many, 0))
    print(name)
    inn.show([tuple(text) for text in run["texts"]], 3)

# %% [markdown] exercise="10.4" part="task" stars=3 minutes=30 open=true
# ### Keep DDRO off the wall
# Invent one change to the *training*, not to the loss, that lets DDRO run at learning rate 0.001 (larger batches, warm-up, drawing near rejected texts again, an early look at the next batch …). Measure it against the tangent over at least six seeds.

# %% [markdown] exercise="10.4" part="hints"
# 1. `lesson.to_the_wall` shows how a run is caught; `policy` is left as it was before the fatal step.
# 2. The log-ratios of the *next* batch cost one forward pass without gradients.
# 3. Compare KL(p₊ ‖ policy) of runs that survived only with the same seeds of the tangent: dropping failures flatters.

# %% [markdown] exercise="10.4" part="solution"
# A good answer counts failures and measures KL, on the same seeds, with equal compute, and gives the paired difference with an interval. It counts the look-ahead's forward passes as compute, and says whether a cure prevents the wall or only postpones it: run on until 100 steps. The best answers ask whether their cure does anything that smaller steps would not, and compare with simply using 0.0003.

# %% [markdown]
# ## When to use it
#
# Where feedback is thumbs on *your reference's own* responses, so that the mixture holds (for each prompt with its own $t$, its share of thumbs up), and the target is $p_+$, not a maximised reward. On our table it beat counting; on the language model we saw no such gain. It is SFT with a brake that can lock: watch the largest log-ratio of rejected texts, not the mean. Read 11 before you choose it.

# %% [markdown]
# **In TRL 1.16** there is no DDRO. Nearest is `KTOTrainer`: the same data (`completion`, `label`), sums over tokens, a frozen reference, and losses that are sigmoids, hence bounded. To build DDRO there, replace its two losses *and* mind its mean: it pools both classes, so class-wise means need `desirable_weight` $=1/\pi$ and `undesirable_weight` $=1/(1-\pi)$ for a share π of liked rows (11 shows what pooling does). `beta` has no counterpart; $t$ is π, if the mixture holds.
#
# ## What we measured

# %%
ledger.rows("10")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | the loss is NaN after a few steps | a plain `log(2 - r)`: one rejected text passed the wall |
# | the error names a text nobody wants | it rose with its neighbours before its first turn |
# | loss fine, held-out loss infinite | the wall is met by texts that training did not see |
# | now and then a huge gradient | the tangent at work: lower the learning rate |
# | the wall is far off, and the optimum another | log-ratios averaged over tokens: not a density ratio any more |
# | minus infinity | t above ½, and a text that was never rejected |

# %% [markdown]
# ## References
#
# - R. Higuchi, T. Suzuki (2025). *Direct Density Ratio Optimization: A Statistically Consistent Approach to Aligning Large Language Models*, arXiv 2505.07558, ICML 2025. DDRO. We had its abstract and secondary accounts: the formulas here are derived, its theorems are not quoted. It is reported to run with a stabiliser, whose form we could not establish.
# - H. Takahashi et al. (2026), arXiv 2604.04410: the instability of DDRO, and RDRO (11).
# - M. Sugiyama, T. Suzuki, T. Kanamori (2012). *Density Ratio Estimation in Machine Learning.*
# - TRL 1.16.0: `trainer/kto_trainer.py`, `trainer/kto_config.py`.
#
# ## Next
#
# **11 · RDRO**: one line of algebra, and the wall is gone.
