"""The stages of a run that learns from ratings, one task each."""

from __future__ import annotations

import math

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from pets_core import plots, storage
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import ingest_ratings, read_vocabulary
from pets_core.ratings.records import (
    ErrorRow,
    ItemRow,
    RatingsManifest,
    RatingsPrediction,
    RatingsReport,
    RatingsRun,
    WeightDecayTrial,
)
from pets_core.ratings.review import review_ratings
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.request import RatingsRequest
from pets_core.runtime.runs import find_run, start_run
from pets_core.storage.markdown import literal
from pets_core.training.schedule import few_steps
from tasks.artifacts.publisher import Publisher, picture, picture_of, table
from tasks.execution.delegate import check_deployment
from tasks.stages import GOES_ON, do_or_delegate, folder_of_run

__all__ = [
    "begin_ratings_run",
    "find_ratings_lr",
    "predict_held_out",
    "publish_collab",
    "publish_ratings",
    "review_collab",
    "train_best",
]


@task(name="ingest ratings", **GOES_ON)
def begin_ratings_run(config: RatingsConfig, resume: str | None = None) -> RatingsRun:
    """Go on with a run that began before, or bring the ratings into the store and begin one."""
    logger, url = get_run_logger(), resume or folder_of_run(config)
    storage.check_writable(storage.absolute(config.store), "store")
    if config.launch.deployment:
        check_deployment(config.launch.deployment)
    if run := find_run(url, RatingsRun):
        logger.info("the run goes on in %s", run.url)
        return run
    if resume is not None:
        raise PetsError(
            f"resume = {resume}: no run of ratings began there; give the folder of one, "
            "<store>/runs/<run id>"
        )
    manifest = ingest_ratings(config.store, config.cache_dir, config.ratings)
    run = start_run(config, RatingsRun(url=url, manifest=manifest))
    logger.info(
        "%s %s: %d users, %d items, %d training ratings; the run's folder is %s",
        manifest.name, manifest.fingerprint, manifest.num_users, manifest.num_items,
        manifest.splits["train"].num_rows, run.url,
    )  # fmt: skip
    return run


@task(name="lr-find", **GOES_ON)
def find_ratings_lr(config: RatingsConfig, run: RatingsRun) -> LRSuggestion:
    """Run the range test in worker ranks."""
    request = RatingsRequest(
        stage="ratings-lr-find", config=_of_one(config), run_url=run.url, manifest=run.manifest
    )
    return do_or_delegate(request, LRSuggestion)


@task(name="train", **GOES_ON)
def train_recommender(
    config: RatingsConfig, run: RatingsRun, base_lr: float, weight_decay: float | None = None
) -> TrainResult:
    """Train in worker ranks; with another weight decay, in a folder of its own."""
    url = run.url
    if weight_decay is not None:
        url = f"{run.url.rstrip('/')}-wd-{weight_decay:g}"
        train = config.train.model_copy(update={"weight_decay": weight_decay})
        config = config.model_copy(update={"train": train})
        start_run(_of_one(config), RatingsRun(url=url, manifest=run.manifest))
    if warning := few_steps(config.train, run.manifest.splits["train"].num_rows):
        get_run_logger().warning(warning)
    request = RatingsRequest(
        stage="ratings-train",
        config=_of_one(config),
        run_url=url,
        manifest=run.manifest,
        base_lr=base_lr,
    )
    return do_or_delegate(request, TrainResult)


def _of_one(config: RatingsConfig) -> RatingsConfig:
    """Settings of one training: which others there are does not change it."""
    recommender = config.recommender.model_copy(update={"weight_decays": ()})
    return config.model_copy(update={"recommender": recommender})


@task(name="predict", **GOES_ON)
def predict_held_out(config: RatingsConfig, run: RatingsRun, model_url: str) -> RatingsPrediction:
    """Have a model say in worker ranks how the held-out ratings will be."""
    request = RatingsRequest(
        stage="ratings-predict",
        config=_of_one(config),
        run_url=run.url,
        manifest=run.manifest,
        model_url=model_url,
    )
    return do_or_delegate(request, RatingsPrediction)


@task(name="review", cache_policy=NO_CACHE)
def review_collab(run: RatingsRun, predicted: RatingsPrediction) -> RatingsReport:
    """Judge the predictions beside the baselines."""
    return review_ratings(run.url, run.manifest, predicted)


def train_best(
    config: RatingsConfig, run: RatingsRun, base_lr: float
) -> tuple[TrainResult, list[WeightDecayTrial]]:
    """Train, with each weight decay that is to be tried if there are any; to be called in a flow.

    Returns:
        The training of least validation error, and all that were tried.
    """
    decays = config.recommender.weight_decays
    if not decays:
        return train_recommender(config, run, base_lr), []
    if "valid" not in run.manifest.splits:
        raise PetsError(
            "recommender.weight_decays are told apart by validation ratings, and the run began "
            "without any: start a new one with ratings.valid_fraction above 0"
        )
    trained = [train_recommender(config, run, base_lr, decay) for decay in decays]
    kept = [result.kept(config.train.keep) for result in trained]
    trials = [
        WeightDecayTrial(
            weight_decay=decay,
            model_url=result.model_url,
            train_rmse=math.sqrt(epoch.train_loss),
            valid_rmse=epoch.valid_metric or 0.0,
        )
        for decay, result, epoch in zip(decays, trained, kept, strict=True)
    ]
    best = min(range(len(trials)), key=lambda number: trials[number].valid_rmse)
    return trained[best], trials


