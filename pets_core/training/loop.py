"""The training loop. It knows a model, loaders and an objective, and nothing of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pets_core.config import RateSlice, TrainConfig
from pets_core.models.grouped import GroupedModel
from pets_core.objectives import Objective
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records import EpochMetrics
from pets_core.training.best import Best
from pets_core.training.figures import StepFigures
from pets_core.training.groups import build_optimizer, freeze_to, set_rates, train_mode
from pets_core.training.memory import largest_micro_batch
from pets_core.training.schedule import OneCycle, Phase, spread

__all__ = [
    "History",
    "Loader",
    "Prepared",
    "StepResult",
    "fit",
    "prepare",
    "release",
    "train_epoch",
    "train_step",
    "validate",
]

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
    def ids(self) -> Sequence[str]:
        """What the samples are called, b names."""
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
        """Append an epoch's steps and what they came to."""
        epoch = len(self.epochs)
        for row in rows:
            self.steps.append({"step": len(self.steps), "phase": phase, "epoch": epoch} | row)
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


class StepResult(NamedTuple):
    """Of one optimizer step: this rank's loss, summed over its samples; the gradient's norm."""

    loss_sum: Tensor
    grad_norm: Tensor


@dataclass(frozen=True)
class Prepared:
    """A model, frozen in part, with all that its optimizer steps need.

    Attributes:
        model: As `accelerator` wrapped it.
        optimizer: Over what learns.
        objective: What is minimised.
        accelerator: Mixed precision, devices, ranks, trackers.
        config: Settings of the recipe.
        micro_batch_size: Most samples in one forward pass; 0: all.
    """

    model: nn.Module
    optimizer: AcceleratedOptimizer
    objective: Objective
    accelerator: Accelerator
    config: TrainConfig
    micro_batch_size: int


def fit(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    valid: Loader | None,
    phases: list[Phase],
    config: TrainConfig,
    *,
    accelerator: Accelerator,
    on_progress: OnProgress = ignore_progress,
) -> History:
    """Train `model` in place through all phases.

    Args:
        model: On the accelerator's device; what it ends as is what `config.keep` and
            `config.ema_decay` say.
        objective: Loss and metric.
        train: Shuffled training batches.
        valid: Judged after every epoch, if given.
        phases: Runs of epochs, each under a one-cycle schedule of its own. Early stopping ends a
            phase.
        config: Everything else; rates and epochs are those of the phases.
        accelerator: Mixed precision, devices, ranks, trackers.
        on_progress: Told of steps and epochs.

    Raises:
        PetsError: A loss is not finite, or one sample does not fit the memory.
    """
    history, best = History(), Best()
    ema = ModelEmaV3(model, config.ema_decay, use_warmup=True) if config.ema_decay else None
    judged = ema.module if ema else model
    tell = _Telling(on_progress, sum(phase.epochs for phase in phases), train.num_batches)
    for phase in phases:
        prepared = prepare(
            model, objective, train, config, accelerator, phase.freeze_to, phase.lr_max
        )
        schedule = OneCycle(phase.epochs * train.num_batches, phase.pct_start, phase.div)
        best.epochs_since = 0
        for _ in range(phase.epochs):
            started = time.monotonic()
            rows = train_epoch(prepared, train, len(history.epochs), schedule, ema, tell.step)
            seconds = time.monotonic() - started
            scores = validate(judged, objective, valid, accelerator) if valid else None
            history.add_epoch(phase.name, rows, seconds, train.num_rows, scores)
            _log(accelerator, history.steps[-len(rows) :], history.epochs[-1])
            tell.epoch(history.epochs[-1])
            if scores and config.keeps_best:
                best.offer(judged, scores[0])
            if 0 < config.early_stopping_epochs <= best.epochs_since:
                break
        release(prepared)
    if ema:
        model.load_state_dict(ema.module.state_dict())
    if config.keep == "best":
        best.restore(model)
    return history


