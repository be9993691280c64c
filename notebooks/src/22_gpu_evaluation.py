# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Evaluation: judges, length, intervals", world: real, gpu: optional}
# ---

# %% [markdown]
# # 22 · Evaluation: judges, length, intervals
#
# A win rate is easy to print and easy to be fooled by. Here you measure one with a reward model, take length out of it as AlpacaEval 2 does, put an interval on it that keeps its word, and see ten ways in which a careful person gets a wrong answer.

# %% [markdown]
# ## Objectives
#
# You will be able to say how many prompts a difference needs; to compute a length-controlled win rate, and say when it is right; to name the bias that position, picking the best checkpoint, repeated looks and a proxy judge put into a win rate, with its size; to run the same cells on real models, with drift and refusals.
#
# ## Prerequisites
#
# Lessons 01, 02 and 04. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>A coin with probability p: what is the variance of one throw?</summary>p(1 − p), at most 1/4.</details>
# <details><summary>Rewards r and r′ under Bradley–Terry: how often is the first preferred?</summary>σ(r − r′).</details>
#
# *Not covered:* benchmarks of skills, people as judges, red-teaming.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import inspect
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from course_utils import ledger, plots, preferences, statistics
from course_utils.experiments import lesson_22
from course_utils.experiments.lesson_22 import best_of, logit, sigmoid
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.length_control import length_controlled_win_rate
from course_utils.real_models_stand_ins import stand_ins
from course_utils.shipped import data_folder
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket, pocket_judges

# %% [markdown]
# **Two worlds.** The teaching happens where the truth is known: simulated judges, and the pocket model with its judge. The *real* path in section 2 runs on whatever these parameters name, folders or names on the hub. Left empty, as on this page, it runs tiny Qwen2 and Llama models with random weights on a few rows. **That proves the code, and no result.**

# %% tags=["parameters"]
model = ""  # what you trained: a folder or a name
other = "Qwen/Qwen2.5-0.5B-Instruct"  # what it is measured against
judge = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"  # a reward model: a folder or a name
dataset = "hh-helpful"  # prompts: a file, or a name in datasets.SOURCES
split = "test"
prompts = 500
max_new_tokens = 256
minutes = 15
method = "dpo"  # how the pocket policy is trained
steps = 60
seed = 0

# %% [markdown]
# **Four judges** of whom we know everything. Three like our answers with log-odds $\theta=0.4$, and longer answers on top of that: along a tanh, along a straight line, or above a threshold. The fourth reads quality alone; good answers happen to be longer. Ours are longer by 0.8 deviations.
#
# **A proxy.** The pocket judge *surface* likes what good answers look like: polite, detailed, flattering, long. We keep the best of $n$ reference answers by the proxy, and ask both judges. With 1,024 answers to each of 24 prompts, no sampling is needed: rank $k$ of $m$ has the weight $(k/m)^n-((k-1)/m)^n$.

# %%
theta, rng = 0.4, np.random.default_rng(0)
longer, quality = rng.normal(0.8, 1, 100_000), rng.normal(0.4, 1, 100_000)
known = {  # the log-odds of winning, our length minus theirs, the win rate at equal length
    "tanh": (theta + np.tanh(longer / longer.std()), longer, sigmoid(theta)),
    "straight line": (theta + 0.8 * longer, longer, sigmoid(theta)),
    "threshold": (theta + 1.5 * (longer > 1), longer, sigmoid(theta)),
    "quality alone": (quality, quality + rng.normal(0.4, 0.6, 100_000), sigmoid(quality).mean()),
}
found = {name: length_controlled_win_rate(sigmoid(odds), difference, 0 * difference, samples=2)
         for name, (odds, difference, _) in known.items()}

# %%
world = pocket.load_world("bradley_terry")
table, proxy = world.reference_table(), pocket_judges.JUDGES["surface"]  # [prompts, answers, features]
scores, kept = proxy.reward_of(table), [1, 2, 4, 8, 16, 32, 64, 128]
rates = {}
for name, one in (("proxy", proxy), ("true judge", world.judge)):
    W = torch.stack([one.preference_probability(x[:, None], x[None]).mean(1) for x in table])
    rates[name] = torch.stack([(best_of(n, scores) * W).sum(1) for n in kept])  # [n, prompts]

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.4)
blue, orange = plots.PALETTE["blue"], plots.PALETTE["orange"]
for row, name in enumerate(reversed(known)):
    left.plot(found[name].raw.estimate, row, "s", color=plots.GREY, markersize=8)
    left.plot(found[name].controlled.estimate, row, "o", color=blue, markersize=8)
    left.plot(known[name][2], row, "|", color=plots.INK, markersize=24, markeredgewidth=2)
