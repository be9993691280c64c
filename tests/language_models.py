"""Shared by the tests of language models: tiny random ones, a tokenizer, and the naive way to score."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from course_utils.encoding import EncodedBatch, batch_from_ids

VOCABULARY = 1100  # more than two slices of the head


def tiny_model(
    architecture: str = "qwen2",
    vocabulary: int = VOCABULARY,
    *,
    double: bool = False,
    seed: int = 0,
    attention: str = "sdpa",
    spread: float = 4.0,
    **settings,
) -> nn.Module:
    """A random model of two layers. Qwen2 ties its embeddings and Llama does not."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, kind = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    options = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "tie_word_embeddings": architecture == "qwen2",
        "attn_implementation": attention,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    model = kind(config(**{**options, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)  # as initialised, every distribution is nearly uniform
    return in_float64(model) if double else model


def in_float64(model: nn.Module) -> nn.Module:
    """The model in real double precision: as shipped, its normalisations round to float32 inside."""
    model = model.double()

    def normalise(layer: nn.Module):
        return lambda x: (
            layer.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + layer.variance_epsilon)
        )

    for layer in model.modules():
        if type(layer).__name__.endswith("RMSNorm"):
            layer.forward = normalise(layer)
    return model


def random_ids(
    rows: int, shortest: int, longest: int, seed: int, vocabulary: int = VOCABULARY
) -> list[list[int]]:
    """Token ids of random lengths; 0, 1 and 2 are left for padding and the end."""
    draw = random.Random(seed)
    return [
        [draw.randrange(3, vocabulary) for _ in range(draw.randint(shortest, longest))] for _ in range(rows)
    ]


def random_batch(
    rows: int = 5, padding: str = "right", seed: int = 0, vocabulary: int = VOCABULARY
) -> EncodedBatch:
    """Rows of different lengths."""
    prompts = random_ids(rows, 1, 6, seed, vocabulary)
    return batch_from_ids(prompts, random_ids(rows, 1, 5, seed + 1, vocabulary), padding=padding)


def naive_log_probs(model: nn.Module, batch: EncodedBatch) -> Tensor:
    """The other way: all logits, log_softmax, gather. Shape [N, L], zero outside the response."""
    mask = batch.attention_mask.long()
    position = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=batch.input_ids, attention_mask=mask, position_ids=position).logits
    terms = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    terms = terms * batch.response_mask[:, 1:]
    return torch.nn.functional.pad(terms, (1, 0))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter, by name."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML):
    """A byte-level BPE trained on a few sentences, with ChatML turns: of the kind that Qwen has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentences = ["the soup was warm and the service was kind", "abab abab abab", "tell me about the music"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences * 20, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    return wrapped
