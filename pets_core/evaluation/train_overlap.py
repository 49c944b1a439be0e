"""Overlap of evaluated photos with the training photos of a model."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.dataset import read_table
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import Predictions
from pets_core.models.card import read_card
from pets_core.storage.layout import DATASETS, PHOTOS

__all__ = ["trained_on"]


def trained_on(store: str, model_url: str, predictions: Predictions) -> NDArray[np.bool_] | None:
    """Find evaluated photos that are among a model's training photos, by content.

    Versions of a data set with other fractions, another seed or other ids may have the same photo
    in different splits. A photo that is in a training and a held-out split of the model's own
    version is a leak of that version. Ingest reports such leaks, so they are ignored here.

    Args:
        store: Root of data sets and runs, searched for the versions.
        model_url: Folder of the model.
        predictions: Predictions of this or another model.

    Returns:
        Whether the model was trained on each photo, bool (N,). None if unknown: the model or one
        of the two versions is missing.
    """
    try:
        fingerprint = read_card(model_url).dataset_fingerprint
    except PetsError:
        return None
    if fingerprint == predictions.info.dataset_fingerprint:
        return np.zeros(len(predictions), np.bool_)
    training_index = _find_index(store, fingerprint)
    # The store may have moved, or be another one.
    info = predictions.info
    evaluated_index = _find_index(store, info.dataset_fingerprint) or _index_in(info.dataset_url)
    if training_index is None or evaluated_index is None:
        return None
    version = read_table(training_index, ["sha256", "split"])
    photos = read_table(evaluated_index, ["id", "sha256"])
    for_training = pc.equal(version["split"], "train")
    trained, held_out = (
        pc.is_in(photos["sha256"], value_set=version["sha256"].filter(mask).combine_chunks())
        for mask in (for_training, pc.invert(for_training))
    )
    seen = set(photos["id"].filter(pc.and_not(trained, held_out)).to_pylist())
    return np.array([photo in seen for photo in predictions.ids], np.bool_)


def _find_index(store: str, fingerprint: str) -> str | None:
    """Return the URL of the photo index of a version, searched in all data sets."""
    root = storage.join(storage.absolute(store), DATASETS)
    found = (_index_in(storage.join(root, n, fingerprint)) for n in storage.list_folder(root))
    return next((url for url in found if url), None)


def _index_in(version_url: str) -> str | None:
    url = storage.join(version_url, PHOTOS)
    return url if storage.exists(url) else None
