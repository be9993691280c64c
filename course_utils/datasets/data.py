"""`PreferenceData`: the records of one split and the account of how they were read."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from course_utils.datasets.account import Account, Report
from course_utils.datasets.findings import Findings, hash_prompt, inspect_rows
from course_utils.datasets.records import Kind, PairRow, Row
from course_utils.errors import CourseError

if TYPE_CHECKING:
    from course_utils.feedback import Pairs, Unpaired


@dataclass(frozen=True, eq=False, repr=False)
class PreferenceData:
    """The records of one split, in the order of the file, all of one kind; `origins` are their (file, row)."""

    kind: Kind
    rows: tuple[Row, ...]
    origins: tuple[tuple[str, int], ...]
    account: Account

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __repr__(self) -> str:
        return (
            f"PreferenceData({self.account.source}, {self.account.split}: {len(self):,} {self.kind}, "
            f"alpha {self.alpha:.3f})"
        )

    @property
    def alpha(self) -> float:
        """The preferred fraction: the share of responses that are preferred. It is 1/2 where responses are paired."""
        if self.kind == "pairs":
            return 0.5
        return sum(row.preferred for row in self.rows) / len(self.rows)

    @property
    def is_chat(self) -> bool:
        """Whether prompts are chat messages, which are encoded with chat_template=True."""
        return any(not isinstance(row.prompt, str) for row in self.rows)

    @property
    def findings(self) -> Findings:
        """Duplicates and contradictions."""
        return inspect_rows(self.rows)

    def pairs(self) -> Pairs:
        """The comparisons, as every paired objective takes them."""
        from course_utils.feedback import Pairs

        if self.kind != "pairs":
            raise CourseError(
                "dataset-kind",
                "These are single responses with labels: nobody compared them with one another.",
                where=f"{self.account.source}.pairs()",
                remedy="use .unpaired() and an unpaired objective (kto, ddro, rdro), or load paired data.",
            )
        rows = self.rows
        return Pairs([r.prompt for r in rows], [r.chosen for r in rows], [r.rejected for r in rows])

    def unpaired(self) -> Unpaired:
        """Single responses with labels; of comparisons, first all chosen responses, then all rejected ones."""
        import torch

        from course_utils.feedback import Unpaired

        if self.kind == "pairs":
            return self.pairs().unpaired()
        preferred = torch.tensor([row.preferred for row in self.rows], dtype=torch.bool)
        return Unpaired([row.prompt for row in self.rows], [row.response for row in self.rows], preferred)

    def dicts(self) -> list[dict[str, Any]]:
        """The records as plain dictionaries, for instance for `datasets.Dataset.from_list`."""
        return [row.model_dump() for row in self.rows]

    def take(self, positions: Sequence[int], remark: str = "left out") -> PreferenceData:
        """These rows, in this order; the account counts the others as dropped, with the remark as the reason."""
        dropped = dict(self.account.dropped)
        if len(positions) < len(self):
            dropped[remark] = dropped.get(remark, 0) + len(self) - len(positions)
        account = replace(self.account, kept=len(positions), dropped=dropped)
        rows = tuple(self.rows[i] for i in positions)
        return replace(self, rows=rows, origins=tuple(self.origins[i] for i in positions), account=account)

    def split(self, fraction: float, seed: int) -> tuple[PreferenceData, PreferenceData]:
        """Two parts that share no prompt; the first holds about this fraction of the rows.

        All rows of a prompt go to the same side. Prompts are dealt in random order until the first part is full.
        """
        if not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise CourseError(
                "dataset-setting",
                f"fraction is {fraction!r}; it is a number between 0 and 1.",
                where="PreferenceData.split(fraction, seed)",
                remedy="0.9 leaves a tenth for the second part.",
            )
        groups: dict[bytes, list[int]] = {}
        for position, row in enumerate(self.rows):
            groups.setdefault(hash_prompt(row.prompt), []).append(position)
        order = list(groups.values())
        random.Random(seed).shuffle(order)
        first: list[int] = []
        second: list[int] = []
        for members in order:
            (first if len(first) + len(members) / 2 <= fraction * len(self) else second).extend(members)
        if not first or not second:
            raise CourseError(
                "dataset-setting",
                f"{len(order)} different prompts cannot be split with fraction={fraction}: one part would be empty.",
                where="PreferenceData.split(fraction, seed)",
                remedy="use more data, or a fraction nearer to one half.",
            )
        return self.take(sorted(first), "in the other part"), self.take(sorted(second), "in the other part")

    def report(self) -> Report:
        """The table: what was read, refused, repeated, and the preferred fraction."""
        lengths = [len(text) for row in self.rows for text in responses_of(row)]
        prompts = {hash_prompt(row.prompt) for row in self.rows}
        stated = self.account.stated_alpha
        remark = "the alpha of RDRO, the t of DDRO"
        if stated is not None:
            remark += f"; stated for the whole data set: {stated}"
        if self.kind == "pairs":
            remark += "; one chosen, one rejected in every row"
        form = "chat messages" if self.is_chat else "texts"
        lines = [
            *self.account.lines(),
            ("kind", self.kind, f"prompts are {form}"),
            ("different prompts", f"{len(prompts):,}", ""),
            (
                "response length",
                f"{statistics.median(lengths):,.0f}",
                f"median characters; longest {max(lengths):,}",
            ),
            *self.findings.lines(),
            ("preferred fraction", f"{self.alpha:.4f}", remark),
        ]
        return Report(f"{self.account.source}, split {self.account.split}", tuple(lines))

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def responses_of(row: Row) -> tuple[str, ...]:
    """The responses of a record."""
    return (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.response,)
