"""How long does one preference-training step take, and how much memory?

    make bench                                   everything, about half an hour on two cores
    python benchmarks/step.py --quick            a minute: does it run, do the losses agree
    python benchmarks/step.py --sizes 25M --variants lean naive
    python benchmarks/step.py --table            rewrite the table in README.md from the stored results

Every variant trains the same model on the same pairs and runs in a process of its own, so that its peak memory
is its own. Losses are compared step by step: a fast step that trains something else is not a result. The floor
is the time that the matrix products of a step would take at the rate of the best matrix product measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _step_variants import VARIANTS, Size, measure, product_rate  # noqa: E402

from course_utils.machine import usable_cores, versions  # noqa: E402

RESULTS = ROOT / "data" / "results" / "bench_step.json"
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- step:begin -->", "<!-- step:end -->"

SIZES = {
    "1M": Size(4096, 128, 3, 4, 2, 352, prompt=32, response=32, pairs=8, steps=40),
    "25M": Size(32000, 384, 8, 6, 2, 1024, prompt=128, response=128, pairs=4, steps=13),
    "25M, large vocabulary": Size(151936, 128, 16, 4, 2, 512, prompt=128, response=128, pairs=4, steps=9),
    "25M, large vocabulary, responses twice as long": Size(
        151936, 128, 16, 4, 2, 512, prompt=128, response=256, pairs=4, steps=9
    ),
}
QUICK = {"quick": Size(1200, 32, 2, 4, 2, 64, prompt=12, response=8, pairs=4, steps=6)}
QUICK_VARIANTS = ["lean", "lean-shared", "naive"]
# The last size asks one question only: how the memory grows with the number of tokens.
ONLY = {"25M, large vocabulary, responses twice as long": ["lean", "lean-shared"]}
# How far the loss of a step may be from the loss of "lean". bf16 keeps 8 bits of each product.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def precision(variant: str) -> str:
    """The precision of a variant's matrix products."""
    return "bfloat16" if "bf16" in variant or variant == "trl-shipped" else "float32"


