"""Reading a store of an earlier version (318664f, with schema version 2).

It has a run with classes, whose model is the champion, one with tags and one with points, all
without weights. tests/test_schema_2.py reads and extends a later one.
"""

import json
import zipfile
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import SCHEMA_VERSION, load_manifest, read_photo_tables
from pets_core.data.ingest.label_schema import Contract
from pets_core.data.ingest.stored import find_existing_shards, fingerprint
from pets_core.maintenance.retention import find_old
from pets_core.models.card import read_card
from pets_core.records.dataset import QuarantinedFile, Run, ShardRecord
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import EvaluationKey, candidates, find_champion, promote
from pets_core.runtime.runs import _StageResult, find_run
from pets_core.targets.evaluate import evaluate, find_prediction_files
from pets_core.training.checkpoint import TrainingPosition

FILE = Path(__file__).parent / "fixtures/store_v1.zip"
METRICS = {"class": "error rate", "tags": "F1 per photo", "points": "mean distance"}


@pytest.fixture
def store(tmp_path) -> Path:
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(tmp_path / "store")
    for path in (tmp_path / "store").rglob("*.json"):
        path.write_text(path.read_text().replace("/old-store", str(tmp_path / "store")))
    return tmp_path / "store"


def runs(store: Path) -> dict[str, Path]:
    """Return the run of each kind of target."""
    return {read_card(str(run / "model")).targets: run for run in (store / "runs").iterdir()}


def test_store_has_a_run_of_each_kind(store):
    assert set(runs(store)) == set(METRICS)


@pytest.mark.parametrize("kind", METRICS)
def test_predictions_are_evaluated(store, kind):
    run = runs(store)[kind]
    predicted = find_prediction_files(str(run / "evaluation/predictions.parquet"))
    assert predicted.targets == kind
    report = evaluate(PipelineConfig(store=str(store)), str(store / "runs/again"), predicted)
    assert (report.primary.name, report.num_rows) == (METRICS[kind], 7)
    old = json.loads((run / "evaluation/report.json").read_text())
    if kind == "class":
        assert report.primary.value == pytest.approx(old["error_rate"]["value"])
    elif kind == "tags":
        assert report.metric("micro F1") == pytest.approx(old["micro_f1"]["value"])
        assert report.metric("mAP") == pytest.approx(old["mean_average_precision"])


@pytest.mark.parametrize("kind", METRICS)
def test_run_and_training_result_are_read(store, kind):
    run = runs(store)[kind]
    assert find_run(str(run), Run).manifest.targets == kind
    answer = json.loads((run / "stages/train.json").read_text())["answer"]
    (epoch,) = TrainResult.model_validate_json(answer).epochs
    assert epoch.valid_metric is not None
    assert epoch.metric_text


def test_champion_is_found_and_can_be_promoted_again(store, capsys):
    (candidate,) = candidates(str(store))
    assert candidate.metric.format() == "28.6%"
    champion = find_champion(PipelineConfig(store=str(store)), EvaluationKey.of(candidate))
    assert champion.model_url == str(runs(store)["class"] / "model")
    assert champion.predictions_url is not None
    promote(str(store), "canary", candidate)
    cli.main(["models", "list", "--store", str(store), "--json"])
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["aliases"] == ["canary", "champion"]
    assert listed["metric"]["name"] == "error rate"


def test_garbage_collection_keeps_the_run_of_the_champion(store):
    kept = {old.run_id for old in find_old(str(store), keep_days=-1)}
    assert kept == {run.name for kind, run in runs(store).items() if kind != "class"}


def test_data_sets_are_listed(store, capsys):
    cli.main(["datasets", "list", "--store", str(store), "--json"])
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {
        "class", "tags-tags", "points-points"
    }  # fmt: skip


STAGE = '{"asked": "5f", "answer": "{}"}'  # codespell:ignore asked
JOURNAL = {
    "key": "k",
    "shard": None,
    "class_counts": {},
    "left_out": [{"id": "1", "path": "1.jpg", "reason": "in_no_list", "detail": ""}],
    "num_read": 1,
    "num_narrow": 1,
}
POSITION = {"num_rows": 3, "epochs_since_best": 2}


def test_earlier_names_of_record_fields_are_read():
    stage = _StageResult.model_validate_json(STAGE)
    assert (stage.request_hash, stage.record_json) == ("5f", "{}")
    journal = ShardRecord.model_validate_json(json.dumps(JOURNAL))
    (file,) = journal.quarantined
    assert (file.reason, journal.num_low_contrast) == ("not_in_split_lists", 1)
    position = TrainingPosition.model_validate_json(json.dumps(POSITION))
    assert (position.num_epoch_steps, position.epochs_without_improvement) == (3, 2)


def test_earlier_names_of_manifest_fields_are_read(store):
    (url,) = (store / "datasets/class").glob("*/manifest.json")
    data = json.loads(url.read_text())
    url.write_text(json.dumps(data | {"lost_of_classes": {"cat": [5, 9]}, "narrow_fraction": 0.75}))
    manifest = load_manifest(str(url.parent))
    assert manifest.quarantined_by_class == {"cat": (5, 9)}
    assert manifest.low_contrast_fraction == 0.75
    assert "low_contrast_fraction" in manifest.model_dump_json()


def test_earlier_name_of_the_version_tag_is_read(store):
    (url,) = (store / "datasets/class").glob("*/manifest.json")
    found = find_existing_shards(load_manifest(str(url.parent)))
    photos = pq.read_table(url.with_name("photos.parquet"))
    assert found == {(row["source_path"], row["mark"]): row["shard"] for row in photos.to_pylist()}


def test_earlier_column_of_target_texts_is_read(store):
    (url,) = (store / "datasets/points-points").glob("*/manifest.json")
    urls = load_manifest(str(url.parent)).files("valid")
    texts = read_photo_tables(urls, ["target_text"])["target_text"].to_pylist()
    photos = pq.read_table(url.with_name("photos.parquet")).to_pylist()
    assert texts == [row["class_name"] for row in photos if row["split"] == "valid"]
    assert all(text.count(", ") for text in texts)


def test_renamed_reason_codes_keep_the_fingerprint():
    row = QuarantinedFile(id="1", path="1.jpg", reason="not_in_split_lists", detail="")
    hashed = [SCHEMA_VERSION, "pets", [], {}, [["1", "1.jpg", "in_no_list", ""]]]
    found = fingerprint("pets", Contract.of(1, ()), {}, [row])
    assert found == sha256(json.dumps(hashed).encode()).hexdigest()[:20]
