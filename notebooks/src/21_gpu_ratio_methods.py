# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Ratio methods on real data", world: real, gpu: optional}
# ---

# %% [markdown]
# # 21 · Ratio methods on real data
#
# EXO, TR-DPO, PMLE, distillation, DDRO and RDRO leave the laboratory: files with thumbs, files with pairs, one trainer for all. And two of the six come with a premise about *who wrote the file*. You will measure, on any data, by how many nats it is false.

# %% [markdown]
# ## Objectives
#
# You will be able to read α off a data set; to turn the premise of DDRO and RDRO into a number, with an interval and without one label, and to repair it; to run any method in our trainer or in TRL's and check its first loss by hand; to recognise a pooled mean, a batch of one class, a reference that never moves.
#
# ## Prerequisites
#
# Lessons 06, 07, 10, 11, 20. About 80 minutes. Test yourself:
#
# <details><summary>Which reference makes p₊ the minimiser of RDRO?</summary>α p₊ + (1−α) p₋.</details>
# <details><summary>What does TR-DPO change in DPO?</summary>Its reference moves towards the policy.</details>
#
# *Not covered:* judging the result (22), several cards (23).

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import math
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

from course_utils import datasets, encoding, gpu, ledger, objectives, plots
from course_utils.alignment_runs import RunSettings, align, practice_material, results_table
from course_utils.alignment_runs.data import load_data, options_of
from course_utils.feedback import Groups
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.real_models import load_policy
from course_utils.statistics import Interval, mean_interval
from course_utils.trl_bridge import AlignmentTrainer, training_arguments
from course_utils.worlds import pocket

warnings.filterwarnings("ignore", category=FutureWarning)

# %% [markdown]
# **What runs.** As in lesson 20: with a CUDA card, or a `MODEL`, the bench of section 5 trains that model on that data. Everything else, and on this page the bench too, runs a pocket Qwen2 or Llama on a few rows in the format of real ones. **That proves the code, and no result.**
#
# *Three practice files.* Pairs: prompt, chosen, rejected. Labels: prompt, completion, label, as in UF-G; the pocket model wrote every response, a noisy rating was given, the best 39 % are true. Cooler: the same, but the model wrote at **temperature 0.5**. A small thing?

# %% tags=["parameters"]
MODEL = None  # "Qwen/Qwen2.5-0.5B-Instruct", a folder; "pocket-qwen2", "pocket-llama" to practise
DATA = None  # "uf-g", "kto-mix-14k" (labels), "hh-helpful" (pairs), a file
METHODS = None  # ("rdro", "ddro"); for pairs ("dpo", "exo_pref", "tr_dpo", "pmle")
STEPS = None  # updates of each run
MINUTES = 30.0  # of each session; it then saves, and the next one goes on
SEED = 0

# %%
scratch, share = Path(tempfile.mkdtemp()), 0.39
kind = (MODEL or "").removeprefix("pocket-")
real = kind not in ("qwen2", "llama") and (MODEL is not None or torch.cuda.is_available())
kind, stranger = ("llama", "qwen2") if kind == "llama" else ("qwen2", "llama")
rated = {"architecture": kind, "rows": 400, "alpha": share}
pairs = practice_material(scratch / "pairs", kind)
labels = practice_material(scratch / "labels", **rated)
cooler = practice_material(scratch / "cooler", **rated, temperature=0.5)
small = RunSettings(pairs.model, pairs.data, steps=4, batch=8, learning_rate=3e-4, prompt=32,
                    response=40, held_out=0.25, samples=0, seed=SEED, device="cpu")


def of(file, method, name, **changes):
    """The settings of a practice run."""
    return replace(small, data=str(file.data), method=method, out=str(scratch / name), **changes)

# %%
def next_words(temperature, rows, model):
    """The rows as tokens, and log-probabilities of every next token at every place."""
    policy, texts = load_policy(model, device="cpu"), rows.unpaired()
    batch = encoding.encode(policy.tokenizer, texts.prompt, texts.response, chat_template=True)
    with torch.no_grad():
        logits = policy.model(batch.input_ids, attention_mask=batch.attention_mask).logits
    return batch, (logits[:, :-1] / temperature).double().log_softmax(-1)


def written_at(temperature, rows, model=small.model):
    """log-probability of each response under a model at a temperature, summed over its tokens."""
    batch, words = next_words(temperature, rows, model)
    said = words.gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    return (said * batch.response_mask[:, 1:]).sum(1)


rows = datasets.load(str(cooler.data))
liked = rows.unpaired().preferred
apart = written_at(0.5, rows) - written_at(1.0, rows)  # log m / p_ref of every row

