"""Names of flow runs in the Prefect UI."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.sources import expected_name
from pets_core.ratings.config import RatingsConfig
from pets_core.runtime.run_list import run_name

__all__ = ["flow_run_name", "named_by_data_set"]


def flow_run_name() -> str:
    """Return the name of the current flow run: `run.name`, or data set, model and photo size."""
    given: PipelineConfig | RatingsConfig = flow_run.parameters["config"]
    if isinstance(given, RatingsConfig):
        from pets_core.ratings.dataset import default_name

        dataset = given.ratings.name or default_name(given.ratings)
    else:
        dataset = expected_name(given)
    return run_name(given.model_dump(mode="json"), dataset)


def named_by_data_set(action: str) -> Callable[[], str]:
    """Return a function that names flow runs by their data set and what they do.

    Args:
        action: What the flow does, such as "sweep": "photos · sweep". `run.name` takes precedence.
    """

    def name() -> str:
        given = flow_run.parameters
        config: PipelineConfig = given["config"]
        if url := given.get("source_url"):
            source = config.source.model_copy(update={"url": url, "name": None})
            config = config.model_copy(update={"source": source})
        return config.run.name or f"{given.get('dataset') or expected_name(config)} · {action}"

    return name
