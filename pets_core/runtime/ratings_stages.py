"""What ranks do with ratings besides finding a rate and training: predict."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import torch

from pets_core import storage
from pets_core.data.dataset import write_table
from pets_core.evaluation.predict import in_row_order
from pets_core.ratings.dataset import open_ratings, read_vocabulary
from pets_core.ratings.model import load_recommender
from pets_core.ratings.records import RatingsPrediction
from pets_core.records.base import Split
from pets_core.runtime.ratings_rank import RatingsRank

__all__ = ["predict_ratings"]


@torch.no_grad()
def predict_ratings(rank: RatingsRank) -> RatingsPrediction | None:
    """Have a stored model say how the held-out ratings will be: test, where there are any."""
    request, manifest = rank.request, rank.manifest
    assert request.model_url is not None
    split: Split = "test" if "test" in manifest.splits else "valid"
    built = load_recommender(request.model_url)
    built.model.to(rank.accelerator.device)
    objective, loader, began = rank.objective(built), rank.eval_loader(split), time.monotonic()
    rows, given = [], []
    with rank.watchdog:
        for batch in loader.epoch(0):
            rows.append(batch.rows)
            given.append(objective.activation(built.model(batch.inputs)).cpu().numpy())
    own = np.concatenate(given)[:, None]
    together = in_row_order(np.concatenate(rows), [own], loader.num_rows)
    speed = loader.num_rows / (time.monotonic() - began)
    if together is None:
        return None
    (predicted,) = together
    url = storage.join(request.run_url, "evaluation", "predictions.parquet")
    write_table(url, _table(rank, split, predicted[:, 0].clip(*manifest.y_range)))
    return RatingsPrediction(
        model_url=storage.absolute(request.model_url),
        split=split,
        predictions_url=url,
        ratings_per_second=speed,
    )


def _table(rank: RatingsRank, split: Split, predicted: np.ndarray) -> pa.Table:
    ratings, names = open_ratings(rank.manifest, split), read_vocabulary(rank.manifest)
    return pa.table(
        {
            "user": _ids(ratings.users, names.users),
            "item": _ids(ratings.items, names.items),
            "rating": ratings.ratings,
            "predicted": predicted.astype(np.float32),
        }
    )


def _ids(indices: np.ndarray, names: list[str]) -> pa.Array:
    """Ids by index, null for those that are not known."""
    known = pa.array(indices, mask=indices == 0)
    return pa.DictionaryArray.from_arrays(known, pa.array(names, pa.string()))
