"""Where the data that come with the course lie: checkpoints of the pocket world and measured results.

In a clone it is the folder `data`. An installed package (on Colab) brings a copy of it. The environment variable
COURSE_DATA names another folder.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """The folder that holds `pocket` and `results`."""
    named = os.environ.get("COURSE_DATA")
    if named:
        return Path(named)
    root = Path(__file__).resolve().parents[1]
    return root / "data" if (root / "pyproject.toml").exists() else root / "course_data"
