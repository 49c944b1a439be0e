"""The stages predict, predict-parts and embed with photos."""

from __future__ import annotations

import time
from collections import deque
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import gather_object

from pets_core import storage
from pets_core.data.dataset import read_photo_tables, write_table
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.sources.files import Files
from pets_core.data.sources.sources import open_photos
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
    write_predictions,
)
from pets_core.inference.batch import (
    PredictedPhoto,
    decode_batches,
    missing_parts,
    read_part,
    write_part,
)
from pets_core.models.card import weights_sha256
from pets_core.models.memory import HalvingForward
from pets_core.models.package import TrainedModel, load_model
from pets_core.progress import Progress, speed_text
from pets_core.records.base import Split
from pets_core.records.inference import (
    BaselinePredictions,
    BatchPlan,
    EmbedResult,
    PartsResult,
    PredictResult,
)
from pets_core.records.target_spec import target_spec
from pets_core.registry.aliases import CANDIDATE
from pets_core.runtime.baselines import predict_baselines
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.rank import try_on_all_ranks
from pets_core.storage.layout import EVALUATION
from pets_core.targets.registry import get_target

__all__ = ["embed", "predict", "predict_parts"]

_NUM_MAPS, _MAP_PIXELS = 16, 160


def predict(rank: PhotoRank) -> PredictResult | None:
    """Predict a split with a stored model and, if requested, with the champion."""
    request, config = rank.request, rank.config
    assert request.model_url is not None
    folder = storage.join(request.run_url, EVALUATION)
    split = rank.manifest.evaluation_split(config.evaluate.split)
    url = storage.join(folder, PREDICTIONS)
    built = _load(rank, request.model_url)
    if rank.accelerator.is_main_process:
        # The candidate file belongs to the earlier predictions, which are overwritten.
        storage.remove(storage.join(folder, CANDIDATE))
    photos = rank.photos(split, built.card)
    is_probe = request.probe_url == request.model_url and config.evaluate.baselines
    outputs, seconds = _predict(rank, built, photos, split, url, embeddings=is_probe)
    predicted, valid_url = {split: outputs}, url if split == "valid" else None
    if valid_url is None and rank.has_validation:
        valid_url = storage.join(folder, VALID_PREDICTIONS)
        valid = rank.photos("valid", built.card)
        predicted["valid"], _ = _predict(
            rank, built, valid, "valid", valid_url, embeddings=is_probe
        )
    champion, champion_url, champion_error = None, None, None
    if request.champion_url:
        champion, champion_error = try_on_all_ranks(partial(_load, rank, request.champion_url))
    if champion:
        champion_url = storage.join(folder, CHAMPION_PREDICTIONS)
        _predict(rank, champion, rank.photos(split, champion.card), split, champion_url)
    baselines = _predict_baselines(rank, built, split, predicted if is_probe else None)
    if outputs is None:
        return None
    maps_url = None
    if get_target(built.card.targets).has_maps:
        maps_url = _write_maps(rank, built, photos, outputs, storage.join(folder, MAPS))
    return PredictResult(
        targets=built.card.targets,
        model_url=built.url,
        predictions_url=url,
        valid_url=valid_url,
        champion_url=champion_url,
        champion_error=champion_error,
        maps_url=maps_url,
        baselines=baselines,
        photos_per_second=len(photos) / seconds,
    )


def _predict_baselines(
    rank: PhotoRank,
    built: TrainedModel,
    split: Split,
    predicted: dict[Split, Outputs | None] | None,
) -> tuple[BaselinePredictions, ...]:
    """Predict the evaluated split and the validation split with the baselines of the training.

    Args:
        rank: The rank.
        built: The evaluated model.
        split: The evaluated split.
        predicted: Outputs with features, on rank 0, if the evaluated model is the probe itself.
    """
    url = rank.request.probe_url
    if url is None or split == "train" or not rank.config.evaluate.baselines:
        return ()
    if predicted is None:
        probe, features = _load(rank, url), None
    else:
        probe = built
        features = {
            key: outputs.embeddings
            for key, outputs in predicted.items()
            if outputs and outputs.embeddings is not None
        }
    splits: list[Split] = [split]
    if rank.has_validation and split != "valid":
        splits.append("valid")
    # Features are those of the photos without augmentation.
    infos = {
        each: _info(rank, probe, each, 0.0).model_copy(update={"tta_views": 0}) for each in splits
    }
    return predict_baselines(rank, probe, infos, features)


