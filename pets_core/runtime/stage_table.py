"""The stages that ranks run: the only place that says what a stage's name means."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel

from pets_core.records.evaluation import PredictResult
from pets_core.records.inference import EmbedResult, PartsResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.request import CheckResult

__all__ = ["STAGES", "Stage"]


class Stage(NamedTuple):
    """One stage.

    Attributes:
        run: What each rank calls, as "module:function" below `pets_core.runtime`; ranks alone
            import it, for it needs torch.
        result: What rank 0 returns.
        trains: Whether it changes weights, so that it needs a training's memory and precision.
        is_training: Whether it is the training itself, which trackers and progress follow.
        is_local: Whether one rank of this machine runs it, whatever the settings say of ranks.
    """

    run: str
    result: type[BaseModel]
    trains: bool = False
    is_training: bool = False
    is_local: bool = False


STAGES = {
    "check": Stage("worker:check", CheckResult, is_local=True),
    "lr-find": Stage("stages:find_lr", LRSuggestion, trains=True),
    "train": Stage("stages:train", TrainResult, trains=True, is_training=True),
    "predict": Stage("photo_stages:predict", PredictResult),
    "predict-parts": Stage("photo_stages:predict_parts", PartsResult),
    "embed": Stage("photo_stages:embed", EmbedResult),
    "ratings-lr-find": Stage("stages:find_lr", LRSuggestion, trains=True),
    "ratings-train": Stage("stages:train", TrainResult, trains=True, is_training=True),
    "ratings-predict": Stage("ratings_stages:predict_ratings", PredictResult),
}
