"""Prediction of single photos with a model folder or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

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

__all__ = [
    "DecodedPhoto",
    "Photo",
    "Prediction",
    "Predictor",
    "open_model",
    "read_photo",
]

_BATCH = 32
_MAP_PIXELS = 320
"""Side of the picture with an activation map."""


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


class DecodedPhoto(NamedTuple):
    """A photo as the model reads it, or the reason why it is unreadable.

    Attributes:
        name: Name of the photo: its path, or its URL without a query.
        pixels: The resized photo, uint8 (R, R, 3); None if it is unreadable.
        size: Width and height of the upright photo, pixels.
        error: Reason why the photo is unreadable.
    """

    name: str
    pixels: NDArray[np.uint8] | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


class Predictor(NamedTuple):
    """An opened model.

    Attributes:
        card: Card of the model.
        forward: Maps photos, uint8 (B, R, R, 3), to decoded outputs, float32 (B, D).
        decision: Decision rule of the kind of target, as `Target.read_decision` returns it.
        explain: Maps one photo, uint8 (R, R, 3), to a JPEG of it with the activation map of the
            predicted class, or None if the backbone has none. None for kinds without maps and for
            ONNX files.
    """

    card: ModelCard
    forward: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    decision: BaseModel | None
    explain: Callable[[NDArray[np.uint8]], bytes | None] | None = None

    def predict(self, photos: Iterable[Photo], num_top: int = 3) -> Iterator[Prediction]:
        """Predict photos of any format that Pillow reads, in the given order.

        Args:
            photos: The photos.
            num_top: Number of classes or tags to list for each photo.
        """
        remaining = iter(photos)
        while batch := list(islice(remaining, _BATCH)):
            yield from self.predict_decoded([self.decode(photo) for photo in batch], num_top)

    def decode(self, photo: Photo) -> DecodedPhoto:
        """Read and decode a photo. Thread-safe."""
        name = storage.printable(photo.name)
        try:
            pixels, size = decode_sized(photo.read(), self.card.resize_to, self.card.resize)
        except PetsError as error:
            return DecodedPhoto(name, error=str(error))
        except UnreadablePhotoError as error:
            return DecodedPhoto(name, error=error.text)
        return DecodedPhoto(name, pixels, size)

    def predict_decoded(self, photos: Sequence[DecodedPhoto], num_top: int = 3) -> list[Prediction]:
        """Predict decoded photos in one batch. Call it from one thread at a time.

        Args:
            photos: The photos; unreadable ones get a prediction with their error.
            num_top: Number of classes or tags to list for each photo.
        """
        target = get_target(self.card.targets)
        pixels = [photo.pixels for photo in photos if photo.pixels is not None]
        outputs = iter(self.forward(np.stack(pixels)) if pixels else ())

        def to_prediction(photo: DecodedPhoto) -> Prediction:
            if photo.error is not None:
                return Prediction(photo=photo.name, error=photo.error)
            size = np.array([photo.size], np.int64)
            predicted = DecodedOutputs(self.card, next(outputs)[None], size, self.decision)
            return Prediction(photo=photo.name, **target.to_prediction(predicted, num_top))

        return [to_prediction(photo) for photo in photos]


def open_model(url: str, device: Literal["auto", "cpu"] = "cpu") -> Predictor:
    """Open a model.

    Args:
        url: Path or URL of a model folder, or of an ONNX file from `pets export`, which needs no
            torch and runs on the CPU.
        device: `auto` uses the GPU of the machine, if it has one.

    Raises:
        PetsError: There is no usable model at `url`, or torch cannot use the machine's GPU.
    """
    return _open_onnx(url) if url.endswith(".onnx") else _open_folder(url, device)


def read_photo(url: str) -> bytes:
    """Return the bytes of a photo at a path or URL.

    Raises:
        PetsError: The file cannot be read.
        UnreadablePhotoError: It is a raw photo.
    """
    data = storage.read_bytes(storage.absolute(url))
    refuse_raw(url)
    return data


def _open_folder(url: str, device_name: str) -> Predictor:
    import torch

    from pets_core.config.launch import LaunchConfig
    from pets_core.models.package import load_model
    from pets_core.training.devices import choose_device

    built = load_model(url)
    target, crop = get_target(built.card.targets), built.card.center_crop()
    device = choose_device(LaunchConfig()) if device_name == "auto" else torch.device("cpu")
    built.model.to(device)

    @torch.inference_mode()
    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = built.model(crop(torch.from_numpy(pixels).to(device)))
        found: NDArray[np.float32] = target.decode(built.card, logits).cpu().numpy()
        return found

    def explain(pixels: NDArray[np.uint8]) -> bytes | None:
        from pets_core.evaluation.activation import activation_maps, overlay

        with torch.no_grad():
            # A copy, because decoded photos are read-only, which torch warns about.
            inputs = crop(torch.from_numpy(pixels[None].copy()).to(device))
            maps = activation_maps(built.model, inputs, built.model(inputs).argmax(1))
        size = built.card.image_size
        return None if maps is None else overlay(pixels, maps[0].cpu().numpy(), size, _MAP_PIXELS)

    decision = target.read_decision(built.card, url)
    return Predictor(built.card, predict, decision, explain if target.has_maps else None)


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
