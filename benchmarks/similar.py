"""Seconds and memory of an exact nearest-neighbour search, and of comparing all pairs.

    python benchmarks/similar.py [PHOTOS, 100,000 by default] [FEATURES, 1280 by default]

The embeddings are random and written as by `pets embed`, one split at a time. Memory is the
increase of the peak memory of the process.
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


def generate(num_photos: int, num_features: int) -> Iterator[SplitEmbeddings]:
    """Yield random embeddings in blocks of rows; not negative, like pooled features."""
    for start in range(0, num_photos, ROWS):
        count = min(ROWS, num_photos - start)
        features = np.random.default_rng(start).exponential(size=(count, num_features))
        ids = [f"photo-{start + row}" for row in range(count)]
        yield SplitEmbeddings("train", ids, ["pug"] * count, features.astype(np.float32))


def write(url: str, num_photos: int, num_features: int) -> None:
    """Write the file; run in a separate process, whose memory is not measured."""
    info = EmbeddingsInfo(
        model_url="m", model_sha256="0", backbone="b", image_size=224, num_features=num_features,
        dataset_url="d", dataset_name="d", dataset_fingerprint="f",
    )  # fmt: skip
    write_embeddings(url, info, generate(num_photos, num_features))


def peak_mib() -> float:
    """Return the peak memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print one line for each search."""
    num_photos = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    num_features = int(sys.argv[2]) if len(sys.argv) > 2 else 1280
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/embeddings.parquet"
        writer = multiprocessing.Process(target=write, args=(url, num_photos, num_features))
        writer.start()
        writer.join()
        print(f"file       {Path(url).stat().st_size / 2**20:.0f} MiB")
        with open_embeddings(url) as file:
            measure("nearest", lambda: nearest(file, np.ones(num_features, np.float32), 5))
            measure("all pairs", lambda: deque(find_close_pairs(file, MIN_SIMILARITY), maxlen=0))


def measure(name: str, search: Callable[[], object]) -> None:
    """Run a search and print its wall-clock seconds, CPU seconds and memory."""
    before, start, cpu_start = peak_mib(), time.monotonic(), time.process_time()
    search()
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu_start
    print(f"{name:9}  {seconds:.1f} s ({cpu:.1f} s CPU), {peak_mib() - before:.0f} MiB more")


if __name__ == "__main__":
    main()
