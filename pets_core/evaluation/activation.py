"""Class activation maps: Grad-CAM (Selvaraju et al., 2017)."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pets_core.models.classifier import Classifier

__all__ = ["activation_maps", "overlay"]

_OPACITY = 0.45


def activation_maps(model: Classifier, inputs: Tensor, classes: Tensor) -> Tensor | None:
    """Return how much each region of a photo contributes to the score of a class.

    Args:
        model: In evaluation mode. The `grad` of its parameters does not change.
        inputs: (B, 3, S, S).
        classes: Class index for each photo, int64 (B,).

    Returns:
        float32 (B, h, w) from 0 to 1, in the resolution of the body's last features. None if the
        features have no spatial dimensions, or the logits do not depend on them.
    """
    with torch.enable_grad():
        for capture in (_last_features, _last_block_input):
            if (captured := capture(model, inputs)) is None:
                continue
            features, logits = captured
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
            values, weights = (_to_spatial(t.detach(), model.body) for t in (features, gradients))
            # A head that reads only the class token has zero gradients at all other tokens. The
            # input of the last block is used instead.
            if values is not None and weights is not None and weights.any():
                return _grad_cam(values.float(), weights.float())
    return None


def _last_features(model: Classifier, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the body's features before pooling, and the logits computed from them."""
    features = model.body.forward_features(inputs)  # type: ignore[operator]
    if not isinstance(features, Tensor):
        return None
    features = features.detach().requires_grad_()
    return features, model.head(model.body.forward_head(features))  # type: ignore[operator]


def _last_block_input(model: Classifier, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the input of a transformer's last block, and the logits computed from it."""
    blocks = getattr(model.body, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return None
    block_inputs: list[Tensor] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if not isinstance(arguments[0], Tensor):
            return arguments
        block_inputs.append(arguments[0].detach().requires_grad_())
        return (block_inputs[0], *arguments[1:])

    handle = blocks[-1].register_forward_pre_hook(hook)
    try:
        logits = model.head(model.body(inputs))
    finally:
        handle.remove()
    return (block_inputs[0], logits) if block_inputs else None


def _grad_cam(values: Tensor, gradients: Tensor) -> Tensor:
    maps = F.relu((values * gradients.mean((2, 3), keepdim=True)).sum(1))
    largest: Tensor = maps.amax((1, 2), keepdim=True)
    return maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)


def _to_spatial(features: Tensor, body: nn.Module) -> Tensor | None:
    """Return features as (B, D, h, w), from channels first, channels last or tokens of a grid."""
    depth = int(body.num_features)  # type: ignore[arg-type]
    if features.ndim == 4 and features.shape[1] == depth:
        return features
    if features.ndim == 4 and features.shape[3] == depth:
        return features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        tokens = features[:, int(getattr(body, "num_prefix_tokens", 0)) :]
        side = math.isqrt(tokens.shape[1])
        if side * side == tokens.shape[1] and side > 1:
            return tokens.transpose(1, 2).reshape(len(tokens), depth, side, side)
    return None


def overlay(
    pixels: NDArray[np.uint8], activation: NDArray[np.float32], crop: int, side: int
) -> bytes:
    """Draw an activation map over its photo.

    Args:
        pixels: The stored photo, uint8 (R, R, 3).
        activation: (h, w) from 0 to 1, of the center crop.
        crop: Side S of the center crop, pixels.
        side: Side of the returned image, pixels.

    Returns:
        A JPEG of the center crop, which is the input of the model.
    """
    start = (len(pixels) - crop) // 2
    photo = Image.fromarray(pixels[start : start + crop, start : start + crop])
    smooth = Image.fromarray(activation).resize((side, side), Image.Resampling.BICUBIC)
    heat = colormaps["turbo"](np.clip(np.asarray(smooth), 0, 1))[:, :, :3]
    photo = photo.resize((side, side), Image.Resampling.LANCZOS)
    mixed = (1 - _OPACITY) * np.asarray(photo) + _OPACITY * 255 * heat
    buffer = io.BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
