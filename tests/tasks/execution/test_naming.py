"""Names of flow runs."""

import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig
from tasks.execution import naming


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (PipelineConfig(), "sample · tf_efficientnet_lite0 · 224 px"),
        (
            PipelineConfig.model_validate({"source": {"kind": "oxford-iiit-pet"}}),
            "oxford-iiit-pet · tf_efficientnet_lite0 · 224 px",
        ),
        (
            PipelineConfig.model_validate(
                {"source": {"url": "s3://bucket/my cats.zip"}, "model": {"image_size": 96}}
            ),
            "my-cats · tf_efficientnet_lite0 · 96 px",
        ),
        (PipelineConfig.model_validate({"run": {"name": "weekly"}}), "weekly"),
        (RatingsConfig.model_validate({"ratings": {"url": "a/u.data"}}), "a · dot"),
        (RatingsConfig(), "sample-ratings · dot"),
    ],
)
def test_flow_run_is_named_by_data_set_model_and_size(monkeypatch, config, name):
    monkeypatch.setattr(naming, "flow_run", type("", (), {"parameters": {"config": config}}))
    assert naming.flow_run_name() == name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "sample · embed"),
        ({"dataset": "cats"}, "cats · embed"),
        ({"source_url": "s3://bucket/new photos.zip"}, "new-photos · embed"),
        ({"config": PipelineConfig.model_validate({"run": {"name": "weekly"}})}, "weekly"),
    ],
)
def test_other_flow_runs_are_named_by_data_set_and_action(monkeypatch, parameters, name):
    given = {"config": PipelineConfig()} | parameters
    monkeypatch.setattr(naming, "flow_run", type("", (), {"parameters": given}))
    assert naming.named_by_data_set("embed")() == name
