"""The plan: every file accounted for; shards are bounded, random samples and stable."""

import os
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest import plan as plan_module
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.plan import (
    load_planned_photos,
    load_planned_quarantine,
    load_version_tags,
    plan_dataset,
)
from pets_core.data.ingest.splits import hash_fraction
from pets_core.data.sources.catalogue import Box
from pets_core.errors import PetsError

MIB = 1 << 20


def config(tmp_path, url, ingest=None, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"shard_mib": 1, **(ingest or {})},
        }
    )


def reasons(plan) -> dict[str, str]:
    return {row.path or row.id: row.reason for row in load_planned_quarantine(plan)}


def split_of(plan) -> dict[str, str]:
    return {p.id: shard.split for shard in plan.shards for p in load_planned_photos(plan, shard)}


def sparse(path, size) -> None:
    """Write a sparse file, as planning does not read photos."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def test_each_shard_is_a_random_sample_of_bounded_size(tmp_path):
    for label, count in {"common": 3200, "rare": 800}.items():
        for number in range(count):
            sparse(tmp_path / "photos" / label / f"{number}.jpg", 4000 + 3 * number)
    plan = plan_dataset(config(tmp_path, tmp_path / "photos"))
    train = [shard for shard in plan.shards if shard.split == "train"]
    assert len(train) >= 16
    for shard in train:
        photos = load_planned_photos(plan, shard)
        count = len(photos)
        assert sum((tmp_path / "photos" / p.path).stat().st_size for p in photos) <= MIB
        assert shard.num_photos == count
        # The share in a random sample is within 4 standard deviations of the overall share.
        share = sum(photo.label == 1 for photo in photos) / count
        assert abs(share - 0.2) < 4 * (0.2 * 0.8 / count) ** 0.5


def test_oversized_photo_gets_its_own_shard(tmp_path):
    for label in "ab":
        for number in range(4):
            sparse(tmp_path / "photos" / label / f"{number}.jpg", 1000)
    sparse(tmp_path / "photos/a/huge.jpg", 5 * MIB)
    plan = plan_dataset(config(tmp_path, tmp_path / "photos", valid_fraction=0.2))
    shards = [[p.id for p in load_planned_photos(plan, shard)] for shard in plan.shards]
    assert [ids for ids in shards if "a/huge.jpg" in ids] == [["a/huge.jpg"]]


# --- splits ---------------------------------------------------------------------------------------


def test_random_splits_match_the_fractions_on_average(tmp_path):
    for label in "ab":
        for number in range(1000):
            sparse(tmp_path / "photos" / label / f"{number}.jpg", 10)
    source = config(tmp_path, tmp_path / "photos", valid_fraction=0.1, test_fraction=0.3)
    counts = Counter(split_of(plan_dataset(source)).values())
    assert counts.total() == 2000
    assert abs(counts["test"] - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert abs(counts["valid"] - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_random_split_of_a_photo_depends_only_on_its_hash(tmp_path):
    many = [f"{label}/{number}.jpg" for label in "ab" for number in range(60)]
    result = {}
    for name, paths in {"all": many, "some": many[::3]}.items():
        for path in paths:
            sparse(tmp_path / name / "photos" / path, 10)
        source = config(
            tmp_path, tmp_path / name / "photos", valid_fraction=0.2, test_fraction=0.3, seed=5
        )
        result[name] = split_of(plan_dataset(source))
    assert result["some"] == {path: result["all"][path] for path in many[::3]}
    for path, split in result["all"].items():
        number = hash_fraction(5, path)
        assert split == ("test" if number < 0.3 else "valid" if number < 0.5 else "train")


def test_predefined_split_is_kept(small_config):
    plan = plan_dataset(small_config)
    listed = plan_module.open_source(small_config).catalogue().photos
    result = split_of(plan)
    assert result.keys() == listed.keys()
    for photo_id, split in result.items():
        assert (split == "test") == (listed[photo_id].predefined_split == "test")
        if split != "test":
            assert (split == "valid") == (hash_fraction(0, photo_id) < 0.1)


def test_split_column_defines_the_splits(tmp_path, jpeg):
    rows = []
    for number in range(24):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append(f"{number}.jpg,{'ab'[number % 2]},{['train', 'val', 'test'][number // 2 % 3]}")
    (tmp_path / "pets.csv").write_text("image,label,part\n" + "\n".join(rows) + "\n")
    plan = plan_dataset(config(tmp_path, tmp_path / "pets.csv", split_column="part"))
    names = ["train", "valid", "test"]
    assert split_of(plan) == {f"{n}.jpg": names[n // 2 % 3] for n in range(24)}


# --- quarantined files ----------------------------------------------------------------------------

LISTS = {
    "trainval.txt": "".join(f"Cat_{n} 1 1 1\nDog_{n} 2 2 1\n" for n in range(1, 30)),
    "test.txt": "Cat_40 1 1 1\nDog_40 2 2 1\n",
}
LISTED = [f"{c}_{n}.jpg" for c in ("Cat", "Dog") for n in (*range(1, 30), 40)]


def test_every_file_and_every_listed_photo_is_accounted_for(tmp_path, jpeg, write_oxford):
    extra = ["Cat_1.png", "Cat_2.mat", "._Cat_3.jpg", "Cat_900.jpg", "README", "Cat_50.jpg"]
    lists = LISTS | {"list.txt": LISTS["trainval.txt"] + "Cat_50 1 1 1\nCat_51 1 1 1\n"}
    present = [name for name in LISTED if name != "Dog_40.jpg"] + extra
    write_oxford(tmp_path / "pets", [(n, jpeg(p)) for p, n in enumerate(present)], lists)
    plan = plan_dataset(config(tmp_path, tmp_path / "pets"))
    assert reasons(plan) == {
        "images/Cat_1.png": "same_id",
        "images/Cat_2.mat": "not_a_photo",
        "images/._Cat_3.jpg": "hidden",
        "images/Cat_900.jpg": "unlisted",
        "images/README": "not_a_photo",
        "images/Cat_50.jpg": "not_in_split_lists",
        "Cat_51": "missing",
        "Dog_40": "missing",
    }
    details = {
        row.id: row.detail for row in load_planned_quarantine(plan) if row.reason == "same_id"
    }
    assert details == {"Cat_1": "the id is taken by images/Cat_1.jpg"}
    assert len(split_of(plan)) + len(reasons(plan)) == len(present) + 2


def test_photo_is_preferred_over_another_file_with_its_id(tmp_path, jpeg, write_oxford):
    photos = [("Cat_1.mat", b"MATLAB"), *((n, jpeg(p)) for p, n in enumerate(LISTED))]
    write_oxford(tmp_path / "pets", photos, LISTS)
    plan = plan_dataset(config(tmp_path, tmp_path / "pets"))
    assert reasons(plan) == {"images/Cat_1.mat": "not_a_photo"}
    paths = {p.id: p.path for shard in plan.shards for p in load_planned_photos(plan, shard)}
    assert paths["Cat_1"] == "images/Cat_1.jpg"


def test_file_outside_class_folders_is_quarantined(tmp_path, write_folder, jpeg):
    root = write_folder(tmp_path / "photos", {"a": 20, "b": 20})
    (root / "stray.jpg").write_bytes(jpeg(7))
    (root / "notes.txt").write_text("no class")
    plan = plan_dataset(config(tmp_path, root))
    assert reasons(plan) == {"stray.jpg": "unlisted", "notes.txt": "not_a_photo"}


def test_all_too_small_classes_are_reported_in_one_error(tmp_path, write_folder):
    root = write_folder(tmp_path / "photos", {"a": 20, "b": 1, "c": 1})
    with pytest.raises(PetsError) as error:
        plan_dataset(config(tmp_path, root))
    assert "class 'b' has 1 photo," in str(error.value)
    assert "class 'c' has 1 photo," in str(error.value)
    assert not list((tmp_path / "store").rglob("*.parquet"))


# --- the plan file --------------------------------------------------------------------------------


def test_plan_keeps_head_boxes_and_version_tags(tmp_path, jpeg, write_oxford):
    box = "<a><object><bndbox>{}</bndbox></object></a>".format(
        "".join(f"<{s}>{n}</{s}>" for n, s in enumerate(("xmin", "ymin", "xmax", "ymax"), 3))
    )
    write_oxford(
        tmp_path / "pets",
        [(n, jpeg(p)) for p, n in enumerate(LISTED)],
        LISTS | {"xmls/Cat_1.xml": box},
    )
    plan = plan_dataset(config(tmp_path, tmp_path / "pets"))
    photos = [p for shard in plan.shards for p in load_planned_photos(plan, shard)]
    assert {p.id: p.head_box for p in photos if p.head_box} == {"Cat_1": Box(3, 4, 5, 6)}
    assert load_version_tags(plan) == {p.id: p.version_tag for p in photos}
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", p.version_tag) for p in photos)


def test_plan_is_stored_in_row_groups_of_a_few_shards(tmp_path, jpeg, monkeypatch):
    for number in range(60):
        photo = jpeg(number, 300, 300)
        storage.write_bytes(str(tmp_path / f"photos/{'ab'[number % 2]}/{number}.jpg"), photo)
    settings = config(tmp_path, tmp_path / "photos")
    whole = plan_dataset(settings)
    expected = [load_planned_photos(whole, shard) for shard in whole.shards]
    monkeypatch.setattr(plan_module, "_SHARDS_PER_FILE", 2)
    settings = settings.model_copy(update={"store": str(tmp_path / "grouped")})
    plan = plan_dataset(settings)
    assert [load_planned_photos(plan, shard) for shard in plan.shards] == expected
    assert load_version_tags(plan) == {p.id: p.version_tag for photos in expected for p in photos}
    files = [f for f in (tmp_path / "grouped").rglob("*.parquet") if "quarantine" not in f.name]
    groups = [pq.ParquetFile(file).num_row_groups for file in sorted(files)]
    assert groups == [2] * (len(plan.shards) // 2) + [1] * (len(plan.shards) % 2)
    assert len(groups) > 2
    ingest(settings)


def test_planning_writes_only_the_plan(small_config, tmp_path):
    plan = plan_dataset(small_config)
    assert plan.pending == plan.shards
    written = {p.parent.name for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert written == {"plans"}


def test_plan_after_an_ingest_reuses_every_shard(small_config):
    manifest = ingest(small_config)
    plan = plan_dataset(small_config)
    assert plan.pending == ()
    assert plan.parent == manifest.fingerprint
    other = small_config.source.model_copy(update={"seed": 9})
    again = plan_dataset(small_config.model_copy(update={"source": other}))
    assert len(again.pending) > 0
    # Rewritten shards take their photos from existing shards.
    pending = [p for shard in again.pending for p in load_planned_photos(again, shard)]
    assert all(photo.existing_shard for photo in pending)


@pytest.mark.parametrize(("kept", "warned"), [(6, False), (5, True)])
def test_plan_without_most_earlier_photos_warns(tmp_path, write_folder, kept, warned):
    """The name of a data set is that of its source, so two sources may share it by accident."""
    write_folder(tmp_path / "old/photos", {"a": 6, "b": 6})
    ingest(config(tmp_path, tmp_path / "old/photos"))
    names = {"a": kept - 3, "b": 3}
    folder = write_folder(tmp_path / "new/photos", names)
    for label in "ab":
        for number in range(6):
            (folder / label / f"new-{number}.jpg").write_bytes(
                (tmp_path / f"old/photos/{label}/{number}.jpg").read_bytes()
            )
    manifest = ingest(config(tmp_path, folder))
    warning = (
        f"{12 - kept} of the 12 photos of the previous version of 'photos' "
        f"(from {tmp_path}/old/photos) are not in {folder}. Set source.name to store them as "
        "separate data sets."
    )
    assert [w for w in manifest.warnings if "previous version" in w] == [warning] * warned
