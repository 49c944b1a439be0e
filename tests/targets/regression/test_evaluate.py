"""Evaluation of numbers, and its artifacts."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets.cli.results import show_evaluation
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.evaluation.gallery import read_gallery
from pets_core.evaluation.tables import read_frame
from pets_core.records.dataset import NumberInfo
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.storage.markdown import escape_markdown
from pets_core.targets import write as module
from tasks.artifacts.evaluation import publish_evaluation
from tasks.artifacts.publisher import MAX_BYTES

EVIL = "<img src=x onerror=alert(1)>|`*_"
FILES = {
    "numbers.parquet", "numbers.csv", "residuals.png", "gallery.parquet", "report.json",
    "report.html", "model_card.md", "candidate.json",
}  # fmt: skip
KG = {"names": ["age", "weight"], "units": ["kg", "kg"]}


@pytest.fixture
def published(shown):
    """Return a function that publishes a report and returns its artifacts by key."""
    return lambda report: shown(publish_evaluation, PipelineConfig(), report)


def mae_of(report: EvalReport):
    return next(metric for metric in report.metrics if metric.name == "MAE")


def test_report_values_match_the_predictions(evaluated, draw_kind):
    predictions = draw_kind("numbers", 200, names=["age", EVIL], units=["kg", "kg"])
    report = evaluated(predictions)
    errors = predictions.outputs.astype("f8") - predictions.targets
    assert (report.num_rows, report.split, report.target) == (200, "test", "numbers")
    assert report.primary.value == pytest.approx(np.sqrt((errors**2).mean()))
    assert report.metric("MAE") == pytest.approx(np.abs(errors).mean())
    baseline_errors = 0.1 - predictions.targets.astype("f8")
    assert report.primary.baseline == pytest.approx(np.sqrt((baseline_errors**2).mean()))
    assert mae_of(report).baseline == pytest.approx(np.abs(baseline_errors).mean())
    table = read_frame(report.file("numbers"))
    assert table["mae"].tolist() == pytest.approx(np.abs(errors).mean(0))
    assert table["rmse"].tolist() == pytest.approx(np.sqrt((errors**2).mean(0)))
    rows = list(csv.DictReader(Path(report.file("numbers.csv")).read_text().splitlines()))
    assert [(row["name"], row["unit"]) for row in rows] == [("age", "kg"), (EVIL, "kg")]
    assert {path.name for path in Path(report.url).iterdir()} == FILES


def test_commit_file_is_written_last(evaluated, draw_kind, monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise ConnectionError("the store is unreachable")

    monkeypatch.setattr(module, "write_gallery", fail)
    with pytest.raises(ConnectionError):
        evaluated(draw_kind("numbers"))
    written = {path.name for path in (tmp_path / "store/runs/run-1/evaluation").iterdir()}
    assert written == {"numbers.parquet", "numbers.csv", "residuals.png"}


def test_errors_in_several_units_are_in_standard_deviations(evaluated, draw_kind):
    """Errors in grams would outweigh errors in years."""
    predictions = draw_kind("numbers", 50, names=["age", "weight"], units=["years", "grams"])
    report = evaluated(predictions)
    errors = (predictions.outputs.astype("f8") - predictions.targets) / 0.5
    assert report.primary.value == pytest.approx(np.sqrt((errors**2).mean()))
    assert report.primary.unit == mae_of(report).unit == "SD"
    assert report.metric("MAE") == pytest.approx(np.abs(errors).mean())


def test_champion_is_scored_with_the_models_standard_deviations(evaluated, draw_kind, write):
    """The champion's file has the standard deviations of its own training photos."""
    predictions = draw_kind("numbers", names=["age", "weight"], units=["years", "grams"])
    names = {"age": "years", "weight": "grams"}
    numbers = [NumberInfo(name=name, unit=unit, std=9.0) for name, unit in names.items()]
    champion = draw_kind("numbers", predicted_by=1, numbers=numbers, model_url="best")
    url = write(champion, "champion.parquet")
    report = evaluated(predictions, champion=Champion(model_url="best", predictions_url=url))
    errors = (champion.outputs.astype("f8") - champion.targets) / 0.5
    assert report.comparison.champion_metric.value == pytest.approx(np.sqrt((errors**2).mean()))


def test_r2_of_a_constant_number_is_empty(evaluated, draw_kind, published):
    predictions = draw_kind("numbers", 20, names=["legs"], units=["legs"])
    predictions.targets[:] = 4.0
    report = evaluated(predictions)
    assert pq.read_table(report.file("numbers.parquet"))["r2"].to_pylist() == [None]
    assert published(report)["numbers"][0]["r2"] == ""
    assert ">nan" not in Path(report.file("report.html")).read_text().lower()


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_evaluation_works_with_few_photos_and_many_numbers(
    evaluated, draw_kind, published, capsys, num_rows, count
):
    names = [f"number {index}" for index in range(count)]
    predictions = draw_kind("numbers", num_rows, names=names)
    report = evaluated(predictions, predictions)
    found = published(report)
    assert list(found) == ["numbers", "residuals", "worst-errors", "label-issues", "run-summary"]
    assert len(found["numbers"]) == count
    assert ("and 94 more" in found["worst-errors"]) == (count == 100)
    assert ("94 more numbers are not shown" in found["residuals"]) == (count == 100)
    assert len(report.highlights.rows) == min(count, 12)
    show_evaluation(report)
    assert ("number 11" in capsys.readouterr().out) == (count == 100)


