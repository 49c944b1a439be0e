"""Tables as the source: paths, URLs or bytes with labels; one clear error per problem."""

import csv
import io
import json
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources import files as files_module
from pets_core.data.sources.files import ListedFiles
from pets_core.data.sources.sources import open_source
from pets_core.errors import PetsError
from pets_core.storage import download

ROWS = {
    "image": ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"],
    "label": ["pug", "pug", "Maine Coon", "Maine Coon"],
    "split": ["train", "Validation", "test", "TRAINING"],
}
SPLITS = ["train", "valid", "test", "train"]


def config(tmp_path, url, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"num_workers": 1, "max_quarantined_fraction": 0.5},
        }
    )


def write(path, columns, metadata=None):
    """Write a table in the format of the path's suffix."""
    path.parent.mkdir(exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix.lower() == ".parquet":
        pq.write_table(table.replace_schema_metadata(metadata), path)
        return path
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = [table.column_names, *zip(*(c.to_pylist() for c in table.columns), strict=True)]
    path.write_text("".join(f"{delimiter.join(line)}\n" for line in lines))
    return path


def classes(source) -> list[tuple[str, str | None]]:
    return [(photo.label, photo.predefined_split) for photo in source.catalogue().photos.values()]


@pytest.fixture
def photos(tmp_path, jpeg) -> dict[str, bytes]:
    """Four photos in tmp_path/mine, by path."""
    found = {path: jpeg(number) for number, path in enumerate(ROWS["image"])}
    for path, data in found.items():
        storage.write_bytes(str(tmp_path / "mine" / path), data)
    return found


@pytest.fixture
def open_table(tmp_path):
    """Write a table and open it as a source."""

    def run(columns, suffix=".parquet", metadata=None, **source):
        path = write(tmp_path / f"mine/table{suffix}", columns, metadata)
        return open_source(config(tmp_path, path, **source))

    return run


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".TSV", ".parquet"])
def test_every_table_format_gives_the_same_catalogue(open_table, photos, suffix):
    source = open_table(ROWS, suffix, split_column="split")
    assert (source.name, source.has_predefined_split) == ("table", True)
    catalogue = source.catalogue()
    assert list(catalogue.vocabulary.items()) == [("Maine Coon", None), ("pug", None)]
    assert list(catalogue.photos) == ROWS["image"]
    assert classes(source) == list(zip(ROWS["label"], SPLITS, strict=True))
    assert dict(zip(ROWS["image"], source.files.read(ROWS["image"]), strict=True)) == photos
    assert [entry.path for entry in source.files.entries()] == ROWS["image"]


def test_columns_are_named_by_settings(open_table, photos):
    columns = {"path": ROWS["image"], "breed": ROWS["label"], "image": ["x"] * 4}
    source = open_table(columns, ".csv", image_column="path", label_column="breed")
    assert not source.has_predefined_split
    assert classes(source) == [(label, None) for label in ROWS["label"]]


def test_text_labels_are_not_converted(open_table):
    labels = ["01", "NA", "true", "1e3"]
    source = open_table({"image": ROWS["image"], "label": labels}, ".csv")
    assert [label for label, _ in classes(source)] == labels


def test_numbers_and_categories_are_labels(open_table):
    source = open_table({"image": ROWS["image"], "label": [1, 1, 10, 2]})
    assert list(source.catalogue().vocabulary) == ["1", "10", "2"]
    categories = pa.array(ROWS["label"]).dictionary_encode()
    source = open_table({"image": pa.array(ROWS["image"]).dictionary_encode(), "label": categories})
    assert list(source.catalogue().photos) == ROWS["image"]
    assert [label for label, _ in classes(source)] == ROWS["label"]


def test_paths_can_be_absolute_urls_or_large_strings(tmp_path, open_table, photos):
    storage.write_bytes(f"memory://{tmp_path.name}/c.jpg", b"in memory")
    paths = ["a/1.jpg", str(tmp_path / "mine/b/1.jpg"), f"memory://{tmp_path.name}/c.jpg"]
    for text_type in (pa.string(), pa.large_string()):
        source = open_table({"image": pa.array(paths, text_type), "label": ["x", "y", "z"]})
        assert list(source.catalogue().photos) == paths
        assert list(source.files.read(paths)) == [
            photos["a/1.jpg"],
            photos["b/1.jpg"],
            b"in memory",
        ]


