"""Detection of out-of-memory errors, and forward passes that retry in smaller parts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from pets_core.errors import PetsError

__all__ = ["SMALLER_REMEDY", "HalvingForward", "empty_cache", "is_out_of_memory"]

_MESSAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
"""Errors of CUDA, cuBLAS, cuDNN 8 and 9 that are not raised as `torch.OutOfMemoryError`."""
SMALLER_REMEDY = "lower model.image_size, or use a smaller model.backbone"
"""Remedy if one sample does not fit in memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of CUDA's libraries is an out-of-memory error."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(message in str(error) for message in _MESSAGES)


class HalvingForward:
    """Forward pass for evaluation that halves a batch until its parts fit in memory.

    It does not support sharded models, whose passes communicate with other ranks.

    Args:
        forward: Function from inputs (b, ...) to outputs, each with first dimension b.
        accelerator: Mixed precision.
    """

    def __init__(
        self, forward: Callable[[Tensor], tuple[Tensor, ...]], accelerator: Accelerator
    ) -> None:
        self._forward, self._accelerator = forward, accelerator
        self._size = sys.maxsize

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a batch; inputs and outputs have first dimension B.

        Raises:
            PetsError: One sample does not fit in memory.
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
                raise PetsError(f"one sample does not fit in memory: {SMALLER_REMEDY}") from error
        # Outside the handler, because the error's traceback keeps the failed pass's tensors alive.
        empty_cache(inputs.device)
        return None


def empty_cache(device: torch.device) -> None:
    """Release cached memory of torch's allocator to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
