"""What a model must tell of itself to be fine-tuned."""

from __future__ import annotations

from torch import nn

__all__ = ["GroupedModel"]


class GroupedModel(nn.Module):
    """A model whose parameters come in layer groups, each with a learning rate of its own."""

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each group, the earliest first and the head last."""
        raise NotImplementedError
