"""`align`: one run on a real model, from data to a stored result, in sessions that stop at a time budget.

Every session loads the model that the run began with, and its checkpoint brings the trained weights, and those of a
reference that moves: so the reference is the same in all of them, and the losses are those of a run that was never
stopped. Under `accelerate launch` each process makes the same call; the first one prints and writes. A session may have
another number of processes than the one before, and share the weights (FSDP) or not: the losses are the same.

Weights are trained in float32 (see `gpu.precision`). With LoRA the frozen base is held in 16 bits on a card; adapters
sit at every matrix of every layer, scaled by alpha/rank = 2, and are added to a float32 copy before saving: in 16 bits
the sum would round them away.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from course_utils.alignment_runs import measuring, records
from course_utils.alignment_runs.data import fitting, load_data, options_of, require_feedback
from course_utils.alignment_runs.preparing import load_policy_of, trainer_of
from course_utils.alignment_runs.room import require_room
from course_utils.alignment_runs.saving import begin, measure, newest, record_of, save
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.where import device_of, first_process, one_machine, processes
from course_utils.gpu.cost import energy_meter


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
            again = (
                self.settings.command if processes() == 1 else "the same launch, with any number of processes"
            )
            return f"{done}. Saved; to go on: {again}"
        after = self.record["evaluation"]["after"]
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in after.items())
        words = "proves the code, and no result" if self.record["proves"] == "code" else "a result"
        return f"{done} in {self.record['seconds']:,.0f} s ({words}). Held out: {numbers}"


def align(settings: RunSettings, *, stop_after: int | None = None, quiet: bool = False) -> RunResult:
    """Make a run, or go on with it. A run that is finished is read from its folder.

    stop_after   end this session after so many updates, as the time budget would
    """
    import torch

    from course_utils.trl_bridge.sharding import gathered

    say = _silent if quiet or not first_process() else print
    done = records.read(settings.folder / records.RESULT)
    earlier = records.begun(settings)
    if done is not None and earlier is not None:
        say(f"{settings.folder} holds this run, finished.")
        return RunResult(settings, True, settings.steps, done["history"], done)
    train, held = load_data(settings)
    say(train.report())
    say(f"held out: {len(held):,} rows, no prompt of which is trained on")
    require_feedback(settings, train)
    options, remark = options_of(settings, train)
    if remark:
        say(remark)
    plan = require_room(settings, say)
    policy = load_policy_of(settings)
    held = fitting(settings, policy, held)
    trainer = trainer_of(settings, policy, train, held, options, stop_after)
    trainer.accelerator.wait_for_everyone()  # all have looked for an earlier session before one writes
    prompts = measuring.different_prompts(held, settings.samples)
    begun = earlier or begin(settings, trainer, policy, held, prompts)
    began, first = time.monotonic(), newest(settings)
    on_card = device_of(settings) != "cpu"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    with without_false_alarms(policy.model), energy_meter() as meter:
        trainer.train(resume_from_checkpoint=True if first else None)
    step = trainer.state.global_step
    session = {
        "from": first,
        "to": step,
        "seconds": time.monotonic() - began,
        "peak_gib": None,
        "joules": None,
    }
    if on_card:
        session["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        session["joules"] = meter.joules if one_machine() else None
    begun["sessions"].append(session)
    history = [_numbers(row) for row in trainer.state.log_history if "loss" in row]
    if first_process():
        records.write(settings.folder / records.RUN, begun)
    if step < settings.steps:
        found = RunResult(settings, False, step, history, begun)
        say(found)
        return found
    with gathered(trainer.model):
        after = measure(trainer, policy, held, prompts, settings, begun["before"]["rows"])
    record = record_of(settings, trainer, begun, after, history, plan, train, held, options)
    save(settings, policy)
    if first_process():
        records.write(settings.folder / records.RESULT, record)
        for passing in ("checkpoints", "reference"):
            shutil.rmtree(settings.folder / passing, ignore_errors=True)
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


@contextlib.contextmanager
def without_false_alarms(model: Any) -> Iterator[None]:
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


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _silent(*_: Any) -> None:
    """Say nothing."""
