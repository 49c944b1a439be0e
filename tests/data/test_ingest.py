"""Ingest: every photo accounted for, the same input the same bytes, and all or nothing."""

import io
import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data import ingest as ingest_module
from pets_core.data.dataset import QUARANTINE_SCHEMA, SCHEMA, load_manifest
from pets_core.data.ingest import ingest
from pets_core.errors import PetsError

TRUNCATED = 40  # bytes: a JPEG's header and no picture


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
            data = storage.read_bytes(storage.join(manifest.url, shard.path))
            found += pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def quarantine(manifest) -> list[dict]:
    data = storage.read_bytes(storage.join(manifest.url, "quarantine.parquet"))
    table = pq.read_table(io.BytesIO(data))
    assert table.schema.equals(QUARANTINE_SCHEMA)
    return table.to_pylist()


def store_files(tmp_path) -> dict[str, bytes]:
    store = tmp_path / "store"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_the_sample_becomes_parquet(small_config, drawn_sample):
    told = []
    manifest = ingest(small_config, told.append)
    assert manifest == load_manifest(manifest.url)
    assert manifest.url == f"{small_config.store}/datasets/oxford-iiit-pet/{manifest.fingerprint}"
    assert manifest.source_url == str(drawn_sample)
    assert len(manifest.classes) == 37
    assert {s: i.num_rows for s, i in manifest.splits.items()} == {
        "train": 37, "valid": 37, "test": 74,
    }  # fmt: skip
    assert (manifest.num_rows, manifest.num_quarantined, manifest.quarantine_reasons) == (
        148,
        0,
        {},
    )
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("ingest", 148, 148)
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
        about = manifest.classes[row["label"]]
        assert (row["class_name"], row["species"]) == (about.name, about.species)
        assert row["id"].rsplit("_", 1)[0].replace("_", " ").title() == about.name


def test_shards_are_what_the_manifest_says(small_config):
    manifest = ingest(small_config)
    for info in manifest.splits.values():
        for shard in info.shards:
            data = storage.read_bytes(storage.join(manifest.url, shard.path))
            assert (len(data), sha256(data).hexdigest()) == (shard.num_bytes, shard.sha256)
            file = pq.ParquetFile(io.BytesIO(data))
            assert file.schema_arrow.equals(SCHEMA)
            assert file.metadata.num_rows == shard.num_rows
    folder = Path(manifest.url)
    listed = {shard.path for info in manifest.splits.values() for shard in info.shards}
    assert {p.name for p in folder.iterdir()} == {*listed, "manifest.json", "quarantine.parquet"}


def test_official_lists_are_kept(small_config):
    manifest = ingest(small_config)
    source = ingest_module.open_source(small_config)
    official = {i: photo.official for i, photo in source.catalogue().photos.items()}
    for row in rows(manifest):
        assert official[row["id"]] == ("test" if row["split"] == "test" else "trainval")


def test_large_sources_are_dealt_onto_several_shards(tmp_path, drawn_sample):
    manifest = ingest(
        config(tmp_path, drawn_sample, {"shard_mib": 1, "row_group_rows": 7}, split="random")
    )
    shards = manifest.splits["train"].shards
    assert [shard.path for shard in shards] == [
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    assert abs(shards[0].num_rows - shards[1].num_rows) <= 1
    metadata = pq.ParquetFile(f"{manifest.url}/{shards[0].path}").metadata
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == 7
    assert len({row["id"] for row in rows(manifest)}) == manifest.num_rows == 148


def test_the_same_input_gives_the_same_bytes(small_config, tmp_path):
    first = ingest(small_config)
    again = ingest(small_config.model_copy(update={"store": str(tmp_path / "other")}))
    assert again.fingerprint == first.fingerprint
    for path in Path(first.url).iterdir():
        if path.name != "manifest.json":
            assert (Path(again.url) / path.name).read_bytes() == path.read_bytes()


def test_a_second_ingest_reuses_the_first(small_config, monkeypatch, tmp_path):
    first = ingest(small_config)
    before = store_files(tmp_path)
    monkeypatch.setattr(ingest_module, "_write", None)
    assert ingest(small_config) == first
    assert store_files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"seed": 1}},
        {"source": {"valid_fraction": 0.0}},
        {"source": {"split": "random"}},
        {"ingest": {"row_group_rows": 10}},
    ],
)
def test_what_shapes_the_output_shapes_the_fingerprint(small_config, change):
    values = small_config.model_dump()
    for group, settings in change.items():
        values[group] |= settings
    one = plan(small_config).fingerprint
    assert plan(PipelineConfig.model_validate(values)).fingerprint != one


