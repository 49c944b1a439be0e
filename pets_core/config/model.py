"""Settings of the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pets_core.config.base import Settings

__all__ = [
    "ModelConfig",
]


class ModelConfig(Settings):
    """What is trained."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name; resnet34 and resnet50 mean torchvision's ImageNet weights."""
    weights: str = "auto"
    """auto: from an installed package, else the hub; hub; none (random); or a file's path or URL
    (.safetensors or .pth)."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Side of the square the model sees, pixels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the pooled features dropped before the head in training."""
