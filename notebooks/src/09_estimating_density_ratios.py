# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Estimating density ratios", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 09 · Estimating density ratios
#
# How much more often does a text occur among the liked ones than among all? That number, a density ratio, is what the next three lessons train. Here you estimate ratios from samples, see the plain one explode, see the *relative* one stay calm, and learn why.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive one family of losses whose minimiser is a density ratio, and name four members;
# 2. write uLSIF in two lines, and check its leave-one-out score against honest refits;
# 3. say when a ratio has no finite variance, and what that does to $1/\sqrt n$;
# 4. trade bias for calm with the relative ratio, and recognise RDRO's loss as one of the family.

# %% [markdown]
# ## Prerequisites
#
# Lesson 00, linear least squares, the Gaussian density. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>If r = p/q, what is the mean of r under q?</summary>1: the q cancels, and p sums to one.</details>
# <details><summary>Which p maximises the mean of log p(x) over a sample, over all distributions?</summary>The sample's own frequencies.</details>
#
# *Not covered:* policies (they enter in 10), neural ratio estimators, more than a few dimensions.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_utils import density_ratios, ledger, objectives, plots, statistics
from course_utils.experiments import lesson_09 as lesson
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.worlds import pocket

# %% [markdown]
# Two Gaussians. We see samples of the wide $p=\mathcal N(0,1)$ and of the narrower $q=\mathcal N(\frac12,\frac14)$ (standard deviation ½), and want $r=p/q$. In the tails $q$ has almost nothing, so $r$ is enormous there. The **relative** ratio puts a mixture in the
# denominator: $r_\alpha = p/(\alpha p+(1-\alpha)q)$.

# %%
x = torch.linspace(-2.3, 2.5, 481, dtype=torch.float64)
plain_truth = density_ratios.gaussian_ratio(0.0, 1.0, 0.5, 0.5)
relative_truth = lambda points: density_ratios.relative_ratio(plain_truth(points), 0.5)