def test_table_and_photos_over_http(tmp_path, photos, monkeypatch, serve):
    """Paths are relative to the URL of the table, or are URLs."""
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
    site = serve(SimpleHTTPRequestHandler, directory=tmp_path / "mine")
    paths = ["a/1.jpg", f"{site}/b/1.jpg", "a/none.jpg"]
    write(tmp_path / "mine/table.csv", {"image": paths, "label": ["x", "y", "z"]})
    source = open_source(config(tmp_path, f"{site}/table.csv"))
    entries = {entry.path: entry for entry in source.files.entries()}
    assert [entries[path].skip_reason for path in paths] == ["", "", "missing"]
    assert [entries[path].size for path in paths[:2]] == [len(photos["a/1.jpg"]),
                                                         len(photos["b/1.jpg"])]  # fmt: skip
    assert list(source.files.read(paths[:2])) == [photos["a/1.jpg"], photos["b/1.jpg"]]


IMAGE_TYPES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "hugging face": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}


@pytest.mark.parametrize("image_type", IMAGE_TYPES)
def test_table_can_contain_photo_bytes(tmp_path, open_table, photos, image_type):
    data = list(photos.values())
    values = [{"bytes": d, "path": "x.jpg"} if image_type == "hugging face" else d for d in data]
    image = pa.array(values, IMAGE_TYPES[image_type])
    source = open_table({"pixels": image, "label": ROWS["label"], "split": ROWS["split"]},
                    image_column="pixels", split_column="split")  # fmt: skip
    ids = [sha256(d).hexdigest() for d in data]
    assert list(source.catalogue().photos) == ids
    assert classes(source) == list(zip(ROWS["label"], SPLITS, strict=True))
    assert list(source.files.read(ids[::-1])) == data[::-1]
    assert [(e.path, e.version_tag, e.size) for e in source.files.entries()] == [
        (photo_id, f"sha256:{photo_id}", len(d)) for photo_id, d in zip(ids, data, strict=True)
    ]
    suffixes = [p.suffix for p in (tmp_path / "cache").rglob("*") if p.suffix != ".lock"]
    assert sorted(suffixes) == ["", ".data", ".parquet"]


@pytest.mark.parametrize("label", ["label", "breed"])
def test_hugging_face_class_names_are_used(open_table, label):
    names = ["Birman", "Maine Coon", "pug"]
    features = {label: {"_type": "ClassLabel", "names": names}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {"image": ROWS["image"], label: [2, 2, 0, 1]}
    source = open_table(columns, metadata=metadata, label_column=label)
    assert [name for name, _ in classes(source)] == ["pug", "pug", "Birman", "Maine Coon"]


@pytest.mark.parametrize("value", [-1, 3, None])
def test_hugging_face_label_without_a_name_is_missing(open_table, value):
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    source = open_table({"image": ["1", "2"], "label": [0, value]}, metadata=metadata)
    with pytest.raises(PetsError, match="row 2 has no label"):
        source.catalogue()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_missing_columns_are_reported_at_once(open_table, suffix):
    with pytest.raises(PetsError) as caught:
        open_table({"imge": ["1"], "breed": ["x"]}, suffix, split_column="fold")
    first, second, third = str(caught.value).splitlines()
    assert "source.image_column = image: " in first
    assert first.endswith("no such column, only imge, breed. Did you mean imge?")
    assert "source.label_column = label: " in second
    assert "source.split_column = fold: " in third


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_duplicate_column_is_refused(open_table, suffix):
    table = pa.table([["1"], ["x"], ["y"]], ["image", "label", "label"])
    with pytest.raises(PetsError, match=r"source\.label_column = label: .* has 2 such columns"):
        open_table(table, suffix)


@pytest.mark.parametrize(
    "image", [pa.array([1]), pa.array([["x"]]), pa.array([{"path": "x"}]), pa.array([None])]
)
def test_an_image_column_of_another_type_is_refused(open_table, image):
    with pytest.raises(PetsError, match=r"image_column = image.*expected text \(paths"):
        open_table({"image": image, "label": ["x"]})


@pytest.mark.parametrize(("suffix", "missing"), [(".csv", ""), (".parquet", None)])
@pytest.mark.parametrize("column", ["image", "label"])
def test_a_row_without_image_or_label_is_named(open_table, suffix, missing, column):
    columns = {"image": ["1", "2", "3"], "label": ["x", "y", "z"]}
    columns[column] = [columns[column][0], missing, columns[column][2]]
    with pytest.raises(PetsError, match=f"row 2 has no {column}"):
        open_table(columns, suffix).catalogue()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_unknown_split_is_named(open_table, suffix):
    columns = ROWS | {"split": ["train", "test", "held out", "train"]}
    source = open_table(columns, suffix, split_column="split")
    with pytest.raises(PetsError, match="row 3 has split = 'held out', expected train, valid"):
        source.catalogue()


@pytest.mark.parametrize("column", ["label", "split"])
def test_contradicting_rows_are_refused(open_table, column):
    columns = {name: values[:3] + values[:1] for name, values in ROWS.items()}
    assert len(open_table(columns, split_column="split").catalogue().photos) == 3
    columns[column][3] = {"label": "Birman", "split": "test"}[column]
    with pytest.raises(PetsError, match=r"row 4 has .* for a/1\.jpg, but an earlier row has 'pug'"):
        open_table(columns, split_column="split").catalogue()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\x89PNG\r\n\x1a\n\0\xff" * 50, "has no such column"),
     (b"image,label\na.jpg,x\nb.jpg\n", "line 3 has 1 column")],
)  # fmt: skip
def test_invalid_csv_is_refused(tmp_path, content, message):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(PetsError, match=rf"mine\.csv.* {message}"):
        open_source(config(tmp_path, tmp_path / "mine.csv"))


