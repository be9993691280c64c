# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Reward models: scores for texts", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 02 · Reward models: scores for texts
#
# In lesson 01 every answer had a score of its own. A reward model reads the text instead, so it can score what nobody has compared. This lesson measures what it learns, what
# wrong labels do to it, and what happens when somebody searches for the text that it likes best.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. train a reward model from comparisons, and say which part of it the data identify;
# 2. hold its accuracy against the judge's own ceiling, and its probabilities against what happens;
# 3. find suspicious labels by voting, and choose between dropping, flipping, softening and margins by measurement;
# 4. draw the curve of over-optimisation, and tell a good proxy from a dangerous one.

# %% [markdown]
# ## Prerequisites
#
# Lesson 01. About 80 minutes with the exercises. Test yourself:
#
# <details><summary>Two answers have scores 1.3 and 0.3. What changes if both gain 5?</summary>Nothing: only the difference, 1, enters σ.</details>
# <details><summary>A judge prefers A to B with probability 0.7. How often can a model that knows this predict one verdict?</summary>70 %: it says A, and is wrong when the judge is.</details>
#
# *Not covered:* training a policy on the reward (03), preferences without any score (14), crowds (15).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import copy
import math

import torch
from torch import Tensor

from course_utils import experiments, ledger, objectives, plots, preferences, statistics
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.reward_models import LanguageRewardModel, reward_differences
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% [markdown]
# Training with five seeds takes about ten minutes, so it was computed beforehand by a command and is replayed here. Set `RECOMPUTE = True` to compute it on your machine.

# %%
RECOMPUTE = False
readers = experiments.results("02_readers", recompute=RECOMPUTE)
noise = experiments.results("02_label_noise", recompute=RECOMPUTE)


def of_reader(name, column):  # a number for each seed
    return torch.tensor([run[column] for run in readers if run["reader"] == name]).double()


def of_noise(labels, column):
    return torch.tensor([run[column] for run in noise if run["labels"] == labels]).double()


sizes = [1, 2, 4, 8, 16, 32, 64]

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
alone = of_noise("drawn", "alone")
rows = [statistics.mean_interval(column) for column in alone.T]
blue, orange, green = (plots.PALETTE[name] for name in ("blue", "orange", "green"))
left.axhline(0.5, color=plots.GREY, linestyle=":")
left.errorbar(range(1, 11), [row.estimate for row in rows], color=blue, marker="o", capsize=3,
              yerr=[[r.estimate - r.low for r in rows], [r.high - r.estimate for r in rows]])
left.set(xlabel="tenth of the pairs, weakest first", xticks=range(1, 11), ylim=(0, 1))
left.set_ylabel("accuracy of a model trained on it")
left.set_title("Some labels teach the opposite")
plots.label(left, 6, 0.5, "guessing", plots.GREY, xytext=(0, -9))
for name, colour, marker in (("judge's features", green, "o"), ("words", orange, "v")):
    curves = of_reader(name, "truth")
    rows = [statistics.mean_interval(column) for column in curves.T]
    plots.interval_band(right, sizes, [r.low for r in rows], [r.high for r in rows], colour)
    right.semilogx(sizes, [r.estimate for r in rows], color=colour, marker=marker, base=2)
    plots.label(right, 16, rows[4].estimate, name, colour, xytext=(4, -14 if marker == "o" else 20))
right.set(xticks=sizes, xticklabels=sizes, xlabel="best of n by the reward model")
right.set(ylabel="true reward of the pick", title="Searching hard: what was read matters")
plots.show(drawn, alt="""Left: accuracy of reward models trained on one tenth of the pairs,
    by the strength that an ensemble votes: the three weakest lie near one quarter, the others between
    0.7 and 0.8. Right: true reward of the best of n: a model that reads the judge's features climbs
    steadily, one that sees words alone stops near 8 and falls on average. Five seeds, 95 %.""")

# %% [markdown]
# Left: 2,000 comparisons, a fifth of the labels turned round, cut into tenths by a vote of reward models. A model trained on one of the three weakest tenths alone learns the *opposite* of the truth. Right: two reward models
# choose among n texts. By the end you can say why one of them gets stuck.

