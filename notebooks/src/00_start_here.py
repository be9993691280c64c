# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Start here", world: pocket, gpu: none}
# ---

# %% [markdown]
# # 00 · Start here
#
# In the next minute you align a policy with preferences, from the first comparison to the last number, and hold the result against the truth. Then: how this course works, and which way through it is yours.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. name the parts of every alignment method: world, feedback, policy, objective, evaluation;
# 2. compute a win rate, a KL divergence and the classical target exactly;
# 3. read a row of the claims ledger;
# 4. choose your path.
#
# ## Prerequisites
#
# Python, and what a probability distribution is. About 40 minutes with the exercises. Test yourself:
#
# <details><summary>If p = (½, ½) and q = (¼, ¾), is KL(p‖q) the same as KL(q‖p)?</summary>No: 0.144 against 0.131 nats. The order matters.</details>
# <details><summary>What does softmax do to logits if you add 3 to each of them?</summary>Nothing: the three cancels.</details>
#
# *Not covered:* how language models work.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import torch

from course_utils import doctor, ledger, objectives, plots, policies, preferences, statistics
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.training import TrainingSettings, train
from course_utils.worlds import pocket
from course_utils.worlds.finite import FiniteWorld

# %% [markdown]
# ## A whole alignment in one minute
#
# **The world.** One prompt, eight possible answers. `reference` is how often the assistant gives each answer before any feedback; `reward` is how much a
# careful reader likes it. The reader is a *judge*: shown two answers, they prefer $a$ to $b$ with probability $\sigma(r_a - r_b)$, where $\sigma(x)=1/(1+e^{-x})$.

# %%
answers = ["Throw it away.", "Plants die.", "Water it.", "Give it light.", "Check the soil first.",
           "Water when the soil is dry.", "Talk to it.", "Move it, water it, wait."]
world = FiniteWorld.from_rewards(
    reference=[0.18, 0.16, 0.22, 0.14, 0.12, 0.08, 0.06, 0.04],
    reward=[-2.0, -1.6, 0.4, 0.2, 1.0, 1.8, -0.8, 1.4],
    prompts=["My basil is wilting. What should I do?"], responses=answers)
truth = world.preferred_distribution()[0]

# %% [markdown]
# **The feedback.** The assistant answers twice, the judge picks one: a thumb up and a thumb down. We keep the thumbs and forget who met whom.
#
# **The policy** is a table of logits that starts at the reference. **The objective** here is RDRO, the method that this course leads to in lesson 11.
# **Training** is the usual loop. That is all of alignment, in a dozen lines. *Predict before you look: which answer's probability falls most, and does the best answer become the most frequent one?*

# %%
def align(objective, feedback, steps=100):
    """Train a table, starting at the reference, on thumbs up and thumbs down."""
    policy = policies.TablePolicy.from_probabilities(world.reference)
    ref = policy.log_prob(feedback.prompt, feedback.response).detach()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.2)
    for _ in range(steps):
        log_prob = policy.log_prob(feedback.prompt, feedback.response)
        losses = objective(log_prob, ref, feedback.preferred)
        loss = objectives.classwise_mean(losses, feedback.preferred)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.probabilities()[0].detach()


thumbs = preferences.draw_unpaired(world, 4_000, seed=1)
aligned = align(objectives.rdro, thumbs)

# %% tags=["figure"]
drawn, axes = plots.figure(width=8.2, height=3.9)
rows, green = torch.arange(8), plots.look("rdro").color
axes.barh(rows + 0.19, world.reference[0], height=0.36, color=plots.GREY)
axes.barh(rows - 0.19, aligned, height=0.36, color=green)
axes.plot(truth, rows - 0.19, "|", color=plots.INK, markersize=15, markeredgewidth=2.5)
axes.set(yticks=rows, yticklabels=answers, xlabel="probability of the answer", xlim=(0, 0.3))
axes.set_title("Before, after 4,000 thumbs, and the truth it should equal")
axes.invert_yaxis()
plots.label(axes, 0.18, 0.19, "before", plots.GREY)
plots.label(axes, float(aligned[0]), -0.19, "after", green, xytext=(8, 0))
plots.label(axes, float(truth[5]), 4.81, "| the truth", xytext=(8, 0))
plots.show(drawn, alt="""Bars for eight answers to: my basil is wilting. Grey bars show the assistant
    before, green bars after training on 4,000 thumbs. Bad answers shrink, good ones grow, and every
    green bar ends within 0.006 of a black mark, the true preferred distribution.""")

