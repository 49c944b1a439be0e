"""State of a training, saved to and restored from snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from pets_core.training.checkpoint import Snapshot, TrainingPosition
from pets_core.training.history import History
from pets_core.training.host_copy import copy_to_host
from pets_core.training.optimizer import (
    group_state,
    parameter_state,
    restore_group_state,
    with_numbers,
)
from pets_core.training.sharding import shard_like

__all__ = ["TrainState"]

_SCALER_INTEGERS = {"growth_interval", "_growth_tracker"}
"""Keys of `torch.amp.GradScaler.state_dict` whose values must be int, not float."""


@dataclass(frozen=True)
class TrainState:
    """State of a training between two optimizer steps.

    It contains no random state: shuffling, augmentation and dropout are seeded for each step.

    Attributes:
        model: Model without its distributed wrapper.
        ema: Moving average of its weights, if used.
        history: Metrics so far, and the current position.
        accelerator: Holds the gradient scaler, if used.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    history: History
    accelerator: Accelerator

    def snapshot(self, optimizer: torch.optim.Optimizer, seconds: float) -> Snapshot:
        """Copy the state to the host; training may continue as soon as this returns.

        If the model is sharded, every rank must call it; rank 0 gets the tensors.

        Args:
            optimizer: Optimizer of the current phase.
            seconds: Duration of the current epoch in this attempt.
        """
        history, best = self.history, self.history.best
        # First, because `state_dict` reshards the parameters that a validation has gathered.
        on_device = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        on_device |= {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in parameter_state(optimizer, parameter).items()
        }
        on_device |= {f"group.{name}": value for name, value in group_state(optimizer).items()}
        if self.ema:
            on_device |= {f"ema.{name}": v for name, v in self.ema.module.state_dict().items()}
        copied = copy_to_host(on_device, needs_copy=self.accelerator.is_main_process)
        # The best weights are on the host, and are replaced rather than changed in place.
        tensors = copied.tensors | {f"best.{name}": v for name, v in best.weights.items()}
        scaler = self.accelerator.scaler
        position = TrainingPosition(
            epochs=tuple(history.epochs),
            num_epoch_steps=len(history.rows),
            seconds=history.seconds + seconds,
            phase=history.phase,
            first_epoch=history.first_epoch,
            best_loss=best.loss if best.weights else None,
            epochs_without_improvement=best.epochs_without_improvement,
            scaler=scaler.state_dict() if scaler else None,
        )
        rows = [*history.steps, *history.rows]
        return Snapshot(history.num_steps, tensors, rows, position, copied.ready)

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, except the optimizer (see `restore_optimizer`)."""
        position, history = snapshot.position, self.history
        self.model.load_state_dict(_strip_prefix("model.", snapshot.tensors))
        if self.ema:
            self.ema.module.load_state_dict(_strip_prefix("ema.", snapshot.tensors))
        if self.accelerator.scaler and position.scaler:
            self.accelerator.scaler.load_state_dict(_with_integers(position.scaler))
        num_steps = len(snapshot.steps) - position.num_epoch_steps
        history.steps, history.rows = snapshot.steps[:num_steps], snapshot.steps[num_steps:]
        history.epochs, history.seconds = list(position.epochs), position.seconds
        history.phase, history.first_epoch = position.phase, position.first_epoch
        history.best.weights = _strip_prefix("best.", snapshot.tensors)
        if position.best_loss is not None:
            history.best.loss = position.best_loss
        history.best.epochs_without_improvement = position.epochs_without_improvement

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
        """Restore the state of a new optimizer, in the memory layout of the parameters."""
        for name, parameter in self.model.named_parameters():
            saved = _strip_prefix(f"optimizer.{name}.", snapshot.tensors)
            if saved:
                optimizer.state[parameter] = {
                    key: _like(value, parameter) if _is_on_device(optimizer, key, value) else value
                    for key, value in with_numbers(saved).items()
                }
        restore_group_state(optimizer, _strip_prefix("group.", snapshot.tensors))


def _is_on_device(optimizer: torch.optim.Optimizer, key: str, value: object) -> bool:
    """Return whether a value of the optimizer's state is a tensor on the parameter's device.

    As in `Optimizer.load_state_dict`, torch's step counters are, for fused kernels only: reading
    one from a GPU would synchronise with it.
    """
    is_fused = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    return isinstance(value, Tensor) and (key != "step" or bool(is_fused))


def _with_integers(scaler: Mapping[str, float]) -> dict[str, float]:
    """Convert the integers in a gradient scaler's state, stored as floats, back to int."""
    return {
        name: int(value) if name in _SCALER_INTEGERS else value for name, value in scaler.items()
    }


def _strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have the prefix, by name without it."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = value
    return found


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    empty = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return empty.copy_(shard_like(value, parameter))
