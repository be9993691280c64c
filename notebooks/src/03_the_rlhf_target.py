# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "The RLHF target: reward, minus a leash", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 03 · The RLHF target: reward, minus a leash
#
# Every method of this course aims at one policy, and it has a formula. This lesson derives it, climbs to it in four ways, shows which popular
# variants climb somewhere else, and what happens when the reward is only a proxy.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive the optimum of reward minus β KL, and say how much any other policy loses;
# 2. write policy gradient, a leave-one-out baseline and PPO's clip, and know which of their noise vanishes at the optimum;
# 3. tell which KL estimator is a leash, which is another leash, and which is none;
# 4. compute best-of-n and its KL exactly;
# 5. recognise over-optimisation of a proxy in numbers and in texts.

# %% [markdown]
# ## Prerequisites
#
# Lesson 01, gradients, the Kullback–Leibler divergence. About 90 minutes with the exercises. Test yourself:
#
# <details><summary>KL(p ‖ q) in one line, and when is it zero?</summary>Σ p log(p/q); only when p = q.</details>
# <details><summary>What is Σ_y p(y) ∇ log p(y)?</summary>∇ Σ p(y) = ∇ 1 = 0: the mean of a score is zero.</details>
#
# *Not covered:* value networks, per-token credit, and reward models that are learned (02).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import itertools
import math

import torch
from torch import Tensor

from course_utils import experiments, ledger, plots, statistics
from course_utils.experiments import lesson_03 as pocket_runs
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import OnPolicy, TrainingSettings, train
from course_utils.worlds import finite_optima, pocket
from course_utils.worlds.finite import FiniteWorld

RECOMPUTE = False  # True trains the twenty pocket policies again: about 12 minutes

# %%
answers = ["Go to bed.", "Drink warm milk.", "Avoid screens.", "Keep a rhythm.",
           "All of these.", "You are great!"]
ref = torch.tensor([0.30, 0.24, 0.20, 0.14, 0.08, 0.04], dtype=torch.float64)
r = torch.tensor([-1.0, -0.4, 0.1, 0.6, 1.2, -0.6], dtype=torch.float64)
world, beta = FiniteWorld.from_rewards(ref[None], r[None]), 1.0
target = world.rlhf_optimum(beta)[0]
generator = torch.Generator().manual_seed(0)
policies = torch.softmax(2 * torch.randn(1000, 6, generator=generator, dtype=torch.float64), -1)
inn = pocket.load_world("bradley_terry")
runs = experiments.results("03_leash", recompute=RECOMPUTE)


def paths(judge, beta, key):
    """[seed, measurement] of one number along the runs of one setting."""
    chosen = [run for run in runs if (run["judge"], run["beta"]) == (judge, beta)]
    return torch.tensor([[point[key] for point in run["path"]] for run in chosen])

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=5.0, height=3.6)
betas = torch.logspace(1.3, -1.3, 60, dtype=torch.float64)
curves = torch.stack([world.rlhf_optimum(float(b))[0] for b in betas])
colours = ["grey", "sand", "sky", "blue", "green", "orange"]
for y, name in enumerate(answers):
    colour = plots.PALETTE.get(colours[y], plots.GREY)
    left.semilogx(1 / betas, curves[:, y], color=colour, linestyle="-" if y != 5 else "--")
    lift = {0: 2, 1: 2, 2: -3, 3: -2}.get(y, 0)  # points, so that close labels do not touch
    spot = (0.05, float(curves[0, y]))
    plots.label(left, *spot, name, colour, xytext=(-4, lift), ha="right", fontsize=8)
left.set(xlabel="1 / β  (a longer leash →)", ylabel="probability", xlim=(0.003, 21))
left.set_title("The target, from reference to greed")
steps = [point["step"] for point in runs[0]["path"]]
for key, colour, name in [("rewarded", "orange", "the proxy"), ("truth", "blue", "the true judge")]:
    rows = [statistics.mean_interval(column) for column in paths("surface", 0.0, key).T]
    colour = plots.PALETTE[colour]
    right.plot(steps, [row.estimate for row in rows], color=colour, marker="o")
    low, high = [row.low for row in rows], [row.high for row in rows]
    plots.interval_band(right, steps, low, high, colour)
    plots.label(right, steps[-1], rows[-1].estimate, name, colour, xytext=(-14, 0), ha="right")
right.set(xlabel="training steps without a leash", ylabel="reward")
right.set_title("Pocket model: a proxy, over-optimised (5 seeds)")
plots.show(drawn, alt="""Left: probabilities of six answers against 1/beta: first the reference;
    with a longer leash the best answer takes all. Right: on the pocket model the proxy climbs,
    while the true reward stays for a few steps and then falls far below its start.""")