def plan(settings):
    return ingest_module.plan_ingest(ingest_module.open_source(settings), settings)


def test_another_photo_is_another_fingerprint(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 3, "b": 3})
    before = plan(config(tmp_path, url)).fingerprint
    (url / "a/0.jpg").write_bytes(jpeg(999))
    assert plan(config(tmp_path, url)).fingerprint != before


@pytest.fixture
def untidy(tmp_path, write_oxford, jpeg):
    """Ten good photos of two breeds, and one of every way to be left out."""
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
    manifest = ingest(config(tmp_path, url, {"max_quarantined_fraction": 1}))
    left_out = quarantine(manifest)
    assert {(row["id"], row["reason"]) for row in left_out} == {
        ("pug_5", "damaged"),
        ("pug_6", "not_an_image"),
        ("pug_7", "empty"),
        ("pug_8", "in_no_list"),
        ("pug_9", "missing"),
        ("pug_3", "same_id"),
        ("pug_1", "not_a_photo"),
        ("._pug_1", "not_a_photo"),
        ("stray_1", "unlisted"),
    }
    assert len(left_out) == manifest.num_quarantined == sum(manifest.quarantine_reasons.values())
    missing = manifest.quarantine_reasons["missing"]
    assert manifest.num_rows + len(left_out) == len(photos) + missing
    assert {row["path"] for row in left_out} | {row["source_path"] for row in rows(manifest)} == {
        "", *(f"images/{name}" for name, _ in photos),
    }  # fmt: skip
    assert len({row["id"] for row in rows(manifest)}) == len(rows(manifest)) == 10


def test_a_folder_accounts_for_each_file_once(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 4, "b": 4})
    (url / "a/notes.txt").write_text("no photo")
    (url / "a/cut.jpg").write_bytes(jpeg()[:TRUNCATED])
    manifest = ingest(config(tmp_path, url, {"max_quarantined_fraction": 0.2}))
    assert manifest.quarantine_reasons == {"damaged": 1, "not_a_photo": 1}
    assert manifest.num_rows == 8


def test_a_path_that_an_archive_holds_twice_is_one_row(tmp_path, write_oxford, jpeg):
    names = [f"{breed}_{n}" for breed in ("Birman", "pug") for n in range(4)]
    photos = [(f"{name}.jpg", jpeg(n)) for n, name in enumerate(names)]
    lists = {"trainval.txt": "".join(f"{n} {1 + n.startswith('p')} 1 1\n" for n in names)}
    for second in (photos[0], (photos[0][0], jpeg(99))):
        write_oxford(tmp_path / "pets", [*photos, second], {**lists, "test.txt": ""})
        manifest = ingest(config(tmp_path, tmp_path / "pets", {"max_quarantined_fraction": 0.2}))
        assert manifest.num_rows == len({row["id"] for row in rows(manifest)}) == 8
        assert manifest.quarantine_reasons == {"same_id": 1}


def test_too_much_damage_stops_and_leaves_nothing(tmp_path, untidy):
    with pytest.raises(PetsError, match=r"photos \(.*max_quarantined_fraction = 0\.05") as caught:
        ingest(config(tmp_path, untidy[0]))
    assert "1 damaged" in str(caught.value)
    assert "not_a_photo" not in str(caught.value)
    assert store_files(tmp_path) == {}


@pytest.mark.parametrize("bound", [0.1, 0.09])
def test_the_bound_itself_is_allowed(tmp_path, write_folder, jpeg, bound):
    url = write_folder(tmp_path / "mine", {"a": 5, "b": 5})
    (url / "a/0.jpg").write_bytes(b"text")
    settings = config(tmp_path, url, {"max_quarantined_fraction": bound})
    if bound == 0.1:
        assert ingest(settings).quarantine_reasons == {"not_an_image": 1}
    else:
        with pytest.raises(PetsError, match="1 of 10 photos"):
            ingest(settings)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_stopped_half_way_leaves_nothing(small_config, tmp_path, error):
    def stop(progress):
        if progress.stage == "ingest":
            raise error("stop")

    with pytest.raises(error, match="stop"):
        ingest(small_config, stop)
    assert store_files(tmp_path) == {}