# %% [markdown]
# Green ends near the black marks. How near, in numbers:

# %%
print(f"KL(truth || before) = {world.kl(truth):.4f} nats")
print(f"KL(truth || after)  = {world.kl(truth, aligned):.4f} nats")
for name, policy in [("before", world.reference), ("after", aligned[None]), ("truth", truth[None])]:
    print(f"win rate against the assistant, {name:6}: {world.win_rate(policy):.4f}")

# %% [markdown]
# “Throw it away.” falls most. The most frequent answer is still “Water it.”: feedback reweighs what the assistant already says, it does not invent. That is the first
# thing to know about alignment, and the reason that every lesson keeps an eye on the reference.

# %% [markdown]
# ## Why that is the truth
#
# Write $W(y)$ for the win rate of an answer against the reference, $W(y)=\sum_{y'}\pi_\text{ref}(y')P(y\succ y')$. An answer collects a thumb up when it is drawn *and* wins, from either side of the comparison, so
#
# $$p_+(y) = 2\,\pi_\text{ref}(y)\,W(y), \qquad p_-(y) = 2\,\pi_\text{ref}(y)\,\bigl(1-W(y)\bigr).$$
#
# When both answers come from the reference, preferred and rejected average to it, whoever judges. RDRO estimates the ratio $p_+/\pi_\text{ref}$.

# %%
liked, disliked = world.preferred_distribution(), world.rejected_distribution()
pairs = world.reference[0][:, None] * world.reference[0]  # the chance of each of the 64 pairs
wins_first = pairs * world.preference[0]
counted = wins_first.sum(1) + (pairs - wins_first).sum(0)  # thumbs up as first and as second
claim("00.mixture", "this course", "thumbs up, counted over all 64 pairs, are 2 p_ref W (largest error)",
      expected=0, measured=float((counted - liked[0]).abs().max()), tolerance=1e-12)
minimiser = world.population_minimiser("rdro", alpha=0.5)
claim("00.rdro", "Takahashi et al. (2026), abstract",
      "with unlimited feedback RDRO returns the preferred distribution (largest error)",
      expected=0, measured=float((minimiser - liked).abs().max()), tolerance=1e-6)
wins = world.win_rate_of_responses()
spread = float((world.reference * (wins - 0.5) ** 2).sum())
claim("00.win_rate", "this course",
      "the preferred distribution beats the reference with probability 1/2 + 2 Var W",
      expected=0.5 + 2 * spread, measured=world.win_rate(liked), tolerance=1e-12)

# %% [markdown]
# Each row is a **claim**: who makes it, what was expected, what your machine just measured, and a verdict computed from the two: *holds*, *holds with a correction*, *does not hold*, or *undecided*, when the interval lies on both sides of what was claimed. All four occur;
# published claims are not exempt.

# %% [markdown] exercise="00.1" part="task" stars=1 minutes=5
# ### The win rate of a policy
# Both arguments `policy` and `reference` are probabilities over answers; `preference[a, b]` is the probability that `a` is preferred to `b`. Draw one answer from each: how often does the policy's win?

# %% exercise="00.1" part="stub"
def win_rate(policy: torch.Tensor, reference: torch.Tensor, preference: torch.Tensor) -> float:
    """The probability that the policy's answer is preferred to the reference's."""
    raise NotImplementedError


# %% exercise="00.1" part="check"
check("00.1", win_rate)

