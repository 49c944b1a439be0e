"""Loss and gradient norm of each step, copied to the host without blocking the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pets_core.errors import PetsError, format_list

__all__ = ["AsyncStepMetrics", "StepRows"]

_MAX_LISTED = 128
_MIN_SCALE = 1e-3
"""Scale below which fp16 training has failed. A gradient scaler starts at 65,536 and halves its
scale at each overflow; below 1 it shrinks the gradients, so overflow has another cause."""


class StepRows:
    """History rows of one epoch; losses and gradient norms are filled in by `fill`.

    Args:
        rows: Rows of the epoch's steps so far, extended in place.
        first_step: Number of the epoch's first step.
        num_steps: Number of steps in the epoch.
        accelerator: Devices and ranks.
        starts_phase: Whether the epoch's first step is the first of a phase.
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
        self._rows, self._first_step, self._accelerator = rows, first_step, accelerator
        self._sizes: list[int] = []
        self._own_sizes: list[int] = []
        self._metrics = AsyncStepMetrics(
            num_steps - len(rows), self.num_done, accelerator.device,
            has_scaler=accelerator.scaler is not None, starts_phase=starts_phase and not rows,
        )  # fmt: skip
        self._num_filled = 0

    @property
    def num_done(self) -> int:
        """Number of optimizer steps taken, including earlier epochs."""
        return self._first_step + len(self._rows)

    def add(
        self,
        loss_sum: Tensor,
        grad_norm: Tensor,
        ids: Sequence[str],
        rates: Mapping[int, float],
        host_metrics: Mapping[str, float],
        global_size: int,
    ) -> None:
        """Add one step; raises the errors of `AsyncStepMetrics.add`.

        Args:
            loss_sum: Loss summed over this rank's samples, a scalar.
            grad_norm: Norm of the gradient, a scalar.
            ids: Ids of this rank's samples.
            rates: Learning rate by layer group.
            host_metrics: Metrics that are on the host already, such as the momentum.
            global_size: Number of samples over all ranks.
        """
        self._metrics.add(loss_sum, grad_norm, rates, ids)
        self._sizes.append(global_size)
        self._own_sizes.append(len(ids))
        self._rows.append(
            {**host_metrics, **{f"lr_group_{group}": rate for group, rate in rates.items()}}
        )

    @property
    def latest_loss(self) -> float | None:
        """Mean loss over this rank's samples, of the last step that is on the host; else None."""
        number = self._metrics.num_arrived - 1
        if number < 0 or not self._own_sizes[number]:
            return None
        return float(self._metrics.loss_sums[number]) / self._own_sizes[number]

    def fill(self) -> None:
        """Fill in loss and gradient norm of all rows; all ranks call it after the same step.

        Raises:
            PetsError: A loss is not finite, or the gradients overflow in every step (fp16).
        """
        self._metrics.check(wait=True)
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
        sums = self._metrics.loss_sums[new].to(self._accelerator.device)
        losses = self._accelerator.reduce(sums, "sum").tolist()
        norms, sizes = self._metrics.grad_norms[new], self._sizes[new]
        rows = self._rows[len(self._rows) - len(losses) :]
        for row, loss, size, norm in zip(rows, losses, sizes, norms, strict=True):
            row |= {"loss": loss / size, "grad_norm": norm}
        self._num_filled = new.stop


class AsyncStepMetrics:
    """Loss and gradient norm of each step, checked on the host without blocking the device.

    Args:
        num_steps: Number of steps to come.
        first_step: Number of the first of them.
        device: Device on which the values are computed.
        has_scaler: Whether a gradient scaler handles gradients that are not finite (fp16).
        starts_phase: Whether the first step is the first of a phase; its gradient must not be zero.
    """

    def __init__(
        self,
        num_steps: int,
        first_step: int,
        device: torch.device,
        *,
        has_scaler: bool,
        starts_phase: bool = False,
    ) -> None:
        self._values = torch.zeros(num_steps, 2, pin_memory=device.type == "cuda")
        self._first_step, self._device, self._has_scaler = first_step, device, has_scaler
        self._starts_phase = starts_phase
        self._pending: deque[tuple[int, Mapping[int, float], Sequence[str], torch.Event | None]] = (
            deque()
        )
        self._added = 0

    def add(
        self, loss_sum: Tensor, grad_norm: Tensor, rates: Mapping[int, float], ids: Sequence[str]
    ) -> None:
        """Copy one step's values to the host, and check those that have arrived.

        Args:
            loss_sum: Loss summed over this rank's samples, a scalar.
            grad_norm: Norm of the gradient, a scalar.
            rates: Learning rate by layer group, for error messages.
            ids: Ids of this rank's samples, for error messages.

        Raises:
            PetsError: The loss or the gradient of a step is not finite.
            RuntimeError: The gradient of the first step of a phase is zero.
        """
        values = torch.stack([loss_sum.float(), grad_norm.float()])
        on_gpu = self._device.type == "cuda"
        self._values[self._added].copy_(values, non_blocking=on_gpu)
        event = None
        if on_gpu:
            event = torch.Event(self._device)
            event.record()
        self._pending.append((self._added, rates, ids, event))
        self._added += 1
        self.check(wait=False)

    def check(self, *, wait: bool) -> None:
        """Check the values that have arrived, or wait for all of them; raises as `add` does."""
        while self._pending:
            number, rates, ids, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._pending.popleft()
            self._check_finite(number, rates, ids)
            if number == 0 and self._starts_phase:
                self._check_gradient_not_zero()

    @property
    def num_arrived(self) -> int:
        """Number of steps whose values are on the host."""
        return self._added - len(self._pending)

    @property
    def loss_sums(self) -> Tensor:
        """Loss sums of this rank's samples by step, float32 on the host; valid after `check`."""
        return self._values[: self._added, 0]

    @property
    def grad_norms(self) -> list[float]:
        """Gradient norm by step; valid after `check`."""
        norms: list[float] = self._values[: self._added, 1].tolist()
        return norms

    def _check_finite(self, number: int, rates: Mapping[int, float], ids: Sequence[str]) -> None:
        loss, norm = self._values[number].tolist()
        if math.isfinite(loss) and (self._has_scaler or math.isfinite(norm)):
            return
        groups = ", ".join(f"{rate:.2e}" for rate in rates.values())
        if math.isfinite(loss):
            # The cause may be the loss of another rank, which reports its own samples.
            problem = f"gradient norm is {norm}"
            samples = "the samples of the step (unless another process reports its loss)"
        else:
            problem, samples = f"loss is {loss}", "the samples of the step"
        raise PetsError(
            f"the {problem} at step {self._first_step + number}; the step changed no weights. "
            f"Lower train.base_lr or train.lr_max (learning rates of the layer groups: {groups}), "
            f"or check {samples}: {format_list(ids, _MAX_LISTED)}"
        )

    def _check_gradient_not_zero(self) -> None:
        loss, norm = self._values[0].tolist()
        if norm == 0 and loss > 0:
            # No later step would show that gradients reach no weight.
            raise RuntimeError(
                f"the gradient at step {self._first_step}, the first of its phase, is zero at a "
                f"loss of {loss:g}: no gradient reaches the trainable weights"
            )
