"""What an optimizer step needs: batches, and a model with its optimizer, made ready for a phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from pets_core.training.groups import build_optimizer, freeze_to, train_mode
from pets_core.training.memory import largest_micro_batch
from pets_core.training.schedule import spread

__all__ = ["LoadedBatch", "Loader", "Prepared", "prepare", "release"]


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
        """What the samples are called, b names."""

    @property
    def global_size(self) -> int:
        """Samples of the batch over all ranks."""


class Loader(Protocol):
    """Yields each sample of a split once an epoch, over all ranks."""

    @property
    def num_batches(self) -> int:
        """Batches an epoch."""

    @property
    def num_rows(self) -> int:
        """Samples of the split, over all ranks."""

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yield the batches (`LoadedBatch`) of one epoch, from batch `first` on."""


@dataclass(frozen=True)
class Prepared:
    """A model, frozen in part, with all that its optimizer steps need.

    Attributes:
        model: As `accelerator` wrapped it.
        optimizer: Over what learns.
        objective: What is minimised.
        accelerator: Mixed precision, devices, ranks, trackers.
        config: Settings of the recipe.
        micro_batch_size: Most samples in one forward pass; 0: all.
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
) -> Prepared:
    """Freeze the layer groups before `first_group` and make the others ready to learn.

    Raises:
        PetsError: One sample does not fit the memory, or batch norm would see a single one.
    """
    freeze_to(model, first_group)
    rates = spread(lr_max, len(model.layer_groups()))
    optimizer = build_optimizer(model, rates, config.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if isinstance(wrapped, DistributedDataParallel):
        # It would broadcast them before each forward pass. Only batch norm in training mode
        # changes any, and does not read them then; `share_buffers` follows once an epoch.
        wrapped.broadcast_buffers = False
    train_mode(wrapped, config.batch_norm)
    micro_batch_size = config.micro_batch_size
    if not micro_batch_size and accelerator.device.type == "cuda":
        batch = next(iter(train.epoch(0)))
        micro_batch_size = largest_micro_batch(
            wrapped, objective, batch.inputs, batch.targets, accelerator=accelerator
        )
    check_batch_norm(
        wrapped,
        config,
        num_rows=train.num_rows,
        num_processes=accelerator.num_processes,
        micro_batch_size=micro_batch_size,
    )
    if config.compile:
        wrapped.compile()
    return Prepared(wrapped, optimizer, objective, accelerator, config, micro_batch_size)


def release(prepared: Prepared) -> None:
    """Take off what `prepare` wrapped around the model, and free the optimizer's memory."""
    prepared.model._compiled_call_impl = None
    model = prepared.accelerator.unwrap_model(prepared.model, keep_fp32_wrapper=False)
    # Accelerate passes over a model with this mark: the next phase would train without mixed
    # precision.
    vars(model).pop("_is_accelerate_prepared", None)
    prepared.accelerator.free_memory()
