"""The `Accelerator` of a rank: device, mixed precision, process group."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from pets_core.training.sharding import is_sharding, shard_on_cpu, sharding_plugin

__all__ = ["create_accelerator", "share_buffers"]

_TIMEOUT = timedelta(hours=2)
"""Must exceed the time that rank 0 downloads and decodes while the others wait."""


def create_accelerator(
    precision: Literal["no", "bf16", "fp16"],
    device: torch.device,
    *,
    is_sharded: bool = False,
    log_with: str | None = None,
    project_dir: str | None = None,
    timeout: timedelta = _TIMEOUT,
) -> Accelerator:
    """Create the accelerator of this rank; rank and world size come from the environment.

    Args:
        precision: Mixed precision.
        device: Kind of device to compute on.
        is_sharded: Shard models over the ranks (FSDP2) instead of replicating them (DDP).
        log_with: Name of a tracker.
        project_dir: Folder in which the tracker writes files.
        timeout: Longest time that ranks wait for each other.

    Raises:
        RuntimeError: Accelerate does not shard although `is_sharded` is set.
    """
    replicas = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    plugin = sharding_plugin() if is_sharded else None
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        log_with=log_with,
        project_dir=project_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout), replicas],
        fsdp_plugin=plugin,
    )
    if plugin:
        shard_on_cpu(plugin)
        if not is_sharding(accelerator):
            raise RuntimeError("launch.shard_model = true, but Accelerate did not enable FSDP2")
    return accelerator


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of rank 0, such as batch-norm statistics, to all ranks."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
