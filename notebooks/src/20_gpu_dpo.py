# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "A real model: SFT, then DPO", world: real, gpu: optional}
# ---

# %% [markdown]
# # 20 · A real model: SFT, then DPO
#
# You know what DPO does to a distribution. Here you do it to a model that people download: half a billion weights, data from the hub, one card. You will know what fits before anything is fetched, stop at a time limit and go on without losing a bit, and tell a run that proves the code from one that proves a result.

# %% [markdown]
# ## Objectives
#
# You will be able to
#
# 1. derive the memory of a training step, part by part, and name the mildest change that makes it fit a card;
# 2. run SFT and then DPO on a real model from a dozen lines, in sessions;
# 3. check such a run where it can be checked exactly, on any machine;
# 4. recognise three silent faults: another reference, updates that are rounded away, a lost end token.

# %% [markdown]
# ## Prerequisites
#
# Lessons 04 and 05; 22 measures what you train here. About 70 minutes with the exercises. Test yourself:
#
# <details><summary>What is DPO's loss if policy and reference are equal?</summary>−log σ(0) = log 2, for every pair.</details>
# <details><summary>How many numbers does Adam keep for each weight?</summary>Two: the running means of the gradient and of its square.</details>
#
# *Not covered:* several cards (23), quantised bases, serving.

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

from course_utils import encoding, gpu, ledger, plots
from course_utils.alignment_runs import (RunSettings, align, align_in_stages, practice_material,
                                         results_table)
from course_utils.alignment_runs.running import load_data
from course_utils.gpu import memory
from course_utils.labs.checks import check
from course_utils.ledger import claim
from course_utils.logprobs import sequence_log_probs
from course_utils.real_models import load_policy
from course_utils.training import TrainingSettings, train
from course_utils.trl_bridge import AlignmentTrainer
from course_utils.worlds import pocket_model

warnings.filterwarnings("ignore", category=FutureWarning)

# %% [markdown]
# **What runs.** `MODEL` is a name on the hub or a folder, `DATA` a name or a file. Left at `None`, a machine with a CUDA card takes Qwen2.5-0.5B-Instruct and HH-RLHF; any other machine, as for this page, takes the pocket Qwen2 and 64 rows in the format of real ones. **That proves the code, and no result.**
#
# Llama-3.2-1B is gated: open `huggingface.co/meta-llama/Llama-3.2-1B-Instruct`, accept the licence, run `hf auth login` once, and set `MODEL` to that name. The error says the same.

# %% tags=["parameters"]
MODEL = None  # "Qwen/Qwen2.5-0.5B-Instruct", a folder; "pocket-qwen2", "pocket-llama" to practise
DATA = None  # "hh-helpful", "ultrafeedback-binarized", a file with chosen and rejected
METHOD = "dpo"
STEPS = None  # updates of each stage
MINUTES = 30.0  # of each session; it then saves, and the next one goes on
SEED = 0
OUT = "runs/align"  # where real runs live; on Colab a folder of a mounted Drive outlasts the machine

# %%
scratch = Path(tempfile.mkdtemp())
practice = {kind: practice_material(scratch / kind, kind) for kind in ("qwen2", "llama")}
small = RunSettings(practice["qwen2"].model, practice["qwen2"].data, steps=4, batch=8, micro_batch=4,
                    learning_rate=3e-4, prompt=32, response=40, held_out=0.25, samples=0,
                    device="cpu", out=scratch / "small")
kind = (MODEL or "").removeprefix("pocket-")
real = kind not in practice and (MODEL is not None or torch.cuda.is_available())
run = replace(small, samples=2, out="", model=str(practice.get(kind, practice["qwen2"]).model))
if real:  # every row that is read is scored by the reference: read what the updates can use, no more
    run = RunSettings(MODEL or "Qwen/Qwen2.5-0.5B-Instruct", DATA or "hh-helpful", micro_batch=2,
                      checkpointing=True, rows=20 * (STEPS or 300))
run = replace(run, method=METHOD, minutes=MINUTES, seed=SEED, steps=STEPS or (300 if real else 6))


def out(stage):
    """The folder of a run: under OUT, where a later session finds it; in the practice a passing one."""
    return str(Path(OUT) / replace(run, stage=stage).folder.name if real else scratch / stage)

