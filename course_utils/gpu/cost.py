"""What a run costs: hours of cards, energy, money, carbon. Estimates say so; what was measured says so too.

    estimate(plan, card, steps=300, price=2.5, grams=350, pue=1.2)     before a run, from its plan
    of_record(record, grams=350)                                       after it, from result.json
    with energy_meter() as meter: ...                                  the card's own counter, where there is a card

An estimate of energy is an upper one: the card's full power for every second, though a card that waits draws less. Price
(of a card for an hour) and grams (of CO2 equivalent for a kWh) are the reader's: both go stale within months, so there is
no list here. A provider's bill has the first; the grid operator, or electricitymaps.com, the second. `pue` is what the
building adds for cooling (its operator says; 1.1 to 1.6 is common). Carbon of making the card, and the energy of the
machine around it, are left out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError
from course_utils.gpu.cards import CARDS, Card


@dataclass(frozen=True)
class Cost:
    """Hours of all cards together, kWh, and money and kilograms of CO2 equivalent where a price and grams were given.

    kwh   None where the power of the card is not known
    """

    card_hours: float
    kwh: float | None
    money: float | None
    carbon_kg: float | None
    measured: bool

    def __str__(self) -> str:
        most = "" if self.measured else "at most "
        energy = "energy not known (give watts)" if self.kwh is None else f"{most}{self.kwh:.3g} kWh"
        words = [f"{self.card_hours:.3g} card hours", energy]
        words += [f"{self.money:.3g} of your money"] if self.money is not None else []
        words += [f"{most}{self.carbon_kg:.3g} kg CO2e"] if self.carbon_kg is not None else []
        return ", ".join(words) + (" (measured)" if self.measured else " (estimate)")


def energy_kwh(watts: float, seconds: float, cards: int = 1, pue: float = 1.0) -> float:
    """Full power for the whole time: what the energy is at most."""
    _require(watts=watts, seconds=seconds, cards=cards, pue=pue - 1)
    return watts * seconds * cards * pue / 3.6e6


def cost_of(
    seconds: float, cards: int, kwh: float | None, price: float | None, grams: float | None, measured: bool
) -> Cost:
    """Hours and energy as a Cost."""
    _require(seconds=seconds, cards=cards, kwh=kwh or 0, price=price or 0, grams=grams or 0)
    hours = seconds * cards / 3600
    money = None if price is None else hours * price
    carbon = None if grams is None or kwh is None else kwh * grams / 1000
    return Cost(hours, kwh, money, carbon, measured)


def estimate(
    plan: Any,
    card: Card,
    steps: int,
    *,
    gigabytes: float | None = None,
    utilisation: float = 0.3,
    price: float | None = None,
    grams: float | None = None,
    pue: float = 1.0,
) -> Cost:
    """A run of so many updates by its plan. `gigabytes` is the speed of the network, see `Plan.step_seconds`."""
    seconds = steps * plan.step_seconds(card, gigabytes, utilisation)
    return cost_of(
        seconds, plan.shards, energy_kwh(card.watts, seconds, plan.shards, pue), price, grams, False
    )


def of_record(
    record: Mapping[str, Any],
    *,
    watts: float | None = None,
    price: float | None = None,
    grams: float | None = None,
    pue: float = 1.0,
) -> Cost:
    """A finished run by its result.json: seconds of training, times cards, times full power.

    If the record holds "energy_joules", read from the cards' counters, that is the energy, and it is measured. Otherwise it is
    an upper estimate, from `watts` (of the data sheet, or the power limit that nvidia-smi shows), or those of a card in
    `CARDS`; of another card the energy is not known.
    """
    seconds, cards = float(record["seconds"]), cards_of(record)
    joules = record.get("energy_joules")
    if joules is not None:
        return cost_of(seconds, cards, float(joules) * pue / 3.6e6, price, grams, True)
    watts = watts_of(str(record["card"])) if watts is None else watts
    kwh = None if watts is None else energy_kwh(watts, seconds, cards, pue)
    return cost_of(seconds, cards, kwh, price, grams, False)


def cards_of(record: Mapping[str, Any]) -> int:
    """Cards of a run: its layout is "one process", "2 shards" or "2 copies"."""
    number = re.match(r"\d+", str(record.get("layout", "")))
    return int(number.group()) if number else 1


def watts_of(name: str) -> int | None:
    """What a card of this name may draw, if its data sheet is among `CARDS`; None otherwise."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    memory = 80 if "80GB" in words else 40
    for key, card in CARDS.items():
        kind, _, size = key.partition("-")
        if kind in words and size in ("", str(memory)):
            return card.watts
    return None


class Meter:
    """What the cards of this process' machine used: `joules`, or None where nothing could be read."""

    joules: float | None = None

    def __str__(self) -> str:
        return (
            "not measured: no card with an energy counter"
            if self.joules is None
            else f"{self.joules:,.0f} J measured"
        )


@contextlib.contextmanager
def energy_meter() -> Iterator[Meter]:
    """The cards' energy counters (NVML, through the package nvidia-ml-py), read before and after.

    Without the package, without a card or without a counter nothing is measured, and the meter says so. It counts all that
    the cards did, for whomever; under several processes of a machine let one of them read.
    """
    meter, before = Meter(), _counters()
    try:
        yield meter
    finally:
        after = _counters()
        if before is not None and after is not None and len(after) == len(before):
            meter.joules = sum(after) - sum(before)


def _counters() -> list[float] | None:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000 for handle in handles] or None
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, or a card that does not count
        return None


def _require(**numbers: float) -> None:
    wrong = [name for name, value in numbers.items() if not 0 <= value < float("inf")]
    if wrong:
        raise CourseError(
            "bad-plan",
            f"{', '.join(wrong)}: not a number that can be.",
            where="gpu.cost",
            remedy="give numbers that are not negative, and a pue of at least 1.",
        )
