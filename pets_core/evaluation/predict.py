"""Distributed prediction of a split: every row exactly once, on any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pets_core.data.loading.batches import Batch
from pets_core.data.loading.loader import PhotoLoader
from pets_core.models.classifier import Classifier
from pets_core.models.memory import HalvingForward
from pets_core.progress import OnProgress, Progress, ignore_progress

__all__ = [
    "Decode",
    "Outputs",
    "average_predictions",
    "gather_in_row_order",
    "predict_split",
    "predict_views",
]

_PLAIN_WEIGHT = 0.25
_BLOCK_BYTES = 16 * 2**20
"""Maximum size of outputs that a GPU keeps, and that a rank sends at once."""


Decode = Callable[[Tensor, Batch], Tensor]
"""Returns the predictions of a batch, (b, D), from its logits, float32 (b, D)."""


class Outputs(NamedTuple):
    """Outputs of a model for N photos.

    Attributes:
        values: Predictions, or logits without a decoder, (N, C).
        embeddings: Pooled features, (N, D), if requested.
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
    decode: Decode | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Outputs | None:
    """Predict every row of the loader's split.

    Each rank predicts its own share, without padding. With an augmenting loader, each `epoch` is
    another view of the photos.

    Returns:
        Outputs in row order on rank 0, None on other ranks.
    """
    model.eval()
    rows: list[npt.NDArray[np.int64]] = []
    pending: list[tuple[Tensor, ...]] = []
    host: list[list[npt.NDArray[np.float32]]] = []
    reported = time.monotonic()

    def forward(inputs: Tensor) -> tuple[Tensor, ...]:
        features = model.embed(inputs)
        logits = model.head(features)
        return (logits.float(), features.float()) if embeddings else (logits.float(),)

    forward_fitting = HalvingForward(forward, accelerator)
    for number, batch in enumerate(loader.epoch(epoch), 1):
        rows.append(batch.rows)
        logits, *features = forward_fitting(batch.inputs)
        values = decode(logits, batch) if decode else logits
        # Flush before appending, so that the last block is not empty.
        if pending and sum(each.nbytes for part in pending for each in part) > _BLOCK_BYTES:
            host.append(_to_host(pending))
            pending = []
        pending.append((values, *features))
        if time.monotonic() - reported > 1.0 or number == loader.num_batches:
            reported = time.monotonic()
            on_progress(
                Progress(stage="predict", done=number, total=loader.num_batches, unit="batches")
            )
    host.append(_to_host(pending))
    own = [np.concatenate(parts) for parts in zip(*host, strict=True)]
    results = gather_in_row_order(np.concatenate(rows), own, loader.num_rows)
    return None if results is None else Outputs(*results)


def _to_host(batches: list[tuple[Tensor, ...]]) -> list[npt.NDArray[np.float32]]:
    return [torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)]


def gather_in_row_order(
    rows: npt.NDArray[np.int64], own: list[npt.NDArray[np.float32]], num_rows: int
) -> list[npt.NDArray[np.float32]] | None:
    """Gather the outputs of all ranks on rank 0, in row order.

    Outputs are sent in blocks: a GPU holds one block, and the GPU of rank 0 one of each rank.

    Args:
        rows: Row indices of this rank, (n,).
        own: Outputs of this rank, (n, D) each.
        num_rows: Rows of the split, N.

    Returns:
        Arrays (N, D) on rank 0, None on other ranks.
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    is_main = num_ranks == 1 or dist.get_rank() == 0
    results = [np.empty((num_rows, part.shape[1]), np.float32) for part in own] if is_main else []
    seen = np.zeros(num_rows, np.int64)
    row_bytes = sum(part.shape[1] * part.itemsize for part in own)
    block = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
    for start in range(0, max(gather_object([len(rows)])), block):
        places = rows[start : start + block]
        parts = [part[start : start + block] for part in own]
        shares = [(places, parts)] * num_ranks
        if num_ranks > 1:
            dist.gather_object((places, parts), shares if is_main else None)
        if not is_main:
            continue
        for share_places, share_parts in shares:
            for result, part in zip(results, share_parts, strict=True):
                result[share_places] = part
            np.add.at(seen, share_places, 1)
    if not is_main:
        return None
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
    decode: Decode | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Outputs | None:
    """Predict a split, averaged over augmented views if there are any.

    Args:
        model: On the device.
        plain: Loads center crops of the photos.
        augmented: Loads augmented views of the same photos.
        num_views: Passes over `augmented`.
        accelerator: Mixed precision, devices, ranks.
        embeddings: Whether to return the features of the center crops.
        decode: Returns predictions from logits.
        on_progress: Called with the progress over the batches of all passes.

    Returns:
        Outputs in row order on rank 0, None on other ranks.
    """

    def predict_pass(number: int) -> Outputs | None:
        def report(progress: Progress) -> None:
            done = number * progress.total + progress.done
            total = (num_views + 1) * progress.total
            on_progress(progress.model_copy(update={"done": done, "total": total}))

        return predict_split(
            model,
            augmented if number else plain,
            accelerator=accelerator,
            epoch=max(number - 1, 0),
            embeddings=embeddings and number == 0,
            decode=decode,
            on_progress=report,
        )

    outputs = predict_pass(0)
    views = [predict_pass(number) for number in range(1, num_views + 1)]
    if outputs is None or not views:
        return outputs
    values = [view.values for view in views if view is not None]
    return Outputs(average_predictions(outputs.values, values), outputs.embeddings)


def average_predictions(
    plain: npt.NDArray[np.float32], views: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Average predictions over views as fastai's `tta`: weight 0.25 for the center crop.

    Args:
        plain: Predictions of the center crops, (N, D).
        views: Predictions of each augmented view, (N, D); at least one.
    """
    mean = np.mean(views, axis=0, dtype=np.float64)
    averaged: npt.NDArray[np.float64] = _PLAIN_WEIGHT * plain + (1 - _PLAIN_WEIGHT) * mean
    return averaged.astype(np.float32)
