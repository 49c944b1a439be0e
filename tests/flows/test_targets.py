"""The whole pipeline for tags, coordinates and numbers, and the use of its models."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from predicting import predict_photos

from flows.batch_predict import batch_predict_flow
from flows.embed import embed_flow
from flows.evaluate import evaluate_flow
from flows.evaluate_predictions import evaluate_predictions_flow
from flows.pipeline import pipeline
from flows.train import train_flow
from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import Predictions, read_info, read_predictions
from pets_core.evaluation.tables import read_frame
from pets_core.inference.onnx import export_onnx
from pets_core.models.package import load_model
from pets_core.records.evaluation import EvalReport
from pets_core.targets.registry import get_target

pytestmark = pytest.mark.usefixtures("prefect_server")

SHARED = {
    "dataset-summary", "quarantine", "duplicates", "lr-finder", "training-progress",
    "training-curves", "run-summary",
}  # fmt: skip


@pytest.fixture
def config_of(small_config):
    def config(targets, **settings) -> PipelineConfig:
        defaults = {
            "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
            "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
            "lr_find": {"num_steps": 24},
        }
        base = small_config.model_dump(exclude_defaults=True)
        base["source"] |= {"targets": targets}
        return PipelineConfig.model_validate(base | defaults | settings)

    return config


def predictions_of(report: EvalReport) -> Predictions:
    """Return the predictions of a report."""
    return read_predictions(report.predictions_url, get_target(report.target))


def thresholds_of(report: EvalReport) -> dict[str, float]:
    """Return the threshold of each tag by name."""
    table = read_frame(report.file("tags"))
    return dict(zip(table["name"], table["threshold"], strict=True))


def photos_of(tmp_path: Path, manifest, count=3) -> list[str]:
    """Write some test photos of a data set to files and return their paths."""
    rows = pq.read_table(manifest.shard_url(manifest.splits["test"].shards[0])).to_pylist()
    paths = []
    for row in rows[:count]:
        path = tmp_path / f"{row['id']}.jpg"
        path.write_bytes(row["image"]["bytes"])
        paths.append(str(path))
    return paths


@pytest.mark.slow
def test_pipeline_for_tags(config_of, tmp_path, read_artifacts, capsys):
    config = config_of("tags", evaluate={"threshold": "per_tag", "tta_views": 1})
    state = pipeline(config, return_state=True)
    report = state.result()
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert set(artifacts) == SHARED | {"tags", "thresholds", "top-losses", "label-issues"}
    assert "148 photos of 39 tags" in artifacts["dataset-summary"]
    assert "valid F1 per photo" in artifacts["training-curves"]
    assert "**limited** (used)" in artifacts["lr-finder"]
    assert artifacts["top-losses"].count("data:image/jpeg") == 16
    assert all(len(str(data)) < 300_000 for data in artifacts.values())
    predictions = predictions_of(report)
    assert (predictions.targets.sum(1) == 2).all(), "species and breed"
    assert report.num_rows == 74
    assert "Thresholds: one for each tag, chosen on 12 validation photos." in report.details
    # A later evaluation uses the stored thresholds of the model.
    again = evaluate_flow(report.model_url, config_of("tags"))
    assert thresholds_of(again) == thresholds_of(report)
    # An evaluation of the stored predictions gives the same report and thresholds.
    of_stored = evaluate_predictions_flow(report.predictions_url, config_of("tags"))
    assert (of_stored.primary, of_stored.metrics) == (report.primary, report.metrics)
    assert read_frame(of_stored.file("tags")).equals(read_frame(report.file("tags")))
    with pytest.raises(PetsError, match="targets = tags, but the data set has targets = class"):
        evaluate_flow(report.model_url, config_of("class"))
    # The model predicts tags without data set or Prefect, and equally after ONNX export.
    photos = photos_of(tmp_path, ingest(config))
    predicted = list(predict_photos(report.model_url, photos))
    rows = {photo: i for i, photo in enumerate(predictions.ids)}
    thresholds = thresholds_of(report)
    plain = predictions_of(again)
    for prediction in predicted:
        row = rows[Path(prediction.photo).stem]
        probabilities = dict(zip(plain.info.names, plain.outputs[row], strict=True))
        expected = {
            tag for tag, value in probabilities.items() if value >= np.float32(thresholds[tag])
        }
        assert set(prediction.tags) == expected
        assert len(prediction.top) == 3
    export_onnx(report.model_url, str(tmp_path / "m.onnx"))
    as_onnx = list(predict_photos(str(tmp_path / "m.onnx"), photos))
    assert [p.tags for p in as_onnx] == [p.tags for p in predicted]
    capsys.readouterr()
    cli.main(["predict", report.model_url, photos[0]])
    assert capsys.readouterr().out.strip() == f"{photos[0]}  {predicted[0].text}"
    # Batch prediction gives the same tags as prediction of single photos.
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for photo in photos:
        Path(photo).rename(folder / Path(photo).name)
    batch = config.model_copy(
        update={"source": config.source.model_copy(update={"url": str(folder)})}
    )
    summary = batch_predict_flow(report.model_url, batch)
    assert summary.num_photos == len(photos)
    assert summary.counts == Counter(tag for prediction in predicted for tag in prediction.tags)
    written = pq.read_table(f"{summary.url}/predictions").to_pylist()
    by_name = {Path(row["photo"]).name: row["predicted"] for row in written}
    assert {name: set(tags) for name, tags in by_name.items()} == {
        Path(prediction.photo).name: set(prediction.tags) for prediction in predicted
    }


@pytest.mark.slow
@pytest.mark.parametrize("targets", [pytest.param("points", marks=pytest.mark.nightly), "box"])
def test_pipeline_for_coordinates(config_of, tmp_path, read_artifacts, targets):
    config = config_of(targets, evaluate={"tta_views": 1}, train={
        "batch_size": 16, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no",
        "number_loss": "smooth_l1",
    })  # fmt: skip
    state = pipeline(config, return_state=True)
    report = state.result()
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert set(artifacts) == SHARED | {"numbers", "residuals", "worst-errors", "label-issues"}
    assert f"valid {report.primary.name}" in artifacts["training-curves"]
    assert "**minimum** (used)" in artifacts["lr-finder"]
    assert artifacts["worst-errors"].count("data:image/jpeg") == 16
    assert all(len(str(data)) < 300_000 for data in artifacts.values())
    predictions = predictions_of(report)
    assert (np.abs(predictions.outputs) <= 1).all()
    secondary = [metric.name for metric in report.metrics]
    assert ("median distance" in secondary) == (targets == "points")
    assert report.primary.name == {"points": "mean distance", "box": "mean IoU"}[targets]
    # The evaluated outputs equal the predictions of single photos, in pixels.
    photos = photos_of(tmp_path, ingest(config))
    predicted = list(predict_photos(report.model_url, photos))
    plain = evaluate_flow(report.model_url, config_of(targets))
    plain_predictions = predictions_of(plain)
    names = [number.name for number in plain_predictions.info.numbers]
    rows = {photo: i for i, photo in enumerate(plain_predictions.ids)}
    index = pq.read_table(f"{ingest(config).url}/photos.parquet").to_pandas().set_index("id")
    for prediction in predicted:
        photo = Path(prediction.photo).stem
        sides = np.resize(index.loc[photo, ["width", "height"]].to_numpy(float), len(names))
        expected = (plain_predictions.outputs[rows[photo]] + 1) / 2 * sides
        assert list(prediction.numbers) == names
        assert list(prediction.numbers.values()) == pytest.approx(expected, abs=0.1)
    export_onnx(report.model_url, str(tmp_path / "m.onnx"))
    (as_onnx, *_) = predict_photos(str(tmp_path / "m.onnx"), photos)
    assert list(as_onnx.numbers.values()) == pytest.approx(
        list(predicted[0].numbers.values()), abs=0.1
    )


@pytest.mark.slow
def test_pipeline_for_numbers_of_a_table(config_of, tmp_path, jpeg, read_artifacts):
    """The numbers are the brightness of a photo and half of it."""
    from PIL import Image

    folder = tmp_path / "grey"
    folder.mkdir()
    random = np.random.default_rng(0)
    bright = random.uniform(20, 235, 90)
    for number, value in enumerate(bright):
        pixels = np.clip(value + random.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    names = [f"{n}.jpg" for n in range(len(bright))]
    table = {"image": names, "bright": bright, "half": bright / 2}
    pq.write_table(pa.table(table), folder / "t.parquet")
    source = {
        "url": str(folder / "t.parquet"), "targets": "numbers",
        "number_columns": ["bright", "half"],
        "units": ["levels", "levels"], "y_range": [0, 255], "test_fraction": 0.25,
    }  # fmt: skip
    train = {
        "batch_size": 16, "epochs": 6, "freeze_epochs": 0, "mixed_precision": "no",
        "base_lr": 0.01, "lr_max": "0.01", "batch_norm": "train",
    }  # fmt: skip
    transform = {"max_lighting": 0.0}
    config = config_of("numbers", source=source, train=train, transform=transform)
    state = pipeline(config, return_state=True)
    report = state.result()
    numbers = read_info(report.predictions_url).numbers
    assert [(n.name, n.unit) for n in numbers] == [("bright", "levels"), ("half", "levels")]
    assert report.primary.value < 0.7 * report.primary.baseline, "better than the mean"
    predictions = predictions_of(report)
    assert predictions.outputs.min() >= 0
    assert predictions.outputs.max() <= 255
    (prediction,) = predict_photos(report.model_url, [str(folder / "0.jpg")])
    assert set(prediction.numbers) == {"bright", "half"}
    assert json.loads(prediction.model_dump_json())["numbers"] == prediction.numbers
    card = load_model(report.model_url).card
    assert (card.targets, card.y_range) == ("numbers", (0, 255))


def test_embeddings_of_tagged_photos_have_tag_names(config_of):
    config = config_of("tags")
    train = config.train.model_copy(update={"base_lr": 1e-3})
    result = train_flow(config.model_copy(update={"train": train}))
    found = embed_flow(result.model_url, config)
    labels = pq.read_table(found.embeddings_url, columns=["id", "target_text"]).to_pydict()
    named = dict(zip(labels["id"], labels["target_text"], strict=True))
    assert named["great_pyrenees_1"] == "dog, Great Pyrenees"


def test_run_cannot_be_resumed_with_other_targets(config_of):
    first = pipeline(config_of("tags"), return_state=True).result()
    run = first.url.rsplit("/", 1)[0]
    with pytest.raises(PetsError, match=r"targets = box: .* uses a data set of tags"):
        pipeline(config_of("box"), run)
