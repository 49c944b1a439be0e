"""Breed and probability for single photos, from a model folder or an ONNX file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.data.images import UnreadablePhotoError, decode
from pets_core.errors import PetsError
from pets_core.models.card import ONNX_KEY, ModelCard

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


class _Model(NamedTuple):
    """A card, and what makes probabilities (B, C) of photos, uint8 (B, R, R, 3)."""

    card: ModelCard
    probabilities: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def predict_photos(
    model_url: str, photos: Sequence[str], *, num_top: int = 3
) -> Iterator[Prediction]:
    """Classify photos of any format Pillow reads, in the order given.

    Args:
        model_url: A model folder, or an ONNX file of `pets export`; path or URL. The latter needs
            no torch.
        photos: Paths or URLs.
        num_top: How many classes to list for each.

    Raises:
        PetsError: There is no usable model at `model_url`.
    """
    model = _open_onnx(model_url) if model_url.endswith(".onnx") else _open_folder(model_url)
    remaining = iter(photos)
    while batch := list(islice(remaining, _BATCH)):
        yield from _predict_batch(model, batch, num_top)


def _open_folder(url: str) -> _Model:
    import torch

    from pets_core.models.package import load_model

    built = load_model(url)
    crop = built.card.center_crop()

    @torch.inference_mode()
    def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = built.model(crop(torch.from_numpy(pixels)))
        found: NDArray[np.float32] = logits.softmax(1).numpy()
        return found

    return _Model(built.card, probabilities)


def _open_onnx(url: str) -> _Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise PetsError(
            "onnxruntime is not installed: pip install 'pets-pipeline[onnx]'"
        ) from error
    data = storage.read_bytes(storage.absolute(url))
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        card = ModelCard.model_validate_json(session.get_modelmeta().custom_metadata_map[ONNX_KEY])
    except KeyError as error:
        raise PetsError(
            f"{url}: an ONNX file, but none of `pets export`: it does not say what its classes are"
        ) from error
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}: its card is of another version; export the model anew") from error
    except Exception as error:  # onnxruntime has a class for each fault, with no base of its own
        raise PetsError(f"{url} is damaged: {str(error).splitlines()[0]}") from error

    def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        (found,) = session.run(None, {"photos": pixels})
        return np.asarray(found, np.float32)

    return _Model(card, probabilities)


def _predict_batch(model: _Model, photos: list[str], num_top: int) -> list[Prediction]:
    card, pixels, results = model.card, [], []
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
    names = [c.name for c in card.classes]
    rows = iter(model.probabilities(np.stack(pixels)))
    return [result if result.error else _named(result, next(rows), names, num_top)
            for result in results]  # fmt: skip


def _named(
    result: Prediction, probabilities: NDArray[np.float32], names: list[str], num_top: int
) -> Prediction:
    best = np.argsort(-probabilities, kind="stable")[:num_top].tolist()
    top = tuple((names[i], float(probabilities[i])) for i in best)
    return result.model_copy(update={"breed": top[0][0], "probability": top[0][1], "top": top})
