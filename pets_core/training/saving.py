"""When a training writes checkpoints, and when it ends early."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from pets_core.training.checkpoint import Checkpoints, Snapshot
from pets_core.training.interruption import Interrupted, StepGate
from pets_core.training.sharding import is_sharding
from pets_core.training.state import TrainState

__all__ = ["Saving", "refuse_different_checkpoints"]


@dataclass
class Saving:
    """Writes checkpoints, from rank 0, where any are wanted; ends the training when told to."""

    state: TrainState
    checkpoints: Checkpoints | None
    gate: StepGate | None
    optimizer: torch.optim.Optimizer | None = None
    """Of the phase under way."""
    began: float = 0.0
    """When this attempt began the epoch under way, by the monotonic clock."""
    seconds: float | None = None
    """That its steps took, once they are over."""
    num_batches: int = 0
    """Begun so far, of training and validation: the same on every rank."""
    saved: float = field(default_factory=time.monotonic)
    """When the last checkpoint was made, or else training began, by the monotonic clock."""

    def may_begin(self) -> bool:
        """Whether the next batch is to be worked on."""
        self.num_batches += 1
        return self.gate is None or self.gate.may_begin(self.num_batches - 1)

    def leave(self) -> None:
        """Checkpoint and raise `Interrupted`."""
        self.save(wait=True)
        raise Interrupted(f"told to end after step {self.state.history.num_steps}")

    def save_within_epoch(self, least_seconds: float) -> None:
        """Checkpoint if the last one is at least so old, and written."""
        if self.checkpoints is None or not self._takes_part():
            return
        if not self._is_early(least_seconds):
            self.save()

    def save(self, *, wait: bool = False) -> None:
        """Checkpoint what lies between two batches.

        Args:
            wait: Return when it is there.
        """
        if self.checkpoints is None or not self._takes_part():
            return
        self.saved = time.monotonic()
        assert self.optimizer is not None
        seconds = time.monotonic() - self.began if self.seconds is None else self.seconds
        if not self.state.history.rows:
            seconds = 0.0
        snapshot = self.state.snapshot(self.optimizer, seconds)
        if self.state.accelerator.is_main_process:
            self.checkpoints.save(snapshot, wait=wait)

    def _takes_part(self) -> bool:
        """Whether this rank has something that the first needs for a checkpoint."""
        accelerator = self.state.accelerator
        return accelerator.is_main_process or is_sharding(accelerator)

    def _is_early(self, least_seconds: float) -> bool:
        """Whether the last checkpoint is younger, or is still being written, for the first rank."""
        assert self.checkpoints is not None
        accelerator = self.state.accelerator
        is_early = False
        if accelerator.is_main_process:
            is_young = time.monotonic() - self.saved < least_seconds
            is_early = is_young or self.checkpoints.busy
        if not is_sharding(accelerator):
            return is_early
        return bool(accelerator.reduce(torch.tensor(int(is_early), device=accelerator.device)))


def refuse_different_checkpoints(snapshot: Snapshot | None, accelerator: Accelerator) -> None:
    """Ranks that went on from different steps would train on different batches, unnoticed."""
    own = torch.tensor([snapshot.step if snapshot else -1], device=accelerator.device)
    steps = accelerator.gather(own).tolist()
    if len(set(steps)) > 1:
        raise RuntimeError(
            f"the ranks found checkpoints of different steps, {steps}: the store does not show "
            "every machine the same files yet"
        )
