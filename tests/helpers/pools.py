"""This project's deployments on a server, with the workers of their pools."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import processes
from prefect_server import Server

from pets_core.config.pipeline import PipelineConfig

__all__ = ["ENDLESS", "Pools", "small", "worker"]

ENDLESS = {"batch_size": 32, "epochs": 5000, "base_lr": 1e-2, "mixed_precision": "no",
           "checkpoint_steps": 5, "checkpoint_seconds": 0}  # fmt: skip


@contextmanager
def worker(server: Server, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a pool; flow runs that it would leave behind end with it."""
    with server.running("-m", "prefect", "worker", "start", "--pool", pool) as process:
        try:
            yield process
        finally:
            left = processes.below(process.pid)
            processes.end(process)
            processes.kill(left)


class Pools:
    """A server with this project's deployments, and a worker for each pool."""

    def __init__(self, server, workers) -> None:
        self._server, self._workers = server, workers

    def trigger(self, name: str, config: dict, **others: str) -> str:
        """Start a run of a deployment with other settings, and more parameters; returns its id."""
        deployment = self._server.ask(f"deployments/name/{name}")
        path = f"deployments/{deployment['id']}/create_flow_run"
        return self._server.ask(path, {"parameters": {"config": config, **others}})["id"]

    def run(self, run_id: str) -> dict:
        return self._server.ask(f"flow_runs/{run_id}")

    def ended(self, run_id: str) -> dict | None:
        run = self.run(run_id)
        done = run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return run if done else None

    def stages(self, run_id: str) -> list[dict]:
        """The flow runs that did stages of a run, in the order in which they were asked for."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
        return self._server.ask("flow_runs/filter", wanted | {"sort": "EXPECTED_START_TIME_ASC"})

    def launchers(self, pool: str, run_id: str = "") -> list[int]:
        """The launchers of ranks below the worker of a pool.

        Args:
            pool: Name of the pool.
            run_id: Of a flow run that starts ranks; those of others do not count.
        """
        agents = processes.agents(self._workers[pool].pid)
        if run_id:
            agents = [a for a in agents if processes.flow_run(processes.parent(a)) == run_id]
        return [child for agent in agents for child in processes.children(agent)]

    def engine(self, pool: str) -> int:
        """The flow process that the worker of a pool has started."""
        (agent,) = processes.agents(self._workers[pool].pid)
        return processes.parent(agent)


def small(config: PipelineConfig, **settings) -> dict:
    """Settings of a training of seconds, done by the pool `gpu`."""
    own = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "lr_find": {"num_steps": 12},
        "train": {
            "batch_size": 32,
            "epochs": 1,
            "mixed_precision": "no",
            "checkpoint_steps": 5,
            "checkpoint_seconds": 0,
        },
        "launch": {"deployment": "rank-stage/gpu", "num_threads": 1},
    }
    return config.model_dump(mode="json", exclude_defaults=True) | own | settings
