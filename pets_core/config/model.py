"""Settings of the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pets_core.config.base import Settings

__all__ = [
    "ModelConfig",
]


class ModelConfig(Settings):
    """Backbone, weights and input size of the model."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name. resnet34 and resnet50 use torchvision's ImageNet weights."""
    weights: str = "auto"
    """auto: from an installed package, otherwise from the hub. hub: from the hub. none: random
    weights. Any other value: path or URL of a file (.safetensors or .pth)."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Side of the square input image, pixels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the pooled features before the head."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Drop path (stochastic depth, Huang and others 2016): largest probability of skipping a
    residual block of the body while it is trained, distributed over the blocks by timm."""
