"""Deployments of this project: checks without a server, then runs with a server and workers."""

import json
import os
import signal
import tarfile
from datetime import datetime
from functools import partial
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
import yaml
from pools import ENDLESS, small
from prefect.settings import PREFECT_API_URL, temporary_settings
from tiny_model import write_tiny_model

from pets.cli import main as cli

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deployments"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Set the environment variables that the deployments need."""
    monkeypatch.setenv("PETS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PETS_SOURCE__URL", str(tmp_path / "photos"))


@pytest.fixture
def changed(tmp_path, environment):
    """Copy the deployment files and update fields of the first deployment."""

    def change(**entry) -> Path:
        folder = tmp_path / "deployments"
        folder.mkdir()
        for file in FILES.glob("*.yaml"):
            (folder / file.name).write_text(file.read_text())
        content = yaml.safe_load((FILES / "prefect.yaml").read_text())
        content["deployments"][0].update(entry)
        (folder / "prefect.yaml").write_text(yaml.safe_dump(content))
        return folder / "prefect.yaml"

    return change


@pytest.fixture
def refused(capsys):
    def check(file: Path) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(["deploy", str(file), "--check"])
        assert caught.value.code == 2
        return capsys.readouterr().err

    return check


def test_deployment_files_pass_the_check(environment, capsys):
    cli.main(["deploy", str(FILES / "prefect.yaml"), "--check"])
    assert capsys.readouterr().out == "12 deployments, 2 pools, 3 automations: ok\n"


def test_missing_files_are_reported_with_a_remedy(refused, tmp_path):
    message = refused(tmp_path / "prefect.yaml")
    assert f"{tmp_path}/prefect.yaml: no such file. Give the prefect.yaml of a copy" in message


def test_missing_environment_variables_are_rejected(refused, monkeypatch):
    monkeypatch.delenv("PETS_STORE", raising=False)
    assert "environment variable PETS_STORE is not set" in refused(FILES / "prefect.yaml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"parameters": {"config": {"train": {"epoch": 3}}}}, "train.epoch: no such setting. Did"),
        ({"parameters": {"config": {"train": {"epochs": -1}}}}, "train.epochs = -1: "),
        (
            {"parameters": {"confg": {}}},  # codespell:ignore confg
            "parameters.confg: unknown key. Did you mean",  # codespell:ignore confg
        ),
        ({"parameters": {"config": {"store": "here"}}}, "store = here: a relative path"),
        ({"parameters": {"config": {"store": "a::b"}}}, "store = a::b: a relative path"),
        ({"parameters": {"config": {"store": "~here"}}}, "store = ~here: a relative path"),
        (
            {"parameters": {"config": {"launch": {"deployment": "rank-stage/gpuu"}}}},
            "launch.deployment = rank-stage/gpuu: not one of these deployments. Did you mean",
        ),
        ({"schedules": [{"cron": "0 1 * * *", "timezone": "Mars/Dome"}]}, "timezone = 'Mars/Dome'"),
        ({"schedules": [{"cron": "0 25 * * *", "timezone": "Etc/UTC"}]}, "cron = '0 25 * * *'"),
        ({"schedules": [{"cron": "0 1 * * *"}]}, "set timezone, too"),
        ({"schedules": [{"corn": "0 1 * * *"}]}, "schedules.corn: unknown key. Did"),
        (
            {"concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUED"}},
            "use one of ENQUEUE, CANC",
        ),
        ({"triggers": [{"expects": ["x"]}]}, "triggers.expects: unknown key. Did"),
        ({"work_pool": {"name": "cpus"}}, "'cpus': not in pools.yaml. Did you mean"),
        (
            {"work_pool": {"name": "gpu", "work_queue_name": "urgnt"}},
            "= 'urgnt': not a queue",
        ),
        ({"entrypoint": "flows.ingest.nothing"}, "no such flow"),
        (
            {"paramters": {}},  # codespell:ignore paramters
            "paramters: unknown key. Did you mean parameters",  # codespell:ignore paramters
        ),
    ],
)
def test_invalid_deployments_are_rejected_by_the_check(changed, refused, entry, message):
    assert message in refused(changed(**entry))


def test_all_errors_are_reported_at_once(changed, refused):
    file = changed(paramters={}, work_pool={"name": "cpus"})  # codespell:ignore paramters
    file.with_name("pools.yaml").write_text("cpu: {typ: process}\ngpu: {queues: {urgent: 1}}")
    output = refused(file)
    assert "pools.yaml: cpu: typ" in output
    assert "paramters: unknown key" in output  # codespell:ignore paramters
    assert "work_pool.name = 'cpus'" in output


def test_deploy_requires_a_permanent_server(environment, capsys):
    # Another test of this process may have set it.
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(SystemExit):
        cli.main(["deploy", str(FILES / "prefect.yaml")])
    assert "PREFECT_API_URL is not set" in capsys.readouterr().err


