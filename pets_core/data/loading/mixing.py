"""Mixup and CutMix: blend pairs of photos of a batch, and their targets."""

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
    """Blend each photo with its partner in the reversed batch.

    Mixup (Zhang et al. 2017, arXiv:1710.09412) blends whole photos; CutMix (Yun et al. 2019,
    arXiv:1905.04899) pastes a rectangle of one into the other. Partners are on the same rank, so
    losses depend on the number of ranks, unlike with all other settings.

    Args:
        inputs: (B, C, S, S); CutMix modifies it in place.
        targets: Class indices, int64 (B,), or multi-hot tags, float32 (B, K).
        num_classes: Number of classes or tags, K.
        config: Alphas of the Beta distributions; one must be above 0.
        seed: Seed of method, proportion and rectangle; the same on every rank.

    Returns:
        The blended inputs, and the proportion of each class or tag in them, float32 (B, K).
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
