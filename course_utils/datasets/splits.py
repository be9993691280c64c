"""All splits of a data set, and what they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from course_utils.datasets.account import Report
from course_utils.datasets.data import PreferenceData
from course_utils.datasets.findings import Leakage, hash_prompt, leakage, prompt_keys


@dataclass(frozen=True, eq=False, repr=False)
class Splits(Mapping):
    """The splits by name."""

    parts: Mapping[str, PreferenceData]

    def __getitem__(self, name: str) -> PreferenceData:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        return "\n".join(["Splits", *(f"  {part!r}" for part in self.parts.values())])

    def leakage(self) -> list[Leakage]:
        """What every two splits share."""
        return [leakage(self[a].rows, self[b].rows, (a, b)) for a, b in combinations(self.parts, 2)]

    def without_leakage(self, keep: str = "test") -> Splits:
        """The same splits, without the rows of the others whose prompt is in the split to `keep`."""
        held = prompt_keys(self[keep].rows)
        parts = {}
        for name, part in self.parts.items():
            clean = [i for i, row in enumerate(part.rows) if hash_prompt(row.prompt) not in held]
            parts[name] = part if name == keep else part.take(clean, f"prompt is in {keep}")
        return Splits(parts)

    def report(self) -> Report:
        """One table for all splits, and what they share."""
        lines = []
        for name, part in self.parts.items():
            lines += [(f"{name}: {what}", number, remark) for what, number, remark in part.report().lines]
        for shared in self.leakage():
            lines += shared.lines()
        sources = sorted({part.account.source for part in self.parts.values()})
        return Report(", ".join(sources), tuple(lines))

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()
