"""What is odd about rows that are each in order by themselves: repeated, contradicting, on both sides of a split.

Two texts are the same when they differ in white space alone. Keys are hashes of 16 bytes, so a large data set is
compared in little memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.datasets.account import Report
from course_utils.datasets.records import PairRow, Prompt, Row, normalised, prompt_key


@dataclass(frozen=True)
class Findings:
    """Rows (by position) that repeat or contradict others of the same split.

    duplicates    say what an earlier row says
    conflicts     say the opposite of another row: the pair the other way round, the same response up and down
    both_ways     prompts for which one response is chosen here and rejected there (against another response, perhaps)
    """

    duplicates: tuple[int, ...]
    conflicts: tuple[int, ...]
    both_ways: int

    def lines(self) -> list[tuple[str, str, str]]:
        """The lines of the table."""
        return [
            (
                "duplicates",
                f"{len(self.duplicates):,}",
                "rows that repeat an earlier one (drop_duplicates=True)",
            ),
            (
                "conflicts",
                f"{len(self.conflicts):,}",
                "rows with the opposite label of another (drop_conflicts=True)",
            ),
            ("chosen and rejected", f"{self.both_ways:,}", "responses that are both, for the same prompt"),
        ]


@dataclass(frozen=True)
class Leakage:
    """What two splits share."""

    first: str
    second: str
    prompts: int
    rows: int
    of: int
    identical_rows: int

    @property
    def share(self) -> float:
        """The share of the second split's rows whose prompt is in the first."""
        return self.rows / self.of if self.of else 0.0

    def report(self) -> Report:
        """The table."""
        return Report(f"What {self.first} and {self.second} share", tuple(self.lines()))

    def lines(self) -> list[tuple[str, str, str]]:
        """The lines of the table."""
        between = f"{self.first} and {self.second}"
        return [
            ("shared prompts", f"{self.prompts:,}", f"in {between}"),
            (
                "leaking rows",
                f"{self.rows:,}",
                f"{self.share:.1%} of {self.second} asks what {self.first} has seen",
            ),
            ("identical rows", f"{self.identical_rows:,}", f"in {between}"),
        ]

    def __str__(self) -> str:
        return str(self.report())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def inspect_rows(rows: Sequence[Row]) -> Findings:
    """Duplicates and contradictions among the rows of one split."""
    seen: set[bytes] = set()
    first_with: dict[bytes, int] = {}
    sides: dict[bytes, int] = {}
    duplicates: list[int] = []
    conflicts: set[int] = set()
    for number, row in enumerate(rows):
        own, opposite = _row_key(row), _row_key(row, turned=True)
        if own in seen:
            duplicates.append(number)
        seen.add(own)
        first_with.setdefault(own, number)
        if opposite in first_with:
            conflicts |= {number, first_with[opposite]}
        prompt = prompt_key(row.prompt)
        for text, side in _sides(row):
            key = _hash(prompt, text)
            sides[key] = sides.get(key, 0) | side
    # A later copy of a row that is contradicted is contradicted too.
    contradicted = {_row_key(rows[number]) for number in conflicts}
    conflicts |= {number for number in duplicates if _row_key(rows[number]) in contradicted}
    both = sum(1 for side in sides.values() if side == 3)
    return Findings(tuple(duplicates), tuple(sorted(conflicts)), both)


def leakage(
    first: Sequence[Row], second: Sequence[Row], names: tuple[str, str] = ("train", "test")
) -> Leakage:
    """How much of the second split the first has seen: prompts, rows with such prompts, identical rows."""
    known = prompt_keys(first)
    hits = [(hash_prompt(row.prompt), row) for row in second]
    shared = [(key, row) for key, row in hits if key in known]
    own = {_row_key(row) for row in first}
    identical = sum(1 for _, row in shared if _row_key(row) in own)
    return Leakage(*names, len({key for key, _ in shared}), len(shared), len(hits), identical)


def prompt_keys(rows: Sequence[Row]) -> set[bytes]:
    """The prompts of these rows, as keys."""
    return {hash_prompt(row.prompt) for row in rows}


def hash_prompt(prompt: Prompt) -> bytes:
    """A key that is equal for equal prompts."""
    return _hash(prompt_key(prompt))


def _sides(row: Row) -> list[tuple[str, int]]:
    if isinstance(row, PairRow):
        return [(row.chosen, 1), (row.rejected, 2)]
    return [(row.response, 1 if row.preferred else 2)]


def _row_key(row: Row, turned: bool = False) -> bytes:
    prompt = prompt_key(row.prompt)
    if isinstance(row, PairRow):
        chosen, rejected = (row.rejected, row.chosen) if turned else (row.chosen, row.rejected)
        return _hash(prompt, chosen, rejected)
    return _hash(prompt, row.response, str(row.preferred != turned))


def _hash(prompt: str, *texts: str) -> bytes:
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16)
    for text in texts:
        digest.update(b"\x00" + normalised(text).encode("utf-8", "surrogatepass"))
    return digest.digest()
