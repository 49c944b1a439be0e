"""The webhook automation: checked by `pets deploy`, and called on a real server."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Queue
from uuid import uuid4

import pytest
import yaml

from pets.cli.deployments import read_files
from pets_core.errors import PetsError

FILES = Path(__file__).parents[2] / "deployments"
PROMOTED = {
    "occurred": "2026-01-01T00:00:00Z",
    "event": "pets.model.promoted",
    "resource": {"prefect.resource.id": "pets.model.photos.champion", "pets.alias": "champion"},
    "payload": {"run_id": "3fa9", "model_url": "s3://bucket/model", "metric": {"value": 0.1}},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PETS_STORE", "/store")
    monkeypatch.setenv("PETS_SOURCE__URL", "/photos")


def test_automation_needs_the_block_of_its_flag():
    block = uuid4()
    file = FILES / "prefect.yaml"
    names = {
        flags: {
            each.name for each in read_files(file, blocks=dict.fromkeys(flags, block)).automations
        }
        for flags in ((), ("notify",), ("webhook",))
    }
    assert names["notify",] - names[()] == {"pets-notify"}
    assert names["webhook",] - names[()] == {"pets-webhook"}
    (webhook,) = [
        each
        for each in read_files(file, blocks={"webhook": block}).automations
        if each.name == "pets-webhook"
    ]
    assert webhook.actions[0].block_document_id == block


def test_error_in_the_automation_is_found_without_the_block(tmp_path):
    for file in FILES.glob("*.yaml"):
        text = file.read_text().replace("type: call-webhook", "type: call-webhooks")
        (tmp_path / file.name).write_text(text)
    with pytest.raises(PetsError, match=r"call-webhooks: no such type\. Did you mean call-webhook"):
        read_files(tmp_path / "prefect.yaml")


@pytest.mark.slow
def test_promotion_calls_the_webhook(server, serve, tmp_path):
    received: Queue[bytes] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    create = (
        "from prefect.blocks.webhook import Webhook\n"
        f"print(Webhook(url={serve(Receiver)!r}).save('ops'))"
    )
    block, _ = server.run("-c", create)
    automations = yaml.safe_load((FILES / "automations.yaml").read_text())["automations"]
    (own,) = [each for each in automations if each["name"] == "pets-webhook"]
    own["actions"][0]["block_document_id"] = block.strip().splitlines()[-1]
    server.request("automations/", own)
    other = PROMOTED | {
        "resource": {"prefect.resource.id": "pets.model.photos.other", "pets.alias": "other"},
        "payload": PROMOTED["payload"] | {"run_id": "of another alias"},
    }

    def is_called() -> bool:
        for number, event in enumerate((other, PROMOTED)):
            now = {"id": str(uuid4()), "occurred": f"2026-01-01T00:00:0{number}Z"}
            server.request("events", [event | now])
        return not received.empty()

    # The server loads a new automation after it has answered, and does not match earlier events.
    server.wait_for(is_called)
    called = {received.get() for _ in range(received.qsize())}
    (body,) = called
    assert json.loads(body) == {"event": "pets.model.promoted", "model": PROMOTED["payload"]}
