"""Card of a rating model; read without torch."""

from __future__ import annotations

import json
from typing import Literal

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import CARD
from pets_core.ratings.config import RecommenderConfig
from pets_core.records.base import Record, parse_record

__all__ = ["RecommenderCard", "is_recommender", "read_recommender_card"]


class RecommenderCard(Record):
    """Everything that rebuilds a rating model, except its weights.

    Attributes:
        config: Type of model, factors, hidden units.
        num_users: Known users, with indices 1 to `num_users`; 0 is an unknown user.
        num_items: Known items, with indices 1 to `num_items`; 0 is an unknown item.
        y_range: Lowest and highest rating of the scale.
        mean: Mean of the training ratings.
        dataset_url: Folder of the data set version that the model was trained on.
        dataset_fingerprint: Fingerprint of that version.
    """

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
        """Range of the sigmoid over predictions, slightly wider than the scale."""
        from pets_core.targets.regression.objective import widen_range

        return widen_range(self.y_range)


def read_recommender_card(url: str) -> RecommenderCard:
    """Read the card of the rating model in folder `url`.

    Raises:
        PetsError: There is no model, its card is damaged, or it is not a rating model.
    """
    url = storage.absolute(url)
    path = storage.join(url, CARD)
    if not storage.exists(path):
        raise PetsError(f"{url} is not a model folder: it holds no {CARD}")
    problem = f"{url}/{CARD} is damaged or not of a rating model"
    return parse_record(RecommenderCard, storage.read_bytes(path), problem)


def is_recommender(url: str) -> bool:
    """Return whether folder `url` holds a rating model, of any version."""
    path = storage.join(storage.absolute(url), CARD)
    if not storage.exists(path):
        return False
    try:
        card = json.loads(storage.read_bytes(path))
    except ValueError:
        return False
    return isinstance(card, dict) and "num_users" in card
