"""Real preference data, from the hub or from a file of yours, checked row by row.

    data = load("hh-rlhf-harmless-test.jsonl.gz")     # a file, a folder with one file per split, or a name of `SOURCES`
    data.report()                                     # what was read, what was refused and why, the preferred fraction
    data.pairs(), data.unpaired()                     # the containers that every objective of the course learns from
    train, test = data.split(0.9, seed=0)             # no prompt on both sides

Every row becomes a frozen record, `PairRow` or `UnpairedRow`, or it is refused with file, row and reason. Nothing is
repaired, nothing is dropped in silence. A file that is damaged is an error, not a shorter data set.

- `records` and `layouts`: what a row may look like, and how it becomes a record.
- `reading`: files of rows (JSON lines, JSON, CSV, Parquet; gzip), read in a stream, strictly.
- `policy` and `account`: what is done about refused rows, and what is written down about them.
- `data`, `findings`: the records of a split; duplicates, contradictions, prompts on both sides of a split.
- `sources`, `hub`: the data sets of the course, downloaded once at a fixed commit; offline from then on.

The Hugging Face library `datasets` is another thing: it is not imported here. Hub files are fetched with
`huggingface_hub` and Parquet is read with `pyarrow`, both only when needed (the extra "lab" brings them).
"""

from course_utils.datasets.account import Account, Refusal, Report
from course_utils.datasets.data import PreferenceData
from course_utils.datasets.findings import Findings, Leakage, inspect_rows, leakage
from course_utils.datasets.loading import load, load_splits
from course_utils.datasets.policy import Policy
from course_utils.datasets.records import Message, PairRow, Prompt, UnpairedRow
from course_utils.datasets.sources import SOURCES, Source
from course_utils.datasets.splits import Splits

__all__ = [
    "SOURCES",
    "Account",
    "Findings",
    "Leakage",
    "Message",
    "PairRow",
    "Policy",
    "PreferenceData",
    "Prompt",
    "Refusal",
    "Report",
    "Source",
    "Splits",
    "UnpairedRow",
    "inspect_rows",
    "leakage",
    "load",
    "load_splits",
]
