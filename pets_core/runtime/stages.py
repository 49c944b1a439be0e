"""Stages of photos and ratings: find the learning rate, train."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import CARD
from pets_core.plots.training import lr_curve, ridge_curve, training_curves
from pets_core.records.training import EpochMetrics, LRSuggestion, Suggestions, TrainResult
from pets_core.runtime.rank import BuiltModel, Rank
from pets_core.storage.layout import PROBE, TRAINING_PLOT
from pets_core.training.batch_norm import check_batch_norm
from pets_core.training.groups import freeze_to, set_train_mode
from pets_core.training.history import History, steps_table
from pets_core.training.loop import fit
from pets_core.training.lr_finder import Curve, lr_find, read_suggestions, write_curve
from pets_core.training.prepared import Loader
from pets_core.training.probe import LinearProbe
from pets_core.training.schedule import Phase, fine_tune_phases
from pets_core.training.sharding import full_tensor

__all__ = ["find_lr", "train"]

_MODEL = "model"
_MIN_BATCH = 32
"""Batch size per GPU below which it waits for the host, which launches some 700 kernels a step."""


def find_lr(rank: Rank[Any, Any]) -> LRSuggestion | None:
    """Run the learning-rate range test and store its curve and plot."""
    started, config = time.monotonic(), rank.request.config
    _check_validation(rank)
    built = rank.model()
    model, loader = rank.finder_inputs(built)
    _check_batch_norm(rank, built, loader, _phases(rank, built, base_lr=1.0))
    with rank.watchdog:
        curve = lr_find(
            model,
            rank.objective(built),
            loader,
            config.lr_find,
            config.train,
            accelerator=rank.accelerator,
            on_progress=rank.report,
        )
    if not rank.accelerator.is_main_process:
        return None
    suggestions, suggestion = _suggestions(rank, curve), rank.suggestion
    rates = suggestions.rates
    chosen = rates[suggestion] if rates else config.train.base_lr
    folder = storage.join(rank.request.run_url, "lr_find")
    curve_url, plot_url = storage.join(folder, "curve.parquet"), storage.join(folder, "curve.png")
    write_curve(curve_url, curve)
    picture = lr_curve(curve.rates, curve.losses, curve.smoothed, rates, suggestion)
    storage.write_bytes(plot_url, picture)
    return LRSuggestion(
        **dict(suggestions),
        chosen=chosen,
        suggestion=suggestion,
        num_steps=len(curve.rates),
        seconds=time.monotonic() - started,
        curve_url=curve_url,
        plot_url=plot_url,
    )


def _suggestions(rank: Rank[Any, Any], curve: Curve) -> Suggestions:
    """Return the suggested rates.

    Without a suggestion, warn and return an empty record if `train.base_lr` is set: training uses
    that.

    Raises:
        PetsError: There is no suggestion, and `train.base_lr` is not set.
    """
    config = rank.request.config
    try:
        return read_suggestions(curve, config.lr_find)
    except PetsError as error:
        if config.train.base_lr is None:
            raise PetsError(f"{error}, or set train.base_lr") from error
        rank.warn(f"{error}. Training uses train.base_lr = {config.train.base_lr:g}")
        return Suggestions()


def train(rank: Rank[Any, Any]) -> TrainResult | None:
    """Train by the recipe and store models, history and plots."""
    started, config = time.monotonic(), rank.request.config
    _check_validation(rank)
    rank.accelerator.init_trackers("pets", config.model_dump(mode="json")["train"])
    built = rank.model()
    probe, probe_url, start = _start(rank, built)
    phases = _phases(rank, built, rank.request.base_lr)
    history = _fit(rank, built, phases, start)
    weights = {name: full_tensor(value) for name, value in built.model.state_dict().items()}
    if not rank.accelerator.is_main_process:
        return None
    run = rank.request.run_url
    history_url, plot_url = storage.join(run, "history.parquet"), storage.join(run, TRAINING_PLOT)
    last_url, best_url = _save_models(rank, built, weights, history.best.weights)
    storage.write_bytes(history_url, steps_table(history.steps))
    curves = training_curves(history.steps, history.epochs)
    if probe and not history.epochs:
        curves = ridge_curve(probe.tried, probe.ridge)
    storage.write_bytes(plot_url, curves)
    num_groups = len(built.model.layer_groups())
    return TrainResult(
        model_url=storage.join(run, _MODEL),
        last_model_url=last_url,
        best_model_url=best_url,
        probe_url=probe_url,
        history_url=history_url,
        plot_url=plot_url,
        base_lr=rank.request.base_lr,
        mixed_precision=rank.precision,
        device=_device_name(rank.accelerator.device),
        num_processes=rank.accelerator.num_processes,
        num_steps=len(history.steps),
        num_layer_groups=num_groups,
        unfreeze_to=next((p.freeze_to % num_groups for p in phases if p.name == "unfrozen"), None),
        epochs=(*([start] if start else []), *history.epochs),
        seconds=time.monotonic() - started,
    )


def _start(
    rank: Rank[Any, Any], built: BuiltModel
) -> tuple[LinearProbe | None, str | None, EpochMetrics | None]:
    """Fit the linear probe, if the settings need one, and store it as a model.

    Returns:
        The probe, its URL, and its metrics if training starts from it.
    """
    began, config = time.monotonic(), rank.request.config
    run, is_model = rank.request.run_url, config.train.recipe == "probe"
    url = storage.join(run, _MODEL if is_model else PROBE)
    if not config.train.starts_from_probe and _is_stored(url):
        # By an earlier attempt, and only needed for comparison.
        return None, url, None
    probe = rank.fit_probe(built)
    if probe is None:
        return None, None, None
    state = built.model.state_dict()
    head = {f"head.{name}": value for name, value in probe.state.items()}
    if rank.accelerator.is_main_process and not is_model:
        rank.save(url, built, state | head)
    if not config.train.starts_from_probe:
        return probe, url, None
    built.model.load_state_dict(state | head)
    seconds = time.monotonic() - began
    return (
        probe,
        url,
        EpochMetrics(
            phase="probe",
            epoch=-1,
            train_loss=probe.train_loss,
            valid_loss=probe.valid_loss,
            valid_metric=probe.valid_metric,
            metric=rank.objective(built).metric,
            seconds=seconds,
            photos_per_second=probe.num_samples / seconds,
        ),
    )


def _is_stored(url: str) -> bool:
    """Return whether rank 0 finds a model in a folder."""
    (is_stored,) = broadcast_object_list([storage.exists(storage.join(url, CARD))])
    return bool(is_stored)


def _fit(
    rank: Rank[Any, Any], built: BuiltModel, phases: list[Phase], start: EpochMetrics | None
) -> History:
    """Train through the phases of the recipe.

    Args:
        rank: This process's part of the stage.
        built: Model to train.
        phases: Phases of the training.
        start: Metrics before training if the head is a linear probe, otherwise None.

    Returns:
        History of the training; empty for the recipe `probe`, which leaves the model unchanged.
    """
    train_config = rank.request.config.train
    if train_config.recipe == "probe":
        return History()
    loader = rank.train_loader(built)
    _check_batch_norm(rank, built, loader, phases)
    valid = rank.valid_loader(built)
    frozen_inputs = rank.frozen_inputs(built)
    checkpoints = rank.checkpoints()
    _warn_of_small_batches(rank, loader.num_rows)
    with rank.interruption() as stop_signal, rank.watchdog:
        history = fit(
            built.model,
            rank.objective(built),
            loader,
            valid,
            phases,
            train_config,
            accelerator=rank.accelerator,
            frozen_inputs=frozen_inputs,
            checkpoints=checkpoints,
            stop_signal=stop_signal,
            on_progress=rank.report,
            start=start,
        )
    checkpoints.wait()
    return history


def _save_models(
    rank: Rank[Any, Any], built: BuiltModel, last: dict[str, Tensor], best: dict[str, Tensor]
) -> tuple[str, str | None]:
    """Store the last and the best weights; `train.keep` selects which of them is the model."""
    train_config, run = rank.request.config.train, rank.request.run_url
    # A probe is the only model of its run.
    keep = "last" if train_config.recipe == "probe" else train_config.keep
    if keep == "best" and not best:
        raise PetsError("no epoch had a finite validation loss: lower train.base_lr")
    last_url = storage.join(run, _MODEL if keep == "last" else "last")
    rank.save(last_url, built, last)
    if not best:
        return last_url, None
    best_url = storage.join(run, _MODEL if keep == "best" else "best")
    rank.save(best_url, built, best)
    return last_url, best_url


def _check_validation(rank: Rank[Any, Any]) -> None:
    """Refuse settings that need validation samples if there are none."""
    config = rank.request.config.train
    settings = {
        "train.keep = best": config.keep == "best",
        f"train.early_stopping_epochs = {config.early_stopping_epochs}": (
            config.early_stopping_epochs > 0
        ),
    }
    for setting, is_used in settings.items():
        if is_used and not rank.has_validation:
            raise PetsError(
                f"{setting} needs validation samples, and the data set has none: "
                f"set {rank.validation_setting} above 0"
            )


def _warn_of_small_batches(rank: Rank[Any, Any], num_rows: int) -> None:
    """Warn if the batch size per GPU is too small to keep the GPU busy."""
    accelerator, batch_size = rank.accelerator, rank.request.config.train.batch_size
    num_gpus = accelerator.num_processes
    wanted = _MIN_BATCH * num_gpus
    # A small data set needs small batches.
    if accelerator.device.type == "cuda" and batch_size < wanted <= num_rows // 10:
        rank.warn(
            f"train.batch_size = {batch_size} gives each GPU {batch_size / num_gpus:.3g} samples "
            f"per step, too few to keep it busy: set {wanted} or more, and find the "
            "learning rate again"
        )


def _phases(rank: Rank[Any, Any], built: BuiltModel, base_lr: float | None) -> list[Phase]:
    """Return the phases of the recipe; none for the recipe `probe`, which needs no rate."""
    config = rank.request.config.train
    if config.recipe == "probe":
        return []
    assert base_lr is not None
    return fine_tune_phases(config, base_lr, len(built.model.layer_groups()))


def _check_batch_norm(
    rank: Rank[Any, Any], built: BuiltModel, train: Loader, phases: Sequence[Phase]
) -> None:
    """Check batch norm against the batch sizes of all phases, before training starts."""
    config = rank.request.config.train
    # The last phase trains the most layers; a probe has no phase.
    freeze_to(built.model, phases[-1].freeze_to if phases else config.freeze_to)
    set_train_mode(built.model, config.batch_norm)
    check_batch_norm(
        built.model,
        config,
        num_rows=train.num_rows,
        num_processes=rank.accelerator.num_processes,
        micro_batch_size=config.micro_batch_size,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