# %% [markdown]
# **What fits?** Below, the planned memory of one DPO step, as it is usually written and after three changes, each on top of the last: the reference scored before training and the logits taken in slices; activations computed a second time; adapters. *Predict: which part is the largest, and which is the reference's share?*

# %%
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
usual = gpu.plan(QWEN, "dpo", batch=16, micro_batch=4, reference="live")
ways = {
    "as usually written": usual,
    "reference once, logits in slices": replace(usual, reference="precomputed"),
    "+ activations redone": replace(usual, reference="precomputed", checkpointing=True),
    "+ LoRA of rank 16": replace(usual, reference="precomputed", checkpointing=True, lora=16),
}
sizes = {name: {part.name: part.gib for part in plan.parts} for name, plan in ways.items()}
sizes["as usually written"]["logits"] = (
    memory.ordinary_logit_bytes(usual.shape, usual.tokens, usual.products) / 2**30)

# %% tags=["figure"]
copies = "16-bit copies of the weights"
groups = {"weights": ("blue", ["weights", copies]),
          "gradients, Adam": ("sky", ["gradients", "optimiser (adamw)"]),
          "reference": ("green", ["reference"]),
          "activations": ("orange", ["activations", "gradients on their way back"]),
          "logits": ("pink", ["logits"]), "CUDA, gaps": ("sand", ["CUDA and gaps"])}
drawn, axes = plots.figure(width=8.2, height=3.6)
for row, (name, parts) in enumerate(reversed(sizes.items())):
    left = 0
    for place, (label, (colour, members)) in enumerate(groups.items()):
        width = sum(parts.get(each, 0) for each in members)
        axes.barh(row, width, left=left, color=plots.PALETTE[colour], height=0.6)
        if row == 3:
            height = 3.38 + 0.24 * (place % 3)
            axes.text(left, height, label, fontsize=9, color=plots.PALETTE[colour])
        left += width
for card in ("T4", "L4", "A100-40"):
    axes.axvline(gpu.CARDS[card].memory, ymax=0.82, color=plots.INK, linestyle=":")
    axes.text(gpu.CARDS[card].memory - 0.2, -0.62, card, ha="right", fontsize=9)
axes.set(yticks=range(4), yticklabels=list(reversed(sizes)), ylim=(-0.8, 4.2), xlabel="GiB, planned")
axes.set_title("One DPO step of Qwen2.5-0.5B: 4 pairs at a time, 1,024 tokens each")
plots.show(drawn, alt="""Stacked bars of planned memory. As usually written the step exceeds an L4, and
    logits and activations are the largest parts; each change shortens the bar, and with activations
    redone it fits a T4; with LoRA, weights, gradients and Adam shrink too.""")

# %% [markdown]
# Arithmetic, not a measurement; nothing was downloaded for it. The reference, which one thinks of first, is a thin slice; activations and the logits of 151,936 words are the thick ones.
#
# ## 1 · Derive
#
# *What does a step hold?* For each trained weight in float32: itself 4 bytes, its gradient 4, Adam's two means 8, together **16 N**. So first count $N$. A Qwen2 layer has width $d$, keys of width $k$, feed-forward width $f$:
#
# $$N = Vd + L\big(\underbrace{2d^2+2dk}_{q,o,k,v}+\underbrace{3df}_{\text{gate, up, down}}+\underbrace{d+2k}_{\text{biases}}+\underbrace{2d}_{\text{norms}}\big)+d .$$

# %%
V, d, L, k, f = 151_936, 896, 24, 2 * 64, 4_864
N = V * d + L * (2 * d**2 + 2 * d * k + 3 * d * f + d + 2 * k + 2 * d) + d
print(f"N = {N:,}; 16 N = {16 * N / 2**30:.2f} GiB before the first token")
print(f"on the disk: a checkpoint {12 * N / 2**30:.1f} GiB, a saved model {4 * N / 2**30:.1f} GiB")
claim("20.parameters", "config of Qwen2.5-0.5B", "weights of the plan's model (formula above)",
      expected=N, measured=gpu.SHAPES[QWEN].parameters, tolerance=0, digits=9)
