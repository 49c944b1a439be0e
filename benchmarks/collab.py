"""Collaborative filtering: errors compared with baselines and Surprise; ten million ratings.

    python benchmarks/collab.py errors [RATINGS.csv]
    python benchmarks/collab.py large [--ratings 10000000]

errors: RMSE on the test ratings of both models, the mean rating, damped user and item biases, and
the SVD of the library Surprise (pip install scikit-surprise), with its defaults and with the number
of factors and epochs of ours, all on the same splits of a table (default: the built-in sample).
large: seconds and peak memory of the ingest and of training, on ratings generated in the shape of
MovieLens 25M, 70,000 users and 10,000 items.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
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
from pets_core.ratings.target import rating_errors
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


def errors(options: argparse.Namespace, work: Path) -> None:
    """Print the errors of all models on the same ratings."""
    base = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "ratings": {"url": options.table},
    }  # fmt: skip
    config = RatingsConfig.model_validate(base)
    manifest = ingest_ratings(config.store, config.cache_dir, config.ratings)
    test = load_ratings(manifest, "test")
    print(f"{manifest.splits['train'].num_rows} training and {len(test.ratings)} test ratings")
    for name, settings in _our_models(options.weight_decay):
        own = RatingsConfig.model_validate(base | settings)
        url = str(work / name)
        start = time.monotonic()
        model = train(own, manifest, url)
        seconds = time.monotonic() - start
        request = RatingsRequest(
            stage="ratings-predict", config=own, manifest=manifest, run_url=url,
            model_url=model.model_url,
        )  # fmt: skip
        report = evaluate_ratings(own, url, launch(request, PredictResult))
        _print_row(name, report.primary.value, seconds)
    for name, parameters in (
        ("Surprise SVD", {}),
        ("  factors, epochs of ours", {"n_factors": 50, "n_epochs": 5}),
    ):
        predicted, seconds = _surprise(manifest, parameters)
        _print_row(name, rating_errors(name, test, predicted).rmse, seconds)
    _print_row("user and item biases", report.metric("RMSE of user and item biases"))
    _print_row("mean rating", report.primary.baseline or 0.0)


def _our_models(weight_decay: float) -> Iterator[tuple[str, dict[str, Any]]]:
    train = {"weight_decay": weight_decay}
    yield "ours, dot product", {"train": train}
    yield "ours, neural", {"train": train, "recommender": {"model": "neural"}}


def _surprise(manifest: RatingsManifest, parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Return Surprise's SVD predictions of the test ratings, and the seconds of its fit."""
    from pandas import DataFrame
    from surprise import SVD, Dataset, Reader

    train, test = load_ratings(manifest, "train"), load_ratings(manifest, "test")
    frame = DataFrame({"user": train.users, "item": train.items, "rating": train.ratings})
    data = Dataset.load_from_df(frame, Reader(rating_scale=manifest.y_range)).build_full_trainset()
    model, start = SVD(random_state=0, **parameters), time.monotonic()
    model.fit(data)
    seconds = time.monotonic() - start
    pairs = zip(test.users.tolist(), test.items.tolist(), strict=True)
    return np.array([model.predict(*pair).est for pair in pairs]), seconds


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
    parser.add_argument("table", nargs="?", help="errors: table of ratings")
    parser.add_argument("--ratings", type=int, default=10_000_000, help="large: ratings")
    parser.add_argument("--epochs", type=int, default=2, help="large: epochs")
    parser.add_argument("--batch-size", type=int, default=8192, help="large: batch size")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        {"errors": errors, "large": large}[options.benchmark](options, Path(name))


if __name__ == "__main__":
    main()
