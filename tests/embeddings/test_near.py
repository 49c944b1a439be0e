"""Near-duplicates by embedding, listed by the same rule as those by hash."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.dataset import DUPLICATES_SCHEMA, write_table
from pets_core.embeddings.file import normalize
from pets_core.embeddings.near import find_matches, find_near_duplicates
from pets_core.records.dataset import ClassInfo, DatasetManifest


@st.composite
def photos(draw):
    """Draw unit vectors, many of them equal or near; shuffled ids; and splits."""
    count = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Angles are multiples of a step, so no cosine is within rounding of another or the threshold.
    angles = rng.integers(0, 60, count) / 20
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    ids = np.array([f"{number:02}" for number in rng.permutation(count)], object)
    return normalize(vectors), ids, rng.integers(0, 3, count)


@given(photos(), st.integers(0, 30))
def test_each_photo_is_listed_with_its_best_match(drawn, cut):
    vectors, ids, splits = drawn
    min_similarity, cosines = float(np.cos(0.12)), (vectors @ vectors.T).round(4)
    expected = {}
    for own in range(len(ids)):
        later = [m for m in range(len(ids)) if splits[m] > splits[own]]
        before = [m for m in range(len(ids)) if splits[m] == splits[own] and ids[m] < ids[own]]
        for candidates in (later, before):
            near = [m for m in candidates if cosines[own, m] >= min_similarity]
            if near:
                expected[own] = min(near, key=lambda m: (-cosines[own, m], ids[m]))
                break
    found = find_matches(np.split(vectors, [min(cut, len(ids))]), ids, splits, min_similarity)
    # Cosines of equal vectors differ by rounding, so any of these vectors may be the match.
    assert found.first.tolist() == sorted(expected)
    for own, match, value in zip(*(column.tolist() for column in found), strict=True):
        best = expected[own]
        assert (splits[match] > splits[own]) == (splits[best] > splits[own])
        assert cosines[own, match] == cosines[own, best]
        assert value == pytest.approx(cosines[own, match], abs=1e-4)


PHOTOS = {
    "train-a": ("train", "pug", 0.0), "train-b": ("train", "pug", 0.01),
    "train-c": ("train", "pug", 1.0), "train-d": ("train", "pug", -1.2),
    "train-e": ("train", "pug", -1.2), "test-a": ("test", "boxer", 0.007),
    "test-c": ("test", "pug", 2.0),
}  # fmt: skip
"""Split, class, and the angle of the embedding."""


@pytest.fixture
def manifest(tmp_path) -> DatasetManifest:
    """Version with two matches by hash: train-b in its own split, and train-c."""
    rows = [
        ("train-b", "train", "pug", "train-a", "train", "pug", 2, False),
        ("train-c", "train", "pug", "test-c", "test", "pug", 6, False),
    ]
    table = pa.Table.from_pylist(
        [dict(zip(DUPLICATES_SCHEMA.names, row, strict=True)) for row in rows], DUPLICATES_SCHEMA
    )
    write_table(f"{tmp_path}/duplicates.parquet", table)
    return DatasetManifest(
        name="d", fingerprint="f", url=str(tmp_path), source_url="s", splits={},
        vocabulary=(ClassInfo(name="boxer"), ClassInfo(name="pug")), num_quarantined=0,
        quarantine_reasons={},
    )  # fmt: skip


def test_matches_by_embedding_and_by_hash_are_compared(manifest, tmp_path, write_some):
    url = write_some(
        {photo: (split, name, [np.cos(angle), np.sin(angle)])
         for photo, (split, name, angle) in PHOTOS.items()}
    )  # fmt: skip
    found = find_near_duplicates(manifest, str(tmp_path), url, 0.99)
    rows = pq.read_table(found.url).to_pylist()
    assert [(row["id"], row["match_id"], row["by_hash"]) for row in rows] == [
        ("train-b", "test-a", False),
        ("train-a", "test-a", False),
        ("train-e", "train-d", False),
    ], "leaking photos come first, also train-b, whose leak the hash missed"
    assert rows[0]["match_target_text"] == "boxer"
    assert rows[0]["similarity"] == pytest.approx(np.cos(0.003), abs=1e-6)
    assert (found.num_photos, found.min_similarity) == (7, 0.99)
    assert (found.num_both, found.num_only_embedding, found.num_only_hash) == (0, 3, 2)
    assert (found.num_leaking, found.num_leaking_only_embedding) == (2, 2)
    wider = find_near_duplicates(manifest, str(tmp_path), url, float(np.cos(1.001)))
    assert [row["id"] for row in pq.read_table(wider.url).to_pylist() if row["by_hash"]] == [
        "train-c"
    ]
    assert (wider.num_both, wider.num_only_hash) == (1, 1)


def test_no_matches_write_an_empty_table(manifest, tmp_path, write_some):
    url = write_some({"a": ("train", "pug", [1, 0]), "b": ("test", "pug", [0, 1])})
    found = find_near_duplicates(manifest, str(tmp_path), url, 0.5)
    assert pq.read_table(found.url).num_rows == 0
    assert (found.num_both, found.num_only_embedding, found.num_leaking) == (0, 0, 0)
