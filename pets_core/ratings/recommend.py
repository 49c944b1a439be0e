"""Recommendations of items that a user has not rated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.dataset import load_ratings, load_ratings_manifest, read_vocabulary
from pets_core.ratings.model import load_recommender
from pets_core.targets.regression.objective import Regression

__all__ = ["Recommendation", "Recommender"]

_MAX_COMPARED = 10_000


class Recommendation(NamedTuple):
    """A recommended item and its predicted rating.

    Attributes:
        item: Id of the item.
        title: Title of the item.
        rating: Predicted rating, clipped to the scale.
        num_ratings: Number of training ratings of the item.
    """

    item: str
    title: str
    rating: float
    num_ratings: int


class Recommender:
    """An opened rating model. Its data set must be in the store that it was trained from.

    Args:
        url: Folder of the model.

    Raises:
        PetsError: The model or its data set is missing or damaged.
    """

    def __init__(self, url: str) -> None:
        built = load_recommender(url)
        self.card, self._model = built.card, built.model
        self._objective = Regression(built.card.sigmoid_range)
        manifest = load_ratings_manifest(built.card.dataset_url)
        self._names = read_vocabulary(manifest)
        self._users = {name: index for index, name in enumerate(self._names.users) if index}
        self._rated = [load_ratings(manifest, split) for split in manifest.splits]

    def recommend(self, user: str | None, count: int, min_ratings: int = 5) -> list[Recommendation]:
        """Return the items with the highest predicted ratings that the user has not rated.

        Args:
            user: User id. None: an unknown user, ranked by the items alone.
            count: Maximum number of items.
            min_ratings: Minimum training ratings of an item, to exclude uncertain predictions.

        Raises:
            PetsError: The user is unknown, or no item remains.
        """
        names = self._names
        index = 0 if user is None else self._find_user(user)
        is_candidate = names.num_ratings_by_item >= max(min_ratings, 1)
        for ratings in self._rated if index else ():
            is_candidate[ratings.items[ratings.users == index]] = False
        if not is_candidate.any():
            raise PetsError(
                f"min-ratings {min_ratings}: no item unrated by the user has as many training "
                "ratings: lower it"
            )
        scores = _scores(self._model, self._objective, index, len(names.items))
        scores = scores.clip(*self.card.y_range)
        order = np.flatnonzero(is_candidate)
        order = order[np.argsort(-scores[order], kind="stable")][:count]
        return [
            Recommendation(
                names.items[i], names.titles[i], float(scores[i]), int(names.num_ratings_by_item[i])
            )
            for i in order.tolist()
        ]

    def _find_user(self, user: str) -> int:
        if user in self._users:
            return self._users[user]
        # Comparing an id with hundreds of thousands takes seconds.
        hint = did_you_mean(user, self._users) if len(self._users) <= _MAX_COMPARED else ""
        raise PetsError(
            f"user {user}: no user of this id has training ratings ({len(self._users)} have)."
            f"{hint} Omit the user for general recommendations"
        )


@torch.no_grad()
def _scores(model: torch.nn.Module, objective: Regression, user: int, num_items: int) -> np.ndarray:
    """Return the predicted ratings of all items by index, (num_items,)."""
    items = torch.arange(num_items)
    pairs = torch.stack([torch.full_like(items, user), items], 1)
    return objective.activation(model(pairs)).numpy()