# %%
def pull(name, l, **options):
    """The pull on a preferred response at log-ratio l, in units of that at l = 0."""
    l = torch.cat([torch.zeros(1), l]).double().requires_grad_()
    zero, likes = torch.zeros(len(l), dtype=torch.float64), torch.ones(len(l), dtype=torch.bool)
    rest = {"rdro": [zero, likes], "pmle": [zero]}.get(name, [zero, zero, zero])
    slope = torch.autograd.grad(objectives.get(name).loss(l, *rest, **options).sum(), l)[0]
    return slope[1:] / slope[0]

# %% tags=["figure"]
drawn, (left, right) = plots.figure(2, width=4.9, height=3.6)
ceiling, nats = -math.log(share), torch.logspace(-1.3, 2.7, 300)
methods = {"rdro": {"alpha": share}, "dpo": {}, "exo_pref": {}, "pmle": {"gamma": 0.01}}
for name, options in methods.items():
    left.plot(nats, pull(name, nats, **options), color=plots.look(name).color)
left.axhline(0, color=plots.GREY, linewidth=1)
left.axvline(ceiling, color=plots.look("ddro").color, linestyle=":")
for at, height, name, text in ((0.055, 0.55, "rdro", "RDRO"), (0.075, -0.5, "ddro", "DDRO's wall"),
                               (4.5, 0.5, "dpo", "DPO"), (24, 0.4, "exo_pref", "EXO"),
                               (170, 0.55, "pmle", "PMLE")):
    plots.label(left, at, height, text, plots.look(name).color, xytext=(0, 0))
left.set(xscale="log", ylim=(-1, 1.2), xlabel="log-ratio of the whole response (nats)",
         title="How far may one response move?", ylabel="pull, relative to the start")
noise = torch.rand(len(apart), generator=torch.Generator().manual_seed(0)) * 0.5
for place, (side, colour) in enumerate(((liked, "green"), (~liked, "orange"))):
    right.plot(apart[side], place + noise[side], ".", color=plots.PALETTE[colour], alpha=0.55)
right.axvline(ceiling, color=plots.INK, linestyle=":")
right.axvline(0, color=plots.GREY, linewidth=1)
plots.label(right, ceiling, 1.68, f"log 1/α = {ceiling:.2f}", xytext=(4, 0))
right.set(yticks=[0.25, 1.25], yticklabels=["preferred", "rejected"], ylim=(-0.1, 1.85))
right.set(xlabel="log m/p_ref of a row (nats)", title="A file written at temperature 0.5")
plots.show(drawn, alt="""Left, logarithmic: RDRO's pull crosses zero at 0.94 nats, where DDRO's wall
    stands; DPO's fades over tens of nats, EXO's ends near 70, PMLE's fades over hundreds.
    Right: log-ratios of the writer to the reference: rows of both classes lie on both sides of 0.94.""")

# %% [markdown]
# Left: one word, "log-ratio", and three orders of magnitude (α = 0.39, β = 0.1, ε = 0.001, γ = 0.01). RDRO turns round before a *whole response* has gained one nat, and DDRO forbids a rejected one as much. Over 200 tokens that is half a hundredth of a nat for each. Right: the model that **really wrote** the cooler file, against the same model at temperature 1. Many rows lie beyond that limit before anybody has expressed a preference. *Predict: is RDRO's loss lower at the true writer, or at the untouched reference?*

# %% [markdown]
# | method | one row | reference | a response's pull ends |
# |---|---|---|---|
# | DPO | pair | stays | never; halves at $\log3/\beta$ |
# | TR-DPO | pair | moves towards the policy | starts again at each move |
# | EXO-pref | pair | stays | at $\log\frac{1-\varepsilon}{\varepsilon}/\beta$ |
# | PMLE | pair | none | never |
# | distillation | two responses, two rewards | none | at $(r_1-r_2)/\gamma$ |
# | RDRO | response, label | wrote the file | at $\log\frac1\alpha$ |
# | DDRO | response, label | wrote the file | rejected: wall at $\log\frac1t$ |
#
# For pairs the log-ratio is that of chosen minus rejected (PMLE, distillation: no reference in it).

# %% [markdown]
# ## 1 · Derive
#
# *Where does α come from?* Draw a row of the file; $\alpha=P(\text{label}=\text{true})$. In **UF-G** each prompt has one completion by gpt-3.5-turbo, and the label says whether its helpfulness rating is 5, the best: 39 % are, and the authors of RDRO recommend α = 0.39. **kto-mix-14k** is a set of pairs taken apart, **HH** is pairs: one half, by construction. The course stores what is stated; `align` counts.

# %%
for name in ("uf-g", "kto-mix-14k", "hh-helpful"):
    print(f"{name:12} alpha {datasets.SOURCES[name].alpha:.2f}   {datasets.SOURCES[name].repo}")
