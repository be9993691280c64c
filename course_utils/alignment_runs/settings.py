"""The settings of a run on a real model, and the command that makes the same run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from course_utils import objectives
from course_utils.errors import CourseError

MODEL, DATA = "Qwen/Qwen2.5-0.5B-Instruct", "hh-helpful"
# Largest learning rates that are usual: a language model is fine-tuned with the first, aligned with the second;
# adapters, which start at zero, want more.
RATE_SFT, RATE_ALIGN, LORA_TIMES = 1e-5, 1e-6, 20.0
REFERENCES = ("", "precomputed", "live", "soft", "hard")
WHOLE = ("ref_every", "steps", "batch", "prompt", "response", "save_every", "held_out_rows")


@dataclass(frozen=True)
class RunSettings:
    """One run: one model, one data set, one method.

    model, data        a name on the hub, or a folder (data: also a file)
    method, options    an objective of the registry and its settings, such as {"beta": 0.1}
    steps, batch       updates, and examples of an update; `micro_batch` of them pass the model at a time
    learning_rate      the largest, falling linearly to zero; None takes what is usual for the method
    minutes            how long one session may train; then it saves and stops. Loading and measuring come on top
    seed               of the split, of the order of the data, of adapters and of samples
    lora               the rank of adapters; None trains all weights
    prompt, response   tokens; a row that has more than both together is left out and counted, never cut
    stage              what the run is called in tables; the method unless given
    out                the folder of the run; one made of model, stage and seed unless given
    held_out           share of the prompts kept for measuring, where the data have no split of their own
    held_out_rows      rows that are measured;  rows  at most so many rows are read;  samples  prompts to answer
    save_every         updates between checkpoints
    device             "cpu" computes there; unless given a card, if there is one
    reference          "" scores every row once before training; "live" asks the reference with every batch; "soft" and
                       "hard" let it follow the policy (TR-DPO and its kin): every `ref_every` updates it becomes
                       ref_alpha x policy + (1 - ref_alpha) x reference, weight by weight, or a copy of the policy
    responses          of SFT: "chosen", or "all" responses, the rejected ones as well
    checkpointing, optimizer    remedies for a small card: activations computed again; "adafactor" for "adamw"
    """

    model: str = MODEL
    data: str = DATA
    method: str = "dpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 300
    batch: int = 16
    micro_batch: int | None = None
    learning_rate: float | None = None
    minutes: float = 60.0
    seed: int = 0
    lora: int | None = None
    prompt: int = 512
    response: int = 512
    stage: str = ""
    out: str = ""
    held_out: float = 0.1
    held_out_rows: int = 200
    rows: int | None = None
    samples: int = 3
    save_every: int = 100
    device: str = ""
    reference: str = ""
    ref_alpha: float = 0.6
    ref_every: int = 512
    responses: str = "chosen"
    checkpointing: bool = False
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        objectives.get(self.method)  # an unknown name is refused here, with those that are known
        for name in ("model", "data", "out"):
            object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "options", dict(self.options))
        problem = next(
            (f"{name} is {getattr(self, name)!r}" for name in WHOLE if not _whole(getattr(self, name))), ""
        )
        for name in ("micro_batch", "lora", "rows"):
            if getattr(self, name) is not None and not _whole(getattr(self, name)):
                problem = f"{name} is {getattr(self, name)!r}"
        if not problem and self.batch % self.at_a_time:
            problem = f"micro_batch {self.micro_batch} does not divide batch {self.batch}"
        if not problem and not (self.minutes > 0 and 0 < self.held_out < 1 and self.rate > 0):
            problem = f"minutes is {self.minutes}, held_out {self.held_out}, learning_rate {self.rate}"
        if problem:
            raise CourseError(
                "run-setting",
                f"{problem}.",
                where="RunSettings",
                remedy="give whole numbers of at least 1, a share between 0 and 1, and a micro_batch that divides batch.",
            )
        _require_choices(self)

    @property
    def at_a_time(self) -> int:
        """Examples that pass the model at a time."""
        return self.batch if self.micro_batch is None else self.micro_batch

    @property
    def moves(self) -> bool:
        """Whether the reference follows the policy."""
        return self.reference in ("soft", "hard")

    @property
    def reference_word(self) -> str:
        """The reference as a plan of memory names it. A number computed from each batch asks it again."""
        if self.moves:
            return "moving"
        asked_again = any(isinstance(self.options.get(name), str) for name in ("kl", "delta"))
        return "live" if self.reference == "live" or asked_again else "precomputed"

    @property
    def rate(self) -> float:
        """The largest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        usual = RATE_SFT if self.method == "sft" else RATE_ALIGN
        return usual * (LORA_TIMES if self.lora else 1.0)

    @property
    def called(self) -> str:
        """What the stage is called."""
        words = [self.method if self.responses == "chosen" else f"{self.method} on {self.responses}"]
        words += [f"{self.reference} reference"] if self.moves else []
        words += [f"LoRA {self.lora}"] if self.lora else []
        return self.stage or ", ".join(words)

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        if self.out:
            return Path(self.out).expanduser()
        # The model of a stage before lies in a folder called "model": the name is that of its run.
        model = Path(self.model)
        words = f"{model.parent.name if model.name == 'model' else model.name}-{self.called}-seed{self.seed}"
        return Path("runs") / "align" / words.replace(", ", "-").replace(" ", "")

    @property
    def command(self) -> str:
        """The command that makes this run, and that goes on with it."""
        parts = ["course", "align"]
        default = RunSettings()
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "options":
                parts += [f"--option {shlex.quote(f'{key}={it}')}" for key, it in value.items()]
            elif each.name == "checkpointing":
                parts += ["--checkpointing"] if value else []
            elif value != getattr(default, each.name) or each.name in ("model", "data", "method", "seed"):
                parts.append(f"--{each.name.replace('_', '-')} {shlex.quote(str(value))}")
        return " ".join(parts)

    def plain(self) -> dict[str, Any]:
        """The settings as JSON takes them, with what was chosen for the learning rate."""
        return {**asdict(self), "learning_rate": self.rate, "micro_batch": self.at_a_time}

    def identity(self) -> dict[str, Any]:
        """What must be equal for two sessions to be one run: all but where, in what pieces, and how often saved."""
        free = ("out", "minutes", "save_every", "stage", "device", "micro_batch", "checkpointing")
        return {name: value for name, value in self.plain().items() if name not in free}


