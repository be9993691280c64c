"""Where a session computes: the device of this process, its precision, and which process prints and writes,
and how many there are.
"""

from __future__ import annotations

import os
from typing import Any

from course_utils import gpu
from course_utils.alignment_runs.settings import RunSettings


def device_of(settings: RunSettings) -> str:
    """The card of this process, or the processor."""
    from course_utils.real_models import here

    cpu = settings.device == "cpu" or here() == "cpu"
    return "cpu" if cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def precision_of(settings: RunSettings) -> gpu.Precision:
    return gpu.precision("cpu" if device_of(settings) == "cpu" else None)


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes make this run together: one, unless `accelerate launch` or torchrun started more."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def one_machine() -> bool:
    """Whether all processes of the run are on this machine, so that its counters see all of the run's cards."""
    return processes() == int(os.environ.get("LOCAL_WORLD_SIZE", processes()))


def shares_weights() -> bool:
    """Whether the launch asks for FSDP: each process then holds a part of the weights."""
    return processes() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def rows_at_a_time(settings: RunSettings) -> int:
    """Examples that pass the model of one process at a time: all of its share, unless the settings say fewer."""
    return settings.micro_batch or max(1, settings.batch // processes())


def layout() -> str:
    """Where the weights are: what a result says about the machine."""
    return (
        "one process" if processes() == 1 else f"{processes()} {'shards' if shares_weights() else 'copies'}"
    )


def longest_text(model: Any) -> int:
    """The longest text that the model can read."""
    return getattr(model.config, "max_position_embeddings", None) or 10**9


def longest_row(settings: RunSettings, model: Any) -> int:
    """Tokens of the longest row that is trained on or measured."""
    return min(settings.prompt + settings.response, longest_text(model))
