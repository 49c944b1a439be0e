"""Promotion by the verdict, and the final state of a run."""

import logging
from pathlib import Path

import pytest

from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import EvalReport, Metric, Verdict
from pets_core.registry.aliases import Candidate, current, promote
from tasks import evaluate as module
from tasks.evaluate import final_state, point_alias, promote_model

ERROR_RATE = Metric(name="error rate", value=0.1, unit="%")


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    return PipelineConfig(store=str(tmp_path / "store"), gate=GateConfig(promote=True))


def candidate(store: str, run_id: str) -> Candidate:
    """Store the evaluated model of a run."""
    folder = Path(store) / "runs" / run_id
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.json").touch()
    model = Candidate(
        run_id=run_id, model_url=f"store:runs/{run_id}/model", predictions_url="p",
        dataset_name="pets", dataset_fingerprint="f", split="test", tta_views=0,
        backbone="resnet34", metric=ERROR_RATE, num_rows=100, evaluated_at="2026-01-01",
    )  # fmt: skip
    (folder / "evaluation").mkdir()
    (folder / "evaluation/candidate.json").write_text(model.model_dump_json())
    return model


def report_of(store: str, run_id: str, **changes) -> EvalReport:
    fields = {
        "target": "class", "model_url": f"{store}/runs/{run_id}/model", "split": "test",
        "num_rows": 100, "primary": ERROR_RATE, "verdict": Verdict(passed=True),
        "predictions_url": "p", "url": f"{store}/runs/{run_id}/evaluation",
        "photos_per_second": 1.0, "seconds": 1.0,
    }  # fmt: skip
    return EvalReport.model_validate(fields | changes)


def test_passing_model_is_promoted(config, monkeypatch):
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    candidate(config.store, "a")
    report = report_of(config.store, "a")
    assert point_alias.fn(config, report) == report
    assert current(config.store, "pets", "champion").model.run_id == "a"


def test_alias_moved_during_evaluation_rejects_the_model(config):
    promote(config.store, "champion", candidate(config.store, "other"))
    candidate(config.store, "a")
    verdict = point_alias.fn(config, report_of(config.store, "a", champion_version=None)).verdict
    assert not verdict.passed
    assert "champion moved to run other during this evaluation" in verdict.reasons[0]
    assert current(config.store, "pets", "champion").model.run_id == "other"


@pytest.mark.parametrize(("is_on", "passed"), [(False, True), (True, False), (False, False)])
def test_model_is_not_promoted_if_promotion_is_off_or_the_gate_fails(config, is_on, passed):
    config = config.model_copy(update={"gate": GateConfig(promote=is_on)})
    report = report_of(config.store, "a", verdict=Verdict(passed=passed))
    assert promote_model(config, report) is report


def test_run_of_a_rejected_model_ends_as_rejected(config):
    report = report_of(
        config.store, "a", verdict=Verdict(passed=False, reasons=("too bad", "too old"))
    )
    state = final_state(config, report)
    assert (state.name, state.type.value) == ("Rejected", "FAILED")
    assert state.message == "not promoted: too bad; too old"
    passed = report_of(config.store, "a")
    assert final_state(config, passed) is passed
    promotion_off = config.model_copy(update={"gate": GateConfig()})
    assert final_state(promotion_off, report) is report
