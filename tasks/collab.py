"""Tasks of a collaborative-filtering run: one task per stage, and its artifacts."""

from __future__ import annotations

import math

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.ratings.config import DEFAULT_WEIGHT_DECAY, RatingsConfig
from pets_core.ratings.dataset import ingest_ratings, read_vocabulary
from pets_core.ratings.records import RatingsManifest, RatingsRun, WeightDecayTrial
from pets_core.ratings.search import next_weight_decay
from pets_core.ratings.target import RATINGS
from pets_core.records.evaluation import EvalReport
from pets_core.records.training import TrainResult
from pets_core.runtime.mlflow_mirror import check_mlflow
from pets_core.runtime.runs import start_run
from pets_core.storage.markdown import escape_markdown
from pets_core.targets.gate import check_gate
from pets_core.training.schedule import few_steps_warning
from tasks.artifacts.publisher import Publisher, png, table
from tasks.execution.delegate import check_deployment
from tasks.execution.retries import SHORT_TASK
from tasks.stages import (
    RESUMABLE_TASK,
    current_run_folder,
    find_run_to_resume,
    train_model,
)

__all__ = [
    "publish_ratings",
    "publish_trials",
    "resolve_ratings",
    "start_or_resume_ratings_run",
    "train_best",
]


@task(name="ingest ratings", **RESUMABLE_TASK)
def start_or_resume_ratings_run(config: RatingsConfig, resume: str | None = None) -> RatingsRun:
    """Resume a run, or ingest the ratings and start a new run."""
    check_gate(config.gate, RATINGS)
    check_mlflow(config.registry.mlflow_uri, config.gate.alias)
    storage.check_writable(storage.absolute(config.store), "store")
    if config.launch.deployment:
        check_deployment(config.launch.deployment)
    if run := find_run_to_resume(config, resume, RatingsRun):
        return run
    manifest = ingest_ratings(config.store, config.cache_dir, config.ratings)
    run = start_run(config, RatingsRun(url=current_run_folder(config), manifest=manifest))
    get_run_logger().info(
        "%s %s: %d users, %d items, %d training ratings; run folder %s",
        manifest.name, manifest.fingerprint, manifest.num_users, manifest.num_items,
        manifest.splits["train"].num_rows, run.url,
    )  # fmt: skip
    return run


@task(name="trial", **SHORT_TASK)
def start_trial(config: RatingsConfig, run: RatingsRun, weight_decay: float) -> RatingsRun:
    """Create the folder of a training with one weight decay, next to that of the run."""
    url = f"{run.url.rstrip('/')}-wd-{weight_decay:g}"
    chosen = resolve_ratings(config, run, weight_decay)
    return start_run(chosen, RatingsRun(url=url, manifest=run.manifest))


def resolve_ratings(
    config: RatingsConfig, run: RatingsRun, weight_decay: float | None = None
) -> RatingsConfig:
    """Return the settings of one training, without automatic values."""
    has_validation = "valid" in run.manifest.splits
    return config.resolve_auto(has_validation=has_validation, weight_decay=weight_decay)


