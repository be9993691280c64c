# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
#   course: {title: "Scaling out", world: real, gpu: optional}
# ---

# %% [markdown]
# # 23 · Scaling out
#
# The script of lessons 20 and 21, unchanged, on two cards, on eight, on two machines. You will know what is divided, what travels and what it costs before you rent anything, and you will check that more processes give the same numbers, here, with two of them and no card.

# %% [markdown]
# ## Objectives
#
# You will be able to say what n cards share and what they do not; find the mean that is wrong when every process takes its own; compute the bytes that travel, and when the network is the limit; launch, stop and resume a run on any number of processes; estimate energy, money and carbon.
#
# ## Prerequisites
#
# Lesson 20. About 75 minutes with the exercises. Test yourself:
#
# <details><summary>Bytes of a weight, its gradient and Adam's two means?</summary>16, in float32.</details>
# <details><summary>What must be known before the first piece of an update?</summary>How much each example counts.</details>
#
# *Not covered:* tensor and pipeline parallelism, DeepSpeed.

# %%
try:
    import course_utils
except ImportError:  # on Colab: install this package alone, and change nothing else there
    package = "git+https://github.com/{{repository}}@{{branch}}"
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {package}")
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from course_utils import experiments, gpu, launch, ledger, objectives, plots, statistics
from course_utils.alignment_runs import RunSettings, align, practice_material, results_table
from course_utils.labs.checks import check
from course_utils.ledger import claim

# %% [markdown]
# **What runs.** Everything that is checked below runs on this machine's processor (Linux or macOS), with the pocket Qwen2 and 64 rows: **that proves the code, and no result.** Nothing on this page ran on a card. With two cards or more, section 5 also launches the real run. Price and carbon are yours to fill in: ours are placeholders.
#
# Two processes need a while to start, so the second cell below launches them now; section 3 looks at what they found. The script is `course_utils.alignment_runs`, with the options of `course align`.

# %% tags=["parameters"]
MODEL = None  # "Qwen/Qwen2.5-1.5B-Instruct", a folder; None: the 0.5B one, if there are cards
DATA = None  # "hh-helpful", "ultrafeedback-binarized", a file with chosen and rejected
METHOD = "dpo"
STEPS = 300
LAUNCH = None  # "two_gpus", "eight_gpus"; None: two_gpus where there are two cards
PRICE = 1.0  # of your card for an hour, in your money: see your provider's bill
GRAMS = 400.0  # of CO2 equivalent for a kWh where the card is: see your grid, or electricitymaps.com
PUE = 1.2  # what cooling adds: see the building's operator

# %%
scratch = Path(tempfile.mkdtemp())
practice = practice_material(scratch / "practice")
small = RunSettings(practice.model, practice.data, steps=4, batch=8, micro_batch=2, learning_rate=3e-4,
                    prompt=32, response=40, held_out=0.25, held_out_rows=8, samples=0, device="cpu",
                    out=scratch / "one")


def at(name):
    """The same run in a folder of its own."""
    return replace(small, out=scratch / name)


def started(config, *words):
    """`accelerate launch` with one of the shipped configurations, in the background."""
    begin = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", launch.path(config)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(scratch / "launch.log", "a", encoding="utf-8") as log:
        return subprocess.Popen([*begin, *words], env=quiet, stdout=log, stderr=subprocess.STDOUT)


options = shlex.split(at("two").command)[2:]  # without "course align"
launched = started("two_processes_cpu", "-m", "course_utils.alignment_runs", *options)

# %%
cases = {"1 card": (1, 1), "2 cards, copies": (1, 2), "2 cards, shards": (2, 2),
         "8 cards, copies": (1, 8), "8 cards, shards": (8, 8)}
names = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct")


def per_card(name, shards, cards):
    """The plan of one of so many cards: 32 pairs an update, 4 at a time on each."""
    batch = 32 if shards > 1 else 32 // cards
    return gpu.plan(name, batch=batch, micro_batch=4, shards=shards, checkpointing=True)


plans = {name: [per_card(name, *case) for case in cases.values()] for name in names}

# %% tags=["figure"]
groups = {"weights": ("blue", ["weights", "gathered weights", "16-bit copies of the weights"]),
          "gradients": ("sky", ["gradients", "gradients, accumulated", "gradients, one layer"]),
          "Adam": ("green", ["optimiser (adamw)"]),
          "activations, logits": ("orange", ["activations", "gradients on their way back", "logits"]),
          "CUDA, gaps": ("sand", ["CUDA and gaps"])}