@pytest.mark.parametrize(
    ("units", "unit"),
    [
        (["kg", "kg"], " kg"),
        (["", ""], " SD"),
        (["kg", "cm"], " SD"),
        (["kg", ""], " SD"),
        (["kg"], " kg"),
        ([""], ""),
    ],
)
def test_unit_of_the_metrics_over_all_numbers(evaluated, draw_kind, published, units, unit):
    names = [f"number {index}" for index in range(len(units))]
    report = evaluated(draw_kind("numbers", names=names, units=units))
    assert report.primary.format() == f"{report.primary.value:.4g}{unit}"
    assert report.primary.format(report.primary.baseline).endswith(unit)
    assert published(report)["run-summary"].startswith(
        f"# RMSE {escape_markdown(report.primary.format())}"
    )


def test_report_warns_of_bad_metrics_and_training_overlap(
    evaluated, draw_kind, draw_stored, published, capsys
):
    report = evaluated(draw_kind("numbers", off=5.0, **KG))
    assert report.num_trained_on is None
    worse, unknown = report.warnings
    assert worse == "The model is no better than always predicting the mean of the training photos."
    assert unknown.startswith("Whether the model was trained on some of these photos is unknown")
    assert "no better than always predicting the mean" in published(report)["run-summary"]
    show_evaluation(report)
    assert "no better than always predicting the mean" in capsys.readouterr().out
    good = evaluated(draw_kind("numbers", off=0.1, **KG)).model_copy(update={"num_trained_on": 0})
    assert good.warnings == ()
    seen = good.model_copy(update={"num_trained_on": 3})
    assert seen.warnings == ("The model was trained on 3 of these samples.",)


def test_each_number_is_compared_with_its_own_baseline(evaluated, draw_kind):
    """A good number in small units does not hide a bad number in large units."""
    predictions = draw_kind("numbers", **KG)
    predictions.targets[:, 1] *= 1000
    predictions.outputs[:, 1] = 5000
    assert "no better than" in evaluated(predictions).warnings[0]


def test_artifacts_show_actual_and_predicted_numbers(evaluated, draw_stored, published):
    report = evaluated(draw_stored("numbers", off=0.3, names=[EVIL], units=["m/s"]))
    found = published(report)
    assert list(found) == ["numbers", "residuals", "worst-errors", "run-summary"]
    worst = found["worst-errors"]
    assert worst.count("data:image/jpeg") == 12
    assert EVIL not in str(found)
    first, *_ = read_gallery(report.file("gallery.parquet"))["worst-errors"]
    row = worst.splitlines()[-12]
    assert r"m\/s" in row.rsplit("|", 2)[1]
    assert f"| {escape_markdown(first.actual)} | {escape_markdown(first.predicted)} |" in row
    assert "orange" not in worst.lower()
    assert all(len(str(content)) < MAX_BYTES for content in found.values())
    for metric in (report.primary, *report.metrics):
        for value in (metric.value, metric.baseline):
            assert escape_markdown(metric.format(value)) in found["run-summary"]
    assert report.model_url in found["run-summary"]


def test_names_and_units_of_numbers_are_escaped(evaluated, draw_kind, published):
    report = evaluated(draw_kind("numbers", names=[EVIL, "age"], units=[EVIL, "a|b"]))
    found = published(report)
    assert EVIL not in str(found)
    assert "a|b" not in str(found)
    assert "standard deviations |" in found["worst-errors"]
    first, *_ = read_gallery(report.file("gallery.parquet"))["worst-errors"]
    assert first.actual.startswith(f"{EVIL} ")
    assert "; age " in first.actual
    assert first.actual.endswith(" a|b")


def test_worst_errors_are_sorted_by_absolute_error(evaluated, draw_kind):
    predictions = draw_kind("numbers", 40, off=0.3, names=["age"], units=["years"])
    report = evaluated(predictions)
    worst = read_gallery(report.file("gallery.parquet"))["worst-errors"]
    off = (predictions.outputs - predictions.targets)[:, 0]
    order = np.argsort(-np.abs(off))[:16]
    assert [picture.photo_id for picture in worst] == [predictions.ids[row] for row in order]
    assert worst[0].detail == f"{off[order[0]]:+.4g} years"
    assert worst[0].actual == f"{predictions.targets[order[0], 0]:.4g} years"
    assert worst[0].predicted == f"{predictions.outputs[order[0], 0]:.4g} years"
    assert {picture.jpeg for picture in worst} == {None}, "the data set is unavailable"


def test_damaged_predictions_are_refused(evaluated, draw_kind, tmp_path):
    predictions = draw_kind("numbers")
    predictions.outputs[3, 1] = np.nan
    with pytest.raises(PetsError, match=r"not finite: photo-3\. Predict again"):
        evaluated(predictions)
    assert not (tmp_path / "store").exists(), "nothing is written"