# %% [markdown]
# Left: six answers to *“How do I sleep better?”*. With a short leash the policy stays the reference; with a long one the best answer takes all. Right: the same on a
# language model whose reward only looks at the surface. By the end you can compute the left picture, and explain the right one.
#
# ## 1 · Derive
#
# *Question: which policy is best, if moving away from the reference has a price?* For each prompt, maximise over distributions
#
# $$J(\pi)=\sum_y \pi(y)\,r(y)-\beta\sum_y\pi(y)\log\frac{\pi(y)}{\pi_{ref}(y)} .$$
#
# β is the price of one nat of KL, in units of reward.

# %% [markdown]
# **First way: Lagrange.** Add $\lambda(1-\sum_y\pi(y))$ and set the derivative in $\pi(y)$ to zero:
#
# $$r(y)-\beta\log\frac{\pi(y)}{\pi_{ref}(y)}-\beta-\lambda=0 \;\Rightarrow\; \pi^*(y)=\frac{\pi_{ref}(y)\,e^{r(y)/\beta}}{Z},\qquad Z=\sum_y\pi_{ref}(y)\,e^{r(y)/\beta}.$$
#
# The derivative grows without bound as $\pi(y)\to0$, so no maximum lies on the border where $\pi_{ref}>0$. And $J$ is strictly concave (a linear term minus a strictly convex
# one), so this is the only one. Where $\pi_{ref}(y)=0$ the policy must be zero too: RLHF reweights, it does not invent.
#
# **Second way: complete the KL.** From the formula for $\pi^*$, $r(y)=\beta\log\frac{\pi^*(y)}{\pi_{ref}(y)}+\beta\log Z$. Put that into $J$:
#
# $$J(\pi)=\beta\log Z+\beta\sum_y\pi(y)\Big[\log\frac{\pi^*(y)}{\pi_{ref}(y)}-\log\frac{\pi(y)}{\pi_{ref}(y)}\Big]=\beta\log Z-\beta\,\mathrm{KL}(\pi\,\|\,\pi^*).$$
#
# No calculus, and more: what any policy loses is exactly β times its *reverse* KL to the target. *Predict: what is $J(\pi_{ref})$, and how much does the reference lose?*

# %%
def value(policy):
    return policy @ r - beta * (policy * (policy / ref).log()).sum(-1)


top = beta * torch.logsumexp(ref.log() + r / beta, 0)  # beta log Z
lost = beta * (policies * (policies / target).log()).sum(-1)
print(f"J of the reference {float(value(ref)):.4f}, of the target {float(value(target)):.4f}")
claim("03.completion", "Rafailov et al. (2023), appendix A.1",
      "J = beta log Z - beta KL(policy || target), largest error over 1,000 random policies",
      expected=0, measured=float((value(policies) - top + lost).abs().max()), tolerance=1e-10)

# %% [markdown] exercise="03.1" part="task" stars=1 minutes=5
# ### The optimum
# For one prompt: reference probabilities, rewards and β. Return the best policy's probabilities.