parts = {part.name: part.bytes for part in gpu.plan(QWEN, "dpo").parts}
claim("20.sixteen", "this course", "bytes for weights, gradients and Adam, for each trained weight",
      expected=16, measured=sum(parts[p] for p in ("weights", "gradients", "optimiser (adamw)")) / N,
      tolerance=0)

# %% [markdown]
# **Logits.** The usual code computes the logits of every position in 16 bits, their log-softmax in float32, and its gradient: $2+4+4$ bytes for each token and word. Ours applies the head to a slice of the vocabulary at a time and keeps none.
#
# **Activations.** Autograd keeps what the backward pass needs: in a layer, the inputs of norms and matrices, queries, keys, values, and four rows of width $f$. The plan has a formula in bytes per token. *Predict: will a formula meet what autograd really keeps, to the byte?* Count it: hooks see each saved tensor.

# %%
def kept_bytes(work, model):
    """Bytes of each storage that autograd keeps during work(), the model's own left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place in memory would be given away and counted once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return list(seen.values())

# %%
ids = torch.randint(6, 194, (4, 64), generator=torch.Generator().manual_seed(0))
for kind in ("qwen2", "llama"):
    models = [pocket_model.new_model(kind, num_hidden_layers=layers).train() for layers in (2, 4)]
    few, many = (sum(kept_bytes(lambda m=m: m.model(input_ids=ids, use_cache=False), m))
                 for m in models)
    claim(f"20.activations_{kind}", "this course",
          f"bytes that a {kind} layer keeps of a token, counted, against the formula",
          expected=memory.layer_bytes_per_token(gpu.shape_of(models[0]), "float32"),
          measured=(many - few) / 2 / ids.numel(), tolerance=0)

# %%
batch = encoding.batch_from_ids(ids[:, :32].tolist(), ids[:, 32:].tolist())
tokens, words = ids.numel(), 194
ordinary = lambda: models[0](input_ids=ids).logits.log_softmax(-1).gather(-1, ids[..., None])
ours = lambda: sequence_log_probs(models[0], batch)
wide = [sum(size == 4 * tokens * words for size in kept_bytes(work, models[0]))
        for work in (ordinary, ours)]
print("tensors of tokens x words that are kept: the usual way", wide[0], "and ours", wide[1])
claim("20.logits", "this course", "our log-probabilities keep no tensor of tokens x words (count)",
      expected=0, measured=wide[1], tolerance=0)

# %% [markdown]
# At 194 words the difference is nothing; at 151,936 it was the pink bar. Now verdicts for other models and cards; then the table that a run prints before it downloads anything:

# %%
for name in ("Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"):
    for card in ("T4", "L4", "A100-80", "H200"):
        verdict = gpu.plan(name, "dpo", batch=16).verdict(gpu.CARDS[card])
        print(f"{name.split('/')[1]:22} {card:8}", verdict)
gpu.plan(QWEN, "dpo", batch=16, micro_batch=4)

# %% [markdown] exercise="20.1" part="task" stars=1 minutes=6
# ### Before the first token
# A model has `frozen` weights, held in 16 bits, and `trained` weights: in float32, with gradients and Adam. Return the bytes they take together. A full fine-tune has `frozen = 0`; LoRA has few trained ones.

# %% exercise="20.1" part="stub"
def fixed_bytes(frozen: int, trained: int) -> int:
    """Bytes of weights, gradients and Adam's state."""
    raise NotImplementedError


# %% exercise="20.1" part="check"
check("20.1", fixed_bytes)

# %% [markdown] exercise="20.1" part="hints"
# 1. A number in float32 has 4 bytes, one in 16 bits has 2.
# 2. For a trained weight there are four numbers: itself, its gradient, two means.
# 3. A frozen weight has no gradient, so Adam keeps nothing for it.

# %% exercise="20.1" part="solution"
def fixed_bytes(frozen: int, trained: int) -> int:
    return 2 * frozen + 16 * trained


check("20.1", fixed_bytes)

# %% [markdown]
# ## 2 · Implement
#
# `align` loads and checks the rows, holds out prompts, prints the plan and refuses a card that is too small, trains on transformers' `Trainer` under a time budget, measures before and after on the same held-out rows, and saves. Two stages are two settings: the folder that SFT saves is the model, and the reference, of DPO.

