"""Labels that are probably wrong: planted ones are found, and mended in the next version."""

import csv

import numpy as np
import pytest
from predictions_of import predictions_of

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.labels import label_issues, write_label_fixes
from pets_core.evaluation.predictions import Predictions


@pytest.fixture
def planted(draw) -> tuple[Predictions, set[str]]:
    """A good model's predictions of 300 photos, 12 of which carry another label."""
    drawn = draw(300, 5, skill=7.0, split="valid")
    targets = drawn.targets.copy()
    wrong = np.random.default_rng(3).choice(300, 12, replace=False)
    targets[wrong] = (targets[wrong] + 1) % 5
    mislabelled = predictions_of(drawn.info, drawn.ids, targets, drawn.probabilities)
    return mislabelled, {drawn.ids[row] for row in wrong}


def test_planted_errors_are_found(planted):
    predictions, wrong = planted
    issues = label_issues(predictions)
    found = {issue.id for issue in issues}
    assert len(found & wrong) >= 9, "three quarters of them"
    assert len(found - wrong) <= 2
    surest = issues[0]
    row = predictions.ids.index(surest.id)
    assert surest.label == predictions.names[predictions.targets[row]]
    assert surest.proposed == predictions.names[predictions.predicted[row]] != surest.label
    assert surest.label_probability < 0.5 < surest.proposed_probability


def test_classes_without_photos_are_in_nobodys_way(planted):
    predictions, wrong = planted
    kept = np.flatnonzero(predictions.targets != 2)
    fewer = predictions_of(
        predictions.info, [predictions.ids[i] for i in kept], predictions.targets[kept],
        predictions.probabilities[kept],
    )  # fmt: skip
    assert {issue.id for issue in label_issues(fewer)} & wrong


def test_a_single_class_has_no_issues(draw):
    assert label_issues(draw(10, 1)) == []


def test_the_next_version_has_the_mended_labels(planted, write_folder, tmp_path):
    """What an evaluation writes is what `source.label_fixes` takes."""
    photos = write_folder(tmp_path / "photos", {"class-0": 8, "class-1": 8})
    settings = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(photos), "valid_fraction": 0.3},
    }  # fmt: skip
    before = ingest(PipelineConfig.model_validate(settings))
    issue = label_issues(planted[0])[0].model_copy(
        update={"id": "class-0/3.jpg", "label": "class-0", "proposed": "class-1"}
    )
    path = tmp_path / "label_fixes.csv"
    write_label_fixes(str(path), [issue])
    assert next(csv.DictReader(path.open()))["given"] == "class-0"
    settings["source"]["label_fixes"] = str(path)
    after = ingest(PipelineConfig.model_validate(settings))
    assert after.fingerprint != before.fingerprint
    index = read_table(f"{after.url}/photos.parquet").to_pandas().set_index("id")
    assert index.class_name["class-0/3.jpg"] == "class-1"
    assert index.class_name.value_counts().to_dict() == {"class-1": 9, "class-0": 7}
