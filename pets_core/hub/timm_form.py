"""Weights and configuration in the form that `timm.create_model("hf-hub:org/name")` loads.

timm has no classifier with the head of `Classifier`, whose layer normalisation divides the pooled
features of each photo by their deviation: no single linear layer gives the same logits. timm gets
the backbone, which returns pooled features, and head.safetensors holds the head.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

from pets_core.errors import PetsError
from pets_core.models.backbones import size_arguments, timm_name
from pets_core.models.card import WEIGHTS, ModelCard
from pets_core.models.package import TrainedModel

__all__ = ["CONFIG", "HEAD", "merge_weights", "write_timm_form"]

CONFIG = "config.json"
"""Architecture and preprocessing, read by timm."""
HEAD = "head.safetensors"
"""Weights of the head: layer normalisation, dropout, linear."""
_TOLERANCE = 1e-4
_CROP_MODES = {"squish": "squash", "crop": "center", "pad": "border"}
"""timm's way of making a photo a square, by ours. crop and pad differ by some pixels."""


def write_timm_form(built: TrainedModel, folder: Path) -> None:
    """Write model.safetensors (the backbone), config.json and head.safetensors.

    Raises:
        PetsError: timm would build another model from these files.
    """
    card, body = built.card, built.model.body
    labels = [info.name for info in card.vocabulary]
    save_for_hf(
        body,
        str(folder),
        model_config={"pretrained_cfg": _preprocessing(card)}
        | ({"label_names": labels} if labels else {}),
        model_args=size_arguments(timm_name(card.backbone), card.image_size) or None,
        safe_serialization=True,
    )
    safetensors.torch.save_file(built.model.head.state_dict(), folder / HEAD)
    _check(built, folder)


def merge_weights(body: bytes, head: bytes) -> bytes:
    """Return the weights of a model folder from those of backbone and head."""
    parts = {"body": safetensors.torch.load(body), "head": safetensors.torch.load(head)}
    state = {
        f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()
    }
    return safetensors.torch.save(state)


def _preprocessing(card: ModelCard) -> dict[str, Any]:
    """Return the fields of timm's `pretrained_cfg` for the model's photos."""
    return {
        "input_size": (3, card.image_size, card.image_size),
        # timm may evaluate at a larger size; the model was not evaluated there.
        "test_input_size": None,
        "test_crop_pct": None,
        "interpolation": "bilinear",
        # timm rounds image_size / crop_pct down.
        "crop_pct": math.nextafter(card.image_size / card.resize_to, 0.0),
        "crop_mode": _CROP_MODES[card.resize],
        "mean": card.mean,
        "std": card.std,
        "num_classes": 0,
    }


@torch.inference_mode()
def _check(built: TrainedModel, folder: Path) -> None:
    """Build the backbone from the written files, and compare its features with the model's."""
    config = json.loads((folder / CONFIG).read_bytes())
    arguments = config.get("model_args", {}) | {"num_classes": config["num_classes"]}
    body = timm.create_model(config["architecture"], pretrained=False, **arguments).eval()
    body.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    size = built.card.image_size
    photos = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    expected, found = built.model.body(photos), body(photos)
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        raise PetsError(
            f"{built.url}: timm builds another model from {built.card.backbone}, so it cannot be "
            "pushed. Report this backbone"
        )
