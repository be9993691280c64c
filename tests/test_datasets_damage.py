"""Damaged files: each kind of damage is a clear error or a counted skip, never a traceback from a library.

`pytest tests/test_datasets_damage.py -s -k table` prints what a reader sees for each kind.
"""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_datasets import HH_FILE, write_csv, write_lines, write_parquet

from course_utils.datasets import load
from course_utils.errors import CourseError


def sample_lines() -> list[bytes]:
    """The real file's lines where it is here, else dialogues of the same form."""
    if HH_FILE.is_file():
        with gzip.open(HH_FILE, "rb") as file:
            return file.read().splitlines()[:300]
    talk = "\n\nHuman: what is {i}?\n\nAssistant: it is {what} {i}"
    rows = [{side: talk.format(i=i, what=side) for side in ("chosen", "rejected")} for i in range(300)]
    return [json.dumps(row).encode() for row in rows]


LINES = sample_lines()
ROWS = [json.loads(line) for line in LINES]
CLEAN_REFUSALS = 1 if HH_FILE.is_file() else 0  # the real file has one row with an empty response among these


def replaced(*changes: tuple[int, bytes]) -> bytes:
    lines = list(LINES)
    for row, line in changes:
        lines[row] = line
    return b"\n".join(lines) + b"\n"


def changed(row: int, **columns) -> tuple[int, bytes]:
    values = {name: value for name, value in {**ROWS[row], **columns}.items() if value is not ...}
    return row, json.dumps(values).encode()


WHOLE = b"\n".join(LINES) + b"\n"
PACKED = gzip.compress(WHOLE, mtime=0)
MIDDLE = len(PACKED) // 2
FLIPPED = PACKED[:MIDDLE] + bytes([PACKED[MIDDLE] ^ 0xFF]) + PACKED[MIDDLE + 1 :]
LATIN = json.dumps({"chosen": "x\n\nAssistant: Grüße", "rejected": "y"}, ensure_ascii=False).encode("latin-1")
UTF16_TAIL = WHOLE.decode().encode("utf-16")

# name of the damage: (name of the file, its bytes, the error's id or the reason that is counted)
DAMAGE = {
    "gzip cut in the middle": ("a.jsonl.gz", PACKED[:MIDDLE], "dataset-damaged"),
    "gzip without its checksum": ("a.jsonl.gz", PACKED[:-6], "dataset-damaged"),
    "one byte of the gzip flipped": ("a.jsonl.gz", FLIPPED, "dataset-damaged"),
    "gzip with a wrong checksum": ("a.jsonl.gz", PACKED[:-8] + b"\0" * 8, "dataset-damaged"),
    "only the first bytes of a gzip": ("a.jsonl.gz", PACKED[:5], "dataset-damaged"),
    "JSON lines cut in a line": ("a.jsonl", WHOLE[:-30], "broken JSON"),
    "a line of broken JSON": ("a.jsonl", replaced((7, LINES[7][:-1])), "broken JSON"),
    "a line of zero bytes": ("a.jsonl", replaced((7, b"\0" * 50)), "broken JSON"),
    "brackets nested 100,000 deep": ("a.jsonl", replaced((7, b"[" * 100_000)), "broken JSON"),
    "a list instead of an object": ("a.jsonl", replaced((7, b'["a", "b"]')), "not an object"),
    "a missing field": ("a.jsonl", replaced(changed(7, rejected=...)), "missing field"),
    "a field that is null": ("a.jsonl", replaced(changed(7, rejected=None)), "missing field"),
    "a number where text belongs": ("a.jsonl", replaced(changed(7, rejected=3.5)), "wrong type"),
    "identical responses": (
        "a.jsonl",
        replaced(changed(7, rejected=ROWS[7]["chosen"])),
        "identical responses",
    ),
    "different prompts": (
        "a.jsonl",
        replaced(changed(7, rejected="\n\nHuman: else\n\nAssistant: x")),
        "prompts differ",
    ),
    "a response of a million characters": (
        "a.jsonl",
        replaced(changed(7, chosen=ROWS[7]["chosen"] + "x" * 1_000_000)),
        "too long",
    ),
    "a line in Latin-1": ("a.jsonl", replaced((7, LATIN)), "not UTF-8"),
    "half of a surrogate pair": (
        "a.jsonl",
        replaced(changed(7, chosen=ROWS[7]["chosen"] + "\ud83d")),
        "not UTF-8",
    ),
    "the file in UTF-16": ("a.jsonl", UTF16_TAIL, "dataset-encoding"),
    "every third row broken": (
        "a.jsonl",
        replaced(*[(row, b"{") for row in range(0, len(LINES), 3)]),
        "dataset-rows-refused",
    ),
    "an empty file": ("a.jsonl", b"", "dataset-empty"),
    "blank lines only": ("a.jsonl", b"\n\n\n", "dataset-empty"),
    "nothing in the gzip": ("a.jsonl.gz", gzip.compress(b""), "dataset-empty"),
    "other columns": ("a.jsonl", b'{"text": "hello"}\n' * 5, "dataset-columns"),
    "a JSON array cut short": ("a.json", b"[" + b",".join(LINES)[:-5], "dataset-damaged"),
    "a web page": ("a.jsonl", b"<!DOCTYPE html><html>404</html>", "dataset-format"),
    "a pointer of Git LFS": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid",
        "dataset-format",
    ),
    "no Parquet in a .parquet": ("a.parquet", WHOLE, "dataset-format"),
    "a Parquet file cut short": ("a.parquet", b"PAR1" + b"\x15\x04" * 500, "dataset-damaged"),
    "an unknown ending": ("a.docx", WHOLE, "dataset-format"),
    "CSV: a quotation mark never closed": (
        "a.csv",
        b"prompt,chosen,rejected\nq,a,b\nq," + b'"a,b\nq,a,b\n',
        "dataset-damaged",
    ),
    "CSV: a row with a field too many": (
        "a.csv",
        b"prompt,chosen,rejected\n" + b"q,a,b\n" * 30 + b"q,a,b,c\n",
        "wrong number of fields",
    ),
    "CSV: a row in Latin-1": (
        "a.csv",
        b"prompt,chosen,rejected\n" + b"q,a,b\n" * 30 + "q,ü,b\n".encode("latin-1"),
        "not UTF-8",
    ),
    "CSV: no line of names": ("a.csv", b"q,a,a\nq,a,b\n", "dataset-columns"),
}


