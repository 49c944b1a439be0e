"""Differentiable folding of frozen batch norms into the convolutions before them."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BodyView", "View", "create_view", "is_folding_disabled", "without_folding"]

_MAX_RELATIVE_ERROR = 1e-9
_Module = TypeVar("_Module", bound=nn.Module)
_is_disabled: ContextVar[bool] = ContextVar("_is_disabled", default=False)


@contextlib.contextmanager
def without_folding() -> Iterator[None]:
    """Disable batch-norm folding inside the context."""
    token = _is_disabled.set(True)
    try:
        yield
    finally:
        _is_disabled.reset(token)


def is_folding_disabled() -> bool:
    """Return whether the caller is inside `without_folding`."""
    return _is_disabled.get()


class View(NamedTuple):
    """View of a body, and the containers that differ from the body's.

    Attributes:
        body: Module that computes the same as the body; the body itself if nothing differs.
        clones: Each copied container of the body, with its copy.
    """

    body: nn.Module
    clones: list[tuple[nn.Module, nn.Module]]


class BodyView:
    """Cache of the view of a body that is being trained.

    With batch norms in evaluation mode, the view folds each into the convolution before it (Jacob
    et al. 2018, section 3.2), in every forward pass and differentiably: it convolves with
    w * gamma / sigma and adds beta - mu * gamma / sigma. Autograd then stores no input of a batch
    norm, and w, gamma and beta get their gradients by the chain rule.

    In real arithmetic outputs and gradients are exactly those of the body; in float64 they agree to
    1e-10. Under autocast the folded weights and shifts are rounded, in place of weights and
    outputs of the convolution. The gradients of gamma and beta follow from rounded gradients of
    the folded weights, so they agree within the rounding of autocast's dtype only.

    Under autocast on CPUs the view also computes depthwise convolutions in fp32 if their weights
    are trained, because oneDNN's gradient of these weights is up to three times as slow in bf16
    (docs/performance.md).

    This class is not an `nn.Module`, so that it adds no parameters or buffers to a model. Its
    copies and pickles are empty, so that a copy of a model shares no tensors with the model.
    """

    def __init__(self) -> None:
        self._structure: _Structure | None = None
        self._views: dict[bool, View] = {}

    def __reduce__(self) -> tuple[type[BodyView], tuple[()]]:
        return type(self), ()

    def get(self, body: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the view of a trainable `body`, with the modes that its modules have now.

        Args:
            body: Body to train. If a batch norm is in training mode, `body` itself is returned.
            inputs: Inputs (B, 3, S, S), B at least 1.
        """
        if self._structure is None or not self._structure.is_of(body):
            self._structure, self._views = _Structure(body), {}
        if any(norm.training for norm in self._structure.norms):
            return body
        in_fp32 = inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if in_fp32 not in self._views:
            self._views[in_fp32] = create_view(body, inputs, depthwise_in_fp32=in_fp32)
        view = self._views[in_fp32]
        for module, clone in view.clones:
            clone.training = module.training
        return view.body

    def clear(self) -> None:
        """Release the references to the body."""
        self._structure, self._views = None, {}


class _Structure:
    """Modules of a body at one time, to detect replaced ones without a traversal."""

    def __init__(self, body: nn.Module) -> None:
        self._body = body
        self._children = [(m._modules, list(m._modules.values())) for m in body.modules()]
        self.norms = [m for m in body.modules() if isinstance(m, _BatchNorm)]

    def is_of(self, body: nn.Module) -> bool:
        """Return whether `body` still consists of these modules."""
        return body is self._body and all(
            list(modules.values()) == children for modules, children in self._children
        )


