"""The pipeline with its source and store in a bucket."""

import json
import tarfile

import pytest
from predicting import predict_photos

from flows.pipeline import pipeline
from pets.cli import main as cli
from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.registry.aliases import absolute, current

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.parametrize(
    "bucket",
    [
        pytest.param("s3", marks=pytest.mark.slow),
        pytest.param("gs", marks=pytest.mark.nightly),
        pytest.param("abfs", marks=pytest.mark.nightly),
    ],
    indirect=True,
)
def test_pipeline_reads_and_writes_a_bucket(bucket, drawn_sample, tmp_path, read_artifacts, capsys):
    url = bucket.url
    for name in ("images.tar.gz", "annotations.tar.gz"):
        storage.write_bytes(f"{url}/pets/{name}", (drawn_sample / name).read_bytes())
    config = PipelineConfig.model_validate(
        {
            "store": f"{url}/store",
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": f"{url}/pets"},
            "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
            "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
            "lr_find": {"num_steps": 12},
            "gate": {"promote": True},
        }
    )
    state = pipeline(config, return_state=True)
    report = state.result()
    assert report.num_rows == 74
    assert report.model_url.startswith(f"{url}/store/runs/")
    artifacts = read_artifacts(state.state_details.flow_run_id)
    table = json.loads(artifacts["confusion-table"])
    assert sum(row["count"] for row in table) == 74
    assert report.url.startswith(url)
    assert b"<html" in storage.read_bytes(report.file("report.html"))
    champion = current(config.store, "oxford-iiit-pet", "champion")
    assert absolute(config.store, champion.model.model_url) == report.model_url
    storage.write_bytes(f"{url}/photo.jpg", _first_photo(drawn_sample))
    (prediction,) = predict_photos(report.model_url, [f"{url}/photo.jpg"])
    assert prediction.error is None
    assert prediction.label
    cli.main(["datasets", "verify", "oxford-iiit-pet", "--store", config.store])
    assert "148 photos match the manifest" in capsys.readouterr().out
    cli.main(["datasets", "gc", "--store", config.store])
    assert "0 files" in capsys.readouterr().out


def _first_photo(sample) -> bytes:
    with tarfile.open(sample / "images.tar.gz") as tar:
        return tar.extractfile(next(member for member in tar if member.isfile())).read()
