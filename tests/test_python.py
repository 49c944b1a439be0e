"""The Python interface: fine_tune, find_lr, Run, load, datasets."""

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import promote_model, write_tiny_model

import pets
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError

CLASSES = ("Birman", "Pug", "Sphynx")
TINY = {
    "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
    "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
    "lr_find": {"num_steps": 12},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pets.Model:
    return pets.load(write_tiny_model(tmp_path_factory.mktemp("models") / "model", CLASSES))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, suffix: str = "PNG", **keywords) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **keywords)
    return buffer.getvalue()


def test_import_is_quick_and_loads_neither_torch_nor_prefect():
    code = "import json, sys, pets; print(json.dumps([dir(pets), sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, modules = json.loads(done.stdout)
    assert {"fine_tune", "find_lr", "load", "Run", "datasets"} <= set(names)
    assert not {"torch", "prefect", "pandas", "pydantic", "numpy"} & set(modules)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="fine_tun"):
        _ = pets.fine_tun
    assert all(getattr(pets, name) is not None for name in pets.__all__)


def test_every_kind_of_input_gives_the_same_prediction(model, photo, tmp_path):
    path = tmp_path / "folder/a.png"
    path.parent.mkdir()
    photo.save(path)
    (tmp_path / "folder/notes.txt").write_text("not a photo")
    (reference,) = model.predict(photo)
    assert reference.label in CLASSES
    assert sum(p for _, p in reference.top) == pytest.approx(1, abs=1e-5)
    inputs = {
        "path": path, "text": str(path), "folder": tmp_path / "folder",
        "pattern": str(tmp_path / "*/a.*"), "bytes": path.read_bytes(),
        "array": np.asarray(photo), "list": [photo], "generator": (each for each in [photo]),
        "batch": np.asarray(photo)[None],
    }  # fmt: skip
    for name, images in inputs.items():
        (found,) = model.predict(images)
        assert (name, found.label, found.probability) == (
            name, reference.label, pytest.approx(reference.probability, abs=1e-6)
        )  # fmt: skip


def test_predictions_are_in_order_and_name_their_inputs(model, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no photo")
    found = model.predict([tmp_path / "a.png", str(tmp_path / "b.png"), photo, b"x"], top=1)
    assert [Path(each.photo).name for each in found] == ["a.png", "b.png", "PIL image", "1 bytes"]
    assert [each.error is None for each in found] == [True, False, True, False]
    assert [len(each.top) for each in found] == [1, 0, 1, 0]


def test_pil_images_keep_orientation_transparency_and_colour_model(model, photo):
    """An image that Pillow has opened is predicted as its file is."""
    exif = Image.Exif()
    exif[274] = 6
    transparent = photo.copy()
    transparent.putalpha(Image.new("L", photo.size, 90))
    for data in (
        encoded(photo, "JPEG", exif=exif), encoded(transparent), encoded(photo.convert("L")),
        encoded(photo.convert("P")), encoded(photo.convert("CMYK"), "TIFF"),
    ):  # fmt: skip
        (of_file,) = model.predict(data)
        (of_image,) = model.predict(Image.open(io.BytesIO(data)))
        assert of_image.error is None
        assert of_image.probability == pytest.approx(of_file.probability, abs=2e-2)
        assert of_image.label == of_file.label


def test_damaged_pil_images_have_an_error(model, photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo, "JPEG")[:-300])
    damaged = Image.open(tmp_path / "a.jpg")
    as_float = Image.fromarray(np.full((9, 9), 0.5, np.float32))
    found = model.predict([damaged, as_float, photo])
    assert found[0].error.startswith("damaged: ")
    assert [each.error for each in found[1:]] == [None, None]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "int is no image: use a path"),
        ([None], "NoneType is no image"),
        (np.zeros((4, 4, 3)), r"an array of float64 \(4, 4, 3\) is no image: use uint8"),
        (np.zeros((3, 5, 5), np.uint8), r"an array of uint8 \(3, 5, 5\) is no image"),
        ("nowhere/*.jpg", r"nowhere/\*.jpg: there is no photo"),
    ],
)
def test_invalid_images_are_rejected(model, images, message):
    with pytest.raises(PetsError, match=message):
        model.predict(images)


