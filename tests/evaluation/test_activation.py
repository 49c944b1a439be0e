"""Class-activation maps of every feature shape, and their overlay."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pets_core.evaluation.activation import activation_maps, overlay
from pets_core.models.backbones import create_body, num_features
from pets_core.models.classifier import Classifier


def classifier(backbone: str, size: int) -> Classifier:
    torch.manual_seed(0)
    body = create_body(backbone, "none", size)
    model = Classifier(body, num_features(body, size), 3, 0.0).eval().requires_grad_(False)
    nn.init.normal_(model.head[-1].weight)
    return model


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [
        ("test_efficientnet", 64, 2),
        ("resnet10t", 64, 2),
        ("mobilenetv3_small_050", 64, 2),
        ("vit_tiny_patch16_224", 224, 14),
        ("deit_tiny_patch16_224", 224, 14),
        ("swin_tiny_patch4_window7_224", 224, 7),
    ],
)
def test_backbones_of_every_feature_shape_have_maps(backbone, size, side):
    model = classifier(backbone, size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = activation_maps(model, torch.randn(2, 3, size, size), torch.tensor([0, 2]))
    assert maps.shape == (2, side, side)
    assert maps.isfinite().all()
    assert maps.amin() >= 0
    assert maps.amax((1, 2)).tolist() == [1.0, 1.0], "maps are normalised to a maximum of 1"
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Bright(nn.Module):
    """Body whose features are the redness of each quarter of the photo, and its negative."""

    num_features = 2

    def forward_features(self, inputs):
        red = nn.functional.avg_pool2d(inputs[:, :1], inputs.shape[2] // 2)
        return torch.cat([red, -red], 1)

    def forward_head(self, features):
        return features.mean((2, 3))


def test_map_is_highest_at_the_evidence_for_the_class():
    model = Classifier(Bright(), 2, 2, 0.0).eval()
    model.head = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.head.weight)
    inputs = torch.zeros(1, 3, 8, 8)
    inputs[:, 0, 4:, :4] = 1.0
    (found,) = activation_maps(model, inputs, torch.tensor([0]))
    assert found.tolist() == [[0, 0], [1, 0]]


def test_pooled_features_have_no_maps():
    class Pooled(Bright):
        def forward_features(self, inputs):
            return inputs.mean((2, 3))[:, :2]

        def forward_head(self, features):
            return features

    model = Classifier(Pooled(), 2, 2, 0.0).eval()
    assert activation_maps(model, torch.zeros(1, 3, 8, 8), torch.tensor([0])) is None


@pytest.mark.parametrize("backbone", ["crossvit_tiny_240", "cait_xxs24_224"])
def test_unsupported_backbones_have_no_maps(backbone):
    size = int(backbone.rsplit("_", 1)[1])
    inputs = torch.randn(1, 3, size, size)
    assert activation_maps(classifier(backbone, size), inputs, torch.tensor([0])) is None


def test_overlay_is_aligned_with_the_crop():
    pixels = np.zeros((80, 80, 3), np.uint8)
    activation = np.zeros((2, 2), np.float32)
    activation[0, 1] = 1.0
    picture = Image.open(io.BytesIO(overlay(pixels, activation, crop=64, side=96)))
    assert (picture.format, picture.size) == ("JPEG", (96, 96))
    red, _, blue = picture.getpixel((85, 10))
    assert red > 2 * blue, "the hot corner is red"
    red, _, blue = picture.getpixel((10, 85))
    assert blue >= red, "the cold corner is not"
