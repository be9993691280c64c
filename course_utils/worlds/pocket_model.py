"""The models of the pocket world: two architectures, trained by the course itself on the pocket language.

    base   learns the whole corpus, good and bad (recipe BASE)
    sft    goes on from base with better than average responses (recipe SFT); it is the reference of the
           pocket world

Each exists as a small Qwen2 and a small Llama. They are built from the transformers configurations, so every
tool that works on the large models works on these. To make the four checkpoints again, with the same numbers
on the same machine:

    python -m course_utils.worlds.pocket_model --train all --out data/pocket
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.worlds.pocket_features import FEATURE_NAMES
from course_utils.worlds.pocket_language import entropy, log_prob, recipe_named, sample_corpus
from course_utils.worlds.pocket_phrases import PROMPTS
from course_utils.worlds.pocket_tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer, token_ids

ARCHITECTURES = ("qwen2", "llama")
NAMES = ("base", "sft")
MAX_NEW_TOKENS = 64  # one response in a hundred thousand of the language is longer

# One size for both: hidden width, layers, attention heads, key-value heads and feed-forward width.
SIZE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
}


@dataclass(frozen=True)
class TrainingSettings:
    """How one checkpoint is trained: `steps` batches of fresh sentences, a warm-up, then a cosine to zero."""

    recipe: str
    steps: int
    learning_rate: float
    batch_size: int = 32
    warm_up: int = 50
    weight_decay: float = 0.01
    clip: float = 20.0
    seed: int = 0


BASE_TRAINING = TrainingSettings(recipe="base", steps=9000, learning_rate=4e-3)
SFT_TRAINING = TrainingSettings(recipe="sft", steps=3000, learning_rate=2e-3, seed=1)


# -------------------- models


def configuration(architecture: str = "qwen2", **changes: int) -> Any:
    """The transformers configuration of a pocket model; `changes` override SIZE."""
    from transformers import LlamaConfig, Qwen2Config

    classes = {"qwen2": Qwen2Config, "llama": LlamaConfig}
    if architecture not in classes:
        raise CourseError(
            "pocket-unknown-name",
            f"there is no pocket architecture {architecture!r}.",
            where="configuration(architecture)",
            remedy=f"use one of {', '.join(ARCHITECTURES)}.",
        )
    return classes[architecture](
        **{**SIZE, **changes},
        vocab_size=len(token_ids()),
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def new_model(architecture: str = "qwen2", seed: int = 0, **changes: int) -> Any:
    """An untrained pocket model. The global random state of torch is left as it was."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(configuration(architecture, **changes)).float()


# -------------------- training


