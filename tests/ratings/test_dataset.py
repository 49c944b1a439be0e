"""Ratings in the store: complete splits, reproducible bytes, atomic and verified versions."""

import io
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsSourceConfig
from pets_core.ratings.dataset import (
    ingest_ratings,
    load_ratings,
    load_ratings_manifest,
    read_verified,
    read_vocabulary,
)
from pets_core.ratings.records import RatingsManifest


def ingest(folder: Path, **source) -> RatingsManifest:
    """Ingest into the store in `folder`."""
    config = RatingsSourceConfig(**source)
    return ingest_ratings(str(folder / "store"), str(folder / "cache"), config)


def write(path: Path, rows, header: str = "user,item,rating,time") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def some_rows(num_users: int = 8, num_items: int = 9) -> list[tuple[int, int, float, int]]:
    draw = random.Random(0)
    return [
        (u, i, draw.randrange(1, 11) / 2, draw.randrange(1000))
        for u in range(num_users)
        for i in range(num_items)
    ]


@pytest.fixture
def table(tmp_path) -> Path:
    return write(tmp_path / "mine/stars.csv", some_rows())


def files(manifest: RatingsManifest) -> dict[str, bytes]:
    return {
        name: storage.read_bytes(storage.join(manifest.url, name))
        for name in storage.list_folder(manifest.url)
    }


IDS = st.lists(
    st.one_of(st.integers(-3, 40).map(str), st.text("abZé09 -", min_size=1).map(str.strip)).filter(
        bool
    ),
    min_size=3, max_size=8, unique=True,
)  # fmt: skip
SOURCES = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["random", "time"]),
        "valid_fraction": st.sampled_from([0.0, 0.2, 0.3]),
        "test_fraction": st.sampled_from([0.1, 0.3]),
        "seed": st.integers(0, 9),
    }
)


