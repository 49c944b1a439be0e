"""Interfaces of loaders and batches, and a model prepared with its optimizer for a phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.models.grouped import GroupedModel
from pets_core.targets.objective import Objective
from pets_core.training.batch_norm import check_batch_norm
from pets_core.training.groups import freeze_to, set_train_mode
from pets_core.training.memory import largest_micro_batch
from pets_core.training.optimizer import build_optimizer
from pets_core.training.schedule import group_rates

__all__ = ["LoadedBatch", "Loader", "PhaseInputs", "PreparedModel", "prepare", "release"]


class LoadedBatch(Protocol):
    """One rank's share of a global batch."""

    @property
    def inputs(self) -> Tensor:
        """Model inputs, first dimension b."""

    @property
    def targets(self) -> Tensor:
        """Targets, first dimension b."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the samples, length b."""

    @property
    def global_size(self) -> int:
        """Number of samples in the batch, over all ranks."""


class Loader(Protocol):
    """Batches of a split; over all ranks, each sample occurs once per epoch."""

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch."""

    @property
    def num_rows(self) -> int:
        """Number of samples in the split, over all ranks."""

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yield the batches (`LoadedBatch`) of one epoch, starting with number `first`."""


@dataclass(frozen=True)
class PhaseInputs:
    """Batches of a phase, and the part of the model that maps them to outputs.

    Attributes:
        train: Shuffled training batches.
        valid: Validation batches, or None.
        part: Returns that part of a model, with the model's parameters and all of its layer groups:
            the head, for batches of features; by default the whole model.
    """

    train: Loader
    valid: Loader | None
    part: Callable[[Any], GroupedModel] = lambda model: model


@dataclass(frozen=True)
class PreparedModel:
    """Partly frozen model with its optimizer, ready for optimizer steps.

    Attributes:
        model: Model wrapped by `accelerator`.
        optimizer: Optimizer over the trainable parameters.
        objective: Loss to minimise.
        accelerator: Mixed precision, devices, ranks, trackers.
        config: Settings of the recipe.
        micro_batch_size: Most samples in one forward pass; 0: no limit.
    """

    model: nn.Module
    optimizer: AcceleratedOptimizer
    objective: Objective
    accelerator: Accelerator
    config: TrainConfig
    micro_batch_size: int


def prepare(
    model: GroupedModel,
    objective: Objective,
    train: Loader,
    config: TrainConfig,
    accelerator: Accelerator,
    first_group: int,
    lr_max: RateSlice,
) -> PreparedModel:
    """Freeze the layer groups before `first_group`, build the optimizer and wrap the model.

    Args:
        model: Model on the accelerator's device.
        objective: Loss to minimise.
        train: Training batches, for the search of the micro-batch size.
        config: Settings of the recipe.
        accelerator: Mixed precision, devices, ranks, trackers.
        first_group: First layer group to train, counted as by `freeze_to`.
        lr_max: Peak learning rates.

    Raises:
        PetsError: One sample does not fit in memory, or batch norm would get a single sample.
    """
    freeze_to(model, first_group)
    rates = group_rates(lr_max, len(model.layer_groups()))
    optimizer = build_optimizer(model, rates, config.weight_decay, config.optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(wrapped, DistributedDataParallel):
        # DDP broadcasts buffers before each forward pass. Only batch norm in training mode changes
        # buffers, and does not read them in that mode; `share_buffers` runs once per epoch.
        wrapped.broadcast_buffers = False
    set_train_mode(wrapped, config.batch_norm)
    micro_batch_size = config.micro_batch_size
    if not micro_batch_size and accelerator.device.type == "cuda":
        batch = next(iter(train.epoch(0)))
        micro_batch_size = largest_micro_batch(
            wrapped, objective, batch.inputs, batch.targets, accelerator=accelerator,
            compiles=config.compile,
        )  # fmt: skip
    check_batch_norm(
        wrapped,
        config,
        num_rows=train.num_rows,
        num_processes=accelerator.num_processes,
        micro_batch_size=micro_batch_size,
    )
    if config.compile:
        wrapped.compile()
    return PreparedModel(wrapped, optimizer, objective, accelerator, config, micro_batch_size)


def release(prepared: PreparedModel) -> None:
    """Unwrap the model and free the optimizer's memory, in place."""
    prepared.model._compiled_call_impl = None
    model = prepared.accelerator.unwrap_model(prepared.model, keep_fp32_wrapper=False)
    # Accelerate skips models with this attribute: the next phase would train without mixed
    # precision.
    vars(model).pop("_is_accelerate_prepared", None)
    prepared.accelerator.free_memory()
