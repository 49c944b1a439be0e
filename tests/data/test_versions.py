"""Versions: reproducible bytes, incremental ingest, diff, verify and garbage collection."""

import io
import json
import os
import random
import shutil
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import commit_manifest, load_manifest, read_shard
from pets_core.data.ingest import shards as shards_module
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.versions import (
    diff,
    find_version,
    list_versions,
    newest_version,
    verify,
)
from pets_core.errors import PetsError
from pets_core.maintenance.retention import collect_garbage

OLD = 3 * 24 * 3600  # seconds: longer than the grace period of one day


def config(store, url, ingest=None, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(store),
            "cache_dir": str(Path(str(url)).parent / "cache"),
            "source": {"url": str(url), "valid_fraction": 0.2, "test_fraction": 0.2, **source},
            "ingest": {"shard_mib": 1, "row_group_rows": 8, "num_workers": 2, **(ingest or {})},
        }
    )


@pytest.fixture(scope="module")
def add(jpeg):
    """Write noise photos of about 75 kB, named by number, to a source."""
    cache = {}

    def write(root, numbers, version=0) -> list[str]:
        paths = []
        for number in numbers:
            path = root / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            key = number, version
            cache[key] = cache.get(key) or jpeg(number + 10_000 * version, 300, 300)
            path.write_bytes(cache[key])
            paths.append(f"{path.parent.name}/{path.name}")
        return paths

    return write


@pytest.fixture
def photos(tmp_path, add) -> Path:
    add(tmp_path / "photos", range(60))
    return tmp_path / "photos"


@pytest.fixture
def inspected(monkeypatch) -> list[str]:
    """SHA-256 of each decoded photo."""
    seen, inspect = [], shards_module.inspect

    def spy(data):
        seen.append(sha256(data).hexdigest())
        return inspect(data)

    monkeypatch.setattr(shards_module, "inspect", spy)
    return seen


def hashes(root, paths) -> list[str]:
    return sorted(sha256((root / path).read_bytes()).hexdigest() for path in paths)


def shards(manifest) -> dict[str, str]:
    """SHA-256 of each shard file by name; comparing bytes would make failures slow to print."""
    return {
        shard.path: sha256(Path(manifest.shard_url(shard)).read_bytes()).hexdigest()
        for info in manifest.splits.values()
        for shard in info.shards
    }


def splits(manifest) -> dict[str, str]:
    table = pq.read_table(f"{manifest.url}/photos.parquet", columns=["id", "split"])
    return dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))


