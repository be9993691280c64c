# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "One bench", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 13 · One bench
#
# Seventeen methods, one small language model, the same comparisons, the same budget, the same care in choosing settings, five seeds, two judges, and a truth to measure against. This lesson shows how to build such a table, how to read it, and how easily it is bent.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. say what must be equal in a comparison, and what cannot;
# 2. choose on validation and report on test;
# 3. give paired intervals over seeds, corrected for their number;
# 4. rerun any cell of a table, and say which verdicts it supports.
#
# ## Prerequisites
#
# Lessons 04 to 11: the methods themselves. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>Which distribution does SFT on the chosen responses learn?</summary>p₊ = 2 p_ref W, with W a response's win rate against the reference.</details>
# <details><summary>Does DPO with endless data find p₊?</summary>No: p_ref exp(r/β)/Z, if the judge has a reward at all.</details>
#
# *Not covered:* large models, people as judges, new prompts.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math

import numpy as np
import torch

from course_utils import experiments, ledger, objectives, plots, preferences, statistics
from course_utils.experiments import bench, lesson_13
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% tags=["nbval-ignore-output"]
RECOMPUTE = False  # True: about three hours on one core; what was computed before is not computed again
tuning = experiments.results("13_tuning", recompute=RECOMPUTE)
runs = experiments.results("13_bench", recompute=RECOMPUTE)
memory = {run["method"]: run["peak_mb"] for run in experiments.results("13_memory")}
judges = {"bradley_terry": "Bradley–Terry judge", "cyclic": "cyclic judge"}
YARDSTICKS = {"kl_to_truth": "by_likelihood", "win_rate": "by_wins"}  # each with its own tuning


def column(method, judge, name, rule=None):
    """One number for each of the five seeds."""
    return lesson_13.column(runs, method, judge, rule or YARDSTICKS[name], name)


failed = sum(run[rule]["failed"] is not None for run in runs for rule in bench.RULES)
print(f"{len(runs)} cells, {failed} policies that did not survive their training")
print(f"{sum(run['seconds'] for run in runs + tuning) / 60:.0f} minutes of computing")

# %% tags=["figure", "nbval-ignore-output"]
names = ["reference", *bench.METHODS]
drawn, panels = plots.figure(2, 2, width=5.0, height=4.6)
titles = {"kl_to_truth": "KL(p₊ ‖ policy), nats: less is nearer", "win_rate": "win rate"}
for row, (judge, who) in zip(panels, judges.items(), strict=True):
    for axes, name in zip(row, YARDSTICKS, strict=True):
        for place, method in enumerate(reversed(names)):
            look = plots.look(method)
            values = column(method, judge, name)
            found = statistics.mean_interval(values[np.isfinite(values)])
            axes.plot([found.low, found.high], [place, place], color=look.color, linewidth=1.6)
            axes.plot(found.estimate, place, look.marker or "o", color=look.color, markersize=5)
        at = float(np.mean(column("reference", judge, name)))
        axes.axvline(at, color=plots.GREY, linestyle=":", linewidth=1.2)
        axes.set(title=f"{who}", xlabel=titles[name], yticks=range(len(names)))
        shown = [plots.look(method).label for method in reversed(names)]
        axes.set_yticklabels(shown if name == "kl_to_truth" else [])
plots.show(drawn, alt="""Four panels, two judges by two yardsticks. Each method is a dot, the mean of
    five seeds, with a 95 % interval; a dotted line marks the untouched reference.""")

# %% [markdown]
# Each dot is a method with settings tuned **for that yardstick**; the bar is 95 % over five seeds (of single means; which differences are real, section 5 says). *Predict: how many of the sixteen differences to plain SFT are real? Is the same method first on both sides?*
#
# ## 1 · Derive
#
# *What does a fair comparison need?* Write the score of method $m$ with seed $s$ as
#
# $$S_{ms}=\mu_m+c_s+\varepsilon_{ms}.$$
#
# $\mu_m$ is what we want, $c_s$ what the seed does to everyone (its data, its test texts), $\varepsilon$ the rest. In the difference of two methods on the *same* seeds $c_s$ is gone, and
#
# $$\mathrm{Var}(\bar S_a-\bar S_b)=\frac{\sigma_a^2+\sigma_b^2-2\,\mathrm{Cov}(S_a,S_b)}{n}.$$
#
# So: same data, same seeds, and intervals of differences, never of two separate means.

