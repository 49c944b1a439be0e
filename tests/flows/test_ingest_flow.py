"""Ingest as Prefect tasks: task runners, retries, and artifacts of a data set with bad photos."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.cache_policies import NO_CACHE

from flows.ingest import ingest_flow
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest import shards
from pets_core.data.versions import list_versions
from pets_core.errors import PetsError
from pets_core.storage.markdown import escape_markdown
from tasks import ingest as tasks

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def config(tmp_path, write_folder) -> PipelineConfig:
    """Settings for a data set of noise with several shards."""
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(write_folder(tmp_path / "mine", {"a": 30, "b": 30}))},
        }
    )


@pytest.fixture(scope="module")
def ray_home() -> Iterator[Path]:
    """Folder of Ray's files and of its token, instead of the home folder."""
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": 2 * uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Ray's socket paths must be short, and its processes may briefly outlive the cluster.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {"RAY_TMPDIR": folder, **settings}.items():
            patch.setenv(name, value)
        yield Path(folder) / "ray"


@pytest.fixture
def ray_cluster(ray_home) -> Iterator[str]:
    """Address of a running Ray cluster."""
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
         "--num-cpus=2", "--include-dashboard=false"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        found = (re.search(r"--address='([^']+)'", line) for line in process.stdout)
        yield next(match[1] for match in found if match)
    finally:
        process.terminate()
        process.communicate()


def with_ingest(config: PipelineConfig, **values) -> PipelineConfig:
    return PipelineConfig.model_validate({**config.model_dump(), "ingest": values})


@pytest.mark.parametrize(
    "runner",
    [
        "threads",
        pytest.param("processes", marks=pytest.mark.slow),
        pytest.param("dask", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def test_every_runner_makes_the_same_data_set(config, runner, tmp_path, ray_home):
    expected = tasks.commit(config, _written(config, tmp_path / "plain"))
    manifest = ingest_flow(with_ingest(config, runner=runner, num_workers=2))
    assert manifest.fingerprint == expected.fingerprint
    assert manifest.splits == expected.splits


def _written(config, store):
    plan = tasks.plan_dataset(config.model_copy(update={"store": str(store)}))
    for shard in plan.pending:
        shards.write_shard(config, plan, shard)
    return plan


@pytest.mark.nightly
def test_runner_address_selects_the_running_ray_cluster(config, ray_home, ray_cluster, tmp_path):
    def sessions() -> int:
        return len([path for path in ray_home.glob("session_*") if not path.is_symlink()])

    before = sessions()
    joined = ingest_flow(
        with_ingest(config, runner="ray", runner_address=ray_cluster, num_workers=2)
    )
    assert sessions() == before
    elsewhere = config.model_copy(update={"store": str(tmp_path / "elsewhere")})
    own = ingest_flow(with_ingest(elsewhere, runner="ray", num_workers=2))
    assert sessions() == before + 1
    assert own.fingerprint == joined.fingerprint


def test_missing_runner_package_fails_before_any_work(config, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prefect_ray", None)
    with pytest.raises(PetsError, match=r"ingest\.runner = ray.*pip install"):
        ingest_flow(with_ingest(config, runner="ray"))
    assert not list_versions(config.store)


def test_failed_shard_is_retried(config, monkeypatch):
    calls = []

    def fail_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionResetError("the store went away")
        return shards.write_shard(*arguments)

    monkeypatch.setattr(tasks, "write_shard", fail_once)
    assert ingest_flow(config).num_rows == 60
    assert len(calls) == 3  # train, valid and the retry


def test_plan_and_commit_tasks_have_the_same_retry_settings():
    plan, commit = (
        (t.retries, t.retry_delay_seconds, t.retry_condition_fn, t.cache_policy)
        for t in (tasks.plan_data_set, tasks.commit_data_set)
    )
    assert plan == commit == (2, 5, tasks.should_retry, NO_CACHE)


def test_user_error_is_not_retried(config, monkeypatch):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise PetsError("the source is invalid")

    monkeypatch.setattr(tasks, "write_shard", refuse)
    with pytest.raises(PetsError, match="the source is invalid"):
        ingest_flow(config)
    assert len(calls) <= 2


def test_artifacts_show_leaks_and_quarantine(config, tmp_path, read_artifacts):
    folder = tmp_path / "mine/a"
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:40])
    for number in range(20):  # other names, so that some are in the validation split
        copy = folder / f"copy-{number}.jpg"
        copy.write_bytes((folder / f"{number}.jpg").read_bytes())
    state = ingest_flow(config, return_state=True)
    manifest = state.result()
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert [row["id"] for row in json.loads(artifacts["quarantine"])] == [
        escape_markdown("a/cut.jpg")
    ]
    leaking = manifest.duplicates["leaking"]
    assert leaking > 0
    assert f"# {leaking} photos of an earlier split" in artifacts["duplicates"]
    assert artifacts["duplicates"].count("data:image/jpeg;base64,") == 2 * min(leaking, 20)
    assert f"| leaking | {leaking} |" in artifacts["dataset-summary"]
    assert all(len(data) < 300_000 for data in artifacts.values())
