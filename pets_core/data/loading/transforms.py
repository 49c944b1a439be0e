"""Batch transforms: crop, augment and normalise decoded photos on their device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.config.train import TransformConfig
from pets_core.data.loading.policies import ColourOperation, apply_colours, draw_policy

__all__ = [
    "COORDINATE_RANGE",
    "Augment",
    "CenterCrop",
    "Transform",
    "draw_maps",
    "reflect_grid",
    "sampling_grid",
    "to_device",
    "transform_box",
    "transform_points",
]

COORDINATE_RANGE = (-1.2, 1.2)
"""Range of coordinate targets, in half sides of the crop. It exceeds [-1, 1], because points may be
outside the crop and a sigmoid only approaches its bounds."""
_MAX_ASPECT = 4 / 3
_HORIZON = 1e-3
_ERASED_AREA = (0.02, 1 / 3)


class CenterCrop:
    """Centre crop of S of R pixels, for validation, testing and prediction.

    Converts uint8 (B, R, R, 3) to normalised float32 (B, 3, S, S), channels last.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._size, self._scale, self._shift = size, *_normalisation(mean, std)

    def __call__(
        self, photos: Tensor, *, seed: int = 0, rows: slice = slice(0), global_size: int = 0
    ) -> Tensor:
        """Crop and normalise; deterministic."""
        start = (photos.shape[1] - self._size) // 2
        middle = slice(start, start + self._size)
        scale, shift = to_device(self._scale, photos.device), to_device(self._shift, photos.device)
        return photos[:, middle, middle].float().mul_(scale).add_(shift).permute(0, 3, 1, 2)

    def maps(self, side: int, *, seed: int = 0, rows: slice, global_size: int = 0) -> Tensor:
        """Return the map of the crop, the same for all photos."""
        share = self._size / side
        centre = (2 * ((side - self._size) // 2) + self._size) / side - 1
        one = torch.tensor([[share, 0.0, centre], [0.0, share, centre], [0.0, 0.0, 1.0]])
        return one.expand(rows.stop - rows.start, 3, 3)


class Augment:
    """Random flip, rotation, zoom, warp and crop in one interpolation; lighting; erasing.

    A single interpolation of a larger picture keeps it sharp (fastai's "presizing", Howard and
    Gugger 2020, chapter 5). Pixels outside the photo are filled by reflection. A policy replaces
    rotation, zoom, warp and lighting.

    Converts uint8 (B, R, R, 3) to normalised float32 (B, 3, S, S), channels last. `rows` are the
    positions of the batch in the global batch of `global_size`. Random numbers depend on `seed` and
    these positions, so a photo's augmentation does not depend on its rank.
    """

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], config: TransformConfig
    ) -> None:
        self._size = size
        has_policy = config.policy != "none"
        self._config = config.model_copy(update={"probability": 0.0}) if has_policy else config
        self._scale, self._shift = _normalisation(mean, std)
        self._empty = CenterCrop(size, mean, std)

    def __call__(self, photos: Tensor, *, seed: int, rows: slice, global_size: int) -> Tensor:
        """Augment one batch; deterministic for a seed."""
        if len(photos) == 0:
            # A rank's share may be empty, which grid_sample rejects.
            return self._empty(photos)
        config, device = self._config, photos.device
        maps, colours, generator = self._draw(photos.shape[1], seed, global_size)
        maps = maps[rows]
        contrast, brightness = (v[rows] for v in _draw_lighting(global_size, config, generator))
        # Lighting and normalisation are linear: one multiplication and one addition.
        scale = to_device((contrast * self._scale)[:, :, None, None], device)
        shift = to_device((contrast * self._shift + brightness)[:, :, None, None], device)
        photos = photos.permute(0, 3, 1, 2)
        if colours:
            photos = apply_colours(photos, colours[rows])
        pixels = photos.to(torch.float32, memory_format=torch.contiguous_format)
        grid = sampling_grid(to_device(maps, device), self._size)
        if device.type == "mps":
            inputs = F.grid_sample(pixels, reflect_grid(grid, pixels.shape[2]), align_corners=False)
        else:
            inputs = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        inputs = inputs.mul_(scale).add_(shift)
        if config.erase_probability:
            kept = ~_draw_erased(global_size, self._size, config, generator)[rows]
            inputs = inputs.mul_(to_device(kept[:, None], device))
        return inputs.contiguous(memory_format=torch.channels_last)

    def maps(self, side: int, *, seed: int, rows: slice, global_size: int) -> Tensor:
        """Return the maps that the call with the same seed uses on photos of R = `side` pixels.

        Returns:
            float32 (B, 3, 3), from output to input coordinates, as `draw_maps` returns.
        """
        return self._draw(side, seed, global_size)[0][rows]

    def _draw(
        self, side: int, seed: int, global_size: int
    ) -> tuple[Tensor, list[list[ColourOperation]], torch.Generator]:
        """Return maps and colour operations of a global batch, and the generator after them."""
        config, generator = self._config, torch.Generator().manual_seed(seed)
        maps = draw_maps(global_size, self._size / side, config, generator)
        if config.policy == "none":
            return maps, [], generator
        drawn = draw_policy(global_size, config.policy, generator)
        return maps @ drawn.maps, drawn.colours, generator


