"""What a user may like and has not rated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.dataset import load_ratings_manifest, open_ratings, read_vocabulary
from pets_core.ratings.model import load_recommender
from pets_core.targets.regression.objective import Regression

__all__ = ["Recommendation", "recommend"]


class Recommendation(NamedTuple):
    """An item and the rating that a user is expected to give it.

    Attributes:
        item: Its id.
        title: Its title.
        rating: In ratings' units, held within the scale.
        num_ratings: Training ratings of the item.
    """

    item: str
    title: str
    rating: float
    num_ratings: int


def recommend(
    model_url: str, user: str | None, count: int, min_ratings: int = 5
) -> list[Recommendation]:
    """The items of the highest expected ratings, among those the user has not rated.

    Args:
        model_url: Folder of a model of ratings, whose data set is still in its store.
        user: Id; None: somebody who is not known, for whom items' biases alone decide.
        count: Most items.
        min_ratings: Items with fewer training ratings are left out, for little is known of them.

    Raises:
        PetsError: There is no such model, its data set is gone, the user is not known, or there is
            nothing to recommend.
    """
    built = load_recommender(model_url)
    manifest = load_ratings_manifest(built.card.dataset_url)
    names = read_vocabulary(manifest)
    index = _index(names.users, user)
    scores = _scores(built.model, Regression(built.card.sigmoid_range), index, len(names.items))
    scores = scores.clip(*built.card.y_range)
    wanted = names.num_ratings_by_item >= max(min_ratings, 1)
    for split in manifest.splits if index else ():
        ratings = open_ratings(manifest, split)
        wanted[ratings.items[ratings.users == index]] = False
    if not wanted.any():
        raise PetsError(
            f"--min-ratings {min_ratings}: no item that the user has not rated has as many "
            "training ratings: lower it"
        )
    order = np.flatnonzero(wanted)
    order = order[np.argsort(-scores[order], kind="stable")][:count]
    return [
        Recommendation(
            names.items[i], names.titles[i], float(scores[i]), int(names.num_ratings_by_item[i])
        )
        for i in order.tolist()
    ]


@torch.no_grad()
def _scores(model: torch.nn.Module, objective: Regression, user: int, num_items: int) -> np.ndarray:
    """Expected ratings of all items by index, (num_items,)."""
    items = torch.arange(num_items)
    pairs = torch.stack([torch.full_like(items, user), items], 1)
    return objective.activation(model(pairs)).numpy()


def _index(users: list[str], user: str | None) -> int:
    if user is None:
        return 0
    try:
        return users.index(user, 1)
    except ValueError:
        raise PetsError(
            f"--user {user}: no user of this id has training ratings ({len(users) - 1} have)."
            f"{did_you_mean(user, users[1:])} Leave --user out for what anybody may like"
        ) from None