# %% exercise="03.1" part="stub"
def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The policy with the largest E r - beta KL(policy || reference)."""
    raise NotImplementedError


# %% exercise="03.1" part="check"
check("03.1", optimum)

# %% [markdown] exercise="03.1" part="hints"
# 1. Weights first: reference times a tilt. Then divide by their sum.
# 2. Large β means a short leash, so β divides the reward.
# 3. `torch.softmax` of logarithms does both steps without overflow.

# %% exercise="03.1" part="solution"
def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    return torch.softmax(reference.log() + reward / beta, dim=-1)


check("03.1", optimum)

# %% [markdown]
# ## 2 · Implement
#
# A language model has too many responses for a formula; it climbs. Since $\nabla\pi=\pi\nabla\log\pi$,
#
# $$\nabla J=\sum_y \pi(y)\,\nabla\log\pi(y)\,A(y),\qquad A(y)=r(y)-\beta\log\frac{\pi(y)}{\pi_{ref}(y)} .$$
#
# The derivative of the logarithm inside $J$ adds $-\beta\sum_y\pi\,\nabla\log\pi=0$. So the leash can be paid **as a reward**: subtract $\beta\log(\pi/\pi_{ref})$ from $r$, hold it constant, do
# policy gradient. For a softmax table, $\nabla\log\pi(y)=e_y-\pi$, hence $\nabla J=\pi\,(A-\mathbb{E}A)$.

# %%
def climb(weight, rate=2.0, steps=4000):
    """Ascend from the reference: weight(p) is what multiplies the score of each response."""
    logits = ref.log().clone()
    for _ in range(steps):
        p = torch.softmax(logits, -1)
        a = weight(p)
        logits = logits + rate * p * (a - p @ a)
    return torch.softmax(logits, -1)


reached = climb(lambda p: r - beta * (p / ref).log())
claim("03.closed_form", "Ziegler et al. (2019); Rafailov et al. (2023), eq. (4)",
      "gradient ascent on J reaches pi_ref exp(r/beta)/Z (largest error of a log-probability)",
      expected=0, measured=float((reached / target).log().abs().max()), tolerance=1e-8)

# %% [markdown] exercise="03.2" part="task" stars=1 minutes=5
# ### The leave-one-out baseline
# **Samples and baselines.** Draw $K$ responses and average $A(y_i)\nabla\log\pi(y_i)$: that is REINFORCE. A number $b$ that does not depend on $y_i$ may be subtracted, because
# $\mathbb{E}\,[b\,\nabla\log\pi(y_i)]=b\cdot0$. Leave-one-out (RLOO) takes the mean of the *other* responses' $A$: independent of $y_i$, so unbiased. The mean of the whole group contains $A(y_i)$ itself:
#
# $$A_i-\tfrac1K\textstyle\sum_j A_j=\tfrac{K-1}{K}\big(A_i-\tfrac1{K-1}\sum_{j\ne i}A_j\big),$$
#
# so its gradient is $\frac{K-1}{K}$ of the true one. Harmless if the leash is inside $A$. Keep the case where it is not in mind.
#
# `reward` is [prompts, K]. Return each reward less the mean of the others to the same prompt.

# %% exercise="03.2" part="stub"
def leave_one_out(reward: Tensor) -> Tensor:
    """Each reward less the mean of the others in its row."""
    raise NotImplementedError


# %% exercise="03.2" part="check"
check("03.2", leave_one_out)

# %% [markdown] exercise="03.2" part="hints"
# 1. The sum of the others is the sum of all less one's own.
# 2. There are K − 1 others.
# 3. `sum(dim=-1, keepdim=True)` keeps the shape for broadcasting.

# %% exercise="03.2" part="solution"
def leave_one_out(reward: Tensor) -> Tensor:
    others = (reward.sum(-1, keepdim=True) - reward) / (reward.shape[-1] - 1)
    return reward - others


check("03.2", leave_one_out)

# %% [markdown] exercise="03.3" part="task" stars=2 minutes=8
# ### The clipped loss
# **PPO's clip.** To use a batch several times, weight by $w=\pi/\pi_{old}$, and stop where the policy has moved far enough:
#
# $$L=-\min\big(w A,\ \mathrm{clip}(w,1-\epsilon,1+\epsilon)\,A\big).$$
#
# Read the gradient: it is $-wA\nabla\log\pi$, except that it is zero where $A>0$ and $w>1+\epsilon$, or $A<0$ and $w<1-\epsilon$. The clip is a mask.
#
# `log_ratio` is $\log\pi-\log\pi_{old}$ of each response. Return one loss per response.

# %% exercise="03.3" part="stub"
def clipped_loss(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's clipped loss of each response."""
    raise NotImplementedError


# %% exercise="03.3" part="check"
check("03.3", clipped_loss)

# %% [markdown] exercise="03.3" part="hints"
# 1. The ratio is `log_ratio.exp()`.
# 2. Compute both products, ratio times advantage and clipped ratio times advantage, before comparing.
# 3. The objective is the smaller product; the loss is its negative.

# %% exercise="03.3" part="solution"
def clipped_loss(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantage, clipped * advantage)


check("03.3", clipped_loss)

# %%
def others_mean(a):  # leave-one-out
    return a - (a.sum(1, keepdim=True) - a) / (a.shape[1] - 1)


def sampled(advantage, K=4, steps=1500, rate=1.0, epochs=1, clip=0.2, seeds=32):
    """Policy gradient from K samples a step, for many seeds at once; the policies on the way."""
    generator, unit = torch.Generator().manual_seed(0), torch.eye(6, dtype=torch.float64)
    logits, path = ref.log().repeat(seeds, 1), []
    for step in range(steps):
        p = torch.softmax(logits, 1)
        y = torch.multinomial(p, K, replacement=True, generator=generator)
        old = p.log().gather(1, y)
        A = advantage(r[y] - beta * (old - ref.log()[y]))  # the leash is part of the reward
        for _ in range(epochs):
            p = torch.softmax(logits, 1)
            w = (p.log().gather(1, y) - old).exp()
            kept = torch.where(A > 0, w < 1 + clip, w > 1 - clip)
            logits = logits + rate * ((kept * w * A)[..., None] * (unit[y] - p[:, None])).mean(1)
        if step % 25 == 24:
            path.append(torch.softmax(logits, 1))
    return torch.stack(path)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# *Predict: four random samples a step, a step size that never shrinks. How close to the target can each get?* REINFORCE without a baseline; the same with 3 added to every
# reward, which changes no optimum; leave-one-out; PPO with four epochs on each batch.

# %%
methods = {
    "no baseline": sampled(lambda a: a),
    "no baseline, reward + 3": sampled(lambda a: a + 3),
    "leave-one-out": sampled(others_mean),
    "PPO, 4 epochs": sampled(others_mean, epochs=4, rate=0.5),
}
distance = {name: 0.5 * (path - target).abs().sum(-1) for name, path in methods.items()}
for name, slug in [("leave-one-out", "rloo"), ("PPO, 4 epochs", "ppo")]:
    claim(f"03.{slug}", "this course",
          f"{name}: sampled, constant step, and yet at the target (worst total variation, 32 seeds)",
          expected=0, measured=float(distance[name][-1].max()), tolerance=1e-6)
