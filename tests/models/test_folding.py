"""The twin of a frozen body computes the same, and is never stale."""

import copy

import pytest
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from pets_core.models import folding
from pets_core.models.backbones import create_body
from pets_core.models.classifier import Classifier
from pets_core.models.folding import cast_for_autocast, fold


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def body_of(name: str) -> nn.Module:
    """With statistics and weights that are not those of a fresh batch norm."""
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
def test_the_twin_computes_the_same_without_batch_norms(name):
    body = body_of(name)
    before = copy.deepcopy(body.state_dict())
    twin = fold(body, PHOTOS[:1])
    assert norms(body) > 5
    assert norms(twin) == 0
    torch.testing.assert_close(twin(PHOTOS), body(PHOTOS), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, body.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_a_body_without_batch_norms_is_not_copied(name):
    size = 224 if name.startswith("vit") else 64
    body = create_body(name, "none", size).eval()
    assert fold(body, torch.randn(1, 3, size, size)) is body


def test_batch_norms_before_convolutions_are_told_from_those_behind():
    """A pre-activation network: what the order suggests is wrong for some, and is not believed."""
    body = body_of("densenet121")
    twin = fold(body, PHOTOS[:1])
    torch.testing.assert_close(twin(PHOTOS), body(PHOTOS), rtol=1e-3, atol=1e-4)


def test_a_result_that_is_not_finite_proves_nothing(model):
    with torch.no_grad():
        next(model.body.parameters()).fill_(float("nan"))
    assert fold(model.body, PHOTOS[:1]) is model.body


class BackToFront(nn.Module):
    """Registers its norm after the convolution, and uses it before."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.conv(self.norm(inputs)).mean((2, 3))


def test_a_wrong_guess_is_found_out():
    body = BackToFront().train()
    body(torch.randn(8, 3, 8, 8) * 3 + 2)
    body.eval()
    assert fold(body, PHOTOS[:1]) is body


@pytest.fixture
def model() -> Classifier:
    body = body_of("test_efficientnet")
    model = Classifier(body, 256, 5, dropout=0.0).eval()
    nn.init.normal_(model.head[2].weight)
    return model


def plain(model: Classifier, photos: torch.Tensor) -> torch.Tensor:
    return model.head(model.body(photos))


def test_a_frozen_model_uses_the_twin_and_its_head_still_learns(model):
    names = list(model.state_dict())
    logits = model(PHOTOS)
    torch.testing.assert_close(logits, plain(model, PHOTOS), rtol=1e-3, atol=1e-4)
    assert model._body_for(PHOTOS) is not model.body
    assert list(model.state_dict()) == names
    logits.sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    assert all(p.grad is None for p in model.body.parameters())


def test_a_learning_body_is_used_itself(model):
    model(PHOTOS)
    model.body.requires_grad_(True)
    assert model._body_for(PHOTOS) is model.body
    model.body.requires_grad_(False)
    model.body.train()
    assert model._body_for(PHOTOS) is model.body


@pytest.mark.parametrize("how", ["in place", "load_state_dict", "data"])
def test_other_weights_make_another_twin(model, how):
    first = model(PHOTOS)
    with torch.no_grad():
        weight = next(model.body.parameters())
        if how == "in place":
            torch._foreach_mul_(list(model.body.parameters()), 1.5)
        elif how == "load_state_dict":
            model.load_state_dict(
                {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
            )
        else:
            weight.data = weight.data * 3
    second = model(PHOTOS)
    assert not torch.allclose(first, second, rtol=1e-2)
    torch.testing.assert_close(second, plain(model, PHOTOS), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_under_autocast_the_twins_weights_are_cast_once(name):
    model = Classifier(body_of(name), create_body(name, "none", 64).num_features, 5, 0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        given = model.embed(PHOTOS)
        twin = model._body_for(PHOTOS)
        folded = fold(model.body, PHOTOS[:1])
        assert torch.equal(given, folded(PHOTOS)), "autocast casts the same weights"
    weights = {
        module.weight.dtype
        for module in twin.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert weights == {torch.bfloat16}
    in_fp32 = model._body_for(PHOTOS)
    assert in_fp32 is not twin
    assert {weight.dtype for weight in in_fp32.parameters()} == {torch.float32}


class Standardised(nn.Conv2d):
    """As in ResNetV2: its weights are not what is multiplied."""

    def forward(self, inputs):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(inputs, weight)


def test_weights_that_are_computed_with_keep_their_type():
    body = nn.Sequential(Standardised(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        cast = cast_for_autocast(body.eval(), torch.bfloat16, PHOTOS)
    assert {weight.dtype for weight in cast.parameters()} == {torch.float32}


def test_a_layer_that_gives_something_else_is_not_cast(monkeypatch):
    monkeypatch.setattr(folding, "_AUTOCAST_LAYERS", (Standardised,))
    body = nn.Sequential(Standardised(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_for_autocast(body.eval(), torch.bfloat16, PHOTOS) is body


def test_under_inference_mode_and_after_it(model):
    with torch.inference_mode():
        inside = model(PHOTOS)
    torch.testing.assert_close(inside.clone(), model(PHOTOS))
    model(PHOTOS).sum().backward()


def test_no_photos_are_no_sample(model):
    assert model(PHOTOS[:0]).shape == (0, 5)


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18"])
def test_norms_across_ranks_keep_names_weights_and_outputs(name) -> None:
    """So that layer groups, checkpoints and the twin know nothing of train.batch_norm = sync."""
    body = body_of(name)
    names, photos = set(body.state_dict()), torch.randn(2, 3, 64, 64)
    expected = body(photos)
    synced = convert_sync_batchnorm(copy.deepcopy(body))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert set(synced.state_dict()) == names
    for judged in (synced, fold(synced, photos)):
        assert torch.allclose(judged(photos), expected, atol=1e-5)