def prepare(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    config: TrainConfig,
    accelerator: Accelerator,
    first_group: int,
    lr_max: RateSlice,
) -> Prepared:
    """Freeze the layer groups before `first_group` and make the others ready to learn.

    Raises:
        PetsError: One sample does not fit the memory.
    """
    freeze_to(model, first_group)
    rates = spread(lr_max, len(model.layer_groups()))
    optimizer = build_optimizer(model, rates, config.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    train_mode(wrapped, config.batch_norm)
    micro_batch_size = config.micro_batch_size
    if not micro_batch_size and accelerator.device.type == "cuda":
        batch = next(iter(train.epoch(0)))
        micro_batch_size = largest_micro_batch(
            wrapped, objective, batch.inputs, batch.targets, accelerator=accelerator
        )
    if config.compile:
        wrapped.compile()
    return Prepared(wrapped, optimizer, objective, accelerator, config, micro_batch_size)


def release(prepared: Prepared) -> None:
    """Take off what `prepare` wrapped around the model, and free the optimizer's memory."""
    prepared.model._compiled_call_impl = None
    model = prepared.accelerator.unwrap_model(prepared.model, keep_fp32_wrapper=False)
    # Accelerate passes over a model with this mark: the next phase would train without mixed
    # precision.
    vars(model).pop("_is_accelerate_prepared", None)
    prepared.accelerator.free_memory()


def train_epoch(
    prepared: Prepared,
    train: Loader,
    epoch: int,
    schedule: OneCycle,
    ema: ModelEmaV3 | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Take one pass over the training batches; `schedule` is moved on by each step.

    Returns:
        A row a step: loss (mean over the global batch), gradient norm, momentum, each layer group's
        rate, samples a second, and the seconds of the step that were spent waiting for data.

    Raises:
        PetsError: A loss is not finite.
    """
    accelerator, model = prepared.accelerator, prepared.model
    train_mode(model, prepared.config.batch_norm)
    rows: list[dict[str, Any]] = []
    sizes: list[int] = []
    done = epoch * train.num_batches
    scaled = accelerator.scaler is not None
    figures = StepFigures(train.num_batches, done, accelerator.device, scaled=scaled)
    began = time.perf_counter()
    for batch in train.epoch(epoch):
        waited = time.perf_counter() - began
        lr_factor, momentum = schedule.advance()
        rates = set_rates(prepared.optimizer, lr_factor, momentum)
        loss_sum, grad_norm = train_step(prepared, batch)
        done += 1
        if ema:
            ema.update(accelerator.unwrap_model(model), done)
        figures.add(loss_sum, grad_norm, rates, batch.ids)
        ended = time.perf_counter()
        rows.append(
            {
                "momentum": momentum,
                "samples_per_second": batch.global_size / (ended - began),
                "data_seconds": waited,
            }
            | {f"lr_group_{group}": rate for group, rate in rates.items()}
        )
        sizes.append(batch.global_size)
        began = ended
        on_step(done)
    figures.check(wait=True)
    # One synchronisation an epoch, not one a step.
    losses = accelerator.reduce(figures.loss_sums.to(accelerator.device), "sum").tolist()
    for row, loss, size, norm in zip(rows, losses, sizes, figures.grad_norms, strict=True):
        row |= {"loss": loss / size, "grad_norm": norm}
    return rows


def train_step(prepared: Prepared, batch: LoadedBatch) -> StepResult:
    """Forward, backward, clip, step.

    The gradient is that of the mean over the global batch, whatever its share on each rank and
    however many micro-batches it takes. A gradient that is not finite changes no weight.
    """
    model, accelerator = prepared.model, prepared.accelerator
    mean = accelerator.num_processes / batch.global_size
    size = prepared.micro_batch_size or max(len(batch.inputs), 1)
    parts = list(
        zip(torch.split(batch.inputs, size), torch.split(batch.targets, size), strict=True)
    )
    losses: list[Tensor] = []
    for number, (inputs, targets) in enumerate(parts, 1):
        with nullcontext() if number == len(parts) else accelerator.no_sync(model):
            loss_sum = prepared.objective.loss_sum(model(inputs), targets)
            accelerator.backward(loss_sum * mean)
        losses.append(loss_sum.detach())
    grad_norm = _clip(prepared)
    if accelerator.scaler is None:
        # As a gradient scaler tells a fused optimizer; it skips the step without asking the host.
        prepared.optimizer.optimizer.found_inf = (~grad_norm.isfinite()).float()
    prepared.optimizer.step()
    prepared.optimizer.zero_grad()
    return StepResult(torch.stack(losses).sum(), grad_norm)


def _clip(prepared: Prepared) -> Tensor:
    """Return the gradient's norm, after scaling down what is longer than the settings allow."""
    prepared.accelerator.unscale_gradients(prepared.optimizer)
    learning = [p for group in prepared.optimizer.param_groups for p in group["params"]]
    norm = get_total_norm([p.grad for p in learning if p.grad is not None])
    if prepared.config.max_grad_norm is not None:
        clip_grads_with_norm_(learning, prepared.config.max_grad_norm, norm)
    return norm


def _log(accelerator: Accelerator, steps: list[dict[str, Any]], epoch: EpochMetrics) -> None:
    """Tell the trackers of an epoch's steps and of what it came to."""
    for row in steps:
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        accelerator.log({f"train/{key}": value for key, value in numbers.items()}, row["step"])
    if epoch.valid_loss is not None:
        valid = {"valid/loss": epoch.valid_loss, "valid/error_rate": epoch.valid_error_rate}
        accelerator.log(valid, steps[-1]["step"])


@torch.no_grad()
def validate(
    model: nn.Module, objective: Objective, valid: Loader, accelerator: Accelerator
) -> tuple[float, float]:
    """Return mean loss and mean error over a split, each sample counted once."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch in valid.epoch(0):
        with accelerator.autocast():
            logits = model(batch.inputs)
        sums[0] += objective.valid_loss_sum(logits, batch.targets)
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
