"""The reference's log-probabilities, computed once and kept on disk.

A frozen reference gives the same numbers at every epoch, so they are computed once. A cache that answers with
the numbers of another reference is worse than none, so an entry is found by content, never by name. Its key
is a hash of

    weights, config, adapters switched on, tokens, precision, version of the scoring code

so that a fine-tuned copy, another tokenizer or another precision is another entry. Only safetensors and JSON
are written; both appear whole or not at all, and a file that does not match its checksum is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.causal_lm import scoring_mode, unwrapped
from course_utils.encoding import EncodedBatch, EncodedPairs
from course_utils.errors import CourseError
from course_utils.logprobs import pair_log_probs, sequence_log_probs

Batch = EncodedBatch | EncodedPairs

# Raise this when a change to the scoring code changes its numbers: every older entry is then computed again.
SCORING_VERSION = 1

# Entries of a config that say where a model came from or which kernel runs it, not what it computes.
_NOT_CONTENT = {"name_or_path", "transformers_version", "use_cache", "architectures"}
_PIECE = 1 << 26  # bytes hashed at a time


def reference_log_probs(
    model: Any,
    dataset_batches: Iterable[Batch],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    chunk: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log pi_ref for a whole data set, from the cache or computed and put there.

    dataset_batches  the batches in the order of the data set; how it is cut into batches does not matter
    cache_dir        where entries live; None computes without a cache

    Returns one tensor [rows] for batches of sequences, (chosen, rejected) for batches of pairs, on the CPU.
    """
    batches = list(dataset_batches)
    kinds = {type(batch) for batch in batches}
    if len(kinds) != 1 or not kinds <= {EncodedBatch, EncodedPairs}:
        raise CourseError(
            "batch-shape",
            f"The batches are of the kinds {sorted(kind.__name__ for kind in kinds)}.",
            where="reference_log_probs",
            remedy="Pass at least one, all EncodedBatch or all EncodedPairs.",
        )
    if cache_dir is None:
        return _unpack(_compute(model, batches, chunk))
    folder = Path(cache_dir)
    key = cache_key(model, batches)
    tensors = _read(folder, key)
    if tensors is None:
        tensors = _compute(model, batches, chunk)
        _write(folder, key, tensors, model)
    return _unpack(tensors)


def cache_key(model: Any, batches: Iterable[Batch]) -> str:
    """The sha256 of everything that the log-probabilities depend on."""
    digest = hashlib.sha256()
    for part in (f"scoring {SCORING_VERSION}", _precision(model), _config(model), _adapters(model)):
        digest.update(part.encode() + b"\n")
    digest.update(weights_hash(model).encode())
    for batch in batches:
        sides = (batch.chosen, batch.rejected) if isinstance(batch, EncodedPairs) else (batch,)
        # Row by row and without the padding: the same data in other batches is the same data.
        for row in zip(*map(_row_bytes, sides), strict=True):
            digest.update(b"".join(row))
    return digest.hexdigest()


def weights_hash(model: Any) -> str:
    """The sha256 of all weights and buffers: names, shapes, types and bytes, streamed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrapped(model).state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), _PIECE):
            digest.update(flat[start : start + _PIECE].cpu().numpy())
    return digest.hexdigest()


# --- what goes into the key ---------------------------------------------------------------------------


def _row_bytes(batch: EncodedBatch) -> Iterator[bytes]:
    tensors = (batch.input_ids.long(), batch.attention_mask, batch.response_mask)
    for ids, real, response in zip(*(tensor.cpu().numpy() for tensor in tensors), strict=True):
        length = int(real.sum()).to_bytes(8, "little")
        yield length + ids[real].astype("<i8").tobytes() + response[real].tobytes()


def _precision(model: Any) -> str:
    device = next(unwrapped(model).parameters()).device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return f"{device} autocast {autocast}"


def _config(model: Any) -> str:
    entries = unwrapped(model).config.to_dict()
    content = {k: v for k, v in entries.items() if k not in _NOT_CONTENT and not k.startswith("_")}
    return type(unwrapped(model)).__name__ + json.dumps(content, sort_keys=True, default=str)


def _adapters(model: Any) -> str:
    """Which adapters are on: with its adapters off, a policy is the reference: same weights."""
    states = [
        (name, bool(module.disable_adapters), sorted(module.active_adapters))
        for name, module in unwrapped(model).named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool) and hasattr(module, "active_adapters")
    ]
    return json.dumps(states)


# --- computing, reading, writing ----------------------------------------------------------------------


def _compute(model: Any, batches: list[Batch], chunk: int | None) -> dict[str, Tensor]:
    columns: dict[str, list[Tensor]] = {}
    device = next(unwrapped(model).parameters()).device
    with scoring_mode(model):
        for batch in batches:
            batch = batch.to(device)
            if isinstance(batch, EncodedPairs):
                chosen, rejected = pair_log_probs(model, batch, chunk=chunk)
                parts = {"chosen": chosen, "rejected": rejected}
            else:
                parts = {"log_probs": sequence_log_probs(model, batch, chunk=chunk)}
            for name, values in parts.items():
                columns.setdefault(name, []).append(values.cpu())
    tensors = {name: torch.cat(parts) for name, parts in columns.items()}
    for name, values in tensors.items():
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise CourseError(
                "reference-not-finite",
                f"The reference gives {name} a log-probability of {values[row].item()}.",
                where=f"row {row}",
                remedy="Check that the weights are loaded and finite, and use bfloat16 rather than float16.",
            )
    return tensors


def _unpack(tensors: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    return tensors["log_probs"] if "log_probs" in tensors else (tensors["chosen"], tensors["rejected"])


def _read(folder: Path, key: str) -> dict[str, Tensor] | None:
    """The entry, or None if there is none. The JSON is written last, so without it there is no entry."""
    card_path, data_path = folder / f"{key}.json", folder / f"{key}.safetensors"
    if not card_path.exists():
        return None
    from safetensors.torch import load

    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        data = data_path.read_bytes()
        if card["key"] != key or card["sha256"] != hashlib.sha256(data).hexdigest():
            raise ValueError("the checksum does not match")
        return load(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"The cached log-probabilities {data_path.name} are damaged ({error}); computing them again.",
            UserWarning,
            stacklevel=3,
        )
        return None


def _write(folder: Path, key: str, tensors: dict[str, Tensor], model: Any) -> None:
    from safetensors.torch import save

    data = save({name: values.contiguous() for name, values in tensors.items()})
    first = next(iter(tensors.values()))
    card = {
        "key": key,
        "sha256": hashlib.sha256(data).hexdigest(),
        "columns": sorted(tensors),
        "rows": first.numel(),
        "dtype": str(first.dtype),
        "model": type(unwrapped(model)).__name__,
        "parameters": sum(parameter.numel() for parameter in unwrapped(model).parameters()),
        "scoring_version": SCORING_VERSION,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / f"{key}.safetensors", data)
    _write_whole(folder / f"{key}.json", (json.dumps(card, indent=2) + "\n").encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Write next to the target and rename: a reader, or a crash, never meets half a file."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