# %% [markdown]
# ## 1 · Derive
#
# *Question: what changes when the score becomes a function $r_\phi(x, y)$ of prompt and text?* The probability stays Bradley–Terry, and so does the loss of a comparison:
#
# $$L = -\log\sigma\big(r_\phi(x,y_w)-r_\phi(x,y_l)\big).$$
#
# Write $d$ for the difference and $P$ for the judge's probability that $y_w$ wins. The expected loss is $-P\log\sigma(d)-(1-P)\log\sigma(-d)$, its derivative $\sigma(d)-P$: the minimum is at $d=\operatorname{logit}P$.
#
# Both texts of a comparison answer the **same prompt**. Adding any $c(x)$ to the reward changes no difference: not one constant is free, but one for each prompt. *Predict: with three prompts of five
# responses each, how many directions of the table of rewards are flat?*

# %%
finite = FiniteWorld.random(prompts=3, responses=5, seed=1)


def expected_loss(rewards, judge, loss=objectives.bt):
    """The mean loss over all ordered pairs of different responses, weighted by the judge."""
    first, second = torch.broadcast_tensors(rewards.unsqueeze(-1), rewards.unsqueeze(-2))
    different = 1 - torch.eye(rewards.shape[1], dtype=torch.float64)
    return (different * judge * loss(first, second)).sum() / different.sum() / len(rewards) * 2


curvature = torch.autograd.functional.hessian(
    lambda flat: expected_loss(flat.reshape(3, 5), finite.preference), finite.reward.flatten())
flat = int((torch.linalg.eigvalsh(curvature) < 1e-10).sum())
claim("02.flat", "this course",
      "flat directions of the expected loss: one constant for each of 3 prompts",
      expected=3, measured=flat, tolerance=0)

# %% [markdown]
# So rewards of different prompts cannot be compared. A mean reward over prompts is meaningful only as a *difference* between two policies on the same prompts.
#
# ## 2 · Implement
#
# The loss takes one more ingredient below: a **margin** $m$, by which the chosen response has to lead (Llama 2). *Predict: does a margin leave differences at the judge's log-odds?*

# %% [markdown] exercise="02.1" part="task" stars=1 minutes=5
# ### The loss with a margin
# Return $-\log\sigma(r_w - r_l - m)$ for each comparison.

# %% exercise="02.1" part="stub"
def margin_loss(reward_chosen: Tensor, reward_rejected: Tensor, margin: Tensor) -> Tensor:
    """One loss for each comparison."""
    raise NotImplementedError


# %% exercise="02.1" part="check"
check("02.1", margin_loss)

# %% [markdown] exercise="02.1" part="hints"
# 1. Subtract the margin from the difference before the sigmoid.
# 2. `logsigmoid` stays exact where `log(sigmoid(x))` underflows.
# 3. No mean: the trainer takes it.

