"""Learning-rate range test (Smith 2015), and suggested rates read off its curve."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from pets_core import storage
from pets_core.config.rates import RateSlice
from pets_core.config.train import LRFindConfig, TrainConfig
from pets_core.errors import PetsError
from pets_core.models.grouped import GroupedModel
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records.training import Suggestions
from pets_core.targets.objective import Objective
from pets_core.training.loop import train_step
from pets_core.training.prepared import Loader, prepare

__all__ = [
    "Curve",
    "lr_find",
    "read_suggestions",
    "smooth",
    "suggest",
    "trim_curve",
    "write_curve",
]

_SMOOTHING = 0.98
_DIVERGED = 4.0
_MIN_STEPS = 10


@dataclass(frozen=True)
class Curve:
    """Learning rate and loss of each step of a range test.

    Attributes:
        rates: Shape (n,), rising.
        losses: Shape (n,).
        smoothed: Bias-corrected running mean of `losses`, shape (n,).
    """

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    smoothed: npt.NDArray[np.float64]


def lr_find(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    config: LRFindConfig,
    training: TrainConfig,
    *,
    accelerator: Accelerator,
    on_progress: OnProgress = ignore_progress,
) -> Curve:
    """Raise the rate exponentially over optimizer steps until the loss diverges (Smith 2015).

    The steps are those of the first training phase, taken by a copy of the model: the model and
    the random state do not change. Without frozen epochs all layer groups are trained, or those
    from `unfreeze_to` on if it is set. Batches are repeated if there are fewer than steps.

    Args:
        model: Model to copy.
        objective: Loss to minimise.
        train: Training batches, as in training.
        config: Range and number of steps.
        training: Frozen layer groups, weight decay, clipping.
        accelerator: Mixed precision, devices, ranks.
        on_progress: Callback for steps.
    """
    rates = np.geomspace(config.start_lr, config.end_lr, config.num_steps)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        steps = _steps(model, objective, train, training, rates, accelerator)
        losses: list[float] = []
        for loss in steps:
            losses.append(loss)
            if _diverged(losses):
                losses.pop()
                break
            _report_progress(on_progress, losses, rates)
        steps.close()
    accelerator.free_memory()
    return Curve(rates[: len(losses)], np.array(losses), smooth(losses))


def _steps(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    training: TrainConfig,
    rates: npt.NDArray[np.float64],
    accelerator: Accelerator,
) -> Generator[float]:
    """Take one step at each rate with a copy of the model; yield the loss before the step."""
    trains_head = training.num_frozen_epochs > 0 or training.starts_from_probe
    first_group = training.freeze_to if trains_head else training.unfreeze_to or 0
    prepared = prepare(
        copy.deepcopy(model), objective, train, training, accelerator, first_group,
        RateSlice(1.0, uniform=True),
    )  # fmt: skip
    for rate, batch in zip(rates.tolist(), _cycle(train), strict=False):
        for group in prepared.optimizer.param_groups:
            group["lr"] = rate
        own, _ = train_step(prepared, batch)
        yield float(accelerator.reduce(own, "sum")) / batch.global_size


def _diverged(losses: Sequence[float]) -> bool:
    smoothed = smooth(losses)
    return not math.isfinite(losses[-1]) or bool(smoothed[-1] > _DIVERGED * smoothed.min())


def smooth(losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the bias-corrected exponential running mean, with a memory of 50 steps."""
    average, result = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        result.append(average / (1 - _SMOOTHING**step))
    return np.array(result)


def read_suggestions(curve: Curve, config: LRFindConfig) -> Suggestions:
    """Read suggestions off the curve of a range test.

    Raises:
        PetsError: The loss diverged within the first 10 steps, or it only rises.
    """
    if len(curve.rates) < _MIN_STEPS:
        raise PetsError(
            f"the LR finder diverged after {len(curve.rates)} steps: lower lr_find.start_lr "
            f"(now {config.start_lr:g})"
        )
    return suggest(*trim_curve(curve))


def suggest(rates: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> Suggestions:
    """Read suggestions off a curve, as fastai's `lr_find` does.

    Args:
        rates: Shape (n,), rising, n at least 2.
        losses: Smoothed, shape (n,).

    Raises:
        PetsError: The loss only rises.
    """
    if losses.argmin() == 0:
        raise PetsError(
            "the loss never fell in the learning-rate range test, so no rate is suggested: lower "
            "lr_find.start_lr"
        )
    slopes = np.diff(losses) / np.diff(np.log(rates))
    return Suggestions(
        minimum=float(rates[losses.argmin()]) / 10,
        steepest=float(rates[slopes.argmin()]),
        valley=float(rates[_valley(losses)]),
        slide=float(rates[_slide(losses)]),
    )


def _valley(losses: npt.NDArray[np.float64]) -> int:
    """Return the middle of the second third of the longest falling subsequence's span."""
    lengths = np.ones(len(losses), np.int64)
    for i in range(1, len(losses)):
        lower = lengths[:i][losses[:i] > losses[i]]
        if lower.size:
            lengths[i] = lower.max() + 1
    end = int(lengths.argmax())
    start = end - int(lengths[end])
    third = (end - start) / 3
    return start + int(third) + int(third / 2)


def _slide(losses: npt.NDArray[np.float64], interval: int = 15, threshold: float = 0.005) -> int:
    """Move an interval down from the right while the slopes at its ends differ."""
    gradient = np.gradient(losses)
    settled = max(len(losses) - 1 - interval, 0)
    for left in range(settled, -1, -1):
        right = min(left + interval, len(losses) - 1)
        if abs(gradient[right] - gradient[left]) <= threshold:
            break
        settled = left
    return settled


def _report_progress(
    on_progress: OnProgress, losses: Sequence[float], rates: npt.NDArray[np.float64]
) -> None:
    done, total = len(losses), len(rates)
    if done % 10 == 0:
        detail = f"lr {rates[done - 1]:.1e}, loss {losses[-1]:.3f}"
        on_progress(Progress(stage="lr-find", done=done, total=total, unit="steps", detail=detail))


def _cycle(train: Loader) -> Iterator[Any]:
    for epoch in count():
        yield from train.epoch(epoch)


def trim_curve(curve: Curve) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return rates and smoothed losses without the first tenth and the last 5 steps."""
    first, last = len(curve.rates) // 10, max(len(curve.rates) - 5, len(curve.rates) // 10 + 2)
    return curve.rates[first:last], curve.smoothed[first:last]


def write_curve(url: str, curve: Curve) -> None:
    """Write the curve as Parquet, one row per step: learning rate, loss, smoothed loss."""
    with storage.writing(url) as file:
        pq.write_table(
            pa.table({"lr": curve.rates, "loss": curve.losses, "smoothed": curve.smoothed}), file
        )