rdro = align(of(labels, "rdro", "rdro"), quiet=True)
train, _ = load_data(rdro.settings)
print(options_of(rdro.settings, train)[1])
claim("21.alpha", "Takahashi et al. (2026), README", "RDRO's alpha in align: preferred / training rows",
      expected=sum(row.preferred for row in train) / len(train), digits=6, tolerance=0,
      measured=rdro.record["options"]["alpha"])

# %% [markdown] exercise="21.1" part="task" stars=1 minutes=6
# ### From ratings to a ceiling
# A file has a rating for each response. A response is preferred if its rating is `bar` or better. Return α, and the log-ratio at which RDRO stops pulling a preferred response.

# %% exercise="21.1" part="stub"
def share_and_ceiling(ratings: Tensor, bar: float) -> tuple[float, float]:
    """(alpha, ceiling in nats)."""
    raise NotImplementedError


# %% exercise="21.1" part="check"
check("21.1", share_and_ceiling)

# %% [markdown] exercise="21.1" part="hints"
# 1. `ratings >= bar` is the label of each row.
# 2. α is the mean of the labels.
# 3. The pull $(1+\alpha)\sigma(l)-1$ is zero where $e^l=1/\alpha$.

# %% exercise="21.1" part="solution"
def share_and_ceiling(ratings: Tensor, bar: float) -> tuple[float, float]:
    alpha = float((ratings >= bar).double().mean())
    return alpha, -math.log(alpha)


check("21.1", share_and_ceiling)

# %% [markdown]
# *What is the mixture?* Draw a row. With probability α its label is true, and then its response has density $p_+$; else $p_-$. So
#
# $$m:=\alpha\,p_++(1-\alpha)\,p_-$$
#
# is the density of **all responses in the file**, labels ignored. All this is for one prompt, and takes α to be the share of *every* prompt: a premise of its own, which we keep (exercise 11.4 drops it). Then the premise of DDRO and RDRO, $p_{ref}=m$, says no more and no less than *the reference wrote the file*. For UF-G the writer is gpt-3.5-turbo; your reference is another model. HH is of 2022, older than your reference. Nobody needs labels to test it.

# %% [markdown]
# *By how much is it false?* For any model $q$, add and subtract $\log m$ under the mean:
#
# $$E_m\big[\log q-\log p_{ref}\big]=\mathrm{KL}(m\|p_{ref})-\mathrm{KL}(m\|q).$$
#
# The left side is an average over rows: the **gain** of $q$. Three readings.
#
# 1. If the premise holds, the gain is $-\mathrm{KL}(m\|q)\le0$: *no model on earth* describes the file better than the reference.
# 2. No gain exceeds $\mathrm{KL}(m\|p_{ref})$. Measured on rows that $q$ has not seen (on seen ones it is memory), it bounds that error from below, up to the noise of the rows.
# 3. Take $q$ for the new reference, and the gain is exactly the part of the error that is mended.
#
# A good $q$ writes like the file: **SFT on all responses**, the rejected ones too. (SFT on the chosen heads for $p_+$, not for $m$.)

# %% [markdown] exercise="21.2" part="task" stars=2 minutes=10
# ### How false, at least?
# `before` and `after` are log-probabilities of the same held-out responses (sums over tokens) under the reference and after SFT on all responses. Return the number of nats that $\mathrm{KL}(m\|p_{ref})$ exceeds with 95 % confidence (independent rows): the mean gain minus 1.645 standard errors.

# %% exercise="21.2" part="stub"
def at_least_so_false(before: Tensor, after: Tensor) -> float:
    """A one-sided lower bound, in nats per response; it may be negative."""
    raise NotImplementedError


# %% exercise="21.2" part="check"
check("21.2", at_least_so_false)

# %% [markdown] exercise="21.2" part="hints"
# 1. The same rows twice: take differences first.
# 2. The standard error of a mean is `x.std() / math.sqrt(len(x))`.
# 3. Which of the two must be larger, if the reference did not write the file?

# %% exercise="21.2" part="solution"
def at_least_so_false(before: Tensor, after: Tensor) -> float:
    gain = after - before
    return float(gain.mean() - 1.645 * gain.std() / math.sqrt(len(gain)))


check("21.2", at_least_so_false)

# %% [markdown]
# ## 2 · Implement
#
# `align` takes the method as a word. A method that compares is refused on labels; one that learns from labels takes pairs apart. Batches of labels hold both classes in proportion.
#
# **In TRL 1.16** there is no RDRO, DDRO, PMLE or distillation; `DPOTrainer` has `loss_type="exo_pair"` and `sync_ref_model` (TR-DPO). Our `RegistryDPOTrainer` and `RegistryKTOTrainer` are TRL's own classes with a loss of the registry: its data sets, collators and loop. *Is that the same run as ours?*

