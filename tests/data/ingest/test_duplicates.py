"""Duplicates: hashes match ImageHash, all near pairs are found, leaks have a direction."""

import io
from itertools import combinations, islice

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import DUPLICATES_SCHEMA
from pets_core.data.ingest import commit as ingest_module
from pets_core.data.ingest import duplicates as duplicates_module
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.duplicates import (
    drop_leaking,
    find_duplicates,
    leaking,
    near_pairs,
    perceptual_hashes,
)
from pets_core.data.ingest.images import inspect
from pets_core.data.sources.archives import open_archive

SMALL = 6  # bits: ingest.near_duplicate_bits


def library_hash(thumbnail) -> int:
    return int(str(imagehash.phash(Image.fromarray(thumbnail))), 16)


def phash(data: bytes) -> int:
    return int(perceptual_hashes(inspect(data).thumbnail[None])[0])


def distance(one: bytes, other: bytes) -> int:
    return (phash(one) ^ phash(other)).bit_count()


@settings(deadline=None)  # the first hash of imagehash imports SciPy
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_hashes_of_random_pictures_match_imagehash(seed, count):
    pictures = np.random.default_rng(seed).integers(0, 256, (count, 32, 32)).astype(np.uint8)
    assert perceptual_hashes(pictures).tolist() == [library_hash(p) for p in pictures]


def test_hashes_of_sample_photos_match_imagehash(drawn_sample, tmp_path):
    files = open_archive(str(drawn_sample / "images.tar.gz"), str(tmp_path))
    paths = [entry.path for entry in files.entries()]
    pictures = np.stack([inspect(data).thumbnail for data in files.read(paths)])
    hashes = perceptual_hashes(pictures).tolist()
    assert hashes == [library_hash(p) for p in pictures]
    assert len(set(hashes)) > 100


@given(arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(32), st.just(32))))
def test_hash_is_independent_of_the_batch(pictures):
    single = [int(perceptual_hashes(p[None])[0]) for p in pictures]
    assert perceptual_hashes(pictures).tolist() == single


@pytest.mark.parametrize("kind", ["flat", "mirrored"])
def test_hash_of_equal_frequencies_is_independent_of_rounding(kind):
    # In exact arithmetic, brightness changes only the first frequency.
    half = np.random.default_rng(1).integers(50, 150, (40, 32, 16))
    dark = np.concatenate([half, half[:, :, ::-1]], axis=2) if kind == "mirrored" else None
    dark = np.full((1, 32, 32), 60) if dark is None else dark
    hashes = [perceptual_hashes((dark + more).astype(np.uint8)) for more in range(0, 100, 7)]
    assert all((other == hashes[0]).all() for other in hashes)


def brute_force(hashes, bits) -> set[tuple[int, int]]:
    return {
        (a, b)
        for b in range(len(hashes))
        for a in range(b)
        if (hashes[a] ^ hashes[b]).bit_count() <= bits
    }


def find_pairs(hashes, bits) -> set[tuple[int, int]]:
    pairs = set()
    for first, second in near_pairs(np.array(hashes, np.uint64), bits):
        pairs |= set(zip(first.tolist(), second.tolist(), strict=True))
    return pairs


