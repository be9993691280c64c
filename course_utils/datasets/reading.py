"""Files of rows, read in a stream: JSON lines, JSON, CSV and Parquet, plain or in gzip.

What a file is, its first bytes say; its name only decides between kinds of text. Text is UTF-8, strictly: a row with
other bytes is refused, with or without a byte order mark at the start of the file. A row that cannot be read is
refused by itself. A file that breaks off, or whose checksum is wrong, is damaged: that is for the whole reading to
decide, because the rows after the damage are gone and nobody knows how many they were.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from course_utils.datasets.account import Refused, short
from course_utils.datasets.layouts import cell
from course_utils.errors import CourseError

RawRow = tuple[int, Mapping[str, Any] | Refused]  # number of the row (a line of a text file) and its columns

LONGEST_LINE = 1 << 26  # bytes: what is longer is refused without being held in memory
LARGEST_ARRAY = 1 << 29  # bytes of a .json file that is one array: it has to be read whole
PARQUET_ROWS = 256  # rows held at a time
TEXT_KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv"}
SUFFIXES = (*TEXT_KINDS, ".parquet")
_SURROGATE = re.compile("[\udc80-\udcff]")
_BROKEN_STREAM = (EOFError, zlib.error, OSError)


class Damaged(Exception):
    """A file that breaks off or contradicts its checksum; raised after the rows before the damage."""


def data_suffix(name: str) -> str:
    """The ending that says what a file of rows is ("" if it is none): .jsonl for train.jsonl.gz."""
    name = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file in order. Raises `Damaged` where the file breaks off, `CourseError` if it is no file of rows."""
    kind, packed = _what_it_is(path)
    if kind == "parquet":
        yield from _parquet(path)
        return
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            if kind == "json":
                kind = "array" if _first_byte(stream) == b"[" else "lines"
                stream.seek(0)
            yield from {"lines": _lines, "array": _array, "csv": _csv}[kind](stream, path)
    except _BROKEN_STREAM as error:
        what = "ends in the middle of the compressed data" if isinstance(error, EOFError) else _plain(error)
        raise Damaged(what) from error


def _what_it_is(path: Path) -> tuple[str, bool]:
    try:
        with path.open("rb") as file:
            start = file.read(4)
            packed = start[:2] == b"\x1f\x8b"
        head = _head(path, packed)
    except OSError as error:
        raise CourseError(
            "dataset-not-found",
            f"The file cannot be opened: {error.strerror or error}.",
            where=str(path),
            remedy="check the path and that you may read the file.",
        ) from error
    if not start:
        raise CourseError(
            "dataset-empty", "The file is empty.", where=short(path), remedy="download or export it again."
        )
    if head[:4] == b"PAR1":
        if packed:
            raise _format_error(path, "It is a Parquet file inside gzip.", "unpack it first.")
        return "parquet", False
    _refuse_impostors(path, head)
    suffix = data_suffix(path.name)
    if suffix == ".parquet":
        raise _format_error(path, "It is called Parquet but does not begin as one.", "download it again.")
    if not suffix:
        known = ", ".join(SUFFIXES)
        raise _format_error(
            path,
            f"What {path.suffix or 'a file without an ending'} holds is not known.",
            f"give it one of the endings {known}.",
        )
    return TEXT_KINDS[suffix], packed


def _head(path: Path, packed: bool) -> bytes:
    """The first bytes, unpacked; of a file that is damaged at its very start, none."""
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            return file.read(256)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""