# %% tags=["nbval-ignore-output"]
runs = {"rdro": rdro}
runs["ddro"] = align(of(labels, "ddro", "ddro", options={"past_wall": "tangent"}), quiet=True)
for name, changes in {"dpo": {}, "exo_pref": {}, "pmle": {"options": {"gamma": 0.1}},
                      "sft": {"learning_rate": 1e-3}}.items():
    runs[name] = align(of(pairs, name, name, **changes), quiet=True)
runs["tr_dpo"] = align(of(pairs, "dpo", "tr_dpo", reference="hard", ref_every=2), quiet=True)
for name, run in runs.items():
    print(f"{name:9}", [round(loss, 3) for loss in run.losses])
try:
    align(of(labels, "exo_pref", "refused"), quiet=True)
except ValueError as error:
    print("refused:", str(error).split("\n")[0])
common = {"max_steps": 3, "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "disable_tqdm": True,
          "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
          "logging_steps": 1, "per_device_train_batch_size": 8}

# %%
def three_losses(make, arguments, feedback, method, options):
    """The losses of 3 updates with one of TRL's trainers, or with ours."""
    policy = load_policy(small.model, device="cpu")
    data = {"train_data" if make is AlignmentTrainer else "train_dataset": feedback}
    trainer = make(policy.model, args=arguments, processing_class=policy.tokenizer, **data,
                   objective=method, objective_options=options)
    trainer.train()
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])

# %% tags=["nbval-ignore-output"]
import logging

few = datasets.load(str(pairs.data)).pairs().take(torch.arange(8))  # all of them in every update
some = datasets.load(str(labels.data)).unpaired().take(torch.arange(64))
try:
    import trl
    from datasets import disable_progress_bars

    from course_utils.trl_bridge import RegistryDPOTrainer, RegistryKTOTrainer
except (ImportError, ValueError) as error:
    print("left out:", str(error).split("\n")[0])
else:
    disable_progress_bars()
    logging.disable(logging.WARNING)  # KTO's advice on class weights, which our losses do not need
    off, on_pairs = {}, (RegistryDPOTrainer, trl.DPOConfig, few)
    on_labels = (RegistryKTOTrainer, trl.KTOConfig, some)
    for (make, config, rows_of), method, options in (
            (on_pairs, "exo_pref", {}), (on_pairs, "pmle", {"gamma": 0.1}),
            (on_labels, "rdro", {"alpha": share}), (on_labels, "ddro", {"t": share})):
        args = config(str(scratch / "t"), train_sampling_strategy="sequential", **common)
        theirs = three_losses(make, args, rows_of, method, options)
        args = training_arguments(scratch / "o", **common)
        off[method] = theirs - three_losses(AlignmentTrainer, args, rows_of, method, options)
    logging.disable(logging.NOTSET)
    claim("21.trl", "this course", "3 losses of 4 objectives, TRL's trainers and ours: largest gap",
          expected=0, measured=float(torch.stack([*off.values()]).abs().max()), tolerance=1e-5)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# No optimum is known here. But every method has a first loss that paper and pencil give, and a run that misses it has the wrong reference, the wrong data, or the wrong sums. (Later losses are those of other rows, eight at a time: they wander.) With $l=0$ everywhere:
#
# - RDRO: $(1+\alpha)\log2+(1-\alpha)\log2=2\log2$, DDRO: $g=1$, so $2\log2$; for *any* α and $t$
# - EXO-pref: $\mathrm{KL}(\tfrac12\|1-\varepsilon)=-\log2-\tfrac12\log\varepsilon(1-\varepsilon)$
# - TR-DPO: $\log2$, and $\log2$ again after each hard move
# - PMLE, distillation: no reference, so no constant. *Compute it from log-probabilities.*
#
# Distillation wants rewards, and a file of thumbs has none. So `align` refuses it, and `AlignmentTrainer` takes groups of two. In the paper a reward model gives the rewards, here the pocket judge.

# %%
start = max(abs(runs[name].losses[0] - 2 * math.log(2)) for name in ("rdro", "ddro"))
claim("21.ratio_start", "derived here", "first loss of RDRO and of DDRO minus 2 log 2 (largest)",
      expected=0, measured=start, tolerance=1e-6)
claim("21.exo_start", "derived here", "first loss of EXO-pref at eps = 0.001, whatever the pairs",
      expected=-math.log(2) - math.log(1e-3 * 0.999) / 2, measured=runs["exo_pref"].losses[0],
      tolerance=1e-5, digits=6)
