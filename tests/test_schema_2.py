"""A store of schema version 2 (417182a), with `class_name` for `target_text`, is read and extended.

It has sources of classes and of tags, a data set and a run of each, all without weights. The model
of classes is the champion, and its run has embeddings.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import write_tiny_model

from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import commit_manifest, load_manifest, read_photo_tables
from pets_core.data.gallery import read_leaks
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.journal import journal_keys, load_records
from pets_core.data.ingest.label_schema import load_contract
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.versions import diff, list_versions
from pets_core.embeddings.file import open_embeddings
from pets_core.embeddings.near import find_near_duplicates
from pets_core.embeddings.similar import find_similar_photos
from pets_core.evaluation.predictions import Predictions, read_info
from pets_core.evaluation.train_overlap import trained_on
from pets_core.models.card import read_card, weights_sha256
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.inference import EmbedResult, PredictResult
from pets_core.registry.aliases import EvaluationKey, find_champion
from pets_core.runtime.runs import find_run, load_result, read_request, write_request
from pets_core.targets.evaluate import evaluate, find_prediction_files

FILE = Path(__file__).parent / "fixtures/store_v2.zip"
KINDS = {"class": "pets", "tags": "tags"}
NAMES = {"class": ["cat", "dog"], "tags": ["cat", "dog", "sofa"]}


@pytest.fixture
def store(tmp_path) -> Path:
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(tmp_path / "store")
    for path in (tmp_path / "store").rglob("*.json"):
        # Requests keep their URLs, which their hashes include.
        if "stages" not in path.parts:
            path.write_text(path.read_text().replace("/old-store", str(tmp_path / "store")))
    return tmp_path / "store"


def config(store: Path, kind: str = "class", **ingest) -> PipelineConfig:
    source = {"url": str(store / "pets.zip")}
    if kind == "tags":
        source = {"url": str(store / "tags.parquet"), "targets": "tags"}
    fractions = {"valid_fraction": 0.25, "test_fraction": 0.25}
    settings = {"store": str(store), "cache_dir": str(store.parent / "cache"), "ingest": ingest}
    return PipelineConfig.model_validate(settings | {"source": source | fractions})


def stored(store: Path, kind: str = "class") -> DatasetManifest:
    (url,) = (store / "datasets").glob(f"{KINDS[kind]}*/*/manifest.json")
    return load_manifest(str(url.parent))


def add_photo(store: Path) -> None:
    """Add a photo of a dog to the source of classes."""
    noise = np.random.default_rng(7).integers(0, 256, (12, 12, 3), np.uint8)
    photo = io.BytesIO()
    Image.fromarray(noise).save(photo, "JPEG")
    with zipfile.ZipFile(store / "pets.zip", "a") as archive:
        archive.writestr("dog/new.jpg", photo.getvalue())


def files(store: Path) -> dict[str, bytes]:
    """Return the files of versions, shards and contracts; planning writes others."""
    paths = [path for path in (store / "datasets").rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in paths if "plans" not in p.parts}


def column_names(manifest: DatasetManifest) -> set[str]:
    """Return the names of the target text's column in all files of a version."""
    urls = [manifest.shard_url(s) for info in manifest.splits.values() for s in info.shards]
    urls += [f"{manifest.url}/photos.parquet", f"{manifest.url}/duplicates.parquet"]
    names = {name for url in urls for name in pq.read_schema(url).names}
    return names & {"class_name", "match_class_name", "target_text", "match_target_text"}


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_vocabulary_are_read(store, kind):
    manifest, run = stored(store, kind), store / "runs" / f"run-{KINDS[kind]}"
    contract = load_contract(str(Path(manifest.url).parent))
    info = read_info(str(run / "evaluation/predictions.parquet"))
    card = read_card(str(run / "model"))
    of_run = find_run(str(run), Run).manifest
    for record in (manifest, contract, info, card, of_run):
        assert [each.name for each in record.vocabulary] == NAMES[kind]
    assert (manifest.schema_version, of_run) == (2, manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_target_texts_are_read(store, kind):
    manifest = stored(store, kind)
    photos = pq.read_table(f"{manifest.url}/photos.parquet").to_pylist()
    expected = {row["class_name"] for row in photos if row["split"] == "train"}
    texts = read_photo_tables(manifest.files("train"), ["target_text"])["target_text"]
    assert set(texts.to_pylist()) == expected
    assert expected <= {"cat", "dog", "sofa", "cat, sofa", "cat, dog"}


def test_leaks_are_read(store):
    (leak,) = read_leaks(stored(store))
    assert {leak["target_text"], leak["match_target_text"]} == {"cat", "dog"}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_evaluated(store, kind):
    url = str(store / "runs" / f"run-{KINDS[kind]}/evaluation/predictions.parquet")
    report = evaluate(config(store), str(store / "runs/again"), find_prediction_files(url))
    assert (report.target, report.num_rows) == (kind, stored(store, kind).splits["test"].num_rows)


def test_embeddings_are_read(store, tmp_path):
    manifest, url = stored(store), str(store / "runs/run-pets/embeddings/embeddings.parquet")
    with open_embeddings(url) as embeddings:
        table = embeddings.photos()
    assert table.column_names == ["id", "split", "target_text"]
    assert table["target_text"].to_pylist() == pq.read_table(url)["class_name"].to_pylist()
    found = find_near_duplicates(manifest, str(tmp_path), url, 0.9)
    names = pq.read_schema(found.url).names
    assert "match_target_text" in names
    assert "class_name" not in names


def test_similar_photos_are_found(store, tmp_path):
    model, url = store / "runs/run-pets/model", store / "runs/run-pets/embeddings/e.parquet"
    card = (model / "model.json").read_text()
    write_tiny_model(model, NAMES["class"])
    (model / "model.json").write_text(card)
    table = pq.read_table(url.with_name("embeddings.parquet"))
    info = json.loads(table.schema.metadata[b"pets.embeddings"])
    info |= {"model_url": str(model), "model_sha256": weights_sha256(str(model))}
    pq.write_table(table.replace_schema_metadata({"pets.embeddings": json.dumps(info)}), url)
    with zipfile.ZipFile(store / "pets.zip") as archive:
        photo = archive.extract("cat/00.jpg", tmp_path)
    found = find_similar_photos(photo, str(url), 21)
    texts = dict(zip(table["id"].to_pylist(), table["class_name"].to_pylist(), strict=True))
    assert {each.id: each.target_text for each in found} == texts


@pytest.mark.parametrize("stage", ["predict", "embed"])
def test_requests_and_their_hashes_are_the_same(store, tmp_path, stage):
    """A run in progress keeps its results, and workers of the earlier version read its requests."""
    stages = store / "runs/run-pets/stages"
    request = read_request(str(stages / f"{stage}.request.json"))
    moved = request.model_copy(update={"run_url": str(store / "runs/run-pets")})
    result = load_result(moved, PredictResult if stage == "predict" else EmbedResult)
    assert result is not None
    again = Path(write_request(moved)).read_text()
    text = again.replace(str(store / "runs/run-pets"), "/old-store/runs/run-pets", 1)
    with zipfile.ZipFile(FILE) as archive:
        assert text == archive.read(f"runs/run-pets/stages/{stage}.request.json").decode()


def test_champion_of_the_version_is_found(store):
    manifest = ingest(config(store))
    key = EvaluationKey("pets", manifest.fingerprint, "test", 0)
    champion = find_champion(config(store), key)
    assert champion.model_url == str(store / "runs/run-pets/model")
    assert champion.predictions_url is not None


# --- the next ingest ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_source_keeps_its_version(store, kind):
    before, manifest = files(store), stored(store, kind)
    assert not plan_dataset(config(store, kind)).pending
    assert ingest(config(store, kind)) == manifest
    assert files(store) == before


@pytest.mark.parametrize("kind", KINDS)
def test_shards_without_dropped_duplicates_have_one_schema(store, kind):
    old = stored(store, kind)
    new = ingest(config(store, kind, duplicates="drop"))
    assert (new.schema_version, new.parent, new.contract_version) == (3, old.fingerprint, 2)
    assert new.vocabulary == old.vocabulary
    assert column_names(old) == {"class_name", "match_class_name"}
    assert column_names(new) == {"target_text", "match_target_text"}
    leaks = [row["id"] for row in read_leaks(old)]
    assert list(diff(old, new).values()) == [[], leaks, [], [], []]
    assert ingest(config(store, kind, duplicates="drop")) == new


def test_changed_source_copies_all_photos_from_those_of_the_store(store, capsys):
    old, root = stored(store), str(store / "datasets/pets")
    before, keys = files(store), journal_keys(root)
    add_photo(store)
    new = ingest(config(store))
    assert (new.schema_version, new.parent, new.contract_version) == (3, old.fingerprint, 2)
    assert column_names(new) == {"target_text", "match_target_text"}
    assert new.vocabulary == old.vocabulary
    records = load_records(root, journal_keys(root) - keys)
    # The new photo, and the one that is quarantined.
    assert sum(record.num_read for record in records) == 2
    assert files(store).items() > before.items()
    contract = json.loads((store / "datasets/pets/contracts/00002.json").read_text())
    assert [info["name"] for info in contract["vocabulary"]] == NAMES["class"]
    assert contract["columns"]["target_text"] == "string"
    cli.main(["datasets", "diff", old.fingerprint, new.fingerprint, "--store", str(store)])
    assert "dog/new.jpg" in capsys.readouterr().out
    assert list(diff(old, new).values()) == [["dog/new.jpg"], [], [], [], []]
    assert ingest(config(store)) == new
    assert list_versions(str(store), "pets") == [old, new]


def test_reverted_source_is_a_version_of_the_current_schema(store):
    old, source = stored(store), store / "pets.zip"
    shutil.copy(source, store / "copy.zip")
    add_photo(store)
    ingest(config(store))
    (store / "copy.zip").replace(source)
    reverted = ingest(config(store))
    assert column_names(reverted) == {"target_text", "match_target_text"}
    assert not any(diff(old, reverted).values())


def test_training_photos_of_the_champion_are_found_in_a_version_of_the_current_schema(store):
    old, run = stored(store), store / "runs/run-pets"
    add_photo(store)
    new = ingest(config(store))
    rows = pq.read_table(f"{new.url}/photos.parquet").to_pylist()
    info = read_info(str(run / "evaluation/predictions.parquet"))
    info = info.model_copy(update={"dataset_fingerprint": new.fingerprint, "dataset_url": new.url})
    outputs = np.zeros((len(rows), 2), np.float32)
    ids = [row["id"] for row in rows]
    predictions = Predictions(info, ids, np.zeros(len(rows)), outputs)
    seen = trained_on(str(store), str(run / "model"), predictions)
    leaks = {row["id"] for row in read_leaks(old)}
    trained = {row["id"] for row in rows if row["split"] == "train"} - leaks - {"dog/new.jpg"}
    assert {i for i, is_seen in zip(ids, seen.tolist(), strict=True) if is_seen} == trained


def test_requests_name_a_vocabulary_as_earlier_versions_do(store):
    add_photo(store)
    request = read_request(str(store / "runs/run-pets/stages/predict.request.json"))
    update = {"manifest": ingest(config(store)), "run_url": str(store / "runs/new")}
    written = json.loads(Path(write_request(request.model_copy(update=update))).read_text())
    assert written["manifest"]["classes"] == [{"name": "cat"}, {"name": "dog"}]
    assert "vocabulary" not in written["manifest"]


def test_manifest_of_schema_2_keeps_its_field_names(store):
    manifest = stored(store)
    commit_manifest(manifest)
    written = json.loads(Path(manifest.url, "manifest.json").read_text())
    assert "classes" in written
    assert "vocabulary" not in written
    assert load_manifest(manifest.url) == manifest
