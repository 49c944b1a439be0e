"""Breed and probability for single photos, from a model folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.data.images import UnreadablePhotoError, decode
from pets_core.errors import PetsError
from pets_core.models.package import TrainedModel, load_model

__all__ = ["Prediction", "predict_photos"]

_BATCH = 32


class Prediction(BaseModel):
    """What a model says of one photo; `error` says why it could not look at it.

    `top` holds the most probable classes and their probabilities, most probable first.
    """

    model_config = ConfigDict(frozen=True)

    photo: str
    breed: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict_photos(
    model_url: str, photos: Sequence[str], *, num_top: int = 3
) -> Iterator[Prediction]:
    """Classify photos of any format Pillow reads, in the order given.

    Args:
        model_url: A model folder, path or URL.
        photos: Paths or URLs.
        num_top: How many classes to list for each.

    Raises:
        PetsError: There is no usable model at `model_url`.
    """
    built = load_model(model_url)
    remaining = iter(photos)
    while batch := list(islice(remaining, _BATCH)):
        yield from _predict_batch(built, batch, num_top)


@torch.inference_mode()
def _predict_batch(built: TrainedModel, photos: list[str], num_top: int) -> list[Prediction]:
    card, pixels, results = built.card, [], []
    for photo in photos:
        try:
            data = storage.read_bytes(storage.absolute(photo))
            pixels.append(decode(data, card.resize_to))
            results.append(Prediction(photo=photo))
        except PetsError as error:
            results.append(Prediction(photo=photo, error=str(error)))
        except UnreadablePhotoError as error:
            said = f"{error.reason.replace('_', ' ')}: {error.detail}"
            results.append(Prediction(photo=photo, error=said))
    if not pixels:
        return results
    logits = built.model(card.center_crop()(torch.from_numpy(np.stack(pixels))))
    names = [c.name for c in card.classes]
    best = logits.softmax(1).topk(min(num_top, len(names)))
    rows = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True))
    return [result if result.error else _named(result, *next(rows), names) for result in results]


def _named(
    result: Prediction, probabilities: list[float], indices: list[int], names: list[str]
) -> Prediction:
    top = tuple((names[i], p) for i, p in zip(indices, probabilities, strict=True))
    return result.model_copy(update={"breed": top[0][0], "probability": top[0][1], "top": top})
