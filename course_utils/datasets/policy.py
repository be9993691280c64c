"""What is done about rows and files that are not as they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from course_utils.errors import CourseError

OnDamage = Literal["error", "keep"]


@dataclass(frozen=True)
class Policy:
    """How strict the reading is.

    strict          raise at the first refused row, instead of counting it and going on
    max_refused     the share of refused rows from which on the whole reading is an error
    max_characters  the longest prompt, and the longest response; a longer one is refused
    on_damage       a file that breaks off: "error", or "keep" the rows before the damage and write it down
    """

    strict: bool = False
    max_refused: float = 0.05
    max_characters: int = 100_000
    on_damage: OnDamage = "error"

    def __post_init__(self) -> None:
        wrong = None
        if not isinstance(self.max_refused, int | float) or not 0 <= self.max_refused <= 1:
            wrong = f"max_refused is {self.max_refused!r}; it is a share between 0 and 1"
        elif isinstance(self.max_characters, bool) or not isinstance(self.max_characters, int):
            wrong = f"max_characters is {self.max_characters!r}; it is a whole number"
        elif self.max_characters < 1:
            wrong = f"max_characters is {self.max_characters}; at least one character must be allowed"
        elif self.on_damage not in ("error", "keep"):
            wrong = f"on_damage is {self.on_damage!r}; it can be 'error' or 'keep'"
        if wrong:
            raise CourseError("dataset-setting", f"{wrong}.", where="load", remedy="correct the setting.")
