"""Ingest: every photo accounted for, reproducible bytes, atomic versions."""

import io
import json
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import QUARANTINE_SCHEMA, SCHEMA, load_manifest
from pets_core.data.ingest import commit as ingest_module
from pets_core.data.ingest import shards
from pets_core.data.ingest.commit import commit, ingest
from pets_core.data.ingest.images import inspect
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.ingest.shards import write_shard
from pets_core.data.sources.sources import open_source
from pets_core.data.versions import newest_version
from pets_core.errors import PetsError
from pets_core.records.dataset import QuarantinedFile

TRUNCATED = 40  # bytes: a JPEG header without image data


def config(tmp_path, url, ingest=None, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"num_workers": 1, **(ingest or {})},
        }
    )


def rows(manifest, *splits) -> list[dict]:
    found = []
    for split in splits or manifest.splits:
        for shard in manifest.splits[split].shards:
            data = storage.read_bytes(manifest.shard_url(shard))
            found += pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def quarantine(manifest) -> list[dict]:
    data = storage.read_bytes(storage.join(manifest.url, "quarantine.parquet"))
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.equals(QUARANTINE_SCHEMA)
    assert table.column_names == list(QuarantinedFile.model_fields)
    return table.to_pylist()


def store_files(tmp_path) -> dict[str, bytes]:
    store = tmp_path / "store"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def versions(tmp_path) -> list[Path]:
    return list((tmp_path / "store").rglob("manifest.json"))


def test_sample_is_stored_as_parquet(small_config, drawn_sample):
    reports = []
    manifest = ingest(small_config, reports.append)
    assert manifest == load_manifest(manifest.url)
    assert manifest.url == f"{small_config.store}/datasets/oxford-iiit-pet/{manifest.fingerprint}"
    assert manifest.source_url == str(drawn_sample)
    assert len(manifest.vocabulary) == 37
    assert manifest.splits["test"].num_rows == 74
    assert manifest.splits["train"].num_rows + manifest.splits["valid"].num_rows == 74
    assert (manifest.num_rows, manifest.num_quarantined, manifest.quarantine_reasons) == (
        148,
        0,
        {},
    )
    assert (reports[-1].stage, reports[-1].done, reports[-1].total) == ("ingest", 148, 148)
    for split, info in manifest.splits.items():
        own = rows(manifest, split)
        assert info.class_counts == tuple(Counter(r["label"] for r in own)[i] for i in range(37))
        assert {row["split"] for row in own} == {split}
    for row in rows(manifest):
        data = row["image"]["bytes"]
        with Image.open(io.BytesIO(data)) as image:
            assert (row["width"], row["height"]) == image.size
        assert row["sha256"] == sha256(data).hexdigest()
        assert row["source_path"] == f"images/{row['image']['path']}" == f"images/{row['id']}.jpg"
        class_info = manifest.vocabulary[row["label"]]
        assert (row["target_text"], row["species"]) == (class_info.name, class_info.species)
        assert row["id"].rsplit("_", 1)[0].replace("_", " ").title() == class_info.name


def test_shards_match_the_manifest(small_config):
    manifest = ingest(small_config)
    for info in manifest.splits.values():
        for shard in info.shards:
            data = storage.read_bytes(manifest.shard_url(shard))
            assert (len(data), sha256(data).hexdigest()) == (shard.num_bytes, shard.sha256)
            file = pq.ParquetFile(io.BytesIO(data))
            assert file.schema_arrow.equals(SCHEMA)
            assert file.metadata.num_rows == shard.num_rows
    listed = {shard.path for info in manifest.splits.values() for shard in info.shards}
    root = Path(manifest.url).parent
    assert {p.name for p in (root / "shards").iterdir()} == listed
    assert {p.name for p in Path(manifest.url).iterdir()} == {
        "manifest.json", "photos.parquet", "quarantine.parquet", "duplicates.parquet",
    }  # fmt: skip


def test_predefined_split_is_kept(small_config):
    manifest = ingest(small_config)
    source = open_source(small_config)
    predefined = {i: photo.predefined_split for i, photo in source.catalogue().photos.items()}
    for row in rows(manifest):
        assert predefined[row["id"]] == ("test" if row["split"] == "test" else "trainval")


