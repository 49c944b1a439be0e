"""Generate the built-in sample: drawn pets in the published form of the Oxford-IIIT Pet dataset.

It needs no download and uses the same ingest code as the real photos. Each photo has its own random
generator, seeded by (seed, class, number), so that archives are reproducible byte by byte.
"""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pets_core import storage
from pets_core.data.sources.sample.breeds import BREEDS, Breed, Colour
from pets_core.data.sources.sample.drawing import draw_animal, smooth_noise
from pets_core.data.sources.sample.shapes import to_colour

__all__ = ["BREEDS", "write_sample"]

_TRAINVAL_SHARE = 0.6
_SIDE_PX = (180, 261)
_JPEG_QUALITY = 85
_LIST_HEADER = (
    "#Image CLASS-ID SPECIES BREED ID",
    "#ID: 1:37 Class ids",
    "#SPECIES: 1:Cat 2:Dog",
    "#BREED ID: 1-25:Cat 1:12:Dog",
)
# The first three are greens.
_SCENE_COLOURS: tuple[Colour, ...] = (
    (96, 138, 72), (132, 164, 92), (70, 104, 60), (150, 190, 222), (206, 220, 230),
    (186, 150, 112), (128, 92, 64), (222, 208, 186), (176, 70, 66), (72, 92, 142),
    (120, 120, 124), (60, 58, 62), (214, 184, 110), (150, 112, 150), (236, 232, 224),
)  # fmt: skip


def write_sample(folder: Path, *, photos_per_breed: int = 40, seed: int = 0) -> None:
    """Write images.tar.gz and annotations.tar.gz in the published form.

    The images archive contains ``images/<breed>_<n>.jpg``. The annotations archive contains
    ``list.txt``, ``trainval.txt`` (60% of each breed) and ``test.txt`` (40%), with rows
    ``name class_id species breed_id``, and ``xmls/<breed>_<n>.xml`` with the head boxes (unlike the
    published ones also of the test photos). Equal arguments produce equal bytes. Files are written
    atomically, annotations.tar.gz last.

    Args:
        folder: Output folder in the cache; created if missing.
        photos_per_breed: Photos of each of the 37 breeds, at least 4 (`SourceConfig` checks it).
        seed: Seed of the photos and the split, at least 0.

    Raises:
        PetsError: The disk is full or read-only.
    """
    numbers = range(1, photos_per_breed + 1)
    boxes: dict[str, tuple[int, ...]] = {}
    _write_archive(
        folder / "images.tar.gz",
        (
            (f"images/{breed.name}_{n}.jpg", _draw_photo(breed, n, seed, boxes))
            for breed in BREEDS
            for n in numbers
        ),
    )
    annotations = [*_annotations(photos_per_breed, seed), *_boxes(boxes)]
    _write_archive(folder / "annotations.tar.gz", annotations)


