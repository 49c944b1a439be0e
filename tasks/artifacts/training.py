"""Artifacts of the learning-rate finder and of training."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.config.train import TrainConfig
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import Publisher, stored_png, table

__all__ = [
    "publish_lr",
    "publish_training",
]


@task(name="publish learning rate", cache_policy=NO_CACHE)
def publish_lr(suggestion: LRSuggestion) -> None:
    """Publish the artifact `lr-finder`: the curve and its suggestions."""
    rows = [
        [f"**{name}** (used)" if name == suggestion.suggestion else name, f"{rate:.2e}"]
        for name, rate in suggestion.rates.items()
    ]
    suggested = table(["suggestion", "learning rate"], rows)
    if not rows:
        suggested = f"No suggestion. Training uses train.base_lr = {suggestion.chosen:.2e}."
    text = (
        "# Learning-rate finder\n\n"
        f"{stored_png(suggestion.plot_url, 'Loss over learning rate')}\n\n"
        f"{suggested}\n"
    )
    with Publisher(suggestion.curve_url) as publisher:
        publisher.markdown("lr-finder", text, "Loss over learning rate")


@task(name="publish training", cache_policy=NO_CACHE)
def publish_training(result: TrainResult, recipe: TrainConfig) -> None:
    """Publish the artifact `training-curves`: losses and learning rates, one row per epoch.

    Args:
        result: The training.
        recipe: Its settings, without automatic values.
    """
    rows = [
        [
            "" if epoch.epoch < 0 else epoch.epoch + 1,
            epoch.phase,
            f"{epoch.train_loss:.3f}",
            "" if epoch.valid_loss is None else f"{epoch.valid_loss:.3f}",
            epoch.metric_text,
            f"{epoch.seconds:.0f}",
            f"{epoch.photos_per_second:.0f}",
        ]
        for epoch in result.epochs
    ]
    rate = "" if result.base_lr is None else f"Base learning rate {result.base_lr:.2e}, "
    if result.num_steps:
        rate += f"batches of {recipe.batch_size}, "
    if result.unfrozen_text:
        rate += f"unfrozen: {result.unfrozen_text}, "
    metric = f"valid {result.epochs[0].metric.name}"
    header = ["epoch", "phase", "train loss", "valid loss", metric, "seconds", "samples/s"]
    text = (
        f"# Training\n\n{stored_png(result.plot_url, 'Losses and learning rates')}\n\n"
        f"{table(header, rows)}\n\n{rate}"
        f"mixed precision {result.mixed_precision}, {result.num_processes} rank(s) on "
        f"{escape_markdown(result.device)}. History of all steps: `{result.history_url}`\n"
    )
    with Publisher(result.history_url) as publisher:
        publisher.markdown("training-curves", text, "Losses and learning rates")
