"""Base class of a rank: its device, its watchdog, and its progress and warnings."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from numpy.typing import NDArray
from torch import Tensor

from pets_core import storage
from pets_core.data.loading.batches import BatchSampler
from pets_core.errors import PetsError
from pets_core.models.grouped import GroupedModel
from pets_core.models.package import TrainedModel, save_model
from pets_core.progress import Progress
from pets_core.ratings.model import TrainedRecommender
from pets_core.runtime.failures import RankFailure, write_failure
from pets_core.runtime.request import PROGRESS_PREFIX, WARNING_PREFIX, Request
from pets_core.runtime.stage_table import STAGES
from pets_core.runtime.watchdog import Watchdog
from pets_core.storage.layout import CHECKPOINTS
from pets_core.targets.objective import Objective
from pets_core.training.accelerator import create_accelerator
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.devices import resolve_device
from pets_core.training.interruption import Interruption, elastic_store
from pets_core.training.optimizer import check_optimizer
from pets_core.training.prepared import Loader, PhaseInputs
from pets_core.training.probe import LinearProbe

__all__ = ["BuiltModel", "Rank", "forward_warnings", "try_on_all_ranks"]

_OTHERS_SECONDS = 3.0
_RESUME_IGNORED_FIELDS = {
    "base_lr", "checkpoint_seconds", "checkpoint_steps", "compile", "epochs", "freeze_epochs",
    "frozen_on_features", "head", "keep", "keep_checkpoints", "log_with", "micro_batch_size",
    "mixed_precision", "number_loss", "recipe", "tf32",
}  # fmt: skip
"""Fields of `train` that may differ when a training resumes, or are added separately."""
_LATER_SETTINGS: dict[str, Any] = {
    "model.drop_path": 0.0,
    "train.optimizer": "adamw",
    "train.sampling": "uniform",
    "train.unfreeze_to": 0,
    "transform.policy": "none",
    "transform.resize": "squish",
}
"""Settings that checkpoints of earlier versions do not name, with the value that these had."""


BuiltModel = TrainedModel | TrainedRecommender
RequestT = TypeVar("RequestT", bound=Request)
ModelT = TypeVar("ModelT", bound=BuiltModel)
Loaded = TypeVar("Loaded")


class Rank(ABC, Generic[RequestT, ModelT]):
    """One of `accelerator.num_processes` processes that run a stage.

    Subclasses supply model, data and objective.

    Args:
        request: The stage and its input.
        failures: Folder in which a stalled rank records its failure.

    Attributes:
        validation_setting: Name of the setting with the fraction of validation samples.
    """

    validation_setting: ClassVar[str]

    def __init__(self, request: RequestT, failures: Path | None = None) -> None:
        self.request, config = request, request.config
        self._failures = failures
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        stage = STAGES[request.stage]
        device, self.precision, is_sharded = resolve_device(
            config.launch, config.train, trains=stage.trains, num_ranks=num_ranks
        )
        tracker = config.train.log_with if stage.is_training else "none"
        self.accelerator = create_accelerator(
            self.precision,
            device,
            is_sharded=is_sharded,
            log_with=None if tracker == "none" else tracker,
            project_dir=_tracker_folder(request),
        )
        if stage.trains:
            check_optimizer(config.train.optimizer, self.accelerator.device)
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.train.tf32
        # Inputs have few sizes; cuDNN benchmarks its algorithms once for each.
        torch.backends.cudnn.benchmark = True
        if self.accelerator.num_processes != num_ranks:
            raise RuntimeError(
                f"{num_ranks} ranks were started, but Accelerate has "
                f"{self.accelerator.num_processes} processes"
            )
        set_seed(config.train.seed)
        self.watchdog = Watchdog(config.launch.stall_timeout_seconds, self._exit_stalled)

    def report(self, progress: Progress) -> None:
        """Send progress to the launcher, from rank 0 only."""
        if self.accelerator.is_main_process:
            if self.accelerator.device.type == "cuda":
                most = torch.cuda.max_memory_allocated(self.accelerator.device)
                progress = progress.model_copy(update={"gpu_memory_bytes": most})
            _write_line(PROGRESS_PREFIX, progress.model_dump_json())

    def _exit_stalled(self, stacks: str) -> None:
        """Record the stack traces as a failure and exit."""
        seconds = self.request.config.launch.stall_timeout_seconds
        message = f"no batch finished within launch.stall_timeout_seconds = {seconds:g}"
        number = self.accelerator.process_index
        failure = RankFailure(rank=number, message=message, traceback=stacks, kind="stalled")
        if self._failures:
            write_failure(failure, self._failures, str(number))
        # When one rank exits, the launcher ends the others. They record their stacks first.
        time.sleep(_OTHERS_SECONDS)
        os._exit(1)

    def warn(self, message: str) -> None:
        """Send a warning to the launcher, from rank 0 only."""
        if self.accelerator.is_main_process:
            _write_warning(message)

    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints of this run; those of a different training are refused."""
        config = self.request.config.train
        recipe = config.model_dump(mode="json", exclude=_RESUME_IGNORED_FIELDS)
        key = {f"train.{name}": value for name, value in recipe.items()} | self.resume_key()
        key["train.freeze_epochs"] = config.num_frozen_epochs
        key["train.epochs"] = config.num_unfrozen_epochs
        if config.starts_from_probe:
            key["train.head"] = "probe"
        if config.unfreeze_to is None:
            # None is the value of a setting that a checkpoint does not name.
            key["train.unfreeze_to"] = "automatic"
        key = {k: v for k, v in key.items() if k not in _LATER_SETTINGS or v != _LATER_SETTINGS[k]}
        return Checkpoints(
            storage.join(self.request.run_url, CHECKPOINTS),
            key | {"base_lr": self.request.base_lr},
            keep=config.keep_checkpoints,
            warn=self.warn,
        )

    def interruption(self) -> Interruption:
        """Return the context that stops all ranks when one of them receives SIGTERM."""
        number, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return Interruption(number, world_size, elastic_store() if world_size > 1 else None)

    @abstractmethod
    def resume_key(self) -> dict[str, Any]:
        """Return the data and model settings that must be equal for a training to resume.

        The recipe's settings are added to them.
        """

    @property
    def has_validation(self) -> bool:
        """Whether there are validation samples."""
        manifest = self.request.manifest
        assert manifest is not None
        return "valid" in manifest.splits

    @property
    def suggestion(self) -> str:
        """Name of the LR finder's suggestion that training uses."""
        return self.request.config.lr_find.suggestion

    @abstractmethod
    def model(self) -> ModelT:
        """Build the model to train, on the device."""

    @abstractmethod
    def objective(self, built: ModelT) -> Objective:
        """Return the objective that training minimises."""

    @abstractmethod
    def train_loader(self, built: ModelT) -> Loader:
        """Return the shuffled training batches."""

    @abstractmethod
    def valid_loader(self, built: ModelT) -> Loader | None:
        """Return the validation batches in stored order, or None if there are none."""

    def sampler(
        self,
        num_rows: int,
        batch_size: int,
        seed: int | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> BatchSampler:
        """Return the sampler of this rank's batches; the arguments are those of `BatchSampler`."""
        number, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return BatchSampler(num_rows, batch_size, seed, number, world_size, weights)

    def finder_inputs(self, built: ModelT) -> tuple[GroupedModel, Loader]:
        """Return the model to train in the LR range test, and its batches.

        By default the whole model and the training batches.
        """
        return built.model, self.train_loader(built)

    def frozen_inputs(self, built: ModelT) -> PhaseInputs | None:
        """Return the inputs of the frozen epochs; None: the same as in the unfrozen epochs."""
        return None

    def fit_probe(self, built: ModelT) -> LinearProbe | None:
        """Fit the head on features of the pretrained body; None if no probe is needed."""
        return None

    def save(self, url: str, built: ModelT, weights: dict[str, Tensor]) -> None:
        """Write a model with these weights; called by rank 0."""
        save_model(url, built.card, weights)


def try_on_all_ranks(load: Callable[[], Loaded]) -> tuple[Loaded | None, str | None]:
    """Call a function on each rank, and return its result if none raises a PetsError.

    A rank on which it succeeded would otherwise wait for those on which it failed, in its next
    collective. All ranks call this.

    Args:
        load: Function to call. It must not communicate with other ranks.

    Returns:
        The result, and None; or None, and the message of the first rank's `PetsError`.
    """
    try:
        loaded, message = load(), ""
    except PetsError as error:
        loaded, message = None, str(error)
    messages = list(filter(None, gather_object([message])))
    return (None, messages[0]) if messages else (loaded, None)


class _WarningHandler(logging.Handler):
    """Log handler that sends warnings to the launcher, with the rank unless it is 0.

    Args:
        rank: Rank of this process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._prefix = f"rank {rank}: " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        _write_warning(f"{self._prefix}{record.getMessage()}")


def forward_warnings() -> None:
    """Send the warnings of this process to the launcher; the process must run a rank only."""
    logger = logging.getLogger("py.warnings")
    warnings.showwarning = lambda message, *_: logger.warning("%s", message)
    logging.getLogger().addHandler(_WarningHandler(int(os.environ.get("RANK", "0"))))


def _write_warning(message: str) -> None:
    _write_line(WARNING_PREFIX, " ".join(message.split()))


def _write_line(prefix: str, text: str) -> None:
    # A single write: the ranks share a pipe, and print() makes two.
    sys.stdout.write(f"{prefix}{text}\n")
    sys.stdout.flush()


def _tracker_folder(request: Request) -> str:
    """Return the folder of a tracker's files: the run's, or a local one if that is remote."""
    run_url = request.run_url
    fs, path = storage.filesystem(run_url)
    if storage.is_local(fs):
        return path
    run_id = run_url.rstrip("/").rsplit("/", 1)[-1]
    return str(Path(request.config.cache_dir).expanduser() / "trackers" / run_id)
