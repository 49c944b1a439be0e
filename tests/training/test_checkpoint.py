"""Checkpoints: atomic, verified when read, and written without blocking training."""

import threading
from pathlib import Path

import pytest
import torch

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.training.checkpoint import Checkpoints, Snapshot, TrainingPosition

RESUME_KEY = {"model.backbone": "resnet18", "train.seed": 1, "classes": ("a", "b")}


def snapshot(step: int) -> Snapshot:
    tensors = {"w": torch.arange(4.0).reshape(2, 2) + step, "n": torch.tensor(step)}
    return Snapshot(step, tensors, [{"loss": 0.1 * step}], TrainingPosition(phase=1, seconds=0.1))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture(params=["disk", "memory"])
def url(request, tmp_path) -> str:
    if request.param == "disk":
        return str(tmp_path / "checkpoints")
    return f"memory://{tmp_path.name}/checkpoints"


@pytest.fixture
def checkpoints(url, warnings) -> Checkpoints:
    return Checkpoints(url, RESUME_KEY, warn=warnings.append)


def names(url: str) -> list[str]:
    """Return the folders that are not empty; a memory file system keeps empty ones."""
    folders = sorted(storage.list_folder(url))
    return [name for name in folders if storage.list_folder(storage.join(url, name))]


def test_saved_checkpoint_is_loaded_unchanged(checkpoints, url):
    assert checkpoints.load() is None
    checkpoints.save(snapshot(7), wait=True)
    read = Checkpoints(url, RESUME_KEY).load()
    assert (read.step, read.steps) == (7, [{"loss": 0.1 * 7}])
    assert read.position == snapshot(7).position
    for name, tensor in snapshot(7).tensors.items():
        assert torch.equal(read.tensors[name], tensor)


def test_newest_checkpoints_are_kept(checkpoints, url):
    for step in (5, 10, 100, 1000):
        checkpoints.save(snapshot(step), wait=True)
    assert names(url) == ["step-000000100", "step-000001000"]
    assert checkpoints.load().step == 1000


@pytest.mark.parametrize("file", ["tensors.safetensors", "steps.parquet", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_newest_checkpoint_is_named_and_skipped(checkpoints, url, warnings, file, damage):
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)
    path = storage.join(url, "step-000000010", file)
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 2] ^= 0xFF
    if damage == "missing":
        storage.remove(path)
    else:
        storage.write_bytes(path, bytes(data[: len(data) // 2]) if damage == "truncated" else data)
    assert checkpoints.load().step == 5
    assert warnings.pop().endswith("Resuming training from " + storage.join(url, "step-000000005"))
    if (file, damage) == ("checkpoint.json", "missing"):
        assert warnings == [], "a folder without checkpoint.json is not a checkpoint"
    else:
        assert len(warnings) == 1
        assert "step-000000010, which is damaged" in warnings[0]


def test_damaged_checkpoint_does_not_displace_a_good_one(checkpoints, url, warnings):
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)
    storage.write_bytes(storage.join(url, "step-000000010", "tensors.safetensors"), b"")
    single = Checkpoints(url, RESUME_KEY, keep=1, warn=warnings.append)
    assert single.load().step == 5
    single.save(snapshot(6), wait=True)
    assert names(url) == ["step-000000006"]
    assert single.load().step == 6


def test_unreadable_store_is_not_treated_as_damage(checkpoints, url, warnings, monkeypatch):
    """Otherwise training would restart and remove the checkpoints that it could not read."""
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)

    def unavailable(url):
        raise PetsError(f"{url} cannot be read: 503")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", unavailable)
        with pytest.raises(OSError, match="503"):
            checkpoints.load()
    assert warnings == []
    assert checkpoints.load().step == 10


def test_checkpoint_of_another_training_is_refused(checkpoints, url):
    checkpoints.save(snapshot(5), wait=True)
    other = Checkpoints(url, RESUME_KEY | {"train.seed": 2})
    differing = r"another training: train\.seed \(checkpoint: 1, this run: 2\)"
    with pytest.raises(PetsError, match=differing):
        other.load()


def test_failed_write_does_not_stop_training(tmp_path, warnings):
    url = tmp_path / "checkpoints"
    checkpoints = Checkpoints(str(url), RESUME_KEY, warn=warnings.append)
    checkpoints.save(snapshot(5), wait=True)
    (url / "step-000000010").write_text("a file in place of a folder")
    checkpoints.save(snapshot(10), wait=True)
    assert "Could not write the checkpoint of step 10" in warnings[0]
    assert checkpoints.load().step == 5
    checkpoints.save(snapshot(15), wait=True)
    assert checkpoints.load().step == 15


def test_training_does_not_wait_for_the_store(tmp_path, monkeypatch):
    """A newer checkpoint replaces one that is not being written yet."""
    released, writing = threading.Event(), storage.writing

    def write_when_released(*arguments):
        assert released.wait(30)
        return writing(*arguments)

    monkeypatch.setattr(storage, "writing", write_when_released)
    checkpoints = Checkpoints(str(tmp_path), RESUME_KEY)
    for step in (1, 2, 3):
        checkpoints.save(snapshot(step))
    assert list(Path(tmp_path).iterdir()) == []
    released.set()
    checkpoints.wait()
    assert names(str(tmp_path)) == ["step-000000001", "step-000000003"]


def test_incomplete_checkpoint_is_removed_or_overwritten(checkpoints, url):
    """A process killed while writing leaves a folder without checkpoint.json."""
    storage.write_bytes(storage.join(url, "step-000000003", "tensors.safetensors"), b"half")
    storage.write_bytes(storage.join(url, "step-000000009", "tensors.safetensors"), b"half")
    checkpoints.save(snapshot(6), wait=True)
    assert names(url) == ["step-000000006", "step-000000009"]
    checkpoints.save(snapshot(9), wait=True)
    assert names(url) == ["step-000000006", "step-000000009"]


def test_failed_removal_of_old_checkpoints_is_only_a_warning(
    checkpoints, url, warnings, monkeypatch
):
    def refuse(url):
        raise PermissionError(url)

    monkeypatch.setattr(storage, "remove", refuse)
    for step in (1, 2, 3):
        checkpoints.save(snapshot(step), wait=True)
    assert [warning.split(" checkpoints")[0] for warning in warnings] == ["Could not remove old"]
    assert checkpoints.load().step == 3