drawn, panels = plots.figure(2, width=5.0, height=3.4)
for axes, name in zip(panels, names, strict=True):
    for row, made in enumerate(reversed(plans[name])):
        sizes, left = {part.name: part.gib for part in made.parts}, 0
        for colour, members in groups.values():
            width = sum(sizes.get(each, 0) for each in members)
            axes.barh(row, width, left=left, color=plots.PALETTE[colour], height=0.6)
            left += width
    for card in ("L4", "A100-40")[: 1 if "0.5B" in name else 2]:
        axes.axvline(gpu.CARDS[card].memory, color=plots.INK, linestyle=":")
        axes.text(gpu.CARDS[card].memory - 0.2, -0.75, card, ha="right", fontsize=9)
    axes.set(yticks=range(5), yticklabels=list(reversed(cases)), ylim=(-1, 4.5), title=name[5:17])
    axes.set_xlabel("GiB on each card, planned")
panels[1].set_yticklabels([])
panels[0].set(xlim=(0, 24), xticks=range(0, 21, 5))
for place, (word, (colour, _)) in enumerate(groups.items()):
    panels[0].text(12.2, 3.9 - 0.6 * place, word, color=plots.PALETTE[colour], fontweight="bold")
plots.show(drawn, alt="""Stacked bars of planned memory on each card, two models, on 1, 2 and 8 cards.
    Copies take the same on any number of cards. With shards Adam's part and the stored weights shrink;
    activations stay, and on two cards the accumulated gradients stay whole.""")

# %% [markdown]
# Arithmetic, not a measurement: one DPO update of 32 pairs, 4 at a time on each card. **Copies** (DDP) save no memory: each card holds everything (and buckets as large as the gradients, not drawn). **Shards** (FSDP) divide weights, gradients and Adam's means. *Predict: why do two cards save so much less than half?*
#
# Activations belong to a card's own rows, and 16-bit copies of the layers' weights stay whole. With four passes to an update, accelerate 1.15 adds up *whole* gradients on every card, 4 bytes a weight, and shares them out after the last. One pass an update is the layout that saves. The tests count these bytes on two real processes.

# %% [markdown]
# ## 1 · Derive
#
# **The mean.** Process $k$ of $n$ has $b$ rows and the gradient $g_k=\frac1b\sum_{i\in k}\nabla\ell_i$. Averaging over processes gives
#
# $$\frac1n\sum_k g_k=\frac1{nb}\sum_i\nabla\ell_i ,$$
#
# the gradient of the whole update, *because every process has the same $b$*. RDRO adds two class means: that of the preferred rows' losses, and that of the others'. Each process could take them over its own rows. *Predict: is the average over processes still right?*

# %%
random = torch.Generator().manual_seed(0)
ref = torch.randn(8, generator=random, dtype=torch.float64)
policy = torch.randn(8, generator=random, dtype=torch.float64, requires_grad=True)
preferred = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)  # 3 of 4, and 1 of 4
first, second = torch.arange(8).split(4)


def rdro(rows):
    losses = objectives.get("rdro").loss(policy[rows], ref[rows], preferred[rows], alpha=0.4)
    return objectives.classwise_mean(losses, preferred[rows])


# %%
def slope(loss):
    """The gradient in each row's log-probability."""
    return torch.autograd.grad(loss, policy, retain_graph=True)[0]


plain, every = -logsigmoid(policy), torch.arange(8)
apart = (plain[first].mean() + plain[second].mean()) / 2
claim("23.mean_of_gradients", "linearity",
      "equal row counts: mean of two processes' gradients less gradient of the mean (largest)",
      expected=0, measured=float((slope(apart) - slope(plain.mean())).abs().max()), tolerance=1e-12)
whole, apart = rdro(every), (rdro(first) + rdro(second)) / 2
print(f"loss of the update {whole.item():.4f}, mean of two processes {apart.item():.4f}")
right, wrong = slope(whole), slope(apart)
claim("23.class_means", "this course",
      "RDRO's class means taken in each of two processes: relative error of its gradient",
      expected=0.1, relation="at least", measured=float((right - wrong).norm() / right.norm()))

count = torch.where(preferred, preferred.sum(), (~preferred).sum())
losses = objectives.get("rdro").loss(policy, ref, preferred, alpha=0.4)
shares = [2 * (losses / count)[rows].sum() for rows in (first, second)]  # averaging divides by 2
claim("23.class_weights", "this course",
      "RDRO's row weights settled for the whole update of two processes: error of its gradient",
      expected=0, measured=float((slope(sum(shares) / 2) - right).abs().max()), tolerance=1e-12)