# %% [markdown]
# *And tuning?* Try $k$ settings that are equally good, with measurement noise $\sigma$, and report the best: the report is too high by $E\max_k\le\sigma\sqrt{2\ln k}$, for four settings and normal noise $1.03\,\sigma$. It is worse for the method that was tried more often. Hence
#
# - **equal grids**: four settings for each method, learning rate times its own knob (four rates where there is none: section 4 shows what that does);
# - **separate data** for choosing and for reporting.
#
# *And many methods?* With $m$ independent comparisons at level 0.05 the chance of a false verdict is $1-0.95^m$: for sixteen, about one half. Holm's correction repairs that.

# %% [markdown]
# *By which yardstick are settings chosen?* The methods do not want the same thing. SFT, DDRO and RDRO aim at p₊; DPO and its relatives at a policy sharpened by $1/\beta$. Two rules, each judged by what it was chosen for:
#
# - **likelihood** of held-out chosen texts. As $E_{p_+}[\log\pi]=-\mathrm{KL}(p_+\Vert\pi)-H(p_+)$, this is KL to the truth up to a constant, and needs no truth;
# - **win rate** on validation.

# %% [markdown]
# *And the budget?* Forty updates of 24 responses for everyone: 12 pairs, 24 single ones, 3 groups of 8. Equal texts, so nearly equal tokens in the gradient. Some things cannot be equal: SFT sees 24 *chosen* texts where DPO sees 12, so it passes twice as often over the 288 pairs; KTO needs a second forward pass; reverse KL draws its own texts; three methods need a reward model (fitted to the same pairs, from words alone).
#
# ## 2 · Implement
#
# How a cell of the table is made, in a dozen lines: data of the seed, the budget, the training, a test draw of its own. (The bench names its draws by purpose, so its seed 0 has other data.)

# %% tags=["nbval-ignore-output"]
world = pocket.load_world("bradley_terry")
seed, setting = 0, bench.chosen_setting(tuning, "dpo", "bradley_terry", "by_wins")
pairs = preferences.draw_pairs(world, bench.MIDDLE, seed=seed)
budget = TrainingSettings(steps=bench.STEPS, batch_size=bench.TEXTS // 2, warmup=5, schedule="linear",
                          learning_rate=setting["learning_rate"], clip_gradient=1.0, seed=seed)
policy = world.new_policy()
result = train(policy, pairs, "dpo", beta=setting["knob"], settings=budget, progress=False)
print(result, f"\nsetting {setting}")
print(f"KL to the truth {world.kl_to_preferred(policy, 16, seed=9):.3f}")
print(f"win rate        {world.win_rate(policy, 16, seed=9):.3f}")
world.show(world.draw(policy, 1, seed=4), 2)

# %% [markdown]
# **Every cell can be rerun by one line**, here or in a terminal; what is stored stays as it is. Numbers differ in the last digits on another machine, and training amplifies that; a rerun is a check of the size, not of the digits.
#
# `course experiments run 13_bench --only method=sft judge=cyclic pairs=288 seed=0 --again`

# %% tags=["nbval-ignore-output"]
experiments.again("13_bench", method="sft", judge="cyclic", pairs=288, seed=0)

# %% [markdown]
# The whole is `course experiments run 13_tuning` and then `13_bench`: each run is written as one JSON when it is finished, so a killed command goes on where it was. `--workers 4` takes four processes; `--cluster ADDRESS` the workers of a Dask cluster.
#
# ## 3 · Verify against the exact optimum
#
# *Would the bench notice the right answer?* First a world where endless data can be computed: five replies, a judge with a cycle. Each method's exact minimiser, and its KL from p₊.

# %%
small = FiniteWorld.random(1, 5, judge="cyclic", seed=8)
truth = small.preferred_distribution()
settings = {"sft": {}, "rdro": {"alpha": 0.5}, "ddro": {"t": 0.5}, "dpo": {"beta": 1.0},
            "ipo": {"tau": 1.0}, "bco": {"beta": 1.0}}