def create_view(
    body: nn.Module, sample: Tensor, *, folds: bool = True, depthwise_in_fp32: bool = False
) -> View:
    """Build the view of a body (see `BodyView`).

    Modules that differ from the body's and the containers around them are new objects; all others
    are the body's own. New modules share the dicts in which the body's modules hold their
    parameters and buffers, so replaced tensors are never stale.

    Args:
        body: Body; not changed.
        sample: Inputs (B, 3, S, S), for their shape and device.
        folds: Fold batch norms.
        depthwise_in_fp32: Compute trained depthwise convolutions in fp32 under autocast on CPUs.
    """
    protected = _protected(body)
    convs = {
        name: module
        for name, module in body.named_modules()
        if type(module) in (nn.Conv2d, Conv2dSame) and module not in protected
    }
    in_fp32 = [
        name
        for name, conv in convs.items()
        if depthwise_in_fp32 and conv.groups == conv.in_channels > 1
    ]
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    pairs = _verified_pairs(body, sample, protected) if folds and convs and has_norms else {}
    return _assemble(body, pairs, in_fp32)


def _protected(body: nn.Module) -> set[nn.Module]:
    """Return the modules that must not be copied.

    A module that overrides `train` has state that depends on the mode, such as the cached attention
    biases of LeViT. A copy's state would be stale.
    """
    return {
        inner
        for module in body.modules()
        if type(module).train is not nn.Module.train
        for inner in module.modules()
    }


def _assemble(body: nn.Module, pairs: Mapping[str, str], in_fp32: Collection[str]) -> View:
    """Build a view without verification.

    Args:
        body: Body; not changed.
        pairs: Name of the batch norm to fold into each convolution, by the convolution's name.
        in_fp32: Names of the convolutions to compute in fp32.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for name in dict.fromkeys([*pairs, *in_fp32]):
        conv = body.get_submodule(name)
        replaced[conv] = clone = _shallow_copy(conv, _ViewConv)
        clone.norm = None
        if name in pairs:
            norm = body.get_submodule(pairs[name])
            # In a tuple, so that it is not registered: its parameters would have two names.
            assert isinstance(norm, nn.BatchNorm2d)
            clone.norm = (norm,)
            replaced[norm] = _shallow_copy(norm, _AbsorbedNorm)
        clone.pads_same = isinstance(conv, Conv2dSame)
        clone.in_fp32 = name in in_fp32
    clones: list[tuple[nn.Module, nn.Module]] = []
    return View(_clone_containers(body, replaced, clones), clones)


def _clone_containers(
    module: nn.Module,
    replaced: dict[nn.Module, nn.Module],
    clones: list[tuple[nn.Module, nn.Module]],
) -> nn.Module:
    """Return `module`, or a copy if modules below it are replaced.

    Copies are added to `replaced` and `clones`.
    """
    if module in replaced:
        return replaced[module]
    children: dict[str, nn.Module | None] = {
        name: child if child is None else _clone_containers(child, replaced, clones)
        for name, child in module._modules.items()
    }
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    replaced[module] = clone = _shallow_copy(module, type(module))
    clone._modules = children
    clones.append((module, clone))
    return clone


def _shallow_copy(module: nn.Module, kind: type[_Module]) -> _Module:
    """Return a module of class `kind` that shares all attributes, parameters and buffers.

    As `nn.Module._replicate_for_data_parallel` does.
    """
    clone = kind.__new__(kind)
    clone.__dict__ = module.__dict__.copy()
    return clone


class _ViewConv(nn.Conv2d):
    """Convolution of a view: folds a batch norm, computes in fp32, or both.

    Attributes:
        norm: Batch norm to fold, if any.
        pads_same: Whether it pads as timm's `Conv2dSame`.
        in_fp32: Whether it computes in fp32 while its weight is trained.
    """

    norm: tuple[nn.BatchNorm2d] | None
    pads_same: bool
    in_fp32: bool

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = _fold(self, self.norm[0]) if self.norm else (self.weight, self.bias)
        if not self.in_fp32 or not weight.requires_grad or not torch.is_grad_enabled():
            return self._convolve(inputs, weight, bias)
        with torch.autocast("cpu", enabled=False):
            outputs = self._convolve(inputs.float(), weight, bias)
        # The dtype of the body's convolution; activations are then stored in it.
        return outputs.to(torch.get_autocast_dtype("cpu"))

    def _convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.pads_same:
            kernel_size, stride, dilation = map(
                list, (self.kernel_size, self.stride, self.dilation)
            )
            inputs = pad_same(inputs, kernel_size, stride, dilation)
        outputs: Tensor = self._conv_forward(inputs, weight, bias)
        return outputs


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution with a batch norm after it, differentiably."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv.weight * scale[:, None, None, None], norm.bias - mean * scale


class _AbsorbedNorm(nn.BatchNorm2d):
    """Batch norm whose scale and shift are in the convolution before it.

    timm's batch norms contain dropout and activation, which remain.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        for child in self.children():
            inputs = child(inputs)
        return inputs


