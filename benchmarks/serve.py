"""Requests per second and latency of the model server, compared with the bare model.

    python benchmarks/serve.py [--requests 10000] [--clients 32] [--backbone NAME] [--size PIXELS]

Every twentieth request is garbage: text, a truncated photo, or an empty body. Each request must get
the status that it should, and its prediction must be that of the bare model. The bare model decodes
in one thread per core and predicts batches of 32. The clients run in this process and share the
cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.sample.sample import write_sample
from pets_core.inference.predict import Photo, open_model
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo

_BATCH = 32
_NUM_PHOTOS = 256
_GARBAGE_EVERY = 20


class Request(NamedTuple):
    """A request: its body, the status that it should get, and the index of its photo, if any."""

    body: bytes
    status: int
    photo: int | None


class Load(NamedTuple):
    """Result of one load: seconds of each request, and of all together; wrong answers."""

    latencies: np.ndarray
    seconds: float
    wrong: Counter[str]


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = _write_model(work / "model", arguments.backbone, arguments.size)
        photos = _write_photos(work / "photos")
        labels, bare = _measure_bare(model, photos)
        alone = _measure_alone(model, photos)
        print(f"{'':24}{'requests/s':>12}{'p50':>10}{'p95':>10}{'p99':>10}{'wrong':>8}")
        print(f"{'bare, one photo':24}{1 / alone:12.1f}{alone * 1000:8.1f}ms")
        with _server(model) as url:
            few = _requests(photos, max(arguments.requests // 20, 40))
            _print("server, 1 client", asyncio.run(_load(url, few, 1, labels)))
            print(f"{'bare, batches of 32':24}{bare:12.1f}")
            requests = _requests(photos, arguments.requests)
            load = asyncio.run(_load(url, requests, arguments.clients, labels))
            _print(f"server, {arguments.clients} clients", load)
            assert httpx.get(f"{url}/ready").status_code == 200
        num_photos = sum(each.photo is not None for each in requests)
        print(f"server / bare: {num_photos / load.seconds / bare:.2f} of the photos per second")
        if load.wrong:
            sys.exit(f"wrong answers: {dict(load.wrong)}")


def _write_model(folder: Path, backbone: str, size: int) -> str:
    config = PipelineConfig.model_validate(
        {"model": {"backbone": backbone, "weights": "none", "image_size": size}}
    )
    built = create_model(config, tuple(ClassInfo(name=f"class {i}") for i in range(37)), "f")
    torch.nn.init.normal_(built.model.head[-1].weight)
    save_model(str(folder), built.card, built.model.state_dict())
    return str(folder)


def _write_photos(folder: Path) -> list[bytes]:
    write_sample(folder, photos_per_breed=8)
    with tarfile.open(folder / "images.tar.gz") as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".jpg")]
        return [file.read() for file in files[:_NUM_PHOTOS] if file]


def _requests(photos: Sequence[bytes], count: int) -> list[Request]:
    garbage = [
        Request(b"no photo", 422, None),
        Request(photos[0][:500], 422, None),
        Request(b"", 400, None),
    ]
    return [
        garbage[n // _GARBAGE_EVERY % 3]
        if n % _GARBAGE_EVERY == 7
        else Request(photos[n % len(photos)], 200, n % len(photos))
        for n in range(count)
    ]


def _measure_bare(model: str, photos: Sequence[bytes]) -> tuple[list[str], float]:
    """Return the predicted labels, and photos per second in batches."""
    predictor = open_model(model)
    named = [Photo("", partial(bytes, photo)) for photo in photos]
    with ThreadPoolExecutor() as pool:
        batches = [named[i : i + _BATCH] for i in range(0, len(named), _BATCH)]
        predictor.predict_decoded(list(pool.map(predictor.decode, batches[0])))
        started, found = time.perf_counter(), []
        reading = [pool.submit(predictor.decode, photo) for photo in named]
        for i in range(0, len(named), _BATCH):
            found += predictor.predict_decoded([f.result() for f in reading[i : i + _BATCH]])
    return [str(each.label) for each in found], len(photos) / (time.perf_counter() - started)


def _measure_alone(model: str, photos: Sequence[bytes]) -> float:
    """Return the median seconds of one photo alone."""
    predictor, seconds = open_model(model), []
    for photo in photos[:64]:
        started = time.perf_counter()
        list(predictor.predict([Photo("", partial(bytes, photo))]))
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


@contextmanager
def _server(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "pets", "serve", model, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    try:
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(60)


async def _load(
    url: str, requests: Sequence[Request], num_clients: int, labels: Sequence[str]
) -> Load:
    remaining, latencies, wrong = iter(requests), [], Counter[str]()
    limits = httpx.Limits(max_connections=num_clients)

    async def client() -> None:
        for request in remaining:
            started = time.perf_counter()
            try:
                response = await http.post("/predict", content=request.body)
            except httpx.HTTPError as error:
                wrong[repr(error)] += 1
                continue
            latencies.append(time.perf_counter() - started)
            if response.status_code != request.status:
                wrong[f"status {response.status_code} for {request.status}"] += 1
            elif request.photo is not None:
                (found,) = response.json()["predictions"]
                wrong["label"] += found["label"] != labels[request.photo]

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
    return Load(np.array(latencies), time.perf_counter() - started, +wrong)


def _print(name: str, load: Load) -> None:
    p50, p95, p99 = np.percentile(load.latencies, (50, 95, 99)) * 1000
    rate, wrong = len(load.latencies) / load.seconds, sum(load.wrong.values())
    print(f"{name:24}{rate:12.1f}{p50:8.1f}ms{p95:8.1f}ms{p99:8.1f}ms{wrong:8}", flush=True)


if __name__ == "__main__":
    main()