end = statistics.mean_interval(methods["no baseline"][-20:].mean(0) @ r)
claim("03.reinforce", "Williams (1992)",
      "REINFORCE hovers around the target: its mean reward (last 500 steps, 32 seeds)",
      expected=float(target @ r), measured=end.estimate, interval=end)

# %% tags=["figure"]
drawn, axes = plots.figure(width=7.6, height=3.7)
styles = [("sand", "-"), ("orange", "--"), ("blue", "-"), ("green", "-.")]
for (name, path), (colour, style) in zip(distance.items(), styles):
    x = 25 * torch.arange(1, len(path) + 1)
    shown = path.mean(1).clamp(min=1e-13)
    axes.semilogy(x, shown, color=plots.PALETTE[colour], linestyle=style)
    spot = {"leave-one-out": 26, "PPO, 4 epochs": 14}.get(name, 59)
    plots.label(axes, float(x[spot]), float(shown[spot]), name, plots.PALETTE[colour], xytext=(6, 4))
axes.set(xlabel="steps of four samples", ylabel="total variation (cut at 1e-13)")
axes.set(xlim=(0, 2050), ylim=(3e-14, 2))
axes.set_title("With a baseline, the noise dies at the target (mean of 32 seeds)")
plots.show(drawn, alt="""Distance to the target on a log scale. Without a baseline it stalls near
    0.005; with 3 added to the rewards it stays near 0.5. Leave-one-out falls in a straight line to
    the cut at 1e-13; PPO with four epochs falls faster.""")

# %% [markdown]
# Why does noise die? At $\pi^*$ the leashed reward $A(y)=r-\beta\log(\pi^*/\pi_{ref})=\beta\log Z$ is the *same for every response*. Differences within a group are then exactly zero, sample by
# sample. Without a baseline the common part stays and kicks. We can list all $6^4$ groups and compute mean and variance of the gradient exactly.

# %%
groups = torch.tensor(list(itertools.product(range(6), repeat=4)))
scores = torch.eye(6, dtype=torch.float64)[groups]


def exact_gradient(p, advantage):
    """Mean and total variance of the gradient of one group of four at policy p."""
    chance = p[groups].prod(1)
    moved = (p / ref).log()[groups]
    A = advantage(r[groups], moved)
    each = (A[..., None] * (scores - p)).mean(1)
    mean = chance @ each
    return mean, float(chance @ ((each - mean) ** 2).sum(1))


baselines = {"no baseline": lambda a: a, "leave-one-out": others_mean}
versions = {f"{name}, reward + {shift}": lambda r, x, f=f, shift=shift: f(r + shift - beta * x)
            for shift in (0, 3) for name, f in baselines.items()}
for name, advantage in versions.items():
    print(f"{name:26} variance at the reference {exact_gradient(ref, advantage)[1]:.3f}, "
          f"at the target {exact_gradient(target, advantage)[1]:.5f}")
A = r - beta * (policies[0] / ref).log()
wanted = policies[0] * (A - policies[0] @ A)
bias = exact_gradient(policies[0], versions["leave-one-out, reward + 3"])[0] - wanted
claim("03.unbiased", "Kool et al. (2019)", "the leave-one-out gradient has no bias (all groups of four)",
      expected=0, measured=float(bias.abs().max()), tolerance=1e-12)

# %% [markdown]
# An honest surprise: where the leashed rewards happen to be nearly centred, leave-one-out is *noisier* than nothing (first two rows), because a mean of three is itself random. It pays against offsets, and near the target.
#
# ## 4 · Break it on purpose
#
# **Popular variants.** GRPO keeps the leash outside the advantage. Then (a) the own mean in the baseline shrinks the reward by $\frac{K-1}{K}$ and not the leash: the effective price is
# $\frac{K}{K-1}\beta$. (b) Dividing by the group's standard deviation σ makes it $\beta\sigma$, with σ measured at the policy itself. *Predict: what do you get when all rewards are multiplied by ten?*

# %%
def climb_groups(advantage, steps=1500, rate=2.0):
    """Ascend the exact mean gradient of groups of four."""
    logits = ref.log().clone()
    for _ in range(steps):
        logits = logits + rate * exact_gradient(torch.softmax(logits, -1), advantage)[0]
    return torch.softmax(logits, -1)


def spread(p, size=1.0):
    return (p @ (size * r - p @ (size * r)) ** 2).sqrt()


own_mean = climb_groups(lambda r, x: r - r.mean(1, keepdim=True) - beta * x)
scaled = [climb(lambda p, c=c: c * r / spread(p, c) - beta * (p / ref).log()) for c in (1, 10)]
low, high = 0.01, 5.0  # sigma such that pi_ref exp(r / (beta sigma)) has the spread sigma
for _ in range(100):
    sigma = (low + high) / 2
    wider = spread(world.rlhf_optimum(beta * sigma)[0]) > sigma
    low, high = (sigma, high) if wider else (low, sigma)
