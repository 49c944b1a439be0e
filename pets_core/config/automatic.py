"""Automatic values of the training recipe, by number of samples and kind of target."""

from __future__ import annotations

from typing import Any

from pets_core.config.pipeline import PipelineConfig
from pets_core.config.train import TrainConfig
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import TargetSpec, target_spec

__all__ = ["automatic_batch_size", "resolve_automatic", "resolve_recipe"]

_SMALL = 500
"""Training photos below which training starts from a linear probe."""
_MAX_SPLIT = 50_000
"""Photos of the largest split up to which features for a probe certainly fit in the cache."""
_SAMPLES, _MAX_EPOCHS = 2000, 50
"""Training photos seen after unfreezing, at least, and epochs, at most, for numbers."""
_BATCH_SIZE, _MIN_BATCH_SIZE = 64, 8
_STEPS_PER_EPOCH = 10


def automatic_batch_size(num_rows: int) -> int:
    """Return the largest power of two from 8 to 64 with ten steps per epoch."""
    most = max(num_rows // _STEPS_PER_EPOCH, _MIN_BATCH_SIZE)
    return min(1 << (most.bit_length() - 1), _BATCH_SIZE)


def resolve_automatic(config: PipelineConfig, manifest: DatasetManifest) -> PipelineConfig:
    """Return the settings with a value for each automatic one of `train`.

    `unfreeze_to`, which depends on the model, keeps none unless the weights are random.
    """
    spec, num_rows = target_spec(manifest.targets), manifest.splits["train"].num_rows
    train, limit = config.train, config.launch.decode_cache_gib
    can_cache = (limit == "auto" or limit >= 1) and max(
        info.num_rows for info in manifest.splits.values()
    ) <= _MAX_SPLIT
    # A probe on random features is no better than a new head.
    if _chooses_head(train) and not (can_cache and config.model.weights != "none"):
        train = train.model_copy(update={"head": "new"})
    # Random layers have to learn.
    if train.unfreeze_to is None and config.model.weights == "none":
        train = train.model_copy(update={"unfreeze_to": 0})
    return config.model_copy(update={"train": resolve_recipe(train, spec, num_rows)})


def _chooses_head(train: TrainConfig) -> bool:
    return train.head == "auto" and train.recipe == "fine_tune"


def resolve_recipe(train: TrainConfig, spec: TargetSpec, num_rows: int) -> TrainConfig:
    """Return the settings with a value for each automatic one but `unfreeze_to` (docs/recipe.md).

    Args:
        train: Settings.
        spec: Kind of target.
        num_rows: Number of training photos.
    """
    update: dict[str, Any] = {}
    is_default_start = (
        train.freeze_epochs is None
        and train.epochs != 0
        and train.freeze_to == -1
        and train.sampling == "uniform"
    )
    if _chooses_head(train):
        update["head"] = "probe" if num_rows < _SMALL and is_default_start else "new"
    if not train.batch_size:
        update["batch_size"] = automatic_batch_size(num_rows)
    if train.lr_mult is None:
        update["lr_mult"] = 10.0 if spec.is_numbers else 100.0
    resolved = train.model_copy(update=update)
    if train.unfrozen_lr_div is None:
        update["unfrozen_lr_div"] = 50.0 if resolved.starts_from_probe else 5.0
        if spec.is_numbers:
            update["unfrozen_lr_div"] = 2.0
    num_epochs = resolved.num_unfrozen_epochs
    if spec.is_numbers and train.epochs is None and train.recipe == "fine_tune":
        num_epochs = max(num_epochs, min(-(-_SAMPLES // num_rows), _MAX_EPOCHS))
    update |= {"freeze_epochs": resolved.num_frozen_epochs, "epochs": num_epochs}
    return train.model_copy(update=update)