left.set(yticks=range(4), yticklabels=list(reversed(known)), ylim=(-0.7, 3.8), xlabel="win rate")
left.set_title("Taking length out of four judges")
plots.label(left, found["tanh"].raw.estimate, 3, "raw", plots.GREY, xytext=(-10, 12))
plots.label(left, found["tanh"].controlled.estimate, 3, "length-controlled", blue, xytext=(-110, 10))
plots.label(left, known["quality alone"][2], 0, "| the truth", xytext=(-2, -19))
for (name, values), colour in zip(rates.items(), (orange, blue), strict=True):
    right.plot(kept, values.mean(1), "o-", color=colour)
    rows = [statistics.mean_interval(each) for each in values]
    plots.interval_band(right, kept, [r.low for r in rows], [r.high for r in rows], colour)
    at, shift = (5, (-104, 12)) if name == "proxy" else (3, (2, 14))
    plots.label(right, kept[at], float(values[at].mean()), f"says the {name}", colour, xytext=shift)
right.set(xscale="log", xlabel="best of n, chosen by the proxy", ylabel="win rate", ylim=(0.48, 1))
right.set_xticks(kept, kept)
right.set_xticks([], minor=True)
right.set_title("A proxy that is asked too often")
plots.show(drawn, alt="""Left: for a judge with a tanh the length-controlled rate meets the truth; for a
    line and a threshold it lies between raw and truth; for a judge of quality it falls below the truth.
    Right: the proxy's win rate rises with n; the true one turns and falls back.""")

# %% [markdown]
# Left: one recipe, four judges; exact for the judge it was made for, wrong for the one who needed none. Right: the proxy puts the best of 128 far above the best of 8, the true judge far below. Bands: 95 % over prompts.
#
# ## 1 · Derive
#
# *What is a win rate a mean of?* Draw a prompt and an answer of each model; the judge prefers ours with probability $p$. The win rate is $W=E[p]$. Record the verdict $v\in\{0,1\}$, or record $p$. The mean is the same, the noise is not:
#
# $$\mathrm{Var}(v)=W(1-W)=\mathrm{Var}(p)+E[p(1-p)].$$
#
# For given $p$ the verdict is a coin with variance $p(1-p)$ and mean $p$; the spread of that mean is the other term. So $E[p(1-p)]$ is the judge's dice. A reward model gives you $p$: do not throw them.

# %% tags=["nbval-ignore-output"]
pairs, policy = preferences.draw_pairs(world, 400, seed=seed), world.new_policy()
settings = TrainingSettings(steps=steps, batch_size=32, learning_rate=3e-4, schedule="linear",
                            clip_gradient=1.0)
train(policy, pairs, method, settings=settings, progress=False)
ours, base, theirs = (world.draw(who, 50, seed + i) for i, who in enumerate([policy, None, None]))
p, p_base = (world.judge.preference_probability(one.features, theirs.features).numpy()
             for one in (ours, base))
world.show(theirs, 2)
world.show(ours, 2)
print(f"after {steps} steps of {method}: win rate {statistics.mean_interval(p)}")
print(f"deviation: {p.std():.2f} of probabilities, {(p.mean() * (1 - p.mean())) ** 0.5:.2f} of verdicts")
claim("22.dice", "law of total variance", "the variance of a verdict is Var(p) + E[p(1-p)] (difference)",
      expected=0, measured=p.var() + (p * (1 - p)).mean() - p.mean() * (1 - p.mean()), tolerance=1e-12)

# %% [markdown]
# *How many prompts?* The mean of $n$ values of deviation $s$ has standard error $s/\sqrt n$. To see a difference $d$ at the 5 % level we need $|{\rm mean}|>1.96\,s/\sqrt n$; for that to happen in 80 % of evaluations, $d$ must lie another $0.84$ standard errors beyond. So
#
# $$n=\Big(\frac{(1.96+0.84)\,s}{d}\Big)^2 .$$
#
# *Predict: how many verdicts tell 52 % from 50 %?*

# %% [markdown] exercise="22.1" part="task" stars=1 minutes=8
# ### How many prompts
# Return that $n$, rounded up, as an int. `statistics.normal_quantile(q)` gives the quantiles.

