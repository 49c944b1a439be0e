"""Draw docs/augmentation.jpg: augmented photos of the built-in sample.

    python benchmarks/augmentation.py [OUT.jpg]

Each row is one photo: as stored, cropped as for validation, then augmented six times with the
defaults. The last two rows show random resized crops with erasing, and CutMix.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pets_core.config.train import TransformConfig
from pets_core.data.ingest.images import decode
from pets_core.data.loading.mixing import mix
from pets_core.data.loading.transforms import Augment, CenterCrop
from pets_core.data.sources.sample.sample import write_sample

SIZE, RESIZED, VIEWS, GAP = 112, 128, 6, 4
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def main() -> None:
    """Generate the sample and draw the grid."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/augmentation.jpg")
    with tempfile.TemporaryDirectory() as name:
        write_sample(Path(name) / "sample", photos_per_breed=4)
        photos = _decode_photos(Path(name) / "sample")
    rows = [_row(photo, TransformConfig(), seed) for seed, photo in enumerate(photos[:4])]
    crops = TransformConfig(min_crop_area=0.35, erase_probability=0.5)
    rows.append(_row(photos[4], crops, 4))
    rows.append(_mixed_row(photos))
    height = len(rows) * (SIZE + GAP) + GAP
    sheet = np.full((height, (VIEWS + 2) * (SIZE + GAP) + GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            top, left = GAP + y * (SIZE + GAP), GAP + x * (SIZE + GAP)
            sheet[top : top + SIZE, left : left + SIZE] = tile
    Image.fromarray(sheet).save(out, quality=85)


def _decode_photos(folder: Path) -> list[np.ndarray]:
    import io
    import tarfile

    with tarfile.open(folder / "images.tar.gz") as tar:
        members = [member for member in tar if member.isfile()]
        chosen = members[:: len(members) // 8]
        return [
            decode(io.BytesIO(tar.extractfile(m).read()).getvalue(), RESIZED)  # type: ignore[union-attr]
            for m in chosen[:8]
        ]


def _row(photo: np.ndarray, config: TransformConfig, seed: int) -> list[np.ndarray]:
    batch = torch.from_numpy(np.stack([photo] * VIEWS))
    views = Augment(SIZE, MEAN, STD, config)(
        batch, seed=seed, rows=slice(0, VIEWS), global_size=VIEWS
    )
    return [*_plain(photo), *_pixels(views)]


def _mixed_row(photos: list[np.ndarray]) -> list[np.ndarray]:
    batch = torch.from_numpy(np.stack(photos[:VIEWS]))
    inputs = Augment(SIZE, MEAN, STD, TransformConfig())(
        batch, seed=9, rows=slice(0, VIEWS), global_size=VIEWS
    )
    blended, _ = mix(inputs, torch.arange(VIEWS), VIEWS, TransformConfig(cutmix_alpha=1.0), seed=11)
    return [*_plain(photos[0]), *_pixels(blended)]


def _plain(photo: np.ndarray) -> list[np.ndarray]:
    stored = np.asarray(Image.fromarray(photo).resize((SIZE, SIZE)))
    return [stored, *_pixels(CenterCrop(SIZE, MEAN, STD)(torch.tensor(photo[None])))]


def _pixels(inputs: torch.Tensor) -> list[np.ndarray]:
    values = inputs.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return list((values * 255).round().clamp(0, 255).to(torch.uint8).numpy())


if __name__ == "__main__":
    main()
