"""TRL's own DPOTrainer and KTOTrainer with an objective of the registry: the only file that imports trl.

Both override the public `compute_loss`. (Overriding the older hooks `dpo_loss` and `kto_loss` has done nothing for a
long time: plain DPO or KTO trains, and no error says so.) `objective_calls` counts the calls of the objective.

What stays TRL's: its data sets, collators, batches and callbacks. What is ours: the log-probabilities, the terms of
the loss, the exact accumulation over micro-batches, and these repairs:

- without `ref_model` the reference is a copy of the model in memory, not another load from the disk
- rows that are too long are an error (or dropped and counted); TRL cuts off their end token or loses them silently
- the newline that ChatML templates write after the end token is not trained
- unpaired rows come in batches that hold both classes, for the number of rows in one update
- settings that only TRL's own loss reads (loss_type, beta ...) are refused: they would do nothing

TRL moves quickly, so the version is pinned and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from course_utils import objectives
from course_utils.encoding import EncodedBatch, EncodedPairs
from course_utils.errors import CourseError
from course_utils.feedback import Pairs, Unpaired
from course_utils.training.examples import EncodedExamples, Layout
from course_utils.training.order import DataOrder
from course_utils.training.problem import Problem
from course_utils.trl_bridge.arguments import settings_of
from course_utils.trl_bridge.batch_loss import (
    BatchLoss,
    added_up,
    example_weights,
    require_trainable_objective,
    settings_per_row,
)
from course_utils.trl_bridge.callbacks import show_course_progress
from course_utils.trl_bridge.data import Feedback, OverLength, feedback_from_rows, fit, is_chat, rows_of_step
from course_utils.trl_bridge.reference import (
    LiveReference,
    ScoredModel,
    has_adapter,
    reference_model,
)

TRL_FROM, TRL_BELOW = (1, 16), (1, 17)
EXTRA = "example_weights"


def require_trl_version(version: str) -> None:
    """The bridge is written for one minor version."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if not TRL_FROM <= numbers < TRL_BELOW:
        raise CourseError(
            "trl-version",
            f"trl {version} is installed, and the bridge is written for 1.16.",
            where="course_utils.trl_bridge.trl_trainers",
            remedy='pip install "trl>=1.16,<1.17"; or use AlignmentTrainer, which needs no trl.',
        )


# Before trl itself is imported: another version may fail there with an error that says less. A missing trl is
# reported by the package's __init__.
try:
    require_trl_version(metadata.version("trl"))
except metadata.PackageNotFoundError as error:
    raise ModuleNotFoundError("No module named 'trl'", name="trl") from error

from datasets import Dataset  # noqa: E402
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # noqa: E402


class _FromRegistry:
    """What the two trainers share: the methods that they put in the place of TRL's."""

    # The shares of the micro-batches add up to the loss: nobody may divide it again.
    loss_is_scaled_for_ga = True
    bridge: _Bridge

    @property
    def objective_calls(self) -> int:
        """How often the objective was called: no number here, no objective in the run."""
        return self.bridge.loss.calls

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's own; TRL's ways to score a reference are not made for weights in shards."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise CourseError(
                "sharded-training",
                "FSDP or DeepSpeed was asked for, and this trainer is tested with whole weights only.",
                where=type(self).__name__,
                remedy="use AlignmentTrainer, which trains in shards, or processes that hold the model each (torchrun).",
            )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], int]:
        """The micro-batches of an update, with what each example counts."""
        return self.bridge.weigh(super().get_batch_samples(*args, **kwargs)[0])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective in the place of TRL's loss."""
        loss = self.bridge.share(model, inputs)
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Our means under TRL's names."""
        self.bridge.add_metrics(logs)
        super().log(logs, start_time)

    def _send_telemetry(self) -> None:
        """Nothing is reported to anybody."""


