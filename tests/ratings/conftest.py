"""Fixture with ingested ratings."""

from pathlib import Path

import pytest

from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.dataset import ingest_ratings
from pets_core.ratings.records import RatingsManifest


@pytest.fixture(scope="session")
def sample_ratings(tmp_path_factory) -> tuple[RatingsConfig, RatingsManifest]:
    """Settings of a short training, and the built-in sample in a store."""
    folder: Path = tmp_path_factory.mktemp("ratings")
    config = RatingsConfig.model_validate(
        {
            "store": str(folder / "store"),
            "cache_dir": str(folder / "cache"),
            "recommender": {"num_factors": 8},
            "lr_find": {"num_steps": 12},
            "train": {"base_lr": 0.03, "epochs": 3, "batch_size": 512, "weight_decay": 0.3},
        }
    )
    return config, ingest_ratings(config.store, config.cache_dir, config.ratings)
