"""What must be equal for a run that goes on to be the same run: written into each checkpoint, compared on resume."""

from __future__ import annotations

from typing import Any

from course_utils.references import MovingReference
from course_utils.training.identity import fingerprint
from course_utils.trl_bridge.reference import content_of


def identity_of(trainer: Any) -> dict[str, Any]:
    """What must be equal for a run that goes on to be the same run."""
    reference: Any = None
    if isinstance(trainer.reference, MovingReference):
        moving = trainer.reference
        reference = {"moves": True, "alpha": moving.alpha, "every": moving.every}
    elif trainer._ref is not None:
        reference = {"moves": False, "content": content_of(trainer._ref_model)}
    options = {
        k: v if isinstance(v, int | float | str) else fingerprint(v) for k, v in trainer.options.items()
    }
    return {
        "objective": trainer.objective.name,
        "options": options,
        "extra_terms": trainer._extra_terms,
        "reduction": trainer.settings.reduction,
        "rows": trainer.problem.count,
        "data": fingerprint([trainer.problem.feedback.columns(), trainer.chat_template]),
        "rows_in_an_update": trainer.problem.order.size,
        "seed": trainer.settings.seed,
        "reference": reference,
    }
