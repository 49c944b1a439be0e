"""A rank that learns to rate as users do, or rates."""

from __future__ import annotations

from typing import Any

import torch

from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import open_ratings
from pets_core.ratings.loader import RatingsLoader
from pets_core.ratings.model import RecommenderCard, TrainedRecommender, create_recommender
from pets_core.ratings.records import RatingsManifest
from pets_core.records.base import Split
from pets_core.runtime.rank import Rank
from pets_core.runtime.request import RatingsRequest
from pets_core.targets.regression.objective import Regression

__all__ = ["RatingsRank"]

_EVAL_BATCH = 65_536


class RatingsRank(Rank[RatingsRequest, TrainedRecommender]):
    """Ratings, held in memory, and a model of them."""

    holds_out = "ratings.valid_fraction"

    @property
    def config(self) -> RatingsConfig:
        """Settings of the run."""
        return self.request.config

    @property
    def manifest(self) -> RatingsManifest:
        """The data set."""
        return self.request.manifest

    @property
    def has_validation(self) -> bool:
        """Whether ratings are held out for validation."""
        return "valid" in self.manifest.splits

    def identity(self) -> dict[str, Any]:
        """Data set and model."""
        settings = self.config.recommender.model_dump(mode="json", exclude={"weight_decays"})
        model = {f"recommender.{name}": value for name, value in settings.items()}
        return {"data set": self.manifest.fingerprint} | model

    def model(self) -> TrainedRecommender:
        """Build the model, on the device."""
        torch.manual_seed(self.config.train.seed)
        built = create_recommender(self._card)
        built.model.to(self.accelerator.device)
        return built

    def objective(self, built: TrainedRecommender) -> Regression:
        """Squared error, within the scale."""
        return Regression(self._card.sigmoid_range)

    def train_loader(self, built: TrainedRecommender) -> RatingsLoader:
        """Shuffled training batches."""
        return self._loader("train", self.config.train.batch_size, self.config.train.seed)

    def valid_loader(self, built: TrainedRecommender) -> RatingsLoader | None:
        """The validation ratings, if there are any."""
        return self.eval_loader("valid") if self.has_validation else None

    def eval_loader(self, split: Split) -> RatingsLoader:
        """The ratings of a split in their own order."""
        return self._loader(split, _EVAL_BATCH, None)

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

    def _loader(self, split: Split, batch_size: int, seed: int | None) -> RatingsLoader:
        return RatingsLoader(
            open_ratings(self.manifest, split),
            batch_size=batch_size,
            seed=seed,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            on_batch=self.watchdog.beat,
        )