def _verified_pairs(
    body: nn.Module, sample: Tensor, protected: Collection[nn.Module]
) -> dict[str, str]:
    """Return the batch norm to fold into each convolution, by name.

    A batch norm and a convolution are a pair if both are called once in a forward pass, and the
    one's input is the other's output. The view with all pairs is then compared with the body, in
    float64. Both have random statistics, weights and biases of batch norms, because fresh ones are
    nearly the identity and would hide a wrong pair. The result does not depend on the inputs'
    values, so that a resumed training computes as an uninterrupted one.

    Returns:
        The pairs; none if the outputs of the view differ.
    """
    excluded = {name for name, module in body.named_modules() if module in protected}
    # MPS does not support float64.
    device = torch.device("cpu") if sample.device.type == "mps" else sample.device
    generator = torch.Generator().manual_seed(0)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        exact = copy.deepcopy(body).to(device).double().eval()
        _randomise_norms(exact, generator)
        photo = torch.randn(1, *sample.shape[1:], generator=generator).double().to(device)
        pairs, expected = _find_pairs(exact, photo, excluded)
        if not pairs or not expected.any():
            return {}
        error = _assemble(exact, pairs, ()).body(photo) - expected
        # False if a value is not finite.
        return pairs if error.norm() <= _MAX_RELATIVE_ERROR * expected.norm() else {}


def _is_affine(module: nn.Module) -> bool:
    """Return whether a module is a batch norm that is an affine map in evaluation mode."""
    if type(module) not in (nn.BatchNorm2d, BatchNormAct2d):
        return False
    return bool(module.affine) and module.running_mean is not None


def _randomise_norms(body: nn.Module, generator: torch.Generator) -> None:
    """Change statistics, weights and biases of batch norms at random, in place."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.empty(like.shape, dtype=like.dtype).uniform_(low, high, generator=generator)
        return drawn.to(like.device)

    for norm in body.modules():
        if not isinstance(norm, _BatchNorm):
            continue
        if norm.running_mean is not None and norm.running_var is not None:
            # Around the present values, which suit the convolutions.
            norm.running_mean += norm.running_var.sqrt() * uniform(norm.running_mean, -0.5, 0.5)
            norm.running_var *= uniform(norm.running_var, 0.5, 1.5)
        if norm.affine:
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
            norm.bias.copy_(uniform(norm.bias, -0.5, 0.5))


def _find_pairs(
    body: nn.Module, photo: Tensor, excluded: Collection[str]
) -> tuple[dict[str, str], Tensor]:
    """Run a forward pass; return the pairs of `_verified_pairs` by name, and the outputs."""
    calls: Counter[str] = Counter()
    pairs: dict[str, str] = {}
    handles = []

    def hook_conv(name: str, conv: nn.Module) -> None:
        def mark_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            output.source_conv = name

        handles.append(conv.register_forward_hook(mark_output))

    def hook_norm(name: str, norm: nn.Module) -> None:
        def read_input(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[name] += 1
            if source := getattr(inputs[0], "source_conv", None):
                pairs[source] = name

        handles.append(norm.register_forward_pre_hook(read_input))

    for name, module in body.named_modules():
        if type(module) in (nn.Conv2d, Conv2dSame) and name not in excluded:
            hook_conv(name, module)
        elif _is_affine(module) and name not in excluded:
            hook_norm(name, module)
    try:
        outputs = body(photo)
    finally:
        for handle in handles:
            handle.remove()
    return {c: n for c, n in pairs.items() if calls[c] == calls[n] == 1}, outputs
