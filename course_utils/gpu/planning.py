"""A plan of one training step: its memory part by part, the cards that it fits, and what helps where it does not.

With `shards` the weights are divided over so many cards (`sharding` holds the arithmetic), and the memory is that of
each of them.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from typing import Any

from course_utils import objectives
from course_utils.errors import CourseError
from course_utils.gpu import memory, sharding
from course_utils.gpu.cards import CARDS, GIB, Card
from course_utils.gpu.parts import Part
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
class Plan:
    """One training step. `micro_batch` examples pass the model of each card at a time; `batch` of all cards make a step."""

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
    shards: int = 1
    reshard: bool = True

    @property
    def passes(self) -> int:
        """Micro-batches of each card in an update."""
        return self.batch // (self.micro_batch * self.shards)

    @property
    def frozen_width(self) -> int:
        """Bytes of a weight as it is stored: the frozen base of adapters may stay in 16 bits, nothing is added to it."""
        return 2 if self.lora and self.products != "float32" else 4

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        return memory.lora_parameters(self.shape, self.lora) if self.lora else self.shape.parameters

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
        frozen, trained = self.frozen_width, self.trained
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
        if self.shards > 1:
            parts = sharding.divided(self, parts)
        known = sum(part.bytes for part in parts)
        parts.append(Part("CUDA and gaps", memory.CONTEXT + memory.GAPS * known, "assumed: 0.7 GiB and 6 %"))
        return tuple(part for part in parts if part.bytes or part.name == "reference")

    @property
    def gib(self) -> float:
        """The whole, in GiB."""
        return sum(part.gib for part in self.parts)

    @property
    def peak_gib(self) -> float:
        """The most that a card must hold, in GiB: before the weights are shared out it has all of them."""
        return max(self.gib, sharding.at_start(self) / GIB)

    def fits(self, card: Card) -> bool:
        """Whether the card can hold it."""
        return self.peak_gib <= card.memory

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
                found = replace(
                    found, micro_batch=_next_smaller(found.batch // found.shards, found.micro_batch)
                )
            if (
                step == "adafactor"
                and not found.lora
                and found.optimizer != "adafactor"
                and found.shards == 1
            ):
                found = replace(found, optimizer="adafactor")
                words.append("Adafactor instead of AdamW")
            if step == "lora" and not found.lora:
                found = replace(found, lora=16, optimizer=self.optimizer)
                words = [word for word in words if "Adafactor" not in word] + ["LoRA instead of all weights"]
        if found.micro_batch != self.micro_batch:
            words.append(f"{found.passes} micro-batches of {found.micro_batch}")
        return (found, ", ".join(words)) if found.fits(card) else None

    def verdict(self, card: Card) -> str:
        """What to tell the owner of such a card."""
        if self.fits(card):
            return f"fits: {self.peak_gib:.1f} of {card.memory:.1f} GiB"
        found = self.remedy(card)
        if found is None:
            return f"does not fit: {self.peak_gib:.1f} GiB wanted, {card.memory:.1f} there; shorter texts or a smaller model"
        return f"fits with: {found[1]} ({found[0].peak_gib:.1f} of {card.memory:.1f} GiB)"

    def operations(self) -> float:
        """Operations of the matrix products of a whole step (all micro-batches of all cards), reference not included."""
        times = self.batch / self.micro_batch  # of all cards together
        tokens, predicted = times * self.tokens, times * self.sequences * self.response
        return self.shape.operations(tokens, predicted, self.prompt + self.response)

    def seconds(self, card: Card, utilisation: float = 0.3) -> float:
        """Seconds of arithmetic of a step if this share of the cards' best rate is reached. An estimate: measure to know."""
        return self.operations() / (card.operations * 1e12 * utilisation * self.shards)

    @property
    def traffic(self) -> tuple[Part, ...]:
        """What each card sends (and receives) in an update, part by part."""
        return tuple(sharding.traffic(self))

    def network_seconds(self, gigabytes: float) -> float:
        """Seconds of traffic over a ring whose slowest link carries so many 10^9 bytes a second in each direction."""
        return sum(part.bytes for part in self.traffic) / (gigabytes * 1e9)

    def step_seconds(self, card: Card, gigabytes: float | None = None, utilisation: float = 0.3) -> float:
        """Seconds of a step at best: arithmetic or traffic, whichever takes longer, the other hidden behind it.

        gigabytes   10^9 bytes a second, see `sharding.LINKS`; None takes a network that costs nothing
        """
        network = 0.0 if gigabytes is None else self.network_seconds(gigabytes)
        return max(self.seconds(card, utilisation), network)

    def energy_kwh(
        self,
        card: Card,
        steps: int,
        *,
        gigabytes: float | None = None,
        utilisation: float = 0.3,
        pue: float = 1.0,
    ) -> float:
        """At most: the cards' full power for the whole time, times what the building adds (`pue`). See `cost`."""
        seconds = steps * self.step_seconds(card, gigabytes, utilisation)
        return seconds * card.watts * self.shards * pue / 3.6e6

    @property
    def title(self) -> str:
        trained = f"LoRA of rank {self.lora}" if self.lora else "all weights"
        return (
            f"{self.shape.name}, {self.method}, {trained}: {self.batch} examples a step, {self.micro_batch} at a time "
            f"({self.sequences} sequences of {self.prompt} + {self.response} tokens)"
            + (f" on each of {self.shards} cards" if self.shards > 1 else "")
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
    shards: int = 1,
    reshard: bool = True,
) -> Plan:
    """What one training step takes, before anything is downloaded.

    model        a name in SHAPES, a folder with a config.json, a config, or a model
    method       an objective of the registry; it says how many responses an example has, and whether there is a reference
    batch        examples of a step, over all cards; micro_batch of them pass the model of each card at a time (all that
                 the card has, unless given)
    prompt, response   tokens of the longest ones
    group        responses of an example, for objectives that learn from groups
    reference    "precomputed" (once, before training), "live" (a second model), "moving" (a second model that follows)
    lora         the rank of adapters; all weights are trained without it
    products     the format of the matrix products: "bfloat16", "float16" (the same size), "float32", "pure bfloat16"
    shards       cards that share the weights (fully sharded data parallel); the memory is then that of each card
    reshard      take a layer apart again between its forward and its backward pass
    """
    objective = objectives.get(method)
    if micro_batch is None:
        micro_batch = max(1, batch // shards) if isinstance(shards, int) and shards > 0 else batch
    whole = {
        "batch": batch,
        "micro_batch": micro_batch,
        "prompt": prompt,
        "response": response,
        "group": group,
        "shards": shards,
    }
    problem = next(
        (f"{name} is {value}" for name, value in whole.items() if int(value) != value or value < 1), ""
    )
    if not problem and batch % (micro_batch * shards):
        cards = f" x {shards} cards" if shards > 1 else ""
        problem = f"micro_batch {micro_batch}{cards} does not divide batch {batch}"
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
        shards,
        reshard,
    )


def _next_smaller(batch: int, micro_batch: int) -> int:
    return max(size for size in range(1, micro_batch) if batch % size == 0)