floors = {method: small.kl(truth, small.population_minimiser(method, **own))
          for method, own in settings.items()}
print("KL(p+ || p_ref)", f"{small.kl(truth):.4f}")
for method, floor in floors.items():
    print(f"{plots.look(method).label:20} {floor:.6f}")
claim("13.floor", "Higuchi and Suzuki (2025); Takahashi et al. (2026); derived in 10 and 11",
      "with endless data SFT, DDRO and RDRO find p+ for a judge with a cycle (largest KL)",
      expected=0, measured=max(floors[m] for m in ("sft", "ddro", "rdro")), tolerance=1e-8)

# %% [markdown]
# So KL to p₊ has a built-in favourite: for three methods it is the target, for the rest it is not. In the pocket world the same can be computed from a large sample of the reference. *Predict: trained to perfection at β = 1, is DPO nearer to p₊ than the untouched reference is?*

# %%
for method in ("sft", "dpo", "ipo", "simpo", "kto", "bco", "exo_pref", "pmle", "rdro"):
    print(f"{plots.look(method).label:18} {objectives.get(method).target}")
cyclic = world.with_judge("cyclic")
print(f"\n{'KL(p+ || own target)':22} {'knob':>5} {'Bradley–Terry':>14} {'cyclic':>8}")
for method, knob in (("sft", None), ("dpo", 0.1), ("dpo", 1.0), ("ipo", 0.1), ("ipo", 1.0),
                     ("bco", 0.1), ("bco", 1.0)):
    values = [lesson_13.aim(each, method, knob) for each in (world, cyclic)]
    shown = ["no reward" if value is None else f"{value:.3f}" for value in values]
    print(f"{plots.look(method).label:22} {knob or '':>5} {shown[0]:>14} {shown[1]:>8}")
untouched = [each.kl_to_preferred(per_prompt=50).estimate for each in (world, cyclic)]
print(f"{'the reference itself':28} {untouched[0]:>14.3f} {untouched[1]:>8.3f}")

# %% [markdown]
# It is not: it *should* leave p₊ behind, because it answers another question. On that yardstick only methods with the same aim may be ranked.
#
# **Two rows that must be equal.** On balanced pairs at α = ½, RDRO with class-wise means and pooled RDRO are the same loss. A bench that finds a difference between them is broken.

# %%
gap = max(float(np.nanmax(np.abs(column("rdro", judge, name) - column("rdro_pooled", judge, name))))
          for judge in judges for name in YARDSTICKS)
claim("13.twins", "derived in lesson 11", "the bench gives class-wise and pooled RDRO the same numbers "
      "(largest difference: 2 judges, 2 yardsticks, 5 seeds)", expected=0, measured=gap, tolerance=0.01)
claim("13.perfect_dpo", "a reading of 'closer to the preferred distribution'",
      "perfect DPO at beta = 1 is nearer to p+ than the untouched reference: KL less the reference's",
      expected=0, relation="at most", measured=lesson_13.aim(world, "dpo", 1.0) - untouched[0])

# %% [markdown] exercise="13.1" part="task" stars=2 minutes=10
# ### A paired interval
# Every verdict rests on this one. `a` and `b` are scores of two methods on the same seeds. Return Student's 95 % limits of the mean of $a-b$ as `(low, high)`. `statistics.t_quantile(probability, degrees_of_freedom)` is at hand.

# %% exercise="13.1" part="stub"
def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Student's 95 % limits of the mean of a - b."""
    raise NotImplementedError


# %% exercise="13.1" part="check"
check("13.1", paired_interval)

# %% [markdown] exercise="13.1" part="hints"
# 1. Take the difference first; then there is only one sample.
# 2. Its mean has the standard error s/√n, with n − 1 in s.
# 3. Multiply by the 0.975 quantile of Student's t with n − 1 degrees of freedom.

# %% exercise="13.1" part="solution"
def paired_interval(a, b):
    difference = a - b
    error = difference.std(ddof=1) / math.sqrt(len(a))
    half = statistics.t_quantile(0.975, len(a) - 1) * error
    return difference.mean() - half, difference.mean() + half

check("13.1", paired_interval)