@pytest.mark.parametrize("content", [b"", b"image,label\n", b"PAR1" * 100])
def test_non_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "mine.parquet").write_bytes(content)
    with pytest.raises(PetsError, match=r"mine\.parquet is not a Parquet file"):
        open_source(config(tmp_path, tmp_path / "mine.parquet"))


@pytest.mark.parametrize("content", ["paths", "photos"])
def test_damaged_parquet_is_refused(tmp_path, photos, content):
    image = ROWS["image"] if content == "paths" else list(photos.values())
    path = write(tmp_path / "mine/table.parquet", {"image": image, "label": ROWS["label"]})
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = bytes(len(data) - footer - 4)
    path.write_bytes(data)
    with pytest.raises(PetsError, match=r"table\.parquet is damaged"):
        open_source(config(tmp_path, path)).catalogue()


def test_table_checksum_is_verified(tmp_path, open_table, photos):
    with pytest.raises(PetsError, match=r"table\.csv: its md5 is"):
        open_table(ROWS, ".csv", checksums={"table.csv": "md5:00"})


def label_by_folder(paths) -> dict[str, list[str]]:
    return {"image": list(paths), "label": [path.split("/")[0] for path in paths]}


def test_missing_listed_file_is_quarantined(tmp_path, write_folder):
    write_folder(tmp_path / "mine", {"a": 4, "b": 4})
    paths = [f"{label}/{n}.jpg" for label in "ab" for n in range(4)]
    (tmp_path / "mine/b/folder.jpg").mkdir()
    path = write(tmp_path / "mine/t.csv", label_by_folder([*paths, "a/none.jpg", "b/folder.jpg"]))
    manifest = ingest(config(tmp_path, path))
    assert manifest.num_rows == 8
    quarantined = read_table(storage.join(manifest.url, "quarantine.parquet")).to_pylist()
    assert [(row["id"], row["reason"]) for row in quarantined] == [
        ("a/none.jpg", "missing"), ("b/folder.jpg", "special_file"),
    ]  # fmt: skip


def test_bytes_that_are_not_a_photo_are_quarantined(tmp_path, jpeg, monkeypatch):
    """Rows without bytes are not treated as one photo with several labels."""
    valid = [jpeg(n) for n in range(8)]
    monkeypatch.setattr(files_module, "MAX_FILE_BYTES", max(map(len, valid)))
    image = [*valid, b"a text", None, b"", b"x" * (1 + max(map(len, valid)))]
    columns = {"image": pa.array(image, pa.binary()), "label": [*"aaaabbbb", *"abab"]}
    columns["split"] = ["train", "valid"] * 6
    path = write(tmp_path / "mine/t.parquet", columns)
    manifest = ingest(config(tmp_path, path, split_column="split"))
    assert manifest.num_rows == 8
    assert manifest.quarantine_reasons == {"empty": 2, "not_a_photo": 1, "too_large": 1}


