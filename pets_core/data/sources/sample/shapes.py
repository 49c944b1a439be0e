"""Outlines, colours and layers to draw the animals of the sample."""

import math
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pets_core.data.sources.sample.breeds import Colour

__all__ = ["Layer", "Points", "mix", "oval", "shaggy", "to_colour"]

Points: TypeAlias = NDArray[np.float64]


def to_colour(values: NDArray[np.float64]) -> Colour:
    """Return the nearest 8-bit colour to three values."""
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return the mixture of two colours with a fraction ``share`` of ``other``."""
    return to_colour(np.array(one) * (1 - share) + np.array(other) * share)


@cache
def _circle(sides: int) -> Points:
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def oval(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, sides: int = 30) -> Points:
    """Return the outline of an ellipse ``[sides, 2]``; the tilt is in radians."""
    cos, sin = math.cos(tilt), math.sin(tilt)
    axes = np.array([[rx * cos, rx * sin], [-ry * sin, ry * cos]])
    outline: Points = _circle(sides) @ axes + (x, y)
    return outline


def shaggy(points: Points, rng: np.random.Generator, length: float) -> Points:
    """Add hair of ``length`` to a closed outline, pointing away from its centre."""
    dense = np.concatenate([points, (points + np.roll(points, -1, axis=0)) / 2], axis=1)
    dense = dense.reshape(-1, 2)
    away = dense - dense.mean(axis=0)
    away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-9
    hair = length * rng.uniform(0.2, 1.0, size=(len(dense), 1))
    hair[::2] *= 0.15
    return np.asarray(dense + away * hair)


class Layer:
    """Paint layer with a mask that clips paint, such as fur, at the edge of the shapes."""

    def __init__(
        self, size: tuple[int, int], transform: NDArray[np.float64], colour: Colour
    ) -> None:
        self._transform = transform
        self._paint = Image.new("RGB", size, colour)
        # Double size: reducing the mask smooths its edges.
        self._mask = Image.new("L", (size[0] * 2, size[1] * 2))
        self._painter = ImageDraw.Draw(self._paint)
        self._cutter = ImageDraw.Draw(self._mask)

    def colour(self, points: Points, colour: Colour) -> None:
        """Paint a shape given in head units."""
        self._painter.polygon(self._pixels(points, 1), colour)

    def cut(self, points: Points, colour: Colour | None = None) -> None:
        """Add a shape to the mask, and paint it if a colour is given."""
        self._cutter.polygon(self._pixels(points, 2), 255)
        if colour is not None:
            self.colour(points, colour)

    def onto(self, photo: Image.Image, fur: NDArray[np.float32] | None, soft: float) -> None:
        """Composite the layer onto the photo.

        Args:
            photo: Changed in place.
            fur: Texture that multiplies the paint; None: none.
            soft: Blur radius of the paint, pixels.
        """
        mask = self._mask.reduce(2)
        box = mask.getbbox()
        if box is None:
            return
        left, top, right, bottom = box
        paint = self._paint.crop(box)
        if soft:
            paint = paint.filter(ImageFilter.BoxBlur(soft))
        if fur is not None:
            lit = np.array(paint, dtype=np.float32)
            lit *= fur[top:bottom, left:right, None]
            paint = Image.fromarray(np.clip(lit, 0, 255, out=lit).astype(np.uint8))
        photo.paste(paint, box, mask.crop(box))

    def _pixels(self, points: Points, scale: int) -> list[tuple[float, float]]:
        placed = (points @ self._transform[:, :2].T + self._transform[:, 2]) * scale
        return [(x, y) for x, y in placed.tolist()]
