"""Deployments on PostgreSQL behind a password, with workers, machines and a server that die."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import postgres
import processes
import pytest
import yaml
from pools import ENDLESS, Pools, small, worker
from prefect_server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

FILES = Path(__file__).parents[2] / "deployments"
AUTH = "admin:pets-secret-of-the-server"
STORE_SECRET = "pets-secret-of-the-store"
SILENCE_SECONDS = 60


@pytest.fixture(scope="module")
def production(tmp_path_factory, drawn_sample) -> Iterator[SimpleNamespace]:
    """The server of compose.yaml, on this machine: PostgreSQL, a password, CSRF protection."""
    folder = tmp_path_factory.mktemp("production")
    service = yaml.safe_load((FILES / "docker/compose.yaml").read_text())["services"]["server"]
    settings = {k: v for k, v in service["environment"].items() if "${" not in v}
    assert settings["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    with postgres.database(folder / "postgres") as url:
        server = Server(folder)
        server.environment |= settings | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_API_AUTH_STRING": AUTH,
            "PETS_STORE": str(folder / "store"),
            "PETS_SOURCE__URL": str(drawn_sample),
            "AWS_SECRET_ACCESS_KEY": STORE_SECRET,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        with contextlib.ExitStack() as running:
            process = running.enter_context(server.started())
            _deploy(server, folder)
            yield SimpleNamespace(server=server, process=process, folder=folder, running=running)


def _deploy(server: Server, folder: Path) -> None:
    """This very project's files; only that a dead machine is found sooner."""
    (folder / "deployments").mkdir()
    for file in FILES.glob("*.yaml"):
        text = file.read_text()
        if file.name == "automations.yaml":
            text, found = re.subn(r"within: 300\b", f"within: {SILENCE_SECONDS}", text)
            assert found == 1
        (folder / "deployments" / file.name).write_text(text)
    server.run("-m", "flows.cli", "deploy", str(folder / "deployments/prefect.yaml"))


@pytest.fixture
def settings(small_config) -> dict:
    """Of a run that trains until it is ended."""
    return small(small_config, train=ENDLESS)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


def checkpoints(store: Path, run_id: str) -> list[Path]:
    return sorted((store / "runs" / run_id).glob("checkpoints/*/checkpoint.json"))


def cancel(server: Server, run_id: str) -> None:
    server.ask(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})


def kill_all(process: subprocess.Popen) -> list[int]:
    """SIGKILL a process and everything below it at once, as a machine that loses its power."""
    pids = [process.pid, *processes.below(process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return pids


def test_a_scheduled_run_trains_and_another_of_its_deployment_waits(
    production, small_config, settings, store
) -> None:
    server = production.server
    retrain = server.ask("deployments/name/pets-pipeline/retrain")
    every_minute = {
        "schedule": {"cron": "* * * * *", "timezone": "Etc/UTC"},
        "active": True,
        "parameters": {"config": settings},
        "slug": "every-minute",
    }
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        (schedule,) = server.ask(f"deployments/{retrain['id']}/schedules", [every_minute])
        wanted = {"deployments": {"id": {"any_": [retrain["id"]]}}}

        def of_deployment(*names: str) -> list[dict]:
            state = {"flow_runs": {"state": {"name": {"any_": list(names)}}}}
            return server.ask("flow_runs/filter", wanted | state)

        (first,) = server.wait_for(partial(of_deployment, "Running"), 120)
        assert first["auto_scheduled"]
        server.wait_for(lambda: checkpoints(store, first["id"]), 180)
        waiting = server.wait_for(partial(of_deployment, "AwaitingConcurrencySlot"), 120)
        assert [run["id"] for run in of_deployment("Running")] == [first["id"]]
        assert len(pools.launchers("gpu")) == 1
        path = f"deployments/{retrain['id']}/schedules/{schedule['id']}"
        server.ask(path, {"active": False}, method="PATCH")
        cancel(server, first["id"])
        assert server.wait_for(partial(pools.ended, first["id"]), 90)["state_type"] == "CANCELLED"
        for run in (*waiting, *of_deployment("AwaitingConcurrencySlot", "Running", "Scheduled")):
            cancel(server, run["id"])
        server.wait_for(lambda: not of_deployment("Running", "Pending", "Cancelling"), 120)
        # By hand, to its good end.
        run_id = pools.trigger("pets-pipeline/retrain", small(small_config))
        run = server.wait_for(partial(pools.ended, run_id), 300)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        keys = {a["key"] for a in server.ask("artifacts/filter", {}) if a["key"]}
        assert {"run-summary", "confusion-matrix", "training-curves"} <= keys


def test_a_machine_that_dies_in_training_is_replaced_by_another(
    production, small_config, store
) -> None:
    server = production.server
    train = {"batch_size": 8, "epochs": 40, "base_lr": 1e-2, "mixed_precision": "no",
             "checkpoint_steps": 5}  # fmt: skip
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", small(small_config, train=train))
        server.wait_for(lambda: len(checkpoints(store, run_id)) > 1, 180)
        killed = [*kill_all(gpu), *kill_all(cpu)]
        assert not (store / "runs" / run_id / "model/model.json").exists(), "else it was over"
        (stage,) = pools.stages(run_id)
        assert stage["state_type"] == pools.run(run_id)["state_type"] == "RUNNING", "nobody told"
        with worker(server, "cpu"), worker(server, "gpu"):
            run = server.wait_for(partial(pools.ended, run_id), 420)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["run_count"] == 2
    first, second = pools.stages(run_id)
    assert (first["state_type"], second["state_type"]) == ("CRASHED", "COMPLETED")
    logs = server.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [second["id"]]}}})
    assert any("training goes on from" in log["message"] for log in logs)
    assert processes.gone(killed)


