"""Tags, numbers and coordinates as targets, from source to shard."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.partition import PlannedPhoto
from pets_core.data.ingest.shards import NO_BOX, OUTSIDE_PHOTO, _to_upright
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.data.sources.oxford import _parse_head
from pets_core.data.versions import diff
from pets_core.errors import PetsError

NUM_PHOTOS = 24


@pytest.fixture
def photos(tmp_path, jpeg):
    """Photos of 24 x 16 pixels, 0.jpg and so on."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_PHOTOS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture
def ingest_table(tmp_path, photos):
    """Write a table to the photos' folder and ingest it."""

    def run(columns, settings, suffix=".parquet", **others):
        names = [f"{number}.jpg" for number in range(len(next(iter(columns.values()))))]
        table = pa.table({"image": names} | columns)
        path = photos / f"table{suffix}"
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            rows = [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
            lines = ["" if None in row else ",".join(map(str, row)) for row in rows]
            path.write_text("\n".join(lines) + "\n")
        source = {"url": str(path), "test_fraction": 0.2, "valid_fraction": 0.2} | settings
        values = {
            "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
            "source": source, "ingest": {"num_workers": 1},
        }  # fmt: skip
        return ingest(PipelineConfig.model_validate(values | others))

    return run


def rows_of(manifest):
    shards = [shard for info in manifest.splits.values() for shard in info.shards]
    tables = [pq.read_table(manifest.shard_url(shard)).drop(["image"]) for shard in shards]
    return {row["id"]: row for table in tables for row in table.to_pylist()}


TAGS = [["cat", "sofa"], ["dog"], [], ["dog", "sofa", "dog"]] * 6


def test_tags_are_stored_by_name_and_one_hot(ingest_table):
    manifest = ingest_table({"label": TAGS}, {"targets": "tags"})
    assert (manifest.targets, manifest.name) == ("tags", "table-tags")
    assert manifest.class_names == ("cat", "dog", "sofa")
    rows = rows_of(manifest)
    assert [(rows[f"{n}.jpg"]["tags"], rows[f"{n}.jpg"]["one_hot"]) for n in range(4)] == [
        (["cat", "sofa"], [1, 0, 1]), (["dog"], [0, 1, 0]), ([], [0, 0, 0]),
        (["dog", "sofa"], [0, 1, 1]),
    ]  # fmt: skip
    assert {row["label"] for row in rows.values()} == {None}
    assert rows["0.jpg"]["target_text"] == "cat, sofa"
    for split, info in manifest.splits.items():
        own = [row["one_hot"] for row in rows.values() if row["split"] == split]
        assert info.class_counts == tuple(np.sum(own, axis=0))
        assert info.num_rows == len(own)


def test_tags_as_text_and_as_lists_give_the_same_data_set(ingest_table):
    from_lists = ingest_table({"label": TAGS}, {"targets": "tags", "name": "same"})
    text = [" ".join(tags) for tags in TAGS]
    from_text = ingest_table({"label": text}, {"targets": "tags", "name": "same"}, ".csv")
    assert from_text.fingerprint == from_lists.fingerprint
    other = [";".join(f" {tag}" for tag in tags) for tags in TAGS]
    settings = {"targets": "tags", "name": "same", "tag_separator": ";"}
    assert ingest_table({"label": other}, settings, ".csv").fingerprint == from_lists.fingerprint


def test_hugging_face_class_names_become_tags(ingest_table, photos):
    names = ["cat", "dog", "sofa"]
    column = pa.array([[names.index(tag) for tag in tags] for tags in TAGS], pa.list_(pa.int64()))
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    metadata = {"info": {"features": {"label": feature}}}
    images = [f"{n}.jpg" for n in range(NUM_PHOTOS)]
    table = pa.table({"image": images, "label": column})
    table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, photos / "hf.parquet")
    settings = {"targets": "tags", "url": str(photos / "hf.parquet")}
    named = ingest_table({"label": TAGS}, settings)
    assert rows_of(named)["3.jpg"]["tags"] == ["dog", "sofa"]


def test_tag_outside_the_vocabulary_is_refused_quarantined_or_added(ingest_table):
    settings = {"targets": "tags", "name": "same"}
    first = ingest_table({"label": TAGS}, settings)
    unknown = [*TAGS[:-1], ["dgo"]]
    with pytest.raises(PetsError, match=r"tag 'dgo': outside the contract .* 3 tags.* extend"):
        ingest_table({"label": unknown}, settings)
    reduced = ingest_table({"label": unknown}, settings, ingest={"new_labels": "quarantine"})
    assert reduced.quarantine_reasons == {"label_outside_contract": 1}
    assert reduced.class_names == first.class_names
    more = [[*tags, "dgo"] for tags in TAGS]
    extended = ingest_table({"label": more}, settings, ingest={"new_labels": "extend"})
    assert extended.class_names == (*first.class_names, "dgo")


