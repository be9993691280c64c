"""What the processes of test_sharded.py do: the same short runs whole, in copies (DDP) and in shards (FSDP)."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from language_models import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
WORDS = ["the", "soup", "was", "warm", "and", "service", "kind", "music", "about", "me"]
STEPS = 4


@dataclass(frozen=True)
class Case:
    """One run: what is trained, with what."""

    objective: str = "dpo"
    architecture: str = "qwen2"
    options: dict[str, Any] = field(default_factory=dict)
    micro: int = 2  # rows in a forward pass of one process
    reference: str = "precomputed"
    lora: bool = False
    checkpointing: bool = False
    bf16: bool = False
    clip: float = 0.05  # small: it does clip


CASES = {
    "full": Case("rdro", options={"alpha": 0.4}),
    "accumulated": Case("kto", "llama", {"kl": "mismatched"}, micro=1, reference="live"),
    "moving": Case(reference="soft", clip=0.0),
    "lora": Case("dpo", "llama", reference="live", lora=True),
    "checkpointing": Case("simpo", "llama", checkpointing=True),
    "bf16": Case(bf16=True),
}
# What is taken up at step 2: which run, written by whom, by whom it is gone on with. "one" is one process.
RESUMED = (
    ("full", "one", "shards"),
    ("full", "copies", "shards"),
    ("full", "one", "copies"),
    ("full", "shards", "copies"),
    ("moving", "one", "shards"),
    ("lora", "one", "shards"),
)
UPDATE = 8  # rows


def rows_for(case: Case) -> list[dict[str, Any]]:
    """Comparisons, or labelled responses in classes of different sizes."""
    generator = torch.Generator().manual_seed(3)

    def sentence(length: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))

    rows = [
        {"prompt": sentence(2), "chosen": " " + sentence(1 + i % 3), "rejected": " " + sentence(3 - i % 3)}
        for i in range(20)
    ]
    if case.objective in ("dpo", "simpo"):
        return rows
    return [
        {"prompt": r["prompt"], "completion": r["chosen"], "label": i % 3 == 0} for i, r in enumerate(rows)
    ]


def trainer_of(case: Case, folder: Path, sharded: bool) -> Any:
    """A trainer as every launch makes it; FSDP's environment says whether it shards."""
    from course_utils.references import MovingReference
    from course_utils.trl_bridge import AlignmentTrainer, training_arguments

    world = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    inside = sharded and case.checkpointing  # FSDP brings its own
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = str(inside).lower()
    model = tiny_model(
        case.architecture,
        len(TOKENIZER),
        seed=1,
        max_position_embeddings=128,
        eos_token_id=2,
        pad_token_id=0,
    )
    adapter = None
    if case.lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    rows = rows_for(case)
    return AlignmentTrainer(
        model,
        args=training_arguments(
            folder,
            use_cpu=True,
            max_steps=STEPS,
            per_device_train_batch_size=case.micro,
            gradient_accumulation_steps=UPDATE // (case.micro * world),
            per_device_eval_batch_size=4,
            learning_rate=1e-2,
            max_grad_norm=case.clip,
            save_steps=2,
            bf16=case.bf16,
            gradient_checkpointing=case.checkpointing and not inside,
            disable_tqdm=True,
        ),
        train_data=rows,
        eval_data=rows[:6],
        processing_class=TOKENIZER,
        objective=case.objective,
        objective_options=case.options,
        reference=MovingReference.soft(model, every=2) if case.reference == "soft" else case.reference,
        peft_config=adapter,
    )


def run(case: Case, folder: Path, sharded: bool = False, resume: Path | None = None) -> dict[str, Any]:
    """Train, and what it showed: each step's numbers, the loss of held-out rows, the sums of the saved weights."""
    from safetensors.torch import load_file

    from course_utils.trl_bridge.sharding import gathered

    trainer = trainer_of(case, folder, sharded)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    logged = [row for row in trainer.state.log_history if "loss" in row]
    evaluated = trainer.evaluate()["eval_loss"]
    with gathered(trainer.model):
        # The first process alone computes more: inside, nobody waits for anybody.
        more = trainer.evaluate()["eval_loss"] if os.environ.get("RANK", "0") == "0" else evaluated
    trainer.save_model(str(folder / "model"))
    trainer.accelerator.wait_for_everyone()
    file = folder / "model" / ("adapter_model.safetensors" if case.lora else "model.safetensors")
    return {
        "losses": [row["loss"] for row in logged],
        "norms": [float(row["grad_norm"]) for row in logged],
        "margins": [row.get("rewards/margins", 0.0) for row in logged],
        "evaluated": [evaluated, more],
        "weights": {name: float(w.double().square().sum()) for name, w in sorted(load_file(file).items())},
        "in shards": any(hasattr(p, "full_tensor") for p in trainer.model.parameters()),
        "held": sum(getattr(p, "_local_tensor", p).numel() for p in trainer.model.parameters()),
    }


def taken_up(folder: Path, name: str, before: str, after: str) -> dict[str, Any]:
    """A run that goes on from step 2 of one that had another layout."""
    written = folder / before / name / "checkpoint-2"
    return run(CASES[name], folder / f"{before} to {after}" / name, after == "shards", written)


def everything(folder: Path) -> dict[str, Any]:
    """What a launch with two processes does, in shards and in copies (DDP). One process was there before."""
    found = {f"{name} shards": run(case, folder / "shards" / name, True) for name, case in CASES.items()}
    found["full copies"] = run(CASES["full"], folder / "copies" / "full", False)
    for name, before, after in RESUMED:
        found[f"{name} {before} to {after}"] = taken_up(folder, name, before, after)
    return found


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[1] == "killed":
        from transformers import TrainerCallback

        class Dies(TrainerCallback):
            """The second process is gone after its second step."""

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 2 and os.environ["RANK"] == "1":
                    (place / "died").write_text(str(time.time()), encoding="utf-8")
                    os._exit(9)

        trainer = trainer_of(Case(), place, True)
        trainer.add_callback(Dies())
        trainer.train()
    else:
        results = everything(place)
        if os.environ["RANK"] == "0":
            (place / "found.json").write_text(json.dumps(results), encoding="utf-8")
