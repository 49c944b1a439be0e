"""Model folder: weights as safetensors, card as JSON, no pickled data."""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
from pydantic import BaseModel
from timm.data.config import resolve_model_data_config
from torch import Tensor

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.models.backbones import create_body, num_features
from pets_core.models.card import CARD, WEIGHTS, ModelCard, explain_damaged_weights, read_card
from pets_core.models.classifier import Classifier
from pets_core.records.dataset import ClassInfo, NumberInfo

__all__ = ["TrainedModel", "create_model", "load_model", "save_model"]


@dataclass(frozen=True)
class TrainedModel:
    """Model with its card, and the URL of its folder if it was loaded."""

    model: Classifier
    card: ModelCard
    url: str = ""


def create_model(
    config: PipelineConfig,
    vocabulary: tuple[ClassInfo, ...],
    fingerprint: str,
    *,
    targets: str = "class",
    numbers: tuple[NumberInfo, ...] = (),
) -> TrainedModel:
    """Build a model with pretrained body and new head.

    Args:
        config: Settings.
        vocabulary: Classes or tags in index order.
        fingerprint: Fingerprint of the data set.
        targets: Name of the kind of target.
        numbers: Numbers or coordinates to predict, if any.

    Raises:
        PetsError: The backbone, its weights or the image size are not valid.
    """
    settings = config.model
    body = create_body(
        settings.backbone, settings.weights, settings.image_size, drop_path=settings.drop_path
    )
    # How the backbone was pretrained. `crop_pct` is the side of the evaluation crop as a share of
    # the resized photo's side.
    data = resolve_model_data_config(body)  # type: ignore[no-untyped-call]
    features = num_features(body, settings.image_size)
    card = ModelCard(
        backbone=settings.backbone,
        num_features=features,
        targets=targets,
        vocabulary=vocabulary,
        numbers=numbers,
        y_range=config.source.y_range,
        image_size=settings.image_size,
        resize_to=round(settings.image_size / data["crop_pct"]),
        resize=config.transform.resize,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        dataset_fingerprint=fingerprint,
    )
    return TrainedModel(Classifier(body, features, card.num_outputs, settings.dropout), card)


def save_model(url: str, card: BaseModel, state: dict[str, Tensor]) -> None:
    """Write the weights, then the card, which commits the model."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    storage.write_bytes(storage.join(url, WEIGHTS), safetensors.torch.save(weights))
    storage.write_bytes(storage.join(url, CARD), card.model_dump_json(indent=2).encode())


def load_model(url: str) -> TrainedModel:
    """Load a model folder, without the data set and the pretrained weights.

    Raises:
        PetsError: The folder holds no model, or its files are damaged or do not match.
    """
    url = storage.absolute(url)
    card = read_card(url)
    body = create_body(card.backbone, "none", card.image_size)
    model = Classifier(body, card.num_features, card.num_outputs, dropout=0.0)
    with explain_damaged_weights(url):
        state = safetensors.torch.load(storage.read_bytes(storage.join(url, WEIGHTS)))
        model.load_state_dict(state)
    return TrainedModel(model.eval().requires_grad_(False), card, url)