def train_best(
    config: RatingsConfig, run: RatingsRun, base_lr: float
) -> tuple[TrainResult, list[WeightDecayTrial]]:
    """Train with the weight decay of the lowest validation error. Call it in a flow.

    The values tried are those of `recommender.weight_decays`. If it is empty, the only value is
    `train.weight_decay`, and if that is empty too, a search chooses them.

    Returns:
        The best result, and all trials; no trials if there is only one value.

    Raises:
        PetsError: Weight decays are set, but the run has no validation ratings.
    """
    decays = config.recommender.weight_decays
    has_validation = "valid" in run.manifest.splits
    if decays and not has_validation:
        raise PetsError(
            "recommender.weight_decays needs validation ratings, and this run has none. Start a "
            "new run with ratings.valid_fraction above 0"
        )
    is_search = not decays and config.train.weight_decay is None
    if is_search and not has_validation:
        get_run_logger().warning(
            "train.weight_decay is empty, and there are no validation ratings to choose it by: "
            "using %g. Set it, or raise ratings.valid_fraction", DEFAULT_WEIGHT_DECAY,
        )  # fmt: skip
    if warning := few_steps_warning(config.train, run.manifest.splits["train"].num_rows):
        get_run_logger().warning(warning)
    if not decays and not (is_search and has_validation):
        return train_model(resolve_ratings(config, run), run, base_lr), []
    trained: dict[float, TrainResult] = {}
    trials: list[WeightDecayTrial] = []
    remaining = iter(decays)
    get_run_logger().info("Choosing train.weight_decay by the validation RMSE, one training each")
    while True:
        errors = {trial.weight_decay: trial.valid_rmse for trial in trials}
        decay = next_weight_decay(errors) if is_search else next(remaining, None)
        if decay is None:
            break
        trial = start_trial(config, run, decay)
        trained[decay] = train_model(resolve_ratings(config, run, decay), trial, base_lr)
        trials.append(_trial(config, decay, trained[decay]))
        get_run_logger().info(
            "train.weight_decay = %g: validation RMSE %.4f", decay, trials[-1].valid_rmse
        )
    best = _best(trials).weight_decay
    get_run_logger().info("Chosen: train.weight_decay = %g", best)
    return trained[best], trials


def _trial(config: RatingsConfig, decay: float, result: TrainResult) -> WeightDecayTrial:
    """Return the errors of a training in the epoch of its kept weights."""
    epoch = result.kept_epoch("last" if config.train.keep == "last" else "best")
    return WeightDecayTrial(
        weight_decay=decay,
        model_url=result.model_url,
        train_rmse=math.sqrt(epoch.train_loss),
        valid_rmse=epoch.valid_metric or 0.0,
    )


def _best(trials: list[WeightDecayTrial]) -> WeightDecayTrial:
    return min(trials, key=lambda trial: trial.valid_rmse)


@task(name="publish data set", cache_policy=NO_CACHE)
def publish_ratings(manifest: RatingsManifest) -> None:
    """Publish the artifact `dataset-summary`: ratings, cold users and cold items per split."""
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
        f"# {escape_markdown(manifest.name)}\n\n"
        f"{manifest.num_users:,} users and {manifest.num_items:,} items with "
        f"training ratings, version `{manifest.fingerprint}`. Median ratings per user: "
        f"{of_user}; per item: {of_item}. Scale: {low:g} to {high:g}, mean {manifest.mean:.3f}."
        f"\n\n{rows}\n\nSource: `{manifest.source_url}`. Stored at: `{manifest.url}`\n"
    )
    with Publisher(manifest.url) as publisher:
        publisher.markdown("dataset-summary", text, "Ratings of this run")


@task(name="publish weight decays", cache_policy=NO_CACHE)
def publish_trials(report: EvalReport, trials: list[WeightDecayTrial]) -> None:
    """Publish the artifact `weight-decay` if there are trials."""
    if trials:
        with Publisher(report.url) as publisher:
            publisher.markdown("weight-decay", _trials(trials), f"{len(trials)} weight decays")


def _trials(trials: list[WeightDecayTrial]) -> str:
    from pets_core.plots.ratings import weight_decays

    best = _best(trials)
    trials = sorted(trials, key=lambda trial: trial.weight_decay)
    rows = table(
        ["weight decay", "train RMSE", "valid RMSE", "model"],
        ([f"{t.weight_decay:g}", f"{t.train_rmse:.4f}", f"{t.valid_rmse:.4f}", f"`{t.model_url}`"]
         for t in trials),
    )  # fmt: skip
    curve = weight_decays(
        [t.weight_decay for t in trials], [t.train_rmse for t in trials],
        [t.valid_rmse for t in trials],
    )  # fmt: skip
    return (
        f"# Best weight decay: {best.weight_decay:g}\n\n{rows}\n\n"
        f"{png(curve, 'RMSE over weight decay')}\n"
    )
