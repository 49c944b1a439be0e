"""Where there is no terminal, progress is told in lines, with the time that is left."""

import threading
import time
from contextlib import closing

import pytest

from pets_core.progress import Progress
from tasks.execution import progress
from tasks.execution.progress import ProgressArtifact, ProgressDisplay


class Lines:
    def __init__(self):
        self.told = []

    def info(self, template, *values):
        self.told.append(template % values)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def steps(done, unit="steps", stage="train"):
    return Progress(stage=stage, done=done, total=100, unit=unit, detail="epoch 1/3")


def test_lines_tell_how_long_is_left(clock):
    logger = Lines()
    with closing(ProgressDisplay(logger)) as display:
        for seconds, done in ((0, 20), (5, 25), (20, 40)):
            clock[0] = 100.0 + seconds
            display(steps(done))
    assert logger.told == ["train 40/100 steps, epoch 1/3, 01:00 left"]


def test_every_epoch_is_told_and_does_not_disturb_the_reckoning(clock):
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
    assert logger.told == [
        "epoch 1/100 epoch 1/3",
        "train 50/100 steps, epoch 1/3, 00:20 left",
        "evaluate 61/100 steps, epoch 1/3, 00:39 left",
    ]


def test_an_artifact_is_updated_every_few_seconds_and_never_in_the_way(clock, monkeypatch):
    heard, logger = [], Lines()
    logger.warning = logger.info
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(progress, "update_progress_artifact", lambda *call: heard.append(call))
    artifact = ProgressArtifact("training-progress", logger)
    for seconds, done in ((0, 20), (2, 22), (6, 26), (7, 27)):
        clock[0] = 100.0 + seconds
        artifact.show(steps(done))
        artifact._update_under_way.join()
    artifact.end()
    assert heard == [
        ("id", 20.0, "train 20/100 steps, epoch 1/3"),
        ("id", 26.0, "train 26/100 steps, epoch 1/3, 01:14 left"),
        ("id", 100.0, "done"),
    ]

    def away(*_):
        raise ConnectionError("no server")

    monkeypatch.setattr(progress, "update_progress_artifact", away)
    artifact.end()
    assert logger.told == ["the progress artifact was not updated: no server"]


def test_a_server_that_hangs_is_not_waited_for(clock, monkeypatch):
    heard, answers = [], threading.Event()

    def hang(*call):
        heard.append(call[1])
        answers.wait(30)

    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: "id")
    monkeypatch.setattr(progress, "update_progress_artifact", hang)
    artifact = ProgressArtifact("training-progress", Lines())
    for done in (20, 30, 40):
        artifact.show(steps(done))
        clock[0] += 10
    answers.set()
    artifact.end()
    assert heard == [20.0, 100.0], "one at a time, and what nobody would read is left out"
