"""A pocket model and a few rows in the form of real ones, for CI and for readers without a card.

A run with them goes through every line that a real run goes through: a folder with safetensors and config, the model
class of Qwen2 or Llama, a tokenizer with a chat template, a file of chat messages. It proves the code, and no result:
`proof` says so wherever such a run is stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError

SMALLEST_MODEL = 10_000_000  # parameters from which on a model is no stand-in
FEWEST_ROWS = 100  # rows from which on a data set is more than a sample of its format
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Practice:
    """Where the material lies."""

    model: Path
    data: Path
    rows: int


def practice_material(
    folder: str | Path,
    architecture: str = "qwen2",
    rows: int = 64,
    alpha: float | None = None,
    temperature: float = 1.0,
) -> Practice:
    """Write a pocket model (`qwen2` or `llama`) and rows as chat messages, one JSON object on each line.

    Without `alpha` the rows are comparisons (prompt, chosen, rejected). With it they are single responses with labels
    (prompt, completion, label) as in UF-G: the model wrote every response itself, a noisy rating was given to each, and
    the share alpha with the highest ratings is labelled true. At another `temperature` than 1 it did not quite write
    them itself: the responses follow another distribution than the model's.

    The tokenizer has a subfolder of its own: see `real_models.load_policy`.
    """
    from course_utils import preferences
    from course_utils.worlds import pocket, pocket_tokenizer

    if rows < 10:
        raise CourseError(
            "run-setting",
            f"rows is {rows}.",
            where="practice_material(folder, architecture, rows)",
            remedy="ask for at least 10, so that there is something to hold out.",
        )
    world = pocket.load_world("bradley_terry", architecture=architecture)
    place = Practice(Path(folder) / f"pocket-{architecture}", Path(folder) / "practice.jsonl", rows)
    place.model.mkdir(parents=True, exist_ok=True)
    # In the format of transformers; its bar would stay in a notebook's page, so the files are written here.
    write_model(world.model, place.model)
    pocket_tokenizer.save_tokenizer(world.tokenizer, place.model / TOKENIZER)
    if alpha is None:
        drawn = preferences.draw_pairs(world, rows + rows // 4 + 10, seed=20)
        triples = zip(drawn.prompt, drawn.chosen, drawn.rejected, strict=True)
        found = [_comparison(*triple) for triple in triples if triple[1] != triple[2]][:rows]
    else:
        found = _rated(world, rows, alpha, temperature)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
    place.data.write_text("".join(lines), encoding="utf-8", newline="\n")
    return place


def _rated(world: Any, rows: int, alpha: float, temperature: float) -> list[dict[str, Any]]:
    """Responses of the world's model; the share alpha with the highest ratings is labelled true."""
    import torch

    wanted = round(alpha * rows)
    if not 0 < wanted < rows:
        raise CourseError(
            "run-setting",
            f"alpha is {alpha}: {wanted} of {rows} rows would be preferred.",
            where="practice_material(folder, architecture, rows, alpha)",
            remedy="choose a share that leaves rows of both labels.",
        )
    generator = torch.Generator().manual_seed(21)
    prompts = world.sample_prompts(rows, generator)
    texts = world.sample_responses(prompts, generator, temperature=temperature)
    # The noise of a rater: a logistic one, as Bradley-Terry has for a single response against a fixed bar.
    noise = torch.logit(torch.rand(rows, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6))
    rating = world.reward_of(prompts, texts).double() + noise
    best = set(rating.argsort(descending=True, stable=True)[:wanted].tolist())
    return [
        {"prompt": _turn("user", asked), "completion": _turn("assistant", said), "label": row in best}
        for row, (asked, said) in enumerate(zip(prompts, texts, strict=True))
    ]


def write_model(model: Any, folder: Path) -> None:
    """config.json, generation settings and weights in safetensors, as `from_pretrained` reads them."""
    from course_utils.real_models import without_bars

    with without_bars():
        model.save_pretrained(folder)


def proof(parameters: int, rows: int) -> str:
    """What a run proves: "code" with a stand-in for the model or for the data, else "result"."""
    return "code" if parameters < SMALLEST_MODEL or rows < FEWEST_ROWS else "result"


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _comparison(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": _turn("user", prompt),
        "chosen": _turn("assistant", chosen),
        "rejected": _turn("assistant", rejected),
    }