# %% [markdown] exercise="00.1" part="hints"
# 1. Sum over all pairs (a, b): the chance of that pair, times the chance that a wins.
# 2. The chance of the pair is `policy[a] * reference[b]`.
# 3. A double sum of this form is two matrix products.

# %% exercise="00.1" part="solution"
def win_rate(policy: torch.Tensor, reference: torch.Tensor, preference: torch.Tensor) -> float:
    return float(policy @ preference @ reference)


check("00.1", win_rate)

# %% [markdown]
# ## Was it luck, and was it the method?
#
# Two questions that every lesson asks. *Luck:* repeat with fresh feedback and give an interval. *Method:* compare with a **control**. In most lessons it is plain fine-tuning on the chosen answers (SFT). For a table, its best fit is
# the fraction of thumbs up that each answer got, and its error is known: with $n$ thumbs up and $k$ answers, $\mathbb{E}\,\mathrm{KL}(p_+\|\hat p) \approx (k-1)/2n$.

# %%
def control(thumbs):
    """SFT on the chosen, fitted to the end: the fraction of thumbs up of each answer."""
    return torch.bincount(thumbs.response[thumbs.preferred], minlength=8) / (len(thumbs) / 2)


feedback = [preferences.draw_unpaired(world, 4_000, seed) for seed in statistics.seeds(0, 1_000)]
sft = torch.tensor([world.kl(truth, control(thumbs)) for thumbs in feedback])
rdro = torch.tensor([world.kl(truth, align(objectives.rdro, thumbs)) for thumbs in feedback[:20]])
print(f"KL to the truth, RDRO, 20 repeats: {statistics.mean_interval(rdro):.5f}")
print(f"KL to the truth, SFT,  same 20:    {statistics.mean_interval(sft[:20]):.5f}")
print(f"KL to the truth, SFT,  all:        {statistics.mean_interval(sft):.5f}")
blocks = [statistics.mean_interval(sft[i : i + 20]) for i in range(0, 1_000, 20)]
print("intervals of 20 repeats that miss 7/4000:", sum(7 / 4000 not in one for one in blocks), "of 50")

# %%
interval = statistics.mean_interval(sft)
claim("00.control", "theory of multinomial counts",
      "SFT on 2,000 thumbs up errs by (k - 1)/2n = 7/4000 nats (1,000 repeats)",
      expected=7 / 4000, measured=interval.estimate, interval=interval)
gain = statistics.mean_interval(sft[:20] - rdro)
claim("00.gain", "this course",
      "on the same feedback RDRO is closer to the truth than SFT: difference in KL (20 repeats)",
      expected=0, relation="at least", measured=gain.estimate, interval=gain)

# %% [markdown]
# Look at the second line: the interval of the control's first 20 repeats does not hold 7/4000 = 0.00175. Nothing is wrong. A 95 % interval misses about once in twenty times; three of our fifty blocks do, the first among them, and
# 1,000 repeats settle it. Had we stopped at 20, our ledger would say *does not hold*. Remember this when three seeds decide between two methods.
#
# The control gets close: thumbs up alone already contain the answer. RDRO's error is about half, what SFT would reach with twice the feedback: it also uses the thumbs down, and it knows the reference. When that knowledge is false, it loses; lesson 11 shows where.

# %% [markdown] exercise="00.2" part="task" stars=1 minutes=5
# ### The KL divergence
# Write $\mathrm{KL}(p\|q)=\sum_y p(y)\log\frac{p(y)}{q(y)}$, in nats. It is the measure of difference that this course reports (not symmetric, so no distance).

