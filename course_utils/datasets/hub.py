"""Files of a data set on the Hugging Face hub: downloaded once, at one commit, and offline from then on.

Only files of rows are downloaded; nothing of a repository is ever run, and no login is needed for the data sets of
the course. Beside the cache of `huggingface_hub` lies a record of each data set,

    course-revisions/<owner>--<name>@<revision asked for>.json     commit, and size and sha256 of each file

so that "main" means the same commit at every later load, on a machine without network too, and so that a file
that changed on the disk is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from course_utils.datasets.reading import data_suffix
from course_utils.datasets.sources import Source
from course_utils.errors import CourseError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Fetched:
    """The files of the splits on this machine, and the commit they are of."""

    commit: str
    splits: Mapping[str, tuple[Path, ...]]


def split_name(file: str) -> str:
    """The split that a file belongs to: train for data/train-00000-of-00002.parquet and for train.jsonl.gz."""
    name = file.rsplit("/", 1)[-1]
    name = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    return _SHARD.sub("", name[: len(name) - len(data_suffix(name))])


def fetch(
    source: Source,
    split: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Fetched:
    """The files of one split, or of all of them. Asks the hub only for what is not here yet."""
    library = _library(source)
    asked = revision or source.revision or "main"
    hub_cache = None if cache_dir is None else Path(cache_dir) / "hub"
    home = Path(library.constants.HF_HOME) if cache_dir is None else Path(cache_dir)
    record_file = home / "course-revisions" / f"{source.repo.replace('/', '--')}@{_file_name(asked)}.json"
    record = _read_record(record_file, source.repo)
    try:
        if record is None:
            record = _describe(library, source, asked)
        wanted = _by_split(source, list(record["files"]), split)
        paths = {}
        for name in sorted(file for files in wanted.values() for file in files):
            paths[name] = Path(_path_of(library, source, name, record["commit"], hub_cache))
    except CourseError:
        raise
    except Exception as error:
        raise _hub_error(error, source, asked) from error
    changed = False
    for name, path in paths.items():
        facts = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        known = record["files"][name]
        if known and known != facts:
            raise CourseError(
                "dataset-changed",
                f"{name} is not the file that was downloaded: its sha256 is {facts['sha256'][:12]}…, "
                f"recorded is {known['sha256'][:12]}….",
                where=str(path),
                remedy=f"delete that file and {record_file.name}, and load again.",
            )
        changed |= not known
        record["files"][name] = facts
    if changed:
        _write_record(record_file, record)
    splits = {key: tuple(paths[name] for name in files) for key, files in wanted.items()}
    return Fetched(record["commit"], splits)


def _library(source: Source) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ModuleNotFoundError as error:
        raise CourseError(
            "missing-package",
            "Data sets of the hub are downloaded with huggingface_hub, which is not installed.",
            where=source.repo,
            remedy='pip install "course-utils[lab]", or load a file of your own.',
        ) from error
    return huggingface_hub


def _describe(library: Any, source: Source, asked: str) -> dict[str, Any]:
    info = library.HfApi().dataset_info(source.repo, revision=asked)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(asked) and commit != asked):
        raise CourseError(
            "dataset-revision",
            f"The hub answered with the commit {commit or 'none'!r} when {asked!r} was asked for.",
            where=source.repo,
            remedy="give the full commit as revision=..., as the page 'Files and versions' shows it.",
        )
    files = sorted(one.rfilename for one in info.siblings or [] if data_suffix(one.rfilename))
    return {"repo": source.repo, "asked": asked, "commit": commit, "files": dict.fromkeys(files)}


def _by_split(source: Source, names: list[str], split: str | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    if source.files:
        for key, pattern in source.files.items():
            groups[key] = sorted(name for name in names if fnmatchcase(name, pattern))
        groups = {key: files for key, files in groups.items() if files}
    else:
        for name in sorted(names):
            groups.setdefault(split_name(name), []).append(name)
    if not groups:
        raise CourseError(
            "dataset-not-found",
            f"The repository holds no file of rows that is known here ({len(names)} files looked at).",
            where=source.repo,
            remedy="choose a data set with Parquet, JSON lines or CSV files; scripts are never run.",
        )
    if split is None:
        return groups
    if split not in groups:
        raise unknown_split(split, list(groups), source.repo)
    return {split: groups[split]}


def unknown_split(split: str | None, known: list[str], where: str) -> CourseError:
    """The error for a split that does not exist, or was not named where there are several."""
    what = (
        f"There is no split {split!r}" if split is not None else "There are several splits and none was named"
    )
    return CourseError(
        "dataset-split",
        f"{what}; there are {', '.join(sorted(known))}.",
        where=where,
        remedy="name one with split=..., or load all of them with load_splits.",
    )


def _path_of(library: Any, source: Source, name: str, commit: str, cache: Path | None) -> str:
    """The file on this machine; at a full commit the library asks the hub only for what is not in its cache."""
    return library.hf_hub_download(source.repo, name, repo_type="dataset", revision=commit, cache_dir=cache)


def _hub_error(error: Exception, source: Source, asked: str) -> CourseError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if "GatedRepoError" in kinds or "RepositoryNotFoundError" in kinds:
        return CourseError(
            "dataset-gated",
            f"The hub has no such data set for everybody: it does not exist, is private, or asks for a login ({said}).",
            where=source.repo,
            remedy="check the name; for a gated data set accept its terms on its page and run `hf auth login`.",
        )
    if "RevisionNotFoundError" in kinds or "RemoteEntryNotFoundError" in kinds:
        return CourseError(
            "dataset-revision",
            f"The hub does not know the revision {asked!r}, or a file at it ({said}).",
            where=source.repo,
            remedy="give a branch, a tag or a full commit that the page 'Files and versions' shows.",
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    because = "HF_HUB_OFFLINE is set" if offline else "the hub did not answer"
    return CourseError(
        "dataset-offline",
        f"The data set is not in the cache of this machine, and {because} ({said}).",
        where=f"{source.repo}, revision {asked}",
        remedy="connect once, and it is offline from then on"
        + (" (unset HF_HUB_OFFLINE for that)" if offline else "")
        + "; or download the files elsewhere and give load(...) the path of the file or folder; "
        "or set HF_ENDPOINT to a mirror that you trust.",
    )


# -------------------- the record


def _read_record(path: Path, repo: str) -> dict[str, Any] | None:
    """The record, or None where there is none or it is broken: it is then made again."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        good = (
            record["repo"] == repo
            and _COMMIT.fullmatch(record["commit"])
            and isinstance(record["files"], dict)
        )
        return record if good else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_record(path: Path, record: dict[str, Any]) -> None:
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise CourseError(
            "dataset-not-found",
            f"The record of the download cannot be written: {error.strerror or error}.",
            where=str(path),
            remedy="give a folder that you may write to as cache_dir=..., or set HF_HOME.",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_name(revision: str) -> str:
    return re.sub(r"[^\w.-]", "_", revision)
