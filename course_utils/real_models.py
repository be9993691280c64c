"""Real models: a language model to align and a reward model to judge with, from the hub or from a folder.

    policy = load_policy("Qwen/Qwen2.5-0.5B-Instruct")            # or a folder
    judge = load_judge("Skywork/Skywork-Reward-V2-Qwen3-0.6B")    # or a folder
    judge.score(prompts, responses)

Weights are read from safetensors alone, code from a model's repository is never run, and nobody is logged in. Without a
network a model that was loaded before comes from the cache; one that was not gives an error that says how to bring it here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.encoding import encode_prompts
from course_utils.errors import CourseError
from course_utils.policies import LanguageModelPolicy

DEFAULT_POLICY = "Qwen/Qwen2.5-0.5B-Instruct"
DEFAULT_JUDGE = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
Prompt = str | list[dict[str, str]]


def here() -> str:
    """The device to compute on: a CUDA card if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """While files are read and written: without the bars of transformers, which would stay in a notebook's page."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_policy(
    name: str | os.PathLike[str] = DEFAULT_POLICY,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    max_new_tokens: int = 256,
) -> LanguageModelPolicy:
    """A causal language model with its tokenizer, in float32 to be trained (see `gpu.precision`).

    A model that has a chat template is used with it. A folder may keep its tokenizer in a subfolder `tokenizer`:
    beside the config of a Qwen2 model transformers 5 replaces any tokenizer by Qwen's own.
    """
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, name, revision, dtype).to(device or here())
    tokenizer = _load_tokenizer(name, revision)
    chat = bool(getattr(tokenizer, "chat_template", None))
    return LanguageModelPolicy(model, tokenizer, max_new_tokens=max_new_tokens, chat_template=chat)


@dataclass(frozen=True, eq=False)
class RewardJudge:
    """A classifier with one output, read as a reward. What it likes is not what people like: lesson 22 measures that."""

    model: Any
    tokenizer: Any
    name: str
    max_length: int = 4096

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], batch_size: int = 8) -> Tensor:
        """One reward for each response, float64, in the order given."""
        rows = self._tokens(prompts, responses)
        device = next(self.model.parameters()).device
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # little padding
        found = torch.zeros(len(rows), dtype=torch.float64)
        pad = self.tokenizer.pad_token_id
        for start in range(0, len(rows), batch_size):
            part = order[start : start + batch_size]
            width = max(len(rows[row]) for row in part)
            ids = torch.full((len(part), width), pad)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(part):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            found[part] = logits.squeeze(-1).double().cpu()
        return found

    def win_probability(
        self, prompts: Sequence[Prompt], ours: Sequence[str], others: Sequence[str]
    ) -> Tensor:
        """sigma(reward - other reward): what a Bradley–Terry judge with these rewards would say."""
        return torch.sigmoid(self.score(prompts, ours) - self.score(prompts, others))

    def _tokens(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[int]]:
        if len(prompts) != len(responses):
            raise CourseError(
                "shapes-differ",
                f"there are {len(prompts)} prompts and {len(responses)} responses.",
                where="RewardJudge.score",
                remedy="give one response for each prompt.",
            )
        if getattr(self.tokenizer, "chat_template", None):
            talks = [
                [*_messages(prompt), {"role": "assistant", "content": response}]
                for prompt, response in zip(prompts, responses, strict=True)
            ]
            texts = [self.tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
            # A template may write the first token itself.
            begin = self.tokenizer.bos_token
            texts = [text[len(begin) :] if begin and text.startswith(begin) else text for text in texts]
            rows = self.tokenizer(texts, add_special_tokens=bool(begin))["input_ids"]
        else:
            asked = encode_prompts(self.tokenizer, [_text(prompt) for prompt in prompts])
            said = self.tokenizer(list(responses), add_special_tokens=False)["input_ids"]
            end = [self.tokenizer.eos_token_id]
            rows = [first + second + end for first, second in zip(asked, said, strict=True)]
        long = [row for row in rows if len(row) > self.max_length]
        if long:
            raise CourseError(
                "over-length",
                f"{len(long)} of {len(rows)} texts have more than {self.max_length} tokens (the longest {max(map(len, long))}).",
                where=f"RewardJudge({self.name})",
                remedy="leave these out, or raise max_length if the judge can read as much.",
            )
        return rows


def load_judge(
    name: str | os.PathLike[str] = DEFAULT_JUDGE,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_length: int = 4096,
) -> RewardJudge:
    """A reward model: a sequence classifier with one output, such as the Skywork family or one trained with TRL."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    device = device or here()
    config = _asked(name, lambda: AutoConfig.from_pretrained(str(name), revision=revision))
    if config.num_labels != 1:
        raise CourseError(
            "not-a-judge",
            f"{name} has {config.num_labels} outputs, a reward has one.",
            where="load_judge",
            remedy=f"use a reward model, for example {DEFAULT_JUDGE}.",
        )
    if dtype is None:
        dtype = (
            torch.bfloat16
            if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    model = _load(AutoModelForSequenceClassification, name, revision, dtype, num_labels=1).to(device).eval()
    tokenizer = _load_tokenizer(name, revision)
    # The classifier looks for the last token that is not padding.
    model.config.pad_token_id = tokenizer.pad_token_id
    return RewardJudge(model, tokenizer, str(name), max_length)


def _load(kind: Any, name: Any, revision: str | None, dtype: torch.dtype, **options: Any) -> Any:
    with without_bars():
        return _asked(
            name,
            lambda: kind.from_pretrained(
                str(name), revision=revision, dtype=dtype, use_safetensors=True, **options
            ),
        )


def _load_tokenizer(name: Any, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    own = Path(str(name)).expanduser() / "tokenizer"
    place = own if (own / "tokenizer_config.json").is_file() else name
    tokenizer = _asked(name, lambda: AutoTokenizer.from_pretrained(str(place), revision=revision))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _asked(name: Any, ask: Any) -> Any:
    """What the hub or the folder answers; what goes wrong is said in the course's words."""
    folder = Path(str(name)).expanduser()
    local = folder.is_dir() or str(name).startswith((".", "/", "~"))
    if local and not (folder / "config.json").is_file():
        raise CourseError(
            "model-not-here",
            f"the folder {name} holds no model: there is no config.json in it.",
            where="load_policy, load_judge",
            remedy="pass the folder that save_pretrained wrote, or a name of the hub.",
        )
    try:
        return ask()
    except (OSError, ValueError) as error:
        raise _explained(str(name), local, error) from error


def _explained(name: str, local: bool, error: Exception) -> CourseError:
    said = " ".join(str(error).split())
    kinds = {type(each).__name__ for each in _chain(error)}
    if "GatedRepoError" in kinds or "gated repo" in said:
        return CourseError(
            "model-gated",
            f"{name} is gated: its owner wants you to accept a licence first.",
            where="load_policy, load_judge",
            remedy=f"open https://huggingface.co/{name}, accept, then run `hf auth login` once in a terminal; or use "
            f"{DEFAULT_POLICY}, which asks for nothing.",
        )
    if "safetensors" in said:
        return CourseError(
            "model-unsafe-file",
            f"{name} has no weights in the safetensors format.",
            where="load_policy, load_judge",
            remedy="other formats can run code when they are read; convert the model, or use another.",
        )
    if local:
        return CourseError(
            "model-not-here",
            f"the model in {name} cannot be read: {said[:300]}",
            where=name,
            remedy="save it again.",
        )
    return CourseError(
        "model-not-here",
        f"{name} is neither in the cache of this machine nor can it be downloaded ({said[:160]}).",
        where="load_policy, load_judge",
        remedy="check the name and the network (and that HF_HUB_OFFLINE is not set); or copy the model's folder here and pass its path.",
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
