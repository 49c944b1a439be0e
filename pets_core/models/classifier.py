"""A backbone with a new head, and its layer groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pets_core.models.backbones import body_groups
from pets_core.models.folding import FrozenTwin
from pets_core.models.grouped import GroupedModel

__all__ = ["Classifier"]


class Classifier(GroupedModel):
    """Pooled features to logits: layer normalisation, dropout, one linear layer.

    Layer normalisation rather than batch normalisation, because it knows nothing of the other
    photos of the batch: any number of ranks computes the same. The linear layer starts at zero,
    so that training starts from equal odds and does not depend on a draw.

    Args:
        body: (B, 3, S, S) to (B, D).
        num_features: D.
        num_outputs: Logits a photo.
        dropout: Share of features dropped in training.
    """

    def __init__(
        self, body: nn.Module, num_features: int, num_outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.body = body
        self._twin = FrozenTwin()
        linear = nn.Linear(num_features, num_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.LayerNorm(num_features), nn.Dropout(dropout), linear)

    def forward(self, inputs: Tensor) -> Tensor:
        """Photos (B, 3, S, S) to logits (B, num_outputs)."""
        return self.head(self.embed(inputs))  # type: ignore[no-any-return]

    def embed(self, inputs: Tensor) -> Tensor:
        """Photos (B, 3, S, S) to pooled features (B, D), which the head takes."""
        if len(inputs) == 0:
            # A rank's share may be empty; some bodies cannot reshape that (Swin, EVA-02, MaxViT).
            return self.body(inputs.new_zeros(1, *inputs.shape[1:]))[:0]  # type: ignore[no-any-return]
        return self._body_for(inputs)(inputs)  # type: ignore[no-any-return]

    def _body_for(self, inputs: Tensor) -> nn.Module:
        """The body, or while nothing of it learns its faster twin."""
        # A copy of a sharded body would take the memory that sharding is to save.
        sharded = isinstance(self, FSDPModule)
        if self.body.training or sharded or torch.compiler.is_compiling():
            self._twin.forget()
            return self.body
        if any(weight.requires_grad for weight in self._twin.weights_of(self.body)):
            self._twin.forget()
            return self.body
        return self._twin.of(self.body, inputs)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer group, the earliest first and the head last."""
        of_body = dict(self.body.named_parameters())
        groups = [[of_body[name] for name in group] for group in body_groups(self.body)]
        return [*groups, list(self.head.parameters())]