def samples(n, seed):
    """n points of p and n points of q, as columns."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    return noise[0], 0.5 + 0.5 * noise[1]


drawn_samples = [samples(1_000, seed) for seed in range(5)]
plain = [density_ratios.ulsif(p, q).ratio(x[:, None]) for p, q in drawn_samples]
relative = [density_ratios.rulsif(p, q, alpha=0.5).ratio(x[:, None]) for p, q in drawn_samples]

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9)
blue, green = plots.PALETTE["blue"], plots.look("rdro").color
for curve in plain:
    left.plot(x, curve.clamp_min(1e-3), color=blue, alpha=0.6, linewidth=1.2)
left.plot(x, plain_truth(x), color=plots.INK)
left.set(yscale="log", ylim=(0.05, 3e5), xlabel="x", title="p / q: five samples, five stories")
plots.label(left, -1.95, 2e4, "the truth", xytext=(8, 0))
plots.label(left, -2.2, 0.4, "estimated", blue, xytext=(0, 0))
for curve in relative:
    right.plot(x, curve, color=green, alpha=0.6, linewidth=1.2)
right.plot(x, relative_truth(x), color=plots.INK)
right.axhline(2, color=plots.GREY, linestyle=":")
right.set(ylim=(-0.1, 2.5), xlabel="x", title="the relative ratio, α = ½")
plots.label(right, -0.4, 2.0, "1/α: the truth is never above", plots.GREY, xytext=(0, 8))
plots.label(right, 0.2, 0.3, "estimated", green)
plots.show(drawn, alt="""Left, on a logarithmic axis: the true ratio p/q grows beyond ten thousand in the
    left tail; there five estimates from samples of 1,000 stay far below it and disagree. Right: the
    relative ratio lies between zero and two; five estimates follow it and leave it at both ends.""")

# %% [markdown]
# Left, a ratio that grows without bound where $q$ has no points to see it by: five samples, five stories. Right, the same samples and a denominator that is never empty: the estimates agree with the truth, until the points run out at the ends. By the end you know what each costs.

# %% [markdown]
# ## 1 · Derive
#
# *Question: which loss has a density ratio as its minimiser?* We know $p$ and $q$ only through samples, so a loss may contain means over either, and nothing else. Take a strictly convex $f$. A convex function lies above its tangents, so for any two
# numbers $r^*$ and $r$
#
# $$f(r^*)-f(r)-f'(r)\,(r^*-r)\;\ge\;0,\qquad\text{with equality only at } r=r^*.$$

# %% [markdown]
# Let $r^*=p/q$ be the truth, and take the mean under $q$. Since $E_q[r^* h]=E_p[h]$ for any $h$, the unknown truth leaves the formula, but for a constant:
#
# $$\mathrm{BR}_f(r)=E_q\big[f'(r)\,r-f(r)\big]-E_p\big[f'(r)\big]\;+\;E_q[f(r^*)].$$
#
# Means over $q$, means over $p$, nothing else; and its minimum over all functions is $r^*$. Every choice of $f$ gives an estimator:
#
# | $f(r)$ | loss | known as |
# |---|---|---|
# | $(r-1)^2/2$ | $\frac12E_q[r^2]-E_p[r]$ | uLSIF |
# | $r\log r-r$ | $E_q[r]-E_p[\log r]$ | KLIEP |
# | $r\log r-(1+r)\log(1+r)$ | $E_q[\log(1+r)]+E_p[\log(1+1/r)]$ | logistic regression |

# %% [markdown]
# The **relative** ratio needs no new theory: put the mixture $\alpha p+(1-\alpha)q$ in the place of $q$. With the third $f$ and $r=e^{l}$,
#
# $$E_p\big[\log(1+e^{-l})\big]+\alpha E_p\big[\log(1+e^{l})\big]+(1-\alpha)E_q\big[\log(1+e^{l})\big].$$
#
# *Predict: for $\alpha=\frac12$, how large can $r_\alpha$ get? And how small?* Remember this loss. In lesson 11, $l$ becomes the log-ratio of a policy to its reference, and the loss becomes RDRO.

# %% [markdown]
# ## 2 · Implement

# %% [markdown] exercise="09.1" part="task" stars=2 minutes=10
# ### One loss for all
# Write $\mathrm{BR}_f$ without its constant. `ratio_p` and `ratio_q` are the model's ratios at points of $p$ and of $q$; `f` is any function of a tensor. Let autograd find $f'$: `torch.func.grad` with `torch.func.vmap`, or `torch.autograd.grad` of the sum.

# %% exercise="09.1" part="stub"
def bregman_loss(ratio_p: Tensor, ratio_q: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """E_q[f'(r) r - f(r)] - E_p[f'(r)], from samples: one number."""
    raise NotImplementedError


# %% exercise="09.1" part="check"
check("09.1", bregman_loss)

# %% [markdown] exercise="09.1" part="hints"
# 1. `slope = torch.func.vmap(torch.func.grad(f))` is $f'$, ready for tensors.
# 2. The part over $q$ has $f'(r)\,r-f(r)$, the part over $p$ has $f'(r)$ alone.
# 3. Means, not sums: the samples may have different sizes.

# %% exercise="09.1" part="solution"
def bregman_loss(ratio_p: Tensor, ratio_q: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    slope = torch.func.vmap(torch.func.grad(f))
    return (slope(ratio_q) * ratio_q - f(ratio_q)).mean() - slope(ratio_p).mean()


check("09.1", bregman_loss)

# %% [markdown]
# Least squares is special: if the model is linear, $r(x)=\theta^\top\varphi(x)$, the loss is a quadratic function of $\theta$, and its minimum a linear equation. With a small penalty $\frac\lambda2|\theta|^2$ against wild coefficients:
#
# $$\theta=(H+\lambda I)^{-1}h,\qquad H=\tfrac1m\sum_j\varphi(x_j)\varphi(x_j)^\top\text{ over } q,\quad h=\tfrac1n\sum_i\varphi(x_i)\text{ over } p.$$
#
# Unless features are given, the package takes Gaussian **kernels**, bumps of one width around some of the points.

# %% [markdown] exercise="09.2" part="task" stars=2 minutes=10
# ### Relative least squares (RuLSIF) in closed form
# `phi_p` and `phi_q` are features [points, features]. In $H$, the mixture takes the place of $q$: weight $\alpha$ on the second moments of $p$, $1-\alpha$ on those of $q$.

# %% exercise="09.2" part="stub"
def rulsif_theta(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: float) -> Tensor:
    """theta = (H + penalty I)^-1 h: one number per feature."""
    raise NotImplementedError


# %% exercise="09.2" part="check"
check("09.2", rulsif_theta)

# %% [markdown] exercise="09.2" part="hints"
# 1. The mean of $\varphi\varphi^\top$ over the rows is `phi.T @ phi / len(phi)`.
# 2. `torch.linalg.solve(A, b)` is $A^{-1}b$.
# 3. The penalty is added to the diagonal, once, and is not divided by the number of points.

# %% exercise="09.2" part="solution"
def rulsif_theta(phi_p: Tensor, phi_q: Tensor, alpha: float, penalty: float) -> Tensor:
    second = alpha * phi_p.T @ phi_p / len(phi_p) + (1 - alpha) * phi_q.T @ phi_q / len(phi_q)
    return torch.linalg.solve(second + penalty * torch.eye(phi_p.shape[1]).to(phi_p), phi_p.mean(0))


check("09.2", rulsif_theta)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# Six outcomes whose probabilities we know, and a model that can give each any ratio. Sums with probabilities replace the means, so nothing is random: the minimiser of every member, found by Newton's method, must be $p/q$.

# %%
p = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.07, 0.03], dtype=torch.float64)
q = torch.tensor([0.05, 0.10, 0.15, 0.20, 0.20, 0.30], dtype=torch.float64)

mixture = 0.39 * p + 0.61 * q
members, errors = {**density_ratios.GENERATORS, "power, 1/2": density_ratios.power(0.5)}, {}
for name, f in members.items():
    found = [(lesson.minimiser(f, p, below) - p / below).abs().max() for below in (q, mixture)]
    errors[name] = float(max(found))

# %%
claim("09.family", "Sugiyama, Suzuki, Kanamori (2012)",
      "every member's minimiser is the ratio, plain and relative (largest error of 4)",
      expected=0, measured=max(errors.values()), tolerance=1e-8)
log_ratio = torch.linspace(-3, 3, 6, dtype=torch.float64)
by_rdro = (p * objectives.rdro(log_ratio, 0 * log_ratio, torch.ones(6).bool(), alpha=0.39)
           + q * objectives.rdro(log_ratio, 0 * log_ratio, torch.zeros(6).bool(), alpha=0.39)).sum()
softplus = torch.nn.functional.softplus
by_family = (p * softplus(-log_ratio) + mixture * softplus(log_ratio)).sum()
claim("09.rdro", "derived in the course",
      "the relative logistic loss is RDRO's loss, with rejected data as q (difference)",
      expected=0, measured=float(by_rdro - by_family), tolerance=1e-12)
bound = float(density_ratios.relative_ratio(torch.tensor([1e12], dtype=torch.float64), 0.39))
claim("09.bound", "Yamada et al. (2011)", expected=1 / 0.39, measured=bound, tolerance=1e-6,
      statement="the relative ratio rises to its bound 1/alpha (alpha = 0.39, p/q = 1e12)")

# %% [markdown]
# Which width of the kernels, which penalty? The loss on points that were *left out* decides. For least squares it costs no refit: leaving one point out changes $H$ by a matrix of rank one, and the inverse of such a change is known (Sherman and Morrison). Trust, but refit:

# %%
few_p, few_q = samples(30, seed=7)
chosen = density_ratios.rulsif(few_p, few_q, 0.5, centres=10, width=0.7, regularisation=0.1,
                               coefficients="keep")
honest = lesson.refitted_score(few_p, few_q, chosen)
claim("09.leave_one_out", "Kanamori et al. (2009), here for one point at a time",
      "the shortcut's score equals 60 honest refits (difference)",
      expected=0, measured=chosen.score - honest, tolerance=1e-9)

# %% [markdown]
# ## 4 · Break it on purpose
#
# **The plain ratio explodes.** The simplest thing one can do with a ratio: average it over points of $q$. The truth is 1. *Predict: with ten times the points, how much smaller is the error?* For a weight with finite variance, $\sqrt{10}\approx3.2$ times.
#
# Here the weight's tail is heavy: $P(r>t)\sim t^{-a}$ with $a=\frac43$ (exercise 09.3 derives it). Below $a=2$ the variance is infinite, and the error shrinks as $n^{-(1-1/a)}=n^{-1/4}$.

# %%
sizes, repeats = [300, 1_000, 3_000, 10_000, 30_000], 200
generator = torch.Generator().manual_seed(0)
error, largest = {"plain": [], "relative": []}, []
for n in sizes:
    of_q = 0.5 + 0.5 * torch.randn(repeats, n, generator=generator, dtype=torch.float64)
    of_p = torch.randn(repeats, n, generator=generator, dtype=torch.float64)
    coin = torch.rand(repeats, n, generator=generator) < 0.5
    weight = plain_truth(of_q.reshape(-1, 1)).reshape(repeats, n)
    calm = relative_truth(torch.where(coin, of_p, of_q).reshape(-1, 1)).reshape(repeats, n)
    error["plain"].append((weight.mean(1) - 1).abs())
    error["relative"].append((calm.mean(1) - 1).abs())
    largest.append(float((weight.max(1).values / weight.sum(1)).mean()))
for n, a, b, share in zip(sizes, error["plain"], error["relative"], largest):
    print(f"n = {n:6,}: error of the mean, plain {a.median():.4f}, relative {b.median():.4f}; "
          f"one point carries {share:.0%} of the plain weight")

# %%
for name, expected, source in (("plain", -0.25, "derived here from the tail, exponent 4/3"),
                               ("relative", -0.5, "the central limit theorem: bounded weights")):
    slope = statistics.log_log_slope(sizes, torch.stack(error[name], 1).numpy()).over_repeats
    claim(f"09.mean_{name}", source,
          f"the {name} weights' mean errs as a power of n (slope of the mean error, 200 repeats)",
          expected=expected, measured=slope.estimate, interval=slope)

# %% [markdown]
# Along the fitted line, ten times the data buys a factor of 1.7 ($10^{1/4}\approx1.8$ in theory), and at 30,000 points a single one still holds several percent of everything. (So heavy a tail makes the error's own mean restless: take the first interval as rough.) This is not a bad estimator: these are the *true* weights. An estimate true to $p/q$ inherits this; a calmer one is biased.

# %% [markdown] exercise="09.3" part="task" stars=2 minutes=10
# ### When is the variance finite?
# For $p=\mathcal N(\cdot,\sigma_p^2)$ and $q=\mathcal N(\cdot,\sigma_q^2)$, $E_q[r^2]$ is finite exactly if $2\sigma_q^2>\sigma_p^2$. Derive the tail exponent $a$ of $r$ under $q$, and return it: `math.inf` if $\sigma_p\le\sigma_q$, and $\frac43$ for the two of this lesson. Check it: the variance is finite where $a>2$, which must be the same condition.

# %% exercise="09.3" part="stub"
def tail_exponent(sd_p: float, sd_q: float) -> float:
    """The a of P(r > t) ~ t^-a under q; math.inf where r has no such tail."""
    raise NotImplementedError


# %% exercise="09.3" part="check"
check("09.3", tail_exponent)

# %% [markdown] exercise="09.3" part="hints"
# 1. In the tail $\log r\approx cx^2$ with $c=\frac1{2\sigma_q^2}-\frac1{2\sigma_p^2}$.
# 2. $r>t$ means $x^2>\log t/c$, and under $q$ that has probability about $\exp(-\log t/(2c\sigma_q^2))$.
# 3. So $a=1/(2c\sigma_q^2)$; simplify. Where $c\le0$ the ratio is bounded or grows slower than any power.

# %% exercise="09.3" part="solution"
def tail_exponent(sd_p: float, sd_q: float) -> float:
    return math.inf if sd_p <= sd_q else sd_p**2 / (sd_p**2 - sd_q**2)


check("09.3", tail_exponent)

# %% [markdown]
# **Estimators on that problem.** To compare them on one footing, every estimate of $p/q$ is converted to the relative ratio, which is bounded; RuLSIF estimates that directly. The error: root mean square difference to the truth under the mixture, where 1 is the mean of the ratio itself. *Predict which goes astray.*

# %%
density_q = torch.exp(-2 * (x - 0.5) ** 2) / (0.5 * math.sqrt(2 * math.pi))
density_p = torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
mix = (density_p + density_q) / (density_p + density_q).sum()
square = lambda points: torch.cat([points, points**2], 1)
methods = {
    "uLSIF": lambda p, q: density_ratios.ulsif(p, q),
    "KLIEP": lambda p, q: density_ratios.kliep(p, q, centres=30),
    "logistic, quadratic": lambda p, q: density_ratios.logistic(
        p, q, features=square, regularisation=1e-3),
    "RuLSIF": lambda p, q: density_ratios.rulsif(p, q, 0.5),
}


def distance_to_truth(name, n, seed):
    """Root mean square error of the relative ratio under the mixture."""
    estimate = methods[name](*samples(n, seed)).ratio(x[:, None])
    if name != "RuLSIF":
        estimate = density_ratios.relative_ratio(estimate, 0.5)
    return math.sqrt(float(mix @ (estimate - relative_truth(x)) ** 2))


ns = [100, 300, 1_000]
astray = {name: [[distance_to_truth(name, n, seed) for seed in range(6)] for n in ns]
          for name in methods}

# %% tags=["figure"]
drawn, axes = plots.figure(width=6.6, height=3.8)
looks = {"uLSIF": ("blue", "o"), "KLIEP": ("orange", "^"), "logistic, quadratic": ("violet", "D"),
         "RuLSIF": ("green", "s")}
for name, rows in astray.items():
    colour, marker = looks[name]
    colour = plots.PALETTE[colour]
    means = [statistics.mean_interval(row) for row in rows]
    axes.plot(ns, [one.estimate for one in means], color=colour, marker=marker)
    plots.interval_band(axes, ns, [one.low for one in means], [one.high for one in means], colour)
    plots.label(axes, ns[-1], means[-1].estimate, name, colour, xytext=(8, 0))
axes.set(xscale="log", yscale="log", xlim=(90, 3_500), xlabel="points of each")
axes.set(ylabel="error of the relative ratio", title="Four estimators on one problem (6 seeds)")
plots.show(drawn, alt="""Error of the relative ratio against sample size for four estimators, logarithmic
    axes, with intervals. uLSIF, KLIEP and RuLSIF lie close together and hardly fall; the quadratic
    classifier lies far below and falls.""")

# %%
def difference(first, second, seeds=20, n=300):
    """The log10 of the ratio of two methods' errors, over seeds."""
    logs = [[math.log10(distance_to_truth(name, n, seed)) for seed in range(seeds)]
            for name in (first, second)]
    return statistics.mean_interval([a - b for a, b in zip(*logs)])


