"""Preference data: every known layout becomes the same records, and what is read is accounted for, row by row."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils import datasets
from course_utils.datasets import PairRow, UnpairedRow, leakage, load, load_splits
from course_utils.errors import CourseError
from course_utils.feedback import Pairs, Unpaired

ROOT = Path(__file__).resolve().parents[1]
HH_FILE = Path(
    os.environ.get("COURSE_HH_FILE") or ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-test.jsonl.gz"
)
needs_hh = pytest.mark.skipif(
    not HH_FILE.is_file(),
    reason="the HH-RLHF file is not here: name it in COURSE_HH_FILE (harmless-base, test.jsonl.gz)",
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows):
    def as_cell(value):
        return json.dumps(value) if isinstance(value, list) else value

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)
    return path


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def comparison(i, **changes):
    return {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", **changes}


def read(tmp_path, rows, **options):
    return load(write_lines(tmp_path / "train.jsonl", rows), **options)


# -------------------- layouts

PAIR = PairRow(prompt=[user("Why?")], chosen="Because.", rejected="No.")
PAIR_LAYOUTS = {
    "messages": {"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]},
    "conversation in both": {
        "chosen": [user("Why?"), assistant("Because.")],
        "rejected": [user("Why?"), assistant("No.")],
    },
    "UltraFeedback-binarized": {
        "prompt": "Why?",
        "prompt_id": "7",
        "chosen": [user("Why?"), assistant("Because.")],
        "rejected": [user("Why?"), assistant("No.")],
        "messages": [user("Why?"), assistant("Because.")],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    },
    "texts answered by messages": {
        "prompt": "Why?",
        "chosen": [assistant("Because.")],
        "rejected": [assistant("No.")],
    },
}


@pytest.mark.parametrize("name", PAIR_LAYOUTS)
def test_every_layout_of_a_comparison_becomes_the_same_record(name, tmp_path):
    data = read(tmp_path, [PAIR_LAYOUTS[name]])
    assert data.rows == (PAIR,) and data.kind == "pairs" and data.is_chat


def test_plain_texts_stay_plain_texts(tmp_path):
    row = {"prompt": "TITLE: x\n\nTL;DR:", "chosen": " a", "rejected": " b "}
    data = read(tmp_path, [row])
    assert data.rows == (PairRow(**row),) and not data.is_chat


UNPAIRED = UnpairedRow(prompt=[user("Why?")], response="Because.", preferred=True)
UNPAIRED_LAYOUTS = {
    "UF-G and kto-mix": {"prompt": [user("Why?")], "completion": [assistant("Because.")], "label": True},
    "course": {"prompt": [user("Why?")], "response": "Because.", "preferred": 1},
    "messages": {"messages": [user("Why?"), assistant("Because.")], "label": "True"},
    "conversation": {"completion": [user("Why?"), assistant("Because.")], "label": 1.0},
}


@pytest.mark.parametrize("name", UNPAIRED_LAYOUTS)
def test_every_layout_of_a_labelled_response_becomes_the_same_record(name, tmp_path):
    data = read(tmp_path, [UNPAIRED_LAYOUTS[name]])
    assert data.rows == (UNPAIRED,) and data.kind == "unpaired" and data.alpha == 1.0


def test_a_long_dialogue_keeps_its_turns_and_a_system_message(tmp_path):
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c: d\n\nAssistant: "
    data = read(tmp_path, [{"chosen": text + "e", "rejected": text + "f"}])
    assert data[0].prompt == [user("a"), assistant("b"), user("c: d")]
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": [system, user("a")], "chosen": "b", "rejected": "c"}]
    assert read(tmp_path, rows)[0].prompt == [system, user("a")]


def test_own_names_of_columns_are_mapped_and_unknown_ones_are_named(tmp_path):
    rows = [{"ask": "q", "yes": "a", "no": "b"}]
    with pytest.raises(CourseError, match="ask, no, yes") as caught:
        read(tmp_path, rows)
    assert caught.value.id == "dataset-columns" and "columns=" in caught.value.remedy
    data = read(tmp_path, rows, columns={"prompt": "ask", "chosen": "yes", "rejected": "no"})
    assert data.rows == (PairRow(prompt="q", chosen="a", rejected="b"),)
    with pytest.raises(CourseError, match="winner"):
        read(tmp_path, rows, columns={"winner": "yes"})


def test_the_kind_can_be_named_where_the_columns_allow_both(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "response": "a", "label": False}
    assert read(tmp_path, [row]).kind == "pairs"
    assert read(tmp_path, [row], kind="unpaired").rows == (
        UnpairedRow(prompt="q", response="a", preferred=False),
    )


REFUSED = {
    "missing field": {"prompt": "q", "chosen": "a"},
    "wrong type": {"prompt": "q", "chosen": 3, "rejected": "b"},
    "identical responses": {"prompt": "q", "chosen": "a  b", "rejected": " a b"},
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "empty response": {"prompt": "q", "chosen": "a", "rejected": "\n"},
    "too long": {"prompt": "q", "chosen": "a" * 101, "rejected": "b"},
    "not UTF-8": {"prompt": "q", "chosen": "\ud800", "rejected": "b"},
    "not an object": ["q", "a", "b"],
    "no assistant turn at the end": {
        "prompt": "q",
        "chosen": [user("q"), assistant("a"), user("thanks")],
        "rejected": [user("q"), assistant("b")],
    },
    "prompts differ": {
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("r"), assistant("b")],
        "prompt": "q",
    },
    "turns do not alternate": {"prompt": [user("q"), assistant("r")], "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_bad_row_is_refused_with_its_reason_and_its_place(reason, tmp_path):
    rows = [comparison(0), comparison(1), REFUSED[reason], comparison(2)]
    data = read(tmp_path, rows, max_refused=0.5, max_characters=100)
    assert data.account.refused == {reason: 1}
    assert data.account.examples[0].row == 3 and data.account.examples[0].file == "train.jsonl"
    assert [origin for origin in data.origins] == [("train.jsonl", row) for row in (1, 2, 4)]
    assert data.account.read == 4 == data.account.kept + 1
    with pytest.raises(CourseError, match=reason) as caught:
        read(tmp_path, rows, strict=True, max_characters=100)
    assert caught.value.id == "dataset-row" and "row 3" in caught.value.where


@pytest.mark.parametrize("text", ["\n\nHuman: a", "a", "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"])
def test_a_dialogue_that_is_none_is_refused(text, tmp_path):
    good = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    bad = {"chosen": text + " x", "rejected": text + " y"}
    data = read(tmp_path, [good, bad], max_refused=0.5)
    assert len(data) == 1 and sum(data.account.refused.values()) == 1


def test_a_label_that_is_no_label_is_refused(tmp_path):
    row = {"prompt": "q", "response": "a", "label": True}
    for label in (2, -1, "good", None, [], 0.5):
        data = read(tmp_path, [row, {**row, "label": label}], max_refused=0.5)
        assert len(data) == 1, label


# -------------------- policy


def test_the_share_of_refused_rows_is_limited_and_the_error_holds_the_table(tmp_path):
    rows = [comparison(i) for i in range(95)] + [comparison(0, chosen="")] * 5
    assert read(tmp_path, rows).account.refused == {"empty response": 5}
    with pytest.raises(
        CourseError, match=r"6 of 101[\s\S]*empty response\s+6[\s\S]*rows 96, 97, 98"
    ) as caught:
        read(tmp_path, [*rows, comparison(0, chosen="")])
    assert caught.value.id == "dataset-rows-refused"


@pytest.mark.parametrize(
    "options",
    [{"max_refused": 2}, {"max_characters": 0}, {"on_damage": "ignore"}, {"kind": "both"}, {"limit": 0}],
)
def test_a_setting_out_of_range_is_refused(options, tmp_path):
    with pytest.raises(CourseError) as caught:
        read(tmp_path, [comparison(0)], **options)
    assert caught.value.id == "dataset-setting"


def test_a_limit_stops_the_reading_and_says_so(tmp_path):
    data = read(tmp_path, [comparison(i) for i in range(10)], limit=3)
    assert len(data) == 3 and not data.account.complete and "stopped at the limit" in str(data.report())


# -------------------- findings, splits, what comes out


def test_duplicates_and_contradictions_are_found_and_dropped_only_on_request(tmp_path):
    rows = [
        comparison(0),
        comparison(1),
        comparison(0, chosen=" good  0"),  # 0 again
        comparison(1, chosen="bad 1", rejected="good 1"),  # the opposite of 1
        comparison(2),
        comparison(2, chosen="better 2", rejected="good 2"),  # good 2 wins once and loses once
    ]
    data = read(tmp_path, rows)
    assert len(data) == 6
    assert data.findings.duplicates == (2,) and data.findings.conflicts == (1, 3)
    assert data.findings.both_ways == 3  # good 1, bad 1 and good 2
    assert len(read(tmp_path, rows, drop_duplicates=True)) == 5
    both = read(tmp_path, rows, drop_duplicates=True, drop_conflicts=True)
    assert [row for _, row in both.origins] == [1, 5, 6]
    assert both.account.dropped == {"conflict": 2, "duplicate": 1} and both.account.read == 6


def test_contradicting_labels_of_one_response_are_found(tmp_path):
    row = {"prompt": "q", "response": "a", "label": True}
    data = read(tmp_path, [row, {**row, "label": False}, {**row, "response": "b"}, row])
    assert data.findings.conflicts == (0, 1, 3) and data.findings.duplicates == (3,)
    assert data.findings.both_ways == 1
    assert data.alpha == 0.75


def test_pairs_and_unpaired_flow_into_the_containers_of_the_course(tmp_path):
    data = read(tmp_path, [comparison(i) for i in range(3)])
    pairs, unpaired = data.pairs(), data.unpaired()
    assert isinstance(pairs, Pairs) and pairs.chosen == ["good 0", "good 1", "good 2"]
    assert isinstance(unpaired, Unpaired) and len(unpaired) == 6
    assert unpaired.preferred.double().mean().item() == data.alpha == 0.5
    rows = [{"prompt": f"q{i}", "completion": "a", "label": i < 39} for i in range(100)]
    labelled = read(tmp_path, rows)
    assert labelled.alpha == 0.39 and "0.3900" in str(labelled.report())
    assert torch.equal(labelled.unpaired().preferred, torch.arange(100) < 39)
    with pytest.raises(CourseError) as caught:
        labelled.pairs()
    assert caught.value.id == "dataset-kind"


def test_a_split_shares_no_prompt_loses_no_row_and_depends_on_the_seed(tmp_path):
    data = read(tmp_path, [comparison(i // 3, chosen=f"good {i}") for i in range(300)])
    first, second = data.split(0.8, seed=1)
    assert leakage(first.rows, second.rows).rows == 0
    assert sorted(first.origins + second.origins, key=lambda one: one[1]) == list(data.origins)
    assert abs(len(first) / 300 - 0.8) < 0.02
    assert first.origins == data.split(0.8, seed=1)[0].origins != data.split(0.8, seed=2)[0].origins
    with pytest.raises(CourseError):
        data.split(1.0, seed=1)


def test_prompts_on_both_sides_of_a_split_are_reported_and_can_be_left_out(tmp_path):
    write_lines(tmp_path / "train.jsonl", [comparison(i) for i in range(10)])
    again = [comparison(0), comparison(1, prompt=" question  1", chosen="new"), comparison(20)]
    chat = comparison(2, prompt=[user("question 2")])
    write_lines(tmp_path / "test.jsonl", [*again, chat])
    splits = load_splits(tmp_path)
    assert list(splits) == ["test", "train"]
    found = leakage(splits["train"].rows, splits["test"].rows)
    assert (found.prompts, found.rows, found.identical_rows, found.of) == (3, 3, 2, 4)
    assert "shared prompts" in str(splits.report()) and "75.0%" in str(found)
    clean = splits.without_leakage()
    assert len(clean["train"]) == 7 and len(clean["test"]) == 4
    assert leakage(clean["train"].rows, clean["test"].rows).rows == 0


def test_a_folder_is_one_file_or_several_shards_for_each_split(tmp_path):
    rows = [comparison(i) for i in range(6)]
    for shard in (0, 1):
        write_lines(tmp_path / f"train-0000{shard}-of-00002.jsonl", rows[3 * shard : 3 * shard + 3])
    write_csv(tmp_path / "validation.csv", rows[:1])
    (tmp_path / "README.md").write_text("not data")
    data = load(tmp_path, "train")
    assert len(data) == 6 and data.origins[3] == ("train-00001-of-00002.jsonl", 1)
    with pytest.raises(CourseError, match="train, validation") as caught:
        load(tmp_path)
    assert caught.value.id == "dataset-split"
    with pytest.raises(CourseError):
        load(tmp_path, "test")


def test_the_report_escapes_what_the_file_is_called(tmp_path):
    data = load(write_lines(tmp_path / "a&b.jsonl", [comparison(0)]))
    assert "a&amp;b.jsonl" in data._repr_html_() and "a&b" not in data._repr_html_()
    assert "rows kept" in str(data.report()) and "alpha 0.500" in repr(data)


# -------------------- round trips

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
prompts = texts.filter(lambda text: not text.lstrip().startswith("[{")) | st.lists(
    texts, min_size=1, max_size=3
).map(lambda turns: [user(turns[0])] + [m for t in turns[1:] for m in (assistant(t), user(t))])
pair_rows = st.fixed_dictionaries({"prompt": prompts, "chosen": texts, "rejected": texts}).filter(
    lambda row: row["chosen"].split() != row["rejected"].split()
)
unpaired_rows = st.fixed_dictionaries({"prompt": prompts, "response": texts, "preferred": st.booleans()})
tables = st.lists(pair_rows, min_size=1, max_size=5) | st.lists(unpaired_rows, min_size=1, max_size=5)


def as_dicts(data):
    return [row.model_dump() for row in data.rows]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=tables)
def test_a_table_reads_back_the_same_from_every_format(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    assert as_dicts(load(write_lines(folder / "t.jsonl", rows))) == rows
    (folder / "t.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8-sig")
    assert as_dicts(load(folder / "t.json")) == rows
    (folder / "u.jsonl.gz").write_bytes(gzip.compress((folder / "t.jsonl").read_bytes()))
    assert as_dicts(load(folder / "u.jsonl.gz")) == rows
    # A cell that reads like messages would be messages; a response of a CSV file is never taken for them here.
    if not any(str(text).lstrip().startswith("[{") for row in rows for text in list(row.values())[1:]):
        assert as_dicts(load(write_csv(folder / "t.csv", rows))) == rows
    if len({type(row["prompt"]) for row in rows}) == 1:  # a column of Parquet has one type
        assert as_dicts(load(write_parquet(folder / "t.parquet", rows))) == rows


# -------------------- the real file


@needs_hh
def test_the_real_file_of_2312_comparisons_is_accounted_for_to_the_last_row():
    start = time.process_time()
    data = load(HH_FILE)
    took = time.process_time() - start
    assert data.account.read == 2312 and len(data) == 2299
    assert data.account.refused == {"prompts differ": 5, "empty response": 4, "turns do not alternate": 4}
    assert data.is_chat and data.alpha == 0.5
    assert took < 2, took
    # Each record against the file, put together again the other way round.
    with gzip.open(HH_FILE, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    names = {"user": "Human", "assistant": "Assistant"}
    for row, (_, number) in zip(data.rows, data.origins, strict=True):
        before = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in row.prompt)
        for side in ("chosen", "rejected"):
            whole = before + f"\n\nAssistant: {getattr(row, side)}"
            assert whole.split() == lines[number - 1][side].replace(":\n", ": \n").split()


@needs_hh
def test_a_split_of_the_real_file_shares_no_prompt():
    data = load(HH_FILE)
    train, test = data.split(0.9, seed=0)
    assert leakage(train.rows, test.rows).rows == 0 and len(train) + len(test) == 2299
    assert "2,297" in str(data.report())  # different prompts


def test_importing_brings_no_heavy_library():
    code = (
        "import sys, course_utils.datasets; "
        "print({'torch', 'numpy', 'datasets', 'pyarrow', 'pandas', 'huggingface_hub', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_every_public_name_exists():
    assert all(hasattr(datasets, name) for name in datasets.__all__)