def _refuse_impostors(path: Path, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise CourseError(
            "dataset-encoding",
            "The file is written in UTF-16.",
            where=short(path),
            remedy='save it as UTF-8, for instance with Path(new).write_text(Path(old).read_text("utf-16"), "utf-8").',
        )
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise _format_error(
            path, "It is a pointer of Git LFS, not the data.", "fetch the data with `git lfs pull`."
        )
    if text.startswith((b"<!doctype", b"<html")):
        raise _format_error(
            path, "It is a web page, not data.", "download the file itself, not the page that shows it."
        )


def _format_error(path: Path, what: str, remedy: str) -> CourseError:
    return CourseError("dataset-format", what, where=short(path), remedy=remedy)


def _plain(error: Exception) -> str:
    """What a library says, in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".rstrip(".")


def _first_byte(stream: BinaryIO) -> bytes:
    return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


# -------------------- JSON


def _lines(stream: BinaryIO, path: Path) -> Iterator[RawRow]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST_LINE)
            yield number, Refused("too long", f"the line has more than {LONGEST_LINE:,} bytes")
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, _json_line(line)


def _json_line(line: bytes) -> Mapping[str, Any] | Refused:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Refused("not UTF-8", f"byte {error.start + 1} of the line is {line[error.start]:#04x}")
    except json.JSONDecodeError as error:
        return Refused("broken JSON", f"{error.msg.lower()}, character {error.pos + 1}")
    except (ValueError, RecursionError):
        return Refused("broken JSON", "a number with too many digits, or nested too deeply")
    return value if isinstance(value, dict) else Refused("not an object", f"it is a {type(value).__name__}")


def _array(stream: BinaryIO, path: Path) -> Iterator[RawRow]:
    data = stream.read(LARGEST_ARRAY + 1)
    if len(data) > LARGEST_ARRAY:
        raise _format_error(
            path,
            f"It is one JSON array of more than {LARGEST_ARRAY >> 20} MiB, which has to be read whole.",
            "write one object on each line instead (.jsonl).",
        )
    try:
        # Bytes that are not UTF-8 survive as surrogates, so that only the rows that hold them are refused.
        rows = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape"))
    except json.JSONDecodeError as error:
        raise Damaged(f"the JSON array is broken: {error.msg.lower()}, line {error.lineno}") from None
    except (ValueError, RecursionError):
        raise Damaged("the JSON array holds a number with too many digits, or is nested too deeply") from None
    for number, value in enumerate(rows, start=1):
        if isinstance(value, dict):
            yield number, value
        else:
            yield number, Refused("not an object", f"it is a {type(value).__name__}")


# -------------------- CSV


def _csv(stream: BinaryIO, path: Path) -> Iterator[RawRow]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline(LONGEST_LINE)
    separator = max(",;\t", key=lambda one: _bare(first).count(one))
    reader = csv.reader(_csv_lines(first, text), delimiter=separator, strict=True)
    header = _header(reader, path)
    while True:
        number = reader.line_num + 1
        try:
            fields = _next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise Damaged(f"a quotation mark opened in row {number} is never closed") from None
            yield number, Refused("broken CSV", str(error).lower())
            continue
        if fields:
            yield number, _csv_row(fields, header)


def _csv_row(fields: list[str], header: list[str]) -> Mapping[str, Any] | Refused:
    if len(fields) != len(header):
        return Refused("wrong number of fields", f"{len(fields)} and not {len(header)}")
    if any(_SURROGATE.search(text) for text in fields):
        return Refused("not UTF-8")
    return {name: cell(text) for name, text in zip(header, fields, strict=True)}


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = [name.strip() for name in _next(reader)]
    except (StopIteration, csv.Error):
        header = []
    if not header or len(set(header)) < len(header):
        raise CourseError(
            "dataset-columns",
            f"The first line of a CSV file names its columns, each once; here it reads {', '.join(header)[:80]!r}.",
            where=short(path),
            remedy="add a line with the names of the columns.",
        )
    return header


def _next(reader: Any) -> list[str]:
    """One row. Python's limit for a field is one for the whole process, so it is raised for this moment only."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _csv_lines(first: str, text: io.TextIOWrapper) -> Iterator[str]:
    line = first
    while line:
        if len(line) == LONGEST_LINE:
            raise Damaged(f"a line has more than {LONGEST_LINE:,} characters")
        yield line
        line = text.readline(LONGEST_LINE)


def _bare(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


# -------------------- Parquet


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise CourseError(
            "missing-package",
            "Parquet files are read with pyarrow, which is not installed.",
            where=short(path),
            remedy='pip install "course-utils[lab]".',
        ) from error
    number = 0
    # A damaged file makes pyarrow raise whatever it meets (ArrowInvalid, OSError, MemoryError …).
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                rows = _parquet_rows(batch)
                for row in rows:
                    number += 1
                    yield number, row
    except (CourseError, Damaged, GeneratorExit):
        raise
    except Exception as error:
        raise Damaged(_plain(error)) from error


def _parquet_rows(batch: Any) -> list[Mapping[str, Any] | Refused]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_parquet_row(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _parquet_row(one: Any) -> Mapping[str, Any] | Refused:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Refused("not UTF-8", error.reason)
