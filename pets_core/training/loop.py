"""Training loop over a model, loaders and an objective; independent of the data's type."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pets_core.config.train import TrainConfig
from pets_core.models.grouped import GroupedModel
from pets_core.progress import OnProgress, ignore_progress
from pets_core.records.training import EpochMetrics
from pets_core.targets.objective import Objective
from pets_core.training.checkpoint import Checkpoints, Snapshot
from pets_core.training.groups import set_train_mode
from pets_core.training.history import History
from pets_core.training.interruption import Interruption
from pets_core.training.memory import explain_out_of_memory, num_micro_batches
from pets_core.training.optimizer import set_rates, skips_overflow
from pets_core.training.prepared import (
    LoadedBatch,
    Loader,
    PhaseInputs,
    PreparedModel,
    prepare,
    release,
)
from pets_core.training.progress import TrainProgress
from pets_core.training.saving import CheckpointSaver, check_same_checkpoint
from pets_core.training.schedule import OneCycle, Phase
from pets_core.training.sharding import full_tensor, is_sharding
from pets_core.training.state import TrainState
from pets_core.training.step_metrics import StepRows
from pets_core.training.validation import validate_epoch

__all__ = ["StepResult", "fit", "train_epoch", "train_step"]


class StepResult(NamedTuple):
    """Result of one optimizer step.

    Attributes:
        loss_sum: Loss summed over this rank's samples, a scalar.
        grad_norm: Norm of the gradient before clipping, a scalar.
    """

    loss_sum: Tensor
    grad_norm: Tensor


def fit(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    valid: Loader | None,
    phases: list[Phase],
    config: TrainConfig,
    *,
    accelerator: Accelerator,
    frozen_inputs: PhaseInputs | None = None,
    checkpoints: Checkpoints | None = None,
    stop_signal: Interruption | None = None,
    on_progress: OnProgress = ignore_progress,
    start: EpochMetrics | None = None,
) -> History:
    """Train `model` in place through all phases.

    Args:
        model: Model on the accelerator's device. It ends with the last weights, or with their
            moving average if `config.ema_decay` is set.
        objective: Loss and metric.
        train: Shuffled training batches.
        valid: Validation batches, evaluated after every epoch, or None.
        phases: Phases, each with its own one-cycle schedule. Early stopping ends a phase.
        config: All other settings; learning rates and epochs are those of the phases.
        accelerator: Mixed precision, devices, ranks, trackers.
        frozen_inputs: Inputs of the frozen phase if they differ from `train` and `valid`: as many
            samples and batches.
        checkpoints: Checkpoints to resume from and to write: after every epoch, and every
            `config.checkpoint_steps` optimizer steps, at most one per
            `config.checkpoint_seconds`.
        stop_signal: Called before each training and validation batch; can stop the training.
        on_progress: Callback for steps and epochs.
        start: Metrics of the model before training, if it may be the best one.

    Returns:
        Metrics of all steps and epochs, and the best weights.

    Raises:
        PetsError: A loss is not finite, one sample does not fit in memory, or the checkpoint is of
            another training.
        Interrupted: `stop_signal` stopped the training; a checkpoint was written.
    """
    history = History()
    ema = ModelEmaV3(model, config.ema_decay, use_warmup=True) if config.ema_decay else None
    state = TrainState(model, ema, history, accelerator)
    snapshot = checkpoints.load() if checkpoints else None
    check_same_checkpoint(snapshot, accelerator)
    _begin(state, snapshot, start)
    saver = CheckpointSaver(state, checkpoints, stop_signal)
    progress = TrainProgress(on_progress, sum(phase.epochs for phase in phases), train.num_batches)
    for number, phase in list(enumerate(phases))[max(history.phase, 0) :]:
        history.begin_phase(number)
        inputs = PhaseInputs(train, valid)
        if frozen_inputs and phase.name == "frozen":
            inputs = frozen_inputs
        prepared = prepare(
            inputs.part(model), objective, inputs.train, config, accelerator, phase.freeze_to,
            phase.lr_max,
        )  # fmt: skip
        if snapshot:
            state.restore_optimizer(prepared.optimizer.optimizer, snapshot)
            snapshot = None
        saver.optimizer = prepared.optimizer.optimizer
        schedule = OneCycle(phase.epochs * train.num_batches, phase.pct_start, phase.div)
        schedule.step = history.epochs_of_phase * train.num_batches + len(history.rows)
        while not _is_over(phase, history, config):
            _run_epoch(phase, inputs, prepared, schedule, state, saver, progress)
        release(prepared)
    if ema:
        model.load_state_dict(ema.module.state_dict())
    return history


def _run_epoch(
    phase: Phase,
    inputs: PhaseInputs,
    prepared: PreparedModel,
    schedule: OneCycle,
    state: TrainState,
    saver: CheckpointSaver,
    progress: TrainProgress,
) -> None:
    """Train for the rest of an epoch, validate, log, and write a checkpoint."""
    history, ema, accelerator = state.history, state.ema, state.accelerator
    update_ema = partial(ema.update, state.model) if ema else None
    eval_model = ema.module if ema else state.model
    saver.epoch_start, saver.epoch_seconds = time.monotonic(), None
    train_epoch(prepared, inputs.train, history, schedule, update_ema, saver, progress)
    saver.epoch_seconds = seconds = time.monotonic() - saver.epoch_start
    scores = validate_epoch(inputs.part(eval_model), prepared, inputs.valid, saver)
    num_rows, metric = inputs.train.num_rows, prepared.objective.metric
    rows = history.end_epoch(phase.name, seconds, num_rows, scores, metric)
    if scores:
        history.best.update(eval_model, scores[0], needs_copy=accelerator.is_main_process)
    _log(accelerator, rows, history.epochs[-1])
    saver.save()
    progress.epoch(history.epochs[-1])


def _begin(state: TrainState, snapshot: Snapshot | None, start: EpochMetrics | None) -> None:
    """Restore a checkpoint, or record the initial weights as the best so far."""
    if snapshot:
        state.restore(snapshot)
        _log_finished_epochs(state.accelerator, state.history)
    elif start and start.valid_loss is not None:
        is_main = state.accelerator.is_main_process
        state.history.best.update(state.model, start.valid_loss, needs_copy=is_main)


def _is_over(phase: Phase, history: History, config: TrainConfig) -> bool:
    """Return whether a phase has run all its epochs, or early stopping ends it."""
    patience = config.early_stopping_epochs
    if history.epochs_of_phase and 0 < patience <= history.best.epochs_without_improvement:
        return True
    return history.epochs_of_phase >= phase.epochs


def train_epoch(
    prepared: PreparedModel,
    train: Loader,
    history: History,
    schedule: OneCycle,
    update_ema: Callable[[int], None] | None = None,
    saver: CheckpointSaver | None = None,
    progress: TrainProgress | None = None,
) -> None:
    """Train on the remaining batches of the current epoch, advancing `schedule` at each step.

    Adds one row per step to `history.rows`: loss (mean over the global batch), gradient norm,
    momentum, learning rate of each layer group, samples per second, and the seconds spent waiting
    for data. `update_ema` is called after each step, with the number of steps taken.

    Raises:
        PetsError: A loss is not finite, or the gradients overflow in every step (fp16).
        Interrupted: The training was stopped; a checkpoint was written.
    """
    accelerator, model, config = prepared.accelerator, prepared.model, prepared.config
    set_train_mode(model, config.batch_norm)
    epoch, first = len(history.epochs), len(history.rows)
    steps = StepRows(
        history.rows, epoch * train.num_batches, train.num_batches, accelerator,
        starts_phase=history.epochs_of_phase == 0,
    )  # fmt: skip
    last_end = time.perf_counter()
    for batch in train.epoch(epoch, first):
        done = steps.num_done
        if saver and not saver.should_continue():
            steps.fill()
            saver.stop()
        waited = time.perf_counter() - last_end
        _seed_step(config.seed, done, accelerator.process_index)
        lr_factor, momentum = schedule.advance()
        rates = set_rates(prepared.optimizer, lr_factor, momentum)
        loss_sum, grad_norm = train_step(prepared, batch)
        if update_ema:
            update_ema(done + 1)
        ended = time.perf_counter()
        speed = batch.global_size / (ended - last_end)
        metrics = {"momentum": momentum, "samples_per_second": speed, "data_seconds": waited}
        steps.add(loss_sum, grad_norm, batch.ids, rates, metrics, batch.global_size)
        last_end = ended
        if progress:
            progress.step(done + 1, steps.latest_loss, speed)
        if saver and (done + 1) % config.checkpoint_steps == 0:
            steps.fill()
            saver.save_within_epoch(config.checkpoint_seconds)
    steps.fill()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that a resumed training draws the same random numbers."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def train_step(prepared: PreparedModel, batch: LoadedBatch) -> StepResult:
    """Take one optimizer step: forward, backward, clip, step.

    The gradient is that of the mean loss over the global batch, for any split over ranks and
    micro-batches. A gradient that is not finite changes no weights.

    Raises:
        PetsError: `train.micro_batch_size` is set and does not fit in memory.
    """
    with explain_out_of_memory(prepared.config.micro_batch_size):
        return _train_step(prepared, batch)


def _train_step(prepared: PreparedModel, batch: LoadedBatch) -> StepResult:
    model, accelerator = prepared.model, prepared.accelerator
    mean = accelerator.num_processes / batch.global_size
    num_parts = num_micro_batches(
        batch.global_size, accelerator.num_processes, prepared.micro_batch_size
    )
    inputs, targets = (t.tensor_split(num_parts) for t in (batch.inputs, batch.targets))
    losses: list[Tensor] = []
    for number in range(num_parts):
        is_last = number == num_parts - 1
        # Without synchronisation FSDP2 would hold unsharded gradients until the last part.
        syncs = is_last or is_sharding(accelerator)
        with nullcontext() if syncs else accelerator.no_sync(model):
            # DDP's wrapper enables autocast itself, FSDP2's does not.
            with accelerator.autocast():
                logits = model(inputs[number])
            loss_sum = prepared.objective.loss_sum(logits, targets[number])
            accelerator.backward(loss_sum * mean)
        losses.append(loss_sum.detach())
    grad_norm = _clip(prepared)
    # The MPS kernel ignores found_inf (FusedAdamWKernelImpl.mm).
    on_device = skips_overflow(prepared.optimizer.optimizer) and accelerator.device.type != "mps"
    if on_device and accelerator.scaler is None:
        # As a gradient scaler does: if 1, the fused optimizer skips the step without a host sync.
        prepared.optimizer.optimizer.found_inf = (~grad_norm.isfinite()).float()
    # A scaler skips the step of an optimizer that is not fused itself.
    if on_device or accelerator.scaler or grad_norm.isfinite():
        prepared.optimizer.step()
    prepared.optimizer.zero_grad()
    return StepResult(torch.stack(losses).sum(), grad_norm)


def _clip(prepared: PreparedModel) -> Tensor:
    """Clip the gradient to `max_grad_norm`; return its norm before clipping."""
    prepared.accelerator.unscale_gradients(prepared.optimizer)
    trainable = [p for group in prepared.optimizer.param_groups for p in group["params"]]
    norm = full_tensor(get_total_norm([p.grad for p in trainable if p.grad is not None]))
    if prepared.config.max_grad_norm is not None:
        clip_grads_with_norm_(trainable, prepared.config.max_grad_norm, norm)
    return norm


def _log_finished_epochs(accelerator: Accelerator, history: History) -> None:
    """Log the epochs before a resume again: each attempt has its own record in the tracker."""
    for epoch in history.epochs:
        rows = [row for row in history.steps if row["epoch"] == epoch.epoch]
        _log(accelerator, rows, epoch)


def _log(accelerator: Accelerator, steps: list[dict[str, Any]], epoch: EpochMetrics) -> None:
    """Log the metrics of an epoch and of its steps to the trackers."""
    for row in steps:
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        accelerator.log({f"train/{key}": value for key, value in numbers.items()}, row["step"])
    if epoch.valid_loss is not None:
        metric = f"valid/{epoch.metric.name.replace(' ', '_')}"
        valid = {"valid/loss": epoch.valid_loss, metric: epoch.valid_metric}
        accelerator.log(valid, steps[-1]["step"])
