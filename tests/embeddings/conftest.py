"""Embeddings files with given features."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from pets_core.embeddings.file import EmbeddingsInfo, SplitEmbeddings, write_embeddings


@pytest.fixture
def write_some(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes splits, classes and features by photo id to a file."""

    def write(photos: Mapping[str, tuple[str, str, Sequence[float]]], **fields: object) -> str:
        features = np.array([values for _, _, values in photos.values()], np.float32)
        info = {
            "model_url": str(tmp_path / "model"), "model_sha256": "0", "backbone": "b",
            "image_size": 64, "num_features": features.shape[1], "dataset_url": str(tmp_path),
            "dataset_name": "d", "dataset_fingerprint": "f",
        }  # fmt: skip
        splits, start = [], 0
        for split, own in groupby(photos.items(), key=lambda item: item[1][0]):
            ids, rows = zip(*own, strict=True)
            names = [name for _, name, _ in rows]
            splits.append(SplitEmbeddings(split, ids, names, features[start : start + len(ids)]))
            start += len(ids)
        url = str(tmp_path / "embeddings.parquet")
        write_embeddings(url, EmbeddingsInfo(**info | fields), splits)
        return url

    return write
