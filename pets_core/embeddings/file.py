"""Embeddings file of a data set: written split by split, read block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import (
    check_columns,
    list_column,
    open_described,
    select_columns,
)
from pets_core.errors import PetsError
from pets_core.records.base import Record, Split

__all__ = [
    "EMBEDDINGS",
    "Embeddings",
    "EmbeddingsInfo",
    "SplitEmbeddings",
    "normalize",
    "open_embeddings",
    "write_embeddings",
]

EMBEDDINGS = "embeddings/embeddings.parquet"
"""Path of the file in a run's folder."""
_KEY = b"pets.embeddings"
_ROWS = 4096
"""Rows per row group, which is read as one block: 16 MB for a thousand features."""
_NAMES = ("id", "split", "target_text")
_VERSION_1_NAMES = ("id", "split", "class_name")


class EmbeddingsInfo(Record):
    """Metadata of an embeddings file, stored in its schema.

    Attributes:
        format_version: 2. Version 1, with a column `class_name`, can be read.
        model_url: Folder of the model.
        model_sha256: SHA-256 of the weights, to detect that `model_url` has another model.
        backbone: Backbone of the model.
        image_size: Side of the model's input, pixels.
        num_features: Length of an embedding.
        dataset_url: Folder of the data set version.
        dataset_name: Name of the data set.
        dataset_fingerprint: Fingerprint of the data set version.
    """

    format_version: Literal[1, 2] = 2
    model_url: str
    model_sha256: str
    backbone: str
    image_size: int
    num_features: int
    dataset_url: str
    dataset_name: str
    dataset_fingerprint: str


class SplitEmbeddings(NamedTuple):
    """Ids, target texts and features (N, D) of the N photos of a split."""

    split: Split
    ids: Sequence[str]
    target_texts: Sequence[str]
    features: NDArray[np.float32]


def write_embeddings(url: str, info: EmbeddingsInfo, splits: Iterable[SplitEmbeddings]) -> int:
    """Write one row per photo, atomically: id, split, target_text, embedding.

    Args:
        url: File to write.
        info: Metadata of the file.
        splits: Consumed one by one, so that only one split is in memory.

    Returns:
        Number of photos.
    """
    schema = _schema(info).with_metadata({_KEY: info.model_dump_json().encode()})
    count = 0
    with (
        storage.writing(url) as file,
        # No dictionary for the features, which rarely repeat.
        pq.ParquetWriter(
            file, schema, use_dictionary=["split", "target_text"], write_page_checksum=True
        ) as writer,
    ):
        for split, ids, target_texts, features in splits:
            for start in range(0, len(ids), _ROWS):
                own = slice(start, start + _ROWS)
                columns = [
                    pa.array(ids[own], pa.string()),
                    pa.array([split] * len(ids[own]), pa.string()),
                    pa.array(target_texts[own], pa.string()),
                    list_column(features[own]),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(ids)
    return count


def _schema(info: EmbeddingsInfo) -> pa.Schema:
    names = _NAMES if info.format_version > 1 else _VERSION_1_NAMES
    embedding = pa.field("embedding", pa.list_(pa.float32(), info.num_features))
    return pa.schema([*(pa.field(name, pa.string()) for name in names), embedding])


class Embeddings:
    """An open embeddings file; blocks are read on access.

    A block has the unit-length embeddings of consecutive photos, float32 (b, D). The dot product of
    two is their cosine similarity.
    """

    def __init__(self, url: str, parquet: pq.ParquetFile, info: EmbeddingsInfo) -> None:
        self._url, self._parquet, self.info = url, parquet, info

    @property
    def num_photos(self) -> int:
        """Number of photos in all blocks."""
        return int(self._parquet.metadata.num_rows)

    def photos(self) -> pa.Table:
        """Columns id, split and target_text, in the order of the embeddings."""
        columns = [field.name for field in _schema(self.info) if field.name != "embedding"]
        return select_columns(self._parquet.read(columns=columns), _NAMES)

    def __len__(self) -> int:
        """Number of blocks."""
        return int(self._parquet.num_row_groups)

    def __getitem__(self, number: int, /) -> NDArray[np.float32]:
        """Read a block.

        Raises:
            PetsError: A value is not finite.
        """
        column = self._parquet.read_row_group(number, ["embedding"])["embedding"]
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all():
            raise PetsError(
                f"{self._url}: embeddings are not finite: run `pets embed` again; if the error "
                "persists, train the model with a lower train.base_lr"
            )
        return normalize(values.reshape(-1, self.info.num_features))


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors (N, D) to unit length; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, np.where(lengths == 0, 1, lengths), dtype=np.float32)


@contextmanager
def open_embeddings(url: str) -> Iterator[Embeddings]:
    """Open a file of `write_embeddings`; page checksums are verified on read.

    Args:
        url: The file, or the folder of the run that wrote it.

    Raises:
        PetsError: The file is missing, damaged, not an embeddings file or of another version.
    """
    url = storage.absolute(url)
    url = url if url.endswith(".parquet") else storage.join(url, EMBEDDINGS)
    remedy = "use the embeddings.parquet of a `pets embed` run"
    opened = open_described(url, _KEY, EmbeddingsInfo, "an embeddings file", remedy)
    with opened as (parquet, info):
        check_columns(url, parquet, _schema(info), "an embeddings file")
        yield Embeddings(url, parquet, info)
