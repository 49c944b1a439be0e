"""Rating models: embeddings of users and items, and a dot product or hidden layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import WEIGHTS
from pets_core.models.grouped import GroupedModel
from pets_core.ratings.card import RecommenderCard, read_recommender_card

__all__ = [
    "DotProduct",
    "Neural",
    "Recommender",
    "TrainedRecommender",
    "create_recommender",
    "load_recommender",
]

_INIT_STD = 0.01


class Recommender(GroupedModel):
    """Base of models from pairs of user and item indices (B, 2) to logits (B,).

    An embedding is a look-up of row i of a matrix, equal to the product of a one-hot vector with
    the matrix (docs/recommender.md). Index 0, an unknown user or item, has factors and a bias of 0,
    which are not trained.

    Args:
        card: Sizes and the rating scale.
    """

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__()
        size = card.config.num_factors
        self.user_factors = _embedding(card.num_users, size, _INIT_STD)
        self.item_factors = _embedding(card.num_items, size, _INIT_STD)

    def factors(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of users and of items, (B, num_factors) each."""
        return self.user_factors(pairs[:, 0]), self.item_factors(pairs[:, 1])


class DotProduct(Recommender):
    """Mean rating plus user bias, item bias and the dot product of their factors."""

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__(card)
        self.user_bias = _embedding(card.num_users, 1, 0.0)
        self.item_bias = _embedding(card.num_items, 1, 0.0)
        low, high = card.sigmoid_range
        share = (card.mean - low) / (high - low)
        # Training starts at the mean, which is also the prediction of an unknown pair.
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
    """Concatenated factors through one hidden layer."""

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
    """A rating model and its card."""

    model: DotProduct | Neural
    card: RecommenderCard


def create_recommender(card: RecommenderCard) -> TrainedRecommender:
    """Build the untrained model of a card."""
    model = DotProduct(card) if card.config.model == "dot" else Neural(card)
    return TrainedRecommender(model, card)


def load_recommender(url: str) -> TrainedRecommender:
    """Load a rating model from its folder.

    Raises:
        PetsError: There is no model, or its files are damaged or inconsistent.
    """
    url = storage.absolute(url)
    built = create_recommender(read_recommender_card(url))
    try:
        state = safetensors.torch.load(storage.read_bytes(storage.join(url, WEIGHTS)))
        built.model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise PetsError(
            f"{url}/{WEIGHTS} is damaged or belongs to another model: {reason}"
        ) from error
    built.model.eval().requires_grad_(False)
    return built


def _embedding(count: int, size: int, std: float) -> nn.Embedding:
    """Return an embedding of `count` + 1 rows; row 0 is 0 and is not trained."""
    table = nn.Embedding(count + 1, size, padding_idx=0)
    with torch.no_grad():
        nn.init.trunc_normal_(table.weight, a=-2, b=2)
        table.weight *= std
        table.weight[0] = 0
    return table
