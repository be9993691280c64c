"""Two tiny language models and a tiny reward model with random weights, as folders: they prove the code, and no result.

An evaluation with them goes through every line that one of real models goes through: safetensors, the model classes of
Qwen2, Qwen3 or Llama, a byte-level tokenizer with a chat template, and a file of comparisons as chat messages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def stand_ins(family: str, folder: Path) -> dict[str, Any]:
    """Two policies and a judge of this family with random weights, and a file of prompts: arguments of `evaluate`."""
    import transformers

    from course_utils.worlds.pocket_phrases import PROMPTS

    transformers.utils.logging.disable_progress_bar()
    tokenizer = _byte_tokenizer()
    small = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    made: dict[str, Any] = {"dataset": folder / "rows.jsonl", "max_new_tokens": 24}
    tasks = {"model": "ForCausalLM", "other": "ForCausalLM", "judge": "ForSequenceClassification"}
    for number, (role, task) in enumerate(tasks.items()):
        torch.manual_seed(number)
        config = getattr(transformers, f"{family}Config")(**small, **tokens, num_labels=1)
        made[role] = folder / f"{family}-{role}"
        getattr(transformers, family + task)(config).save_pretrained(made[role])
        tokenizer.save_pretrained(made[role])
    rows = [
        {"prompt": [{"role": "user", "content": prompt.text}], "chosen": "yes.", "rejected": "no."}
        for prompt in PROMPTS
    ]
    made["dataset"].write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return made


def _byte_tokenizer() -> Any:
    """Bytes as tokens, with turns of a chat: the smallest tokenizer of the kind that Qwen has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(marks + letters)}
    bytes_alone = Tokenizer(models.BPE(vocabulary, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(marks)
    found = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token=marks[0],
        eos_token=marks[2],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return found
