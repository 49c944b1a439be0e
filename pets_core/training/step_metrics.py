"""Loss and gradient norm of each step, copied to the host without blocking the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from pets_core.errors import PetsError, format_list

__all__ = ["StepRows"]

_MAX_LISTED = 128
_MIN_SCALE = 1e-3
"""Scale below which fp16 training has failed. A gradient scaler starts at 65,536 and halves its
scale at each overflow; below 1 it shrinks the gradients, so overflow has another cause."""


class _PendingStep(NamedTuple):
    """Step whose values are being copied to the host.

    Attributes:
        number: Number of the step, from 0 at the first that was added.
        rates: Learning rate by layer group.
        ids: Ids of this rank's samples.
        event: Reached when the values are on the host; None: they are there.
    """

    number: int
    rates: Mapping[int, float]
    ids: Sequence[str]
    event: torch.Event | None


class StepRows:
    """History rows of one epoch; losses and gradient norms are filled in by `fill`.

    Loss and gradient norm of each step are checked on the host without blocking the device.

    Args:
        rows: Rows of the epoch's steps so far, extended in place.
        first_step: Number of the epoch's first step.
        num_steps: Number of steps in the epoch.
        accelerator: Devices and ranks. Its gradient scaler, if any (fp16), handles gradients that
            are not finite.
        starts_phase: Whether the epoch's first step is the first of a phase; its gradient must not
            be zero.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        first_step: int,
        num_steps: int,
        accelerator: Accelerator,
        *,
        starts_phase: bool = False,
    ) -> None:
        self._rows, self._accelerator = rows, accelerator
        self._start = first_step + len(rows)
        self._starts_phase = starts_phase and not rows
        self._sizes: list[int] = []
        self._own_sizes: list[int] = []
        self._on_gpu = accelerator.device.type == "cuda"
        # Loss sum of this rank's samples and gradient norm, by step.
        self._values = torch.zeros(num_steps - len(rows), 2, pin_memory=self._on_gpu)
        self._pending: deque[_PendingStep] = deque()
        self._num_filled = 0

    @property
    def num_done(self) -> int:
        """Number of optimizer steps taken, including earlier epochs."""
        return self._start + len(self._sizes)

    def add(
        self,
        loss_sum: Tensor,
        grad_norm: Tensor,
        ids: Sequence[str],
        rates: Mapping[int, float],
        host_metrics: Mapping[str, float],
        global_size: int,
    ) -> None:
        """Add one step: copy its values to the host, and check those that have arrived.

        Args:
            loss_sum: Loss summed over this rank's samples, a scalar.
            grad_norm: Norm of the gradient, a scalar.
            ids: Ids of this rank's samples.
            rates: Learning rate by layer group.
            host_metrics: Metrics that are on the host already, such as the momentum.
            global_size: Number of samples over all ranks.

        Raises:
            PetsError: The loss or the gradient of a step is not finite.
            RuntimeError: The gradient of the first step of a phase is zero.
        """
        number, values = len(self._sizes), torch.stack([loss_sum.float(), grad_norm.float()])
        self._values[number].copy_(values, non_blocking=self._on_gpu)
        event = None
        if self._on_gpu:
            event = torch.Event(self._accelerator.device)
            event.record()
        self._pending.append(_PendingStep(number, rates, ids, event))
        self._check(wait=False)
        self._sizes.append(global_size)
        self._own_sizes.append(len(ids))
        self._rows.append(
            {**host_metrics, **{f"lr_group_{group}": rate for group, rate in rates.items()}}
        )

    @property
    def latest_loss(self) -> float | None:
        """Mean loss over this rank's samples, of the last step that is on the host; else None."""
        number = len(self._sizes) - len(self._pending) - 1
        if number < 0 or not self._own_sizes[number]:
            return None
        return float(self._values[number, 0]) / self._own_sizes[number]

    def fill(self) -> None:
        """Fill in loss and gradient norm of all rows; all ranks call it after the same step.

        Raises:
            PetsError: A loss is not finite, or the gradients overflow in every step (fp16).
        """
        self._check(wait=True)
        scaler = self._accelerator.scaler
        if scaler and scaler.get_scale() < _MIN_SCALE:
            raise PetsError(
                "the gradients overflow in fp16, so no step changes the weights: set "
                "train.mixed_precision = bf16 or no, or lower train.base_lr or train.lr_max"
            )
        new = slice(self._num_filled, len(self._sizes))
        if new.start == new.stop:
            return
        # One collective for many steps.
        sums = self._values[new, 0].to(self._accelerator.device)
        losses = self._accelerator.reduce(sums, "sum").tolist()
        norms, sizes = self._values[new, 1].tolist(), self._sizes[new]
        rows = self._rows[len(self._rows) - len(losses) :]
        for row, loss, size, norm in zip(rows, losses, sizes, norms, strict=True):
            row |= {"loss": loss / size, "grad_norm": norm}
        self._num_filled = new.stop

    def _check(self, *, wait: bool) -> None:
        """Check the values that have arrived, or wait for all of them; raises as `add` does."""
        while self._pending:
            step = self._pending[0]
            if step.event is not None and not step.event.query():
                if not wait:
                    return
                step.event.synchronize()
            self._pending.popleft()
            self._check_finite(step)
            if step.number == 0 and self._starts_phase:
                self._check_gradient_not_zero()

    def _check_finite(self, step: _PendingStep) -> None:
        loss, norm = self._values[step.number].tolist()
        if math.isfinite(loss) and (self._accelerator.scaler or math.isfinite(norm)):
            return
        groups = ", ".join(f"{rate:.2e}" for rate in step.rates.values())
        if math.isfinite(loss):
            # The cause may be the loss of another rank, which reports its own samples.
            problem = f"gradient norm is {norm}"
            samples = "the samples of the step (unless another process reports its loss)"
        else:
            problem, samples = f"loss is {loss}", "the samples of the step"
        raise PetsError(
            f"the {problem} at step {self._start + step.number}; the step changed no weights. "
            f"Lower train.base_lr or train.lr_max (learning rates of the layer groups: {groups}), "
            f"or check {samples}: {format_list(step.ids, _MAX_LISTED)}"
        )

    def _check_gradient_not_zero(self) -> None:
        loss, norm = self._values[0].tolist()
        if norm == 0 and loss > 0:
            # No later step would show that gradients reach no weight.
            raise RuntimeError(
                f"the gradient at step {self._start}, the first of its phase, is zero at a "
                f"loss of {loss:g}: no gradient reaches the trainable weights"
            )
