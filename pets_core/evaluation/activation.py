"""Where a model looked: class-activation maps by Grad-CAM (Selvaraju and others 2017)."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

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
        no places, as in some transformers.
    """
    body = model.body
    with torch.enable_grad():
        features = body.forward_features(inputs).detach().requires_grad_()  # type: ignore[operator]
        logits = model.head(body.forward_head(features))  # type: ignore[operator]
        (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    with torch.no_grad():
        values, slopes = _placed(features, body), _placed(gradients, body)
        if values is None or slopes is None:
            return None
        weights = slopes.float().mean((2, 3), keepdim=True)
        maps = F.relu((values.float() * weights).sum(1))
        largest: Tensor = maps.amax((1, 2), keepdim=True)
        return maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)


def _placed(features: Tensor, body: torch.nn.Module) -> Tensor | None:
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
