"""Logits of a whole split, each row once, whatever the number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pets_core.data.loader import Batch, PhotoLoader
from pets_core.models.classifier import Classifier
from pets_core.progress import OnProgress, Progress, ignore_progress

__all__ = [
    "Outputs",
    "Told",
    "average_predictions",
    "average_views",
    "in_row_order",
    "predict_split",
    "predict_views",
]

_PLAIN_SHARE = 0.25


Told = Callable[[Tensor, Batch], Tensor]
"""Makes of a batch's logits, float32 (b, C), what a model tells that does not choose a class."""


class Outputs(NamedTuple):
    """What a model gives for N photos: (N, C), and pooled features (N, D) if asked for.

    Attributes:
        values: Logits of classes, or what is told of tags, numbers or places.
        embeddings: Pooled features.
    """

    values: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32] | None = None


@torch.no_grad()
def predict_split(
    model: Classifier,
    loader: PhotoLoader,
    *,
    accelerator: Accelerator,
    epoch: int = 0,
    embeddings: bool = False,
    told: Told | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Outputs:
    """Run the model over every row of the loader's split.

    Each rank predicts its own share; nothing is padded, so nothing is counted twice. Where the
    loader augments, another `epoch` is another view of each photo.

    Returns:
        In row order, on every rank.
    """
    model.eval()
    rows: list[npt.NDArray[np.int64]] = []
    given: list[tuple[Tensor, ...]] = []
    reported = time.monotonic()
    for number, batch in enumerate(loader.epoch(epoch), 1):
        rows.append(batch.rows)
        with accelerator.autocast():
            features = model.embed(batch.inputs)
            logits = model.head(features)
        values = told(logits.float(), batch) if told else logits.float()
        given.append((values, features.float()) if embeddings else (values,))
        if time.monotonic() - reported > 1.0 or number == loader.num_batches:
            reported = time.monotonic()
            on_progress(
                Progress(stage="predict", done=number, total=loader.num_batches, unit="batches")
            )
    own = [torch.cat(parts).cpu().numpy() for parts in zip(*given, strict=True)]
    return Outputs(*in_row_order(np.concatenate(rows), own, loader.num_rows))


def in_row_order(
    rows: npt.NDArray[np.int64], own: list[npt.NDArray[np.float32]], num_rows: int
) -> list[npt.NDArray[np.float32]]:
    """Put the ranks' shares of a split together.

    Args:
        rows: This rank's places in the split, (n,).
        own: What it has for them, each (n, D).
        num_rows: Of the split, N.

    Returns:
        Each (N, D), on every rank.
    """
    shares = gather_object([(rows, own)])
    results = [np.empty((num_rows, part.shape[1]), np.float32) for part in own]
    seen = np.zeros(num_rows, np.int64)
    for places, parts in shares:
        for result, part in zip(results, parts, strict=True):
            result[places] = part
        np.add.at(seen, places, 1)
    assert (seen == 1).all(), "every row is predicted exactly once"
    return results


def predict_views(
    model: Classifier,
    plain: PhotoLoader,
    augmented: PhotoLoader,
    num_views: int,
    *,
    accelerator: Accelerator,
    embeddings: bool = False,
    told: Told | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Outputs:
    """Outputs for a split, averaged with those of augmented views if there are any.

    Args:
        model: On the device.
        plain: The photos, cropped.
        augmented: The same photos, augmented.
        num_views: Passes over these.
        accelerator: Mixed precision, devices, ranks.
        embeddings: Whether the features of the plain photos are wanted.
        told: What a model tells that does not choose a class.
        on_progress: Told of the batches of all passes.

    Returns:
        In row order, on every rank.
    """

    def passed(number: int) -> Outputs:
        def tell(progress: Progress) -> None:
            done = number * progress.total + progress.done
            total = (num_views + 1) * progress.total
            on_progress(progress.model_copy(update={"done": done, "total": total}))

        return predict_split(
            model,
            augmented if number else plain,
            accelerator=accelerator,
            epoch=max(number - 1, 0),
            embeddings=embeddings and number == 0,
            told=told,
            on_progress=tell,
        )

    outputs = passed(0)
    if not num_views:
        return outputs
    views = [passed(number).values for number in range(1, num_views + 1)]
    average = average_predictions if told else average_views
    return Outputs(average(outputs.values, views), outputs.embeddings)


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


def average_predictions(
    plain: npt.NDArray[np.float32], views: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """The same of probabilities of tags, or of numbers, (N, D)."""
    mean = np.mean(views, axis=0, dtype=np.float64)
    averaged: npt.NDArray[np.float64] = _PLAIN_SHARE * plain + (1 - _PLAIN_SHARE) * mean
    return averaged.astype(np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return torch.from_numpy(logits).double().softmax(1).numpy()
