"""Augmentation stays within its settings and is reproducible by seed."""

import math

import pytest
import torch
import torch.nn.functional as F

from pets_core.config.train import TransformConfig
from pets_core.data.loading.transforms import (
    Augment,
    CenterCrop,
    draw_maps,
    reflect_grid,
    sampling_grid,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
OFF = {
    "flip": False,
    "max_rotate_degrees": 0,
    "max_zoom": 1,
    "max_warp": 0,
    "max_lighting": 0,
    "probability": 1,
}


def photos(count=6, side=16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    values = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2)


def augment(pixels, size, seed=0, **settings):
    transform = Augment(size, MEAN, STD, TransformConfig(**OFF | settings))
    return transform(pixels, seed=seed, rows=slice(0, len(pixels)), global_size=len(pixels))


def close(left, right) -> bool:
    return torch.allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("size", [16, 12, 11])
def test_center_crop_normalises_the_middle(size):
    pixels = photos()
    out = CenterCrop(size, MEAN, STD)(pixels)
    start = (16 - size) // 2
    middle = pixels[:, start : start + size, start : start + size]
    assert close(out, normalised(middle))
    assert (out.shape, out.dtype) == ((6, 3, size, size), torch.float32)


@pytest.mark.parametrize("size", [16, 12])
def test_shape_dtype_and_memory_format(size):
    for out in (augment(photos(), size), CenterCrop(size, MEAN, STD)(photos())):
        assert (out.shape, out.dtype) == ((6, 3, size, size), torch.float32)
    assert augment(photos(), size).is_contiguous(memory_format=torch.channels_last)
    assert CenterCrop(16, MEAN, STD)(photos()).is_contiguous(memory_format=torch.channels_last)


def test_disabled_augmentation_only_normalises():
    assert close(augment(photos(), 16), normalised(photos()))


def test_random_crop_stays_within_the_photo():
    """On a ramp, values encode the column: a crop keeps the scale and stays inside."""
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 16, 1).expand(64, 16, 16, 3).contiguous()
    columns = augment(ramp, 12)[:, 0].mul(STD[0]).add(MEAN[0]).mul(255)
    steps = columns[:, :, 1:] - columns[:, :, :-1]
    assert torch.allclose(steps, torch.ones_like(steps), atol=1e-3)
    first = columns[:, 0, 0]
    assert first.min() >= -1e-3
    assert first.max() <= 4 + 1e-3
    assert first.max() - first.min() > 2, "the crop's position should vary"


def test_flip_mirrors_about_half_of_the_photos():
    pixels = photos(64)
    plain, out = normalised(pixels), augment(pixels, 16, flip=True)
    mirrored = [close(out[i], plain[i].flip(-1)) for i in range(64)]
    assert all(m or close(out[i], plain[i]) for i, m in enumerate(mirrored))
    assert 16 < sum(mirrored) < 48


def test_rotation_stays_within_its_bound_and_keeps_the_scale():
    config = TransformConfig(**OFF | {"max_rotate_degrees": 30})
    maps = draw_maps(500, 1.0, config, torch.Generator().manual_seed(0))
    angles = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).abs().rad2deg()
    assert 25 < angles.max() <= 30
    assert torch.allclose(torch.linalg.det(maps), torch.ones(500), atol=1e-5)


def test_zoom_magnifies_within_its_bound_and_inside_the_photo():
    config = TransformConfig(**OFF | {"max_zoom": 2})
    maps = draw_maps(500, 0.8, config, torch.Generator().manual_seed(0))
    scale = maps[:, 0, 0]
    assert 0.4 <= scale.min() < 0.45
    assert 0.75 < scale.max() <= 0.8
    assert (maps[:, :2, 2].abs() + scale[:, None]).max() <= 1 + 1e-6


def corners(maps: torch.Tensor) -> torch.Tensor:
    """Source coordinates of the output's corners, (count, 4, 2)."""
    points = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]]).T
    x, y, depth = (maps @ points).unbind(1)
    return torch.stack([x / depth, y / depth], -1)


def test_warp_stays_within_its_bound_and_keeps_the_center():
    config = TransformConfig(**OFF | {"max_warp": 0.2})
    maps = draw_maps(500, 1.0, config, torch.Generator().manual_seed(0))
    depth = maps[:, 2, :2]
    assert 0.18 < depth.abs().max() <= 0.2
    assert torch.equal(maps[:, :2, 2], torch.zeros(500, 2))
    sides = (corners(maps)[:, 1] - corners(maps)[:, 0]).norm(dim=1)
    assert sides.std() > 0.05, "opposite sides should differ in length"


