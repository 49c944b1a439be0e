"""Requests to the ranks of a stage, and the prefixes of their output lines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsManifest, RatingsRun
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.inference import BatchPlan

__all__ = [
    "PROGRESS_PREFIX",
    "REQUEST_FILE",
    "WARNING_PREFIX",
    "CheckResult",
    "RatingsRequest",
    "Request",
    "WorkRequest",
    "make_request",
    "parse_request",
]

PROGRESS_PREFIX = "@progress "
"""Prefix of the progress lines that rank 0 writes to standard output."""
WARNING_PREFIX = "@warning "
"""Prefix of the warnings that ranks write to standard output."""
REQUEST_FILE = "request.json"
"""Name of the file with the request, for the ranks and for other machines."""


class WorkRequest(BaseModel):
    """Request to run one stage with photos; passed as a JSON file."""

    model_config = ConfigDict(frozen=True)

    stage: Literal["check", "lr-find", "train", "predict", "predict-parts", "embed"]
    config: PipelineConfig
    run_url: str = ""
    manifest: DatasetManifest | None = None
    base_lr: float | None = None
    model_url: str | None = None
    champion_url: str | None = None
    probe_url: str | None = None
    is_evaluated: bool = True
    """Whether the run evaluates the trained model, and so needs its baselines."""
    batch: BatchPlan | None = None
    parts: tuple[int, int] | None = None
    """Number of the first part, and of the last plus 1."""

    @property
    def name(self) -> str:
        """Name of the stage, unique within the run."""
        return f"{self.stage}-{self.parts[0]}-{self.parts[1]}" if self.parts else self.stage


class RatingsRequest(BaseModel):
    """Request to run one stage with ratings; passed as a JSON file."""

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
        """Name of the stage, unique within the run."""
        return self.stage


Request = WorkRequest | RatingsRequest
_ADAPTER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="stage")])


def make_request(
    stage: Literal["lr-find", "train", "predict"],
    config: PipelineConfig | RatingsConfig,
    run: Run | RatingsRun,
    *,
    base_lr: float | None = None,
    model_url: str | None = None,
    champion_url: str | None = None,
    probe_url: str | None = None,
    is_evaluated: bool = True,
) -> Request:
    """Return the request for a stage of a run with photos or ratings.

    Args:
        stage: The stage.
        config: Settings.
        run: The run, of photos or of ratings as the settings are.
        base_lr: Peak learning rate of a training.
        model_url: Model to predict with.
        champion_url: Champion to predict with, too.
        probe_url: Linear probe to predict with, too; photos only.
        is_evaluated: Whether the run evaluates the trained model; photos only.
    """
    common: dict[str, Any] = {
        "config": config, "run_url": run.url, "manifest": run.manifest, "base_lr": base_lr,
        "model_url": model_url, "champion_url": champion_url,
    }  # fmt: skip
    if isinstance(config, RatingsConfig):
        return RatingsRequest.model_validate({"stage": f"ratings-{stage}", **common})
    return WorkRequest(stage=stage, probe_url=probe_url, is_evaluated=is_evaluated, **common)


def parse_request(data: bytes | str) -> Request:
    """Parse a request from its JSON."""
    return _ADAPTER.validate_json(data)


class CheckResult(BaseModel):
    """Result of the check stage, which builds the model before any other work starts."""

    model_config = ConfigDict(frozen=True)

    num_parameters: int
    device: str
    mixed_precision: str
