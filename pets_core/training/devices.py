"""Device and precision of a rank, and checks of the settings against the hardware."""

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
    "describe_device",
    "resolve_device",
    "resolve_precision",
]

_DEVICES = Path("/dev")
_MIN_DRIVERS = {"13": 580, "12": 525}
"""First driver for each major version of CUDA (CUDA release notes, minor version compatibility)."""
_VOLTA = (7, 0)
"""Compute capability of the first GPUs with tensor cores, which accelerate fp16."""
_NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs."""


class RankDevice(NamedTuple):
    """Device settings of a rank.

    Attributes:
        device: Kind of device.
        precision: Mixed precision.
        is_sharded: Whether the model is sharded over the ranks.
    """

    device: torch.device
    precision: Literal["no", "bf16", "fp16"]
    is_sharded: bool


def resolve_device(
    launch: LaunchConfig, train: TrainConfig, *, trains: bool, num_ranks: int | None = None
) -> RankDevice:
    """Choose device and precision on this machine, and check the settings against them.

    Args:
        launch: Number of processes, and whether the model is sharded.
        train: Batch sizes, batch norm and precision.
        trains: Whether a model is trained. Evaluation and prediction are never sharded, because
            every rank can hold the weights alone.
        num_ranks: Number of ranks over all machines; None: derived from the settings.

    Raises:
        PetsError: As `choose_device`, `check_devices` and `resolve_precision`.
    """
    device = choose_device(launch)
    if num_ranks is None:
        num_ranks = count_ranks(launch, device)
    check_devices(launch, train, device, num_ranks=num_ranks, trains=trains)
    is_sharded = launch.shard_model and num_ranks > 1 and trains
    precision = resolve_precision(train.mixed_precision, device, is_sharded=is_sharded)
    return RankDevice(device, precision, is_sharded)


def choose_device(launch: LaunchConfig) -> torch.device:
    """Return the GPU (NVIDIA, AMD or Apple) if the machine has one, else the CPU.

    Raises:
        PetsError: The machine has an NVIDIA GPU that torch cannot use, or no GPU although
            `launch.require_gpu` is set.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    nvidia = sorted(_DEVICES.glob("nvidia[0-9]*"))
    if nvidia and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() not in _NO_GPU:
        raise PetsError(
            f"torch {torch.__version__} cannot use this machine's NVIDIA GPU ({nvidia[0]}): "
            f"{_driver_remedy()}, or set CUDA_VISIBLE_DEVICES=-1 to compute on the CPU"
        )
    # MPS supports a single rank; several ranks share the CPU.
    if torch.backends.mps.is_available() and launch.num_processes in ("auto", 1):
        return torch.device("mps")
    if launch.require_gpu:
        raise PetsError(
            "launch.require_gpu = true, but torch finds no GPU on this machine: start the worker "
            "on a machine with a GPU, check its driver (nvidia-smi), or remove the setting"
        )
    return torch.device("cpu")


def describe_device(launch: LaunchConfig) -> str:
    """Return a line with the device, the number of ranks and the automatic precision.

    Raises:
        PetsError: As `choose_device`.
    """
    device = choose_device(launch)
    hardware = f"{device.type}, {os.cpu_count()} cores"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        count = torch.cuda.device_count()
        hardware = f"{count} x {gpu.name}, {memory}, CUDA {torch.version.cuda}"
    ranks = count_ranks(launch, device)
    precision = resolve_precision("auto", device)
    return f"{hardware}; {ranks} rank{'s' * (ranks > 1)}, mixed precision {precision}"


def _driver_remedy() -> str:
    if torch.version.cuda is None:
        return "this is a CPU-only build; install a CUDA build"
    driver = _MIN_DRIVERS.get(torch.version.cuda.split(".")[0])
    needed = f"driver {driver} or newer" if driver else "a driver"
    return f"install {needed} for CUDA {torch.version.cuda} (nvidia-smi shows the driver version)"


def count_ranks(launch: LaunchConfig, device: torch.device) -> int:
    """Return the number of ranks over all machines, which must have as many GPUs as this one."""
    if launch.num_processes != "auto":
        return launch.num_processes * launch.num_machines
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    return max(num_gpus, 1) * launch.num_machines


def check_devices(
    launch: LaunchConfig, train: TrainConfig, device: torch.device, *, num_ranks: int, trains: bool
) -> None:
    """Check the settings against the devices of this machine.

    Args:
        launch: Number of processes, and whether the model is sharded.
        train: Batch sizes and batch norm.
        device: As chosen by `choose_device`.
        num_ranks: Number of ranks over all machines.
        trains: Whether a model is trained.

    Raises:
        PetsError: There are more ranks than GPUs or than samples in a batch, or synchronised batch
            norm or sharding is not possible.
    """
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    wanted = launch.num_processes
    if device.type != "cpu" and wanted != "auto" and wanted > num_gpus:
        raise PetsError(
            f"launch.num_processes = {wanted}, but this machine has {num_gpus} "
            f"GPU{'s' * (num_gpus > 1)}: set auto, or at most {num_gpus}"
        )
    if not trains:
        return
    # 0: chosen when the number of training photos is known.
    if 0 < train.batch_size < num_ranks:
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
    wanted: Literal["auto", "no", "bf16", "fp16"], device: torch.device, *, is_sharded: bool = False
) -> Literal["no", "bf16", "fp16"]:
    """Return the precision to use; auto selects bf16 or fp16 only where hardware accelerates it.

    On GPUs that is bf16 since Ampere and fp16 since Volta. On CPUs it is bf16 with AMX, otherwise
    fp32. The choice depends on the hardware only, never on timing, so that a machine always
    trains the same weights. Under bf16 on CPUs, trained depthwise convolutions compute in fp32
    (`pets_core/models/body_view.py`; figures in docs/performance.md).

    Args:
        wanted: Value of the setting.
        device: As chosen by `choose_device`.
        is_sharded: Whether the model is sharded, which does not support fp16.

    Raises:
        PetsError: fp16 is set, but the device does not support training in it.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise PetsError(
            "train.mixed_precision = fp16 needs an NVIDIA or AMD GPU, but this machine has none: "
            "set auto, bf16 or no"
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        has_fp16 = torch.cuda.get_device_capability(device) >= _VOLTA
        return "fp16" if has_fp16 and not is_sharded else "no"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if device.type == "cpu" and capabilities.get("amx_bf16") else "no"
