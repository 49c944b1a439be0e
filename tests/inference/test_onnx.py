"""ONNX export: onnxruntime predicts the same as torch, without importing torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from predicting import predict_photos

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.inference import onnx as module
from pets_core.inference.onnx import TOLERANCE, export_onnx
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def saved(folder, backbone: str, size: int = 64) -> str:
    config = PipelineConfig.model_validate(
        {"model": {"backbone": backbone, "weights": "none", "image_size": size}}
    )
    torch.manual_seed(0)
    classes = tuple(ClassInfo(name=name) for name in ("Birman", "Pug", "Sphynx"))
    built = create_model(config, classes, "f")
    torch.nn.init.normal_(built.model.head[-1].weight)
    url = str(folder / "model")
    save_model(url, built.card, built.model.state_dict())
    return url


@pytest.fixture(scope="module")
def model_url(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("models"), "test_efficientnet")


@pytest.fixture(scope="module")
def onnx_file(model_url, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("onnx") / "pets.onnx")
    assert export_onnx(model_url, path) <= TOLERANCE
    return path


@pytest.fixture
def photos(tmp_path, jpeg) -> list[str]:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, 90, 70))
    return sorted(map(str, tmp_path.glob("*.jpg")))


def test_onnx_and_torch_predictions_match(model_url, onnx_file, photos):
    by_torch, by_onnx = (list(predict_photos(url, photos)) for url in (model_url, onnx_file))
    assert [p.label for p in by_onnx] == [p.label for p in by_torch]
    for one, other in zip(by_torch, by_onnx, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=TOLERANCE)


@pytest.mark.parametrize("backbone", ["resnet10t", "vit_tiny_patch16_224"])
def test_other_backbones_can_be_exported(backbone, tmp_path):
    url = saved(tmp_path, backbone, 224 if "vit" in backbone else 64)
    assert export_onnx(url, str(tmp_path / "m.onnx")) <= TOLERANCE


def test_onnx_prediction_runs_without_torch(onnx_file, photos):
    code = (
        "import sys, json; from functools import partial;"
        "from pets_core.inference.predict import Photo, open_model, read_photo;"
        "photos = [Photo(path, partial(read_photo, path)) for path in sys.argv[2:]];"
        "found = [p.label for p in open_model(sys.argv[1]).predict(photos)];"
        "print(json.dumps([found, 'torch' in sys.modules]))"
    )
    command = [sys.executable, "-c", code, onnx_file, *photos]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, is_torch_imported = json.loads(done.stdout)
    assert len(found) == 5
    assert not is_torch_imported


def test_export_with_different_predictions_is_not_written(model_url, tmp_path, monkeypatch):
    real = module._export

    def tampered(exported, built, photos):
        with torch.no_grad():
            exported.head[-1].bias.add_(1.0 * torch.arange(3))
        data = real(exported, built, photos)
        with torch.no_grad():
            exported.head[-1].bias.zero_()
        return data

    monkeypatch.setattr(module, "_export", tampered)
    with pytest.raises(PetsError, match=r"predictions differ from torch's by"):
        export_onnx(model_url, str(tmp_path / "m.onnx"))
    assert not (tmp_path / "m.onnx").exists()


def test_invalid_names_and_files_are_refused(model_url, tmp_path, onnx_file):
    with pytest.raises(PetsError, match=r"must end with \.onnx"):
        export_onnx(model_url, str(tmp_path / "m.bin"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(PetsError, match=r"is damaged"):
        list(predict_photos(str(tmp_path / "bad.onnx"), ["x.jpg"]))
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(onnx_file)
    del proto.metadata_props[:]
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(PetsError, match=r"no model card: create it with `pets export`"):
        list(predict_photos(str(tmp_path / "other.onnx"), ["x.jpg"]))


def test_onnx_file_accepts_any_batch_size(onnx_file):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx_file)
    side = session.get_inputs()[0].shape[1]
    for count in (1, 7):
        (found,) = session.run(None, {"photos": np.zeros((count, side, side, 3), np.uint8)})
        assert found.shape == (count, 3)
        assert found.sum(1) == pytest.approx(1, abs=1e-5)