# %% [markdown]
# The mean of means is wrong, and nothing fails: a preferred row in the second process counts three times as much as one in the first. A process without a row of a class would take the mean of nothing. The remedy is that of lesson 20's pieces: settle each row's weight **for the whole update**, before it is handed out. Then every process sums.

# %% [markdown] exercise="23.1" part="task" stars=2 minutes=10
# ### What a row counts
# `preferred` is a list of tensors of truth values, one for each process. The framework *averages* gradients over processes. Return a list of tensors of weights, float64, such that each process may sum weight × loss, and the average is (mean over all preferred) + (mean over all others).

# %% exercise="23.1" part="stub"
def row_weights(preferred: list[Tensor]) -> list[Tensor]:
    """The weight of every row of every process."""
    raise NotImplementedError


# %% exercise="23.1" part="check"
check("23.1", row_weights)

# %% [markdown] exercise="23.1" part="hints"
# 1. Count each class over all processes: `torch.cat(preferred)`.
# 2. A row counts one over the size of its class.
# 3. The average over n processes divides by n, so multiply by n before. Counts divide to float32: `.double()` first.

# %% exercise="23.1" part="solution"
def row_weights(preferred: list[Tensor]) -> list[Tensor]:
    every = torch.cat(preferred)
    yes, no = len(preferred) / every.sum().double(), len(preferred) / (~every).sum().double()
    return [torch.where(each, yes, no) for each in preferred]


check("23.1", row_weights)

# %% [markdown]
# **The ring.** An *all-reduce* gives each of n cards the sum of their n vectors. They stand in a circle, each vector cut into n pieces. In $n-1$ turns each card passes a piece on and its neighbour adds its own: every card has one finished piece (*reduce-scatter*). In $n-1$ more turns these go round (*all-gather*). Each turn sends $1/n$ of the vector: $2\frac{n-1}n$ in all.
#
# So with one pass an update, sharding gradients and optimiser costs **no** extra traffic: an all-reduce was those two halves all along. Taking layers apart after the forward pass (`reshard`) gathers them twice: half as much again, for the least memory. Tied embeddings stay together and travel once.

# %%
def all_reduce(vectors):
    """The sum on every card, by a ring, and what each card sent in either half."""
    n, sent = len(vectors), [0, 0]
    parts = [list(vector.clone().chunk(n)) for vector in vectors]
    for turn in range(2 * (n - 1)):
        adding = turn < n - 1
        places = [(card - turn) % n for card in range(n)]
        moving = [parts[card][place].clone() for card, place in enumerate(places)]  # all at once
        for card, place in enumerate(places):
            there = parts[(card + 1) % n]
            there[place] = there[place] + moving[card] if adding else moving[card]
        sent[0 if adding else 1] += len(moving[0])
    return [torch.cat(each) for each in parts], sent


vectors = list(torch.randn(8, 64, generator=random, dtype=torch.float64))
summed, (scattered, gathered) = all_reduce(vectors)
claim("23.ring_sum", "Patarasuk & Yuan 2009", "all-reduce by a ring of 8: results less sum (largest)",
      expected=0, measured=float((torch.stack(summed) - sum(vectors)).abs().max()), tolerance=1e-12)
claim("23.ring_bytes", "Patarasuk & Yuan 2009",
      "all-reduce by a ring of 8: numbers a card sends for each number of its vector",
      expected=2 * 7 / 8, measured=(scattered + gathered) / 64, tolerance=0)

# %%
full = gpu.plan(names[0], batch=32, shards=8, reshard=False)
moved = sum(part.bytes for part in full.traffic)
claim("23.two_halves", "Rajbhandari et al. 2020, section 7",
      "8 shards, one pass, no reshard: bytes a card sends for each weight, as an all-reduce does",
      expected=2 * 7 / 8 * 4, measured=moved / full.shape.parameters, tolerance=1e-9)
for part in gpu.plan(names[1], batch=32, micro_batch=4, shards=8).traffic:
    print(f"{part.name:36} {part.bytes / 1e9:6.2f} GB   {part.how}")

# %% [markdown] exercise="23.2" part="task" stars=2 minutes=8
# ### Bytes on the wire
# A model of `parameters` float32 weights in shards over `cards`; an update has `passes`. Each pass gathers all weights for the forward pass, and again for the backward pass if `reshard`. Gradients are shared out once an update. Return the bytes that each card sends.

# %% exercise="23.2" part="stub"
def sent_bytes(parameters: int, cards: int, passes: int, reshard: bool) -> float:
    """Bytes that each card sends in an update."""
    raise NotImplementedError


# %% exercise="23.2" part="check"
check("23.2", sent_bytes)

