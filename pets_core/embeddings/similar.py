"""Search for the photos of a data set that are most similar to another photo."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pets_core import storage
from pets_core.data.ingest.images import decode
from pets_core.data.sources.formats import UnreadablePhotoError, refuse_raw
from pets_core.embeddings.file import EmbeddingsInfo, normalize, open_embeddings
from pets_core.embeddings.search import nearest
from pets_core.errors import PetsError
from pets_core.models.card import ModelCard, read_card, weights_sha256

__all__ = ["Neighbour", "find_similar_photos"]


class Neighbour(NamedTuple):
    """A photo of the data set, and its cosine similarity to the query photo."""

    id: str
    split: str
    target_text: str
    similarity: float


def find_similar_photos(photo: str, embeddings_url: str, count: int) -> list[Neighbour]:
    """Find the photos most similar to a query photo.

    Args:
        photo: Path or URL of the query, in any format that Pillow reads.
        embeddings_url: Embeddings file, or the folder of the run that wrote it.
        count: Number of photos to find.

    Returns:
        The photos, most similar first.

    Raises:
        PetsError: The file or the photo cannot be read, or the model that computed the embeddings
            is missing or has been replaced.
    """
    with open_embeddings(embeddings_url) as file:
        pixels = _read_photo(photo, _check_model(file.info, embeddings_url))
        rows, similarity = nearest(file, _embed(file.info.model_url, pixels), count)
        photos = file.photos().take(rows).to_pylist()
    return [
        Neighbour(**photo, similarity=s)
        for photo, s in zip(photos, similarity.tolist(), strict=True)
    ]


def _check_model(info: EmbeddingsInfo, embeddings_url: str) -> ModelCard:
    """Return the card of the model that computed an embeddings file, and check the model."""
    try:
        card, weights = read_card(info.model_url), weights_sha256(info.model_url)
    except PetsError as error:
        raise PetsError(
            f"{embeddings_url}: the model that computed it cannot be read: {error}. Run "
            "`pets embed` with another model"
        ) from error
    if (card.num_features, weights) != (info.num_features, info.model_sha256):
        differs = (
            "other weights"
            if card.num_features == info.num_features
            else f"{card.num_features} features instead of {info.num_features}"
        )
        raise PetsError(
            f"{embeddings_url}: {info.model_url} is now another model, with {differs}: run "
            "`pets embed` again"
        )
    return card


def _read_photo(photo: str, card: ModelCard) -> NDArray[np.uint8]:
    """Read a photo, uint8 (1, R, R, 3)."""
    try:
        refuse_raw(photo)
        data = storage.read_bytes(storage.absolute(photo))
        return np.stack([decode(data, card.resize_to, card.resize)])
    except UnreadablePhotoError as error:
        raise PetsError(f"{photo}: {error.text}") from error


def _embed(model_url: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the unit-length embedding of a photo, (D,)."""
    import torch

    from pets_core.models.package import load_model

    built = load_model(model_url)
    with torch.inference_mode():
        features = built.model.embed(built.card.center_crop()(torch.from_numpy(pixels)))
    vector: NDArray[np.float32] = normalize(features.numpy())[0]
    return vector