@pytest.mark.slow
def test_deploy_registers_everything_and_warns_of_missing_workers(deploying, tmp_path) -> None:
    """On SQLite, the default database of a Prefect server."""
    command = ("-m", "pets", "deploy", str(FILES / "prefect.yaml"))
    automations = yaml.safe_load((FILES / "automations.yaml").read_text())["automations"]
    (retry,) = [each for each in automations if each["name"] == "pets-retry-crashed"]
    file = tmp_path / "earlier.yaml"
    file.write_text(yaml.safe_dump({"automations": [retry | {"name": "pets-go-on-after-a-crash"}]}))
    with deploying.started():
        deploying.run("-m", "prefect", "automation", "create", "--from-file", file)
        printed, warned = deploying.run(*command)
        assert "pets-pipeline/retrain" in printed.splitlines()
        assert "pool gpu has no worker, so its runs wait: prefect worker start --pool gpu" in warned
        retrain = deploying.request("deployments/name/pets-pipeline/retrain")
        assert retrain["schedules"][0]["schedule"] == {
            "cron": "0 3 * * 6", "timezone": "Etc/UTC", "day_or": True
        }  # fmt: skip
        assert retrain["global_concurrency_limit"]["limit"] == 1
        queues = deploying.request("work_pools/gpu/queues/filter", {})
        assert {queue["name"]: queue["priority"] for queue in queues} == {"urgent": 1, "default": 2}
        stages = ("deployments/name/rank-stage/gpu", "deployments/name/rank-stage/urgent")
        assert [deploying.request(stage)["parameters"] for stage in stages] == [
            {"require_gpu": True}
        ] * 2
        deploying.run(*command, "--without-gpus")
        assert [deploying.request(stage)["parameters"] for stage in stages] == [
            {"require_gpu": False}
        ] * 2
        names = sorted(a["name"] for a in deploying.request("automations/filter", {}))
        assert names == [
            "pets-mark-crashed",
            "pets-reschedule-pending",
            "pets-retrain-on-new-data",
            "pets-retry-crashed",
        ], "neither an earlier name nor the second deploy creates duplicates"