_, held_pairs = load_data(runs["pmle"].settings)
chosen, rejected = written_at(1.0, held_pairs).chunk(2)
by_hand = softplus(-0.1 * (chosen - rejected)).mean()
claim("21.pmle_start", "Yun et al. (2025), eq. (4)", "PMLE's held-out loss before updates, and by hand",
      expected=float(by_hand), measured=runs["pmle"].record["evaluation"]["before"]["loss"],
      tolerance=1e-5, digits=6)

# %%
judge, policy = pocket.load_world("bradley_terry"), load_policy(small.model, device="cpu")
texts = [prompt[-1]["content"] for prompt in few.prompt]
r1, r2 = (judge.reward_of(texts, side).double() for side in (few.chosen, few.rejected))
both = [list(pair) for pair in zip(few.chosen, few.rejected, strict=True)]
with torch.no_grad():
    z1, z2 = (policy.log_prob(few.prompt, side).double() for side in (few.chosen, few.rejected))
q_hat, q = torch.sigmoid(r1 - r2), torch.sigmoid(0.1 * (z1 - z2))
divergence = q_hat * (q_hat / q).log() + (1 - q_hat) * ((1 - q_hat) / (1 - q)).log()
distilled = AlignmentTrainer(
    policy.model, args=training_arguments(scratch / "pd", **common), processing_class=policy.tokenizer,
    train_data=Groups(few.prompt, both, torch.stack([r1, r2], 1)),
    objective="preference_distillation", objective_options={"gamma": 0.1})
distilled.train()
claim("21.distill_start", "Yun et al. (2025), eq. (11)", "first loss of distillation, and by hand",
      expected=float(divergence.mean()), measured=distilled.state.log_history[0]["loss"],
      tolerance=1e-5, digits=6)

# %% [markdown]
# **A reference that moves** is state: a session that forgets it begins another run. `align` writes it into each checkpoint. Here the reference becomes the policy after every second update. Until then TR-DPO *is* DPO. In TRL 1.16 `sync_ref_model=True` moves it every 512 steps; does your run have 512? `align` refuses a reference that would never move.

# %%
moving = runs["tr_dpo"]
stopped = replace(moving.settings, out=str(scratch / "stopped"))
align(stopped, stop_after=3, quiet=True)  # in the middle of a period
again = align(stopped, quiet=True)
claim("21.resume", "this course", "TR-DPO stopped and resumed: losses against an unbroken run",
      expected=0, tolerance=0,
      measured=max(abs(a - b) for a, b in zip(again.losses, moving.losses, strict=True)))
claim("21.never", "derived here", "TR-DPO and DPO before the reference moves: losses apart",
      expected=0, tolerance=1e-6,
      measured=max(abs(a - b) for a, b in zip(moving.losses[:2], runs["dpo"].losses[:2], strict=True)))
claim("21.moved", "derived here", "TR-DPO: the loss just after a hard move of the reference",
      expected=math.log(2), measured=moving.losses[2], tolerance=1e-6, digits=6)

# %% [markdown]
# ## 4 · Break it on purpose
#
# **The premise, tested where we know the answer.** If it holds, then also $E_m[q/p_{ref}]=\sum_y q(y)=1$ for every $q$. Check that with the *other* pocket model as $q$. It is true and a poor tool: if $\log q/p_{ref}$ is normal with variance $s^2$, its exponential has the relative variance $e^{s^2}-1$; at $s=3$ nats ten thousand rows still leave an error near one. So use logarithms: SFT on all responses, and the gain on held-out rows. Here we know $m$, so theory says what each gain must be: adding, along the rows, the divergences of the next-word distributions gives both KL terms (the chain rule). *Predict the sign for each file.*

# %% tags=["nbval-ignore-output"]
another = practice_material(scratch / "other", stranger, rows=10).model
own = datasets.load(str(labels.data))
ratio = mean_interval((written_at(1.0, own, another) - written_at(1.0, own)).exp())
claim("21.mean_ratio", "derived here", "rows that p_ref wrote: mean of q/p_ref, q another model",
      expected=1, measured=ratio.estimate, interval=ratio)


def gain(result):
    """Mean rise of log pi over all held-out rows, nats per response."""
    parts = [result.record["evaluation"]["after"][f"{side}_drift"] for side in ("chosen", "rejected")]
    weights = [part[3] / sum(p[3] for p in parts) for part in parts]
    middle = sum(w * part[0] for w, part in zip(weights, parts, strict=True))
    half = math.hypot(*(w * (part[2] - part[1]) / 2 for w, part in zip(weights, parts, strict=True)))
    return Interval(middle, middle - half, middle + half, 0.95, sum(part[3] for part in parts))

