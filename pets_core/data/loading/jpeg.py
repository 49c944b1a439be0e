"""JPEG decoding on a GPU (nvJPEG, through torchvision)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

__all__ = ["decode_squares"]


def decode_squares(photos: Sequence[bytes], size: int, device: torch.device) -> Tensor:
    """Decode JPEGs on a device and resize them to squares, as `images.decode` does.

    Values differ from those of `images.decode` by a few levels of 255, because it decodes large
    photos at a reduced scale before resizing.

    Args:
        photos: Encoded JPEGs that satisfy `images.is_plain_jpeg`.
        size: Side of the squares, pixels.
        device: CUDA device that decodes.

    Returns:
        uint8 RGB on the device, shape (len(photos), size, size, 3).

    Raises:
        RuntimeError: The device's decoder rejects a photo.
    """
    encoded = [torch.frombuffer(bytearray(photo), dtype=torch.uint8) for photo in photos]
    decoded = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
    squares = [_stretch(picture, size) for picture in decoded]
    return torch.stack(squares).permute(0, 2, 3, 1)


def _stretch(picture: Tensor, size: int) -> Tensor:
    """Resize uint8 (3, H, W) to (3, size, size)."""
    values = F.interpolate(picture[None].float(), (size, size), mode="bilinear", antialias=True)
    return values[0].round_().clamp_(0, 255).to(torch.uint8)
