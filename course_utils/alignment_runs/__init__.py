"""Runs with real models, from data to a stored result: what lessons 20 to 23 and `course align` start.

    run = RunSettings(model="Qwen/Qwen2.5-0.5B-Instruct", data="hh-helpful", method="dpo", steps=300, minutes=60)
    result = align(run)                       stops at its time budget; the same call goes on where it stopped
    first, second = align_in_stages([replace(run, method="sft"), run])      SFT, then DPO from what SFT saved
    results_table()                           what was run on real models, from raw JSON

- `settings`   the settings of a run, and the command that makes it
- `data`       rows to train on and to hold out; which methods they can feed; the share of preferred responses
- `room`       what fits on which card
- `preparing`  model, reference, adapters, trainer;  `where`  device, precision, process
- `running`    train under a time budget, go on exactly
- `measuring`  held-out loss, accuracies, drift, and samples with the same seed before and after
- `saving`     what a session writes down, and the trained model
- `records`    run.json while a run is under way, result.json when it is finished
- `table`      the table of results, and how to fill it while it is empty
- `practice`   a pocket model and a few rows in the form of real ones: they prove the code, and no result
"""

from course_utils.alignment_runs.practice import practice_material
from course_utils.alignment_runs.running import RunResult, align, align_in_stages
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.table import ResultsTable, results_table

__all__ = [
    "ResultsTable",
    "RunResult",
    "RunSettings",
    "align",
    "align_in_stages",
    "practice_material",
    "results_table",
]
