"""The card of the pocket checkpoints, data/pocket/README.md: written from what was measured, never by hand."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from course_utils.worlds.pocket_features import FEATURE_NAMES, feature_table
from course_utils.worlds.pocket_language import recipe_named, sample_corpus
from course_utils.worlds.pocket_model import ARCHITECTURES, NAMES, SIZE
from course_utils.worlds.pocket_phrases import PROMPTS, vocabulary


def card(folder: Path) -> str:
    """The text of the card, from the training.json of every checkpoint in the folder."""
    records = {}
    for architecture in ARCHITECTURES:
        for name in NAMES:
            file = folder / f"{architecture}-{name}" / "training.json"
            if file.exists():
                records[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
    parts = (
        _INTRODUCTION,
        *_training_table(records),
        "",
        *_quality_table(records),
        "",
        *_features(records),
        "",
        _END,
    )
    return "\n".join(parts)


_SIZES = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in SIZE.items())

_INTRODUCTION = f"""# The pocket checkpoints

Small language models that answer the guests of a front desk, in a language of {len(vocabulary())} words and
marks and {len(PROMPTS)} prompts. They exist so that preference learning can be measured against a known truth
on a CPU. They know nothing else and are of no other use.

- Architectures: Qwen2 and Llama, from the configurations of transformers ({_SIZES}, tied embeddings).
- `base` learns the whole corpus, right and wrong, polite and rude (recipe BASE of
  `course_utils/worlds/pocket_language.py`).
- `sft` goes on from `base` with better than average responses (recipe SFT). It is the reference of the pocket
  world.
- Training data: drawn from the recipes by `sample_corpus` with the seeds below. No text by people, no
  download, no personal data.
- Weights are float16 on disk and are loaded as float32. They were rounded before anything was measured.
- `reference_features.safetensors` holds the features of 1,024 responses to each prompt, from which win rates
  against the model follow.
- Read with `course_utils.worlds.pocket.load(...)`, which compares every file with `sha256sums.txt`, or with
  `from_pretrained`.

Made by `python -m course_utils.worlds.pocket_model --train all --out data/pocket`. This card is written by
that command.

## How they were trained

AdamW (betas 0.9 and 0.98, weight decay 0.01), warm-up of 50 steps, then a cosine to zero; gradients clipped
at norm 20;
every batch holds fresh sentences; only response tokens count."""

_END = """## Licence

The same as the course's code: see LICENSE at the root of the repository."""


def _training_table(records: dict) -> list[str]:
    lines = [
        "",
        "| checkpoint | parameters | steps x batch | learning rate | seed | seconds | last loss |",
        "|" + "---|" * 7,
    ]
    for name, record in records.items():
        settings = record["settings"]
        lines.append(
            f"| {name} | {record['parameters']:,} | {settings['steps']} x {settings['batch_size']} | {settings['learning_rate']:g} "
            f"| {settings['seed']} | {record['seconds']} | {record['last_loss']:.3f} |"
        )
    return lines


def _quality_table(records: dict) -> list[str]:
    lines = [
        "## How well they know the language",
        "",
        "Nats per response on 2,000 fresh sentences: of the model, of the recipe itself on the same sentences,",
        "and the difference, which estimates KL(recipe || model). The recipe's entropy is exact.",
        "",
        "| checkpoint | model | recipe | entropy | difference | model in float32 | grammatical samples |",
        "|" + "---|" * 7,
    ]
    for name, record in records.items():
        found = record["cross_entropy"]
        lines.append(
            f"| {name} | {found['model']:.3f} | {found['recipe']:.3f} | {found['entropy']:.3f} | {found['gap']:.3f} ± "
            f"{found['gap_standard_error']:.3f} | {record['cross_entropy_before_rounding']:.3f} "
            f"| {100 * record['grammatical']:.2f} % of {record['samples']:,} |"
        )
    return lines


def _features(records: dict) -> list[str]:
    lines = [
        "## What they say",
        "",
        "The mean of each feature over their samples, beside the recipe they learnt (20,000 sentences).",
        "",
        "| | " + " | ".join(FEATURE_NAMES) + " |",
        "|" + "---|" * (len(FEATURE_NAMES) + 1),
    ]
    for name in NAMES:
        table = feature_table(*zip(*sample_corpus(recipe_named(name), 20_000, 5), strict=True))
        lines.append(_row(f"recipe {name}", table.mean(dim=0)))
        for checkpoint, record in records.items():
            if checkpoint.endswith(f"-{name}"):
                means = torch.tensor([record["feature_means"][key] for key in FEATURE_NAMES])
                lines.append(_row(checkpoint, means))
    return lines


def _row(title: str, values: torch.Tensor) -> str:
    return f"| {title} | " + " | ".join(f"{value:.3f}" for value in values.tolist()) + " |"
