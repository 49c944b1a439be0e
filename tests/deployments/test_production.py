"""Deployments on PostgreSQL with a password, and crashes of workers, machines and server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import yaml
from pools import ENDLESS, Pools, small, worker
from postgres import PASSWORD, dump
from prefect_server import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

FILES = Path(__file__).parents[2] / "deployments"
AUTH = "admin:pets-secret-of-the-server"
STORE_SECRET = "pets-secret-of-the-store"
SILENCE_SECONDS = 60


@pytest.fixture(scope="module")
def production(tmp_path_factory, drawn_sample, postgres) -> Iterator[SimpleNamespace]:
    """Server of compose.yaml on this machine: PostgreSQL, a password, CSRF protection."""
    folder = tmp_path_factory.mktemp("production")
    service = yaml.safe_load((FILES / "docker/compose.yaml").read_text())["services"]["server"]
    settings = {k: v for k, v in service["environment"].items() if "${" not in v}
    assert settings["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    server = Server(folder)
    server.environment |= settings | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.database(),
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
    """Deploy this project's files, with a shorter heartbeat timeout."""
    (folder / "deployments").mkdir()
    for file in FILES.glob("*.yaml"):
        text = file.read_text()
        if file.name == "automations.yaml":
            text, found = re.subn(r"within: 300\b", f"within: {SILENCE_SECONDS}", text)
            assert found == 1
        (folder / "deployments" / file.name).write_text(text)
    arguments = ("deploy", str(folder / "deployments/prefect.yaml"), "--without-gpus")
    server.run("-m", "pets", *arguments)


@pytest.fixture
def settings(small_config) -> dict:
    """Settings of a run that trains until it is cancelled."""
    return small(small_config, train=ENDLESS)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


def checkpoints(store: Path, run_id: str) -> list[Path]:
    return sorted((store / "runs" / run_id).glob("checkpoints/*/checkpoint.json"))


def cancel(server: Server, run_id: str) -> None:
    server.request(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})


