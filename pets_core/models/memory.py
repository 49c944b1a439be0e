"""Forward passes that run out of memory: recognised, and repeated in smaller parts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from pets_core.errors import PetsError

__all__ = ["SMALLER_REMEDY", "HalvingForward", "empty_cache", "is_out_of_memory"]

_WORDS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
"""Of CUDA's libraries, cuDNN 8 and 9, which do not raise `torch.OutOfMemoryError`."""
SMALLER_REMEDY = "lower model.image_size, or use a smaller model.backbone"
"""What to do where one sample does not fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of CUDA's libraries means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(words in str(error) for words in _WORDS)


class HalvingForward:
    """Forward passes for evaluation, in parts as small as the memory requires.

    Not for a sharded model, whose passes communicate with other ranks.

    Args:
        forward: Inputs (b, ...) to outputs, each with first dimension b.
        accelerator: Mixed precision.
    """

    def __init__(
        self, forward: Callable[[Tensor], tuple[Tensor, ...]], accelerator: Accelerator
    ) -> None:
        self._forward, self._accelerator = forward, accelerator
        self._size = sys.maxsize

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for a batch, inputs with first dimension B.

        Raises:
            PetsError: One sample does not fit.
        """
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while not parts or start < len(inputs):
            part = inputs[start : start + self._size]
            outputs = self._try(part)
            if outputs is None:
                self._size = (len(part) + 1) // 2
                continue
            parts.append(outputs)
            start += len(part)
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _try(self, inputs: Tensor) -> tuple[Tensor, ...] | None:
        try:
            with self._accelerator.autocast():
                return self._forward(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(inputs) <= 1:
                raise PetsError(f"one sample does not fit the memory: {SMALLER_REMEDY}") from error
        # Not in the handler: the error's traceback holds what the failed pass has allocated.
        empty_cache(inputs.device)
        return None


def empty_cache(device: torch.device) -> None:
    """Give the memory that torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
