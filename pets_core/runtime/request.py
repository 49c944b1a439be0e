"""What the ranks of a stage are asked to do, and how they answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsManifest
from pets_core.records.dataset import DatasetManifest
from pets_core.records.inference import BatchPlan

__all__ = [
    "PROGRESS_MARK",
    "REQUEST",
    "WARNING_MARK",
    "CheckResult",
    "RatingsRequest",
    "Request",
    "WorkRequest",
    "read_request",
]

PROGRESS_MARK = "@progress "
"""Rank 0 begins a progress line on its standard output with this."""
WARNING_MARK = "@warning "
"""And a warning with this."""
REQUEST = "request.json"
"""Name of the file that tells ranks, and other machines, what to do."""


class WorkRequest(BaseModel):
    """What the ranks of one stage are asked to do; travels as a JSON file."""

    model_config = ConfigDict(frozen=True)

    stage: Literal["check", "lr-find", "train", "predict", "predict-parts", "embed"]
    config: PipelineConfig
    run_url: str = ""
    manifest: DatasetManifest | None = None
    base_lr: float | None = None
    model_url: str | None = None
    champion_url: str | None = None
    batch: BatchPlan | None = None
    parts: tuple[int, int] | None = None
    """First part, and the one after the last."""

    @property
    def name(self) -> str:
        """Of the stage, told apart from others of its kind in one run."""
        return f"{self.stage}-{self.parts[0]}-{self.parts[1]}" if self.parts else self.stage


class RatingsRequest(BaseModel):
    """What the ranks of one stage are asked to do with ratings."""

    model_config = ConfigDict(frozen=True)

    stage: Literal["ratings-lr-find", "ratings-train", "ratings-predict"]
    config: RatingsConfig
    manifest: RatingsManifest
    run_url: str = ""
    base_lr: float | None = None
    model_url: str | None = None
    champion_url: str | None = None

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage


Request = WorkRequest | RatingsRequest
_ADAPTER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="stage")])


def read_request(data: bytes | str) -> Request:
    """A request from its JSON."""
    return _ADAPTER.validate_json(data)


class CheckResult(BaseModel):
    """What a model will be, found out before any work starts."""

    model_config = ConfigDict(frozen=True)

    num_parameters: int
    device: str
    mixed_precision: str