# %% [markdown] exercise="23.2" part="hints"
# 1. A gather and a reduce-scatter each send (n−1)/n of the whole.
# 2. Gathers: one or two in each pass.
# 3. A number in float32 has 4 bytes.

# %% exercise="23.2" part="solution"
def sent_bytes(parameters: int, cards: int, passes: int, reshard: bool) -> float:
    gathers = passes * (2 if reshard else 1)
    return (cards - 1) / cards * 4 * parameters * (gathers + 1)


check("23.2", sent_bytes)

# %% [markdown]
# **How much faster?** Let an update be $A$ seconds of arithmetic on one card, and $C$ seconds of traffic if all its bytes had to travel. On n cards these become $A/n$ and $\frac{n-1}{n}C$, and $C$ shrinks only if the passes get fewer. At best one hides behind the other, so the speed-up is at most $\frac{n}{n-1}\frac AC$, whatever you pay. *Predict: over 25 Gbit Ethernet, how fast are two cards?*
#
# $A$ is the plan's (30 % of the data sheet), and so are the networks (three quarters of theirs): **assumptions**, to be replaced by your measurements.
#
# <details><summary>If the network decides: remedies, in order</summary>More rows in a pass and reshard off (last lines below), copies if the model fits, LoRA, a faster network.</details>

# %% tags=["figure"]
links = {"NVLink 4": "green", "400 Gbit InfiniBand": "blue", "25 Gbit Ethernet": "orange",
         "10 Gbit Ethernet": "pink"}
drawn, axes = plots.figure(width=6.8, height=3.4)
many, card, speeds = (1, 2, 4, 8, 16), gpu.CARDS["H200"], {}
one = gpu.plan(names[1], batch=64, micro_batch=4, checkpointing=True)
for link, colour in links.items():
    spread = [replace(one, shards=n) for n in many[: 4 if "NVLink" in link else 5]]  # one machine
    times = [each.step_seconds(card, gpu.LINKS[link]) for each in spread]
    speeds[link] = [one.seconds(card) / each for each in times]
    axes.plot(many[: len(times)], speeds[link], "o-", color=plots.PALETTE[colour])
    place = (-74, 4) if "NVLink" in link else (6, -4)
    plots.label(axes, many[len(times) - 1], speeds[link][-1], link, plots.PALETTE[colour], xytext=place)
axes.plot(many, many, ":", color=plots.INK)
axes.axhline(1, color=plots.GREY, linewidth=0.8)
axes.set(xscale="log", yscale="log", xlabel="H200 cards", ylabel="speed-up by plan", xlim=(0.9, 90))
axes.set_xticks(many, many)
axes.set_yticks((0.1, 1, 10), ("0.1", "1", "10"))
axes.minorticks_off()
axes.set_title("Qwen2.5-1.5B, 64 pairs an update, 4 at a time on each card")
plots.show(drawn, alt="""Planned speed-up against the number of cards, logarithmic axes. NVLink follows
    the dotted line of slope one up to 8 cards; InfiniBand leaves it from 4 on; over 25 and 10 Gbit
    Ethernet two cards are slower than one, and so are sixteen.""")

# %%
for link, found in speeds.items():
    print(f"{link:20}", "  ".join(f"n = {n}: {each:5.2f}" for n, each in zip(many, found)))
for rows, reshard in ((4, True), (8, True), (8, False)):  # 8 rows are one pass
    made = replace(one, shards=8, micro_batch=rows, reshard=reshard)
    print(f"8 cards, 25 Gbit, {rows} at a time, {'' if reshard else 'no '}reshard:",
          f"{one.seconds(card) / made.step_seconds(card, gpu.LINKS['25 Gbit Ethernet']):.2f}")

# %% [markdown] exercise="23.3" part="task" stars=2 minutes=8
# ### The honest speed-up
# `arithmetic` are the seconds of an update on one card; `whole` the seconds that all bytes of the update would take if everything had to travel, of which a ring sends (n−1)/n. Nothing overlaps. Return how many times faster n cards are than one.

# %% exercise="23.3" part="stub"
def speed_up(cards: int, arithmetic: float, whole: float) -> float:
    """Seconds on one card over seconds on so many."""
    raise NotImplementedError


# %% exercise="23.3" part="check"
check("23.3", speed_up)

# %% [markdown] exercise="23.3" part="hints"
# 1. One card sends nothing.
# 2. Without overlap, seconds add up.
# 3. Old over new.

# %% exercise="23.3" part="solution"
def speed_up(cards: int, arithmetic: float, whole: float) -> float:
    return arithmetic / (arithmetic / cards + (cards - 1) / cards * whole)


