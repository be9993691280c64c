"""The model that a run begins with, its reference, its adapters and its trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from course_utils.alignment_runs.data import feedback_of
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.where import (
    device_of,
    longest_row,
    precision_of,
    processes,
    rows_at_a_time,
    shares_weights,
)
from course_utils.errors import CourseError

LORA_AT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_policy_of(settings: RunSettings) -> Any:
    """The model the run begins with."""
    import torch

    from course_utils.real_models import load_policy

    products = precision_of(settings).products
    frozen = settings.lora is not None and products != "float32"
    dtype = getattr(torch, products) if frozen else torch.float32
    return load_policy(
        settings.model, device=device_of(settings), dtype=dtype, max_new_tokens=settings.response
    )


def trainer_of(
    settings: RunSettings,
    policy: Any,
    train: Any,
    held: Any,
    options: Mapping[str, Any],
    stop_after: int | None,
) -> Any:
    """Our trainer with its budget. The policy's model becomes the adapted one where adapters are trained."""
    from course_utils.trl_bridge import AlignmentTrainer, training_arguments

    pieces, rest = divmod(settings.batch, rows_at_a_time(settings) * processes())
    if rest:
        raise CourseError(
            "run-setting",
            f"batch {settings.batch} is not a multiple of micro_batch {rows_at_a_time(settings)} x {processes()} processes.",
            where="RunSettings",
            remedy="choose a smaller micro_batch, or a batch that all processes can share.",
        )
    checkpointing = settings.checkpointing
    if checkpointing and shares_weights():
        # FSDP's own, layer by layer: the trainer's would bring the weights of a layer together once more.
        os.environ["FSDP_ACTIVATION_CHECKPOINTING"], checkpointing = "true", False
    arguments = training_arguments(
        settings.folder / "checkpoints",
        max_steps=settings.steps,
        per_device_train_batch_size=rows_at_a_time(settings),
        gradient_accumulation_steps=pieces,
        per_device_eval_batch_size=rows_at_a_time(settings),
        learning_rate=settings.rate,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=2,
        **({"gradient_checkpointing": True} if checkpointing else {}),
        optim="adafactor" if settings.optimizer == "adafactor" else "adamw_torch",
        use_cpu=device_of(settings) == "cpu",
        **precision_of(settings).arguments,
    )
    trainer = AlignmentTrainer(
        policy.model,
        args=arguments,
        train_data=feedback_of(settings, train),
        eval_data=feedback_of(settings, held),
        processing_class=policy.tokenizer,
        objective=settings.method,
        objective_options=options,
        reference=reference_of(settings, policy),
        max_length=longest_row(settings, policy.model),
        over_length="drop",
        chat_template=policy.chat_template,
        peft_config=adapter_of(settings),
        cache_dir=settings.folder / "reference",  # so that the next session need not score it again
        callbacks=[_budget(settings.minutes, stop_after)],
    )
    policy.model = trainer.model
    return trainer


def reference_of(settings: RunSettings, policy: Any) -> Any:
    """The reference as the trainer takes it; one that moves begins as a copy of the model."""
    from course_utils.references import MovingReference

    if settings.reference == "soft":
        return MovingReference.soft(policy.model, settings.ref_alpha, settings.ref_every)
    if settings.reference == "hard":
        return MovingReference.hard(policy.model, settings.ref_every)
    return settings.reference or "precomputed"


def adapter_of(settings: RunSettings) -> Any:
    if settings.lora is None:
        return None
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise CourseError(
            "missing-package",
            "a LoRA adapter needs peft, which is not installed.",
            where="RunSettings(lora=...)",
            remedy='pip install "course-utils[trl]".',
        ) from error
    return LoraConfig(
        r=settings.lora, lora_alpha=2 * settings.lora, target_modules=LORA_AT, task_type="CAUSAL_LM"
    )


def _budget(minutes: float, stop_after: int | None) -> Any:
    """The time budget, which can also end after a number of updates."""
    from course_utils.trl_bridge import TimeBudget

    class Budget(TimeBudget):
        """A session's end."""

        made = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            super().on_step_end(args, state, control, **rest)
            self.made += 1
            if self.made == stop_after and state.global_step < state.max_steps:
                self.stopped_at = state.global_step
                control.should_save = control.should_training_stop = True

    return Budget(minutes)
