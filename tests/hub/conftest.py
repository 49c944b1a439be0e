"""A hub on loopback that huggingface_hub and timm of this process use."""

from pathlib import Path

import huggingface_hub.utils._http as client
import pytest
from huggingface_hub import constants
from model_hub import WRITER, HubHandler, ModelHub


@pytest.fixture
def hub(serve, monkeypatch, tmp_path) -> ModelHub:
    state = ModelHub()
    state.url = serve(HubHandler, hub=state)
    template = f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("PETS_CACHE_DIR", str(tmp_path / "cache"))
    return state


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    from tiny_model import write_tiny_model

    folder = tmp_path_factory.mktemp("hub") / "model"
    write_tiny_model(folder, ("Birman", "Pug", "Sphynx"))
    return folder
