"""`AlignmentTrainer`: any objective of the registry on transformers' `Trainer`.

    trainer = AlignmentTrainer(
        model, args=training_arguments("runs/rdro", max_steps=500), train_data=rows, processing_class=tokenizer,
        objective="rdro", objective_options={"alpha": 0.4},
    )
    trainer.train()

The examples, the terms of the loss, the order of the data and the reference's table are those of the teaching loop
(`course_utils.training`); from the trainer come mixed precision, several GPUs, gradient checkpointing, LoRA, schedules,
logs and checkpoints. A run with the same `TrainingSettings` is the same run in both.

- A batch of unpaired data holds both classes, in the proportion of the data. Its order is a function of the seed and
  the step, so there is nothing to save, and a run that goes on meets the rows it would have met.
- Gradient accumulation is exact: what an example counts is settled for the whole update, class by class.
- Logs carry TRL's names, rewards/chosen and so on, and are means over all examples since the last log.
- `train(resume_from_checkpoint=True)` goes on from the newest complete checkpoint and gives the same losses and weights,
  also with another number of processes, or with the weights in shards where they were whole (`checkpoints`).
- Under `accelerate launch` with FSDP version 2 the weights are in shards (`sharding`): the same losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments, set_seed

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.references import MovingReference
from course_utils.training.problem import Problem, not_finite
from course_utils.training.settings import TrainingSettings
from course_utils.training.terms import COMPUTED
from course_utils.trl_bridge.arguments import (
    arguments_of,
    optimizers_of,
    own_precision,
    require_supported,
    settings_of,
    training_arguments,
)
from course_utils.trl_bridge.batch_loss import (
    BatchLoss,
    added_up,
    example_weights,
    require_trainable_objective,
)
from course_utils.trl_bridge.callbacks import RunFiles, checkpoint_to_resume, show_course_progress
from course_utils.trl_bridge.data import (
    OverLength,
    Places,
    StepBatches,
    collate,
    feedback_from_rows,
    fit,
    is_chat,
    rows_of_step,
)
from course_utils.trl_bridge.identity import identity_of
from course_utils.trl_bridge.layouts import LayoutTrainer, require_whole
from course_utils.trl_bridge.reference import (
    LiveReference,
    ScoredModel,
    follow,
    reference_model,
    require_movable,
    require_reference_word,
    scoring_the_reference,
    with_adapter,
)
from course_utils.trl_bridge.sharding import to_be_sharded


class AlignmentTrainer(LayoutTrainer):
    """Train a causal language model on preferences with an objective of the registry.

    model             the policy; it is trained in place
    ref_model         the reference, if it is not the policy as it is now
    args              TrainingArguments (see `training_arguments`), or the TrainingSettings of the teaching loop
    train_data        rows, see `data`; eval_data likewise
    processing_class  the tokenizer
    objective         a name of the registry, or an Objective; objective_options are its settings, such as beta
    reference         "precomputed", "live", or a MovingReference made from the model
    reduction         unpaired objectives: "classwise" or "pooled"; None takes what the objective is made for
    extra_terms       other objectives to add, with weights: {"sft": 0.1}
    peft_config       train a LoRA adapter; the reference is then the model without it
    max_length        the longest row in tokens (by default what the model can take), and
    over_length       "error" or "drop": what happens to longer ones; `dropped` says which they were
    chat_template     write rows with the tokenizer's chat template; None does so where prompts are messages
    cache_dir         where the reference's log-probabilities are kept for other runs, found by content
    """

    # The loss is that of the whole accumulated batch already: nobody may divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: TrainingArguments | TrainingSettings | None = None,
        train_data: Any = None,
        eval_data: Any = None,
        processing_class: Any = None,
        objective: str | objectives.Objective = "rdro",
        objective_options: Mapping[str, Any] | None = None,
        *,
        reference: str | MovingReference = "precomputed",
        reduction: str | None = None,
        extra_terms: Mapping[str, float] | None = None,
        peft_config: Any = None,
        max_length: int | None = None,
        over_length: OverLength = "error",
        chat_template: bool | None = None,
        cache_dir: str | Path | None = None,
        output_dir: str | Path = "alignment_run",
        callbacks: Sequence[TrainerCallback] = (),
        **trainer_options: Any,
    ) -> None:
        self.objective = objectives.get(objective) if isinstance(objective, str) else objective
        self.options = dict(objective_options or {})
        require_trainable_objective(self.objective)
        require_reference_word(reference)
        require_whole(model)
        if processing_class is None:
            raise CourseError(
                "no-tokenizer",
                "rows are texts, and no tokenizer was given.",
                where="AlignmentTrainer(processing_class=...)",
                remedy="load the model's own with AutoTokenizer.from_pretrained and pass it as processing_class.",
            )
        longest = max_length or getattr(model.config, "max_position_embeddings", None)
        feedback = feedback_from_rows([] if train_data is None else train_data)
        self.chat_template = is_chat(feedback) if chat_template is None else chat_template
        fitting = {"chat_template": self.chat_template, "max_length": longest, "over_length": over_length}
        feedback, self.dropped = fit(feedback, processing_class, **fitting)
        self._fitting = fitting

        loop_settings = args if isinstance(args, TrainingSettings) else None
        if loop_settings is not None:
            args = arguments_of(loop_settings, _rows_for(self.objective, feedback), output_dir)
            reduction = reduction or loop_settings.reduction
        args = training_arguments(output_dir) if args is None else args
        require_supported(args)
        if peft_config is not None:
            set_seed(args.seed)
            model = with_adapter(model, peft_config)
        # Where the weights are to be sharded the trainer wants to make its optimizer itself, later.
        self._loop_settings = loop_settings if "optimizers" not in trainer_options else None
        with own_precision(args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=Places(len(feedback)),
                eval_dataset=None if eval_data is None else Places(len(eval_data)),
                data_collator=collate,
                processing_class=processing_class,
                **trainer_options,
            )
        if to_be_sharded(self):
            self.model.to(self.args.device)  # whole, once more: the reference is scored here
        self.model_accepts_loss_kwargs = True  # what older versions ask instead of `loss_is_scaled_for_ga`

        self.settings = settings_of(args, reduction)
        if loop_settings is not None:
            self.settings = TrainingSettings(
                batch_size=loop_settings.batch_size, seed=loop_settings.seed, reduction=reduction
            )
        self._extra_terms = dict(extra_terms or {})
        self.reference = reference
        self._choose_reference(ref_model, reference)
        self._cache_dir = cache_dir
        self.problem = self._problem(feedback, self.settings)
        self.train_dataset = Places(self.problem.count)
        self.batch_loss = BatchLoss(self.problem)
        self._whole: tuple[int, dict[str, Tensor]] = (-1, {})
        # Scored now, by the reference that the run begins with.
        self._eval = None if eval_data is None else self._problem_for_evaluation(eval_data)

        self._progress = show_course_progress(self, self.objective.name)
        moving = reference if isinstance(reference, MovingReference) else None
        self._run_files = RunFiles(identity_of(self), moving, lambda: follow(moving, self.model))
        self.add_callback(self._run_files)
        for callback in callbacks:
            self.add_callback(callback)

    # -------------------- what is put together before the first step

    def _choose_reference(self, ref_model: Any, reference: str | MovingReference) -> None:
        """The reference as the problem takes it, and the model behind it."""
        self._ref, self._ref_model = None, None
        if isinstance(reference, MovingReference):
            self._ref_model = require_movable(reference, self.model)
            self._ref = LiveReference(self._scored(self._ref_model))
            return
        if not self.objective.needs_reference and ref_model is None:
            return
        later = reference == "live" or any(isinstance(self.options.get(name), str) for name in COMPUTED)
        self._ref_model = reference_model(self.model, ref_model, later)
        scored = self._scored(self._ref_model)
        self._ref = LiveReference(scored) if reference == "live" else scored

    def _problem(self, feedback: Any, settings: TrainingSettings) -> Problem:
        """Examples, terms, order and reference. A reference that stays scores all rows here."""
        with self.accelerator.autocast(), scoring_the_reference(self.model, self._ref_model):
            return Problem(
                self._scored(self.model),
                feedback,
                self.objective,
                self._ref,
                settings,
                self.options,
                self._extra_terms,
                cache_dir=self._cache_dir,
            )

    def _problem_for_evaluation(self, rows: Any) -> Problem:
        feedback, _ = fit(feedback_from_rows(rows), self.processing_class, **self._fitting)
        settings = TrainingSettings(
            batch_size=None, seed=self.settings.seed, reduction=self.settings.reduction
        )
        return self._problem(feedback, settings)

    def _scored(self, model: Any) -> ScoredModel:
        return ScoredModel(model, self.processing_class, self.chat_template)

    # -------------------- what the trainer asks

    def create_optimizer(self, *args: Any, **options: Any) -> torch.optim.Optimizer:
        """The optimizer and the schedule of the teaching loop where its settings were given, else the trainer's own."""
        if self._loop_settings is not None and self.optimizer is None:
            self.optimizer, self.lr_scheduler = optimizers_of(self._loop_settings, self.model)
        return super().create_optimizer(*args, **options)

    def get_train_dataloader(self) -> DataLoader:
        """The micro-batches of this process."""
        batches = StepBatches(
            self.problem.order,
            self.args.gradient_accumulation_steps,
            lambda: self.state.global_step,
            self.args.world_size,
            self.args.process_index,
        )
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=collate)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], int]:
        """The micro-batches of an update. The count tells older versions that the loss is scaled already."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        return batches, sum(len(batch["places"]) for batch in batches)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the loss of the update."""
        order, places = self.problem.order, inputs["places"].cpu()
        step, within = int(places[0]) // order.size, places % order.size
        whole = rows_of_step(order, step)
        preferred = None if self.problem._preferred is None else self.problem._preferred[whole]
        weights = [weight[within] for weight in example_weights(self.problem.terms, preferred, order.size)]
        policy = self._scored(model)
        with self.accelerator.autocast():
            if self._whole[0] != step:
                computed = self.batch_loss.whole_batch_settings(policy, self.problem._examples, whole)
                self._whole = (step, computed)
            loss = self.batch_loss.share(
                policy, self.problem._examples, whole[within], weights, self._whole[1], step
            )
        # Processes average their gradients and losses; the shares are to be added.
        loss = loss * self.args.world_size
        return (loss, {}) if return_outputs else loss

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """Train, or go on: True takes the newest complete checkpoint of the output folder."""
        require_whole(self.model)
        folder = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        if folder is not None:
            self._run_files.restore(folder)
        self._whole = (-1, {})
        try:
            return super().train(resume_from_checkpoint=None if folder is None else str(folder), **options)
        finally:
            self._progress.close()

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add our means to the trainer's log, and refuse a gradient that is no number any more."""
        if "loss" in logs:
            logs.update(self.batch_loss.metrics(added_up(self), self.args.world_size))
            norm = logs.get("grad_norm", 0.0)
            if not math.isfinite(norm):
                raise not_finite("length of the gradient", norm, "the last rows", self.state.global_step - 1)
        super().log(logs, *args, **options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> Any:
        """The loss of all held-out rows together, and our means over them; every process computes all of it."""
        problem = self._eval if eval_dataset is None else self._problem_for_evaluation(eval_dataset)
        if problem is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        was_training = self.model.training
        self.model.eval()
        meter, policy, loss = BatchLoss(problem), self._scored(self.model), 0.0
        weights = example_weights(problem.terms, problem._preferred, problem.count)
        with torch.no_grad(), self.accelerator.autocast():
            every = torch.arange(problem.count)
            computed = meter.whole_batch_settings(policy, problem._examples, every)
            for rows in every.split(self.args.per_device_eval_batch_size):
                some = [weight[rows] for weight in weights]
                loss += float(
                    meter.share(policy, problem._examples, rows, some, computed, self.state.global_step)
                )
        self.model.train(was_training)
        found = {**meter.metrics(), "loss": loss}
        logs = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: a batch holds places, no tokens."""
        return 0


def _rows_for(objective: objectives.Objective, feedback: Any) -> int:
    """How many rows the objective makes of the feedback: a pair is two responses for an unpaired one."""
    from course_utils.training.examples import lay_out

    return len(lay_out(feedback, objective))
