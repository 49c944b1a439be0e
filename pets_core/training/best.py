"""Best weights so far, for early stopping and `train.keep = best`."""

from __future__ import annotations

from torch import Tensor, nn

from pets_core.training.host_copy import copy_to_host

__all__ = ["BestWeights"]


class BestWeights:
    """Copy of the weights with the lowest validation loss; of equal losses, the first.

    Attributes:
        loss: Lowest validation loss so far.
        epochs_without_improvement: Epochs since then.
        weights: On the host; empty before an epoch has a finite validation loss.
    """

    def __init__(self) -> None:
        self.loss = float("inf")
        self.epochs_without_improvement = 0
        self.weights: dict[str, Tensor] = {}

    def update(self, model: nn.Module, valid_loss: float, *, needs_copy: bool = True) -> None:
        """Compare the weights of one more epoch, and copy them if they are better.

        Args:
            model: Model after the epoch; if it is sharded, all ranks must call this.
            valid_loss: Its validation loss.
            needs_copy: Whether this rank stores the weights.
        """
        self.epochs_without_improvement += 1
        if valid_loss < self.loss:
            self.loss, self.epochs_without_improvement = valid_loss, 0
            copied = copy_to_host(model.state_dict(), needs_copy=needs_copy)
            if copied.ready:
                copied.ready.synchronize()
            self.weights = copied.tensors