def test_a_second_ingest_writes_nothing(small_config, monkeypatch, tmp_path):
    first = ingest(small_config)
    before = store_files(tmp_path)
    monkeypatch.setattr(ingest_module, "write_shard", None)
    assert ingest(small_config) == first
    after = store_files(tmp_path)
    assert {p for p in after if p not in before} <= {p for p in after if "/plans/" in p}
    assert {p: data for p, data in after.items() if p in before} == before


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"seed": 3}},
        {"source": {"valid_fraction": 0.0}},
        {"source": {"split": "random"}},
        {"ingest": {"row_group_rows": 10}},
    ],
)
def test_settings_that_affect_the_output_change_the_fingerprint(small_config, change):
    values = small_config.model_dump()
    for group, settings in change.items():
        values[group] |= settings
    one = ingest(small_config).fingerprint
    assert ingest(PipelineConfig.model_validate(values)).fingerprint != one


def test_changed_photo_changes_the_fingerprint(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 9, "b": 9})
    before = ingest(config(tmp_path, url)).fingerprint
    (url / "a/0.jpg").write_bytes(jpeg(999))
    assert ingest(config(tmp_path, url)).fingerprint != before


@pytest.fixture
def untidy(tmp_path, write_oxford, jpeg):
    """Ten good photos of two breeds, and one file for each quarantine reason."""
    good = [f"{breed}_{n}" for breed in ("Birman", "pug") for n in range(5)]
    photos = [(f"{name}.jpg", jpeg(n)) for n, name in enumerate(good)]
    photos += [
        ("pug_5.jpg", jpeg(50)[:TRUNCATED]),
        ("pug_6.jpg", b"a text file"),
        ("pug_7.jpg", b""),
        ("pug_8.jpg", jpeg(58)),
        ("pug_3.png", jpeg(57)),
        ("pug_1.mat", b"MATLAB"),
        ("._pug_1.jpg", b"AppleDouble"),
        ("stray_1.jpg", jpeg(59)),
    ]
    label = {"Birman": "1 1 1", "pug": "2 2 1"}
    line = {
        n: f"{n} {label[n.split('_')[0]]}\n" for n in [*good, *(f"pug_{i}" for i in range(5, 10))]
    }
    test = {"Birman_4", "pug_4"}
    lists = {
        "list.txt": "".join(line.values()),
        "trainval.txt": "".join(t for n, t in line.items() if n not in test | {"pug_8"}),
        "test.txt": "".join(line[n] for n in sorted(test)),
    }
    write_oxford(tmp_path / "pets", photos, lists)
    return tmp_path / "pets", photos


def test_every_file_and_listed_photo_is_accounted_for(tmp_path, untidy):
    url, photos = untidy
    manifest = ingest(config(tmp_path, url, {"max_quarantined_fraction": 1}, valid_fraction=0.3))
    rejected = quarantine(manifest)
    assert {(row["id"], row["reason"]) for row in rejected} == {
        ("pug_5", "damaged"),
        ("pug_6", "not_an_image"),
        ("pug_7", "empty"),
        ("pug_8", "not_in_split_lists"),
        ("pug_9", "missing"),
        ("pug_3", "same_id"),
        ("pug_1", "not_a_photo"),
        ("._pug_1", "hidden"),
        ("stray_1", "unlisted"),
    }
    assert len(rejected) == manifest.num_quarantined == sum(manifest.quarantine_reasons.values())
    missing = manifest.quarantine_reasons["missing"]
    assert manifest.num_rows + len(rejected) == len(photos) + missing
    assert {row["path"] for row in rejected} | {row["source_path"] for row in rows(manifest)} == {
        "", *(f"images/{name}" for name, _ in photos),
    }  # fmt: skip
    assert len({row["id"] for row in rows(manifest)}) == len(rows(manifest)) == 10


def test_each_file_of_a_folder_is_counted_once(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 4, "b": 4})
    (url / "a/notes.txt").write_text("no photo")
    (url / "a/cut.jpg").write_bytes(jpeg()[:TRUNCATED])
    manifest = ingest(config(tmp_path, url, {"max_quarantined_fraction": 0.2}))
    assert manifest.quarantine_reasons == {"damaged": 1, "not_a_photo": 1}
    assert manifest.num_rows == 8


