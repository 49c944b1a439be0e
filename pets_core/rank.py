"""What one rank has: its device, its share of the batches, and ways to be heard."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from timm.layers.norm_act import convert_sync_batchnorm

from pets_core import storage
from pets_core.config import LaunchConfig
from pets_core.data.decoded import DecodedPhotos, open_decoded
from pets_core.data.loader import PhotoLoader, fits_on_gpu
from pets_core.data.transforms import Transform
from pets_core.errors import PetsError
from pets_core.failures import RankFailure, write_failure
from pets_core.launch import PROGRESS_MARK, WARNING_MARK, WorkRequest
from pets_core.models.card import ModelCard
from pets_core.models.package import TrainedModel, create_model
from pets_core.objectives import SingleLabel, balanced_weights
from pets_core.progress import Progress
from pets_core.records import DatasetManifest, Split
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.interruption import Interruption, elastic_store
from pets_core.training.precision import resolve_precision
from pets_core.training.sharding import is_sharding, shard_on_cpu, sharding_plugin
from pets_core.watchdog import Watchdog

__all__ = ["Rank", "choose_device", "write_down"]

_OTHERS_SECONDS = 3.0
_TRAINS = ("lr-find", "train")
_MAY_DIFFER = {
    "base_lr", "checkpoint_steps", "compile", "keep", "keep_checkpoints", "log_with",
    "micro_batch_size", "mixed_precision", "tf32",
}  # fmt: skip
"""Settings of training that may change between an attempt and the next."""


class Rank:
    """One process among `accelerator.num_processes`, and what it was asked to do."""

    def __init__(self, request: WorkRequest) -> None:
        self.config, self.request = request.config, request
        _pass_warnings_on(int(os.environ.get("RANK", "0")))
        device = choose_device(self.config.launch)
        self.precision = resolve_precision(self.config.train.mixed_precision, device)
        # Rank 0 decodes and downloads while the others wait, for longer than the usual minutes.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        tracker = self.config.train.log_with if request.stage == "train" else "none"
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        # Stages that judge need no more than the weights, which every rank can hold.
        shards = self.config.launch.shard_model and promised > 1 and request.stage in _TRAINS
        plugin = sharding_plugin() if shards else None
        self.accelerator = Accelerator(
            mixed_precision=self.precision,
            cpu=device.type == "cpu",
            log_with=None if tracker == "none" else tracker,
            project_dir=_tracker_folder(request),
            kwargs_handlers=[patience],
            fsdp_plugin=plugin,
        )
        if plugin:
            shard_on_cpu(plugin)
        torch.set_float32_matmul_precision("high" if self.config.train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.config.train.tf32
        if self.accelerator.num_processes != promised:
            raise RuntimeError(
                f"{promised} ranks were started, Accelerate sees {self.accelerator.num_processes}"
            )
        if shards and not is_sharding(self.accelerator):
            raise RuntimeError("launch.shard_model was asked for, and Accelerate shards nothing")
        set_seed(self.config.train.seed)
        self.watchdog = Watchdog(self.config.launch.stall_timeout_seconds, self._stalled)

    @property
    def manifest(self) -> DatasetManifest:
        """The data set of a request that has one."""
        assert self.request.manifest is not None
        return self.request.manifest

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
        seconds = self.config.launch.stall_timeout_seconds
        message = f"no batch was done within launch.stall_timeout_seconds = {seconds:g}"
        number = self.accelerator.process_index
        write_down(RankFailure(rank=number, message=message, traceback=stacks, kind="stalled"))
        # The first to end has the others ended too; each is to write down where it stood.
        time.sleep(_OTHERS_SECONDS)
        os._exit(1)

    def warn(self, message: str) -> None:
        """Have the launcher show a warning, from rank 0 only."""
        if self.accelerator.is_main_process:
            _say_warning(message)

    def checkpoints(self) -> Checkpoints:
        """Of this run; another training's are refused."""
        config = self.config
        recipe = config.train.model_dump(mode="json", exclude=_MAY_DIFFER)
        identity = {f"train.{name}": value for name, value in recipe.items()}
        for group in ("model", "transform"):
            settings = getattr(config, group).model_dump(mode="json")
            identity |= {f"{group}.{name}": value for name, value in settings.items()}
        identity |= {"data set": self.manifest.fingerprint, "base_lr": self.request.base_lr}
        return Checkpoints(
            storage.join(self.request.run_url, "checkpoints"),
            identity,
            keep=config.train.keep_checkpoints,
            warn=self.warn,
        )

    def interruption(self) -> Interruption:
        """Hears SIGTERM in any rank."""
        number, world_size = self.accelerator.process_index, self.accelerator.num_processes
        return Interruption(number, world_size, elastic_store() if world_size > 1 else None)

    def model(self) -> TrainedModel:
        """Build the model; rank 0 of a machine first, so that a download happens once."""
        with self.accelerator.local_main_process_first():
            built = create_model(self.config, self.manifest.classes, self.manifest.fingerprint)
        if self.config.train.batch_norm == "sync":
            built.model.body = convert_sync_batchnorm(built.model.body)  # type: ignore[no-untyped-call]
        self.place(built)
        return built

    def place(self, built: TrainedModel) -> None:
        """Move a model to the device, channels last, which convolutions are faster in."""
        # FSDP takes contiguous weights only.
        sharding = is_sharding(self.accelerator)
        layout = torch.contiguous_format if sharding else torch.channels_last
        built.model.to(self.accelerator.device, memory_format=layout)  # type: ignore[call-overload]

    def photos(self, split: Split, card: ModelCard) -> DecodedPhotos:
        """Open the decoded photos of a split; rank 0 of a machine decodes them."""
        with self.accelerator.local_main_process_first():
            return open_decoded(
                self.manifest,
                split,
                card.resize_to,
                cache_dir=self.config.cache_dir,
                limit_gib=self.config.launch.decode_cache_gib,
                on_progress=self.report,
            )

    def train_loader(self, card: ModelCard) -> PhotoLoader:
        """Shuffled, augmented training batches."""
        photos, config = self.photos("train", card), self.config
        return PhotoLoader(
            photos,
            card.augment(config.transform),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            on_device=config.launch.photos_on_gpu == "auto"
            and fits_on_gpu(photos, self.accelerator.device),
            mixing=config.transform,
            num_classes=len(card.classes),
            on_batch=self.watchdog.beat,
        )

    def eval_loader(self, photos: DecodedPhotos, transform: Transform) -> PhotoLoader:
        """Batches of a split in its own order."""
        return PhotoLoader(
            photos,
            transform,
            batch_size=self.config.evaluate.batch_size,
            seed=None,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            on_batch=self.watchdog.beat,
        )

    def objective(self) -> SingleLabel:
        """What the settings ask training to minimise."""
        config, weights = self.config.train, None
        if config.class_weights == "balanced":
            weights = balanced_weights(self.manifest.splits["train"].class_counts)
            weights = weights.to(self.accelerator.device)
        return SingleLabel(config.label_smoothing, weights)


