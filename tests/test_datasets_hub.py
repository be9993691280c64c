"""Data sets of the hub: fetched once at one commit, offline from then on. The hub is a fake: its two lowest calls."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from test_datasets import assistant, user, write_lines, write_parquet

from course_utils.datasets import SOURCES, load, load_splits
from course_utils.errors import CourseError

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import errors  # noqa: E402

COMMIT, LATER = "a" * 40, "b" * 40


class Hub:
    """A hub in a folder. It answers the two calls that the package makes, and counts them."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.head, self.online = folder / "remote", COMMIT, True
        self.asked, self.downloaded = [], []
        self.here = set()
        self.raises = None
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda api, *a, **k: self.info(*a, **k))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def info(self, repo, revision=None):
        self.asked.append((repo, revision))
        self.fail()
        files = [
            path.relative_to(self.folder).as_posix()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]
        sha = revision if len(revision) == 40 else self.head
        return SimpleNamespace(sha=sha, siblings=[SimpleNamespace(rfilename=name) for name in files])

    def download(self, repo, name, *, repo_type, revision, cache_dir):
        assert repo_type == "dataset" and len(revision) == 40
        if (name, revision) not in self.here:
            self.fail()
            self.downloaded.append(name)
            self.here.add((name, revision))
        return str(self.folder / name)

    def fail(self):
        if self.raises is not None:
            raise self.raises
        if not self.online:
            raise ConnectionError("[Errno -2] Name or service not known")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Hub(tmp_path, monkeypatch)


def labelled(i, label):
    return {"prompt": [user(f"q{i}")], "completion": [assistant(f"a{i}")], "label": label}


def add_uf_g(hub):
    (hub.folder / "data").mkdir(parents=True)
    rows = [labelled(i, i % 100 < 39) for i in range(200)]
    write_parquet(hub.folder / "data" / "train-00000-of-00001.parquet", rows)
    write_parquet(hub.folder / "data" / "test-00000-of-00001.parquet", [labelled(1000, True)])
    (hub.folder / "README.md").write_text("card")
    (hub.folder / "script.py").write_text("raise SystemExit")


def test_uf_g_is_downloaded_once_at_its_commit_and_is_offline_from_then_on(hub, tmp_path):
    add_uf_g(hub)
    cache = tmp_path / "cache"
    data = load("uf-g", "train", cache_dir=cache)
    pinned = SOURCES["uf-g"].revision
    assert hub.asked == [(SOURCES["uf-g"].repo, pinned)]
    assert hub.downloaded == ["data/train-00000-of-00001.parquet"]
    assert len(data) == 200 and data.alpha == 0.39 and data.account.revision == pinned
    assert "stated for the whole data set: 0.39" in str(data.report())
    hub.online = False
    assert load("uf-g", "train", cache_dir=cache).rows == data.rows
    assert len(hub.asked) == 1 and len(hub.downloaded) == 1


def test_main_stays_the_commit_of_the_first_download(hub, tmp_path):
    (hub.folder / "data").mkdir(parents=True)
    write_lines(hub.folder / "data" / "train.jsonl", [labelled(i, i < 3) for i in range(4)])
    write_lines(hub.folder / "test.jsonl", [labelled(9, True)])
    cache = tmp_path / "cache"
    splits = load_splits("someone/something", cache_dir=cache)
    assert set(splits) == {"train", "test"} and splits["train"].alpha == 0.75
    hub.head = LATER
    assert load("someone/something", "train", cache_dir=cache).account.revision == COMMIT
    record = json.loads(next((cache / "course-revisions").iterdir()).read_text(encoding="utf-8"))
    assert record["commit"] == COMMIT and len(record["files"]["data/train.jsonl"]["sha256"]) == 64
    assert load("someone/something", "train", cache_dir=cache, revision=LATER).account.revision == LATER
    assert len(hub.asked) == 2


def test_a_file_that_changed_on_the_disk_is_noticed(hub, tmp_path):
    hub.folder.mkdir()
    write_lines(hub.folder / "train.jsonl", [labelled(1, True)])
    load("someone/something", cache_dir=tmp_path / "cache")
    write_lines(hub.folder / "train.jsonl", [labelled(1, False)])
    with pytest.raises(CourseError) as caught:
        load("someone/something", cache_dir=tmp_path / "cache")
    assert caught.value.id == "dataset-changed"


def test_a_broken_record_is_made_again(hub, tmp_path):
    hub.folder.mkdir()
    write_lines(hub.folder / "train.jsonl", [labelled(1, True)])
    cache = tmp_path / "cache"
    load("someone/something", cache_dir=cache)
    record = next((cache / "course-revisions").iterdir())
    for broken in ("{", "[]", '{"repo": "someone/something", "commit": "main", "files": {}}'):
        record.write_text(broken)
        assert len(load("someone/something", cache_dir=cache)) == 1
    assert len(hub.asked) == 4


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_the_error_says_what_to_do(offline, hub, tmp_path, monkeypatch):
    hub.online = False
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CourseError) as caught:
        load("kto-mix-14k", "train", cache_dir=tmp_path)
    assert caught.value.id == "dataset-offline"
    assert "path of the file or folder" in caught.value.remedy and "HF_ENDPOINT" in caught.value.remedy
    assert ("HF_HUB_OFFLINE" in str(caught.value)) is offline


def hub_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "the hub said no")
    return error


@pytest.mark.parametrize(
    ("kind", "id"),
    [
        (errors.RepositoryNotFoundError, "dataset-gated"),
        (errors.GatedRepoError, "dataset-gated"),
        (errors.RevisionNotFoundError, "dataset-revision"),
        (errors.LocalEntryNotFoundError, "dataset-offline"),
        (errors.OfflineModeIsEnabled, "dataset-offline"),
        (TimeoutError, "dataset-offline"),
        (OSError, "dataset-offline"),
    ],
)
def test_every_refusal_of_the_hub_is_an_error_of_the_course(kind, id, hub, tmp_path):
    hub.raises = hub_error(kind)
    with pytest.raises(CourseError) as caught:
        load("hh-harmless", "test", cache_dir=tmp_path)
    assert caught.value.id == id


def test_an_unknown_split_and_a_repository_without_rows_are_errors(hub, tmp_path):
    add_uf_g(hub)
    with pytest.raises(CourseError, match="test, train") as caught:
        load("uf-g", "validation", cache_dir=tmp_path)
    assert caught.value.id == "dataset-split"
    with pytest.raises(CourseError) as caught:
        load("tldr", "validation", cache_dir=tmp_path)
    assert caught.value.id in ("dataset-split", "dataset-not-found")


def test_the_sources_are_pinned_where_they_can_be_and_name_their_files():
    for source in SOURCES.values():
        assert source.revision is None or len(source.revision) == 40
        assert source.files and "train" in source.files
        assert 0 < source.alpha < 1