def test_shards_can_be_ingested_as_a_table(tmp_path, write_folder):
    """Shards written by an ingest can be read as a table."""
    url = write_folder(tmp_path / "photos", {"a": 5, "b": 5})
    first = ingest(config(tmp_path, url))
    shards = [shard for info in first.splits.values() for shard in info.shards]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(first.shard_url(s)))) for s in shards]
    joined = pa.concat_tables(tables)
    path = write(tmp_path / "mine/t.parquet", joined, joined.schema.metadata)
    second = ingest(config(tmp_path, path, split_column="split"))
    assert [info.name for info in second.vocabulary] == ["a", "b"]
    assert {s: info.class_counts for s, info in second.splits.items()} == {
        s: info.class_counts for s, info in first.splits.items()
    }


def test_photo_in_two_rows_is_a_duplicate(tmp_path, jpeg):
    photos = [jpeg(n) for n in range(8)]
    columns = {
        "image": pa.array([*photos, photos[0]], pa.binary()),
        "label": [*"abababab", "a"],
        "split": [*["train"] * 6, "valid", "valid", "test"],
    }
    path = write(tmp_path / "mine/t.parquet", columns)
    manifest = ingest(config(tmp_path, path, split_column="split"))
    assert manifest.num_rows == 9
    assert manifest.duplicates["leaking"] == manifest.duplicates["exact"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../a.jpg",
        "file:///etc/hostname",
        "local:///etc/hostname",
        "simplecache::file:///etc/hostname",
        "zip://a.jpg::/etc/archive.zip",
        "zip:///etc/archive.zip",
        "git://a.jpg",
    ],
)
def test_remote_table_cannot_read_local_files(tmp_path, path):
    url = f"memory://{tmp_path.name}/mine/t.csv"
    storage.write_bytes(url, f"image,label\n{path},a\n".encode())
    with pytest.raises(PetsError, match="a remote table may only list paths"):
        open_source(config(tmp_path, url)).files.entries()


@pytest.mark.parametrize(
    "path", ["memory://a/b.jpg", "ftp://server.invalid/a.jpg", "github://o:r@main/a.jpg"]
)
def test_remote_table_may_list_remote_stores(tmp_path, path):
    """They are checked without a connection."""
    url = f"memory://{tmp_path.name}/mine/t.csv"
    storage.write_bytes(url, f"image,label\n{path},a\n".encode())
    assert isinstance(open_source(config(tmp_path, url)).files, ListedFiles)


def test_password_of_a_refused_entry_is_not_shown(tmp_path):
    url = f"memory://{tmp_path.name}/mine/t.csv"
    storage.write_bytes(url, b"image,label\nzip://a.jpg::ftp://me:secret@host/a.zip,a\n")
    with pytest.raises(PetsError) as caught:
        _ = open_source(config(tmp_path, url)).files
    assert "host/a.zip" in str(caught.value)
    assert "secret" not in str(caught.value)


