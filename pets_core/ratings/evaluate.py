"""Evaluation of a rating model from its predictions and weights, without torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pets_core.errors import PetsError
from pets_core.evaluation.predictions import Predictions, read_predictions
from pets_core.ratings.card import read_recommender_card
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import (
    Ratings,
    load_ratings,
    load_ratings_manifest,
    read_pair_ids,
    read_vocabulary,
)
from pets_core.ratings.records import RatingsManifest
from pets_core.ratings.target import RATINGS
from pets_core.ratings.versions import find_model_version
from pets_core.records.base import Split
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.records.inference import PredictResult
from pets_core.records.training import TrainResult
from pets_core.targets.write import EvaluationInputs, write_evaluation

__all__ = ["evaluate_ratings", "reindex_ratings", "trained_on_ratings"]


def evaluate_ratings(
    config: RatingsConfig,
    run_url: str,
    predicted: PredictResult,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate predictions and write all results to `<run>/evaluation`, candidate.json last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The predictions files.
        champion: Model to compare with, if any.
        training: Training result of the model, if available.

    Raises:
        PetsError: The predictions, the ratings or the model's files are damaged.
    """
    predictions = read_predictions(predicted.predictions_url, RATINGS)
    subject = EvaluationInputs(
        target=RATINGS,
        # The model of a weight decay trial is outside the run's folder, but belongs to the run.
        evaluator=RATINGS.evaluator(predictions, is_run_model=True),
        predicted=predicted,
        trained_on=partial(trained_on_ratings, config.store),
        samples="ratings",
    )
    return write_evaluation(config, run_url, subject, champion=champion, training=training)


def reindex_ratings(version: RatingsManifest, other: RatingsManifest, split: Split) -> Ratings:
    """Return the ratings of a split, with user and item indices of another version.

    Args:
        version: Version of the indices; an id without training ratings in it has index 0.
        other: Version of the ratings.
        split: Split of `other`.

    Raises:
        PetsError: `other` does not store the ids of cold users and items.
    """
    ratings = load_ratings(other, split)
    if version.fingerprint == other.fingerprint:
        return ratings
    if other.schema_version < 2:
        raise PetsError(
            f"{other.name} {other.fingerprint} was stored without the ids of users and items "
            "that have no training ratings: start a new run to store the ratings again"
        )
    names = read_vocabulary(version)
    users, items = (
        pc.fill_null(pc.index_in(ids, value_set=known), 0).to_numpy(zero_copy_only=False)
        for ids, known in zip(read_pair_ids(other, split), names.id_arrays(), strict=True)
    )
    return ratings._replace(users=users.astype(np.int32), items=items.astype(np.int32))


def trained_on_ratings(
    store: str, model_url: str, predictions: Predictions
) -> npt.NDArray[np.bool_] | None:
    """Find evaluated ratings whose pair of user and item is among a model's training ratings.

    Args:
        store: Root of data sets and runs.
        model_url: Folder of the model.
        predictions: Predictions of this or another model, in the order of their split.

    Returns:
        Whether the model was trained on each pair, bool (N,). None if unknown: the model or its
        data set version is missing.
    """
    try:
        card = read_recommender_card(model_url)
        if card.dataset_fingerprint == predictions.info.dataset_fingerprint:
            return np.zeros(len(predictions), np.bool_)
        version = find_model_version(store, card)
        other = load_ratings_manifest(predictions.info.dataset_url)
        held_out = reindex_ratings(version, other, predictions.info.split)
    except PetsError:
        return None
    trained = load_ratings(version, "train")
    is_known = (held_out.users > 0) & (held_out.items > 0)
    seen: npt.NDArray[np.bool_] = is_known & np.isin(
        _pair_numbers(version, held_out), _pair_numbers(version, trained)
    )
    return seen


def _pair_numbers(version: RatingsManifest, ratings: Ratings) -> npt.NDArray[np.int64]:
    """Return a unique number for each pair of user and item, int64 (N,)."""
    return ratings.users.astype(np.int64) * (version.num_items + 1) + ratings.items
