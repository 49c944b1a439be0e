"""Which of the photos that a model is judged on it was trained on."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import read_table
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import Predictions
from pets_core.models.card import read_card

__all__ = ["trained_on"]


def trained_on(store: str, model_url: str, judged: Predictions) -> NDArray[np.bool_] | None:
    """Tell the photos judged that are among a model's training photos, by their content.

    A version never has a photo on both sides; another version, with other fractions, another seed
    or other ids, may have moved it.

    Args:
        store: Root of data sets and runs, where the version the model was trained on is looked for.
        model_url: The model.
        judged: Predictions of it or of another model.

    Returns:
        (N,), or None where it cannot be told: the model, or one of both versions, is gone.
    """
    try:
        fingerprint = read_card(model_url).dataset_fingerprint
    except PetsError:
        return None
    if fingerprint == judged.info.dataset_fingerprint:
        return np.zeros(len(judged), np.bool_)
    learnt, own = _find_index(store, fingerprint), _index_in(judged.info.dataset_url)
    if learnt is None or own is None:
        return None
    trained = read_table(learnt, ["sha256", "split"])
    trained = trained.filter(pc.equal(trained["split"], "train"))
    photos = read_table(own, ["id", "sha256"])
    again = pc.is_in(photos["sha256"], value_set=trained["sha256"].combine_chunks())
    seen = set(photos["id"].filter(again).to_pylist())
    return np.array([photo in seen for photo in judged.ids], np.bool_)


def _find_index(store: str, fingerprint: str) -> str | None:
    """The index of the version with a fingerprint, whatever data set it is of."""
    root = storage.join(storage.absolute(store), "datasets")
    found = (_index_in(storage.join(root, n, fingerprint)) for n in storage.list_folder(root))
    return next((url for url in found if url), None)


def _index_in(version_url: str) -> str | None:
    url = storage.join(version_url, "photos.parquet")
    return url if storage.exists(url) else None
