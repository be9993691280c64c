# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Bradley–Terry: from comparisons to scores", world: finite, gpu: none}
# ---

# %% [markdown]
# # 01 · Bradley–Terry: from comparisons to scores
#
# People find it hard to give a text 7.3 points and easy to say which of two they like better. This lesson turns such comparisons into scores,
# measures how far the scores can be trusted, and shows two judges that no score can describe.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. fit Bradley–Terry scores by hand, by Newton's method and online (Elo), and say what each is doing;
# 2. put a standard error on a score, and say how many comparisons a wanted error costs;
# 3. tell which differences between scores the data can identify;
# 4. measure, in nats per comparison, how much of a judge no score can express.

# %% [markdown]
# ## Prerequisites
#
# Derivatives, the logarithm, what a probability is. About 75 minutes with the exercises. Test yourself:
#
# <details><summary>What is σ(0), and what is σ(x) + σ(−x), for σ(x) = 1 / (1 + exp(−x))?</summary>1/2, and 1 for every x.</details>
# <details><summary>A coin shows heads 7 times in 10. Which p makes that most likely?</summary>p = 0.7: maximum likelihood.</details>
#
# *Not covered:* reward models that read text (lesson 02), ties, and Bayesian scores.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math

import torch
from torch import Tensor

from course_utils import bradley_terry, ledger, objectives, plots, preferences, statistics
from course_utils.labs.checks import check
from course_utils.ledger import claim

answers = ["Go to bed.", "Drink warm milk.", "Avoid screens.", "Keep a rhythm.",
           "Cool, dark room.", "All of these."]
truth = torch.tensor([-1.5, -0.7, -0.1, 0.4, 0.8, 1.1], dtype=torch.float64)

# %% [markdown]
# Six answers to *“How do I sleep better?”* and their true scores, which sum to zero. A **judge** is a table: `judge[a, b]` is the probability that answer `a` is preferred to `b`. The next cell is the whole experiment: two different
# answers at random, and the judge picks one.