def what_a_reader_sees(path, **options):
    """The id of the error and its text, or the counted reasons and their line in the report."""
    try:
        data = load(path, **options)
    except CourseError as error:
        return error.id, " ".join(str(error).split("\n")[0].split())
    lines = data.report().lines
    return next(
        (what.removeprefix("refused: "), f"{number} refused of {data.account.read}: {where}")
        for what, number, where in lines
        if what.startswith("refused")
        and data.account.refused[what.removeprefix("refused: ")] > (CLEAN_REFUSALS if "empty" in what else 0)
    )


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_a_clear_error_or_a_counted_skip(name, tmp_path):
    file, content, expected = DAMAGE[name]
    (tmp_path / file).write_bytes(content)
    found, text = what_a_reader_sees(tmp_path / file)
    assert found == expected, text
    if not found.startswith("dataset"):
        data = load(tmp_path / file)
        assert data.account.refused[found] == 1 and data.account.examples
        with pytest.raises(CourseError):
            load(tmp_path / file, max_refused=0.0)


def test_the_table_of_damage(tmp_path):
    lines = ["| damage | what the reader sees |", "|---|---|"]
    for name, (file, content, _) in DAMAGE.items():
        (tmp_path / file).write_bytes(content)
        found, text = what_a_reader_sees(tmp_path / file)
        lines.append(f"| {name} | `{found}`: {text} |")
    print("\n".join(lines))
    assert len(lines) == len(DAMAGE) + 2 and "Traceback" not in "\n".join(lines)


