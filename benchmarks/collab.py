"""Collaborative filtering: errors beside baselines and Surprise; seconds of ten million ratings.

    python benchmarks/collab.py errors [RATINGS.csv]
    python benchmarks/collab.py large [--ratings 10000000]

errors: both models, the mean rating, damped user and item biases, and the SVD of the library
Surprise (pip install scikit-surprise) in its defaults and with as many factors and epochs as ours,
all on the same splits of a table (default: the built-in sample), judged on the test ratings.
large: ratings drawn in the shape of MovieLens 25M, 70,000 users and 10,000 items; seconds and peak
memory of the ingest, and of the ranks that train an epoch.
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
from pets_core.records.evaluation import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import RatingsRequest

MIB = 1 << 20


def trained(config: RatingsConfig, manifest: RatingsManifest, url: str) -> TrainResult:
    """Find a rate where none is set, and train."""
    given: dict[str, Any] = {"config": config, "manifest": manifest, "run_url": url}
    base_lr = config.train.base_lr
    if base_lr is None:
        found = launch(RatingsRequest(stage="ratings-lr-find", **given), LRSuggestion)
        base_lr = found.chosen
    request = RatingsRequest(stage="ratings-train", base_lr=base_lr, **given)
    return launch(request, TrainResult)


def errors(options: argparse.Namespace, work: Path) -> None:
    """Every model on the same ratings."""
    base = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "ratings": {"url": options.table},
    }  # fmt: skip
    config = RatingsConfig.model_validate(base)
    manifest = ingest_ratings(config.store, config.cache_dir, config.ratings)
    test = load_ratings(manifest, "test")
    print(f"{manifest.splits['train'].num_rows} training and {len(test.ratings)} test ratings")
    for name, settings in _ours(options.weight_decay):
        own = RatingsConfig.model_validate(base | settings)
        url = str(work / name)
        began = time.monotonic()
        model = trained(own, manifest, url)
        seconds = time.monotonic() - began
        request = RatingsRequest(
            stage="ratings-predict", config=own, manifest=manifest, run_url=url,
            model_url=model.model_url,
        )  # fmt: skip
        report = evaluate_ratings(own, url, launch(request, PredictResult))
        _say(name, report.primary.value, seconds)
    for name, parameters in (
        ("Surprise SVD", {}),
        ("  as many epochs, factors", {"n_factors": 50, "n_epochs": 5}),
    ):
        predicted, seconds = _surprise(manifest, parameters)
        _say(name, rating_errors(name, test, predicted).rmse, seconds)
    _say("user and item biases", report.metric("RMSE of user and item biases"))
    _say("mean rating", report.primary.baseline or 0.0)


def _ours(weight_decay: float) -> Iterator[tuple[str, dict[str, Any]]]:
    train = {"weight_decay": weight_decay}
    yield "ours, dot product", {"train": train}
    yield "ours, neural", {"train": train, "recommender": {"model": "neural"}}


def _surprise(manifest: RatingsManifest, parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    """What its SVD predicts for the test ratings, and the seconds its fit took."""
    from pandas import DataFrame
    from surprise import SVD, Dataset, Reader

    train, test = load_ratings(manifest, "train"), load_ratings(manifest, "test")
    frame = DataFrame({"user": train.users, "item": train.items, "rating": train.ratings})
    data = Dataset.load_from_df(frame, Reader(rating_scale=manifest.y_range)).build_full_trainset()
    model, began = SVD(random_state=0, **parameters), time.monotonic()
    model.fit(data)
    seconds = time.monotonic() - began
    pairs = zip(test.users.tolist(), test.items.tolist(), strict=True)
    return np.array([model.predict(*pair).est for pair in pairs]), seconds


def _say(name: str, rmse: float, seconds: float | None = None) -> None:
    print(f"  {name:26} RMSE {rmse:.4f}" + (f"  {seconds:6.1f} s" if seconds else ""), flush=True)


def large(options: argparse.Namespace, work: Path) -> None:
    """Ten million ratings on this machine."""
    table = work / "ratings.parquet"
    _draw(table, options.ratings)
    settings = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "ratings": {"url": str(table)},
        "train": {"base_lr": 5e-3, "epochs": options.epochs, "batch_size": options.batch_size,
                  "weight_decay": options.weight_decay},
    }  # fmt: skip
    config = RatingsConfig.model_validate(settings)
    began = time.monotonic()
    manifest, memory = _apart(ingest_ratings, config.store, config.cache_dir, config.ratings)
    rows = manifest.splits["train"].num_rows
    print(f"ingest of {options.ratings:,}: {time.monotonic() - began:.0f} s, {memory:.0f} MiB")
    result, memory = _apart(trained, config, manifest, str(work / "run"))
    for epoch in result.epochs:
        print(
            f"epoch {epoch.epoch + 1} of {rows:,}: {epoch.seconds:.0f} s, "
            f"{epoch.photos_per_second:,.0f} ratings/s, RMSE {epoch.valid_metric:.4f}"
        )
    print(f"training from start to stored model: {result.seconds:.0f} s, {memory:.0f} MiB")


def _draw(path: Path, count: int, num_users: int = 70_000, num_items: int = 10_000) -> None:
    """Ratings of biases and four factors; some items and users have far more than others."""
    rng = np.random.default_rng(0)
    drawn = int(count * 1.25)
    users = (num_users * rng.beta(1, 1.6, drawn)).astype(np.int64)
    items = (num_items * rng.beta(0.6, 2.5, drawn)).astype(np.int64)
    # One user, one item, once; which of those drawn stay must not depend on their numbers.
    pairs = rng.permutation(np.unique(users * num_items + items))[:count]
    assert len(pairs) == count, "fewer pairs than ratings: draw more users or items"
    users, items = pairs // num_items, pairs % num_items
    stars = 3.4 + rng.normal(0, 0.7, count)
    stars += rng.normal(0, 0.4, num_users)[users] + rng.normal(0, 0.4, num_items)[items]
    for _ in range(4):
        stars += 0.4 * rng.normal(size=num_users)[users] * rng.normal(size=num_items)[items]
    ratings = np.clip(np.round(stars * 2) / 2, 0.5, 5)
    table = pa.table({"userId": users, "movieId": items, "rating": ratings})
    pq.write_table(table, path)


def _apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Call a function in a process of its own; returns its result and the peak memory, MiB.

    Of the process and of the largest it started, which may be its ranks.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, *arguments).result()


def _measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    result = function(*arguments)
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return result, max(resource.getrusage(who).ru_maxrss for who in whose) * 1024 / MIB


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("errors", "large"))
    parser.add_argument("table", nargs="?", help="of errors: a table of ratings")
    parser.add_argument("--ratings", type=int, default=10_000_000, help="of large")
    parser.add_argument("--epochs", type=int, default=2, help="of large")
    parser.add_argument("--batch-size", type=int, default=8192, help="of large")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        {"errors": errors, "large": large}[options.what](options, Path(name))


if __name__ == "__main__":
    main()
