"""Logits of a whole split, each row once, whatever the number of ranks."""

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

from pets_core.data.loading.loader import Batch, PhotoLoader
from pets_core.models.classifier import Classifier
from pets_core.models.memory import HalvingForward
from pets_core.progress import OnProgress, Progress, ignore_progress

__all__ = [
    "Decode",
    "Outputs",
    "average_predictions",
    "in_row_order",
    "predict_split",
    "predict_views",
]

_PLAIN_SHARE = 0.25
_BLOCK_BYTES = 16 * 2**20
"""Most that a GPU keeps of a split's outputs, and that a rank sends at a time."""


Decode = Callable[[Tensor, Batch], Tensor]
"""Returns predictions, (b, D), from a batch's logits, float32 (b, D)."""


class Outputs(NamedTuple):
    """What a model gives for N photos: (N, C), and pooled features (N, D) if asked for.

    Attributes:
        values: Decoded predictions.
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
    decode: Decode | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Outputs | None:
    """Run the model over every row of the loader's split.

    Each rank predicts its own share; nothing is padded, so nothing is counted twice. Where the
    loader augments, another `epoch` is another view of each photo.

    Returns:
        In row order, on rank 0; None on the others.
    """
    model.eval()
    rows: list[npt.NDArray[np.int64]] = []
    given: list[tuple[Tensor, ...]] = []
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
        # Before the batch is added, so that some are left for the end.
        if given and sum(each.nbytes for part in given for each in part) > _BLOCK_BYTES:
            host.append(_to_host(given))
            given = []
        given.append((values, *features))
        if time.monotonic() - reported > 1.0 or number == loader.num_batches:
            reported = time.monotonic()
            on_progress(
                Progress(stage="predict", done=number, total=loader.num_batches, unit="batches")
            )
    host.append(_to_host(given))
    own = [np.concatenate(parts) for parts in zip(*host, strict=True)]
    results = in_row_order(np.concatenate(rows), own, loader.num_rows)
    return None if results is None else Outputs(*results)


def _to_host(batches: list[tuple[Tensor, ...]]) -> list[npt.NDArray[np.float32]]:
    return [torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True)]


def in_row_order(
    rows: npt.NDArray[np.int64], own: list[npt.NDArray[np.float32]], num_rows: int
) -> list[npt.NDArray[np.float32]] | None:
    """Put the ranks' shares of a split together, on rank 0.

    They travel in blocks: a GPU holds one, and that of rank 0 one of every rank.

    Args:
        rows: This rank's places in the split, (n,).
        own: What it has for them, each (n, D).
        num_rows: Of the split, N.

    Returns:
        Each (N, D), on rank 0; None on the others.
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
    """Outputs for a split, averaged with those of augmented views if there are any.

    Args:
        model: On the device.
        plain: The photos, cropped.
        augmented: The same photos, augmented.
        num_views: Passes over these.
        accelerator: Mixed precision, devices, ranks.
        embeddings: Whether the features of the plain photos are wanted.
        decode: Returns predictions from logits.
        on_progress: Told of the batches of all passes.

    Returns:
        In row order, on rank 0; None on the others.
    """

    def passed(number: int) -> Outputs | None:
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
            decode=decode,
            on_progress=tell,
        )

    outputs = passed(0)
    views = [passed(number) for number in range(1, num_views + 1)]
    if outputs is None or not views:
        return outputs
    values = [view.values for view in views if view is not None]
    return Outputs(average_predictions(outputs.values, values), outputs.embeddings)


def average_predictions(
    plain: npt.NDArray[np.float32], views: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Average predictions over augmented views, as fastai's `tta` does: a quarter for the plain.

    Args:
        plain: Predictions of the plain photos, (N, D).
        views: Of each augmented view, (N, D); at least one.
    """
    mean = np.mean(views, axis=0, dtype=np.float64)
    averaged: npt.NDArray[np.float64] = _PLAIN_SHARE * plain + (1 - _PLAIN_SHARE) * mean
    return averaged.astype(np.float32)
