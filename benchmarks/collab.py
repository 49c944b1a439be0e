"""Collaborative filtering: errors compared with baselines and other libraries; ten million ratings.

    python benchmarks/collab.py errors [TABLE ...] [--peers PYTHON]
    python benchmarks/collab.py large [--ratings 10000000]

errors: RMSE on the test ratings of both models with their default settings, of the mean rating, of
damped user and item biases, and of the libraries Surprise and LensKit, all on the same splits of
each table (default: the built-in sample). --peers is the Python of a virtual environment with
`pip install scikit-surprise lenskit`. The table can be MovieLens' u.data; its terms forbid to
redistribute it, so it is not part of this repository.
large: seconds and peak memory of the ingest and of training, on ratings generated in the shape of
MovieLens 25M, 70,000 users and 10,000 items.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import ingest_ratings, load_ratings
from pets_core.ratings.evaluate import evaluate_ratings
from pets_core.ratings.records import RatingsManifest
from pets_core.ratings.search import next_weight_decay
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import RatingsRequest

MIB = 1 << 20


def train(config: RatingsConfig, manifest: RatingsManifest, url: str) -> TrainResult:
    """Train, with the LR finder if no rate is set."""
    arguments: dict[str, Any] = {"config": config, "manifest": manifest, "run_url": url}
    base_lr = config.train.base_lr
    if base_lr is None:
        found = launch(RatingsRequest(stage="ratings-lr-find", **arguments), LRSuggestion)
        base_lr = found.chosen
    request = RatingsRequest(stage="ratings-train", base_lr=base_lr, **arguments)
    return launch(request, TrainResult)


def train_default(config: RatingsConfig, manifest: RatingsManifest, url: str) -> TrainResult:
    """Train as `pets collab` does, with the weight decay of the lowest validation error."""
    errors: dict[float, float] = {}
    trained: dict[float, TrainResult] = {}
    while (decay := next_weight_decay(errors)) is not None:
        own = config.resolve_auto(has_validation=True, weight_decay=decay)
        trained[decay] = train(own, manifest, f"{url}-wd-{decay:g}")
        errors[decay] = trained[decay].kept_epoch("best").valid_metric or 0.0
    best = min(errors, key=lambda decay: errors[decay])
    print(f"  weight decay {best:g} of {len(errors)}; validation RMSE {errors[best]:.4f}")
    return trained[best]


def errors(options: argparse.Namespace, work: Path) -> None:
    """Print the errors of all models on the same ratings, for each table."""
    for number, table in enumerate(options.tables or [None]):
        _errors_of_table(table, options.peers, work / str(number))


def _errors_of_table(table: str | None, peers: str | None, work: Path) -> None:
    base = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "ratings": {"url": table, "duplicates": "last"},
    }  # fmt: skip
    config = RatingsConfig.model_validate(base)
    manifest = ingest_ratings(config.store, config.cache_dir, config.ratings)
    num_train = manifest.splits["train"].num_rows
    density = num_train / manifest.num_users / manifest.num_items
    print(
        f"{table or 'sample'}: {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{num_train:,} training ratings (density {density:.2%}), "
        f"{manifest.splits['test'].num_rows:,} test ratings",
        flush=True,
    )
    for kind in ("dot", "neural"):
        own = RatingsConfig.model_validate(base | {"recommender": {"model": kind}})
        url = str(work / kind)
        start = time.monotonic()
        model = train_default(own, manifest, url)
        seconds = time.monotonic() - start
        request = RatingsRequest(
            stage="ratings-predict", config=own, manifest=manifest, run_url=url,
            model_url=model.model_url,
        )  # fmt: skip
        report = evaluate_ratings(own, url, launch(request, PredictResult))
        _print_row(f"ours, {kind}", report.primary.value, seconds)
    for row in _peers(peers, manifest, work / "splits.npz") if peers else ():
        _print_row(row["name"], row["rmse"], row["seconds"])
    _print_row("user and item biases", report.metric("RMSE of user and item biases"))
    _print_row("mean rating", report.primary.baseline or 0.0)


def _peers(python: str, manifest: RatingsManifest, path: Path) -> list[dict[str, Any]]:
    """Return name, test RMSE and seconds of the other libraries, run by another Python."""
    splits = {
        f"{split}_{name}": getattr(load_ratings(manifest, split), name)
        for split in ("train", "test")
        for name in ("users", "items", "ratings")
    }
    np.savez(path, **splits, y_range=manifest.y_range)
    script = Path(__file__).with_name("collab_peers.py")
    command = [python, str(script), str(path)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return found


def _print_row(name: str, rmse: float, seconds: float | None = None) -> None:
    print(f"  {name:26} RMSE {rmse:.4f}" + (f"  {seconds:6.1f} s" if seconds else ""), flush=True)


def large(options: argparse.Namespace, work: Path) -> None:
    """Print seconds and memory of ingest and training on many ratings."""
    table = work / "ratings.parquet"
    _generate(table, options.ratings)
    settings = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "ratings": {"url": str(table)},
        "train": {"base_lr": 5e-3, "epochs": options.epochs, "batch_size": options.batch_size,
                  "weight_decay": options.weight_decay},
    }  # fmt: skip
    config = RatingsConfig.model_validate(settings)
    start = time.monotonic()
    inputs = (config.store, config.cache_dir, config.ratings)
    manifest, memory = _run_in_process(ingest_ratings, *inputs)
    seconds = time.monotonic() - start
    rows = manifest.splits["train"].num_rows
    print(f"ingest of {options.ratings:,} ratings: {seconds:.0f} s, {memory:.0f} MiB")
    result, memory = _run_in_process(train, config, manifest, str(work / "run"))
    for epoch in result.epochs:
        print(
            f"epoch {epoch.epoch + 1}, {rows:,} ratings: {epoch.seconds:.0f} s, "
            f"{epoch.photos_per_second:,.0f} ratings/s, RMSE {epoch.valid_metric:.4f}"
        )
    print(f"training, start to stored model: {result.seconds:.0f} s, {memory:.0f} MiB")


def _generate(path: Path, count: int, num_users: int = 70_000, num_items: int = 10_000) -> None:
    """Generate ratings from biases and four factors, unevenly over users and items."""
    rng = np.random.default_rng(0)
    num_drawn = int(count * 1.25)
    users = (num_users * rng.beta(1, 1.6, num_drawn)).astype(np.int64)
    items = (num_items * rng.beta(0.6, 2.5, num_drawn)).astype(np.int64)
    # Each pair occurs once; which pairs are kept must not depend on their numbers.
    pairs = rng.permutation(np.unique(users * num_items + items))[:count]
    assert len(pairs) == count, "fewer pairs than ratings: set more users or items"
    users, items = pairs // num_items, pairs % num_items
    stars = 3.4 + rng.normal(0, 0.7, count)
    stars += rng.normal(0, 0.4, num_users)[users] + rng.normal(0, 0.4, num_items)[items]
    for _ in range(4):
        stars += 0.4 * rng.normal(size=num_users)[users] * rng.normal(size=num_items)[items]
    ratings = np.clip(np.round(stars * 2) / 2, 0.5, 5)
    table = pa.table({"userId": users, "movieId": items, "rating": ratings})
    pq.write_table(table, path)


def _run_in_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function in a new process; return its result and the peak memory, MiB.

    The peak is the maximum of the process and of the processes it started, such as ranks.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_call_and_measure, function, *arguments).result()


def _call_and_measure(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    result = function(*arguments)
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return result, max(resource.getrusage(p).ru_maxrss for p in processes) * 1024 / MIB


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("benchmark", choices=("errors", "large"))
    parser.add_argument("tables", nargs="*", help="errors: tables of ratings")
    parser.add_argument("--peers", help="errors: Python with scikit-surprise and lenskit")
    parser.add_argument("--ratings", type=int, default=10_000_000, help="large: ratings")
    parser.add_argument("--epochs", type=int, default=2, help="large: epochs")
    parser.add_argument("--batch-size", type=int, default=8192, help="large: batch size")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="large: weight decay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        {"errors": errors, "large": large}[options.benchmark](options, Path(name))


if __name__ == "__main__":
    main()
