"""The shape of a language model: the few numbers from which its memory follows. No weights are needed for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama family (Llama, Qwen2, Qwen3): attention with grouped keys, a gated feed-forward layer.

    qk_norm     Qwen3 normalises queries and keys
    qkv_bias    Qwen2 adds a bias to queries, keys and values
    tied        the head is the embedding, stored once
    """

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def queries(self) -> int:
        """The width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """The width of all keys (and of all values) of a token."""
        return self.kv_heads * self.head_width

    @property
    def linear(self) -> int:
        """Parameters of the matrix products inside the layers."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All parameters, each stored one counted once."""
        small = 2 * self.hidden
        small += (self.queries + 2 * self.keys) * self.qkv_bias + 2 * self.head_width * self.qk_norm
        embedding = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear + self.layers * small + self.hidden + embedding

    def operations(self, tokens: float, predicted: float, length: float) -> float:
        """Operations of the matrix products of one training step: forward, and twice that backward.

        tokens      that pass the layers;   predicted   that pass the head;   length   of a sequence, for attention
        """
        seen = length / 2  # a token sees half of its sequence on average
        layers = tokens * (self.linear + self.layers * 2 * self.queries * seen)
        return 3 * 2 * (layers + predicted * self.hidden * self.vocabulary)


def _qwen2(name: str, hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int) -> Shape:
    return Shape(name, 151_936, hidden, layers, heads, kv_heads, hidden // heads, feed_forward, qkv_bias=True)


SHAPES = {
    shape.name: shape
    for shape in (
        _qwen2("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 4864),
        _qwen2("Qwen/Qwen2.5-1.5B-Instruct", 1536, 28, 12, 2, 8960),
        Shape("Qwen/Qwen3-0.6B", 151_936, 1024, 28, 16, 8, 128, 3072, qk_norm=True),
        Shape("meta-llama/Llama-3.2-1B-Instruct", 128_256, 2048, 16, 32, 8, 64, 8192),
        Shape("meta-llama/Llama-3.2-3B-Instruct", 128_256, 3072, 28, 24, 8, 128, 8192),
    )
}


def shape_of(model: Any) -> Shape:
    """The shape of a known model (`SHAPES`), of a local folder with a config.json, of a config, or of a loaded model."""
    if isinstance(model, Shape):
        return model
    if isinstance(model, str | Path):
        name = str(model)
        for known in (name, f"{name}-Instruct"):
            if known in SHAPES:
                return SHAPES[known]
        file = Path(model) / "config.json"
        if not file.is_file():
            raise CourseError(
                "unknown-shape",
                f"{name!r} is neither a model whose shape is known here nor a folder with a config.json.",
                where="gpu.shape_of",
                remedy=f"pass a local folder, a config, or one of: {', '.join(SHAPES)}.",
            )
        return _from_dict(name, json.loads(file.read_text(encoding="utf-8")))
    config = getattr(model, "config", model)
    return _from_dict(getattr(config, "name_or_path", "") or type(model).__name__, config.to_dict())


def _from_dict(name: str, config: dict[str, Any]) -> Shape:
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise CourseError(
            "unknown-shape",
            f"the arithmetic is for models of the types llama, qwen2 and qwen3; this one is {kind!r}.",
            where=name,
            remedy="use one of these, or measure one step on your card.",
        )
    heads = config["num_attention_heads"]
    return Shape(
        name,
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or config["hidden_size"] // heads,
        config["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings", kind != "llama")),
        qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
        qk_norm=kind == "qwen3",
    )
