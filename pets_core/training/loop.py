"""The training loop. It knows a model, loaders and an objective, and nothing of images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pets_core.errors import PetsError
from pets_core.objectives import Objective
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records import EpochMetrics
from pets_core.training.groups import build_optimizer, freeze_to, set_rates, train_mode
from pets_core.training.schedule import OneCycle, Phase, spread

__all__ = ["History", "Loader", "fit", "train_step", "validate"]

_REPORT_EVERY_SECONDS = 2.0


class LoadedBatch(Protocol):
    """One rank's share of a global batch."""

    @property
    def inputs(self) -> Tensor:
        """Model inputs, first dimension b."""
        ...

    @property
    def targets(self) -> Tensor:
        """Targets, first dimension b."""
        ...

    @property
    def global_size(self) -> int:
        """Samples of the batch over all ranks."""
        ...


class Loader(Protocol):
    """Yields each sample of a split once an epoch, over all ranks."""

    @property
    def num_batches(self) -> int:
        """Batches an epoch."""
        ...

    @property
    def num_rows(self) -> int:
        """Samples of the split, over all ranks."""
        ...

    def epoch(self, epoch: int) -> Iterator[Any]:
        """Yield the batches (`LoadedBatch`) of one epoch."""
        ...


@dataclass
class History:
    """What a training went through: a row for each optimizer step, and one for each epoch."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[EpochMetrics] = field(default_factory=list)


def fit(
    model: nn.Module,
    objective: Objective,
    train: Loader,
    valid: Loader | None,
    phases: list[Phase],
    *,
    accelerator: Accelerator,
    weight_decay: float,
    batch_norm: Literal["frozen", "train"],
    on_progress: OnProgress = ignore_progress,
) -> History:
    """Train `model` in place through all phases.

    Args:
        model: A `GroupedModel`, on the accelerator's device.
        objective: Loss and metric.
        train: Shuffled training batches.
        valid: Judged after every epoch, if given.
        phases: Runs of epochs, each under a one-cycle schedule of its own.
        accelerator: Mixed precision, devices, ranks.
        weight_decay: Decoupled weight decay.
        batch_norm: Whether batch-norm statistics follow the training photos.
        on_progress: Told of steps and epochs.

    Raises:
        PetsError: The loss is no longer finite.
    """
    history = History()
    total = sum(phase.epochs for phase in phases)
    for phase in phases:
        freeze_to(model, phase.freeze_to)  # type: ignore[arg-type]
        rates = spread(phase.lr_max, len(model.layer_groups()))  # type: ignore[operator]
        optimizer = build_optimizer(model, rates, weight_decay)  # type: ignore[arg-type]
        prepared, optimizer = accelerator.prepare(model, optimizer)
        schedule = OneCycle(phase.epochs * train.num_batches, phase.pct_start, phase.div)
        for epoch_of_phase in range(phase.epochs):
            started = time.monotonic()
            train_mode(prepared, batch_norm)
            losses = train_epoch(
                prepared, objective, train, optimizer, schedule, accelerator,
                history, phase.name, epoch_of_phase, total, on_progress,
            )  # fmt: skip
            seconds = time.monotonic() - started
            scores = validate(prepared, objective, valid, accelerator) if valid else None
            history.epochs.append(
                EpochMetrics(
                    phase=phase.name,
                    epoch=len(history.epochs),
                    train_loss=sum(losses) / len(losses),
                    valid_loss=scores and scores[0],
                    valid_error_rate=scores and scores[1],
                    seconds=seconds,
                    photos_per_second=train.num_rows / seconds,
                )
            )
            _report_epoch(history.epochs[-1], total, on_progress)
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        accelerator.free_memory()
    return history


def train_epoch(
    model: nn.Module,
    objective: Objective,
    train: Loader,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycle,
    accelerator: Accelerator,
    history: History,
    phase: str,
    epoch_of_phase: int,
    total_epochs: int,
    on_progress: OnProgress,
) -> list[float]:
    """Take one pass over the training batches; return the global mean loss of each step."""
    epoch = len(history.epochs)
    sums: list[Tensor] = []
    sizes: list[int] = []
    reported = time.monotonic()
    for number, batch in enumerate(train.epoch(epoch)):
        step = epoch_of_phase * train.num_batches + number
        momentum = schedule.momentum(step)
        rates = set_rates(optimizer, schedule.lr_factor(step), momentum)
        sums.append(train_step(model, objective, batch, optimizer, accelerator))
        sizes.append(batch.global_size)
        history.steps.append(
            {"step": len(history.steps), "phase": phase, "epoch": epoch, "momentum": momentum}
            | {f"lr_group_{group}": rate for group, rate in rates.items()}
        )
        if time.monotonic() - reported > _REPORT_EVERY_SECONDS:
            reported = time.monotonic()
            done = epoch * train.num_batches + number + 1
            detail = f"{phase} epoch {epoch + 1}/{total_epochs}"
            total = total_epochs * train.num_batches
            on_progress(
                Progress(stage="train", done=done, total=total, unit="steps", detail=detail)
            )
    reduced: Tensor = accelerator.reduce(torch.stack(sums), "sum")
    losses = [loss / size for loss, size in zip(reduced.tolist(), sizes, strict=True)]
    for row, loss in zip(history.steps[-len(losses) :], losses, strict=True):
        row["loss"] = loss
        if loss != loss or loss == float("inf"):
            raise PetsError(
                f"the loss is {loss} at step {row['step']}: lower train.base_lr or train.lr_max"
            )
    return losses


def train_step(
    model: nn.Module,
    objective: Objective,
    batch: LoadedBatch,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> Tensor:
    """Forward, backward, step; return this rank's loss, summed over its samples.

    The gradient is that of the mean over the global batch, whatever its share on each rank.
    """
    loss_sum = objective.loss_sum(model(batch.inputs), batch.targets)
    accelerator.backward(loss_sum * (accelerator.num_processes / batch.global_size))
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum.detach()


@torch.no_grad()
def validate(
    model: nn.Module, objective: Objective, valid: Loader, accelerator: Accelerator
) -> tuple[float, float]:
    """Return mean loss and mean error over a split, each sample counted once."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64 if accelerator.device.type != "mps" else None)
    sums = sums.to(accelerator.device)
    for batch in valid.epoch(0):
        logits = model(batch.inputs)
        sums[0] += objective.loss_sum(logits, batch.targets)
        sums[1] += objective.error_sum(logits, batch.targets)
    loss, error = (accelerator.reduce(sums, "sum") / valid.num_rows).tolist()
    return loss, error


def _report_epoch(metrics: EpochMetrics, total: int, on_progress: OnProgress) -> None:
    detail = f"{metrics.phase}: train loss {metrics.train_loss:.3f}"
    if metrics.valid_loss is not None and metrics.valid_error_rate is not None:
        detail += (
            f", valid loss {metrics.valid_loss:.3f}, valid error {metrics.valid_error_rate:.1%}"
        )
    detail += f", {metrics.photos_per_second:.0f} photos/s"
    on_progress(
        Progress(stage="train", done=metrics.epoch + 1, total=total, unit="epochs", detail=detail)
    )