print(f"scaled: rewards as they are {float(scaled[0][4]):.4f}, times ten {float(scaled[1][4]):.4f}")
best = float(target[4])
priced = [float(world.rlhf_optimum(b)[0, 4]) for b in (beta * 4 / 3, beta * sigma)]
claim("03.own_mean", "Shao et al. (2024) without the scaling",
      "group mean of four, leash in the loss: the target (best answer's probability)",
      best, float(own_mean[4]), tolerance=1e-6, corrected=priced[0], correction="that of beta K/(K-1)")
claim("03.group_std", "Shao et al. (2024), large groups",
      "divided by the group's standard deviation: the target (best answer's probability)", best,
      float(scaled[0][4]), tolerance=1e-6, corrected=priced[1],
      correction="that of beta times the target's own spread of rewards: their unit has no effect")

# %% [markdown]
# Ten times the reward, the same policy: β is no longer a price, and each prompt has its own. **Then the leash itself.** With $x=\log(\pi/\pi_{ref})$ at a sampled response, Schulman proposes
# three estimates of KL:
#
# $$k_1=x,\qquad k_2=\tfrac12x^2,\qquad k_3=e^{-x}-1+x .$$
#
# As *values* $k_1$ and $k_3$ have the right mean, since $\mathbb{E}_\pi e^{-x}=\sum\pi_{ref}=1$. Put into a *loss* and differentiated at fixed samples, they pull with $k_i'(x)\,\nabla\log\pi$, while the true gradient of
# the KL is $x\,\nabla\log\pi$.

# %%
estimates = {"k1": lambda x: x, "k2": lambda x: x**2 / 2, "k3": lambda x: torch.exp(-x) - 1 + x}
for at in (1.0, 0.25):
    p = world.rlhf_optimum(at)[0]
    x = (p / ref).log()
    rows = [f"{name} {float(p @ k(x)):.3f} (sd {float((p @ (k(x) - p @ k(x)) ** 2).sqrt()):.2f})"
            for name, k in estimates.items()]
    print(f"KL of the target at beta {at:4}: {world.kl(p):.3f};  {',  '.join(rows)}")

# %% [markdown]
# So “unbiased and low variance” holds near the reference and fails far from it. As losses: $k_1'=1$ pulls nowhere on average: **no leash**. $k_2'=x$ is right. $k_3'=1-e^{-x}$ has mean gradient
# $\sum(\pi-\pi_{ref})\nabla\log\pi=\nabla\,\mathrm{KL}(\pi_{ref}\|\pi)$: a leash on the **other** KL. Multiplied by $w=\pi/\pi_{old}$ before differentiating, it gives $k_3+k_3'=x$ at $w=1$: mended. The optimum of plain $k_3$ follows from $r+\beta\,\pi_{ref}/\pi=\lambda$:
#
# $$\pi(y)=\frac{\beta\,\pi_{ref}(y)}{\lambda-r(y)},\qquad \lambda>\max r \text{ such that it sums to one}.$$

# %%
sd = [float((p @ (k(x) - world.kl(p)) ** 2).sqrt()) for k in (estimates["k1"], estimates["k3"])]
claim("03.k3_noise", "Schulman (2020), read as a rule",
      "k3 is quieter than k1: ratio of standard deviations at the target of beta = 1/4",
      expected=1, relation="at most", measured=sd[1] / sd[0])
losses = {name: lambda x, w, k=k: k(x) for name, k in estimates.items()}
losses["w k3"] = lambda x, w: w * estimates["k3"](x)


def pull(name, x):
    """The derivative of a loss by log pi of a sampled response, where w = 1."""
    change = torch.zeros_like(x, requires_grad=True)
    return torch.autograd.grad(losses[name](x + change, change.exp()).sum(), change)[0]


ends = {name: climb(lambda p, name=name: r - beta * pull(name, (p / ref).log())) for name in losses}
low, high = float(r.max()) + 1e-9, float(r.max()) + beta
for _ in range(100):
    lam = (low + high) / 2
    low, high = (lam, high) if (beta * ref / (lam - r)).sum() > 1 else (low, lam)
claim("03.k1_loss", "seen in code: Tang & Munos (2025)", "k1 in the loss: the target (the same)", best,
      float(ends["k1"][4]), tolerance=1e-3, corrected=1.0, correction="no leash: the best takes all")
claim("03.k3_loss", "Shao et al. (2024), eq. (4)",
      "k3 in the loss: the target (best answer's probability)", best, float(ends["k3"][4]),
      tolerance=1e-6, corrected=float(beta * ref[4] / (lam - r[4])),
      correction="it leashes KL(pi_ref || pi): beta pi_ref / (lambda - r)")
