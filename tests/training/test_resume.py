"""A training that was stopped anywhere goes on to the very weights of one that never was."""

import copy

import pytest
import torch
from accelerate import Accelerator

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.interruption import Interrupted
from pets_core.training.loop import fit
from pets_core.training.schedule import Phase

PHASES = [
    Phase("frozen", 1, -1, RateSlice(1e-2), 0.3, 25.0),
    Phase("unfrozen", 2, 0, RateSlice(2e-2, 2e-3), 0.3, 5.0),
]
SETTINGS = {"batch_norm": "train", "checkpoint_steps": 3, "checkpoint_seconds": 0}
NUM_BATCHES = 3 * (4 + 4)
"""Of training and validation."""
VARIANTS = [
    {},
    pytest.param({"ema_decay": 0.9, "max_grad_norm": 0.1}, marks=pytest.mark.slow),
    pytest.param({"early_stopping_epochs": 1}, marks=pytest.mark.slow),
]


@pytest.fixture
def tiny_loader(tiny_loader):
    """Four steps an epoch."""
    return type(tiny_loader)(64, 16)


class Killed(Exception):  # noqa: N818 - stands for SIGKILL: nothing is tidied up
    pass


class Gate:
    """Ends training before a batch, of training or validation, tidily or not."""

    def __init__(self, last: int, *, tidily: bool) -> None:
        self._last, self._tidily = last, tidily

    def should_continue(self, batch: int) -> bool:
        if batch >= self._last and not self._tidily:
            raise Killed
        return batch < self._last


def train(model, loader, folder=None, stop_signal=None, *, scaled=False, **settings):
    """Every attempt has an accelerator of its own and random numbers in another state."""
    torch.seed()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    if scaled:
        # As fp16 has it, which CPUs do not train in.
        accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    checkpoints = Checkpoints(str(folder), {}) if folder else None
    try:
        return fit(
            model, SingleLabel(), loader, loader, PHASES, TrainConfig(**SETTINGS | settings),
            accelerator=accelerator, checkpoints=checkpoints, stop_signal=stop_signal,
        )  # fmt: skip
    finally:
        if checkpoints:
            checkpoints.wait()


def told(history):
    """All of a history that does not depend on the clock."""
    clock = {"samples_per_second", "data_seconds"}
    rows = [{k: v for k, v in row.items() if k not in clock} for row in history.steps]
    epochs = [e.model_dump(exclude={"seconds", "photos_per_second"}) for e in history.epochs]
    return rows, epochs


def assert_same(model, history, other, other_history) -> None:
    for name, weight in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    for name, weight in other_history.best.weights.items():
        assert torch.equal(history.best.weights[name], weight), name
    assert told(history) == told(other_history)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("tidily", [True, False], ids=["told", "killed"])
def test_stopped_before_any_batch(tiny_model, tiny_loader, tmp_path, settings, tidily):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader, **settings)
    for batch in range(2 * len(expected.steps)):  # as many of validation
        folder = tmp_path / str(batch)
        with pytest.raises(Interrupted if tidily else Killed):
            train(
                copy.deepcopy(tiny_model), tiny_loader, folder,
                Gate(batch, tidily=tidily), **settings,
            )  # fmt: skip
        resumed = copy.deepcopy(tiny_model)
        assert_same(resumed, train(resumed, tiny_loader, folder, **settings), whole, expected)


def test_an_interrupted_fp16_training_resumes(tiny_model, tiny_loader, tmp_path):
    twin = copy.deepcopy(tiny_model)
    history = train(tiny_model, tiny_loader, scaled=True)
    with pytest.raises(Interrupted):
        train(copy.deepcopy(twin), tiny_loader, tmp_path, Gate(10, tidily=True), scaled=True)
    assert_same(twin, train(twin, tiny_loader, tmp_path, scaled=True), tiny_model, history)


def test_stopped_again_and_again(tiny_model, tiny_loader, tmp_path):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader)
    for _ in range(NUM_BATCHES // 5):
        # One more than a validation, which begins anew.
        with pytest.raises(Interrupted):
            train(copy.deepcopy(tiny_model), tiny_loader, tmp_path, Gate(5, tidily=True))
    resumed = copy.deepcopy(tiny_model)
    assert_same(resumed, train(resumed, tiny_loader, tmp_path), whole, expected)


def test_a_training_that_is_over_is_not_repeated(tiny_model, tiny_loader, tmp_path):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader, tmp_path)
    again = copy.deepcopy(tiny_model)
    history = train(again, tiny_loader, tmp_path, Gate(0, tidily=False))
    assert_same(again, history, whole, expected)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_checkpoints_change_nothing(tiny_model, tiny_loader, tmp_path, settings):
    twin = copy.deepcopy(tiny_model)
    expected = train(tiny_model, tiny_loader, **settings)
    assert_same(twin, train(twin, tiny_loader, tmp_path, **settings), tiny_model, expected)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0, {3, 6, 9, 12}), (3600, {4, 8, 12})], ids=["always", "once an hour"]
)
def test_checkpoints_within_an_epoch_are_some_time_apart(
    tiny_model, tiny_loader, tmp_path, monkeypatch, seconds, steps
):
    """Those after an epoch come in any case."""
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, taken, wait=False: saved.append(taken))
    train(tiny_model, tiny_loader, tmp_path, checkpoint_seconds=seconds)
    assert steps <= {taken.step for taken in saved}
    assert seconds == 0 or steps == {taken.step for taken in saved}


def test_only_what_was_left_is_trained_on(tiny_model, tiny_loader, tmp_path):
    """Of the epoch under way, the samples that had their step are not read again."""
    seen = []
    read = tiny_loader.epoch

    def watched(epoch, first=0):
        for batch in read(epoch, first):
            seen.append((epoch, batch.ids))
            yield batch

    with pytest.raises(Interrupted):
        train(copy.deepcopy(tiny_model), tiny_loader, tmp_path, Gate(4 + 4 + 2, tidily=True))
    tiny_loader.epoch = watched
    fit(
        tiny_model, SingleLabel(), tiny_loader, None, PHASES, TrainConfig(**SETTINGS),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        checkpoints=Checkpoints(str(tmp_path), {}),
    )  # fmt: skip
    rest = [batch.ids for batch in read(1)][2:]
    assert [ids for epoch, ids in seen if epoch == 1] == rest
    assert {epoch for epoch, _ in seen} == {1, 2}
