"""A training resumed after any batch ends with the weights of an uninterrupted one."""

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
SETTINGS = {
    "batch_size": 16, "batch_norm": "train", "checkpoint_steps": 3, "checkpoint_seconds": 0
}  # fmt: skip
NUM_BATCHES = 3 * (4 + 4)
"""Batches of training and validation."""
VARIANTS = [
    {},
    pytest.param({"ema_decay": 0.9, "max_grad_norm": 0.1}, marks=pytest.mark.slow),
    pytest.param({"early_stopping_epochs": 1}, marks=pytest.mark.slow),
    pytest.param({"optimizer": "adan"}, marks=pytest.mark.slow),
]


@pytest.fixture
def tiny_loader(tiny_loader):
    """Four steps an epoch."""
    return type(tiny_loader)(64, 16)


class Killed(Exception):  # noqa: N818 - simulates SIGKILL: no clean-up
    pass


class StopBefore:
    """Stop signal that ends training before a batch, of training or validation.

    Args:
        last: Index of the batch.
        graceful: Stop as after SIGTERM; otherwise raise `Killed`.
    """

    def __init__(self, last: int, *, graceful: bool) -> None:
        self._last, self._graceful = last, graceful

    def should_continue(self, batch: int) -> bool:
        if batch >= self._last and not self._graceful:
            raise Killed
        return batch < self._last


def train(model, loader, folder=None, stop_signal=None, *, scaled=False, **settings):
    """Train with a new accelerator and another random state in each attempt."""
    torch.seed()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    if scaled:
        # As in fp16, which CPUs do not train in.
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


def without_times(history):
    """Return the steps and epochs of a history without measured times."""
    measured = {"samples_per_second", "data_seconds"}
    rows = [{k: v for k, v in row.items() if k not in measured} for row in history.steps]
    epochs = [e.model_dump(exclude={"seconds", "photos_per_second"}) for e in history.epochs]
    return rows, epochs


def assert_same(model, history, other, other_history) -> None:
    for name, weight in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    for name, weight in other_history.best.weights.items():
        assert torch.equal(history.best.weights[name], weight), name
    assert without_times(history) == without_times(other_history)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("graceful", [True, False], ids=["interrupted", "killed"])
def test_training_resumes_after_a_stop_before_any_batch(
    tiny_model, tiny_loader, tmp_path, settings, graceful
):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader, **settings)
    for batch in range(2 * len(expected.steps)):  # as many batches of validation
        folder = tmp_path / str(batch)
        with pytest.raises(Interrupted if graceful else Killed):
            train(
                copy.deepcopy(tiny_model), tiny_loader, folder,
                StopBefore(batch, graceful=graceful), **settings,
            )  # fmt: skip
        resumed = copy.deepcopy(tiny_model)
        assert_same(resumed, train(resumed, tiny_loader, folder, **settings), whole, expected)


def test_interrupted_fp16_training_resumes(tiny_model, tiny_loader, tmp_path):
    twin = copy.deepcopy(tiny_model)
    history = train(tiny_model, tiny_loader, scaled=True)
    with pytest.raises(Interrupted):
        train(
            copy.deepcopy(twin), tiny_loader, tmp_path, StopBefore(10, graceful=True), scaled=True
        )
    assert_same(twin, train(twin, tiny_loader, tmp_path, scaled=True), tiny_model, history)


def test_training_resumes_after_repeated_stops(tiny_model, tiny_loader, tmp_path):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader)
    for _ in range(NUM_BATCHES // 5):
        # One more batch than a validation, which starts from its first batch.
        with pytest.raises(Interrupted):
            train(copy.deepcopy(tiny_model), tiny_loader, tmp_path, StopBefore(5, graceful=True))
    resumed = copy.deepcopy(tiny_model)
    assert_same(resumed, train(resumed, tiny_loader, tmp_path), whole, expected)


def test_completed_training_is_not_repeated(tiny_model, tiny_loader, tmp_path):
    whole = copy.deepcopy(tiny_model)
    expected = train(whole, tiny_loader, tmp_path)
    again = copy.deepcopy(tiny_model)
    history = train(again, tiny_loader, tmp_path, StopBefore(0, graceful=False))
    assert_same(again, history, whole, expected)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_checkpoints_do_not_change_the_weights(tiny_model, tiny_loader, tmp_path, settings):
    twin = copy.deepcopy(tiny_model)
    expected = train(tiny_model, tiny_loader, **settings)
    assert_same(twin, train(twin, tiny_loader, tmp_path, **settings), tiny_model, expected)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0, {3, 6, 9, 12}), (3600, {4, 8, 12})], ids=["always", "once an hour"]
)
def test_checkpoint_seconds_limits_checkpoints_within_an_epoch(
    tiny_model, tiny_loader, tmp_path, monkeypatch, seconds, steps
):
    """A checkpoint after each epoch is always written."""
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, taken, wait=False: saved.append(taken))
    train(tiny_model, tiny_loader, tmp_path, checkpoint_seconds=seconds)
    assert steps <= {taken.step for taken in saved}
    assert seconds == 0 or steps == {taken.step for taken in saved}


def test_resumed_epoch_reads_only_the_remaining_batches(tiny_model, tiny_loader, tmp_path):
    """Batches of the current epoch that already had their step are not read again."""
    seen = []
    read = tiny_loader.epoch

    def record_batches(epoch, first=0):
        for batch in read(epoch, first):
            seen.append((epoch, batch.ids))
            yield batch

    with pytest.raises(Interrupted):
        train(
            copy.deepcopy(tiny_model), tiny_loader, tmp_path, StopBefore(4 + 4 + 2, graceful=True)
        )
    tiny_loader.epoch = record_batches
    fit(
        tiny_model, SingleLabel(), tiny_loader, None, PHASES, TrainConfig(**SETTINGS),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        checkpoints=Checkpoints(str(tmp_path), {}),
    )  # fmt: skip
    rest = [batch.ids for batch in read(1)][2:]
    assert [ids for epoch, ids in seen if epoch == 1] == rest
    assert {epoch for epoch, _ in seen} == {1, 2}