# %%
def compare(judge, n, seed):
    """n comparisons of two different answers, drawn at random and judged: (chosen, rejected)."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(judge), (n,), generator=generator)
    second = (first + torch.randint(1, len(judge), (n,), generator=generator)) % len(judge)
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < judge[first, second]
    return torch.where(wins, first, second), torch.where(wins, second, first)


def count(judge, n, seed):
    """The table of wins of n comparisons."""
    return bradley_terry.count_wins(*compare(judge, n, seed), len(judge))


judge, cycle = preferences.bradley_terry(truth), preferences.cyclic(3, strength=0.9)
found = bradley_terry.fit(count(judge, 600, seed=1))
loops = bradley_terry.fit(count(cycle, 600, seed=2))

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9)
blue, orange = plots.look("bt").color, plots.PALETTE["orange"]
half = 1.96 * found.standard_errors
left.errorbar(found.scores, range(6), xerr=half, fmt="o", color=blue, capsize=3)
left.plot(truth, range(6), "|", color=plots.INK, markersize=18, markeredgewidth=2)
left.set(yticks=range(6), yticklabels=answers, xlabel="score (natural-log units)")
left.set_title("600 comparisons give the scores back")
left.set_ylim(-0.6, 5.6)
plots.label(left, truth[0], 0.45, "| the truth", xytext=(-4, 4))
plots.label(left, 0.25, 2.0, "fitted, 95 % interval", blue)
pairs = [(0, 1), (1, 2), (2, 0)]
predicted = [float(torch.sigmoid(loops.scores[a] - loops.scores[b])) for a, b in pairs]
right.bar(range(3), [float(cycle[a, b]) for a, b in pairs], color=orange, width=0.6)
right.plot(range(3), predicted, "D", color="white", markeredgecolor=blue, markeredgewidth=3)
names = ["rock over\nscissors", "scissors over\npaper", "paper over\nrock"]
right.set(xticks=range(3), xticklabels=names)
right.set(ylim=(0, 1.08), ylabel="probability", title="… and nothing about a cycle")
plots.label(right, 0, predicted[0], "fitted", "white", xytext=(-15, -15))
plots.label(right, 2, 0.9, "the judge", orange, xytext=(-24, 9))
plots.show(drawn, alt="""Left: fitted scores of six answers with 95 % intervals, near the true scores.
    Right: the cyclic judge prefers each of three answers to the next with probability 0.9, while the
    fitted model says about one half everywhere.""")

# %% [markdown]
# Left, 600 comparisons recover six scores, with honest intervals. Right, the same method meets a judge who plays rock, paper, scissors. It converges without a
# warning, and it has learned nothing. By the end you can explain both halves of this picture, and detect the second.

# %% [markdown]
# ## 1 · Derive
#
# *Question: which probability should a difference of scores mean?* Suppose each answer $y$ has a strength $e^{s_y}$, and wins in proportion to it. Then
#
# $$P(a \succ b) = \frac{e^{s_a}}{e^{s_a}+e^{s_b}} = \sigma(s_a - s_b).$$
#
# So the log-odds of a win are the difference of scores, and log-odds add along a chain. *Predict: if $a$ beats $b$ three times in four, and $b$ beats $c$
# three times in four, how often does $a$ beat $c$?*

# %%
three_in_four = torch.logit(torch.tensor(0.75, dtype=torch.float64))
print(f"a beats c: probability {float(torch.sigmoid(2 * three_in_four)):.3f}, odds of 3 x 3 = 9 to 1")

# %% [markdown]
# Comparisons are independent, so the probability of all of them is a product, and its logarithm a sum over comparisons $i$ of winner $w_i$ and loser $l_i$:
#
# $$\ell(s) = \sum_i \log \sigma(s_{w_i} - s_{l_i}).$$
#
# The scores that make it largest are the **maximum-likelihood** scores. Reward models (02) and DPO (04) keep this shape; only what stands for $s$ changes.

# %% [markdown] exercise="01.1" part="task" stars=1 minutes=5
# ### The log-likelihood
# Write $\ell(s)$. `winners` and `losers` are lists of indices into `scores`.

# %% exercise="01.1" part="stub"
def log_likelihood(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """The log-likelihood of the comparisons: one number."""
    raise NotImplementedError


# %% exercise="01.1" part="check"
check("01.1", log_likelihood)

# %% [markdown] exercise="01.1" part="hints"
# 1. `scores[winners]` is the score of the winner of each comparison.
# 2. The log of a product is the sum of the logs: sum, do not average.
# 3. `torch.nn.functional.logsigmoid` stays exact where `log(sigmoid(x))` underflows.

# %% exercise="01.1" part="solution"
def log_likelihood(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(scores[winners] - scores[losers]).sum()


check("01.1", log_likelihood)

# %% [markdown]
# ## 2 · Implement
#
# **First by hand.** Three answers, 90 comparisons; the score of *A* is held at zero. The contours lie 0.5, 2, 4, 8 and 16 nats below the top of $\ell$. Move the
# sliders until the three predicted fractions come as near the observed ones as they can. Two free scores cannot meet three fractions exactly; remember what is left over for section 4.

# %%
wins = torch.tensor([[0.0, 9, 5], [21, 0, 12], [25, 18, 0]], dtype=torch.float64)
fractions = wins / (wins + wins.T)
grid = torch.linspace(-1, 3, 61, dtype=torch.float64)
hill = torch.tensor([[bradley_terry.log_likelihood(torch.stack([0 * b, b, c]), wins) for b in grid]
                     for c in grid])

# %% tags=["figure", "nbval-ignore-output"]
def by_hand(B, C):
    drawn, (left, right) = plots.figure(2)
    scores = torch.tensor([0, B, C], dtype=torch.float64)
    below = hill.max() - bradley_terry.log_likelihood(scores, wins)
    levels = hill.max().item() - torch.tensor([16.0, 8, 4, 2, 0.5])
    left.contour(grid, grid, hill, levels=levels, colors=plots.GREY, linestyles="-")
    left.plot(B, C, "o", color=orange)
    left.set(xlabel="score of B", ylabel="score of C")
    left.set_title(f"{max(0.0, float(below)):.2f} nats below the top")
    for row, (a, b) in enumerate([(1, 0), (2, 0), (2, 1)]):
        right.plot(fractions[a, b], row, "|", color=plots.INK, markersize=20, markeredgewidth=2)
        right.plot(torch.sigmoid(scores[a] - scores[b]), row, "o", color=orange)
    right.set(xlim=(0, 1), yticks=range(3), yticklabels=["B over A", "C over A", "C over B"])
    right.set(ylim=(-0.6, 2.6), xlabel="fraction of wins:   | observed,   dot predicted")
    right.set_title("what the scores predict")
    return drawn


plots.slider(by_hand, B=(-1, 3, 0.0), C=(-1, 3, 0.0), alt="""Left: contours of the log-likelihood over
    the scores of B and C with a dot at (0, 0), far below the top near (1.0, 1.5). Right: with equal
    scores all predicted fractions are one half; the observed ones are 0.70, 0.83 and 0.60.""")

# %% [markdown]
# **Then with calculus.** Write $n_{ab}$ for how often $a$ met $b$, and $p_{ab}=\sigma(s_a-s_b)$. Since $\frac{d}{dx}\log\sigma(x)=1-\sigma(x)$,
#
# $$\frac{\partial \ell}{\partial s_a} = \text{wins}_a - \sum_b n_{ab}\,p_{ab}, \qquad
# H_{ab} = -\frac{\partial^2 \ell}{\partial s_a \partial s_b} = -\,n_{ab}\,p_{ab}(1-p_{ab}) \quad (a \neq b),$$
#
# and on the diagonal $H_{aa}=\sum_b n_{ab}\,p_{ab}(1-p_{ab})$. The gradient is *observed wins minus expected wins*; at the top they agree for every answer. And
# $v^\top H v=\sum_{a<b} n_{ab}\,p_{ab}(1-p_{ab})(v_a-v_b)^2\ge 0$: the hill is concave, with one top up to a common shift.

# %% [markdown] exercise="01.2" part="task" stars=2 minutes=10
# ### The gradient, without autograd
# Return the gradient of $\ell$ with respect to every score: each comparison pushes its winner up and its loser down, by the model's surprise.

# %% exercise="01.2" part="stub"
def gradient(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    """d log-likelihood / d scores, one number per answer."""
    raise NotImplementedError


# %% exercise="01.2" part="check"
check("01.2", gradient)

# %% [markdown] exercise="01.2" part="hints"
# 1. The derivative of log σ(x) is 1 − σ(x).
# 2. For one comparison: plus that for the winner, minus that for the loser, zero for everybody else.
# 3. An answer may occur many times: `index_add_` accumulates, `x[i] += v` does not.

# %% exercise="01.2" part="solution"
def gradient(scores: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
    surprise = 1 - torch.sigmoid(scores[winners] - scores[losers])
    up = torch.zeros_like(scores).index_add_(0, winners, surprise)
    return up.index_add_(0, losers, -surprise)


check("01.2", gradient)

# %%
scores = torch.zeros(3, dtype=torch.float64)
for step in range(4):
    height = float(bradley_terry.log_likelihood(scores, wins))
    print(f"step {step}: scores", [round(s, 4) + 0.0 for s in scores.tolist()], f"{height:.6f}")
    curvature = bradley_terry.hessian(scores, wins)
    scores = scores + torch.linalg.pinv(curvature) @ bradley_terry.gradient(scores, wins)

chosen, rejected = compare(judge, 600, seed=1)
by_table = bradley_terry.log_likelihood(truth, count(judge, 600, seed=1))
claim("01.same_loss", "this course",
      "objectives.bt, summed over comparisons, is minus the log-likelihood (sum of both)",
      expected=0, measured=float(objectives.bt(truth[chosen], truth[rejected]).sum() + by_table),
      tolerance=1e-9)

# %% [markdown]
# Newton's method jumps to the top of the parabola that touches the hill where you stand; after three steps six decimals stand. `bradley_terry.fit` is these lines
# with a safeguard. `objectives.bt`, one loss per comparison, later trains reward models: it is the same function.
#
# **What can be identified?** Adding 5 to every score changes no difference, hence no probability. *Predict: what does that do to the Hessian, which `pinv` inverted above?*

# %%
one = judge / 15  # one comparison on average: 15 pairs, each equally likely
exact = bradley_terry.hessian(truth, one)
by_autograd = torch.autograd.functional.hessian(
    lambda s: -bradley_terry.log_likelihood(s, one), truth)
claim("01.hessian", "this course", "the formula for the Hessian equals autograd's (largest error)",
      expected=0, measured=float((exact - by_autograd).abs().max()), tolerance=1e-12)
level = torch.linalg.eigvalsh(by_autograd)
print("eigenvalues:", [round(value, 4) + 0.0 for value in level.tolist()])
claim("01.shift", "this course", "exactly one direction is flat: a common shift of all scores",
      expected=1, measured=int((level < 1e-10).sum()), tolerance=0)
try:
    bradley_terry.fit(torch.tensor([[0, 5, 5], [0, 0, 3], [0, 2, 0]]))
except ValueError as error:
    print("refused:", str(error).split("\n")[0])

# %% [markdown]
# One eigenvalue is zero: the common shift. So we report scores that sum to zero and invert with the pseudo-inverse. There are two other ways to lose identifiability: islands of
# answers that never met, and an answer, or a group, that never lost to the rest: its score runs off to infinity. The package refuses both (Ford, 1957).
#
# ## 3 · Verify against the exact optimum
#
# Feed the judge's probabilities in as if they were counts: infinitely many comparisons. The fit has to return the truth. Then take finite samples: the inverse
# Hessian predicts how far scores scatter. That is an approximation for many comparisons. *Predict: are 600 enough for a 95 % interval to keep its word?*

# %%
recovered = bradley_terry.fit(judge).scores
claim("01.recover", "Bradley & Terry (1952)",
      "from the judge's exact probabilities the fit returns the true scores (largest error)",
      expected=0, measured=float((recovered - truth).abs().max()), tolerance=1e-10)
repeats = [bradley_terry.fit(count(judge, 600, seed)) for seed in statistics.seeds(7, 1_000)]
scores = torch.stack([fit.scores for fit in repeats])
inside = (scores - truth).abs() < 1.96 * torch.stack([fit.standard_errors for fit in repeats])
interval = statistics.bootstrap_interval(inside.double().mean(1), seed=0)
claim("01.coverage", "asymptotic theory of maximum likelihood",
      "95 % intervals from the Hessian hold the true score (1,000 repeats of 600 comparisons)",
      expected=0.95, measured=interval.estimate, interval=interval)

# %% [markdown] exercise="01.3" part="task" stars=2 minutes=10
# ### The standard error of a score
# From the Hessian of the negative log-likelihood, return the standard error of every score, for scores that sum to zero.

# %% exercise="01.3" part="stub"
def standard_errors(hessian: Tensor) -> Tensor:
    """The standard error of every score."""
    raise NotImplementedError


# %% exercise="01.3" part="check"
check("01.3", standard_errors)

# %% [markdown] exercise="01.3" part="hints"
# 1. The covariance of maximum-likelihood estimates is the inverse of the Hessian.
# 2. This Hessian has no inverse: one direction is flat. `torch.linalg.pinv` inverts the others.
# 3. A standard error is the square root of a variance, and variances stand on the diagonal.

# %% exercise="01.3" part="solution"
def standard_errors(hessian: Tensor) -> Tensor:
    return torch.linalg.pinv(hessian, hermitian=True).diagonal().sqrt()


check("01.3", standard_errors)

# %% [markdown]
# **Calibration** asks another question: when the model says 80 %, does it happen in 80 % of fresh comparisons? It needs no true scores, so it can be asked of real judges too.
# The expected calibration error averages the distance between said and happened over bins. *Predict: what does more training data do to it?*

# %%
def calibration_error(n, fresh=40_000):
    """Calibration errors on fresh comparisons: of the model fitted to n, and of the true judge."""
    first, second = compare(torch.full_like(judge, 0.5), fresh, seed=3)  # asked in random order
    draw = torch.rand(fresh, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    happened = draw < judge[first, second]
    fitted = preferences.bradley_terry(bradley_terry.fit(count(judge, n, seed=5)).scores)
    return [statistics.expected_calibration_error(said[first, second], happened)
            for said in (fitted, judge)]


for n in (600, 6_000, 60_000):
    fitted, perfect = calibration_error(n)
    print(f"fitted to {n:6,}: calibration error {fitted:.4f}; the true judge: {perfect:.4f}")
claim("01.calibration", "this course",
      "fitted to 60,000 comparisons, the model is as well calibrated as the true judge (difference)",
      expected=0, measured=fitted - perfect, tolerance=0.002)

# %% [markdown]
# The error falls to what the true judge itself scores on these draws: chance, not misfit.
#
# ## 4 · Break it on purpose
#
# **A cycle.** Rock beats scissors, scissors beat paper, paper beats rock, each nine times in ten. Each answer wins half of its comparisons, so observed minus expected wins
# vanishes at equal scores: that is the maximum. What is lost is the gap to the **saturated** model, which gives each pair a probability of its own.

# %%
def coin_gap(p):
    """log 2 minus the entropy of a coin that shows heads with probability p."""
    return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)


claim("01.cycle", "this course",
      "likelihood gap of a 0.9 cycle: log 2 minus the entropy of a 0.9 coin (nats per comparison)",
      expected=coin_gap(0.9), measured=bradley_terry.likelihood_gap(cycle), tolerance=1e-6)

# %% [markdown]
# With finite data even an honest Bradley–Terry judge shows a small gap, because the saturated model has more parameters. Wilks' theorem says how small: twice the summed gap
# averages the number of extra parameters, here $3 - 2 = 1$, and $(k-1)(k-2)/2$ for $k$ answers that all met. Compare with that χ² law (10.8 is its 99.9 % point for one), where each pair met often enough.

# %%
def twice_the_gap(judge, seed, n=600):
    return 2 * n * bradley_terry.likelihood_gap(count(judge, n, seed))


honest = preferences.bradley_terry(torch.tensor([-1.0, 0.0, 1.0]))
usual = statistics.mean_interval([twice_the_gap(honest, seed) for seed in statistics.seeds(11, 400)])
print(f"the cyclic judge: {twice_the_gap(cycle, seed=2):.0f}")
print("an honest judge exceeds 10.8 in one experiment of 1,000")
claim("01.wilks", "Wilks (1938)",
      "for a Bradley–Terry judge, twice the gap averages the number of extra parameters (400 repeats)",
      expected=1, measured=usual.estimate, interval=usual)

# %% [markdown]
# **A mixed crowd.** Three groups of equal size. Each is a perfect Bradley–Terry judge; they only rank differently: A > B > C, B > C > A, C > A > B.
# *Predict: what does the crowd look like to somebody who sees the pooled comparisons?*

# %%
ranking = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64)
groups = [preferences.bradley_terry(ranking.roll(shift)) for shift in range(3)]
crowd = preferences.mixture_of_judges(groups, [1 / 3] * 3)
print("A over B, B over C, C over A:", [round(float(crowd[a, b]), 4) for a, b in pairs])
print("fitted scores:", [round(s, 4) + 0.0 for s in bradley_terry.fit(crowd).scores.tolist()])
print("gap of each group:", [round(bradley_terry.likelihood_gap(group), 6) + 0.0 for group in groups])
claim("01.crowd", "Condorcet (1785)",
      "three judges with scores make a crowd that is a cycle: its gap (nats per comparison)",
      expected=coin_gap(float(crowd[0, 1])), measured=bradley_terry.likelihood_gap(crowd),
      tolerance=1e-6)

# %% [markdown]
# The crowd is a cycle, though nobody in it is: one score for everybody can be right about nobody. At the exact maximum such a model is even *calibrated*: it says 50 % of every pair and, asked in
# random order, 50 % happen. Errors in opposite directions cancel in calibration; in the gap they cannot.
#
# ## 5 · On the bench with the others
#
# **Elo** never stores the data. After each game it moves winner and loser by a step times the surprise: one step of stochastic gradient ascent on $\ell$.
# We compare it, at a constant step (as in chess) and at a shrinking one, with maximum likelihood and with a control without a model: the log-odds of each answer's fraction of wins.

# %% [markdown] exercise="01.4" part="task" stars=1 minutes=5
# ### One Elo update
# Return the scores after one game, in natural-log units. Leave `ratings` itself as it is.

# %% exercise="01.4" part="stub"
def elo_update(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    """The scores after one comparison."""
    raise NotImplementedError


# %% exercise="01.4" part="check"
check("01.4", elo_update)

# %% [markdown] exercise="01.4" part="hints"
# 1. The surprise is the probability that the model gave to the other outcome.
# 2. What the winner gains, the loser loses: the sum of the scores stays.
# 3. Start with `new = ratings.clone()`.

# %% exercise="01.4" part="solution"
def elo_update(ratings: Tensor, winner: int, loser: int, step: float) -> Tensor:
    surprise = 1 - torch.sigmoid(ratings[winner] - ratings[loser])
    new = ratings.clone()
    new[winner] += step * surprise
    new[loser] -= step * surprise
    return new


check("01.4", elo_update)

# %%
sizes = [400, 1600, 6400, 25600]
shrinking = 40 / (torch.arange(sizes[-1]) + 100)


def errors_of(seed):
    """Root-mean-square error of the scores after each number of comparisons, one row a method."""
    chosen, rejected = compare(judge, sizes[-1], seed)
    tables = [bradley_terry.count_wins(chosen[:n], rejected[:n], 6) for n in sizes]
    fitted = torch.stack([bradley_terry.fit(wins).scores for wins in tables])
    constant = bradley_terry.elo(chosen, rejected, 6, step=0.1)[sizes]
    decaying = bradley_terry.elo(chosen, rejected, 6, shrinking)[sizes]
    control = torch.stack([torch.logit(wins.sum(1) / (wins + wins.T).sum(1)) for wins in tables])
    every = torch.stack([fitted, constant, decaying, control])
    return ((every - every.mean(-1, keepdim=True) - truth) ** 2).mean(-1).sqrt()


errors = torch.stack([errors_of(seed) for seed in statistics.seeds(1, 30)], dim=1)

# %% tags=["figure"]
drawn, axes = plots.figure(width=7.6, height=3.9)
information = bradley_terry.hessian(truth, judge / 15)  # of one comparison
cost = torch.linalg.pinv(information).diagonal().mean()  # squared error of one comparison
theory = (cost / torch.tensor(sizes)).sqrt()
names = ["maximum likelihood", "Elo, constant step", "Elo, shrinking step", "fraction of wins"]
for name, values, colour, marker in zip(names, errors, ["blue", "orange", "pink", "sand"], "ovs^"):
    colour = plots.PALETTE[colour]
    rows = [statistics.mean_interval(column**2) for column in values.T]
    middle = [row.estimate**0.5 for row in rows]
    axes.loglog(sizes, middle, color=colour, marker=marker)
    low, high = [row.low**0.5 for row in rows], [row.high**0.5 for row in rows]
    plots.interval_band(axes, sizes, low, high, colour)
    plots.label(axes, sizes[-1], middle[-1], name, colour)
axes.loglog(sizes, theory, color=plots.INK, linestyle=":")
plots.label(axes, sizes[-1], float(theory[-1]) * 0.82, "theory: inverse Hessian")
axes.set(xlabel="comparisons", ylabel="error of the scores", xlim=(350, 150_000), ylim=(0.014, 0.3))
axes.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
axes.set_yticks([], minor=True)
axes.set_title("Error against data (root mean square of 30 seeds, 95 % bands)")
plots.show(drawn, alt="""Log-log plot of error against comparisons. Maximum likelihood follows the dotted
    theory line of slope minus one half; Elo with a shrinking step runs parallel a little above; Elo
    with a constant step stays flat near 0.18; the fraction of wins levels off near 0.07.""")

# %%
slope = statistics.log_log_slope(sizes, errors[0], seed=0).over_repeats
claim("01.slope", "asymptotic theory of maximum likelihood",
      "the error of maximum likelihood falls as n to the power -1/2 (30 seeds)",
      expected=-0.5, measured=slope.estimate, interval=slope)
flat = statistics.log_log_slope(sizes[1:], errors[1][:, 1:], seed=0).over_repeats
claim("01.elo_floor", "this course",
      "Elo with a constant step stops improving: slope from 1,600 comparisons on (30 seeds)",
      expected=0, measured=flat.estimate, interval=flat)
alone = torch.logit(judge.clone().fill_diagonal_(0).sum(1) / 5)  # exact fractions of wins
limit = float((alone - alone.mean() - truth).square().mean().sqrt())
control = statistics.mean_interval(errors[3, :, -1])
claim("01.control", "this course",
      "at 25,600 comparisons the fraction of wins is no better than its limit (error, 30 seeds)",
      expected=limit, relation="at least", measured=control.estimate, interval=control)
print(f"an error of 0.05 costs about {float(cost) / 0.05**2:,.0f} comparisons")

# %% [markdown]
# Maximum likelihood lies on the theory's line: four times the data, half the error, so a wanted error $e$ costs $n \approx \text{mean}\,\mathrm{diag}(H_1^{+})/e^2$ comparisons, with $H_1$ the Hessian of one.
# Elo with a constant step forgets at the rate at which it learns, so it hovers; in chess that is wanted, because players change. A shrinking step restores the rate.
# The fraction of wins converges to something else, though everybody met everybody: the log-odds of an average are not the average of the log-odds. Its order is right, its scale is not.

# %% [markdown] exercise="01.5" part="task" stars=3 minutes=20 open=true
# ### Where should the next comparison go?
# You may ask 300 comparisons and want the *order* of the best two answers. Random pairs waste most of them. Invent a rule that chooses the next pair from the current scores and
# standard errors, and measure against random pairs, over at least 30 seeds, how often the order comes out right.

# %% [markdown] exercise="01.5" part="hints"
# 1. A comparison carries information p(1 − p): pairs that are hard to call tell most.
# 2. You need the variance of a *difference* of two scores: that is not the sum of their variances.
# 3. Report the paired difference over seeds with an interval; a better mean of 30 runs alone can be luck.

# %% [markdown] exercise="01.5" part="solution"
# A good answer states the rule, holds the number of comparisons equal, uses the same seeds for both rules, and gives the difference with an interval. It reports where the rule loses: rules that
# chase the current best two can lock onto the wrong pair early. A few random rounds first, or half a win added everywhere, cure that.

# %% [markdown]
# ## When to use it
#
# Use Bradley–Terry when one scale is plausible: one criterion, one kind of reader. Run the gap test first; it costs a dozen lines. Use Elo when data arrive for ever and strengths drift. In TRL the same loss trains
# a network: `RewardTrainer` minimises $-\log\sigma(r_w - r_l)$, with a `margin` column subtracted from the difference if the data set has one.
#
# ## What we measured

# %%
ledger.rows("01")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | scores drift off together during training | only differences are identified: centre them |
# | one score grows without end | an answer never lost; add a prior or more data |
# | standard errors about a fifth too large | 1/√(diagonal of the Hessian) lets one score move alone; scores that sum to zero move together: use the pseudo-inverse |
# | a fine fit, and useless predictions | a cycle or a mixed crowd: look at the gap, not at convergence |
# | Elo never settles | its step is constant |

# %% [markdown]
# ## References
#
# - R. A. Bradley, M. E. Terry (1952). *Rank analysis of incomplete block designs I.* Biometrika 39. The model.
# - L. R. Ford (1957). *Solution of a ranking problem from binary comparisons.* When the maximum exists.
# - S. S. Wilks (1938). *The large-sample distribution of the likelihood ratio.* The gap test.
# - A. E. Elo (1978). *The Rating of Chessplayers.*
# - M. de Condorcet (1785). *Essai sur l'application de l'analyse à la probabilité des décisions.* The crowd that is a cycle.
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, equations (1) and (2): the model and its loss for language models.
#
# ## Next
#
# **02 · Reward models**: the score becomes a network that reads text, and the judge makes mistakes.
