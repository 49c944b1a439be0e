"""Weights from the hub, tested with a local server that follows the hub's protocol."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm
from model_hub import HubHandler, ModelHub

BACKBONE = "test_efficientnet"
FETCH = f"""
import torch
from pets_core.errors import PetsError
from pets_core.models.backbones import create_body
for _ in range(2):
    try:
        body = create_body("{BACKBONE}", "hub", 64)
    except PetsError as error:
        print("error:", error)
    else:
        print("sum", float(sum(p.detach().double().abs().sum() for p in body.parameters())))
"""


@pytest.fixture
def hub(serve) -> tuple[ModelHub, float]:
    """A hub with one model, and the sum of its weights."""
    model = timm.create_model(BACKBONE, num_classes=1000)
    data = safetensors.torch.save(model.state_dict())
    body = timm.create_model(BACKBONE, num_classes=0)
    parameters = {name for name, _ in body.named_parameters()}
    total = sum(
        float(p.detach().double().abs().sum())
        for name, p in model.named_parameters()
        if name in parameters
    )
    state = ModelHub()
    state.url = serve(HubHandler, hub=state)
    state.add("model", timm.get_pretrained_cfg(BACKBONE).hf_hub_id, {"model.safetensors": data})
    return state, total


def fetch(endpoint: str, home: object) -> tuple[str, str]:
    """Create the body twice in a new process, and return both results."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    first, second = done.stdout.strip().splitlines()[-2:]
    return first, second


def test_hub_weights_are_downloaded_once(hub, tmp_path) -> None:
    state, total = hub
    for result in fetch(state.url, tmp_path):
        assert float(result.removeprefix("sum ")) == pytest.approx(total)
    downloads = [line for line in state.requests if line.startswith("GET") and "safet" in line]
    assert len(downloads) == 1, "the second call reads the cache"


def test_hub_without_the_model_is_a_clear_error(hub, tmp_path) -> None:
    state, _ = hub
    state.repositories.clear()
    for output in fetch(state.url, tmp_path):
        assert output.startswith("error: model.weights = hub: the weights of test_efficientnet")
        assert "set model.weights to a file's path or URL" in output