# %%
rng, tables, seeds = np.random.default_rng(0), 4_000, 5
shared = rng.normal(size=(tables, 1, seeds))  # what a seed does to all
scores = shared + 0.6 * rng.normal(size=(tables, 17, seeds))  # equal means: nobody is better
gap = scores[:, 1:] - scores[:, :1]
t = np.abs(gap.mean(-1)) / (gap.std(-1, ddof=1) / math.sqrt(seeds))
alone, family = (t > statistics.t_quantile(1 - 0.025 / m, seeds - 1) for m in (1, 16))
claim("13.false_alarm", "common practice: a 95 % interval in each row",
      "16 equal methods, one control: somebody 'differs' in at most 5 % of tables (share)",
      expected=0.05, measured=float(alone.any(1).mean()), relation="at most")
claim("13.family", "Bonferroni; Holm (1979) is never weaker",
      "the same, corrected for 16 comparisons (share)",
      expected=0.05, measured=float(family.any(1).mean()), relation="at most")
sample = rng.normal(size=(2_000, 5))  # and a bootstrap of five values: does its interval hold the truth?
means = sample[np.arange(2_000)[:, None, None], rng.integers(0, 5, (2_000, 800, 5))].mean(-1)
low, high = np.quantile(means, [0.025, 0.975], axis=1)
claim("13.percentile", "common practice: the percentile bootstrap over seeds",
      "its 95 % interval of five values holds the truth in 95 % of cases (share)",
      expected=0.95, measured=float(((low < 0) & (high > 0)).mean()), tolerance=0.02)
wide = np.mean([0 in statistics.bootstrap_interval(row, resamples=800, method="expanded")
                for row in sample[:800]])
print(f"with the course's widened levels: {wide:.1%}")

# %% [markdown]
# **A bench of equals** has a winner in many a table, if each row has its own 95 %. And a percentile bootstrap of five values is too sure of itself; the course widens its levels (Hesterberg 2015). Our verdicts use Student's p-values of the paired differences, corrected by Holm over the sixteen rows of a column, with the widened bootstrap intervals beside them. (A permutation test cannot help: with five seeds its smallest p-value is 2/32.)
#
# ## 4 · Break it on purpose

# %% [markdown] exercise="13.2" part="task" stars=1 minutes=8
# ### Choose on validation, report on test
# `validation` and `test` hold win rates, [methods, settings]. Return for each method the test score of the setting that validation chose.