# %% tags=["nbval-ignore-output"]
rate = None if real else 1e-3  # None is what is usual
stages = [replace(run, method="sft", learning_rate=rate, out=out("sft")),
          replace(run, out=out(METHOD))]
results = align_in_stages(stages, quiet=not real)
sft, full = results[0], results[-1]
done = len(results) == 2 and full.finished
for result in results if not real else []:  # a real run has said more already
    print(f"{result.settings.called}: {result.step} updates, proves the code only")
print(full.settings.command if real else "the command for a terminal: course align --help")
print("the trained model, which lesson 22 measures:", full.model if real and done else "none here")

# %% [markdown]
# A session that ends at its limit prints the command that goes on; call the cell again and it does. A Colab machine takes its disk with it: what is to outlast it lies on a Drive with room for two or three checkpoints (sizes above), or fits one session. `result.json` holds settings, command, commit, versions, card, seconds, memory, the history, and samples with the same seed before and after; the command with `--store` brings it into the table below. Judge by eye:

# %% tags=["nbval-ignore-output"]
if done:
    print(*full.record["rows"].items(), f"{full.record['tokens_per_second']:,.0f} tokens/s", sep="  ")
    for sample in full.record["samples"][:2]:
        asked = sample["prompt"]
        asked = asked if isinstance(asked, str) else asked[-1]["content"]
        print(f"\n{asked[-200:]}\n  before: {sample['before'][:300]}")
        print(f"  after:  {sample['after'][:300]}")

# %% [markdown] exercise="20.2" part="task" stars=2 minutes=10
# ### One update in pieces
# An update of 16 pairs passes the model in pieces. `pieces` is a list of tensors, the losses of the examples of each piece; the last may be shorter. Return the loss of the update: the mean over its examples.

# %% exercise="20.2" part="stub"
def accumulated_loss(pieces: list[Tensor]) -> Tensor:
    """The loss of the whole update."""
    raise NotImplementedError


# %% exercise="20.2" part="check"
check("20.2", accumulated_loss)

# %% [markdown] exercise="20.2" part="hints"
# 1. How much does one example count: the same in every piece?
# 2. The number of examples must be known before the first piece goes backward.
# 3. Sum of sums, over the sum of the lengths.

# %% exercise="20.2" part="solution"
def accumulated_loss(pieces: list[Tensor]) -> Tensor:
    return sum(piece.sum() for piece in pieces) / sum(len(piece) for piece in pieces)


check("20.2", accumulated_loss)

# %% [markdown]
# ## 3 · Verify against the exact optimum
#
# Nobody knows the optimum of a real model. But four identities must hold at any size, so they are checked where it costs seconds. At the first step policy and reference are equal, and the loss is $\log 2$. Pieces of 2 make the update that pieces of 4 make. The trainer's losses are those of our teaching loop. And a run that was stopped is the run that was not.

# %%
whole = align(small, quiet=True)
llama = align(replace(small, model=str(practice["llama"].model), steps=1,
                      out=str(scratch / "llama")), quiet=True)
for kind, result in (("Qwen2", whole), ("Llama", llama)):
    claim(f"20.log2_{kind.lower()}", "Rafailov et al. 2023, eq. (7)",
          f"the first DPO loss of the pocket {kind}", expected=math.log(2), measured=result.losses[0],
          tolerance=1e-6, digits=6)


