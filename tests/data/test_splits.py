"""Held-out photos: a share of every class, whatever the order, never a whole class."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.splits import hold_out

labels = st.dictionaries(st.text(max_size=6), st.sampled_from("abcd"), max_size=60)
fractions = st.floats(0, 1, exclude_max=True)
seeds = st.integers(0, 5)


@given(labels, fractions, seeds)
def test_each_class_gives_its_share_and_never_all(labels, fraction, seed):
    chosen = hold_out(labels, fraction, seed=seed)
    assert chosen <= labels.keys()
    held = Counter(labels[i] for i in chosen)
    for label, total in Counter(labels.values()).items():
        assert held[label] < total
        if fraction == 0 or total == 1:
            assert held[label] == 0
        else:
            assert held[label] >= 1
            assert abs(held[label] - total * fraction) <= 1


@given(labels, fractions, seeds, st.randoms())
def test_the_order_of_the_photos_is_nothing(labels, fraction, seed, random):
    shuffled = list(labels.items())
    random.shuffle(shuffled)
    assert hold_out(dict(shuffled), fraction, seed=seed) == hold_out(labels, fraction, seed=seed)


@given(labels, fractions, seeds)
def test_one_class_does_not_move_another(labels, fraction, seed):
    alone = {i: label for i, label in labels.items() if label == "a"}
    of_all = {i for i in hold_out(labels, fraction, seed=seed) if labels[i] == "a"}
    assert hold_out(alone, fraction, seed=seed) == of_all


def test_shares_are_rounded():
    labels = {f"{label}{n}": label for label in "ab" for n in range(50)}
    assert Counter(labels[i] for i in hold_out(labels, 0.1, seed=0)) == {"a": 5, "b": 5}


def test_another_seed_is_another_choice():
    labels = {str(n): "a" for n in range(100)}
    assert hold_out(labels, 0.2, seed=0) != hold_out(labels, 0.2, seed=1)