# %% exercise="13.2" part="stub"
def honest_scores(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """One honest test score for each method."""
    raise NotImplementedError


# %% exercise="13.2" part="check"
check("13.2", honest_scores)

# %% [markdown] exercise="13.2" part="hints"
# 1. Choose along the axis of settings, for each method by itself.
# 2. `validation.argmax(axis=1)` gives the chosen columns.
# 3. Pick `test[row, chosen[row]]`; `np.arange(len(test))` lists the rows.

# %% exercise="13.2" part="solution"
def honest_scores(validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    return test[np.arange(len(test)), validation.argmax(axis=1)]


check("13.2", honest_scores)

# %% [markdown]
# **Tune yourself, and not the others.** On the validation data of the tuning runs: every setting of every method. *Predict: which is larger, the spread over the four settings of one method, or the spread over the methods, each at its best?*

# %%
def tuned(method, judge, name="win_rate"):
    """The validation scores of a method's four settings."""
    mine = [run for run in tuning if (run["method"], run["judge"]) == (method, judge)]
    return np.array([run[name] for run in mine if run["failed"] is None])


def spreads(scores):
    """Over the settings of the median method; over the methods, each at its best."""
    return np.median([np.ptp(s) for s in scores]), np.ptp([s.max() for s in scores])


scores = [tuned(m, "bradley_terry") for m in bench.METHODS]
errors = [tuned(m, "bradley_terry", "win_rate_error") / 1.96 for m in bench.METHODS]
(within, between), rng = spreads(scores), np.random.default_rng(0)
noisy = [spreads([s + rng.normal(0, e) for s, e in zip(scores, errors, strict=True)])
         for _ in range(1_000)]  # other validation texts might have given
gap, half = within - between, 1.96 * np.std([a - b for a, b in noisy])
best = {m: s.max() for m, s in zip(bench.METHODS, scores, strict=True)}
print(f"spread over settings, median method {within:.3f}; over the methods {between:.3f}")
worse = sum(tuned(m, "bradley_terry").min() < best["sft"] for m in bench.METHODS if m != "sft")
beaten = sum(best[m] > tuned("sft", "bradley_terry").min() for m in bench.METHODS if m != "sft")
print(f"SFT at its best beats {worse} of 16 others at their worst,")
print(f"and SFT at its worst loses to {beaten} of 16 others at their best")
claim("13.tuning", "this course",
      "settings matter as much as methods: spread over settings less that over methods (win rate)",
      expected=0, relation="at least", measured=gap, interval=(gap - half, gap + half))

# %% tags=["figure", "nbval-ignore-output"]
drawn, axes = plots.figure(width=8.6, height=3.6)
for place, method in enumerate(bench.METHODS):
    values, look = tuned(method, "bradley_terry"), plots.look(method)
    axes.plot([place, place], [values.min(), values.max()], color=look.color, linewidth=1.2)
    axes.plot(np.full(len(values), place), values, color=look.color, marker=look.marker, linestyle="")
axes.axhline(0.5, color=plots.GREY, linestyle=":")
axes.set_xticks(range(len(bench.METHODS)), [plots.look(m).label for m in bench.METHODS],
                rotation=40, ha="right")
axes.set(ylabel="validation win rate", title="four settings of each method, Bradley–Terry judge")
plots.show(drawn, alt="""For each of seventeen methods, four dots: the validation win rates of its
    four settings, joined by a line. The lines of most methods overlap.""")

# %% [markdown]
# With settings of your choice for the others you can put almost any method first. **The best of five seeds** is the same trick in another place: here the number that a paper would report, if it reported its best run, against the mean.

# %%
lift = {m: float(np.nanmax(column(m, "bradley_terry", "win_rate")) -
                 np.nanmean(column(m, "bradley_terry", "win_rate"))) for m in bench.METHODS}
lead = sorted(float(np.nanmean(column(m, "bradley_terry", "win_rate"))) for m in bench.METHODS)
print(f"best seed less mean of seeds: {np.median(list(lift.values())):.3f} (median method)")
print(f"first place less fifth place, means of seeds: {lead[-1] - lead[-5]:.3f}")


def at_the_edge(rule, end):
    """How many of the 34 choices sit at this end of the learning rates of their grid."""
    return sum(bench.chosen_setting(tuning, m, j, rule)["learning_rate"]
               == end(each["learning_rate"] for each in bench.candidates(m))
               for m in bench.METHODS for j in judges)


print("choices by likelihood at the smallest rate, of 34:", at_the_edge("by_likelihood", min))
claim("13.edge", "this course, before looking: a good grid holds its optimum inside",
      "choices by win rate that sit at the largest learning rate of their grid (of 34)",
      expected=8, relation="at most", measured=at_the_edge("by_wins", max))

# %% [markdown]
# A choice at the edge says the grid was too small, and **our own bench is not innocent**: a method without a knob gets four learning rates, so its range is wider, at both ends. How much of its score is that? SFT and RDRO again, at the two rates that methods with a knob could have, 0.0003 and 0.001: the higher beside what wins chose, the lower beside what likelihood chose.

# %%
same_rate = experiments.results("13_same_rate")
slow, equal = (lesson_13.at_rate(runs, same_rate, rate) for rate in bench.RATES)
for judge, method in [(judge, method) for judge in judges for method in ("sft", "rdro")]:
    print(f"{judges[judge]}, {method}")
    for (name, rule), among, rate in zip(YARDSTICKS.items(), (slow, equal), bench.RATES, strict=True):
        own = bench.chosen_setting(tuning, method, judge, rule)["learning_rate"]
        values = [lesson_13.column(each, method, judge, rule, name).mean() for each in (runs, among)]
        print(f"    {name:12} {values[0]:.3f} at its rate {own:g}, {values[1]:.3f} at {rate:g}")

# %% [markdown]
# ## 5 · On the bench with the others

# %% [markdown] exercise="13.3" part="task" stars=2 minutes=12
# ### Many comparisons
# Holm's correction: sort the $m$ p-values; multiply the smallest by $m$, the next by $m-1$, and so on; none may be smaller than the one before, none larger than 1. Return them in the order given.

# %% exercise="13.3" part="stub"
def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, in the order given."""
    raise NotImplementedError


# %% exercise="13.3" part="check"
check("13.3", holm_adjusted)

# %% [markdown] exercise="13.3" part="hints"
# 1. `order = np.argsort(p_values)`, and m, m − 1, ..., 1 is `np.arange(m, 0, -1)`.
# 2. `np.maximum.accumulate` is a running maximum; `np.minimum(1, ...)` caps.
# 3. `found[order] = ...` puts sorted values back in their places.

# %% exercise="13.3" part="solution"
def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    return np.minimum(1, np.maximum.accumulate(steps))[np.argsort(order)]


check("13.3", holm_adjusted)

# %% [markdown]
# **The table.** Differences to plain SFT, seed by seed; each yardstick with its own tuning. *Tie* means not told apart by five seeds (Holm's p over the sixteen rows is 0.05 or more); it does not mean equal. And mind the dotted lines at the top: under the cycle hardly a method comes nearer to p₊ than the untouched reference. The last lines count: less KL is nearer to p₊, a higher win rate wins more. *Predict how many verdicts the correction takes away.*

# %%
def print_table(judge):
    """Both yardsticks of every method against SFT."""
    sides = [{row["method"]: row for row in lesson_13.against(runs, "sft", judge, rule, name)}
             for name, rule in YARDSTICKS.items()]
    print(f"{judges[judge]:24} {'KL to truth, less SFT':34} win rate, less SFT")
    for method in bench.METHODS:
        cells = [side[method] for side in sides if method in side]
        shown = [f"{c['difference']:+.3f}".split(" (")[0] + f" {c['verdict']:6}" for c in cells]
        print(f"{plots.look(method).label:24} " + " ".join(f"{text:34}" for text in shown))


for judge in judges:
    print_table(judge)
    for name, rule in YARDSTICKS.items():
        rows = lesson_13.against(runs, "sft", judge, rule, name)
        found = [row["verdict"] for row in rows]
        alone = sum(row["p"] < 0.05 for row in rows)
        print(f"{name:12} SFT {column('sft', judge, name).mean():.3f}; of 16: " + ", ".join(
            f"{found.count(word)} {word}" for word in ("lower", "tie", "higher"))
            + f"; without the correction {alone} would differ")
    found = [row["verdict"] for row in lesson_13.against(equal, "sft", judge, "by_wins", "win_rate")]
    nearer = lesson_13.against(slow, "sft", judge, "by_likelihood", "kl_to_truth")
    kl = [row["verdict"] for row in nearer]
    print(f"SFT and RDRO at equal rates: KL {kl.count('lower')} lower, {kl.count('higher')} higher;",
          f"win rate {found.count('lower')} lower, {found.count('higher')} higher\n")

# %% [markdown]
# **Who claims to beat whom?** Each row is a paired difference over five seeds, each side tuned for the yardstick. The claims were made for large models and for people's preferences; here is what becomes of them at this size. RDRO, like SFT, could choose rates three times higher and lower than its rivals; the last four rows take both away. (These intervals stand alone: with seventeen of them, expect a false one now and then.)

# %%
def versus(id, a, b, source, judge="bradley_terry", name="win_rate", among=runs):
    """The claim that a is at least as good as b."""
    found = lesson_13.difference(among, a, b, judge, YARDSTICKS[name], name)
    what = ("win rate" if name == "win_rate" else "KL to p+") + ", " + judges[judge]
    claim(f"13.{id}", source, f"{plots.look(a).label} less {plots.look(b).label}, {what}",
          expected=0, measured=found.estimate, interval=found,
          relation="at least" if name == "win_rate" else "at most")


versus("dpo_sft", "dpo", "sft", "Rafailov et al. (2023); here SFT has three times DPO's rate")
versus("simpo_dpo", "simpo", "dpo", "Meng et al. (2024)")
versus("bpo_dpo", "bpo", "dpo", "Kim et al. (2025), BPO with SBA")
versus("tr_dpo", "tr_dpo", "dpo", "Gorbatovski et al. (2024), abstract")
versus("cdpo", "cdpo", "dpo", "Mitchell (2023): noisy labels, and a judge's labels are noisy")
versus("exo_dpo", "exo_rw", "dpo", "Ji et al. (2024): EXO from rewards over DPO")
versus("distil_dpo", "preference_distillation", "dpo", "Yun et al. (2025): outperforms or matches DPO")
versus("distil_rl", "preference_distillation", "reverse_kl", "Yun et al. (2025): ... or matches RLHF")
versus("rdro_kto", "rdro", "kto", "accounts of Takahashi et al. (2026); here three times KTO's rate")
versus("rdro_ddro", "rdro", "ddro", "accounts of Takahashi et al. (2026); here three times DDRO's rate")
versus("ddro_bco", "ddro", "bco", "Higuchi and Suzuki (2025), abstract: superior on many benchmarks")
versus("rdro_mle", "rdro", "sft", "lesson 11: the mixture beats likelihood", name="kl_to_truth")
versus("rdro_cycle", "rdro", "dpo", "Takahashi et al. (2026): any judge; here at a third of DPO's rate",
       "cyclic", "kl_to_truth")
versus("dpo_same_rate", "dpo", "sft", "a row above, the same largest rate for both", among=equal)
versus("rdro_same_rate", "rdro", "kto", "a row above, the same largest rate for both", among=equal)
versus("ddro_same_rate", "rdro", "ddro", "a row above, the same largest rate for both", among=equal)
versus("cycle_same_rate", "rdro", "dpo", "a row above, equal rates", "cyclic", "kl_to_truth", slow)

# %% [markdown]
# *What changes under the other rule?* Here each policy is judged by the yardstick it was **not** tuned for. *Predict the KL of the policies that were chosen for winning.*

# %%
print(f"{'Bradley–Terry judge':24} {'tuned for likelihood':>25} {'tuned for winning':>25}")
print(f"{'':24}" + f" {'KL':>12} {'win rate':>12}" * 2)
for method in names:
    cells = [np.nanmean(column(method, "bradley_terry", name, rule))
             for rule in bench.RULES for name in YARDSTICKS]
    print(f"{plots.look(method).label:24}" + "".join(f"{value:13.3f}" for value in cells))

# %% [markdown]
# Whoever is tuned for winning pays in KL, and the ranking changes with the yardstick. **What else did training do?** Drift of held-out log-probabilities, entropy, length, and the price. (Seconds are processor time of training; memory is the peak of a short run in a process of its own, imports included.)

# %% tags=["nbval-ignore-output"]
heads = {"chosen_drift": "chosen", "rejected_drift": "rejected", "entropy": "entropy", "words": "words",
         "grammatical": "grammar", "largest_gradient": "gradient", "train_seconds": "seconds"}
for judge, who in judges.items():
    print(f"{'tuned for winning, ' + who:40}" + "".join(f"{h:>9}" for h in heads.values()) + "     MB")
    for method in names:
        shown = "".join(f"{np.nanmean(column(method, judge, h, 'by_wins')):9.3g}"
                        for h in list(heads)[: 5 if method == "reference" else None])
        print(f"{plots.look(method).label:40}{shown:63}{memory[method]:7.0f}")

# %% [markdown]
# **More data, same budget.** A quarter and four times the comparisons, with the settings that likelihood chose at the middle size, for three of the methods (the others would take an hour or two more). Forty steps of 12 pairs pass nearly seven times over 72 pairs (SFT's 24 chosen thirteen times), and not once over 1,152. Under the cycle SFT and RDRO run at a third of DPO's rate again.

# %% tags=["figure", "nbval-ignore-output"]
other = [*runs, *lesson_13.size_runs()]
sizes = sorted({run["pairs"] for run in other})
drawn, panels = plots.figure(2, width=4.9, height=3.7)
for axes, (judge, who) in zip(panels, judges.items(), strict=True):
    ends = {}
    for method in lesson_13.FEWER:
        look = plots.look(method)
        rows = [statistics.mean_interval(lesson_13.column(other, method, judge, "by_likelihood",
                                                          "kl_to_truth", n)) for n in sizes]
        axes.plot(sizes, [row.estimate for row in rows], **look.line())
        low, high = [row.low for row in rows], [row.high for row in rows]
        plots.interval_band(axes, sizes, low, high, look.color)
        ends[look.label] = (rows[-1].estimate, look.color)
    room, place = np.ptp(axes.get_ylim()) / 16, -math.inf
    for name, (end, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        place = max(end, place + room)  # labels that would overlap move up
        plots.label(axes, sizes[-1], place, name, colour, xytext=(6, 0))
    axes.axhline(np.nanmean(column("reference", judge, "kl_to_truth")), color=plots.GREY, linestyle=":")
    axes.set(xscale="log", title=who, xlabel="comparisons", xticks=sizes, xticklabels=sizes,
             xlim=(sizes[0] / 1.3, sizes[-1] * 6))
panels[0].set_ylabel("KL(p₊ ‖ policy), nats")
plots.show(drawn, alt="""KL to p+ against the number of comparisons for SFT, DPO and RDRO with 95 %
    bands, five seeds, one panel a judge; the dotted line is the untouched reference. With 72
    comparisons SFT is farthest under Bradley-Terry and DPO under the cycle; later all come near.""")

# %% [markdown] exercise="13.4" part="task" stars=3 minutes=40 open=true
# ### Bend the bench
# Using only numbers stored in `tuning` and `runs`, write the most misleading true sentence you can about a method of your choice. Then write the honest one, with interval and correction, and say which single rule would have prevented the first.

# %% [markdown] exercise="13.4" part="hints"
# 1. Freedoms: the setting of the rival, the seed, the yardstick, the judge, the subset of methods, the unit (relative change of a small number).
# 2. `column(method, judge, name, rule)` gives five seeds under either tuning.
# 3. Rules: register the yardstick before; tune rivals equally; report all seeds; correct for all comparisons made, also those not shown.

# %% [markdown] exercise="13.4" part="solution"
# A good answer names the freedom it used, and shows that the honest number comes from the same data. Strong examples: a rival at its worst setting; KL to p₊ for a method that does not aim at it; "twice the gain over the reference" where both gains are within one interval; the best of two judges. It says how many comparisons were looked at before the sentence was found, and corrects for that number.

# %% [markdown]
# ## When to use it
#
# A bench answers a narrow question well: these methods, this model, this budget. Use it to drop what loses clearly, to find bugs (twins that differ, a control that wins), to see prices. It does not say who is best at a thousand times the size; forty steps favour whatever learns fast. Where SFT ties, a method has yet to earn its reference, its reward model or its second response.
#
# **In TRL 1.16** pairs are `DPOTrainer` with `loss_type` ("sigmoid", "ipo", "exo_pair", "bco_pair", "robust"), thumbs `KTOTrainer`. Their common default β = 0.1 means something else in each: tune each in its own units.
#
# ## What we measured

# %%
ledger.rows("13")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | a new method wins by a lot | the rival runs at its defaults |
# | overlapping bars, "no difference" | bars of single means: take the paired difference |
# | a winner in every table | no correction for the number of rows |
# | test scores lie above validation scores | settings were chosen on the test data |
# | KL to p₊ explodes for DPO | it does not aim there |
# | memory grows from run to run | one process ran them all: a high-water mark never falls |

# %% [markdown]
# ## References
#
# - S. Holm (1979). *A simple sequentially rejective multiple test procedure.* Scandinavian Journal of Statistics 6.
# - T. Hesterberg (2015). *What teachers should know about the bootstrap.* The American Statistician 69.
# - Rafailov et al. (2023), arXiv 2305.18290; Azar et al. (2023), 2310.12036; Meng et al. (2024), 2405.14734; Ethayarajh et al. (2024), 2402.01306; Jung et al. (2024), 2404.04656; Ji et al. (2024), 2402.00856; Gorbatovski et al. (2024), 2404.09656; Yun et al. (2025), 2506.01523; Higuchi and Suzuki (2025), 2505.07558; Takahashi et al. (2026), 2604.04410; Kim et al. (2025), 2505.19601; E. Mitchell (2023), *A note on DPO with noisy preferences*.
#
# ## Next
#
# **20 · A real model: SFT, then DPO.** (Part IV comes later.)