calm, model = difference("RuLSIF", "uLSIF"), difference("RuLSIF", "logistic, quadratic")
claim("09.calm", "Yamada et al. (2011), abstract: smoother, so faster to converge",
      "at n = 300 RuLSIF errs less than uLSIF converted (log10 of the errors' ratio, 20 seeds)",
      expected=0, relation="at most", measured=calm.estimate, interval=calm)
claim("09.right_model", "parametric theory",
      "at n = 300 the classifier of the right form errs less than RuLSIF (the same, 20 seeds)",
      expected=0, relation="at least", measured=model.estimate, interval=model)

# %% [markdown]
# The kernel methods stay close together: where the points run out, Gaussian kernels answer zero, whatever the loss. The classifier has the right form (the logarithm of a ratio of Gaussians *is* quadratic) and is far ahead, even after conversion. The loss decides how wild an estimate may get; the *model* decides how near it can come. Keep both apart when you read a comparison of “methods”.

# %% [markdown]
# ## What α costs
#
# If $r_\alpha$ stands in for $r$, it is biased. Use it as an importance weight: estimate $E_p[x^2]=1$ from points of $q$, weighted by $r_\alpha$, the weights scaled to sum to one. At $\alpha=1$ all weights are equal: little variance, and the answer of $q$. At $\alpha=0$: no bias, and infinite variance. Both can be integrated, to first order in $1/n$:

