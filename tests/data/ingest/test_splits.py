"""The split: uniform, reproducible, by group, with each class in training and validation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.ingest.splits import (
    SplitRow,
    assign_splits,
    hash_fraction,
    largest_fraction,
    smallest_fraction,
    split_rows,
)
from pets_core.data.sources.catalogue import LabelledPhoto
from pets_core.errors import PetsError

seeds = st.integers(0, 2**40)


@given(seeds, st.text())
def test_hash_fraction_is_deterministic_and_below_one(seed, photo_id):
    assert 0 <= hash_fraction(seed, photo_id) < 1
    assert hash_fraction(seed, photo_id) == hash_fraction(seed, photo_id)


def test_hash_fractions_are_stable():
    # Other values would move photos of existing data sets between splits.
    assert hash_fraction(0, "Abyssinian_1") == 0.2851120781513026
    assert hash_fraction(1, "Abyssinian_1") == 0.11384461153128556
    assert hash_fraction(0, "猫/1.jpg") == 0.6342486179637082


def test_hash_fractions_are_uniform():
    numbers = sorted(hash_fraction(0, f"photo {n}") for n in range(20_000))
    # Kolmogorov-Smirnov test: the critical value at 1% is 1.63 / sqrt(n).
    worst = max(abs(number - rank / 20_000) for rank, number in enumerate(numbers))
    assert worst < 1.63 / 20_000**0.5


def test_seeds_give_independent_splits():
    selected = [{n for n in range(2000) if hash_fraction(seed, str(n)) < 0.2} for seed in range(2)]
    assert all(320 < len(members) < 480 for members in selected)
    # Independent selections of a fifth share about a fifth of their ids.
    assert len(selected[0] & selected[1]) < 130


@given(seeds, st.text(), st.floats(0, 1), st.floats(0, 1))
def test_larger_fraction_contains_the_smaller(seed, photo_id, one, other):
    small, large = sorted([one, other])
    assert (
        hash_fraction(seed, photo_id) >= small
        or hash_fraction(seed, photo_id) < large
        or small == large
    )


rows = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.builds(
        SplitRow,
        key=st.sampled_from(["g1", "g2", "g3", "g4", "g5", "g6", "g7"]),
        label=st.sampled_from(["cat", "dog", "owl"]),
        predefined_split=st.sampled_from([None, "train", "trainval", "valid", "test"]),
    ),
    max_size=30,
)
fractions = st.sampled_from([0.0, 0.05, 0.3])


def ungrouped(photos: dict[str, str]) -> dict[str, SplitRow]:
    """Rows in which each photo is its own group."""
    return {photo_id: SplitRow(photo_id, label) for photo_id, label in photos.items()}


def split(photos, *, predefined_split=False, valid=0.1, test=0.0, seed=0):
    return assign_splits(
        photos,
        use_predefined_split=predefined_split,
        valid_fraction=valid,
        test_fraction=test,
        seed=seed,
    )


@given(rows, fractions, fractions, seeds, st.booleans())
def test_photos_of_a_group_share_a_split(photos, valid, test, seed, use_predefined):
    splits = split(photos, predefined_split=use_predefined, valid=valid, test=test, seed=seed)
    assert splits.keys() == photos.keys()
    random_ids = [
        i for i, row in photos.items() if not use_predefined or row.predefined_split == "trainval"
    ]
    split_of_key = {}
    for photo_id in random_ids:
        assert splits[photo_id] == split_of_key.setdefault(photos[photo_id].key, splits[photo_id])
    for photo_id in photos.keys() - set(random_ids):
        assert splits[photo_id] == photos[photo_id].predefined_split


@given(rows, seeds, st.randoms())
def test_split_is_independent_of_photo_order(photos, seed, random):
    order = list(photos)
    random.shuffle(order)
    assert split({i: photos[i] for i in order}, seed=seed) == split(photos, seed=seed)


@given(st.integers(1, 40), seeds, fractions)
def test_each_class_of_at_least_five_photos_has_a_validation_photo(num_photos, seed, valid):
    photos = ungrouped({f"{label}{n}": label for label in "ab" for n in range(num_photos)})
    splits = split(photos, valid=valid, seed=seed)
    for label in "ab":
        members = [i for i in photos if i.startswith(label)]
        valid_ids = {i for i in members if splits[i] == "valid"}
        below = {i for i in members if hash_fraction(seed, i) < valid}
        smallest = min(members, key=lambda i: hash_fraction(seed, i))
        extra = {smallest} if valid and num_photos >= 5 and not below else set()
        assert valid_ids == below | extra


@given(st.integers(0, 30), st.integers(0, 2**20), st.sampled_from("ab"))
def test_a_new_photo_moves_at_most_one_other_of_its_class(num_photos, seed, label):
    before = ungrouped({f"{name}{n}": name for name in "ab" for n in range(num_photos)})
    after = before | {"new": SplitRow("new", label)}
    old, new = split(before, seed=seed), split(after, seed=seed)
    moved = {photo_id for photo_id in before if old[photo_id] != new[photo_id]}
    assert len(moved) <= 1
    assert {before[photo_id].label for photo_id in moved} <= {label}


def test_a_class_of_one_group_keeps_its_training_photos():
    photos = {f"{n}": SplitRow("one camera", "cat") for n in range(9)}
    assert set(split(photos, valid=0.0001).values()) == {"train"}


def test_groups_come_from_a_pattern_or_the_source():
    photos = {
        "cat/rex_1.jpg": LabelledPhoto("cat/rex_1.jpg", "cat", group="g"),
        "cat/rex_2.jpg": LabelledPhoto("cat/rex_2.jpg", "cat"),
    }
    keys = [row.key for row in split_rows(photos, "class", None).values()]
    assert keys == ["g", "cat/rex_2.jpg"]
    for pattern in (r"/([a-z]+)_", r"rex", r"[a-z]+(?=_)"):
        assert {row.key for row in split_rows(photos, "class", pattern).values()} == {"rex"}
    with pytest.raises(PetsError, match=r"group_pattern = _1: 1 of 2 ids do not match, .*rex_2"):
        split_rows(photos, "class", "_1")


@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, unique=True), seeds)
def test_suggested_fractions_give_non_empty_splits(keys, seed):
    smallest = smallest_fraction(keys, seed)
    assert any(hash_fraction(seed, key) < smallest for key in keys)
    assert not any(hash_fraction(seed, key) < smallest - 0.001 for key in keys)
    largest = largest_fraction([keys], seed)
    assert any(hash_fraction(seed, key) >= largest for key in keys)