def _write_archive(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar.gz atomically. Its bytes depend on the members only."""
    with (
        storage.writing(str(path), "cache_dir") as file,
        # The gzip header would store a file name and time.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members:
            # A new TarInfo has no owner, mode 0644 and time 0.
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _annotations(photos_per_breed: int, seed: int) -> list[tuple[str, bytes]]:
    """Return the three published lists, sorted by class, then by number."""
    trainval: list[str] = []
    test: list[str] = []
    listed: list[str] = []
    num_trainval = round(photos_per_breed * _TRAINVAL_SHARE)
    for breed in BREEDS:
        # Photo numbers start at 1: 0 seeds the split.
        order = _generator(seed, breed, 0).permutation(photos_per_breed) + 1
        chosen = set(order[:num_trainval].tolist())
        for n in range(1, photos_per_breed + 1):
            row = f"{breed.name}_{n} {breed.class_id} {breed.species} {breed.breed_id}"
            listed.append(row)
            (trainval if n in chosen else test).append(row)
    files = {"list": [*_LIST_HEADER, *listed], "trainval": trainval, "test": test}
    return [
        (f"annotations/{name}.txt", ("\n".join(rows) + "\n").encode())
        for name, rows in files.items()
    ]


def _generator(seed: int, breed: Breed, n: int) -> np.random.Generator:
    return np.random.default_rng([seed, breed.class_id, n])


def _boxes(boxes: dict[str, tuple[int, ...]]) -> Iterable[tuple[str, bytes]]:
    """Yield a minimal Pascal VOC file with the head box of each photo."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    for name, box in boxes.items():
        corners = "".join(f"<{s}>{value}</{s}>" for s, value in zip(sides, box, strict=True))
        text = f"<annotation><object><bndbox>{corners}</bndbox></object></annotation>\n"
        yield f"annotations/xmls/{name}.xml", text.encode()


def _draw_photo(breed: Breed, n: int, seed: int, boxes: dict[str, tuple[int, ...]]) -> bytes:
    """Draw one photo, add its head box to ``boxes``, and return it as JPEG."""
    rng = _generator(seed, breed, n)
    width, height = (int(side) for side in rng.integers(*_SIDE_PX, size=2))
    # The background is out of focus: drawing it at half the size is four times as fast.
    scene = _scene(rng, width // 2, height // 2)
    photo = scene.resize((width, height), Image.Resampling.BILINEAR)
    boxes[f"{breed.name}_{n}"] = draw_animal(breed, rng, photo)
    if rng.random() < 0.25:
        _occlude(rng, photo)
    buffer = io.BytesIO()
    _expose(rng, photo).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw an out-of-focus background: two planes, texture and simple objects."""
    far, near, *things = (
        np.array(_SCENE_COLOURS[i]) * rng.uniform(0.75, 1.15)
        for i in rng.choice(len(_SCENE_COLOURS), size=7)
    )
    horizon = rng.uniform(0.3, 0.9) * height + rng.uniform(-0.2, 0.2) * np.arange(width)
    rows = np.arange(height)[:, None]
    ground = np.clip((rows - horizon) / rng.uniform(1, 12) + 0.5, 0, 1)[..., None]
    image = far * (1 - ground) + near * ground
    kind = rng.integers(4)
    columns = np.arange(width)[None, :]
    period = rng.uniform(5, 22)
    slant = rng.uniform(-1, 1)
    wave = np.sin((columns + slant * rows) * (2 * np.pi / period))
    if kind == 1:
        image += 14 * np.sign(wave)[..., None]
    elif kind == 2:
        image += 16 * np.sign(wave * np.sin((rows - slant * columns) * 6.3 / period))[..., None]
    cells, depth = int(rng.integers(3, 30)), rng.uniform(4, 22)
    image += smooth_noise(rng, width, height, cells, depth)[..., None]
    scene = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for colour in things[: rng.integers(6)]:
        x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height
        size = rng.uniform(0.05, 0.35) * width
        box = (x - size, y - size * rng.uniform(0.4, 1.5), x + size, y + size)
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=to_colour(colour))
    return scene.filter(ImageFilter.BoxBlur(float(rng.uniform(0.2, 2.0))))


def _occlude(rng: np.random.Generator, photo: Image.Image) -> None:
    """Draw an occlusion in the foreground: the edge of a blanket, or blades of grass."""
    width, height = photo.size
    pen = ImageDraw.Draw(photo)
    if rng.random() < 0.5:
        colour = np.array(_SCENE_COLOURS[rng.integers(len(_SCENE_COLOURS))])
        top = height * rng.uniform(0.68, 0.85, size=2)
        pen.polygon([(0, top[0]), (width, top[1]), (width, height), (0, height)], to_colour(colour))
        return
    for x in rng.uniform(0, width, size=14):
        tip = (x + rng.uniform(-20, 20), height * rng.uniform(0.5, 0.9))
        blade = to_colour(np.array(_SCENE_COLOURS[rng.integers(3)]) * rng.uniform(0.7, 1.0))
        pen.polygon([(x - 3, height), tip, (x + 3, height)], blade)


def _expose(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """Simulate a camera: white balance, exposure, side light, grain and blur."""
    width, height = photo.size
    pixels = np.array(photo, dtype=np.float32)
    cast = rng.normal(1.0, 0.05, size=3) * rng.uniform(0.6, 1.2)
    left, right = rng.normal(1.0, 0.14, size=2).tolist()
    lit = np.linspace(left, right, width)[None, :, None]
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 8)
    pixels *= (cast * lit).astype(np.float32)
    pixels += grain
    exposed = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    if rng.random() < 0.25:
        exposed = exposed.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 1.2))))
    return exposed