check("23.3", speed_up)

# %% [markdown]
# ## 2 · Implement
#
# Fully sharded Adam, with one process that plays four cards. Each keeps a quarter of the weights and of Adam's means. *Predict: how near to unsharded Adam after fifty updates?* Adam treats each weight by itself, so nothing but the order of a sum differs.

# %%
data, start = torch.randn(64, 24, generator=random, dtype=torch.float64), torch.zeros(24).double()


def gradient(w, rows):  # of the mean of -log sigmoid
    return -(torch.sigmoid(-rows @ w)[:, None] * rows).mean(0)


def adam(w, m, v, g, t):  # in place, a whole vector or a shard
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g * g)
    w.sub_(0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))


def train_on(cards):
    """Fifty updates: gather, gradient of the own rows, reduce-scatter, Adam on the own shard."""
    shards = list(start.clone().chunk(cards))
    means = [(torch.zeros_like(shard), torch.zeros_like(shard)) for shard in shards]
    for t in range(1, 51):
        gradients = [gradient(torch.cat(shards), rows) for rows in data.chunk(cards)]
        averaged = torch.stack(gradients).mean(0).chunk(cards)
        for shard, (m, v), g in zip(shards, means, averaged, strict=True):
            adam(shard, m, v, g, t)
    return shards


in_shards, alone = train_on(4), train_on(1)[0]
claim("23.sharded_adam", "Rajbhandari et al. 2020",
      "fifty updates by Adam in four shards, and whole: weights apart (largest)",
      expected=0, measured=float((torch.cat(in_shards) - alone).abs().max()), tolerance=1e-12)

# %% [markdown]
# FSDP does this layer by layer, and fetches the next layer while one is computed. In torch 2.13 it is `fully_shard(layer)`; accelerate calls it for every layer if the configuration says `fsdp_version: 2`. Our trainer refuses version 1 and DeepSpeed, and says why.
#
# ## 3 · Verify against the exact optimum
#
# The exact reference of a run on many processes is the run on one: here, in the notebook. A second run is stopped here after two of four updates, and finished by two processes. A third is begun by those two, and finished here. *Predict: how far apart are the losses of these runs?*

# %% tags=["nbval-ignore-output"]
whole = align(small, quiet=True)
align(at("one to two"), stop_after=2, quiet=True)
if launched.wait(300):
    print((scratch / "launch.log").read_text()[-2000:])
sessions = [(None, at("one to two").plain()), (2, at("two to one").plain())]
(scratch / "sessions.json").write_text(json.dumps(sessions))
(scratch / "sessions.py").write_text("""
import json, sys
from course_utils.alignment_runs import RunSettings, align
for stop_after, settings in json.load(open(sys.argv[1])):
    align(RunSettings(**settings), stop_after=stop_after, quiet=True)
""")
continued = started("two_processes_cpu", str(scratch / "sessions.py"), str(scratch / "sessions.json"))

# %% tags=["nbval-ignore-output"]
def largest(losses):
    """How far these losses are from those of the run on one process that never stopped."""
    return max(abs(a - b) for a, b in zip(losses, whole.losses, strict=True))


def stored(name):
    """The losses that a finished run wrote down."""
    return [row["loss"] for row in json.loads((scratch / name / "result.json").read_text())["history"]]


two = stored("two")
claim("23.log2", "Rafailov et al. 2023, eq. (7)", "first DPO loss of two processes in shards",
      expected=math.log(2), measured=two[0], tolerance=1e-6, digits=6)
claim("23.two_processes", "this course",
      "pocket Qwen2, losses of 4 DPO updates: two processes in shards less one (largest)",
      expected=0, measured=largest(two), tolerance=1e-4)
if continued.wait(300):
    print((scratch / "launch.log").read_text()[-2000:])
back = align(at("two to one"), quiet=True)
claim("23.one_to_two", "this course",
      "DPO run stopped on one process, resumed on two: losses less an unbroken run's (largest)",
      expected=0, measured=largest(stored("one to two")), tolerance=1e-4)
claim("23.two_to_one", "this course",
      "DPO run stopped on two processes, resumed on one: losses less an unbroken run's (largest)",
      expected=0, measured=largest(back.losses), tolerance=1e-4)

# %% [markdown]
# A checkpoint holds whole tensors under the weights' names, written by the first process; who reads takes its part. The order of the rows follows from seed and step. *Not* shown: NCCL, bf16, memory saved.
#
# ## 4 · Break it on purpose
#
# **A file for each rank** (a process' number): every process saves what it holds. Fast; but read by ranks in another order it fits, and is wrong.
#
# **The same rows twice.** Each process draws its own rows. *Predict how many of the 8 rows of an update differ, if both use the same seed; if different ones. Which share of all rows is never seen, if each takes half an epoch from an order of its own?*