Transform = CenterCrop | Augment
"""Transform of a batch of photos: uint8 (B, R, R, 3) to float32 (B, 3, S, S); see `Augment`."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; with CUDA asynchronously, from pinned memory."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def draw_maps(
    count: int, crop: float, config: TransformConfig, generator: torch.Generator
) -> Tensor:
    """Draw a random projective map per photo, from output to input coordinates in [-1, 1].

    Args:
        count: Number of maps.
        crop: Side of the output as a fraction of the input's side.
        config: Bounds of each transform.
        generator: Random number generator.

    Returns:
        float32 (count, 3, 3), for homogeneous coordinates (x, y, 1).
    """

    def share() -> Tensor:
        return torch.rand(count, generator=generator)

    def either_way() -> Tensor:
        return share() * 2 - 1

    def applied() -> Tensor:
        return (share() < config.probability).float()

    angle = either_way() * math.radians(config.max_rotate_degrees) * applied()
    zoom = 1 + share() * (config.max_zoom - 1) * applied()
    sign = 1 - 2 * (share() < 0.5).float() * float(config.flip)
    width = height = torch.full((count,), crop)
    if config.min_crop_area < 1:
        area = config.min_crop_area + (1 - config.min_crop_area) * share()
        aspect = _MAX_ASPECT ** either_way()
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    width, height = width / zoom, height / zoom
    x, y = either_way() * (1 - width), either_way() * (1 - height)
    warp = applied() * config.max_warp
    tilt_x, tilt_y = either_way() * warp, either_way() * warp
    zero, one = torch.zeros(count), torch.ones(count)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, 1).view(count, 3, 3)

    cos, sin = angle.cos(), angle.sin()
    turn = matrix(cos * sign, -sin, zero, sin * sign, cos, zero, zero, zero, one)
    tilt = matrix(one, zero, zero, zero, one, zero, tilt_x, tilt_y, one)
    place = matrix(width, zero, x, zero, height, y, zero, zero, one)
    return place @ turn @ tilt


def transform_points(points: Tensor, maps: Tensor) -> Tensor:
    """Transform points by projective maps.

    Args:
        points: float32 (B, D), as x, y, x, y, ...
        maps: float32 (B, 3, 3), for homogeneous coordinates. Maps of `draw_maps` convert output to
            input coordinates, their inverses input to output coordinates.

    Returns:
        float32 (B, D); points beyond the horizon of a tilted plane get large coordinates.
    """
    x, y = points.float().view(len(points), points.shape[1] // 2, 2).unbind(2)
    moved_x, moved_y, depth = _apply(maps[..., None], x, y)
    depth = depth.clamp(min=_HORIZON)
    return torch.stack([moved_x / depth, moved_y / depth], 2).flatten(1)


def transform_box(boxes: Tensor, maps: Tensor) -> Tensor:
    """Transform boxes; return the axis-aligned boxes that enclose the transformed corners.

    Args:
        boxes: float32 (B, 4), xmin, ymin, xmax, ymax.
        maps: As in `transform_points`.

    Returns:
        float32 (B, 4).
    """
    # Not indexed by a list: copying it to the device would synchronise.
    left, top, right, bottom = boxes.unbind(1)
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], 1)
    moved = transform_points(corners, maps).view(len(boxes), 4, 2)
    return torch.cat([moved.amin(1), moved.amax(1)], 1)


def sampling_grid(maps: Tensor, size: int) -> Tensor:
    """Return the grid of input coordinates for each output pixel.

    Args:
        maps: float32 (B, 3, 3), as `draw_maps` returns.
        size: Side of the output, S, pixels.

    Returns:
        float32 (B, S, S, 2), for `torch.nn.functional.grid_sample` with `align_corners=False`.
    """
    centres = (torch.arange(size, device=maps.device) * 2 + 1) / size - 1
    x, y, depth = _apply(maps[..., None, None], centres, centres[:, None])
    return torch.stack([x / depth, y / depth], -1)


def reflect_grid(grid: Tensor, side: int) -> Tensor:
    """Reflect a grid at the photo's borders, as grid_sample's padding mode "reflection" does.

    Not all versions of torch support that mode on Apple GPUs.

    Args:
        grid: float32 (B, S, S, 2), as `sampling_grid` returns.
        side: Side of the photos, R, pixels.
    """
    # Reflection at -1 and 1 has period 4.
    inside = 1 - ((grid + 1).remainder(4) - 2).abs()
    # Coordinates beyond the centre of a border pixel take its value.
    return inside.clamp(1 / side - 1, 1 - 1 / side)


def _apply(maps: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply maps, (B, 3, 3, ...), by homogeneous coordinates (x, y, 1), each (...) or (B, ...).

    Not a matrix product, which GPUs round to TF32: an error of 0.2 pixels at 1024 pixels.
    """
    across, down, depth = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in maps.unbind(1))
    return across, down, depth


