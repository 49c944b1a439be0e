"""Workers of the work pools, and access to their runs and processes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import processes
from prefect_server import Server

from pets_core.config.pipeline import PipelineConfig

__all__ = ["ENDLESS", "Pools", "small", "worker"]

ENDLESS = {"batch_size": 32, "freeze_epochs": 1, "epochs": 5000, "base_lr": 1e-2,
           "mixed_precision": "no", "checkpoint_steps": 5, "checkpoint_seconds": 0}  # fmt: skip


@contextmanager
def worker(server: Server, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of a pool; its remaining flow runs are killed at the end."""
    with server.running("-m", "prefect", "worker", "start", "--pool", pool) as process:
        try:
            yield process
        finally:
            descendants = processes.descendants(process.pid)
            processes.end(process)
            processes.kill(descendants)


class Pools:
    """Server with this project's deployments and one worker per pool."""

    def __init__(self, server, workers) -> None:
        self._server, self._workers = server, workers

    def trigger(self, name: str, config: dict, **others: str) -> str:
        """Start a run of a deployment with settings and further parameters, and return its id."""
        deployment = self._server.request(f"deployments/name/{name}")
        path = f"deployments/{deployment['id']}/create_flow_run"
        return self._server.request(path, {"parameters": {"config": config, **others}})["id"]

    def run(self, run_id: str) -> dict:
        return self._server.request(f"flow_runs/{run_id}")

    def ended(self, run_id: str) -> dict | None:
        run = self.run(run_id)
        done = run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return run if done else None

    def stages(self, run_id: str) -> list[dict]:
        """Return the flow runs of the stages of a run, in the order of their requests."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
        return self._server.request(
            "flow_runs/filter", wanted | {"sort": "EXPECTED_START_TIME_ASC"}
        )

    def launchers(self, pool: str, run_id: str = "") -> list[int]:
        """Return the rank launchers below the worker of a pool.

        Args:
            pool: Name of the pool.
            run_id: Only count launchers of this flow run.
        """
        agents = processes.agents(self._workers[pool].pid)
        if run_id:
            agents = [a for a in agents if processes.flow_run(processes.parent(a)) == run_id]
        return [child for agent in agents for child in processes.children(agent)]

    def engine(self, pool: str) -> int:
        """Return the flow process that the worker of a pool started."""
        (agent,) = processes.agents(self._workers[pool].pid)
        return processes.parent(agent)


def small(config: PipelineConfig, **settings) -> dict:
    """Return settings of a training that takes seconds, in the pool `gpu`."""
    own = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "lr_find": {"num_steps": 12},
        "train": {
            "batch_size": 32,
            "freeze_epochs": 1,
            "epochs": 1,
            "mixed_precision": "no",
            "checkpoint_steps": 5,
            "checkpoint_seconds": 0,
        },
        "launch": {"deployment": "rank-stage/gpu", "num_threads": 1},
    }
    return config.model_dump(mode="json", exclude_defaults=True) | own | settings