def choose_device(launch: LaunchConfig) -> torch.device:
    """The GPU where there is one.

    Raises:
        PetsError: There is none, and the settings want one.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if launch.require_gpu:
        raise PetsError(
            "launch.require_gpu = true: torch finds no GPU on this machine; start the worker on "
            "one that has one, mend its driver (nvidia-smi), or leave the setting out"
        )
    return torch.device("cpu")


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


def _pass_warnings_on(rank: int) -> None:
    handler = _Warnings(rank)
    logging.getLogger().addHandler(handler)
    logger = logging.getLogger("py.warnings")
    warnings.showwarning = lambda message, *_: logger.warning("%s", message)


def _say_warning(message: str) -> None:
    # One write, for the ranks share a pipe and print() makes two.
    sys.stdout.write(f"{WARNING_MARK}{' '.join(message.split())}\n")
    sys.stdout.flush()


def _tracker_folder(request: WorkRequest) -> str:
    """Where a tracker that writes files puts them: with the run, or on disk if that is remote."""
    run_url = request.run_url
    fs, path = storage.filesystem(run_url)
    if storage.is_local(fs):
        return path
    run_id = run_url.rstrip("/").rsplit("/", 1)[-1]
    return str(Path(request.config.cache_dir).expanduser() / "trackers" / run_id)


def write_down(failure: RankFailure) -> None:
    """Leave a failure beside the request, for the launcher to find."""
    write_failure(failure, Path(sys.argv[1]).parent, str(failure.rank))