@task(name="publish data set", cache_policy=NO_CACHE)
def publish_ratings(manifest: RatingsManifest) -> None:
    """Artifact `dataset-summary`: how many ratings of whom, and how many of them are cold."""
    names = read_vocabulary(manifest)
    rows = table(
        ["split", "ratings", "users without training ratings", "items without training ratings"],
        ([name, f"{s.num_rows:,}", s.num_cold_users, s.num_cold_items]
         for name, s in manifest.splits.items()),
    )  # fmt: skip
    of_user = int(np.median(names.num_ratings_by_user[1:]))
    of_item = int(np.median(names.num_ratings_by_item[1:]))
    low, high = manifest.y_range
    text = (
        f"# {literal(manifest.name)}\n\n{manifest.num_users:,} users and {manifest.num_items:,} "
        f"items with training ratings, version `{manifest.fingerprint}`. Half of the users have "
        f"{of_user} or more, half of the items {of_item} or more. The scale is {low:g} to "
        f"{high:g}, the mean {manifest.mean:.3f}.\n\n{rows}\n\n"
        f"From `{manifest.source_url}`, stored at `{manifest.url}`\n"
    )
    with Publisher(manifest.url) as publisher:
        publisher.markdown("dataset-summary", text, "The ratings of this run")


@task(name="publish review", cache_policy=NO_CACHE)
def publish_collab(report: RatingsReport, trials: list[WeightDecayTrial]) -> None:
    """Artifacts `ratings-review`, `items` and, where any were tried, `weight-decay`."""
    with Publisher(report.url) as publisher:
        publisher.markdown("ratings-review", _review(report), f"RMSE {report.rmse:.4f}")
        publisher.markdown("items", _items(report), "Items by their biases and factors")
        if trials:
            publisher.markdown("weight-decay", _trials(trials), f"{len(trials)} weight decays")


def _review(report: RatingsReport) -> str:
    errors = table(
        ["", "RMSE", "MAE", "RMSE, known user and item", "RMSE, others"],
        ([literal(row.name), f"{row.rmse:.4f}", f"{row.mae:.4f}", *_both(row)]
         for row in report.errors),
    )  # fmt: skip
    chosen = ""
    if report.split == "valid":
        chosen = " There are no test ratings: what is chosen by these looks better than it is."
    return (
        f"# RMSE {report.rmse:.4f} on {report.num_rows:,} {report.split} ratings\n\n{errors}\n\n"
        f"{report.num_cold:,} of them are of a user or an item without training ratings, whose "
        f"factors are 0.{chosen}\n\n{picture(report.file('errors.png'), 'given and predicted')}"
        f"\n\nModel: `{report.model_url}`. Predictions: `{report.file('predictions.parquet')}`\n"
    )


def _both(row: ErrorRow) -> list[str]:
    return ["" if value is None else f"{value:.4f}" for value in (row.rmse_known, row.rmse_cold)]


def _items(report: RatingsReport) -> str:
    parts = ["# Items\n"]
    for title, rows in (("Rated highest", report.best), ("Rated lowest", report.worst)):
        if rows:
            cells = ([literal(r.title), f"{r.bias:+.3f}", r.num_ratings] for r in rows)
            parts.append(f"## {title}, whoever rates\n")
            parts.append(table(["item", "bias", "ratings"], cells) + "\n")
    nearest = ([literal(r.title), r.num_ratings, _listed(r)] for r in report.popular)
    parts.append("## The most rated, and what is nearest by factors\n")
    parts.append(table(["item", "ratings", "nearest"], nearest) + "\n")
    parts.append(picture(report.file("map.png"), "items by the main directions of their factors"))
    return "\n".join([*parts, f"\nAll items: `{report.file('items.parquet')}`\n"])


def _listed(row: ItemRow) -> str:
    return ", ".join(map(literal, row.nearest))


def _trials(trials: list[WeightDecayTrial]) -> str:
    best = min(trials, key=lambda trial: trial.valid_rmse)
    rows = table(
        ["weight decay", "training RMSE", "validation RMSE", "model"],
        ([f"{t.weight_decay:g}", f"{t.train_rmse:.4f}", f"{t.valid_rmse:.4f}", f"`{t.model_url}`"]
         for t in trials),
    )  # fmt: skip
    curve = plots.weight_decays(
        [t.weight_decay for t in trials], [t.train_rmse for t in trials],
        [t.valid_rmse for t in trials],
    )  # fmt: skip
    return (
        f"# {best.weight_decay:g} is best\n\n{rows}\n\n"
        f"{picture_of(curve, 'errors over weight decay')}\n"
    )
