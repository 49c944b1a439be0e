"""The weights that judged best so far, and how long ago that was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pets_core.errors import PetsError

__all__ = ["Best"]


class Best:
    """Keeps a copy of the weights whose validation loss is least; of equals, the first."""

    def __init__(self) -> None:
        self.loss = float("inf")
        self.epochs_since = 0
        self._weights: dict[str, Tensor] = {}

    def offer(self, model: nn.Module, valid_loss: float) -> None:
        """Judge the weights of one more epoch."""
        self.epochs_since += 1
        if valid_loss < self.loss:
            self.loss, self.epochs_since = valid_loss, 0
            self._weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give a model the best weights; none were offered where there is nothing to judge on."""
        if self.epochs_since and not self._weights:
            raise PetsError("no epoch had a finite validation loss: lower train.base_lr")
        if self._weights:
            model.load_state_dict(self._weights)
