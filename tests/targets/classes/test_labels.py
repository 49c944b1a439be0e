"""Label errors are found, and corrected in the next version."""

import csv

import numpy as np
import pytest
from predictions_of import predictions_of

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.tables import issues_csv
from pets_core.targets.classes.labels import label_issues
from pets_core.targets.classes.predictions import ClassPredictions


@pytest.fixture
def planted(draw_classes) -> tuple[ClassPredictions, set[str]]:
    """Draw predictions of a good model for 300 photos, 12 of them with a wrong label."""
    drawn = draw_classes(300, 5, skill=7.0, split="valid")
    targets = drawn.targets.copy()
    wrong = np.random.default_rng(3).choice(300, 12, replace=False)
    targets[wrong] = (targets[wrong] + 1) % 5
    mislabelled = predictions_of(drawn.info, drawn.ids, targets, drawn.outputs)
    return mislabelled, {drawn.ids[row] for row in wrong}


def test_planted_label_errors_are_found(planted):
    predictions, wrong = planted
    issues = label_issues(predictions)
    found = set(issues["id"])
    assert len(found & wrong) >= 9, "at least three quarters are found"
    assert len(found - wrong) <= 2
    first = issues.iloc[0]
    row = predictions.ids.index(first.id)
    assert first.given == predictions.names[predictions.targets[row]]
    assert first.label == predictions.names[predictions.predicted[row]] != first.given
    assert first.given_probability < 0.5 < first.label_probability


def test_classes_without_photos_are_skipped(planted):
    predictions, wrong = planted
    kept = np.flatnonzero(predictions.targets != 2)
    fewer = predictions_of(
        predictions.info, [predictions.ids[i] for i in kept], predictions.targets[kept],
        predictions.outputs[kept],
    )  # fmt: skip
    assert set(label_issues(fewer)["id"]) & wrong


def test_single_class_has_no_label_issues(draw_classes):
    assert label_issues(draw_classes(10, 1)).empty


def test_label_fixes_correct_the_next_version(planted, write_folder, tmp_path):
    """The file written by an evaluation is valid for `source.label_fixes`."""
    photos = write_folder(tmp_path / "photos", {"class-0": 8, "class-1": 8})
    settings = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(photos), "valid_fraction": 0.3},
    }  # fmt: skip
    before = ingest(PipelineConfig.model_validate(settings))
    issues = label_issues(planted[0])[:1].assign(
        id="class-0/3.jpg", label="class-1", given="class-0"
    )
    path = tmp_path / "label_fixes.csv"
    path.write_bytes(issues_csv(issues))
    assert next(csv.DictReader(path.open()))["given"] == "class-0"
    settings["source"]["label_fixes"] = str(path)
    after = ingest(PipelineConfig.model_validate(settings))
    assert after.fingerprint != before.fingerprint
    index = read_table(f"{after.url}/photos.parquet").to_pandas().set_index("id")
    assert index.target_text["class-0/3.jpg"] == "class-1"
    assert index.target_text.value_counts().to_dict() == {"class-1": 9, "class-0": 7}
