"""The training loop. It knows a model, loaders and an objective, and nothing of images."""

from __future__ import annotations

import time
from contextlib import nullcontext
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
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.figures import StepRows
from pets_core.training.groups import set_rates, train_mode
from pets_core.training.history import History
from pets_core.training.interruption import StepGate
from pets_core.training.memory import explain_out_of_memory, num_micro_batches
from pets_core.training.prepared import LoadedBatch, Loader, Prepared, prepare, release
from pets_core.training.progress import TrainProgress
from pets_core.training.saving import Saving, refuse_different_checkpoints
from pets_core.training.schedule import OneCycle, Phase
from pets_core.training.sharding import is_sharding, whole
from pets_core.training.state import TrainState
from pets_core.training.validation import score

__all__ = ["StepResult", "fit", "train_epoch", "train_step"]


class StepResult(NamedTuple):
    """Of one optimizer step: this rank's loss, summed over its samples; the gradient's norm."""

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
    checkpoints: Checkpoints | None = None,
    gate: StepGate | None = None,
    on_progress: OnProgress = ignore_progress,
) -> History:
    """Train `model` in place through all phases.

    Args:
        model: On the accelerator's device; it ends with the last weights, or with their moving
            average where `config.ema_decay` asks for it.
        objective: Loss and metric.
        train: Shuffled training batches.
        valid: Judged after every epoch, if given.
        phases: Runs of epochs, each under a one-cycle schedule of its own. Early stopping ends a
            phase.
        config: Everything else; rates and epochs are those of the phases.
        accelerator: Mixed precision, devices, ranks, trackers.
        checkpoints: Where to go on from, and where to leave a checkpoint every
            `config.checkpoint_steps` optimizer steps, at most one in `config.checkpoint_seconds`,
            and after every epoch.
        gate: Asked before each batch, of training and validation, whether to go on.
        on_progress: Told of steps and epochs.

    Raises:
        PetsError: A loss is not finite, or one sample does not fit the memory.
        Interrupted: `gate` ended the training; a checkpoint was written.
    """
    history = History()
    ema = ModelEmaV3(model, config.ema_decay, use_warmup=True) if config.ema_decay else None
    judged = ema.module if ema else model
    state = TrainState(model, ema, history, accelerator)
    snapshot = checkpoints.load() if checkpoints else None
    refuse_different_checkpoints(snapshot, accelerator)
    if snapshot:
        state.restore(snapshot)
        _log_again(accelerator, history)
    saving = Saving(state, checkpoints, gate)
    tell = TrainProgress(on_progress, sum(phase.epochs for phase in phases), train.num_batches)
    for number, phase in list(enumerate(phases))[max(history.phase, 0) :]:
        history.begin_phase(number)
        prepared = prepare(
            model, objective, train, config, accelerator, phase.freeze_to, phase.lr_max
        )
        if snapshot:
            state.restore_optimizer(prepared.optimizer.optimizer, snapshot)
            snapshot = None
        saving.optimizer = prepared.optimizer.optimizer
        schedule = OneCycle(phase.epochs * train.num_batches, phase.pct_start, phase.div)
        schedule.step = history.epochs_of_phase * train.num_batches + len(history.rows)
        while not _over(phase, history, config):
            saving.began, saving.seconds = time.monotonic(), None
            train_epoch(prepared, train, history, schedule, ema, saving, tell)
            saving.seconds = seconds = time.monotonic() - saving.began
            scores = score(judged, prepared, valid, saving)
            rows = history.end_epoch(phase.name, seconds, train.num_rows, scores, objective.metric)
            if scores:
                history.best.offer(judged, scores[0], keeps=accelerator.is_main_process)
            _log(accelerator, rows, history.epochs[-1])
            saving.save()
            tell.epoch(history.epochs[-1])
        release(prepared)
    if ema:
        model.load_state_dict(ema.module.state_dict())
    return history


def _over(phase: Phase, history: History, config: TrainConfig) -> bool:
    """Whether a phase has had its epochs, or early stopping ends it."""
    patience = config.early_stopping_epochs
    if history.epochs_of_phase and 0 < patience <= history.best.epochs_since:
        return True
    return history.epochs_of_phase >= phase.epochs


