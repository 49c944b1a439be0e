"""Users and items as factors, and what a user's rating of an item is worked out from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import CARD, WEIGHTS
from pets_core.models.grouped import GroupedModel
from pets_core.ratings.config import RecommenderConfig
from pets_core.targets.regression.objective import widened

__all__ = [
    "DotProduct",
    "Neural",
    "Recommender",
    "RecommenderCard",
    "TrainedRecommender",
    "create_recommender",
    "load_recommender",
]

_SPREAD = 0.01


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
        return widened(self.y_range)


class Recommender(GroupedModel):
    """Pairs of indices (B, 2), of a user and an item, to logits (B,).

    An embedding is a look-up: row i of the matrix, which is what the product of the one-hot vector
    of i with the matrix comes to (docs/recommender.md). Index 0, whoever is not known, has factors
    and a bias of 0 and never learns.

    Args:
        card: Sizes and the scale.
    """

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__()
        size = card.config.num_factors
        self.user_factors = _embedding(card.num_users, size, _SPREAD)
        self.item_factors = _embedding(card.num_items, size, _SPREAD)

    def factors(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Of users and items, each (B, num_factors)."""
        return self.user_factors(pairs[:, 0]), self.item_factors(pairs[:, 1])


class DotProduct(Recommender):
    """Mean rating, bias of the user, bias of the item, and the product of their factors."""

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__(card)
        self.user_bias = _embedding(card.num_users, 1, 0.0)
        self.item_bias = _embedding(card.num_items, 1, 0.0)
        low, high = card.sigmoid_range
        share = (card.mean - low) / (high - low)
        # Training starts from the mean, and whoever is not known is told to be average.
        self.bias = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2) to logits (B,)."""
        users, items = self.factors(pairs)
        biases = self.user_bias(pairs[:, 0]) + self.item_bias(pairs[:, 1])
        logits: Tensor = (users * items).sum(1) + biases[:, 0] + self.bias
        return logits

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """All parameters, in one group."""
        return [list(self.parameters())]


class Neural(Recommender):
    """Both factors side by side, through one hidden layer."""

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__(card)
        config = card.config
        self.head = nn.Sequential(
            nn.Linear(2 * config.num_factors, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 1),
        )

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2) to logits (B,)."""
        return self.head(torch.cat(self.factors(pairs), 1))[:, 0]  # type: ignore[no-any-return]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The factors, then the layers."""
        factors = [*self.user_factors.parameters(), *self.item_factors.parameters()]
        return [factors, list(self.head.parameters())]


@dataclass(frozen=True)
class TrainedRecommender:
    """A model of ratings and its card."""

    model: DotProduct | Neural
    card: RecommenderCard


def create_recommender(card: RecommenderCard) -> TrainedRecommender:
    """Build the model that a card tells of, untrained."""
    model = DotProduct(card) if card.config.model == "dot" else Neural(card)
    return TrainedRecommender(model, card)


def load_recommender(url: str) -> TrainedRecommender:
    """Load the folder of a model of ratings.

    Raises:
        PetsError: There is none, or its files are damaged or do not fit each other.
    """
    url = storage.absolute(url)
    if not storage.exists(storage.join(url, CARD)):
        raise PetsError(f"{url} is no model folder: it holds no {CARD}")
    try:
        card = RecommenderCard.model_validate_json(storage.read_bytes(storage.join(url, CARD)))
    except ValueError as error:
        raise PetsError(f"{url}/{CARD} is damaged, or no model of ratings: {error}") from error
    built = create_recommender(card)
    try:
        state = safetensors.torch.load(storage.read_bytes(storage.join(url, WEIGHTS)))
        built.model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise PetsError(f"{url}/{WEIGHTS} is damaged or of another model: {reason}") from error
    built.model.eval().requires_grad_(False)
    return built


def _embedding(count: int, size: int, spread: float) -> nn.Embedding:
    """A table of a row for each index, 0 among them, whose row stays 0."""
    table = nn.Embedding(count + 1, size, padding_idx=0)
    with torch.no_grad():
        nn.init.trunc_normal_(table.weight, a=-2, b=2)
        table.weight *= spread
        table.weight[0] = 0
    return table
