"""Events of models: payload, on a real Prefect server, and without one."""

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from pets.cli import main as cli
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import EvalReport, Metric, Verdict
from pets_core.registry.aliases import Candidate, current, history, promote
from tasks import events
from tasks.evaluate import promote_model

METRIC = Metric(name="error rate", value=0.1, low=0.05, high=0.15, unit="%")


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    return PipelineConfig(store=str(tmp_path / "store"), gate=GateConfig(promote=True))


def candidate(config, run_id: str, dataset: str) -> Candidate:
    """Store the evaluated model of a run."""
    folder = Path(config.store) / "runs" / run_id
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.json").touch()
    model = Candidate(
        run_id=run_id, model_url=f"store:runs/{run_id}/model", predictions_url="p",
        dataset_name=dataset, dataset_fingerprint="f", split="test", tta_views=0,
        backbone="resnet34", metric=METRIC, num_rows=100, evaluated_at="2026-01-01",
    )  # fmt: skip
    (folder / "evaluation").mkdir()
    (folder / "evaluation/candidate.json").write_text(model.model_dump_json())
    return model


def report_of(config, run_id: str, verdict: Verdict, champion: str | None = None) -> EvalReport:
    root = f"{config.store}/runs/{run_id}"
    return EvalReport(
        target="class", model_url=f"{root}/model", split="test", num_rows=100, primary=METRIC,
        verdict=verdict, predictions_url="p", url=f"{root}/evaluation", photos_per_second=1.0,
        seconds=1.0, champion_version=champion,
    )  # fmt: skip


def stored_events(name: str, resource: str, count: int) -> list[dict]:
    """Return the stored events, after waiting for at least `count` of them."""
    wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [resource]}}}
    deadline = time.monotonic() + 600
    with get_client(sync_client=True) as client:
        while True:
            found = client._client.post("/events/filter", json=wanted).json()["events"]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


@pytest.mark.usefixtures("prefect_server")
def test_flow_and_command_line_emit_the_moves_of_an_alias(config, capsys):
    dataset = "eventful"
    resource = f"pets.model.{dataset}.champion"
    for run_id in "abc":
        candidate(config, run_id, dataset)

    @flow
    def gate() -> str:
        promote_model(config, report_of(config, "a", Verdict(passed=True)))
        (version,) = history(config.store, dataset, "champion")
        promote_model(config, report_of(config, "b", Verdict(passed=True), version))
        refused = Verdict(passed=False, reasons=("too bad", "too old"))
        promote_model(config, report_of(config, "c", refused))
        return version

    state = gate(return_state=True)
    flow_run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    promoted = stored_events("pets.model.promoted", resource, 2)
    assert {event["payload"]["run_id"] for event in promoted} == {"a", "b"}
    event = next(each for each in promoted if each["payload"]["run_id"] == "a")
    assert event["payload"] == {
        "dataset": dataset,
        "alias": "champion",
        "run_id": "a",
        "model_url": f"{config.store}/runs/a/model",
        "alias_version": state.result().removesuffix(".json"),
        "metric": {
            "name": "error rate", "value": 0.1, "low": 0.05, "high": 0.15, "unit": "%",
        },
    }  # fmt: skip
    assert event["resource"]["prefect.resource.name"] == "eventful@champion"
    assert event["resource"]["pets.alias"] == "champion"
    assert flow_run in [each["prefect.resource.id"] for each in event["related"]]
    (rejected,) = stored_events("pets.model.rejected", resource, 1)
    assert rejected["payload"]["reasons"] == ["too bad", "too old"]
    assert rejected["payload"]["run_id"] == "c"
    assert flow_run in [each["prefect.resource.id"] for each in rejected["related"]]
    # The alias points there already: the event has the same id, and is stored once.
    cli.main(["models", "promote", "b", "--store", config.store])
    cli.main(["models", "rollback", dataset, "--store", config.store, "--json"])
    (rolled_back,) = stored_events("pets.model.rolled_back", resource, 1)
    assert rolled_back["payload"]["run_id"] == "a"
    assert len(stored_events("pets.model.promoted", resource, 2)) == 2
    assert capsys.readouterr().err == ""


def test_urls_have_no_queries(config):
    model = candidate(config, "a", "pets").model_copy(
        update={"model_url": "https://host/model?signature=secret"}
    )
    version = promote(config.store, "champion", candidate(config, "b", "pets"))
    fields = events._move(config.store, "champion", version.model_copy(update={"model": model}))
    assert fields["payload"]["model_url"] == "https://host/model"


def test_without_a_server_nothing_is_sent_or_started(config, capsys, monkeypatch):
    candidate(config, "a", "pets")
    monkeypatch.setattr(events, "_send", lambda *_: pytest.fail("an event was sent"))
    monkeypatch.setattr(events, "emit_event", lambda **_: pytest.fail("an event was emitted"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert get_current_settings().api.url is None
        cli.main(["models", "promote", "a", "--store", config.store])
        refused = report_of(config, "a", Verdict(passed=False))
        assert promote_model(config, refused) is refused
    output = capsys.readouterr()
    assert (output.out, output.err) == ("champion of pets points at a\n", "")


def test_promotion_succeeds_if_the_server_is_unreachable(config, capsys):
    candidate(config, "a", "pets")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        cli.main(["models", "promote", "a", "--store", config.store, "--json"])
    output = capsys.readouterr()
    assert json.loads(output.out)["model"]["run_id"] == "a"
    assert output.err.startswith("warning: no event was sent to the Prefect server: ")
    assert len(output.err.splitlines()) == 1
    assert current(config.store, "pets", "champion").model.run_id == "a"


def test_promotion_does_not_wait_for_a_server_that_does_not_answer(config, capsys, monkeypatch):
    candidate(config, "a", "pets")
    monkeypatch.setattr(events, "SEND_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            cli.main(["models", "promote", "a", "--store", config.store])
    output = capsys.readouterr()
    assert output.out == "champion of pets points at a\n"
    assert "warning: no event was sent to the Prefect server: no answer within" in output.err


def test_time_to_send_is_bounded(config, monkeypatch):
    """Without the bound, the slow client would succeed."""
    version = promote(config.store, "champion", candidate(config, "a", "pets"))
    monkeypatch.setattr(events, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(events, "_send", lambda _: asyncio.sleep(3))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        problem = events.send_move(config.store, "champion", version)
    assert problem == "no answer within 0 s"


@pytest.mark.usefixtures("prefect_server")
def test_failing_event_does_not_fail_the_run(config, monkeypatch):
    candidate(config, "a", "pets")

    def fail(**_: object) -> None:
        raise RuntimeError("too large")

    monkeypatch.setattr(events, "emit_event", fail)

    @flow
    def gate() -> bool:
        promote_model(config, report_of(config, "a", Verdict(passed=True)))
        return promote_model(config, report_of(config, "a", Verdict(passed=False))).verdict.passed

    assert gate() is False
    assert current(config.store, "pets", "champion").model.run_id == "a"