class RegistryDPOTrainer(_FromRegistry, DPOTrainer):
    """TRL's DPOTrainer with an objective of the registry: pairs, for paired and for unpaired objectives.

    objective, objective_options  as for AlignmentTrainer; rows as there, or a datasets.Dataset
    over_length                   "error" or "drop": what happens to rows longer than args.max_length
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        objective: str | objectives.Objective = "dpo",
        objective_options: Mapping[str, Any] | None = None,
        over_length: OverLength = "error",
        peft_config: Any = None,
        **options: Any,
    ) -> None:
        args = DPOConfig("trl_run", bf16=False, gradient_checkpointing=False) if args is None else args
        _require_own_loss(
            args, {"loss_type": ["sigmoid"], "beta": 0.1, "label_smoothing": 0.0, "loss_weights": None}
        )
        setup = _Setup(objective, objective_options, processing_class, args.max_length, over_length)
        feedback = setup.feedback(train_dataset, Pairs)
        ref_model = _reference_in_memory(model, ref_model, peft_config, args)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=Dataset.from_list(_trl_rows(feedback)),
            eval_dataset=None
            if eval_dataset is None
            else Dataset.from_list(_trl_rows(setup.feedback(eval_dataset, Pairs))),
            processing_class=processing_class,
            peft_config=peft_config,
            **options,
        )
        self.model_accepts_loss_kwargs = True
        self.bridge = _Bridge(self, setup, feedback)


class RegistryKTOTrainer(_FromRegistry, KTOTrainer):
    """TRL's KTOTrainer with an unpaired objective of the registry: labelled responses, or pairs taken apart.

    Rows are put into the order in which AlignmentTrainer draws them in its first pass, so every update holds both
    classes; TRL then takes them one after the other.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: KTOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        objective: str | objectives.Objective = "rdro",
        objective_options: Mapping[str, Any] | None = None,
        over_length: OverLength = "error",
        peft_config: Any = None,
        **options: Any,
    ) -> None:
        args = KTOConfig("trl_run", bf16=False, gradient_checkpointing=False) if args is None else args
        _require_own_loss(
            args, {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
        )
        setup = _Setup(objective, objective_options, processing_class, args.max_length, over_length)
        if setup.objective.feedback != "unpaired":
            raise CourseError(
                "feedback-of-another-kind",
                f"{setup.objective.name} learns from {setup.objective.feedback!r} feedback.",
                where="RegistryKTOTrainer(objective=...)",
                remedy="use RegistryDPOTrainer for pairs, or AlignmentTrainer for any kind.",
            )
        feedback = _in_balanced_order(setup.feedback(train_dataset, Unpaired), settings_of(args, None))
        ref_model = _reference_in_memory(model, ref_model, peft_config, args)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=Dataset.from_list(_trl_rows(feedback)),
            eval_dataset=None
            if eval_dataset is None
            else Dataset.from_list(_trl_rows(setup.feedback(eval_dataset, Unpaired))),
            processing_class=processing_class,
            peft_config=peft_config,
            **options,
        )
        self.model_accepts_loss_kwargs = True
        self.bridge = _Bridge(self, setup, feedback)


# -------------------- what both share


class _Setup:
    """Objective, tokenizer and length of a run, and rows made to fit."""

    def __init__(
        self, objective: Any, options: Any, tokenizer: Any, max_length: int | None, over_length: OverLength
    ) -> None:
        self.objective = objectives.get(objective) if isinstance(objective, str) else objective
        self.options, self.tokenizer = dict(options or {}), tokenizer
        self._length, self._over = max_length, over_length
        require_trainable_objective(self.objective)
        if settings_per_row(self.options):
            raise CourseError(
                "setting-without-effect",
                f"{', '.join(settings_per_row(self.options))} has one entry for each row, and TRL's batches do not "
                "say which rows they hold.",
                where="objective_options",
                remedy="give one number, or use AlignmentTrainer.",
            )

    def feedback(self, rows: Any, wanted: type) -> Feedback:
        """Rows as the container that the trainer takes."""
        found = feedback_from_rows([] if rows is None else rows)
        if wanted is Unpaired and isinstance(found, Pairs):
            found = found.unpaired()
        if not isinstance(found, wanted):
            raise CourseError(
                "feedback-of-another-kind",
                f"this trainer takes {wanted.__name__}, and the rows are {type(found).__name__}.",
                where="train_dataset",
                remedy="use RegistryDPOTrainer for pairs, RegistryKTOTrainer for labelled responses, "
                "AlignmentTrainer for groups.",
            )
        self.chat = is_chat(found)
        found, self.dropped = fit(
            found, self.tokenizer, chat_template=self.chat, max_length=self._length, over_length=self._over
        )
        return found


