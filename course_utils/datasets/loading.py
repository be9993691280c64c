"""`load` and `load_splits`: from a name or a path to checked records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from course_utils.datasets.account import Account, Refusal, Refused, Report, Tally, refusal_lines, short
from course_utils.datasets.data import PreferenceData
from course_utils.datasets.hub import Fetched, fetch, split_name, unknown_split
from course_utils.datasets.layouts import Layout, layout_of, named_columns, to_record, unknown_columns
from course_utils.datasets.policy import OnDamage, Policy
from course_utils.datasets.reading import SUFFIXES, Damaged, data_suffix, read_rows
from course_utils.datasets.records import Kind, Row
from course_utils.datasets.sources import SOURCES, Source
from course_utils.datasets.splits import Splits
from course_utils.errors import CourseError

LOOKED_AT = 100  # rows from which the layout is told
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    kind: Kind | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    max_refused: float = 0.05,
    max_characters: int = 100_000,
    on_damage: OnDamage = "error",
    drop_duplicates: bool = False,
    drop_conflicts: bool = False,
    limit: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PreferenceData:
    """One split of a data set, every row checked.

    source           a file, a folder with one file (or several shards) per split, a name of `SOURCES` such as "uf-g",
                     or "owner/name" on the hub
    split            which split; needed where there are several
    kind             "pairs" or "unpaired", where the columns would allow both
    columns          {part: column}, where the columns have other names than those that are recognised
    strict, max_refused, max_characters, on_damage    see `Policy`
    drop_duplicates  leave out rows that repeat an earlier one;  drop_conflicts  rows that contradict another
    limit            stop after so many good rows
    revision         branch, tag or commit on the hub; by default the commit of `SOURCES`, else main, which is then
                     recorded: later loads use the commit of the first
    """
    policy = _policy(strict, max_refused, max_characters, on_damage, kind, limit)
    chosen, files, known = _locate(source, split, revision, cache_dir)
    if split is None and len(files.splits) > 1:
        raise unknown_split(None, list(files.splits), str(source))
    name = next(iter(files.splits))
    data = _load(chosen, name, files, known, policy, kind, columns, limit)
    return _drop(data, drop_duplicates, drop_conflicts)


def load_splits(
    source: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    max_refused: float = 0.05,
    max_characters: int = 100_000,
    on_damage: OnDamage = "error",
    drop_duplicates: bool = False,
    drop_conflicts: bool = False,
    limit: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Splits:
    """All splits of a data set; `.report()` also says which prompts they share. The options are those of `load`."""
    policy = _policy(strict, max_refused, max_characters, on_damage, kind, limit)
    chosen, files, known = _locate(source, None, revision, cache_dir)
    parts = {}
    for name in files.splits:
        data = _load(chosen, name, files, known, policy, kind, columns, limit)
        parts[name] = _drop(data, drop_duplicates, drop_conflicts)
    return Splits(parts)


def _policy(strict: Any, max_refused: Any, longest: Any, on_damage: Any, kind: Any, limit: Any) -> Policy:
    wrong = None
    if kind not in (None, "pairs", "unpaired"):
        wrong = f"kind is {kind!r}; it can be 'pairs' or 'unpaired'"
    elif limit is not None and (not isinstance(limit, int) or limit < 1):
        wrong = f"limit is {limit!r}; it is a number of rows, at least 1"
    if wrong:
        raise CourseError("dataset-setting", f"{wrong}.", where="load", remedy="correct the setting.")
    return Policy(strict, max_refused, longest, on_damage)


# -------------------- where the files are


def _locate(
    source: str | os.PathLike[str], split: str | None, revision: str | None, cache_dir: Any
) -> tuple[str, Fetched, Source | None]:
    """What to call the data set, its files by split, and its entry in `SOURCES` (or one made for a hub name)."""
    text = os.fspath(source)
    known = SOURCES.get(text.lower()) if isinstance(source, str) else None
    if known is not None:
        return known.name, fetch(known, split, revision, cache_dir), known
    path = Path(text).expanduser()
    if path.is_dir():
        return short(path.resolve()), Fetched("", _folder(path, split)), None
    if path.is_file():
        return short(path), Fetched("", {split or split_name(path.name): (path,)}), None
    if isinstance(source, str) and _HUB_NAME.fullmatch(text) and not data_suffix(text):
        made = Source(text, text, text)
        return text, fetch(made, split, revision, cache_dir), made
    raise CourseError(
        "dataset-not-found",
        f"There is no file or folder {text!r}, and no data set of the course has that name.",
        where="load(source)",
        remedy=f"check the path (the current folder is {Path.cwd().name}), give 'owner/name' for the hub, or one of "
        f"{', '.join(SOURCES)}.",
    )


def _folder(path: Path, split: str | None) -> dict[str, tuple[Path, ...]]:
    groups: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.is_file() and not file.name.startswith(".") and data_suffix(file.name):
            groups.setdefault(split_name(file.name), []).append(file)
    if not groups:
        raise CourseError(
            "dataset-not-found",
            f"The folder holds no file of rows ({', '.join(SUFFIXES)}, these also with .gz).",
            where=str(path),
            remedy="give the folder that holds train.jsonl, test.jsonl and so on.",
        )
    if split is not None and split not in groups:
        raise unknown_split(split, list(groups), str(path))
    return {name: tuple(files) for name, files in groups.items() if split in (None, name)}


# -------------------- reading


def _load(
    called: str,
    split: str,
    files: Fetched,
    known: Source | None,
    policy: Policy,
    kind: Kind | None,
    columns: Mapping[str, str] | None,
    limit: int | None,
) -> PreferenceData:
    tally = Tally()
    kind = kind or (known.kind if known else None)
    found: Kind | None = kind
    rows: list[Row] = []
    origins: list[tuple[str, int]] = []
    mapping = named_columns(columns)
    complete = True
    for path in files.splits[split]:
        name = short(path)
        for number, record, layout in _records(path, found, mapping, policy, tally):
            found = layout.kind
            rows.append(record)
            origins.append((name, number))
            if limit is not None and len(rows) >= limit:
                complete = False
                break
        if not complete:
            break
    _check_share(tally, policy, called)
    if found is None or not rows:
        raise CourseError(
            "dataset-empty",
            f"No row could be used ({tally.read} were read).",
            where=f"{called}, split {split}",
            remedy="check that the file holds data and not only names of columns.",
        )
    account = Account(
        called,
        split,
        tuple(short(path) for path in files.splits[split]),
        tally.kept,
        tally.refused,
        tuple(tally.examples),
        damage=tuple(tally.damage),
        revision=files.commit,
        stated_alpha=known.alpha if known else None,
        complete=complete,
    )
    return PreferenceData(found, tuple(rows), tuple(origins), account)


def _records(
    path: Path, kind: Kind | None, columns: Mapping[str, str] | None, policy: Policy, tally: Tally
) -> Iterator[tuple[int, Row, Layout]]:
    """The good rows of a file; the others go to the tally, or are an error."""
    name = short(path)
    rows = _until_damage(path, policy, tally)
    first = list(islice(rows, LOOKED_AT))
    layout = _layout(first, columns, kind, name)
    for number, raw in chain(first, rows):
        try:
            if isinstance(raw, Refused):
                raise raw
            if layout is None:
                raise Refused("missing field")
            record = to_record(raw, layout, policy.max_characters)
        except Refused as refused:
            refusal = Refusal(name, number, refused.reason, refused.detail)
            if policy.strict:
                raise CourseError(
                    "dataset-row",
                    f"A row was refused: {refused.reason}"
                    + (f" ({refused.detail})." if refused.detail else "."),
                    where=f"{name}, row {number}",
                    remedy="correct the row, or load without strict=True: it is then left out and counted.",
                ) from None
            tally.refuse(refusal)
            continue
        tally.kept += 1
        yield number, record, layout


def _layout(
    first: list[tuple[int, Any]], columns: Mapping[str, str] | None, kind: Kind | None, name: str
) -> Layout | None:
    """The layout that most of the first rows have."""
    rows = [raw for _, raw in first if not isinstance(raw, Refused)]
    found = [layout for layout in (layout_of(raw, columns, kind) for raw in rows) if layout is not None]
    if found:
        return max(found, key=found.count)
    if rows:
        raise unknown_columns(chain.from_iterable(rows[:1]), name)
    return None


def _until_damage(path: Path, policy: Policy, tally: Tally) -> Iterator[tuple[int, Any]]:
    count = 0
    try:
        for row in read_rows(path):
            count += 1
            yield row
    except Damaged as damage:
        what = f"{short(path)}: {damage}; {count:,} rows could be read before that"
        if policy.on_damage == "error":
            raise CourseError(
                "dataset-damaged",
                f"The file is damaged: {damage}. {count:,} rows could be read before that; how many are lost "
                "cannot be told.",
                where=short(path),
                remedy="download or copy the file again and compare its size; to work with the rows before the "
                'damage all the same, say on_damage="keep".',
            ) from None
        tally.damage.append(what)


def _check_share(tally: Tally, policy: Policy, called: str) -> None:
    refused = sum(tally.refused.values())
    if not refused or refused <= policy.max_refused * tally.read:
        return
    table = Report("Reasons:", tuple(refusal_lines(tally.refused, tally.examples)))
    raise CourseError(
        "dataset-rows-refused",
        f"{refused:,} of {tally.read:,} rows were refused, more than max_refused={policy.max_refused:g} allows.\n{table}",
        where=called,
        remedy="look at the rows named above; if the data is right, columns=... may be missing; if the loss is "
        "acceptable, raise max_refused.",
    )


# -------------------- what is dropped on request


def _drop(data: PreferenceData, duplicates: bool, conflicts: bool) -> PreferenceData:
    if not duplicates and not conflicts:
        return data
    findings = data.findings
    steps: Iterable[tuple[bool, tuple[int, ...], str]] = (
        (conflicts, findings.conflicts, "conflict"),
        (duplicates, findings.duplicates, "duplicate"),
    )
    kept = list(range(len(data)))
    origins = dict(enumerate(kept))
    for wanted, positions, remark in steps:
        if wanted:
            gone = set(positions)
            stay = [place for place in range(len(data)) if origins[place] not in gone]
            data = data.take(stay, remark)
            origins = dict(enumerate(origins[place] for place in stay))
    if not len(data):
        raise CourseError(
            "dataset-empty",
            "Every row was a duplicate or contradicted another.",
            where=data.account.source,
            remedy="load without drop_conflicts and look at data.findings.",
        )
    return data
