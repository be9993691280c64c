"""Settings of a run on transformers' trainer.

    training_arguments("runs/rdro", max_steps=500)     transformers' own TrainingArguments, with defaults that make sense
    TrainingSettings(steps=500, batch_size=64)         the settings of the teaching loop: the same run, step by step

TRL's defaults are made for its authors' GPUs: bf16, gradient checkpointing and a learning rate of 1e-6, also on a CPU,
where the first two cost time and digits and the third looks like a method that does not learn.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from course_utils.errors import CourseError
from course_utils.training.settings import TrainingSettings

PRECISION = "ACCELERATE_MIXED_PRECISION"


def training_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """TrainingArguments that report to nobody, log every step, save nothing unless asked, and suit this machine.

    On a CPU: float32, no gradient checkpointing. On a GPU that can (capability 8.0 or newer): bf16 mixed precision.
    """
    cuda = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "steps" if "save_steps" in changes else "no",
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "linear",
        "remove_unused_columns": False,
        "bf16": cuda and torch.cuda.get_device_capability()[0] >= 8,
        # Several processes without a card find one another only if they are told that there is none.
        **({"use_cpu": True} if not cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}),
    }
    return TrainingArguments(output_dir=str(output_dir), **{**defaults, **changes})


def arguments_of(settings: TrainingSettings, rows: int, output_dir: str | Path) -> TrainingArguments:
    """The arguments that make the trainer do what the teaching loop does with these settings."""
    if settings.share_prompt:
        raise CourseError(
            "setting-without-effect",
            "share_prompt was set, and the trainer computes chosen and rejected responses in rows of their own.",
            where="AlignmentTrainer(args=TrainingSettings(...))",
            remedy="leave it out.",
        )
    size = rows if settings.batch_size is None else min(settings.batch_size, rows)
    return training_arguments(
        output_dir,
        max_steps=settings.steps,
        per_device_train_batch_size=-(-size // settings.accumulate),
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_gradient or 0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps" if settings.evaluate_every else "no",
        eval_steps=settings.evaluate_every or None,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 500,
        bf16=False,
    )


def optimizers_of(
    settings: TrainingSettings, model: torch.nn.Module
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and the schedule of the teaching loop. (The trainer's own spares norms and biases from decay.)"""
    optimizer = settings.make_optimizer([p for p in model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: settings.learning_rate_at(step) / settings.learning_rate
    )
    return optimizer, schedule


def settings_of(args: TrainingArguments, reduction: str | None) -> TrainingSettings:
    """What the problem and the order of the data need to know of TrainingArguments: the rows of an update, the seed."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return TrainingSettings(
        batch_size=rows,
        seed=args.seed if args.data_seed is None else args.data_seed,
        reduction=reduction,
        learning_rate=args.learning_rate or 1.0,
    )


@contextlib.contextmanager
def own_precision(args: TrainingArguments) -> Iterator[None]:
    """While a trainer is made: the precision that its arguments say.

    transformers 4 hands it to accelerate through the environment and never takes it back, so a run in float32 after
    one in bf16 in the same notebook would be in bf16 as well. Version 5 hands it over directly.
    """
    before = os.environ.get(PRECISION)
    if not hasattr(args, "mixed_precision"):
        os.environ[PRECISION] = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PRECISION, None)
        else:
            os.environ[PRECISION] = before


def require_supported(args: TrainingArguments) -> None:
    """Ways to run that would be silently wrong, or do nothing."""
    if args.n_gpu > 1:
        raise CourseError(
            "several-gpus-one-process",
            f"one process sees {args.n_gpu} GPUs, and would copy the model to each of them for every batch.",
            where="AlignmentTrainer(args=...)",
            remedy="start one process for each GPU with `torchrun --nproc-per-node N script.py` or `accelerate launch`, "
            "or show one GPU with CUDA_VISIBLE_DEVICES=0.",
        )
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise CourseError(
            "sharded-training",
            "DeepSpeed was asked for; it brings a backward pass, a clipping and checkpoints of its own.",
            where="AlignmentTrainer(args=...)",
            remedy="use FSDP version 2, `course launch-config two_gpus`, or several GPUs that hold the model each.",
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if getattr(args, "world_size", processes) != processes:
        raise CourseError(
            "processes-apart",
            f"{processes} processes were started, and each of them believes to be alone: all would train the same run.",
            where="AlignmentTrainer(args=...)",
            remedy="without a card give use_cpu=True to TrainingArguments, as training_arguments does.",
        )
    if args.auto_find_batch_size:
        raise CourseError(
            "setting-without-effect",
            "auto_find_batch_size was set; here the batches are a function of the seed and the step.",
            where="TrainingArguments",
            remedy="choose per_device_train_batch_size and gradient_accumulation_steps.",
        )
