"""Prediction with a model folder: order, probabilities, and unreadable photos."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predicting import predict_photos
from tiny_model import write_tiny_model

from pets_core import storage
from pets_core.data.ingest.images import decode
from pets_core.data.loading.transforms import CenterCrop
from pets_core.errors import PetsError
from pets_core.inference import predict
from pets_core.models.package import load_model

CLASSES = ("Birman", "Pug", "Sphynx", "Boxer")


@pytest.fixture(scope="module")
def model_url(tmp_path_factory) -> str:
    """Tiny model whose predictions differ between photos; a randomly initialised head does not."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", CLASSES)


@pytest.fixture
def photos(tmp_path, jpeg) -> list[str]:
    paths = []
    for number in range(5):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(jpeg(number, 90, 70))
        paths.append(str(path))
    return paths


def test_predictions_are_in_the_order_of_the_photos(model_url, photos):
    found = list(predict_photos(model_url, photos))
    assert [p.photo for p in found] == photos
    for prediction in found:
        assert prediction.error is None
        assert len(prediction.top) == 3
        assert prediction.top[0] == (prediction.label, prediction.probability)
        shares = [share for _, share in prediction.top]
        assert shares == sorted(shares, reverse=True)
        assert 1 / 4 <= prediction.probability <= 1


def test_probabilities_match_the_model(model_url, photos):
    built = load_model(model_url)
    card = built.card
    pixels = decode(storage.read_bytes(photos[2]), card.resize_to)
    inputs = CenterCrop(card.image_size, card.mean, card.std)(torch.from_numpy(pixels[None].copy()))
    with torch.inference_mode():
        expected = built.model(inputs).softmax(1)[0]
    prediction = list(predict_photos(model_url, photos, num_top=4))[2]
    assert sum(share for _, share in prediction.top) == pytest.approx(1)
    for name, share in prediction.top:
        assert share == pytest.approx(float(expected[CLASSES.index(name)]), abs=1e-5)


def test_unreadable_photos_have_an_error_and_others_a_prediction(model_url, photos, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    bad = {
        str(tmp_path / "text.jpg"): "not an image",
        str(tmp_path / "none.jpg"): "does not exist",
        str(tmp_path / "empty.jpg"): "empty",
        str(tmp_path): "is a folder",
        "nostore://bucket/a.jpg": "nostore",
    }
    mixed = [photos[0], *bad, photos[1]]
    found = list(predict_photos(model_url, mixed))
    assert [p.photo for p in found] == mixed
    for prediction in found[1:-1]:
        assert bad[prediction.photo] in prediction.error
        assert (prediction.label, prediction.probability, prediction.top) == (None, None, ())
    plain = list(predict_photos(model_url, photos[:2]))
    assert [p.label for p in (found[0], found[-1])] == [p.label for p in plain]
    assert all(p.error for p in predict_photos(model_url, list(bad)))


def test_predictions_are_independent_of_the_batch_size(model_url, photos, monkeypatch):
    one = list(predict_photos(model_url, photos))
    monkeypatch.setattr(predict, "_BATCH", 2)
    for a, b in zip(one, predict_photos(model_url, photos), strict=True):
        assert (a.photo, a.label) == (b.photo, b.label)
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-5)


@pytest.mark.parametrize(("num_top", "listed"), [(1, 1), (4, 4), (100, 4)])
def test_num_top_limits_the_listed_labels(model_url, photos, num_top, listed):
    (prediction,) = predict_photos(model_url, photos[:1], num_top=num_top)
    assert len(prediction.top) == listed


def test_no_photos_give_no_predictions(model_url):
    assert list(predict_photos(model_url, [])) == []


@pytest.mark.parametrize("url", ["none", "nostore://bucket/model"])
def test_missing_model_is_an_error(tmp_path, photos, url, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PetsError, match=url):
        list(predict_photos(url, photos))


def test_special_characters_in_file_names_are_supported(model_url, tmp_path, jpeg):
    """No name is parsed as a URL, a chain or a pattern; names that are not UTF-8 are escaped."""
    names = ["12::30.jpg", "a#b.jpg", "what?.jpg", "50%41.jpg", "*[1].jpg"]
    names.append(os.fsdecode(b"K\xe4tz.jpg"))
    paths = [str(tmp_path / name) for name in names]
    for number, path in enumerate(paths):
        Path(path).write_bytes(jpeg(number, 90, 70))
    found = list(predict_photos(model_url, [*paths, f"file://{tmp_path}/50%2541.jpg"]))
    assert [prediction.error for prediction in found] == [None] * 7
    assert [Path(prediction.photo).name for prediction in found[:6]] == [*names[:5], "K\\xe4tz.jpg"]
    assert found[6].top == found[3].top
    assert all(prediction.model_dump_json() for prediction in found)


def test_raw_photo_is_not_decoded_as_its_preview(model_url, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (160, 120)).save(buffer, "TIFF")
    (tmp_path / "shot.NEF").write_bytes(buffer.getvalue())
    (found,) = predict_photos(model_url, [str(tmp_path / "shot.NEF")])
    assert found.error is not None
    assert found.error.startswith("no decoder: ")
    assert "rawpy" in found.error
