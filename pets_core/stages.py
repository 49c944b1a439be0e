"""What the ranks of each stage do."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from pets_core import plots, storage
from pets_core.batch import decoded_batches, missing_parts, read_part, write_part
from pets_core.data.dataset import write_table
from pets_core.data.decoded import DecodedPhotos
from pets_core.data.files import Files
from pets_core.data.sources import open_photos
from pets_core.embeddings.file import (
    EMBEDDINGS,
    EmbeddingsInfo,
    SplitEmbeddings,
    write_embeddings,
)
from pets_core.errors import PetsError
from pets_core.evaluation.activation import activation_maps, overlay
from pets_core.evaluation.predict import Outputs, predict_split, predict_views
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    MAPS,
    PREDICTIONS,
    VALID_PREDICTIONS,
    PredictionsInfo,
    log_softmax,
    write_predictions,
)
from pets_core.models.card import weights_sha256
from pets_core.models.package import TrainedModel, load_model
from pets_core.photo_rank import PhotoRank
from pets_core.progress import Progress
from pets_core.rank import Built, Rank
from pets_core.records import (
    BatchPlan,
    EmbedResult,
    LRSuggestion,
    PartsResult,
    PredictResult,
    Split,
    TrainResult,
)
from pets_core.training.history import steps_table
from pets_core.training.loop import fit
from pets_core.training.lr_finder import lr_find, suggest, trimmed, write_curve
from pets_core.training.schedule import fine_tune_phases
from pets_core.training.sharding import whole

__all__ = ["embed", "find_lr", "predict", "predict_parts", "train"]

_MODEL = "model"
_NUM_MAPS, _MAP_PIXELS = 16, 160


def find_lr(rank: Rank[Any, Any]) -> LRSuggestion | None:
    """Run the range test and store its curve and picture."""
    started, config = time.monotonic(), rank.request.config
    _check_validation(rank)
    built = rank.model()
    loader = rank.train_loader(built)
    with rank.watchdog:
        curve = lr_find(
            built.model,
            rank.objective(),
            loader,
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


def train(rank: Rank[Any, Any]) -> TrainResult | None:
    """Train by the recipe and store model, history and pictures."""
    started, config = time.monotonic(), rank.request.config
    assert rank.request.base_lr is not None
    _check_validation(rank)
    rank.accelerator.init_trackers("pets", config.model_dump(mode="json")["train"])
    built = rank.model()
    loader = rank.train_loader(built)
    valid = rank.valid_loader(built)
    checkpoints = rank.checkpoints()
    with rank.interruption() as gate, rank.watchdog:
        history = fit(
            built.model,
            rank.objective(),
            loader,
            valid,
            fine_tune_phases(config.train, rank.request.base_lr),
            config.train,
            accelerator=rank.accelerator,
            checkpoints=checkpoints,
            gate=gate,
            on_progress=rank.report,
        )
    checkpoints.wait()
    weights = {name: whole(value) for name, value in built.model.state_dict().items()}
    if not rank.accelerator.is_main_process:
        return None
    run = rank.request.run_url
    history_url, plot_url = storage.join(run, "history.parquet"), storage.join(run, "training.png")
    last_url, best_url = _save_models(rank, built, weights, history.best.weights)
    storage.write_bytes(history_url, steps_table(history.steps))
    storage.write_bytes(plot_url, plots.training_curves(history.steps, history.epochs))
    return TrainResult(
        model_url=storage.join(run, _MODEL),
        last_model_url=last_url,
        best_model_url=best_url,
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


def _save_models(
    rank: Rank[Any, Any], built: Built, last: dict[str, Tensor], best: dict[str, Tensor]
) -> tuple[str, str | None]:
    """Store the last weights and the best; those that `train.keep` asks for are the model."""
    keep, run = rank.request.config.train.keep, rank.request.run_url
    if keep == "best" and not best:
        raise PetsError("no epoch had a finite validation loss: lower train.base_lr")
    last_url = storage.join(run, _MODEL if keep == "last" else "last")
    rank.save(last_url, built, last)
    if not best:
        return last_url, None
    best_url = storage.join(run, _MODEL if keep == "best" else "best")
    rank.save(best_url, built, best)
    return last_url, best_url


def _check_validation(rank: Rank[Any, Any]) -> None:
    """Refuse settings that need validation samples where there are none."""
    config = rank.request.config.train
    wanted = {
        "train.keep = best": config.keep == "best",
        f"train.early_stopping_epochs = {config.early_stopping_epochs}": (
            config.early_stopping_epochs > 0
        ),
    }
    for setting, needed in wanted.items():
        if needed and not rank.has_validation:
            raise PetsError(
                f"{setting} needs validation samples, and the data set has none: "
                f"raise {rank.holds_out}"
            )


def predict(rank: PhotoRank) -> PredictResult | None:
    """Have a stored model, and the champion where there is one to ask, predict a split."""
    request, config = rank.request, rank.config
    assert request.model_url is not None
    folder = storage.join(request.run_url, "evaluation")
    split = rank.manifest.evaluation_split(config.evaluate.split)
    url = storage.join(folder, PREDICTIONS)
    with rank.watchdog:
        built = _load(rank, request.model_url)
        photos = rank.photos(split, built.card)
        outputs, seconds = _predict(rank, built, photos, split, url)
        valid_url = url if split == "valid" else None
        if valid_url is None and "valid" in rank.manifest.splits:
            valid_url = storage.join(folder, VALID_PREDICTIONS)
            _predict(rank, built, rank.photos("valid", built.card), "valid", valid_url)
        champion_url, refused = None, None
        if request.champion_url:
            try:
                champion_url = _ask_champion(rank, request.champion_url, split, folder)
            except PetsError as error:
                refused = str(error)
    if not rank.accelerator.is_main_process:
        return None
    return PredictResult(
        model_url=built.url,
        predictions_url=url,
        valid_url=valid_url,
        champion_url=champion_url,
        champion_refused=refused,
        maps_url=_write_maps(rank, built, photos, outputs, storage.join(folder, MAPS)),
        photos_per_second=len(photos) / seconds,
    )


def predict_parts(rank: PhotoRank) -> PartsResult | None:
    """Have a stored model look at photos without labels; ranks share the parts among them."""
    request, config = rank.request, rank.config
    plan, accelerator = request.batch, rank.accelerator
    assert plan is not None
    assert request.parts is not None
    with rank.watchdog:
        with accelerator.local_main_process_first():
            built, (files, _) = load_model(plan.model_url), open_photos(config)
        rank.place(built)
        missing = missing_parts(plan, range(*request.parts))
        # By number: another rank may have written some before this one looked.
        own = [n for n in missing if n % accelerator.num_processes == accelerator.process_index]
        began, done = time.monotonic(), 0
        for number, part in enumerate(own, 1):
            done += _predict_part(rank, built, files, plan, part)
            # The other ranks have as many parts, or one less.
            speed = accelerator.num_processes * done / (time.monotonic() - began)
            rank.report(
                Progress(
                    stage="predict", done=number, total=len(own), unit="parts",
                    detail=f"{speed:.0f} photos/s", photos_per_second=speed,
                )
            )  # fmt: skip
    counts = gather_object([(done, len(own))])
    if not accelerator.is_main_process:
        return None
    return PartsResult(num_photos=sum(n for n, _ in counts), num_parts=sum(n for _, n in counts))


@torch.inference_mode()
def _predict_part(
    rank: PhotoRank, built: TrainedModel, files: Files, plan: BatchPlan, number: int
) -> int:
    """Predict the photos of one part; returns how many there are."""
    card, crop = built.card, built.card.center_crop()
    photos = read_part(plan, number)
    probabilities: dict[str, NDArray[np.float32]] = {}
    errors: dict[str, str] = {}
    batches = decoded_batches(
        files, photos, card.resize_to,
        batch_size=max(1, rank.config.evaluate.batch_size // rank.accelerator.num_processes),
        num_threads=torch.get_num_threads(),
    )  # fmt: skip
    for paths, pixels, faults in batches:
        errors |= faults
        if paths:
            inputs = crop(torch.from_numpy(pixels).to(rank.accelerator.device))
            with rank.accelerator.autocast():
                logits = built.model(inputs)
            found = logits.float().softmax(1).cpu().numpy()
            probabilities |= dict(zip(paths, found, strict=True))
        rank.watchdog.beat()
    write_part(plan, number, card, list(photos), probabilities, errors)
    return len(photos)


def embed(rank: PhotoRank) -> EmbedResult | None:
    """Have a stored model, whatever classes it knows, make embeddings of all photos."""
    began, request, manifest = time.monotonic(), rank.request, rank.manifest
    assert request.model_url is not None
    with rank.watchdog:
        built = load_model(request.model_url)
        rank.place(built)
        splits = (_embed_split(rank, built, split) for split in manifest.splits)
        if not rank.accelerator.is_main_process:
            deque(splits, maxlen=0)
            return None
        url = storage.join(request.run_url, EMBEDDINGS)
        info = EmbeddingsInfo(
            model_url=built.url,
            model_sha256=weights_sha256(built.url),
            backbone=built.card.backbone,
            image_size=built.card.image_size,
            num_features=built.card.num_features,
            dataset_url=manifest.url,
            dataset_name=manifest.name,
            dataset_fingerprint=manifest.fingerprint,
        )
        num_photos = write_embeddings(url, info, splits)
    speed = num_photos / (time.monotonic() - began)
    return EmbedResult(embeddings_url=url, num_photos=num_photos, photos_per_second=speed)


def _embed_split(rank: PhotoRank, built: TrainedModel, split: Split) -> SplitEmbeddings:
    photos = rank.photos(split, built.card)
    outputs = predict_split(
        built.model,
        rank.eval_loader(photos, built.card.center_crop()),
        accelerator=rank.accelerator,
        embeddings=True,
        on_progress=rank.report,
    )
    assert outputs.embeddings is not None
    names = rank.manifest.class_names
    labels = [names[label] for label in photos.labels]
    return SplitEmbeddings(split, photos.ids, labels, outputs.embeddings)


def _ask_champion(rank: PhotoRank, model_url: str, split: Split, folder: str) -> str:
    """Have the champion predict the same photos; returns the file of what it said."""
    url = storage.join(folder, CHAMPION_PREDICTIONS)
    champion = _load(rank, model_url)
    _predict(rank, champion, rank.photos(split, champion.card), split, url)
    return url


def _load(rank: PhotoRank, url: str) -> TrainedModel:
    built = load_model(url)
    if built.card.classes != rank.manifest.classes:
        raise PetsError(
            f"the model {url} knows {len(built.card.classes)} classes and the data set "
            f"{len(rank.manifest.classes)}, not the same ones in the same order: evaluate on a "
            "data set with the model's vocabulary"
        )
    rank.place(built)
    return built


def _predict(
    rank: PhotoRank, built: TrainedModel, photos: DecodedPhotos, split: Split, url: str
) -> tuple[Outputs, float]:
    """Predict photos and write what was said of them; returns that, and the seconds it took."""
    config, card, manifest = rank.config, built.card, rank.manifest
    began = time.monotonic()
    outputs = predict_views(
        built.model,
        rank.eval_loader(photos, card.center_crop()),
        rank.eval_loader(photos, card.view(config.transform)),
        config.evaluate.tta_views,
        accelerator=rank.accelerator,
        embeddings=config.evaluate.embeddings,
        on_progress=rank.report,
    )
    seconds = time.monotonic() - began
    if rank.accelerator.is_main_process:
        info = PredictionsInfo(
            classes=card.classes,
            split=split,
            model_url=built.url,
            backbone=card.backbone,
            image_size=card.image_size,
            dataset_url=manifest.url,
            dataset_name=manifest.name,
            dataset_fingerprint=manifest.fingerprint,
            tta_views=config.evaluate.tta_views,
            photos_per_second=len(photos) / seconds,
        )
        write_predictions(url, info, photos.ids, photos.labels, outputs.logits, outputs.embeddings)
    return outputs, seconds


def _write_maps(
    rank: PhotoRank, built: TrainedModel, photos: DecodedPhotos, outputs: Outputs, url: str
) -> str | None:
    """Show where the model looked in the photos of greatest loss: a JPEG for each photo id."""
    logs = log_softmax(outputs.logits)
    losses = -np.take_along_axis(logs, photos.labels[:, None], 1)[:, 0]
    worst = np.argsort(-losses, kind="stable")[:_NUM_MAPS]
    pixels, device = photos.read(worst), rank.accelerator.device
    inputs = built.card.center_crop()(torch.from_numpy(pixels).to(device))
    said = torch.from_numpy(outputs.logits[worst].argmax(1)).to(device)
    maps = activation_maps(built.model, inputs, said)
    if maps is None:
        return None
    size = built.card.image_size
    pictures = [
        overlay(photo, activation, size, _MAP_PIXELS)
        for photo, activation in zip(pixels, maps.cpu().numpy(), strict=True)
    ]
    write_table(url, pa.table({"id": [photos.ids[i] for i in worst], "jpeg": pictures}))
    return url


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
