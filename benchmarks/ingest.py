"""Photos per second of ingest: ours with all checks, Hugging Face `datasets`, and the limit.

    python benchmarks/ingest.py [FOLDER with images.tar.gz and annotations.tar.gz]
    python benchmarks/ingest.py --scale [PHOTOS]

The limit reads the archive and writes the bytes of the photos, without any check. `datasets` reads
unpacked photos, one folder per class (`imagefolder`), and writes them to Parquet; unpacking is not
measured. "no decoding" is ours without decoding and checking the photos. All run alternately, each
in a new process with empty folders; the best of three rounds is printed.

--scale ingests 1/16, 1/8, 1/4, 1/2 and all of PHOTOS generated photos (100,000 by default) and
prints seconds, peak memory and the seconds of each step (the rest is the writing of shards).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REAL = Path(__file__).parents[2] / "shared/data/oxford-iiit-pet-256px"
ROUNDS = 3
NUM_CLASSES = 20


def ours(source: str, work: Path) -> int:
    """Ingest with all checks and with threads, as `pets ingest` does."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.data.ingest.commit import ingest

    values = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "source": {"url": source},
    }  # fmt: skip
    return ingest(PipelineConfig.model_validate(values)).num_rows


def ours_by_steps(source: str, work: Path) -> int:
    """Run `ours` and print the seconds of each step to standard error."""
    from pets_core.data.ingest import commit as ingest

    for name in ("plan_dataset", "commit", "find_duplicates"):
        setattr(ingest, name, timed(getattr(ingest, name)))
    return ours(source, work)


def timed(step: Callable[..., object]) -> Callable[..., object]:
    """Wrap a step to print its duration to standard error."""

    def run(*arguments: object) -> object:
        started = time.perf_counter()
        result = step(*arguments)
        print(f"{step.__name__} {time.perf_counter() - started:.2f} s", file=sys.stderr)
        return result

    return run


def ours_without_decoding(source: str, work: Path) -> int:
    """Run `ours` without decoding: every photo is assumed to be a valid one of 256 x 256."""
    from pets_core.data.ingest import shards
    from pets_core.data.ingest.images import ImageInfo

    assumed = ImageInfo((256, 256), np.zeros((32, 32), np.uint8))
    shards.inspect = lambda _: assumed
    return ours(source, work)


def hugging_face(source: str, work: Path, num_proc: int | None) -> int:
    """Load the photos with `imagefolder` and write them to Parquet."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import datasets

    loaded = datasets.load_dataset(
        "imagefolder", data_dir=source, split="train", cache_dir=str(work / "hf"), num_proc=num_proc
    )
    loaded.to_parquet(str(work / "photos.parquet"))
    return len(loaded)


def limit(source: str, work: Path) -> int:
    """Read the archive and write the bytes."""
    count = 0
    with (
        tarfile.open(f"{source}/images.tar.gz", "r|gz") as tar,
        (work / "photos.bin").open("wb") as sink,
    ):
        for member in tar:
            if member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                sink.write(file.read())
                count += 1
        sink.flush()
        os.fsync(sink.fileno())
    return count


WAYS: dict[str, Callable[[str, Path], int]] = {
    "ours": ours,
    "ours, by steps": ours_by_steps,
    "ours, no decoding": ours_without_decoding,
    "datasets": lambda source, work: hugging_face(source, work, None),
    "datasets, num_proc=2": lambda source, work: hugging_face(source, work, 2),
    "limit": limit,
}


def run_alone(way: str, source: str) -> dict[str, Any]:
    """Run one way in a new process and return its measurements, without the start of Python."""
    command = [sys.executable, __file__, "--way", way, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "steps": done.stderr.split("\n")}


def measure(way: str, source: str) -> None:
    """Measure one way and print the result; the main function of `run_alone`'s process."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        # Arrow imports pandas at its first array.
        import pandas  # noqa: F401 - importing is not ingesting

        if way.startswith("ours"):
            import pets_core.data.ingest.commit  # noqa: F401
        elif way.startswith("datasets"):
            import datasets  # noqa: F401
        started = time.perf_counter()
        photos = WAYS[way](source, Path(folder))
        seconds = time.perf_counter() - started
    usage = resource.getrusage
    peak = usage(resource.RUSAGE_SELF).ru_maxrss + usage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"photos": photos, "seconds": seconds, "peak_mb": peak / 1024}))