@settings(max_examples=60, deadline=None)
@given(users=IDS, items=IDS, source=SOURCES, data=st.data())
def test_every_rating_is_in_one_split_with_its_ids(users, items, source, data):
    """All ratings differ, which identifies the rows."""
    pairs = st.sampled_from([(u, i) for u in users for i in items])
    chosen = data.draw(st.lists(pairs, min_size=6, unique=True))
    rows = [(u, i, n / 2, data.draw(st.integers(0, 5))) for n, (u, i) in enumerate(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        url = str(write(Path(folder) / "t.csv", rows))
        try:
            manifest = ingest(Path(folder), url=url, **source)
        except PetsError as error:
            if not re.search("none of the|at least 2 of each", str(error)):
                raise
            assume(False)
        splits = {split: load_ratings(manifest, split) for split in manifest.splits}
        times = {
            split: read_verified(manifest, info)["time"].to_pylist()
            for split, info in manifest.splits.items()
        }
        vocabulary = read_vocabulary(manifest)
    found = [int(rating * 2) for ratings in splits.values() for rating in ratings.ratings]
    assert sorted(found) == list(range(len(rows)))
    trained = [rows[int(rating * 2)] for rating in splits["train"].ratings]
    known = [{row[side] for row in trained} for side in (0, 1)]
    assert [set(vocabulary.users), set(vocabulary.items)] == [ids | {""} for ids in known]
    for split, ratings in splits.items():
        own = [rows[int(rating * 2)] for rating in ratings.ratings]
        assert [vocabulary.users[n] for n in ratings.users] == [
            row[0] if row[0] in known[0] else "" for row in own
        ]
        assert [vocabulary.items[n] for n in ratings.items] == [
            row[1] if row[1] in known[1] else "" for row in own
        ]
        assert times[split] == [row[3] for row in own]
        info = manifest.splits[split]
        assert (info.num_rows, info.num_cold_users, info.num_cold_items) == (
            len(own),
            len({row[0] for row in own} - known[0]),
            len({row[1] for row in own} - known[1]),
        )


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(some_rows(5, 5)), split=st.sampled_from(["random", "time"]))
def test_row_order_does_not_matter(order, split):
    source = {"split": split, "valid_fraction": 0.2, "test_fraction": 0.2, "name": "x"}
    with tempfile.TemporaryDirectory() as folder:
        one = ingest(
            Path(folder), url=str(write(Path(folder) / "1.csv", some_rows(5, 5))), **source
        )
        written = files(one)
        two = ingest(Path(folder) / "2", url=str(write(Path(folder) / "2.csv", order)), **source)
        assert two.fingerprint == one.fingerprint
        again = files(two)
        del written["manifest.json"], again["manifest.json"]
        assert again == written


def test_ingest_stores_splits_vocabulary_and_manifest(tmp_path, table):
    items = write(tmp_path / "mine/movies.csv", [(3, "Three")], "movieId,title")
    manifest = ingest(tmp_path, url=str(table), items_url=str(items))
    assert manifest.url == str(tmp_path / f"store/ratings/stars/{manifest.fingerprint}")
    assert set(files(manifest)) == {"manifest.json", "users.parquet", "items.parquet"} | {
        f"{split}.parquet" for split in ("train", "valid", "test")
    }
    assert (manifest.num_users, manifest.num_items, manifest.y_range) == (8, 9, (0.5, 5.0))
    assert manifest.source_url == str(table)
    assert load_ratings_manifest(manifest.url) == manifest
    train = load_ratings(manifest, "train")
    assert manifest.mean == pytest.approx(train.ratings.mean())
    assert [a.dtype for a in train] == [np.int32, np.int32, np.float32]
    assert all(array.flags.writeable for array in train)
    order = train.users * 100 + train.items
    assert (np.diff(order) > 0).all()
    vocabulary = read_vocabulary(manifest)
    assert vocabulary.users == ["", *map(str, range(8))]
    assert vocabulary.titles == ["", "0", "1", "2", "Three", *map(str, range(4, 9))]
    assert vocabulary.num_ratings_by_user.tolist() == np.bincount(train.users).tolist()
    assert vocabulary.num_ratings_by_item.tolist() == np.bincount(train.items).tolist()
    stored = pq.ParquetFile(io.BytesIO(files(manifest)["train.parquet"]))
    assert stored.metadata.row_group(0).column(0).compression == "ZSTD"


def test_times_are_optional(tmp_path):
    rows = [row[:3] for row in some_rows()]
    url = str(write(tmp_path / "t.csv", rows, "user,item,rating"))
    manifest = ingest(tmp_path, url=url)
    stored = read_verified(manifest, manifest.splits["test"])
    assert stored["time"].null_count == stored.num_rows > 0


def test_second_ingest_writes_nothing(tmp_path, table, monkeypatch):
    first = ingest(tmp_path, url=str(table))

    def fail(url):
        raise AssertionError(url)

    monkeypatch.setattr(storage, "writing", fail)
    assert ingest(tmp_path, url=str(table)) == first


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"split": "time"}, {"y_range": (0, 6)}, {"time_column": None}]
)
def test_other_settings_create_another_version(tmp_path, table, change):
    first, second = (ingest(tmp_path, url=str(table), **source) for source in ({}, change))
    assert first.fingerprint != second.fingerprint
    assert len(storage.list_folder(str(tmp_path / "store/ratings/stars"))) == 2


class KilledError(BaseException):
    pass


def test_ingest_killed_at_any_write_can_be_repeated(tmp_path, table, monkeypatch):
    """A version does not exist without its manifest, and the next ingest succeeds."""
    expected = ingest(tmp_path / "expected", url=str(table))
    real, events_left = storage.writing, 0

    def event():
        nonlocal events_left
        events_left -= 1
        if events_left == 0:
            raise KilledError

    @contextmanager
    def writing(url, *setting):
        event()
        with real(url, *setting) as file:
            yield file
            event()
        event()

    committed = 0
    for number in range(1, 3 * 6 + 1):
        folder, events_left = tmp_path / str(number), number
        monkeypatch.setattr(storage, "writing", writing)
        with pytest.raises(KilledError):
            ingest(folder, url=str(table))
        monkeypatch.setattr(storage, "writing", real)
        url = str(folder / f"store/ratings/stars/{expected.fingerprint}")
        if storage.exists(f"{url}/manifest.json"):
            committed += 1
        else:
            with pytest.raises(PetsError, match="does not exist"):
                load_ratings_manifest(url)
        again = ingest(folder, url=str(table))
        assert again.splits == expected.splits
        for split in again.splits:
            load_ratings(again, split)
        assert not [path for path in folder.rglob("*") if ".partial-" in path.name]
    assert committed == 1  # killed after the rename of the manifest


@pytest.mark.parametrize("part", ["train", "test", "items"])
def test_damaged_file_is_rejected(tmp_path, table, part):
    manifest = ingest(tmp_path, url=str(table))
    path = Path(manifest.url) / f"{part}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(PetsError, match=rf"{part}\.parquet fails its checksum"):
        read_vocabulary(manifest) if part == "items" else load_ratings(manifest, part)


