"""A flow run that dies with its process is picked up again and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pets_core.config import PipelineConfig
from pets_core.data.ingest import ingest
from pets_core.launch import WorkRequest, launch
from pets_core.records import TrainResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from flows.train import train_flow
from pets_core.config import PipelineConfig
config = PipelineConfig.model_validate_json(sys.argv[1])
train_flow.serve("by-hand", parameters={"config": config})
"""


@pytest.fixture
def config(small_config) -> PipelineConfig:
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 32},
        "train": {
            "batch_size": 8, "epochs": 20, "base_lr": 1e-2, "mixed_precision": "no",
            "checkpoint_steps": 5,
        },
        "launch": {"num_threads": 1},
    }  # fmt: skip
    return PipelineConfig.model_validate(small_config.model_dump(exclude_defaults=True) | settings)


def child(pid: int, word: str) -> int | None:
    """The descendant of a process whose command line holds a word, if there is one."""
    for children in Path("/proc").glob(f"{pid}/task/*/children"):
        for found in map(int, children.read_text().split()):
            line = Path(f"/proc/{found}/cmdline").read_bytes().decode()
            if word in line:
                return found
            if deeper := child(found, word):
                return deeper
    return None


def test_a_killed_flow_run_goes_on_under_its_own_id(server, config, tmp_path) -> None:
    manifest = ingest(config)
    command = ["-m", "prefect", "automation", "create", "--from-file"]
    subprocess.run(
        [sys.executable, *command, str(ROOT / "deployments/automations.yaml")],
        env=server.environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with server.running("-c", SERVE, config.model_dump_json(exclude_defaults=True)) as serving:

        def deployed() -> object:
            return server.ask("deployments/filter", {})

        deployment = server.wait_for(deployed, 60)[0]
        run = server.ask(f"deployments/{deployment['id']}/create_flow_run", {})
        folder = tmp_path / "store/runs" / run["id"]

        def a_checkpoint() -> object:
            return list(folder.glob("checkpoints/*/checkpoint.json"))

        server.wait_for(a_checkpoint, 180)
        worker = child(serving.pid, "pets_core.worker")
        launcher = child(serving.pid, "pets_core.elastic")
        engine = int(Path(f"/proc/{launcher}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(engine, signal.SIGKILL)
        assert not (folder / "model/model.json").exists(), "else it was over"

        def completed() -> object:
            found = server.ask(f"flow_runs/{run['id']}")
            return found["state_type"] == "COMPLETED" and found

        ended = server.wait_for(completed, 240)
    assert ended["run_count"] == 2
    assert not Path(f"/proc/{worker}").exists()
    logs = server.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert any("training goes on from" in log["message"] for log in logs)
    request = WorkRequest(
        stage="train", config=config, run_url=str(tmp_path / "whole"), manifest=manifest,
        base_lr=1e-2,
    )  # fmt: skip
    whole = Path(launch(request, TrainResult).model_url) / "model.safetensors"
    assert (folder / "model/model.safetensors").read_bytes() == whole.read_bytes()