def unpack(source: Path, folder: Path) -> None:
    """Unpack the archive to one folder per class, as `imagefolder` requires."""
    with tarfile.open(source / "images.tar.gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if member.isfile() and name.endswith(".jpg") and not name.startswith("._"):
                target = folder / name.rsplit("_", 1)[0] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(member)
                assert file is not None
                target.write_bytes(file.read())


def compare(source: Path) -> None:
    """Print a table of all ways."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        unpack(source, Path(folder))
        best: dict[str, dict[str, Any]] = {}
        for _ in range(ROUNDS):
            for way in (way for way in WAYS if "steps" not in way):
                found = run_alone(way, folder if way.startswith("datasets") else str(source))
                if way not in best or found["seconds"] < best[way]["seconds"]:
                    best[way] = found
    speed = {way: found["photos"] / found["seconds"] for way, found in best.items()}
    print(f"{source.name}, {os.cpu_count()} cores, best of {ROUNDS}")
    print(f"{'':22}{'photos':>8}{'seconds':>9}{'photos/s':>10}{'peak MB':>9}")
    for way, found in best.items():
        print(
            f"{way:22}{found['photos']:8.0f}{found['seconds']:9.2f}{speed[way]:10.0f}"
            f"{found['peak_mb']:9.0f}"
        )
    fastest = max(speed[way] for way in speed if way.startswith("datasets"))
    print(f"ours / datasets {speed['ours'] / fastest:.2f}   ours / limit ", end="")
    print(f"{speed['ours'] / speed['limit']:.2f}   no decoding / limit ", end="")
    print(f"{speed['ours, no decoding'] / speed['limit']:.2f}")


def draw(number: int, size: tuple[int, int] = (256, 256)) -> bytes:
    """Generate a different JPEG for each number, soft colours with some noise: 15 kB at 256 x 256.

    Args:
        number: Number of the photo.
        size: Width and height, pixels.
    """
    random = np.random.default_rng(number)
    soft = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
    pixels = np.asarray(soft.resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = (pixels + random.integers(-12, 13, pixels.shape, np.int16)).clip(0, 255)
    buffer = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def generate(path: Path, count: int) -> None:
    """Write an archive of class folders with generated photos."""

    def members() -> Iterator[tuple[int, bytes]]:
        with ProcessPoolExecutor() as pool:
            yield from enumerate(pool.map(draw, range(count), chunksize=100))

    with tarfile.open(path, "w") as tar:
        for number, data in members():
            info = tarfile.TarInfo(f"class-{number % NUM_CLASSES:02d}/{number:07d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def scale(count: int) -> None:
    """Print seconds and memory for growing numbers of photos."""
    print(f"{'photos':>8}{'MiB':>7}{'seconds':>9}{'photos/s':>10}{'peak MB':>9}")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        for part in (16, 8, 4, 2, 1):
            path = Path(folder) / f"photos-{part}.tar"
            generate(path, count // part)
            found = run_alone("ours, by steps", str(path))
            print(
                f"{found['photos']:8.0f}{path.stat().st_size >> 20:7}{found['seconds']:9.1f}"
                f"{found['photos'] / found['seconds']:10.0f}{found['peak_mb']:9.0f}   "
                + ", ".join(step for step in found["steps"] if step.endswith(" s")),
                flush=True,
            )
            path.unlink()


def main() -> None:
    """Run the benchmark selected by the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default=str(REAL))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--scale", nargs="?", type=int, const=100_000, metavar="PHOTOS")
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.source)
    elif arguments.scale:
        scale(arguments.scale)
    else:
        compare(Path(arguments.source))


if __name__ == "__main__":
    main()
