"""A plan of one training step: its memory part by part, the cards that it fits, and what helps where it does not."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from typing import Any

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.gpu import memory
from course_utils.gpu.cards import CARDS, GIB, Card
from course_utils.gpu.shapes import Shape, shape_of
from course_utils.logprobs import CHUNK_GPU

REFERENCES = ("precomputed", "live", "moving")
# Responses to a prompt that one example of this feedback trains on; a group has as many as its plan says.
RESPONSES = {
    "paired": 2,
    "reference-free pair": 2,
    "scored pair": 2,
    "chosen only": 1,
    "unpaired": 1,
    "on-policy": 1,
}


@dataclass(frozen=True)
class Part:
    """One part of the memory: its bytes and how they come about."""

    name: str
    bytes: float
    how: str

    @property
    def gib(self) -> float:
        return self.bytes / GIB


@dataclass(frozen=True)
class Plan:
    """One training step on one card. `micro_batch` examples pass the model at a time; `batch` of them make a step."""

    shape: Shape
    method: str
    batch: int
    micro_batch: int
    prompt: int
    response: int
    group: int = 8
    reference: str = "precomputed"
    checkpointing: bool = False
    lora: int | None = None
    optimizer: str = "adamw"
    products: str = "bfloat16"

    @property
    def sequences(self) -> int:
        """Sequences that pass the model at a time."""
        feedback = objectives.get(self.method).feedback
        return self.micro_batch * (self.group if feedback == "group" else RESPONSES[feedback])

    @property
    def tokens(self) -> int:
        """Tokens that pass the model at a time."""
        return self.sequences * (self.prompt + self.response)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The memory of a step, part by part."""
        shape, size = self.shape, self.shape.parameters
        # A frozen base of adapters may stay in 16 bits: nothing is added to it.
        frozen = 2 if self.products != "float32" else 4
        trained = memory.lora_parameters(shape, self.lora) if self.lora else size
        if self.lora:
            weights = Part(
                "weights",
                frozen * size + 4 * trained,
                f"{frozen} B x {size:,} frozen + 4 B x {trained:,} of rank {self.lora}",
            )
        else:
            weights = Part("weights", 4 * size, f"4 B x {size:,}, float32")
        copies = 0 if self.lora or self.products == "float32" else 2 * shape.linear
        state = memory.OPTIMIZERS[self.optimizer]
        second = self.reference != "precomputed" and objectives.get(self.method).needs_reference
        # With adapters the reference is the model with the adapters switched off; one that moves needs its own.
        reference = 4 * trained if second and (not self.lora or self.reference == "moving") else 0
        layer = memory.layer_bytes_per_token(shape, self.products)
        kept = memory.activation_bytes(shape, self.tokens, self.products, self.checkpointing)
        predicted = self.sequences * self.response
        logits = memory.logit_bytes(shape, predicted, CHUNK_GPU, self.products)
        ordinary = memory.ordinary_logit_bytes(shape, self.tokens, self.products) / GIB
        parts = [
            weights,
            Part("16-bit copies of the weights", copies, f"2 B x {shape.linear:,} in the layers"),
            Part("gradients", 4 * trained, f"4 B x {trained:,}"),
            Part(f"optimiser ({self.optimizer})", state * trained, f"{state} B x {trained:,}"),
            Part(
                "reference",
                reference,
                f"a second model, {self.reference}" if reference else "no second model",
            ),
            Part(
                "activations",
                kept,
                f"{self.tokens:,} tokens x {shape.layers} layers x "
                + (f"4 B x {shape.hidden}, and one layer redone" if self.checkpointing else f"{layer:,} B"),
            ),
            Part(
                "gradients on their way back",
                memory.backward_bytes(shape, self.tokens, self.products),
                "one layer",
            ),
            Part("logits", logits, f"a slice at a time; all at once would be {ordinary:.1f} GiB"),
        ]
        known = sum(part.bytes for part in parts)
        parts.append(Part("CUDA and gaps", memory.CONTEXT + memory.GAPS * known, "assumed: 0.7 GiB and 6 %"))
        return tuple(part for part in parts if part.bytes or part.name == "reference")

    @property
    def gib(self) -> float:
        """The whole, in GiB."""
        return sum(part.gib for part in self.parts)

    def fits(self, card: Card) -> bool:
        """Whether the card can hold it."""
        return self.gib <= card.memory

    def remedy(self, card: Card) -> tuple[Plan, str] | None:
        """The mildest change with which the step fits the card, and its name; None if no change is enough.

        In this order, each on top of those before: a reference computed once; activations computed again; fewer
        examples at a time with the gradients added up, which changes no number; another optimiser; adapters, which change
        what is trained.
        """
        found, words = self, []
        if found.fits(card):
            return found, ""
        if found.reference == "live" and objectives.get(found.method).needs_reference and not found.lora:
            found, words = (
                replace(found, reference="precomputed"),
                ["compute the reference once, before training"],
            )
        for step in ("checkpointing", "micro-batch", "adafactor", "lora"):
            if found.fits(card):
                break
            if step == "checkpointing" and not found.checkpointing:
                found = replace(found, checkpointing=True)
                words.append("activation checkpointing")
            while step == "micro-batch" and not found.fits(card) and found.micro_batch > 1:
                found = replace(found, micro_batch=_next_smaller(found.batch, found.micro_batch))
            if step == "adafactor" and not found.lora and found.optimizer != "adafactor":
                found = replace(found, optimizer="adafactor")
                words.append("Adafactor instead of AdamW")
            if step == "lora" and not found.lora:
                found = replace(found, lora=16, optimizer=self.optimizer)
                words = [word for word in words if "Adafactor" not in word] + ["LoRA instead of all weights"]
        if found.micro_batch != self.micro_batch:
            words.append(f"{found.batch // found.micro_batch} micro-batches of {found.micro_batch}")
        return (found, ", ".join(words)) if found.fits(card) else None

    def verdict(self, card: Card) -> str:
        """What to tell the owner of such a card."""
        if self.fits(card):
            return f"fits: {self.gib:.1f} of {card.memory:.1f} GiB"
        found = self.remedy(card)
        if found is None:
            return f"does not fit: {self.gib:.1f} GiB wanted, {card.memory:.1f} there; shorter texts or a smaller model"
        return f"fits with: {found[1]} ({found[0].gib:.1f} of {card.memory:.1f} GiB)"

    def operations(self) -> float:
        """Operations of the matrix products of a whole step (all micro-batches), reference not included."""
        times = self.batch / self.micro_batch
        tokens, predicted = times * self.tokens, times * self.sequences * self.response
        return self.shape.operations(tokens, predicted, self.prompt + self.response)

    def seconds(self, card: Card, utilisation: float = 0.3) -> float:
        """Seconds of a step if this share of the card's best rate is reached. An estimate: measure to know."""
        return self.operations() / (card.operations * 1e12 * utilisation)

    @property
    def title(self) -> str:
        trained = f"LoRA of rank {self.lora}" if self.lora else "all weights"
        return (
            f"{self.shape.name}, {self.method}, {trained}: {self.batch} examples a step, {self.micro_batch} at a time "
            f"({self.sequences} sequences of {self.prompt} + {self.response} tokens)"
        )

    def __str__(self) -> str:
        width = max(len(part.name) for part in self.parts)
        lines = [self.title]
        lines += [f"  {part.name:<{width}} {part.gib:7.2f} GiB   {part.how}" for part in self.parts]
        lines += [f"  {'together':<{width}} {self.gib:7.2f} GiB"]
        lines += [f"  {card.name:<12} {self.verdict(card)}" for card in CARDS.values()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
            top = "".join(f"<th scope='col' style='text-align:left'>{cell}</th>" for cell in head)
            body = "".join(
                "<tr>"
                + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
                + "</tr>"
                for row in rows
            )
            return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"

        parts = [(part.name, f"{part.gib:.2f}", part.how) for part in self.parts]
        parts.append(("together", f"{self.gib:.2f}", ""))
        cards = [(card.name, self.verdict(card)) for card in CARDS.values()]
        return f"<p>{html.escape(self.title)}</p>{table(('part', 'GiB', 'how'), parts)}{table(('card', 'verdict'), cards)}"


def plan(
    model: Any,
    method: str = "dpo",
    *,
    batch: int = 8,
    micro_batch: int | None = None,
    prompt: int = 512,
    response: int = 512,
    group: int = 8,
    reference: str = "precomputed",
    checkpointing: bool = False,
    lora: int | None = None,
    optimizer: str = "adamw",
    products: str = "bfloat16",
) -> Plan:
    """What one training step takes, before anything is downloaded.

    model        a name in SHAPES, a folder with a config.json, a config, or a model
    method       an objective of the registry; it says how many responses an example has, and whether there is a reference
    batch        examples of a step; micro_batch of them pass the model at a time (all, unless given)
    prompt, response   tokens of the longest ones
    group        responses of an example, for objectives that learn from groups
    reference    "precomputed" (once, before training), "live" (a second model), "moving" (a second model that follows)
    lora         the rank of adapters; all weights are trained without it
    products     the format of the matrix products: "bfloat16", "float16" (the same size), "float32", "pure bfloat16"
    """
    objective = objectives.get(method)
    micro_batch = batch if micro_batch is None else micro_batch
    whole = {
        "batch": batch,
        "micro_batch": micro_batch,
        "prompt": prompt,
        "response": response,
        "group": group,
    }
    problem = next(
        (f"{name} is {value}" for name, value in whole.items() if int(value) != value or value < 1), ""
    )
    if not problem and batch % micro_batch:
        problem = f"micro_batch {micro_batch} does not divide batch {batch}"
    for name, value, known in (
        ("reference", reference, REFERENCES),
        ("optimizer", optimizer, tuple(memory.OPTIMIZERS)),
        ("products", products, ("float32", "bfloat16", "float16")),
        ("method's feedback", objective.feedback, (*RESPONSES, "group")),
    ):
        if not problem and value not in known:
            problem = f"{name} is {value!r}, not one of {', '.join(known)}"
    if not problem and lora is not None and lora < 1:
        problem = f"lora is {lora}; it is the rank of the adapters"
    if problem:
        raise CourseError(
            "bad-plan", f"{problem}.", where="gpu.plan", remedy="mend the call; see help(gpu.plan)."
        )
    return Plan(
        shape_of(model),
        objective.name,
        batch,
        micro_batch,
        prompt,
        response,
        group,
        reference,
        checkpointing,
        lora,
        optimizer,
        products,
    )


def _next_smaller(batch: int, micro_batch: int) -> int:
    return max(size for size in range(1, micro_batch) if batch % size == 0)