def test_tags_with_too_few_photos_are_refused(ingest_table):
    with pytest.raises(PetsError, match=r"tag 'cat' has 1 photo, at least 2"):
        ingest_table({"label": [["cat"], *[["dog"]] * 23]}, {"targets": "tags"})
    with pytest.raises(PetsError, match="no photo of the source has a tag"):
        ingest_table({"label": [[]] * 24}, {"targets": "tags"})
    assert ingest_table({"label": [["dog"], []] * 12}, {"targets": "tags"}).class_names == ("dog",)


AGES = [float(number) for number in range(NUM_PHOTOS)]
NUMBERS = {"targets": "numbers", "number_columns": ["age", "weight"], "units": ["years", "kg"]}


def test_numbers_are_stored_with_their_statistics(ingest_table):
    manifest = ingest_table({"age": AGES, "weight": [age * 2 for age in AGES]}, NUMBERS)
    rows = rows_of(manifest)
    assert rows["7.jpg"]["numbers"] == [7, 14]
    assert (rows["7.jpg"]["label"], rows["7.jpg"]["target_text"]) == (None, "7, 14")
    train = np.array([row["numbers"] for row in rows.values() if row["split"] == "train"])
    assert [(n.name, n.unit) for n in manifest.numbers] == [("age", "years"), ("weight", "kg")]
    for number, info in enumerate(manifest.numbers):
        column = train[:, number]
        assert (info.mean, info.std) == pytest.approx((column.mean(), column.std()))
        assert (info.low, info.high) == (column.min(), column.max())
    assert manifest.vocabulary == ()
    assert manifest.contents == "age, weight"


def test_numbers_as_text_give_the_same_data_set(ingest_table):
    columns = {"age": AGES, "weight": AGES}
    settings = NUMBERS | {"name": "same"}
    first = ingest_table(columns, settings)
    assert ingest_table(columns, settings, ".csv").fingerprint == first.fingerprint


def test_numbers_with_decimal_commas_give_the_same_data_set(ingest_table, photos):
    settings = {"targets": "numbers", "number_columns": ["age"], "name": "same"}
    ages = [age + 0.5 for age in AGES]
    first = ingest_table({"age": ages}, settings)
    rows = "".join(f"{n}.jpg;{age:.1f}\n".replace(".5", ",5") for n, age in enumerate(ages))
    (photos / "german.csv").write_text(f"image;age\n{rows}")
    german = settings | {"url": str(photos / "german.csv")}
    assert ingest_table({"age": ages}, german).fingerprint == first.fingerprint
    (photos / "german.csv").write_text(
        "image,age\n" + "".join(f'{n}.jpg,"1,5{n:02}"\n' for n in range(24))
    )
    with pytest.raises(PetsError, match=r"source\.decimal"):
        ingest_table({"age": ages}, german | {"name": "other"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "row 3 has no age"),
        (float("nan"), "row 3 has no age"),
        (float("-inf"), "row 3 has age = -inf, expected a finite number"),
        (101.0, r"row 3 has age = 101.0, outside source.y_range = \(0, 100\)"),
    ],
)
def test_missing_or_out_of_range_number_is_refused(ingest_table, tmp_path, value, message):
    ages = [*AGES[:2], value, *AGES[3:]]
    settings = {"targets": "numbers", "number_columns": ["age"], "y_range": [0, 100]}
    with pytest.raises(PetsError, match=message):
        ingest_table({"age": ages}, settings)
    assert not list((tmp_path / "store").rglob("manifest.json")), "no version is written"


def test_text_that_is_not_a_number_is_refused(ingest_table):
    with pytest.raises(PetsError, match="row 1 has age = 'old', which is not a number"):
        ingest_table({"age": ["old"] * 24}, {"targets": "numbers", "number_columns": ["age"]})


POINTS = {"targets": "points", "number_columns": ["x", "y"]}


def test_coordinates_are_stored_in_half_side_lengths(ingest_table):
    coordinates = {"x": [0.0, 24.0, 12.0, 6.0] * 6, "y": [0.0, 16.0, 8.0, 4.0] * 6}
    manifest = ingest_table(coordinates, POINTS)
    rows = rows_of(manifest)
    assert [rows[f"{n}.jpg"]["numbers"] for n in range(4)] == [
        [-1, -1], [1, 1], [0, 0], [-0.5, -0.5],
    ]  # fmt: skip
    assert [n.unit for n in manifest.numbers] == ["half widths", "half heights"]