# %% tags=["nbval-ignore-output"]
def kl_from_file(temperature, rows, q):
    """KL(m || q) over the rows, m the pocket model at a temperature."""
    batch, m = next_words(temperature, rows, small.model)
    apart = (m.exp() * (m - next_words(1.0, rows, q)[1])).sum(-1)
    return float((apart * batch.response_mask[:, 1:]).sum(1).mean())


on_all = {"responses": "all", "learning_rate": 1e-3, "steps": 30, "batch": 16, "held_out": 0.35}
tuned, gains = {}, {}
for name, file, heat, word in (("own", labels, 1.0, "true"), ("cooler", cooler, 0.5, "false")):
    tuned[name] = align(of(file, "sft", f"all-{name}", **on_all), quiet=True)
    gains[name], (_, held) = gain(tuned[name]), load_data(tuned[name].settings)
    theory = [kl_from_file(heat, held, q) for q in (small.model, tuned[name].model)]
    claim(f"21.premise_{word}", "derived here",
          f"file at temperature {heat}: gain of SFT = KL(m, p_ref) - KL(m, q)",
          expected=theory[0] - theory[1], measured=gains[name].estimate, interval=gains[name])
claim("21.same_writer", "a natural guess", "file at temperature 0.5: p_ref wrote it, no gain by SFT",
      expected=0, relation="at most", measured=gains["cooler"].estimate, interval=gains["cooler"])

# %% [markdown]
# Where the premise holds, theory says below zero (SFT learned noise), and the measured gain agrees with it. The second gain tells, without a look at the writer, that the reference did not write this file. The intervals are for one $q$ each, over rows taken as independent; rows of one prompt are not quite (here eight prompts; in HH the two of a pair). *What does the false premise do to the losses?* Ask RDRO about two models: the untouched reference, and the one that truly wrote all rows. Then ask again, with the model from SFT as the reference, on held-out rows.

# %%
def by_class(values, liked):
    """The sum of the two class means."""
    up, down = mean_interval(values[liked]), mean_interval(values[~liked])
    middle, half = up.estimate + down.estimate, math.hypot(up.high - up.low, down.high - down.low) / 2
    return Interval(middle, middle - half, middle + half, 0.95, len(values))


def over_reference(l, liked):
    """RDRO's loss of each row, minus what it is at l = 0 (2 log 2 for both classes together)."""
    return objectives.rdro(l, torch.zeros_like(l), liked, alpha=share) - math.log(2)


print("KL(m || p_ref), since here we know m:", mean_interval(apart))
extra = by_class(over_reference(apart, liked), liked)
claim("21.writer", "a natural guess", "file at temperature 0.5: RDRO's loss, its writer minus p_ref",
      expected=0, relation="at most", measured=extra.estimate, interval=extra)
beyond = float((apart[~liked] > -math.log(share)).double().mean())
print(f"DDRO: {beyond:.0%} of the rejected rows lie beyond its wall at the true writer: loss infinite")

# %% tags=["nbval-ignore-output"]
_, held = load_data(tuned["cooler"].settings)
fresh, writer = held.unpaired().preferred, written_at(0.5, held)
old, new = (over_reference(writer - written_at(1.0, held, model), fresh)
            for model in (small.model, tuned["cooler"].model))
print("the writer, before and after the repair:", by_class(old, fresh), by_class(new, fresh))
mended = by_class(old - new, fresh)
claim("21.repair", "this course", "RDRO's loss at the writer: old p_ref minus SFT on all as p_ref",
      expected=0, relation="at least", measured=mended.estimate, interval=mended)

# %% [markdown]
# A temperature alone is an error above the ceiling $\log\frac1\alpha$. RDRO **rates the true writer worse than a model that never saw the file**; DDRO forbids it. No bug: a log-ratio to the wrong base means something else. RDRO learns $p_+/m$ *on top of* the reference (11): it sorts responses, it does not write like the liked ones. You may want that; the proof is silent.
#
# **The repair** helps here: SFT on all responses first, its folder is the next stage's model. Report its gain. The rest of $\mathrm{KL}(m\|p_{ref})$ stays unknown.
#
# **A pooled mean.** At $l=0$ the slopes are $\mp\frac{1-\alpha}2$ (preferred, rejected). Class means balance them; one mean over all rows does not. *Predict: where does the file go?*

# %%
l, a = torch.zeros(len(liked), dtype=torch.float64, requires_grad=True), liked.double().mean().item()
push = {}
for reduce in (objectives.classwise_mean, objectives.pooled_mean):
    loss = reduce(objectives.rdro(l, torch.zeros_like(l), liked, alpha=a), liked)
    push[reduce.__name__] = float(torch.autograd.grad(loss, l)[0].sum())