def _draw_lighting(
    count: int, config: TransformConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw contrast factors and brightness shifts in normalised units, each (count, 1)."""
    applied = (torch.rand(count, 1, generator=generator) < config.probability).float()
    amount = config.max_lighting * applied
    contrast = torch.exp((torch.rand(count, 1, generator=generator) * 2 - 1) * amount)
    brightness = (torch.rand(count, 1, generator=generator) * 2 - 1) * amount
    return contrast, brightness


def _draw_erased(
    count: int, size: int, config: TransformConfig, generator: torch.Generator
) -> Tensor:
    """Draw masks of the rectangle to erase, if any, in each photo: bool (count, S, S)."""
    number = torch.rand(count, 5, generator=generator)
    least, most = _ERASED_AREA
    area = least + (most - least) * number[:, 0]
    aspect = _MAX_ASPECT ** (number[:, 1] * 2 - 1)
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    left, top = number[:, 2] * (1 - width), number[:, 3] * (1 - height)
    centres = (torch.arange(size) + 0.5) / size
    across = (centres >= left[:, None]) & (centres < (left + width)[:, None])
    down = (centres >= top[:, None]) & (centres < (top + height)[:, None])
    chosen = number[:, 4] < config.erase_probability
    return chosen[:, None, None] & down[:, :, None] & across[:, None, :]


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel that normalise uint8 values, each float32 (3,)."""
    centre, spread = torch.tensor(mean), torch.tensor(std)
    return 1 / (255 * spread), -centre / spread
