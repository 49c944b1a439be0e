"""Loss and gradient norm of each step on their way to the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pets_core.errors import PetsError

__all__ = ["StepFigures"]


class StepFigures:
    """Takes each step's figures and looks at them when they have arrived; the device never waits.

    Args:
        num_steps: How many steps there will be.
        first_step: Number of the first.
        device: Where the figures are computed.
        scaled: Whether a gradient scaler handles gradients that are not finite (fp16).
    """

    def __init__(
        self, num_steps: int, first_step: int, device: torch.device, *, scaled: bool
    ) -> None:
        self._values = torch.zeros(num_steps, 2, pin_memory=device.type == "cuda")
        self._first_step, self._device, self._scaled = first_step, device, scaled
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
        """
        values = torch.stack([loss_sum.float(), grad_norm.float()])
        self._values[self._added].copy_(values, non_blocking=True)
        event = None
        if self._device.type == "cuda":
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
            f"photos of the step; {whose}these are {', '.join(ids)}"
        )
