"""Evaluation on photos that a model was trained on, in a store with two versions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from predictions_of import predictions_of

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.errors import PetsError
from pets_core.evaluation.compare import compare
from pets_core.evaluation.train_overlap import trained_on
from pets_core.models.card import CARD, ModelCard
from pets_core.records.evaluation import Champion, Metric
from pets_core.targets.classes.target import ClassesEvaluator
from pets_core.targets.evaluate import evaluate, find_prediction_files
from pets_core.targets.gate import evaluate_gate


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Version `old` trains on photos 0 to 5; `new` tests 4 to 9, and 4 has another id."""
    root = str(tmp_path / "store")
    old = {f"photo-{i}": "train" if i < 6 else "test" for i in range(10)}
    new = {f"photo-{i}": "train" if i < 4 else "test" for i in range(10)}
    for version, splits in (("old", old), ("new", new)):
        ids = ["renamed" if version == "new" and i == "photo-4" else i for i in splits]
        hashes = [f"sha-{i}" for i in range(10)]
        table = pa.table({"id": ids, "sha256": hashes, "split": list(splits.values())})
        write_table(f"{root}/datasets/pets/{version}/photos.parquet", table)
    return root


@pytest.fixture
def model(store, draw_classes):
    """Return a function that stores a model trained on a version and returns its folder."""

    def stored(version: str) -> str:
        url = f"{store}/runs/{version}/model"
        card = ModelCard(
            backbone="resnet18", num_features=8, image_size=64,
            vocabulary=draw_classes(3, 3).info.vocabulary,
            resize_to=64, mean=(0, 0, 0), std=(1, 1, 1), dataset_fingerprint=version,
        )  # fmt: skip
        storage.write_bytes(f"{url}/{CARD}", card.model_dump_json().encode())
        return url

    return stored


@pytest.fixture
def predict(store, draw_classes):
    """Return a function that draws predictions of the new version's test photos."""

    def predicted(model_url: str, seed: int = 0):
        drawn = draw_classes(
            6, 3, seed=seed, model_url=model_url, dataset_fingerprint="new",
            dataset_url=f"{store}/datasets/pets/new",
        )  # fmt: skip
        ids = ["renamed", *(f"photo-{i}" for i in range(5, 10))]
        targets = np.array([0, 1, 2, 0, 1, 2])
        return predictions_of(drawn.info, ids, targets, drawn.outputs)

    return predicted


def test_photos_are_matched_by_content(store, model, predict):
    overlap = trained_on(store, model("old"), predict("m"))
    assert overlap.tolist() == [True, True, False, False, False, False]
    assert not trained_on(store, model("new"), predict("m")).any()


def test_leak_within_the_training_version_is_not_overlap(store, model, predict):
    """Ingest allows a copy of a training photo in another split of the same version."""
    url = f"{store}/datasets/pets/old/photos.parquet"
    table = pq.read_table(url)
    leak = pa.table({"id": ["copy"], "sha256": ["sha-5"], "split": ["test"]})
    write_table(url, pa.concat_tables([table, leak]))
    overlap = trained_on(store, model("old"), predict("m"))
    assert overlap.tolist() == [True, False, False, False, False, False]


def test_overlap_is_found_in_a_moved_store(store, model, predict):
    model("old")
    moved = Path(store).rename(Path(store).with_name("moved"))
    overlap = trained_on(str(moved), f"{moved}/runs/old/model", predict("m"))
    assert overlap.sum() == 2


@pytest.mark.parametrize("missing", ["model", "old version", "new version"])
def test_missing_versions_leave_the_overlap_unknown(store, model, predict, missing):
    url = model("old")
    paths = {"model": f"{url}/{CARD}", "old version": f"{store}/datasets/pets/old/photos.parquet",
             "new version": f"{store}/datasets/pets/new/photos.parquet"}  # fmt: skip
    Path(paths[missing]).unlink()
    assert trained_on(store, url, predict("m")) is None


def score(predictions):
    return ClassesEvaluator(predictions).score()


def test_comparison_excludes_training_photos(predict):
    model, champion = score(predict("m")), score(predict("c", seed=1))
    overlap = np.array([True, True, False, False, False, False])
    comparison = compare(model, champion, overlap)
    assert (comparison.num_rows, comparison.num_excluded) == (4, 2)
    assert "2 more are excluded" in comparison.excluded_text
    unknown = compare(model, champion, None)
    assert (unknown.num_rows, unknown.num_excluded) == (6, None)
    assert "is unknown" in unknown.excluded_text
    with pytest.raises(PetsError, match="trained on all of the 6 samples"):
        compare(model, champion, np.ones(6, np.bool_))


def test_gate_rejects_a_model_evaluated_on_its_training_photos():
    config, perfect = PipelineConfig().gate, Metric(name="error rate", value=0.0, unit="%")
    verdict = evaluate_gate(config, perfect, num_trained_on=2)
    assert not verdict.passed
    (reason,) = verdict.reasons
    assert reason.startswith("the model was trained on 2 of the evaluated samples")
    assert evaluate_gate(config, perfect, num_trained_on=0).passed
    assert evaluate_gate(config, perfect, num_trained_on=None).passed


def test_evaluation_reports_the_overlap(store, model, predict, write):
    champion_url, new_url = model("old"), model("new")
    config = PipelineConfig(store=store)
    url = write(predict(new_url))
    champion = Champion(
        model_url=champion_url,
        predictions_url=write(predict(champion_url, seed=1), "c.parquet"),
    )
    report = evaluate(config, f"{store}/runs/r", find_prediction_files(url), champion=champion)
    assert (report.num_trained_on, report.comparison.num_excluded) == (0, 2)
    assert "2 more are excluded" in Path(report.file("report.html")).read_text()
    # With the models swapped, the evaluated model was trained on test photos.
    swapped = Champion(model_url=new_url, predictions_url=url)
    predicted = find_prediction_files(champion.predictions_url)
    report = evaluate(config, f"{store}/runs/r", predicted, champion=swapped)
    assert (report.num_trained_on, report.comparison.num_excluded) == (2, 2)
    assert not report.verdict.passed


def test_champion_is_not_compared_with_itself(store, model, predict, write):
    url = model("new")
    given = find_prediction_files(write(predict(url)))
    champion = Champion(model_url=url, predictions_url=given.predictions_url)
    report = evaluate(PipelineConfig(store=store), f"{store}/runs/r", given, champion=champion)
    assert report.is_champion
    assert report.comparison is None
    assert report.verdict.passed
    assert "It is the champion." in Path(report.file("report.html")).read_text()