# %%
grid = torch.linspace(-8, 8, 4_001, dtype=torch.float64)
weight_q = torch.exp(-2 * (grid - 0.5) ** 2)
weight_q = weight_q / weight_q.sum()
alphas = torch.cat([torch.tensor([1e-6]), torch.logspace(-4, -0.002, 41)]).double()
bias, spread = [], []
for alpha in alphas.tolist():
    r = density_ratios.relative_ratio(plain_truth(grid), alpha)
    total = (weight_q * r).sum()
    answer = (weight_q * r * grid**2).sum() / total
    bias.append(float(answer - 1))
    spread.append(float((weight_q * r**2 * (grid**2 - answer) ** 2).sum() / total**2))
bias, spread = torch.tensor(bias), torch.tensor(spread)
for n in (100, 10_000):
    best = int((bias**2 + spread / n).argmin())
    print(f"n = {n:6,}: best alpha {alphas[best]:.4f}, root mean square error "
          f"{math.sqrt(bias[best] ** 2 + spread[best] / n):.3f}")

# %% tags=["figure"]
drawn, axes = plots.figure(width=6.4, height=3.5)
axes.plot(alphas, bias.abs(), color=plots.PALETTE["orange"], linestyle="--")
for n, style in ((100, "-"), (10_000, "-.")):
    axes.plot(alphas, (bias**2 + spread / n).sqrt(), color=green, linestyle=style)
    plots.label(axes, 1.3e-4, float((bias**2 + spread / n).sqrt()[1]), f"total error, n = {n:,}", green,
                xytext=(0, 8))