def test_photos_with_points_outside_are_quarantined(ingest_table):
    coordinates = {"x": [24.5, *[1.0] * 23], "y": [1.0] * 24}
    manifest = ingest_table(coordinates, POINTS)
    assert manifest.quarantine_reasons == {OUTSIDE_PHOTO: 1}
    (row,) = pq.read_table(f"{manifest.url}/quarantine.parquet").to_pylist()
    assert (row["id"], row["detail"]) == ("0.jpg", "24.5, 1 on a photo of 24 x 16 pixels")
    half = {"x": [24.5, 1.0] * 12, "y": [1.0] * 24}
    with pytest.raises(PetsError, match=rf"12 of 24 photos .* \(12 {OUTSIDE_PHOTO}\)"):
        ingest_table(half, POINTS | {"name": "half"})


def test_photo_with_swapped_box_corners_is_quarantined(ingest_table):
    names = ["xmin", "ymin", "xmax", "ymax"]
    settings = {"targets": "box", "number_columns": names}
    columns = {"xmin": [9.0, *[1.0] * 23], "ymin": [1.0] * 24, "xmax": [5.0] * 24,
               "ymax": [5.0] * 24}  # fmt: skip
    assert ingest_table(columns, settings).quarantine_reasons == {NO_BOX: 1}
    with pytest.raises(PetsError, match=r"24 of 24 photos .*24 no_box"):
        ingest_table(columns | {"xmin": [9.0] * 24}, settings | {"name": "all"})


def test_box_targets_of_a_table_need_number_columns(ingest_table):
    with pytest.raises(PetsError, match=r"targets = box: .* is a table.*source.number_columns"):
        ingest_table({"x": [1.0] * 24}, {"targets": "box"})


def test_single_label_becomes_one_tag(ingest_table):
    manifest = ingest_table({"label": [0, 1, 2] * 8}, {"targets": "tags"})
    assert manifest.class_names == ("0", "1", "2")
    assert rows_of(manifest)["0.jpg"]["tags"] == ["0"]


def test_changed_numbers_give_a_new_version(ingest_table):
    settings = {"targets": "numbers", "number_columns": ["age"], "name": "same"}
    first = ingest_table({"age": AGES}, settings)
    second = ingest_table({"age": [77.0, *AGES[1:]]}, settings)
    assert second.fingerprint != first.fingerprint
    assert diff(first, second)["relabelled"] == ["0.jpg"]


def test_new_version_reuses_photos_of_the_first(ingest_table):
    coordinates = {"x": [1.0] * 24, "y": [1.0] * 24}
    ingest_table(coordinates, POINTS | {"name": "same"})
    moved = ingest_table(coordinates | {"x": [2.0, 25.0, *[1.0] * 22]}, POINTS | {"name": "same"})
    rows = rows_of(moved)
    assert rows["0.jpg"]["numbers"] == pytest.approx([2 * 2 / 24 - 1, 2 / 16 - 1])
    assert moved.quarantine_reasons == {OUTSIDE_PHOTO: 1}, "points of reused photos are checked too"


def test_changed_target_type_under_the_same_name_is_refused(ingest_table):
    ingest_table({"age": AGES}, {"targets": "numbers", "number_columns": ["age"], "name": "same"})
    with pytest.raises(PetsError, match=r"targets = tags, but earlier.*= numbers of age: set"):
        ingest_table({"label": TAGS}, {"targets": "tags", "name": "same"})


def test_pets_have_species_and_breed_as_tags(small_config):
    source = small_config.source.model_copy(update={"targets": "tags"})
    manifest = ingest(small_config.model_copy(update={"source": source}))
    assert manifest.class_names[:3] == ("cat", "dog", "Abyssinian")
    assert len(manifest.vocabulary) == 39
    row = rows_of(manifest)["great_pyrenees_1"]
    assert (row["tags"], sum(row["one_hot"])) == (["dog", "Great Pyrenees"], 2)