class _Bridge:
    """The objective at work inside a trainer of TRL's."""

    def __init__(self, trainer: Any, setup: _Setup, feedback: Feedback) -> None:
        self.trainer, self.setup = trainer, setup
        model = (
            reference_model(trainer.model, None, False) if trainer.ref_model is None else trainer.ref_model
        )
        ref = (
            LiveReference(ScoredModel(model, setup.tokenizer, setup.chat))
            if setup.objective.needs_reference
            else None
        )
        policy = ScoredModel(trainer.model, setup.tokenizer, setup.chat)
        settings = settings_of(trainer.args, None)
        self.problem = Problem(policy, feedback, setup.objective, ref, settings, setup.options)
        self.loss = BatchLoss(self.problem)
        show_course_progress(trainer, setup.objective.name)

    def weigh(self, batches: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """Write into each micro-batch what its examples count in the whole update, over all processes."""
        from accelerate.utils import gather_object

        mine = [self._preferred(batch) for batch in batches]
        sizes = [len(each) for each in mine]
        everybody = gather_object([(self.trainer.args.process_index, torch.cat(mine).tolist())])
        preferred = torch.tensor([label for _, labels in sorted(everybody) for label in labels])
        start = sum(len(labels) for process, labels in everybody if process < self.trainer.args.process_index)
        weights = example_weights(self.problem.terms, preferred if self._classes else None, len(preferred))
        for batch, size in zip(batches, sizes, strict=True):
            # Plain numbers: a device that has no float64 would refuse a tensor of them.
            batch[EXTRA] = [weight[start : start + size].tolist() for weight in weights]
            start += size
        return batches, len(preferred)

    def share(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's share of the loss."""
        trainer = self.trainer
        preferred = self._preferred(inputs)
        if EXTRA in inputs:
            weights = [torch.tensor(each, dtype=torch.float64) for each in inputs[EXTRA]]
        else:  # evaluation: every batch by itself
            weights = example_weights(
                self.problem.terms, preferred if self._classes else None, len(preferred)
            )
        examples = self._examples(inputs, preferred)
        policy = ScoredModel(model, self.setup.tokenizer, self.setup.chat)
        with trainer.accelerator.autocast():
            computed = self.loss.whole_batch_settings(policy, examples, None)
            loss = self.loss.share(policy, examples, None, weights, computed, trainer.state.global_step)
        return loss * trainer.args.world_size if EXTRA in inputs else loss

    def add_metrics(self, logs: dict[str, float]) -> None:
        """Means since the last log."""
        if not any(name in ("loss", "eval_loss") for name in logs):
            return
        means = self.loss.metrics(added_up(self.trainer), self.trainer.args.world_size)
        if "eval_loss" in logs:
            means = {f"eval_{name}": value for name, value in means.items() if name != "loss"}
        logs.update(means)

    @property
    def _classes(self) -> bool:
        return self.problem._preferred is not None

    def _preferred(self, batch: Mapping[str, Any]) -> Tensor:
        """Which examples of a batch of TRL's are preferred; for pairs the first half, and only unpaired losses ask."""
        if "label" in batch:
            return torch.as_tensor(batch["label"]).bool().cpu()
        rows = len(batch["input_ids"])
        return torch.arange(rows if self._classes else rows // 2) < rows // 2

    def _examples(self, batch: Mapping[str, Any], preferred: Tensor) -> EncodedExamples:
        """TRL's batch as the examples of the training package."""
        ids, real = batch["input_ids"], batch["attention_mask"]
        encoded: Any = EncodedBatch(
            ids, real, _without_what_follows_the_end(ids, batch["completion_mask"], self.setup)
        )
        count = len(preferred)
        places = list(range(count))
        if self._classes:
            return EncodedExamples(Layout(places, {"": places}, {"preferred": preferred}), encoded)
        sides = {"chosen": encoded.select(range(count)), "rejected": encoded.select(range(count, 2 * count))}
        if self.setup.objective.feedback == "chosen only":
            return EncodedExamples(Layout(places, {"chosen": places}), sides["chosen"])
        return EncodedExamples(Layout(places, dict.fromkeys(sides, places)), EncodedPairs(**sides))


def _without_what_follows_the_end(ids: Tensor, counted: Tensor, setup: _Setup) -> Tensor:
    """The counted tokens up to the last end token: a template's newline after it is never generated."""
    counted = counted.bool()
    ends = counted & (ids == setup.tokenizer.eos_token_id)
    ends_from_here = ends.flip(1).cumsum(1).flip(1) > 0
    return counted & (ends_from_here | ~ends.any(dim=1, keepdim=True))


def _reference_in_memory(model: Any, ref_model: Any, peft_config: Any, args: Any) -> Any:
    """The reference for TRL: a copy in memory where it would load from the disk, none where there is an adapter."""
    if isinstance(model, str):
        raise CourseError(
            "model-not-loaded",
            f"model is the name {model!r}.",
            where="RegistryDPOTrainer, RegistryKTOTrainer",
            remedy="load it first, AutoModelForCausalLM.from_pretrained(name, dtype=...), so that its precision is "
            "your choice, and pass the model.",
        )
    if args.precompute_ref_log_probs:
        raise CourseError(
            "setting-without-effect",
            "precompute_ref_log_probs was set, and TRL would compute them with its own rules for which tokens count.",
            where=type(args).__name__,
            remedy="leave it out, or use AlignmentTrainer, which precomputes by default.",
        )
    if ref_model is None and (peft_config is not None or has_adapter(model)):
        return None
    return reference_model(model, ref_model, needed_later=True)


def _require_own_loss(args: Any, defaults: Mapping[str, Any]) -> None:
    """Settings of TRL's loss do nothing here."""
    changed = [name for name, value in defaults.items() if getattr(args, name) != value]
    if changed:
        raise CourseError(
            "setting-without-effect",
            f"{', '.join(f'{name}={getattr(args, name)!r}' for name in changed)} would be read by TRL's loss, which "
            "is not used.",
            where=type(args).__name__,
            remedy="put the settings of the objective into objective_options={...}.",
        )


def _in_balanced_order(feedback: Unpaired, settings: Any) -> Unpaired:
    """The rows of one pass in the order in which updates draw them."""
    order = DataOrder(len(feedback), settings.batch_size, settings.seed, feedback.preferred)
    if order.size == order.rows:
        return feedback
    steps = -(-order.rows // order.size)
    rows = torch.cat([rows_of_step(order, step) for step in range(steps)])
    return feedback.take(rows)


def _trl_rows(feedback: Feedback) -> list[dict[str, Any]]:
    """Rows in TRL's format: chat prompts go with chat responses."""
    chat = is_chat(feedback)

    def prompt(value: Any) -> Any:
        return [{"role": "user", "content": value}] if chat and isinstance(value, str) else value

    def response(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if chat else text

    if isinstance(feedback, Unpaired):
        columns = zip(feedback.prompt, feedback.response, feedback.preferred.tolist(), strict=True)
        return [{"prompt": prompt(x), "completion": response(y), "label": label} for x, y, label in columns]
    columns = zip(feedback.prompt, feedback.chosen, feedback.rejected, strict=True)
    return [{"prompt": prompt(x), "chosen": response(y), "rejected": response(z)} for x, y, z in columns]