def apart(first, second):
    """The largest difference of two lists of losses."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))

# %%
pieces = align(replace(small, micro_batch=2, out=str(scratch / "pieces")), quiet=True)
claim("20.accumulation", "this course", "4 pieces of 2 and 2 of 4: losses of 4 updates (difference)",
      expected=0, measured=apart(pieces.losses, whole.losses), tolerance=2e-5)
policy, (rows, held) = load_policy(small.model, device="cpu"), load_data(small)
same = TrainingSettings(steps=4, batch_size=8, learning_rate=3e-4, schedule="linear",
                        clip_gradient=1.0)
loop = train(policy, rows.pairs(), "dpo", settings=same, progress=False).history.column("loss")
claim("20.loop", "this course", "trainer and teaching loop: losses of 4 updates (difference)",
      expected=0, measured=apart(loop, whole.losses), tolerance=2e-5)

# %%
stopped = replace(small, out=str(scratch / "stopped"))
sessions = [align(stopped, stop_after=2, quiet=True) for _ in range(2)]
print([f"{session.step} of {small.steps}" for session in sessions])
claim("20.resume", "this course", "a run stopped and resumed, and one that was not (losses apart)",
      expected=0, measured=apart(sessions[-1].losses, whole.losses), tolerance=0)

# %% [markdown]
# The last one is exact to the bit, here on a processor; on a card sums may come in another order, and then it is equal up to rounding. A checkpoint holds weights, Adam's state, the schedule and the step; the order of the rows follows from seed and step. The reference is the model that the first session loaded, so each session loads that one.
#
# ## 4 · Break it on purpose
#
# **Another reference.** You fine-tune in memory, then hand the model to a DPO trainer that loads its reference by name, from the disk. TRL 1.16's `DPOTrainer` does so if `ref_model` is missing (unless it precomputes). *Predict the first loss: below, at, or above $\log 2$?*

# %%
def first_loss(ref_model):
    """DPO's loss at step 0, after SFT in memory."""
    tuned, pairs = load_policy(small.model, device="cpu"), rows.pairs()
    settings = TrainingSettings(steps=6, batch_size=8, learning_rate=1e-3)
    train(tuned, pairs, "sft", settings=settings, progress=False)
    trainer = AlignmentTrainer(
        tuned.model, ref_model, TrainingSettings(steps=1, batch_size=None), pairs,
        processing_class=tuned.tokenizer, objective="dpo", output_dir=scratch / "first")
    trainer.train()
    return trainer.state.log_history[0]["loss"]


in_memory, reloaded = first_loss(None), first_loss(load_policy(small.model, device="cpu").model)
claim("20.in_memory", "this course", "after SFT, reference from memory: first loss minus log 2",
      expected=0, measured=in_memory - math.log(2), tolerance=1e-6)
claim("20.reloaded", "what TRL 1.16's DPOTrainer does",
      "reference from the disk instead: log 2 minus first loss", expected=1e-3, relation="at least",
      measured=math.log(2) - reloaded)

# %% [markdown]
# Below: SFT has moved the chosen responses up against the rejected ones, measured from that stale reference, so DPO believes that part of its work is done, and its leash is tied to another model. The course takes the reference from memory, or from the folder that the stage before saved. Look at the first loss of every run.
#
# **Updates that are rounded away.** At a learning rate of $10^{-6}$ Adam's first step is about $10^{-6}$ for each weight. bfloat16 has 8 significant bits: around $w$ with $2^e\le|w|<2^{e+1}$ its grid is $2^{e-7}$ wide, and less than half of that is lost. So a step counts only if $2^{e-8}<10^{-6}$, that is $|w|<2^{-11}$.