@pytest.mark.parametrize("targets", ["points", "box"])
def test_sample_heads_match_their_annotations(small_config, targets):
    source = small_config.source.model_copy(update={"targets": targets})
    manifest = ingest(small_config.model_copy(update={"source": source}))
    assert manifest.num_rows == 37 * 4
    rows = rows_of(manifest)
    coordinates = np.array([row["numbers"] for row in rows.values()])
    # Targets are the annotations in other units.
    for row, target in zip(rows.values(), coordinates, strict=True):
        xmin, ymin, xmax, ymax = (row["head_box"][s] for s in ("xmin", "ymin", "xmax", "ymax"))
        annotation = [xmin, ymin, xmax, ymax]
        if targets == "points":
            annotation = [(xmin + xmax) / 2, (ymin + ymax) / 2]
        sides = np.resize([row["width"], row["height"]], len(target))
        assert (target + 1) / 2 * sides == pytest.approx(np.array(annotation), abs=1e-3)
    if targets == "box":
        assert (coordinates[:, :2] < coordinates[:, 2:]).all()
    else:
        # The sample draws heads near the centre of the photo.
        assert np.abs(coordinates.mean(0)).max() < 0.4


@pytest.mark.real_data
def test_published_head_boxes_match_their_annotations(real_data, tmp_path):
    source = {"url": str(real_data / "oxford-iiit-pet-3breeds-original"), "targets": "box"}
    values = {"store": str(tmp_path / "s"), "cache_dir": str(tmp_path / "c"), "source": source}
    config = PipelineConfig.model_validate(values | {"ingest": {"max_quarantined_fraction": 0.1}})
    manifest = ingest(config)
    assert manifest.num_rows >= 290
    assert manifest.quarantine_reasons["no_numbers"] >= 290, "photos without a published box"
    rows = rows_of(manifest)
    box, width, height = (rows["Abyssinian_1"][k] for k in ("numbers", "width", "height"))
    assert (width, height) == (600, 400)
    pixels = (np.array(box) + 1) / 2 * [600, 400, 600, 400]
    assert pixels == pytest.approx([333, 72, 425, 158], abs=1e-3)


def test_invalid_target_settings_are_refused(tmp_path):
    def assert_refused(message, **source):
        with pytest.raises(ValueError, match=message):
            PipelineConfig.model_validate({"source": source})

    assert_refused("number_columns = age cannot be used", number_columns=["age"])
    assert_refused("needs number_columns", targets="numbers")
    assert_refused("x and y of every point", targets="points", number_columns=["x", "y", "z"])
    assert_refused("set xmin, ymin, xmax", targets="box", number_columns=["x", "y"])
    assert_refused("remove the duplicate column", targets="numbers", number_columns=["x", "x"])
    assert_refused(
        "units has 2 entries", targets="numbers", number_columns=["x"], units=["m", "kg"]
    )
    assert_refused("first value must be", targets="numbers", number_columns=["x"], y_range=[1, 0])
    assert_refused("y_range cannot be used", targets="tags", y_range=[0, 1])


@pytest.mark.parametrize(
    ("targets", "settings", "message"),
    [
        ("tags", {"train": {"class_weights": "balanced"}}, "train.class_weights"),
        ("tags", {"train": {"sampling": "balanced"}}, "train.sampling = balanced"),
        ("box", {"transform": {"resize": "crop"}}, "transform.resize = crop"),
        ("box", {"train": {"label_smoothing": 0.1}}, "train.label_smoothing = 0.1"),
        ("box", {"transform": {"mixup_alpha": 0.2}}, "transform.mixup_alpha = 0.2"),
        ("points", {"transform": {"cutmix_alpha": 1}}, "transform.cutmix_alpha = 1"),
        ("class", {"train": {"number_loss": "l1"}}, "train.number_loss = l1"),
        ("class", {"evaluate": {"threshold": "per_tag"}}, "evaluate.threshold = per_tag"),
    ],
)
def test_settings_of_another_target_type_are_refused(targets, settings, message):
    with pytest.raises(
        ValueError, match=rf"{message} cannot be used with source.targets = {targets}"
    ):
        PipelineConfig.model_validate({"source": {"targets": targets}} | settings)


def test_class_folders_have_no_tags(write_folder, tmp_path):
    root = write_folder(tmp_path / "mine", {"cat": 4, "dog": 4})
    values = {"store": str(tmp_path / "s"), "source": {"url": str(root), "targets": "tags"}}
    with pytest.raises(
        PetsError, match=r"targets = tags: .*mine give each photo one class.* Use a table"
    ):
        ingest(PipelineConfig.model_validate(values))


def test_pets_have_no_numbers(small_config):
    source = small_config.source.model_copy(
        update={"targets": "numbers", "number_columns": ("age",)}
    )
    with pytest.raises(PetsError, match=r"targets = numbers: the pet annotations contain none"):
        ingest(small_config.model_copy(update={"source": source}))


