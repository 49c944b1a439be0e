"""A model spread over the ranks: each holds a part of every tensor (FSDP, Zhao and others 2023)."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["is_sharding", "part_of", "shard_on_cpu", "sharding_plugin", "whole"]

_MIN_PARAMETERS = 1_000_000
"""Of a module that is gathered, used and let go as one."""


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """Return the plugin by which an `Accelerator` spreads model, gradients and optimizer state.

    Weights and gradients stay fp32, and mixed precision is autocast's, as of a model that is not
    sharded: on GPUs Accelerate would cast all weights to bf16, norms included, and add up
    gradients in it.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=_MIN_PARAMETERS,
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def shard_on_cpu(plugin: FullyShardedDataParallelPlugin) -> None:
    """Have CPU ranks spread a model too; Accelerate passes over its own plugin there."""
    if PartialState().device.type == "cpu":
        PartialState().distributed_type = DistributedType.FSDP
        AcceleratorState().fsdp_plugin = plugin


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether models that it prepares are spread over the ranks."""
    return bool(accelerator.is_fsdp2)


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together from the ranks' parts; all of them must ask for the same."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, spread as `like` is; the whole where that is whole."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
