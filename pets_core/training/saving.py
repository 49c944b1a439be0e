"""Schedule of checkpoints during a training, and early stops on request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from pets_core.training.checkpoint import Checkpoints, Snapshot
from pets_core.training.interruption import Interrupted, Interruption
from pets_core.training.sharding import is_sharding
from pets_core.training.state import TrainState

__all__ = ["CheckpointSaver", "check_same_checkpoint"]


@dataclass
class CheckpointSaver:
    """Writes checkpoints from rank 0, and stops the training when `stop_signal` requires it."""

    state: TrainState
    checkpoints: Checkpoints | None
    stop_signal: Interruption | None
    optimizer: torch.optim.Optimizer | None = None
    """Optimizer of the current phase."""
    epoch_start: float = 0.0
    """Start of the current epoch in this attempt, monotonic clock."""
    epoch_seconds: float | None = None
    """Duration of the epoch's training steps; None until they are done."""
    num_batches: int = 0
    """Training and validation batches so far; the same on every rank."""
    last_saved: float = field(default_factory=time.monotonic)
    """Time of the last checkpoint or else of the start, monotonic clock."""

    def should_continue(self) -> bool:
        """Return whether to process the next batch."""
        self.num_batches += 1
        return self.stop_signal is None or self.stop_signal.should_continue(self.num_batches - 1)

    def stop(self) -> None:
        """Write a checkpoint and raise `Interrupted`."""
        self.save(wait=True)
        raise Interrupted(f"stopped after step {self.state.history.num_steps}")

    def save_within_epoch(self, min_seconds: float) -> None:
        """Write a checkpoint if the last one is written and at least `min_seconds` old."""
        if self.checkpoints is None or not self._participates():
            return
        if not self._is_early(min_seconds):
            self.save()

    def save(self, *, wait: bool = False) -> None:
        """Write a checkpoint; must be called between two batches.

        Args:
            wait: Return only when the checkpoint is written.
        """
        if self.checkpoints is None or not self._participates():
            return
        self.last_saved = now = time.monotonic()
        assert self.optimizer is not None
        seconds = now - self.epoch_start if self.epoch_seconds is None else self.epoch_seconds
        if not self.state.history.rows:
            seconds = 0.0
        snapshot = self.state.snapshot(self.optimizer, seconds)
        if self.state.accelerator.is_main_process:
            self.checkpoints.save(snapshot, wait=wait)

    def _participates(self) -> bool:
        """Return whether rank 0 needs this rank for a checkpoint."""
        accelerator = self.state.accelerator
        return accelerator.is_main_process or is_sharding(accelerator)

    def _is_early(self, min_seconds: float) -> bool:
        """Return whether rank 0 is still writing the last checkpoint, or it is too recent."""
        assert self.checkpoints is not None
        accelerator = self.state.accelerator
        is_early = False
        if accelerator.is_main_process:
            is_recent = time.monotonic() - self.last_saved < min_seconds
            is_early = is_recent or self.checkpoints.is_writing
        if not is_sharding(accelerator):
            return is_early
        return bool(accelerator.reduce(torch.tensor(int(is_early), device=accelerator.device)))


def check_same_checkpoint(snapshot: Snapshot | None, accelerator: Accelerator) -> None:
    """Check that all ranks resume from the same step, and so train on the same batches.

    Raises:
        RuntimeError: The ranks loaded checkpoints of different steps.
    """
    own = torch.tensor([snapshot.step if snapshot else -1], device=accelerator.device)
    steps = accelerator.gather(own).tolist()
    if len(set(steps)) > 1:
        raise RuntimeError(
            f"the ranks loaded checkpoints of different steps, {steps}: the store does not "
            "yet show the same files to every machine"
        )