def write_rotated_pets(folder, write_oxford, annotated) -> None:
    """Write Oxford archives of rotated photos with boxes in `annotated` pixels.

    Two thirds of the photos are stored rotated. In each upright photo of 120 x 90 pixels the head
    is at 40, 30, 70, 60.
    """
    photos, lists, lines = [], {}, []
    coordinates = {
        "stored": {1: (40, 30, 70, 60), 6: (30, 50, 60, 80), 8: (30, 40, 60, 70)},
        "upright": dict.fromkeys((1, 6, 8), (40, 30, 70, 60)),
    }
    transposes = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for number in range(24):
        breed, orientation = ("Abyssinian", "beagle")[number % 2], (1, 6, 8)[number % 3]
        name = f"{breed}_{number}"
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(pixels)
        image = image.transpose(transposes[orientation]) if orientation in transposes else image
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=exif)
        photos.append((f"{name}.jpg", buffer.getvalue()))
        size = image.size if annotated == "stored" else (120, 90)
        fields = zip(
            ("xmin", "ymin", "xmax", "ymax"), coordinates[annotated][orientation], strict=True
        )
        box = "".join(f"<{field}>{value}</{field}>" for field, value in fields)
        lists[f"xmls/{name}.xml"] = (
            f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size><object>"
            f"<bndbox>{box}</bndbox></object></annotation>"
        )
        lines.append(f"{name} {number % 2 + 1} {number % 2 + 1} 1\n")
    lists |= {"trainval.txt": "".join(lines[:16]), "test.txt": "".join(lines[16:])}
    write_oxford(folder, photos, lists)


@pytest.mark.parametrize("annotated", ["stored", "upright"])
@pytest.mark.parametrize("targets", ["box", "points", "class"])
def test_annotations_are_rotated_with_their_photos(tmp_path, write_oxford, annotated, targets):
    """The <size> of an annotation determines the pixels of its box."""
    write_rotated_pets(tmp_path / "pets", write_oxford, annotated)
    values = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(tmp_path / "pets"), "targets": targets}, "ingest": {"num_workers": 1},
    }  # fmt: skip
    manifest = ingest(PipelineConfig.model_validate(values))
    rows = rows_of(manifest).values()
    assert len(rows) == 24
    assert all(row["head_box"] == {"xmin": 40, "ymin": 30, "xmax": 70, "ymax": 60} for row in rows)
    expected = {"box": [40, 30, 70, 60], "points": [55, 45], "class": None}[targets]
    if expected:
        sides = np.resize([120, 90], len(expected))
        found = np.array([row["numbers"] for row in rows])
        np.testing.assert_allclose((found + 1) / 2 * sides, [expected] * 24, atol=1e-4)


def test_annotation_of_ambiguous_size_quarantines_its_photo_or_drops_its_box():
    """The photo is quarantined if the box is the target; otherwise only the box is dropped."""
    photo = PlannedPhoto("a", "a.jpg", "", None, None, numbers=(1, 2), annotation_size=(50, 40))
    ambiguous = [((120, 90), 1), ((40, 50), 1), ((120, 90), 6), ((50, 40), 3), ((50, 40), 2)]
    for size, orientation in ambiguous:
        with pytest.raises(UnreadablePhotoError, match="annotation_size: annotated at 50 x 40"):
            _to_upright(photo, size, orientation)
        class_photo = photo._replace(numbers=(), head_box=(1, 2, 3, 4))
        assert _to_upright(class_photo, size, orientation).head_box is None
    square = photo._replace(annotation_size=(50, 50))
    unsized = photo._replace(annotation_size=(0, 0))
    for other in (square, unsized):
        with pytest.raises(UnreadablePhotoError, match="annotation_size"):
            _to_upright(other, (50, 50), 6)
        assert _to_upright(other, (50, 50), 1).numbers == (1, 2)
    assert _to_upright(photo, (50, 40), 6).numbers == (1, 2), (
        "already relative to the upright photo"
    )
    assert _to_upright(photo, (40, 50), 6).numbers == (38, 1)
    assert _to_upright(photo._replace(annotation_size=()), (9, 9), 6).numbers == (1, 2)


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("<size><width>90.0</width><height>120</height></size>", (90, 120)),
        ("<size><width>0</width><height>0</height></size>", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_annotation_sizes_are_parsed(xml, expected):
    sides = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    box = "".join(f"<{name}>{value}</{name}>" for name, value in sides.items())
    head = f"<annotation>{xml}<object><bndbox>{box}</bndbox></object></annotation>"
    assert _parse_head(head.encode()) == ((1, 2, 3, 4), expected)
    assert _parse_head(head.replace(">3<", ">1e999<").encode()) == (None, None)
