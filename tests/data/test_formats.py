"""Shards are readable by datasets, pandas, DuckDB and pyarrow; damage is detected."""

import io
import random
from collections import Counter
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import SCHEMA, read_table
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.duplicates import perceptual_hashes
from pets_core.data.ingest.images import inspect
from pets_core.errors import PetsError

ROWS = 7  # per row group
MIB = 1 << 20


def config(tmp_path, url, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"shard_mib": 1, "row_group_rows": ROWS},
        }
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, drawn_sample):
    """Manifest of the ingested sample."""
    return ingest(config(tmp_path_factory.mktemp("sample"), drawn_sample))


@pytest.fixture(scope="module")
def shards(manifest) -> dict[str, list[str]]:
    return {
        split: [manifest.shard_url(shard) for shard in info.shards]
        for split, info in manifest.splits.items()
    }


@pytest.fixture(scope="module")
def paths(shards) -> list[str]:
    return [path for urls in shards.values() for path in urls]


def test_datasets_decodes_images_and_names_classes(manifest, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=shards, cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {
        split: info.num_rows for split, info in manifest.splits.items()
    }
    features = loaded["train"].features
    assert isinstance(features["image"], datasets.Image)
    assert features["label"].names == list(manifest.class_names)
    for row in loaded["valid"]:
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (row["width"], row["height"])
        assert features["label"].int2str(row["label"]) == row["target_text"]


def test_pandas_reads_shards(manifest, paths):
    frame = pd.concat([pd.read_parquet(path) for path in paths])
    assert len(frame) == frame["id"].nunique() == manifest.num_rows
    row = frame.iloc[0]
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.size == (row["width"], row["height"])
    assert row["image"]["path"] == f"{row['id']}.jpg"
    assert frame["phash"].dtype == np.uint64


def test_duckdb_reads_shards(manifest, paths):
    result = duckdb.sql(f"SELECT target_text, count(*) FROM read_parquet({paths}) GROUP BY ALL")
    counts = Counter()
    for info in manifest.splits.values():
        counts.update(dict(zip(manifest.class_names, info.class_counts, strict=True)))
    assert dict(result.fetchall()) == counts
    biggest = duckdb.sql(
        f"SELECT id, octet_length(image.bytes) AS size FROM read_parquet({paths}) "
        "ORDER BY size DESC, id LIMIT 1"
    ).fetchall()
    sizes = {r["id"]: len(r["image"]["bytes"]) for p in paths for r in pq.read_table(p).to_pylist()}
    assert biggest[0] == min(sizes.items(), key=lambda item: (-item[1], item[0]))


def test_pyarrow_reads_shards_as_one_data_set(manifest, paths):
    result = pyarrow.dataset.dataset(paths, format="parquet")
    assert result.schema.equals(SCHEMA)
    one = result.to_table(columns=["id"], filter=pyarrow.dataset.field("label") == 3)
    assert len(one) == sum(info.class_counts[3] for info in manifest.splits.values())


def test_row_metadata_matches_the_photos(manifest, paths):
    for path in paths:
        for row in pq.read_table(path).to_pylist():
            data = row["image"]["bytes"]
            with Image.open(io.BytesIO(data)) as image:
                assert (row["width"], row["height"]) == image.size
            assert row["sha256"] == sha256(data).hexdigest()
            assert row["phash"] == int(perceptual_hashes(inspect(data).thumbnail[None])[0])
            class_info = manifest.vocabulary[row["label"]]
            assert (row["target_text"], row["species"]) == (class_info.name, class_info.species)
            assert path.rsplit("/", 1)[1].startswith(f"{row['split']}-")


def test_shards_and_row_groups_are_bounded(tmp_path, jpeg):
    for number in range(60):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 300, 300))
    manifest = ingest(config(tmp_path, tmp_path / "photos", valid_fraction=0.2))
    shards = [shard for info in manifest.splits.values() for shard in info.shards]
    assert len(shards) > 4
    for shard in shards:
        metadata = pq.read_metadata(manifest.shard_url(shard))
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert set(sizes[:-1]) <= {ROWS}
        assert 0 < sizes[-1] <= ROWS
        images = pq.read_table(manifest.shard_url(shard), columns=["image"])["image"].to_pylist()
        assert sum(len(image["bytes"]) for image in images) <= MIB


def test_photo_bytes_are_uncompressed_and_other_columns_compressed(paths):
    group = pq.read_metadata(paths[0]).row_group(0)
    codecs = {c.path_in_schema: c.compression for c in map(group.column, range(group.num_columns))}
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
    data = pq.read_table(paths[0])["image"][0]["bytes"].as_py()
    assert data in Path(paths[0]).read_bytes()


def damaged(path, tmp_path, offset, bit=1) -> str:
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= bit
    copy = tmp_path / "damaged.parquet"
    copy.write_bytes(data)
    return str(copy)


def test_flipped_photo_bit_fails_on_read(paths, tmp_path):
    photo = pq.read_table(paths[0])["image"][3]["bytes"].as_py()
    start = Path(paths[0]).read_bytes().index(photo)
    for offset in (start, start + len(photo) // 2, start + len(photo) - 1):
        copy = damaged(paths[0], tmp_path, offset)
        # Without checksum verification, pyarrow returns the wrong bytes.
        assert pq.read_table(copy)["image"][3]["bytes"].as_py() != photo
        with pytest.raises(PetsError, match=r"damaged\.parquet is damaged"):
            read_table(copy)
        with pytest.raises(PetsError, match=r"damaged\.parquet is damaged"):
            read_table(copy, ["image"])


def test_damaged_shard_raises_pets_error_or_reads_all_rows(paths, tmp_path):
    rng = random.Random(0)
    path = min(paths, key=lambda p: pq.read_metadata(p).num_rows)
    whole = pq.read_table(path)
    size = Path(path).stat().st_size
    num_errors = 0
    # Half of the flips hit the last 4 KiB, which contain the footer.
    for offset in [rng.randrange(size) for _ in range(60)] + [
        rng.randrange(size - 4096, size) for _ in range(60)
    ]:
        try:
            table = read_table(damaged(path, tmp_path, offset, 1 << rng.randrange(8)))
        except PetsError:
            num_errors += 1
        else:
            assert table.num_rows == whole.num_rows
    assert num_errors > 60


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet, but long enough to be parsed"])
def test_non_parquet_file_raises_pets_error(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(PetsError, match="damaged"):
        read_table(str(tmp_path / "x.parquet"))
    with pytest.raises(PetsError, match="does not exist"):
        read_table(str(tmp_path / "y.parquet"))


@pytest.mark.real_data
def test_published_head_boxes_are_within_their_photos(real_data, tmp_path):
    manifest = ingest(config(tmp_path, real_data / "oxford-iiit-pet-3breeds-original"))
    rows = [
        row
        for info in manifest.splits.values()
        for shard in info.shards
        for row in pq.read_table(
            manifest.shard_url(shard), columns=["id", "split", "width", "height", "head_box"]
        ).to_pylist()
    ]
    boxed = [row for row in rows if row["head_box"]]
    assert len(boxed) == 296
    for row in boxed:
        box = row["head_box"]
        assert 0 <= box["xmin"] < box["xmax"] <= row["width"]
        assert 0 <= box["ymin"] < box["ymax"] <= row["height"]
    # The authors publish boxes of most trainval photos and of no test photo.
    assert "test" not in {row["split"] for row in boxed}
    assert len(rows) > len(boxed)
