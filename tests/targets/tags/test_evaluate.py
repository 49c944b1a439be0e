"""Evaluation of tags, and its artifacts."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets.cli.results import show_evaluation
from pets_core.config.pipeline import PipelineConfig
from pets_core.evaluation.gallery import read_gallery
from pets_core.evaluation.tables import read_frame
from pets_core.records.evaluation import EvalReport
from pets_core.registry.aliases import EvaluationKey, find_champion, promote_run
from pets_core.storage.markdown import escape_markdown
from pets_core.targets.tags.thresholds import THRESHOLDS, choose_thresholds, read_thresholds
from tasks.artifacts.evaluation import publish_evaluation
from tasks.artifacts.publisher import MAX_BYTES

EVIL = "<img src=x onerror=alert(1)>|`*_"
FILES = {
    "tags.parquet", "tags.csv", "gallery.parquet", "report.json", "report.html", "model_card.md",
    "candidate.json", THRESHOLDS,
}  # fmt: skip
VALIDATION_FILES = {
    "thresholds.parquet", "thresholds.csv", "thresholds.png", "label_issues.csv"
}  # fmt: skip


@pytest.fixture
def evaluate_tags(evaluated):
    """Return a function that evaluates tags with shared or per-tag thresholds."""

    def run_evaluation(predictions, validation=None, threshold="shared", **keywords) -> EvalReport:
        settings = {"source": {"targets": "tags"}, "evaluate": {"threshold": threshold}}
        return evaluated(predictions, validation, settings=settings, **keywords)

    return run_evaluation


def thresholds_of(report: EvalReport) -> dict[str, float]:
    """Return the threshold of each tag by name."""
    table = read_frame(report.file("tags"))
    return dict(zip(table["name"], table["threshold"], strict=True))


def test_report_values_match_the_predictions(evaluate_tags, draw):
    predictions, validation = draw(200, seed=1), draw(100, seed=2)
    report = evaluate_tags(predictions, validation)
    chosen = choose_thresholds(
        validation.targets, validation.outputs, validation.info.names, "shared"
    )
    given = predictions.outputs >= np.float32(chosen.values[0])
    assert report.metric("accuracy_multi") == pytest.approx((given == predictions.targets).mean())
    assert report.metric("exact match") == pytest.approx(
        (given == predictions.targets).all(1).mean()
    )
    losses = report.metric("binary cross-entropy")
    assert losses == pytest.approx(predictions.losses.mean(), rel=1e-5)
    right, either = (predictions.targets & given).sum(), predictions.targets.sum() + given.sum()
    assert report.metric("micro F1") == pytest.approx(2 * right / either)
    num_untagged = (~predictions.targets.any(1)).sum()
    assert report.details[0] == f"5 tags; {num_untagged} photos have none."
    assert f"{chosen.values[0]:.2f} for all tags, chosen on 100 validation" in report.details[1]
    assert report.num_rows == 200
    assert set(thresholds_of(report).values()) == set(chosen.values)
    assert {path.name for path in Path(report.url).iterdir()} == FILES | VALIDATION_FILES
    table = read_frame(report.file("tags"))
    known = table[table["support"] > 0]
    assert report.metric("mAP") == pytest.approx(known["average_precision"].mean())
    assert report.metric("macro F1") == pytest.approx(known["f1"].mean())
    rows = list(csv.DictReader(Path(report.file("tags.csv")).read_text().splitlines()))
    assert [row["name"] for row in rows] == table["name"].tolist()
    assert pq.read_table(report.file("thresholds.parquet")).num_rows == 99


def test_thresholds_are_stored_with_the_model_of_the_run(evaluate_tags, draw, tmp_path):
    model = str(tmp_path / "store/runs/run-1/model")
    first = evaluate_tags(draw(model_url=model), draw(80, seed=5, model_url=model), "per_tag")
    names = draw().info.names
    kept = read_thresholds(model, names)
    assert kept.kind == "per_tag"
    assert kept.values == tuple(thresholds_of(first)[name] for name in names)
    assert (Path(model) / "README.md").exists()
    # A second evaluation with another setting replaces the thresholds.
    again = evaluate_tags(draw(model_url=model), draw(80, seed=5, model_url=model), "shared")
    assert len(set(thresholds_of(again).values())) == 1
    assert read_thresholds(model, names).kind == "shared"


def test_no_thresholds_are_stored_without_validation_photos(evaluate_tags, draw, tmp_path):
    model = tmp_path / "store/runs/run-1/model"
    evaluate_tags(draw(model_url=str(model)))
    assert not (model / THRESHOLDS).exists()


def test_thresholds_stored_with_the_model_are_used(evaluate_tags, draw, shown, tmp_path):
    model = tmp_path / "elsewhere/model"
    model.mkdir(parents=True)
    validation = draw(80, seed=5, model_url=str(model))
    evaluate_tags(draw(model_url=str(model)), validation)
    assert not list(model.iterdir()), "a model outside the store is not modified"
    own = {"kind": "shared", "tags": draw().info.names, "values": [0.77] * 5, "num_photos": 9}
    (model / THRESHOLDS).write_text(json.dumps(own))
    report = evaluate_tags(draw(model_url=str(model)), validation)
    assert set(thresholds_of(report).values()) == {0.77}
    assert "0.77 for all tags, chosen on 9 validation photos" in report.details[1]
    # The threshold curve and label issues need validation photos.
    report = evaluate_tags(draw(model_url=str(model)), run="run-2")
    artifacts = shown(publish_evaluation, PipelineConfig(), report)
    assert set(artifacts) == {"tags", "top-losses", "run-summary"}
    assert {path.name for path in Path(report.url).iterdir()} == FILES


def test_champion_outside_the_store_is_compared_at_its_thresholds(evaluate_tags, draw, tmp_path):
    model = tmp_path / "elsewhere/model"
    model.mkdir(parents=True)
    (model / "model.json").touch()
    config = PipelineConfig(store=str(tmp_path / "store"))
    validation = draw(80, seed=5, model_url=str(model))
    first = evaluate_tags(draw(model_url=str(model)), validation)
    assert 0.5 not in thresholds_of(first).values()
    assert [path.name for path in model.iterdir()] == ["model.json"]
    promote_run(config.store, "champion", first)
    champion = find_champion(config, EvaluationKey("pets", "f", "test", 0))
    report = evaluate_tags(draw(), run="run-2", champion=champion)
    assert report.comparison.champion_metric.value == first.primary.value


def test_thresholds_of_a_model_of_another_run_are_stored_once(evaluate_tags, draw, tmp_path):
    model = tmp_path / "store/runs/other/model"
    model.mkdir(parents=True)
    report = evaluate_tags(draw(model_url=str(model)), draw(80, seed=5, model_url=str(model)))
    kept = json.loads((model / THRESHOLDS).read_text())["values"]
    assert kept == list(thresholds_of(report).values())
    evaluate_tags(draw(model_url=str(model)), draw(80, seed=9, model_url=str(model)))
    assert json.loads((model / THRESHOLDS).read_text())["values"] == kept, (
        "stored thresholds are kept"
    )
    assert [path.name for path in model.iterdir()] == [THRESHOLDS]


def test_thresholds_without_validation_photos_are_one_half(evaluate_tags, draw, shown):
    report = evaluate_tags(draw())
    assert set(thresholds_of(report).values()) == {0.5}
    assert "0.5 for each tag (no validation photos to choose them on)" in report.details[1]
    artifacts = shown(publish_evaluation, PipelineConfig(), report)
    assert set(artifacts) == {"tags", "top-losses", "run-summary"}
    assert report.num_label_issues is None


def test_artifacts_and_printed_summary_match_the_report(evaluate_tags, draw, shown, capsys):
    tags = ["dog", "cat", EVIL, "sofa", "never"]
    predictions = draw(tags=tags)
    report = evaluate_tags(predictions, draw(80, seed=5, tags=tags))
    artifacts = shown(publish_evaluation, PipelineConfig(), report)
    assert list(artifacts) == ["tags", "thresholds", "top-losses", "label-issues", "run-summary"]
    assert all(len(json.dumps(content)) < MAX_BYTES for content in artifacts.values())
    assert all("<img src=x" not in str(content) for content in artifacts.values())
    assert [row["name"] for row in artifacts["tags"]][-1] == "never", (
        "a tag without photos comes last"
    )
    assert artifacts["tags"][-1]["f1"] == ""
    scores = [row["f1"] for row in artifacts["tags"][:-1]]
    assert scores == sorted(scores)
    summary = artifacts["run-summary"]
    assert summary.startswith(f"# F1 per photo {escape_markdown(report.primary.format())}")
    num_untagged = (~predictions.targets.any(1)).sum()
    assert rf"5 tags\; {num_untagged} photos have none\." in summary
    assert report.unseen_labels == ("never",)
    assert r"without an evaluated photo\: never\." in summary
    assert "data:image/png;base64,iVBOR" in artifacts["thresholds"]
    worst = read_gallery(report.file("gallery.parquet"))["top-losses"]
    assert worst[0].photo_id == predictions.ids[int(predictions.losses.argmax())]
    assert artifacts["top-losses"].count("(photo unavailable)") == 16
    show_evaluation(report)
    printed = capsys.readouterr().out
    assert f"F1 per photo {report.primary.value:.1%}" in printed
    assert f"Report       {report.file('report.html')}" in printed


def test_worst_photo_has_actual_and_predicted_tags(evaluate_tags, draw):
    predictions = draw()
    report = evaluate_tags(predictions)
    worst = read_gallery(report.file("gallery.parquet"))["top-losses"][0]
    row, names = predictions.ids.index(worst.photo_id), predictions.info.names
    actual = ", ".join(names[i] for i in np.flatnonzero(predictions.targets[row]))
    values = predictions.outputs[row]
    given = [i for i in np.argsort(-values) if values[i] >= 0.5]
    assert worst.actual == (actual or "no tag")
    assert worst.predicted == (", ".join(f"{names[i]} {values[i]:.0%}" for i in given) or "no tag")
    assert not worst.is_correct


def test_evaluation_works_with_one_photo_and_one_tag(evaluate_tags, draw):
    report = evaluate_tags(draw(1, 1))
    assert report.num_rows == 1


def test_undefined_metrics_are_empty_not_nan(evaluate_tags, draw):
    """Undefined metrics are empty, not NaN."""
    predictions = draw(20)
    predictions.targets[:] = False
    report = evaluate_tags(predictions, draw(20, seed=3))
    assert "nan" not in Path(report.file("report.json")).read_text().lower()
    assert ">nan" not in Path(report.file("report.html")).read_text().lower()
    assert set(report.unseen_labels) == set(predictions.info.names)
