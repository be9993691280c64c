"""Objectives: pure functions from sequence log-probabilities to one loss per example, and a registry of them.

    from course_utils import objectives

    loss = objectives.dpo(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1)
    objectives.get("rdro").feedback    # "unpaired"

The same function trains a table, a pocket language model and, through the TRL bridge, a real one.
Log-probabilities are sums over the response's tokens. Nothing is averaged here: use `loss.mean()`, or
`classwise_mean` for the density-ratio objectives. The docstring of a function is its reference: equation,
symbols, gradient, population minimiser, assumption.

Precision: every floating dtype is kept, and log-ratios of 1e4 give a finite loss and gradient wherever the
mathematics is finite in that dtype (float16 ends at 65504). Sum token log-probabilities in float32 before
you call: numbers near -500 in bfloat16 are two apart.
"""

from __future__ import annotations

import difflib

from course_utils.errors import CourseError

from ._catalogue import CATALOGUE, Objective
from .distribution import pmle, preference_distillation, reverse_kl
from .exo import brain, dpo_rw, exo_pref, exo_rw
from .pairwise import bpo, cdpo, dpo, dpo_with_sft, flex_dpo, ipo, robust_dpo, slic
from .ratios import classwise_mean, ddro, pooled_mean, rdro, rdro_pooled
from .reference_free import orpo, sft, simpo
from .reward import bt, gpm, gpm_score
from .unpaired import bco, kto, kto_kl

__all__ = [
    "Objective",
    "bco",
    "bpo",
    "brain",
    "bt",
    "cdpo",
    "classwise_mean",
    "ddro",
    "dpo",
    "dpo_rw",
    "dpo_with_sft",
    "exo_pref",
    "exo_rw",
    "flex_dpo",
    "get",
    "gpm",
    "gpm_score",
    "ipo",
    "kto",
    "kto_kl",
    "names",
    "orpo",
    "pmle",
    "pooled_mean",
    "preference_distillation",
    "rdro",
    "rdro_pooled",
    "reverse_kl",
    "robust_dpo",
    "sft",
    "simpo",
    "slic",
    "table",
]


def names() -> list[str]:
    """The names of all objectives, in the order of the lessons."""
    return list(CATALOGUE)


def get(name: str) -> Objective:
    """The objective of that name: its loss and what there is to know about it."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    wanted = str(name).lower().replace("-", "_").replace(" ", "_")
    # people also type a title ("General preference model") or a part of a name
    spellings = {key: key for key in CATALOGUE}
    spellings |= {objective.title.lower().replace(" ", "_"): key for key, objective in CATALOGUE.items()}
    found = difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.6)
    found += [spelling for spelling in spellings if len(wanted) > 2 and wanted in spelling]
    proposals = list(dict.fromkeys(spellings[spelling] for spelling in found))
    raise CourseError(
        "unknown-objective",
        f"there is no objective named {name!r}.",
        where="objectives.get",
        remedy=(f"did you mean {' or '.join(map(repr, proposals))}? " if proposals else "")
        + f"The names are {', '.join(CATALOGUE)}.",
    )


def table() -> list[dict[str, str]]:
    """The registry as rows for display: one dictionary for each objective, all values are text."""
    return [
        {
            "name": objective.name,
            "title": objective.title,
            "paper": objective.paper,
            "feedback": objective.feedback,
            "reference": "yes" if objective.needs_reference else "no",
            "defaults": ", ".join(f"{key}={value}" for key, value in objective.defaults.items()),
            "equation": f"${objective.equation}$",
            "assumes": objective.assumes,
            "target": objective.target,
        }
        for objective in CATALOGUE.values()
    ]
