"""A frozen body's twin that computes the same in less time."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["FrozenTwin", "fold", "in_precision"]

_LARGEST_ERROR = 1e-6
_AUTOCAST_LAYERS = (nn.Conv2d, nn.Linear, Conv2dSame)
"""Use their weights in nothing but a convolution or a product; a layer that standardises its
weights first would do so in fewer bits."""


class FrozenTwin:
    """The folded copy of a body, made anew whenever the body's weights are others.

    Under autocast its convolutions and linear layers have the type that autocast would cast their
    weights to anew in each pass.

    It is no module, so that a model that has one gains neither parameters nor buffers by it.
    """

    def __init__(self) -> None:
        self._body: nn.Module | None = None
        self._weights: tuple[nn.Parameter, ...] = ()
        self._twin: nn.Module | None = None
        self._made_of: tuple[torch.dtype | None, list[tuple[int, int]]] | None = None

    def weights_of(self, body: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the parameters of a body, whose modules are walked through the first time only."""
        if self._body is not body:
            self._body = body
            self._weights = tuple(body.parameters())
        return self._weights

    def of(self, body: nn.Module, inputs: Tensor) -> nn.Module:
        """Return what computes the same as a frozen `body`; `inputs` is a sample."""
        device_type = inputs.device.type
        is_mixed = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_mixed else None
        made_of = dtype, [(weight.data_ptr(), weight._version) for weight in self.weights_of(body)]
        if self._twin is None or made_of != self._made_of:
            self._twin = in_precision(fold(body, inputs[:1]), dtype, inputs)
            self._made_of = made_of
        return self._twin

    def forget(self) -> None:
        """Free the copy's memory."""
        self._twin = None


@torch.no_grad()
def in_precision(body: nn.Module, dtype: torch.dtype | None, sample: Tensor) -> nn.Module:
    """Return a copy of `body` with the weights that autocast casts cast already.

    Args:
        body: In evaluation mode; left as it is.
        dtype: Of autocast; None: `body` itself is returned.
        sample: Inputs, (B, 3, S, S), B at least 1.

    Returns:
        A copy that gives the same outputs, or `body` where none does.
    """
    if dtype is None:
        return body
    with torch.inference_mode(False):
        cast = copy.deepcopy(body)
        for module in cast.modules():
            if type(module) in _AUTOCAST_LAYERS:
                module.to(dtype)
        one = sample[:1].detach().clone()
    same = torch.equal(cast(one), body(one))
    return cast if same else body


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
    # Apple's has no float64.
    device = torch.device("cpu") if sample.device.type == "mps" else sample.device
    exact = sample.detach().clone().to(device).double()
    expected, found = (copy.deepcopy(m).to(device).double()(exact) for m in (body, twin))
    return bool((found - expected).norm() <= _LARGEST_ERROR * expected.norm())
