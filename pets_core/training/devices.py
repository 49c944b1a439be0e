"""Which device a rank computes on, in which precision, and what does not go with either."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from pets_core.config.launch import LaunchConfig
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.training.memory import NEEDS_MICRO_BATCH_SIZE

__all__ = [
    "RankDevice",
    "check_devices",
    "choose_device",
    "count_ranks",
    "resolve_device",
    "resolve_precision",
]

_DEVICES = Path("/dev")
_MIN_DRIVERS = {"13": 580, "12": 525}
"""First driver for each major version of CUDA (CUDA release notes, minor version compatibility)."""
_VOLTA = (7, 0)
"""Capability of the first GPUs with tensor cores, which multiply fp16."""
_NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs."""


class RankDevice(NamedTuple):
    """What a rank computes on.

    Attributes:
        device: Its kind of device.
        precision: Mixed precision.
        shards: Whether the model is spread over the ranks.
    """

    device: torch.device
    precision: Literal["no", "bf16", "fp16"]
    shards: bool


def resolve_device(
    launch: LaunchConfig, train: TrainConfig, *, trains: bool, num_ranks: int | None = None
) -> RankDevice:
    """Choose device and precision on this machine, and refuse settings that do not go with them.

    Args:
        launch: Number of processes, and whether the model is sharded.
        train: Batch sizes, batch norm and precision.
        trains: Whether a model is trained. Stages that judge need no more than the weights, which
            every rank can hold.
        num_ranks: Ranks over all machines; None: as many as the settings start.

    Raises:
        PetsError: As `choose_device`, `check_devices` and `resolve_precision`.
    """
    device = choose_device(launch)
    if num_ranks is None:
        num_ranks = count_ranks(launch, device)
    check_devices(launch, train, device, num_ranks=num_ranks, trains=trains)
    shards = launch.shard_model and num_ranks > 1 and trains
    precision = resolve_precision(train.mixed_precision, device, shards=shards)
    return RankDevice(device, precision, shards)


def choose_device(launch: LaunchConfig) -> torch.device:
    """Return the GPU where there is one, NVIDIA's, AMD's or Apple's, else the CPU.

    Raises:
        PetsError: The machine has an NVIDIA GPU that torch cannot use, or has none where the
            settings require one.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    nvidia = sorted(_DEVICES.glob("nvidia[0-9]*"))
    if nvidia and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() not in _NO_GPU:
        raise PetsError(
            f"torch {torch.__version__} cannot use this machine's NVIDIA GPU ({nvidia[0]}): "
            f"{_driver_remedy()}, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPU"
        )
    # Apple's has one rank; more of them share the CPU.
    if torch.backends.mps.is_available() and launch.num_processes in ("auto", 1):
        return torch.device("mps")
    if launch.require_gpu:
        raise PetsError(
            "launch.require_gpu = true, and torch finds no GPU on this machine: start the worker "
            "on a machine with a GPU, check its driver (nvidia-smi), or remove the setting"
        )
    return torch.device("cpu")


def _driver_remedy() -> str:
    if torch.version.cuda is None:
        return "this is a build for CPUs; install a build for CUDA"
    driver = _MIN_DRIVERS.get(torch.version.cuda.split(".")[0])
    needed = f"driver {driver} or newer" if driver else "a driver"
    return f"install {needed} for CUDA {torch.version.cuda} (nvidia-smi shows the one it has)"


def count_ranks(launch: LaunchConfig, device: torch.device) -> int:
    """Return the number of ranks, over all machines, if each is like this one."""
    if launch.num_processes != "auto":
        return launch.num_processes * launch.num_machines
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    return max(num_gpus, 1) * launch.num_machines


def check_devices(
    launch: LaunchConfig, train: TrainConfig, device: torch.device, *, num_ranks: int, trains: bool
) -> None:
    """Refuse settings that do not go with the devices of this machine.

    Args:
        launch: Number of processes, and whether the model is sharded.
        train: Batch sizes and batch norm.
        device: As chosen by `choose_device`.
        num_ranks: Ranks over all machines.
        trains: Whether a model is trained.

    Raises:
        PetsError: There are more ranks than GPUs or photos in a batch, or synchronised batch norm
            or sharding is not possible.
    """
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    wanted = launch.num_processes
    if device.type != "cpu" and wanted != "auto" and wanted > num_gpus:
        raise PetsError(
            f"launch.num_processes = {wanted}, and this machine has {num_gpus} "
            f"GPU{'s' * (num_gpus > 1)}: set auto, or {num_gpus} at most"
        )
    if not trains:
        return
    if train.batch_size < num_ranks:
        raise PetsError(
            f"train.batch_size = {train.batch_size} is less than the {num_ranks} processes that "
            "share a batch: raise it, or lower launch.num_processes"
        )
    if train.batch_norm == "sync" and device.type != "cuda":
        raise PetsError(
            "train.batch_norm = sync works on NVIDIA and AMD GPUs only: set frozen or train"
        )
    is_sharded = launch.shard_model and num_ranks > 1
    if is_sharded and device.type == "cuda" and not train.micro_batch_size:
        raise PetsError(NEEDS_MICRO_BATCH_SIZE)


def resolve_precision(
    wanted: Literal["auto", "no", "bf16", "fp16"], device: torch.device, *, shards: bool = False
) -> Literal["no", "bf16", "fp16"]:
    """Return the precision to use; auto takes a short one only where hardware multiplies it faster.

    On GPUs that is bf16 since Ampere and fp16 since Volta. On CPUs it is bf16 with AMX; with
    AVX-512 BF16 alone fp32 is twice as fast (docs/performance.md).

    Args:
        wanted: The setting.
        device: As chosen by `choose_device`.
        shards: Whether the model is sharded, which does not go with fp16.

    Raises:
        PetsError: fp16 is set, and the device does not train in it.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise PetsError(
            "train.mixed_precision = fp16 needs an NVIDIA or AMD GPU, and this machine has none: "
            "set auto, bf16 or no"
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        has_fp16 = torch.cuda.get_device_capability(device) >= _VOLTA
        return "fp16" if has_fp16 and not shards else "no"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if device.type == "cpu" and capabilities.get("amx_bf16") else "no"