@st.composite
def clustered(draw):
    """Hashes of which some are near; random hashes almost never are."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), max_size=12))
    for _ in range(draw(st.integers(0, 40)) if hashes else 0):
        flipped = draw(st.sets(st.integers(0, 63), max_size=18))
        hashes.append(draw(st.sampled_from(hashes)) ^ sum(1 << bit for bit in flipped))
    return draw(st.permutations(sorted(set(hashes))))


@settings(deadline=None, max_examples=60)  # 16 bits take thousands of small steps
@given(clustered(), st.sampled_from([0, 1, 2, 6, 9, 16]))
def test_near_pairs_match_brute_force(hashes, bits):
    assert find_pairs(hashes, bits) == brute_force(hashes, bits)


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 16])
@pytest.mark.parametrize("shared", [0, 0x00FF00FF00FF00FF, 0xFFFFFFFF << 32])
def test_hashes_that_share_most_bands_are_all_compared(bits, shared):
    low = np.random.default_rng(3).permutation(1 << 12)[:300]
    hashes = [shared ^ int(number) for number in low]
    assert find_pairs(hashes, bits) == brute_force(hashes, bits)


def near_hashes(count: int) -> list[int]:
    """Hashes that differ pairwise in at most 6 bits, as those of white backgrounds may."""
    near = (sum(1 << bit for bit in flipped) for flipped in combinations(range(60), 3))
    return list(islice(near, count))


def test_cluster_of_near_hashes_is_compared_in_linear_time(monkeypatch):
    monkeypatch.setattr(duplicates_module, "_MAX_CANDIDATES", 16)
    num_compared = [
        sum(len(first) for first, _ in near_pairs(np.array(near_hashes(count), np.uint64), SMALL))
        for count in (5_000, 20_000)
    ]
    assert num_compared[1] < 5 * num_compared[0], "all pairs would be 16 times as many"
    assert num_compared[1] < 20_000 * 16 * 4 * 17  # number of bands, variants per band


def test_all_photos_and_leaks_of_a_cluster_are_listed(monkeypatch):
    monkeypatch.setattr(duplicates_module, "_MAX_CANDIDATES", 16)
    test_photos = [(f"z{n}", "test", "x", f"z{n}", 1 << n) for n in range(3)]
    train_photos = [
        (f"a{n:04}", "train", "x", f"a{n}", h) for n, h in enumerate(near_hashes(3_000))
    ]
    other_photos = [("b1", "train", "x", "b1", 2**62 - 1), ("b2", "train", "x", "b2", 2**62 - 2)]
    duplicates = find_duplicates(table(*test_photos, *train_photos, *other_photos), SMALL)
    assert leaking(duplicates)["id"].to_pylist() == [photo[0] for photo in train_photos]
    other_ids = set(duplicates["id"].to_pylist()) - {photo[0] for photo in train_photos}
    assert other_ids == {"b2", "z1", "z2"}
    assert set(leaking(duplicates)["distance"].to_pylist()) == {2}


def test_fewer_than_two_hashes_have_no_pairs():
    assert find_pairs([], SMALL) == find_pairs([7], SMALL) == set()


@pytest.fixture(scope="module")
def photos(drawn_sample, tmp_path_factory) -> list[bytes]:
    """Sample photos of several breeds."""
    files = open_archive(
        str(drawn_sample / "images.tar.gz"), str(tmp_path_factory.mktemp("packed"))
    )
    return list(files.read([e.path for e in files.entries()][:40:2]))


def changed(data: bytes, change: str) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if change == "resized":
        image = image.resize((image.width * 2 // 3, image.height * 2 // 3))
    elif change == "brightened":
        image = ImageEnhance.Brightness(image).enhance(1.05)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40 if change == "compressed" else 90)
    return buffer.getvalue()


@pytest.mark.parametrize("change", ["compressed", "resized", "brightened"])
def test_an_altered_photo_is_near(photos, change):
    distances = [distance(photo, changed(photo, change)) for photo in photos]
    assert max(distances) <= SMALL


def test_different_photos_are_not_near(photos):
    assert not find_pairs([phash(photo) for photo in photos], SMALL)


def table(*rows) -> pa.Table:
    names = ("id", "split", "target_text", "sha256", "phash")
    columns = zip(*rows, strict=True)
    result = pa.table(dict(zip(names, map(list, columns), strict=True)))
    return result.set_column(4, "phash", result["phash"].cast(pa.uint64()))


def list_matches(*rows, bits=SMALL) -> dict[str, tuple]:
    duplicates = find_duplicates(table(*rows), bits)
    assert duplicates.schema.equals(DUPLICATES_SCHEMA)
    ids = duplicates["id"].to_pylist()
    assert ids == sorted(ids)
    return {r["id"]: (r["match_id"], r["distance"], r["exact"]) for r in duplicates.to_pylist()}


def test_equal_bytes_are_exact_and_close_hashes_near():
    assert list_matches(
        ("a", "train", "x", "s1", 0b0),
        ("b", "train", "x", "s1", 0b0),
        ("c", "train", "x", "s2", 0b111),
        ("d", "train", "x", "s3", 0b0),
        ("e", "train", "x", "s4", (1 << 40) - 1),
    ) == {"b": ("a", 0, True), "c": ("a", 3, False), "d": ("a", 0, False)}


def test_zero_bits_match_only_equal_hashes():
    rows = (
        ("a", "train", "x", "1", 5), ("b", "train", "x", "2", 5), ("c", "train", "x", "3", 4),
    )  # fmt: skip
    assert list_matches(*rows, bits=0) == {"b": ("a", 0, False)}


def test_only_the_copy_in_the_earlier_split_is_leaking():
    rows = (
        ("a", "test", "x", "1", 0),
        ("b", "train", "x", "2", 1),
        ("c", "valid", "x", "3", 0xFF << 50),
        ("d", "train", "x", "4", 0xFF << 50),
        ("e", "test", "x", "3", 0xFF << 50),
    )
    assert list_matches(*rows) == {"b": ("a", 1, False), "c": ("e", 0, True), "d": ("c", 0, False)}
    leaks = leaking(find_duplicates(table(*rows), SMALL))
    assert leaks["id"].to_pylist() == ["b", "c", "d"]


def test_match_in_a_later_split_outranks_a_nearer_one():
    rows = (
        ("a", "train", "x", "same", 0),
        ("b", "train", "x", "same", 0),
        ("c", "test", "x", "other", 0b11111),
    )
    assert list_matches(*rows) == {"a": ("c", 5, False), "b": ("c", 5, False)}


def test_nearest_then_first_match_in_later_splits_is_listed():
    rows = (
        ("a", "train", "x", "1", 0),
        ("b", "test", "x", "2", 0b11),
        ("c", "valid", "x", "3", 0b1),
        ("d", "valid", "x", "4", 0b10),
    )
    assert list_matches(*rows)["a"] == ("c", 1, False)


def test_first_copy_is_not_listed():
    rows = [(f"p{n}", "train", "x", "same", 9) for n in range(5)]
    assert list_matches(*rows) == {f"p{n}": ("p0", 0, True) for n in range(1, 5)}
    assert not leaking(find_duplicates(table(*rows), SMALL)).num_rows


def test_label_of_the_match_is_listed():
    rows = (("a", "train", "cat", "1", 0), ("b", "train", "dog", "1", 0))
    (row,) = find_duplicates(table(*rows), SMALL).to_pylist()
    assert (row["target_text"], row["match_target_text"]) == ("dog", "cat")


photo_rows = st.lists(
    st.tuples(
        st.sampled_from(["train", "valid", "test"]),
        st.sampled_from(["x", "y"]),
        st.sampled_from([0, 1, 0b11, 0xFF, 0x1FF, 1 << 50, (1 << 50) + 1]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=25,
)


@given(photo_rows, st.randoms())
def test_photo_is_listed_if_it_leaks_or_repeats_an_earlier_photo(rows, random):
    order = {"train": 0, "valid": 1, "test": 2}
    photos = [(f"{n:02}", s, c, f"{h}-{v}", h) for n, (s, c, h, v) in enumerate(rows)]

    def has_match(photo, is_match):
        return any(
            (p[4] ^ photo[4]).bit_count() <= 2 and is_match(p) for p in photos if p is not photo
        )

    leaks = {p[0] for p in photos if has_match(p, lambda o, p=p: order[p[1]] < order[o[1]])}
    repeats = {p[0] for p in photos if has_match(p, lambda o, p=p: p[1] == o[1] and o[0] < p[0])}
    expected = find_duplicates(table(*photos), 2)
    assert set(expected["id"].to_pylist()) == leaks | repeats
    assert set(leaking(expected)["id"].to_pylist()) == leaks
    random.shuffle(photos)
    assert find_duplicates(table(*photos), 2).equals(expected)


@settings(deadline=None)
# The second matches the first; only the first matches the third.
@example([("train", "x", 0b11, 0), ("train", "x", 0, 0), ("test", "x", 0b1111, 0)])
@given(photo_rows)
def test_drop_leaking_equals_a_new_search(rows):
    photos = table(*((f"{n:02}", s, c, f"{h}-{v}", h) for n, (s, c, h, v) in enumerate(rows)))
    duplicates = find_duplicates(photos, 2)
    leaks = set(leaking(duplicates)["id"].to_pylist())
    left = photos.filter(pa.array([i not in leaks for i in photos["id"].to_pylist()], pa.bool_()))
    assert drop_leaking(duplicates, left, 2).equals(find_duplicates(left, 2))


@pytest.fixture
def leaky(tmp_path, jpeg, write_oxford) -> PipelineConfig:
    """Oxford source of many shards; test photo Cat_901 is training photo Cat_1, recompressed."""
    names = {split: [f"{c}_{start + n}" for c in ("Cat", "dog") for n in range(30)]
             for split, start in (("trainval", 1), ("test", 900))}  # fmt: skip
    lists = {
        f"{split}.txt": "".join(f"{n} {1 + (n[0] == 'd')} {1 + (n[0] == 'd')} 1\n" for n in own)
        for split, own in names.items()
    }
    all_names = [name for own in names.values() for name in own]
    data = {name: jpeg(place, 300, 300) for place, name in enumerate(all_names)}
    data["Cat_901"] = changed(data["Cat_1"], "compressed")
    write_oxford(tmp_path / "pets", [(f"{n}.jpg", data[n]) for n in all_names], lists)
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(tmp_path / "pets")},
            "ingest": {"shard_mib": 1, "num_workers": 2},
        }
    )


def with_drop(config: PipelineConfig) -> PipelineConfig:
    ingest_config = config.ingest.model_copy(update={"duplicates": "drop"})
    return config.model_copy(update={"ingest": ingest_config, "store": f"{config.store}-drop"})


def ids(manifest, split) -> set[str]:
    shards = manifest.splits[split].shards
    return {i for s in shards for i in pq.read_table(manifest.shard_url(s))["id"].to_pylist()}


def test_leaks_are_counted_and_kept_by_default(leaky):
    manifest = ingest(leaky)
    assert manifest.duplicates == {"exact": 0, "near": 1, "leaking": 1, "conflicting": 0}
    (row,) = pq.read_table(f"{manifest.url}/duplicates.parquet").to_pylist()
    assert (row["id"], row["match_id"]) == ("Cat_1", "Cat_901")
    assert (row["split"] in ("train", "valid"), row["match_split"]) == (True, "test")
    assert manifest.num_rows == 120


def test_drop_quarantines_only_the_training_photo(leaky):
    kept, dropped = ingest(leaky), ingest(with_drop(leaky))
    (row,) = pq.read_table(f"{dropped.url}/quarantine.parquet").to_pylist()
    assert (row["id"], row["path"], row["reason"]) == ("Cat_1", "images/Cat_1.jpg", "duplicate")
    assert "Cat_901" in row["detail"]
    assert ids(dropped, "test") == ids(kept, "test")
    kept_ids = ids(kept, "train") | ids(kept, "valid")
    assert ids(dropped, "train") | ids(dropped, "valid") == kept_ids - {"Cat_1"}
    assert dropped.quarantine_reasons == {"duplicate": 1}
    assert dropped.duplicates == {"exact": 0, "near": 0, "leaking": 0, "conflicting": 0}
    assert dropped.num_rows == 119
    assert sum(sum(s.class_counts) for s in dropped.splits.values()) == 119
    assert dropped.fingerprint != kept.fingerprint


def test_drop_reads_each_shard_and_searches_once(leaky, monkeypatch):
    read, sizes = [], []

    def read_photo_table(url, columns=None, inner=ingest_module.read_photo_table):
        read.append(url)
        return inner(url, columns)

    def pairs(hashes, bits, inner=near_pairs):
        sizes.append(len(hashes))
        return inner(hashes, bits)

    monkeypatch.setattr(ingest_module, "read_photo_table", read_photo_table)
    monkeypatch.setattr(duplicates_module, "near_pairs", pairs)
    manifest = ingest(with_drop(leaky))
    assert sizes == [120]
    assert len(read) == len(set(read)) > 4
    expected = [
        (photo, shard.path)
        for info in manifest.splits.values()
        for shard in info.shards
        for photo in pq.read_table(manifest.shard_url(shard), columns=["id"])["id"].to_pylist()
    ]
    index = pq.read_table(f"{manifest.url}/photos.parquet", columns=["id", "shard"])
    assert list(zip(*(c.to_pylist() for c in index.columns), strict=True)) == expected


def test_drop_keeps_shards_without_leaks_unchanged(leaky):
    kept, dropped = ingest(leaky), ingest(with_drop(leaky))
    before, after = (
        {s.path: s.sha256 for info in m.splits.values() for s in info.shards}
        for m in (kept, dropped)
    )
    assert len(before) > 4
    assert len(before.items() - after.items()) == len(after.items() - before.items()) == 1


def test_keep_followed_by_drop_equals_drop(leaky):
    at_once = with_drop(leaky)
    ingest(leaky)
    later = at_once.model_copy(update={"store": leaky.store})
    assert ingest(later).fingerprint == ingest(at_once).fingerprint
