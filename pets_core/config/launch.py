"""Settings of the worker processes (ranks)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pets_core.config.base import Settings
from pets_core.config.train import TrainConfig

__all__ = [
    "LaunchConfig",
    "check_sharding",
]


class LaunchConfig(Settings):
    """Worker processes (ranks): number, machines, memory and timeouts."""

    deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    """Deployment on another work pool that runs the LR finder, training and prediction of this run,
    as "flow name/deployment name". Empty: this process starts the ranks."""
    num_processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Ranks on this machine. auto: one per GPU, or one if there is no GPU."""
    num_machines: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines of the run; the others join with `pets join`."""
    rdzv_endpoint: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Rendezvous address of the first machine, host:port. Required with several machines."""
    join_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long the machines wait for each other, seconds."""
    require_gpu: bool = False
    """Fail on a machine without a GPU, where training takes hours instead of minutes."""
    shard_model: bool = False
    """Shard weights, gradients and optimizer state over the ranks (FSDP2), for a backbone whose
    training does not fit one GPU. Slower for a backbone that fits."""
    push_gateway: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Prometheus Pushgateway that receives the metrics of each stage, host:port."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads per rank. 0: the machine's cores divided by the number of ranks."""
    stall_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Timeout of one batch, seconds. If a rank exceeds it, all ranks end and record their stack
    traces."""
    decode_cache_gib: Annotated[float, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Maximum disk space under cache_dir for the decoded photos of one split, GiB. auto: half of
    the free space, up to 48 GiB. Photos that do not fit are decoded again in every epoch. A number
    below 1 also lowers the limit of the cached features of a split, 1 GiB; above it there is no
    linear probe, and frozen epochs and LR finder use augmented photos."""
    photos_on_gpu: Literal["auto", "never"] = "auto"
    """auto: keep the decoded photos on the GPU if they take at most a quarter of its free memory.
    never: keep them on the host."""

    @model_validator(mode="after")
    def _check_rendezvous(self) -> LaunchConfig:
        if self.num_machines > 1 and self.rdzv_endpoint is None:
            raise ValueError(
                f"num_machines = {self.num_machines} needs rdzv_endpoint. Set it to the host:port "
                "of the first machine"
            )
        return self


def check_sharding(launch: LaunchConfig, train: TrainConfig) -> None:
    """Check that the training settings work with a sharded model.

    Raises:
        ValueError: `launch.shard_model` is set, and a setting does not work with it.
    """
    conflicts = {
        f"train.ema_decay = {train.ema_decay:g}": train.ema_decay > 0,
        "train.batch_norm = train": train.batch_norm == "train",
        "train.mixed_precision = fp16": train.mixed_precision == "fp16",
        "train.compile = true": train.compile,
        f"train.optimizer = {train.optimizer}": train.optimizer != "adamw",
    }
    if launch.shard_model and any(conflicts.values()):
        names = ", ".join(setting for setting, is_set in conflicts.items() if is_set)
        raise ValueError(
            f"launch.shard_model cannot be combined with {names}. Train a sharded model without "
            "EMA and torch.compile, with adamw, in fp32 or bf16, with batch norm frozen or sync"
        )
