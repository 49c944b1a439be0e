"""Faster forms of a backbone: folded batch norms, weights cast for autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["FoldedBackbone", "TrainableFold", "cast_for_autocast", "fold"]

_MAX_RELATIVE_ERROR = 1e-6
_AUTOCAST_LAYERS = (nn.Conv2d, nn.Linear, Conv2dSame)
"""Layers that use their weights only in a convolution or matrix product. A layer that standardises
its weights first would lose precision."""


class FoldedBackbone:
    """Cache of a backbone's folded forms.

    The copy of a frozen backbone is rebuilt when the weights change. Under autocast its
    convolutions and linear layers store their weights in autocast's dtype, which saves a cast in
    each pass. The form of a trainable backbone shares its weights. This class is not an
    `nn.Module`, so that it adds no parameters or buffers to a model.
    """

    def __init__(self) -> None:
        self._body: nn.Module | None = None
        self._weights: tuple[nn.Parameter, ...] = ()
        self._norms: tuple[nn.BatchNorm2d, ...] = ()
        self._folded: nn.Module | None = None
        self._key: tuple[torch.dtype | None, list[tuple[int, int]]] | None = None
        self._trainable: TrainableFold | None = None

    def parameters_of(self, body: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the parameters of a body; its modules are traversed only once."""
        if self._body is not body:
            self._body = body
            self._weights = tuple(body.parameters())
            self._norms = tuple(m for m in body.modules() if isinstance(m, nn.BatchNorm2d))
            self._trainable = None
        return self._weights

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

    def get_trainable(self, body: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the folded form of a trainable `body`, or `body` if batch norms are trained.

        Args:
            body: Backbone with trainable parameters.
            inputs: Inputs (B, 3, S, S), B at least 1; the first is used to check the form.
        """
        self.clear()
        self.parameters_of(body)
        if not self._norms or any(norm.training for norm in self._norms):
            return body
        if self._trainable is None or self._trainable.device != inputs.device:
            self._trainable = TrainableFold(body, inputs[:1])
        return self._trainable.module

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
        folded = copy.deepcopy(body)
        pairs = _find_pairs(folded)
        for pair in pairs:
            fused = fuse_conv_bn_eval(pair.conv, pair.norm)
            pair.conv.weight, pair.conv.bias = fused.weight, fused.bias
            folded.set_submodule(pair.norm_name, _without_norm(pair.norm))
        return folded if pairs and _outputs_match(body, folded, sample) else body


class TrainableFold:
    """Form of a trainable backbone with its frozen batch norms folded into the convolutions.

    A convolution with weight w, followed by a batch norm in evaluation mode with weight g, bias b,
    mean m and variance v, is a convolution with weight s w and bias b - s m, where
    s = g / sqrt(v + eps). Computing both in each pass gives w, g and b their exact gradients
    without the kernels and the stored activations of the batch norm.

    Attributes:
        device: Device of the backbone.
    """

    def __init__(self, body: nn.Module, sample: Tensor) -> None:
        """Build the form.

        Args:
            body: Backbone; not changed.
            sample: Inputs, (B, 3, S, S), B at least 1, to verify which batch norms can be folded.
        """
        self.device = sample.device
        self._folded = body
        self._modes: list[tuple[nn.Module, nn.Module]] = []
        frozen = copy.deepcopy(body).eval()
        if fold(frozen, sample) is frozen:
            return
        # The form has modules of its own, which share the tensors of the backbone.
        tensors = [*body.parameters(), *body.buffers()]
        self._folded = copy.deepcopy(body, {id(tensor): tensor for tensor in tensors})
        own = dict(self._folded.named_modules())
        for pair in _find_pairs(body):
            if type(pair.conv) in (nn.Conv2d, Conv2dSame) and pair.conv.padding_mode == "zeros":
                self._folded.set_submodule(pair.conv_name, _FoldedConv(pair.conv, pair.norm))
                self._folded.set_submodule(pair.norm_name, _without_norm(own[pair.norm_name]))
        originals = dict(body.named_modules())
        for name, module in self._folded.named_modules():
            if name in originals:
                self._modes.append((originals[name], module))

    @property
    def module(self) -> nn.Module:
        """The form, with each module in the mode of the backbone's; or the backbone itself."""
        for original, own in self._modes:
            own.training = original.training
        return self._folded


class _FoldedConv(nn.Module):
    """A convolution and the frozen batch norm after it, as one convolution."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        # A tuple: the parameters belong to the backbone and are not registered here.
        self._layers = conv, norm

    def forward(self, inputs: Tensor) -> Tensor:
        conv, norm = self._layers
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        bias = -mean * scale if norm.bias is None else norm.bias - mean * scale
        weight = conv.weight * scale[:, None, None, None]
        is_same = isinstance(conv, Conv2dSame)
        convolve: Callable[..., Tensor] = conv2d_same if is_same else nn.functional.conv2d
        return convolve(inputs, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class _Pair(NamedTuple):
    """A convolution and the batch norm after it."""

    conv_name: str
    conv: nn.Conv2d
    norm_name: str
    norm: nn.BatchNorm2d


def _find_pairs(body: nn.Module) -> list[_Pair]:
    """Return each convolution that is registered just before a batch norm of its channels."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    layers = [(name, m) for name, m in body.named_modules() if isinstance(m, kinds)]
    return [
        _Pair(conv_name, conv, norm_name, norm)
        for (conv_name, conv), (norm_name, norm) in pairwise(layers)
        if isinstance(conv, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and conv.out_channels == norm.num_features
    ]


def _without_norm(norm: nn.Module) -> nn.Module:
    """Return what remains of a batch norm: timm's contain their activation."""
    return nn.Sequential(*norm.children())


def _outputs_match(body: nn.Module, folded: nn.Module, sample: Tensor) -> bool:
    """Compare the outputs in float64, which no backend rounds to TF32 or bf16."""
    # MPS does not support float64.
    device = torch.device("cpu") if sample.device.type == "mps" else sample.device
    exact = sample.detach().clone().to(device).double()
    expected, found = (copy.deepcopy(m).to(device).double()(exact) for m in (body, folded))
    return bool((found - expected).norm() <= _MAX_RELATIVE_ERROR * expected.norm())
