"""Predictions of the baselines of a fine-tuned model: linear probe and nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pets_core import storage
from pets_core.evaluation.neighbours import predict_by_neighbours
from pets_core.evaluation.predictions import PredictionsInfo, write_predictions
from pets_core.models.package import TrainedModel
from pets_core.records.base import Split
from pets_core.records.inference import BaselinePredictions
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.storage.layout import BASELINES, EVALUATION
from pets_core.targets.registry import get_target

__all__ = ["predict_baselines"]

_PROBE, _NEIGHBOURS = "linear probe", "nearest neighbours"


def predict_baselines(
    rank: PhotoRank,
    probe: TrainedModel,
    infos: dict[Split, PredictionsInfo],
    embeddings: dict[Split, NDArray[np.float32]] | None,
) -> tuple[BaselinePredictions, ...]:
    """Predict splits with the linear probe and the nearest training photos.

    Args:
        rank: The rank; all ranks call this.
        probe: Model with the pretrained body and the fitted head.
        infos: Metadata of the predictions by split: the evaluated one first, then validation.
        embeddings: Features of the splits if the evaluated model is the probe itself; then only the
            neighbours are predicted. Empty on ranks other than 0. None: another model is evaluated.

    Returns:
        The files written, on rank 0; nothing on other ranks.
    """
    train, trained_photos = rank.features("train", probe), rank.photos("train", probe.card)
    features = embeddings
    if features is None:
        features = {split: rank.features(split, probe).values for split in infos}
    photos = {split: rank.photos(split, probe.card) for split in infos}
    if not rank.accelerator.is_main_process:
        return ()
    target, device = get_target(probe.card.targets), rank.accelerator.device
    trained = torch.from_numpy(np.array(train.values)).to(device)
    encoded = target.encode_targets(probe.card, trained_photos.targets)
    urls: dict[str, list[str]] = {}
    for split, info in infos.items():
        queries = torch.from_numpy(np.array(features[split])).to(device)
        outputs = {_NEIGHBOURS: predict_by_neighbours(queries, trained, encoded)}
        if embeddings is None:
            outputs[_PROBE] = _apply_head(probe, queries)
        for name, values in outputs.items():
            url = _url(rank, name, split)
            write_predictions(
                url, target, info, photos[split].ids, photos[split].targets, values, None
            )
            urls.setdefault(name, []).append(url)
    return tuple(
        BaselinePredictions(name=name, predictions_url=url, valid_url=next(iter(valid), None))
        for name, (url, *valid) in urls.items()
    )


@torch.inference_mode()
def _apply_head(probe: TrainedModel, features: Tensor) -> NDArray[np.float32]:
    """Return the outputs of the probe for the features of photos."""
    decode = get_target(probe.card.targets).decode
    outputs: NDArray[np.float32] = decode(probe.card, probe.model.head(features)).cpu().numpy()
    return outputs


def _url(rank: PhotoRank, name: str, split: Split) -> str:
    file = f"{name.replace(' ', '-')}-{split}.parquet"
    return storage.join(rank.request.run_url, EVALUATION, BASELINES, file)
