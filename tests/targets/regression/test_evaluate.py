"""The whole review of a file of predictions of numbers, and what people see of it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets.cli.results import show_numbers
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.numbers import review as module
from pets_core.numbers.gallery import read_worst
from pets_core.numbers.measures import box_iou
from pets_core.numbers.records import NumbersReport
from pets_core.numbers.review import review_numbers
from pets_core.records.evaluation import PredictResult
from pets_core.storage.markdown import literal
from tasks.artifacts.publisher import MAX_BYTES
from tasks.numbers import publish_numbers

EVIL = "<img src=x onerror=alert(1)>|`*_"
FILES = {
    "numbers.parquet", "numbers.csv", "residuals.png", "gallery.parquet", "report.json"
}  # fmt: skip


@pytest.fixture
def review(tmp_path, write):
    """Review predictions as a run does."""

    def reviewed(predictions) -> NumbersReport:
        info = predictions.info
        predicted = PredictResult(
            targets=info.targets, model_url=info.model_url, predictions_url=write(predictions),
            photos_per_second=9.0,
        )  # fmt: skip
        config = PipelineConfig(store=str(tmp_path / "store"))
        return review_numbers(config, str(tmp_path / "store/runs/run-1"), predicted)

    return reviewed


def test_every_figure_is_that_of_the_predictions(review, draw):
    predictions = draw("numbers", 200, names=["age", EVIL], units=["years", "kg"])
    report = review(predictions)
    errors = predictions.predicted.astype("f8") - predictions.targets
    assert (report.num_rows, report.split, report.targets) == (200, "test", "numbers")
    assert report.rmse.value == pytest.approx(np.sqrt((errors**2).mean()))
    assert report.mae.value == pytest.approx(np.abs(errors).mean())
    assert report.baseline_rmse == pytest.approx(np.sqrt(((0.1 - predictions.targets) ** 2).mean()))
    assert [n.mae for n in report.numbers] == pytest.approx(np.abs(errors).mean(0))
    assert (report.mean_iou, report.share_iou_half, report.median_pixels) == (None, None, None)
    rows = list(csv.DictReader(Path(report.file("numbers.csv")).read_text().splitlines()))
    assert [(row["name"], row["unit"]) for row in rows] == [("age", "years"), (EVIL, "kg")]
    stored = pq.read_table(report.file("numbers.parquet")).to_pylist()
    assert stored == [number.model_dump() for number in report.numbers]
    assert {path.name for path in Path(report.url).iterdir()} == FILES
    assert NumbersReport.model_validate_json(Path(report.file("report.json")).read_text()) == report


def test_the_report_is_written_last(review, draw, monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise ConnectionError("the store is gone")

    monkeypatch.setattr(module, "write_worst", fail)
    with pytest.raises(ConnectionError):
        review(draw("box"))
    written = {path.name for path in (tmp_path / "store/runs/run-1/evaluation").iterdir()}
    assert written == FILES - {"gallery.parquet", "report.json"}


def test_it_runs_without_torch(tmp_path, draw, write):
    code = (
        "import sys; from pets_core.config.pipeline import PipelineConfig;"
        "from pets_core.numbers.review import review_numbers;"
        "from pets_core.records.evaluation import PredictResult;"
        "said = PredictResult(model_url='m', predictions_url=sys.argv[2], photos_per_second=1);"
        "review_numbers(PipelineConfig(store=sys.argv[1]), sys.argv[1] + '/runs/r', said);"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store"), write(draw("box"))]
    subprocess.run(command, check=True)
    assert (tmp_path / "store/runs/r/evaluation/report.json").exists()


def test_points_are_told_in_pixels_of_their_photos(review, judged):
    predictions = judged("points", off=0.2)
    report = review(predictions)
    steps = (predictions.predicted.astype("f8") - predictions.targets) * [12, 8]
    off = np.hypot(*steps.T)
    assert report.median_pixels == pytest.approx(np.median(off))
    assert report.p95_pixels == pytest.approx(np.quantile(off, 0.95))
    beside = np.hypot(*((0.1 - predictions.targets.astype("f8")) * [12, 8]).T)
    assert report.baseline_median_pixels == pytest.approx(np.median(beside))
    assert report.headline == f"Half of the points within {report.median_pixels:.3g} pixels"
    worst = read_worst(report.file("gallery.parquet"))
    assert len(worst) == 12
    assert all(each.jpeg for each in worst)


def test_points_of_photos_out_of_reach(review, draw, shown, caplog):
    report = review(draw("points", off=0.2))
    assert (report.median_pixels, report.p95_pixels) == (None, None)
    assert report.headline.startswith("RMSE 0.")
    assert report.baseline.endswith(" of half a side")
    assert "distances are not told in pixels" in caplog.text
    assert "(photo out of reach)" in shown(publish_numbers, report)["worst-errors"]
    assert "of half a side |" in shown(publish_numbers, report)["worst-errors"]


def test_a_box_is_told_in_iou(review, draw):
    exact = draw("box", 30, off=0.0)
    report = review(exact)
    assert report.mean_iou == pytest.approx(1.0)
    assert report.share_iou_half == 1.0
    assert 0 <= report.baseline_mean_iou < 0.5
    rough = draw("box", 30, off=0.3)
    report = review(rough)
    iou = box_iou(rough.targets, rough.predicted)
    assert report.mean_iou == pytest.approx(iou.mean())
    assert report.share_iou_half == pytest.approx((iou >= 0.5).mean())
    assert 0 < report.share_iou_half < 1
    assert report.headline == f"Mean IoU {report.mean_iou:.3f}"


def test_a_constant_number_explains_nothing(review, draw, shown):
    predictions = draw("numbers", 20, names=["legs"], units=["legs"])
    predictions.targets[:] = 4.0
    report = review(predictions)
    assert report.numbers[0].r2 is None
    stored = json.loads(Path(report.file("report.json")).read_text())
    assert stored["numbers"][0]["r2"] is None
    assert shown(publish_numbers, report)["numbers"][0]["R2"] == ""


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_few_photos_and_any_number_of_numbers(review, draw, shown, capsys, num_rows, count):
    names = [f"number {place}" for place in range(count)]
    report = review(draw("numbers", num_rows, names=names))
    assert len(report.numbers) == count
    found = shown(publish_numbers, report)
    assert list(found) == ["numbers", "residuals", "worst-errors", "run-summary"]
    assert len(found["numbers"]) == count
    assert ("and 94 more" in found["worst-errors"]) == (count == 100)
    assert ("94 more numbers are not drawn" in found["residuals"]) == (count == 100)
    show_numbers(report)
    said = capsys.readouterr().out
    assert ("and 88 more" in said) == (count == 100)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (["kg", "kg"], " kg"),
        (["", ""], ""),
        (["kg", "cm"], " over numbers in several units"),
        (["kg", ""], " over numbers in several units"),
    ],
)
def test_errors_over_all_numbers_say_what_unit_they_are_in(review, draw, units, said):
    report = review(draw("numbers", units=units))
    assert report.headline == f"RMSE {report.rmse.value:.4g}{said}"
    assert report.baseline.endswith(" kg") == (said == " kg")


def test_what_speaks_against_a_model_is_said(review, draw, judged, shown, capsys):
    report = review(draw("numbers", off=5.0))
    assert report.num_trained_on is None
    worse, untold = report.cautions
    assert worse == "The model is no better than always saying the mean of the training photos."
    assert untold.startswith("Whether the model was trained on some of these photos cannot be told")
    summary = shown(publish_numbers, report)["run-summary"]
    assert "no better than always saying the mean" in summary
    show_numbers(report)
    assert "no better than always saying the mean" in capsys.readouterr().out
    good = review(draw("numbers", off=0.1)).model_copy(update={"num_trained_on": 0})
    assert good.cautions == ()
    seen = good.model_copy(update={"num_trained_on": 3})
    assert seen.cautions == ("The model was trained on 3 of these photos.",)
    # A number that is told well in small units does not outweigh one that is told badly in large.
    well, badly = good.numbers
    badly = badly.model_copy(update={"rmse": 1000.0, "baseline_rmse": 500.0})
    mixed = good.model_copy(update={"numbers": (well, badly), "baseline_rmse": 9000.0})
    assert "no better than" in mixed.cautions[0]


@pytest.mark.parametrize("targets", ["numbers", "points", "box"])
def test_artifacts_say_what_is_and_what_was_said(review, judged, shown, targets):
    names = {"numbers": {"names": [EVIL], "units": ["m/s"]}}.get(targets, {})
    report = review(judged(targets, off=0.3, **names))
    found = shown(publish_numbers, report)
    assert list(found) == ["numbers", "residuals", "worst-errors", "run-summary"]
    worst = found["worst-errors"]
    assert worst.count("data:image/jpeg") == 12
    assert EVIL not in worst + found["run-summary"] + found["residuals"] + str(found["numbers"])
    (first, *_) = read_worst(report.file("gallery.parquet"))
    row = worst.splitlines()[-12]
    unit = {"numbers": r" m\/s", "points": " pixels", "box": "IoU "}[targets]
    assert unit in row.rsplit("|", 2)[1]
    said = f"{first.predicted[0]:.2f}"
    if targets == "numbers":
        said = f"{first.predicted[0]:.4g}".replace(".", r"\.").replace("-", r"\-")
    assert f"| {said}" in row
    assert ("orange" in worst) == (targets != "numbers")
    assert all(len(text) < MAX_BYTES for text in found.values())
    for figure in (report.headline, report.baseline, *report.details):
        assert literal(figure) in found["run-summary"]
    assert report.model_url in found["run-summary"]


def test_names_of_several_numbers_are_text(review, draw, shown):
    found = shown(
        publish_numbers, review(draw("numbers", names=[EVIL, "age"], units=[EVIL, "a|b"]))
    )
    assert EVIL not in str(found)
    assert "a|b" not in str(found)
    assert "standard deviations |" in found["worst-errors"]


def test_damaged_predictions_are_refused(review, draw):
    predictions = draw()
    predictions.predicted[3, 1] = np.nan
    with pytest.raises(PetsError, match=r"not finite: photo-3; predict anew"):
        review(predictions)


def test_the_terminal_is_told_all_that_counts(review, judged, capsys):
    report = review(judged("box", off=0.3))
    show_numbers(report)
    said = capsys.readouterr().out
    for figure in (report.headline, report.baseline, *report.details, report.model_url, report.url):
        assert figure in said
    assert f"{report.numbers[2].mae:.4g}" in said