def files(store, *without) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each file; both change on a rewrite."""
    found = {p.relative_to(store): p.stat() for p in Path(store).rglob("*") if p.is_file()}
    return {
        str(path): (stat.st_ino, stat.st_mtime_ns)
        for path, stat in found.items()
        if not set(without) & set(path.parts)
    }


def same_content(one, other) -> bool:
    indices = [
        pq.read_table(f"{m.url}/photos.parquet").drop_columns(["version_tag"]) for m in (one, other)
    ]
    return (
        one.fingerprint == other.fingerprint
        and shards(one) == shards(other)
        and indices[0].equals(indices[1])
        and all(
            Path(one.url, name).read_bytes() == Path(other.url, name).read_bytes()
            for name in ("quarantine.parquet", "duplicates.parquet")
        )
    )


# --- reproducible bytes ---------------------------------------------------------------------------


def test_unchanged_source_gives_the_same_version(tmp_path, photos, inspected):
    store = tmp_path / "store"
    first = ingest(config(store, photos))
    assert len(shards(first)) > 4
    assert len(inspected) == 60
    before = files(store, "plans")
    assert ingest(config(store, photos)) == first
    assert files(store, "plans") == before
    assert len(inspected) == 60
    assert [m.fingerprint for m in list_versions(str(store))] == [first.fingerprint]


@pytest.mark.parametrize("num_workers", [1, 5])
def test_number_of_workers_does_not_change_the_version(tmp_path, photos, num_workers):
    first = ingest(config(tmp_path / "one", photos))
    other = ingest(config(tmp_path / "other", photos, {"num_workers": num_workers}))
    assert same_content(first, other)


def test_shard_order_does_not_change_the_version(tmp_path, photos):
    first = ingest(config(tmp_path / "one", photos))
    other = config(tmp_path / "other", photos)
    for shard in reversed(plan_dataset(other).shards):
        shards_module.write_shard(other, plan_dataset(other), shard)
    assert same_content(first, ingest(other))


def test_photo_order_does_not_change_the_version(tmp_path, photos, add):
    add(tmp_path / "elsewhere/photos", reversed(range(60)))
    first = ingest(config(tmp_path / "one", photos))
    assert same_content(first, ingest(config(tmp_path / "other", tmp_path / "elsewhere/photos")))


def test_modification_times_do_not_change_the_version(tmp_path, photos):
    store = tmp_path / "store"
    first = ingest(config(store, photos))
    before = files(store, "plans", "journal")
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    assert ingest(config(store, photos)) == first
    assert files(store, "plans", "journal") == before


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({"row_group_rows": 5}, {}),
        ({"shard_mib": 2}, {}),
        ({}, {"seed": 3}),
        ({}, {"valid_fraction": 0.3}),
        ({}, {"name": "other"}),
    ],
)
def test_settings_that_affect_shards_change_the_fingerprint(tmp_path, photos, settings, source):
    first = ingest(config(tmp_path / "store", photos))
    other = ingest(config(tmp_path / "store", photos, settings, **source))
    assert other.fingerprint != first.fingerprint


# --- incremental ingest ---------------------------------------------------------------------------


def test_added_photos_are_read_and_existing_shards_kept(tmp_path, photos, add, inspected):
    store = tmp_path / "store"
    add(photos, range(200, 320))
    first = ingest(config(store, photos))
    before = files(store)
    inspected.clear()
    new = add(photos, [100, 101])
    second = ingest(config(store, photos))
    assert second.fingerprint != first.fingerprint
    assert second.parent == first.fingerprint
    assert first.parent is None
    assert sorted(inspected) == hashes(photos, new)
    assert files(store).items() >= before.items()
    # Each new photo changes one shard, which may be split in two.
    assert len(shards(first)) > 10
    assert len(shards(first).keys() - shards(second).keys()) <= 2
    assert len(shards(second).keys() - shards(first).keys()) <= 4
    assert splits(second).items() > splits(first).items()
    assert diff(first, second) == {
        "added": new, "removed": [], "changed": [], "relabelled": [], "moved": [],
    }  # fmt: skip
    assert load_manifest(first.url) == first


def change(rng, photos, add, numbers, version) -> set[int]:
    """Add, remove and change some photos; return the numbers of the current photos."""
    new = {rng.randrange(1000, 2000) for _ in range(rng.randrange(8))}
    removed = set(rng.sample(sorted(numbers), rng.randrange(4)))
    for number in removed:
        (photos / "ab"[number % 2] / f"{number}.jpg").unlink()
    changed = rng.sample(sorted(numbers - removed), rng.randrange(3))
    add(photos, new)
    add(photos, changed, version)
    return numbers - removed | new


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_incremental_and_full_ingest_give_the_same_bytes(tmp_path, add, seed, duplicates, jpeg):
    rng, photos, numbers = random.Random(seed), tmp_path / "photos", set(range(40))
    add(photos, numbers)
    for number in range(6):  # duplicates, some of them in different splits
        (photos / "a" / f"like{number}.jpg").write_bytes(jpeg(5000, 300, 300))
    settings = {"duplicates": duplicates}
    grown = ingest(config(tmp_path / "grown", photos, settings))
    for step in range(1, 4):
        before = splits(grown)
        numbers = change(rng, photos, add, numbers, step)
        grown = ingest(config(tmp_path / "grown", photos, settings))
        fresh = ingest(config(tmp_path / f"fresh{step}", photos, settings))
        assert same_content(grown, fresh)
        after = splits(grown)
        assert all(after[photo] == before[photo] for photo in after.keys() & before.keys())
        assert len(after) + grown.num_quarantined == len(numbers) + 6
    assert (grown.num_quarantined > 0) == (duplicates == "drop")


def test_diff_reports_removed_and_changed_photos(tmp_path, photos, add, inspected):
    store = tmp_path / "store"
    first = ingest(config(store, photos))
    inspected.clear()
    (photos / "b/7.jpg").unlink()
    changed = add(photos, [4, 5], version=1)
    second = ingest(config(store, photos))
    assert sorted(inspected) == hashes(photos, changed)
    assert diff(first, second) == {
        "added": [], "removed": ["b/7.jpg"], "changed": changed, "relabelled": [], "moved": [],
    }  # fmt: skip
    back = diff(second, first)
    assert list(back) == ["added", "removed", "changed", "relabelled", "moved"]
    assert (back["added"], back["removed"], back["changed"]) == (["b/7.jpg"], [], changed)


def test_removed_photo_causes_no_reads(tmp_path, photos, inspected):
    ingest(config(tmp_path / "store", photos))
    inspected.clear()
    (photos / "b/7.jpg").unlink()
    assert ingest(config(tmp_path / "store", photos)).num_rows == 59
    assert inspected == []


def test_reverted_source_gives_its_earlier_version(tmp_path, photos, add, inspected):
    first = ingest(config(tmp_path / "store", photos))
    (new,) = add(photos, [100])
    second = ingest(config(tmp_path / "store", photos))
    inspected.clear()
    (photos / new).unlink()
    third = ingest(config(tmp_path / "store", photos))
    assert (third.fingerprint, third.parent) == (first.fingerprint, second.fingerprint)
    assert list_versions(str(tmp_path / "store")) == [second, third]
    assert inspected == []


def test_diff_reports_moved_and_relabelled_photos(tmp_path, add):
    folder = tmp_path / "pets"
    paths = add(folder, range(40))

    def write(odd_label, seed):
        lines = [f"{p},{odd_label if p == paths[3] else p[0]}" for p in paths]
        (folder / "pets.csv").write_text("\n".join(["image,label", *lines]))
        return ingest(config(tmp_path / "store", folder / "pets.csv", seed=seed))

    first, second, third = write("b", 0), write("a", 0), write("a", 1)
    assert diff(first, second) == {
        "added": [], "removed": [], "changed": [], "relabelled": [paths[3]], "moved": [],
    }  # fmt: skip
    before, after = splits(second), splits(third)
    moved = sorted(path for path in paths if before[path] != after[path])
    assert diff(second, third) == {
        "added": [], "removed": [], "changed": [], "relabelled": [], "moved": moved,
    }  # fmt: skip
    assert moved


# --- verify ---------------------------------------------------------------------------------------


def shard_errors(manifest) -> dict[str, str]:
    return {shard.path: error for shard, error in verify(manifest) if error}


def test_intact_version_has_no_errors(tmp_path, photos):
    manifest = ingest(config(tmp_path / "store", photos))
    assert shard_errors(manifest) == {}
    assert [shard.path for shard, _ in verify(manifest)] == list(shards(manifest))


def test_damaged_and_missing_shards_are_found(tmp_path, photos):
    manifest = ingest(config(tmp_path / "store", photos))
    flipped, cut, missing, *_ = paths = [
        Path(tmp_path / "store/datasets/photos/shards" / name) for name in shards(manifest)
    ]
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    missing.unlink()
    found = shard_errors(manifest)
    assert list(found) == [path.name for path in paths[:3]]
    assert "SHA-256 differs from the manifest's" in found[flipped.name]
    assert "SHA-256 differs from the manifest's" in found[cut.name]
    assert "does not exist" in found[missing.name]
    for shard in (s for info in manifest.splits.values() for s in info.shards):
        if shard.path not in found:
            assert len(read_shard(manifest, shard)) == shard.num_bytes
            continue
        with pytest.raises(PetsError) as caught:
            read_shard(manifest, shard)
        assert str(caught.value) == found[shard.path], "read_shard and verify give the same message"


@pytest.mark.parametrize("damage", ["other photo", "row fewer", "row more", "no parquet"])
def test_shard_with_wrong_photos_and_matching_hash_is_found(tmp_path, photos, damage):
    """The file matches the hash in the manifest, but its photos are wrong."""
    manifest = ingest(config(tmp_path / "store", photos))
    train = manifest.splits["train"]
    shard = train.shards[0]
    path = Path(manifest.shard_url(shard))
    table = pq.read_table(path)
    rows = table.to_pylist()
    if damage == "other photo":
        rows[1]["image"]["bytes"] = rows[0]["image"]["bytes"]
    elif damage == "row fewer":
        rows.pop()
    elif damage == "row more":
        rows.append({**rows[0], "sha256": "of another photo"})
    buffer = io.BytesIO()
    pq.write_table(table.from_pylist(rows, table.schema), buffer)
    data = b"not a Parquet file" if damage == "no parquet" else buffer.getvalue()
    path.write_bytes(data)
    damaged_shard = shard.model_copy(update={"sha256": sha256(data).hexdigest()})
    damaged_train = train.model_copy(update={"shards": (damaged_shard, *train.shards[1:])})
    damaged = manifest.model_copy(update={"splits": {**manifest.splits, "train": damaged_train}})
    (found,) = shard_errors(damaged).values()
    if damage != "no parquet":
        good = len(table) - (damage != "row more")
        assert f"{good} of {len(table)} photos match their SHA-256" in found


# --- find and list --------------------------------------------------------------------------------


def test_versions_are_found_by_name_and_fingerprint_prefix(tmp_path, photos, add):
    store = str(tmp_path / "store")
    first = ingest(config(store, photos))
    add(photos, [100])
    second = ingest(config(store, photos))
    other = ingest(config(store, photos, name="other"))
    assert find_version(store, "photos") == second
    assert find_version(store, "other") == other
    for manifest in (first, second, other):
        assert find_version(store, manifest.fingerprint) == manifest
        assert find_version(store, manifest.fingerprint[:12]) == manifest
    assert [m.fingerprint for m in list_versions(store)] == [
        m.fingerprint for m in (first, second, other)
    ]
    assert list_versions(store, "other") == [other]
    assert newest_version(f"{store}/datasets/photos") == second


def test_unknown_version_raises_an_error_with_a_suggestion(tmp_path, photos):
    store = str(tmp_path / "store")
    with pytest.raises(PetsError, match="photos: no such data set or version in"):
        find_version(store, "photos")
    assert list_versions(store) == []
    manifest = ingest(config(store, photos))
    with pytest.raises(PetsError, match=r"fotos: no such data set or version in .*photos"):
        find_version(store, "fotos")
    with pytest.raises(PetsError, match="no such data set"):
        find_version(store, "")
    (Path(manifest.url) / "manifest.json").unlink()
    with pytest.raises(PetsError, match="no such data set"):
        find_version(store, manifest.fingerprint)


def test_ambiguous_fingerprint_prefix_lists_the_matches(tmp_path, photos):
    store = str(tmp_path / "store")
    manifest = ingest(config(store, photos))
    fingerprints = [f"ab{end * 18}" for end in "01"]
    for fingerprint in fingerprints:
        url = storage.join(store, "datasets/photos", fingerprint)
        commit_manifest(manifest.model_copy(update={"fingerprint": fingerprint, "url": url}))
    with pytest.raises(PetsError, match="ab is ambiguous") as error:
        find_version(store, "ab")
    assert all(fingerprint in str(error.value) for fingerprint in fingerprints)


def test_moved_store_is_readable(tmp_path, photos):
    manifest = ingest(config(tmp_path / "store", photos))
    (tmp_path / "store").rename(tmp_path / "moved")
    (found,) = list_versions(str(tmp_path / "moved"))
    assert found.fingerprint == manifest.fingerprint
    assert shard_errors(found) == {}


# --- garbage collection ---------------------------------------------------------------------------


def age(store, *under) -> None:
    """Set the modification time of files to three days ago."""
    for path in Path(store).rglob("*"):
        if path.is_file() and (not under or set(under) & set(path.parts)):
            os.utime(path, (time.time() - OLD, time.time() - OLD))


@pytest.fixture
def grown(tmp_path, photos, add):
    """An old store with two versions and the files of a killed ingest."""
    store = tmp_path / "store"
    first = ingest(config(store, photos))
    add(photos, [100, 101])
    second = ingest(config(store, photos))
    root = store / "datasets/photos"
    (root / "shards/train-0-dead.parquet").write_bytes(b"dead")
    (root / f"shards/.{next(iter(shards(second)))}.partial-1234abcd").write_bytes(b"half")
    (root / "contracts/.00002.json.partial-1234abcd").write_bytes(b"half")
    (root / "0123456789abcdef0123").mkdir()
    (root / "0123456789abcdef0123/photos.parquet").write_bytes(b"no manifest")
    age(store)
    return store, first, second


def names(garbage) -> set[str]:
    return {Path(item.url).name for item in garbage}


def kinds(store, garbage) -> set[str]:
    root = Path(store) / "datasets/photos"
    return {Path(item.url).relative_to(root).parts[0] for item in garbage}


def test_dry_run_lists_garbage_and_deletes_nothing(grown):
    store, first, second = grown
    before = files(store)
    found = collect_garbage(str(store))
    assert files(store) == before
    assert kinds(store, found) == {"shards", "0123456789abcdef0123", "plans", "contracts"}
    assert {n for n in names(found) if "dead" in n or "partial" in n} == {
        "train-0-dead.parquet",
        f".{next(iter(shards(second)))}.partial-1234abcd",
        ".00002.json.partial-1234abcd",
    }  # fmt: skip
    assert not names(found) & {*shards(first), *shards(second)}
    assert {i.num_bytes for i in found if i.url.endswith("dead.parquet")} == {4}


def test_garbage_is_deleted_and_files_in_use_are_kept(grown, photos, inspected):
    store, first, second = grown
    before = files(store)
    removed = collect_garbage(str(store), delete=True)
    assert before.keys() - files(store).keys() == {
        str(Path(item.url).relative_to(store)) for item in removed
    }
    assert collect_garbage(str(store), delete=True) == []
    assert shard_errors(first) == shard_errors(second) == {}
    # The journal is kept, so nothing is written or read again.
    kept = files(store, "plans")
    inspected.clear()
    assert ingest(config(store, photos)) == second
    assert files(store, "plans") == kept
    assert inspected == []


def test_recent_garbage_is_kept(grown):
    store, _, _ = grown
    for path in store.rglob("*dead*"):
        os.utime(path)
    found = collect_garbage(str(store), keep=1, delete=True)
    assert found
    assert "train-0-dead.parquet" not in names(found)
    assert "train-0-dead.parquet" in names(collect_garbage(str(store), grace_seconds=-1.0))
    assert collect_garbage(str(store), grace_seconds=2 * OLD) == []


def test_keeping_one_version_removes_the_files_of_the_others(grown, photos, inspected):
    store, first, second = grown
    only_first = shards(first).keys() - shards(second).keys()
    kept = shards(second)
    removed = collect_garbage(str(store), keep=1, delete=True)
    assert only_first
    assert only_first <= names(removed)
    assert list_versions(str(store)) == [second]
    assert (shard_errors(second), shards(second)) == ({}, kept)
    assert not Path(first.url, "photos.parquet").exists()
    inspected.clear()
    assert ingest(config(store, photos)) == second
    assert inspected == []
    # The removed version can be created again.
    for number in (100, 101):
        (photos / "ab"[number % 2] / f"{number}.jpg").unlink()
    again = ingest(config(store, photos))
    assert (again.fingerprint, again.parent) == (first.fingerprint, second.fingerprint)
    assert shard_errors(again) == {}


def test_version_in_use_by_a_run_is_kept(grown):
    store, first, second = grown
    collect_garbage(str(store), keep=1, delete=True, in_use={first.fingerprint})
    assert list_versions(str(store)) == [first, second]
    assert shard_errors(first) == {}


@pytest.mark.parametrize("keep", [2, 5])
def test_keeping_more_versions_than_exist_keeps_all(grown, keep):
    store, first, second = grown
    collect_garbage(str(store), keep=keep, delete=True)
    assert list_versions(str(store)) == [first, second]
    assert shard_errors(first) == shard_errors(second) == {}


def test_keep_applies_to_each_data_set(tmp_path, grown, photos):
    store, _, second = grown
    other = ingest(config(store, photos, name="other"))
    age(store)
    collect_garbage(str(store), keep=1, delete=True)
    assert list_versions(str(store)) == [second, other]
    assert shard_errors(second) == shard_errors(other) == {}


def test_recent_version_keeps_its_old_shards(grown):
    store, first, second = grown
    for path in Path(first.url).iterdir():
        os.utime(path)
    collect_garbage(str(store), keep=1, delete=True)
    assert list_versions(str(store)) == [first, second]
    assert shard_errors(first) == {}


def test_recent_journal_record_keeps_its_old_shard(grown, photos):
    """A running ingest may reuse shards that it found in the store."""
    store, first, _ = grown
    for path in (store / "datasets/photos/journal").iterdir():
        os.utime(path)
    assert not names(collect_garbage(str(store), keep=1, delete=True)) & shards(first).keys()
    for number in (100, 101):
        (photos / "ab"[number % 2] / f"{number}.jpg").unlink()
    assert shard_errors(ingest(config(store, photos))) == {}


def test_killed_garbage_collection_leaves_no_partial_version(grown, monkeypatch):
    store, _, second = grown
    fs, _ = storage.filesystem(str(store))
    removed = []

    def rm(path, real, recursive):
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        real(path, recursive=recursive)

    monkeypatch.setattr(type(fs), "rm", partial(rm, real=fs.rm))
    num_files = len(collect_garbage(str(store), keep=1))
    assert num_files > 10
    # Each collection deletes one more file.
    for _ in range(num_files):
        removed.clear()
        with suppress(KeyboardInterrupt):
            collect_garbage(str(store), keep=1, delete=True)
        for manifest in list_versions(str(store)):
            assert shard_errors(manifest) == {}
            assert Path(manifest.url, "photos.parquet").exists()
        shard_files = {path.name for path in store.rglob("shards/*.parquet")}
        for note in store.rglob("journal/*.json"):
            assert json.loads(note.read_bytes())["shard"]["path"] in shard_files
    assert collect_garbage(str(store), keep=1) == []
    assert list_versions(str(store)) == [second]


def test_garbage_is_collected_in_a_remote_store(tmp_path, photos, inspected, add):
    store = f"memory://collect-{tmp_path.name}"
    ingest(config(store, photos))
    add(photos, [100])
    second = ingest(config(store, photos))
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/collect-{tmp_path.name}/datasets/photos/shards/train-dead.parquet", b"dead")
    inspected.clear()
    collect_garbage(store, keep=1, delete=True, grace_seconds=-1.0)
    assert list_versions(store) == [second]
    assert [error for _, error in verify(second) if error] == []
    folders = {path.rsplit("/", 2)[1] for path in memory.find(f"/collect-{tmp_path.name}")}
    assert folders == {"shards", "journal", "contracts", second.fingerprint}
    assert ingest(config(store, photos)) == second
    assert inspected == []


def test_an_empty_store_has_no_garbage(tmp_path):
    assert collect_garbage(str(tmp_path / "store"), delete=True) == []


# --- data sets of schema version 1 ----------------------------------------------------------------


@pytest.fixture
def old_store(tmp_path, photos) -> Path:
    """A store with a data set of schema version 1: shards in the folder of the manifest."""
    made = ingest(config(tmp_path / "made", photos))
    folder = tmp_path / "store/datasets/photos" / ("0d" * 10)
    folder.mkdir(parents=True)
    values = json.loads((Path(made.url) / "manifest.json").read_bytes())
    for key in ("duplicates", "contract_version", "parent", "created_at"):
        del values[key]
    values |= {"schema_version": 1, "fingerprint": folder.name, "url": str(folder)}
    for split, info in values["splits"].items():
        for number, shard in enumerate(info["shards"]):
            name = f"{split}-{number:05d}-of-{len(info['shards']):05d}.parquet"
            shutil.copy(tmp_path / "made/datasets/photos/shards" / shard["path"], folder / name)
            shard["path"] = name
    (folder / "manifest.json").write_text(json.dumps(values))
    return tmp_path / "store"


def test_schema_1_data_set_is_listed_next_to_a_new_version(old_store, photos):
    store = str(old_store)
    (old,) = list_versions(store)
    assert (old.schema_version, old.num_rows) == (1, 60)
    assert newest_version(f"{store}/datasets/photos") is None
    before = files(store)
    new = ingest(config(store, photos))
    assert (new.parent, new.contract_version) == (None, 1)
    assert files(store).items() > before.items()
    assert find_version(store, "photos") == new
    assert find_version(store, "0d0d") == old
    assert [m.fingerprint for m in list_versions(store)] == [old.fingerprint, new.fingerprint]


def test_schema_1_data_set_is_garbage_only_once_superseded(old_store, photos):
    age(old_store)
    assert collect_garbage(str(old_store), delete=True) == []
    new = ingest(config(old_store, photos))
    collect_garbage(str(old_store), keep=1, delete=True)
    assert list_versions(str(old_store)) == [new]


def test_manifest_has_a_utc_creation_time(tmp_path, photos):
    manifest = ingest(config(tmp_path / "store", photos))
    made = datetime.fromisoformat(manifest.created_at)
    assert made.utcoffset().total_seconds() == 0
    assert abs(made.timestamp() - time.time()) < 60


def test_garbage_collection_keeps_a_renamed_data_set(grown):
    store, _, second = grown
    folder = Path(second.url).parent
    folder.rename(folder.with_name("backup"))
    for item in collect_garbage(str(store), keep=1, delete=True):
        assert "/datasets/backup/" in item.url
    (manifest,) = list_versions(str(store))
    assert manifest.fingerprint == second.fingerprint
    assert shard_errors(manifest) == {}


def test_garbage_collection_of_an_unlistable_folder_deletes_nothing(grown, monkeypatch):
    store, _, second = grown
    fs, _ = storage.filesystem(str(store))

    def ls(path, detail, real):
        if Path(path) == Path(second.url).parent:
            raise PermissionError(path)
        return real(path, detail=detail)

    before = sorted(store.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "ls", partial(ls, real=fs.ls))
        with pytest.raises(PermissionError):
            collect_garbage(str(store), keep=1, delete=True)
    assert sorted(store.rglob("*")) == before
