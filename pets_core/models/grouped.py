"""Interface of a model with layer groups."""

from __future__ import annotations

from torch import nn

__all__ = ["GroupedModel"]


class GroupedModel(nn.Module):
    """Model whose parameters form layer groups, each with its own learning rate.

    By default all parameters form one group.
    """

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each group, earliest first, head last."""
        return [list(self.parameters())]
