"""Freezing and training mode of a model by layer group."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pets_core.models.grouped import GroupedModel

__all__ = ["freeze_to", "set_train_mode"]


def freeze_to(model: GroupedModel, first: int) -> None:
    """Freeze the layer groups before `first` and unfreeze the others.

    As in fastai, a negative number counts from the end: -1 freezes all but the head, 0 nothing.

    Raises:
        ValueError: The model has no group `first`.
    """
    groups = model.layer_groups()
    if not -len(groups) <= first < len(groups):
        raise ValueError(f"freeze_to({first}): the model has {len(groups)} layer groups")
    first %= len(groups)
    for number, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(number >= first)


def set_train_mode(model: nn.Module, batch_norm: Literal["frozen", "train", "sync"]) -> None:
    """Set trainable modules to training mode and frozen modules to evaluation mode.

    In evaluation mode a module applies no dropout and keeps its running statistics, so a frozen
    body computes the same features of a photo in every epoch.

    Args:
        model: The whole model; a parameter is trainable if `requires_grad` is set.
        batch_norm: frozen keeps the statistics of every batch-norm layer, even a trainable one.
    """
    parameters = list(model.parameters())
    is_trainable = not parameters or any(parameter.requires_grad for parameter in parameters)
    frozen_norm = batch_norm == "frozen" and isinstance(model, _BatchNorm)
    if not is_trainable or frozen_norm:
        model.eval()
        return
    # Some modules drop cached tensors in `train`, such as LeViT's attention biases. It also sets
    # the modules below, which follow.
    model.train()
    for child in model.children():
        set_train_mode(child, batch_norm)
