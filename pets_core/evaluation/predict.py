"""Logits of a whole split, each row once, whatever the number of ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pets_core.data.loader import PhotoLoader
from pets_core.progress import OnProgress, Progress, ignore_progress

__all__ = ["average_views", "predict_logits", "predict_views"]

_PLAIN_SHARE = 0.25


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    loader: PhotoLoader,
    *,
    accelerator: Accelerator,
    epoch: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> npt.NDArray[np.float32]:
    """Run the model over every row of the loader's split.

    Each rank predicts its own share; nothing is padded, so nothing is counted twice. Where the
    loader augments, another `epoch` is another view of each photo.

    Returns:
        Logits, shape (N, C), in row order, on every rank.
    """
    model.eval()
    rows: list[npt.NDArray[np.int64]] = []
    logits: list[torch.Tensor] = []
    reported = time.monotonic()
    for number, batch in enumerate(loader.epoch(epoch), 1):
        rows.append(batch.rows)
        with accelerator.autocast():
            logits.append(model(batch.inputs).float())
        if time.monotonic() - reported > 1.0 or number == loader.num_batches:
            reported = time.monotonic()
            on_progress(
                Progress(stage="evaluate", done=number, total=loader.num_batches, unit="batches")
            )
    own = (np.concatenate(rows), torch.cat(logits).cpu().numpy())
    shares = gather_object([own])
    result = np.empty((loader.num_rows, own[1].shape[1]), np.float32)
    seen = np.zeros(loader.num_rows, np.int64)
    for places, values in shares:
        result[places] = values
        np.add.at(seen, places, 1)
    assert (seen == 1).all(), "every row is predicted exactly once"
    return result


def predict_views(
    model: nn.Module,
    plain: PhotoLoader,
    augmented: PhotoLoader,
    num_views: int,
    *,
    accelerator: Accelerator,
    on_progress: OnProgress = ignore_progress,
) -> npt.NDArray[np.float32]:
    """Logits of a split, averaged with those of augmented views of each photo if there are any.

    Args:
        model: On the device.
        plain: The photos, cropped.
        augmented: The same photos, augmented.
        num_views: Passes over these.
        accelerator: Mixed precision, devices, ranks.
        on_progress: Told of the batches of all passes.

    Returns:
        Shape (N, C), in row order, on every rank.
    """

    def passed(number: int) -> npt.NDArray[np.float32]:
        def tell(progress: Progress) -> None:
            done = number * progress.total + progress.done
            total = (num_views + 1) * progress.total
            on_progress(progress.model_copy(update={"done": done, "total": total}))

        loader = augmented if number else plain
        epoch = max(number - 1, 0)
        return predict_logits(model, loader, accelerator=accelerator, epoch=epoch, on_progress=tell)

    logits = passed(0)
    if not num_views:
        return logits
    return average_views(logits, [passed(number) for number in range(1, num_views + 1)])


def average_views(
    logits: npt.NDArray[np.float32], views: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Average predictions over augmented views, as fastai's `tta` does: a quarter for the plain.

    Args:
        logits: Of the plain photos, (N, C).
        views: Logits of each augmented view, (N, C); at least one.

    Returns:
        Logarithms of the averaged probabilities, (N, C): logits of the same softmax.
    """
    probabilities = np.mean([_softmax(view) for view in views], axis=0)
    mixed = _PLAIN_SHARE * _softmax(logits) + (1 - _PLAIN_SHARE) * probabilities
    averaged: npt.NDArray[np.float32] = np.log(np.maximum(mixed, np.finfo(np.float32).tiny))
    return averaged.astype(np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return torch.from_numpy(logits).double().softmax(1).numpy()