# %%
files = train_on(2)  # of rank 0 and rank 1
print(f"right weights: loss {-logsigmoid(data @ torch.cat(files)).mean():.4f}")
print(f"ranks swapped: loss {-logsigmoid(data @ torch.cat(files[::-1])).mean():.4f}, and no error")


def drawn_rows(seed, count):
    return torch.randperm(48, generator=torch.Generator().manual_seed(seed))[:count].tolist()


draws = {"one order, handed out": drawn_rows(0, 8), "same seed": drawn_rows(0, 4) * 2,
         "seeds 0 and 1": drawn_rows(0, 4) + drawn_rows(1, 4)}
for name, rows in draws.items():
    print(f"{name:22} {len(set(rows))} different rows")
left_out = [1 - len({*drawn_rows(2 * s, 24), *drawn_rows(2 * s + 1, 24)}) / 48 for s in range(200)]
left_out = statistics.mean_interval(left_out)
claim("23.own_orders", "1/2 x 1/2, independent orders",
      "two processes, each half an epoch in an order of its own: rows left out (200 draws)",
      expected=0.25, measured=left_out.estimate, interval=left_out)

# %% [markdown]
# Each process misses half of the rows, so together they miss a quarter, and take another quarter twice. One order, handed out, cannot.
#
# **Everyone its own clock.** A time limit that each process reads for itself: one stops an update earlier than the other, saves, and the other waits for its gradient. Two processes, limits of 3 and 5 updates; first the first one decides for both, then each for itself.

# %%
_ = (scratch / "clocks.py").write_text("""
import datetime, os, sys, time, torch
import torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=2))
for shared in (True, False):
    steps = 0
    try:
        while True:
            over = torch.tensor([float(steps >= 3 + 2 * rank)])
            if shared:
                dist.broadcast(over, 0)  # the remedy: the first process decides
            if over:
                break
            dist.all_reduce(torch.ones(1))
            steps += 1
        print("shared" if shared else "own", rank, "finished", steps, flush=True)
    except RuntimeError:
        print("own", rank, "waited", steps, flush=True)
if rank == 0:
    time.sleep(4)  # it is saving the model
os._exit(0)
""")

# %%
alone = [sys.executable, str(scratch / "clocks.py")]
pair = [subprocess.Popen([*alone, str(rank), str(scratch / "meet")], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True) for rank in (0, 1)]
lines = [line.split() for each in pair for line in each.communicate(timeout=120)[0].splitlines()]
for clock, rank, ending, steps in sorted(lines, reverse=True):
    print(f"{clock:7} clock, process {rank}: {ending} after {steps} updates")
ended = {clock: [line for line in lines if line[0] == clock and line[2] == "finished"]
         for clock in ("shared", "own")}
claim("23.one_clock", "this course",
      "limits of 3 and 5 updates, the first decides: processes of 2 that finish after the same one",
      expected=2, measured=len(ended["shared"]) if len({e[3] for e in ended["shared"]}) == 1 else 0,
      tolerance=0)
claim("23.own_clock", "this course",
      "limits of 3 and 5 updates, each process keeps its own: processes of 2 that finish",
      expected=1, measured=len(ended["own"]), tolerance=0)

# %% [markdown]
# With cards the wait ends at NCCL's time limit: half an hour by transformers' default (`ddp_timeout`), ten minutes by torch's, all cards at full price. Our `TimeBudget` asks all of them after each update, and all stop if one must.
#
# **The same batch on every card.** On eight cards that is an update of eight times the rows: another run. Its gradient is less noisy, variance $\sigma^2/B$, and the rate was tuned for the old one; rate times 8, or times √8, are guesses. Keep `batch` and divide it: nothing to guess.
#
# ## 5 · On the bench with the others
#
# How much less noisy? A sweep measures it: a function in a file, and a grid of its settings.

