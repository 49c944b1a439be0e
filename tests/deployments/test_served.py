"""Trainings of a served deployment: killed, cancelled and queued for their machine."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import processes
import pytest
import yaml

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.records.training import TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

ROOT = Path(__file__).parents[2]
SERVE = """
from flows.train import train_flow
train_flow.serve("by-hand")
"""


@pytest.fixture
def config(small_config) -> PipelineConfig:
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 32},
        "train": {
            "batch_size": 8, "freeze_epochs": 1, "epochs": 20, "base_lr": 1e-2,
            "mixed_precision": "no", "checkpoint_steps": 5, "checkpoint_seconds": 0,
        },
        "launch": {"num_threads": 1},
    }  # fmt: skip
    return PipelineConfig.model_validate(small_config.model_dump(exclude_defaults=True) | settings)


class Served:
    """Train flow that a separate process serves."""

    def __init__(self, server, process: subprocess.Popen[bytes]) -> None:
        self._server, self._process = server, process

        def deployed() -> object:
            return server.request("deployments/filter", {})

        self._deployment = server.wait_for(deployed)[0]["id"]

    def trigger(self, config: PipelineConfig) -> str:
        """Start a flow run and return its id."""
        parameters = {"config": config.model_dump(mode="json", exclude_defaults=True)}
        path = f"deployments/{self._deployment}/create_flow_run"
        return self._server.request(path, {"parameters": parameters})["id"]

    def processes(self) -> list[int]:
        """Return the flow process of the only running training, and all processes below it."""
        agent = processes.parent(processes.launcher(self._process.pid))
        engine = processes.parent(agent)
        return [engine, *processes.descendants(engine)]


@pytest.fixture
def served(server) -> Iterator[Served]:
    with server.running("-c", SERVE) as process:
        yield Served(server, process)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*/checkpoint.json"))


def run_in_state(server, run_id: str, wanted: str) -> object:
    run = server.request(f"flow_runs/{run_id}")
    return run["state_type"] == wanted and run


def messages(server, run_id: str) -> list[str]:
    """Return the log messages of a run."""
    logs = server.request("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
    return [log["message"] for log in logs]


def endless(config: PipelineConfig) -> PipelineConfig:
    train = {"freeze_epochs": 1, "epochs": 5000, "checkpoint_steps": 1_000_000}
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


@pytest.mark.nightly
def test_killed_flow_run_resumes_under_its_own_id(server, served, config, tmp_path) -> None:
    manifest = ingest(config)
    automations = yaml.safe_load((ROOT / "deployments/automations.yaml").read_text())
    own = [a for a in automations["automations"] if a["name"] == "pets-retry-crashed"]
    file = tmp_path / "automations.yaml"
    file.write_text(yaml.safe_dump({"automations": own}))
    server.run("-m", "prefect", "automation", "create", "--from-file", file)
    run_id = served.trigger(config)
    folder = tmp_path / "store/runs" / run_id
    server.wait_for(partial(checkpoints, folder))
    engine, *below = served.processes()
    os.kill(engine, signal.SIGKILL)
    assert not (folder / "model/model.json").exists(), "training ended too early"
    ended = server.wait_for(partial(run_in_state, server, run_id, "COMPLETED"))
    assert ended["run_count"] == 2
    assert processes.wait_for_exit(below)
    assert any("Resuming training from" in message for message in messages(server, run_id))
    request = WorkRequest(
        stage="train", config=config, run_url=str(tmp_path / "whole"), manifest=manifest,
        base_lr=1e-2,
    )  # fmt: skip
    whole = Path(launch(request, TrainResult).model_url) / "model.safetensors"
    assert (folder / "model/model.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_cancelled_flow_run_leaves_a_checkpoint_and_no_process(
    server, served, config, tmp_path
) -> None:
    run_id = served.trigger(endless(config))
    folder = tmp_path / "store/runs" / run_id
    server.wait_for(partial(checkpoints, folder))
    started = served.processes()
    assert len(started) >= 3, "a flow process, a fork server and a rank"
    server.request(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    server.wait_for(partial(run_in_state, server, run_id, "CANCELLED"))
    assert processes.wait_for_exit(started)
    (step,) = re.findall(r"stopped after step (\d+)", "\n".join(messages(server, run_id)))
    assert checkpoints(folder)[-1].parent.name == f"step-{int(step):09}"


@pytest.mark.nightly
def test_trainings_queue_for_their_machine_and_a_killed_one_frees_its_slot(
    server, served, config, tmp_path
) -> None:
    server.run("-m", "prefect", "gcl", "create", f"pets-ranks@{platform.node()}", "--limit", "1")
    ingest(config)
    holder = served.trigger(endless(config))
    server.wait_for(partial(checkpoints, tmp_path / "store/runs" / holder))
    waiting = served.trigger(config)

    def is_waiting() -> bool:
        return any("waiting for a slot" in message for message in messages(server, waiting))

    server.wait_for(is_waiting)
    time.sleep(10)
    assert not checkpoints(tmp_path / "store/runs" / waiting), "it waits for the slot"
    assert run_in_state(server, waiting, "RUNNING")
    engine, *below = served.processes()
    os.kill(engine, signal.SIGKILL)
    server.wait_for(partial(run_in_state, server, waiting, "COMPLETED"))
    assert processes.wait_for_exit(below)