# %% exercise="00.2" part="stub"
def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats."""
    raise NotImplementedError


# %% exercise="00.2" part="check"
check("00.2", kl_divergence)

# %% [markdown] exercise="00.2" part="hints"
# 1. It is an average under p, not a plain average.
# 2. Nats means the natural logarithm.
# 3. Which of the two distributions stands in front of the logarithm?

# %% exercise="00.2" part="solution"
def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum()


check("00.2", kl_divergence)

# %% [markdown]
# ## Break it on purpose
#
# Change one thing and watch. Let the judge be careless: a third of the labels are flipped. The loop is the same. *Predict: does the policy still reach a truth? Which one?*

# %%
noisy = FiniteWorld(world.reference, preferences.with_label_noise(world.preference, 1 / 3))
careless = align(objectives.rdro, preferences.draw_unpaired(noisy, 4_000, seed=2))
its_truth = noisy.preferred_distribution()[0]
print(f"KL to what the careless judge prefers: {world.kl(its_truth, careless):.4f} nats")
print(f"KL to what the careful judge prefers:  {world.kl(truth, careless):.4f} nats")

# %% [markdown]
# It reached the truth of *its* feedback, which is not the truth that we wanted. The thumbs carry no mark of the flips: an objective that is not *told* about them cannot undo them. Keep this cell in mind when somebody reports a reward.
#
# **The classical target** is another one: the policy with the best reward that stays near the reference, $\pi \propto \pi_\text{ref}\,e^{r/\beta}$. Lessons 03 and 04 are about it. Write it down once:

# %% [markdown] exercise="00.3" part="task" stars=2 minutes=8
# ### Tilt a distribution
# Return $\pi(y) = \pi_\text{ref}(y)\,e^{r(y)/\beta}/Z$. Small $\beta$ means: trust the reward; large $\beta$: stay near the reference.

# %% exercise="00.3" part="stub"
def tilt(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The reference, reweighed by exp(reward / beta) and normalised."""
    raise NotImplementedError


# %% exercise="00.3" part="check"
check("00.3", tilt)

# %% [markdown] exercise="00.3" part="hints"
# 1. The reward is divided by beta.
# 2. Multiply by the reference before you normalise.
# 3. `torch.softmax(log(reference) + reward / beta, dim=0)` does both, and never overflows.

