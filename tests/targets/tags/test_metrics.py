"""Metrics of tags, against hand-computed values and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from pets_core.targets.tags.metrics import (
    accuracy_multi,
    exact_match,
    f1_scores,
    micro_f1_interval,
    photo_f1,
    tag_table,
)

TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
PREDICTED = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], bool)


def test_metrics_computed_by_hand():
    assert accuracy_multi(TARGETS, PREDICTED) == 9 / 12
    assert exact_match(TARGETS, PREDICTED) == 2 / 4
    micro, macro, each = f1_scores(TARGETS, PREDICTED)
    # 3 correct of 4 actual and 5 predicted tags.
    assert micro == pytest.approx(2 * 3 / (4 + 5))
    assert each.tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert macro == pytest.approx(0.75), "a tag that no photo has is not counted"


flags = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 5)))


@given(targets=flags, seed=st.integers(0, 99))
def test_f1_matches_scikit_learn(targets, seed):
    predicted = targets ^ (np.random.default_rng(seed).random(targets.shape) < 0.3)
    micro, _, each = f1_scores(targets, predicted)
    flat = targets.ravel(), predicted.ravel()
    assert micro == pytest.approx(f1_score(*flat, zero_division=0))
    expected = [
        f1_score(t, g, zero_division=0) for t, g in zip(targets.T, predicted.T, strict=True)
    ]
    assert each == pytest.approx(np.array(expected))
    assert exact_match(targets, predicted) == pytest.approx(np.mean((targets == predicted).all(1)))
    assert accuracy_multi(targets, predicted) == pytest.approx(accuracy_score(*flat))


@given(targets=flags, seed=st.integers(0, 99))
def test_f1_is_independent_of_photo_order(targets, seed):
    random = np.random.default_rng(seed)
    predicted, order = random.random(targets.shape) < 0.5, random.permutation(len(targets))
    one, other = f1_scores(targets, predicted), f1_scores(targets[order], predicted[order])
    assert one[:2] == pytest.approx(other[:2])


@given(targets=flags, seed=st.integers(0, 99))
def test_f1_per_photo_matches_scikit_learn(targets, seed):
    predicted = targets ^ (np.random.default_rng(seed).random(targets.shape) < 0.3)
    scores = [f1_score(t, g, zero_division=1) for t, g in zip(targets, predicted, strict=True)]
    assert photo_f1(targets, predicted) == pytest.approx(np.array(scores))


def test_tag_table_has_the_metrics_of_each_tag(draw):
    drawn = draw()
    predicted = drawn.outputs >= 0.5
    halves = (0.5,) * 5
    table = tag_table(drawn.info.names, drawn.targets, drawn.outputs, predicted, halves)
    assert sorted(table["name"]) == drawn.info.names
    assert table["f1"][:-1].is_monotonic_increasing, "lowest F1 first"
    first, last = table.set_index("name").loc["tag 0"], table.iloc[-1]
    assert first.support == drawn.targets[:, 0].sum()
    assert first.average_precision == pytest.approx(
        average_precision_score(drawn.targets[:, 0], drawn.outputs[:, 0])
    )
    right = (drawn.targets & predicted)[:, 0].sum()
    assert first.precision == pytest.approx(right / predicted[:, 0].sum())
    assert first.recall == pytest.approx(right / first.support)
    assert (last["name"], last.support) == ("tag 4", 0)
    assert last[["average_precision", "recall", "f1"]].isna().all()


@settings(max_examples=20)
@given(targets=flags, seed=st.integers(0, 99))
def test_interval_contains_the_value(targets, seed):
    predicted = np.random.default_rng(seed).random(targets.shape) < 0.5
    share = micro_f1_interval(targets, predicted)
    assert 0 <= share.low <= share.value + 1e-9
    assert share.value - 1e-9 <= share.high <= 1
