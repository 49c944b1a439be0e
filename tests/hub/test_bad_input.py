"""Errors of `pets push` and `pets pull`: one line each, an exit code, and nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from huggingface_hub import constants
from model_hub import READER, WRITER, ModelHub

from pets.cli import main as cli
from pets_core.errors import PetsError
from pets_core.hub.address import HubAddress, parse_address
from pets_core.models.card import read_card

ADDRESS = "hf://org/pets"


@pytest.fixture
def failing(capsys):
    """Function that runs a failing command and returns its exit code and its error."""

    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(word) for word in words])
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert output.err.endswith(f"{line}\n"), "the error has one line"
        assert WRITER not in output.err
        assert "signed=key" not in output.err
        return caught.value.code, line.removeprefix("error: ")

    return run


@pytest.fixture
def pushed(hub, model_folder, capsys) -> ModelHub:
    cli.main(["push", str(model_folder), ADDRESS])
    capsys.readouterr()
    return hub


def test_push_without_a_token_stops_before_any_work(hub, failing, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, error = failing("push", "no-such-model", ADDRESS)
    assert code == 2
    assert error.startswith("no token for the Hub: set HF_TOKEN")
    assert hub.requests == []


def test_push_uses_the_stored_login(hub, model_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text(WRITER)
    cli.main(["push", str(model_folder), ADDRESS])
    assert len(hub.repositories["model", "org/pets"].files) == 6


def test_wrong_token(hub, failing, model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, error = failing("push", model_folder, ADDRESS)
    assert (code, error) == (
        2, "hf://org/pets: the Hub rejects the token. Set HF_TOKEN to a valid token"
    )  # fmt: skip


def test_token_without_permission(pushed, failing, model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    code, error = failing("push", model_folder, ADDRESS)
    assert code == 2
    assert "the token has no write permission there" in error


def test_missing_repository_and_revision(pushed, failing, tmp_path):
    code, error = failing("pull", "hf://org/other", "--to", tmp_path / "new")
    assert code == 2
    assert "hf://org/other: no such repository" in error
    code, error = failing("pull", f"{ADDRESS}@v9", "--to", tmp_path / "new")
    assert (code, error) == (2, "hf://org/pets@v9: the repository has no such revision")
    assert not (tmp_path / "new").exists()


def test_private_repository_needs_a_token(pushed, failing, tmp_path, monkeypatch):
    pushed.repositories["model", "org/pets"].private = True
    monkeypatch.delenv("HF_TOKEN")
    code, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    assert (code, "private and HF_TOKEN may not read it" in error) == (2, True)
    monkeypatch.setenv("HF_TOKEN", READER)
    cli.main(["pull", ADDRESS, "--to", str(tmp_path / "new")])


def test_private_push_to_a_public_repository_uploads_nothing(pushed, failing, model_folder):
    code, error = failing("push", model_folder, ADDRESS, "--private")
    assert (code, "exists and is public" in error) == (2, True)
    assert len(pushed.repositories["model", "org/pets"].commits) == 2


def test_private_push_makes_a_private_repository(hub, model_folder):
    cli.main(["push", str(model_folder), ADDRESS, "--private"])
    assert hub.repositories["model", "org/pets"].private


def test_unknown_licence_is_refused_with_the_reason(hub, failing, model_folder):
    code, error = failing("push", model_folder, ADDRESS, "--license", "none-such")
    assert code == 2
    assert "the Hub refuses the files: Invalid metadata in README.md." in error
    assert '"license" must be one of [apache-2.0, mit]' in error


def test_damaged_metadata_of_a_card(hub, failing, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "README.md").write_text("---\ntags: [\n---\n# Model\n")
    code, error = failing("push", folder, ADDRESS)
    assert (code, "README.md: its metadata is damaged YAML" in error) == (2, True)


def test_weights_that_could_not_be_pulled_are_not_pushed(hub, failing, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code, error = failing("push", folder, ADDRESS)
    assert (code, "could not be pulled again" in error) == (2, True)
    assert hub.repositories == {}


def test_unreachable_hub(hub, failing, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for words in (
        ("push", model_folder, ADDRESS),
        ("pull", ADDRESS, "--to", tmp_path / "new"),
        ("predict", ADDRESS, "photo.jpg"),
    ):
        code, error = failing(*words)
        assert code == 1
        assert "the connection to the Hub failed (ConnectError)" in error
        assert "check the network and HF_ENDPOINT" in error


@pytest.mark.parametrize(
    ("request_line", "status", "reason"),
    [
        ("PUT /lfs", 0, "the connection to the Hub failed"),
        ("PUT /lfs", 500, "the Hub failed (HTTP 500)"),
        ("POST .*/commit/", 500, "the Hub failed (HTTP 500)"),
    ],
)
def test_interrupted_upload_commits_nothing(
    pushed, failing, model_folder, request_line, status, reason
):
    before = list(pushed.repositories["model", "org/pets"].commits)
    pushed.failures[request_line] = status
    code, error = failing("push", model_folder, ADDRESS)
    assert code == 1
    assert reason in error
    assert error.endswith("Nothing was committed: run the command again")
    assert list(pushed.repositories["model", "org/pets"].commits) == before
    pushed.failures.clear()
    cli.main(["push", str(model_folder), ADDRESS])
    assert len(pushed.repositories["model", "org/pets"].commits) == len(before) + 1


def test_interrupted_download_leaves_no_folder(pushed, failing, tmp_path):
    pushed.failures["GET .*/resolve/.*head"] = 0
    code, error = failing("pull", ADDRESS, "--to", tmp_path / "folder" / "new")
    assert code == 1
    assert ADDRESS in error
    assert not (tmp_path / "folder").exists()


def test_existing_folder_is_not_replaced(pushed, failing, tmp_path):
    (tmp_path / "new").mkdir()
    pushed.requests.clear()
    code, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    assert (code, "exists: remove it" in error) == (2, True)
    assert pushed.requests == []


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "head.safetensors"])
def test_changed_file_fails_its_checksum(pushed, failing, tmp_path, name):
    repository = pushed.repositories["model", "org/pets"]
    data = bytearray(repository.files[name])
    data[-1] ^= 1
    if name == "model.json":
        data = repository.files[name].replace(b"Birman", b"Other ")
    pushed.add("model", "org/pets", repository.files | {name: bytes(data)})
    code, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    assert code == 2
    assert "fails its checksum: it was changed since `pets push`" in error
    assert not (tmp_path / "new").exists()


def test_truncated_weights(pushed, failing, tmp_path):
    files = pushed.repositories["model", "org/pets"].files
    pushed.add("model", "org/pets", files | {"head.safetensors": b"\0" * 4})
    _, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    assert error == f"{ADDRESS}: model.safetensors or head.safetensors is damaged"


@pytest.mark.parametrize("name", ["pets.json", "model.json", "head.safetensors"])
def test_repository_of_another_tool(pushed, failing, tmp_path, name):
    files = dict(pushed.repositories["model", "org/pets"].files)
    del files[name]
    pushed.add("model", "org/pets", files)
    code, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    expected = f"{ADDRESS} holds no {name}: pull downloads models that `pets push` wrote"
    assert (code, error) == (2, expected)


@pytest.mark.parametrize("name", ["../escaped.json", "/tmp/escaped.json", "a/b.json", "run.py"])
def test_pull_writes_into_its_folder_only(pushed, failing, tmp_path, name):
    files = pushed.repositories["model", "org/pets"].files
    record = json.loads(files["pets.json"])
    record["files"][name] = "0"
    changed = {"pets.json": json.dumps(record).encode(), name: b"{}"}
    pushed.add("model", "org/pets", files | changed)
    _, error = failing("pull", ADDRESS, "--to", tmp_path / "new")
    assert error == f"{ADDRESS}: pets.json is damaged or of a later version"
    assert not (tmp_path / "escaped.json").exists()


@pytest.mark.parametrize(
    "text",
    ["org/pets", "hf://pets", "hf://org/pets/file", "hf://org/../pets", "hf://org/a b",
     "https://host/org/pets?token=secret", "hf://user:secret@org/pets", "hf://org/pets@"],
)  # fmt: skip
def test_target_that_is_no_address(failing, text):
    code, error = failing("push", "model", text)
    assert code == 2
    assert error.endswith("hf://datasets/org/name for a data set")
    assert "secret" not in error


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", HubAddress("model", "org/name")),
        ("hf://org/na.me-1@v1.0", HubAddress("model", "org/na.me-1", "v1.0")),
        ("hf://datasets/org/name@refs/pr/1", HubAddress("dataset", "org/name", "refs/pr/1")),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert str(address) == text


def test_wrong_kinds_and_revisions(hub, failing, model_folder, tmp_path):
    _, error = failing("push", model_folder, f"{ADDRESS}@v1")
    assert error.endswith("a push writes to the default branch: remove @v1")
    _, error = failing("pull", "hf://datasets/org/pets")
    assert "is a data set" in error
    with pytest.raises(PetsError, match=f"{ADDRESS}: download the model first: pets pull"):
        read_card(ADDRESS)
    _, error = failing("push", tmp_path / "none", ADDRESS)
    assert "none" in error
    assert hub.requests == []
