"""The photos of a data set that are most like another photo."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.ingest.images import decode
from pets_core.data.sources.formats import UnreadablePhotoError, refuse_raw
from pets_core.embeddings.file import EmbeddingsInfo, open_embeddings, unit
from pets_core.embeddings.search import nearest
from pets_core.errors import PetsError
from pets_core.models.card import ModelCard, read_card, weights_sha256

__all__ = ["Neighbour", "similar_photos"]


class Neighbour(NamedTuple):
    """A photo of the data set, and the cosine of its embedding with that of the one asked for."""

    id: str
    split: str
    class_name: str
    similarity: float


def similar_photos(photo: str, embeddings_url: str, count: int) -> list[Neighbour]:
    """Find the photos nearest to one, by the model that made the embeddings of all of them.

    Args:
        photo: Path or URL, of any format Pillow reads.
        embeddings_url: File of embeddings, or the folder of the run that wrote it.
        count: How many to find.

    Returns:
        The nearest first.

    Raises:
        PetsError: The file or the photo cannot be read, or the model is gone or another one.
    """
    with open_embeddings(embeddings_url) as file:
        pixels = _read(photo, _card(file.info, embeddings_url))
        places, similarity = nearest(file, _embed(file.info.model_url, pixels), count)
        rows = file.photos().take(places).to_pylist()
    return [
        Neighbour(**row, similarity=s) for row, s in zip(rows, similarity.tolist(), strict=True)
    ]


def _card(info: EmbeddingsInfo, embeddings_url: str) -> ModelCard:
    """The card of the model that made a file, which must still be that one."""
    try:
        card, weights = read_card(info.model_url), weights_sha256(info.model_url)
    except PetsError as error:
        raise PetsError(
            f"{embeddings_url}: the model that made it is gone: {error}. Run `pets embed` with "
            "another"
        ) from error
    if (card.num_features, weights) != (info.num_features, info.model_sha256):
        differs = (
            "other weights"
            if card.num_features == info.num_features
            else f"{card.num_features} features in place of {info.num_features}"
        )
        raise PetsError(
            f"{embeddings_url}: at {info.model_url} now lies another model, of {differs}: run "
            "`pets embed` again"
        )
    return card


def _read(photo: str, card: ModelCard) -> NDArray[np.uint8]:
    """One photo, uint8 (1, R, R, 3)."""
    try:
        refuse_raw(photo)
        return np.stack([decode(storage.read_bytes(storage.absolute(photo)), card.resize_to)])
    except UnreadablePhotoError as error:
        raise PetsError(f"{photo}: {error.reason.replace('_', ' ')}: {error.detail}") from error


def _embed(model_url: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Its embedding, of length 1, (D,)."""
    import torch

    from pets_core.models.package import load_model

    built = load_model(model_url)
    with torch.inference_mode():
        features = built.model.embed(built.card.center_crop()(torch.from_numpy(pixels)))
    vector: NDArray[np.float32] = unit(features.numpy())[0]
    return vector
