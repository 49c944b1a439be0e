"""The file of a data set's embeddings: written split by split, read a block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import open_parquet
from pets_core.errors import PetsError
from pets_core.records.base import Record, Split

__all__ = [
    "EMBEDDINGS",
    "Embeddings",
    "EmbeddingsInfo",
    "SplitEmbeddings",
    "open_embeddings",
    "unit",
    "write_embeddings",
]

EMBEDDINGS = "embeddings/embeddings.parquet"
"""Where the file lies in a run's folder."""
_KEY = b"pets.embeddings"
_ROWS = 4096
"""In a row group, which is read at once: of a thousand features, 16 MB."""
_NAMES = ("id", "split", "class_name")


class EmbeddingsInfo(Record):
    """What the file says of itself, in the metadata of its schema.

    Attributes:
        model_url: The model.
        model_sha256: Of its weights: another model may come to lie there.
        backbone: Its backbone.
        image_size: Side of the square it sees, pixels.
        num_features: Length of an embedding.
        dataset_url: Folder of the data set's version, which holds the photos.
        dataset_name: Its name.
        dataset_fingerprint: Its fingerprint.
    """

    format_version: Literal[1] = 1
    model_url: str
    model_sha256: str
    backbone: str
    image_size: int
    num_features: int
    dataset_url: str
    dataset_name: str
    dataset_fingerprint: str


class SplitEmbeddings(NamedTuple):
    """The N photos of a split: their ids, names of their classes, and features, (N, D)."""

    split: Split
    ids: Sequence[str]
    class_names: Sequence[str]
    features: NDArray[np.float32]


def write_embeddings(url: str, info: EmbeddingsInfo, splits: Iterable[SplitEmbeddings]) -> int:
    """Write a row a photo: id, split, class_name, embedding.

    Args:
        url: File to write, whole or not at all.
        info: What it is to say of itself.
        splits: Taken one at a time, so that no more need be in memory.

    Returns:
        Photos written.
    """
    schema = _schema(info.num_features).with_metadata({_KEY: info.model_dump_json().encode()})
    count = 0
    with (
        storage.writing(url) as file,
        # Features hardly ever repeat.
        pq.ParquetWriter(
            file, schema, use_dictionary=["split", "class_name"], write_page_checksum=True
        ) as writer,
    ):
        for split, ids, class_names, features in splits:
            for start in range(0, len(ids), _ROWS):
                own = slice(start, start + _ROWS)
                values = pa.array(features[own].reshape(-1))
                columns = [
                    pa.array(ids[own], pa.string()),
                    pa.array([split] * len(ids[own]), pa.string()),
                    pa.array(class_names[own], pa.string()),
                    pa.FixedSizeListArray.from_arrays(values, info.num_features),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(ids)
    return count


def _schema(num_features: int) -> pa.Schema:
    embedding = pa.field("embedding", pa.list_(pa.float32(), num_features))
    return pa.schema([*(pa.field(name, pa.string()) for name in _NAMES), embedding])


class Embeddings:
    """A file that is open: its blocks are read when they are asked for.

    A block has the embeddings of consecutive photos, each divided by its length, so that the
    product of two is the cosine of their angle: float32 (b, D).
    """

    def __init__(self, url: str, parquet: pq.ParquetFile, info: EmbeddingsInfo) -> None:
        self._url, self._parquet, self.info = url, parquet, info

    @property
    def num_photos(self) -> int:
        """Of all blocks."""
        return int(self._parquet.metadata.num_rows)

    def photos(self) -> pa.Table:
        """Columns id, split and class_name, in the order of the embeddings."""
        return self._parquet.read(columns=list(_NAMES))

    def __len__(self) -> int:
        """Number of blocks."""
        return int(self._parquet.num_row_groups)

    def __getitem__(self, number: int, /) -> NDArray[np.float32]:
        """One block.

        Raises:
            PetsError: A value is not finite.
        """
        column = self._parquet.read_row_group(number, ["embedding"])["embedding"]
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all():
            raise PetsError(
                f"{self._url}: holds embeddings that are not finite: run `pets embed` again, and "
                "if they come again, train the model with a lower train.base_lr"
            )
        return unit(values.reshape(-1, self.info.num_features))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (N, D) divided by their lengths; one of length 0, which is like no other, stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, np.where(lengths == 0, 1, lengths), dtype=np.float32)


@contextmanager
def open_embeddings(url: str) -> Iterator[Embeddings]:
    """Open a file of `write_embeddings`, whose pages are verified as they are read.

    Args:
        url: Of the file, or of the folder of the run that wrote it.

    Raises:
        PetsError: It is not there, not such a file, damaged, or of another version.
    """
    url = storage.absolute(url)
    url = url if url.endswith(".parquet") else storage.join(url, EMBEDDINGS)
    with storage.open_read(url) as file:
        try:
            parquet = open_parquet(file)
            yield Embeddings(url, parquet, _info(url, parquet.schema_arrow))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PetsError(f"{url}: no file of embeddings, or damaged: {error}") from error


def _info(url: str, schema: pa.Schema) -> EmbeddingsInfo:
    metadata = schema.metadata or {}
    if _KEY not in metadata:
        raise PetsError(
            f"{url}: no file of embeddings: its schema has no metadata {_KEY.decode()!r} with the "
            "model; give the embeddings.parquet of a run of `pets embed`"
        )
    try:
        info = EmbeddingsInfo.model_validate_json(metadata[_KEY])
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}: its metadata is damaged or of another version: {error}") from error
    for field in _schema(info.num_features):
        place = schema.get_field_index(field.name)
        if place < 0 or schema.field(place).type != field.type:
            found = "no such column" if place < 0 else f"not {schema.field(place).type}"
            raise PetsError(
                f"{url}: no file of embeddings: {field.name} is to be {field.type}, {found}"
            )
    return info
