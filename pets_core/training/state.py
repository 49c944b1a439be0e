"""All that changes as training goes on, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from pets_core.training.checkpoint import Place, Snapshot
from pets_core.training.history import History
from pets_core.training.host_copy import copy_to_host
from pets_core.training.sharding import part_of

__all__ = ["TrainState"]

_SCALER_INTEGERS = {"growth_interval", "_growth_tracker"}
"""Of `torch.amp.GradScaler.state_dict`; its update refuses floats."""


@dataclass(frozen=True)
class TrainState:
    """What a training is at, between two optimizer steps.

    Random numbers are not part of it: shuffle, augmentation and dropout of a step are drawn from
    seeds of that step's own.

    Attributes:
        model: Unwrapped.
        ema: Moving average of its weights, if there is one.
        history: What came before, and which step comes next.
        accelerator: Its gradient scaler has a state.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    history: History
    accelerator: Accelerator

    def snapshot(self, optimizer: torch.optim.Optimizer, seconds: float) -> Snapshot:
        """Copy it all to the host; training may change it as soon as this returns.

        If the model is sharded, every rank must call it; rank 0 has the tensors.

        Args:
            optimizer: Of the present phase.
            seconds: That the epoch under way has taken in this attempt.
        """
        history, best = self.history, self.history.best
        # First, for it puts a sharded model's parameters back that a validation has gathered.
        moving = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        moving |= {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        if self.ema:
            moving |= {f"ema.{name}": v for name, v in self.ema.module.state_dict().items()}
        copied = copy_to_host(moving, keeps=self.accelerator.is_main_process)
        # These lie on the host, and are replaced rather than changed.
        tensors = copied.tensors | {f"best.{name}": v for name, v in best.weights.items()}
        scaler = self.accelerator.scaler
        place = Place(
            epochs=tuple(history.epochs),
            num_rows=len(history.rows),
            seconds=history.seconds + seconds,
            phase=history.phase,
            first_epoch=history.first_epoch,
            best_loss=best.loss if best.weights else None,
            epochs_since_best=best.epochs_since,
            scaler=scaler.state_dict() if scaler else None,
        )
        rows = [*history.steps, *history.rows]
        return Snapshot(history.num_steps, tensors, rows, place, copied.ready)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot; the optimizer follows when its phase is prepared."""
        place, history = snapshot.place, self.history
        self.model.load_state_dict(_below("model.", snapshot.tensors))
        if self.ema:
            self.ema.module.load_state_dict(_below("ema.", snapshot.tensors))
        if self.accelerator.scaler and place.scaler:
            self.accelerator.scaler.load_state_dict(_with_integers(place.scaler))
        num_steps = len(snapshot.steps) - place.num_rows
        history.steps, history.rows = snapshot.steps[:num_steps], snapshot.steps[num_steps:]
        history.epochs, history.seconds = list(place.epochs), place.seconds
        history.phase, history.first_epoch = place.phase, place.first_epoch
        history.best.weights = _below("best.", snapshot.tensors)
        if place.best_loss is not None:
            history.best.loss = place.best_loss
        history.best.epochs_since = place.epochs_since_best

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
        """Give a fresh optimizer its moments back, in the memory layout of their parameters."""
        for name, parameter in self.model.named_parameters():
            saved = _below(f"optimizer.{name}.", snapshot.tensors)
            if saved:
                optimizer.state[parameter] = {
                    key: _like(value, parameter) for key, value in saved.items()
                }


def _with_integers(scaler: Mapping[str, float]) -> dict[str, float]:
    """Give a gradient scaler's state, whose numbers are stored as floats, its integers back."""
    return {
        name: int(value) if name in _SCALER_INTEGERS else value for name, value in scaler.items()
    }


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = value
    return found


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(part_of(value, parameter))
