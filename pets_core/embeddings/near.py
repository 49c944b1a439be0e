"""Near-duplicates by embedding, compared with those of the perceptual hash at ingest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import read_table, write_table
from pets_core.data.ingest.duplicates import SPLIT_ORDER, leaking
from pets_core.embeddings.file import open_embeddings
from pets_core.embeddings.search import Blocks, Pairs, find_close_pairs
from pets_core.records.dataset import DatasetManifest
from pets_core.records.inference import NearDuplicates
from pets_core.storage.layout import DUPLICATES

__all__ = ["NEAR_DUPLICATES", "find_matches", "find_near_duplicates"]

NEAR_DUPLICATES = "embeddings/near_duplicates.parquet"
"""Path of the near-duplicates in a run's folder."""
_NO_MATCH = np.iinfo(np.int64).max
_STEPS = 1 << 24
"""Steps of a quantised similarity: the resolution of float32 near 1."""


def find_matches(
    blocks: Blocks, ids: NDArray[np.object_], splits: NDArray[np.int64], min_similarity: float
) -> Pairs:
    """Find the match of each photo, by the rule of `find_duplicates`.

    A photo is listed with its match in a later split, or else with its match in its own split. In a
    split, the first photo by id is the original and is not listed. Of several matches, the most
    similar is used, then the first by id.

    Args:
        blocks: Unit vectors of N photos.
        ids: Photo ids, (N,).
        splits: Number of each photo's split, larger for a later one, (N,).
        min_similarity: Minimum cosine similarity of a match.

    Returns:
        Row indices of the listed photos, ascending, and of their matches.
    """
    order = np.argsort(ids, kind="stable")
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    # Store one integer key per photo, since all pairs of a large cluster may not fit in memory.
    best = np.full(len(ids), _NO_MATCH)
    for first, second, similarity in find_close_pairs(blocks, min_similarity):
        same = splits[first] == splits[second]
        swap = np.where(same, rank[first] < rank[second], splits[first] > splits[second])
        photo, match = np.where(swap, (second, first), (first, second))
        distance = np.rint((1 - similarity.astype(np.float64).clip(max=1)) * _STEPS).astype(
            np.int64
        )
        np.minimum.at(best, photo, same.astype(np.int64) << 60 | distance << 32 | rank[match])
    listed = np.flatnonzero(best != _NO_MATCH)
    found = best[listed]
    distance = found >> 32 & (1 << 28) - 1
    similarity = (1 - distance / _STEPS).astype(np.float32)
    return Pairs(listed, order[found & (1 << 32) - 1], similarity)


def find_near_duplicates(
    manifest: DatasetManifest, run_url: str, embeddings_url: str, min_similarity: float
) -> NearDuplicates:
    """Find near-duplicates by embedding, and write them to the run's folder.

    Columns: those of `DUPLICATES_SCHEMA` that name two photos; `similarity`, the cosine; `by_hash`,
    whether the perceptual hash also found a match of the same kind (in a later split, or in the
    photo's own split). Photos with a match in a later split come first, then the most similar.

    Args:
        manifest: The data set version.
        run_url: Folder of the run.
        embeddings_url: File of `write_embeddings`.
        min_similarity: Minimum cosine similarity of near-duplicates.
    """
    with open_embeddings(embeddings_url) as file:
        photos = file.photos()
        ids = np.array(photos["id"].to_pylist(), object)
        splits = np.array([SPLIT_ORDER[name] for name in photos["split"].to_pylist()], np.int64)
        found = find_matches(file, ids, splits, min_similarity)
    table = _table(photos, found)
    kinds = _kinds(table)
    by_hash = set(_kinds(read_table(storage.join(manifest.url, DUPLICATES))))
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
    """Return a row for each photo and its match."""
    own, other = photos.take(found.first), photos.take(found.second)
    names = [*photos.column_names, *(f"match_{name}" for name in photos.column_names)]
    table = pa.Table.from_arrays([*own.columns, *other.columns], names)
    return table.append_column("similarity", pa.array(found.similarity))


def _kinds(table: pa.Table) -> list[tuple[str, bool]]:
    """Return each listed photo, and whether its match is in a later split."""
    leaks = set(leaking(table)["id"].to_pylist())
    return [(photo, photo in leaks) for photo in table["id"].to_pylist()]
