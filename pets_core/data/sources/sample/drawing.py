"""Draw the animals of the built-in sample."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pets_core.data.sources.sample.breeds import Breed, Colour, Marking
from pets_core.data.sources.sample.shapes import Layer, Points, mix, oval, shaggy, to_colour

__all__ = ["draw_animal", "smooth_noise"]


_INK = (30, 24, 24)
_WHITE = (240, 236, 228)
_PINK = (222, 150, 146)
# Probability that an animal lacks a marking of its breed.
_MISSING_MARKING = 0.14


def smooth_noise(
    rng: np.random.Generator, width: int, height: int, cells: int, amount: float
) -> NDArray[np.float32]:
    """Return smooth noise ``[height, width]`` of standard deviation ``amount``.

    Interpolates ``cells`` x ``cells`` random values.
    """
    grains = rng.standard_normal((cells, cells), dtype=np.float32) * amount
    smooth = Image.fromarray(grains).resize((width, height), Image.Resampling.BICUBIC)
    noise: NDArray[np.float32] = np.asarray(smooth)
    return noise


def draw_animal(
    breed: Breed, rng: np.random.Generator, photo: Image.Image
) -> tuple[int, int, int, int]:
    """Draw one animal of the breed onto the photo, in a random pose and coat.

    Returns:
        Bounding box of the skull, clipped to the photo: xmin, ymin, xmax, ymax in pixels.
    """
    animal = _Animal(_individual(breed, rng), rng, photo.size)
    animal.draw_body(photo)
    animal.draw_head(photo)
    if breed.ears in ("floppy", "button", "rose"):
        animal.draw_hanging_ears(photo)
    animal.draw_face(photo)
    return animal.head_box()


def _individual(breed: Breed, rng: np.random.Generator) -> Breed:
    """Return a random variation of the breed with one coat."""
    main, second = breed.coats[rng.integers(len(breed.coats))]
    tint = rng.normal(1.0, 0.03, size=3) * rng.normal(1.0, 0.12)
    return replace(
        breed,
        markings=frozenset(
            marking for marking in sorted(breed.markings) if rng.random() > _MISSING_MARKING
        ),
        coats=((to_colour(np.array(main) * tint), to_colour(np.array(second) * tint)),),
        ear_size=breed.ear_size * rng.normal(1.0, 0.13),
        muzzle=max(0.0, breed.muzzle + rng.normal(0.0, 0.09)),
        width=breed.width * rng.normal(1.0, 0.065),
        body=breed.body * rng.normal(1.0, 0.08),
    )


class _Animal:
    """One animal in its pose. Shapes are in head units: x right, y down, chin at y = 1."""

    def __init__(self, breed: Breed, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self._breed, self._rng, self._size = breed, rng, size
        self._main, self._second = breed.coats[0]
        self._scale = min(size) * rng.uniform(0.13, 0.28)
        angle = rng.normal(0.0, 0.17)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn[:, 0] *= rng.choice([-1.0, 1.0])
        middle = np.array([rng.normal(0.5, 0.07), rng.normal(0.4, 0.05)]) * size
        self._transform = np.column_stack([turn * self._scale, middle])
        self._yaw, self._pitch = rng.uniform(-0.55, 0.55), rng.uniform(-0.12, 0.12)
        self._streaks = self._fur_streaks()
        # Pixel coordinates in head units. A rotation matrix is inverted by its transpose.
        columns = (np.arange(size[0], dtype=np.float32) - middle[0]) / self._scale
        rows = (np.arange(size[1], dtype=np.float32)[:, None] - middle[1]) / self._scale
        self._x = (columns * turn[0, 0] + rows * turn[1, 0]).astype(np.float32)
        self._y = (columns * turn[0, 1] + rows * turn[1, 1]).astype(np.float32)

    def _fur_streaks(self) -> NDArray[np.float32]:
        width, height = self._size
        long = 3 + int(6 * self._breed.fur)
        grains = self._rng.standard_normal((height // long, width // 2), dtype=np.float32)
        streaks = Image.fromarray(grains).resize(self._size, Image.Resampling.BILINEAR)
        fur: NDArray[np.float32] = np.asarray(streaks) * np.float32(0.03 + 0.07 * self._breed.fur)
        fur += 1
        return fur

    def _turned(self, points: Points, depth: float) -> Points:
        """Shift points ``depth`` in front of the head according to yaw and pitch."""
        turned: Points = points + np.array([self._yaw * depth, self._pitch * depth])
        return turned

    def _has(self, *markings: Marking) -> bool:
        return any(marking in self._breed.markings for marking in markings)

    def draw_body(self, photo: Image.Image) -> None:
        """Draw chest, legs and ruff, sitting or lying."""
        breed, rng = self._breed, self._rng
        colour = self._second if self._has("saddle") else self._main
        layer = Layer(self._size, self._transform, colour)
        hair = 0.03 + 0.3 * breed.fur
        lying = rng.random() < 0.3
        if lying:
            layer.cut(shaggy(oval(1.5, 1.9, 2.0, 0.95 * breed.body), rng, hair))
            layer.cut(shaggy(oval(0, 1.6, 0.9 * breed.body, 1.0), rng, hair))
        else:
            layer.cut(shaggy(oval(0, 2.7, breed.body, 2.0), rng, hair))
            layer.cut(oval(0, 1.1, 0.75 * breed.width, 0.8))
        self._draw_body_markings(layer)
        legs = self._second if self._has("points", "tan_points") else colour
        for side in (-1, 1):
            foot, length = (2.5, 0.35) if lying else (4.3, 1.3)
            limb = oval(side * 0.46 * breed.body, foot - length, 0.26, length)
            edge = oval(side * 0.46 * breed.body, foot - length, 0.31, length + 0.06)
            layer.colour(edge, mix(legs, _INK, 0.35))
            layer.cut(limb, legs)
            layer.cut(oval(side * 0.5 * breed.body, foot, 0.36, 0.22), mix(legs, _WHITE, 0.2))
        if self._has("ruff"):
            ruff = mix(self._main, _WHITE, 0.14)
            layer.cut(shaggy(oval(0, 0.75, 1.25 * breed.width, 1.05), rng, hair), ruff)
        layer.colour(oval(0, 0.95, 0.85 * breed.width, 0.36), mix(self._main, _INK, 0.4))
        x, y = self._x, self._y
        shade = np.clip(1.05 - 0.07 * y - 0.08 * x * x, 0.62, 1.05)
        layer.onto(photo, self._streaks * shade, 0.03 * self._scale)

    def _draw_body_markings(self, layer: Layer) -> None:
        rng, wide = self._rng, self._breed.body
        if self._has("tan_points"):
            layer.colour(oval(0, 1.7, 0.45 * wide, 0.45), self._second)
        if self._has("eye_patches"):
            patch = oval(rng.uniform(-1, 1) * wide, rng.uniform(2, 3), 0.6, 0.8)
            layer.colour(shaggy(patch, rng, 0.2), self._second)
        if self._has("tabby") and not self._has("spots"):
            for y in np.arange(1.4, 4.2, 0.36):
                for side in (-1, 1):
                    tilt = side * -0.35 + rng.normal(0, 0.1)
                    layer.colour(oval(side * 0.75 * wide, y, 0.55, 0.08, tilt), self._second)
        if self._has("spots"):
            self._draw_dots(layer, 55, (-2.0, 1.3), (3.4, 4.4), (0.07, 0.15))
        if self._has("brindle"):
            self._draw_stripes(layer, 30, (-1.6, 1.2), (1.6, 4.2))
        if self._has("bib"):
            bib = oval(rng.normal(0, 0.1), 1.9, 0.45 * wide, rng.uniform(0.5, 1.1))
            layer.colour(shaggy(bib, rng, 0.2), _WHITE)
        if self._has("ticked"):
            self._draw_dots(layer, 150, (-1.8, 1.2), (3.0, 4.2), (0.02, 0.06))

    def _draw_dots(
        self,
        layer: Layer,
        count: int,
        low: tuple[float, float],
        high: tuple[float, float],
        radius: tuple[float, float],
    ) -> None:
        middles = self._rng.uniform(low, high, size=(count, 2))
        sizes = self._rng.uniform(*radius, size=(count, 2))
        for (x, y), (rx, ry) in zip(middles.tolist(), sizes.tolist(), strict=True):
            layer.colour(oval(x, y, rx, ry, sides=9), self._second)

    def _draw_stripes(
        self, layer: Layer, count: int, low: tuple[float, float], high: tuple[float, float]
    ) -> None:
        for x, y in self._rng.uniform(low, high, size=(count, 2)).tolist():
            layer.colour(oval(x, y, 0.28, 0.04, self._rng.normal(0.3, 0.3), 10), self._second)

    def head_box(self) -> tuple[int, int, int, int]:
        """Return the bounding box of the skull without ears and hair, clipped to the photo."""
        skull = oval(0, 0, self._breed.width, 1) @ self._transform[:, :2].T + self._transform[:, 2]
        (left, top), (right, bottom) = skull.min(0), skull.max(0)
        width, height = self._size
        return (
            max(0, round(left)), max(0, round(top)),
            min(width, round(right)), min(height, round(bottom)),
        )  # fmt: skip

    def draw_head(self, photo: Image.Image) -> None:
        """Draw upright ears, skull, markings and muzzle."""
        breed, rng = self._breed, self._rng
        layer = Layer(self._size, self._transform, self._main)
        if breed.ears in ("pointed", "bat"):
            self._draw_upright_ears(layer)
        skull = oval(0, 0, breed.width, 1.0)
        skull[:, 0] *= 1 - breed.jaw * np.clip(skull[:, 1], 0, 1)
        layer.cut(shaggy(skull, rng, 0.02 + 0.28 * breed.fur), self._main)
        self._draw_head_markings(layer)
        self._draw_muzzle(layer)
        x, y = self._x, self._y
        shade = np.clip(1.1 - 0.2 * (x * x + y * y), 0.72, 1.1)
        layer.onto(photo, self._streaks * shade, 0.025 * self._scale)

    def _ear_colour(self) -> Colour:
        if self._has("points", "mask", "eye_patches"):
            return self._second
        return mix(self._main, _INK, 0.12)

    def _draw_upright_ears(self, layer: Layer) -> None:
        breed, colour = self._breed, self._ear_colour()
        inner = mix(_PINK, self._main, 0.45)
        wide, out = breed.width, 0.42 if breed.ears == "bat" else 0.0
        for side in (-1, 1):
            long = breed.ear_size * self._rng.normal(1.0, 0.05)
            tip = (wide * (0.72 + out) + 0.1 * long, -0.72 - long * (1 - 0.4 * out))
            ear = np.array([(0.2 * wide, -0.72), tip, (0.98 * wide, -0.2 + 0.2 * out)])
            hollow = ear.mean(axis=0) + (ear - ear.mean(axis=0)) * 0.62
            mirror = np.array([side, 1.0])
            layer.cut(shaggy(ear * mirror, self._rng, 0.12 * breed.fur), colour)
            layer.colour(hollow * mirror, inner)

    def _draw_head_markings(self, layer: Layer) -> None:
        rng, wide = self._rng, self._breed.width
        if self._has("points", "mask"):
            share, low = (0.16, 0.2) if self._has("points") else (0.1, 0.45)
            for step in range(1, 6):
                patch = oval(0, low, wide * (0.92 - 0.11 * step), 0.86 - 0.11 * step)
                colour = mix(self._main, self._second, share * step)
                layer.colour(self._turned(patch, 0.35), colour)
        if self._has("eye_patches"):
            for side in (-1, 1):
                if rng.random() < 0.75:
                    patch = oval(side * 0.62 * wide, -0.2, 0.4 * wide, 0.55, side * 0.3)
                    layer.colour(shaggy(patch, rng, 0.1), self._second)
        if self._has("tabby"):
            for x in (-0.36, -0.13, 0.13, 0.36):
                layer.colour(oval(x, -0.62, 0.05, 0.27, -0.5 * x), self._second)
            for side in (-1, 1):
                for y in (0.08, 0.34):
                    layer.colour(oval(side * 0.78 * wide, y, 0.26, 0.05, -side), self._second)
        if self._has("spots"):
            self._draw_dots(layer, 9, (-0.5, -0.9), (0.5, -0.5), (0.04, 0.07))
        if self._has("brindle"):
            self._draw_stripes(layer, 14, (-wide, -0.9), (wide, 0.4))
        if self._has("ticked"):
            self._draw_dots(layer, 60, (-1.0, -1.0), (1.0, 0.9), (0.015, 0.045))
        if self._has("tan_points"):
            for side in (-1, 1):
                layer.colour(self._turned(oval(side * 0.3, -0.42, 0.1, 0.07), 0.35), self._second)
                layer.colour(oval(side * 0.62 * wide, 0.42, 0.28, 0.3), self._second)
        if self._has("blaze"):
            blaze = oval(0, -0.35, rng.uniform(0.08, 0.2), 0.75)
            layer.colour(self._turned(blaze, 0.35), _WHITE)
        if self._has("wrinkles"):
            for y, rx in ((-0.72, 0.3), (-0.56, 0.42), (-0.4, 0.2)):
                line = self._turned(oval(0, y, rx * wide, 0.03), 0.3)
                layer.colour(line, mix(self._main, _INK, 0.3))

    def _muzzle_colour(self) -> Colour:
        if self._has("points", "mask", "tan_points") and not self._has("blaze"):
            return self._second
        if self._has("mask"):
            return mix(self._second, _WHITE, 0.45)
        return mix(self._main, _WHITE, 0.85 if self._has("blaze") else 0.15)

    def _draw_muzzle(self, layer: Layer) -> None:
        breed, colour = self._breed, self._muzzle_colour()
        if breed.is_cat:
            for side in (-1, 1):
                pad = oval(side * 0.17, 0.5, 0.24, 0.18)
                layer.colour(self._turned(pad, 0.4), colour)
            layer.colour(self._turned(oval(0, 0.7, 0.2, 0.14), 0.4), colour)
            return
        depth = 0.35 + 0.6 * breed.muzzle
        long = 0.32 + 0.16 * breed.muzzle
        snout = oval(0, 0.45 + 0.2 * breed.muzzle, 0.56 * (0.5 + 0.45 * breed.width), long)
        snout = self._turned(snout, depth)
        layer.cut(snout + np.array([0.0, 0.05]), mix(colour, _INK, 0.25))
        if self._has("beard"):
            snout = shaggy(snout * np.array([1.12, 1.0]) + np.array([0, 0.1]), self._rng, 0.3)
            for side in (-1, 1):
                brow = shaggy(oval(side * 0.36, -0.34, 0.22, 0.08), self._rng, 0.2)
                layer.colour(self._turned(brow, 0.4), mix(self._main, _WHITE, 0.25))
        layer.cut(snout, colour)

    def draw_hanging_ears(self, photo: Image.Image) -> None:
        """Draw floppy, button or rose ears over the head."""
        breed, rng, colour = self._breed, self._rng, self._ear_colour()
        layer = Layer(self._size, self._transform, colour)
        wide, long = breed.width, breed.ear_size
        for side in (-1, 1):
            if breed.ears == "floppy":
                x = 0.98 * wide + rng.normal(0, 0.04)
                ear = oval(x, -0.55 + 0.55 * long, 0.3, 0.6 * long, rng.normal(-0.12, 0.06))
            elif breed.ears == "button":
                ear = np.array([(0.42, -0.92), (1.0, -0.8), (1.08, -0.5), (0.86, -0.8 + long)])
                ear[:, 0] *= wide
            else:
                ear = np.array([(0.5, -0.84), (0.9, -1.0), (1.15 + 0.2 * long, -0.6), (0.95, -0.3)])
                ear[:, 0] *= wide
            layer.cut(shaggy(ear * np.array([side, 1.0]), rng, 0.02 + 0.3 * breed.fur))
        shade = np.clip(0.98 - 0.12 * self._y, 0.7, 1.1)
        layer.onto(photo, self._streaks * shade, 0)

    def draw_face(self, photo: Image.Image) -> None:
        """Draw eyes, nose and mouth."""
        layer = Layer(self._size, self._transform, _INK)
        closed = self._rng.random() < 0.06
        for side in (-1, 1):
            self._draw_eye(layer, side, closed)
        if self._breed.is_cat:
            pale = min(self._main) > 140 and not self._has("points")
            nose = np.array([(-0.12, 0.28), (0.12, 0.28), (0.0, 0.42)])
            layer.cut(self._turned(nose, 0.45), _PINK if pale else mix(self._second, _INK, 0.5))
            self._draw_mouth(layer, 0.42, 0.45)
        else:
            low, depth = 0.3 + 0.12 * self._breed.muzzle, 0.4 + 0.75 * self._breed.muzzle
            layer.cut(self._turned(oval(0, low, 0.19, 0.13), depth), _INK)
            layer.colour(self._turned(oval(-0.04, low - 0.05, 0.06, 0.03), depth), (96, 90, 92))
            self._draw_mouth(layer, low + 0.12, depth)
        layer.onto(photo, None, 0.4)

    def _draw_eye(self, layer: Layer, side: int, closed: bool) -> None:
        breed = self._breed
        x, y = side * 0.43 * breed.width, -0.1
        if closed:
            layer.cut(self._turned(oval(x, y, 0.18, 0.03, side * 0.2), 0.35), _INK)
            return
        if breed.is_cat:
            shapes = ((0.23, 0.19, _INK), (0.2, 0.16, breed.eye), (0.07, 0.14, _INK))
        else:
            big = 1.3 - 0.45 * breed.muzzle
            shapes = ((0.15 * big, 0.14 * big, _INK), (0.12 * big, 0.12 * big, breed.eye),
                      (0.075 * big, 0.075 * big, _INK))  # fmt: skip
        for rx, ry, colour in shapes:
            tilt = side * -0.25 if breed.is_cat and rx > ry else 0.0
            layer.cut(self._turned(oval(x, y, rx, ry, tilt), 0.35), colour)
        layer.colour(self._turned(oval(x - 0.05, y - 0.06, 0.04, 0.04), 0.35), _WHITE)

    def _draw_mouth(self, layer: Layer, top: float, depth: float) -> None:
        layer.cut(self._turned(oval(0, top + 0.06, 0.018, 0.08), depth), _INK)
        if not self._breed.is_cat and self._rng.random() < 0.3:
            layer.cut(self._turned(oval(0, top + 0.3, 0.14, 0.2), depth), (206, 104, 116))
        for side in (-1, 1):
            layer.cut(self._turned(oval(side * 0.1, top + 0.13, 0.12, 0.022), depth), _INK)