print({name: round(slope, 4) for name, slope in push.items()})
claim("21.pooled_push", "derived here", "RDRO, pooled mean, l = 0: net slope (1 - a)(1 - 2a)/2",
      expected=(1 - a) * (1 - 2 * a) / 2, measured=push["pooled_mean"], tolerance=1e-12)

# %% [markdown]
# Positive (as $\alpha<\frac12$): the loss falls if *all* responses of the file become less likely, and so texts that nobody wrote likelier. The limit is wrong as well (lesson 11).
#
# **A batch of one class.** TRL 1.16's `KTOTrainer` keeps the order of the file, and pairs it takes apart into many chosen, then many rejected: whole batches of one class, with half of the loss missing. So shuffle the file first. A small micro-batch may still hold one class only. How often?

# %% [markdown] exercise="21.3" part="task" stars=1 minutes=6
# ### One class by bad luck
# A shuffled batch has `size` rows, drawn independently, each preferred with probability α. How likely is it that all are of one class?

# %% exercise="21.3" part="stub"
def one_class(size: int, alpha: float) -> float:
    """The probability of a batch that holds a single class."""
    raise NotImplementedError


# %% exercise="21.3" part="check"
check("21.3", one_class)

# %% [markdown] exercise="21.3" part="hints"
# 1. All preferred: independent events multiply.
# 2. There are two ways to be of one class.
# 3. They exclude each other, so add.

# %% exercise="21.3" part="solution"
def one_class(size: int, alpha: float) -> float:
    return alpha**size + (1 - alpha) ** size


check("21.3", one_class)

# %%
from course_utils.training.order import DataOrder

many = torch.arange(1_000) < 390
generator = torch.Generator().manual_seed(0)
for size in (2, 4, 8):
    drawn = [many[torch.randperm(1_000, generator=generator)[:size]] for _ in range(2_000)]
    single = sum(int(batch.sum()) in (0, size) for batch in drawn) / 2_000
    print(f"{size} rows: shuffled {single:.3f}, formula {share**size + (1 - share)**size:.3f}")
order = DataOrder(1_000, 4, SEED, many)
alone = sum(int(many[order.batch(step)].sum()) in (0, 4) for step in range(2_000))
claim("21.balanced", "this course", "our batches of four: those of one class (count in 2,000)",
      expected=0, measured=alone, tolerance=0)

# %% [markdown]
# **The wrong α.** Both losses default to one half. On UF-G that moves ceiling and wall from 0.94 to 0.69 nats, and the ratio it fits has a denominator that nobody wrote. `align` reads the share off the rows, prints it and stores it; give another and it says both numbers.
#
# ## 5 · On the bench with the others
#
# All methods, the control, and before each the untouched reference; the same cell trains real models. RDRO and DDRO begin with SFT on all responses: the cell prints its gain, and hands the model on.

