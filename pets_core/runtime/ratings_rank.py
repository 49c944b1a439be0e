"""Ranks that train or apply a model of ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pets_core.data.loading.batches import RowLoader
from pets_core.ratings.baselines import fit_biases
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import Ratings, load_ratings
from pets_core.ratings.loader import ratings_loader
from pets_core.ratings.model import TrainedRecommender, create_recommender
from pets_core.ratings.records import RatingsManifest
from pets_core.runtime.rank import Rank
from pets_core.runtime.request import RatingsRequest
from pets_core.targets.regression.objective import Regression

__all__ = ["RatingsRank"]

_EVAL_BATCH = 65_536
_ITEM_DAMPING, _USER_DAMPING = 30.0, 45.0
"""Damping of the biases that training starts from: three times that of the baseline, because
factors learn a part of them (chosen by the validation error on three data sets)."""


class RatingsRank(Rank[RatingsRequest, TrainedRecommender]):
    """A rank with ratings in memory and a model of them."""

    validation_setting = "ratings.valid_fraction"

    def __init__(self, request: RatingsRequest, failures: Path | None = None) -> None:
        has_validation = "valid" in request.manifest.splits
        config = request.config.resolve_auto(has_validation=has_validation)
        super().__init__(request.model_copy(update={"config": config}), failures)

    @property
    def config(self) -> RatingsConfig:
        """Settings of the run."""
        return self.request.config

    @property
    def manifest(self) -> RatingsManifest:
        """Data set of the request."""
        return self.request.manifest

    def resume_key(self) -> dict[str, Any]:
        """Return data set and model."""
        settings = self.config.recommender.model_dump(mode="json", exclude={"weight_decays"})
        model = {f"recommender.{name}": value for name, value in settings.items()}
        # Version 1 had other biases: its checkpoints hold other weights and moments.
        return {"data set": self.manifest.fingerprint, "recommender version": 2} | model

    def model(self) -> TrainedRecommender:
        """Build the model to train, on the device. Its biases start from damped ones."""
        torch.manual_seed(self.config.train.seed)
        built = create_recommender(self._card)
        manifest = self.manifest
        ratings = load_ratings(manifest, "train")
        built.model.set_biases(
            fit_biases(
                ratings,
                manifest.num_users,
                manifest.num_items,
                item_damping=_ITEM_DAMPING,
                user_damping=_USER_DAMPING,
            )
        )
        built.model.to(self.accelerator.device)
        return built

    def objective(self, built: TrainedRecommender) -> Regression:
        """Return the squared error, with predictions limited to the rating scale."""
        return Regression(built.card.sigmoid_range)

    def train_loader(self, built: TrainedRecommender) -> RowLoader:
        """Return the shuffled training batches."""
        ratings, train = load_ratings(self.manifest, "train"), self.config.train
        return self._loader(ratings, train.batch_size, train.seed)

    def valid_loader(self, built: TrainedRecommender) -> RowLoader | None:
        """Return the validation batches, or None if there are none."""
        if not self.has_validation:
            return None
        return self.eval_loader(load_ratings(self.manifest, "valid"))

    def eval_loader(self, ratings: Ratings) -> RowLoader:
        """Return batches of ratings in stored order."""
        return self._loader(ratings, _EVAL_BATCH)

    @property
    def _card(self) -> RecommenderCard:
        manifest = self.manifest
        return RecommenderCard(
            config=self.config.recommender,
            num_users=manifest.num_users,
            num_items=manifest.num_items,
            y_range=manifest.y_range,
            mean=manifest.mean,
            dataset_url=manifest.url,
            dataset_fingerprint=manifest.fingerprint,
        )

    def _loader(self, ratings: Ratings, batch_size: int, seed: int | None = None) -> RowLoader:
        sampler = self.sampler(len(ratings.ratings), batch_size, seed)
        return ratings_loader(ratings, sampler, self.accelerator.device, self.watchdog.beat)
