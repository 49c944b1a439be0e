"""Names of flow runs in the Prefect UI."""

from __future__ import annotations

from prefect.runtime import flow_run

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.sources import expected_name
from pets_core.ratings.config import RatingsConfig
from pets_core.runtime.run_list import run_name

__all__ = ["flow_run_name", "sweep_run_name"]


def sweep_run_name() -> str:
    """Return the name of the current sweep: `run.name`, or the data set."""
    config: PipelineConfig = flow_run.parameters["config"]
    return config.run.name or f"{expected_name(config)} · sweep"


def flow_run_name() -> str:
    """Return the name of the current flow run: `run.name`, or data set, model and photo size."""
    given: PipelineConfig | RatingsConfig = flow_run.parameters["config"]
    if isinstance(given, RatingsConfig):
        from pets_core.ratings.dataset import default_name

        dataset = given.ratings.name or default_name(given.ratings)
    else:
        dataset = expected_name(given)
    return run_name(given.model_dump(mode="json"), dataset)
