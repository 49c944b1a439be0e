"""Schedules start runs; with fastapi or SQLAlchemy unpinned, they silently do not."""

import pytest

pytestmark = pytest.mark.slow

SERVE = """
import sys
from flows.ingest import ingest_flow
from pets_core.config.pipeline import PipelineConfig
config = PipelineConfig.model_validate_json(sys.argv[1])
# An interval shorter than a run, and one run at a time, suffice to show that runs start.
ingest_flow.serve("often", interval=15, limit=1, parameters={"config": config})
"""


def test_interval_schedule_starts_runs(server, small_config, tmp_path) -> None:
    def completed() -> object:
        wanted = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        return server.request("flow_runs/filter", wanted)

    settings = small_config.model_dump_json(exclude_defaults=True)
    with server.running("-c", SERVE, settings):
        run = server.wait_for(completed)[0]
    assert run["auto_scheduled"] is True
    assert len(list((tmp_path / "store" / "datasets").rglob("manifest.json"))) == 1
