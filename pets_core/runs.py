"""The folder of one run in the store."""

from __future__ import annotations

import yaml

from pets_core import storage
from pets_core.config import PipelineConfig

__all__ = ["start_run"]


def start_run(config: PipelineConfig, run_id: str) -> str:
    """Make sure the store can be written, and keep the run's settings there.

    Returns:
        URL of the run's folder, `<store>/runs/<run id>`.

    Raises:
        PetsError: The store cannot be written.
    """
    store = storage.absolute(config.store)
    storage.check_writable(store)
    url = storage.join(store, "runs", run_id)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(url, "config.yaml"), text.encode())
    return url
