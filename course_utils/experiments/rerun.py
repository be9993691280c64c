"""One run again, on this machine, beside the stored one. Nothing that is stored is replaced.

experiments.again("13_bench", method="rdro", judge="cyclic", pairs=288, seed=0)
course experiments run 13_bench --only method=rdro judge=cyclic pairs=288 seed=0 --again
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError
from course_utils.experiments.experiment import Settings, find, key_of, matching
from course_utils.experiments.running import one_run
from course_utils.experiments.storage import stored_path

Run = dict[str, Any]


@dataclass(frozen=True)
class Again:
    """A run that was computed here, and the stored one (None if there is none). It prints itself as a table."""

    name: str
    settings: Settings
    here: Run
    stored: Run | None
    stored_code_is_present: bool

    def rows(self) -> list[tuple[str, Any, Any]]:
        """(name, stored, here) of every number and word of the result, parts named with dots; seconds last."""
        here, stored = dict(_flat(self.here["result"])), {}
        if self.stored is not None:
            stored = dict(_flat(self.stored["result"])) | {"(seconds)": self.stored["seconds"]}
        here["(seconds)"] = self.here["seconds"]
        return [(name, stored.get(name), here.get(name)) for name in dict.fromkeys([*stored, *here])]

    def _title(self) -> str:
        note = (
            "" if self.stored_code_is_present or self.stored is None else " (the stored run is of other code)"
        )
        return f"{self.name}: {', '.join(f'{k}={v}' for k, v in self.settings.items())}{note}"

    def __repr__(self) -> str:
        table = [("", "stored", "here"), *((name, _show(a), _show(b)) for name, a, b in self.rows())]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in table]
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td>{html.escape(_show(a))}</td><td>{html.escape(_show(b))}</td></tr>"
            for name, a, b in self.rows()
        )
        head = f"<caption>{html.escape(self._title())}</caption>"
        return f"<table>{head}<tr><th></th><th>stored</th><th>here</th></tr>{body}</table>"


def again(name: str, **only: Any) -> Again:
    """Compute one run of an experiment here and show it beside the stored one. `only` has to single it out."""
    fitting = matching(find(name), only)
    if len(fitting) > 1:
        raise CourseError(
            "experiment-no-such-run",
            f"{len(fitting)} runs of {name!r} fit {', '.join(f'{k}={v}' for k, v in only.items()) or 'nothing'}.",
            where="experiments.again",
            remedy=f"single one out, such as {key_of(fitting[0])}.",
        )
    return computed_again(name, fitting[0])


def computed_again(name: str, settings: Settings) -> Again:
    """Compute these settings here, whatever is stored or kept."""
    experiment, stored, same = find(name), None, False
    path = stored_path(name)
    if path.exists():
        whole = json.loads(path.read_text(encoding="utf-8"))
        same = whole["code"] == experiment.code()
        kept = {key_of(run["settings"]): run for run in whole["runs"]}
        stored = kept.get(key_of(settings))
    return Again(name, settings, one_run(experiment, settings), stored, same)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words of nested dicts, by dotted names; lists are left out."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif not isinstance(value, list):
        yield name, value


def _show(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