# %% exercise="22.1" part="stub"
def prompts_needed(difference: float, deviation: float) -> int:
    """Prompts to see a difference at the two-sided 5 % level in 80 % of evaluations."""
    raise NotImplementedError


# %% exercise="22.1" part="check"
check("22.1", prompts_needed)

# %% [markdown] exercise="22.1" part="hints"
# 1. Two quantiles: 0.975 for the two-sided level, 0.8 for the power.
# 2. Add them, multiply by the deviation, divide by the difference, square.
# 3. `math.ceil` rounds up to an int.

# %% exercise="22.1" part="solution"
def prompts_needed(difference: float, deviation: float) -> int:
    quantiles = statistics.normal_quantile(0.975) + statistics.normal_quantile(0.8)
    return int(np.ceil((quantiles * deviation / difference) ** 2))


check("22.1", prompts_needed)

# %% [markdown]
# **Length.** AlpacaEval 2 asks a counterfactual: *what would the judge say if both answers were equally long?* It fits a logistic regression to the judge's probabilities,
#
# $$P(\text{win}\mid x)=\sigma\big(\theta+\varphi\tanh(\Delta/s)+\psi\,\gamma_x\big),$$
#
# $\Delta$ our length minus theirs, $s$ its deviation, $\gamma_x$ the prompt's difficulty; then it sets the length term to zero and averages: $\mathrm{LC}=\frac1n\sum_x\sigma(\theta+\psi\gamma_x)$.
#
# Why tanh? A few enormous answers shall not decide. Why not the raw mean? $\theta$ is the log-odds where $\Delta=0$. As tanh is odd, exchanging the models turns every sign: $\mathrm{LC}(a,b)+\mathrm{LC}(b,a)=1$, as for a win rate.

# %% [markdown] exercise="22.2" part="task" stars=2 minutes=8
# ### At equal length
# From the fitted coefficients, return the length-controlled win rate as a float.

# %% exercise="22.2" part="stub"
def at_equal_length(theta: float, phi: float, psi: float, delta: torch.Tensor,
                    gamma: torch.Tensor) -> float:
    """The length-controlled win rate; delta and gamma have one entry per prompt."""
    raise NotImplementedError


# %% exercise="22.2" part="check"
check("22.2", at_equal_length)

# %% [markdown] exercise="22.2" part="hints"
# 1. Which of the three terms knows about length?
# 2. Without it, one probability per prompt is left, from θ and ψγ.
# 3. Average probabilities, not log-odds.

# %% exercise="22.2" part="solution"
def at_equal_length(theta: float, phi: float, psi: float, delta: torch.Tensor,
                    gamma: torch.Tensor) -> float:
    return float(torch.sigmoid(theta + psi * gamma).mean())


check("22.2", at_equal_length)

# %% [markdown]
# *Paper and code.* The released `glm_winrate.py` adds to this an L1 penalty chosen by cross-validation, and answers of two artificial baselines with a small weight; difficulties come from a file, fitted to many models. `course_utils.length_control` has a small fixed penalty, no baselines, and difficulties only if you give them. Its interval refits the regression on resampled prompts. TRL has no counterpart.
#
# ## 2 · Implement
#
# An evaluation is a list of rows: a prompt, two answers, the judge's probability. Read the loop; it stops when the minutes are over.

# %%
print(inspect.getsource(lesson_22.compare))

# %% [markdown]
# `evaluate` wraps it: `load_policy` twice, `load_judge`, prompts from `datasets.load`; then the win rate, raw and at equal length, lengths, drift, refusals. `load_judge` accepts a classifier with **one** output $r$; it prefers ours with probability $\sigma(r-r')$. `course run 22 -p model=FOLDER`, or `model` set above, runs the cell below on real models; lesson 20 prints its folder. Where no model is named, random stand-ins, saved to a temporary folder, come in by the same door.

