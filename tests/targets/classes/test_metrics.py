"""Metrics of classes, against hand-computed values and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import top_k_accuracy_score

from pets_core.records.dataset import ClassInfo
from pets_core.targets.classes.confusion import confusion_counts
from pets_core.targets.classes.metrics import (
    bootstrap_share,
    class_table,
    species_table,
    top_k,
)


@given(st.integers(1, 3000), st.floats(0, 1))
def test_interval_contains_the_share(total, part):
    share = bootstrap_share(round(part * total), total)
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_interval_matches_the_bootstrap_of_scipy():
    wrong = np.zeros(400)
    wrong[:60] = 1
    by_photos = bootstrap((wrong,), np.mean, n_resamples=5000, method="percentile", rng=0)
    share = bootstrap_share(60, 400)
    assert share.value == 0.15
    assert share.low == pytest.approx(by_photos.confidence_interval.low, abs=0.004)
    assert share.high == pytest.approx(by_photos.confidence_interval.high, abs=0.004)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 0.2775), (10, 0.7225, 1.0)])
def test_interval_of_none_or_all_photos_is_wilsons(count, low, high):
    """Wilson's interval of 0 of 10: z^2 / (10 + z^2) with z = 1.96."""
    share = bootstrap_share(count, 10)
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)


def test_top_k_matches_scikit_learn(draw_classes):
    predictions = draw_classes(500, 7)
    found = top_k(predictions)
    assert list(found) == [1, 2, 3, 5]
    for k, share in found.items():
        expected = top_k_accuracy_score(
            predictions.targets, predictions.outputs, k=k, labels=range(7)
        )
        assert share == pytest.approx(expected)
    assert found[1] == pytest.approx(1 - predictions.wrong.mean())


def test_top_k_ranks_equal_probabilities_by_class_order(draw_classes):
    predictions = draw_classes(30, 3)
    predictions.outputs[:] = np.float32(1 / 3)
    found = top_k(predictions)
    assert found[1] == pytest.approx((predictions.targets == 0).mean())
    assert found[1] == pytest.approx(1 - predictions.wrong.mean())


def test_single_class_has_only_top_1(draw_classes):
    assert top_k(draw_classes(10, 1)) == {1: 1.0}


def table_of(predictions):
    counts = confusion_counts(predictions.targets, predictions.predicted, len(predictions.names))
    return class_table(predictions, counts)


def test_class_table_computed_by_hand(draw_classes):
    predictions = draw_classes(7, 4)
    predictions.targets[:] = [0, 0, 0, 1, 1, 1, 1]
    predictions.outputs[:] = np.eye(4, dtype=np.float32)[[0, 1, 0, 0, 0, 2, 1]]
    table = table_of(predictions)
    assert table["name"].tolist() == ["class-1", "class-0", "class-2", "class-3"], "worst first"
    boxer, pug, sphynx, beagle = table.itertuples()
    assert (pug.support, pug.correct, pug.taken_for) == (3, 2, "class-1")
    assert (pug.precision, pug.recall) == (0.5, pytest.approx(2 / 3))
    assert pug.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert (boxer.support, boxer.correct, boxer.taken_for) == (4, 1, "class-0")
    # No actual photo and one prediction: precision is 0, recall is undefined.
    assert (sphynx.support, sphynx.precision) == (0, 0.0)
    assert pd.isna(sphynx.taken_for)
    assert np.isnan(sphynx.recall)
    assert (beagle.support, beagle.correct) == (0, 0)
    assert np.isnan([beagle.precision, beagle.recall, beagle.f1]).all()


def test_species_table_counts_confused_species():
    counts = np.array([[5, 1, 2], [0, 7, 1], [3, 0, 9]])
    table = species_table(counts, ["dog", "cat", "dog"])
    assert list(table.columns) == ["actual", "cat", "dog"]
    assert table.to_numpy().tolist() == [["cat", 7, 1], ["dog", 1, 19]]
    assert species_table(counts, [None, None, None]) is None
    assert species_table(counts, ["dog", None, "dog"]) is None, "a single species has no table"


def test_classes_keep_their_species(draw_classes):
    classes = (ClassInfo(name="pug", species="dog"), ClassInfo(name="Sphynx", species="cat"))
    predictions = draw_classes(10, names=["pug", "Sphynx"])
    info = predictions.info.model_copy(update={"vocabulary": classes})
    object.__setattr__(predictions, "info", info)
    species = table_of(predictions).set_index("name")["species"]
    assert species.to_dict() == {"pug": "dog", "Sphynx": "cat"}
