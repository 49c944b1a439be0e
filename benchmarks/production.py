"""Deployments under load: time from trigger to first step, many queued runs, and a soak test.

    python benchmarks/production.py trigger [--rounds 3]
    python benchmarks/production.py queue [--runs 200]
    python benchmarks/production.py soak [--minutes 30]

Runs one server and the workers of both pools on this machine, warmed up by one pipeline run. The
database is SQLite, or the one that PREFECT_API_DATABASE_CONNECTION_URL names: use an empty
PostgreSQL database, as in production. The sample is small and generated and the model tiny, so that
Prefect and the start of processes dominate.

trigger: seconds from the start of a training to its first optimizer step (there is a checkpoint
after each step), as a plain function, as a flow run on the pool `cpu`, and as a flow run whose
stages run on the pool `gpu`. queue: many evaluations of the same predictions on one worker with a
limit of four; each must run and end once. soak: the pipeline repeatedly, with the memory of server
and workers.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import peer

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources.sample.sample import write_sample
from pets_core.records.training import TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

FILE = Path(__file__).parents[1] / "deployments/prefect.yaml"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
MIB = 1 << 20


class Pools:
    """A server with this project's deployments, and a worker for each pool."""

    def __init__(self, folder: Path, exit_stack: ExitStack) -> None:
        port = peer.free_port()
        self.folder, self._client = (
            folder,
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60),
        )
        self._environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # as in deployments/docker/compose.yaml
            "PETS_STORE": str(folder / "store"),
            "PETS_SOURCE__URL": str(folder / "sample"),
        }
        write_sample(folder / "sample", photos_per_breed=4)
        server = ["-m", "prefect", "server", "start", "--port", str(port)]
        self.processes = {"server": exit_stack.enter_context(self._start(*server))}
        self._wait_until(self._is_up, 120)
        deploy = [sys.executable, "-m", "pets", "deploy", str(FILE)]
        subprocess.run(deploy, env=self._environment, check=True, capture_output=True)
        for pool in ("cpu", "gpu"):
            arguments = ["-m", "prefect", "worker", "start", "--pool", pool, "--limit", "4"]
            self.processes[f"worker {pool}"] = exit_stack.enter_context(self._start(*arguments))

    @contextmanager
    def _start(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "output.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self._environment, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def config(self, **settings: Any) -> dict[str, Any]:
        """Return the settings of a training that takes seconds."""
        return {
            "store": str(self.folder / "store"), "cache_dir": str(self.folder / "cache"),
            "source": {"url": str(self.folder / "sample")},
            "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
            "lr_find": {"num_steps": 12},
            "train": {"base_lr": 1e-2, "epochs": 1, "batch_size": 32, "mixed_precision": "no",
                      "checkpoint_steps": 1, "checkpoint_seconds": 0},
        } | settings  # fmt: skip

    def trigger(self, name: str, config: dict[str, Any], **parameters: Any) -> str:
        """Create a run of a deployment and return its id."""
        deployment = self._client.get(f"/deployments/name/{name}").raise_for_status().json()
        response = self._client.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={"parameters": {"config": config, **parameters}},
        )
        return str(response.raise_for_status().json()["id"])

    def read_run(self, run_id: str) -> dict[str, Any]:
        """Return a flow run as the server describes it."""
        found: dict[str, Any] = self._client.get(f"/flow_runs/{run_id}").raise_for_status().json()
        return found

    def wait_for_end(self, run_id: str) -> str:
        """Wait until a run ends and return its final state."""
        self._wait_until(lambda: self.read_run(run_id)["state_type"] in FINAL, 600)
        return str(self.read_run(run_id)["state_type"])

    def memory(self) -> dict[str, float]:
        """Return the resident MiB of server and workers, without their child processes."""
        return {
            name: int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / MIB
            for name, process in self.processes.items()
        }

    def _is_up(self) -> bool:
        try:
            return self._client.get("/health").is_success
        except httpx.TransportError:
            return False

    def _wait_until(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / "output.log").read_text()[-3000:])
            time.sleep(0.2)