LABELS = {"image": ROWS["image"], "label": ["Kätzchen", "Kätzchen", "pug", "pug, old"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_and_encoding_are_detected(tmp_path, encoding, delimiter):
    """Spreadsheets quote cells that contain the delimiter."""
    text = io.StringIO()
    rows = zip(*LABELS.values(), strict=True)
    csv.writer(text, delimiter=delimiter).writerows([LABELS, *rows])
    path = tmp_path / "table.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    source = open_source(config(tmp_path, path))
    assert [label for label, _ in classes(source)] == LABELS["label"]


def test_delimiter_and_encoding_can_be_set(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("image:label\n1.jpg:pug\n2.jpg:k\xe4tz\n".encode("latin-1"))
    source = open_source(config(tmp_path, path, delimiter=":", encoding="latin-1"))
    assert [label for label, _ in classes(source)] == ["pug", "kätz"]
    with pytest.raises(PetsError, match=r"delimiter ',', .*see source\.delimiter .*no such column"):
        open_source(config(tmp_path, path, delimiter=","))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_blanks_around_labels_and_splits_are_trimmed(open_table, suffix):
    columns = {"image": ROWS["image"], "label": [" pug", "pug ", "\tcat\t", "cat"],
               "split": [" train", "Test ", "train", "test"]}  # fmt: skip
    source = open_table(columns, suffix, split_column="split")
    assert classes(source) == [("pug", "train"), ("pug", "test"), ("cat", "train"), ("cat", "test")]


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", "NaN"])
def test_rows_with_any_missing_label_value_are_listed(open_table, missing):
    labels = [missing, 1.0, missing, 2.0] if missing != missing else [missing, "a", missing, "b"]
    source = open_table({"image": ROWS["image"], "label": labels})
    with pytest.raises(PetsError, match=r"2 rows \(1, 3\) have no label\. Add a value or remove"):
        source.catalogue()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_whole_float_labels_become_integers(open_table, suffix):
    labels = [0.0, 1.0, 10.0, 1.0]
    columns = {"image": ROWS["image"], "label": map(str, labels) if suffix == ".csv" else labels}
    columns["label"] = list(columns["label"])
    source = open_table(columns, suffix)
    assert [label for label, _ in classes(source)] == ["0", "1", "10", "1"]
    columns["label"] = ["1.0", "1.5", "01", "v1.0"]
    assert [label for label, _ in classes(open_table(columns))] == columns["label"]


def test_whole_float_among_fractions_becomes_an_integer(open_table):
    source = open_table({"image": ["1", "2"], "label": [1.0, 1.5]})
    assert [label for label, _ in classes(source)] == ["1", "1.5"]


def test_lists_are_refused_as_classes(open_table):
    with pytest.raises(PetsError, match=r"label_column = label: .*lists .*source\.targets = tags"):
        open_table({"image": ["1"], "label": [["a"]]}).catalogue()


def test_bytes_labels_are_decoded_as_text(open_table):
    assert classes(open_table({"image": ["1"], "label": [b"pug"]})) == [("pug", None)]


def test_ids_become_paths_by_folder_and_suffix(tmp_path, photos, open_table):
    columns = {"image": ["1", "2"], "label": ["x", "y"]}
    source = open_table(columns, ".csv", image_folder="a", image_suffix=".jpg")
    assert list(source.catalogue().photos) == ["a/1.jpg", "a/2.jpg"]
    assert list(source.files.read(["a/2.jpg"])) == [photos["a/2.jpg"]]


@pytest.mark.parametrize(
    ("ids", "suggestion"), [(["1", "2"] * 3, "a/1.jpg"), (["wrong/1.jpg"] * 6, "a/1.jpg"),
                      (["none"] * 6, None)]
)  # fmt: skip
def test_error_about_missing_photos_suggests_the_nearest_path(tmp_path, photos, ids, suggestion):
    columns = {"image": ids, "label": [f"label {photo_id}" for photo_id in ids]}
    path = write(tmp_path / "mine/table.csv", columns)
    with pytest.raises(PetsError) as caught:
        ingest(config(tmp_path, path))
    text = str(caught.value)
    count = len(set(ids))
    assert f"{count} of {count} photos are missing, the first is {min(ids)}" in text
    assert f"expected at {tmp_path}/mine/{min(ids)}" in text
    assert (f"Did you mean {suggestion}? Set source.image_folder" in text) == (
        suggestion is not None
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_hot_columns_are_tags(open_table, suffix):
    columns = {"image": ROWS["image"], "cat": ["1", "0", "", "-1"], "sofa": ["0", "1", "1.0", "0"]}
    source = open_table(columns, suffix, targets="tags", tag_columns=["sofa", "cat"])
    catalogue = source.catalogue()
    assert list(catalogue.vocabulary) == ["sofa", "cat"]
    assert [photo.tags for photo in catalogue.photos.values()] == [
        ("cat",),
        ("sofa",),
        ("sofa",),
        (),
    ]
    assert catalogue.warnings == ()


def test_one_hot_cells_can_be_numbers_or_booleans(open_table):
    columns = {"image": ROWS["image"], "a": [1, 0, None, -1], "b": [True, False, None, True],
               "c": [1.0, 0.0, float("nan"), -1.0]}  # fmt: skip
    source = open_table(columns, targets="tags", tag_columns=["a", "b", "c"])
    tags = [photo.tags for photo in source.catalogue().photos.values()]
    assert tags == [("a", "b", "c"), (), (), ("b",)]
    with pytest.raises(PetsError, match=r"row 2 has a = 2, expected 1, 0, -1 or an empty cell"):
        open_table({**columns, "a": [1, 2, 0, 0]}, targets="tags", tag_columns=["a"]).catalogue()


@pytest.mark.parametrize(
    ("labels", "is_warned"),
    [(["['cat', 'sofa']", "['cat']"], True), (["cat;sofa", "cat"], True), (["cat|dog", "x"], True),
     (["cat,sofa", "dog"], True), (["cat + sofa"], True), (["cat/sofa"], True),
     (["cat:0.9"], True), (["cat sofa", "dog"], False), (["maine-coon"], False)],
)  # fmt: skip
def test_tags_that_contain_a_separator_are_reported(open_table, labels, is_warned):
    columns = {"image": ROWS["image"][: len(labels)], "label": labels}
    warnings = open_table(columns, ".parquet", targets="tags").catalogue().warnings
    assert len(warnings) == is_warned
    assert all("source.tag_separator = spaces" in warning for warning in warnings)


def test_special_characters_in_table_paths_are_kept(tmp_path, open_table, jpeg):
    names = ["12::30.jpg", "a#b.jpg", "what?.jpg", "50%41.jpg", "*[1].jpg"]
    for number, name in enumerate(names):
        storage.write_bytes(str(tmp_path / "mine" / name), jpeg(number))
    source = open_table({"image": names, "label": list("abcde")}, ".csv")
    assert [entry.skip_reason for entry in source.files.entries()] == [""] * 5
    assert list(source.files.read(names)) == [jpeg(number) for number in range(5)]


def test_file_urls_are_unquoted(tmp_path, open_table, jpeg):
    storage.write_bytes(str(tmp_path / "my photos/50%.jpg"), jpeg(1))
    url = f"file://{tmp_path}/my%20photos/50%25.jpg"
    source = open_table({"image": [url], "label": ["a"]})
    assert list(source.files.read([url])) == [jpeg(1)]
    table = write(tmp_path / "my tables/t.csv", {"image": ["x.jpg"], "label": ["a"]})
    assert (
        open_source(config(tmp_path, f"file://{table.parent.parent}/my%20tables/t.csv")).name == "t"
    )


def test_photos_of_a_table_group_share_a_split(tmp_path, write_folder):
    write_folder(tmp_path / "mine", {"a": 20, "b": 20})
    paths = [f"{label}/{n}.jpg" for label in "ab" for n in range(20)]
    columns = label_by_folder(paths) | {"animal": [path.split(".")[0][:-1] for path in paths]}
    path = write(tmp_path / "mine/t.csv", columns)
    manifest = ingest(config(tmp_path, path, group_column="animal", valid_fraction=0.3))
    rows = read_table(storage.join(manifest.url, "photos.parquet"), ["id", "split"]).to_pylist()
    group_splits = {(row["id"].split(".")[0][:-1], row["split"]) for row in rows}
    assert len(group_splits) == len({group for group, _ in group_splits})
    assert {split for _, split in group_splits} == {"train", "valid"}
    columns["animal"][2] = " "
    source = open_source(config(tmp_path, write(path, columns), group_column="animal"))
    with pytest.raises(PetsError, match=r"row 3 has no animal \(source\.group_column\)"):
        source.catalogue()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-00000-of-00002", "train-00001-of-00002"), {"train", "valid"}),
        (("train-00000-of-00001", "test-00000-of-00001"), {"train", "valid", "test"}),
        (("train", "validation"), {"train", "valid"}),
        (("train/0000", "test/0000"), {"train", "valid", "test"}),
        (("0000", "0001"), {"train", "valid"}),
    ],
)
@pytest.mark.parametrize("folder", ["mine", "mine/data"])
def test_folder_of_parquet_shards_is_ingested(tmp_path, jpeg, names, splits, folder):
    for number, name in enumerate(names):
        image = pa.array([jpeg(20 * number + n) for n in range(20)], pa.binary())
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        labels = [n % 2 for n in range(20)]
        write(tmp_path / folder / f"{name}.parquet", {"image": image, "label": labels})
    (tmp_path / "mine/README.md").write_text("about")
    manifest = ingest(config(tmp_path, tmp_path / "mine"))
    assert set(manifest.splits) == splits
    assert (manifest.num_rows, manifest.class_names) == (40, ("0", "1"))
    if "test" in splits or names[1] == "validation":
        predefined = {"test", "valid"} & {"test" if "test" in splits else "valid"}
        assert sum(manifest.splits[split].num_rows for split in predefined) == 20


@pytest.mark.parametrize("missing", ["<NA>", "#N/A", "nan"])
def test_missing_value_markers_are_missing_labels(open_table, missing):
    source = open_table({"image": ["1", "2"], "label": ["a", missing]}, ".csv")
    with pytest.raises(PetsError, match="row 2 has no label"):
        source.catalogue()


@pytest.mark.parametrize(
    "label", [pa.array([["cat"]], pa.large_list(pa.string())), pa.array([{"name": "cat"}])]
)
def test_nested_labels_are_refused(open_table, label):
    expected = r"lists or structs in this column\. Set source\.targets = tags"
    with pytest.raises(PetsError, match=expected):
        open_table({"image": ["1"], "label": label}).catalogue()


def test_equivalent_paths_are_one_photo(open_table):
    source = open_table({"image": ["a/1.jpg", "./a//1.jpg"], "label": ["x", "y"]}, ".csv")
    with pytest.raises(PetsError, match=r"row 2 has 'y' .* for a/1\.jpg, but .* row has 'x'"):
        source.catalogue()


def test_detected_cp1252_causes_a_warning(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("image,label\n1.jpg,k\xe4tz\n".encode("cp1252"))
    (warning,) = open_source(config(tmp_path, path)).catalogue().warnings
    assert "was read as cp1252" in warning
    assert open_source(config(tmp_path, path, encoding="cp1252")).catalogue().warnings == ()


@pytest.mark.parametrize("metadata", [b"null", b"[]", b"not JSON", b'{"info": {"features": null}}'])
def test_invalid_hugging_face_metadata_is_ignored(open_table, metadata):
    source = open_table({"image": ["1"], "label": ["a"]}, metadata={"huggingface": metadata})
    assert classes(source) == [("a", None)]


def shards(tmp_path, jpeg, labels, metadata=None):
    """Write a folder with one shard per name."""
    for number, (name, values) in enumerate(labels.items()):
        image = pa.array([jpeg(20 * number + n) for n in range(len(values))], pa.binary())
        columns = pa.table({"image": image, "label": values})
        schema_metadata = {"huggingface": json.dumps(metadata[name])} if metadata else None
        write(tmp_path / f"mine/{name}.parquet", columns, schema_metadata)
    return tmp_path / "mine"


def test_shards_with_different_class_names_are_refused(tmp_path, jpeg):
    metadata = {
        name: {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        for name, names in {"train": ["cat", "dog"], "test": ["dog", "cat"]}.items()
    }
    folder = shards(tmp_path, jpeg, {"train": [0, 1] * 5, "test": [0, 1] * 5}, metadata)
    with pytest.raises(PetsError, match=r"class names of column label or .* differ between shards"):
        open_source(config(tmp_path, folder)).catalogue()


def test_shards_with_different_column_types_are_refused(tmp_path, jpeg):
    folder = shards(tmp_path, jpeg, {"train": ["a", "b"] * 5, "test": [0, 1] * 5})
    with pytest.raises(PetsError, match="column types differ between shards"):
        open_source(config(tmp_path, folder)).catalogue()


def test_shard_without_a_split_name_is_quarantined(tmp_path, jpeg):
    folder = shards(tmp_path, jpeg, dict.fromkeys(("train-0", "test-0", "extra"), [0, 1] * 5))
    manifest = ingest(config(tmp_path, folder))
    assert manifest.splits["test"].num_rows == 10
    assert manifest.quarantine_reasons == {"not_in_split_lists": 10}
