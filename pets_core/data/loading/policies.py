"""Augmentation policies on a batch: TrivialAugment and RandAugment.

Colour operations are those of torchvision. Geometric ones become projective maps, so that a batch
is interpolated once and coordinates are transformed with their photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

__all__ = ["ColourOperation", "PolicyDraw", "apply_colours", "draw_policy"]

Policy = Literal["trivial", "rand"]
ColourOperation = Callable[[Tensor], Tensor]


class _Bounds(NamedTuple):
    """Operations per photo, and the strength of each at level 1.

    Attributes:
        num_operations: Operations per photo.
        level: Level of every operation; None: drawn from 0 to 1.
        shear: Shift of a row or column by this share of its distance from the centre.
        translate: Share of the side.
        degrees: Rotation.
        factor: Change of brightness, saturation, contrast and sharpness.
        bits: Removed bits of each colour.
    """

    num_operations: int
    level: float | None
    shear: float
    translate: float
    degrees: float
    factor: float
    bits: int


_BOUNDS: dict[Policy, _Bounds] = {
    # torchvision.transforms.v2.TrivialAugmentWide translates by up to 32 of 224 pixels.
    "trivial": _Bounds(1, None, 0.99, 32 / 224, 135.0, 0.99, 6),
    # torchvision.transforms.v2.RandAugment: magnitude 9 of 30.
    "rand": _Bounds(2, 9 / 30, 0.3, 150 / 331, 30.0, 0.9, 4),
}
_OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


class PolicyDraw(NamedTuple):
    """Operations drawn for the photos of a batch.

    Attributes:
        maps: Geometric operations, float32 (B, 3, 3), from output to input coordinates.
        colours: Colour operations of each photo, in order.
    """

    maps: Tensor
    colours: list[list[ColourOperation]]


def draw_policy(count: int, policy: Policy, generator: torch.Generator) -> PolicyDraw:
    """Draw operations for each photo.

    Args:
        count: Number of photos.
        policy: trivial for TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158), one operation
            of any strength; rand for RandAugment (Cubuk and others 2019, arXiv:1909.13719), two
            operations of moderate strength.
        generator: Random number generator.
    """
    bounds = _BOUNDS[policy]
    numbers = torch.rand(count, bounds.num_operations, 3, generator=generator).tolist()
    maps, colours = torch.eye(3).repeat(count, 1, 1), list[list[ColourOperation]]()
    for row, drawn in enumerate(numbers):
        colours.append([])
        for choice, level, sign in drawn:
            name = _OPERATIONS[int(choice * len(_OPERATIONS))]
            strength = level if bounds.level is None else bounds.level
            signed = strength if sign < 0.5 else -strength
            colour = _colour(name, strength, signed, bounds)
            if colour:
                colours[row].append(colour)
            else:
                maps[row] @= _map(name, signed, bounds)
    return PolicyDraw(maps, colours)


def apply_colours(photos: Tensor, colours: Sequence[Sequence[ColourOperation]]) -> Tensor:
    """Return photos, uint8 (B, 3, R, R), after the colour operations of each."""
    changed = photos.clone(memory_format=torch.contiguous_format)
    for row, operations in enumerate(colours):
        for operation in operations:
            changed[row] = operation(changed[row])
    return changed


def _map(name: str, level: float, bounds: _Bounds) -> Tensor:
    """Return the map of a geometric operation; the identity for other names."""
    found = torch.eye(3)
    if name == "rotate":
        angle = math.radians(bounds.degrees * level)
        found[0, 0] = found[1, 1] = math.cos(angle)
        found[1, 0] = math.sin(angle)
        found[0, 1] = -found[1, 0]
    elif name in ("shear_x", "shear_y"):
        row = int(name == "shear_y")
        found[row, 1 - row] = bounds.shear * level
    elif name in ("translate_x", "translate_y"):
        # Coordinates from -1 to 1 have two units per side.
        found[int(name == "translate_y"), 2] = 2 * bounds.translate * level
    return found


def _colour(name: str, level: float, signed: float, bounds: _Bounds) -> ColourOperation | None:
    """Return a colour operation; None for other names."""
    factor = 1 + bounds.factor * signed
    threshold = round(255 * (1 - level))
    bits = 8 - round(bounds.bits * level)
    operations: dict[str, ColourOperation] = {
        "brightness": lambda photo: functional.adjust_brightness(photo, factor),
        "saturation": lambda photo: functional.adjust_saturation(photo, factor),
        "contrast": lambda photo: functional.adjust_contrast(photo, factor),
        "sharpness": lambda photo: functional.adjust_sharpness(photo, factor),
        "posterize": lambda photo: functional.posterize(photo, bits),
        "solarize": lambda photo: functional.solarize(photo, threshold),
        "autocontrast": functional.autocontrast,
        "equalize": functional.equalize,
    }
    return operations.get(name)
