"""Where a model looked: class-activation maps by Grad-CAM (Selvaraju and others 2017)."""

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
    """How much each place of a photo speaks for a class.

    Args:
        model: In evaluation mode; its gradients are left alone.
        inputs: (B, 3, S, S).
        classes: Class index for each photo, int64 (B,).

    Returns:
        float32 (B, h, w) from 0 to 1, as coarse as the body's last features; None where these have
        no places, or nothing depends on them.
    """
    with torch.enable_grad():
        for watch in (_last_features, _before_last_block):
            if (found := watch(model, inputs)) is None:
                continue
            features, logits = found
            (slopes,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
            values, weights = (_placed(each.detach(), model.body) for each in (features, slopes))
            # Nothing depends on the places of the last features in a head that reads the class
            # token alone; there the last block is what reads them.
            if values is not None and weights is not None and weights.any():
                return _maps(values.float(), weights.float())
    return None


def _last_features(model: Classifier, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """The body's features before they are pooled, and the logits that come of them."""
    features = model.body.forward_features(inputs)  # type: ignore[operator]
    if not isinstance(features, Tensor):
        return None
    features = features.detach().requires_grad_()
    return features, model.head(model.body.forward_head(features))  # type: ignore[operator]


def _before_last_block(model: Classifier, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
    """What a transformer's last block is given, and the logits that come of it."""
    blocks = getattr(model.body, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return None
    given: list[Tensor] = []

    def take(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if not isinstance(arguments[0], Tensor):
            return arguments
        given.append(arguments[0].detach().requires_grad_())
        return (given[0], *arguments[1:])

    handle = blocks[-1].register_forward_pre_hook(take)
    try:
        logits = model.head(model.body(inputs))
    finally:
        handle.remove()
    return (given[0], logits) if given else None


def _maps(values: Tensor, slopes: Tensor) -> Tensor:
    maps = F.relu((values * slopes.mean((2, 3), keepdim=True)).sum(1))
    largest: Tensor = maps.amax((1, 2), keepdim=True)
    return maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)


def _placed(features: Tensor, body: nn.Module) -> Tensor | None:
    """Features as (B, D, h, w): timm's are that already, channels last, or tokens of a grid."""
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
    """Lay a map over its photo.

    Args:
        pixels: The photo as it is stored, uint8 (R, R, 3).
        activation: (h, w) from 0 to 1, of the middle `crop` of R pixels.
        crop: S.
        side: Of the picture, pixels.

    Returns:
        A JPEG of the part that the model sees.
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
