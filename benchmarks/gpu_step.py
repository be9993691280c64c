"""One training step on a graphics card: tokens per second, share of the card's rate, peak memory; ours against TRL.

    python benchmarks/gpu_step.py                 Qwen2.5 0.5B and 1.5B, DPO and RDRO; about ten minutes on an H200
    python benchmarks/gpu_step.py --models 0.5B --pairs 2 --response 256        a smaller card
    python benchmarks/gpu_step.py --quick --device cpu                          does it run
    python benchmarks/gpu_step.py --table         rewrite the table in README.md from the stored results

The weights are random, the architecture is the model's own, so nothing is downloaded. Every run has a process of its
own, and its allocated memory is put beside what `course_utils.gpu.plan` says. DPO's losses are compared with TRL's on the
same pairs. TRL has no RDRO: what it has for unpaired texts is KTO, which makes one more forward pass by design; its row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _step_variants import PAD, RATE, Size, as_words, build_data, build_model, word_tokenizer  # noqa: E402
from step import README, TOLERANCE, in_a_process, machine  # noqa: E402

from course_utils import gpu, objectives  # noqa: E402

RESULTS = ROOT / "data" / "results" / "gpu_step.json"
BEGIN, END = "<!-- gpu_step:begin -->", "<!-- gpu_step:end -->"
EMPTY = (
    "Not measured yet: no card was at hand. On a machine with one, `python benchmarks/gpu_step.py` fills this table "
    "and stores the raw numbers in `data/results/gpu_step.json`."
)
MODELS = {
    "0.5B": gpu.SHAPES["Qwen/Qwen2.5-0.5B-Instruct"],
    "1.5B": gpu.SHAPES["Qwen/Qwen2.5-1.5B-Instruct"],
    "quick": gpu.Shape("quick", 1200, 32, 2, 4, 2, 8, 64, qkv_bias=True),
}
# What runs, and for which method.
VARIANTS = {
    "ours": ("this course", ("dpo", "rdro")),
    "ours-checkpointing": ("this course, activation checkpointing", ("dpo", "rdro")),
    "trl": ("TRL's DPOTrainer, reference precomputed", ("dpo",)),
    "trl-checkpointing": ("TRL's DPOTrainer, reference precomputed, checkpointing", ("dpo",)),
    "trl-kto": ("TRL's KTOTrainer with KTO, the nearest it has", ("rdro",)),
}


def size_of(job: dict[str, Any]) -> Size:
    """The model and batch of a job, in the words of the CPU benchmark."""
    shape = MODELS[job["model"]]
    whole = (shape.vocabulary, shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.feed_forward)
    return Size(
        *whole, prompt=job["prompt"], response=job["response"], pairs=job["pairs"], steps=job["steps"]
    )


def ours(job: dict[str, Any], losses: list[float], stamp: Any) -> None:
    """The course's step: a plain loop, log-probabilities without logits, the reference computed once."""
    import torch

    from course_utils.encoding import EncodedPairs, batch_from_ids
    from course_utils.logprobs import sequence_log_probs
    from course_utils.reference_cache import reference_log_probs
    from course_utils.shared_prompt import stack

    device, size = job["device"], size_of(job)
    model, (prompts, chosen, rejected) = build_model(size).to(device), build_data(size)
    if job["variant"].endswith("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sides = [batch_from_ids(prompts, side, pad_id=PAD).to(device) for side in (chosen, rejected)]
    pairs = EncodedPairs(*sides)
    batches = [stack(part.chosen, part.rejected) for part in (pairs.select(rows) for rows in steps_of(size))]
    products = getattr(torch, job["products"])
    cast = torch.autocast(device, products, enabled=products != torch.float32)
    with cast:
        reference = reference_log_probs(model, batches).split(2 * size.pairs)
    preferred = torch.arange(2 * size.pairs, device=device) < size.pairs
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    objective = objectives.get(job["method"])
    for batch, ref in zip(batches, reference, strict=True):
        with cast:
            policy = sequence_log_probs(model, batch)
        ref = ref.to(device)
        if objective.feedback == "paired":
            parts = (values[rows] for values in (policy, ref) for rows in (preferred, ~preferred))
            loss = objective.loss(*parts).mean()
        else:
            loss = objectives.classwise_mean(objective.loss(policy, ref, preferred), preferred)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        stamp()


def steps_of(size: Size) -> Any:
    """The pairs of each step."""
    import torch

    return torch.arange(size.pairs * size.steps).split(size.pairs)


def trl(job: dict[str, Any], losses: list[float], stamp: Any) -> None:
    """TRL's own trainer on the same pairs, or on the same texts one by one."""
    import datasets
    from transformers import TrainerCallback
    from transformers.utils import logging
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    size, kto = size_of(job), job["variant"] == "trl-kto"
    model, rows = build_model(size), list(zip(*build_data(size), strict=True))
    if kto:
        rows = [
            {"prompt": as_words(row[0]), "completion": " " + as_words(row[side][:-1]), "label": side == 1}
            for part in steps_of(size)
            for side in (1, 2)
            for row in (rows[i] for i in part)
        ]
    else:
        rows = [
            {"prompt": as_words(p), "chosen": " " + as_words(c[:-1]), "rejected": " " + as_words(r[:-1])}
            for p, c, r in rows
        ]
    base, config = (KTOTrainer, KTOConfig) if kto else (DPOTrainer, DPOConfig)

    class Recording(base):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            result = super().compute_loss(*arguments, **options)
            losses.append((result[0] if isinstance(result, tuple) else result).item())
            return result

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamp()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = config(
            output_dir=folder,
            per_device_train_batch_size=size.pairs * (2 if kto else 1),
            max_steps=size.steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            beta=0.1,
            max_length=size.prompt + size.response,
            precompute_ref_log_probs=True,
            bf16=job["products"] == "bfloat16",
            fp16=job["products"] == "float16",
            gradient_checkpointing=job["variant"] == "trl-checkpointing",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=job["device"] == "cpu",
            train_sampling_strategy="sequential",
        )
        data = datasets.Dataset.from_list(rows)
        Recording(
            model=model,
            args=arguments,
            train_dataset=data,
            processing_class=word_tokenizer(size.vocabulary),
            callbacks=[Clock()],
        ).train()


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One run, in this process: seconds of a step, losses, memory, and what was planned."""
    warnings.simplefilter("ignore")
    import torch

    on_card = job["device"] == "cuda"
    stamps: list[float] = []
    losses: list[float] = []

    def stamp() -> None:
        if on_card:
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    (trl if job["variant"].startswith("trl") else ours)(job, losses, stamp)
    steps = [after - before for before, after in itertools.pairwise(stamps)][2:]
    plan = planned(job)
    seconds = statistics.median(steps)
    return {
        **job,
        "seconds_per_step": round(seconds, 6),
        "seconds": [round(step, 6) for step in steps],
        "tokens_per_second": round(plan.tokens / seconds),
        "operations": plan.operations(),
        "losses": losses[: job["steps"]],
        "planned_gib": round(plan.gib, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if on_card else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3) if on_card else None,
        "card": torch.cuda.get_device_name() if on_card else None,
        "rate": rate(job["device"], job["products"]),
    }


def planned(job: dict[str, Any]) -> gpu.Plan:
    """The plan of the step: 2 sequences a pair, whichever method."""
    paired = objectives.get(job["method"]).feedback == "paired"
    return gpu.plan(
        MODELS[job["model"]], job["method"], batch=job["pairs"] * (1 if paired else 2), prompt=job["prompt"],
        response=job["response"], products=job["products"], checkpointing=job["variant"].endswith("checkpointing"),
    )  # fmt: skip


def rate(device: str, products: str) -> float:
    """The best rate of a large square matrix product on this machine, operations per second."""
    import torch

    edge = 8192 if device == "cuda" else 512
    left, right = (torch.randn(edge, edge, device=device).to(getattr(torch, products)) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * edge**3 / best


def table(result: dict[str, Any]) -> str:
    """The results as markdown."""
    facts = result["machine"]
    used = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "trl") if facts.get(name))
    runs = result["runs"]
    lines = [
        f"{runs[0]['card'] or facts['processor']}, {facts['system']}, Python {facts['python']}, {used}. "
        f"Best matrix product: {runs[0]['rate'] / 1e12:.2f} TFLOP/s in {runs[0]['products']}; *share* is of it.",
        "",
        "| model | method | variant | pairs x (prompt + response) | ms per step | tokens per second | share | peak GiB "
        "| planned GiB | losses agree |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for run in runs:
        share = run["operations"] / run["seconds_per_step"] / run["rate"]
        peak = "–" if run["peak_gib"] is None else f"{run['peak_gib']:.1f}"
        planned_gib = f"{run['planned_gib']:.1f}" if run["variant"].startswith("ours") else "–"
        agrees = {True: "yes", False: f"NO ({run['loss_gap']})", None: "–"}[run["agrees"]]
        lines.append(
            f"| {run['model']} | {run['method']} | {VARIANTS[run['variant']][0]} | {run['pairs']} x ({run['prompt']} + "
            f"{run['response']}) | {1e3 * run['seconds_per_step']:,.0f} | {run['tokens_per_second']:,} | {share:.0%} | {peak} "
            f"| {planned_gib} | {agrees} |"
        )
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Put the table, or the sentence that there is none yet, between its markers in README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    made = table(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else EMPTY + "\n"
    README.write_text(f"{before}{BEGIN}\n{made}{END}{rest.split(END)[1]}", encoding="utf-8", newline="\n")


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run with the distance of its losses from ours on the same model and method; KTO's are another loss."""
    first = {
        (run["model"], run["method"]): run["losses"] for run in reversed(runs) if run["variant"] == "ours"
    }
    for run in runs:
        own = first.get((run["model"], run["method"]))
        same = own is not None and run["variant"] not in ("ours", "trl-kto")
        gap = max(abs(a - b) for a, b in zip(run["losses"], own, strict=True)) if same else None
        tolerance = TOLERANCE["float32" if run["products"] == "float32" else "bfloat16"]
        run |= {"loss_gap": gap, "agrees": None if gap is None else gap <= tolerance}
    return runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["0.5B", "1.5B"])
    parser.add_argument("--methods", nargs="+", choices=["dpo", "rdro"], default=["dpo", "rdro"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a toy size")
    parser.add_argument("--output", type=Path, help="where to write the JSON (data/results/gpu_step.json)")
    parser.add_argument("--table", action="store_true", help="only rewrite the table from the stored results")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(measure(json.loads(options.job))))
        return 0
    if options.table:
        write_table()
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA card here. --quick --device cpu shows that the script runs; it measures nothing."
        )
        return 2
    if options.quick:
        options = argparse.Namespace(
            **{**vars(options), "models": ["quick"], "pairs": 2, "prompt": 12, "response": 8}
        )
    format_here = gpu.precision(options.device).products
    jobs = [
        {"variant": variant, "model": model, "method": method, "pairs": options.pairs, "prompt": options.prompt,
         "response": options.response, "steps": options.steps, "device": options.device, "products": format_here, "threads": 1}
        for model in options.models for method in options.methods for variant in options.variants
        if method in VARIANTS[variant][1]
    ]  # fmt: skip
    runs = []
    for job in jobs:
        runs.append(in_a_process(job, __file__))
        print(
            f"{job['model']:>6} {job['method']:>5}  {job['variant']:<20} {1e3 * runs[-1]['seconds_per_step']:9.1f} ms",
            flush=True,
        )
    result = {"machine": machine(1), "command": "python benchmarks/gpu_step.py", "runs": compared(runs)}
    print("\n" + table(result))
    full = not options.quick and options.device == "cuda"
    output = options.output or (RESULTS if full else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    if output == RESULTS:
        write_table()
    return 0 if all(run["agrees"] is not False for run in result["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
