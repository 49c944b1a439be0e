"""Shards partition a split by hash; they are bounded, and stable when photos are added."""

from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.ingest.partition import PlannedPhoto, _hash_bits, partition

photo_sizes = st.dictionaries(st.text(max_size=4), st.integers(0, 60), max_size=80)


def leaves(sizes, bound, split="train"):
    photos = {i: (PlannedPhoto(i, i, "", 0, None), split) for i in sizes}
    return list(partition(photos, sizes, bound))


def bits(photo_id) -> str:
    return f"{_hash_bits(photo_id):064b}"


@given(photo_sizes, st.integers(1, 200))
def test_leaves_partition_ids_by_hash_prefix(sizes, bound):
    result = leaves(sizes, bound)
    ids = [photo.id for leaf in result for photo in leaf.photos]
    assert sorted(ids) == sorted(sizes)
    # Ids are in hash order, and each leaf holds the hashes with its prefix.
    assert [bits(i) for i in ids] == sorted(bits(i) for i in ids)
    for leaf in result:
        assert {p.id for p in leaf.photos} == {i for i in sizes if bits(i).startswith(leaf.prefix)}


@given(photo_sizes, st.integers(1, 200))
def test_leaves_are_bounded_and_split_only_when_necessary(sizes, bound):
    for leaf in leaves(sizes, bound):
        assert leaf.photos
        num_bytes = sum(sizes[photo.id] for photo in leaf.photos)
        assert num_bytes <= bound or len(leaf.photos) == 1
        above = [i for i in sizes if bits(i).startswith(leaf.prefix[:-1])]
        assert not leaf.prefix or sum(sizes[i] for i in above) > bound


@given(photo_sizes, st.integers(1, 200), photo_sizes)
def test_new_photos_change_only_their_own_leaves(sizes, bound, added):
    new = added.keys() - sizes.keys()
    after = {leaf.prefix: leaf.photos for leaf in leaves(added | sizes, bound)}
    for leaf in leaves(sizes, bound):
        if not any(bits(i).startswith(leaf.prefix) for i in new):
            assert after[leaf.prefix] == leaf.photos
