"""Models on the Hub: pushed, loaded by timm, pulled; a real client and a hub on loopback."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import ModelCard
from model_hub import ModelHub
from PIL import Image
from tiny_model import write_tiny_model

import pets
from pets.cli import flow_command
from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.hub import timm_form
from pets_core.models.card import weights_sha256
from pets_core.models.package import create_model, load_model
from pets_core.records.dataset import ClassInfo

ADDRESS = "hf://org/pets"


@pytest.fixture
def push(hub, model_folder, capsys):
    """Function that pushes the model and returns the hub."""

    def run(*flags: str, folder: Path = model_folder) -> ModelHub:
        cli.main(["push", str(folder), ADDRESS, *flags])
        return hub

    return run


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def test_timm_loads_the_backbone_and_the_card_shows_how_to_get_the_same_logits(
    push, model_folder, photo
):
    files = push().repositories["model", "org/pets"].files
    built = load_model(str(model_folder))
    photos = torch.rand(2, 3, 64, 64)
    body = timm.create_model("hf-hub:org/pets", pretrained=True).eval()
    torch.testing.assert_close(body(photos), built.model.embed(photos))
    (code,) = re.findall(r"```python\n(import timm.*?)```", files["README.md"].decode(), re.S)
    own: dict = {}
    exec(code, own)
    torch.testing.assert_close(own["head"](own["body"](photos)), built.model(photos))
    transformed = own["transform"](photo)
    torch.testing.assert_close(own["logits"](photo), built.model(transformed[None]))
    side = (built.card.resize_to,) * 2
    pixels = torch.tensor(np.asarray(photo.resize(side, Image.Resampling.BILINEAR)))
    expected = built.card.center_crop()(pixels[None])[0]
    # If the margin is odd, torchvision's centre is one pixel further down and right.
    torch.testing.assert_close(transformed[:, :-1, :-1], expected[:, 1:, 1:])


def test_config_names_labels_and_preprocessing(push):
    config = json.loads(push().repositories["model", "org/pets"].files["config.json"])
    assert (config["architecture"], config["num_classes"]) == ("test_byobnet", 0)
    assert config["label_names"] == ["Birman", "Pug", "Sphynx"]
    model = timm.create_model("hf-hub:org/pets", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_mode"]) == ((3, 64, 64), "squash")
    assert int(64 / data["crop_pct"]) == 67


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 0.965, 1.0])
def test_timm_resizes_to_the_same_size(model_folder, crop):
    card = load_model(str(model_folder)).card
    for size in range(32, 513):
        changed = card.model_copy(update={"image_size": size, "resize_to": round(size / crop)})
        found = int(size / timm_form._preprocessing(changed)["crop_pct"])
        assert found == changed.resize_to


@pytest.mark.parametrize("backbone", ["test_convnext", "test_resnet", "test_vit"])
@torch.no_grad()
def test_backbones_of_other_families_and_sizes_are_loaded_by_timm(backbone, tmp_path):
    settings = {"backbone": backbone, "weights": "none", "image_size": 96}
    config = PipelineConfig.model_validate({"model": settings})
    built = create_model(config, (ClassInfo(name="a"), ClassInfo(name="b")), "f")
    built.model.eval()
    timm_form.write_timm_form(built, tmp_path)
    body = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    photos = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(body(photos), built.model.embed(photos))
    assert timm.data.resolve_model_data_config(body)["input_size"] == (3, 96, 96)


def test_backbone_that_timm_would_build_otherwise_is_not_pushed(push, monkeypatch, capsys):
    save = timm_form.save_for_hf

    def save_other(body, folder, **keywords):
        save(body, folder, **keywords)
        path = Path(folder) / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        weights["stem.conv.weight"] *= 2
        safetensors.torch.save_file(weights, path)

    monkeypatch.setattr(timm_form, "save_for_hf", save_other)
    with pytest.raises(SystemExit):
        push()
    assert "timm builds another model from test_byobnet" in capsys.readouterr().err


def test_push_is_one_commit_and_pull_restores_the_folder(push, model_folder, tmp_path, capsys):
    hub = push("--json")
    pushed = json.loads(capsys.readouterr().out)
    repository = hub.repositories["model", "org/pets"]
    assert [len(files) for files in repository.commits.values()] == [0, 6]
    assert (pushed["url"], pushed["commit"]) == (ADDRESS, repository.resolve("main"))
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "pulled"), "--json"])
    pulled = json.loads(capsys.readouterr().out)
    assert pulled == {"url": str(tmp_path / "pulled"), "commit": pushed["commit"]}
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "pulled" / name).read_bytes() == (model_folder / name).read_bytes()
    assert sorted(each.name for each in tmp_path.glob("*")) == ["hf", "pulled"]


def test_pulled_and_loaded_models_predict_as_the_pushed_one(
    push, model_folder, photo, tmp_path, monkeypatch
):
    push()
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "pulled")])
    expected = pets.load(model_folder).predict(photo)
    assert pets.load(tmp_path / "pulled").predict(photo) == expected
    loaded = pets.load(ADDRESS)
    assert loaded.predict(photo) == expected
    assert Path(loaded.url).is_relative_to(tmp_path / "cache/hub/org--pets")
    evaluated = []
    monkeypatch.setattr(flow_command, "start_flow", lambda *a: evaluated.append(a[2].model_url))
    cli.main(["evaluate", ADDRESS])
    assert evaluated == [loaded.url], "commands find the model in the same cache"


def test_second_load_downloads_nothing(push, monkeypatch):
    hub = push()
    first = pets.load(ADDRESS).url
    hub.requests.clear()
    assert pets.load(ADDRESS).url == first
    assert hub.requests == ["GET /api/models/org/pets"]
    hub.requests.clear()
    assert pets.load(f"{ADDRESS}@{Path(first).name}").url == first
    assert hub.requests == [], "a commit never changes"


def test_pulled_model_is_pushed_with_one_section_of_use(push, tmp_path):
    hub = push()
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "pulled")])
    cli.main(["push", str(tmp_path / "pulled"), "hf://other/copy"])
    page = hub.repositories["model", "other/copy"].files["README.md"].decode()
    assert page.count("## Use") == 1
    assert ADDRESS not in page


def test_revision_names_an_earlier_commit(push, model_folder, tmp_path):
    hub = push()
    first = hub.repositories["model", "org/pets"].resolve("main")
    other = tmp_path / "other"
    write_tiny_model(other, ("cat", "dog"))
    push(folder=other)
    cli.main(["pull", f"{ADDRESS}@{first}", "--to", str(tmp_path / "first")])
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "second")])
    assert weights_sha256(str(tmp_path / "first")) == weights_sha256(str(model_folder))
    assert pets.load(tmp_path / "second").labels == ("cat", "dog")


def test_thresholds_of_tags_are_pushed_and_pulled(push, model_folder, tmp_path):
    folder = tmp_path / "tags"
    shutil.copytree(model_folder, folder)
    (folder / "thresholds.json").write_text('{"format_version": 1}')
    push(folder=folder)
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "pulled")])
    assert (tmp_path / "pulled/thresholds.json").read_text() == '{"format_version": 1}'


def test_card_keeps_the_evaluation_and_has_the_metadata_of_the_hub(push, model_folder, tmp_path):
    folder = tmp_path / "evaluated"
    shutil.copytree(model_folder, folder)
    (folder / "README.md").write_text(
        "---\nlibrary_name: pets-pipeline\npipeline_tag: image-classification\n"
        "base_model: test_byobnet\ntags: [image-classification, timm]\nmodel-index:\n"
        "- {name: photos, results: [{task: {type: image-classification}, dataset: {name: photos, "
        "type: photos}, metrics: [{type: error rate, value: 0.1}]}]}\n---\n# photos\n"
    )
    page = (
        push("--license", "mit", folder=folder).repositories["model", "org/pets"].files["README.md"]
    )
    card = ModelCard(page.decode())
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert (card.data.license, card.data.datasets) == ("mit", ["photos"])
    assert card.data.tags == ["image-classification", "timm", "pets-pipeline"]
    assert card.data.eval_results[0].metric_value == 0.1
    assert card.data.base_model == "timm/test_byobnet.r160_in1k"
    assert card.text.strip().startswith("# photos")


def test_model_without_an_evaluation_has_a_short_card(push):
    page = push().repositories["model", "org/pets"].files["README.md"].decode()
    card = ModelCard(page)
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license is None
    assert "not evaluated" in card.text