def test_duplicate_path_in_an_archive_gives_one_row(tmp_path, write_oxford, jpeg):
    names = [f"{breed}_{n}" for breed in ("Birman", "pug") for n in range(4)]
    photos = [(f"{name}.jpg", jpeg(n)) for n, name in enumerate(names)]
    lists = {"trainval.txt": "".join(f"{n} {1 + n.startswith('p')} 1 1\n" for n in names)}
    for second in (photos[0], (photos[0][0], jpeg(99))):
        write_oxford(tmp_path / "pets", [*photos, second], {**lists, "test.txt": ""})
        manifest = ingest(config(tmp_path, tmp_path / "pets", valid_fraction=0.3))
        assert manifest.num_rows == len({row["id"] for row in rows(manifest)}) == 8
        assert manifest.quarantine_reasons == {"same_id": 1}


def test_too_many_quarantined_photos_abort_the_ingest(tmp_path, untidy):
    with pytest.raises(PetsError, match=r"photos \(.*max_quarantined_fraction = 0\.05") as caught:
        ingest(config(tmp_path, untidy[0]))
    assert "(1 missing)" in str(caught.value), "raised before a photo is read"
    settings = config(tmp_path, untidy[0], {"max_quarantined_fraction": 0.1})
    with pytest.raises(PetsError, match=r"photos \(.*1 damaged.*0\.1") as caught:
        ingest(settings)
    assert "not_a_photo" not in str(caught.value)
    assert versions(tmp_path) == []


@pytest.mark.parametrize("bound", [0.1, 0.09])
def test_quarantined_fraction_may_equal_its_limit(tmp_path, write_folder, jpeg, bound):
    url = write_folder(tmp_path / "mine", {"a": 5, "b": 5})
    (url / "a/0.jpg").write_bytes(b"text")
    settings = config(tmp_path, url, {"max_quarantined_fraction": bound})
    if bound == 0.1:
        assert ingest(settings).quarantine_reasons == {"not_an_image": 1}
    else:
        with pytest.raises(PetsError, match="1 of 10 photos"):
            ingest(settings)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_ingest_stores_no_version_and_can_resume(
    small_config, tmp_path, error, monkeypatch
):
    def stop(progress):
        raise error("stop")

    with pytest.raises(error, match="stop"):
        ingest(small_config, stop)
    assert versions(tmp_path) == []
    inspected = []
    monkeypatch.setattr(shards, "inspect", lambda data: inspected.append(data) or inspect(data))
    assert ingest(small_config).num_rows == 148
    assert len(inspected) < 148


def test_source_that_changes_during_ingest_is_refused(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 20, "b": 20})
    settings = config(tmp_path, url)
    plan = plan_dataset(settings)
    (url / "a/1.jpg").unlink()
    with pytest.raises(PetsError, match=r"a/1\.jpg cannot be read"):
        [write_shard(settings, plan, shard) for shard in plan.shards]
    with pytest.raises(PetsError, match="was not written: ingest again"):
        commit(settings, plan)
    assert versions(tmp_path) == []


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 1, "b": 5}, r"class 'a' has 1 photo, at least 2 are required"),
        ({"a": 5}, r"a single class, 'a'.*the parent of the class folders"),
    ],
)
def test_too_small_classes_are_refused(tmp_path, write_folder, counts, message):
    url = write_folder(tmp_path / "mine", counts)
    with pytest.raises(PetsError, match=message):
        ingest(config(tmp_path, url))
    assert store_files(tmp_path) == {}


def test_class_of_two_photos_is_accepted(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 2, "b": 40})
    assert ingest(config(tmp_path, url)).num_rows == 42


def test_folder_without_photos_is_not_a_class(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 20, "b": 20, "c": 0})
    (url / "c/notes.txt").write_text("no photo")
    manifest = ingest(config(tmp_path, url))
    assert manifest.class_names == ("a", "b")
    assert quarantine(manifest)[0]["path"] == "c/notes.txt"


def test_macos_metadata_in_an_archive_is_not_a_class(tmp_path, jpeg):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for number in range(40):
            name = f"{'ab'[number % 2]}/{number}.jpg"
            archive.writestr(f"photos/{name}", jpeg(number))
            archive.writestr(f"__MACOSX/photos/{name.replace('/', '/._')}", b"AppleDouble")
        archive.writestr("photos/README.txt", "hello")
        archive.writestr("photos/.DS_Store", "hello")
    manifest = ingest(config(tmp_path, tmp_path / "mine.zip"))
    assert (manifest.class_names, manifest.num_rows) == (("a", "b"), 40)