plots.label(axes, 6e-4, 0.16, "bias alone", plots.PALETTE["orange"])
axes.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(0.1, 6))
axes.set(xlabel="α", ylabel="error of E[x²] (truth: 1)")
axes.set_title("α trades variance for bias")
plots.show(drawn, alt="""Error against alpha, logarithmic axes. The bias grows with alpha. The total
    error for 100 points falls from above one to a minimum near alpha = 0.05 and rises; for 10,000 it is
    lower and its minimum lies at a smaller alpha.""")

# %% [markdown]
# So α is a compromise, *if the plain ratio is what you want*. Alignment is luckier. There the denominator is the reference model, and if the reference **is** the mixture of preferred and rejected, the relative ratio is not a substitute for the goal: $p_+=r_\alpha\,\pi_{ref}$ exactly. No bias to pay. That premise carries lesson 11.

# %% [markdown]
# ## 5 · On the bench with the others
#
# Texts. The pocket world ships nine features (right, polite, details, flattery, …) of 24,576 responses of its reference model. Let the judge compare pairs of them. From the two piles, chosen and rejected, estimate $p_+/p_{ref}$: lesson 00 says the truth is $2W$, twice the win rate, and here it is known.

# %%
texts = lesson.JudgedTexts(pocket.load_reference_features("sft", "qwen2"), "bradley_terry")
print(f"{len(texts.truth):,} responses; their true ratios go from "
      f"{texts.truth.min():.3f} to {texts.truth.max():.3f}")