def test_a_warp_keeps_straight_lines_straight():
    """The sampling grid follows the formula of a projective map."""
    config = TransformConfig(**OFF | {"max_warp": 0.3})
    maps = draw_maps(8, 0.5, config, torch.Generator().manual_seed(1))
    grid = sampling_grid(maps, 5)
    for number, matrix in enumerate(maps):
        for row in range(5):
            for column in range(5):
                point = torch.tensor([(2 * column + 1) / 5 - 1, (2 * row + 1) / 5 - 1, 1])
                x, y, depth = matrix @ point
                expected = torch.stack([x / depth, y / depth])
                assert torch.allclose(grid[number, row, column], expected, atol=1e-6)


def test_reflect_grid_equals_reflection_padding():
    """Apple GPUs lack this padding mode."""
    photos = torch.rand(8, 3, 20, 20)
    grid = torch.rand(8, 30, 30, 2, generator=torch.Generator().manual_seed(0)) * 14 - 7
    expected = F.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)
    found = F.grid_sample(photos, reflect_grid(grid, 20), align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_affine_sampling_grid_equals_torch():
    maps = draw_maps(8, 0.7, TransformConfig(max_warp=0), torch.Generator().manual_seed(1))
    expected = torch.nn.functional.affine_grid(maps[:, :2], [8, 3, 9, 9], align_corners=False)
    assert torch.allclose(sampling_grid(maps, 9), expected, atol=1e-6)


def test_random_resized_crops_stay_within_the_photo_and_their_bounds():
    config = TransformConfig(**OFF | {"min_crop_area": 0.3})
    maps = draw_maps(1000, 0.8, config, torch.Generator().manual_seed(0))
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    area, aspect = width * height, width / height
    assert (corners(maps).abs() <= 1 + 1e-5).all()
    assert 0.29 < area.min() < 0.35
    assert area.max() > 0.9
    assert 0.75 - 1e-4 <= aspect.min() < 0.8
    assert 1.25 < aspect.max() <= 4 / 3 + 1e-4


def test_erasing_blanks_one_rectangle_of_bounded_size():
    pixels = photos(200, 32)
    plain, out = augment(pixels, 32), augment(pixels, 32, erase_probability=0.5)
    blank = (out == 0).all(1)
    changed = blank.flatten(1).any(1)
    assert 70 < changed.sum() < 130
    assert close(out[~changed], plain[~changed])
    for erased in blank[changed]:
        rows, columns = erased.any(1).sum(), erased.any(0).sum()
        assert erased.sum() == rows * columns, "a full rectangle"
        assert 0.01 < erased.float().mean() < 0.37
    assert torch.equal(out.permute(0, 2, 3, 1)[~blank], plain.permute(0, 2, 3, 1)[~blank])


def test_probability_sets_the_share_of_augmented_photos():
    config = TransformConfig(**OFF | {"max_rotate_degrees": 30, "probability": 0.25})
    maps = draw_maps(2000, 1.0, config, torch.Generator().manual_seed(0))
    rotated = (maps[:, 1, 0].abs() > 1e-6).float().mean()
    assert math.isclose(rotated, 0.25, abs_tol=0.04)
    never = draw_maps(
        50, 1.0, TransformConfig(flip=False, probability=0), torch.Generator().manual_seed(0)
    )
    assert torch.equal(never, torch.eye(3).expand(50, 3, 3))


def test_lighting_applies_one_contrast_and_one_shift_per_photo():
    plain, out = normalised(photos(64)), augment(photos(64), 16, max_lighting=0.2)
    for before, after in zip(plain, out, strict=True):
        spread = after.std() / before.std()
        assert math.exp(-0.2) - 1e-3 <= spread <= math.exp(0.2) + 1e-3
        shift = after - before * spread
        assert torch.allclose(shift, shift.mean(), atol=1e-3)
        assert shift.mean().abs() <= 0.2 + 1e-3
    assert not close(plain, out)


def test_augmentation_is_reproducible_by_seed():
    settings = {"flip": True, "max_rotate_degrees": 20, "max_zoom": 1.5, "max_lighting": 0.3}
    one = augment(photos(), 12, seed=5, **settings)
    assert torch.equal(one, augment(photos(), 12, seed=5, **settings))
    assert not close(one, augment(photos(), 12, seed=6, **settings))


def test_transforms_do_not_modify_their_input():
    pixels = photos()
    augment(pixels, 16, flip=True, max_lighting=0.3)
    CenterCrop(16, MEAN, STD)(pixels)
    assert torch.equal(pixels, photos())
