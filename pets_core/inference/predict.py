"""Prediction of single photos with a model folder or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.data.ingest.images import decode_sized
from pets_core.data.sources.formats import UnreadablePhotoError, refuse_raw
from pets_core.errors import PetsError
from pets_core.models.card import ONNX_KEY, ONNX_THRESHOLDS, ModelCard
from pets_core.targets.base import DecodedOutputs
from pets_core.targets.registry import get_target

__all__ = ["Photo", "Prediction", "Predictor", "open_model", "predict_photos", "read_photo"]

_BATCH = 32


class Prediction(BaseModel):
    """Prediction of one photo.

    Attributes:
        photo: Path or URL from the request.
        label: Most probable class, for models of classes.
        probability: Probability of that class.
        top: Classes or tags with the highest probabilities, highest first.
        tags: Predicted tags, for models of tags; may be empty.
        numbers: Predicted numbers by name, for models of numbers. For models of coordinates,
            pixels of the upright photo.
        error: Reason why the photo could not be predicted.
    """

    model_config = ConfigDict(frozen=True)

    photo: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] | None = None
    numbers: dict[str, float] | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        """The prediction in one line."""
        if self.numbers is not None:
            return ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        if self.tags is not None:
            top = dict(self.top)
            tags = (f"{tag} {top[tag]:.1%}" if tag in top else tag for tag in self.tags)
            return ", ".join(tags) or "no tag"
        return f"{self.label}  {self.probability:.1%}" if self.probability is not None else ""


class Photo(NamedTuple):
    """A photo to predict: its name in the prediction, and a function that returns its bytes."""

    name: str
    read: Callable[[], bytes]


class Predictor(NamedTuple):
    """An opened model.

    Attributes:
        card: Card of the model.
        forward: Maps photos, uint8 (B, R, R, 3), to decoded outputs, float32 (B, D).
        decision: Decision rule of the kind of target, as `Target.read_decision` returns it.
    """

    card: ModelCard
    forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    decision: BaseModel | None

    def predict(self, photos: Iterable[Photo], num_top: int = 3) -> Iterator[Prediction]:
        """Predict photos of any format that Pillow reads, in the given order.

        Args:
            photos: The photos.
            num_top: Number of classes or tags to list for each photo.
        """
        remaining = iter(photos)
        while batch := list(islice(remaining, _BATCH)):
            yield from _predict_batch(self, batch, num_top)


def open_model(url: str) -> Predictor:
    """Open a model.

    Args:
        url: Path or URL of a model folder, or of an ONNX file from `pets export`, which needs no
            torch.

    Raises:
        PetsError: There is no usable model at `url`.
    """
    return _open_onnx(url) if url.endswith(".onnx") else _open_folder(url)


def predict_photos(
    model_url: str, photos: Sequence[str], *, num_top: int = 3
) -> Iterator[Prediction]:
    """Predict photos at paths or URLs, in the given order.

    Args:
        model_url: Model, see `open_model`.
        photos: Paths or URLs.
        num_top: Number of classes or tags to list for each photo.

    Raises:
        PetsError: There is no usable model at `model_url`.
    """
    named = (Photo(photo, partial(read_photo, photo)) for photo in photos)
    yield from open_model(model_url).predict(named, num_top)


def read_photo(url: str) -> bytes:
    """Return the bytes of a photo at a path or URL.

    Raises:
        PetsError: The file cannot be read.
        UnreadablePhotoError: It is a raw photo.
    """
    data = storage.read_bytes(storage.absolute(url))
    refuse_raw(url)
    return data


def _open_folder(url: str) -> Predictor:
    import torch

    from pets_core.models.package import load_model
    from pets_core.targets.registry import get_target

    built = load_model(url)
    crop = built.card.center_crop()

    @torch.inference_mode()
    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = built.model(crop(torch.from_numpy(pixels)))
        found: NDArray[np.float32] = (
            get_target(built.card.targets).decode(built.card, logits).numpy()
        )
        return found

    return Predictor(
        built.card, predict, get_target(built.card.targets).read_decision(built.card, url)
    )


def _open_onnx(url: str) -> Predictor:
    try:
        import onnxruntime
    except ImportError as error:
        raise PetsError(
            "onnxruntime is not installed; run pip install 'pets-pipeline[onnx]'"
        ) from error
    data = storage.read_bytes(storage.absolute(url))
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        card = ModelCard.model_validate_json(metadata[ONNX_KEY])
        decision = get_target(card.targets).parse_decision(metadata.get(ONNX_THRESHOLDS))
    except KeyError as error:
        raise PetsError(
            f"{url}: the ONNX file has no model card: create it with `pets export`"
        ) from error
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}: its card has another version: export the model again") from error
    except PetsError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base class
        raise PetsError(f"{url} is damaged: {str(error).splitlines()[0]}") from error

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        (found,) = session.run(None, {"photos": pixels})
        return np.asarray(found, np.float32)

    return Predictor(card, predict, decision)


def _predict_batch(model: Predictor, photos: list[Photo], num_top: int) -> list[Prediction]:
    card, target = model.card, get_target(model.card.targets)
    pixels, sizes, results = [], [], []
    for photo in photos:
        name = storage.printable(photo.name)
        try:
            decoded, size = decode_sized(photo.read(), card.resize_to, card.resize)
            pixels.append(decoded)
            sizes.append(size)
            results.append(Prediction(photo=name))
        except PetsError as error:
            results.append(Prediction(photo=name, error=str(error)))
        except UnreadablePhotoError as error:
            reason = f"{error.reason.replace('_', ' ')}: {error.detail}"
            results.append(Prediction(photo=name, error=reason))
    if not pixels:
        return results
    outputs, shapes = model.forward(np.stack(pixels)), np.array(sizes, np.int64)
    rows = iter(range(len(pixels)))

    def to_fields(row: int) -> dict[str, Any]:
        own = slice(row, row + 1)
        predicted = DecodedOutputs(card, outputs[own], shapes[own], model.decision)
        return target.to_prediction(predicted, num_top)

    return [
        result if result.error else result.model_copy(update=to_fields(next(rows)))
        for result in results
    ]
