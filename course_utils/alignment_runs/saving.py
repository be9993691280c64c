"""What a run measures, writes down and saves: run.json at its beginning, result.json and the model at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from course_utils import gpu
from course_utils.alignment_runs import measuring, records
from course_utils.alignment_runs.practice import TOKENIZER, proof
from course_utils.alignment_runs.settings import RunSettings
from course_utils.alignment_runs.where import device_of, first_process, layout, longest_text
from course_utils.errors import CourseError


def begin(settings: RunSettings, trainer: Any, policy: Any, held: Any, prompts: list[Any]) -> dict[str, Any]:
    """Measure before the first update, once, and write run.json."""
    found = {
        "identity": settings.identity(),
        "before": measure(trainer, policy, held, prompts, settings, None),
        "sessions": [],
    }
    if first_process():
        records.write(settings.folder / records.RUN, found)
    return found


def measure(
    trainer: Any, policy: Any, held: Any, prompts: list[Any], settings: RunSettings, before: Any
) -> dict[str, Any]:
    from course_utils.causal_lm import scoring_mode

    loss = float(trainer.evaluate()["eval_loss"])
    with scoring_mode(policy.model), trainer.accelerator.autocast():
        rows = measuring.log_probs_of(policy, held)
        texts = measuring.answers(
            policy, prompts, settings.response, settings.seed, longest_text(policy.model)
        )
    found = measuring.evaluation(rows, before or rows, held.kind == "pairs")
    return {"rows": rows, "evaluation": {"loss": loss, **found}, "samples": texts}


def record_of(
    settings: RunSettings,
    trainer: Any,
    begun: dict[str, Any],
    after: dict[str, Any],
    history: list[dict[str, float]],
    plan: gpu.Plan | None,
    train: Any,
    held: Any,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    before, start = begun["before"], records.origin(settings.model)
    seconds = sum(session["seconds"] for session in begun["sessions"])
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    tokens = tokens_of(trainer, settings.steps)
    peaks = [session["peak_gib"] for session in begun["sessions"] if session["peak_gib"] is not None]
    prompts = measuring.different_prompts(held, settings.samples)
    columns = zip(prompts, before["samples"], after["samples"], strict=True)
    return {
        "format": 1,
        "proves": proof(parameters, len(train)),
        "base": start["model"],
        "stages": [*start["stages"], settings.called],
        "settings": settings.plain(),
        "options": dict(options),
        "preferred_fraction": train.alpha,
        "command": settings.command,
        **records.circumstances(device_of(settings)),
        "rows": {"trained": len(train), "too_long": len(trainer.dropped), "held_out": len(held)},
        "parameters": {"all": parameters, "trained": trained},
        "layout": layout(),
        "seconds": seconds,
        "sessions": begun["sessions"],
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "energy_joules": energy_of(begun["sessions"]),
        "memory_gib": {"planned": None if plan is None else plan.gib, "peak": max(peaks, default=None)},
        "evaluation": {"before": before["evaluation"], "after": after["evaluation"]},
        "samples": [{"prompt": x, "before": a, "after": b} for x, a, b in columns],
        "history": history,
    }


def energy_of(sessions: list[dict[str, Any]]) -> float | None:
    """Joules of all sessions by the cards' counters; None unless each of them was measured."""
    joules = [session.get("joules") for session in sessions]
    return None if None in joules or not joules else sum(joules)


def tokens_of(trainer: Any, steps: int) -> int:
    """Tokens of the rows of these updates, padding not counted."""
    import torch

    from course_utils.trl_bridge.data import rows_of_step

    encoded = trainer.problem._examples._encoded
    sides = [encoded.chosen, encoded.rejected] if hasattr(encoded, "chosen") else [encoded]
    lengths = torch.stack([side.attention_mask.sum(dim=1) for side in sides]).sum(dim=0).cpu()
    return sum(int(lengths[rows_of_step(trainer.problem.order, step)].sum()) for step in range(steps))


def save(settings: RunSettings, policy: Any) -> None:
    """The model folder: weights in safetensors, adapters added, the tokenizer as it lay at the source.

    All processes call this, for shards are brought together; the first one writes.
    """
    from course_utils.real_models import without_bars
    from course_utils.trl_bridge.sharding import is_sharded, whole_weights

    folder, model, state = settings.folder / "model", policy.model, None
    adapted = settings.lora is not None
    if is_sharded(model):
        state = whole_weights(model, trained_only=adapted)
    if not first_process():
        return
    if adapted:
        model = model if state is None else _with_trained_adapter(settings, state)
        model, state = model.float().merge_and_unload(), None
    apart = (Path(settings.model).expanduser() / TOKENIZER).is_dir()
    with without_bars():
        model.save_pretrained(folder, state_dict=state)
    policy.tokenizer.save_pretrained(folder / TOKENIZER if apart else folder)
    start = records.origin(settings.model)
    records.write(folder / records.ORIGIN, {**start, "stages": [*start["stages"], settings.called]})


def _with_trained_adapter(settings: RunSettings, state: Mapping[str, Any]) -> Any:
    """The model that the run began with, loaded once more without shards, and the adapter that was trained."""
    from dataclasses import replace

    from course_utils.alignment_runs.preparing import adapter_of, load_policy_of
    from course_utils.trl_bridge.reference import with_adapter

    model = with_adapter(load_policy_of(replace(settings, device="cpu")).model, adapter_of(settings))
    found = model.load_state_dict(state, strict=False)
    if found.unexpected_keys:
        raise RuntimeError(f"tensors of no adapter: {found.unexpected_keys[:3]}")
    return model


def newest(settings: RunSettings) -> int:
    """The update of the newest complete checkpoint; 0 if there is none."""
    from course_utils.trl_bridge.callbacks import checkpoint_to_resume

    try:
        found = checkpoint_to_resume(settings.folder / "checkpoints", True)
    except CourseError:
        return 0
    return int(found.name.rpartition("-")[2])