# %% exercise="02.1" part="solution"
def margin_loss(reward_chosen: Tensor, reward_rejected: Tensor, margin: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(reward_chosen - reward_rejected - margin)


check("02.1", margin_loss)

# %% [markdown]
# On text, $r_\phi$ is a language model whose last hidden state goes through one linear layer to a number. We take the pocket model, all of whose weights are trained, and give it a few seconds.
# The test is on comparisons that it has not seen.

# %% tags=["nbval-ignore-output"]
world = pocket.load_world("bradley_terry")
pairs = preferences.draw_pairs(world, 1000, seed=0)
held_out = preferences.draw_pairs(world, 400, seed=1)
reward_model = LanguageRewardModel(copy.deepcopy(world.model).requires_grad_(True), world.tokenizer)
settings = TrainingSettings(steps=60, batch_size=32, learning_rate=3e-3, schedule="linear", warmup=10,
                            clip_gradient=1.0)
before = (reward_differences(reward_model, held_out) > 0).double().mean()
print(train(reward_model, pairs, "bt", settings=settings, progress=False))
after = (reward_differences(reward_model, held_out) > 0).double().mean()
print(f"held-out accuracy: before {float(before):.2f}, after {float(after):.2f}")

samples = world.draw(None, per_prompt=12, seed=5)
rewards = reward_model.reward(samples.prompts, samples.responses)
for x in (4, 14):
    rows = torch.arange(12 * x, 12 * x + 12)
    for word, row in (("best", rows[rewards[rows].argmax()]), ("worst", rows[rewards[rows].argmin()])):
        print(f"{word} of 12 by the reward model ({float(rewards[row]):+.1f}):")
        world.show([(samples.prompts[row], samples.responses[row])])

# %% [markdown]
# Judge by eye: does the reward model's favourite *answer the question*, or is it only polite? Keep your verdict for section 5.
#
# ## 3 · Verify against the exact optimum
#
# In the finite world the expectation is a sum over all pairs, and the reward a table. Its minimum has to be the true reward, once both sum to zero for every prompt.

# %%
def population_fit(judge, loss=objectives.bt, penalty=lambda rewards: 0.0):
    """The table of rewards with the smallest expected loss; every prompt's rewards then sum to zero."""
    rewards = torch.zeros(judge.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=200, tolerance_grad=1e-9,
                                  tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = expected_loss(rewards, judge, loss) + penalty(rewards)
        value.backward()
        return value

    optimizer.step(closure)
    return rewards.detach() - rewards.detach().mean(1, keepdim=True)


truth = finite.reward - finite.reward.mean(1, keepdim=True)
found = population_fit(finite.preference)
claim("02.recover", "Bradley & Terry (1952); Ouyang et al. (2022)",
      "the expected loss is smallest at the true reward, up to a constant per prompt (largest error)",
      expected=0, measured=float((found - truth).abs().max()), tolerance=1e-6)

# %% [markdown]
# **Fixing the constant.** TRL's `center_rewards_coefficient` adds $c\,(r_w+r_l)^2$ (Eisenstein et al. 2023, equation 2). With two responses it fixes the constant and nothing else. With $Y$ responses whose
# rewards sum to zero, all pairs equally likely, expand the square:
#
# $$\frac{\sum_{a\neq b}(r_a+r_b)^2}{Y(Y-1)}=\frac{2(Y-1)\sum r_a^2-2\sum r_a^2}{Y(Y-1)}=\frac{2(Y-2)}{Y(Y-1)}\sum_a r_a^2 .$$
#
# It is a ridge. *Predict: does it move differences?*

# %%
def in_trl(rewards):
    return expected_loss(rewards, torch.full((5, 5), 0.5), lambda first, second: (first + second) ** 2)


def ridge(rewards):
    return 2 * 3 / (5 * 4) * rewards.square().sum(1).mean()


def slope(penalty):
    fitted = population_fit(finite.preference, penalty=lambda rewards: 0.01 * penalty(rewards))
    return float((fitted * truth).sum() / truth.square().sum())


print(f"the penalty, and the ridge: {float(in_trl(truth)):.6f} {float(ridge(truth)):.6f}")
claim("02.centring", "a natural reading of TRL's center_rewards_coefficient",
      "at 0.01 the penalty centres and leaves the differences as they are (slope on the truth, Y = 5)",
      expected=1, measured=slope(in_trl), tolerance=1e-4, corrected=slope(ridge),
      correction="true for two responses; with more it shrinks differences as the ridge does")

# %% [markdown]
# **Noise.** Turn each label round with probability $\varepsilon$. The judge becomes $P'=(1-\varepsilon)P+\varepsilon(1-P)$, and rewards fit its log-odds.
#
# *Predict: with unlimited data, does noise change the **order** of responses?* At the minimum, $\sum_b\sigma(s_a-s_b)=\sum_b P'_{ab}$ (lesson 01: expected wins equal observed wins), so scores are ordered as average win rates, and noise maps
# those by the increasing line $\varepsilon+(1-2\varepsilon)P$. The order survives, when all pairs are equally frequent.

# %%
changed = 0
for seed in range(20):
    one = FiniteWorld.random(prompts=3, responses=5, seed=seed)
    noisy_fit = population_fit(preferences.with_label_noise(one.preference, 0.2))
    changed += int((noisy_fit.argsort(1) != one.reward.argsort(1)).sum())
claim("02.order", "this course",
      "labels wrong at rate 0.2 change no order, given unlimited data (changed places, 20 worlds)",
      expected=0, measured=changed, tolerance=0)

# %% [markdown] exercise="02.2" part="task" stars=2 minutes=10
# ### The loss that undoes known noise
# Suppose the rate of wrong labels is known. Return, for each comparison, minus the log-probability of the label **as it was seen**, when the clean difference is `difference`.

# %% exercise="02.2" part="stub"
def corrected_loss(difference: Tensor, rate: float) -> Tensor:
    """One loss for each comparison."""
    raise NotImplementedError


# %% exercise="02.2" part="check"
check("02.2", corrected_loss)

# %% [markdown] exercise="02.2" part="hints"
# 1. The seen label says “chosen” if a right label or a wrong one put it there.
# 2. Mix two probabilities first; take the logarithm last.
# 3. Label smoothing mixes two logarithms: that is another loss.

# %% exercise="02.2" part="solution"
def corrected_loss(difference: Tensor, rate: float) -> Tensor:
    win = torch.sigmoid(difference)
    return -torch.log((1 - rate) * win + rate * (1 - win))


check("02.2", corrected_loss)

# %%
rate, margin, win = 0.2, 1.0, 0.75
noisy = preferences.with_label_noise(finite.preference, rate)


def likelihood_of_seen(first, second):
    return -torch.log(rate + (1 - 2 * rate) * torch.sigmoid(first - second))


undone = population_fit(noisy, likelihood_of_seen)
claim("02.undone", "Patrini et al. (2017): forward correction",
      "the likelihood of the labels as seen gives back the clean rewards (largest error)",
      expected=0, measured=float((undone - truth).abs().max()), tolerance=1e-5)
pair = FiniteWorld.from_rewards([[0.5, 0.5]], [[2.0, 0.0]])
smooth = population_fit(preferences.with_label_noise(pair.preference, rate),
                        lambda a, b: objectives.bt(a, b, label_smoothing=rate))
twice = float(torch.logit(0.5 + (1 - 2 * rate) ** 2 * (torch.sigmoid(torch.tensor(2.0)) - 0.5)))
claim("02.smoothing", "a common reading of label smoothing",
      "smoothing at the rate of the noise gives back the clean difference of 2",
      expected=2, measured=float(smooth[0, 0] - smooth[0, 1]), tolerance=1e-4, corrected=twice,
      correction="smoothing shrinks a second time, to logit(1/2 + (1 - 2 rate)^2 (P - 1/2))")

# %% [markdown]
# Smoothing is a guard against certainty, not a cure of noise. And the **margin**? With odds $R=P/(1-P)$ and $k=e^{-m}$, the derivative vanishes where $R=(1+ke^{d})/(1+ke^{-d})$, a quadratic in $e^d$:
#
# $$d=\log\frac{R-1+\sqrt{(R-1)^2+4Rk^2}}{2k}.$$

# %%
fitted = population_fit(torch.tensor([[[0.5, win], [1 - win, 0.5]]], dtype=torch.float64),
                        lambda a, b: objectives.bt(a, b, margin))
odds, k = win / (1 - win), math.exp(-margin)
asked = math.log((odds - 1 + math.sqrt((odds - 1) ** 2 + 4 * odds * k**2)) / (2 * k))
claim("02.margin_scale", "the margin of Llama 2 (2023), read as a likelihood",
      "with a margin of 1 for whoever is chosen, the difference is still the log-odds of P = 0.75",
      expected=math.log(odds), measured=float(fitted[0, 0] - fitted[0, 1]), tolerance=1e-4,
      corrected=asked, correction="it is stretched to the root of the quadratic above")

# %% [markdown]
# A margin stretches: σ of a difference is then no longer a probability.
#
# ## 4 · Break it on purpose
#
# **Search.** Draw n responses and keep the one that a proxy likes best. Drawing all n again for every n wastes them: from N scored responses every subset counts.

# %% [markdown] exercise="02.3" part="task" stars=2 minutes=15
# ### Best of n, from one sample
# `proxy` and `truth` score the same N responses to one prompt. Return the expected truth of the pick by proxy among n of them, drawn without replacement. No two proxies are equal.

# %% exercise="02.3" part="stub"
def best_of_n(proxy: Tensor, truth: Tensor, n: int) -> float:
    """The expected truth of the best of n by the proxy."""
    raise NotImplementedError


# %% exercise="02.3" part="check"
check("02.3", best_of_n)

# %% [markdown] exercise="02.3" part="hints"
# 1. Sort by the proxy. When does the i-th smallest win a subset?
# 2. It has to be in it, and the other n − 1 come from the i − 1 below it.
# 3. Its weight is C(i−1, n−1) / C(N, n): `math.comb`.

# %% exercise="02.3" part="solution"
def best_of_n(proxy: Tensor, truth: Tensor, n: int) -> float:
    ordered = truth[proxy.argsort()]
    weights = [math.comb(place, n - 1) / math.comb(len(proxy), n) for place in range(len(proxy))]
    return float(torch.tensor(weights, dtype=ordered.dtype) @ ordered)


check("02.3", best_of_n)

# %% [markdown]
# Three proxies that read the surface, next to the true judge: *flattery* counts flattering adjectives, *length* counts words, *surface* also likes right answers and politeness. *Predict for each: does the true reward rise, or fall, as n grows?*
#
# The horizontal axis is how far the pick's distribution can be from the reference, an upper bound (Beirami et al.), loose where scores tie or a response is drawn twice. Read what the search finds:

# %%
table = world.reference_table()  # features of 1,024 responses to each of 24 prompts


def search(judge, blocks=8):
    """Best of n by this judge: its own score and the true reward, [block, n], blocks of 128."""
    proxy, true = (world.with_judge(name).judge.reward_of(table) for name in (judge, "bradley_terry"))
    generator = torch.Generator().manual_seed(0)  # equal scores are put in random order
    ranked = proxy + 1e-9 * torch.rand(proxy.shape, generator=generator, dtype=torch.float64)
    curves = []
    for part in torch.arange(table.shape[1]).reshape(-1, blocks).T:
        order = ranked[:, part].argsort(1)
        weights = torch.tensor([[math.comb(i, n - 1) / math.comb(len(part), n)
                                 for i in range(len(part))] for n in sizes], dtype=torch.float64)
        curves.append([weights @ score[:, part].gather(1, order).mean(0) for score in (proxy, true)])
    return [torch.stack(rows) for rows in zip(*curves)]


found = {name: search(name) for name in ("flattery", "length", "surface", "bradley_terry")}

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.5)
looks = {"flattery": ("pink", "v"), "length": ("sand", "s"), "surface": ("orange", "D"),
         "bradley_terry": ("green", "o")}
names = {"bradley_terry": "the true judge"}
distance = [math.log(n) - (n - 1) / n for n in sizes]
for name, (colour, marker) in looks.items():
    colour = plots.PALETTE[colour]
    for axes, curves in zip((left, right), found[name]):
        if axes is left:
            curves = curves / (curves[:, -1:] - curves[:, :1]).mean()
            curves = curves - curves[:, :1].mean()
        rows = [statistics.mean_interval(column) for column in curves.T]
        plots.interval_band(axes, distance, [r.low for r in rows], [r.high for r in rows], colour)
        axes.plot(distance, [r.estimate for r in rows], color=colour, marker=marker)
        if axes is right:
            plots.label(axes, distance[-1], rows[-1].estimate, names.get(name, name), colour)
left.set(xlabel="log n − (n − 1)/n, nats", ylabel="share of its gain at n = 64")
left.set_title("Every proxy is satisfied …")
right.set(xlabel="log n − (n − 1)/n, nats", ylabel="true reward", xlim=(-0.1, 4.6))
right.set_title("… and the true reward is not")
plots.show(drawn, alt="""Left: the score of each proxy rises with search, for all four alike. Right: the
    true reward of the pick rises when the true judge searches; under surface,
    length and flattery it rises until n is about 8, and then falls. Bands over eight blocks of 128.""")

# %%
for name in ("flattery", "length", "surface"):
    proxy, true = (curves.mean(0) for curves in found[name])
    shown = [round(float(value), 2) for value in true]
    print(f"{name:9} proxy {proxy[0]:5.2f} to {proxy[-1]:5.2f}; true", shown)
fall = statistics.mean_interval(found["flattery"][1][:, -1] - found["flattery"][1][:, 0])
claim("02.goodhart", "Gao et al. (2022); this course",
      "best of 64 by flattery has a lower true reward than a random response (difference, 8 blocks)",
      expected=0, relation="at most", measured=fall.estimate, interval=fall)
turn = statistics.mean_interval(found["surface"][1][:, -1] - found["surface"][1][:, 3])
claim("02.turn", "Gao et al. (2022); this course",
      "search by surface helps at first and then harms: true reward at n = 64 less n = 8 (8 blocks)",
      expected=0, relation="at most", measured=turn.estimate, interval=turn)
n = 8
picked = finite.best_of_n(n)
claim("02.bon_kl", "Beirami et al. (2024)",
      "KL(best of 8 || reference) is at most log 8 - 7/8 in the finite world (nats)",
      expected=math.log(n) - (n - 1) / n, relation="at most",
      measured=finite.kl(picked, finite.reference))

# %% tags=["nbval-ignore-output"]
drawn_texts = world.draw(None, per_prompt=64, seed=8)
for name in ("flattery", "length", "surface", "bradley_terry"):
    scores = world.with_judge(name).reward_of(drawn_texts.prompts, drawn_texts.responses).reshape(-1, 64)
    row = 2 * 64 + int(scores[2].argmax())
    print(f"the best of 64 by {names.get(name, name)}:")
    world.show([(drawn_texts.prompts[row], drawn_texts.responses[row])])

# %% [markdown] exercise="02.4" part="task" stars=3 minutes=25 open=true
# ### A proxy that survives
# Write a proxy, `pocket.RewardJudge("mine", pocket.weighted(tone=1.0))` for example, that may **not** read `correct`, and make the true reward at n = 64 as high as you can; `search` takes it. Then say, without the truth, how you would have noticed
# that a proxy goes wrong.

# %% [markdown] exercise="02.4" part="hints"
# 1. What correlates with the true reward among reference responses may do so only in the middle of the range.
# 2. A cap, a penalty for too much, beats a larger weight. Instead of `pocket.weighted` you may give any function of the features [..., 9], in the order of `pocket.FEATURE_NAMES`.
# 3. Signs without the truth: disagreement of an ensemble, one feature racing off, texts that you would not send.

# %% [markdown] exercise="02.4" part="solution"
# A good answer reports the true reward over n with an interval for at least two proxies of equal quality at n = 2, chooses on one half of the table and reports on the other, and shows texts. It notices that linear weights on `flattery` or
# `details` run off, while `tone` cannot. As a warning it plots a feature that nobody rewards, or the spread of several reward models, against n.

# %% [markdown]
# ## 5 · On the bench with the others
#
# **Four readers** of the same 2,000 comparisons: words alone; words with their prompt; the judge's nine features; the pocket language model. Two controls were never trained: length, and the reference's log-probability. Nobody
# can predict single verdicts more often, on average, than one who knows every $P$: $\mathbb E\max(P,1-P)$, the ceiling. Intervals are over five trainings; the held-out verdicts stay the same, so untrained controls have no spread.

# %%
ceiling = float(of_reader("words", "bayes")[0])
print(f"the ceiling, E max(P, 1 - P): {ceiling:.3f}")
everybody = list(dict.fromkeys(run["reader"] for run in readers))
for name in everybody:
    held = statistics.mean_interval(of_reader(name, "accuracy"))
    trained = float(of_reader(name, "train_accuracy").mean())
    wrong = float(of_reader(name, "calibration_error").mean())
    print(f"{name:26} held-out {held}, training {trained:.2f}, calibration error {wrong:.3f}")

agreement = statistics.wilson_interval(round(float(of_reader("words", "bayes_here")[0]) * 2000), 2000)
print(f"knowing the true judge, on these 2,000 verdicts: {agreement}")
best = statistics.mean_interval(of_reader("judge's features", "accuracy") - agreement.estimate)
claim("02.features", "this course",
      "a network on the judge's features comes within 0.02 of the true judge's accuracy (5 seeds)",
      expected=-0.02, relation="at least", measured=best.estimate, interval=best)
gap = statistics.paired_bootstrap(*(of_reader(one, "accuracy") for one in ("language model", "words")))
claim("02.language", "the reader's likely guess",
      "the pocket language model with a head beats a bag of words (paired difference, 5 seeds)",
      expected=0, relation="at least", measured=gap.difference.estimate, interval=gap.difference)

# %%
for name in ("words", "words and prompt", "judge's features", "language model"):
    truth_of, right = of_reader(name, "truth").mean(0), of_reader(name, "correct").mean(0)
    print(f"{name:17} true reward at n = 1, 8, 64:", [round(float(truth_of[i]), 2) for i in (0, 3, 6)],
          "right less wrong:", [round(float(right[i]), 2) for i in (0, 3, 6)])
turn = statistics.mean_interval(of_reader("words", "truth")[:, 6] - of_reader("words", "truth")[:, 3])
claim("02.over", "Gao et al. (2022); this course",
      "a learned reward is over-optimised too: words alone, true reward at n = 64 less n = 8 (5 seeds)",
      expected=0, relation="at most", measured=turn.estimate, interval=turn)
one = next(run for run in readers if run["reader"] == "words" and run["seed"] == 0)
print("\nthe best of 96 by words alone:")
world.show(one["texts"])

# %% [markdown]
# An accuracy is not a safety certificate. Words alone and the small language model agree with the judge about equally often (who more is undecided); searched, their right answers part. A bag of words cannot tell whether an answer fits
# its prompt: right answers give way to wrong ones. Whether its *true reward* turns down is undecided.
#
# **Label noise**, after *Secrets of RLHF II*. Six models vote; their mean difference is a pair's **strength**. *Drop* and *flip* treat the weakest fifth; *soft* smooths by 0.4 where strength is negative, *smooth* by 0.2 everywhere; *margin* is the strength. Controls: *early stop* at 60 of 300 steps, *ensemble mean* of the voters. Accuracy: the *true order*. *Predict: who wins?*

# %%
def after(labels, remedy, column="order"):
    rows = [run["remedies"][remedy][column] for run in noise if run["labels"] == labels]
    return torch.tensor(rows).double()


for labels in ("order", "drawn"):
    below = float(of_noise(labels, "negative").mean())
    print(f"labels {labels!r}, 20 % turned: strength below zero in {below:.0%}; by tenth:")
    for column in ("turned", "against_the_order", "alone"):
        print(f"  {column:17}", [round(float(value), 2) for value in of_noise(labels, column).mean(0)])

# %% tags=["figure"]
remedies = list(noise[0]["remedies"])


def better(labels, remedy, other, column="order"):
    pair = [after(labels, each, column) for each in (remedy, other)]
    return statistics.paired_bootstrap(*pair).difference


drawn, both = plots.figure(2, width=4.9, height=4.0, sharey=True)
for axes, labels in zip(both, ("order", "drawn")):
    for row, name in enumerate(remedies[1:]):
        gain = better(labels, name, "nothing")
        control = name in ("early stop", "drop at random", "ensemble mean", "clean labels")
        colour = plots.GREY if control else blue
        axes.errorbar(gain.estimate, row, fmt="s" if control else "o", color=colour, capsize=3,
                      xerr=[[gain.estimate - gain.low], [gain.high - gain.estimate]])
    axes.axvline(0, color=plots.INK, linewidth=1)
    axes.set(yticks=range(len(remedies) - 1), yticklabels=remedies[1:])
    axes.set(xlabel="accuracy gained over doing nothing")
both[0].set_title("The true order, 20 % turned round")
both[1].set_title("The judge's own draws, 20 % turned")
plots.show(drawn, alt="""Accuracy gained by each remedy over doing nothing, five seeds, 95 % intervals,
    two kinds of labels. Clean labels gain most. The ensemble mean, flipping, dropping, soft labels
    and margins gain about alike, early stopping a little less; smoothing and random dropping lose.""")

# %%
alone, source = of_noise("drawn", "alone"), "Wang et al. (2024)"
low = statistics.mean_interval(alone[:, :2].mean(1))
claim("02.bottom", source, "trained on the weakest 20 % alone, accuracy is below one half (5 seeds)",
      expected=0.5, relation="at most", measured=low.estimate, interval=low)
middle = statistics.mean_interval(alone[:, 2:4].mean(1))
claim("02.middle", source, "the third and fourth tenth, one by one: mean accuracy one half (5 seeds)",
      expected=0.5, measured=middle.estimate, interval=middle)
above = statistics.mean_interval(alone[:, 4:9].mean(1) - alone[:, 9])
claim("02.top", source,
      "the strongest tenth alone is not the best: tenths 5 to 9 less tenth 10 (5 seeds)",
      expected=0, relation="at least", measured=above.estimate, interval=above)

# %%
both_kinds = torch.cat([after(kind, "drop") - after(kind, "flip") for kind in ("order", "drawn")])
versus = statistics.bootstrap_interval(both_kinds, seed=0, method="expanded")
claim("02.drop_flip", "this course",
      "dropping the weakest fifth beats flipping it, accuracy (paired, 5 seeds of two kinds of labels)",
      expected=0, relation="at least", measured=versus.estimate, interval=versus)
for id, remedy, other, text in (
        ("02.margin", "margin", "nothing", "a margin of the voted strength helps"),
        ("02.smooth", "smooth", "nothing", "label smoothing at the rate of the noise helps"),
        ("02.early", "drop", "early stop", "dropping beats stopping early on all labels (the control)")):
    gain = better("drawn", remedy, other)
    claim(id, "Wang et al. (2024)" if id != "02.early" else "this course",
          f"{text} (accuracy, paired, 5 seeds)", expected=0, relation="at least",
          measured=gain.estimate, interval=gain)
honest = better("drawn", "flip", "soft", "calibration_error")
claim("02.certain", "this course",
      "flipping leaves a larger calibration error than soft labels (paired, 5 seeds)",
      expected=0, relation="at least", measured=honest.estimate, interval=honest)

# %%
for remedy in remedies:
    accuracy, error = (float(after("drawn", remedy, column).mean())
                       for column in ("order", "calibration_error"))
    those = [run["remedies"][remedy] for run in noise if run["labels"] == "drawn"]
    said, happened = (sum(one[column][-1] for one in those) / 5 for column in ("said", "happened"))
    print(f"{remedy:16} accuracy {accuracy:.3f}, calibration error {error:.3f};",
          f"where surest, says {said:.2f}, right in {happened:.2f}")

# %% [markdown]
# The textbook curve says less than it seems. With true-order labels only a quarter of the third tenth were turned, yet it teaches the opposite: sorting by the vote *selects* pairs whose chosen text looks worse. “20 to 40 % is chance” averages a tenth far below and one far above, and just misses. The controls are sobering: on the judge's draws stopping early
# gives most of what remedies give, the mean of the voters nearly all. Smoothing costs accuracy. Whether dropping beats flipping is undecided; it has hardly any room to be worse.
#
# Flipping and dropping teach certainty: the vote removes honest disagreement along with errors. Stopping early leaves probabilities timid; soft labels and voted margins keep them.

# %% [markdown]
# ## When to use it
#
# Use a reward model when texts must be scored that nobody compared: best of n, RL, filtering. First ask what it can read; then its ceiling; only then its accuracy. Vote when labels are poor and
# models overfit; if stopping early costs you nothing, try that first. Soft labels keep probabilities honest.
#
# **In TRL 1.16** `RewardTrainer` minimises `-logsigmoid(chosen - rejected - margin)`; the margin is a *column* of the data set. `RewardConfig.center_rewards_coefficient` is section 3's ridge (default none, advice 0.01). It has no label smoothing and
# no voting; `accuracy` and `margin` in its logs are of training batches; `margin` is the mean difference, not the column.
#
# ## What we measured

# %%
ledger.rows("02")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | rewards of two prompts compared | each prompt has a constant of its own: compare within a prompt |
# | 80 % accuracy called poor | look at the ceiling: single verdicts are noisy |
# | σ(difference) is too certain | flipped or dropped labels, a constant margin, or too many steps |
# | training accuracy 100 %, held-out falling | wrong labels learnt by heart: stop early, or vote |
# | reward climbs, texts get worse | the proxy is searched beyond what it reads: look at n, at features, at texts |

# %% [markdown]
# ## References
#
# - L. Ouyang et al. (2022). *InstructGPT*: the loss of a reward model.
# - H. Touvron et al. (2023). *Llama 2*: the margin.
# - B. Wang et al. (2024). *Secrets of RLHF II*, arXiv 2401.06080: votes, flip, smoothing, margin. Its numbers were not available to us; its statements are tested.
# - J. Eisenstein et al. (2023). *Helping or Herding?*, arXiv 2312.09244, equation (2): centring.
# - N. Natarajan et al. (2013), G. Patrini et al. (2017): losses that undo label noise.
# - L. Gao et al. (2022). *Scaling Laws for Reward Model Overoptimization.*
# - A. Beirami et al. (2024), arXiv 2401.01879: best of n.
#
# ## Next
#
# **03 · The RLHF target**: instead of choosing among n texts, train a policy to be rewarded, on a leash.
