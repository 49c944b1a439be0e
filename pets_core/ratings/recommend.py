"""Recommendations of items that a user has not rated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.dataset import load_ratings, load_ratings_manifest, read_vocabulary
from pets_core.ratings.model import load_recommender
from pets_core.targets.regression.objective import Regression

__all__ = ["Recommendation", "recommend"]


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


def recommend(
    model_url: str, user: str | None, count: int, min_ratings: int = 5
) -> list[Recommendation]:
    """Return the items with the highest predicted ratings that the user has not rated.

    Args:
        model_url: Folder of a rating model, whose data set is in its store.
        user: User id. None: an unknown user, ranked by the items alone.
        count: Maximum number of items.
        min_ratings: Minimum training ratings of an item, to exclude uncertain predictions.

    Raises:
        PetsError: The model or its data set is missing, the user is unknown, or no item remains.
    """
    built = load_recommender(model_url)
    manifest = load_ratings_manifest(built.card.dataset_url)
    names = read_vocabulary(manifest)
    index = _user_index(names.users, user)
    scores = _scores(built.model, Regression(built.card.sigmoid_range), index, len(names.items))
    scores = scores.clip(*built.card.y_range)
    is_candidate = names.num_ratings_by_item >= max(min_ratings, 1)
    for split in manifest.splits if index else ():
        ratings = load_ratings(manifest, split)
        is_candidate[ratings.items[ratings.users == index]] = False
    if not is_candidate.any():
        raise PetsError(
            f"--min-ratings {min_ratings}: no item unrated by the user has as many training "
            "ratings: lower it"
        )
    order = np.flatnonzero(is_candidate)
    order = order[np.argsort(-scores[order], kind="stable")][:count]
    return [
        Recommendation(
            names.items[i], names.titles[i], float(scores[i]), int(names.num_ratings_by_item[i])
        )
        for i in order.tolist()
    ]


@torch.no_grad()
def _scores(model: torch.nn.Module, objective: Regression, user: int, num_items: int) -> np.ndarray:
    """Return the predicted ratings of all items by index, (num_items,)."""
    items = torch.arange(num_items)
    pairs = torch.stack([torch.full_like(items, user), items], 1)
    return objective.activation(model(pairs)).numpy()


def _user_index(users: list[str], user: str | None) -> int:
    if user is None:
        return 0
    try:
        return users.index(user, 1)
    except ValueError:
        raise PetsError(
            f"--user {user}: no user of this id has training ratings ({len(users) - 1} have)."
            f"{did_you_mean(user, users[1:])} Remove --user for general recommendations"
        ) from None
