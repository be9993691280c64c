"""`course align` as a script, for `accelerate launch`, which starts one process for each card:

accelerate launch --config_file two_gpus.yaml -m course_utils.alignment_runs --model ... --method dpo --out ...

The options are those of `course align`; `course launch-config` gives the configuration.
"""

from __future__ import annotations

import sys
import time

from course_utils import cli
from course_utils.alignment_runs.where import first_process
from course_utils.errors import CourseError

show_error = cli.show_error


def show_later(error: CourseError) -> None:
    """An error of all processes is shown once: the first one ends the others before they come to it."""
    time.sleep(3)
    show_error(error)


if __name__ == "__main__":
    if not first_process():
        cli.show_error = show_later
    cli.main(["align", *sys.argv[1:]])
