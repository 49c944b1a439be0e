"""Stages on one GPU, run by the launcher; GPU memory is freed when the caller ends."""

import json
import signal
import subprocess
import sys
import time

import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

pytestmark = pytest.mark.gpu

SLACK_MIB, SECONDS = 200, 25
CALLER = """
import sys
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.launcher import launch
from pets_core.records.training import TrainResult
request = WorkRequest.model_validate_json(open(sys.argv[1]).read())
launch(request, TrainResult, on_progress=lambda progress: print(progress.done, flush=True))
"""


@pytest.fixture
def config(parts, tmp_path) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"sample_photos_per_breed": 8 if parts.on_gpu else 4},
            "model": {"backbone": parts.backbone, "weights": "none", "image_size": parts.size},
            "train": {
                "freeze_epochs": 1,
                "epochs": 1,
                "batch_size": 32,
                "checkpoint_steps": 5,
                "checkpoint_seconds": 0,
            },
            "lr_find": {"num_steps": 12},
            "launch": {"require_gpu": parts.on_gpu},
        }
    )


def used_mib() -> int:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    )


def test_every_stage_runs_on_the_gpu(parts, config, tmp_path):
    arguments = {"config": config, "run_url": str(tmp_path / "run"), "manifest": ingest(config)}
    launch(WorkRequest(stage="lr-find", **arguments), LRSuggestion)
    trained = launch(WorkRequest(stage="train", base_lr=1e-3, **arguments), TrainResult)
    assert (trained.device != "cpu") == parts.on_gpu
    predicted = launch(
        WorkRequest(stage="predict", model_url=trained.model_url, **arguments), PredictResult
    )
    assert predicted.photos_per_second > 0


@pytest.mark.usefixtures("gpu_only")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_gpu_memory_is_freed_when_the_caller_ends(config, tmp_path, signum):
    train = config.train.model_copy(update={"epochs": 500})
    request = WorkRequest(
        stage="train", config=config.model_copy(update={"train": train}),
        run_url=str(tmp_path / "run"), manifest=ingest(config), base_lr=1e-4,
    )  # fmt: skip
    path, before = tmp_path / "request.json", used_mib()
    path.write_text(request.model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        for line in caller.stdout:
            if int(line) > 20:
                break
        caller.send_signal(signum)
        deadline = time.monotonic() + SECONDS
        while used_mib() > before + SLACK_MIB and time.monotonic() < deadline:
            time.sleep(0.2)
        assert used_mib() <= before + SLACK_MIB, "a process that still runs uses the GPU"
    finally:
        caller.kill()
        caller.wait()
    checkpoints = sorted((tmp_path / "run/checkpoints").iterdir())
    assert json.loads((checkpoints[-1] / "checkpoint.json").read_text())["step"] > 0
