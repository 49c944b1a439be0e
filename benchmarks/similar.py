"""Seconds and memory of an exact search among embeddings, and of comparing each with each.

    python benchmarks/similar.py [PHOTOS, 100,000 by default] [FEATURES, 1280 by default]

The embeddings are drawn by chance and written as `pets embed` writes them, one split at a time.
Memory is what the process has at most beyond what it had before.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pets_core.embeddings.file import (
    EmbeddingsInfo,
    SplitEmbeddings,
    open_embeddings,
    write_embeddings,
)
from pets_core.embeddings.search import close_pairs, nearest

ROWS = 5_000
MIN_SIMILARITY = 0.94


def draw(num_photos: int, num_features: int) -> Iterator[SplitEmbeddings]:
    """Embeddings without negative values, as pooled features are, a few thousand at a time."""
    for start in range(0, num_photos, ROWS):
        count = min(ROWS, num_photos - start)
        features = np.random.default_rng(start).exponential(size=(count, num_features))
        ids = [f"photo-{start + row}" for row in range(count)]
        yield SplitEmbeddings("train", ids, ["pug"] * count, features.astype(np.float32))


def peak_mib() -> float:
    """Most memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each search."""
    num_photos, num_features = (
        int(sys.argv[n]) if len(sys.argv) > n else default
        for n, default in ((1, 100_000), (2, 1280))
    )
    info = EmbeddingsInfo(
        model_url="m", model_sha256="0", backbone="b", image_size=224, num_features=num_features,
        dataset_url="d", dataset_name="d", dataset_fingerprint="f",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/embeddings.parquet"
        write_embeddings(url, info, draw(num_photos, num_features))
        print(f"file        {Path(url).stat().st_size / 2**20:.0f} MiB")
        before, began = peak_mib(), time.monotonic()
        with open_embeddings(url) as file:
            nearest(file, file[0][0], 5)
            print(
                f"nearest     {time.monotonic() - began:.1f} s, {peak_mib() - before:.0f} MiB more"
            )
            began = time.monotonic()
            for _ in close_pairs(file, MIN_SIMILARITY):
                pass
            print(
                f"all pairs   {time.monotonic() - began:.0f} s, {peak_mib() - before:.0f} MiB more"
            )


if __name__ == "__main__":
    main()
