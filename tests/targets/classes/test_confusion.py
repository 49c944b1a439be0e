"""Confusion counts, class order and pairs: hand-computed values and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pets_core.targets.classes.confusion import (
    cluster_order,
    confusion_counts,
    confusion_table,
    most_confused,
)

NAMES = ["pug", "boxer", "Sphynx"]
# 3 pugs: 2 correct, 1 predicted boxer. 4 boxers: 1 correct, 2 predicted pug, 1 Sphynx.
TARGETS = np.array([0, 0, 0, 1, 1, 1, 1])
PREDICTIONS = np.array([0, 1, 0, 0, 0, 2, 1])
COUNTS = np.array([[2, 1, 0], [2, 1, 1], [0, 0, 0]])


def labelled(max_classes=6):
    return st.integers(1, max_classes).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        )
    )


def test_counts_have_the_actual_class_in_rows():
    counts = confusion_counts(TARGETS, PREDICTIONS, 3)
    np.testing.assert_array_equal(counts, COUNTS)
    assert counts.dtype == np.int64


def test_counts_without_photos_are_zero():
    none = np.zeros(0, np.int64)
    np.testing.assert_array_equal(confusion_counts(none, none, 3), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("targets", "predictions", "message"),
    [
        ([0, 3], [0, 0], "targets range"),
        ([0, 0], [0, -1], "predictions range"),
        ([0], [0, 1], "vectors of equal length"),
    ],
)
def test_bad_indices_are_refused(targets, predictions, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(np.array(targets), np.array(predictions), 3)


@given(labelled())
def test_every_photo_is_counted_in_its_cell(drawn):
    num_classes, rows = drawn
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    counts = confusion_counts(pairs[:, 0], pairs[:, 1], num_classes)
    expected = np.zeros((num_classes, num_classes), np.int64)
    for actual, predicted in rows:
        expected[actual, predicted] += 1
    np.testing.assert_array_equal(counts, expected)


def test_most_confused_orders_by_count_then_index():
    pairs = most_confused(COUNTS, NAMES)
    assert list(pairs.columns) == ["actual", "predicted", "count", "share"]
    assert pairs.to_numpy().tolist() == [
        ["boxer", "pug", 2, 0.5],
        ["pug", "boxer", 1, 1 / 3],
        ["boxer", "Sphynx", 1, 0.25],
    ]
    assert most_confused(COUNTS, NAMES, min_count=2)["count"].tolist() == [2]


def test_confusion_table_lists_nonzero_cells_errors_first():
    table = confusion_table(COUNTS, NAMES)
    assert table.to_numpy().tolist() == [
        ["boxer", "pug", 2, 0.5],
        ["pug", "boxer", 1, 1 / 3],
        ["boxer", "Sphynx", 1, 0.25],
        ["pug", "pug", 2, 2 / 3],
        ["boxer", "boxer", 1, 0.25],
    ]


@given(arrays(np.int64, st.integers(1, 6).map(lambda n: (n, n)), elements=st.integers(0, 9)))
def test_most_confused_accounts_for_every_error(counts):
    before = counts.copy()
    names = [str(i) for i in range(len(counts))]
    pairs = most_confused(counts, names, min_count=1).to_dict("records")
    assert sum(pair["count"] for pair in pairs) == counts.sum() - np.trace(counts)
    assert all(pair["actual"] != pair["predicted"] for pair in pairs)
    for pair in pairs:
        assert pair["share"] == pair["count"] / counts[int(pair["actual"])].sum()
    keys = [(-pair["count"], int(pair["actual"]), int(pair["predicted"])) for pair in pairs]
    assert keys == sorted(keys)
    np.testing.assert_array_equal(counts, before)


def test_confused_classes_are_adjacent():
    """Nine classes in three interleaved groups; classes of a group are confused."""
    group = np.arange(9) % 3
    counts = np.where(group[:, None] == group[None, :], 4, 0)
    np.fill_diagonal(counts, 30)
    ordered = group[cluster_order(counts)].tolist()
    assert [len(set(ordered[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]


@given(arrays(np.int64, st.integers(1, 8).map(lambda n: (n, n)), elements=st.integers(0, 5)))
def test_cluster_order_is_a_permutation_of_the_classes(counts):
    assert sorted(cluster_order(counts).tolist()) == list(range(len(counts)))


def test_cluster_order_without_errors_is_the_class_order():
    assert cluster_order(np.diag([3, 1, 2])).tolist() == [0, 1, 2]