# %% [markdown]
# Three estimators see the features and their squares. *RDRO's loss* models $\log r_\alpha$ as linear in them. *The classifier* models the log-odds of chosen against rejected as linear, and then converts: with $\rho=p_+/p_-$ and $\alpha=\frac12$, $r_\alpha=2\rho/(1+\rho)$. *RuLSIF* uses kernels on eight of them (all but `grammatical`). The control says 1 for every text.

# %%
estimators = {
    "RDRO's loss": lambda up, down: density_ratios.logistic(
        up, down, 0.5, features=square, regularisation=1e-3).ratio(texts.features),
    "classifier, converted": lambda up, down: density_ratios.relative_ratio(density_ratios.logistic(
        up, down, features=square, regularisation=1e-3).ratio(texts.features), 0.5),
    "RuLSIF": lambda up, down: density_ratios.rulsif(
        up[:, :8], down[:, :8], 0.5).ratio(texts.features[:, :8]),
}
print(f"control: KL(p+ || p_ref) = {texts.distance(torch.ones_like(texts.truth)):.4f} nats")
found = {name: {n: [texts.distance(one(*texts.piles(n, seed))) for seed in range(5)]
                for n in (300, 3_000)}
         for name, one in estimators.items()}
for name, by_size in found.items():
    means = [f"{n:,}: {statistics.mean_interval(values):.4f}" for n, values in by_size.items()]
    print(f"{name:22}", "   ".join(means))

# %%
todo = texts.distance(torch.ones_like(texts.truth))
left = statistics.mean_interval([value / todo for value in found["RDRO's loss"][3_000]])
claim("09.texts", "this course",
      "3,000 comparisons: RDRO's loss on features leaves less than a fifth of KL(p+ || p_ref) (5 seeds)",
      expected=0.2, relation="at most", measured=left.estimate, interval=left)
model = statistics.mean_interval(
    [a - b for a, b in zip(found["RDRO's loss"][3_000], found["classifier, converted"][3_000])])
claim("09.model", "this course",
      "Bradley-Terry judge: a linear model of log p+/p- beats one of log p+/p_ref (nats, 5 seeds)",
      expected=0, relation="at least", measured=model.estimate, interval=model)