def predict_parts(rank: PhotoRank) -> PartsResult | None:
    """Predict photos without labels; each rank takes its share of the parts."""
    request, config = rank.request, rank.config
    plan, accelerator = request.batch, rank.accelerator
    assert plan is not None
    assert request.parts is not None
    with accelerator.local_main_process_first():
        built, (files, *_) = load_model(plan.model_url), open_photos(config)
    rank.move_to_device(built)
    missing = missing_parts(plan, range(*request.parts))
    # By part number, since the ranks may list different missing parts.
    own = [n for n in missing if n % accelerator.num_processes == accelerator.process_index]
    started, done = time.monotonic(), 0
    with rank.watchdog:
        for number, part in enumerate(own, 1):
            done += _predict_part(rank, built, files, plan, part)
            rank.watchdog.beat()
            # The other ranks have as many parts, or one fewer.
            speed = accelerator.num_processes * done / (time.monotonic() - started)
            rank.report(
                Progress(
                    stage="predict", done=number, total=len(own), unit="parts",
                    detail=speed_text(speed, "photos/s"), photos_per_second=speed,
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
    """Predict the photos of one part, write the predictions and return the number of photos."""
    card, crop = built.card, built.card.center_crop()
    decode = get_target(card.targets).decode
    photos = read_part(plan, number)
    forward_fitting = HalvingForward(lambda inputs: (built.model(inputs),), rank.accelerator)
    predicted: list[PredictedPhoto] = []
    errors = {path: reason.replace("_", " ") for path, reason in photos.items() if reason}
    batches = decode_batches(
        files, [path for path in photos if path not in errors], card.resize_to, resize=card.resize,
        batch_size=rank.config.evaluate.batch_size,
        num_threads=torch.get_num_threads(),
    )  # fmt: skip
    for batch in batches:
        errors |= {photo.name: photo.error for photo in batch if photo.error is not None}
        readable = [photo for photo in batch if photo.error is None]
        pixels = [photo.pixels for photo in readable if photo.pixels is not None]
        if readable:
            inputs = crop(torch.from_numpy(np.stack(pixels)).to(rank.accelerator.device))
            (logits,) = forward_fitting(inputs)
            outputs = decode(card, logits.float()).cpu().numpy()
            predicted += [
                PredictedPhoto(photo.name, photo.size, output)
                for photo, output in zip(readable, outputs, strict=True)
            ]
        rank.watchdog.beat()
    write_part(plan, number, card, list(photos), predicted, errors)
    return len(photos)


def embed(rank: PhotoRank) -> EmbedResult | None:
    """Write the embeddings of all photos of the data set, computed with a stored model.

    The model's classes may differ from those of the data set.

    Returns:
        The result on rank 0, None on the other ranks.
    """
    started, request, manifest = time.monotonic(), rank.request, rank.manifest
    assert request.model_url is not None
    built = load_model(request.model_url)
    rank.move_to_device(built)
    splits = (_embed_split(rank, built, split) for split in manifest.splits)
    if not rank.accelerator.is_main_process:
        # The other ranks only compute their share.
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
    num_photos = write_embeddings(url, info, (each for each in splits if each is not None))
    speed = num_photos / (time.monotonic() - started)
    return EmbedResult(embeddings_url=url, num_photos=num_photos, photos_per_second=speed)


def _embed_split(rank: PhotoRank, built: TrainedModel, split: Split) -> SplitEmbeddings | None:
    """Compute the embeddings of a split and return them on rank 0."""
    photos = rank.photos(split, built.card)
    with rank.watchdog:
        outputs = predict_split(
            built.model,
            rank.eval_loader(photos, built.card.center_crop()),
            accelerator=rank.accelerator,
            embeddings=True,
            on_progress=rank.report,
        )
    if outputs is None:
        return None
    assert outputs.embeddings is not None
    texts = read_photo_tables(rank.manifest.files(split), ["target_text"])["target_text"]
    return SplitEmbeddings(split, photos.ids, texts.to_pylist(), outputs.embeddings)


def _load(rank: PhotoRank, url: str) -> TrainedModel:
    built = load_model(url)
    card, manifest = built.card, rank.manifest
    if card.targets != manifest.targets:
        raise PetsError(
            f"the model {url} predicts targets = {card.targets}, but the data set has targets = "
            f"{manifest.targets}: set source.targets = {card.targets}"
        )
    if card.vocabulary != manifest.vocabulary:
        raise PetsError(
            f"the model {url} has {len(card.vocabulary)} {target_spec(card.targets).plural} and "
            f"the data set {len(manifest.vocabulary)}, which differ in names or order: use a data "
            "set with the model's vocabulary"
        )
    predicted, stored = (", ".join(info.text for info in of.numbers) for of in (card, manifest))
    if predicted != stored:
        raise PetsError(
            f"the model {url} predicts {predicted}, but the data set has {stored}: use a data set "
            "with the model's columns"
        )
    rank.move_to_device(built)
    return built


def _predict(
    rank: PhotoRank,
    built: TrainedModel,
    photos: DecodedPhotos,
    split: Split,
    url: str,
    *,
    embeddings: bool = False,
) -> tuple[Outputs | None, float]:
    """Predict photos and write the predictions; return them, on rank 0, and the seconds.

    Args:
        rank: The rank.
        built: Model, on the device.
        photos: Photos of the split.
        split: Name of the split.
        url: File to write.
        embeddings: Whether to return the features, even if the file does not contain them.
    """
    config, card = rank.config, built.card
    target = get_target(card.targets)
    started = time.monotonic()
    # The watchdog excludes opening photos and models, which takes minutes without a batch.
    with rank.watchdog:
        outputs = predict_views(
            built.model,
            rank.eval_loader(photos, card.center_crop(), card.targets),
            rank.eval_loader(photos, card.view(config.transform), card.targets),
            config.evaluate.tta_views,
            accelerator=rank.accelerator,
            embeddings=embeddings or config.evaluate.embeddings,
            decode=lambda logits, batch: target.decode(card, logits, batch.maps),
            on_progress=rank.report,
        )
    seconds = time.monotonic() - started
    if outputs is not None:
        write_predictions(
            url,
            target,
            _info(rank, built, split, len(photos) / seconds),
            photos.ids,
            photos.targets,
            outputs.values,
            outputs.embeddings if config.evaluate.embeddings else None,
        )
    return outputs, seconds


def _info(rank: PhotoRank, built: TrainedModel, split: Split, speed: float) -> PredictionsInfo:
    card, manifest = built.card, rank.manifest
    return PredictionsInfo(
        targets=card.targets,
        split=split,
        model_url=built.url,
        backbone=card.backbone,
        image_size=card.image_size,
        dataset_url=manifest.url,
        dataset_name=manifest.name,
        dataset_fingerprint=manifest.fingerprint,
        tta_views=rank.config.evaluate.tta_views,
        photos_per_second=speed,
        vocabulary=card.vocabulary,
        numbers=card.numbers,
    )


def _write_maps(
    rank: PhotoRank, built: TrainedModel, photos: DecodedPhotos, outputs: Outputs, url: str
) -> str | None:
    """Write activation maps of the photos with the highest loss: one JPEG per photo id."""
    targets = photos.targets[:, None].astype(np.int64)
    probabilities = np.take_along_axis(outputs.values, targets, 1)[:, 0]
    worst = np.argsort(probabilities, kind="stable")[:_NUM_MAPS]
    pixels, device = photos.read(worst), rank.accelerator.device
    inputs = built.card.center_crop()(torch.from_numpy(pixels).to(device))
    predicted = torch.from_numpy(outputs.values[worst].argmax(1)).to(device)
    maps = activation_maps(built.model, inputs, predicted)
    if maps is None:
        return None
    size = built.card.image_size
    pictures = [
        overlay(photo, activation, size, _MAP_PIXELS)
        for photo, activation in zip(pixels, maps.cpu().numpy(), strict=True)
    ]
    write_table(url, pa.table({"id": [photos.ids[i] for i in worst], "jpeg": pictures}))
    return url
