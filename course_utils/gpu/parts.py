"""A part of a whole, such as the memory of a step: its bytes and how they come about."""

from __future__ import annotations

from dataclasses import dataclass

from course_utils.gpu.cards import GIB


@dataclass(frozen=True)
class Part:
    """One part: its bytes and how they come about."""

    name: str
    bytes: float
    how: str

    @property
    def gib(self) -> float:
        return self.bytes / GIB
