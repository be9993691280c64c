"""The bridge to real trainers: the objectives of the registry inside transformers' trainer, and inside TRL's.

    AlignmentTrainer       any objective, on transformers' Trainer: our trainer for real models (`trainer`)
    training_arguments     TrainingArguments with defaults that make sense (`arguments`)
    TimeBudget             stop after so many minutes, save, and go on later (`callbacks`)
    RegistryDPOTrainer     TRL's DPOTrainer and KTOTrainer with an objective of the registry in their
    RegistryKTOTrainer     `compute_loss` (`trl_trainers`, the one file that imports trl)
    feedback_from_rows     rows of a data set as Pairs, Unpaired or Groups (`data`)

Nothing heavy is imported before one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from course_utils.trl_bridge.arguments import training_arguments
    from course_utils.trl_bridge.callbacks import TimeBudget
    from course_utils.trl_bridge.data import feedback_from_rows
    from course_utils.trl_bridge.trainer import AlignmentTrainer
    from course_utils.trl_bridge.trl_trainers import RegistryDPOTrainer, RegistryKTOTrainer

__all__ = [
    "AlignmentTrainer",
    "RegistryDPOTrainer",
    "RegistryKTOTrainer",
    "TimeBudget",
    "feedback_from_rows",
    "training_arguments",
]

_HOMES = {
    "AlignmentTrainer": "trainer",
    "RegistryDPOTrainer": "trl_trainers",
    "RegistryKTOTrainer": "trl_trainers",
    "TimeBudget": "callbacks",
    "feedback_from_rows": "data",
    "training_arguments": "arguments",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("course_utils"):
            raise
        raise CourseError(
            "missing-package",
            f"{name} needs {error.name}, which is not installed.",
            where="course_utils.trl_bridge",
            remedy='pip install "course-utils[trl]".',
        ) from error
