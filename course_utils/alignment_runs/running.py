"""`align`: one run on a real model, from data to a stored result, in sessions that stop at a time budget.

Every session loads the model that the run began with, and its checkpoint brings the trained weights: so the reference
is the same in all of them, and the losses are those of a run that was never stopped. Under `accelerate launch` each
process makes the same call; the first one prints and writes.

Weights are trained in float32 (see `gpu.precision`). With LoRA the frozen base is held in 16 bits on a card; adapters
sit at every matrix of every layer, scaled by alpha/rank = 2, and are added to a float32 copy before saving: in 16 bits
the sum would round them away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from course_utils import datasets, gpu
from course_utils.alignment_runs import measuring, records
from course_utils.alignment_runs.practice import TOKENIZER, proof
from course_utils.alignment_runs.settings import RunSettings
from course_utils.errors import CourseError

LORA_AT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HELD_OUT = ("test", "validation", "valid", "eval", "dev")


@dataclass(frozen=True, eq=False, repr=False)
class RunResult:
    """What a session leaves. `record` is result.json; while the run is unfinished it holds what is known so far."""

    settings: RunSettings
    finished: bool
    step: int
    history: list[dict[str, float]]
    record: dict[str, Any]

    @property
    def model(self) -> Path:
        """The folder of the trained model: the model of the next stage."""
        return self.settings.folder / "model"

    @property
    def losses(self) -> list[float]:
        """The loss of each update."""
        return [row["loss"] for row in self.history]

    def __repr__(self) -> str:
        done = f"{self.settings.called}: {self.step} of {self.settings.steps} updates"
        if not self.finished:
            return f"{done}. Saved; to go on: {self.settings.command}"
        after = self.record["evaluation"]["after"]
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in after.items())
        words = "proves the code, and no result" if self.record["proves"] == "code" else "a result"
        return f"{done} in {self.record['seconds']:,.0f} s ({words}). Held out: {numbers}"


def align(settings: RunSettings, *, stop_after: int | None = None, quiet: bool = False) -> RunResult:
    """Make a run, or go on with it. A run that is finished is read from its folder.

    stop_after   end this session after so many updates, as the time budget would
    """
    import torch

    say = _silent if quiet or not _first_process() else print
    done = records.read(settings.folder / records.RESULT)
    earlier = records.begun(settings)
    if done is not None and earlier is not None:
        say(f"{settings.folder} holds this run, finished.")
        return RunResult(settings, True, settings.steps, done["history"], done)
    train, held = load_data(settings)
    say(train.report())
    say(f"held out: {len(held):,} rows, no prompt of which is trained on")
    plan = require_room(settings, say)
    policy = _policy(settings)
    trainer = _trainer(settings, policy, train, held, stop_after)
    trainer.accelerator.wait_for_everyone()  # all have looked for an earlier session before one writes
    measured = measuring.different_prompts(held, settings.samples)
    begun = earlier or _begin(settings, trainer, policy, held, measured)
    began, first = time.monotonic(), _newest(settings)
    on_card = _device(settings) != "cpu"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    with _without_false_alarms(policy.model):
        trainer.train(resume_from_checkpoint=True if first else None)
    step = trainer.state.global_step
    session = {"from": first, "to": step, "seconds": time.monotonic() - began, "peak_gib": None}
    if on_card:
        session["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    begun["sessions"].append(session)
    history = [_numbers(row) for row in trainer.state.log_history if "loss" in row]
    if _first_process():
        records.write(settings.folder / records.RUN, begun)
    if step < settings.steps:
        found = RunResult(settings, False, step, history, begun)
        say(found)
        return found
    after = _measured(trainer, policy, held, measured, settings, begun["before"]["rows"])
    record = _record(settings, trainer, begun, after, history, plan, len(train), held)
    if _first_process():
        _save(settings, policy)
        records.write(settings.folder / records.RESULT, record)
        shutil.rmtree(settings.folder / "checkpoints", ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    found = RunResult(settings, True, step, history, record)
    say(found)
    return found


def align_in_stages(stages: Sequence[RunSettings], **options: Any) -> list[RunResult]:
    """One run after the other, each on the model that the one before saved. Ends at a stage that is unfinished."""
    found: list[RunResult] = []
    for settings in stages:
        if found:
            settings = replace(settings, model=str(found[-1].model))
        found.append(align(settings, **options))
        if not found[-1].finished:
            break
    return found


# -------------------- before the first update


def load_data(settings: RunSettings) -> tuple[datasets.PreferenceData, datasets.PreferenceData]:
    """Rows to train on and rows to measure with, without a prompt in common."""
    splits = datasets.load_splits(settings.data, limit=settings.rows)
    names = list(splits)
    if len(names) == 1:
        train, held = splits[names[0]].split(1 - settings.held_out, settings.seed)
    else:
        kept = next((name for name in HELD_OUT if name in names), None)
        if kept is None or "train" not in names:
            raise CourseError(
                "run-splits",
                f"the data have the splits {', '.join(names)}; one to train on and one to hold out are not among them.",
                where=settings.data,
                remedy=f"give one file, which is then split by prompt, or name the splits train and {HELD_OUT[0]}.",
            )
        clean = splits.without_leakage(kept)
        train, held = clean["train"], clean[kept]
    few = range(min(len(held), settings.held_out_rows))
    return train, held.take(few, "not measured")


def require_room(settings: RunSettings, say: Any = print) -> gpu.Plan | None:
    """Print what fits on which card, before anything is downloaded, and refuse a card that cannot hold the step."""
    import torch

    products = _precision(settings).products
    try:
        plan = gpu.plan(
            settings.model,
            settings.method,
            batch=settings.batch,
            micro_batch=settings.at_a_time,
            prompt=settings.prompt,
            response=settings.response,
            checkpointing=settings.checkpointing,
            lora=settings.lora,
            optimizer=settings.optimizer,
            products=products,
        )
    except CourseError as error:
        if error.id != "unknown-shape":
            raise
        say(f"Not planned: {error.what}")
        return None
    say(plan)
    if _device(settings) != "cpu":
        card = torch.cuda.get_device_properties(_device(settings))
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
        ]
    raise CourseError(
        "card-too-small",
        f"a step takes {plan.gib:.1f} GiB, and {card.name} has {card.memory:.1f}.",
        where=plan.title,
        remedy=f"{found[1]}: {' '.join(each for each in options if each)}."
        if found
        else "use shorter texts, a smaller model, or a larger card.",
    )


def _policy(settings: RunSettings) -> Any:
    """The model the run begins with."""
    import torch

    from course_utils.real_models import load_policy

    products = _precision(settings).products
    frozen = settings.lora is not None and products != "float32"
    dtype = getattr(torch, products) if frozen else torch.float32
    return load_policy(
        settings.model, device=_device(settings), dtype=dtype, max_new_tokens=settings.response
    )


def _trainer(settings: RunSettings, policy: Any, train: Any, held: Any, stop_after: int | None) -> Any:
    """Our trainer with its budget. The policy's model becomes the adapted one where adapters are trained."""
    from course_utils.trl_bridge import AlignmentTrainer, training_arguments

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    pieces, rest = divmod(settings.batch, settings.at_a_time * processes)
    if rest:
        raise CourseError(
            "run-setting",
            f"batch {settings.batch} is not a multiple of micro_batch {settings.at_a_time} x {processes} processes.",
            where="RunSettings",
            remedy="choose a smaller micro_batch, or a batch that all processes can share.",
        )
    arguments = training_arguments(
        settings.folder / "checkpoints",
        max_steps=settings.steps,
        per_device_train_batch_size=settings.at_a_time,
        gradient_accumulation_steps=pieces,
        per_device_eval_batch_size=settings.at_a_time,
        learning_rate=settings.rate,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=2,
        **({"gradient_checkpointing": True} if settings.checkpointing else {}),
        optim="adafactor" if settings.optimizer == "adafactor" else "adamw_torch",
        use_cpu=_device(settings) == "cpu",
        **_precision(settings).arguments,
    )
    trainer = AlignmentTrainer(
        policy.model,
        args=arguments,
        train_data=_feedback(train),
        eval_data=_feedback(held),
        processing_class=policy.tokenizer,
        objective=settings.method,
        objective_options=settings.options,
        max_length=min(settings.prompt + settings.response, _positions(policy.model)),
        over_length="drop",
        chat_template=policy.chat_template,
        peft_config=_adapter(settings),
        callbacks=[_budget(settings.minutes, stop_after)],
    )
    policy.model = trainer.model
    return trainer


