"""Reward models: features with a linear map or a small network, and a language model with a head of its own.

Weights are saved as safetensors, everything else as JSON.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError

WEIGHTS, CARD, TOKENIZER = "reward_model.safetensors", "reward_model.json", "tokenizer"
SCORED_AT_ONCE = 256


class FeatureRewardModel(nn.Module):
    """A reward that is linear in features, or with `hidden` a small network of them, in float64.

    Where a response's features come from: `features_of` is a table [X, Y, F] of a finite world, or a function
    (prompts, responses) -> [N, F]. Without it, responses are their features: a tensor [N, F].
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (),
        outputs: int = 1,
        seed: int = 0,
        features_of: Tensor | Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.shape = {"features": features, "hidden": list(hidden), "outputs": outputs}
        self._function = None if isinstance(features_of, Tensor) else features_of
        self.register_buffer("table", features_of.double() if isinstance(features_of, Tensor) else None)
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, units in itertools.pairwise([features, *hidden, outputs]):
            linear = nn.utils.skip_init(nn.Linear, inputs, units, dtype=torch.float64)
            with torch.no_grad():
                noise = torch.randn(units, inputs, generator=generator, dtype=torch.float64)
                linear.weight.copy_(noise / math.sqrt(inputs))
                linear.bias.zero_()
            layers += [linear, nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    @classmethod
    def maker(cls, features: int, **settings: Any) -> Callable[[int], Self]:
        """A function seed -> model, for `train_ensemble`."""
        return lambda seed: cls(features, seed=seed, **settings)

    def reward(self, prompts: Any, responses: Any) -> Tensor:
        """The reward of each response, [N]; with several outputs its embedding, [N, outputs]."""
        if self.table is not None:
            features = self.table[prompts, responses]
        else:
            features = responses if self._function is None else self._function(prompts, responses)
        return self.layers(features.double()).squeeze(-1)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and shape (JSON). A function of features is not saved."""
        _write(Path(folder), self.state_dict(), {"kind": "features", **self.shape})

    @classmethod
    def load(cls, folder: str | Path, features_of: Any = None) -> Self:
        """Read what `save` wrote."""
        weights, card = _read(Path(folder), "features")
        model = cls(
            *(card[name] for name in ("features", "hidden", "outputs")), 0, weights.get("table", features_of)
        )
        model.load_state_dict(weights)
        return model


class LanguageRewardModel(nn.Module):
    """A linear head on a causal language model; it reads the hidden state of the response's last token."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, outputs: int = 1, seed: int = 0, chat_template: bool = False
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.chat_template = model, tokenizer, chat_template
        size, first = model.config.hidden_size, next(model.parameters())
        self.head = nn.utils.skip_init(nn.Linear, size, outputs, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            noise = torch.randn(outputs, size, generator=torch.Generator().manual_seed(seed))
            self.head.weight.copy_(noise / math.sqrt(size + 1))
            self.head.bias.zero_()

    def score(self, batch: Any) -> Tensor:
        """The reward of each row of an encoded batch, [N] (or [N, outputs]), differentiable."""
        from course_utils.causal_lm import hidden_states
        from course_utils.shared_prompt import padding_to_the_right

        _, input_ids, counted = padding_to_the_right(batch)
        hidden, _ = hidden_states(self.model, input_ids=input_ids)
        place = torch.arange(counted.shape[1], device=counted.device)
        last = (counted * place).amax(dim=1)
        return self.head(hidden[torch.arange(len(last), device=last.device), last]).squeeze(-1)

    def reward(self, prompts: Sequence[Any], responses: Sequence[str]) -> Tensor:
        """The reward of each response, without a gradient, on the CPU."""
        from course_utils.causal_lm import scoring_mode
        from course_utils.encoding import encode

        batch = encode(self.tokenizer, prompts, responses, chat_template=self.chat_template)
        device = next(self.parameters()).device
        with scoring_mode(self):
            pieces = torch.arange(len(batch)).split(SCORED_AT_ONCE)
            return torch.cat([self.score(batch.select(rows).to(device)).cpu() for rows in pieces])

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), configuration and tokenizer (JSON)."""
        folder = Path(folder)
        # named_parameters: a tensor that two layers share is written once.
        weights = {name: value.detach().cpu().contiguous() for name, value in self.named_parameters()}
        card = {"kind": "language", "outputs": self.head.out_features, "chat_template": self.chat_template}
        _write(folder, weights, card)
        self.model.config.save_pretrained(folder)
        # Beside a config.json of Qwen2, transformers would read any tokenizer back as Qwen's own.
        self.tokenizer.save_pretrained(folder / TOKENIZER)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        folder = Path(folder)
        weights, card = _read(folder, "language")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            backbone = AutoModelForCausalLM.from_config(config).to(weights["head.weight"].dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        model = cls(backbone, tokenizer, card["outputs"], chat_template=card["chat_template"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        return model


# -------------------- parts


def _write(folder: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: value.contiguous() for name, value in weights.items() if value is not None})
    card = {**card, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / WEIGHTS).write_bytes(data)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load

    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    data = (folder / WEIGHTS).read_bytes()
    whole = hashlib.sha256(data).hexdigest() == card["sha256"]
    if card["kind"] != kind or not whole:
        what = f"it is of kind {card['kind']!r}" if whole else "its weights do not match their sha256"
        raise CourseError(
            "reward-model-file",
            f"this is not a reward model that can be read here: {what}.",
            where=folder.name,
            remedy="load it with the class that saved it, or save it again if a file was damaged.",
        )
    return load(data), card
