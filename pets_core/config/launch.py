"""Settings of the processes that compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pets_core.config.base import Settings
from pets_core.config.train import TrainConfig

__all__ = [
    "LaunchConfig",
    "refuse_sharding",
]


class LaunchConfig(Settings):
    """The processes that compute."""

    deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    """Deployment that finds rates, trains and predicts for this run, as "flow name/deployment
    name": on another worker pool. Unset: this process starts the ranks."""
    num_processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Ranks on this machine; auto: one a GPU, or one on a machine without."""
    num_machines: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines that work together; the others join with `pets join`."""
    rdzv_endpoint: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Where the other machines reach the first, host:port; needed with several machines."""
    join_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long machines wait for each other."""
    require_gpu: bool = False
    """Refuse to work on a machine without a GPU, which takes hours where a GPU takes minutes."""
    shard_model: bool = False
    """Spread weights, gradients and optimizer state over the ranks (FSDP2): for a backbone whose
    training does not fit one GPU. Slower for one that does."""
    push_gateway: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Prometheus Pushgateway that is told of each stage, host:port."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of each rank; 0: the machine's cores divided among the ranks."""
    stall_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Ranks are ended, and tell where they stood, when one of them takes longer over a batch."""
    decode_cache_gib: Annotated[float, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Most disk that the decoded photos of one split may take under cache_dir, GiB; auto: half of
    what is free, up to 48 GiB. Photos beyond it are decoded anew in every epoch."""
    photos_on_gpu: Literal["auto", "never"] = "auto"
    """auto: the decoded photos are kept on the GPU where they take at most a quarter of its free
    memory."""

    @model_validator(mode="after")
    def _machines_meet(self) -> LaunchConfig:
        if self.num_machines > 1 and self.rdzv_endpoint is None:
            raise ValueError(
                f"num_machines = {self.num_machines} needs rdzv_endpoint: host:port at which the "
                "other machines reach the first"
            )
        return self


def refuse_sharding(launch: LaunchConfig, train: TrainConfig) -> None:
    """Refuse what a model that is spread over the ranks cannot be trained with.

    Raises:
        ValueError: It is to be.
    """
    faults = {
        f"train.ema_decay = {train.ema_decay:g}": train.ema_decay > 0,
        "train.batch_norm = train": train.batch_norm == "train",
        "train.mixed_precision = fp16": train.mixed_precision == "fp16",
        "train.compile = true": train.compile,
    }
    if launch.shard_model and any(faults.values()):
        named = ", ".join(setting for setting, found in faults.items() if found)
        raise ValueError(
            f"launch.shard_model does not go with {named}: a sharded model is trained as it is, in "
            "fp32 or bf16, with batch norm frozen or sync"
        )
