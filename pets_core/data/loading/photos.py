"""Stored photos as a map-style torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pets_core.data.dataset import read_photo_tables
from pets_core.data.ingest.images import decode
from pets_core.data.loading.decoded import TARGET_COLUMNS
from pets_core.records.base import Resize
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import target_spec

__all__ = ["PhotoDataset"]

_IMAGE = "image"


class PhotoDataset(Dataset[tuple[Tensor, Tensor]]):
    """Photos of a split, uint8 (3, size, size), with their targets.

    Args:
        manifest: Version of the data set.
        urls: Shards of the split.
        size: Side of the square photos, pixels.
        resize: How a photo becomes a square.
    """

    def __init__(
        self, manifest: DatasetManifest, urls: Sequence[str], size: int, resize: Resize
    ) -> None:
        self._size, self._resize = size, resize
        column = TARGET_COLUMNS[target_spec(manifest.targets).storage]
        table = read_photo_tables(urls, [_IMAGE, column])
        # In chunks, because a column of binary values may have 2 GiB at most.
        self._photos, self._targets = table[_IMAGE], table[column]

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = decode(self._photos[index]["bytes"].as_py(), self._size, self._resize)
        target: Any = self._targets[index].as_py()
        kind = torch.float32 if isinstance(target, list) else torch.int64
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), torch.tensor(
            target, dtype=kind
        )
