"""Freezing, training mode and optimizer of a model by layer group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pets_core.models.grouped import GroupedModel

__all__ = ["build_optimizer", "freeze_to", "set_rates", "set_train_mode"]


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


def build_optimizer(
    model: GroupedModel, rates: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters.

    One-dimensional parameters (biases, normalisation weights) and tables of biases, (N, 1), get no
    weight decay. Each parameter group stores the number of its layer group as `layer_group` and its
    peak rate as `peak_lr`.

    Args:
        model: Model with layer groups; frozen parameters are excluded.
        rates: Peak learning rate of each layer group.
        weight_decay: Decoupled weight decay.

    Raises:
        ValueError: The number of rates differs from that of layer groups.
    """
    param_groups: list[dict[str, Any]] = []
    for number, (group, rate) in enumerate(zip(model.layer_groups(), rates, strict=True)):
        trainable = [parameter for parameter in group if parameter.requires_grad]
        for decays in (True, False):
            parameters = [p for p in trainable if _decays(p) == decays]
            if parameters:
                param_groups.append(
                    {
                        "params": parameters,
                        "lr": rate,
                        "peak_lr": rate,
                        "layer_group": number,
                        "weight_decay": weight_decay if decays else 0.0,
                    }
                )
    return torch.optim.AdamW(param_groups, betas=(0.9, 0.99), eps=1e-5, fused=True)


def _decays(parameter: nn.Parameter) -> bool:
    is_bias_table = parameter.ndim == 2 and parameter.shape[1] == 1
    return parameter.ndim > 1 and not is_bias_table


def set_rates(
    optimizer: torch.optim.Optimizer, lr_factor: float, momentum: float
) -> dict[int, float]:
    """Set every group's rate to `lr_factor` of its peak, and beta1 to `momentum`.

    Returns:
        Learning rate by number of the layer group.
    """
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["layer_group"]] = group["peak_lr"] * lr_factor
        group["betas"] = (momentum, group["betas"][1])
    return rates
