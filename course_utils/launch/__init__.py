"""Configurations for `accelerate launch`: how many processes, on which machines, and how they share a model.

    one_gpu             one card
    two_gpus            two cards of one machine, weights in shards (FSDP)
    eight_gpus          eight cards of one machine, likewise
    two_nodes           two machines with eight cards each, likewise
    two_processes_cpu   two processes without a card, likewise: to practise and to test with

    course launch-config two_gpus --copy .
    accelerate launch --config_file two_gpus.yaml -m course_utils.alignment_runs --model ... --method dpo --out ...

Each line of the files says what it does. The files are read by accelerate; nothing of the course is in them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from course_utils.errors import CourseError

NAMES = ("one_gpu", "two_gpus", "eight_gpus", "two_nodes", "two_processes_cpu")


def path(name: str) -> Path:
    """Where the configuration of this name lies: what `--config_file` takes."""
    name = name.removesuffix(".yaml")
    if name not in NAMES:
        raise CourseError(
            "unknown-choice",
            f"there is no launch configuration {name!r}.",
            where="course launch-config",
            remedy=f"choose one of {', '.join(NAMES)}.",
        )
    return Path(__file__).with_name(f"{name}.yaml")


def about(name: str) -> str:
    """The first line of a configuration: what it is for."""
    return path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def copy(name: str, folder: str | Path = ".") -> Path:
    """A copy to change, in this folder. A file that is there already stays as it is, and is an error."""
    source, target = path(name), Path(folder) / path(name).name
    if target.exists():
        raise CourseError(
            "file-exists",
            f"{target} is there already, and may have been changed.",
            where="course launch-config",
            remedy="use it as it is, or name another folder.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))