# %% tags=["figure"]
up, down = texts.piles(3_000, seed=0)
shown = torch.randperm(len(texts.truth), generator=torch.Generator().manual_seed(0))[:1_500]
drawn, panels = plots.figure(3, width=3.4, sharey=True)
for axes, (name, one), colour in zip(panels, estimators.items(), ("green", "violet", "blue")):
    axes.plot(texts.truth[shown], one(up, down)[shown], ".", color=plots.PALETTE[colour], alpha=0.25,
              markersize=4)
    axes.plot([0, 2], [0, 2], color=plots.INK, linewidth=1)
    axes.set(xlabel="truth: 2 W", title=name, xlim=(0, 2), ylim=(0, 2.6))
panels[0].set_ylabel("estimated p+ / p_ref")
plots.show(drawn, alt="""Three scatter plots of the estimated ratio against the truth 2W for 1,500 texts.
    RDRO's loss and the converted classifier follow the diagonal, the classifier more closely and never
    above two; RuLSIF follows it loosely.""")

# %% [markdown]
# A ratio of text distributions, from comparisons alone, without touching a language model. The loss is half of an estimator; the *model* of the ratio is the other half: the classifier's log-odds suit this judge, kernels in eight dimensions do not. In lesson 11 the model is a policy; in a finite world it can represent every ratio.

# %% [markdown] exercise="09.4" part="task" stars=3 minutes=30 open=true
# ### A ratio that drifts
# In practice $q$ is often an older version of $p$. Let $p=\mathcal N(d,1)$ and $q=\mathcal N(0,1)$ and raise $d$ from 0 to 4. Compare a plain and a relative estimator at $n=500$. At which distance would you stop trusting each, and how would you notice without knowing the truth?

# %% [markdown] exercise="09.4" part="hints"
# 1. `density_ratios.gaussian_ratio(d, 1, 0, 1)` is the truth, `relative_ratio` its relative form.
# 2. The mean of the estimated ratio over fresh points of $q$ should be 1: a check that needs no truth.
# 3. The share of the largest weight is another.

# %% [markdown] exercise="09.4" part="solution"
# A good answer plots error against distance with intervals over seeds, for at least two estimators, and next to it a diagnosis that needs no truth (mean of the ratio on fresh data, the effective sample size $(\sum w)^2/\sum w^2$, the held-out loss). It finds that the plain ratio's variance under $q$ grows like $e^{d^2}$ while the relative one's is bounded, and that the mean of the true ratio warns too late: it is below 1 exactly because the points that carry the weight were not drawn.

# %% [markdown]
# ## When to use it
#
# A plain ratio only where $q$ covers $p$ with room to spare; check the largest weight. A relative ratio wherever a bounded answer serves, and always where the denominator *is* a mixture. Least squares for speed and exact model choice; a classifier where log-odds are the natural scale.
#
# **In TRL 1.16** there is no density-ratio trainer. Older versions had one as a part: BCO's “underlying distribution matching” (a classifier's odds as weights, clipped by `min_density_ratio` and `max_density_ratio`); of BCO only `DPOTrainer`'s `bco_pair` is left, without it. `KTOTrainer` uses ratios of policy to reference. Lessons 10 and 11 train ratios themselves.
#
# ## What we measured

# %%
ledger.rows("09")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | a few points carry all the weight | the ratio has no finite variance: use the relative one |
# | the mean of the estimated ratio is far from 1 | the sample of q does not cover p, or the loss pooled two samples of different sizes |
# | estimates fall to zero at the ends | Gaussian kernels do, where there are no points |
# | negative ratios | a linear model without a constraint; harmless on average, deadly in a logarithm |
# | r and 1/r mixed up | numerator first: `ulsif(numerator, denominator)`, everywhere in the course |
# | the “relative” ratio exceeds 1/α | the truth never does, a fitted model may |

# %% [markdown]
# ## References
#
# - M. Sugiyama, T. Suzuki, T. Kanamori (2012). *Density Ratio Estimation in Machine Learning.* The Bregman family.
# - M. Sugiyama et al. (2008). *Direct importance estimation for covariate shift adaptation*: KLIEP.
# - T. Kanamori, S. Hido, M. Sugiyama (2009). *A least-squares approach to direct importance estimation*: uLSIF, leave-one-out.
# - M. Yamada et al. (2011). *Relative density-ratio estimation for robust distribution comparison*, arXiv 1106.4729: RuLSIF.
# - H. Takahashi et al. (2026), arXiv 2604.04410: RDRO, lesson 11.
#
# ## Next
#
# **10 · DDRO**: put a policy in the place of the ratio, and meet the wall.