def run(sizes: dict[str, Size], variants: list[str], threads: int) -> dict[str, Any]:
    """Measure every variant at every size, each in a process of its own."""
    result: dict[str, Any] = {
        "machine": machine(threads),
        "rates": in_a_process({"rate": 256 if "quick" in sizes else 2048, "threads": threads}),
        "sizes": {},
        "runs": [],
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(f"Note: the machine is busy (load {load:.1f}); times will be too long.", flush=True)
    for name, size in sizes.items():
        floors = {
            kind: {p: size.flops(kind == "shared") / rate for p, rate in result["rates"].items()}
            for kind in ("plain", "shared")
        }
        logits_mb = 2 * size.pairs * size.response * size.vocabulary * 4 / 1e6
        result["sizes"][name] = {**asdict(size), "floor_seconds": floors, "response_logits_mb": logits_mb}
        reference = None
        for variant in variants:
            if variant not in ONLY.get(name, variants):
                continue
            job = {"variant": variant, "size": asdict(size), "threads": threads}
            measured = {"size": name, "precision": precision(variant), **in_a_process(job)}
            reference = reference or measured["losses"]
            gap = max(abs(a - b) for a, b in zip(measured["losses"], reference, strict=True))
            measured["loss_gap"] = gap
            measured["agrees"] = gap <= TOLERANCE[measured["precision"]]
            floor = floors["shared" if "shared" in variant else "plain"][measured["precision"]]
            measured["times_floor"] = measured["seconds_per_step"] / floor
            result["runs"].append(measured)
            print(
                f"{name:>8}  {variant:<18} {1e3 * measured['seconds_per_step']:9.1f} ms"
                f"  {measured['peak_mb']:7.0f} MB  losses within {gap:.1e}",
                flush=True,
            )
    return result


def in_a_process(job: dict[str, Any], script: str = __file__) -> dict[str, Any]:
    """Do one job of a script in a new process and return what it measured."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(job["threads"]),
        "MKL_NUM_THREADS": str(job["threads"]),
    }
    command = [sys.executable, str(Path(script).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def do_job(job: dict[str, Any]) -> dict[str, Any]:
    """What the new process does."""
    if "rate" in job:
        return product_rate(job["threads"], job["rate"])
    return measure(job["variant"], Size(**job["size"]), job["threads"])


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on. No names of hosts or users, no paths."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        **versions(["torch", "transformers", "trl"]),
    }


def processor() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


# --- the table ----------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The results as markdown: one table per size, ratios against TRL with a precomputed reference."""
    facts, rates = result["machine"], result["rates"]
    used = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "trl") if facts.get(name))
    lines = [
        f"{facts['processor']}, {facts['threads']} threads, {facts['system']}, Python {facts['python']}, {used}.",
        f"Best matrix product: {rates['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"{rates['bfloat16'] / 1e9:.0f} in bfloat16.",
    ]
    for name, size in result["sizes"].items():
        runs = [r for r in result["runs"] if r["size"] == name]
        if not runs:
            continue
        trl = next((r for r in runs if r["variant"] == "trl-precomputed"), None)
        length = size["prompt"] + size["response"]
        lines += [
            "",
            f"### {name}",
            "",
            f"{size['pairs']} pairs a step, prompt + response {size['prompt']} + {size['response']} = {length} "
            f"tokens, {size['vocabulary']:,} words. One copy of the logits of the response tokens would take "
            f"{size['response_logits_mb']:.0f} MB.",
            "",
            "| variant | ms per step | times the floor | speed, TRL = 1 | peak MB | peak, TRL = 1 "
            "| above start MB | above start, TRL = 1 | losses agree |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for r in runs:
            speed = f"{trl['seconds_per_step'] / r['seconds_per_step']:.2f}" if trl else "–"
            share = f"{r['peak_mb'] / trl['peak_mb']:.2f}" if trl else "–"
            above = r["peak_mb"] - r["start_mb"]
            above_share = f"{above / (trl['peak_mb'] - trl['start_mb']):.2f}" if trl else "–"
            agrees = "yes" if r["agrees"] else f"NO ({r['loss_gap']:.1e})"
            lines.append(
                f"| {VARIANTS[r['variant']][0]} | {1e3 * r['seconds_per_step']:,.0f} | {r['times_floor']:.1f} "
                f"| {speed} | {r['peak_mb']:,.0f} | {share} | {above:,.0f} | {above_share} | {agrees} |"
            )
    return "\n".join(lines) + "\n"


def write_table(result: dict[str, Any]) -> None:
    """Put the table between its markers in README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{table(result)}{END}{after}", encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run at a toy size, without TRL")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="only these sizes")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="only these variants")
    parser.add_argument("--threads", type=int, default=max(1, int(usable_cores())))
    parser.add_argument("--output", type=Path, help="where to write the JSON")
    parser.add_argument("--table", action="store_true", help="only rewrite the table from the stored results")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(do_job(json.loads(options.job))))
        return 0
    if options.table:
        write_table(json.loads(RESULTS.read_text(encoding="utf-8")))
        return 0

    sizes = QUICK if options.quick else {name: SIZES[name] for name in options.sizes or SIZES}
    variants = options.variants or (QUICK_VARIANTS if options.quick else list(VARIANTS))
    if not versions(["trl"])["trl"]:
        variants = [variant for variant in variants if not variant.startswith("trl")]
    result = run(sizes, variants, options.threads)
    print("\n" + table(result))
    # Only a full run replaces the stored results: a part of them would not belong together.
    full = not (options.quick or options.sizes or options.variants)
    output = options.output or (RESULTS if full else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    if output == RESULTS:
        write_table(result)
    return 0 if all(r["agrees"] for r in result["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
