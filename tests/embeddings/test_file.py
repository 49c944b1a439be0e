"""Embeddings file: round trip and validation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.embeddings import file as module
from pets_core.embeddings.file import (
    EMBEDDINGS,
    EmbeddingsInfo,
    SplitEmbeddings,
    open_embeddings,
    write_embeddings,
)
from pets_core.errors import PetsError


def info(num_features: int) -> EmbeddingsInfo:
    return EmbeddingsInfo(
        model_url="/m", model_sha256="0", backbone="b", image_size=64, num_features=num_features,
        dataset_url="/d", dataset_name="d", dataset_fingerprint="f",
    )  # fmt: skip


@pytest.fixture
def drawn() -> list[SplitEmbeddings]:
    rng = np.random.default_rng(0)
    return [
        SplitEmbeddings(
            split, [f"{split}-{n}" for n in range(count)], ["pug"] * count,
            rng.normal(size=(count, 5)).astype(np.float32),
        )
        for split, count in (("train", 11), ("valid", 1), ("test", 4))
    ]  # fmt: skip


@pytest.fixture
def written(drawn, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(module, "_ROWS", 4)
    url = f"{tmp_path}/{EMBEDDINGS}"
    assert write_embeddings(url, info(5), drawn) == 16
    return url


def test_round_trip_preserves_embeddings(drawn, written):
    table = pq.read_table(written)
    assert table.column_names == ["id", "split", "target_text", "embedding"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 5)
    features = np.concatenate([split.features for split in drawn])
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), features)
    with open_embeddings(written) as file:
        assert file.info == info(5)
        assert file.num_photos == 16
        blocks = [file[number] for number in range(len(file))]
        ids = file.photos()["id"].to_pylist()
    assert [len(block) for block in blocks] == [4, 4, 3, 1, 4]
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate(blocks), features / lengths, rtol=1e-6)
    assert ids == [photo for split in drawn for photo in split.ids]


def test_run_folder_is_accepted_in_place_of_the_file(written, tmp_path):
    with open_embeddings(str(tmp_path)) as file:
        assert file.num_photos == 16


def read_all(url: object) -> None:
    with open_embeddings(str(url)) as file:
        file.photos()
        for number in range(len(file)):
            file[number]


def test_failed_write_leaves_no_file(drawn, tmp_path):
    def failing():
        yield drawn[0]
        raise RuntimeError("the second split")

    with pytest.raises(RuntimeError):
        write_embeddings(f"{tmp_path}/e.parquet", info(5), failing())
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path, written):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(PetsError, match=r"no metadata 'pets.embeddings'; use the embeddings.parq"):
        read_all(other)
    (tmp_path / "text.parquet").write_text("a,b")
    with pytest.raises(PetsError, match=r"text.parquet: not an embeddings file, or damaged"):
        read_all(tmp_path / "text.parquet")
    with pytest.raises(PetsError, match=r"no/embeddings/embeddings.parquet does not exist"):
        read_all(tmp_path / "no")


@pytest.mark.parametrize("column", ["id", "split", "target_text", "embedding"])
def test_file_without_a_column_is_refused(written, column):
    pq.write_table(pq.read_table(written).drop_columns([column]), written)
    with pytest.raises(PetsError, match=f"{column} must be .*no such column"):
        read_all(written)


def test_embeddings_of_another_length_are_refused(written):
    table = pq.read_table(written)
    short = pa.array([[1.0]] * 16, pa.list_(pa.float32(), 1))
    pq.write_table(table.set_column(3, pa.field("embedding", short.type), short), written)
    with pytest.raises(PetsError, match=r"embedding must be fixed_size_list.*\[5\], not fixed"):
        read_all(written)


def test_metadata_of_another_version_is_refused(written):
    table = pq.read_table(written)
    changed = table.schema.metadata[b"pets.embeddings"].replace(b'"format_version":2', b'"v":3')
    pq.write_table(table.replace_schema_metadata({"pets.embeddings": changed}), written)
    with pytest.raises(PetsError, match=r"the metadata is damaged or of another version"):
        read_all(written)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_embeddings_are_refused(drawn, tmp_path, value):
    drawn[2].features[1, 2] = value
    url = str(tmp_path / "e.parquet")
    write_embeddings(url, info(5), drawn)
    with pytest.raises(PetsError, match=r"not finite: run `pets embed` again"):
        read_all(url)


def test_damaged_bytes_never_change_the_embeddings(written):
    data, intact = Path(written).read_bytes(), pq.read_table(written)
    for index in range(0, len(data), 23):
        Path(written).write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        try:
            read_all(written)
        except PetsError:
            continue
        assert pq.read_table(written).equals(intact)
