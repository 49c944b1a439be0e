"""Table of the stages that ranks run, by name."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel

from pets_core.records.inference import EmbedResult, PartsResult, PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.request import CheckResult

__all__ = ["STAGES", "Stage"]


class Stage(NamedTuple):
    """A stage that ranks run.

    Attributes:
        run: Function that each rank calls, as "module:function" in `pets_core.runtime`. Only ranks
            import it, because it needs torch.
        result: Type of the record that rank 0 returns.
        trains: Whether the stage changes weights and needs the memory and precision of training.
        is_training: Whether the stage is the training that trackers and live progress show.
        is_local: Whether a single rank on this machine runs the stage, whatever `launch` is.
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