claim("03.k3_corrected", "TRL 1.16, use_bias_correction_kl",
      "ratio times k3 in the loss: the target (best answer's probability)", best,
      float(ends["w k3"][4]), tolerance=1e-6)

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.4)
x = torch.linspace(-2, 3, 200)
looks = {"k1": ("sand", "--"), "k2": ("blue", "-"), "k3": ("orange", "-.")}
for (name, (colour, style)), spot in zip(looks.items(), [(-1.9, 1.3), (2.2, 2.6), (1.2, 0.4)]):
    left.plot(x, pull(name, x), color=plots.PALETTE[colour], linestyle=style)
    text = {"k1": "k1: the same for all", "k2": "k2, w k3: right", "k3": "k3: saturates at 1"}[name]
    side = "right" if name == "k2" else "left"
    plots.label(left, *spot, text, plots.PALETTE[colour], xytext=(0, 0), ha=side)
left.set(xlabel="x = log π/π_ref of a response", ylabel="pull of the leash", ylim=(-3, 3.2))
left.set_title("How hard a loss pulls back")
shown = {"target": target, "group mean": own_mean, "divided by std": scaled[0], "k1 loss": ends["k1"],
         "k2 loss": ends["k2"], "k3 loss": ends["k3"], "w·k3 loss": ends["w k3"]}
colours = [plots.PALETTE[c] for c in ("violet", "pink", "sand", "blue", "orange", "sky")]
heights = [float(p[4]) for p in shown.values()]
right.bar(range(len(shown)), heights, width=0.65, color=[plots.INK, *colours])
right.axhline(float(target[4]), color=plots.INK, linestyle=":")
right.set_xticks(range(len(shown)), [name.replace(" ", "\n", 1) for name in shown], fontsize=8)
right.set(ylabel="probability of the best answer", ylim=(0, 1.05))
right.set_title("Where each variant ends")
plots.show(drawn, alt="""Left: pull against log-ratio. k2 is the diagonal, k3 saturates at one, k1 is
    constant. Right: bars of the probability of the best answer. Target, k2 and corrected k3 agree near
    0.26; the group mean ends lower, division by the standard deviation and k3 near 0.39, k1 at one.""")

# %% [markdown]
# ## 5 · On the bench with the others
#
# **Best of n** needs no gradient: draw $n$, keep the best. With $F(y)$ the chance that a draw is no better than $y$, the best is no better than $y$ with chance $F^n$. For a *continuous* reward $u=F(y)$ is uniform, and
# $\pi_n/\pi_{ref}=n\,u^{n-1}$, so
#
# $$\mathrm{KL}=\log n+(n-1)\,\mathbb{E}\log u=\log n-\tfrac{n-1}{n},\qquad \text{win rate}=\mathbb{E}\,u=\tfrac{n}{n+1},$$
#
# because $u$ has density $nu^{n-1}$ under best-of-n. *Predict: with six answers, more or less?*

# %%
def formula(n):
    return math.log(n) - (n - 1) / n


many = torch.full((1, 2000), 1 / 2000, dtype=torch.float64)
fine = FiniteWorld.from_rewards(many, torch.linspace(-1, 1, 2000)[None])
tied = FiniteWorld.from_rewards(ref[None], r.round()[None])
worlds = {"2,000 answers": fine, "six": world, "six, ties": tied}
for n in (2, 4, 16, 64):
    kls = [f"{name} {each.kl(each.best_of_n(n)):.4f}" for name, each in worlds.items()]
    print(f"n = {n:2}: formula {formula(n):.4f};  {',  '.join(kls)}")
claim("03.bon_fine", "Stiennon et al. (2020)", "KL of best-of-16 is log n - (n-1)/n: 2,000 answers",
      expected=formula(16), measured=fine.kl(fine.best_of_n(16)), tolerance=1e-4)
excess = max(world.kl(world.best_of_n(n)) - formula(n) for n in range(2, 65))
claim("03.bon_bound", "Beirami et al. (2024)",
      "the formula is an upper bound: largest excess, n = 2 to 64, six answers",
      expected=0, relation="at most", measured=excess)
claim("03.bon_table", "Stiennon et al. (2020)", "KL of best-of-16 is log n - (n-1)/n: six answers",
      expected=formula(16), measured=world.kl(world.best_of_n(16)), tolerance=1e-3)
uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000  # win rate of each answer
claim("03.bon_wins", "derived here",
      "best-of-16 beats the reference 16 times in 17: 2,000 answers",
      expected=16 / 17, measured=float(fine.best_of_n(16)[0] @ uniform), tolerance=1e-4)

# %% [markdown] exercise="03.4" part="task" stars=2 minutes=10
# ### Best of n, exactly
# For one prompt whose rewards are all different: the distribution of the best of `n` draws, in the given order.

