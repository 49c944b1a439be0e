"""Model folders: complete, and without pickles."""

import json
import pickle

import pytest
import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.config.train import TransformConfig
from pets_core.errors import PetsError
from pets_core.models.package import create_model, load_model, save_model
from pets_core.records.dataset import ClassInfo

CLASSES = tuple(ClassInfo(name=name, species="cat") for name in ("Abyssinian", "Bengal", "Birman"))
CONFIG = PipelineConfig(
    model={"backbone": "test_efficientnet", "weights": "none", "image_size": 64, "dropout": 0.5}
)


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    built = create_model(CONFIG, CLASSES, "abc")
    torch.nn.init.normal_(built.model.head[2].weight)
    save_model(str(tmp_path / "model"), built.card, built.model.state_dict())
    return tmp_path / "model", built


def test_round_trip_gives_the_same_logits(stored) -> None:
    folder, built = stored
    loaded = load_model(str(folder))
    photos = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(photos), built.model.eval().requires_grad_(False)(photos))
    assert loaded.card == built.card
    assert not loaded.model.training


def test_card_holds_backbone_classes_and_preprocessing(stored) -> None:
    card = json.loads((stored[0] / "model.json").read_text())
    assert card["backbone"] == "test_efficientnet"
    assert [c["name"] for c in card["vocabulary"]] == ["Abyssinian", "Bengal", "Birman"]
    assert (card["image_size"], card["dataset_fingerprint"]) == (64, "abc")
    assert len(card["mean"]) == len(card["std"]) == 3


def test_card_names_a_resize_that_earlier_versions_lack(stored, tmp_path) -> None:
    """Those reject unknown fields, and would squish the photos."""
    assert "resize" not in json.loads((stored[0] / "model.json").read_text())
    config = CONFIG.model_copy(update={"transform": TransformConfig(resize="pad")})
    padded = create_model(config, CLASSES, "abc")
    save_model(str(tmp_path / "padded"), padded.card, padded.model.state_dict())
    assert json.loads((tmp_path / "padded/model.json").read_text())["resize"] == "pad"
    assert load_model(str(tmp_path / "padded")).card.resize == "pad"


def test_nothing_is_pickled(stored) -> None:
    assert {path.name for path in stored[0].iterdir()} == {"model.json", "model.safetensors"}
    for path in stored[0].iterdir():
        with pytest.raises((pickle.UnpicklingError, KeyError, ValueError, UnicodeDecodeError)):
            pickle.loads(path.read_bytes())


def test_new_head_gives_all_classes_the_same_logit() -> None:
    built = create_model(CONFIG, CLASSES, "abc")
    built.model.eval()
    with torch.no_grad():
        assert torch.equal(built.model(torch.randn(2, 3, 64, 64)), torch.zeros(2, 3))


def test_the_head_is_the_last_layer_group() -> None:
    built = create_model(CONFIG, CLASSES, "abc")
    groups = built.model.layer_groups()
    assert {id(p) for p in groups[-1]} == {id(p) for p in built.model.head.parameters()}
    assert sum(map(len, groups)) == len(list(built.model.parameters()))


def test_folder_without_a_model_is_an_error(tmp_path) -> None:
    with pytest.raises(PetsError, match=r"is not a model folder: it holds no model.json"):
        load_model(str(tmp_path))


def test_damaged_card_is_an_error(stored) -> None:
    (stored[0] / "model.json").write_text("{")
    with pytest.raises(PetsError, match=r"model.json is damaged"):
        load_model(str(stored[0]))


def test_damaged_weights_are_an_error(stored) -> None:
    path = stored[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PetsError, match=r"damaged or belongs to another model"):
        load_model(str(stored[0]))


def test_weights_of_another_model_are_an_error(stored) -> None:
    card = json.loads((stored[0] / "model.json").read_text())
    card["vocabulary"].append({"name": "Bombay", "species": "cat"})
    (stored[0] / "model.json").write_text(json.dumps(card))
    with pytest.raises(PetsError, match=r"damaged or belongs to another model"):
        load_model(str(stored[0]))
