"""Plots: size limit of artifacts, not blank, and any size of input."""

import io

import numpy as np
import pytest
from PIL import Image

from pets_core.data.sources.sample.breeds import BREEDS
from pets_core.plots import runs
from pets_core.plots.confusion import confusion_matrix
from pets_core.plots.regression import residuals
from pets_core.plots.training import lr_curve, ridge_curve, training_curves
from pets_core.records.training import EpochMetrics, MetricInfo

NAMES = [breed.name for breed in BREEDS]
MAX_BYTES = 200_000
SUGGESTIONS = {"minimum": 3e-3, "steepest": 1.2e-3, "valley": 1.4e-3, "slide": 2e-2,
               "limited": 1.4e-3}  # fmt: skip


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    image = image.convert("RGB")
    assert image.getpixel((2, 2)) == (255, 255, 255)
    return image


def num_colours(png):
    return len(opened(png).getcolors(1 << 24))


def make_counts(num_classes, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.1, (num_classes, num_classes)).astype(np.int64)
    np.fill_diagonal(counts, rng.integers(60, 100, num_classes))
    return counts


def make_history(num_steps=10, num_epochs=3, frozen=1, valid=True):
    steps, epochs = [], []
    for epoch in range(num_epochs):
        phase = "frozen" if epoch < frozen else "unfrozen"
        groups = (2,) if phase == "frozen" else (0, 1, 2)
        for _ in range(num_steps):
            row = {"step": len(steps), "phase": phase, "epoch": epoch, "momentum": 0.9}
            row |= {f"lr_group_{group}": 10.0 ** (group - 6) for group in groups}
            steps.append(row | {"loss": 3.0 / (1 + len(steps))})
        score = {"valid_loss": 0.5, "valid_metric": 0.1} if valid else {}
        epochs.append(EpochMetrics(phase=phase, epoch=epoch, train_loss=1.0, seconds=1.0,
                                   photos_per_second=9.0, **score))  # fmt: skip
    return steps, epochs


def make_lr_sweep(num_steps=100):
    rates = np.geomspace(1e-6, 1, num_steps)
    losses = 3 - np.log10(rates / 1e-6) / 3
    return rates, losses + np.random.default_rng(0).normal(0, 0.1, num_steps), losses


@pytest.mark.parametrize("counts", [make_counts(37), np.full((37, 37), 12)], ids=["good", "bad"])
def test_37_classes_fit_an_artifact(counts):
    png = confusion_matrix(counts, NAMES)
    assert len(png) < MAX_BYTES
    assert num_colours(png) > 100
    assert min(opened(png).size) > 1000


def test_correct_predictions_are_blue_and_errors_are_red():
    def reds_and_blues(counts):
        pixels = np.asarray(opened(confusion_matrix(counts, ["a", "b"]))).astype(int)
        red, blue = pixels[..., 0], pixels[..., 2]
        return (red - blue > 90).sum() > 1000, (blue - red > 90).sum() > 1000

    assert reds_and_blues(np.array([[9, 0], [0, 9]])) == (False, True)
    assert reds_and_blues(np.array([[0, 9], [9, 0]])) == (True, False)


def test_actual_is_drawn_in_rows():
    """A single error, class 0 predicted as class 1, is above the diagonal: right and up."""
    pixels = np.asarray(opened(confusion_matrix(np.array([[9, 9], [0, 9]]), ["a", "b"])))
    rows, columns = np.nonzero(pixels[..., 0].astype(int) - pixels[..., 2] > 90)
    blue_rows, blue_columns = np.nonzero(pixels[..., 2].astype(int) - pixels[..., 0] > 90)
    assert rows.mean() < blue_rows.mean()
    assert columns.mean() > blue_columns.mean()


@pytest.mark.parametrize("num_classes", [1, 2, 60, 61, 1000])
def test_confusion_matrix_accepts_any_number_of_classes(num_classes):
    png = confusion_matrix(make_counts(num_classes), [f"class_{i}" for i in range(num_classes)])
    assert num_colours(png) > 10
    assert len(png) < MAX_BYTES or num_classes > 60


def test_one_error_among_a_thousand_classes_is_visible():
    counts = np.diag(np.full(1000, 50))
    clean = np.asarray(opened(confusion_matrix(counts, ["x"] * 1000))).astype(int)
    counts[100, 801] = 30
    with_error = np.asarray(opened(confusion_matrix(counts, ["x"] * 1000))).astype(int)
    assert ((with_error[..., 0] - with_error[..., 2] > 90).sum()) > (
        (clean[..., 0] - clean[..., 2] > 90).sum()
    )