def _positions(model: Any) -> int:
    """The longest text that the model can read."""
    return getattr(model.config, "max_position_embeddings", None) or 10**9


@contextlib.contextmanager
def _without_false_alarms(model: Any) -> Iterator[None]:
    """Two warnings of the trainer that mean nothing here, and would stay in a notebook's page.

    A tied head is the embedding, so no checkpoint holds it twice, and the trainer calls it missing. Checkpoints written
    within a second are ordered by their number instead of their time, which is what they are numbered for.
    """
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    alarms = ["mtime may not be reliable", *(["lm_head.weight"] if tied else [])]

    def keep(record: logging.LogRecord) -> bool:
        return not any(alarm in record.getMessage() for alarm in alarms)

    logs = [logging.getLogger(name) for name in ("transformers.trainer", "transformers.trainer_utils")]
    for log in logs:
        log.addFilter(keep)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(keep)


def _feedback(data: datasets.PreferenceData) -> Any:
    return data.pairs() if data.kind == "pairs" else data.unpaired()


def _adapter(settings: RunSettings) -> Any:
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


# -------------------- measuring and saving


def _begin(settings: RunSettings, trainer: Any, policy: Any, held: Any, prompts: list[Any]) -> dict[str, Any]:
    """Measure before the first update, once, and write run.json."""
    found = {
        "identity": settings.identity(),
        "before": _measured(trainer, policy, held, prompts, settings, None),
        "sessions": [],
    }
    if _first_process():
        records.write(settings.folder / records.RUN, found)
    return found


