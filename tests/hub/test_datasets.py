"""Data sets on the Hub: pushed, and opened by `load_dataset` from a hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pets.cli import main as cli
from pets_core.data.ingest.commit import ingest

ADDRESS = "hf://datasets/org/pets"
LOAD = """
import json
from datasets import load_dataset

data = load_dataset("org/pets")
first = data["train"][0]
print(json.dumps({
    "rows": {split: len(rows) for split, rows in data.items()},
    "features": {name: type(f).__name__ for name, f in data["train"].features.items()},
    "names": data["train"].features["label"].names,
    "ids": {split: rows["id"][:] for split, rows in data.items()},
    "size": first["image"].size,
    "label": first["label"],
    "text": first["target_text"],
}))
"""


@pytest.fixture
def manifest(small_config, monkeypatch):
    monkeypatch.setenv("PETS_STORE", small_config.store)
    return ingest(small_config)


@pytest.fixture
def push(hub, manifest):
    """Function that pushes the data set and returns the files of the repository."""

    def run(*flags: str) -> dict[str, bytes]:
        cli.main(["push", manifest.name, ADDRESS, *flags])
        return hub.repositories["dataset", "org/pets"].files

    return run


def test_push_uploads_the_shards_and_a_card_that_names_the_splits(push, manifest):
    files = push("--license", "cc-by-sa-4.0")
    num_shards = sum(len(info.shards) for info in manifest.splits.values())
    assert len(files) == num_shards + 1
    _, front, text = files["README.md"].decode().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "cc-by-sa-4.0"
    assert metadata["task_categories"] == ["image-classification"]
    assert metadata["configs"][0]["data_files"] == [
        {"split": split, "path": f"data/{split}-*"} for split in ("train", "validation", "test")
    ]
    assert manifest.fingerprint in text


def test_later_push_removes_the_files_of_an_earlier_version(push, hub):
    files = push()
    old = {"data/train-00009-of-00010.parquet": b"old", "notes.txt": b"kept"}
    hub.add("dataset", "org/pets", files | old)
    assert push().keys() == files.keys() | {"notes.txt"}


def test_damaged_shard_is_not_pushed(push, hub, manifest, capsys):
    shard = Path(manifest.files("test")[0])
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SystemExit) as caught:
        push()
    assert caught.value.code == 2
    assert "fails its checksum" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.slow
def test_load_dataset_opens_splits_photos_and_classes(push, hub, manifest, tmp_path):
    push()
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
    found = json.loads(done.stdout.splitlines()[-1])
    names = {"train": "train", "valid": "validation", "test": "test"}
    assert found["rows"] == {
        names[split]: info.num_rows for split, info in manifest.splits.items() if info.num_rows
    }
    assert found["features"]["image"] == "Image"
    assert found["features"]["label"] == "ClassLabel"
    assert found["names"] == list(manifest.class_names)
    assert found["names"][found["label"]] == found["text"]
    assert len(found["size"]) == 2
    every = [each for ids in found["ids"].values() for each in ids]
    assert len(set(every)) == manifest.num_rows
