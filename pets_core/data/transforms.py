"""Batches of decoded photos to model inputs, on the device that holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.config import TransformConfig

__all__ = ["Augment", "CenterCrop", "Transform", "draw_affine"]


class Transform(Protocol):
    """Turns uint8 (B, R, R, 3) into normalised float32 (B, 3, S, S), channels last.

    `seed` says which random numbers to use; `rows` are the batch's places in the global batch of
    `global_size`, so that a photo is augmented alike whatever rank it lands on.
    """

    def __call__(self, photos: Tensor, *, seed: int, rows: slice, global_size: int) -> Tensor:
        """Transform one batch."""
        ...


class CenterCrop:
    """The middle S of R pixels: what validation, testing and prediction see."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._size, self._mean, self._std = size, mean, std

    def __call__(
        self, photos: Tensor, *, seed: int = 0, rows: slice = slice(0), global_size: int = 0
    ) -> Tensor:
        """Crop and normalise; nothing is random."""
        start = (photos.shape[1] - self._size) // 2
        middle = slice(start, start + self._size)
        return _normalise(photos[:, middle, middle], self._mean, self._std)


class Augment:
    """Flip, rotate, zoom and crop as one affine map with one interpolation, then lighting.

    One interpolation of a larger picture keeps it sharp (fastai's "presizing", Howard and Gugger
    2020, chapter 5).
    """

    def __init__(
        self, size: int, mean: Sequence[float], std: Sequence[float], config: TransformConfig
    ) -> None:
        self._size, self._mean, self._std, self._config = size, mean, std, config

    def __call__(self, photos: Tensor, *, seed: int, rows: slice, global_size: int) -> Tensor:
        """Augment one batch; the same seed gives the same pictures."""
        if len(photos) == 0:
            # affine_grid refuses the empty share of a rank.
            return CenterCrop(self._size, self._mean, self._std)(photos)
        generator = torch.Generator().manual_seed(seed)
        crop = self._size / photos.shape[1]
        theta = draw_affine(global_size, crop, self._config, generator)[rows].to(photos.device)
        contrast, brightness = (
            v[rows].to(photos.device) for v in _draw_lighting(global_size, self._config, generator)
        )
        inputs = _normalise(photos, self._mean, self._std).contiguous()
        grid = F.affine_grid(theta, [len(photos), 3, self._size, self._size], align_corners=False)
        inputs = F.grid_sample(inputs, grid, padding_mode="reflection", align_corners=False)
        inputs = inputs.mul_(contrast).add_(brightness)
        return inputs.contiguous(memory_format=torch.channels_last)


def draw_affine(
    count: int, crop: float, config: TransformConfig, generator: torch.Generator
) -> Tensor:
    """Draw one affine map a photo, from output to input coordinates in [-1, 1].

    Args:
        count: How many maps.
        crop: Side of the output as a share of the input's side.
        config: Bounds of each transform.
        generator: Source of the random numbers.

    Returns:
        float32 (count, 2, 3), as `torch.nn.functional.affine_grid` takes them.
    """

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator) * 2 - 1

    def applied() -> Tensor:
        return (torch.rand(count, generator=generator) < config.probability).float()

    angle = uniform() * math.radians(config.max_rotate_degrees) * applied()
    zoom = 1 + torch.rand(count, generator=generator) * (config.max_zoom - 1) * applied()
    mirrored = (torch.rand(count, generator=generator) < 0.5).float() * float(config.flip)
    scale = crop / zoom
    x, y = uniform() * (1 - scale), uniform() * (1 - scale)
    sign = 1 - 2 * mirrored
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack(
        [torch.stack([cos * sign, -sin, x], 1), torch.stack([sin * sign, cos, y], 1)], 1
    )


def _draw_lighting(
    count: int, config: TransformConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Contrast factors and brightness shifts in normalised units, each (count, 1, 1, 1)."""
    applied = (torch.rand(count, 1, 1, 1, generator=generator) < config.probability).float()
    amount = config.max_lighting * applied
    contrast = torch.exp((torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1) * amount)
    brightness = (torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1) * amount
    return contrast, brightness


def _normalise(photos: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 NHWC to normalised float32 NCHW in channels-last memory."""
    scale = photos.new_tensor([1 / (255 * s) for s in std], dtype=torch.float32)
    shift = photos.new_tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)
    return photos.float().mul_(scale).add_(shift).permute(0, 3, 1, 2)
