"""Loss and gradient norm of each step on their way to the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pets_core.errors import PetsError, listed

__all__ = ["StepFigures", "StepRows"]

_MAX_LISTED = 128
_LEAST_SCALE = 1e-3
"""A gradient scaler begins at 65,536 and halves it at each step whose gradients overflow. Below 1
it makes them smaller than they are, so that something else is wrong."""


class StepRows:
    """Adds the steps of one epoch to its rows; losses and norms come in when they are asked for.

    Args:
        rows: Of the epoch's steps so far.
        first_step: Number of the epoch's first.
        num_steps: Of the epoch.
        accelerator: Devices and ranks.
        begins: Whether the epoch's first step is the first of a phase.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        first_step: int,
        num_steps: int,
        accelerator: Accelerator,
        *,
        begins: bool = False,
    ) -> None:
        self._rows, self._first_step, self._accelerator = rows, first_step, accelerator
        self._sizes: list[int] = []
        self._own_sizes: list[int] = []
        scaled = accelerator.scaler is not None
        self._figures = StepFigures(
            num_steps - len(rows), self.num_done, accelerator.device, scaled=scaled,
            begins=begins and not rows,
        )  # fmt: skip
        self._num_filled = 0

    @property
    def num_done(self) -> int:
        """Optimizer steps taken, those of earlier epochs included."""
        return self._first_step + len(self._rows)

    def add(
        self,
        loss_sum: Tensor,
        grad_norm: Tensor,
        ids: Sequence[str],
        rates: Mapping[int, float],
        figures: Mapping[str, float],
        global_size: int,
    ) -> None:
        """Add one step; arguments and errors as `StepFigures.add`.

        Args:
            loss_sum: Of this rank's samples, a scalar.
            grad_norm: A scalar.
            ids: This rank's samples.
            rates: Rate of each layer group.
            figures: What the host knows already.
            global_size: Samples over all ranks.
        """
        self._figures.add(loss_sum, grad_norm, rates, ids)
        self._sizes.append(global_size)
        self._own_sizes.append(len(ids))
        self._rows.append(
            {**figures, **{f"lr_group_{group}": rate for group, rate in rates.items()}}
        )

    @property
    def latest_loss(self) -> float | None:
        """Mean over this rank's samples, of the last step whose figures have arrived."""
        number = self._figures.num_arrived - 1
        if number < 0 or not self._own_sizes[number]:
            return None
        return float(self._figures.loss_sums[number]) / self._own_sizes[number]

    def fill(self) -> None:
        """Complete the rows so far; all ranks call it after the same step.

        Raises:
            PetsError: A loss is not finite, or no gradient is (fp16).
        """
        self._figures.check(wait=True)
        scaler = self._accelerator.scaler
        if scaler and scaler.get_scale() < _LEAST_SCALE:
            raise PetsError(
                "the gradients do not fit fp16 and train nothing: set train.mixed_precision = bf16 "
                "or no, or lower train.base_lr or train.lr_max"
            )
        new = slice(self._num_filled, len(self._sizes))
        if new.start == new.stop:
            return
        # One synchronisation for many steps.
        sums = self._figures.loss_sums[new].to(self._accelerator.device)
        losses = self._accelerator.reduce(sums, "sum").tolist()
        norms, sizes = self._figures.grad_norms[new], self._sizes[new]
        rows = self._rows[len(self._rows) - len(losses) :]
        for row, loss, size, norm in zip(rows, losses, sizes, norms, strict=True):
            row |= {"loss": loss / size, "grad_norm": norm}
        self._num_filled = new.stop


class StepFigures:
    """Takes each step's figures and looks at them when they have arrived; the device never waits.

    Args:
        num_steps: How many steps there will be.
        first_step: Number of the first.
        device: Where the figures are computed.
        scaled: Whether a gradient scaler handles gradients that are not finite (fp16).
        begins: Whether the first is the first of a phase, whose gradient must not be zero.
    """

    def __init__(
        self,
        num_steps: int,
        first_step: int,
        device: torch.device,
        *,
        scaled: bool,
        begins: bool = False,
    ) -> None:
        self._values = torch.zeros(num_steps, 2, pin_memory=device.type == "cuda")
        self._first_step, self._device, self._scaled = first_step, device, scaled
        self._begins = begins
        self._underway: deque[
            tuple[int, Mapping[int, float], Sequence[str], torch.Event | None]
        ] = deque()
        self._added = 0

    def add(
        self, loss_sum: Tensor, grad_norm: Tensor, rates: Mapping[int, float], ids: Sequence[str]
    ) -> None:
        """Send one step's figures to the host, and check those that have arrived.

        Args:
            loss_sum: Of this rank's samples, a scalar.
            grad_norm: A scalar.
            rates: Rate of each layer group, for the error's message.
            ids: This rank's samples, for the error's message.

        Raises:
            PetsError: A step's loss or gradient was not finite.
            RuntimeError: The gradient of the first step of a phase was zero.
        """
        values = torch.stack([loss_sum.float(), grad_norm.float()])
        on_gpu = self._device.type == "cuda"
        self._values[self._added].copy_(values, non_blocking=on_gpu)
        event = None
        if on_gpu:
            event = torch.Event(self._device)
            event.record()
        self._underway.append((self._added, rates, ids, event))
        self._added += 1
        self.check(wait=False)

    def check(self, *, wait: bool) -> None:
        """Look at the figures that have arrived, or wait for all of them; errors as `add`."""
        while self._underway:
            number, rates, ids, event = self._underway[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._underway.popleft()
            self._refuse_non_finite(number, rates, ids)
            if number == 0 and self._begins:
                self._refuse_zero()

    @property
    def num_arrived(self) -> int:
        """Steps whose figures are on the host."""
        return self._added - len(self._underway)

    @property
    def loss_sums(self) -> Tensor:
        """Of this rank's samples in each step so far, float32 on the host; after a check."""
        return self._values[: self._added, 0]

    @property
    def grad_norms(self) -> list[float]:
        """Of each step so far; after a check."""
        norms: list[float] = self._values[: self._added, 1].tolist()
        return norms

    def _refuse_non_finite(
        self, number: int, rates: Mapping[int, float], ids: Sequence[str]
    ) -> None:
        loss, norm = self._values[number].tolist()
        if math.isfinite(loss) and (self._scaled or math.isfinite(norm)):
            return
        groups = ", ".join(f"{rate:.2e}" for rate in rates.values())
        if math.isfinite(loss):
            # Another rank's loss may be at fault; that rank names its own samples.
            what, whose = f"gradient's norm is {norm}", "if no process's loss is at fault, "
        else:
            what, whose = f"loss is {loss}", ""
        raise PetsError(
            f"the {what} at step {self._first_step + number}, which changed no weight. Lower "
            f"train.base_lr or train.lr_max (the layer groups' rates are {groups}), or look at the "
            f"samples of the step; {whose}these are {listed(ids, _MAX_LISTED)}"
        )

    def _refuse_zero(self) -> None:
        loss, norm = self._values[0].tolist()
        if norm == 0 and loss > 0:
            # Gradients that reach no weight train nothing, and no later step shows it.
            raise RuntimeError(
                f"the gradient at step {self._first_step}, the first of its phase, is zero and the "
                f"loss {loss:g} is not: the model does not learn"
            )
