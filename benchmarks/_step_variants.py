"""One variant of a training step, measured alone in its own process. `step.py` starts it and reads its JSON.

All variants train the same model on the same pairs with the same optimizer: DPO, beta 0.1, AdamW without weight
decay, gradients clipped at norm 1, a constant rate. They differ in how they get the log-probabilities.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BETA, RATE = 0.1, 1e-4
PAD, END, FIRST_WORD = 0, 1, 3


@dataclass(frozen=True)
class Size:
    """A model and a batch: prompts and responses of fixed length, so that nobody pads."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    prompt: int
    response: int
    pairs: int
    steps: int
    warm_up: int = 3

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    def flops(self, shared: bool) -> float:
        """Floating-point operations of the matrix products of one step: forward, and twice that backward.

        Tokens that only end a response are no input. The head is counted at response tokens only, and
        attention at the pairs of tokens that see each other.
        """
        p, r = self.prompt, self.response - 1
        queries = self.heads * self.head_width
        keys = self.kv_heads * self.head_width
        per_token = self.layers * (2 * self.hidden * (queries + keys) + 3 * self.hidden * self.feed_forward)
        tokens = self.pairs * (p + 2 * r if shared else 2 * (p + r))
        seen_by_response = r * p + r * (r + 1) / 2
        seen_by_prompt = p * (p + 1) / 2 * (1 if shared else 2)
        seen = self.pairs * (seen_by_prompt + 2 * seen_by_response)
        head = self.hidden * self.vocabulary * 2 * self.pairs * self.response
        return 3 * 2 * (per_token * tokens + self.layers * 2 * queries * seen + head)


def build_model(size: Size) -> Any:
    """The same random Qwen2 model in every process."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen2ForCausalLM(config).float()


def build_data(size: Size) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts, chosen and rejected responses as token ids; a response ends with the end token."""
    draw = random.Random(0)

    def words(count: int) -> list[int]:
        return [draw.randrange(FIRST_WORD, size.vocabulary) for _ in range(count)]

    rows = range(size.pairs * size.steps)
    prompts = [words(size.prompt) for _ in rows]
    sides = [[[*words(size.response - 1), END] for _ in rows] for _ in range(2)]
    return prompts, *sides


class Recorder:
    """Losses, and the time at the end of each step."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.losses: list[float] = []

    def stamp(self) -> None:
        self.stamps.append(time.perf_counter())


# --- the variants -------------------------------------------------------------------------------------


def lean(size: Size, recorder: Recorder, *, shared: bool = False, bf16: bool = False) -> Iterator[None]:
    """The course's way: `pair_log_probs`, and a reference computed once."""
    import torch

    from course_utils.encoding import EncodedPairs, batch_from_ids
    from course_utils.logprobs import pair_log_probs
    from course_utils.reference_cache import reference_log_probs

    model, (prompts, chosen, rejected) = build_model(size), build_data(size)
    sides = [batch_from_ids(prompts, side, pad_id=PAD) for side in (chosen, rejected)]
    pairs = EncodedPairs(*sides, share_prompt=shared)
    batches = [pairs.select(rows) for rows in torch.arange(len(pairs)).split(size.pairs)]
    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    yield
    with precision:
        reference = [side.split(size.pairs) for side in reference_log_probs(model, batches)]

    def margins(step: int) -> torch.Tensor:
        with precision:
            policy_chosen, policy_rejected = pair_log_probs(model, batches[step])
        return policy_chosen - policy_rejected - (reference[0][step] - reference[1][step])

    _train(model, size, margins, recorder)


