"""Weights from the hub, tested with a local server that follows the hub's protocol."""

import hashlib
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
import safetensors.torch
import timm

BACKBONE = "test_efficientnet"
FETCH = f"""
import torch
from pets_core.errors import PetsError
from pets_core.models.backbones import create_body
try:
    body = create_body("{BACKBONE}", "hub", 64)
except PetsError as error:
    print("error:", error)
else:
    print("sum", float(sum(p.detach().double().abs().sum() for p in body.parameters())))
"""


@pytest.fixture
def hub(serve) -> tuple[str, float, list[str]]:
    """Address of a hub with one model, the sum of its weights, and a log of the requests."""
    model = timm.create_model(BACKBONE, num_classes=1000)
    data = safetensors.torch.save(model.state_dict())
    body = timm.create_model(BACKBONE, num_classes=0)
    parameters = {name for name, _ in body.named_parameters()}
    total = sum(
        float(p.detach().double().abs().sum())
        for name, p in model.named_parameters()
        if name in parameters
    )
    config = timm.get_pretrained_cfg(BACKBONE)
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def answer(self, send_body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            found = self.path == f"/{config.hf_hub_id}/resolve/main/model.safetensors"
            content = data if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if send_body:
                self.wfile.write(content)

    return serve(Handler), total, requests


def fetch(endpoint: str, home: object) -> str:
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
    return done.stdout.strip().splitlines()[-1]


def test_hub_weights_are_downloaded_once(hub, tmp_path) -> None:
    endpoint, total, requests = hub
    assert float(fetch(endpoint, tmp_path).removeprefix("sum ")) == pytest.approx(total)
    downloads = [line for line in requests if line.startswith("GET") and "safetensors" in line]
    assert len(downloads) == 1
    fetch(endpoint, tmp_path)
    later = [line for line in requests if line.startswith("GET") and "safetensors" in line]
    assert later == downloads, "the second call reads the cache"


def test_hub_without_the_model_is_a_clear_error(hub, tmp_path) -> None:
    endpoint, _, _ = hub
    output = fetch(f"{endpoint}/elsewhere", tmp_path)
    assert output.startswith("error: model.weights = hub: the weights of test_efficientnet")
    assert "set model.weights to a file's path or URL" in output