@pytest.mark.nightly
def test_new_photos_trigger_a_training(deployed, pools, small_config) -> None:
    settings = small_config.model_dump(mode="json", exclude_defaults=True)
    ingest_id = pools.trigger("pets-ingest/nightly", settings)
    assert deployed.wait_for(partial(pools.ended, ingest_id))["state_type"] == "COMPLETED"
    wanted = {"deployments": {"name": {"any_": ["retrain"]}}}
    by_event = {"flow_runs": {"tags": {"all_": ["pets"]}}} | wanted

    def started() -> list[str]:
        runs = deployed.request("flow_runs/filter", by_event)
        return [run["id"] for run in runs if not run["auto_scheduled"]]

    (run_id,) = deployed.wait_for(started)
    # Prefect can leave a run that is cancelled during its start in Cancelling.
    deployed.wait_for(lambda: pools.run(run_id)["state_type"] == "RUNNING")
    deployed.request(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    deployed.wait_for(partial(pools.ended, run_id))
    # Ingesting the same photos again creates no new version.
    again = pools.trigger("pets-ingest/nightly", settings)
    assert deployed.wait_for(partial(pools.ended, again))["state_type"] == "COMPLETED"
    # Events arrive in order: after the completion, all events of the run are stored.
    end = {"event": {"name": ["prefect.flow-run.Completed"]},
           "resource": {"id": [f"prefect.flow-run.{again}"]}}  # fmt: skip
    deployed.wait_for(lambda: deployed.request("events/filter", {"filter": end})["events"])
    committed = {"event": {"name": ["pets.dataset.committed"]}}
    assert len(deployed.request("events/filter", {"filter": committed})["events"]) == 1


@pytest.mark.slow
def test_pipeline_runs_its_stages_in_the_gpu_pool(deployed, pools, small_config) -> None:
    run_id = pools.trigger("pets-pipeline/retrain", small(small_config))
    run = deployed.wait_for(partial(pools.ended, run_id))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert run["work_pool_name"] == "cpu"
    stages = pools.stages(run_id)
    assert [stage["name"].split()[0] for stage in stages] == ["lr-find", "train", "predict"]
    assert {stage["work_pool_name"] for stage in stages} == {"gpu"}
    assert {stage["state_type"] for stage in stages} == {"COMPLETED"}
    keys = {a["key"] for a in deployed.request("artifacts/filter", {}) if a["key"]}
    assert {"run-summary", "confusion-matrix", "training-curves", "training-progress"} <= keys


@pytest.mark.nightly
def test_killed_stage_is_requested_again_and_can_be_cancelled(
    deployed, pools, small_config, tmp_path
) -> None:
    run_id = pools.trigger("pets-train/by-hand", small(small_config, train=ENDLESS))
    folder = tmp_path / "store/runs" / run_id / "checkpoints"
    deployed.wait_for(lambda: list(folder.glob("*/checkpoint.json")))
    (launcher,) = pools.launchers("gpu")
    assert not pools.launchers("cpu")
    os.kill(pools.engine("gpu"), signal.SIGKILL)
    assert processes.wait_for_exit([launcher])
    (again,) = deployed.wait_for(partial(pools.launchers, "gpu"))
    assert again != launcher
    first, second = pools.stages(run_id)
    assert first["state_type"] == "CRASHED"
    assert second["state_type"] == "RUNNING"
    deployed.request(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    assert deployed.wait_for(partial(pools.ended, run_id))["state_type"] == "CANCELLED"
    assert processes.wait_for_exit([again])
    # A retry of the run requests the stage again.
    waiting = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    deployed.request(f"flow_runs/{run_id}/set_state", {"state": waiting, "force": True})
    deployed.wait_for(partial(pools.launchers, "gpu"))
    assert len(pools.stages(run_id)) == 3
    deployed.request(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
    deployed.wait_for(partial(pools.ended, run_id))


@pytest.mark.nightly
def test_run_stopped_in_a_terminal_cancels_its_stage(
    deployed, pools, small_config, tmp_path
) -> None:
    settings = small(small_config, train=ENDLESS)
    settings["launch"] = settings["launch"] | {"deployment": "rank-stage/urgent"}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    with deployed.running("-m", "pets", "train", str(file)) as command:
        folder = tmp_path / "store/runs"
        deployed.wait_for(lambda: list(folder.glob("*/checkpoints/*/checkpoint.json")))
        (launcher,) = pools.launchers("gpu")
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 143
    assert processes.wait_for_exit([launcher])
    (stage,) = deployed.request("flow_runs/filter", {"flows": {"name": {"any_": ["rank-stage"]}}})
    assert deployed.wait_for(partial(pools.ended, stage["id"]))["state_type"] == "CANCELLED"
    assert stage["work_queue_name"] == "urgent"


@pytest.mark.nightly
def test_sweep_trials_and_batch_predictions_run_in_the_gpu_pool(
    deployed, pools, small_config, tmp_path
) -> None:
    settings = small(
        small_config,
        batch={"part_photos": 16, "num_tasks": 2},
        sweep={"num_trials": 2, "num_concurrent": 2, "min_lr": 1e-3, "max_lr": 1e-2},
    )
    # The photos of the sample, without labels.
    photos = tmp_path / "photos"
    with tarfile.open(small_config.source.url + "/images.tar.gz") as archive:
        archive.extractall(photos, filter="data")
    sweep = pools.trigger("pets-sweep/by-hand", settings)
    run = deployed.wait_for(partial(pools.ended, sweep))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    trials = pools.stages(sweep)
    assert [trial["name"].split()[0] for trial in trials] == ["train", "train"]
    assert {trial["work_pool_name"] for trial in trials} == {"gpu"}
    created = [datetime.fromisoformat(trial["created"]) for trial in trials]
    ended = [datetime.fromisoformat(trial["end_time"]) for trial in trials]
    assert max(created) < min(ended), "both requested before one ends"
    result = json.loads((tmp_path / "store/runs" / sweep / "sweep.json").read_text())
    (model, _) = (trial["model_urls"][0] for trial in result["trials"])
    settings["source"] = {"url": str(photos)}
    parameters = {"model_url": model, "output_url": str(tmp_path / "out")}
    batch = pools.trigger("pets-batch-predict/by-hand", settings, **parameters)
    run = deployed.wait_for(partial(pools.ended, batch))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    names = [stage["name"].split()[0] for stage in pools.stages(batch)]
    assert sorted(names) == ["predict-parts-0-5", "predict-parts-5-10"]
    found = pq.read_table(tmp_path / "out/predictions")
    assert found.num_rows == len(set(found["photo"].to_pylist())) == 37 * 4
    keys = {a["key"] for a in deployed.request("artifacts/filter", {}) if a["key"]}
    assert {"sweep", "batch-summary", "unreadable-photos"} <= keys


@pytest.mark.nightly
def test_embeddings_are_computed_in_the_gpu_pool(deployed, pools, small_config, tmp_path) -> None:
    model = write_tiny_model(tmp_path / "model", ("Birman", "Pug"))
    run_id = pools.trigger("pets-embed/by-hand", small(small_config), model_url=model)
    run = deployed.wait_for(partial(pools.ended, run_id))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    (stage,) = pools.stages(run_id)
    assert (stage["name"].split()[0], stage["work_pool_name"]) == ("embed", "gpu")
    folder = tmp_path / "store/runs" / run_id / "embeddings"
    assert pq.read_table(folder / "embeddings.parquet").num_rows == 37 * 4
    assert "near-duplicates" in {a["key"] for a in deployed.request("artifacts/filter", {})}
