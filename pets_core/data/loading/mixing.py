"""Mixup and CutMix: pairs of photos of a batch, and their targets, blended."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.config.train import TransformConfig

__all__ = ["mix"]


def mix(
    inputs: Tensor, targets: Tensor, num_classes: int, config: TransformConfig, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Blend each photo with its partner, the batch read backwards.

    Mixup (Zhang and others 2017, arXiv:1710.09412) adds whole photos; CutMix (Yun and others 2019,
    arXiv:1905.04899) puts a rectangle of one into the other. Partners are of the same rank, so that
    other than with every other setting, the number of ranks changes the losses.

    Args:
        inputs: (B, C, S, S); changed in place by CutMix.
        targets: Class indices, int64 (B,); or a 1 for each tag, float32 (B, K).
        num_classes: K.
        config: The Beta distributions' alphas; one must be above 0.
        seed: Says which share, rectangle and method, the same on every rank.

    Returns:
        The blended inputs, and the share of each class or tag in them, float32 (B, K).
    """
    random = np.random.default_rng(seed)
    one_hot = targets if targets.ndim > 1 else F.one_hot(targets, num_classes).float()
    methods = [a for a in ("mixup_alpha", "cutmix_alpha") if getattr(config, a)]
    method = methods[random.integers(len(methods))]
    own = float(random.beta(getattr(config, method), getattr(config, method)))
    if method == "mixup_alpha":
        inputs = torch.lerp(inputs.flip(0), inputs, own)
    else:
        size = inputs.shape[-1]
        side = round(size * math.sqrt(1 - own))
        top, left = random.integers(0, size - side + 1, 2).tolist()
        window = (..., slice(top, top + side), slice(left, left + side))
        inputs[window] = inputs[window].flip(0)
        own = 1 - (side / size) ** 2
    return inputs, torch.lerp(one_hot.flip(0), one_hot, own)
