"""The weights that judged best so far, and how long ago that was."""

from __future__ import annotations

from torch import Tensor, nn

from pets_core.training.host_copy import copy_to_host

__all__ = ["Best"]


class Best:
    """Keeps a copy of the weights whose validation loss is least; of equals, the first.

    Attributes:
        loss: The least validation loss so far.
        epochs_since: How many epochs in a row have not bettered it.
        weights: On the host; none before an epoch had a finite validation loss.
    """

    def __init__(self) -> None:
        self.loss = float("inf")
        self.epochs_since = 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, model: nn.Module, valid_loss: float, *, keeps: bool = True) -> None:
        """Compare the weights of one more epoch; only ranks that keep them copy them."""
        self.epochs_since += 1
        if valid_loss < self.loss:
            self.loss, self.epochs_since = valid_loss, 0
            copied = copy_to_host(model.state_dict(), keeps=keeps)
            if copied.ready:
                copied.ready.synchronize()
            self.weights = copied.tensors