# %% exercise="00.3" part="solution"
def tilt(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.softmax(reference.log() + reward / beta, dim=0)


check("00.3", tilt)

# %% tags=["figure"]
drawn, axes = plots.figure(width=6.4, height=3.4)
betas = torch.logspace(-1.5, 1.5, 60, dtype=torch.float64)
optima = [world.rlhf_optimum(float(beta)) for beta in betas]
distance = [world.kl(optimum) for optimum in optima]
axes.plot(distance, [world.win_rate(optimum) for optimum in optima], color=plots.look("rlhf").color)
axes.plot(world.kl(liked), world.win_rate(liked), "o", color=green, markersize=9)
axes.plot(0, 0.5, "s", color=plots.GREY, markersize=9)
plots.label(axes, 0, 0.5, "reference", plots.GREY, xytext=(10, 0))
plots.label(axes, world.kl(liked), world.win_rate(liked), "p+, what RDRO aims at", green,
            xytext=(10, -8))
plots.label(axes, distance[22], world.win_rate(optima[22]), "reference x exp(reward / beta)",
            plots.look("rlhf").color, xytext=(8, -14))
axes.set(xlabel="KL(policy || reference), nats", ylabel="win rate")
axes.set_title("What a win rate costs in distance")
plots.show(drawn, alt="""Win rate against KL from the reference. The curve of tilted policies rises from
    one half at the reference, steeply at first, and levels off near 0.83. The preferred distribution
    lies just below that curve, near its start.""")

# %% [markdown]
# Every policy is a point in this picture, every training run a path. Methods differ in where they aim, in what they assume, and in how surely they arrive.

# %% [markdown] exercise="00.4" part="task" stars=2 minutes=15 open=true
# ### Your own judge
# Build a world of your own, four to ten answers, with a judge who has a flaw that you know from life: likes long answers, flatters, never reads to the end. Align a policy with it. Report two numbers: the win rate
# under the flawed judge, and under the judge you wanted.

# %% [markdown] exercise="00.4" part="hints"
# 1. `FiniteWorld.from_rewards` takes any rewards: make two worlds with one reference.
# 2. Align in one world, evaluate with `win_rate` of the other.
# 3. Compare with the reference and with the truth of each world; repeat over a few seeds.

# %% [markdown] exercise="00.4" part="solution"
# A good answer states the flaw as a difference between two reward tables, keeps everything else equal, and reports both win rates with an interval over seeds. The flawed win rate rises while the wanted one rises
# less, or falls. That gap has a name, *over-optimisation of a proxy*, and two lessons (02 and 07).

# %% [markdown]
# ## The same function trains a language model
#
# Now text. The **pocket world** is a language model of 0.3 million parameters, made by this course. It answers the guests of a front desk in a language of 188 words. The judge reads what a text
# says: right or wrong, polite or rude, how many details, how much flattery. So preferences are known here too. Read what the model says before any feedback:

# %% tags=["nbval-ignore-output"]
desk = pocket.load_world("bradley_terry")
desk.show(desk.draw(per_prompt=1, seed=4), 5)

# %% [markdown]
# It was taught from good and bad examples alike, and it shows. *Predict: after 1,000 comparisons and 80 steps, what will have changed, and what will not?* The objective is the one from above, by its name.

# %% tags=["nbval-ignore-output"]
same_function = objectives.get("rdro").loss is objectives.rdro
pairs = preferences.draw_pairs(desk, 1_000, seed=0)
settings = TrainingSettings(steps=80, batch_size=32, learning_rate=1e-3, schedule="linear",
                            clip_gradient=1.0)
model = desk.new_policy()
train(model, pairs, "rdro", alpha=0.5, settings=settings, progress=False)
print("the same function:", same_function, "\n")
desk.show(desk.draw(model, per_prompt=1, seed=4), 5)

# %% tags=["nbval-ignore-output"]
known, missing = desk.kl_to_preferred(), desk.kl_to_preferred(model)
print(f"KL(truth || before) = {known:.3f} nats")
print(f"KL(truth || after)  = {missing:.3f} nats")
wins = desk.win_rate(model, per_prompt=40)
claim("00.pocket", "this course",
      "the same objective trains a language model: win rate against its former self (1 run, 960 texts)",
      expected=0.5, relation="at least", measured=wins.estimate, interval=wins)

# %% [markdown]
# Judge by eye, then by number. Here the truth is known up to sampling, so every number has an interval. From lesson 02 on, each method is first made exact on a table and then put to work on these texts.

# %% [markdown]
# ## How to work through the course
#
# Each lesson asks a question, lets you predict, shows a short piece of code, then the number and what it should be. Predict in writing: surprise is where you learn.
# An exercise has a stub, a check that names typical mistakes, three hints and a folded solution. A method's lesson always has the same rooms:
#
# *derive · implement · verify against the exact optimum · break it on purpose · on the bench with the others · exercises · when to use it.*

# %% tags=["figure"]
drawn, axes = plots.figure(width=9.4, height=2.9)
axes.set_axis_off()
axes.set(xlim=(0, 10.2), ylim=(0, 3))
stations = ["world", "feedback", "policy", "log-probabilities", "objective", "training", "numbers"]
places = [0.5, 1.8, 3.1, 4.75, 6.45, 7.95, 9.4]
for name, place in zip(stations, places):
    box = {"boxstyle": "round,pad=0.5", "facecolor": green if name == "objective" else plots.INK}
    axes.text(place, 2.55, name, ha="center", va="center", color="white", fontweight="bold", bbox=box)
for place in (1.03, 2.52, 3.65, 5.72, 7.15, 8.62):
    axes.text(place, 2.55, "→", ha="center", va="center", fontsize=13)
worlds = [("finite", "eight answers", "a table", "exact truth, seconds", "blue"),
          ("pocket", "a small language", "an LM of 0.3 M", "truth with an interval, a minute", "orange"),
          ("real", "people's choices", "Qwen, Llama", "no known truth, a GPU", "violet")]
for row, (name, data, policy, cost, colour) in enumerate(worlds):
    for place, text in zip((0.5, 1.8, 3.1, 9.95), (name, data, policy, cost)):
        axes.text(place, 1.45 - 0.55 * row, text, ha="right" if text == cost else "center",
                  color=plots.PALETTE[colour], fontsize=9)
    axes.plot([3.85, 5.9], [1.5 - 0.55 * row] * 2, color=plots.PALETTE[colour], alpha=0.5)
axes.text(6.45, 0.93, "the same\nfunction", ha="center", va="center", color=green, fontweight="bold")
plots.show(drawn, alt="""The course in one picture. A chain runs from world to feedback, policy,
    log-probabilities, objective, training and numbers. Below it three worlds, finite, pocket and real,
    differ in data, policy and what is known, and all lead through the same objective function.""")

# %% [markdown]
# | you have | take |
# |---|---|
# | one evening | 00, 01, then 04 (DPO) |
# | one week | Parts I and II: the classical answer, and what is exact |
# | one term | all parts, with the open exercises as weekly projects |
# | a GPU and your own data | 00, 04, 11, then Part V |
#
# *Parts:* I preferences and the classical answer · II exactness, and references that move · III density ratios · IV the wider field · V real models. Lessons that are not yet in the README's list are still to come.

# %% [markdown]
# **One notation**, the same in text, docstrings and variable names:
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $x,\ y$ | `prompt`, `response` | a question and an answer |
# | $\pi_\theta,\ \pi_\text{ref}$ | `policy`, `ref` | what we train; where it started (log-probabilities in code) |
# | $y_w,\ y_l$ | `chosen`, `rejected` | winner and loser of a comparison |
# | $p_+,\ p_-$ | `preferred`, `rejected` | distributions of preferred and rejected responses |
# | $r,\ s$ | `reward`, `scores` | what a response is worth |
# | $P(a\succ b),\ W$ | `preference`, `win_rate…` | a judge; the win rate against the reference |
# | $\sigma$ | `sigmoid` | $1/(1+e^{-x})$ |
# | margin | `margin` | a difference of two scores or log-ratios |
# | $\log\frac{\pi_\theta}{\pi_\text{ref}}$ | `log_ratio` | summed over the tokens of a response |
# | $\beta$ | `beta` | price of leaving the reference |
# | $\alpha,\ t$ | `alpha`, `t` | share of preferred data in the mixture |
# | $\gamma$ | `gamma` | sharpness of a judge, or a target margin |

# %% [markdown]
# **What runs here?** The doctor looks at your machine and says which lessons it can run, and what to do about the others.

# %% tags=["nbval-ignore-output"]
doctor.summary()

# %% [markdown]
# ## What we measured

# %%
ledger.rows("00")

# %% [markdown]
# ## Common errors
#
# | you see | because |
# |---|---|
# | `No module named course_utils` in a clone | open it with `make lab`, or choose the kernel of `.venv` |
# | your numbers differ in the last digit | other processors round differently; the digits shown should agree |
# | a check says “not attempted yet” | the stub still raises `NotImplementedError`: run your cell again |
# | sliders do not move | the page is not alive: start a kernel, or use the picture |
#
# More in TROUBLESHOOTING.md, by the id that each error prints.

# %% [markdown]
# ## References
#
# - H. Takahashi et al. (2026). *Relative Density Ratio Optimization for Stable and Statistically Consistent Model Alignment*, arXiv 2604.04410: the objective used above. Lesson 11 derives it.
# - R. Rafailov et al. (2023). *Direct Preference Optimization*, equation (4): the tilted policy as the optimum of reward with a KL penalty.
# - T. M. Cover, J. A. Thomas (2006). *Elements of Information Theory*, chapter 2: the KL divergence.
#
# ## Next
#
# **01 · Bradley–Terry**: where do rewards come from, if people only compare?
