"""Optimizers by name, and their state as tensors for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from torch import Tensor, nn

from pets_core.errors import PetsError, did_you_mean
from pets_core.models.classifier import HeadModel
from pets_core.models.grouped import GroupedModel

__all__ = [
    "build_optimizer",
    "check_optimizer",
    "group_state",
    "parameter_state",
    "restore_group_state",
    "set_rates",
    "skips_overflow",
    "with_numbers",
]

_DEFAULT = "adamw"
_OWN_KEYS = {"params", "lr", "peak_lr", "layer_group", "weight_decay"}
_NUMBERS: dict[str, type[float]] = {"bool": bool, "int": int, "float": float}


def build_optimizer(
    model: GroupedModel, rates: Sequence[float], weight_decay: float, name: str = _DEFAULT
) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters.

    One-dimensional parameters (biases, normalisation weights) and tables of biases, (N, 1), get no
    weight decay. Each parameter group stores the number of its layer group as `layer_group` and its
    peak rate as `peak_lr`.

    Args:
        model: Model with layer groups; frozen parameters are excluded.
        rates: Peak learning rate of each layer group.
        weight_decay: Weight decay, decoupled from the gradient if the optimizer does so.
        name: adamw for AdamW (Loshchilov and Hutter 2019) with fastai's settings; otherwise a name
            of `timm.optim.list_optimizers`, with timm's settings.

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
    if name == _DEFAULT:
        return torch.optim.AdamW(param_groups, betas=(0.9, 0.99), eps=1e-5, fused=True)
    return create_optimizer_v2(param_groups, opt=name, lr=rates[-1], weight_decay=weight_decay)


def _decays(parameter: nn.Parameter) -> bool:
    is_bias_table = parameter.ndim == 2 and parameter.shape[1] == 1
    return parameter.ndim > 1 and not is_bias_table


def check_optimizer(name: str, device: torch.device) -> None:
    """Check an optimizer by a step on a small model.

    Raises:
        PetsError: timm has no such optimizer (the message lists similar names), it does not work on
            the device, or a checkpoint cannot hold its state.
    """
    if name == _DEFAULT:
        return
    names = [str(known) for known in list_optimizers()]
    if name not in names:
        raise PetsError(
            f"train.optimizer = {name!r} is not an optimizer of timm.{did_you_mean(name, names)}"
        )
    model = HeadModel(nn.Sequential(nn.Linear(8, 8))).to(device)
    try:
        optimizer = build_optimizer(model, [1e-3], 0.01, name)
        model(torch.ones(2, 8, device=device)).square().sum().backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter_state(optimizer, parameter)
        group_state(optimizer)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise PetsError(
            f"train.optimizer = {name} cannot be used on this machine ({error}): set adamw, or "
            "another optimizer of timm"
        ) from error


def skips_overflow(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer skips a step whose `found_inf` is 1; fused ones do."""
    return bool(optimizer.defaults.get("fused"))


def parameter_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the state of a parameter; numbers become tensors.

    Raises:
        TypeError: The state has values other than tensors and numbers.
    """
    return _tensors(optimizer.state.get(parameter, {}))


def group_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the values that steps add to parameter groups, such as a step counter.

    Raises:
        TypeError: There are values other than tensors and numbers.
    """
    state: dict[str, Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        added = group.keys() - optimizer.defaults.keys() - _OWN_KEYS
        values = _tensors({key: group[key] for key in sorted(added)})
        state |= {f"{number}.{key}": value for key, value in values.items()}
    return state


def restore_group_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore what `group_state` returned, in place."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        number, _, key = name.partition(".")
        groups.setdefault(number, {})[key] = value
    for number, values in groups.items():
        optimizer.param_groups[int(number)].update(with_numbers(values))


def with_numbers(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert the numbers in a stored state back from tensors."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        key, _, kind = name.partition(".")
        found[key] = _NUMBERS[kind](value.item()) if kind else value
    return found


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the values of a state; the name of a number ends with its type."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        kind = type(value).__name__
        if isinstance(value, Tensor):
            found[key] = value
        elif kind in _NUMBERS:
            dtype = torch.float64 if kind == "float" else None
            found[f"{key}.{kind}"] = torch.tensor(value, dtype=dtype)
        elif value is not None:
            raise TypeError(f"a checkpoint cannot hold the {kind} {key!r} of its state")
    return found


def set_rates(
    optimizer: torch.optim.Optimizer, lr_factor: float, momentum: float
) -> dict[int, float]:
    """Set every group's rate to `lr_factor` of its peak, and its beta1 or momentum to `momentum`.

    As in fastai, the momentum of every optimizer that has one follows the schedule.

    Returns:
        Learning rate by number of the layer group.
    """
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["layer_group"]] = group["peak_lr"] * lr_factor
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        if group.get("momentum"):
            group["momentum"] = momentum
    return rates