# %% exercise="03.4" part="stub"
def best_of_n(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    """The distribution of the response with the largest of n rewards; no two rewards are equal."""
    raise NotImplementedError


# %% exercise="03.4" part="check"
check("03.4", best_of_n)

# %% [markdown] exercise="03.4" part="hints"
# 1. The best of n is no better than y when all n draws are no better than y.
# 2. The probability of exactly y is the difference of two such numbers.
# 3. `(reward[None, :] <= reward[:, None])` compares every response with every other.

# %% exercise="03.4" part="solution"
def best_of_n(reference: Tensor, reward: Tensor, n: int) -> Tensor:
    not_above = (reward[None, :] <= reward[:, None]).to(reference) @ reference
    return not_above**n - (not_above - reference) ** n


check("03.4", best_of_n)

# %% [markdown]
# **The pocket model.** The same objective, `reverse_kl` with γ = 0, on texts: four responses to each of 24 prompts a step, rewards counted from the other three, β = 1. First a short run, before and after.
# Then twenty longer ones are replayed: the true reward with β = 1; a **proxy** that counts politeness, flattery, details and words, with β = 1 and β = 0; and the control, SFT on as many chosen
# responses. $\log Z$ is a mean over the reference, so section 1 gives the distance left: $\mathrm{KL}(\pi\|\pi^*)=\log Z-J/\beta$. *Predict: which of them arrives?*

# %% tags=["nbval-ignore-output"]
policy, options = inn.new_policy(), {"learning_rate": 2e-3, "schedule": "linear", "clip_gradient": 1.0}
settings = TrainingSettings(steps=16, batch_size=96, **options)
feedback = OnPolicy(inn.prompts * 4, pocket_runs.leave_one_out(inn.reward_of))
train(policy, feedback, "reverse_kl", beta=1.0, gamma=0.0, settings=settings, progress=False)
for name, model in [("BEFORE", None), ("AFTER", policy)]:
    print(f"{name}: reward {inn.mean_reward(model, per_prompt=15)}\n")
    inn.show(inn.draw(model, per_prompt=1, seed=3), 3)

# %%
final = lambda judge, beta, key: paths(judge, beta, key)[:, -1]
change = lambda key: paths("surface", 0.0, key)[:, -1] - paths("surface", 0.0, key)[:, 0]
rl, sft = [final("bradley_terry", b, "truth") - final("bradley_terry", b, "kl") for b in (1.0, None)]
most = pocket_runs.target_value(inn, 1.0)  # beta log Z
left_over, gain = [statistics.mean_interval(x) for x in (most - rl, rl - sft)]
claim("03.pocket_target", "section 1", "32 steps reach the target: KL left (nats, 5 seeds)",
      expected=0, measured=left_over.estimate, interval=left_over)
claim("03.pocket_sft", "this course", "policy gradient beats SFT on chosen: difference of J (5 seeds)",
      expected=0, relation="at least", measured=gain.estimate, interval=gain)
for key, words, side in [("rewarded", "proxy rises", "at least"), ("truth", "truth falls", "at most")]:
    row = statistics.mean_interval(change(key))
    claim(f"03.proxy_{key}", "Gao et al. (2023)", f"without a leash the {words} (change, 5 seeds)",
          expected=0, relation=side, measured=row.estimate, interval=row)
saved = statistics.mean_interval(final("surface", 1.0, "truth") - final("surface", 0.0, "truth"))
claim("03.leash", "this course", "on the proxy beta = 1 keeps more truth than 0 (difference, 5 seeds)",
      expected=0, relation="at least", measured=saved.estimate, interval=saved)

# %%
some = inn.reference_table()[:, :512]
truth, proxy = [inn.with_judge(name).judge.reward_of(some) for name in ("bradley_terry", "surface")]
even = torch.full_like(truth, 1 / 512)


def frontier(policies):
    """KL to the reference and true reward of tables over the 512 reference responses of each prompt."""
    kl = [(p * (p / even).clamp(min=1e-300).log()).sum(1).mean() for p in policies]
    return [float(value) for value in kl], [float((p * truth).sum(1).mean()) for p in policies]


leashes, draws = [8, 4, 2.8, 2, 1.4, 1, 0.8, 0.6, 0.45], [2, 4, 8, 16]
tilted = {name: frontier([finite_optima.rlhf_optimum(even, reward, b) for b in leashes])
          for name, reward in [("truth", truth), ("proxy", proxy)]}
chosen = {name: frontier([finite_optima.best_of_n(even, reward, n) for n in draws])
          for name, reward in [("truth", truth), ("proxy", proxy)]}

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=5.0, height=3.7)
blue, green, orange = [plots.PALETTE[name] for name in ("blue", "green", "orange")]
for axes, name in [(left, "truth"), (right, "proxy")]:
    axes.plot(*tilted[name], color=plots.INK)
    axes.plot(*chosen[name], "s", color=green)
    axes.set(xlabel="KL to the reference (nats)", ylabel="true reward")
for n, x, y in zip(draws, *chosen["truth"]):
    plots.label(left, x, y, f"n = {n}", green, xytext=(5, -8), fontsize=8)
for b, marker, colour in [(1.0, "^", blue), (None, "o", plots.GREY)]:
    left.plot(final("bradley_terry", b, "kl"), final("bradley_terry", b, "truth"), marker, color=colour)
names = ["— exact targets, all β", "■ best of n", "▲ policy gradient, β = 1", "● SFT on chosen"]
for row, (text, colour) in enumerate(zip(names, [plots.INK, green, blue, plots.GREY])):
    left.text(0.97, 0.32 - 0.08 * row, text, color=colour, transform=left.transAxes, ha="right")