# %% tags=["nbval-ignore-output"]
if model:
    result = lesson_22.evaluate(model, other, judge, dataset, split or None, prompts=prompts, seed=seed,
                                max_new_tokens=max_new_tokens, minutes=minutes)
    result |= {"model": model, "other": other, "judge": judge, "dataset": dataset, "split": split}
    Path("22_gpu_evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1))
for family in [] if model else ["Qwen2", "Llama"]:
    with tempfile.TemporaryDirectory() as folder:
        result = lesson_22.evaluate(**stand_ins(family, Path(folder)))
    print(f"{family}, random weights, proves the code and no result: {result['prompts']} prompts, "
          f"win rate {result['win_rate'][0]:.2f}, drift {result['drift'][0]:.1f} nats")

# %% [markdown]
# A win rate near one half says that random judges have no taste, and no more.
#
# **Position.** A judge that reads both answers at once, such as a prompted model, also likes a place: $P(\text{first})=\sigma(d+b)$. A reward model reads one answer at a time and cannot. *Predict: ask in both orders and average the two probabilities. Is $b$ gone?*

# %%
d, b = rng.normal(0.5, 1, 100_000), 1.0  # our log-odds without position; the liking for the first place
first, second = sigmoid(d + b), 1 - sigmoid(-d + b)  # P(ours), shown first and shown second
without = sigmoid(d).mean()
claim("22.one_order", "common practice", "ours always first: the win rate is that without position",
      expected=without, measured=first.mean(), tolerance=0.005)
claim("22.both_orders", "common practice", "the mean of both orders is the win rate without position",
      expected=without, measured=(first + second).mean() / 2, tolerance=0.005)

# %%
equal = np.concatenate([d - 0.5, 0.5 - d])  # two equal models
claim("22.equal_models", "this course", "for equal models the mean of both orders is one half",
      expected=0.5, measured=(sigmoid(equal + b) + 1 - sigmoid(-equal + b)).mean() / 2, tolerance=1e-10)

# %% [markdown]
# Both orders cure the bias between equal models: what $b$ gives in one order it takes in the other. Between unequal ones they leave a milder fault: $\tfrac12\big(\sigma(d+b)+\sigma(d-b)\big)$ is nearer to one half than $\sigma(d)$, because the sigmoid is flat at its ends. The bias is added to the log-odds, $d+b$ in one order and $d-b$ in the other; their mean is $d$. A judge that gives verdicts alone has no log-odds: then take both orders, and say that large win rates are understated.

# %% [markdown] exercise="22.3" part="task" stars=2 minutes=10
# ### Without position
# You get the probability that the judge prefers *whatever is shown first*: once with ours first, once with ours second. Return, for each prompt, the probability that ours is preferred without position: average our log-odds over the two orders.

# %% exercise="22.3" part="stub"
def without_position(ours_first: torch.Tensor, ours_second: torch.Tensor) -> torch.Tensor:
    """P(ours preferred), one per prompt; both arguments are P(the first shown is preferred)."""
    raise NotImplementedError


# %% exercise="22.3" part="check"
check("22.3", without_position)

# %% [markdown] exercise="22.3" part="hints"
# 1. Where ours stands second, P(ours) = 1 − P(first).
# 2. `torch.logit` gives log-odds, and logit(1 − p) = −logit(p).
# 3. Average the two log-odds, then `torch.sigmoid`.

# %% exercise="22.3" part="solution"
def without_position(ours_first: torch.Tensor, ours_second: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid((torch.logit(ours_first) - torch.logit(ours_second)) / 2)


check("22.3", without_position)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# Here the optimum is the truth itself. *Does an interval keep its word?* Forty prompts, each with a difficulty of its own, ten answers to each: 400 rows. *Predict: how often does a 95 % interval over the 400 rows hold the truth? And one over the 40 prompt means?*

# %%
truth = lesson_22.answers_to_prompts(0, prompts=400_000).mean()
runs = [lesson_22.answers_to_prompts(s) for s in statistics.seeds(1, 2000)]
for unit, flat in (("rows", np.ravel), ("prompt means", lambda run: run.mean(1))):
    held = sum(truth in statistics.mean_interval(flat(run)) for run in runs)
    held = statistics.wilson_interval(held, len(runs))
    claim(f"22.by_{unit.split()[0]}", "Student's interval", f"95 % intervals over {unit} hold the truth "
          "(2,000 simulations)", expected=0.95, measured=held.estimate, interval=held)

# %% [markdown]
# Ten answers to one prompt are not ten prompts. With $m$ answers each, whose probabilities correlate by $\rho$ within a prompt, the variance of the mean is $1+(m-1)\rho$ times what the rows pretend: with ten answers and $\rho=\tfrac12$, 5.5 times. The unit of an interval is what was drawn independently: prompts.
#
# Now length control where it must be exact, and its error. *The predictions $\sigma(\theta+\psi\gamma_x)$ come with a standard error for free. Predict: is it that of LC?*

# %%
claim("22.lc_tanh", "Dubois et al. 2024", "LC recovers σ(θ) if the liking for length is a tanh",
      expected=sigmoid(theta), measured=found["tanh"].controlled.estimate, tolerance=1e-4)
odds, delta, _ = known["straight line"]
swapped = length_controlled_win_rate(1 - sigmoid(odds), 0 * delta, delta, samples=2).controlled.estimate
claim("22.lc_swap", "Dubois et al. 2024", "LC(a, b) + LC(b, a) = 1, whatever the judge", expected=1,
      measured=found["straight line"].controlled.estimate + swapped, tolerance=1e-6)
claim("22.log_odds", "this course", "position: averaging log-odds over both orders restores it",
      expected=without, measured=sigmoid((logit(first) + logit(second)) / 2).mean(), tolerance=1e-6)
both = np.array([lesson_22.shortcut_and_estimate(s) for s in statistics.seeds(3, 400)])
ratio = statistics.bootstrap_interval(both, lambda x: x[:, 0].mean() / x[:, 1].std(), resamples=500)
claim("22.lc_error", "alpaca_eval, glm_winrate.py", "the standard error of the predictions is the "
      "scatter of LC (ratio, 400 simulations)", expected=1, measured=ratio.estimate, interval=ratio)

# %% [markdown]
# The predictions hardly differ between prompts, so their spread is small; that $\theta$ was estimated does not show in it. AlpacaEval's code prints this very number, as `lc_standard_error`. Use the bootstrap that refits.
#
# **Drift.** $\mathrm{KL}(\pi\Vert\pi_{\rm ref})=E_{y\sim\pi}\log\frac{\pi(y)}{\pi_{\rm ref}(y)}$: the mean log-ratio over the policy's *own* answers. *Predict its sign over the reference's answers.*

# %% tags=["nbval-ignore-output"]
for name, sample, says in (("own", ours, "over the policy's own answers"),
                           ("data", theirs, "over a fixed set of answers, the reference's")):
    batch = sample.tokens.batch().select(torch.arange(0, len(sample), 2))
    ratios = lesson_22.log_ratios(policy, world.new_policy(), batch)
    mean = statistics.mean_interval(ratios)
    claim(f"22.drift_{name}", "Gibbs' inequality" if name == "own" else "common practice",
          f"{says}, the mean log-ratio is a drift: at least zero (600 answers)", expected=0,
          measured=mean.estimate, interval=mean, relation="at least", digits=2)

# %% [markdown]
# Over the reference's answers it is $-\mathrm{KL}(\pi_{\rm ref}\Vert\pi)$, never positive: a curve on fixed data can fall while the policy runs away. And score the very tokens that were drawn: a text that is encoded again may become other tokens, and the mean is no KL any more.
#
# ## 4 · Break it on purpose
#
# *Length control before the other three judges.* And on text: in the pocket world details are liked, and details are words. Our policy is the longest of four reference answers. *Predict what LC does before the true judge, who counts no words, and before one who likes each word as well.*

# %%
for name in ("straight line", "threshold", "quality alone"):
    claim(f"22.lc_{name.split()[0]}", "Dubois et al. 2024, beyond its model",
          f"LC is the win rate at equal length (judge: {name})", expected=known[name][2],
          measured=found[name].controlled.estimate, tolerance=0.005)
at = pocket.FEATURE_NAMES.index("words")
words = table[..., at]
mine = torch.multinomial(best_of(4, words), 200, replacement=True,
                         generator=torch.Generator().manual_seed(0))
long = table[torch.arange(24)[:, None], mine].flatten(0, 1)  # 200 long answers to each prompt
usual = table[:, :200].flatten(0, 1)
tastes = world.judge.reward
wordy = replace(world.judge, reward=replace(tastes, weights=(*tastes.weights, ("words", 0.08))))
on_text = {name: length_controlled_win_rate(one.preference_probability(long, usual).numpy(),
                                            long[:, at], usual[:, at])
           for name, one in (("true judge", world.judge), ("likes words", wordy))}
print("\n".join(f"{name}: {result}" for name, result in on_text.items()))
for id, name, says in (("text", "true judge", "a judge that counts no words: LC is the true win rate"),
                       ("wordy", "likes words", "a judge that likes words: LC is the true win rate")):
    lc = on_text[name].controlled
    claim(f"22.lc_{id}", "Dubois et al. 2024, beyond its model", f"{says} (pocket, 4,800 rows)",
          expected=on_text["true judge"].raw.estimate, measured=lc.estimate, interval=lc)

# %% [markdown]
# A straight line goes out nearly whole, a threshold only in part. For the judge of quality the raw rate was right, and the control takes merit away: to a regression, length that comes with quality looks like length. **LC says "equal lengths, all else as it was", and the data cannot tell it what else there is.** Report both; if they part, read answers of equal length.
#
# **A proxy as the judge.** How can a judge that agrees so often rank two policies the wrong way round?

# %%
agree = []
for rows in table[:, :256]:
    t = world.judge.preference_probability(rows[:, None], rows[None])
    says = proxy.preference_probability(rows[:, None], rows[None]) > 0.5
    agree.append([torch.where(says, t, 1 - t).mean(), (t**2 + (1 - t) ** 2).mean()])
by_proxy, itself = torch.tensor(agree).mean(0).tolist()
print(f"agreement with a true verdict: proxy {by_proxy:.2f}, the true judge asked again {itself:.2f}")
turned = statistics.mean_interval(rates["true judge"][-1] - rates["true judge"][3])
claim("22.proxy_ranks", "common practice", "the proxy prefers best of 128 to best of 8: truly, it wins "
      "more (24 prompts)", expected=0, measured=turned.estimate, interval=turned, relation="at least")

# %% [markdown]
# The proxy is nearly as good as asking the true judge twice. But agreement is measured on ordinary answers, and optimisation leaves them for those where proxy and truth part (lesson 02). So **the judge that reports must not be the reward that trained, nor its relative.**
#
# **The winner's curse.** Evaluate $k$ checkpoints on $n$ prompts, report the best. If all are equally good, the best mean is too high by $E\max_k\cdot s/\sqrt n$, with the expected maximum of $k$ standard normals. *Predict, for $k=10$, $n=200$.*

# %% tags=["nbval-ignore-output"]
normals = np.random.default_rng(5).standard_normal((200_000, 10)).max(1).mean()  # 1.54
over, clean = map(statistics.mean_interval, lesson_22.excess_of_the_best(p, k=10, n=200).T)
claim("22.curse", "common practice", "on the prompts that chose it, the best of ten equal checkpoints "
      "shows its true win rate (excess, 2,000 simulations)", expected=0, measured=over.estimate,
      interval=over, corrected=normals * p.std() / 200**0.5, tolerance=0.001, digits=2,
      correction="too high by E max · s/√n")
claim("22.held_out", "this course", "on fresh prompts it does (excess, 2,000 simulations)", expected=0,
      measured=clean.estimate, interval=clean, tolerance=0.001, digits=2)
looks = np.random.default_rng(6).standard_normal((20_000, 10)).cumsum(1) / np.arange(1, 11) ** 0.5
alarms = statistics.wilson_interval(int((abs(looks) > 1.96).any(1).sum()), len(looks))
claim("22.looks", "common practice", "equal models, ten looks as prompts come in, the end at the first "
      "|z| > 1.96: a false alarm in 5 % (20,000 simulations)", expected=0.05,
      measured=alarms.estimate, interval=alarms, digits=2)

# %% [markdown]
# Choose on one half of the prompts, report on the other. The same curse lies on choosing judge, wording, seed (checkpoints of one run share noise: then $s$ is what they do not share), and on **looking again**: who stops once the interval leaves out one half sees what is not there. Fix the number of prompts first.
#
# ## 5 · On the bench with the others
#
# *Three ways to spend prompts*: verdicts, probabilities, and **paired** differences of two policies against the same opponents' answers. Unpaired, the difference costs the sum of both variances. *Predict: what does pairing save?* (The pocket world has 24 prompts in all, evenly asked: there are no others to speak about, so here the rows are the unit.)

# %% tags=["nbval-ignore-output"]
shuffled = np.random.default_rng(0).permutation(p_base)
ways = {"verdicts": np.repeat([0.0, 1.0], 600), "probabilities": p_base,
        "paired difference": p - p_base, "unpaired difference": p - shuffled}
needed = {name: int(np.ceil((2.8016 * v.std() / 0.02) ** 2)) for name, v in ways.items()}
print("prompts needed to see two points:", needed)
seen = lesson_22.power(p_base, 0.02, needed["probabilities"], repeats=2000)
seen = statistics.wilson_interval(seen, 2000)
claim("22.power", "the formula of section 1", "with that many prompts two points are seen in 80 % of "
      "evaluations (2,000 simulations)", expected=0.8, measured=seen.estimate, interval=seen,
      tolerance=0.01, digits=2)
both = np.stack([p, p_base], 1)
saved = statistics.bootstrap_interval(both, lambda x: (x[:, 0] - x[:, 1]).var() / x.var(0).sum(),
                                      resamples=500)
claim("22.paired", "this course", "against the same opponents' answers a difference of two policies has "
      "less variance (ratio to unpaired, 1,200 rows)", expected=1, measured=saved.estimate,
      interval=saved, relation="at most", digits=2)

# %% tags=["figure", "nbval-ignore-output"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.4)
sizes, grid = 200 * 2 ** np.arange(6), np.geomspace(200, 6400, 60)
looks = [("orange", "-"), ("blue", "-"), ("green", "--"), ("pink", ":")]
for (name, values), (colour, style) in zip(ways.items(), looks, strict=True):
    left.plot(grid, torch.special.ndtr(torch.tensor(0.02 * grid**0.5 / values.std() - 1.96)),
              color=plots.PALETTE[colour], linestyle=style, label=f"{name}: {needed[name]:,}")
    dots = [lesson_22.power(values, 0.02, n, 200, seed=n) / 200 for n in sizes[1:5]]
    left.plot(sizes[1:5], dots, "o", color=plots.PALETTE[colour])
left.axhline(0.8, color=plots.GREY, linestyle=":")
left.set(xscale="log", xlabel="prompts", ylabel="power", ylim=(0, 1.05), title="To see two points",
         xticks=sizes, xticklabels=[f"{n:,}" for n in sizes])
left.minorticks_off()
left.legend(loc="upper left", title="needed for 80 %", frameon=True, framealpha=1, edgecolor="white")
for row, (who, sample) in enumerate({"reference": base, f"{steps} steps of {method}": ours}.items()):
    for at, name in enumerate(["bradley_terry", "surface", "flattery", "length"]):
        one = pocket_judges.JUDGES[name].preference_probability(sample.features, theirs.features)
        i = statistics.mean_interval(one)
        right.errorbar(at + 0.2 * row, i.estimate, i.half_width, fmt="so"[row],
                       label=None if at else who, color=[plots.GREY, blue][row])
right.axhline(0.5, color=plots.GREY, linestyle=":")
right.set(ylabel="win rate", title="Two policies, four judges", xticks=np.arange(4) + 0.1,
          xticklabels=["true judge", "surface", "flattery", "length"])
right.legend(loc="upper right")
plots.show(drawn, alt="""Left: power against prompts, simulated dots on the formula's lines; verdicts
    need most prompts. Right: win rates with 95 % intervals of the reference and the trained policy.""")

# %% [markdown]
# Paired, the difference takes little more than half the prompts of unpaired. The control, the untouched reference, lies at one half.
#
# **Refusals.** A list of phrases is transparent, and it errs: with $f$ the share of answers it calls refusals and $m$ the share of refusals it misses, the observed share is $o=(1-m)t+f(1-t)$, so the true one is $t=\frac{o-f}{1-m-f}$. Twenty harmless lines, half of them hard, show *how* it errs. *How often*, a labelled sample of your own answers tells: the pocket desk refuses in three phrases, our list knows two. Report the count for the reference as well: a policy may refuse more than it, or have unlearnt to.

# %% tags=["nbval-ignore-output"]
print("missed:", [text for text in lesson_22.REFUSED if not lesson_22.refuses(text)])
print("called refusals:", [text for text in lesson_22.ANSWERED if lesson_22.refuses(text)])
labelled, in_truth = ((sample.feature("correct") == 0).numpy() for sample in (base, ours))
marked, ours_marked = (np.array([float(lesson_22.refuses(text)) for text in sample.responses])
                       for sample in (base, ours))
f, m = marked[~labelled].mean(), 1 - marked[labelled].mean()
print(f"on the reference's 1,200 answers: f = {f:.3f}, m = {m:.2f}")
columns = np.stack([marked, labelled, ours_marked, in_truth], 1)
for id, source, says, fix in (
        ("refusals", "common practice", "the list counts our refusals", False),
        ("refusals_corrected", "Rogan & Gladen 1978", "corrected by f and m it does", True)):
    off = statistics.bootstrap_interval(
        columns, lambda x, fix=fix: lesson_22.refusals_too_many(x, fix), resamples=1000)
    claim(f"22.{id}", source, f"{says} (share counted minus true share, 1,200 pocket answers)",
          expected=0, measured=off.estimate, interval=off, digits=2)

# %% [markdown] exercise="22.4" part="task" stars=3 minutes=20 open=true
# ### Read a report
# "*Our model wins 53.1 % (n = 4,050: 5 answers to each of 810 prompts, GPT judge, ours shown first), 54.0 % length-controlled; the checkpoint was the best of twelve on this set; agreement of the judge with people 78 %.*" Write the review: what biases the number, in which direction, by how much where you can say it, and the smallest new evaluation that would settle it.

# %% [markdown] exercise="22.4" part="hints"
# 1. How many prompts are there? What is then the half-width of the interval?
# 2. Which of the faults shift the number up, and which only widen its interval?
# 3. What would you have to hold out?

# %% [markdown] exercise="22.4" part="solution"
# A good answer contains: an interval over 810 prompts, not 4,050 rows, so about ±2 to 3 points; position (up, size unknown: ask in both orders); the curse of twelve checkpoints, $1.63\,s/\sqrt{810}$, about two points up if their noise is not shared; length control may under- or over-correct, so read texts of equal length; agreement on ordinary pairs says little about optimised texts. Then: fresh prompts, one checkpoint, both orders, a second judge of another family, paired with the reference, size by the formula.

# %% [markdown]
# ## When to use it
#
# - **A reward model as judge**: cheap, repeatable, without a place to like; never a relative of the reward that trained.
# - **LC beside raw**, whenever lengths differ. Equal within intervals: good. Apart: look, do not pick the nicer one.
# - **Paired differences over prompts**, whenever both models can answer the same prompts.
# - **Held-out prompts**: those that chose anything report nothing.
#
# ## What we measured
#
# Where a row names "common practice", its silent assumption was put to the test. First the table of real runs, from raw JSON; then the ledger.

# %%
stored = data_folder() / "results" / "gpu_evaluations.json"
runs = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else []
runs = [run for run in runs if run.get("lesson") == "22"]
for run in runs:
    low, high = run["win_rate"][1:]
    print(f"{run['model']} against {run['other']}, judge {run['judge']}, {run['prompts']} prompts: "
          f"win rate {run['win_rate'][0]:.3f} [{low:.3f}, {high:.3f}], at equal length "
          f"{run['at_equal_length'][0]:.3f}, drift {run['drift'][0]:.1f} nats, {run.get('card')}")
if not runs:
    print("No real model has been evaluated yet. To fill this table, run on a machine with a card\n"
          "    course run 22 -p model=FOLDER_OR_NAME\nand add the 22_gpu_evaluation.json that the "
          "lesson writes to the list in data/results/gpu_evaluations.json.")
ledger.rows("22")

# %% [markdown]
# ## Common errors
#
# | what happens | why | what to do |
# |---|---|---|
# | a tiny interval, and the next run lies outside | rows counted as prompts | average over answers to a prompt |
# | LC and raw disagree | liking for length, or merit that is long | compare answers of equal length |
# | all new checkpoints beat the old one | the best of many, on its own prompts | fresh prompts |
# | the judge loves the model, people do not | a relative of the reward | another judge, eyes |
# | drift is negative | measured on a data set, or on texts encoded again | score the tokens drawn |
# | `not-a-judge` | a classifier with several outputs | use a reward model with one |
# | `evaluation-tokenizers` | `other` has other words | name the model yours was trained from |

# %% [markdown]
# ## References
#
# - Dubois, Galambosi, Liang & Hashimoto 2024, *Length-Controlled AlpacaEval*, arXiv 2404.04475; code: tatsu-lab/alpaca_eval, `metrics/glm_winrate.py`.
# - Zheng et al. 2023, *Judging LLM-as-a-Judge*, arXiv 2306.05685, section 3: position and length bias.
# - Liu et al. 2025, *Skywork-Reward-V2*, arXiv 2507.01352: the default judge.
# - Gao, Schulman & Hilton 2023, *Scaling Laws for Reward Model Overoptimization*, arXiv 2210.10760.
# - Miller 2024, *Adding Error Bars to Evals*, arXiv 2411.00640: clusters, paired differences.
# - Rogan & Gladen 1978, *Estimating prevalence from the results of a screening test*, Am. J. Epidemiology 107.
#
# ## Next
#
# **23 · Scaling out**: the same script on several cards.
