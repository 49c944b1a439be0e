"""The loop learns, records and reports; it knows nothing of images."""

import copy

import pytest
import torch
from accelerate import Accelerator

from pets_core.config import LRFindConfig, RateSlice
from pets_core.errors import PetsError
from pets_core.objectives import SingleLabel
from pets_core.training.loop import fit, validate
from pets_core.training.lr_finder import lr_find
from pets_core.training.schedule import Phase


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


PHASES = [
    Phase("frozen", 1, -1, RateSlice(1e-2), 0.3, 25.0),
    Phase("unfrozen", 3, 0, RateSlice(2e-2, 2e-3), 0.3, 5.0),
]


def run(model, loader, accelerator, phases=PHASES, valid=True, **keywords):
    torch.manual_seed(1)
    return fit(
        model,
        SingleLabel(),
        loader,
        loader if valid else None,
        phases,
        accelerator=accelerator,
        weight_decay=0.01,
        batch_norm="train",
        **keywords,
    )


def test_training_learns(tiny_model, tiny_loader, accelerator) -> None:
    longer = [PHASES[0], Phase("unfrozen", 30, 0, RateSlice(2e-2, 2e-3), 0.3, 5.0)]
    history = run(tiny_model, tiny_loader, accelerator, longer)
    first, last = history.epochs[0], history.epochs[-1]
    assert last.train_loss < first.train_loss
    assert last.valid_error_rate < 0.35 < first.valid_error_rate


def test_history_has_a_row_a_step_with_each_groups_rate(
    tiny_model, tiny_loader, accelerator
) -> None:
    history = run(tiny_model, tiny_loader, accelerator)
    steps = tiny_loader.num_batches
    assert [row["step"] for row in history.steps] == list(range(4 * steps))
    frozen, unfrozen = history.steps[:steps], history.steps[steps:]
    assert all("lr_group_0" not in row and row["lr_group_2"] > 0 for row in frozen)
    assert all(row["lr_group_0"] == pytest.approx(row["lr_group_2"] / 10) for row in unfrozen)
    assert max(row["lr_group_2"] for row in unfrozen) == pytest.approx(2e-2, rel=0.05)
    assert [e.epoch for e in history.epochs] == [0, 1, 2, 3]


def test_a_frozen_body_does_not_change(tiny_model, tiny_loader, accelerator) -> None:
    before = copy.deepcopy(tiny_model.state_dict())
    run(tiny_model, tiny_loader, accelerator, PHASES[:1])
    after = tiny_model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_the_same_seed_gives_the_same_losses(tiny_model, tiny_loader, accelerator) -> None:
    twin = copy.deepcopy(tiny_model)
    first = run(tiny_model, tiny_loader, accelerator)
    second = run(twin, tiny_loader, accelerator)
    assert [r["loss"] for r in first.steps] == [r["loss"] for r in second.steps]


def test_no_validation_split(tiny_model, tiny_loader, accelerator) -> None:
    history = run(tiny_model, tiny_loader, accelerator, valid=False)
    assert all(epoch.valid_loss is None for epoch in history.epochs)


def test_validation_counts_each_sample_once(tiny_model, tiny_loader, accelerator) -> None:
    loss, error = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    tiny_model.eval()
    with torch.no_grad():
        logits = tiny_model(tiny_loader.inputs)
    expected = torch.nn.functional.cross_entropy(logits, tiny_loader.targets)
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    wrong = (logits.argmax(1) != tiny_loader.targets).float().mean()
    assert error == pytest.approx(wrong.item(), abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model, tiny_loader, accelerator) -> None:
    tiny_loader.inputs[0, 0] = float("nan")
    with pytest.raises(PetsError, match=r"loss is nan at step"):
        run(tiny_model, tiny_loader, accelerator)


def test_progress_is_told_of_every_epoch(tiny_model, tiny_loader, accelerator) -> None:
    told = []
    run(tiny_model, tiny_loader, accelerator, on_progress=told.append)
    epochs = [p for p in told if p.unit == "epochs"]
    assert [p.done for p in epochs] == [1, 2, 3, 4]
    assert "valid error" in epochs[0].detail


def test_the_lr_finder_leaves_no_trace(tiny_model, tiny_loader, accelerator) -> None:
    twin = copy.deepcopy(tiny_model)
    plain = run(twin, tiny_loader, accelerator)
    lr_find(
        tiny_model,
        SingleLabel(),
        tiny_loader,
        LRFindConfig(num_steps=30),
        accelerator=accelerator,
        freeze=-1,
        weight_decay=0.01,
        batch_norm="train",
    )
    after = run(tiny_model, tiny_loader, accelerator)
    assert [r["loss"] for r in plain.steps] == [r["loss"] for r in after.steps]