def kill_all(process: subprocess.Popen) -> list[int]:
    """SIGKILL a process and all below it at once, like a power failure; return their pids."""
    pids = [process.pid, *processes.descendants(process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return pids


@pytest.mark.nightly
def test_scheduled_runs_of_a_deployment_run_one_at_a_time(
    production, small_config, settings, store
) -> None:
    server = production.server
    retrain = server.request("deployments/name/pets-pipeline/retrain")
    every_minute = {
        "schedule": {"cron": "* * * * *", "timezone": "Etc/UTC"},
        "active": True,
        "parameters": {"config": settings},
        "slug": "every-minute",
    }
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        (schedule,) = server.request(f"deployments/{retrain['id']}/schedules", [every_minute])
        wanted = {"deployments": {"id": {"any_": [retrain["id"]]}}}

        def runs_in_state(*names: str) -> list[dict]:
            state = {"flow_runs": {"state": {"name": {"any_": list(names)}}}}
            return server.request("flow_runs/filter", wanted | state)

        (first,) = server.wait_for(partial(runs_in_state, "Running"))
        assert first["auto_scheduled"]
        server.wait_for(lambda: checkpoints(store, first["id"]))
        waiting = server.wait_for(partial(runs_in_state, "AwaitingConcurrencySlot"))
        assert [run["id"] for run in runs_in_state("Running")] == [first["id"]]
        assert len(pools.launchers("gpu")) == 1
        path = f"deployments/{retrain['id']}/schedules/{schedule['id']}"
        server.request(path, {"active": False}, method="PATCH")
        cancel(server, first["id"])
        assert server.wait_for(partial(pools.ended, first["id"]))["state_type"] == "CANCELLED"
        for run in (*waiting, *runs_in_state("AwaitingConcurrencySlot", "Running", "Scheduled")):
            cancel(server, run["id"])
        server.wait_for(lambda: not runs_in_state("Running", "Pending", "Cancelling"))
        # A run started by hand completes.
        run_id = pools.trigger("pets-pipeline/retrain", small(small_config))
        run = server.wait_for(partial(pools.ended, run_id))
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        keys = {a["key"] for a in server.request("artifacts/filter", {}) if a["key"]}
        assert {"run-summary", "confusion-matrix", "training-curves"} <= keys


@pytest.mark.slow
def test_training_resumes_on_another_machine_after_a_crash(production, small_config, store) -> None:
    server = production.server
    train = {"batch_size": 8, "freeze_epochs": 1, "epochs": 40, "base_lr": 1e-2,
             "mixed_precision": "no", "checkpoint_steps": 5, "checkpoint_seconds": 0}  # fmt: skip
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", small(small_config, train=train))
        server.wait_for(lambda: len(checkpoints(store, run_id)) > 1)
        killed = [*kill_all(gpu), *kill_all(cpu)]
        assert not (store / "runs" / run_id / "model/model.json").exists(), "ended too early"
        (stage,) = pools.stages(run_id)
        assert stage["state_type"] == pools.run(run_id)["state_type"] == "RUNNING", "undetected"
        with worker(server, "cpu"), worker(server, "gpu"):
            # The run is Crashed for a moment in between.
            server.wait_for(lambda: pools.run(run_id)["state_type"] == "COMPLETED")
    run = pools.run(run_id)
    assert run["run_count"] == 2
    first, second = pools.stages(run_id)
    assert (first["state_type"], second["state_type"]) == ("CRASHED", "COMPLETED")
    logs = server.request("logs/filter", {"logs": {"flow_run_id": {"any_": [second["id"]]}}})
    assert any("Resuming training from" in log["message"] for log in logs)
    assert processes.wait_for_exit(killed)


@pytest.mark.nightly
def test_late_heartbeat_does_not_crash_a_completed_run(production, small_config) -> None:
    server = production.server
    with worker(server, "cpu") as cpu:
        pools = Pools(server, {"cpu": cpu})
        config = small_config.model_dump(mode="json", exclude_defaults=True)
        run_id = pools.trigger("pets-ingest/nightly", config)
        run = server.wait_for(partial(pools.ended, run_id))
        assert run["state_type"] == "COMPLETED"
        name = "prefect.flow-run.heartbeat"
        heartbeat = server.wait_for(partial(events, server, run_id, name))[0]
        late = {key: heartbeat[key] for key in ("event", "resource", "related", "payload")}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        server.request(
            "events", [late | {"occurred": now, "id": "00000000-0000-4000-8000-000000000001"}]
        )

        def actions_on_run() -> list[dict]:
            actions = events(server, None, "prefect.automation.action.*")
            return [e for e in actions if run_id in json.dumps(e)]

        server.wait_for(actions_on_run)
        assert pools.run(run_id)["state_type"] == "COMPLETED"
        assert pools.run(run_id)["run_count"] == 1


def events(server: Server, run_id: str | None, name: str) -> list[dict]:
    """Return the newest events of a name; a trailing * matches by prefix."""
    prefix = {"prefix": [name[:-1]]} if name.endswith("*") else {"name": [name]}
    wanted = {"event": prefix}
    if run_id:
        wanted["resource"] = {"id": [f"prefect.flow-run.{run_id}"]}
    return server.request("events/filter", {"filter": wanted, "limit": 50})["events"]


@pytest.mark.nightly
def test_run_survives_dead_workers_and_can_be_cancelled_without_them(
    production, settings, store
) -> None:
    server = production.server
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", settings)
        server.wait_for(lambda: checkpoints(store, run_id))
        (stage,) = pools.stages(run_id)
        # The event of an earlier test's ingest has triggered another training.
        below = [*processes.descendants(cpu.pid), *processes.descendants(gpu.pid)]
        engines = [pid for pid in below if processes.flow_run(pid) in (run_id, stage["id"])]
        orphans = {pid for engine in engines for pid in (engine, *processes.descendants(engine))}
        assert len(orphans) >= 4, "two flow processes, a fork server and a rank"
        for process in (cpu, gpu):
            process.kill()
            process.wait()
    done = len(checkpoints(store, run_id)) and checkpoints(store, run_id)[-1]
    server.wait_for(lambda: checkpoints(store, run_id)[-1] != done)
    assert pools.run(run_id)["state_type"] == "RUNNING"
    cancel(server, run_id)
    ended = server.wait_for(partial(pools.ended, run_id))
    assert ended["state_type"] == "CANCELLED"
    assert server.wait_for(partial(pools.ended, stage["id"]))["state_type"] == "CANCELLED"
    gone = processes.wait_for_exit([*orphans], 60)
    assert gone, [processes.arguments(pid) for pid in orphans]


def two_stages(pools: Pools, run_id: str) -> list[dict]:
    found = pools.stages(run_id)
    return found if len(found) == 2 else []


@pytest.mark.nightly
def test_process_of_a_crashed_run_exits_and_its_successor_continues(
    production, settings, store
) -> None:
    server = production.server
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-train/by-hand", settings)
        server.wait_for(lambda: checkpoints(store, run_id))
        # The event of an earlier test's ingest may have triggered another training.
        (stage,) = pools.stages(run_id)
        (launcher,) = pools.launchers("gpu", stage["id"])
        state = {"type": "CRASHED", "message": "set by the test"}
        server.request(f"flow_runs/{stage['id']}/set_state", {"state": state, "force": True})
        assert processes.wait_for_exit([launcher], 60)
        _, again = server.wait_for(partial(two_stages, pools, run_id))
        (successor,) = server.wait_for(partial(pools.launchers, "gpu", again["id"]))
        assert pools.run(stage["id"])["state_type"] == "CRASHED", "its exit changes no state"
        cancel(server, run_id)
        server.wait_for(partial(pools.ended, run_id))
        assert processes.wait_for_exit([successor])


@pytest.mark.nightly
def test_runs_survive_a_restart_of_the_server(production, small_config, store) -> None:
    server = production.server
    train = {
        "batch_size": 32,
        "freeze_epochs": 1,
        "epochs": 150,
        "base_lr": 1e-2,
        "mixed_precision": "no",
    }
    with worker(server, "cpu") as cpu, worker(server, "gpu") as gpu:
        pools = Pools(server, {"cpu": cpu, "gpu": gpu})
        run_id = pools.trigger("pets-pipeline/retrain", small(small_config, train=train))
        server.wait_for(lambda: checkpoints(store, run_id))
        production.process.kill()
        production.process.wait()
        done = checkpoints(store, run_id)[-1]
        # Training continues without the server, and may end before the server restarts.
        server.wait_for(lambda: checkpoints(store, run_id)[-1] != done)
        time.sleep(10)
        production.process = production.running.enter_context(server.started())
        run = server.wait_for(partial(pools.ended, run_id))
        assert run["state_type"] == "COMPLETED", run["state"]["message"]
        assert run["run_count"] == 1
        names = [stage["name"].split()[0] for stage in pools.stages(run_id)]
        assert names == ["lr-find", "train", "predict"], "no stage is requested twice"
        # The concurrency slot of the deployment is free again.
        again = pools.trigger("pets-pipeline/retrain", small(small_config))
        server.wait_for(lambda: pools.run(again)["state_type"] == "RUNNING")
        cancel(server, again)
        server.wait_for(partial(pools.ended, again))


NOTIFIER = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock
CustomWebhookNotificationBlock(
    name="ops", url={url!r}, json_data={{"text": "{{{{subject}}}} | {{{{body}}}}"}}
).save("ops", overwrite=True)
"""


@pytest.mark.slow
def test_failed_run_sends_a_notification(production, small_config, tmp_path) -> None:
    server = production.server
    notifications: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notifications.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

    with listening(Hook) as url:
        server.run("-c", NOTIFIER.format(url=url))
        file = str(production.folder / "deployments/prefect.yaml")
        server.run("-m", "pets", "deploy", file, "--notify", "custom-webhook/ops")
        config = small_config.model_dump(mode="json", exclude_defaults=True)
        config["source"] = {"url": str(tmp_path / "none")}
        with worker(server, "cpu") as cpu:
            pools = Pools(server, {"cpu": cpu})
            run_id = pools.trigger("pets-ingest/nightly", config)
            run = server.wait_for(partial(pools.ended, run_id))
            assert run["state_type"] == "FAILED"
            # On a busy machine the run may also be late, which sends a notification, too.
            title = f"pets-ingest {run['name']}: Failed"
            (text,) = server.wait_for(lambda: [each for each in notifications if title in each])
    assert "no such folder, archive or table" in text
    assert "Runbook" in text
    assert run_id in text, "a link to the run's page"


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/"
        finally:
            http.shutdown()


@pytest.mark.slow
def test_secrets_are_neither_logged_nor_stored(production, small_config, store) -> None:
    server = production.server
    with worker(server, "cpu") as cpu:
        pools = Pools(server, {"cpu": cpu})
        config = small_config.model_dump(mode="json", exclude_defaults=True)
        run_id = pools.trigger("pets-ingest/nightly", config)
        assert server.wait_for(partial(pools.ended, run_id))["state_type"] == "COMPLETED"
        logs = server.wait_for(
            lambda: server.request("logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        )
    contents = {
        "logs": json.dumps(logs),
        "runs": json.dumps(server.request("flow_runs/filter", {"limit": 200})),
        "artifacts": json.dumps(server.request("artifacts/filter", {"limit": 200})),
        "deployments": json.dumps(server.request("deployments/filter", {})),
        "database": dump(server.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]),
        "output": (production.folder / "output.log").read_text(),
    }
    for folder in (store, production.folder / "prefect"):
        for file in folder.rglob("*"):
            if file.is_file():
                contents[str(file)] = file.read_bytes().decode("latin-1")
    assert run_id in contents["database"], "the dump is of this server"
    for secret in (AUTH.split(":")[1], STORE_SECRET, PASSWORD):
        assert [name for name, text in contents.items() if secret in text] == []


@pytest.mark.slow
def test_wrong_credentials_are_reported_in_one_line(production) -> None:
    server = production.server
    wrong = server.environment | {"PREFECT_API_AUTH_STRING": "admin:wrong"}
    for arguments in (["deploy", str(FILES / "prefect.yaml")], ["ingest"]):
        command = [sys.executable, "-m", "pets", *arguments]
        done = subprocess.run(command, env=wrong, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "the server rejects the credentials (HTTP 401). Set PREFECT_API_AUTH_STRING" in line
        assert "wrong" not in line


@pytest.mark.slow
def test_backup_restores_runs_and_deployments(production, postgres, tmp_path) -> None:
    server = production.server
    url = server.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    before = {d["name"] for d in server.request("deployments/filter", {})}
    num_runs = server.request("flow_runs/count", {})
    another = Server(tmp_path)
    kept = {key: another.environment[key] for key in ("PREFECT_HOME", "PREFECT_API_URL")}
    address = postgres.restored(url, tmp_path / "backup")
    another.environment = server.environment | kept
    another.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = address
    with another.started():
        assert {d["name"] for d in another.request("deployments/filter", {})} == before
        # The schedules may have added runs.
        assert another.request("flow_runs/count", {}) >= num_runs > 0
