"""Overhead of Prefect: the pipeline as a flow, compared with the same stages as functions.

    python benchmarks/overhead.py [--rounds 3]

Uses a small sample and a tiny model, so that the stages are short: compare seconds, not ratios.
Both run alternately, each time in a new process with an empty store; the Prefect server is already
running. In the flow's process, calls of the core are timed, so that the remaining time does not
include the varying start of the ranks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peer

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources.sample.sample import write_sample
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import CheckResult, WorkRequest
from pets_core.targets.evaluate import evaluate


def _small_config(arguments: dict[str, Any]) -> PipelineConfig:
    work = arguments["work"]
    return PipelineConfig.model_validate({
        "store": f"{work}/store", "cache_dir": f"{work}/cache",
        "source": {"url": arguments["sample"]},
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "lr_find": {"num_steps": 12}, "train": {"epochs": 1, "mixed_precision": "no"},
    })  # fmt: skip


def run_plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run every stage as a function."""
    config = _small_config(arguments)
    start = time.perf_counter()
    launch(WorkRequest(stage="check", config=config), CheckResult)
    inputs: dict[str, Any] = {
        "config": config, "run_url": f"{arguments['work']}/run", "manifest": ingest(config)
    }  # fmt: skip
    rate = launch(WorkRequest(stage="lr-find", **inputs), LRSuggestion).chosen
    trained = launch(WorkRequest(stage="train", base_lr=rate, **inputs), TrainResult)
    prediction = WorkRequest(stage="predict", model_url=trained.model_url, **inputs)
    evaluate(config, inputs["run_url"], launch(prediction, PredictResult), training=trained)
    return {"seconds": time.perf_counter() - start}


def run_flow(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the flow and measure the time in functions of the core."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    import tasks.evaluate
    import tasks.ingest
    import tasks.stages
    from flows.pipeline import pipeline

    core_seconds: list[float] = []
    for module, name in (
        (tasks.stages, "launch"), (tasks.ingest, "plan_dataset"),
        (tasks.ingest, "write_shard"), (tasks.ingest, "commit"), (tasks.evaluate, "evaluate"),
    ):  # fmt: skip
        setattr(module, name, _timed(getattr(module, name), core_seconds))
    start = time.perf_counter()
    state = pipeline(_small_config(arguments), return_state=True)
    seconds = time.perf_counter() - start
    flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        num_tasks = len(client.read_task_runs(flow_run_filter=flow_run))
    return {"seconds": seconds, "core": sum(core_seconds), "tasks": num_tasks}


def _timed(function: Callable[..., Any], core_seconds: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            core_seconds.append(time.perf_counter() - start)

    return call


@contextmanager
def _server(work: Path) -> Iterator[None]:
    """Run a Prefect server with a new database; child processes use it."""
    port = peer.free_port()
    url = f"http://127.0.0.1:{port}/api"
    os.environ |= {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(work / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_CONSOLE": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Run both sides alternately and print the difference."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side")
    peer.run(parser, _measure, plain=run_plain, flow=run_flow)


def _measure(options: argparse.Namespace, work: Path) -> None:
    with _server(work):
        _compare(options.rounds, work)


def _compare(rounds: int, work: Path) -> None:
    write_sample(work / "sample", photos_per_breed=4)
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "flow": []}
    for number in range(rounds):
        for side, results in found.items():
            arguments = {"work": str(work / f"{side}-{number}"), "sample": str(work / "sample")}
            results.append(peer.run_side(__file__, side, arguments))
    plain, flow = (statistics.median(r["seconds"] for r in results) for results in found.values())
    core = statistics.median(result["core"] for result in found["flow"])
    rest = statistics.median(result["seconds"] - result["core"] for result in found["flow"])
    num_tasks = found["flow"][0]["tasks"]
    print(
        f"plain functions {plain:.1f} s   flow {flow:.1f} s   difference {flow - plain:+.1f} s, "
        f"including variation of the ranks' start\nflow: {core:.1f} s in functions of the core, "
        f"{rest:.2f} s outside: {1e3 * rest / num_tasks:.0f} ms for each of {num_tasks} tasks"
    )


if __name__ == "__main__":
    main()
