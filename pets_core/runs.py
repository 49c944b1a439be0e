"""The folder of one run in the store."""

from __future__ import annotations

import yaml

from pets_core import storage
from pets_core.config import PipelineConfig

__all__ = ["start_run"]


def start_run(config: PipelineConfig, run_id: str) -> str:
    """Keep a run's settings in the store, once its input has been accepted.

    Returns:
        URL of the run's folder, `<store>/runs/<run id>`.
    """
    url = storage.join(storage.absolute(config.store), "runs", run_id)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(url, "config.yaml"), text.encode())
    return url
