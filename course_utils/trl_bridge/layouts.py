"""Transformers' trainer in every layout: one process, several that hold the model each, several that share it.

The layout is chosen by the launch (`sharding`), and the files of a checkpoint do not know it (`checkpoints`). What is
here hangs the two into the trainer; where nothing is in shards, it does what it always did.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer
from transformers.utils import logging

from course_utils.errors import CourseError
from course_utils.trl_bridge.checkpoints import load_optimizer, load_weights, save_optimizer, save_weights
from course_utils.trl_bridge.sharding import is_sharded, settle, shard_on_a_cpu


class LayoutTrainer(Trainer):
    """A trainer whose checkpoints can be taken up in another layout."""

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate's own, which shards on a CPU as well where the launch asks for it."""
        super().create_accelerator_and_postprocess()
        shard_on_a_cpu(self)
        settle(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """An ordinary folder for `from_pretrained`; without transformers' bars, which would stay in a notebook's page."""
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            if is_sharded(self.model):
                save_weights(self, output_dir or self.args.output_dir)
            else:
                super().save_model(output_dir, _internal_call)
        finally:
            if shown:
                logging.enable_progress_bar()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_optimizer(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self, checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if is_sharded(self.model):
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if is_sharded(self.model):
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


def require_whole(model: Any) -> None:
    """A run begins with whole weights: the reference is scored with them."""
    if is_sharded(model):
        raise CourseError(
            "sharded-training",
            "the weights are in shards already, and the reference can be scored with whole weights only.",
            where="AlignmentTrainer.train",
            remedy="make a new model and a new trainer in new processes; it goes on from the checkpoint.",
        )
