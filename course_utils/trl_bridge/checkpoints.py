"""Checkpoints that do not know how many processes wrote them.

    model.safetensors       the weights under their names, as `from_pretrained` reads them (or the adapter's, with LoRA)
    optimizer.safetensors   the tensors of the optimizer's state, whole, as weight/slot
    optimizer.json          what of it is no tensor: the groups of weights, and the schedule

One process, several that hold the model each (DDP), and several that share it (FSDP) write and read the same files. The
order of the data is a function of seed and step (`data`), so nothing of it is saved. The state of the random numbers is
one file for each process, as transformers writes it: a run with dropout goes on exactly with as many processes as
wrote the checkpoint; without dropout, which the models and adapters of the course do not have, it is never asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.trl_bridge.reference import has_adapter
from course_utils.trl_bridge.sharding import is_sharded, whole_weights

OPTIMIZER, REST = "optimizer.safetensors", "optimizer.json"
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def save_optimizer(trainer: Any, folder: str | Path) -> None:
    """Write optimizer and schedule. All processes must call this."""
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    options = _options(trainer.model, cpu_offload=True)
    found = get_optimizer_state_dict(trainer.model, _plain(trainer.optimizer), options=options)
    if not trainer.args.should_save:
        return
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {
        "groups": found["param_groups"],
        "schedule": trainer.lr_scheduler.state_dict(),
        "state": {},
    }
    for weight, slots in found["state"].items():
        rest["state"][weight] = {slot: it for slot, it in slots.items() if not isinstance(it, Tensor)}
        for slot, it in slots.items():
            if isinstance(it, Tensor):  # a copy: safetensors refuses tensors that share memory
                tensors[f"{weight}/{slot}"] = it.detach().cpu().contiguous().clone()
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / OPTIMIZER)
    (Path(folder) / REST).write_text(json.dumps(rest), encoding="utf-8")


def read_optimizer(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of the optimizer, whole and under the names of the weights, and that of the schedule."""
    from safetensors.torch import load_file

    files = [Path(folder) / name for name in (OPTIMIZER, REST)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CourseError(
            "no-checkpoint",
            f"{Path(folder).name} has no {' and no '.join(missing)}.",
            where="trainer.train(resume_from_checkpoint=...)",
            remedy="give a checkpoint of this trainer that was saved with its optimizer (save_only_model=False).",
        )
    rest = json.loads(files[1].read_text(encoding="utf-8"))
    state = rest["state"]
    for name, tensor in load_file(files[0]).items():
        weight, _, slot = name.rpartition("/")
        state[weight][slot] = tensor
    return {"state": state, "param_groups": rest["groups"]}, rest["schedule"]


def load_optimizer(trainer: Any, folder: str | Path) -> None:
    """Bring optimizer and schedule back, each process its part. All processes must call this."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    state, schedule = read_optimizer(folder)
    set_optimizer_state_dict(trainer.model, _plain(trainer.optimizer), state, options=_options(trainer.model))
    trainer.lr_scheduler.load_state_dict(schedule)


def save_weights(trainer: Any, folder: str | Path) -> None:
    """The folder of a sharded model, as `from_pretrained` reads it. All processes must call this."""
    state = whole_weights(trainer.model, trained_only=has_adapter(trainer.model))
    if trainer.args.should_save:
        trainer._save(str(folder), state_dict=state)


def load_weights(model: Any, folder: str | Path) -> None:
    """Weights into a sharded model, each process its part. All processes must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = _adapter(model, Path(folder)) if has_adapter(model) else _weights(Path(folder))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    options = StateDictOptions(full_state_dict=True, strict=False)
    found = set_model_state_dict(model, state, options=options)
    absent = [name for name in found.missing_keys if name in names]
    if absent or found.unexpected_keys:
        raise CourseError(
            "checkpoint-mismatch",
            f"the weights are of another model: {len(absent)} are missing and {len(found.unexpected_keys)} unknown, "
            f"such as {[*absent, *found.unexpected_keys][0]}.",
            where=Path(folder).name,
            remedy="make the trainer with the model that the first run began with.",
        )


def _weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model's folder, in one file or in several."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise _no_weights(folder, WEIGHTS)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _adapter(model: Any, folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's folder, under the names that they have in the model."""
    from safetensors.torch import load_file

    if not (folder / ADAPTER).is_file():
        raise _no_weights(folder, ADAPTER)
    active = model.active_adapters[0] if hasattr(model, "active_adapters") else "default"
    found = {}
    for name, tensor in load_file(folder / ADAPTER).items():
        before, _, last = name.rpartition(".")
        found[f"{before}.{active}.{last}"] = tensor
    return found


def _no_weights(folder: Path, name: str) -> CourseError:
    return CourseError(
        "no-checkpoint",
        f"{folder.name} has no {name}.",
        where="trainer.train(resume_from_checkpoint=...)",
        remedy="give a checkpoint of this trainer, with LoRA if this run has it, without if not.",
    )


def _options(model: Any, **more: Any) -> Any:
    """Whole tensors where the model is in shards; elsewhere they are whole already."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, **more) if is_sharded(model) else StateDictOptions(**more)


def _plain(optimizer: Any) -> Any:
    """The optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
