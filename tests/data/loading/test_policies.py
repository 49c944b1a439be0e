"""TrivialAugment and RandAugment: torchvision's operations and bounds, in one interpolation."""

import pytest
import torch
from torchvision.transforms import v2

from pets_core.config.train import TransformConfig
from pets_core.data.loading import policies
from pets_core.data.loading.policies import apply_colours, draw_policy
from pets_core.data.loading.transforms import Augment, transform_points
from pets_core.models.card import ModelCard

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TORCHVISION = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}
NAMES = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "saturation": "Color", "autocontrast": "AutoContrast",
}  # fmt: skip


def photos(count=6, side=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def augment(pixels, policy, *, seed=0, rows=None, size=20):
    transform = Augment(size, MEAN, STD, TransformConfig(policy=policy))
    whole = len(pixels)
    rows = rows or slice(0, whole)
    return transform(pixels[rows], seed=seed, rows=rows, global_size=whole)


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_operations_and_bounds_are_those_of_torchvision(policy):
    """The strongest level of torchvision, for a photo of 224 pixels, is level 1."""
    space = TORCHVISION[policy]._AUGMENTATION_SPACE
    expected = {NAMES.get(name, name.title()) for name in policies._OPERATIONS}
    assert expected == set(space)
    bounds = policies._BOUNDS[policy]

    def strongest(name):
        return float(space[name][0](31, 224, 224)[-1])

    assert strongest("ShearX") == pytest.approx(bounds.shear)
    assert strongest("TranslateX") == pytest.approx(bounds.translate * 224)
    assert strongest("Rotate") == pytest.approx(bounds.degrees)
    assert strongest("Brightness") == pytest.approx(bounds.factor)
    assert strongest("Posterize") == 8 - bounds.bits


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_every_operation_is_drawn(policy, monkeypatch):
    drawn = []
    original = policies._colour
    monkeypatch.setattr(
        policies, "_colour", lambda name, *args: drawn.append(name) or original(name, *args)
    )
    draw_policy(600, policy, torch.Generator().manual_seed(0))
    assert set(drawn) == set(policies._OPERATIONS)
    assert len(drawn) == 600 * {"trivial": 1, "rand": 2}[policy]


@pytest.mark.parametrize(
    ("name", "function", "argument"),
    [
        ("brightness", v2.functional.adjust_brightness, 1.495),
        ("saturation", v2.functional.adjust_saturation, 1.495),
        ("contrast", v2.functional.adjust_contrast, 1.495),
        ("sharpness", v2.functional.adjust_sharpness, 1.495),
        ("posterize", v2.functional.posterize, 5),
        ("solarize", v2.functional.solarize, 128),
    ],
)
def test_colour_operation_changes_only_its_photo(name, function, argument):
    pixels = photos().permute(0, 3, 1, 2)
    operation = policies._colour(name, 0.5, 0.5, policies._BOUNDS["trivial"])
    changed = apply_colours(pixels, [[], [operation], [], [], [], []])
    assert torch.equal(changed[1], function(pixels[1], argument))
    others = [0, 2, 3, 4, 5]
    assert torch.equal(changed[others], pixels[others])


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("shear_x", (0.5 + 0.25 * 0.495, 0.25)),
        ("shear_y", (0.5, 0.25 + 0.5 * 0.495)),
        ("translate_x", (0.5 + 32 / 224, 0.25)),
        ("translate_y", (0.5, 0.25 + 32 / 224)),
        ("identity", (0.5, 0.25)),
    ],
)
def test_geometric_operation_moves_points(name, moved):
    maps = policies._map(name, 0.5, policies._BOUNDS["trivial"])[None]
    assert transform_points(torch.tensor([[0.5, 0.25]]), maps)[0].tolist() == pytest.approx(moved)


def test_rotation_keeps_distances():
    maps = policies._map("rotate", 2 / 3, policies._BOUNDS["trivial"])[None]
    x, y = transform_points(torch.tensor([[0.5, 0.25]]), maps)[0].tolist()
    assert (x, y) == pytest.approx((-0.25, 0.5), abs=1e-6), "90 degrees"


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_policy_is_reproducible_and_independent_of_ranks(policy):
    pixels = photos(9)
    before = pixels.clone()
    whole = augment(pixels, policy, seed=4)
    assert torch.equal(whole, augment(pixels, policy, seed=4))
    assert not torch.equal(whole, augment(pixels, policy, seed=5))
    parts = [augment(pixels, policy, seed=4, rows=rows) for rows in (slice(0, 4), slice(4, 9))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(pixels, before)


def test_policy_replaces_rotation_zoom_warp_and_lighting(monkeypatch):
    monkeypatch.setattr(policies, "_OPERATIONS", ("identity",))
    pixels = photos(4)
    settings = TransformConfig(policy="trivial", flip=False, probability=1.0)
    out = Augment(24, MEAN, STD, settings)(pixels, seed=1, rows=slice(0, 4), global_size=4)
    expected = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    assert torch.allclose(out, expected, atol=1e-4)


def test_augmented_views_of_a_prediction_have_no_policy():
    card = ModelCard(
        backbone="resnet34", num_features=8, image_size=20, resize_to=24, mean=MEAN, std=STD,
        dataset_fingerprint="a", vocabulary=(),
    )  # fmt: skip
    config = TransformConfig(policy="trivial", erase_probability=1.0)
    pixels, arguments = photos(), {"seed": 1, "rows": slice(0, 6), "global_size": 6}
    expected = card.augment(TransformConfig())(pixels, **arguments)
    assert torch.equal(card.view(config)(pixels, **arguments), expected)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_coordinates_follow_their_pixels(name, monkeypatch):
    """The colours of the photo are the coordinates of its pixels."""
    monkeypatch.setattr(policies, "_OPERATIONS", (name,))
    side = 200
    across = torch.linspace(0, 255, side).round().to(torch.uint8)
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    pixels[0, :, :, 0], pixels[0, :, :, 1] = across[None, :], across[:, None]
    transform = Augment(side, (0.0,) * 3, (1.0,) * 3, TransformConfig(policy="rand", flip=False))
    arguments = {"seed": 3, "rows": slice(0, 1), "global_size": 1}
    out, maps = transform(pixels, **arguments), transform.maps(side, **arguments)
    assert not torch.allclose(maps[0], torch.eye(3), atol=0.01)
    point = torch.tensor([[0.2, -0.1]])
    x, y = transform_points(point, torch.linalg.inv(maps))[0].tolist()
    column, row = (round((value + 1) / 2 * side - 0.5) for value in (x, y))
    found = 2 * out[0, :2, row, column] - 1
    assert found.tolist() == pytest.approx([0.2, -0.1], abs=0.02)