def test_empty_folders_and_top_0_are_rejected(model, photo, tmp_path):
    with pytest.raises(PetsError, match="there is no photo"):
        model.predict(tmp_path)
    with pytest.raises(PetsError, match="top = 0: must be at least 1"):
        model.predict(photo, top=0)


def test_models_are_loaded_by_alias(tmp_path, monkeypatch):
    store = tmp_path / "store"
    url = write_tiny_model(store / "runs/a1/model", CLASSES)
    promote_model(store, "a1")
    for name in ("cats", "cats@champion"):
        assert pets.load(name, store=str(store)).url == url
    assert pets.load(name, store=str(store)).labels == CLASSES
    monkeypatch.setenv("PETS_STORE", str(store))
    assert pets.load("cats").url == url
    with pytest.raises(PetsError, match=r"cats@canary: .* no alias canary .*: champion"):
        pets.load("cats@canary")
    with pytest.raises(PetsError, match="dogs: no such run in"):
        pets.load("dogs")


def test_data_sets_are_opened_as_pandas_torch_and_hugging_face(small_config):
    manifest = ingest(small_config)
    data = pets.datasets.open(manifest.name, store=small_config.store)
    assert len(data) == manifest.num_rows
    assert repr(data).startswith(f"Dataset('{manifest.name}', {manifest.fingerprint}: train ")
    frame = data.to_pandas("train")
    assert "image" not in frame.columns
    assert set(frame["split"]) == {"train"}
    assert len(data.to_pandas()) == len(data)
    assert list(data.to_pandas("test", ["id", "label"]).columns) == ["id", "label"]
    photos = data.to_torch("train", size=32)
    pixels, label = photos[1]
    assert (pixels.shape, str(pixels.dtype)) == ((3, 32, 32), "torch.uint8")
    assert (len(photos), int(label)) == (len(frame), frame["label"][1])
    rows = data.to_hf("train")
    assert rows.num_rows == len(frame)
    assert rows[0]["id"] == frame["id"][0]
    with pytest.raises(PetsError, match=r"vald: no such split\. Use one of train, valid, test"):
        data.to_pandas("vald")
    with pytest.raises(PetsError, match=r"labl: no such column\. Use some of id, image, label"):
        data.to_pandas("train", ["labl"])
    with pytest.raises(PetsError):
        pets.datasets.open("dogs", store=small_config.store)
    assert pets.datasets.versions(store=small_config.store) == [manifest]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (None, {"train": {"epochs": -1}}, "train.epochs = -1: input should be greater"),
        (None, {"trian": {}}, "trian: no such setting"),  # codespell:ignore trian
        ("a", {"source": {"url": "b"}}, "source is given twice"),
    ],
)
def test_invalid_settings_are_rejected_before_prefect_starts(source, settings, message):
    with pytest.raises(PetsError, match=message):
        pets.fine_tune(source, **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_fine_tune_returns_a_run(drawn_sample, tmp_path):
    places = {"store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache")}
    gate = {"promote": True, "max_error_rate": 0.0}
    run = pets.fine_tune(drawn_sample, run={"name": "first"}, gate=gate, **places, **TINY)
    assert not run.report.verdict.passed
    assert run.summary.name == "first"
    assert next(iter(run.metrics)) == "error rate"
    assert 0 < run.metrics["error rate"] <= 1
    confused = run.most_confused(min_count=2)
    assert (confused["count"] >= 2).all()
    assert len(run.predictions()) == run.report.num_rows
    assert run.plot_confusion().width > 300
    assert run.plot_training().width > 300
    assert "error rate" in run._repr_html_()
    again = pets.Run("first", store=places["store"])
    assert again.url == run.url
    with pytest.raises(PetsError, match=r"nothing: no such table\. Use one of most_confused"):
        run.table("nothing")
    (prediction,) = again.model.predict(np.zeros((20, 20, 3), np.uint8))
    assert prediction.label in again.model.labels
    other = pets.fine_tune(drawn_sample, **places, **TINY | {"lr_find": {"num_steps": 13}})
    assert run.compare(other).settings[0].name.startswith("gate.")

    async def in_notebook() -> pets.LRSearch:
        return pets.find_lr(drawn_sample, **places, **TINY)

    search = asyncio.run(in_notebook())
    assert search.suggestion == search.suggestions[search.record.suggestion]
    assert len(search.curve()) == search.record.num_steps
    assert search.plot().width > 300