left.set_title("The true reward")
for b, colour, marker in [(0.0, orange, "v"), (1.0, blue, "^")]:
    x, y = [paths("surface", b, key).mean(0) for key in ("kl", "truth")]
    right.plot(x, y, color=colour, marker=marker, linestyle="--")
right.set(xlim=(-0.1, 4.4), ylim=(-1, 2.2))
far = [float(final("surface", 0.0, key).mean()) for key in ("kl", "truth")]
right.text(2.75, -0.8, f"β = 0: on to {far[1]:.0f} at {far[0]:.0f} nats", color=orange, ha="right")
right.text(4.3, 1.95, "chosen or trained by the proxy", color=plots.INK, ha="right")
right.set_title("The proxy")
plots.show(drawn, alt="""True reward against KL. Left, by the truth: the exact targets form a frontier
    with best-of-n on it, policy gradient below, SFT near the start. Right, by the proxy: the truth rises
    and falls; best-of-n keeps more of it; without a leash the runs leave downwards.""")

# %% [markdown]
# Left: nobody quite arrived. Policy gradient lies below the frontier, by the first claim half a nat of KL from its target. Right: a proxy buys true reward for the first half nat, then sells it. β = 1 on the *proxy* is still too long a leash: the
# exact target for it lies past the peak. Best of n suffers less at equal KL. One reason: no response can become more than $n$ times as likely, while the tilt $e^{r/\beta}$ has no such limit on the few that please the proxy most. Read two texts of each kind.

# %%
for beta_shown in (0.0, 1.0):
    run = next(run for run in runs if (run["judge"], run["beta"]) == ("surface", beta_shown))
    print(f"--- proxy, beta = {beta_shown:g}\n")
    inn.show([tuple(row) for row in run["texts"]][:2], 2)

# %% [markdown] exercise="03.5" part="task" stars=3 minutes=25 open=true
# ### How long a leash?
# You have the proxy and may ask the true judge about 200 responses in all. Invent a rule that picks β (or n of best-of-n) for the pocket world from these, and measure what it costs against the
# best choice, which you can compute.

# %% [markdown] exercise="03.5" part="hints"
# 1. Responses of the *reference* can serve every β: weight them with exp(proxy / β).
# 2. Weights of few responses say little: look at 1 / Σ weight² as the number that counts.
# 3. Repeat with 30 draws of 200; report the mean loss with an interval.

# %% [markdown] exercise="03.5" part="solution"
# A good answer states the rule before looking, compares with a fixed β and with the best β, gives an interval, and says where it fails: at small β a handful of responses carry all the weight, and
# the estimate looks best exactly where it knows least. A lower confidence limit instead of the mean cures much of it.

# %% [markdown]
# ## When to use it
#
# On texts nobody quite arrived: 32 steps leave a gap, and shared weights may not reach the target at all. Use best-of-n if you can pay at inference; policy gradient if the
# reward can be asked anywhere; otherwise DPO (04).
#
# In TRL 1.16: `RLOOTrainer` is this lesson's method: `beta` (0.05) times the
# summed $k_1$ is subtracted from the reward, `num_generations` is K, `num_iterations` and `epsilon` are PPO's epochs and clip. `GRPOTrainer` puts $k_3$ in the loss: `beta` is 0 by default (no leash),
# `scale_rewards="group"` divides by the deviation, `"none"` still subtracts the own mean, and `use_bias_correction_kl` (on) mends $k_3$. PPOTrainer is gone.
#
# ## What we measured

# %%
ledger.rows("03")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | the KL grows though the leash is in the loss | $k_1$ was differentiated: its gradient has mean zero |
# | changing the reward's scale changes nothing | advantages are divided by their deviation |
# | noise grows when a constant is added to the reward | no baseline |
# | reward up, texts worse | a proxy is over-optimised: watch a second judge, shorten the leash |
# | larger β, larger KL | β multiplied the reward: it is a price |
# | best-of-n's KL is above what you measure | the formula is an upper bound; atoms and ties lower it |

# %% [markdown]
# ## References
#
# - Williams (1992): REINFORCE. Kool et al. (2019); Ahmadian et al., arXiv 2402.14740: leave-one-out.
# - Schulman et al. (2017), arXiv 1707.06347, eq. (7): the clip.
# - Ziegler et al. (2019), arXiv 1909.08593: the leash as reward. Rafailov et al. (2023), eq. (4), appendix A.1.
# - Shao et al. (2024), arXiv 2402.03300, eq. (4): GRPO and its k3. Liu et al. (2025), arXiv 2503.20783: the deviation.
# - Schulman (2020), *Approximating KL divergence*. Tang & Munos (2025), arXiv 2506.09477: gradients.
# - Stiennon et al. (2020), arXiv 2009.01325; Beirami et al. (2024), arXiv 2401.01879: best-of-n.
# - Gao et al. (2023), arXiv 2210.10760: over-optimisation.
#
# ## Next
#
# **04 · DPO**: the same target, read backwards.
