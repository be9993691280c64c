"""The checks of lesson 23: what a row counts over processes, bytes on the wire, the honest speed-up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.labs.exercises import Case, Exercise, Mistake

# 23.1


def row_weights(preferred: list[Tensor]) -> list[Tensor]:
    """Weights for which the average over processes of summed losses is the sum of the two class means."""
    every, processes = torch.cat(preferred), len(preferred)
    yes, no = processes / every.sum().double(), processes / (~every).sum().double()
    return [torch.where(each, yes, no) for each in preferred]


def _scaled(preferred: list[Tensor], yes: float, no: float) -> list[Tensor]:
    return [torch.where(each, yes, no).double() for each in preferred]


def _classes(preferred: list[Tensor]) -> tuple[float, float]:
    every = torch.cat(preferred)
    return float(every.sum()), float((~every).sum())


def _without_the_factor(preferred: list[Tensor]) -> list[Tensor]:
    yes, no = _classes(preferred)
    return _scaled(preferred, 1 / yes, 1 / no)


def _own_counts(preferred: list[Tensor]) -> list[Tensor]:
    return [torch.where(each, 1 / each.sum().double(), 1 / (~each).sum().double()) for each in preferred]


def _own_counts_times_n(preferred: list[Tensor]) -> list[Tensor]:
    return [len(preferred) * each for each in _own_counts(preferred)]


def _two_processes(preferred: list[Tensor]) -> list[Tensor]:
    yes, no = _classes(preferred)
    return _scaled(preferred, 2 / yes, 2 / no)


def _one_mean(preferred: list[Tensor]) -> list[Tensor]:
    rows = sum(map(len, preferred))
    return [torch.full((len(each),), len(preferred) / rows, dtype=torch.float64) for each in preferred]


def _halved(preferred: list[Tensor]) -> list[Tensor]:
    return [each / 2 for each in row_weights(preferred)]


def _swapped(preferred: list[Tensor]) -> list[Tensor]:
    yes, no = _classes(preferred)
    return _scaled(preferred, len(preferred) / no, len(preferred) / yes)


def _divided(preferred: list[Tensor]) -> list[Tensor]:
    yes, no = _classes(preferred)
    return _scaled(preferred, 1 / yes / len(preferred), 1 / no / len(preferred))


def _one_by_one(preferred: list[Tensor]) -> list[Tensor]:
    yes, no = _classes(preferred)
    return [
        torch.tensor([len(preferred) / (yes if row else no) for row in each], dtype=torch.float64)
        for each in preferred
    ]


def _labels() -> Iterator[Case]:
    for words in (("YYYN", "YNNN"), ("YYN", "NNY", "YYN", "NYN"), ("YNNNY", "YNYNN"), ("YYY", "NYY", "NNY")):
        labels = [torch.tensor([letter == "Y" for letter in word]) for word in words]
        yield Case((labels,), f"{len(words)} processes: {', '.join(words)} (Y is preferred)")


# 23.2


def sent_bytes(parameters: int, cards: int, passes: int, reshard: bool) -> float:
    """Bytes that each card sends in an update."""
    return (cards - 1) / cards * 4 * parameters * (passes * (2 if reshard else 1) + 1)


def _updates() -> Iterator[Case]:
    yield Case((494_032_768, 8, 1, True), "Qwen2.5-0.5B, 8 cards, one pass")
    yield Case((494_032_768, 2, 4, True), "2 cards, 4 passes")
    yield Case((1_000, 4, 3, False), "a thousand weights, 4 cards, 3 passes, kept together")


def _times(reshard: bool) -> int:
    return 2 if reshard else 1


# 23.3


def speed_up(cards: int, arithmetic: float, whole: float) -> float:
    """Seconds on one card over seconds on so many, without overlap."""
    return arithmetic / (arithmetic / cards + (cards - 1) / cards * whole)


def _networks() -> Iterator[Case]:
    yield Case((8, 10.0, 0.1), "8 cards, a fast network")
    yield Case((8, 10.0, 4.0), "8 cards, a slow network")
    yield Case((2, 3.0, 5.0), "2 cards, a network that is slower than one card")


def _in_turn(cards: int, arithmetic: float, whole: float) -> float:
    return cards * arithmetic / (arithmetic + (cards - 1) * whole)


EXERCISES = (
    Exercise(
        id="23.1",
        title="What a row counts",
        truth=row_weights,
        cases=_labels,
        explain="Settled for the whole update, the weights of a class add up to n over all processes.",
        also_right=(_one_by_one, lambda preferred: [w.clone() for w in row_weights(preferred)]),
        mistakes=(
            Mistake(
                "factor forgotten",
                "Right on one process. The framework averages over processes, so each share must be n times as large.",
                _without_the_factor,
            ),
            Mistake(
                "counts of the own process",
                "These are the class means of each process: a row counts more where its class is rare. Count over all.",
                _own_counts,
                also_wrong=(_own_counts_times_n,),
            ),
            Mistake(
                "always two processes",
                "Right for two processes only: the factor is their number, len(preferred).",
                _two_processes,
            ),
            Mistake(
                "one mean over all rows",
                "This is the mean over all rows: the larger class counts more. Each class has its own mean.",
                _one_mean,
            ),
            Mistake(
                "half of the two means",
                "This is the average of the two class means; they are to be added.",
                _halved,
            ),
            Mistake(
                "classes swapped",
                "Each class has the other one's count.",
                _swapped,
            ),
            Mistake(
                "divided by the processes",
                "The framework divides by n already: multiply by it, or it is divided twice.",
                _divided,
            ),
        ),
    ),
    Exercise(
        id="23.2",
        title="Bytes on the wire",
        truth=sent_bytes,
        cases=_updates,
        explain="Every pass gathers; gradients are shared out once. So few, large passes save the network.",
        also_right=(
            lambda parameters, cards, passes, reshard: (
                4 * parameters * (1 - 1 / cards) * (1 + passes + passes * reshard)
            ),
            lambda parameters, cards, passes, reshard: sum(
                4 * parameters * (cards - 1) / cards for _ in range(passes * _times(reshard) + 1)
            ),
        ),
        mistakes=(
            Mistake(
                "ring's share forgotten",
                "A card need not send what it would get back: of the whole, (n-1)/n travels.",
                lambda parameters, cards, passes, reshard: 4 * parameters * (passes * _times(reshard) + 1),
            ),
            Mistake(
                "gradients forgotten",
                "These are the gathers alone: the gradients are shared out too, once.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * 4 * parameters * passes * _times(reshard)
                ),
            ),
            Mistake(
                "gradients in every pass",
                "Gradients are accumulated, and shared out once an update, not in every pass.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * 4 * parameters * passes * (_times(reshard) + 1)
                ),
            ),
            Mistake(
                "gradients all-reduced",
                "An all-reduce of the gradients: shards need its first half only, the reduce-scatter.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * 4 * parameters * (passes * _times(reshard) + 2)
                ),
            ),
            Mistake(
                "twice the ring's share",
                "An all-reduce sends 2 (n-1)/n of the whole; a gather is one of its halves, as is a reduce-scatter.",
                lambda parameters, cards, passes, reshard: 2 * sent_bytes(parameters, cards, passes, reshard),
            ),
            Mistake(
                "two bytes",
                "Two bytes are a number in 16 bits; here weights and gradients travel in float32.",
                lambda parameters, cards, passes, reshard: sent_bytes(parameters, cards, passes, reshard) / 2,
            ),
            Mistake(
                "passes forgotten",
                "Every pass gathers the weights anew: the gathers count once for each pass.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * 4 * parameters * (_times(reshard) + 1)
                ),
            ),
            Mistake(
                "reshard the wrong way round",
                "With reshard a layer is taken apart and gathered a second time; without it, once.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * 4 * parameters * (passes * (1 if reshard else 2) + 1)
                ),
            ),
            Mistake(
                "numbers instead of bytes",
                "These are numbers; one in float32 has 4 bytes.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) / cards * parameters * (passes * _times(reshard) + 1)
                ),
            ),
            Mistake(
                "all cards together",
                "This is what all cards send together; each of them sends (n-1)/n of the whole.",
                lambda parameters, cards, passes, reshard: (
                    (cards - 1) * 4 * parameters * (passes * _times(reshard) + 1)
                ),
            ),
        ),
    ),
    Exercise(
        id="23.3",
        title="The honest speed-up",
        truth=speed_up,
        cases=_networks,
        explain="As n grows it goes to arithmetic / whole: the network's limit, not the cards'.",
        also_right=(_in_turn, lambda cards, a, w: 1 / (1 / cards + (1 - 1 / cards) * w / a)),
        mistakes=(
            Mistake(
                "network forgotten",
                "This is n: what would be if nothing had to travel.",
                lambda cards, arithmetic, whole: float(cards),
            ),
            Mistake(
                "arithmetic not divided",
                "Each card computes its part only: the arithmetic is divided by n.",
                lambda cards, arithmetic, whole: arithmetic / (arithmetic + (cards - 1) / cards * whole),
            ),
            Mistake(
                "traffic divided too",
                "More cards do not make the traffic of a card less: it is (n-1)/n of the whole, not 1/n.",
                lambda cards, arithmetic, whole: arithmetic / ((arithmetic + whole) / cards),
            ),
            Mistake(
                "ring's share forgotten",
                "Nearly: of the whole, (n-1)/n travels. With one card nothing does.",
                lambda cards, arithmetic, whole: arithmetic / (arithmetic / cards + whole),
            ),
            Mistake(
                "the whole once for each other card",
                "That is what all cards send together; they send at the same time, each (n-1)/n of the whole.",
                lambda cards, arithmetic, whole: arithmetic / (arithmetic / cards + (cards - 1) * whole),
            ),
            Mistake(
                "new time alone",
                "These are the seconds on n cards: divide those of one card by them.",
                lambda cards, arithmetic, whole: arithmetic / cards + (cards - 1) / cards * whole,
            ),
            Mistake(
                "hidden behind one another",
                "This hides the shorter behind the longer; here nothing overlaps, so the seconds add up.",
                lambda cards, arithmetic, whole: (
                    arithmetic / max(arithmetic / cards, (cards - 1) / cards * whole)
                ),
            ),
            Mistake(
                "upside down",
                "This is the new time over the old one: below 1 where there is a gain.",
                lambda cards, arithmetic, whole: 1 / speed_up(cards, arithmetic, whole),
            ),
        ),
    ),
)
