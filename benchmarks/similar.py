"""Seconds and memory of an exact search among embeddings, and of comparing each with each.

    python benchmarks/similar.py [PHOTOS, 100,000 by default] [FEATURES, 1280 by default]

The embeddings are drawn by chance and written as `pets embed` writes them, one split at a time.
Memory is what the process has at most beyond what it had before.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pets_core.embeddings.file import (
    EmbeddingsInfo,
    SplitEmbeddings,
    open_embeddings,
    write_embeddings,
)
from pets_core.embeddings.search import find_close_pairs, nearest

ROWS = 5_000
MIN_SIMILARITY = 0.94


def draw(num_photos: int, num_features: int) -> Iterator[SplitEmbeddings]:
    """Embeddings without negative values, as pooled features are, a few thousand at a time."""
    for start in range(0, num_photos, ROWS):
        count = min(ROWS, num_photos - start)
        features = np.random.default_rng(start).exponential(size=(count, num_features))
        ids = [f"photo-{start + row}" for row in range(count)]
        yield SplitEmbeddings("train", ids, ["pug"] * count, features.astype(np.float32))


def write(url: str, num_photos: int, num_features: int) -> None:
    """Write the file; in a process of its own, whose memory does not count."""
    info = EmbeddingsInfo(
        model_url="m", model_sha256="0", backbone="b", image_size=224, num_features=num_features,
        dataset_url="d", dataset_name="d", dataset_fingerprint="f",
    )  # fmt: skip
    write_embeddings(url, info, draw(num_photos, num_features))


def peak_mib() -> float:
    """Most memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each search."""
    num_photos = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    num_features = int(sys.argv[2]) if len(sys.argv) > 2 else 1280
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/embeddings.parquet"
        writer = multiprocessing.Process(target=write, args=(url, num_photos, num_features))
        writer.start()
        writer.join()
        print(f"file       {Path(url).stat().st_size / 2**20:.0f} MiB")
        with open_embeddings(url) as file:
            tell("nearest", lambda: nearest(file, np.ones(num_features, np.float32), 5))
            tell("all pairs", lambda: deque(find_close_pairs(file, MIN_SIMILARITY), maxlen=0))


def tell(name: str, search: Callable[[], object]) -> None:
    """Run a search; print wall-clock and CPU seconds, and memory."""
    before, began, worked = peak_mib(), time.monotonic(), time.process_time()
    search()
    seconds, cpu = time.monotonic() - began, time.process_time() - worked
    print(f"{name:9}  {seconds:.1f} s ({cpu:.1f} s of CPU), {peak_mib() - before:.0f} MiB more")


if __name__ == "__main__":
    main()
