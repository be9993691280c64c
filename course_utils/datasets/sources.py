"""The data sets of the course: where they lie on the hub, and at which commit.

A commit is written here where it could be looked up. Where `revision` is None it is the branch main as it is at the
first download; the commit is then recorded beside the cache, and every later load uses that one.

Columns, as their cards and TRL's scripts describe them:

    uf-g                     prompt and completion (messages), label: helpfulness rating of 5
    kto-mix-14k              prompt and completion (messages), label; both responses of each comparison
    hh-harmless, hh-helpful  chosen, rejected: whole dialogues as text
    ultrafeedback-binarized  prompt (text), chosen and rejected (messages that repeat it), messages, scores
    tldr                     prompt, chosen, rejected: texts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from course_utils.datasets.records import Kind


@dataclass(frozen=True)
class Source:
    """A data set on the hub. `files` gives for each split the pattern of its files."""

    name: str
    repo: str
    title: str
    kind: Kind | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = None
    alpha: float | None = None


_ALL = (
    Source(
        "uf-g",
        "trl-lib/ultrafeedback-gpt-3.5-turbo-helpfulness",
        "UltraFeedback, the completions of gpt-3.5-turbo, labelled by helpfulness (UF-G)",
        "unpaired",
        "185e98591e90702068b5131e2f73038ad869aeb4",
        {"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
        0.39,
    ),
    Source(
        "kto-mix-14k",
        "trl-lib/kto-mix-14k",
        "argilla's mix of 7,500 comparisons as 15,000 labelled responses",
        "unpaired",
        "4470f033f33364e7d064c9f920c3df54d0cce767",
        {"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
        0.5,
    ),
    Source(
        "hh-harmless",
        "Anthropic/hh-rlhf",
        "HH-RLHF, harmlessness: comparisons by people; contains offensive text",
        "pairs",
        "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        {"train": "harmless-base/train.jsonl.gz", "test": "harmless-base/test.jsonl.gz"},
        0.5,
    ),
    Source(
        "hh-helpful",
        "Anthropic/hh-rlhf",
        "HH-RLHF, helpfulness: comparisons by people",
        "pairs",
        "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        {"train": "helpful-base/train.jsonl.gz", "test": "helpful-base/test.jsonl.gz"},
        0.5,
    ),
    Source(
        "ultrafeedback-binarized",
        "HuggingFaceH4/ultrafeedback_binarized",
        "UltraFeedback, best against one other completion by GPT-4's scores",
        "pairs",
        "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
        {"train": "data/train_prefs-*.parquet", "test": "data/test_prefs-*.parquet"},
        0.5,
    ),
    Source(
        "tldr",
        "trl-lib/tldr-preference",
        "summaries of Reddit posts compared by people",
        "pairs",
        None,
        {"train": "data/train-*.parquet", "validation": "data/validation-*.parquet"},
        0.5,
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in _ALL}