def _first_step(run_url: Path, start: float) -> float:
    """Wait for the first checkpoint and return the seconds since `start`."""
    while not (found := sorted(run_url.glob("checkpoints/*/checkpoint.json"))):
        time.sleep(0.02)
    return found[0].stat().st_mtime - start


def trigger(pools: Pools, options: argparse.Namespace) -> None:
    """Print the seconds from trigger to first step, measured alternately."""
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for number in range(options.rounds):
        config = PipelineConfig.model_validate(pools.config())
        request = WorkRequest(
            stage="train", config=config, manifest=ingest(config), base_lr=1e-2,
            run_url=str(pools.folder / f"plain-{number}"),
        )  # fmt: skip
        start = time.time()
        launch(request, TrainResult)
        seconds["plain function"].append(_first_step(Path(request.run_url), start))
        ways = {
            "flow run on pool cpu": {},
            "  stages on pool gpu": {"launch": {"deployment": "rank-stage/gpu"}},
        }
        for way, settings in ways.items():
            start = time.time()
            run_id = pools.trigger("pets-train/by-hand", pools.config(**settings))
            seconds[way].append(_first_step(pools.folder / "store/runs" / run_id, start))
            pools.wait_for_end(run_id)
    for way, found in seconds.items():
        difference = statistics.median(found) - statistics.median(seconds["plain function"])
        print(f"{way:22}  {statistics.median(found):5.1f} s  (+{difference:.1f} s)")


def queue(pools: Pools, options: argparse.Namespace) -> None:
    """Create many runs at once and print their states and duration."""
    start = time.monotonic()
    (predictions,) = pools.folder.glob("store/runs/*/evaluation/predictions.parquet")
    ids = [
        pools.trigger(
            "pets-evaluate-predictions/by-hand", pools.config(), predictions_url=str(predictions)
        )
        for _ in range(options.runs)
    ]
    print(f"{len(ids)} runs created in {time.monotonic() - start:.0f} s", flush=True)
    states = collections.Counter(pools.wait_for_end(run_id) for run_id in ids)
    counts = collections.Counter(pools.read_run(run_id)["run_count"] for run_id in ids)
    minutes = (time.monotonic() - start) / 60
    print(f"final states: {dict(states)}; runs by number of starts: {dict(counts)}")
    seconds_per_run = 60 * minutes / len(ids)
    print(f"{minutes:.1f} min, {seconds_per_run:.1f} s per run; {_format_memory(pools.memory())}")


def soak(pools: Pools, options: argparse.Namespace) -> None:
    """Run the pipeline repeatedly and print states and memory."""
    start, states = time.monotonic(), collections.Counter[str]()
    while (minutes := (time.monotonic() - start) / 60) < options.minutes:
        config = pools.config(launch={"deployment": "rank-stage/gpu"})
        states[pools.wait_for_end(pools.trigger("pets-pipeline/retrain", config))] += 1
        print(f"{minutes:5.1f} min  {dict(states)}  {_format_memory(pools.memory())}", flush=True)


def _format_memory(memory: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in memory.items())


def main() -> None:
    """Start server and workers, and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("benchmark", choices=("trigger", "queue", "soak"))
    parser.add_argument("--rounds", type=int, default=3, help="trigger: rounds")
    parser.add_argument("--runs", type=int, default=200, help="queue: runs")
    parser.add_argument("--minutes", type=float, default=30, help="soak: minutes")
    options = parser.parse_args()
    # On SIGTERM, exit normally so that server and workers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name, ExitStack() as exit_stack:
        pools = Pools(Path(name), exit_stack)
        pools.wait_for_end(pools.trigger("pets-pipeline/retrain", pools.config()))
        print(f"after warm-up: {_format_memory(pools.memory())}", flush=True)
        {"trigger": trigger, "queue": queue, "soak": soak}[options.benchmark](pools, options)


if __name__ == "__main__":
    main()
