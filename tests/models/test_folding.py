"""A folded copy of a frozen body computes the same outputs and is never stale."""

import copy

import pytest
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from pets_core.models import folding
from pets_core.models.backbones import create_body
from pets_core.models.classifier import Classifier
from pets_core.models.folding import cast_for_autocast, fold


def count_batch_norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def make_body(name: str) -> nn.Module:
    """Create a body whose batch norms have other statistics and weights than fresh ones."""
    torch.manual_seed(0)
    body = create_body(name, "none", 64).train()
    with torch.no_grad():
        for _ in range(3):
            body(torch.randn(4, 3, 64, 64) * 2 + 1)
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return body.eval().requires_grad_(False)


PHOTOS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet18", "test_efficientnet", "mobilenetv3_small_050"]
)
def test_folded_body_gives_the_same_outputs_without_batch_norms(name):
    body = make_body(name)
    before = copy.deepcopy(body.state_dict())
    folded = fold(body, PHOTOS[:1])
    assert count_batch_norms(body) > 5
    assert count_batch_norms(folded) == 0
    torch.testing.assert_close(folded(PHOTOS), body(PHOTOS), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, body.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_body_without_batch_norms_is_not_copied(name):
    size = 224 if name.startswith("vit") else 64
    body = create_body(name, "none", size).eval()
    assert fold(body, torch.randn(1, 3, size, size)) is body


def test_pre_activation_network_gives_the_same_outputs():
    """In a pre-activation network, the order of modules suggests some wrong pairs to fold."""
    body = make_body("densenet121")
    folded = fold(body, PHOTOS[:1])
    torch.testing.assert_close(folded(PHOTOS), body(PHOTOS), rtol=1e-3, atol=1e-4)


def test_body_with_non_finite_outputs_is_not_folded(model):
    with torch.no_grad():
        next(model.body.parameters()).fill_(float("nan"))
    assert fold(model.body, PHOTOS[:1]) is model.body


class BackToFront(nn.Module):
    """Registers its norm after the convolution but applies it before."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.conv(self.norm(inputs)).mean((2, 3))


def test_body_with_a_misleading_module_order_is_not_folded():
    body = BackToFront().train()
    body(torch.randn(8, 3, 8, 8) * 3 + 2)
    body.eval()
    assert fold(body, PHOTOS[:1]) is body


@pytest.fixture
def model() -> Classifier:
    body = make_body("test_efficientnet")
    model = Classifier(body, 256, 5, dropout=0.0).eval()
    nn.init.normal_(model.head[2].weight)
    return model


def plain(model: Classifier, photos: torch.Tensor) -> torch.Tensor:
    return model.head(model.body(photos))


def test_frozen_model_uses_the_folded_body_and_trains_its_head(model):
    names = list(model.state_dict())
    logits = model(PHOTOS)
    torch.testing.assert_close(logits, plain(model, PHOTOS), rtol=1e-3, atol=1e-4)
    assert model._body_for(PHOTOS) is not model.body
    assert list(model.state_dict()) == names
    logits.sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert all(p.grad is None for p in model.body.parameters())


def test_trainable_body_is_not_folded(model):
    folded = model._body_for(PHOTOS)
    model.body.requires_grad_(True)
    view = model._body_for(PHOTOS)
    assert view is not folded
    assert [id(p) for p in view.parameters()] == [id(p) for p in model.body.parameters()]
    model.body.requires_grad_(False)
    model.body.train()
    assert model._body_for(PHOTOS) is model.body


@pytest.mark.parametrize("change", ["in place", "load_state_dict", "data", "assign"])
def test_changed_weights_are_folded_again(model, change):
    first = model(PHOTOS)
    with torch.no_grad():
        weight = next(model.body.parameters())
        if change == "in place":
            torch._foreach_mul_(list(model.body.parameters()), 1.5)
        elif change in ("load_state_dict", "assign"):
            state = {
                k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()
            }
            model.load_state_dict(state, assign=change == "assign")
            model.requires_grad_(False)
        else:
            weight.data = weight.data * 3
    second = model(PHOTOS)
    assert not torch.allclose(first, second, rtol=1e-2)
    torch.testing.assert_close(second, plain(model, PHOTOS), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_folded_weights_are_cast_once_for_autocast(name):
    body = make_body(name)
    model = Classifier(body, body.num_features, 5, 0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = model.embed(PHOTOS)
        folded = model._body_for(PHOTOS)
        uncast = fold(model.body, PHOTOS[:1])
        assert torch.equal(features, uncast(PHOTOS)), "autocast casts the same weights"
    weights = {
        module.weight.dtype
        for module in folded.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert weights == {torch.bfloat16}
    in_fp32 = model._body_for(PHOTOS)
    assert in_fp32 is not folded
    assert {weight.dtype for weight in in_fp32.parameters()} == {torch.float32}


class Standardised(nn.Conv2d):
    """Standardises its weights before the convolution, as in ResNetV2."""

    def forward(self, inputs):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(inputs, weight)


def test_weights_used_in_other_computations_keep_their_dtype():
    body = nn.Sequential(Standardised(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        cast = cast_for_autocast(body.eval(), torch.bfloat16, PHOTOS)
    assert {weight.dtype for weight in cast.parameters()} == {torch.float32}


def test_layer_whose_output_would_change_is_not_cast(monkeypatch):
    monkeypatch.setattr(folding, "_AUTOCAST_LAYERS", (Standardised,))
    body = nn.Sequential(Standardised(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_for_autocast(body.eval(), torch.bfloat16, PHOTOS) is body


def test_folding_works_in_inference_mode_and_after_it(model):
    with torch.inference_mode():
        inside = model(PHOTOS)
    torch.testing.assert_close(inside.clone(), model(PHOTOS))
    model(PHOTOS).sum().backward()


def test_empty_batch_gives_empty_logits(model):
    assert model(PHOTOS[:0]).shape == (0, 5)


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18"])
def test_sync_batch_norms_keep_names_weights_and_outputs(name) -> None:
    """Layer groups, checkpoints and folding therefore do not depend on train.batch_norm = sync."""
    body = make_body(name)
    names, photos = set(body.state_dict()), torch.randn(2, 3, 64, 64)
    expected = body(photos)
    synced = convert_sync_batchnorm(copy.deepcopy(body))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert set(synced.state_dict()) == names
    for candidate in (synced, fold(synced, photos)):
        assert torch.allclose(candidate(photos), expected, atol=1e-5)