def test_a_source_that_changes_under_the_reader_is_refused(tmp_path, write_folder, jpeg):
    url = write_folder(tmp_path / "mine", {"a": 150, "b": 150})

    def change(progress):
        if progress.stage == "plan":
            (url / "a/0.jpg").write_bytes(jpeg(999))

    with pytest.raises(PetsError, match=r"a/0\.jpg changed while it was read"):
        ingest(config(tmp_path, url), change)

    def take_away(progress):
        if progress.stage == "plan":
            (url / "a/1.jpg").unlink()

    with pytest.raises(PetsError, match=r"a/1\.jpg went away while it was read"):
        ingest(config(tmp_path, url), take_away)
    assert store_files(tmp_path) == {}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"a": 1, "b": 5}, r"class 'a' has 1 photo, at least 2 are needed"),
        ({"a": 5}, "a single class"),
    ],
)
def test_classes_too_small_are_refused(tmp_path, write_folder, counts, words):
    url = write_folder(tmp_path / "mine", counts)
    with pytest.raises(PetsError, match=words):
        ingest(config(tmp_path, url))
    assert store_files(tmp_path) == {}


def test_a_class_of_two_is_enough(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 2, "b": 2})
    manifest = ingest(config(tmp_path, url))
    assert manifest.splits["train"].class_counts == manifest.splits["valid"].class_counts == (1, 1)


def test_a_class_folder_without_photos_is_refused(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 5, "b": 5, "c": 0})
    (url / "c/notes.txt").write_text("no photo")
    with pytest.raises(PetsError, match="class 'c' has 0 photos"):
        ingest(config(tmp_path, url))


def test_a_class_that_is_in_the_test_list_only_is_refused(tmp_path, write_oxford, jpeg):
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
    with pytest.raises(PetsError, match="no readable training photo is left of a"):
        ingest(config(tmp_path, url, {"max_quarantined_fraction": 0.5}))
    assert store_files(tmp_path) == {}


def test_a_random_split_has_the_shares_asked_for(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 20, "b": 40})
    manifest = ingest(config(tmp_path, url, valid_fraction=0.2, test_fraction=0.5))
    assert {s: i.class_counts for s, i in manifest.splits.items()} == {
        "train": (6, 12), "valid": (4, 8), "test": (10, 20),
    }  # fmt: skip
    assert len({row["id"] for row in rows(manifest)}) == 60


def test_official_lists_without_validation(tmp_path, drawn_sample):
    manifest = ingest(config(tmp_path, drawn_sample, valid_fraction=0))
    assert {s: i.num_rows for s, i in manifest.splits.items()} == {"train": 74, "test": 74}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"test_fraction": 0.2}, "test_fraction = 0.2 has no meaning"),
        ({"split": "random", "valid_fraction": 0}, "both 0"),
    ],
)
def test_splits_that_make_no_sense_are_refused(tmp_path, drawn_sample, source, words):
    with pytest.raises(PetsError, match=words):
        ingest(config(tmp_path, drawn_sample, **source))


def test_a_folder_has_no_official_lists(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 5, "b": 5})
    with pytest.raises(PetsError, match=r"source\.split = official.*set split = random"):
        ingest(config(tmp_path, url, split="official"))


def test_a_store_that_is_not_writable_is_told_first(tmp_path, drawn_sample):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PetsError, match="cannot be written"):
        ingest(config(tmp_path, drawn_sample))


def test_the_store_may_be_in_memory(small_config, tmp_path):
    settings = small_config.model_copy(update={"store": f"memory://{tmp_path.name}/store"})
    manifest = ingest(settings)
    assert ingest(settings) == manifest
    assert len(rows(manifest)) == 148
    storage.remove(settings.store)


def test_a_data_set_may_be_moved(small_config, tmp_path):
    manifest = ingest(small_config)
    moved = Path(manifest.url).rename(tmp_path / "moved")
    assert load_manifest(str(moved)) == manifest.model_copy(update={"url": str(moved)})


@pytest.mark.parametrize("damage", ["not json", "unknown key", "half"])
def test_a_damaged_manifest_is_a_plain_error(small_config, damage):
    path = Path(ingest(small_config).url) / "manifest.json"
    text = path.read_text()
    changed = json.dumps({**json.loads(text), "surprise": 1})
    path.write_text({"not json": "x", "unknown key": changed, "half": text[:300]}[damage])
    with pytest.raises(PetsError, match=r"manifest\.json is damaged"):
        ingest(small_config)


@pytest.mark.real_data
def test_three_breeds_as_published(tmp_path, real_data):
    manifest = ingest(config(tmp_path, real_data / "oxford-iiit-pet-3breeds-original"))
    assert manifest.num_rows == 598
    assert manifest.quarantine_reasons == {"not_a_photo": 3, "unlisted": 2}
    assert len(manifest.classes) == 3
    assert len({row["id"] for row in rows(manifest)}) == 598
    assert len(quarantine(manifest)) == 5