def test_reverted_source_is_the_newest_version(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 20, "b": 20})
    first = ingest(config(tmp_path, url))
    (url / "a/new.jpg").write_bytes(jpeg(999))
    second = ingest(config(tmp_path, url))
    (url / "a/new.jpg").unlink()
    third = ingest(config(tmp_path, url))
    assert (third.fingerprint, third.parent) == (first.fingerprint, second.fingerprint)
    assert newest_version(str(Path(first.url).parent)) == third


def test_removed_shard_is_rewritten(tmp_path, write_folder):
    settings = config(tmp_path, write_folder(tmp_path / "mine", {"a": 20, "b": 20}))
    manifest = ingest(settings)
    shard = Path(manifest.shard_url(manifest.splits["train"].shards[0]))
    before = shard.read_bytes()
    shard.unlink()
    assert ingest(settings) == manifest
    assert shard.read_bytes() == before


def test_class_that_is_only_in_the_test_list_is_refused(tmp_path, write_oxford, jpeg):
    names = [f"{breed}_{n}" for breed in ("Birman", "pug") for n in range(3)]
    line = {n: f"{n} {1 + n.startswith('p')} 1 1\n" for n in names}
    lists = {
        "trainval.txt": "".join(line[n] for n in names[:3]),
        "test.txt": "".join(line[n] for n in names[3:]),
    }
    write_oxford(tmp_path / "pets", [(f"{n}.jpg", jpeg(i)) for i, n in enumerate(names)], lists)
    with pytest.raises(PetsError, match="class 'Pug' has no training photos"):
        ingest(config(tmp_path, tmp_path / "pets"))


def test_a_class_whose_training_photos_are_all_damaged_is_refused(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 2, "b": 20})
    for path in (url / "a").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(PetsError, match="no readable training photos of a"):
        ingest(config(tmp_path, url, {"max_quarantined_fraction": 0.5}))
    assert versions(tmp_path) == []


def test_predefined_split_can_have_no_validation_photos(tmp_path, drawn_sample):
    manifest = ingest(config(tmp_path, drawn_sample, valid_fraction=0))
    assert {s: i.num_rows for s, i in manifest.splits.items()} == {"train": 74, "test": 74}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"test_fraction": 0.2}, "test_fraction = 0.2 has no effect"),
        ({"split": "random", "valid_fraction": 0}, "both 0"),
    ],
)
def test_invalid_split_settings_are_refused(tmp_path, drawn_sample, source, message):
    with pytest.raises(PetsError, match=message):
        ingest(config(tmp_path, drawn_sample, **source))


def test_split_official_is_refused_for_class_folders(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 5, "b": 5})
    with pytest.raises(PetsError, match=r"source\.split = official.*set split = random"):
        ingest(config(tmp_path, url, split="official"))


def test_unwritable_store_is_reported_first(tmp_path, drawn_sample):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PetsError, match="cannot be written"):
        ingest(config(tmp_path, drawn_sample))


def test_store_can_be_in_memory(small_config, tmp_path):
    settings = small_config.model_copy(update={"store": f"memory://{tmp_path.name}/store"})
    manifest = ingest(settings)
    assert ingest(settings) == manifest
    assert len(rows(manifest)) == 148
    storage.remove(settings.store)


def test_store_can_be_moved(small_config, tmp_path):
    manifest = ingest(small_config)
    Path(small_config.store).rename(tmp_path / "moved")
    moved = manifest.url.replace("/store/", "/moved/")
    assert load_manifest(moved) == manifest.model_copy(update={"url": moved})
    assert len(rows(load_manifest(moved))) == 148


@pytest.mark.parametrize("damage", ["not json", "unknown key", "half"])
def test_damaged_manifest_raises_pets_error(small_config, damage):
    path = Path(ingest(small_config).url) / "manifest.json"
    text = path.read_text()
    changed = json.dumps({**json.loads(text), "surprise": 1})
    path.write_text({"not json": "x", "unknown key": changed, "half": text[:300]}[damage])
    with pytest.raises(PetsError, match=r"manifest\.json is damaged"):
        ingest(small_config)


@pytest.mark.real_data
def test_published_three_breed_subset_is_ingested(tmp_path, real_data):
    manifest = ingest(config(tmp_path, real_data / "oxford-iiit-pet-3breeds-original"))
    assert manifest.num_rows == 598
    assert manifest.quarantine_reasons == {"not_a_photo": 3, "unlisted": 2}
    assert len(manifest.vocabulary) == 3
    assert len({row["id"] for row in rows(manifest)}) == 598
    assert len(quarantine(manifest)) == 5
