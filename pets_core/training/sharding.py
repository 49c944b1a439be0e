"""Model sharded over the ranks: each holds a shard of every tensor (FSDP, Zhao et al. 2023)."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["full_tensor", "is_sharding", "shard_like", "shard_on_cpu", "sharding_plugin"]

_MIN_PARAMETERS = 1_000_000
"""Minimum size of a module that is gathered and freed as one unit."""


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """Return the FSDP2 plugin, which shards model, gradients and optimizer state.

    Weights and gradients stay fp32, and autocast provides mixed precision, as for a model that is
    not sharded. Without this policy, Accelerate on GPUs would cast all weights to bf16, norms
    included, and reduce gradients in bf16.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=_MIN_PARAMETERS,
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def shard_on_cpu(plugin: FullyShardedDataParallelPlugin) -> None:
    """Enable sharding on CPU ranks, where Accelerate ignores its plugin."""
    if PartialState().device.type == "cpu":
        PartialState().distributed_type = DistributedType.FSDP
        AcceleratorState().fsdp_plugin = plugin


def is_sharding(accelerator: Accelerator) -> bool:
    """Return whether the accelerator shards the models that it prepares."""
    return bool(accelerator.is_fsdp2)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered from all ranks' shards; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor, sharded as `like`; `value` if that is not."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
