"""The shipped checkpoints of the pocket world: written once, verified whenever they are read.

    data/pocket/README.md                     the card: what, how trained, how good
    data/pocket/sha256sums.txt                one line per file; `sha256sum -c` reads it too
    data/pocket/tokenizer/                    one tokenizer for all
    data/pocket/qwen2-sft/                    one folder per checkpoint, in the layout of transformers
        model.safetensors                     weights, float16 on disk, float32 in memory
        config.json
        training.json                         settings, losses and measurements
        reference_features.safetensors        (sft only) features of a large sample, for win rates

Weights are rounded to float16 before anything is measured or drawn from them, so every number belongs to the
model that is loaded. The tokenizer has a folder of its own because transformers replaces the tokenizer of any
folder whose config.json says "qwen2" by Qwen's byte-level one, without a word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.shipped import data_folder
from course_utils.worlds import pocket_tokenizer
from course_utils.worlds.pocket_features import FEATURE_NAMES, column, feature_table
from course_utils.worlds.pocket_model import (
    ARCHITECTURES,
    NAMES,
    cross_entropy,
    feature_means,
    new_model,
    sample_texts,
)
from course_utils.worlds.pocket_phrases import PROMPTS

SUMS = "sha256sums.txt"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
REFERENCE = "reference_features.safetensors"
REFERENCE_PER_PROMPT = 1024
REFERENCE_SEED = 20_000


def default_folder() -> Path:
    """Where the shipped checkpoints lie."""
    return data_folder() / "pocket"


# -------------------- read


def load(name: str = "sft", architecture: str = "qwen2", folder: Path | None = None) -> tuple[Any, Any]:
    """A pocket model in evaluation mode, and its tokenizer. Damaged files are refused."""
    from safetensors.torch import load_file

    place = checkpoint_folder(name, architecture, folder)
    tokenizer_file = place.parent / TOKENIZER / "tokenizer.json"
    for file in (place / WEIGHTS, tokenizer_file):
        verify(file)
    model = new_model(architecture)
    weights = {key: value.float() for key, value in load_file(place / WEIGHTS).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # The head shares the embedding's weights, so the file does not hold them twice.
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise CourseError(
            "pocket-checkpoint-damaged",
            f"{place / WEIGHTS} is not a {architecture} pocket model: missing {missing}, unexpected {unexpected}.",
            where=f"load({name!r}, {architecture!r})",
            remedy="restore data/pocket from the repository: git checkout -- data/pocket",
        )
    model.eval()
    return model, pocket_tokenizer.read_tokenizer(tokenizer_file)


def load_reference_features(name: str, architecture: str, folder: Path | None = None) -> Tensor | None:
    """The shipped feature sample of a checkpoint, [prompts, samples, 9] in float64; None if it has none."""
    from safetensors import safe_open

    place = checkpoint_folder(name, architecture, folder)
    if not (place / REFERENCE).exists():
        return None
    verify(place / REFERENCE)
    with safe_open(place / REFERENCE, framework="pt") as file:
        belongs_to, features = file.metadata()["weights_sha256"], file.get_tensor("features")
    if belongs_to != digest(place / WEIGHTS):
        raise CourseError(
            "pocket-checkpoint-damaged",
            f"{place / REFERENCE} was made from other weights than {WEIGHTS} beside it.",
            where=f"load_reference_features({name!r}, {architecture!r})",
            remedy="make both again: python -m course_utils.worlds.pocket_model --train all --out data/pocket",
        )
    return features.double()


def checkpoint_folder(name: str, architecture: str, folder: Path | None = None) -> Path:
    """Where a checkpoint lies."""
    if name not in NAMES or architecture not in ARCHITECTURES:
        raise CourseError(
            "pocket-unknown-name",
            f"there is no pocket checkpoint {name!r} of architecture {architecture!r}.",
            where="load(name, architecture)",
            remedy=f"name is one of {', '.join(NAMES)}; architecture is one of {', '.join(ARCHITECTURES)}.",
        )
    return (folder or default_folder()) / f"{architecture}-{name}"


def verify(file: Path) -> None:
    """Compare a file with its line in sha256sums.txt."""
    root = file.parents[1]
    expected = read_sums(root).get(file.relative_to(root).as_posix())
    if expected is None or not file.exists():
        raise CourseError(
            "pocket-checkpoint-missing",
            f"{file} is missing, or {SUMS} has no line for it.",
            where="loading a pocket checkpoint",
            remedy="work in a clone of the repository, or set COURSE_DATA to the data folder of one.",
        )
    found = digest(file)
    if found != expected:
        raise CourseError(
            "pocket-checkpoint-damaged",
            f"{file} is not the file that was shipped: sha256 {found[:12]}..., expected {expected[:12]}...",
            where="loading a pocket checkpoint",
            remedy="restore it with git checkout -- data/pocket; keep your own models in another folder.",
        )


def read_sums(root: Path) -> dict[str, str]:
    """The lines of sha256sums.txt: path to sum. Empty if there is no such file."""
    path = root / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}


def digest(file: Path) -> str:
    """The sha256 of a file. Line ends of text files count as written here: git may change them on Windows."""
    content = file.read_bytes()
    if file.suffix in (".json", ".md"):
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


# -------------------- write


def save(out: Path, name: str, architecture: str, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    """Write one checkpoint and measure it. `model` is left with the rounded weights that were written."""
    from safetensors.torch import save_file

    place = checkpoint_folder(name, architecture, out)
    place.mkdir(parents=True, exist_ok=True)
    before = cross_entropy(model, tokenizer, name)
    round_to_half(model)
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    weights.pop("lm_head.weight")
    save_file(weights, place / WEIGHTS, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32  # what a reader of config.json should load the weights as
    model.config.save_pretrained(place)
    after = cross_entropy(model, tokenizer, name)
    per_prompt = REFERENCE_PER_PROMPT if name == "sft" else 100
    features = feature_table(*sample_texts(model, tokenizer, per_prompt, REFERENCE_SEED))
    record |= {
        "parameters": sum(value.numel() for value in model.parameters()),
        "cross_entropy": after,
        "cross_entropy_before_rounding": before["model"],
        "samples": len(features),
        "grammatical": round(column(features, "grammatical").mean().item(), 5),
        "feature_means": feature_means(features),
    }
    if name == "sft":
        table = features.reshape(len(PROMPTS), per_prompt, len(FEATURE_NAMES)).to(torch.int8)
        about = {
            "weights_sha256": digest(place / WEIGHTS),
            "seed": str(REFERENCE_SEED),
            "features": " ".join(FEATURE_NAMES),
        }
        save_file({"features": table}, place / REFERENCE, metadata=about)
    (place / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"  {architecture} {name}: {json.dumps(record)}", flush=True)


@torch.no_grad()
def round_to_half(model: Any) -> None:
    """Round every weight to the nearest float16, in place; the weights stay float32 tensors."""
    for value in model.parameters():
        value.copy_(value.half().float())


def finish(out: Path) -> None:
    """Write the tokenizer, the card and the sums of everything in the folder."""
    from course_utils.worlds.pocket_card import card

    pocket_tokenizer.save_tokenizer(pocket_tokenizer.build_tokenizer(), out / TOKENIZER)
    (out / "README.md").write_text(card(out), encoding="utf-8")
    files = sorted(file for file in out.rglob("*") if file.is_file() and file.name != SUMS)
    lines = [f"{digest(file)}  {file.relative_to(out).as_posix()}\n" for file in files]
    (out / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
