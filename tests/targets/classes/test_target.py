"""Evaluation of classes: scores, photos, and label issues."""

import numpy as np
import pyarrow as pa
import pytest

from pets_core.config.evaluate import EvaluateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.gallery import Gallery
from pets_core.targets.classes.predictions import ClassPredictions
from pets_core.targets.classes.target import ClassesEvaluator


def gallery_of(predictions: ClassPredictions) -> Gallery:
    return ClassesEvaluator(predictions).evaluate().gallery


def test_score_is_1_for_each_wrong_photo(draw_classes):
    predictions = draw_classes(300, 4, skill=1.0)
    scores = ClassesEvaluator(predictions).score()
    assert scores.scores.tolist() == predictions.wrong.astype(float).tolist()
    assert scores.metric.value == pytest.approx(predictions.wrong.mean())
    assert scores.metric.low < scores.metric.value < scores.metric.high
    assert (scores.metric.name, scores.metric.unit) == ("error rate", "%")
    assert (scores.model_url, scores.ids) == (predictions.info.model_url, predictions.ids)


def test_score_labels_are_the_actual_classes(draw_classes):
    predictions = draw_classes(300, 4, skill=1.0)
    labels = ClassesEvaluator(predictions).score().labels
    support, found = labels.supports()
    assert support.tolist() == np.bincount(predictions.targets, minlength=4).tolist()
    correct = predictions.targets[~predictions.wrong]
    assert found.tolist() == np.bincount(correct, minlength=4).tolist()


def test_galleries_are_sorted_by_loss_and_confidence(draw_classes):
    predictions = draw_classes(300, 4, skill=1.0)
    gallery = gallery_of(predictions)
    worst = np.argsort(-predictions.losses, kind="stable")[:16]
    shown = gallery["top-losses"]
    assert [picture.photo_id for picture in shown] == [predictions.ids[row] for row in worst]
    assert [p.detail for p in shown] == [f"loss {predictions.losses[row]:.2f}" for row in worst]
    assert [p.is_correct for p in shown] == [not predictions.wrong[row] for row in worst]
    rows = [predictions.ids.index(p.photo_id) for p in gallery["confident-errors"]]
    confidence = predictions.confidence[rows].tolist()
    assert confidence == sorted(confidence, reverse=True)
    assert predictions.wrong[rows].all()
    assert confidence[0] == predictions.confidence[predictions.wrong].max()


def test_picture_has_actual_and_predicted_class_names(draw_classes):
    predictions = draw_classes(300, 4, skill=1.0)
    for picture in gallery_of(predictions)["top-losses"]:
        row = predictions.ids.index(picture.photo_id)
        assert picture.actual == predictions.names[predictions.targets[row]]
        name = predictions.names[predictions.predicted[row]]
        assert picture.predicted == f"{name}, {predictions.confidence[row]:.0%}"


def test_each_confused_pair_has_at_most_eight_photos(draw_classes):
    predictions = draw_classes(300, 4, skill=0.5)
    evaluation = ClassesEvaluator(predictions).evaluate()
    pairs = evaluation.tables["most_confused"][:10].to_dict("records")
    shown = evaluation.gallery["confused-pairs"]
    for pair in pairs:
        heading = f"{pair['actual']}, predicted {pair['predicted']}"
        own = [picture for picture in shown if picture.group == heading]
        assert len(own) == min(pair["count"], 8)
        assert {picture.actual for picture in own} == {pair["actual"]}
        assert {picture.predicted.split(",")[0] for picture in own} == {pair["predicted"]}
    headings = list(dict.fromkeys(picture.group for picture in shown))
    assert headings == [f"{pair['actual']}, predicted {pair['predicted']}" for pair in pairs]


def test_pairs_confused_too_few_times_are_dropped(draw_classes):
    predictions = draw_classes(300, 4, skill=1.5)
    config = EvaluateConfig(most_confused_min_count=8)
    tables = ClassesEvaluator(predictions, config=config).evaluate().tables
    assert tables["most_confused"]["count"].min() >= 8
    assert tables["confusion"]["count"].min() < 8, "the confusion table is complete"


def test_highlights_are_the_most_confused_pairs(draw_classes):
    evaluation = ClassesEvaluator(draw_classes(300, 4, skill=0.5)).evaluate()
    assert evaluation.highlights.columns == ("actual", "predicted", "photos", "share")
    expected = [
        (pair["actual"], pair["predicted"], str(pair["count"]), f"{pair['share']:.0%}")
        for pair in evaluation.tables["most_confused"][:3].to_dict("records")
    ]
    assert list(evaluation.highlights.rows) == expected


def test_galleries_have_photos_and_activation_maps(draw_classes, drawn_sample, tmp_path):
    settings = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(drawn_sample)},
    }  # fmt: skip
    url = ingest(PipelineConfig.model_validate(settings)).url
    ids = pa.parquet.read_table(f"{url}/photos.parquet")["id"].to_pylist()
    predictions, validation = (
        draw_classes(30, 3, dataset_url=url),
        draw_classes(60, 3, split="valid", skill=7.0),
    )
    predictions.ids[:], validation.ids[:] = ids[:30], ids[30:90]
    # Plant a label that the model contradicts.
    validation.targets[7] = (validation.targets[7] + 1) % 3
    worst = ids[int(np.argmax(predictions.losses))]
    maps = str(tmp_path / "maps.parquet")
    write_table(maps, pa.table({"id": [worst], "jpeg": [b"map"]}))
    evaluation = ClassesEvaluator(predictions, validation, maps_url=maps).evaluate()
    gallery = evaluation.gallery
    assert evaluation.num_label_issues == len(gallery["label-issues"]) > 0
    assert gallery["label-issues"][0].photo_id == ids[37]
    first = gallery["top-losses"][0]
    assert (first.photo_id, first.map_jpeg) == (worst, b"map")
    others = [picture for part in gallery.values() for picture in part[1:]]
    assert {picture.map_jpeg for picture in others if picture.photo_id != worst} == {None}
    assert all(picture.jpeg for part in gallery.values() for picture in part)
    assert "label_fixes.csv" in evaluation.files
