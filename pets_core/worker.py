"""The entry of one rank: reads a request, composes the parts, and rank 0 writes the result.

Started by `pets_core.elastic`; runs with no Prefect installed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, set_seed
from pydantic import BaseModel

from pets_core import storage
from pets_core.data.decoded import DecodedPhotos, open_decoded
from pets_core.data.loader import PhotoLoader, fits_on_gpu
from pets_core.data.transforms import Transform
from pets_core.elastic import die_with_parent
from pets_core.errors import PetsError
from pets_core.evaluation import plots
from pets_core.evaluation.evaluate import evaluate
from pets_core.launch import PROGRESS_MARK, CheckResult, RankFailure, WorkRequest
from pets_core.models.backbones import body_groups, create_body, num_features
from pets_core.models.package import ModelCard, TrainedModel, create_model, load_model, save_model
from pets_core.objectives import SingleLabel, balanced_weights
from pets_core.progress import Progress
from pets_core.records import DatasetManifest, EvalReport, LRSuggestion, Split, TrainResult
from pets_core.training.history import write_history
from pets_core.training.loop import fit
from pets_core.training.lr_finder import lr_find, suggest, trimmed, write_curve
from pets_core.training.precision import resolve_precision
from pets_core.training.schedule import fine_tune_phases

__all__ = ["main", "run"]


class Rank:
    """One process among `accelerator.num_processes`, and what it was asked to do."""

    def __init__(self, request: WorkRequest) -> None:
        self.config, self.request = request.config, request
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = resolve_precision(self.config.train.mixed_precision, device)
        # Rank 0 decodes and downloads while the others wait, for longer than the usual minutes.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
        tracker = self.config.train.log_with if request.stage == "train" else "none"
        self.accelerator = Accelerator(
            mixed_precision=self.precision,
            cpu=device.type == "cpu",
            log_with=None if tracker == "none" else tracker,
            project_dir=_tracker_folder(request),
            kwargs_handlers=[patience],
        )
        torch.set_float32_matmul_precision("high" if self.config.train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.config.train.tf32
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != promised:
            raise RuntimeError(
                f"{promised} ranks were started, Accelerate sees {self.accelerator.num_processes}"
            )
        set_seed(self.config.train.seed)

    @property
    def manifest(self) -> DatasetManifest:
        """The data set of a request that has one."""
        assert self.request.manifest is not None
        return self.request.manifest

    def report(self, progress: Progress) -> None:
        """Tell the launcher, from rank 0 only."""
        if self.accelerator.is_main_process:
            # One write, for the ranks share a pipe and print() makes two.
            sys.stdout.write(f"{PROGRESS_MARK}{progress.model_dump_json()}\n")
            sys.stdout.flush()

    def model(self) -> TrainedModel:
        """Build the model; rank 0 of a machine first, so that a download happens once."""
        with self.accelerator.local_main_process_first():
            built = create_model(self.config, self.manifest.classes, self.manifest.fingerprint)
        self.place(built)
        return built

    def place(self, built: TrainedModel) -> None:
        """Move a model to the device, channels last, which convolutions are faster in."""
        built.model.to(self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        )

    def objective(self) -> SingleLabel:
        """What the settings ask training to minimise."""
        config, weights = self.config.train, None
        if config.class_weights == "balanced":
            weights = balanced_weights(self.manifest.splits["train"].class_counts)
            weights = weights.to(self.accelerator.device)
        return SingleLabel(config.label_smoothing, weights)


def _tracker_folder(request: WorkRequest) -> str:
    """Where a tracker that writes files puts them: with the run, or on disk if that is remote."""
    run_url = request.run_url
    fs, path = storage.filesystem(run_url)
    if storage.is_local(fs):
        return path
    run_id = run_url.rstrip("/").rsplit("/", 1)[-1]
    return str(Path(request.config.cache_dir).expanduser() / "trackers" / run_id)


def check(request: WorkRequest) -> CheckResult:
    """Build or load the model once, weights and all, so that a fault shows before any work."""
    settings, launch = request.config.model, request.config.launch
    storage.check_writable(storage.absolute(request.config.store), "store")
    storage.check_writable(storage.absolute(request.config.cache_dir), "cache_dir")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_gpus = torch.cuda.device_count()
    if num_gpus and launch.num_processes != "auto" and launch.num_processes > num_gpus:
        raise PetsError(
            f"launch.num_processes = {launch.num_processes}: this machine has {num_gpus} GPUs; "
            "set auto or at most that"
        )
    precision = resolve_precision(request.config.train.mixed_precision, device)
    _check_tracker(request.config.train.log_with)
    model: torch.nn.Module
    if request.model_url:
        model = load_model(request.model_url).model
    else:
        model = create_body(settings.backbone, settings.weights, settings.image_size)
        num_features(model, settings.image_size)
        _check_groups(request.config.train.freeze_to, len(body_groups(model)) + 1)
    return CheckResult(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device.type,
        mixed_precision=precision,
    )


def _check_tracker(log_with: str) -> None:
    """Accelerate leaves out a tracker whose package is missing, and does not say so."""
    if log_with != "none" and log_with not in {str(t) for t in get_available_trackers()}:
        raise PetsError(
            f"train.log_with = {log_with}: its package is not installed: "
            f"pip install 'pets-pipeline[{log_with}]'"
        )


def _check_groups(freeze_to: int, num_groups: int) -> None:
    if not -num_groups <= freeze_to < num_groups:
        raise PetsError(
            f"train.freeze_to = {freeze_to}: the model has {num_groups} layer groups, the head the "
            f"last of them; choose from {-num_groups} to {num_groups - 1}"
        )


def find_lr(rank: Rank) -> LRSuggestion | None:
    """Run the range test on the new head and store its curve and picture."""
    started, config = time.monotonic(), rank.config
    _check_validation(rank)
    built = rank.model()
    curve = lr_find(
        built.model,
        rank.objective(),
        rank.train_loader(built.card),
        config.lr_find,
        config.train,
        accelerator=rank.accelerator,
        on_progress=rank.report,
    )
    if not rank.accelerator.is_main_process:
        return None
    suggestions = vars(suggest(*trimmed(curve)))
    chosen = suggestions[config.lr_find.suggestion]
    folder = storage.join(rank.request.run_url, "lr_find")
    curve_url, plot_url = storage.join(folder, "curve.parquet"), storage.join(folder, "curve.png")
    write_curve(curve_url, curve)
    picture = plots.lr_curve(
        curve.rates, curve.losses, curve.smoothed, suggestions, config.lr_find.suggestion
    )
    storage.write_bytes(plot_url, picture)
    return LRSuggestion(
        **suggestions,
        chosen=chosen,
        suggestion=config.lr_find.suggestion,
        num_steps=len(curve.rates),
        seconds=time.monotonic() - started,
        curve_url=curve_url,
        plot_url=plot_url,
    )


def train(rank: Rank) -> TrainResult | None:
    """Train by the recipe and store model, history and pictures."""
    started, config = time.monotonic(), rank.config
    assert rank.request.base_lr is not None
    _check_validation(rank)
    rank.accelerator.init_trackers("pets", config.model_dump(mode="json")["train"])
    built = rank.model()
    loader = rank.train_loader(built.card)
    valid = rank.photos("valid", built.card) if "valid" in rank.manifest.splits else None
    history = fit(
        built.model,
        rank.objective(),
        loader,
        rank.eval_loader(valid, built.card.center_crop()) if valid else None,
        fine_tune_phases(config.train, rank.request.base_lr),
        config.train,
        accelerator=rank.accelerator,
        on_progress=rank.report,
    )
    if not rank.accelerator.is_main_process:
        return None
    run = rank.request.run_url
    model_url, history_url = storage.join(run, "model"), storage.join(run, "history.parquet")
    plot_url = storage.join(run, "training.png")
    save_model(model_url, built.card, built.model.state_dict())
    write_history(history_url, history)
    storage.write_bytes(plot_url, plots.training_curves(history.steps, history.epochs))
    return TrainResult(
        model_url=model_url,
        history_url=history_url,
        plot_url=plot_url,
        base_lr=rank.request.base_lr,
        mixed_precision=rank.precision,
        device=_device_name(rank.accelerator.device),
        num_processes=rank.accelerator.num_processes,
        num_steps=len(history.steps),
        epochs=tuple(history.epochs),
        seconds=time.monotonic() - started,
    )


def _check_validation(rank: Rank) -> None:
    """Refuse settings that need validation photos where there are none."""
    config = rank.config.train
    wanted = {
        "train.keep = best": config.keep == "best",
        f"train.early_stopping_epochs = {config.early_stopping_epochs}": (
            config.early_stopping_epochs > 0
        ),
    }
    for setting, needed in wanted.items():
        if needed and "valid" not in rank.manifest.splits:
            raise PetsError(
                f"{setting} needs validation photos, and the data set has none: raise "
                "source.valid_fraction"
            )


def judge(rank: Rank) -> EvalReport | None:
    """Evaluate a stored model on one split and store predictions, pictures and report."""
    config, model_url = rank.config, rank.request.model_url
    assert model_url is not None
    built = load_model(model_url)
    if built.card.classes != rank.manifest.classes:
        raise PetsError(
            f"the model {model_url} knows {len(built.card.classes)} classes and the data set "
            f"{len(rank.manifest.classes)}, not the same ones in the same order: evaluate on a "
            "data set with the model's vocabulary"
        )
    rank.place(built)
    split = rank.manifest.evaluation_split(config.evaluate.split)
    photos = rank.photos(split, built.card)
    return evaluate(
        built,
        photos,
        rank.eval_loader(photos, built.card.center_crop()),
        split,
        augmented=rank.eval_loader(photos, built.card.view(config.transform)),
        request=rank.request,
        accelerator=rank.accelerator,
        on_progress=rank.report,
    )


_STAGES = {"lr-find": find_lr, "train": train, "evaluate": judge}


def run(request: WorkRequest) -> BaseModel | None:
    """Do what a request asks for; only rank 0 has a record to return."""
    if request.stage == "check":
        return check(request)
    rank = Rank(request)
    result = _STAGES[request.stage](rank)
    # Without a barrier some gloo runs abort at exit.
    rank.accelerator.wait_for_everyone()
    rank.accelerator.end_training()
    return result


def main() -> None:
    """Run as one rank; leave result.json or failure-<rank>.json beside the request."""
    die_with_parent(signal.SIGKILL)
    path = Path(sys.argv[1])
    try:
        result = run(WorkRequest.model_validate_json(path.read_text(encoding="utf-8")))
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher must hear of it
        number = int(os.environ.get("RANK", "0"))
        failure = RankFailure(
            rank=number,
            message=str(error) if isinstance(error, PetsError) else repr(error),
            traceback=traceback.format_exc(),
            by_user=isinstance(error, PetsError),
        )
        storage.write_bytes(
            str(path.with_name(f"failure-{number}.json")), failure.model_dump_json().encode()
        )
        sys.exit(1)
    if result is not None:
        storage.write_bytes(str(path.with_name("result.json")), result.model_dump_json().encode())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
