"""A frozen body's twin that computes the same in less time."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["FrozenTwin", "fold"]

_LARGEST_ERROR = 1e-6


class FrozenTwin:
    """The folded copy of a body, made anew whenever the body's weights are others.

    It is no module, so that a model that has one gains neither parameters nor buffers by it.
    """

    def __init__(self) -> None:
        self._twin: nn.Module | None = None
        self._made_of: list[tuple[int, int]] = []

    def of(self, body: nn.Module, inputs: Tensor) -> nn.Module:
        """Return what computes the same as `body` in evaluation mode; `inputs` is a sample."""
        weights = [(weight.data_ptr(), weight._version) for weight in body.parameters()]
        if self._twin is None or weights != self._made_of:
            self._twin, self._made_of = fold(body, inputs[:1]), weights
        return self._twin

    def forget(self) -> None:
        """Free the copy's memory."""
        self._twin = None


def fold(body: nn.Module, sample: Tensor) -> nn.Module:
    """Fold each batch norm into the convolution before it (Jacob and others 2018, section 3.2).

    In evaluation mode a batch norm is a factor and a shift a channel, which the convolution's
    weights and bias can take on. Which convolution feeds which norm is guessed from the order in
    which modules are registered, then proved on a sample: where the outputs differ, the body itself
    is returned.

    Args:
        body: In evaluation mode; left as it is.
        sample: Inputs, (B, 3, S, S), B at least 1.

    Returns:
        A copy with fewer batch norms, or `body`.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(sample.device.type, enabled=False),
    ):
        twin, num_folded = copy.deepcopy(body), 0
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        layers = [(name, m) for name, m in twin.named_modules() if isinstance(m, kinds)]
        for (_, conv), (name, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if norm.running_mean is None or conv.out_channels != norm.num_features:
                    continue
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                # timm's batch norms bring their activation with them.
                num_folded += 1
                twin.set_submodule(name, nn.Sequential(*norm.children()))
        return twin if num_folded and _computes_the_same(body, twin, sample) else body


def _computes_the_same(body: nn.Module, twin: nn.Module, sample: Tensor) -> bool:
    """Compare two bodies in float64, which no backend rounds to TF32 or bf16."""
    exact = sample.detach().clone().double()
    expected, found = (copy.deepcopy(module).double()(exact) for module in (body, twin))
    return bool((found - expected).norm() <= _LARGEST_ERROR * expected.norm())
