"""Agent whose rank 1 cannot read the champion."""

import os
from collections.abc import Callable
from typing import Any

from pets_core.errors import PetsError
from pets_core.runtime import photo_stages, ratings_stages
from pets_core.runtime.agent import run_stage

__all__ = ["run_stage"]


def failing_on_rank_1(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def load_or_fail(url: str) -> Any:
        if url.endswith("/champion") and os.environ["RANK"] == "1":
            raise PetsError("the store is unavailable")
        return load(url)

    return load_or_fail


photo_stages.load_model = failing_on_rank_1(photo_stages.load_model)
ratings_stages.load_recommender = failing_on_rank_1(ratings_stages.load_recommender)
