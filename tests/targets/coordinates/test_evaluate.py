"""Evaluation of keypoints and boxes, and its artifacts."""

import numpy as np
import pytest

from pets.cli.results import show_evaluation
from pets_core.config.pipeline import PipelineConfig
from pets_core.evaluation.gallery import read_gallery
from pets_core.evaluation.tables import read_frame
from pets_core.storage.markdown import escape_markdown
from pets_core.targets.coordinates.metrics import box_iou
from tasks.artifacts.evaluation import publish_evaluation
from tasks.artifacts.publisher import MAX_BYTES


@pytest.fixture
def published(shown):
    """Return a function that publishes a report and returns its artifacts by key."""
    return lambda report: shown(publish_evaluation, PipelineConfig(), report)


def test_point_distances_are_in_shares_of_a_side_and_in_pixels(evaluated, draw_stored):
    predictions = draw_stored("points", off=0.2)
    report = evaluated(predictions)
    steps = predictions.outputs.astype("f8") - predictions.targets
    # A side is 2 long.
    assert report.primary.value == pytest.approx(np.hypot(*steps.T).mean() / 2)
    pixels = np.hypot(*(steps * [12, 8]).T)
    assert report.metric("median distance") == pytest.approx(np.median(pixels))
    assert report.metric("95th percentile of distances") == pytest.approx(np.quantile(pixels, 0.95))
    baseline_distances = np.hypot(*((0.1 - predictions.targets.astype("f8")) * [12, 8]).T)
    assert report.metrics[0].baseline == pytest.approx(np.median(baseline_distances))
    assert report.primary.baseline == pytest.approx(
        np.hypot(*(0.1 - predictions.targets.astype("f8")).T).mean() / 2
    )


def test_pixel_distances_are_omitted_if_photos_are_unavailable(
    evaluated, draw_kind, published, caplog
):
    report = evaluated(draw_kind("points", off=0.2))
    assert report.metrics == ()
    assert report.primary.unit == "% of a side"
    assert "Distances in pixels are not available" in caplog.text
    worst = published(report)["worst-errors"]
    assert "(photo unavailable)" in worst
    assert r"of a side |" in worst


def test_box_metrics_match_the_ious(evaluated, draw_kind):
    report = evaluated(draw_kind("box", 30, off=0.0))
    assert report.primary.value == pytest.approx(1.0)
    assert report.metric("IoU of 0.5 or more") == 1.0
    assert 0 <= report.primary.baseline < 0.5
    rough = draw_kind("box", 30, off=0.3)
    report = evaluated(rough)
    iou = box_iou(rough.targets, rough.outputs)
    assert report.primary.value == pytest.approx(iou.mean())
    found = report.metric("IoU of 0.5 or more")
    assert found == pytest.approx((iou >= 0.5).mean())
    assert 0 < found < 1
    assert report.primary.format() == f"{iou.mean():.4g}"


@pytest.mark.parametrize("kind", ["points", "box"])
def test_artifacts_show_actual_and_predicted_coordinates(
    evaluated, draw_stored, published, kind, capsys
):
    report = evaluated(draw_stored(kind, off=0.3))
    found = published(report)
    assert list(found) == ["numbers", "residuals", "worst-errors", "run-summary"]
    worst = found["worst-errors"]
    assert worst.count("data:image/jpeg") == 12
    first, *_ = read_gallery(report.file("gallery.parquet"))["worst-errors"]
    row = worst.splitlines()[-12]
    assert {"points": " pixels", "box": "IoU "}[kind] in row.rsplit("|", 2)[1]
    assert f"| {escape_markdown(first.actual)} | {escape_markdown(first.predicted)} |" in row
    assert "orange" in worst.lower()
    assert all(len(str(content)) < MAX_BYTES for content in found.values())
    show_evaluation(report)
    printed = capsys.readouterr().out
    mae = read_frame(report.file("numbers"))["mae"]
    figures = [metric.format() for metric in (report.primary, *report.metrics)]
    figures += [report.primary.format(report.primary.baseline), f"{mae.iloc[-1]:.4g}"]
    for figure in figures:
        assert figure in printed
        assert escape_markdown(figure) in found["run-summary"]


def test_boxes_no_better_than_the_mean_box_have_a_warning(evaluated, draw_kind):
    assert "no better than" in evaluated(draw_kind("box", off=3.0)).warnings[0]
    assert "no better than" not in evaluated(draw_kind("box", off=0.1)).warnings[0]