def _measured(
    trainer: Any, policy: Any, held: Any, prompts: list[Any], settings: RunSettings, before: Any
) -> dict[str, Any]:
    from course_utils.causal_lm import scoring_mode

    loss = float(trainer.evaluate()["eval_loss"])
    with scoring_mode(policy.model), trainer.accelerator.autocast():
        rows = measuring.log_probs_of(policy, held)
        texts = measuring.answers(policy, prompts, settings.response, settings.seed, _positions(policy.model))
    found = measuring.evaluation(rows, before or rows, held.kind == "pairs")
    return {"rows": rows, "evaluation": {"loss": loss, **found}, "samples": texts}


def _record(
    settings: RunSettings,
    trainer: Any,
    begun: dict[str, Any],
    after: dict[str, Any],
    history: list[dict[str, float]],
    plan: gpu.Plan | None,
    rows: int,
    held: Any,
) -> dict[str, Any]:
    before, start = begun["before"], records.origin(settings.model)
    seconds = sum(session["seconds"] for session in begun["sessions"])
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    tokens = tokens_of(trainer, settings.steps)
    peaks = [session["peak_gib"] for session in begun["sessions"] if session["peak_gib"] is not None]
    prompts = measuring.different_prompts(held, settings.samples)
    columns = zip(prompts, before["samples"], after["samples"], strict=True)
    return {
        "format": 1,
        "proves": proof(parameters, rows),
        "base": start["model"],
        "stages": [*start["stages"], settings.called],
        "settings": settings.plain(),
        "command": settings.command,
        **records.circumstances(_device(settings)),
        "rows": {"trained": rows, "too_long": len(trainer.dropped), "held_out": len(held)},
        "parameters": {"all": parameters, "trained": trained},
        "seconds": seconds,
        "sessions": begun["sessions"],
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "memory_gib": {"planned": None if plan is None else plan.gib, "peak": max(peaks, default=None)},
        "evaluation": {"before": before["evaluation"], "after": after["evaluation"]},
        "samples": [{"prompt": x, "before": a, "after": b} for x, a, b in columns],
        "history": history,
    }


def tokens_of(trainer: Any, steps: int) -> int:
    """Tokens of the rows of these updates, padding not counted."""
    import torch

    from course_utils.trl_bridge.data import rows_of_step

    encoded = trainer.problem._examples._encoded
    sides = [encoded.chosen, encoded.rejected] if hasattr(encoded, "chosen") else [encoded]
    lengths = torch.stack([side.attention_mask.sum(dim=1) for side in sides]).sum(dim=0).cpu()
    return sum(int(lengths[rows_of_step(trainer.problem.order, step)].sum()) for step in range(steps))


def _save(settings: RunSettings, policy: Any) -> None:
    """The model folder: weights in safetensors, adapters added, the tokenizer as it lay at the source."""
    from course_utils.real_models import without_bars

    folder, model = settings.folder / "model", policy.model
    if settings.lora is not None:
        model = model.float().merge_and_unload()
    apart = (Path(settings.model).expanduser() / TOKENIZER).is_dir()
    with without_bars():
        model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder / TOKENIZER if apart else folder)
    start = records.origin(settings.model)
    records.write(folder / records.ORIGIN, {**start, "stages": [*start["stages"], settings.called]})


def _newest(settings: RunSettings) -> int:
    """The update of the newest complete checkpoint; 0 if there is none."""
    from course_utils.trl_bridge.callbacks import checkpoint_to_resume

    try:
        found = checkpoint_to_resume(settings.folder / "checkpoints", True)
    except CourseError:
        return 0
    return int(found.name.rpartition("-")[2])


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _device(settings: RunSettings) -> str:
    """The card of this process, or the processor."""
    from course_utils.real_models import here

    cpu = settings.device == "cpu" or here() == "cpu"
    return "cpu" if cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _precision(settings: RunSettings) -> gpu.Precision:
    return gpu.precision("cpu" if _device(settings) == "cpu" else None)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _silent(*_: Any) -> None:
    """Say nothing."""