def naive(size: Size, recorder: Recorder) -> Iterator[None]:
    """The loop of many tutorials: all logits, a log_softmax of them, and a live reference."""
    import torch

    policy, reference = build_model(size), build_model(size).eval().requires_grad_(False)
    prompts, chosen, rejected = build_data(size)
    ids = [torch.tensor([p + r for p, r in zip(prompts, side, strict=True)]) for side in (chosen, rejected)]
    yield

    def log_probs(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits[:, :-1]
        terms = torch.log_softmax(logits, dim=-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
        return terms[:, size.prompt - 1 :].sum(-1)

    def margins(step: int) -> torch.Tensor:
        rows = slice(step * size.pairs, (step + 1) * size.pairs)
        both = torch.cat([side[rows] for side in ids])
        with torch.no_grad():
            fixed = log_probs(reference, both)
        ratio = log_probs(policy, both) - fixed
        return ratio[: size.pairs] - ratio[size.pairs :]

    _train(policy, size, margins, recorder)


def _train(model: Any, size: Size, margins: Callable[[int], Any], recorder: Recorder) -> None:
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for step in range(size.steps):
        loss = -torch.nn.functional.logsigmoid(BETA * margins(step)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recorder.losses.append(loss.item())
        recorder.stamp()


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer for which the words w3, w4, ... are the tokens 3, 4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<pad>": PAD, "</s>": END, "<unk>": 2} | {f"w{i}": i for i in range(FIRST_WORD, vocabulary)}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def as_words(ids: list[int]) -> str:
    """Token ids as the words of `word_tokenizer`."""
    return " ".join(f"w{i}" for i in ids)


def trl(size: Size, recorder: Recorder, **settings: Any) -> Iterator[None]:
    """TRL's DPOTrainer on the same pairs, written as words of a word-level tokenizer."""
    import datasets
    from transformers import TrainerCallback
    from transformers.utils import logging
    from trl import DPOConfig, DPOTrainer

    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    model, (prompts, chosen, rejected) = build_model(size), build_data(size)
    tokenizer = word_tokenizer(size.vocabulary)
    # TRL adds the end token itself.
    rows = [
        {"prompt": as_words(p), "chosen": " " + as_words(c[:-1]), "rejected": " " + as_words(r[:-1])}
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]

    class Recording(DPOTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            result = super().compute_loss(*arguments, **options)
            loss = result[0] if isinstance(result, tuple) else result
            recorder.losses.append(loss.item())
            return result

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            recorder.stamp()

    yield
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {
            "output_dir": folder,
            "per_device_train_batch_size": size.pairs,
            "max_steps": size.steps,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "beta": BETA,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
            **settings,
        }
        # Without a copy of its own, TRL would look for the reference on disk.
        reference = None if settings.get("precompute_ref_log_probs") else build_model(size)
        trainer = Recording(
            model=model,
            ref_model=reference,
            args=DPOConfig(**options),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        first = trainer.train_dataset[0]
        same = (first["prompt_ids"], first["chosen_ids"]) == (prompts[0], chosen[0])
        if not same:
            raise RuntimeError(
                "TRL did not tokenise the first pair as it was written: the comparison is void."
            )
        trainer.train()


FP32 = {"bf16": False, "gradient_checkpointing": False}
VARIANTS: dict[str, tuple[str, Callable[[Size, Recorder], Iterator[None]]]] = {
    "lean": ("this course", lean),
    "lean-shared": ("this course, prompt shared", lambda s, r: lean(s, r, shared=True)),
    "lean-bf16": ("this course, bf16", lambda s, r: lean(s, r, bf16=True)),
    "lean-shared-bf16": ("this course, prompt shared, bf16", lambda s, r: lean(s, r, shared=True, bf16=True)),
    "naive": ("tutorial loop, live reference", naive),
    "trl-precomputed": (
        "TRL, reference precomputed",
        lambda s, r: trl(s, r, precompute_ref_log_probs=True, **FP32),
    ),
    "trl-live": ("TRL, live reference", lambda s, r: trl(s, r, **FP32)),
    "trl-shipped": ("TRL as shipped (bf16, gradient checkpointing, live reference)", trl),
}


# --- measuring ----------------------------------------------------------------------------------------


def measure(variant: str, size: Size, threads: int) -> dict[str, Any]:
    """Run one variant here and now: seconds per step, losses, memory. Meant for a process of its own."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    recorder = Recorder()
    stages = VARIANTS[variant][1](size, recorder)
    next(stages)  # imports, model and data are there; nothing has been computed
    start_mb = memory_mb()
    for _ in stages:
        pass
    steps = [b - a for a, b in zip(recorder.stamps, recorder.stamps[1:], strict=False)]
    counted = steps[size.warm_up - 1 :]
    return {
        "variant": variant,
        "seconds_per_step": statistics.median(counted),
        "seconds": [round(s, 5) for s in counted],
        "losses": recorder.losses[: size.steps],
        "start_mb": start_mb,
        "peak_mb": memory_mb(peak=True),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def product_rate(threads: int, edge: int = 2048) -> dict[str, float]:
    """The best rate of a square matrix product, in operations per second, for each precision."""
    import torch

    torch.set_num_threads(threads)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(edge, edge).to(dtype) for _ in range(2))
        out = torch.empty(edge, edge, dtype=dtype)
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            best = min(best, time.perf_counter() - start)
        rates[str(dtype).removeprefix("torch.")] = 2 * edge**3 / best
    return rates


def memory_mb(peak: bool = False) -> float:
    """Resident memory of this process in MB (10^6 bytes), now or at its highest."""
    if peak and sys.platform != "win32":
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(highest * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
    statm = Path("/proc/self/statm")
    if not peak and statm.exists():
        return round(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    import psutil

    info = psutil.Process().memory_info()
    return round((info.peak_wset if peak else info.rss) / 1e6, 1)
