"""Backbone with a classification head, and its layer groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pets_core.models.backbones import body_groups
from pets_core.models.body_view import BodyView, is_folding_disabled
from pets_core.models.folding import FoldedBackbone
from pets_core.models.grouped import GroupedModel

__all__ = ["Classifier", "HeadModel"]


class Classifier(GroupedModel):
    """Backbone with a head: layer normalisation, dropout, one linear layer.

    Layer normalisation, unlike batch normalisation, does not depend on the other photos of a
    batch, so the result is the same for any number of ranks. The linear layer starts at zero, so
    that initial predictions are uniform and independent of the seed.

    Args:
        body: Headless backbone, (B, 3, S, S) to (B, D).
        num_features: D.
        num_outputs: Number of logits per photo.
        dropout: Dropout probability of the features.
    """

    def __init__(
        self, body: nn.Module, num_features: int, num_outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.body = body
        self._folded = FoldedBackbone()
        self._view = BodyView()
        linear = nn.Linear(num_features, num_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.LayerNorm(num_features), nn.Dropout(dropout), linear)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map photos (B, 3, S, S) to logits (B, num_outputs)."""
        return self.head(self.embed(inputs))  # type: ignore[no-any-return]

    def embed(self, inputs: Tensor) -> Tensor:
        """Map photos (B, 3, S, S) to pooled features (B, D), the input of the head."""
        if len(inputs) == 0:
            # A rank's share may be empty; Swin, EVA-02 and MaxViT cannot reshape an empty batch.
            return self.body(inputs.new_zeros(1, *inputs.shape[1:]))[:0]  # type: ignore[no-any-return]
        return self._body_for(inputs)(inputs)  # type: ignore[no-any-return]

    def _body_for(self, inputs: Tensor) -> nn.Module:
        """Return the body, its faster folded copy while it is frozen, or its view while trained."""
        # A copy of a sharded body would use the memory that sharding saves.
        is_sharded = isinstance(self, FSDPModule)
        if is_sharded or torch.compiler.is_compiling() or is_folding_disabled():
            self._folded.clear()
            self._view.clear()
            return self.body
        if any(weight.requires_grad for weight in self._folded.parameters_of(self.body)):
            self._folded.clear()
            return self._view.get(self.body, inputs)
        self._view.clear()
        if self.body.training:
            self._folded.clear()
            return self.body
        return self._folded.get(self.body, inputs)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer group, earliest first, head last."""
        parameters = dict(self.body.named_parameters())
        groups = [[parameters[name] for name in group] for group in body_groups(self.body)]
        return [*groups, list(self.head.parameters())]


class HeadModel(GroupedModel):
    """Head of a classifier, used as a model of features (B, D).

    It has `num_groups` layer groups; all but the last are empty.

    Args:
        head: Head to wrap, not copied: training it changes the classifier.
        num_groups: Number of layer groups.
    """

    def __init__(self, head: nn.Module, num_groups: int = 1) -> None:
        super().__init__()
        self.head = head
        self._num_groups = num_groups

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, num_outputs)."""
        return self.head(features)  # type: ignore[no-any-return]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer group: empty ones, then the head."""
        return [*([] for _ in range(self._num_groups - 1)), list(self.head.parameters())]
