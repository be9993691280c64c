"""`course align`: one run on a real model, as lessons 20 and 21 make it. Started through accelerate on several cards:

accelerate launch --config_file two_gpus.yaml -m course_utils.alignment_runs --model ... --micro-batch 4
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from course_utils.errors import CourseError


def align(
    model: Annotated[
        str, typer.Option(help="A name on the hub, or a folder.")
    ] = "Qwen/Qwen2.5-0.5B-Instruct",
    data: Annotated[str, typer.Option(help="A name on the hub, a file, or a folder.")] = "hh-helpful",
    method: Annotated[str, typer.Option(help="An objective: sft, dpo, rdro ...")] = "dpo",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the objective, as beta=0.1.")
    ] = None,
    steps: int = 300,
    batch: int = 16,
    micro_batch: Annotated[int | None, typer.Option(help="Examples that pass the model at a time.")] = None,
    learning_rate: float | None = None,
    minutes: Annotated[float, typer.Option(help="Stop, save, and go on at the next call.")] = 60.0,
    seed: int = 0,
    lora: Annotated[int | None, typer.Option(help="The rank of adapters, instead of all weights.")] = None,
    prompt: int = 512,
    response: int = 512,
    stage: str = "",
    out: Annotated[str, typer.Option(help="The folder of the run.")] = "",
    held_out: float = 0.1,
    held_out_rows: int = 200,
    rows: int | None = None,
    samples: int = 3,
    save_every: int = 100,
    device: Annotated[str, typer.Option(help="cpu; a card is taken unless it is given.")] = "",
    reference: Annotated[
        str, typer.Option(help="live; or soft, hard: a reference that follows the policy.")
    ] = "",
    ref_alpha: Annotated[float, typer.Option(help="Soft: the policy's share in the new reference.")] = 0.6,
    ref_every: Annotated[int, typer.Option(help="Updates between two moves of the reference.")] = 512,
    responses: Annotated[str, typer.Option(help="Of sft: chosen, or all.")] = "chosen",
    checkpointing: bool = False,
    optimizer: str = "adamw",
    store: Annotated[
        bool, typer.Option("--store", help="Copy the finished result to data/results/gpu_runs.")
    ] = False,
) -> None:
    """Align a real model: load, check, plan, train under a time budget, go on exactly, measure, save."""
    from course_utils import alignment_runs
    from course_utils.alignment_runs.table import store as keep
    from course_utils.alignment_runs.where import first_process

    given: dict[str, Any] = {name: value for name, value in locals().items() if name in _FIELDS}
    settings = alignment_runs.RunSettings(options=_options(option or []), **given)
    found = alignment_runs.align(settings)
    if store and found.finished and first_process():
        typer.echo(keep(settings))


_FIELDS = (
    "model", "data", "method", "steps", "batch", "micro_batch", "learning_rate", "minutes", "seed", "lora", "prompt",
    "response", "stage", "out", "held_out", "held_out_rows", "rows", "samples", "save_every", "device", "reference", "ref_alpha", "ref_every",
    "responses", "checkpointing", "optimizer",
)  # fmt: skip


def _options(texts: list[str]) -> dict[str, Any]:
    """ "beta=0.1" as a name and a number, or a word."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise CourseError(
                "run-setting",
                f"{text!r} is not of the form NAME=VALUE.",
                where="--option",
                remedy="write --option beta=0.1.",
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
