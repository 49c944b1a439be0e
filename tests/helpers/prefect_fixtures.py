"""Fixtures for commands, Prefect servers, deployments and workers."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import pytest
from pools import Pools, worker
from postgres import Postgres
from prefect_server import Server

from pets.cli import flow_command
from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig

FILES = Path(__file__).parents[2] / "deployments"


@pytest.fixture
def own_environment(monkeypatch):
    """Environment without PETS_ variables and with a fixed width of help pages."""
    for name in [name for name in os.environ if name.startswith("PETS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def started(own_environment, monkeypatch):
    """Function that runs a command without its flow and returns the settings.

    `calls` has (command, settings, arguments) of each flow that would start.
    """
    calls = []
    monkeypatch.setattr(flow_command, "_check_input", lambda *_: None)
    monkeypatch.setattr(flow_command, "start_flow", lambda *call: calls.append(call))

    def start(*argv) -> PipelineConfig:
        cli.main([str(arg) for arg in argv])
        return calls[-1][1]

    start.calls = calls
    return start


@pytest.fixture
def refused(own_environment, monkeypatch, capsys):
    """Function that runs an invalid command and returns the lines of its error."""

    def start(*argv) -> list[str]:
        monkeypatch.setattr(
            flow_command, "start_flow", lambda *_: pytest.fail("the flow was started")
        )
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in argv])
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        return output.err.removeprefix("error: ").splitlines()

    return start


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory, prefect_home) -> Iterator[None]:
    """Prefect server for flows in this process."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing import utilities

    # An initialised database in the harness's folder saves eight seconds.
    folder = tmp_path_factory.mktemp("harness")
    for file in prefect_home.glob("prefect.db*"):
        shutil.copy(file, folder / file.name.replace("prefect", "prefect-test"))
    with (
        patch.object(utilities, "mkdtemp", lambda: str(folder)),
        utilities.prefect_test_harness(server_startup_timeout=600),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture(scope="session")
def read_artifacts() -> Callable[[UUID], dict[str, str]]:
    """Function that returns the data of all artifacts of a flow run by key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    async def read(flow_run_id: UUID) -> dict[str, str]:
        async with get_client() as client:
            wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
            found = await client.read_artifacts(artifact_filter=wanted)
            # Prefect stores results as artifacts without a key.
            return {a.key: a.data for a in found if a.key}

    return lambda flow_run_id: asyncio.run(read(flow_run_id))


@pytest.fixture
def stopped_server(tmp_path, prefect_home) -> Server:
    return Server(tmp_path, prefect_home)


@pytest.fixture
def server(stopped_server) -> Iterator[Server]:
    with stopped_server.started():
        yield stopped_server


@pytest.fixture
def deploying(stopped_server, tmp_path, drawn_sample) -> Server:
    """Server that is not started yet, with the environment for `pets deploy`."""
    stopped_server.environment |= {
        "PETS_STORE": str(tmp_path / "store"),
        "PETS_SOURCE__URL": str(drawn_sample),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    return stopped_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


@pytest.fixture
def deployed(deploying, postgres) -> Iterator[Server]:
    """New server with the deployments of prefect.yaml and without workers.

    On PostgreSQL, as in production: concurrent flow runs lock an SQLite file for minutes.
    """
    deploying.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = postgres.database()
    with deploying.started():
        arguments = ("deploy", str(FILES / "prefect.yaml"), "--without-gpus")
        deploying.run("-m", "pets", *arguments)
        yield deploying


@pytest.fixture
def pools(deployed):
    with worker(deployed, "cpu") as cpu, worker(deployed, "gpu") as gpu:
        yield Pools(deployed, {"cpu": cpu, "gpu": gpu})