def test_confusion_matrix_accepts_no_photos_and_odd_names():
    opened(confusion_matrix(np.zeros((37, 37), np.int64), NAMES))
    opened(confusion_matrix(np.eye(3, dtype=np.int64), ["$x^$", "a\nb", "long " * 30]))


@pytest.mark.parametrize("chosen", SUGGESTIONS)
def test_lr_curve_emphasises_the_chosen_rate(chosen):
    png = lr_curve(*make_lr_sweep(), SUGGESTIONS, chosen)
    assert len(png) < MAX_BYTES
    assert num_colours(png) > 50
    assert png != lr_curve(*make_lr_sweep(), SUGGESTIONS, "none of them")


def test_lr_curve_accepts_few_or_no_steps():
    assert num_colours(lr_curve(*make_lr_sweep(2), SUGGESTIONS, "valley")) > 20
    none = np.zeros(0)
    assert num_colours(lr_curve(none, none, none, {}, "valley")) > 5


def test_ridge_curve_emphasises_the_chosen_strength():
    tried = [(10.0, 2.0), (1.0, 0.5), (0.1, 0.8)]
    for chosen in (1.0, 0.1):
        assert len(ridge_curve(tried, chosen)) < MAX_BYTES
    assert ridge_curve(tried, 1.0) != ridge_curve(tried, 0.1)


def test_training_curves_fit_an_artifact():
    png = training_curves(*make_history(num_steps=500, num_epochs=20))
    assert len(png) < MAX_BYTES
    assert num_colours(png) > 100


@pytest.mark.parametrize(
    "training",
    [
        make_history(frozen=0),
        make_history(frozen=3),
        make_history(1, 1),
        make_history(2, 60),
        ([], []),
    ],
    ids=["unfrozen only", "frozen only", "one step", "many epochs", "nothing"],
)
def test_training_curves_accept_any_history(training):
    assert num_colours(training_curves(*training)) > 10


def test_training_curves_without_validation_have_one_panel_less():
    with_panel = opened(training_curves(*make_history()))
    assert opened(training_curves(*make_history(valid=False))).height < with_panel.height - 100


def test_training_curves_accept_none_for_a_missing_rate():
    steps, epochs = make_history()
    filled = [{"lr_group_0": None, "lr_group_1": None} | row for row in steps]
    assert training_curves(filled, epochs) == training_curves(steps, epochs)


@pytest.mark.parametrize(
    ("unit", "top"), [("%", "100%"), ("% of a side", "100%"), ("years", "1.0"), ("", "1.0")]
)
def test_axis_of_compared_curves_shows_shares_in_percent(unit, top, monkeypatch):
    figures = []
    monkeypatch.setattr(runs, "png", figures.append)
    metric = MetricInfo(name="mean distance", unit=unit)
    epochs = [epoch.model_copy(update={"metric": metric}) for epoch in make_history()[1]]
    runs.compared_curves([("one", epochs)])
    _, right = figures[0].axes
    right.set_ylim(0, 1)
    figures[0].canvas.draw()
    assert right.get_yticklabels()[-1].get_text() == top


@pytest.mark.parametrize("num_rows", [1, 2, 900, 20_000])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_residuals_of_any_size_are_drawn(num_rows, count):
    targets, errors = np.random.default_rng(0).normal(size=(2, num_rows, count)).astype(np.float32)
    labels = ["$a_$" * 20] * count
    png = residuals(labels, ["kg"] * count, targets, targets + errors / 10)
    assert len(png) < MAX_BYTES
    assert opened(png).width > 900
    assert opened(png).height == pytest.approx(380 * min(count, 6), rel=0.1)


def test_equal_residuals_are_drawn():
    constant = np.full((30, 1), 4.0, np.float32)
    for off in (0, 1):
        assert num_colours(residuals(["legs"], [""], constant, constant + off)) > 10


def test_predictions_that_are_too_high_are_above_the_diagonal():
    """With few photos (points) and with many (hexbin)."""
    for num_rows in (50, 5000):
        targets = np.linspace(0, 1, num_rows, dtype=np.float32)[:, None]
        pixels = np.asarray(opened(residuals(["a"], [""], targets, targets + 0.5))).astype(int)
        left = pixels[:, : pixels.shape[1] // 2]
        blue = np.argwhere(left[..., 2] - left[..., 0] > 60)
        orange = np.argwhere(left[..., 0] - left[..., 2] > 120)
        slope = np.polyfit(orange[:, 1], orange[:, 0], 1)
        assert (blue[:, 0] < np.polyval(slope, blue[:, 1])).mean() > 0.95
