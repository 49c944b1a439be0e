"""Metadata of a model of ratings; read without torch."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import CARD
from pets_core.ratings.config import RecommenderConfig

__all__ = ["RecommenderCard", "read_recommender_card"]


class RecommenderCard(BaseModel):
    """All that is needed to rebuild a model of ratings, besides its weights.

    Attributes:
        config: Model, factors, hidden units.
        num_users: Known users, whose indices are 1 to `num_users`; 0 is any other.
        num_items: Known items, likewise.
        y_range: Least and greatest rating of the scale.
        mean: Of the training ratings.
        dataset_url: Folder of the data set's version it was trained on.
        dataset_fingerprint: Its fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    objective: Literal["regression"] = "regression"
    config: RecommenderConfig
    num_users: int
    num_items: int
    y_range: tuple[float, float]
    mean: float
    dataset_url: str
    dataset_fingerprint: str

    @property
    def sigmoid_range(self) -> tuple[float, float]:
        """The range predictions are held within."""
        from pets_core.targets.regression.objective import widen_range

        return widen_range(self.y_range)


def read_recommender_card(url: str) -> RecommenderCard:
    """Read the card of the model of ratings in folder `url`.

    Raises:
        PetsError: There is no model, its card is damaged, or it is no model of ratings.
    """
    url = storage.absolute(url)
    if not storage.exists(storage.join(url, CARD)):
        raise PetsError(f"{url} is not a model folder: it holds no {CARD}")
    try:
        return RecommenderCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}/{CARD} is damaged, or no model of ratings: {error}") from error