def train_epoch(
    prepared: Prepared,
    train: Loader,
    history: History,
    schedule: OneCycle,
    ema: ModelEmaV3 | None = None,
    saving: Saving | None = None,
    tell: TrainProgress | None = None,
) -> None:
    """Take what is left of one pass over the training batches; each step moves `schedule` on.

    Adds a row a step to `history.rows`: loss (mean over the global batch), gradient norm, momentum,
    each layer group's rate, samples a second, and the seconds of the step that were spent waiting
    for data.

    Raises:
        PetsError: A loss is not finite, or no gradient is (fp16).
        Interrupted: The training was told to end; a checkpoint was written.
    """
    accelerator, model, config = prepared.accelerator, prepared.model, prepared.config
    train_mode(model, config.batch_norm)
    epoch, first = len(history.epochs), len(history.rows)
    steps = StepRows(
        history.rows, epoch * train.num_batches, train.num_batches, accelerator,
        begins=history.epochs_of_phase == 0,
    )  # fmt: skip
    began = time.perf_counter()
    for batch in train.epoch(epoch, first):
        done = steps.num_done
        if saving and not saving.may_begin():
            steps.fill()
            saving.leave()
        waited = time.perf_counter() - began
        _seed_step(config.seed, done, accelerator.process_index)
        lr_factor, momentum = schedule.advance()
        rates = set_rates(prepared.optimizer, lr_factor, momentum)
        loss_sum, grad_norm = train_step(prepared, batch)
        if ema:
            ema.update(accelerator.unwrap_model(model), done + 1)
        ended = time.perf_counter()
        speed = batch.global_size / (ended - began)
        figures = {"momentum": momentum, "samples_per_second": speed, "data_seconds": waited}
        steps.add(loss_sum, grad_norm, batch.ids, rates, figures, batch.global_size)
        began = ended
        if tell:
            tell.step(done + 1, steps.latest_loss, speed)
        if saving and (done + 1) % config.checkpoint_steps == 0:
            steps.fill()
            saving.save_within_epoch(config.checkpoint_seconds)
    steps.fill()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Give a step random numbers of its own, so that one after a resume draws the same."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def train_step(prepared: Prepared, batch: LoadedBatch) -> StepResult:
    """Forward, backward, clip, step.

    The gradient is that of the mean over the global batch, whatever its share on each rank and
    however many micro-batches it takes. A gradient that is not finite changes no weight.

    Raises:
        PetsError: `train.micro_batch_size` is set and does not fit the memory.
    """
    with explain_out_of_memory(prepared.config.micro_batch_size):
        return _train_step(prepared, batch)


def _train_step(prepared: Prepared, batch: LoadedBatch) -> StepResult:
    model, accelerator = prepared.model, prepared.accelerator
    mean = accelerator.num_processes / batch.global_size
    num_parts = num_micro_batches(
        batch.global_size, accelerator.num_processes, prepared.micro_batch_size
    )
    inputs, targets = (of.tensor_split(num_parts) for of in (batch.inputs, batch.targets))
    losses: list[Tensor] = []
    for number in range(num_parts):
        is_last = number == num_parts - 1
        # FSDP2 would keep whole gradients, not its part of them, until the last.
        syncs = is_last or is_sharding(accelerator)
        with nullcontext() if syncs else accelerator.no_sync(model):
            # DDP's wrapper does so by itself, FSDP2's does not.
            with accelerator.autocast():
                logits = model(inputs[number])
            loss_sum = prepared.objective.loss_sum(logits, targets[number])
            accelerator.backward(loss_sum * mean)
        losses.append(loss_sum.detach())
    grad_norm = _clip(prepared)
    if accelerator.scaler is None:
        # As a gradient scaler tells a fused optimizer; it skips the step without asking the host.
        prepared.optimizer.optimizer.found_inf = (~grad_norm.isfinite()).float()
    # Apple's ignores it (FusedAdamWKernelImpl.mm): there the host has to look.
    if accelerator.device.type != "mps" or grad_norm.isfinite():
        prepared.optimizer.step()
    prepared.optimizer.zero_grad()
    return StepResult(torch.stack(losses).sum(), grad_norm)


def _clip(prepared: Prepared) -> Tensor:
    """Return the gradient's norm, after scaling down what is longer than the settings allow."""
    prepared.accelerator.unscale_gradients(prepared.optimizer)
    learning = [p for group in prepared.optimizer.param_groups for p in group["params"]]
    norm = whole(get_total_norm([p.grad for p in learning if p.grad is not None]))
    if prepared.config.max_grad_norm is not None:
        clip_grads_with_norm_(learning, prepared.config.max_grad_norm, norm)
    return norm


def _log_again(accelerator: Accelerator, history: History) -> None:
    """Tell the trackers of the epochs before a resume: theirs is a record of this attempt alone."""
    for epoch in history.epochs:
        rows = [row for row in history.steps if row["epoch"] == epoch.epoch]
        _log(accelerator, rows, epoch)


def _log(accelerator: Accelerator, steps: list[dict[str, Any]], epoch: EpochMetrics) -> None:
    """Tell the trackers of an epoch's steps and of what it came to."""
    for row in steps:
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        accelerator.log({f"train/{key}": value for key, value in numbers.items()}, row["step"])
    if epoch.valid_loss is not None:
        metric = f"valid/{epoch.metric.name.replace(' ', '_')}"
        valid = {"valid/loss": epoch.valid_loss, metric: epoch.valid_metric}
        accelerator.log(valid, steps[-1]["step"])