# %%
(scratch / "sweep23.py").write_text('''
import torch
from course_utils.experiments import Experiment

def noise(batch, seed):
    """Mean squared error of a batch's gradient, over 300 batches of logistic regression."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(4000, 24, generator=random, dtype=torch.float64)
    each = -0.5 * rows  # the gradient of -log sigmoid(row @ w) at w = 0
    drawn = torch.randint(4000, (300, batch), generator=random)
    return {"squared": float((each[drawn].mean(1) - each.mean(0)).square().sum(1).mean())}

SWEEP = Experiment("23_noise", noise, [{"batch": b, "seed": s} for b in (8, 64) for s in range(6)])
''')
sys.path.insert(0, str(scratch))
sweep = importlib.import_module("sweep23").SWEEP
here = experiments.compute(sweep, folder=scratch / "here", progress=False)
squared = torch.tensor([run["result"]["squared"] for run in here]).reshape(2, 6)
ratio = statistics.mean_interval(squared[0] / squared[1])
claim("23.noise", "variance of a mean",
      "logistic regression: variance of the gradient of 8 rows over that of 64 (6 seeds)",
      expected=8, measured=ratio.estimate, interval=ratio)

# %%
try:
    from distributed import LocalCluster
except ImportError:
    print('pip install "course-utils[cluster]" runs the sweep on a cluster too')
else:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                      silence_logs=50) as cluster:
        there = experiments.compute(sweep, cluster=cluster.scheduler_address, folder=scratch / "there",
                                    progress=False)
    differ = sum(a["result"] != b["result"] for a, b in zip(here, there, strict=True))
    claim("23.cluster", "this course",
          "a sweep of 12 runs, in this process and by two Dask workers: results that differ",
          expected=0, measured=differ, tolerance=0)

# %% [markdown]
# On a terminal: `dask scheduler`, on each machine `dask worker ADDRESS --nthreads 1`, then `course experiments run NAME --cluster ADDRESS`. A killed worker loses the run it was at, which goes to another; a killed submitter nothing that was finished (`tests/test_experiments.py` kills both).
#
# **Speed.** *Predict: two processes on this machine, how much faster?* No claim: a pocket model has nothing to divide, and its layers wait for messages that take longer than their arithmetic. After that line the real run, where there are cards:

# %% tags=["nbval-ignore-output"]
seconds = json.loads((scratch / "two" / "result.json").read_text())["seconds"]
print(f"one process {whole.record['seconds']:.1f} s, two {seconds:.1f} s; {os.cpu_count()} cores\n")
config = LAUNCH or "two_gpus"
real = RunSettings(MODEL or "Qwen/Qwen2.5-0.5B-Instruct", DATA or "hh-helpful", METHOD, steps=STEPS,
                   batch=64, micro_batch=4, checkpointing=True)
command = ["-m", "course_utils.alignment_runs", *shlex.split(real.command)[2:]]
print("accelerate launch --config_file", f"{config}.yaml", " ".join(command))
if torch.cuda.device_count() > 1:
    with gpu.energy_meter() as meter:
        subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                        launch.path(config), *command], check=True)
    print(meter)

# %% [markdown]
# **Cost.** In given seconds the cards use at most seconds × watts of the data sheet × cards: one that waits draws less. But the seconds are the plan's (30 % of the best rate, activations redone not counted), so this is an **estimate** and no bound, without measuring, loading, or the machine around the card. The runs of lessons 20 and 21: 300 updates of 16 examples; a DPO example is two texts, the others' one.

# %%
print(f"estimates; {PRICE:g} an hour for any card, {GRAMS:g} g/kWh, PUE {PUE:g}: fill in yours")
print(f"{'':6} {'card':8} {'hours':>6} {'kWh':>7} {'money':>6} {'kg CO2e':>8}  with")
for method in ("sft", "dpo", "rdro"):
    for name, card in gpu.CARDS.items():
        made, words = gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", method, batch=16).remedy(card)
        cost = gpu.estimate(made, card, 300, price=PRICE, grams=GRAMS, pue=PUE)
        print(f"{method:6} {name:8} {cost.card_hours:6.3f} {cost.kwh:7.3f} {cost.money:6.3f} "
              f"{cost.carbon_kg:8.3f}  {words}")

# %% [markdown]
# **From one card to eight.** (1) `one_gpu`, 20 updates: first loss log 2, memory as planned. (2) `two_gpus`, same `--batch`: same losses, to bf16's rounding. (3) Stop it, resume on one. (4) `eight_gpus`, `--micro-batch` as large as fits. (5) Two nodes if the sum above says so; both see `/shared`. Submitted again, it goes on.
#
# ```bash
# course launch-config two_nodes --copy .
# # sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=90
# export HF_HOME=/shared/hf FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun --cpus-per-task=64 bash -c 'accelerate launch --config_file two_nodes.yaml \
#     --main_process_ip $FIRST --machine_rank $SLURM_NODEID -m course_utils.alignment_runs \
#     --model ... --batch 64 --micro-batch 4 --minutes 55 --out /shared/run'
# ```