# %%
weights = torch.cat([p.detach().flatten() for p in load_policy(small.model, device="cpu").parameters()])
sign = torch.randint(0, 2, weights.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
changed = {}
for dtype in (torch.float32, torch.bfloat16):
    held_as = weights.to(dtype)
    changed[dtype] = float((held_as + (1e-6 * sign).to(dtype) != held_as).double().mean())
    print(f"{dtype}: a step of 1e-6 changes {changed[dtype]:.1%} of the weights")
claim("20.bf16", "IEEE rounding", "share of bf16 weights that the step changes: those below 2^-11",
      expected=float((weights.bfloat16().abs() < 2**-11).double().mean()), digits=5,
      measured=changed[torch.bfloat16], tolerance=1e-4)

# %% [markdown]
# A thousand such steps are lost like the first. So weights stay in float32, and only the products are in 16 bits. TRL's `bf16=True`, its default, is such mixed precision; a model whose *weights* are in bfloat16 is not. And transformers 5 loads weights in the format of the file, bfloat16 for Qwen2.5, unless you ask for `dtype=torch.float32`; TRL asks for it if you pass a name.
#
# **A lost end token.** Cutting at `max_length` from the right, as TRL does by default (1,024 tokens, `keep_start`), takes the end token of every row it touches: the model learns texts that do not stop.

# %%
pairs, tokenizer = rows.pairs(), policy.tokenizer
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cut, full_length = (encoding.encode(tokenizer, pairs.prompt, pairs.chosen, chat_template=True, **how)
                        for how in ({"max_length": 20, "over_length": "cut-response"}, {}))
touched = full_length.attention_mask.sum(1) > 20
ends = (cut.input_ids == tokenizer.eos_token_id).any(1)
print(f"max_length 20 touches {touched.double().mean():.0%} of the rows")
claim("20.end_token", "this course", "rows cut from the right that still have an end token (count)",
      expected=0, measured=int(ends[touched].sum()), tolerance=0)
try:
    AlignmentTrainer(policy.model, train_data=pairs, processing_class=tokenizer, objective="dpo",
                     max_length=20, output_dir=scratch / "cut")
except ValueError as error:
    print("refused:", str(error).split("\n")[0])

# %% [markdown]
# `align` leaves such rows out and counts them in `result.json`.
#
# ## 5 · On the bench with the others
#
# **LoRA** freezes a matrix $W$ of shape $m\times n$ and trains $W+2BA$ with $B$ of $m\times r$ and $A$ of $r\times n$. $B$ starts at zero, so the first loss is $\log 2$ again, and the reference is the same model with the adapter off: no second copy. Our default rate for it is twenty times larger: a habit, not a result.

# %% [markdown] exercise="20.3" part="task" stars=2 minutes=8
# ### What LoRA trains
# `shapes` lists the (rows, columns) of each matrix that gets an adapter. Return how many numbers are trained at this rank.

# %% exercise="20.3" part="stub"
def adapter_numbers(shapes: list[tuple[int, int]], rank: int) -> int:
    """Trained numbers of all adapters."""
    raise NotImplementedError


# %% exercise="20.3" part="check"
check("20.3", adapter_numbers)

# %% [markdown] exercise="20.3" part="hints"
# 1. Two thin matrices for each thick one.
# 2. m × r and r × n.
# 3. Sum over the matrices; the frozen ones are not trained.

# %% exercise="20.3" part="solution"
def adapter_numbers(shapes: list[tuple[int, int]], rank: int) -> int:
    return sum(rank * (rows + columns) for rows, columns in shapes)


check("20.3", adapter_numbers)

# %% tags=["nbval-ignore-output"]
lora = full
if done:
    rank, rate = (16, None) if real else (4, 6e-3)
    adapted = replace(run, model=str(sft.model), lora=rank, learning_rate=rate,
                      out=out(f"{METHOD}-lora"))
    lora = align(adapted, quiet=not real)
if lora.finished:
    arms = {"untouched": sft.record["evaluation"]["before"]}
    arms |= {each.record["stages"][-1]: each.record["evaluation"]["after"] for each in (sft, full, lora)}
    for name, found in arms.items():
        print(name)
        for number in ("chosen_log_prob", "rejected_log_prob", "ranking_accuracy"):
            low, high = found[number][1:3]
            print(f"    {number:18} {found[number][0]:7.2f}  [{low:.2f}, {high:.2f}]")

# %%
if lora.finished and not real:
    shape = gpu.shape_of(small.model)
    claim("20.lora", "Hu et al. 2021, section 4", "numbers that LoRA of rank 4 trains at seven matrices",
          expected=memory.lora_parameters(shape, 4), digits=6, tolerance=0,
          measured=lora.record["parameters"]["trained"])
    claim("20.lora_log2", "this course", "the first loss with a fresh adapter", expected=math.log(2),
          measured=lora.losses[0], tolerance=1e-6, digits=6)

# %% tags=["figure", "nbval-ignore-output"]
drawn, (left, right) = plots.figure(2, width=4.6, height=3.2)
shown = (("all weights", full, "blue"), ("LoRA", lora, "orange")) if done else ()
for name, result, colour in shown:
    colour = plots.PALETTE[colour]
    steps = range(1, len(result.losses) + 1)
    left.plot(steps, result.losses, "o-", color=colour, label=name)
    for side, style in (("chosen", "-"), ("rejected", "--")):
        rewards = [row.get(f"rewards/{side}", math.nan) for row in result.history]
        right.plot(steps, rewards, style, color=colour)
left.axhline(math.log(2), color=plots.INK, linestyle=":")
plots.label(left, 1, math.log(2), "log 2", xytext=(12, 4))
left.set(xlabel="update", ylabel="training loss")
if shown:
    left.legend(frameon=False)
right.set(xlabel="update", ylabel="beta x log-ratio", title="chosen solid, rejected dashed")
left.set_title("what the code did" if not real else run.model.split("/")[-1])
plots.show(drawn, alt="""Left: the training loss on all weights and of LoRA, both from log 2.
    Right: the rewards of chosen and rejected responses of both, all from zero.""")

# %% [markdown]
# On this page: a handful of updates of a pocket model on about fifty pairs, measured on sixteen held-out rows. The intervals overlap throughout, and nothing is compared. Which of the two is better *on a real model* is a question for the table below, over several seeds.

# %% [markdown] exercise="20.4" part="task" stars=3 minutes=20 open=true
# ### Read a run
# A colleague's log, DPO at β = 0.1 on a 0.5 B model: first loss 0.671; at update 100 the loss is 0.12, training accuracy 99 %; held out: loss 0.74, accuracy 63 ± 4 %; chosen drift −41 nats, rejected −78; answers three times as long; `bf16` weights, one seed. What is wrong, what merely unwise, what do you ask for next?

# %% [markdown] exercise="20.4" part="hints"
# 1. What must the first loss be, and what are the two usual reasons if it is not?
# 2. Compare the held-out loss with that of a policy that never moved.
# 3. Can answers grow longer without anybody wanting it? Which fault of section 4 does that?

# %% [markdown] exercise="20.4" part="solution"
# A good answer says: 0.671 is not log 2, so the reference is another model (reloaded after SFT); the run is to be repeated, not repaired. Held-out loss above log 2 means worse, by the loss, than not training: overfitted, stop earlier or raise β. Both drifts far below zero is lesson 05's effect, not a bug. Longer answers: check for cut end tokens first. bf16 weights: check how many moved. 63 ± 4 % with one seed is above chance and no more. Ask for two more seeds, held-out curves, samples.

# %% [markdown]
# ## When to use it
#
# - **Full fine-tune**, when it fits: nothing to choose but the rate. Up to about 1 B on a card with 24 GB, with remedies.
# - **LoRA**, when it does not, or when many variants of one base are served. Its rank and places are choices: report them.
# - **SFT first**, if the chosen responses are unlike what the model says; else DPO spends its steps on form.
# - **Not at all**, before the held-out loss of a short run has come below log 2.
#
# ## What we measured
#
# First the table of real runs, built from raw JSON; then the ledger of what is exact.

# %%
results_table()

# %%
ledger.rows("20")

# %% [markdown]
# ## Common errors
#
# | what you see | why | what to do |
# |---|---|---|
# | `model-gated` | licence or login is missing | the message says both steps |
# | `card-too-small` | the plan does not fit | the options it names |
# | first loss is not log 2 | another reference, or dropout | section 4 |
# | slow on a T4 | bf16 is emulated there | leave precision to `gpu.precision` |
# | `CUDA out of memory`, though it fits | an earlier kernel still holds the card | restart it |
# | `run-of-other-settings` | `OUT` holds other settings | another `OUT` |
# | all runs are gone | the Colab machine was recycled | `OUT` on a Drive, or fewer `STEPS` |
# | loss falls, answers as before | rounded updates, or a tiny rate | look at the drift |

# %% [markdown]
# ## References
#
# - Rafailov et al. 2023, *Direct Preference Optimization*, arXiv 2305.18290: equation (7), appendix B.
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685: section 4.
# - Kingma & Ba 2015, *Adam*, arXiv 1412.6980: algorithm 1.
# - Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174: activations redone.
# - Bai et al. 2022, *Training a Helpful and Harmless Assistant*, arXiv 2204.05862: the data HH-RLHF.
# - Qwen Team 2024, *Qwen2.5*, arXiv 2412.15115. TRL 1.16: `trl/trainer/dpo_trainer.py`, `dpo_config.py`.
#
# ## Next
#
# **21 · Ratio methods on real data**: other objectives, the same run.
