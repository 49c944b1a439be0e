"""Choice of thresholds that maximise F1, and their file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.errors import PetsError
from pets_core.targets.tags.metrics import f1_scores
from pets_core.targets.tags.thresholds import (
    GRID,
    THRESHOLDS,
    Thresholds,
    choose_thresholds,
    read_thresholds,
    threshold_curve,
)

NAMES = ("a", "b", "c")


def photos(seed, count=30):
    random = np.random.default_rng(seed)
    targets = random.random((count, 3)) < 0.4
    probabilities = np.clip(0.3 * targets + random.random((count, 3)) * 0.6, 0, 1)
    return targets, probabilities.astype(np.float32)


@given(seed=st.integers(0, 500))
def test_chosen_thresholds_maximise_f1(seed):
    targets, probabilities = photos(seed)
    shared = choose_thresholds(targets, probabilities, NAMES, "shared")
    assert len(set(shared.values)) == 1
    best = f1_scores(targets, shared.apply(probabilities))[0]
    assert best >= max(threshold_curve(targets, probabilities).micro_f1) - 1e-9
    each = choose_thresholds(targets, probabilities, NAMES, "per_tag")
    of_each = f1_scores(targets, each.apply(probabilities))[2]
    assert (of_each >= f1_scores(targets, shared.apply(probabilities))[2] - 1e-9).all()
    assert each.num_photos == 30


def test_ties_are_resolved_towards_one_half():
    targets = np.array([[True], [False]])
    probabilities = np.array([[0.9], [0.1]], np.float32)
    assert choose_thresholds(targets, probabilities, ["a"], "shared").values == (0.5,)
    low = np.array([[0.3], [0.1]], np.float32)
    # All thresholds above 0.1 and up to 0.3 are equally good.
    assert choose_thresholds(targets, low, ["a"], "shared").values == pytest.approx((0.3,))


def test_tag_without_validation_photos_has_the_shared_threshold():
    targets, probabilities = photos(1)
    targets[:, 2] = False
    shared = choose_thresholds(targets, probabilities, NAMES, "shared").values[0]
    each = choose_thresholds(targets, probabilities, NAMES, "per_tag").values
    assert each[2] == shared


def test_probability_equal_to_the_threshold_predicts_the_tag():
    assert Thresholds.default(["a", "b"]).apply(np.array([0.5, 0.499], np.float32)).tolist() == [
        True, False,
    ]  # fmt: skip


def test_thresholds_without_any_tag_are_one_half():
    targets = np.zeros((4, 3), bool)
    chosen = choose_thresholds(targets, np.full((4, 3), 0.2, np.float32), NAMES, "per_tag")
    assert chosen.values == (0.5, 0.5, 0.5)


def test_threshold_curve_matches_the_metrics():
    targets, probabilities = photos(3)
    curve = threshold_curve(targets, probabilities)
    index = 40
    predicted = probabilities >= np.float32(GRID[index])
    assert curve.micro_f1[index] == pytest.approx(f1_scores(targets, predicted)[0])
    assert curve.macro_f1[index] == pytest.approx(f1_scores(targets, predicted)[1])
    assert curve.accuracy_multi[index] == pytest.approx((predicted == targets).mean())


def test_stored_thresholds_are_read_and_validated(tmp_path):
    assert read_thresholds(str(tmp_path), NAMES) is None
    chosen = Thresholds(kind="per_tag", tags=NAMES, values=(0.1, 0.2, 0.3), num_photos=7)
    (tmp_path / THRESHOLDS).write_text(chosen.model_dump_json())
    assert read_thresholds(str(tmp_path), NAMES) == chosen
    with pytest.raises(PetsError, match="tags differ from the model's"):
        read_thresholds(str(tmp_path), ("a", "c", "b"))
    (tmp_path / THRESHOLDS).write_text("{")
    with pytest.raises(PetsError, match=r"thresholds.json is damaged.*remove it"):
        read_thresholds(str(tmp_path), NAMES)