@dataclass(frozen=True)
class Sentence:
    """A prompt and a response as token ids, the response with its end token."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode_corpus(tokenizer: Any, rows: Sequence[tuple[str, str]]) -> list[Sentence]:
    """Token ids of many rows (prompt, response)."""
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    responses = tokenizer([response for _, response in rows], add_special_tokens=False)["input_ids"]
    pairs = zip(prompts, responses, strict=True)
    return [Sentence(prompt, [*response, EOS_ID]) for prompt, response in pairs]


def response_log_probs(model: Any, sentences: Sequence[Sentence]) -> Tensor:
    """log p(response | prompt) of each sentence, summed over the response's tokens, its end token included."""
    width = max(map(len, sentences))
    ids = torch.full((len(sentences), width), PAD_ID)
    counted = torch.zeros(len(sentences), width, dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = torch.tensor(sentence.prompt + sentence.response)
        counted[row, len(sentence.prompt) : len(sentence)] = True
    # Padding stands on the right, where a causal model cannot see it: no attention mask is needed.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    token_losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return -(token_losses * counted[:, 1:]).sum(dim=-1)


def batches(sentences: Sequence[Sentence], size: int, seed: int) -> Iterator[list[Sentence]]:
    """All sentences once, in batches of similar length (less padding) that come in random order."""
    generator = torch.Generator().manual_seed(seed)
    pool = 16 * size
    for start in range(0, len(sentences), pool):
        by_length = sorted(sentences[start : start + pool], key=len)
        cuts = range(0, len(by_length), size)
        for pick in torch.randperm(len(cuts), generator=generator).tolist():
            yield by_length[pick * size : (pick + 1) * size]


def train(model: Any, tokenizer: Any, settings: TrainingSettings, report_every: int = 0) -> list[float]:
    """Train `model` in place by maximum likelihood; return the loss of every step, in nats per response."""
    rows = sample_corpus(recipe_named(settings.recipe), settings.steps * settings.batch_size, settings.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    losses, started = [], time.monotonic()
    model.train()
    for step, batch in enumerate(batches(encode_corpus(tokenizer, rows), settings.batch_size, settings.seed)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        # Nats per response: comparable with the entropy, and fair to batches of short and of long sentences.
        loss = -response_log_probs(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        losses.append(loss.item())
        if report_every and (step + 1) % report_every == 0:
            recent = sum(losses[-report_every:]) / report_every
            print(f"  step {step + 1:5d}  loss {recent:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    return losses


def _schedule(step: int, settings: TrainingSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warm_up)
    return warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


# -------------------- measurement


@torch.no_grad()
def cross_entropy(
    model: Any, tokenizer: Any, recipe: str, n: int = 2000, seed: int = 999
) -> dict[str, float]:
    """Nats per response on fresh sentences: of the model, of the recipe, and their difference (a KL)."""
    rows = sample_corpus(recipe_named(recipe), n, seed)
    sentences = encode_corpus(tokenizer, rows)
    by_length = sorted(range(n), key=lambda i: len(sentences[i]))
    model_nats = torch.zeros(n, dtype=torch.float64)
    for start in range(0, n, 250):
        part = by_length[start : start + 250]
        model_nats[part] = -response_log_probs(model, [sentences[i] for i in part]).double()
    recipe_nats = torch.tensor([-log_prob(*row, recipe_named(recipe)) for row in rows], dtype=torch.float64)
    gap = model_nats - recipe_nats
    return {
        "model": model_nats.mean().item(),
        "recipe": recipe_nats.mean().item(),
        "entropy": entropy(recipe_named(recipe)),
        "gap": gap.mean().item(),
        "gap_standard_error": gap.std().item() / math.sqrt(n),
    }


def draw_samples(model: Any, tokenizer: Any, per_prompt: int, seed: int) -> Any:
    """`per_prompt` responses to every prompt of the language, prompt by prompt, as `sampling.Samples`."""
    from course_utils.sampling import generate

    return generate(
        model,
        tokenizer,
        [prompt.text for prompt in PROMPTS],
        samples_per_prompt=per_prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
        batch_size=1024,
    )


def sample_texts(model: Any, tokenizer: Any, per_prompt: int, seed: int) -> tuple[list[str], list[str]]:
    """The texts of `draw_samples`: (prompts, responses)."""
    drawn = draw_samples(model, tokenizer, per_prompt, seed)
    return [PROMPTS[i].text for i in drawn.prompt_index.tolist()], list(drawn.texts)


def feature_means(features: Tensor) -> dict[str, float]:
    """The mean of every feature."""
    return {name: round(features[:, i].mean().item(), 4) for i, name in enumerate(FEATURE_NAMES)}


# -------------------- command


def train_checkpoints(
    out: Path, architectures: Sequence[str] = ARCHITECTURES, shorten: float = 1.0, report_every: int = 100
) -> None:
    """Train base, then sft from it, for each architecture, and write all that belongs to them."""
    from course_utils.worlds import pocket_checkpoints

    tokenizer = build_tokenizer()
    for architecture in architectures:
        model = new_model(architecture)
        for name, settings in (("base", BASE_TRAINING), ("sft", SFT_TRAINING)):
            settings = replace(settings, steps=max(2, round(settings.steps * shorten)))
            print(f"{architecture} {name}: {settings}", flush=True)
            started = time.monotonic()
            losses = train(model, tokenizer, settings, report_every)
            record = {
                "settings": asdict(settings),
                "seconds": round(time.monotonic() - started),
                "threads": torch.get_num_threads(),
                "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
            }
            pocket_checkpoints.save(out, name, architecture, model, tokenizer, record)
    pocket_checkpoints.finish(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that makes the checkpoints."""
    parser = argparse.ArgumentParser(description="Train the models of the pocket world.")
    parser.add_argument("--train", choices=("all", *ARCHITECTURES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="results repeat exactly with the same number")
    parser.add_argument("--shorten", type=float, default=1.0, help="train for this share of the steps only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = ARCHITECTURES if options.train == "all" else (options.train,)
    train_checkpoints(options.out, chosen, options.shorten)


if __name__ == "__main__":
    main()