# %% [markdown] exercise="23.4" part="task" stars=3 minutes=20 open=true
# ### Seven times faster
# "We moved RDRO from one card to eight on two nodes: `batch` 16 on each instead of 16, learning rate × 8, each process shuffles with its own seed and averages its own class means. Updates per hour fell to 0.9 of before, rows per hour rose 7 times; final accuracy 71 % against 68 ± 3 %. Energy fell, as training ended sooner." What is wrong, what unproven, and what do you run next?

# %% [markdown] exercise="23.4" part="hints"
# 1. What is the quantity "seven times" counts, and is it the one that matters?
# 2. Which of the changes alter the optimum, which only the path, which nothing?
# 3. Eight cards at full power for a seventh of the time.

# %% [markdown] exercise="23.4" part="solution"
# A good answer says: class means per process are another objective where classes are unequal: wrong, mend first. Own seeds repeat and omit rows. Batch 128 with rate × 8 is another run, not a faster one; 71, one run without an interval of its own, lies at the edge of 68 ± 3: unproven. Rows per hour is throughput; time to a held-out loss is what matters. Energy: eight cards over a seventh of the time are 8/7 of it at full power, so more, unless counters say otherwise. Next: the same `batch` 16 on eight cards, equal losses; then batch 128 with several rates and seeds, both at equal rows.

# %% [markdown]
# ## When to use it
#
# - **One card**, as long as it fits with lesson 20's remedies: nothing here is faster per card.
# - **Copies** (`torchrun --nproc-per-node=8 -m course_utils.alignment_runs`), if the model fits and time is short. **Shards**, if it does not fit, with few passes an update. The weights alone must still fit a card: each process loads them whole to score the reference.
# - **LoRA in copies** before a second node: only the adapters' gradients travel.
# - **A sweep** instead of a larger run: five seeds on five cards tell more than one seed on five.
#
# ## What we measured
#
# First the real runs and, beside each, what it used; then the ledger.

# %%
measured = results_table()
print(measured)
for record in measured.runs:
    print(Path(record["base"]).name, record["card"], gpu.of_record(record, grams=GRAMS, pue=PUE))
ledger.rows("23")

# %% [markdown]
# ## Common errors
#
# | it hangs or dies | why, and what to do |
# |---|---|
# | at the start | a machine is missing, or `main_process_port` is closed or taken |
# | at the first exchange | NCCL took a wrong network: `NCCL_DEBUG=INFO` shows which, `NCCL_SOCKET_IFNAME` names another |
# | in the middle | one process left the path: `py-spy dump` on each; `TORCH_NCCL_DUMP_ON_TIMEOUT=1` and `torchfrtrace` show the last calls |
# | at saving | a collective call under "if first process" |
# | `connection closed`, on most | another died first, often out of memory |
# | on one node alone | other versions: compare `pip freeze` |
# | `no such file`, on one node | `--out`, data or `HF_HOME` is not shared |

# %% [markdown]
# | it runs, or is refused | why, and what to do |
# |---|---|
# | `sharded-training` | FSDP 1, DeepSpeed or offloading: use the shipped files |
# | `run-setting` about processes | `batch` is no multiple of `micro_batch` × processes |
# | `card-too-small`, with shards | whole weights must fit each card at the start |
# | killed while loading | eight processes load eight whole models: ask for the machine's memory (`--mem`) |
# | eight processes, slower than one | the queue gave one core: `--cpus-per-task`, for `srun` too |
# | little memory saved | several passes, or checkpointing off |
# | losses differ from one card | section 4, in its order |
# | `cluster-other-code` | workers have another version of the course |

# %% [markdown]
# ## References
#
# - Rajbhandari et al. 2020, *ZeRO*, arXiv 1910.02054: sections 5 and 7 (memory; 2Ψ and 3Ψ of traffic).
# - Zhao et al. 2023, *PyTorch FSDP*, arXiv 2304.11277.
# - Patarasuk & Yuan 2009, *Bandwidth optimal all-reduce algorithms for clusters of workstations*, JPDC 69.
# - Goyal et al. 2017, *Accurate, Large Minibatch SGD*, arXiv 1706.02677: the linear rule and its limits.
# - Strubell et al. 2019, arXiv 1906.02243; Lacoste et al. 2019, arXiv 1910.09700: energy and carbon.
# - accelerate 1.15: `accelerate/utils/fsdp_utils.py`; torch 2.13: `torch/distributed/fsdp/_fully_shard`.
#
# ## Next
#
# This is the last lesson. **13 · One bench** shows how to compare what you have scaled; **22** how to measure it.
