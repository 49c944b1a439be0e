"""Processes killed at any moment: the resumed training ends with identical weights."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.progress import Progress
from pets_core.records.training import TrainResult
from pets_core.runtime.failures import WorkerError
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

LAUNCH = """
import sys
from pathlib import Path
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.launcher import launch
from pets_core.records.training import TrainResult
request = WorkRequest.model_validate_json(Path(sys.argv[1]).read_text())
print("done", launch(request, TrainResult, on_progress=lambda p: print(p.stage, flush=True)))
"""


def training(
    config: PipelineConfig, run_url: Path, *, ranks: int = 2, dropout: float = 0.5, **train
) -> WorkRequest:
    """Return a request for a training of a few hundred quick steps."""
    settings = {
        "model": {
            "backbone": "test_efficientnet", "weights": "none", "image_size": 32,
            "dropout": dropout,
        },
        "train": {
            "batch_size": 16, "freeze_epochs": 1, "epochs": 24, "mixed_precision": "no",
            "checkpoint_steps": 3, "checkpoint_seconds": 0, "ema_decay": 0.9,
        } | train,
        "launch": {"num_processes": ranks, "num_threads": 1},
    }  # fmt: skip
    config = PipelineConfig.model_validate(config.model_dump(exclude_defaults=True) | settings)
    return WorkRequest(
        stage="train", config=config, run_url=str(run_url), manifest=ingest(config), base_lr=1e-2
    )


def attempt(request: WorkRequest, path: Path, victim: str, delay: float) -> bool:
    """Train in a subprocess and kill `victim` `delay` seconds after the start of the training.

    Returns:
        Whether the training completed before.
    """
    path.write_text(request.model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        first = next((line for line in caller.stdout if line.startswith(("train", "done"))), "")
        assert first, "training has started or is complete"
        threading.Thread(target=caller.stdout.read, daemon=True).start()
        time.sleep(delay)
        everyone = processes.descendants(caller.pid)
        if len(everyone) == 5:
            launcher = processes.launcher(caller.pid)
            target = {"caller": caller.pid, "launcher": launcher, "terminated": launcher}
            pid = target.get(victim) or processes.ranks(caller.pid)[-1]
            os.kill(pid, signal.SIGTERM if victim == "terminated" else signal.SIGKILL)
        caller.wait(timeout=600)
        assert processes.wait_for_exit(everyone), "no process is left"
        return caller.returncode == 0
    finally:
        caller.kill()


@pytest.fixture(scope="module")
def seed() -> int:
    """A new seed for each run, printed if the test fails."""
    return random.SystemRandom().randrange(10_000)


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("rank", marks=pytest.mark.slow),
        pytest.param("launcher", marks=pytest.mark.nightly),
        pytest.param("caller", marks=pytest.mark.nightly),
        pytest.param("terminated", marks=pytest.mark.nightly),
    ],
)
def test_training_killed_at_any_moment_resumes_exactly(
    small_config, tmp_path, victim, seed
) -> None:
    request = training(small_config, tmp_path / "whole")
    expected = launch(request, TrainResult)
    generator = random.Random(seed)
    interrupted = training(small_config, tmp_path / "killed")
    kills = 0
    while not attempt(interrupted, tmp_path / "request.json", victim, generator.uniform(0, 3)):
        kills += 1
        assert kills < 20, f"training does not complete (seed {seed})"
    assert kills, f"nothing was killed (seed {seed})"
    for name in ("model", "best"):
        file = f"{name}/model.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    timings = ["samples_per_second", "data_seconds"]
    history = pq.read_table(tmp_path / "killed/history.parquet").to_pandas()
    assert history.drop(columns=timings).equals(
        pq.read_table(expected.history_url).to_pandas().drop(columns=timings)
    )


@pytest.mark.slow
def test_hanging_rank_is_ended_and_the_stacks_are_reported(small_config, tmp_path) -> None:
    """SIGSTOP also stops the watchdog of the rank itself; the waiting rank reports its stack."""
    request = training(small_config, tmp_path / "run", epochs=5000)
    launch_settings = request.config.launch.model_copy(update={"stall_timeout_seconds": 3.0})
    request = request.model_copy(
        update={"config": request.config.model_copy(update={"launch": launch_settings})}
    )
    stopped: list[int] = []

    def stop_rank_1(progress: Progress) -> None:
        if progress.stage == "train" and not stopped:
            stopped.append(processes.ranks(os.getpid())[-1])
            os.kill(stopped[0], signal.SIGSTOP)

    with pytest.raises(WorkerError, match=r"launch\.stall_timeout_seconds = 3") as error:
        launch(request, TrainResult, on_progress=stop_rank_1)
    assert "rank 0:\nthread MainThread" in str(error.value)
    assert "in fit\n" in str(error.value)
    assert processes.wait_for_exit(stopped)


@pytest.mark.slow
def test_training_resumes_with_another_number_of_ranks(small_config, tmp_path) -> None:
    """From the middle of an epoch; equal to training on one rank up to summation order."""
    request = training(small_config, tmp_path / "whole", ranks=1, dropout=0)
    expected = pq.read_table(launch(request, TrainResult).history_url).to_pandas()
    first = training(small_config, tmp_path / "changed", ranks=2, dropout=0)
    terminated = []

    def terminate_launcher(progress: Progress) -> None:
        if progress.stage == "train" and not terminated:
            terminated.append(processes.launcher(os.getpid()))
            os.kill(terminated[0], signal.SIGTERM)

    with pytest.raises(WorkerError):
        launch(first, TrainResult, on_progress=terminate_launcher)
    checkpoint = max((tmp_path / "changed/checkpoints").iterdir()).name
    step = int(checkpoint.removeprefix("step-"))
    assert 0 < step < len(expected)
    second = training(small_config, tmp_path / "changed", ranks=1, dropout=0)
    history = pq.read_table(launch(second, TrainResult).history_url).to_pandas()
    assert history.step.tolist() == expected.step.tolist()
    assert history.momentum.tolist() == expected.momentum.tolist()
    assert history.loss.to_numpy() == pytest.approx(expected.loss.to_numpy(), rel=1e-2)