def _require_choices(settings: RunSettings) -> None:
    """Refuse words that are not known, and a moving reference where it cannot move or would do nothing."""
    problem, remedy = "", ""
    needs = objectives.get(settings.method).needs_reference
    if settings.reference not in REFERENCES:
        problem, remedy = (
            f"reference is {settings.reference!r}",
            'use "live", "soft" or "hard", or leave it out',
        )
    elif settings.responses not in ("chosen", "all") or (
        settings.responses == "all" and settings.method != "sft"
    ):
        problem = f"responses is {settings.responses!r}, and the method {settings.method}"
        remedy = 'sft imitates the "chosen" responses or "all" of them; other methods need both'
    elif settings.reference in ("live", "soft", "hard") and not needs:
        problem = f"reference is {settings.reference!r}, and {settings.method} asks no reference"
        remedy = "leave it out, or choose a method with a reference"
    elif settings.moves and settings.lora:
        problem = "the reference is to move, and the model is trained through adapters"
        remedy = (
            "train all weights: the reference of adapters is the frozen model under them, which does not move"
        )
    elif settings.moves and not 0 < settings.ref_alpha <= 1:
        problem, remedy = f"ref_alpha is {settings.ref_alpha}", "it is the policy's share, in (0, 1]"
    elif settings.moves and settings.ref_every >= settings.steps:
        problem = f"ref_every is {settings.ref_every} and the run has {settings.steps} updates"
        remedy = "the reference would never move: give a smaller ref_every, or more steps"
    if problem:
        raise CourseError("run-setting", f"{problem}.", where="RunSettings", remedy=f"{remedy}.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
