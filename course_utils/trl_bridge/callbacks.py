"""Callbacks: the progress display of the course, a time budget, and what a checkpoint needs beyond the trainer's own.

A checkpoint of the trainer holds weights, optimizer, schedule, random state and log. Ours adds

    reference.safetensors   the weights of a reference that moves
    alignment.json          what must be equal for a run to be the same run; written last, so it says "complete"

Random state, optimizer and schedule are files that transformers reads with `weights_only=True`; only safetensors and
JSON are read here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from course_utils.errors import CourseError
from course_utils.references import MovingReference
from course_utils.training.progress import progress_line

RUN_FILE, REFERENCE_FILE = "alignment.json", "reference.safetensors"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


class CourseProgress(TrainerCallback):
    """One line with the time left, gone when the run is over, instead of the trainer's bars and printed dictionaries."""

    def __init__(self, title: str) -> None:
        self.title, self._note = title, ""
        self._open = contextlib.ExitStack()
        self._report: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shown = state.is_world_process_zero and not args.disable_tqdm
        line = progress_line(self.title, state.max_steps, state.global_step, shown)
        self._report = self._open.enter_context(line)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.4g}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._report is not None:
            self._report(state.global_step, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away, also after an error."""
        self._open.close()
        self._report = None


def show_course_progress(trainer: Any, title: str) -> CourseProgress:
    """Put our display in the place of the trainer's own."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    with contextlib.suppress(ImportError):
        from transformers.utils.notebook import NotebookProgressCallback

        trainer.remove_callback(NotebookProgressCallback)
    progress = CourseProgress(title)
    trainer.add_callback(progress)
    return progress


class TimeBudget(TrainerCallback):
    """Stop after so many minutes, with a checkpoint: a session of Colab or a queue that ends at a known time.

    It stops at the last step that still ends in time, judged by the longest step so far; saving comes on top. Call
    `trainer.train(resume_from_checkpoint=True)` to go on. Each call has the whole budget again.
    """

    def __init__(self, minutes: float) -> None:
        if not (isinstance(minutes, int | float) and math.isfinite(minutes) and minutes > 0):
            raise CourseError(
                "setting-out-of-range",
                f"minutes = {minutes!r} is not a positive number.",
                where="TimeBudget(minutes)",
                remedy="give the minutes that training may take.",
            )
        self.minutes = float(minutes)
        self.stopped_at: int | None = None
        self._began = self._last = self._longest = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = self._last = time.monotonic()
        self._longest, self.stopped_at = 0.0, None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        over = now - self._began + self._longest > 60 * self.minutes
        if _any_process(over) and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True


class RunFiles(TrainerCallback):
    """Lets a moving reference follow the policy, and adds our files to each checkpoint."""

    def __init__(self, identity: dict[str, Any], moving: MovingReference | None, follow: Any) -> None:
        # As JSON will give it back: tuples become lists.
        self.identity = json.loads(json.dumps(identity))
        self.moving, self._follow = moving, follow

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.moving is not None:
            self._follow()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        content: dict[str, Any] = {"identity": self.identity, "reference": None}
        if self.moving is not None:
            from safetensors.torch import save

            saved = self.moving.state_dict()
            data = save({name: tensor.contiguous() for name, tensor in saved.pop("tensors").items()})
            _write(folder / REFERENCE_FILE, data)
            content["reference"] = {**saved, "sha256": hashlib.sha256(data).hexdigest()}
        _write(folder / RUN_FILE, (json.dumps(content, indent=1) + "\n").encode())

    def restore(self, folder: Path) -> None:
        """Check that a checkpoint is of this run, and bring back the reference that moved with it."""
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        saved, present = content["identity"], self.identity
        different = [
            f"{name}: saved {saved.get(name)!r:.60}, now {present.get(name)!r:.60}"
            for name in dict.fromkeys([*saved, *present])
            if saved.get(name) != present.get(name)
        ]
        if different:
            raise CourseError(
                "checkpoint-mismatch",
                "the checkpoint is of another run. " + "; ".join(different) + ".",
                where=folder.name,
                remedy="make the trainer as for the first run, with the model that the first run began with (the "
                "checkpoint brings the trained weights), or give another output_dir.",
            )
        if self.moving is None:
            return
        from safetensors.torch import load

        state = content["reference"]
        data = (folder / REFERENCE_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != state.pop("sha256"):
            raise CourseError(
                "checkpoint-damaged",
                f"{REFERENCE_FILE} does not match its checksum.",
                where=folder.name,
                remedy="resume from an earlier checkpoint: trainer.train(resume_from_checkpoint='.../checkpoint-N').",
            )
        self.moving.load_state_dict({**state, "tensors": load(data)})


def checkpoint_to_resume(output_dir: str | os.PathLike[str], asked: str | bool | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means: True is the newest one that is complete."""
    if asked is None or asked is False:
        return None
    if asked is not True:
        folder = Path(asked)
        if not (folder / RUN_FILE).is_file():
            raise _no_checkpoint(
                f"{folder.name} has no {RUN_FILE}: it is of another trainer, or was not finished."
            )
        return folder
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if (path / RUN_FILE).is_file()]
    numbered = [
        (int(_CHECKPOINT.search(path.name)[1]), path) for path in folders if _CHECKPOINT.search(path.name)
    ]
    if not numbered:
        raise _no_checkpoint(f"{Path(output_dir).name} holds no complete checkpoint.")
    return max(numbered)[1]


def _no_checkpoint(what: str) -> CourseError:
    return CourseError(
        "no-checkpoint",
        what,
        where="trainer.train(resume_from_checkpoint=...)",
        remedy="start with trainer.train(), and ask for checkpoints with save_steps=... or a TimeBudget.",
    )


def _any_process(value: bool) -> bool:
    """Whether it holds in any process: all must stop at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def _write(path: Path, data: bytes) -> None:
    """Write beside the target and rename: the file is whole or not there."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(data)
    os.replace(part, path)
