"""Faster copies of a frozen backbone: folded batch norms, weights cast for autocast."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["FoldedBackbone", "cast_for_autocast", "fold"]

_MAX_RELATIVE_ERROR = 1e-6
_AUTOCAST_LAYERS = (nn.Conv2d, nn.Linear, Conv2dSame)
"""Layers that use their weights only in a convolution or matrix product. A layer that standardises
its weights first would lose precision."""


class FoldedBackbone:
    """Cache of a backbone's folded copy, rebuilt when the backbone's weights change.

    Under autocast the copy's convolutions and linear layers store their weights in autocast's
    dtype, which saves a cast in each pass. This class is not an `nn.Module`, so that it adds no
    parameters or buffers to a model. Its copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._body: nn.Module | None = None
        self._weights: list[dict[str, nn.Parameter | None]] = []
        self._folded: nn.Module | None = None
        self._key: tuple[torch.dtype | None, list[tuple[int, int]]] | None = None

    def __reduce__(self) -> tuple[type[FoldedBackbone], tuple[()]]:
        return type(self), ()

    def parameters_of(self, body: nn.Module) -> list[nn.Parameter]:
        """Return the present parameters of a body; its modules are traversed only once."""
        if self._body is not body:
            self._body = body
            # The modules' own dicts, because `load_state_dict(assign=True)` replaces parameters.
            self._weights = [module._parameters for module in body.modules()]
        return [weight for own in self._weights for weight in own.values() if weight is not None]

    def get(self, body: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the folded copy of a frozen `body`.

        Args:
            body: Frozen backbone in evaluation mode.
            inputs: Inputs (B, 3, S, S), B at least 1; the first is used to check the copy.
        """
        device_type = inputs.device.type
        is_mixed = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_mixed else None
        key = dtype, [(weight.data_ptr(), weight._version) for weight in self.parameters_of(body)]
        if self._folded is None or key != self._key:
            self._folded = cast_for_autocast(fold(body, inputs[:1]), dtype, inputs)
            self._key = key
        return self._folded

    def clear(self) -> None:
        """Free the copy's memory."""
        self._folded = None


@torch.no_grad()
def cast_for_autocast(body: nn.Module, dtype: torch.dtype | None, sample: Tensor) -> nn.Module:
    """Return a copy of `body` with weights cast to autocast's dtype.

    Args:
        body: Backbone in evaluation mode; not changed.
        dtype: Dtype of autocast; None: `body` itself is returned.
        sample: Inputs, (B, 3, S, S), B at least 1.

    Returns:
        The copy, or `body` if the outputs of the copy differ.
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
    """Fold each batch norm into the convolution before it (Jacob et al. 2018, section 3.2).

    In evaluation mode a batch norm is a scale and a shift per channel, which can be merged into
    the convolution's weights and bias. The pairs are guessed from the order in which modules are
    registered, then verified on a sample.

    Args:
        body: Backbone in evaluation mode; not changed.
        sample: Inputs, (B, 3, S, S), B at least 1.

    Returns:
        A copy with fewer batch norms, or `body` if there are none or the outputs differ.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(sample.device.type, enabled=False),
    ):
        folded, num_folded = copy.deepcopy(body), 0
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        layers = [(name, m) for name, m in folded.named_modules() if isinstance(m, kinds)]
        for (_, conv), (name, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if norm.running_mean is None or conv.out_channels != norm.num_features:
                    continue
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                # timm's batch norms contain their activation.
                num_folded += 1
                folded.set_submodule(name, nn.Sequential(*norm.children()))
        return folded if num_folded and _outputs_match(body, folded, sample) else body


def _outputs_match(body: nn.Module, folded: nn.Module, sample: Tensor) -> bool:
    """Compare the outputs in float64, which no backend rounds to TF32 or bf16."""
    # MPS does not support float64.
    device = torch.device("cpu") if sample.device.type == "mps" else sample.device
    exact = sample.detach().clone().to(device).double()
    expected, found = (copy.deepcopy(m).to(device).double()(exact) for m in (body, folded))
    return bool((found - expected).norm() <= _MAX_RELATIVE_ERROR * expected.norm())
