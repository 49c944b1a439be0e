"""Model card: metadata stored with the weights, readable without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from safetensors import SafetensorError

from pets_core import storage
from pets_core.config.train import TransformConfig
from pets_core.errors import PetsError
from pets_core.records.base import Record, Resize, renamed
from pets_core.records.dataset import ClassInfo, NumberInfo

if TYPE_CHECKING:
    from pets_core.data.loading.transforms import Augment, CenterCrop

__all__ = [
    "CARD",
    "ONNX_KEY",
    "ONNX_THRESHOLDS",
    "WEIGHTS",
    "ModelCard",
    "explain_damaged_weights",
    "read_card",
    "weights_sha256",
]

CARD = "model.json"
"""File name of the card in a model folder."""
WEIGHTS = "model.safetensors"
"""File name of the weights in a model folder."""
ONNX_KEY = "pets"
"""Metadata key of the card in an ONNX file."""
ONNX_THRESHOLDS = "pets-thresholds"
"""Metadata key of the decision thresholds of a tag model in an ONNX file."""


class ModelCard(Record):
    """Metadata to rebuild a model and preprocess its inputs.

    Attributes:
        format_version: Version of this record's format. Version 1, with `classes` for
            `vocabulary`, is read as version 2.
        targets: Name of the kind of target.
        backbone: Backbone setting.
        num_features: Number of pooled features.
        vocabulary: Classes or tags in index order; empty for numbers and coordinates.
        numbers: Predicted numbers or coordinates; empty for classes and tags.
        y_range: Lower and upper bound of predicted numbers, if set.
        image_size: Side of the centre crop that the model gets, pixels.
        resize_to: Side of the square to which photos are resized first, pixels.
        resize: How photos are made squares.
        mean: Mean of each RGB channel, 0 to 1.
        std: Standard deviation of each RGB channel, 0 to 1.
        dataset_fingerprint: Fingerprint of the data set that the model was trained on.
        timm_version: Version of timm that built the backbone.
    """

    format_version: Annotated[
        Literal[2], BeforeValidator(lambda value: 2 if value == 1 else value)
    ] = 2
    # Older cards store the kind under `objective`, and classes as "single_label".
    targets: Annotated[
        str,
        BeforeValidator(lambda value: "class" if value == "single_label" else value),
        Field(validation_alias=AliasChoices("targets", "objective")),
    ] = "class"
    backbone: str
    num_features: int
    vocabulary: tuple[ClassInfo, ...] = renamed("vocabulary", "classes")
    numbers: tuple[NumberInfo, ...] = ()
    y_range: tuple[float, float] | None = None
    image_size: int
    resize_to: int
    resize: Resize = "squish"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset_fingerprint: str
    timm_version: str = Field(default_factory=lambda: version("timm"))

    @model_serializer(mode="wrap")
    def _omit_default_resize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `resize` where versions without it do the same; they reject unknown fields."""
        fields: dict[str, Any] = handler(self)
        if fields.get("resize") == "squish":
            del fields["resize"]
        return fields

    @property
    def num_outputs(self) -> int:
        """Number of logits per photo."""
        return len(self.numbers or self.vocabulary)

    def center_crop(self) -> CenterCrop:
        """Return the transform of photos to predict."""
        from pets_core.data.loading.transforms import CenterCrop

        return CenterCrop(self.image_size, self.mean, self.std)

    def view(self, config: TransformConfig) -> Augment:
        """Return the augmentation of test-time augmentation: without erasing and policy."""
        return self.augment(config.model_copy(update={"erase_probability": 0.0, "policy": "none"}))

    def augment(self, config: TransformConfig) -> Augment:
        """Return the augmentation of training photos."""
        from pets_core.data.loading.transforms import Augment

        return Augment(self.image_size, self.mean, self.std, config)


def read_card(url: str) -> ModelCard:
    """Read the card of the model in folder `url`.

    Raises:
        PetsError: The folder holds no model, or its card is damaged.
    """
    url = storage.absolute(url)
    if url.startswith("hf://"):
        raise PetsError(f"{url}: download the model first: pets pull {url}")
    if not storage.exists(storage.join(url, CARD)):
        inner = storage.join(url, "model")
        hint = f". Did you mean {inner}?" if storage.exists(storage.join(inner, CARD)) else ""
        raise PetsError(f"{url} is not a model folder: it holds no {CARD}{hint}")
    try:
        return ModelCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except pydantic.ValidationError as error:
        for problem in error.errors():
            if problem["loc"] == ("format_version",):
                raise PetsError(
                    f"{url}/{CARD} has format_version {problem['input']}, which this version of "
                    "pets-pipeline does not know: install the version that trained the model"
                ) from error
        raise PetsError(f"{url}/{CARD} is damaged: {error}") from error


def weights_sha256(url: str) -> str:
    """Return the SHA-256 checksum of the weights in model folder `url`, which identifies them."""
    return sha256(storage.read_bytes(storage.join(storage.absolute(url), WEIGHTS))).hexdigest()


@contextmanager
def explain_damaged_weights(url: str) -> Iterator[None]:
    """Raise a `PetsError` if the block cannot load the weights in model folder `url`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise PetsError(
            f"{url}/{WEIGHTS} is damaged or belongs to another model: {reason}"
        ) from error
