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

    Another version of a data set, with other fractions, another seed or other ids, may have moved a
    photo to the other side. A photo that has an exact copy on the other side of the version it was
    trained on is a leak of that version, which the ingest tells of, and does not count here.

    Args:
        store: Root of data sets and runs, where the versions are looked for.
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
    learnt = _find_index(store, fingerprint)
    # The store may have moved since, or be another one.
    own = _find_index(store, judged.info.dataset_fingerprint) or _index_in(judged.info.dataset_url)
    if learnt is None or own is None:
        return None
    version, photos = read_table(learnt, ["sha256", "split"]), read_table(own, ["id", "sha256"])
    for_training = pc.equal(version["split"], "train")
    trained, held_out = (
        pc.is_in(photos["sha256"], value_set=version["sha256"].filter(mask).combine_chunks())
        for mask in (for_training, pc.invert(for_training))
    )
    seen = set(photos["id"].filter(pc.and_not(trained, held_out)).to_pylist())
    return np.array([photo in seen for photo in judged.ids], np.bool_)


def _find_index(store: str, fingerprint: str) -> str | None:
    """The index of the version with a fingerprint, whatever data set it is of."""
    root = storage.join(storage.absolute(store), "datasets")
    found = (_index_in(storage.join(root, n, fingerprint)) for n in storage.list_folder(root))
    return next((url for url in found if url), None)


def _index_in(version_url: str) -> str | None:
    url = storage.join(version_url, "photos.parquet")
    return url if storage.exists(url) else None
