"""What is said of a model beside its weights; read without torch."""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
from pydantic import AliasChoices, BeforeValidator, Field

from pets_core import storage
from pets_core.config.train import TransformConfig
from pets_core.errors import PetsError
from pets_core.records.base import Record
from pets_core.records.dataset import ClassInfo, NumberInfo

if TYPE_CHECKING:
    from pets_core.data.loading.transforms import Augment, CenterCrop

__all__ = [
    "CARD",
    "ONNX_KEY",
    "ONNX_THRESHOLDS",
    "WEIGHTS",
    "ModelCard",
    "read_card",
    "weights_sha256",
]

CARD = "model.json"
"""Name of the card in the folder of a model."""
WEIGHTS = "model.safetensors"
"""Name of the weights in a model's folder."""
ONNX_KEY = "pets"
"""Name of the card among the metadata of an ONNX file."""
ONNX_THRESHOLDS = "pets-thresholds"
"""Name of the thresholds of a model of tags among the same."""


class ModelCard(Record):
    """All that is needed to rebuild and feed a model, besides its weights.

    `resize_to` and `image_size` are pixels: a photo is stretched to a square of the first, and
    its middle of the second is what the model sees. `classes` are classes or tags; where numbers
    or places are told there are none, and `numbers` says what they are.
    """

    format_version: Literal[1] = 1
    # Models were stored before they had anything to tell but classes.
    targets: Annotated[
        str,
        BeforeValidator(lambda value: "class" if value == "single_label" else value),
        Field(validation_alias=AliasChoices("targets", "objective")),
    ] = "class"
    backbone: str
    num_features: int
    classes: tuple[ClassInfo, ...]
    numbers: tuple[NumberInfo, ...] = ()
    y_range: tuple[float, float] | None = None
    image_size: int
    resize_to: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset_fingerprint: str
    timm_version: str = Field(default_factory=lambda: version("timm"))

    @property
    def num_outputs(self) -> int:
        """Logits a photo."""
        return len(self.numbers or self.classes)

    def center_crop(self) -> CenterCrop:
        """What makes model inputs of photos to be judged."""
        from pets_core.data.loading.transforms import CenterCrop

        return CenterCrop(self.image_size, self.mean, self.std)

    def view(self, config: TransformConfig) -> Augment:
        """What makes one more view of a photo to be judged: nothing of it is blanked."""
        return self.augment(config.model_copy(update={"erase_probability": 0.0}))

    def augment(self, config: TransformConfig) -> Augment:
        """What makes model inputs of photos to be learnt from."""
        from pets_core.data.loading.transforms import Augment

        return Augment(self.image_size, self.mean, self.std, config)


def read_card(url: str) -> ModelCard:
    """The card of the model in folder `url`.

    Raises:
        PetsError: There is no model, or its card is damaged.
    """
    url = storage.absolute(url)
    if not storage.exists(storage.join(url, CARD)):
        inner = storage.join(url, "model")
        hint = f". Did you mean {inner}?" if storage.exists(storage.join(inner, CARD)) else ""
        raise PetsError(f"{url} is no model folder: it holds no {CARD}{hint}")
    try:
        return ModelCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}/{CARD} is damaged: {error}") from error


def weights_sha256(url: str) -> str:
    """SHA-256 of the weights of the model in folder `url`, which tells it from any other."""
    return sha256(storage.read_bytes(storage.join(storage.absolute(url), WEIGHTS))).hexdigest()