def test_damaged_manifest_is_rejected(tmp_path, table):
    manifest = ingest(tmp_path, url=str(table))
    storage.write_bytes(f"{manifest.url}/manifest.json", b"{}")
    with pytest.raises(PetsError, match=r"manifest\.json is damaged"):
        load_ratings_manifest(manifest.url)


def test_missing_split_is_an_error(tmp_path, table):
    manifest = ingest(tmp_path, url=str(table), valid_fraction=0)
    assert list(manifest.splits) == ["train", "test"]
    with pytest.raises(PetsError, match=r"no valid split, only train, test: raise ratings\.valid"):
        load_ratings(manifest, "valid")


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        (some_rows(3, 1), {}, "none of the 3 ratings is in split test with"),
        (some_rows(1, 40), {}, r"have 1 user\(s\) and \d+ item\(s\), but need at least 2 of each"),
        (some_rows(40, 1), {}, r"have \d+ user\(s\) and 1 item\(s\), but need at least 2 of each"),
        (some_rows(2, 2), {"test_fraction": 0.001}, "none of the 4 ratings is in .*test with "),
        (some_rows(2, 2), {"split": "time", "valid_fraction": 0.5, "test_fraction": 0.4},
         "ratings is in split train with"),
        (some_rows(9, 9), {"y_range": (1, 4)}, "outside ratings.y_range"),
        ([], {}, "has no rows"),
    ],
)  # fmt: skip
def test_too_few_ratings_are_rejected_before_any_write(tmp_path, rows, source, message):
    url = str(write(tmp_path / "t.csv", rows))
    with pytest.raises(PetsError, match=message):
        ingest(tmp_path, url=url, **source)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ml-100k/u.data", "ml-100k"),
        ("ml-20m.csv", "ml-20m"),
        ("My stars [2024].tsv", "My-stars-2024"),
        ("__.csv", "ratings"),
    ],
)
def test_data_set_is_named_after_its_source(tmp_path, path, name):
    url = str(write(tmp_path / path, some_rows()))
    assert ingest(tmp_path, url=url).name == name
    assert ingest(tmp_path, url=url, name="other").name == "other"


def test_built_in_sample_is_ingested(tmp_path):
    manifest = ingest(tmp_path)
    assert (manifest.name, manifest.num_users, manifest.num_items) == ("sample-ratings", 600, 400)
    assert read_vocabulary(manifest).titles[17] == "Film 017"
    assert ingest(tmp_path).url == manifest.url
    assert ingest(tmp_path, seed=1).url != manifest.url


def test_remote_store_and_source_are_supported(tmp_path):
    root = f"memory://{tmp_path.name}"
    rows = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in some_rows())
    storage.write_bytes(f"{root}/ml/u.data", rows.encode())
    source = RatingsSourceConfig(url=f"{root}/ml/u.data")
    manifest = ingest_ratings(f"{root}/store", str(tmp_path), source)
    assert manifest.url == f"{root}/store/ratings/ml/{manifest.fingerprint}"
    loaded = load_ratings_manifest(manifest.url)
    assert sum(len(load_ratings(loaded, split).users) for split in loaded.splits) == 72


def test_files_in_an_archive_are_read(tmp_path):
    rows = "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in some_rows())
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", rows)
        archive.writestr("ml-100k/u.item", "3|Zoë|01-Jan-1995\n".encode("latin-1"))
    urls = {
        key: f"zip://ml-100k/{name}::{tmp_path}/ml.zip"
        for key, name in {"url": "u.data", "items_url": "u.item"}.items()
    }
    manifest = ingest(tmp_path, **urls)
    assert manifest.name == "ml-100k"
    assert read_vocabulary(manifest).titles[4] == "Zoë"


COUNT_THREADS = """
import sys
from pathlib import Path
from pets_core.ratings.dataset import load_ratings_manifest, load_ratings, read_vocabulary

def threads():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return len([name for name in names if not name.startswith("jemalloc")])

manifest = load_ratings_manifest(sys.argv[1])
before = threads()
load_ratings(manifest, "train")
read_vocabulary(manifest)
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads under /proc")
def test_reading_starts_no_threads(tmp_path, table):
    """An Arrow thread that frees Python objects at interpreter exit aborts the process."""
    manifest = ingest(tmp_path, url=str(table))
    command = [sys.executable, "-c", COUNT_THREADS, manifest.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
