"""Rating models: embeddings of users and items, and a dot product or hidden layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import WEIGHTS, explain_damaged_weights
from pets_core.models.grouped import GroupedModel
from pets_core.ratings.baselines import Biases
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
    """Base class of models of ratings: maps user and item indices (B, 2) to logits (B,).

    logit = global bias + user bias + item bias + `interaction(user factors, item factors)`. The
    global bias starts at the logit of the mean rating and is trained.

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
        self.user_bias = _embedding(card.num_users, 1, 0.0)
        self.item_bias = _embedding(card.num_items, 1, 0.0)
        low, high = card.sigmoid_range
        share = (card.mean - low) / (high - low)
        # Training starts at the mean, which is also the prediction of an unknown pair.
        self.bias = nn.Parameter(torch.tensor([math.log(share / (1 - share))]))
        self._slope = (high - low) * share * (1 - share)

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2) to logits (B,)."""
        users, items = pairs[:, 0], pairs[:, 1]
        biases = self.user_bias(users) + self.item_bias(items)
        interaction = self.interaction(self.user_factors(users), self.item_factors(items))
        logits: Tensor = interaction + biases[:, 0] + self.bias
        return logits

    def interaction(self, users: Tensor, items: Tensor) -> Tensor:
        """Return the part of the logits that depends on the pair, (B,).

        Args:
            users: Factors of the users, (B, num_factors).
            items: Factors of the items, (B, num_factors).
        """
        raise NotImplementedError

    @torch.no_grad()
    def set_biases(self, biases: Biases) -> None:
        """Set the biases of users and items to fitted ones, in place.

        Biases of ratings become logits by the slope of the sigmoid at the mean rating.
        """
        for table, values in ((self.user_bias, biases.users), (self.item_bias, biases.items)):
            table.weight.copy_(torch.from_numpy(values / self._slope)[:, None])


class DotProduct(Recommender):
    """Biases plus the dot product of the factors (Koren, Bell and Volinsky, 2009)."""

    def interaction(self, users: Tensor, items: Tensor) -> Tensor:
        """Dot products, (B,)."""
        return (users * items).sum(1)


class Neural(Recommender):
    """`DotProduct` plus a hidden layer over the factors of user and item.

    Neural matrix factorisation (He et al., 2017, arXiv:1708.05031), but the dot product and the
    layer share the factors, and the output layer starts at zero. A hidden layer alone does not
    learn dot products (Rendle et al., 2020, arXiv:2005.09683).
    """

    def __init__(self, card: RecommenderCard) -> None:
        super().__init__(card)
        config = card.config
        output = nn.Linear(config.hidden, 1, bias=False)
        # Training starts from the biases, as that of the dot product.
        nn.init.zeros_(output.weight)
        self.head = nn.Sequential(
            nn.Linear(2 * config.num_factors, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            output,
        )

    def interaction(self, users: Tensor, items: Tensor) -> Tensor:
        """Dot products plus outputs of the hidden layer, (B,)."""
        hidden: Tensor = self.head(torch.cat([users, items], 1))[:, 0]
        return (users * items).sum(1) + hidden

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Factors and biases, then the layers."""
        head = list(self.head.parameters())
        in_head = {id(parameter) for parameter in head}
        return [[p for p in self.parameters() if id(p) not in in_head], head]


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
    with explain_damaged_weights(url):
        state = safetensors.torch.load(storage.read_bytes(storage.join(url, WEIGHTS)))
        if "head.0.weight" in state and "item_bias.weight" not in state:
            raise PetsError(
                f"{url} was trained by an earlier version, whose neural model had no biases: "
                "train it again"
            )
        built.model.load_state_dict(state)
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
