"""The deployments at work: from trigger to first step, many runs in a queue, and for a long time.

    python benchmarks/production.py trigger [--rounds 3]
    python benchmarks/production.py queue [--runs 200]
    python benchmarks/production.py soak [--minutes 30]

One server with the workers of both pools, on this machine, all warm: they have run a pipeline
before anything is measured. Its database is SQLite, or what PREFECT_API_DATABASE_CONNECTION_URL
names: an empty PostgreSQL database, as in production. A small drawn sample and a tiny model, so
that what is told is Prefect's and the processes' share.

trigger: seconds from asking for a training to its first optimizer step (a checkpoint after every
step tells): as a plain function, as a flow run on the pool `cpu`, and as one that has it done by
the pool `gpu`. queue: reviews of the same predictions, on one worker that takes four at a time;
each is to end once. soak: the pipeline again and again, with the memory of server and workers.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import socket
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

    def __init__(self, folder: Path, running: ExitStack) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self._client = (
            folder,
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60),
        )
        self._environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # as deployments/docker/compose.yaml has it
            "PETS_STORE": str(folder / "store"),
            "PETS_SOURCE__URL": str(folder / "sample"),
        }
        write_sample(folder / "sample", photos_per_breed=4)
        start = ["-m", "prefect", "server", "start", "--port", str(port)]
        self.processes = {"server": running.enter_context(self._started(*start))}
        self._until(self._is_up, 120)
        deploy = [sys.executable, "-m", "pets", "deploy", str(FILE)]
        subprocess.run(deploy, env=self._environment, check=True, capture_output=True)
        for pool in ("cpu", "gpu"):
            words = ["-m", "prefect", "worker", "start", "--pool", pool, "--limit", "4"]
            self.processes[f"worker {pool}"] = running.enter_context(self._started(*words))

    @contextmanager
    def _started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "output.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *words], env=self._environment, stdout=log, stderr=log
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
        """Settings of a training of seconds."""
        return {
            "store": str(self.folder / "store"), "cache_dir": str(self.folder / "cache"),
            "source": {"url": str(self.folder / "sample")},
            "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
            "lr_find": {"num_steps": 12},
            "train": {"base_lr": 1e-2, "epochs": 1, "batch_size": 32, "mixed_precision": "no",
                      "checkpoint_steps": 1, "checkpoint_seconds": 0},
        } | settings  # fmt: skip

    def trigger(self, name: str, config: dict[str, Any], **parameters: Any) -> str:
        """Start a run of a deployment; returns its id."""
        deployment = self._client.get(f"/deployments/name/{name}").raise_for_status().json()
        answer = self._client.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={"parameters": {"config": config, **parameters}},
        )
        return str(answer.raise_for_status().json()["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """What the server says of a run."""
        found: dict[str, Any] = self._client.get(f"/flow_runs/{run_id}").raise_for_status().json()
        return found

    def end_of(self, run_id: str) -> str:
        """Wait for a run; returns its last state."""
        self._until(lambda: self.run(run_id)["state_type"] in FINAL, 600)
        return str(self.run(run_id)["state_type"])

    def memory(self) -> dict[str, float]:
        """MiB resident of server and workers, what they started left out."""
        return {
            name: int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / MIB
            for name, process in self.processes.items()
        }

    def _is_up(self) -> bool:
        try:
            return self._client.get("/health").is_success
        except httpx.TransportError:
            return False

    def _until(self, what: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / "output.log").read_text()[-3000:])
            time.sleep(0.2)


def _first_step(run_url: Path, began: float) -> float:
    """Seconds until the first checkpoint was there."""
    while not (found := sorted(run_url.glob("checkpoints/*/checkpoint.json"))):
        time.sleep(0.02)
    return found[0].stat().st_mtime - began


def trigger(pools: Pools, options: argparse.Namespace) -> None:
    """From trigger to first step, each way in turns."""
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for number in range(options.rounds):
        config = PipelineConfig.model_validate(pools.config())
        request = WorkRequest(
            stage="train", config=config, manifest=ingest(config), base_lr=1e-2,
            run_url=str(pools.folder / f"plain-{number}"),
        )  # fmt: skip
        began = time.time()
        launch(request, TrainResult)
        seconds["plain function"].append(_first_step(Path(request.run_url), began))
        ways = {
            "flow run on pool cpu": {},
            "  done by pool gpu": {"launch": {"deployment": "rank-stage/gpu"}},
        }
        for way, settings in ways.items():
            began = time.time()
            run_id = pools.trigger("pets-train/by-hand", pools.config(**settings))
            seconds[way].append(_first_step(pools.folder / "store/runs" / run_id, began))
            pools.end_of(run_id)
    for way, found in seconds.items():
        more = statistics.median(found) - statistics.median(seconds["plain function"])
        print(f"{way:22}  {statistics.median(found):5.1f} s  (+{more:.1f} s)")


def queue(pools: Pools, options: argparse.Namespace) -> None:
    """Many runs at once on a small pool."""
    began = time.monotonic()
    (predictions,) = pools.folder.glob("store/runs/*/evaluation/predictions.parquet")
    ids = [
        pools.trigger("pets-review/by-hand", pools.config(), predictions_url=str(predictions))
        for _ in range(options.runs)
    ]
    print(f"{len(ids)} runs asked for in {time.monotonic() - began:.0f} s", flush=True)
    states = collections.Counter(pools.end_of(run_id) for run_id in ids)
    counts = collections.Counter(pools.run(run_id)["run_count"] for run_id in ids)
    minutes = (time.monotonic() - began) / 60
    print(f"ended: {dict(states)}; started so many times: {dict(counts)}")
    print(f"{minutes:.1f} min, {60 * minutes / len(ids):.1f} s a run; {_said(pools.memory())}")


def soak(pools: Pools, options: argparse.Namespace) -> None:
    """The pipeline again and again."""
    began, states = time.monotonic(), collections.Counter[str]()
    while (minutes := (time.monotonic() - began) / 60) < options.minutes:
        config = pools.config(launch={"deployment": "rank-stage/gpu"})
        states[pools.end_of(pools.trigger("pets-pipeline/retrain", config))] += 1
        print(f"{minutes:5.1f} min  {dict(states)}  {_said(pools.memory())}", flush=True)


def _said(memory: dict[str, float]) -> str:
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in memory.items())


def main() -> None:
    """Start everything, and measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("trigger", "queue", "soak"))
    parser.add_argument("--rounds", type=int, default=3, help="of trigger")
    parser.add_argument("--runs", type=int, default=200, help="of queue")
    parser.add_argument("--minutes", type=float, default=30, help="of soak")
    options = parser.parse_args()
    # Told to end, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name, ExitStack() as running:
        pools = Pools(Path(name), running)
        pools.end_of(pools.trigger("pets-pipeline/retrain", pools.config()))
        print(f"warm: {_said(pools.memory())}", flush=True)
        {"trigger": trigger, "queue": queue, "soak": soak}[options.what](pools, options)


if __name__ == "__main__":
    main()
