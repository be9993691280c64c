"""Graphics cards, and the number formats that they can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card as its data sheet has it.

    memory      GiB that a program can use; a little less than the name says, because names count in 10^9 and the driver
                keeps some
    operations  10^12 operations per second of dense 16-bit matrix products: what no program reaches
    watts       what it may draw
    """

    name: str
    memory: float
    operations: float
    watts: int
    bf16: bool = True


CARDS = {
    "T4": Card("T4 16 GB", 14.6, 65, 70, bf16=False),
    "L4": Card("L4 24 GB", 22.0, 121, 72),
    "A100-40": Card("A100 40 GB", 39.4, 312, 400),
    "A100-80": Card("A100 80 GB", 79.1, 312, 400),
    "H200": Card("H200 141 GB", 139.7, 989, 700),
}


@dataclass(frozen=True)
class Precision:
    """How a training computes: the format of the stored weights, and of the matrix products."""

    weights: str
    products: str
    why: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The same in the words of `transformers.TrainingArguments`."""
        return {"bf16": self.products == "bfloat16", "fp16": self.products == "float16"}

    def __str__(self) -> str:
        return f"weights in {self.weights}, matrix products in {self.products}: {self.why}"


def precision(device: str | None = None, bf16: bool | None = None) -> Precision:
    """The number formats to train in on this machine (or on a device, told whether it can do bfloat16).

    Weights stay in float32 everywhere: a step of preference learning changes a weight by less than bfloat16 can tell
    apart, and the change would be rounded away. A T4 says that it supports bfloat16 and emulates it, slowly; so emulation
    does not count here.
    """
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda":
        return Precision("float32", "float32", "there is no CUDA card")
    if bf16 is None:
        import torch

        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16:
        return Precision("float32", "bfloat16", "the card has it, and it needs no scaling of the loss")
    return Precision("float32", "float16", "the card has no bfloat16; the trainer scales the loss")