def test_a_late_heartbeat_crashes_no_run_that_is_over(production, small_config) -> None:
    server = production.server
    with worker(server, "cpu") as cpu:
        pools = Pools(server, {"cpu": cpu})
        config = small_config.model_dump(mode="json", exclude_defaults=True)
        run_id = pools.trigger("pets-ingest/nightly", config)
        run = server.wait_for(partial(pools.ended, run_id), 120)
        assert run["state_type"] == "COMPLETED"
        beat = {"event": "prefect.flow-run.heartbeat"}
        found = server.wait_for(partial(events, server, run_id, beat["event"]), 30)[0]
        late = {key: found[key] for key in ("event", "resource", "related", "payload")}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        server.ask(
            "events", [late | {"occurred": now, "id": "00000000-0000-4000-8000-000000000001"}]
        )

        def tried() -> list[dict]:
            acted = events(server, None, "prefect.automation.action.*")
            return [e for e in acted if run_id in json.dumps(e)]

        server.wait_for(tried, SILENCE_SECONDS + 90)
        assert pools.run(run_id)["state_type"] == "COMPLETED"
        assert pools.run(run_id)["run_count"] == 1


def events(server: Server, run_id: str | None, name: str) -> list[dict]:
    """The newest events of a name."""
    prefix = {"prefix": [name[:-1]]} if name.endswith("*") else {"name": [name]}
    wanted = {"event": prefix}
    if run_id:
        wanted["resource"] = {"id": [f"prefect.flow-run.{run_id}"]}
    return server.ask("events/filter", {"filter": wanted, "limit": 50})["events"]


def test_a_run_survives_its_worker_and_a_cancel_without_one_ends_it(
    production, settings, store
) -> None:
    server = production.server
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", settings)
        server.wait_for(lambda: checkpoints(store, run_id), 180)
        orphans = [*processes.below(cpu.pid), *processes.below(gpu.pid)]
        for process in (cpu, gpu):
            process.kill()
            process.wait()
    done = len(checkpoints(store, run_id)) and checkpoints(store, run_id)[-1]
    server.wait_for(lambda: checkpoints(store, run_id)[-1] != done, 60)
    assert pools.run(run_id)["state_type"] == "RUNNING"
    cancel(server, run_id)
    ended = server.wait_for(partial(pools.ended, run_id), 150)
    assert ended["state_type"] == "CANCELLED"
    (stage,) = pools.stages(run_id)
    assert server.wait_for(partial(pools.ended, stage["id"]), 150)["state_type"] == "CANCELLED"
    assert processes.gone(orphans), "nobody holds the GPU"


def test_a_process_that_was_taken_for_dead_leaves_the_run_to_its_successor(
    production, settings, store
) -> None:
    server = production.server
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", settings)
        server.wait_for(lambda: checkpoints(store, run_id), 180)
        (launcher,) = pools.launchers("gpu")
        (stage,) = pools.stages(run_id)
        state = {"type": "CRASHED", "message": "so it seemed"}
        server.ask(f"flow_runs/{stage['id']}/set_state", {"state": state, "force": True})
        assert processes.gone([launcher])
        (successor,) = server.wait_for(partial(pools.launchers, "gpu"), 120)
        assert pools.run(stage["id"])["state_type"] == "CRASHED", "its last word changed nothing"
        assert len(pools.stages(run_id)) == 2
        cancel(server, run_id)
        server.wait_for(partial(pools.ended, run_id), 90)
        assert processes.gone([successor])


def test_a_server_that_is_killed_and_comes_back_loses_no_run(
    production, small_config, store
) -> None:
    server = production.server
    train = {"batch_size": 8, "epochs": 60, "base_lr": 1e-2, "mixed_precision": "no"}
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-pipeline/retrain", small(small_config, train=train))
        server.wait_for(lambda: checkpoints(store, run_id), 180)
        (launcher,) = pools.launchers("gpu")
        production.process.kill()
        production.process.wait()
        time.sleep(10)
        assert pools.launchers("gpu") == [launcher], "training goes on without the server"
        production.process = production.running.enter_context(server.started())
        run = server.wait_for(partial(pools.ended, run_id), 300)
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert run["run_count"] == 1
        assert len(pools.stages(run_id)) == 1
        # The slot of the deployment's one run is free again.
        again = pools.trigger("pets-pipeline/retrain", small(small_config))
        server.wait_for(lambda: pools.run(again)["state_type"] == "RUNNING", 420)
        cancel(server, again)
        server.wait_for(partial(pools.ended, again), 90)
