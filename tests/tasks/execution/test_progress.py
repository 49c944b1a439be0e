"""Progress as log lines with the time left, if there is no terminal, and as an artifact."""

import threading
import time
from contextlib import closing

import pytest

from pets_core.progress import Progress
from tasks.execution import progress
from tasks.execution.progress import ProgressArtifact, ProgressDisplay


class Lines:
    def __init__(self):
        self.lines = []

    def info(self, template, *values):
        self.lines.append(template % values)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def steps(done, unit="steps", stage="train"):
    return Progress(stage=stage, done=done, total=100, unit=unit, detail="epoch 1/3")


def test_lines_show_the_time_left(clock):
    logger = Lines()
    with closing(ProgressDisplay(logger)) as display:
        for seconds, done in ((0, 20), (5, 25), (20, 40)):
            clock[0] = 100.0 + seconds
            display(steps(done))
    assert logger.lines == ["train 40/100 steps, epoch 1/3, 01:00 left"]


def test_epoch_lines_do_not_change_the_time_left(clock):
    logger = Lines()
    with closing(ProgressDisplay(logger)) as display:
        display(steps(0))
        clock[0] += 2
        display(steps(1, unit="epochs"))
        clock[0] += 18
        display(steps(50))
        display(steps(50, stage="evaluate"))
        clock[0] += 11
        display(steps(61, stage="evaluate"))
    assert logger.lines == [
        "epoch 1/100 epoch 1/3",
        "train 50/100 steps, epoch 1/3, 00:20 left",
        "evaluate 61/100 steps, epoch 1/3, 00:39 left",
    ]


def test_artifact_is_updated_every_few_seconds_in_a_thread(clock, monkeypatch):
    sent, logger = [], Lines()
    logger.warning = logger.info
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(progress, "update_progress_artifact", lambda *call: sent.append(call))
    artifact = ProgressArtifact("training-progress", logger)
    for seconds, done in ((0, 20), (2, 22), (6, 26), (16, 36), (17, 37)):
        clock[0] = 100.0 + seconds
        artifact.update(steps(done))
        artifact._update_thread.join()
    artifact.end()
    assert sent == [
        ("id", 20.0, "train 20/100 steps, epoch 1/3"),
        # An estimate from the first ten seconds would be far off.
        ("id", 26.0, "train 26/100 steps, epoch 1/3"),
        ("id", 36.0, "train 36/100 steps, epoch 1/3, 01:04 left"),
        ("id", 100.0, "done"),
    ]

    def fail(*_):
        raise ConnectionError("no server")

    monkeypatch.setattr(progress, "update_progress_artifact", fail)
    artifact.end()
    assert logger.lines == ["Progress artifact not updated: no server"]


def test_updates_do_not_wait_for_a_server_that_hangs(clock, monkeypatch):
    sent, answers = [], threading.Event()

    def hang(*call):
        sent.append(call[1])
        answers.wait(30)

    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(progress, "update_progress_artifact", hang)
    artifact = ProgressArtifact("training-progress", Lines())
    for done in (20, 30, 40):
        artifact.update(steps(done))
        clock[0] += 10
    answers.set()
    artifact.end()
    assert sent == [20.0, 100.0], "one at a time; updates in between are dropped"
