"""The checks of lesson 20: bytes before the first token, an update in pieces, what LoRA trains."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake

# 20.1


def fixed_bytes(frozen: int, trained: int) -> int:
    """Bytes of weights, gradients and Adam's state."""
    return 2 * frozen + 16 * trained


def _models() -> Iterator[Case]:
    yield Case((0, 494_032_768), "Qwen2.5-0.5B, all weights trained")
    yield Case((494_032_768, 8_798_208), "Qwen2.5-0.5B with LoRA of rank 16")
    yield Case((1_000, 10), "a thousand frozen weights, ten trained ones")


# 20.2


def accumulated_loss(pieces: list[Tensor]) -> Tensor:
    """The mean over the examples of all pieces."""
    return torch.cat(pieces).mean()


def _pieces() -> Iterator[Case]:
    for seed, sizes in ((1, (4, 4, 4, 4)), (2, (4, 4, 2)), (3, (5, 1))):
        generator = torch.Generator().manual_seed(seed)
        losses = [torch.rand(size, dtype=torch.float64, generator=generator) + 0.2 for size in sizes]
        yield Case((losses,), f"pieces of {', '.join(map(str, sizes))}")


# 20.3


def adapter_numbers(shapes: list[tuple[int, int]], rank: int) -> int:
    """Trained numbers of all adapters."""
    return sum(rank * (rows + columns) for rows, columns in shapes)


def _matrices() -> Iterator[Case]:
    attention = [(896, 896), (128, 896), (128, 896), (896, 896)]
    yield Case((attention, 16), "the attention of a layer of Qwen2.5-0.5B, rank 16")
    yield Case(([(4864, 896), (4864, 896), (896, 4864)], 8), "its feed-forward layer, rank 8")
    yield Case(([(7, 3)], 2), "one matrix of 7 x 3, rank 2")


def _by_loop(shapes: list[tuple[int, int]], rank: int) -> int:
    total = 0
    for rows, columns in shapes:
        total += rows * rank + rank * columns
    return total


EXERCISES = (
    Exercise(
        id="20.1",
        title="Before the first token",
        truth=fixed_bytes,
        cases=_models,
        explain="Sixteen bytes for a trained weight, two for a frozen one: that is why LoRA fits.",
        also_right=(
            lambda frozen, trained: 2 * frozen + (4 + 4 + 4 + 4) * trained,
            lambda frozen, trained: float(2 * frozen + 16 * trained),
        ),
        mistakes=(
            Mistake(
                "three numbers instead of four",
                "Twelve bytes for a trained weight: the gradient, or one of Adam's two means, is missing.",
                lambda frozen, trained: 2 * frozen + 12 * trained,
            ),
            Mistake(
                "Adam forgotten",
                "These are weights and gradients alone: Adam keeps two more numbers for each trained weight.",
                lambda frozen, trained: 2 * frozen + 8 * trained,
            ),
            Mistake(
                "frozen weights trained",
                "A frozen weight has no gradient and no state: it takes its 2 bytes and no more.",
                lambda frozen, trained: 16 * (frozen + trained),
                (lambda frozen, trained: 14 * frozen + 16 * trained,),
            ),
            Mistake(
                "frozen weights in float32",
                "The frozen weights are held in 16 bits: 2 bytes each.",
                lambda frozen, trained: 4 * frozen + 16 * trained,
            ),
            Mistake(
                "frozen weights left out",
                "Frozen weights are not trained, but they are there: the forward pass needs them.",
                lambda frozen, trained: 16 * trained,
            ),
            Mistake(
                "trained weights in 16 bits",
                "Here the trained weights have 2 bytes: they stay in float32, or their updates are rounded away.",
                lambda frozen, trained: 2 * frozen + 14 * trained,
            ),
            Mistake(
                "numbers instead of bytes",
                "These are numbers, not bytes: one in float32 has 4 bytes, one in 16 bits has 2.",
                lambda frozen, trained: frozen + 4 * trained,
            ),
        ),
    ),
    Exercise(
        id="20.2",
        title="One update in pieces",
        truth=accumulated_loss,
        cases=_pieces,
        explain="Every example counts 1/n of the update, wherever it stands.",
        also_right=(
            lambda pieces: sum(piece.sum() for piece in pieces) / sum(len(piece) for piece in pieces),
            lambda pieces: float(sum(len(p) * p.mean() for p in pieces) / sum(map(len, pieces))),
        ),
        mistakes=(
            Mistake(
                "mean of means",
                "This is the mean of the pieces' means: examples of a short piece would count more.",
                lambda pieces: torch.stack([piece.mean() for piece in pieces]).mean(),
            ),
            Mistake(
                "sum of means",
                "This adds the means of the pieces: the gradient would be several times too long.",
                lambda pieces: sum(piece.mean() for piece in pieces),
            ),
            Mistake(
                "sum instead of mean",
                "This is the sum over the examples; the loss of an update is their mean.",
                lambda pieces: torch.cat(pieces).sum(),
            ),
            Mistake(
                "sum over the number of pieces",
                "This divides the sum by the number of pieces, not by the number of examples.",
                lambda pieces: torch.cat(pieces).sum() / len(pieces),
            ),
            Mistake(
                "all pieces taken as equally long",
                "This divides by the length of the first piece times the number of pieces; the last may be shorter.",
                lambda pieces: torch.cat(pieces).sum() / (len(pieces) * len(pieces[0])),
            ),
            Mistake(
                "last piece only",
                "This is the loss of the last piece: the gradients of the others belong to the update too.",
                lambda pieces: pieces[-1].mean(),
            ),
        ),
    ),
    Exercise(
        id="20.3",
        title="What LoRA trains",
        truth=adapter_numbers,
        cases=_matrices,
        explain="It grows with the sum of the sides, the matrix with their product.",
        also_right=(_by_loop, lambda shapes, rank: float(rank * sum(map(sum, shapes)))),
        mistakes=(
            Mistake(
                "the matrix itself",
                "These are the numbers of the frozen matrices, m times n: the adapter has m r + r n.",
                lambda shapes, rank: sum(rows * columns for rows, columns in shapes),
            ),
            Mistake(
                "the matrix times the rank",
                "This is r m n, more than the matrix itself: the two thin factors have m r and r n.",
                lambda shapes, rank: sum(rank * rows * columns for rows, columns in shapes),
            ),
            Mistake(
                "one factor missing",
                "This counts one of the two factors: B has m r numbers, A has r n.",
                lambda shapes, rank: sum(rank * rows for rows, _ in shapes),
                (lambda shapes, rank: sum(rank * columns for _, columns in shapes),),
            ),
            Mistake(
                "rank missing",
                "This adds the sides; each counts as often as the rank.",
                lambda shapes, rank: sum(rows + columns for rows, columns in shapes),
            ),
            Mistake(
                "factors multiplied",
                "This multiplies the sizes of the two factors: they are trained side by side, so add them.",
                lambda shapes, rank: sum(rank * rows * rank * columns for rows, columns in shapes),
            ),
            Mistake(
                "square of the rank",
                "Both factors have the rank as one side only: nothing is squared.",
                lambda shapes, rank: sum(rank**2 * (rows + columns) for rows, columns in shapes),
            ),
        ),
    ),
)
