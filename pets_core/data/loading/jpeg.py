"""JPEG decoding on a GPU (nvJPEG, through torchvision)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pets_core.data.ingest.images import PAD_COLOR
from pets_core.records.base import Resize

__all__ = ["decode_squares"]


def decode_squares(
    photos: Sequence[bytes], size: int, device: torch.device, resize: Resize = "squish"
) -> Tensor:
    """Decode JPEGs on a device and resize them to squares, as `images.decode` does.

    Values differ from those of `images.decode` by a few levels of 255, because it decodes large
    photos at a reduced scale before resizing.

    Args:
        photos: Encoded JPEGs that satisfy `images.is_plain_jpeg`.
        size: Side of the squares, pixels.
        device: CUDA device that decodes.
        resize: How to make them squares.

    Returns:
        uint8 RGB on the device, shape (len(photos), size, size, 3).

    Raises:
        RuntimeError: The device's decoder rejects a photo.
    """
    encoded = [torch.frombuffer(bytearray(photo), dtype=torch.uint8) for photo in photos]
    decoded = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
    squares = [_to_square(picture, size, resize) for picture in decoded]
    return torch.stack(squares).permute(0, 2, 3, 1)


def _to_square(picture: Tensor, size: int, resize: Resize) -> Tensor:
    """Resize uint8 (3, H, W) to (3, size, size)."""
    if resize == "squish":
        return _stretch(picture, size, size)
    if resize == "crop":
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        return _stretch(picture[:, top : top + side, left : left + side], size, size)
    longest = max(picture.shape[1:])
    height, width = (max(round(size * length / longest), 1) for length in picture.shape[1:])
    color = torch.tensor(PAD_COLOR, dtype=torch.uint8, device=picture.device)
    square = color[:, None, None].repeat(1, size, size)
    top, left = (round((size - length) / 2) for length in (height, width))
    square[:, top : top + height, left : left + width] = _stretch(picture, height, width)
    return square


def _stretch(picture: Tensor, height: int, width: int) -> Tensor:
    values = F.interpolate(picture[None].float(), (height, width), mode="bilinear", antialias=True)
    return values[0].round_().clamp_(0, 255).to(torch.uint8)
