"""Checkpoints: everything a run needs to go on as if it had never stopped.

    <folder>/step-00000200/policy.safetensors       weights and buffers
                           optimizer.safetensors    the optimizer's tensors, named index.key
                           reference.safetensors    the reference, if it moves
                           state.json               step, seconds, history, the numbers of optimizer and reference,
                                                    and the identity of the run
                           sha256.json              the sums of the files above

There is no random state among them: the order of the data, samples and dropout follow from the seed and the step.

A checkpoint is written beside its place, flushed to the disk and renamed, so it is whole or not there. The last two
are kept. One whose sums do not match is passed over, with a warning, and the one before it is used. A checkpoint of
another run (other settings, other data, another reference) is refused: its identity says where it differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.training.identity import named_tensors

KEEP = 2
SUMS, STATE = "sha256.json", "state.json"
_NAME = re.compile(r"step-(\d{8})$")
_UNFINISHED = re.compile(r"\.step-\d{8}\.[0-9a-f]{32}\.(part|old)$")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: the step, the plain state, and tensors by part ("policy", "optimizer", "reference")."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class Checkpoints:
    """The checkpoints of one run in one folder. `identity` is what must be equal for a run to be the same run."""

    def __init__(self, folder: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        try:
            from safetensors.torch import load, save
        except ModuleNotFoundError as error:
            raise CourseError(
                "missing-package",
                "checkpoints are written with safetensors, which is not installed.",
                where="train(..., checkpoint_dir=...)",
                remedy='pip install safetensors, or pip install "course-utils[lab]"; or leave checkpoint_dir out.',
            ) from error
        self._load, self._save = load, save
        self.folder = Path(folder)
        # As JSON will give it back: tuples become lists.
        self.identity = json.loads(json.dumps(identity))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none."""
        for place in sorted(self._places(), reverse=True):
            checkpoint = self._read(place)
            if checkpoint is not None:
                self._require_same_run(checkpoint, place)
                return checkpoint
        return None

    def write(self, step: int, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> Path:
        """Write one checkpoint and remove all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"step-{step:08d}"
        part = self.folder / f".{place.name}.{uuid.uuid4().hex}.part"
        part.mkdir()
        whole = {"format": 1, "step": step, "identity": self.identity, **state}
        files = {STATE: json.dumps(whole, allow_nan=False).encode()}
        for name, values in tensors.items():
            # Copies: safetensors refuses tensors that share memory, and wants them whole and on the CPU.
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in values.items()}
            files[f"{name}.safetensors"] = self._save(plain)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files[SUMS] = json.dumps(sums, indent=1).encode()
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush_folder(part)
        if place.exists():
            # Only a damaged checkpoint can be in the way: it was passed over, and this one takes its place.
            place.rename(part.with_suffix(".old"))
        part.rename(place)
        _flush_folder(self.folder)
        self._tidy(place)
        return place

    def _places(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if _NAME.match(path.name) and path.is_dir()]

    def _tidy(self, last: Path) -> None:
        """Remove old checkpoints, later ones (damaged, or they would have been used), and what a killed run left."""
        places = sorted(self._places())
        until = places.index(last) + 1
        unfinished = [path for path in self.folder.iterdir() if _UNFINISHED.match(path.name)]
        for path in [*places[: max(0, until - KEEP)], *places[until:], *unfinished]:
            shutil.rmtree(path, ignore_errors=True)

    def _read(self, place: Path) -> Checkpoint | None:
        try:
            sums = json.loads((place / SUMS).read_text(encoding="utf-8"))
            contents = {name: (place / name).read_bytes() for name in sums}
            for name, content in contents.items():
                if hashlib.sha256(content).hexdigest() != sums[name]:
                    raise ValueError(f"{name} does not match its sha256")
            state = json.loads(contents.pop(STATE))
            tensors = {name.partition(".")[0]: self._load(content) for name, content in contents.items()}
            return Checkpoint(int(state["step"]), state, tensors)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(
                f"The checkpoint {place.name} is damaged ({reason}); the one before it is used, if there is one.",
                UserWarning,
                stacklevel=4,
            )
            return None

    def _require_same_run(self, checkpoint: Checkpoint, place: Path) -> None:
        saved, present = dict(_flat(checkpoint.state["identity"])), dict(_flat(self.identity))
        different = [
            f"{name}: saved {_short(saved.get(name))}, now {_short(present.get(name))}"
            for name in dict.fromkeys([*saved, *present])
            if saved.get(name) != present.get(name)
        ]
        if different:
            raise CourseError(
                "checkpoint-mismatch",
                "the checkpoint is of another run. " + "; ".join(different) + ".",
                where=place.name,
                remedy="go on with the settings, data, policy and reference of the first run (make the policy anew "
                "before you resume), or give another checkpoint_dir.",
            )


@torch.no_grad()
def restore_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved weights and buffers back."""
    for name, target in named_tensors(module).items():
        target.copy_(tensors[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named index.key and, by the same names, plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Give an optimizer its state back. Its settings are those of the run, so only the state is read."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _flush_folder(folder: Path) -> None:
    # Windows cannot open a folder; there the rename alone has to do.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
