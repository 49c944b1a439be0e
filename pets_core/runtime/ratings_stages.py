"""The predict stage with ratings."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from pets_core import storage
from pets_core.evaluation.predict import gather_in_row_order
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    PREDICTIONS,
    PredictionsInfo,
    write_predictions,
)
from pets_core.ratings.dataset import Ratings, load_ratings, read_pair_ids
from pets_core.ratings.evaluate import reindex_ratings
from pets_core.ratings.model import TrainedRecommender, load_recommender
from pets_core.ratings.target import RATINGS
from pets_core.ratings.versions import find_model_version
from pets_core.records.dataset import NumberInfo
from pets_core.records.inference import PredictResult
from pets_core.runtime.rank import try_on_all_ranks
from pets_core.runtime.ratings_rank import RatingsRank
from pets_core.storage.layout import EVALUATION

__all__ = ["predict_ratings"]


def predict_ratings(rank: RatingsRank) -> PredictResult | None:
    """Predict the held-out ratings with a stored model and, if requested, with the champion."""
    request, manifest = rank.request, rank.manifest
    assert request.model_url is not None
    folder = storage.join(request.run_url, EVALUATION)
    url = storage.join(folder, PREDICTIONS)
    model_url = storage.absolute(request.model_url)
    ratings = load_ratings(manifest, manifest.held_out)
    speed = _predict(rank, model_url, load_recommender(model_url), ratings, url)
    champion, champion_url, champion_error = None, None, None
    if request.champion_url:
        champion, champion_error = try_on_all_ranks(
            partial(_load_champion, rank, request.champion_url)
        )
    if request.champion_url and champion:
        champion_url = storage.join(folder, CHAMPION_PREDICTIONS)
        _predict(rank, request.champion_url, *champion, champion_url)
    if not rank.accelerator.is_main_process:
        return None
    return PredictResult(
        targets=RATINGS.name,
        model_url=model_url,
        predictions_url=url,
        champion_url=champion_url,
        champion_error=champion_error,
        photos_per_second=speed,
    )


def _load_champion(rank: RatingsRank, url: str) -> tuple[TrainedRecommender, Ratings]:
    """Return the champion, and the held-out ratings with the indices of its users and items."""
    champion = load_recommender(url)
    version = find_model_version(rank.config.store, champion.card)
    return champion, reindex_ratings(version, rank.manifest, rank.manifest.held_out)


@torch.no_grad()
def _predict(
    rank: RatingsRank, model_url: str, built: TrainedRecommender, ratings: Ratings, url: str
) -> float:
    """Predict ratings, write the predictions on rank 0 and return ratings per second.

    Args:
        rank: This rank.
        model_url: Folder of the model.
        built: The model.
        ratings: Held-out ratings, with the indices of the model's users and items.
        url: File to write.
    """
    started = time.monotonic()
    built.model.to(rank.accelerator.device)
    objective, loader = rank.objective(built), rank.eval_loader(ratings)
    rows, outputs = [], []
    with rank.watchdog:
        for batch in loader.epoch(0):
            rows.append(batch.rows)
            outputs.append(objective.activation(built.model(batch.inputs)).cpu().numpy())
    own = np.concatenate(outputs)[:, None]
    together = gather_in_row_order(np.concatenate(rows), [own], loader.num_rows)
    speed = loader.num_rows / (time.monotonic() - started)
    if together is not None:
        predicted = together[0].clip(*built.card.y_range).astype(np.float32)
        users, items = read_pair_ids(rank.manifest, rank.manifest.held_out)
        write_predictions(
            url,
            RATINGS,
            _info(rank, model_url, built, speed),
            [str(row) for row in range(len(predicted))],
            ratings.ratings[:, None],
            predicted,
            more=pa.table({"user": users, "item": items}),
        )
    return speed


def _info(
    rank: RatingsRank, model_url: str, built: TrainedRecommender, speed: float
) -> PredictionsInfo:
    manifest = rank.manifest
    return PredictionsInfo(
        targets=RATINGS.name,
        split=manifest.held_out,
        model_url=model_url,
        backbone=built.card.config.model,
        dataset_url=manifest.url,
        dataset_name=manifest.name,
        dataset_fingerprint=manifest.fingerprint,
        photos_per_second=speed,
        numbers=(NumberInfo(name="rating", mean=manifest.mean),),
    )
