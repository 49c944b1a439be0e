"""Copies of tensors on the host and in a file, made without stopping the training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pets_core.training.sharding import full_tensor

__all__ = ["HostCopy", "copy_to_host", "safetensors_chunks"]

_CHUNK_BYTES = 4 * 2**20
"""Chunk size: stores that buffer a write hold the GIL while they copy it."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class HostCopy(NamedTuple):
    """Tensors on the host.

    Attributes:
        tensors: Contiguous tensors by name.
        ready: Event after which they are valid; None: they are valid now.
    """

    tensors: dict[str, Tensor]
    ready: torch.Event | None


def copy_to_host(tensors: Mapping[str, Tensor], *, needs_copy: bool = True) -> HostCopy:
    """Copy tensors into one block of host memory, pinned if they come from a GPU.

    Copies from a CUDA device are queued on its stream, so later changes to the tensors do not
    affect them. Torch caches pinned blocks, in sizes that are powers of two.

    Sharded tensors are gathered one at a time; all ranks must then call this function.

    Args:
        tensors: Tensors by name, on the host or one GPU.
        needs_copy: Whether this rank needs the copies; if not, the result is empty.
    """
    if not needs_copy:
        for tensor in tensors.values():
            full_tensor(tensor)
        return HostCopy({}, None)
    # The largest elements first, so that each tensor is aligned to its element size.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    on_gpu = any(tensor.device.type == "cuda" for tensor in tensors.values())
    # nbytes of a sharded tensor counts the local shard only.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    block = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
    copies: dict[str, Tensor] = {}
    start = 0
    for name in names:
        tensor = full_tensor(tensors[name]).detach()
        copy = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        # Channels-last tensors are made contiguous on the device, not on the host.
        copy.copy_(tensor.contiguous() if on_gpu else tensor, non_blocking=on_gpu)
        copies[name] = copy
        start += tensor.nbytes
    ready = None
    if on_gpu:
        ready = torch.Event("cuda")
        ready.record()
    return HostCopy(copies, ready)


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file without copying the tensors.

    `safetensors.torch.save` holds the GIL while it copies everything, so that no other thread can
    launch work on the GPU. Format: https://huggingface.co/docs/safetensors.

    Args:
        tensors: Contiguous tensors on the host, by name.
    """
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    small: list[memoryview] = []
    for tensor in tensors.values():
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        if len(data) < _CHUNK_BYTES and sum(map(len, small)) < _CHUNK_BYTES:
            # Small tensors share a chunk, because after each chunk this thread waits for the GIL.
            small.append(data)
            continue
        yield b"".join(small)
        small = []
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
    yield b"".join(small)
