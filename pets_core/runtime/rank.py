"""What one rank has: its device, its share of the batches, and ways to be heard."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from accelerate.utils import set_seed
from pydantic import BaseModel
from torch import Tensor

from pets_core import storage
from pets_core.models.grouped import GroupedModel
from pets_core.models.package import save_model
from pets_core.progress import Progress
from pets_core.runtime.failures import RankFailure, write_failure
from pets_core.runtime.request import PROGRESS_MARK, WARNING_MARK, Request
from pets_core.runtime.stage_table import STAGES
from pets_core.runtime.watchdog import Watchdog
from pets_core.targets.objective import Objective
from pets_core.training.accelerator import create_accelerator
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.devices import resolve_device
from pets_core.training.interruption import Interruption, elastic_store
from pets_core.training.prepared import Loader

__all__ = ["Built", "Rank", "pass_warnings_on"]

_OTHERS_SECONDS = 3.0
_MAY_DIFFER = {
    "base_lr", "checkpoint_seconds", "checkpoint_steps", "compile", "keep", "keep_checkpoints",
    "log_with", "micro_batch_size", "mixed_precision", "number_loss", "tf32",
}  # fmt: skip
"""Settings of training that may change between an attempt and the next, or are told elsewhere."""


class Built(Protocol):
    """A model and what is said of it."""

    @property
    def model(self) -> GroupedModel:
        """The model."""

    @property
    def card(self) -> BaseModel:
        """All that is needed to rebuild it, besides its weights."""


Asked = TypeVar("Asked", bound=Request)
Model = TypeVar("Model", bound=Built)


class Rank(ABC, Generic[Asked, Model]):
    """One process among `accelerator.num_processes`, and what it was asked to do.

    What is learnt, from what, and why, is said by the classes below this one.

    Args:
        request: The stage and its input.
        failures: Folder in which a rank that stalls records its failure.

    Attributes:
        holds_out: The setting that holds samples out for validation.
    """

    holds_out: ClassVar[str]

    def __init__(self, request: Asked, failures: Path | None = None) -> None:
        self.request, config = request, request.config
        self._failures = failures
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        stage = STAGES[request.stage]
        device, self.precision, shards = resolve_device(
            config.launch, config.train, trains=stage.trains, num_ranks=promised
        )
        tracker = config.train.log_with if stage.is_training else "none"
        self.accelerator = create_accelerator(
            self.precision,
            device,
            shards=shards,
            log_with=None if tracker == "none" else tracker,
            project_dir=_tracker_folder(request),
        )
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.train.tf32
        # Passes have a few sizes, for each of which cuDNN tries its algorithms once.
        torch.backends.cudnn.benchmark = True
        if self.accelerator.num_processes != promised:
            raise RuntimeError(
                f"{promised} ranks were started, Accelerate sees {self.accelerator.num_processes}"
            )
        set_seed(config.train.seed)
        self.watchdog = Watchdog(config.launch.stall_timeout_seconds, self._stalled)

    def report(self, progress: Progress) -> None:
        """Tell the launcher, from rank 0 only."""
        if self.accelerator.is_main_process:
            if self.accelerator.device.type == "cuda":
                most = torch.cuda.max_memory_allocated(self.accelerator.device)
                progress = progress.model_copy(update={"gpu_memory_bytes": most})
            # One write, for the ranks share a pipe and print() makes two.
            sys.stdout.write(f"{PROGRESS_MARK}{progress.model_dump_json()}\n")
            sys.stdout.flush()

    def _stalled(self, stacks: str) -> None:
        seconds = self.request.config.launch.stall_timeout_seconds
        message = f"no batch was done within launch.stall_timeout_seconds = {seconds:g}"
        number = self.accelerator.process_index
        failure = RankFailure(rank=number, message=message, traceback=stacks, kind="stalled")
        if self._failures:
            write_failure(failure, self._failures, str(number))
        # The first to end has the others ended too; each is to write down where it stood.
        time.sleep(_OTHERS_SECONDS)
        os._exit(1)

    def warn(self, message: str) -> None:
        """Have the launcher show a warning, from rank 0 only."""
        if self.accelerator.is_main_process:
            _say_warning(message)

    def checkpoints(self) -> Checkpoints:
        """Of this run; another training's are refused."""
        config = self.request.config.train
        recipe = config.model_dump(mode="json", exclude=_MAY_DIFFER)
        identity = {f"train.{name}": value for name, value in recipe.items()} | self.identity()
        return Checkpoints(
            storage.join(self.request.run_url, "checkpoints"),
            identity | {"base_lr": self.request.base_lr},
            keep=config.keep_checkpoints,
            warn=self.warn,
        )

    def interruption(self) -> Interruption:
        """Hears SIGTERM in any rank."""
        number, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return Interruption(number, world_size, elastic_store() if world_size > 1 else None)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What else than the recipe must be the same for a training to go on: data, model."""

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there are samples that are held out for validation."""

    @property
    def suggestion(self) -> str:
        """Which suggestion of the LR finder training takes."""
        return self.request.config.lr_find.suggestion

    @abstractmethod
    def model(self) -> Model:
        """Build the model that is to be trained, on the device."""

    @abstractmethod
    def objective(self, built: Model) -> Objective:
        """What the settings ask training to minimise."""

    @abstractmethod
    def train_loader(self, built: Model) -> Loader:
        """Shuffled training batches."""

    @abstractmethod
    def valid_loader(self, built: Model) -> Loader | None:
        """The validation samples in their own order, if there are any."""

    def save(self, url: str, built: Model, weights: dict[str, Tensor]) -> None:
        """Store a model of these weights; rank 0 calls it."""
        save_model(url, built.card, weights)


class _Warnings(logging.Handler):
    """Has the launcher show what Python and its libraries warn of, marked by rank beyond the first.

    Args:
        rank: Of this process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._mark = f"rank {rank}: " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        _say_warning(f"{self._mark}{record.getMessage()}")


def pass_warnings_on() -> None:
    """Have the launcher show whatever is warned of in this process, which is a rank's alone."""
    logger = logging.getLogger("py.warnings")
    warnings.showwarning = lambda message, *_: logger.warning("%s", message)
    logging.getLogger().addHandler(_Warnings(int(os.environ.get("RANK", "0"))))


def _say_warning(message: str) -> None:
    # One write, for the ranks share a pipe and print() makes two.
    sys.stdout.write(f"{WARNING_MARK}{' '.join(message.split())}\n")
    sys.stdout.flush()


def _tracker_folder(request: Request) -> str:
    """Where a tracker that writes files puts them: with the run, or on disk if that is remote."""
    run_url = request.run_url
    fs, path = storage.filesystem(run_url)
    if storage.is_local(fs):
        return path
    run_id = run_url.rstrip("/").rsplit("/", 1)[-1]
    return str(Path(request.config.cache_dir).expanduser() / "trackers" / run_id)
