"""Layer groups: which learn, in which mode, at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pets_core.models.grouped import GroupedModel

__all__ = ["build_optimizer", "freeze_to", "set_rates", "train_mode"]


def freeze_to(model: GroupedModel, first: int) -> None:
    """Let layer groups from `first` on learn and freeze those before.

    As with fastai, a negative number counts from the end: -1 freezes all but the head, 0 nothing.

    Raises:
        ValueError: The model has fewer groups.
    """
    groups = model.layer_groups()
    if not -len(groups) <= first < len(groups):
        raise ValueError(f"freeze_to({first}): the model has {len(groups)} layer groups")
    first %= len(groups)
    for number, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(number >= first)


def train_mode(model: nn.Module, batch_norm: Literal["frozen", "train", "sync"]) -> None:
    """Put in training mode what learns, and leave what is frozen in evaluation mode.

    A module none of whose parameters learn neither drops units nor moves its statistics, so a
    frozen body gives a photo the same features in every epoch.

    Args:
        model: The whole model; parameters say by `requires_grad` whether they learn.
        batch_norm: frozen keeps the statistics of every batch-norm layer, learning or not.
    """
    parameters = list(model.parameters())
    learns = not parameters or any(parameter.requires_grad for parameter in parameters)
    frozen_norm = batch_norm == "frozen" and isinstance(model, _BatchNorm)
    if not learns or frozen_norm:
        model.eval()
        return
    model.training = True
    for child in model.children():
        train_mode(child, batch_norm)


def build_optimizer(
    model: GroupedModel, rates: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over what learns, one peak rate a layer group.

    Biases and normalisation weights, that is every parameter of one dimension, take no decay.
    Each parameter group keeps its layer group's number and peak rate under `layer_group` and
    `peak_lr`.

    Raises:
        ValueError: There are not as many rates as layer groups.
    """
    param_groups: list[dict[str, Any]] = []
    for number, (group, rate) in enumerate(zip(model.layer_groups(), rates, strict=True)):
        learning = [parameter for parameter in group if parameter.requires_grad]
        for decays in (True, False):
            parameters = [p for p in learning if (p.ndim > 1) == decays]
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


def set_rates(
    optimizer: torch.optim.Optimizer, lr_factor: float, momentum: float
) -> dict[int, float]:
    """Set every group to `lr_factor` of its peak and beta1 to `momentum`.

    Returns:
        The rate of each layer group, by its number.
    """
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["layer_group"]] = group["peak_lr"] * lr_factor
        group["betas"] = (momentum, group["betas"][1])
    return rates
