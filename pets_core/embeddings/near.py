"""Near-duplicates by embedding, beside those that the perceptual hash found at ingest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import read_table, write_table
from pets_core.data.ingest.duplicates import SPLIT_ORDER, leaking
from pets_core.embeddings.file import open_embeddings
from pets_core.embeddings.search import Blocks, Pairs, close_pairs
from pets_core.records.dataset import DatasetManifest
from pets_core.records.inference import NearDuplicates

__all__ = ["NEAR_DUPLICATES", "find_near_duplicates", "likes"]

NEAR_DUPLICATES = "embeddings/near_duplicates.parquet"
"""Where they lie in a run's folder."""
_NOBODY = np.iinfo(np.int64).max
_STEPS = 1 << 24
"""Of a similarity: float32 tells no finer ones apart near 1."""


def likes(
    blocks: Blocks, ids: NDArray[np.object_], splits: NDArray[np.int64], min_similarity: float
) -> Pairs:
    """Find each photo's like, by the rule of `find_duplicates`, so that both can be compared.

    A photo is listed with its like in a later split, and where there is none, with its like in its
    own split, of which the first by id is taken for the original and not listed. Of several likes
    the most similar counts, then the first by id.

    Args:
        blocks: Unit vectors of N photos.
        ids: (N,).
        splits: A number for each photo's split, larger for a later one, (N,).
        min_similarity: Least cosine of photos that are alike.

    Returns:
        Places of the photos that are listed, in rising order, and of their likes.
    """
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    # One number a photo, as all pairs of a crowd would not fit in memory.
    best = np.full(len(ids), _NOBODY)
    for first, second, similarity in close_pairs(blocks, min_similarity):
        same = splits[first] == splits[second]
        swap = np.where(same, rank[first] < rank[second], splits[first] > splits[second])
        photo, like = np.where(swap, (second, first), (first, second))
        apart = np.rint((1 - similarity.astype(np.float64).clip(max=1)) * _STEPS).astype(np.int64)
        np.minimum.at(best, photo, same.astype(np.int64) << 60 | apart << 32 | rank[like])
    listed = np.flatnonzero(best != _NOBODY)
    found = best[listed]
    apart = found >> 32 & (1 << 28) - 1
    similarity = (1 - apart / _STEPS).astype(np.float32)
    return Pairs(listed, order[found & (1 << 32) - 1], similarity)


def find_near_duplicates(
    manifest: DatasetManifest, run_url: str, embeddings_url: str, min_similarity: float
) -> NearDuplicates:
    """List the photos whose embedding is near another's, and write them into the run's folder.

    Columns: those of `DUPLICATES_SCHEMA` that name two photos; `similarity`, the cosine; `by_hash`,
    whether the perceptual hash found a like of the same kind, in a later split or in the photo's
    own. Those with a like in a later split come first, then the most similar.

    Args:
        manifest: The data set's version.
        run_url: Folder of the run.
        embeddings_url: File of `write_embeddings`.
        min_similarity: Least cosine of near-duplicates.
    """
    with open_embeddings(embeddings_url) as file:
        photos = file.photos()
        ids = np.array(photos["id"].to_pylist(), object)
        splits = np.array([SPLIT_ORDER[name] for name in photos["split"].to_pylist()], np.int64)
        found = likes(file, ids, splits, min_similarity)
    table = _table(photos, found)
    kinds = _kinds(table)
    by_hash = set(_kinds(read_table(storage.join(manifest.url, "duplicates.parquet"))))
    both = [kind in by_hash for kind in kinds]
    table = table.append_column("by_hash", pa.array(both, pa.bool_()))
    leaks = np.array([leaks for _, leaks in kinds], bool)
    order = np.lexsort((ids[found.first].astype(str), -found.similarity, ~leaks))
    url = storage.join(run_url, NEAR_DUPLICATES)
    write_table(url, table.take(order))
    return NearDuplicates(
        url=url,
        embeddings_url=embeddings_url,
        num_photos=len(ids),
        min_similarity=min_similarity,
        num_both=sum(both),
        num_only_embedding=len(both) - sum(both),
        num_only_hash=len(by_hash - set(kinds)),
        num_leaking=int(leaks.sum()),
        num_leaking_only_embedding=int((leaks & ~np.array(both, bool)).sum()),
    )


def _table(photos: pa.Table, found: Pairs) -> pa.Table:
    """Who is like whom, a row each."""
    own, other = photos.take(found.first), photos.take(found.second)
    names = [*photos.column_names, *(f"match_{name}" for name in photos.column_names)]
    table = pa.Table.from_arrays([*own.columns, *other.columns], names)
    return table.append_column("similarity", pa.array(found.similarity))


def _kinds(table: pa.Table) -> list[tuple[str, bool]]:
    """Each photo that is listed, and whether its like is in a later split."""
    leaks = set(leaking(table)["id"].to_pylist())
    return [(photo, photo in leaks) for photo in table["id"].to_pylist()]