def test_rows_before_the_damage_are_kept_only_on_request_and_it_is_written_down(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(PACKED[:MIDDLE])
    with pytest.raises(CourseError, match="rows could be read") as caught:
        load(path)
    assert 'on_damage="keep"' in caught.value.remedy
    data = load(path, on_damage="keep")
    assert 0 < len(data) < len(LINES)
    assert f"{data.account.read:,} rows could be read" in data.account.damage[0]
    assert f"{data.account.read:,} rows could be read" in str(caught.value)
    # The rows that are there are the first ones of the file, each whole.
    clean = tmp_path / "clean.jsonl"
    clean.write_bytes(b"\n".join(LINES[: data.account.read]))
    assert load(clean).rows == data.rows


def test_a_byte_order_mark_and_windows_line_ends_are_no_damage(tmp_path):
    plain, marked = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    plain.write_bytes(WHOLE)
    marked.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\r\n"))
    assert load(plain).rows == load(marked).rows


def test_gzip_is_recognised_without_its_ending(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(PACKED)
    (tmp_path / "b.jsonl.gz").write_bytes(WHOLE)
    assert load(tmp_path / "a.jsonl").rows == load(tmp_path / "b.jsonl.gz").rows


def test_bytes_that_are_no_text_in_a_parquet_column_refuse_their_row_alone(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    names = ("prompt", "chosen", "rejected")
    rows = {name: [f"{name} {i}".encode() for i in range(40)] for name in names}
    rows["chosen"][17] = b"\xff\xfe"
    arrays = [pyarrow.array(rows[name], pyarrow.binary()).view(pyarrow.string()) for name in names]
    parquet.write_table(pyarrow.table(arrays, names=list(names)), tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert data.account.refused == {"not UTF-8": 1} and data.account.examples[0].row == 18 and len(data) == 39


def test_a_path_that_is_not_there_and_a_folder_without_data_say_so(tmp_path):
    for source in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(CourseError) as caught:
            load(source)
        assert caught.value.id == "dataset-not-found"


def test_an_error_never_repeats_what_a_row_says(tmp_path):
    secret = "unspeakable"
    rows = [{"prompt": secret, "chosen": secret, "rejected": secret}] * 3
    with pytest.raises(CourseError) as caught:
        load(write_lines(tmp_path / "a.jsonl", rows))
    assert secret not in str(caught.value)


# -------------------- any bytes

# Time is no part of these properties: other programs may use the cores.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = [{"prompt": f"question {i} ü", "chosen": f"good {i}\n", "rejected": f"bad {i}"} for i in range(40)]


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    files = [write_lines(folder / "a.jsonl", GOOD), write_csv(folder / "a.csv", GOOD)]
    (folder / "a.json").write_text(json.dumps(GOOD), encoding="utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(files[0].read_bytes()))
    files += [folder / "a.json", folder / "a.jsonl.gz", write_parquet(folder / "a.parquet", GOOD)]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz", "a.parquet"])
def test_random_damage_is_never_anything_but_a_course_error(name, good_files, tmp_path):
    target = tmp_path / name
    good = good_files[name]
    place = st.integers(0, len(good) - 1)
    change = st.tuples(place, st.binary(max_size=4), st.integers(0, 4))

    @settings(PATIENT, max_examples=60)
    @given(
        changes=st.lists(change, max_size=6),
        cut=st.none() | place,
        keep=st.booleans(),
        strict=st.booleans(),
    )
    def check(changes, cut, keep, strict):
        content = good
        for start, new, skipped in changes:
            content = content[:start] + new + content[start + skipped :]
        target.write_bytes(content[:cut])
        try:
            data = load(target, on_damage="keep" if keep else "error", strict=strict, max_refused=0.5)
        except CourseError as error:
            assert error.remedy and error.what
        else:
            assert data.account.read == len(data) + sum(data.account.refused.values())
            data.report()
            data.pairs()

    check()


@settings(PATIENT, max_examples=80)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["a.jsonl", "a.csv", "a.json", "a.jsonl.gz", "a.parquet"]),
)
def test_random_bytes_are_never_anything_but_a_course_error(content, name, tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / name
    path.write_bytes(content)
    try:
        load(path)
    except CourseError as error:
        assert error.remedy


leaves = st.sampled_from([None, True, 0, -1, 10**30, 0.5, float("nan"), "", "text", "\n\nHuman: a", "\ud800"])
names = st.sampled_from(["role", "content", "x"])
messages = st.fixed_dictionaries(
    {"role": leaves | st.sampled_from(["user", "assistant", "system"]), "content": leaves}
)
json_values = (
    leaves | messages | st.lists(messages | leaves, max_size=3) | st.dictionaries(names, leaves, max_size=2)
)


@settings(PATIENT, max_examples=120)
@given(
    row=st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "response", "label", "messages"]), json_values
    )
)
def test_a_row_of_any_values_is_a_record_or_refused(row, tmp_path_factory):
    path = tmp_path_factory.mktemp("values") / "a.jsonl"
    write_lines(path, [*GOOD[:1], row])
    assert load(path, max_refused=1.0).account.read == 2
