"""The files of a run: run.json while it is under way, result.json when it is finished, and the model's origin.

<out>/run.json            settings, what was measured before, seconds of the sessions
<out>/checkpoints/        of the trainer, removed when the run is finished
<out>/model/              config, safetensors, tokenizer, origin.json: the next stage's model
<out>/result.json         everything that was found
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from course_utils.alignment_runs.settings import RunSettings
from course_utils.errors import CourseError

RUN, RESULT, ORIGIN = "run.json", "result.json", "origin.json"
LIBRARIES = ("course-utils", "torch", "transformers", "accelerate", "peft", "safetensors")


def write(path: Path, content: Any) -> None:
    """Beside the target, then renamed: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> Any:
    """The content of a file; None if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begun(settings: RunSettings) -> dict[str, Any] | None:
    """What an earlier session of this run wrote; None if this is the first. Another run's folder is refused."""
    found = read(settings.folder / RUN)
    if found is None:
        return None
    saved, present = found["identity"], json.loads(json.dumps(settings.identity()))
    different = [
        f"{name}: saved {saved.get(name)!r:.60}, now {value!r:.60}"
        for name, value in present.items()
        if saved.get(name) != value
    ]
    if different:
        raise CourseError(
            "run-of-other-settings",
            "the folder holds a run with other settings. " + "; ".join(different) + ".",
            where=str(settings.folder),
            remedy="go on with the settings of the first session, or give another out.",
        )
    return found


def origin(model: str) -> dict[str, Any]:
    """The model that a line of stages began with, and the stages that were trained since."""
    found = read(Path(model).expanduser() / ORIGIN)
    return found or {"model": model, "stages": []}


def circumstances(device: str) -> dict[str, Any]:
    """Versions, card and commit: what somebody needs who wants the same numbers."""
    import torch

    from course_utils.machine import versions

    card = platform.machine() if device == "cpu" else torch.cuda.get_device_name(device)
    return {
        "versions": versions(LIBRARIES),
        "python": platform.python_version(),
        "card": card,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the course, with a plus where files were changed; None outside a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        said = [
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=True
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0].strip() + ("+" if said[1].strip() else "")
