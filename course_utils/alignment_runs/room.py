"""What a step takes: printed before anything is downloaded, and refused where a card cannot hold it."""

from __future__ import annotations

from typing import Any

from course_utils import gpu
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.where import (
    device_of,
    precision_of,
    processes,
    rows_at_a_time,
    shares_weights,
)
from course_utils.errors import CourseError


def require_room(settings: RunSettings, say: Any = print) -> gpu.Plan | None:
    """Print what fits on which card, before anything is downloaded, and refuse a card that cannot hold the step."""
    import torch

    products = precision_of(settings).products
    try:
        plan = gpu.plan(
            settings.model,
            settings.method,
            batch=settings.batch,
            micro_batch=rows_at_a_time(settings),
            prompt=settings.prompt,
            response=settings.response,
            checkpointing=settings.checkpointing,
            lora=settings.lora,
            optimizer=settings.optimizer,
            products=products,
            reference=settings.reference_word,
            shards=processes() if shares_weights() else 1,
        )
    except CourseError as error:
        if error.id != "unknown-shape":
            raise
        say(f"Not planned: {error.what}")
        return None
    say(plan)
    if device_of(settings) != "cpu":
        card = torch.cuda.get_device_properties(device_of(settings))
        require_fit(plan, gpu.Card(card.name, card.total_memory / 2**30, 1, 1))
    return plan


def require_fit(plan: gpu.Plan, card: gpu.Card) -> None:
    """Refuse a card that cannot hold the step, with the mildest change that helps."""
    if plan.fits(card):
        return
    found = plan.remedy(card)
    options = []
    if found is not None:
        better = found[0]
        options = [
            f"--micro-batch {better.micro_batch}" if better.micro_batch != plan.micro_batch else "",
            "--checkpointing" if better.checkpointing and not plan.checkpointing else "",
            f"--optimizer {better.optimizer}" if better.optimizer != plan.optimizer else "",
            f"--lora {better.lora}" if better.lora != plan.lora else "",
            "no --reference" if better.reference != plan.reference else "",
        ]
    raise CourseError(
        "card-too-small",
        f"a run takes up to {plan.peak_gib:.1f} GiB, and {card.name} has {card.memory:.1f}.",
        where=plan.title,
        remedy=f"{found[1]}: {' '.join(each for each in options if each)}."
        if found
        else "use shorter texts, a smaller model, or a larger card.",
    )
