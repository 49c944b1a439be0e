"""Model of 0.1 million parameters whose random head gives different outputs per photo."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo

__all__ = ["write_tiny_model"]


def write_tiny_model(folder: Path, classes: Sequence[str]) -> str:
    """Write a model that is the same in each call except for its classes, and return its URL."""
    config = PipelineConfig.model_validate(
        {"model": {"backbone": "test_byobnet", "weights": "none", "image_size": 64}}
    )
    torch.manual_seed(0)
    built = create_model(config, tuple(ClassInfo(name=name) for name in classes), "f")
    torch.nn.init.normal_(built.model.head[-1].weight)
    save_model(str(folder), built.card, built.model.state_dict())
    return str(folder)
