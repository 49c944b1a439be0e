"""The training loop. It knows a model, loaders and an objective, and nothing of images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pets_core.errors import PetsError
from pets_core.models.grouped import GroupedModel
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

    def add_epoch(
        self,
        phase: Literal["frozen", "unfrozen"],
        rows: list[dict[str, Any]],
        seconds: float,
        num_rows: int,
        scores: tuple[float, float] | None,
    ) -> None:
        """Append an epoch's steps and what they came to.

        Raises:
            PetsError: A loss is not finite.
        """
        epoch = len(self.epochs)
        for row in rows:
            step = len(self.steps)
            if not math.isfinite(row["loss"]):
                raise PetsError(
                    f"the loss is {row['loss']} at step {step}: lower train.base_lr or train.lr_max"
                )
            self.steps.append({"step": step, "phase": phase, "epoch": epoch} | row)
        self.epochs.append(
            EpochMetrics(
                phase=phase,
                epoch=epoch,
                train_loss=sum(row["loss"] for row in rows) / len(rows),
                valid_loss=scores[0] if scores else None,
                valid_error_rate=scores[1] if scores else None,
                seconds=seconds,
                photos_per_second=num_rows / seconds,
            )
        )


def fit(
    model: GroupedModel,
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
        model: On the accelerator's device.
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
    tell = _Telling(on_progress, sum(phase.epochs for phase in phases), train.num_batches)
    for phase in phases:
        freeze_to(model, phase.freeze_to)
        rates = spread(phase.lr_max, len(model.layer_groups()))
        optimizer = build_optimizer(model, rates, weight_decay)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        schedule = OneCycle(phase.epochs * train.num_batches, phase.pct_start, phase.div)
        for _ in range(phase.epochs):
            epoch, started = len(history.epochs), time.monotonic()
            train_mode(prepared, batch_norm)
            rows = train_epoch(
                prepared, objective, train, epoch, optimizer, schedule, accelerator, tell.step
            )
            seconds = time.monotonic() - started
            scores = validate(prepared, objective, valid, accelerator) if valid else None
            history.add_epoch(phase.name, rows, seconds, train.num_rows, scores)
            tell.epoch(history.epochs[-1])
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        accelerator.free_memory()
    return history


def train_epoch(
    model: nn.Module,
    objective: Objective,
    train: Loader,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycle,
    accelerator: Accelerator,
    on_step: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Take one pass over the training batches; `schedule` is moved on by each step.

    Returns:
        A row a step: loss (mean over the global batch), momentum, and each layer group's rate.
    """
    rows: list[dict[str, Any]] = []
    sums: list[Tensor] = []
    sizes: list[int] = []
    for number, batch in enumerate(train.epoch(epoch)):
        lr_factor, momentum = schedule.advance()
        rates = set_rates(optimizer, lr_factor, momentum)
        sums.append(train_step(model, objective, batch, optimizer, accelerator))
        sizes.append(batch.global_size)
        named = {f"lr_group_{group}": rate for group, rate in rates.items()}
        rows.append({"momentum": momentum} | named)
        on_step(epoch * train.num_batches + number + 1)
    # One synchronisation an epoch, not one a step.
    reduced: Tensor = accelerator.reduce(torch.stack(sums), "sum")
    for row, loss, size in zip(rows, reduced.tolist(), sizes, strict=True):
        row["loss"] = loss / size
    return rows


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
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch in valid.epoch(0):
        logits = model(batch.inputs)
        sums[0] += objective.loss_sum(logits, batch.targets)
        sums[1] += objective.error_sum(logits, batch.targets)
    loss, error = (accelerator.reduce(sums, "sum") / valid.num_rows).tolist()
    return loss, error


class _Telling:
    """Turns steps and epochs into progress, steps no more often than people can read."""

    def __init__(self, on_progress: OnProgress, num_epochs: int, steps_an_epoch: int) -> None:
        self._on_progress, self._num_epochs = on_progress, num_epochs
        self._steps_an_epoch = steps_an_epoch
        self._last = time.monotonic()

    def step(self, done: int) -> None:
        if time.monotonic() - self._last < _REPORT_EVERY_SECONDS:
            return
        self._last = time.monotonic()
        epoch = (done - 1) // self._steps_an_epoch + 1
        self._on_progress(
            Progress(
                stage="train",
                done=done,
                total=self._num_epochs * self._steps_an_epoch,
                unit="steps",
                detail=f"epoch {epoch}/{self._num_epochs}",
            )
        )

    def epoch(self, metrics: EpochMetrics) -> None:
        detail = f"{metrics.phase}: train loss {metrics.train_loss:.3f}"
        if metrics.valid_loss is not None and metrics.valid_error_rate is not None:
            detail += f", valid loss {metrics.valid_loss:.3f}"
            detail += f", valid error {metrics.valid_error_rate:.1%}"
        self._on_progress(
            Progress(
                stage="train",
                done=metrics.epoch + 1,
                total=self._num_epochs,
                unit="epochs",
                detail=f"{detail}, {metrics.photos_per_second:.0f} photos/s",
            )
        )