# %% tags=["nbval-ignore-output"]
settings = {"ddro": {"options": {"past_wall": "tangent"}}, "pmle": {"options": {"gamma": 0.01}},
            "tr_dpo": {"method": "dpo", "reference": "soft", "ref_every": (STEPS or 300) // 6}}
evening = RunSettings(MODEL or "Qwen/Qwen2.5-0.5B-Instruct", DATA or "uf-g", steps=STEPS or 300,
                      minutes=MINUTES, seed=SEED, micro_batch=4, checkpointing=True,
                      rows=20 * (STEPS or 300))  # what the updates can use, and no more
names, runs = METHODS or ("rdro", "ddro"), {} if real else runs
if real and {"rdro", "ddro"} & {*names}:
    runs["sft on all"] = first = align(replace(evening, method="sft", responses="all"))
    print("gain, nats per response:", gain(first) if first.finished else "not finished: run it again")
    evening, names = replace(evening, model=str(first.model)), names if first.finished else ()
for name in names if real else ():
    runs[name] = align(replace(evening, stage=name, **{"method": name, **settings.get(name, {})}))
for name, run in runs.items():
    if run.finished:
        after = run.record["evaluation"]["after"]
        columns = (f"{side} {after[side + '_drift'][0]:+.2f} [{after[side + '_drift'][1]:+.2f}, "
                   f"{after[side + '_drift'][2]:+.2f}]" for side in ("chosen", "rejected"))
        print(f"{name:10} {run.record['proves']:6} drift of", *columns)

# %% [markdown]
# On this page: four updates of a pocket model, on two different files, at one learning rate. It shows that seven runs go through, and what their results look like. The intervals are wide, nothing is ranked. Lesson 13 is the fair race, on the pocket model; a fair one on real models wants several seeds and a judge (22).
#
# **An evening with a T4.** What fits, and how long 300 updates take *if* the card reaches 30 % of its best rate: arithmetic, not a measurement. (The first pass of a reference and the measuring come on top.)

# %%
card, t4 = gpu.CARDS["T4"], RunSettings(data="uf-g", micro_batch=4, checkpointing=True, rows=6_000)
first_folder = replace(t4, method="sft", responses="all").folder / "model"
moves = {"reference": "soft", "ref_every": 50}
for method, more in (("sft", {"responses": "all"}), ("rdro", {}), ("ddro", settings["ddro"]),
                     ("dpo", {}), ("exo_pref", {}), ("dpo", moves), ("pmle", settings["pmle"])):
    labelled = {"model": first_folder.as_posix()} if "dro" in method else {}
    one = replace(t4, method=method, **more, **labelled)
    one = one if labelled or method == "sft" else replace(one, data="hh-helpful")
    plan = gpu.plan(t4.model, method, batch=16, micro_batch=4, checkpointing=True,
                    products="float16", reference=one.reference_word)
    minutes = one.steps * plan.seconds(card) / 60
    print(f"{one.called}: {plan.verdict(card)}, about {minutes:.0f} minutes\n    {one.command}")

# %% [markdown] exercise="21.4" part="task" stars=3 minutes=20 open=true
# ### Whose file is it?
# A team has 20,000 rated answers: 60 % by their own model of last spring at temperature 0.7, 30 % by a larger model, 10 % by people; 22 % are rated "good". They want RDRO on this autumn's model. What is α, what is the reference, what do you run first, what do you report, and when do you advise another method?

# %% [markdown] exercise="21.4" part="hints"
# 1. Is α 0.22 for each writer? Does the premise ask for it?
# 2. What single number says how wrong the reference is? On which rows?
# 3. Compare that number with $\log\frac1\alpha$. Which remaining error can you tolerate?

# %% [markdown] exercise="21.4" part="solution"
# A good answer says: α = 0.22 (ceiling 1.5 nats), but the share differs by writer and prompt, a second false premise (exercise 11.4). $m$ is a blend of three writers; no model in the house is it. SFT on *all* rows, stopped early on held-out prompts; the gain with its interval, per writer too; the rest of $\mathrm{KL}(m\|p_{ref})$ stays unknown. If the gain is large against 1.5 nats: two new answers of the autumn model for each prompt, judged; then α = ½ and the premise holds by construction. If pairs exist, DPO and EXO need no such premise. DDRO: not before that.

# %% [markdown]
# ## When to use it
#
# - **RDRO** for thumbs, after SFT on all responses, or on answers that the reference wrote. Report α and the gain.
# - **DDRO** only where the premise holds; with `past_wall="tangent"`, and say so.
# - **EXO-pref** for pairs with reliable labels; its target is tens of nats away, so stop by held-out loss.
# - **TR-DPO** for long runs; compare at equal drift, not at equal steps (07).
# - **PMLE, distillation** without a reference: nothing holds the policy but the data; γ must suit the length.
#
# ## What we measured
#
# First the table of real runs, built from raw JSON; then the ledger of what is exact.

# %%
display(results_table(settings=replace(t4, method="rdro", model=first_folder.as_posix())))
ledger.rows("21")

# %% [markdown]
# Two natural guesses fell: that temperature 0.5 is the same writer, and that the true writer has the lower loss.
#
# ## Common errors
#
# | what you see | why | what to do |
# |---|---|---|
# | `feedback-of-another-kind` | labels for a method that compares | rdro, ddro, kto, or pairs |
# | `ddro-past-the-wall` | a rejected response rose by log 1/t | the gain first; `past_wall=tangent` (`align` sets it) |
# | first loss of RDRO is not 2 log 2 | another reference, or a pooled mean | section 3 |
# | both drifts fall at once, from the first update | pooled mean, or one-class batches | section 4 |
# | TR-DPO equals DPO (in TRL) | 512 steps never came | fewer `ref_model_sync_steps` |
# | `rdro` told alpha 0.5 | the default | leave it to `align` |

# %% [markdown]
# ## References
#
# - Takahashi et al. 2026, arXiv 2604.04410 (RDRO): abstract; README of the code for α.
# - Higuchi & Suzuki 2025, arXiv 2505.07558 (DDRO): abstract. How the published runs were stabilised we could not establish.
# - Ji et al. 2024, arXiv 2402.00856 (EXO). Gorbatovski et al. 2024, arXiv 2404.09656 (TR-DPO).
# - Yun et al. 2025, arXiv 2506.01523: equations (4) and (11).
# - Cui et al. 2023, arXiv 2310.01377 (UltraFeedback); Bai et al. 2022, arXiv 2204.05862 (HH).
# - TRL 1.16: `kto_trainer.py`, `dpo_config.py`; its script for UF-G.
#
# ## Next
#
# **22 · Evaluation** judges what you trained here; **23 · Several cards** makes it larger.
