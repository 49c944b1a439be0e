"""A model of a hundred thousand parameters that tells photos apart, as a drawn one does not."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo

__all__ = ["write_tiny_model"]


def write_tiny_model(folder: Path, classes: Sequence[str]) -> str:
    """Write the same model each time, but for its classes; returns its URL."""
    config = PipelineConfig.model_validate(
        {"model": {"backbone": "test_byobnet", "weights": "none", "image_size": 64}}
    )
    torch.manual_seed(0)
    built = create_model(config, tuple(ClassInfo(name=name) for name in classes), "f")
    torch.nn.init.normal_(built.model.head[-1].weight)
    save_model(str(folder), built.card, built.model.state_dict())
    return str(folder)
