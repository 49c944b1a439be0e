"""A run's folder: a stage that is done is not done again, unless it is asked something else."""

import pytest

from pets_core.config import PipelineConfig
from pets_core.launch import WorkRequest
from pets_core.records import DatasetManifest, LRSuggestion, Run
from pets_core.runs import finish_stage, finished_stage, start_run

ANSWER = LRSuggestion(
    minimum=1e-2, steepest=3.1e-3, valley=1e-4, slide=1e-3, chosen=3.1e-3, suggestion="steepest",
    num_steps=100, seconds=1.5, curve_url="curve.parquet", plot_url="curve.png",
)  # fmt: skip


@pytest.fixture
def request_of(tmp_path):
    def make(**groups) -> WorkRequest:
        config = PipelineConfig.model_validate({"store": str(tmp_path)} | groups)
        return WorkRequest(stage="lr-find", config=config, run_url=str(tmp_path / "runs/1"))

    return make


def test_what_a_stage_answered_is_found_again(request_of):
    assert finished_stage(request_of(), LRSuggestion) is None
    finish_stage(request_of(), ANSWER)
    assert finished_stage(request_of(), LRSuggestion) == ANSWER


def test_another_question_is_asked_anew(request_of):
    finish_stage(request_of(), ANSWER)
    assert finished_stage(request_of(train={"seed": 1}), LRSuggestion) is None
    for elsewhere in ({"launch": {"num_processes": 2}}, {"cache_dir": "another"}):
        assert finished_stage(request_of(**elsewhere), LRSuggestion) == ANSWER
    evaluate = request_of().model_copy(update={"stage": "evaluate"})
    assert finished_stage(evaluate, LRSuggestion) is None


def test_a_run_goes_on_with_the_data_set_it_began_with(tmp_path):
    """Though the source has grown since."""
    first = DatasetManifest(
        name="photos", fingerprint="a", url="store/a", source_url="photos", classes=(), splits={},
        num_quarantined=0, quarantine_reasons={},
    )  # fmt: skip
    grown, url = first.model_copy(update={"fingerprint": "b"}), str(tmp_path / "runs/1")
    assert start_run(PipelineConfig(), first, url) == Run(url=url, manifest=first)
    assert start_run(PipelineConfig(), grown, url) == Run(url=url, manifest=first)
