"""Checkpoints: whole or not at all, checked when read, and never in the way of training."""

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
    """Folders that hold something; a memory file system keeps empty ones."""
    folders = sorted(storage.list_folder(url))
    return [name for name in folders if storage.list_folder(storage.join(url, name))]


def test_what_is_read_is_what_was_saved(checkpoints, url):
    assert checkpoints.load() is None
    checkpoints.save(snapshot(7), wait=True)
    read = Checkpoints(url, RESUME_KEY).load()
    assert (read.step, read.steps) == (7, [{"loss": 0.1 * 7}])
    assert read.position == snapshot(7).position
    for name, tensor in snapshot(7).tensors.items():
        assert torch.equal(read.tensors[name], tensor)


def test_the_newest_are_kept(checkpoints, url):
    for step in (5, 10, 100, 1000):
        checkpoints.save(snapshot(step), wait=True)
    assert names(url) == ["step-000000100", "step-000001000"]
    assert checkpoints.load().step == 1000


@pytest.mark.parametrize("file", ["tensors.safetensors", "steps.parquet", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_newest_one_is_named_and_passed_over(checkpoints, url, warnings, file, damage):
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)
    path = storage.join(url, "step-000000010", file)
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 2] ^= 0xFF
    if damage == "gone":
        storage.remove(path)
    else:
        storage.write_bytes(path, bytes(data[: len(data) // 2]) if damage == "cut" else data)
    assert checkpoints.load().step == 5
    assert warnings.pop().endswith("Resuming training from " + storage.join(url, "step-000000005"))
    if (file, damage) == ("checkpoint.json", "gone"):
        assert warnings == [], "without its commit it never was one"
    else:
        assert len(warnings) == 1
        assert "step-000000010, which is damaged" in warnings[0]


def test_a_damaged_one_is_replaced_and_never_kept_for_a_good_one(checkpoints, url, warnings):
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)
    storage.write_bytes(storage.join(url, "step-000000010", "tensors.safetensors"), b"")
    one = Checkpoints(url, RESUME_KEY, keep=1, warn=warnings.append)
    assert one.load().step == 5
    one.save(snapshot(6), wait=True)
    assert names(url) == ["step-000000006"]
    assert one.load().step == 6


def test_a_store_that_cannot_be_read_now_is_no_damage(checkpoints, url, warnings, monkeypatch):
    """Else the training would start over, and remove what it could not read."""
    for step in (5, 10):
        checkpoints.save(snapshot(step), wait=True)

    def away(url):
        raise PetsError(f"{url} cannot be read: 503")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", away)
        with pytest.raises(OSError, match="503"):
            checkpoints.load()
    assert warnings == []
    assert checkpoints.load().step == 10


def test_another_training_is_refused(checkpoints, url):
    checkpoints.save(snapshot(5), wait=True)
    other = Checkpoints(url, RESUME_KEY | {"train.seed": 2})
    differing = r"another training: train\.seed \(checkpoint: 1, this run: 2\)"
    with pytest.raises(PetsError, match=differing):
        other.load()


def test_a_store_that_fails_stops_nothing(tmp_path, warnings):
    url = tmp_path / "checkpoints"
    checkpoints = Checkpoints(str(url), RESUME_KEY, warn=warnings.append)
    checkpoints.save(snapshot(5), wait=True)
    (url / "step-000000010").write_text("a file where a folder is wanted")
    checkpoints.save(snapshot(10), wait=True)
    assert "Could not write the checkpoint of step 10" in warnings[0]
    assert checkpoints.load().step == 5
    checkpoints.save(snapshot(15), wait=True)
    assert checkpoints.load().step == 15


def test_training_does_not_wait_for_the_store(tmp_path, monkeypatch):
    """What still waits gives way to what is newer; the first is being written already."""
    go_on, writing = threading.Event(), storage.writing

    def slow(*arguments):
        assert go_on.wait(30)
        return writing(*arguments)

    monkeypatch.setattr(storage, "writing", slow)
    checkpoints = Checkpoints(str(tmp_path), RESUME_KEY)
    for step in (1, 2, 3):
        checkpoints.save(snapshot(step))
    assert list(Path(tmp_path).iterdir()) == []
    go_on.set()
    checkpoints.wait()
    assert names(str(tmp_path)) == ["step-000000001", "step-000000003"]


def test_what_was_begun_and_left_is_removed(checkpoints, url):
    """A process killed in the middle of writing leaves a folder without its commit."""
    storage.write_bytes(storage.join(url, "step-000000003", "tensors.safetensors"), b"half")
    storage.write_bytes(storage.join(url, "step-000000009", "tensors.safetensors"), b"half")
    checkpoints.save(snapshot(6), wait=True)
    assert names(url) == ["step-000000006", "step-000000009"]
    checkpoints.save(snapshot(9), wait=True)
    assert names(url) == ["step-000000006", "step-000000009"]


def test_old_ones_that_cannot_be_removed_are_no_failed_write(
    checkpoints, url, warnings, monkeypatch
):
    def refused(url):
        raise PermissionError(url)

    monkeypatch.setattr(storage, "remove", refused)
    for step in (1, 2, 3):
        checkpoints.save(snapshot(step), wait=True)
    assert [warning.split(" checkpoints")[0] for warning in warnings] == ["Could not remove old"]
    assert checkpoints.load().step == 3
