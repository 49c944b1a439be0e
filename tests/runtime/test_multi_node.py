"""Training on two machines: two launchers with one rendezvous."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ports import free_port

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import read_predictions
from pets_core.records.training import TrainResult
from pets_core.runtime import multi_node
from pets_core.runtime.failures import RankFailure, WorkerError
from pets_core.runtime.launcher import launch, publish_request, requests_folder
from pets_core.runtime.multi_node import join
from pets_core.runtime.request import WorkRequest
from pets_core.targets.classes.target import CLASSES

LAUNCH = """
import sys
from pathlib import Path
from pets_core.runtime.failures import WorkerError
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.launcher import launch
from pets_core.records.inference import PredictResult
from pets_core.records.training import TrainResult
record = {"train": TrainResult, "predict": PredictResult}
for path in sys.argv[1:]:
    request = WorkRequest.model_validate_json(Path(path).read_text())
    print(launch(request, record[request.stage]).model_dump_json(), flush=True)
"""


@pytest.fixture
def hosts() -> Iterator[tuple[list[str], list[str], str]]:
    """Command prefixes for the two machines, and the address of the first.

    Two connected network namespaces, or loopback if the system does not allow them.
    """
    names = [f"pets-{os.getpid()}-{number}" for number in (0, 1)]
    script = """
    set -e
    ip netns add $0
    ip netns add $1
    ip link add cable netns $0 type veth peer name cable netns $1
    ip -n $0 addr add 10.77.0.1/24 dev cable
    ip -n $1 addr add 10.77.0.2/24 dev cable
    ip -n $0 link set cable up
    ip -n $1 link set cable up
    ip -n $0 link set lo up
    ip -n $1 link set lo up
    """
    created = shutil.which("ip") and subprocess.run(
        ["bash", "-c", script, *names], capture_output=True, check=False
    )
    try:
        if created and created.returncode == 0:
            # By default Gloo uses the address of the host name, which both namespaces share.
            environment = ["env", "GLOO_SOCKET_IFNAME=cable"]
            first, second = (["ip", "netns", "exec", name, *environment] for name in names)
            yield first, second, "10.77.0.1"
        else:
            yield [], [], "127.0.0.1"
    finally:
        for name in names if created else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def requests(config: PipelineConfig, run_url: Path, **launch_settings) -> list[WorkRequest]:
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 32},
        "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
        "launch": {"num_threads": 1} | launch_settings,
    }
    config = PipelineConfig.model_validate(config.model_dump(exclude_defaults=True) | settings)
    train = WorkRequest(
        stage="train", config=config, run_url=str(run_url), manifest=ingest(config), base_lr=1e-2
    )
    update = {"stage": "predict", "model_url": f"{run_url}/model"}
    return [train, train.model_copy(update=update)]


def lines_until(last: str, process: subprocess.Popen[str]) -> list[str]:
    """Return the output lines of a process up to one that starts with `last`, or to its end."""
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(last):
            break
    return lines


@pytest.mark.slow
def test_two_machines_train_and_predict_like_one(small_config, tmp_path, hosts) -> None:
    first, second, address = hosts
    endpoint = f"{address}:{free_port()}"
    stages = requests(
        small_config, tmp_path / "two", num_machines=2, num_processes=1, rdzv_endpoint=endpoint
    )
    paths = [tmp_path / f"{request.stage}.json" for request in stages]
    for path, request in zip(paths, stages, strict=True):
        path.write_text(request.model_dump_json())
    joining = subprocess.Popen(
        [
            *second, sys.executable, "-m", "pets", "join", "--store", small_config.store,
            "--cache_dir", str(tmp_path / "cache-of-the-second"), "--launch.num_machines", "2",
            "--launch.rdzv_endpoint", endpoint,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        done = subprocess.run(
            [*first, sys.executable, "-c", LAUNCH, *map(str, paths)],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        output = lines_until("predict completed", joining)
    finally:
        joining.kill()
        joining.wait()
    trained, predicted = map(json.loads, done.stdout.splitlines())
    assert trained["num_processes"] == 2
    rows = stages[0].manifest.splits["test"].num_rows
    assert len(set(read_predictions(predicted["predictions_url"], CLASSES).ids)) == rows
    assert [line for line in output if line.endswith((" started", " completed"))] == [
        "train started", "train completed", "predict started", "predict completed",
    ]  # fmt: skip
    assert list((tmp_path / "cache-of-the-second/decoded").glob("*.u8"))
    alone = launch(requests(small_config, tmp_path / "one", num_processes=1)[0], TrainResult)
    two, one = (pq.read_table(url) for url in (trained["history_url"], alone.history_url))
    assert two["loss"].to_pylist() == pytest.approx(one["loss"].to_pylist(), rel=1e-3)


@pytest.mark.nightly
def test_failure_on_the_second_machine_is_reported(small_config, tmp_path, hosts) -> None:
    """The ranks on the first machine only notice a closed connection."""
    first, second, address = hosts
    endpoint = f"{address}:{free_port()}"
    train, _ = requests(
        small_config, tmp_path / "run", num_machines=2, num_processes=1, rdzv_endpoint=endpoint
    )
    (tmp_path / "request.json").write_text(train.model_dump_json())
    (tmp_path / "full").write_text("a file at the path of the second machine's cache")
    joining = subprocess.Popen(
        [
            *second, sys.executable, "-m", "pets", "join", "--store", small_config.store,
            "--cache_dir", str(tmp_path / "full"), "--launch.num_machines", "2",
            "--launch.rdzv_endpoint", endpoint,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        done = subprocess.run(
            [*first, sys.executable, "-c", LAUNCH, str(tmp_path / "request.json")],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        joining.kill()
    assert done.returncode != 0
    assert str(tmp_path / "full") in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_rendezvous_timeout_names_the_setting(small_config, tmp_path) -> None:
    (train, _) = requests(
        small_config, tmp_path / "run", num_machines=2, num_processes=1,
        rdzv_endpoint=f"127.0.0.1:{free_port()}", join_timeout_seconds=3,
    )  # fmt: skip
    with pytest.raises(WorkerError, match=r"not all machines joined launch\.rdzv_endpoint = 127"):
        launch(train, TrainResult)
    assert not list(Path(requests_folder(train.config)).iterdir()), "the requests folder is empty"


@pytest.mark.parametrize(
    ("launch_settings", "machine", "message"),
    [
        ({}, 1, r"needs launch\.rdzv_endpoint"),
        ({"num_machines": 2, "rdzv_endpoint": "a:1"}, 2, r"must be from 1 to 1"),
        ({"num_machines": 2, "rdzv_endpoint": "a:1"}, 0, r"must be from 1 to 1"),
    ],
)
def test_unexpected_machine_number_is_rejected(launch_settings, machine, message) -> None:
    config = PipelineConfig.model_validate({"launch": launch_settings})
    with pytest.raises(PetsError, match=message):
        join(config, machine, idle_seconds=0, log=print)


def test_several_machines_need_an_endpoint() -> None:
    with pytest.raises(ValueError, match="num_machines = 2 needs rdzv_endpoint"):
        PipelineConfig.model_validate({"launch": {"num_machines": 2}})


def test_request_of_a_killed_machine_is_not_joined(small_config, tmp_path, monkeypatch) -> None:
    """Machine 0 leaves its request when it is killed; its next run replaces it."""
    endpoint = f"127.0.0.1:{free_port()}"
    stale, _ = requests(
        small_config, tmp_path / "run", num_machines=2, num_processes=1, rdzv_endpoint=endpoint
    )
    new = stale.model_copy(update={"run_url": str(tmp_path / "new")})
    joined, logged = [], []

    def run_ranks(request: WorkRequest, *_: object) -> list[RankFailure]:
        joined.append(request.run_url)
        return []

    monkeypatch.setattr(multi_node, "run_ranks", run_ranks)
    left = Path(requests_folder(stale.config)) / f"{time.time_ns():020}" / "request.json"
    left.parent.mkdir(parents=True)
    left.write_text(stale.model_dump_json())
    join(stale.config, 1, idle_seconds=2.5, log=logged.append)
    assert joined == []
    (message,) = logged
    assert message == f"waiting for machine 0 to listen at launch.rdzv_endpoint = {endpoint}"
    port = int(endpoint.rpartition(":")[2])
    with publish_request(new), socket.create_server(("127.0.0.1", port)):
        join(stale.config, 1, idle_seconds=1, log=logged.append)
    assert joined == [new.run_url]
    assert logged[1:] == ["train started", "train completed"]


def test_idle_machine_stops_waiting(tmp_path) -> None:
    launch_settings = {"num_machines": 2, "rdzv_endpoint": "127.0.0.1:1"}
    config = PipelineConfig.model_validate(
        {"store": str(tmp_path / "store"), "launch": launch_settings}
    )
    join(config, 1, idle_seconds=0.1, log=print)
