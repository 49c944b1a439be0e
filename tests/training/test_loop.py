"""Training loop: learning, history, progress and errors, without images."""

import copy

import pytest
import torch
from accelerate import Accelerator

from pets_core.config.rates import RateSlice
from pets_core.config.train import LRFindConfig, TrainConfig
from pets_core.errors import PetsError
from pets_core.progress import ignore_progress
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.loop import fit
from pets_core.training.lr_finder import lr_find
from pets_core.training.schedule import Phase
from pets_core.training.validation import validate


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


PHASES = [
    Phase("frozen", 1, -1, RateSlice(1e-2), 0.3, 25.0),
    Phase("unfrozen", 3, 0, RateSlice(2e-2, 2e-3), 0.3, 5.0),
]


def run(model, loader, accelerator, phases=PHASES, valid=True, seed=1, **settings):
    on_progress = settings.pop("on_progress", ignore_progress)
    objective = settings.pop("objective", SingleLabel())
    if seed is not None:
        torch.manual_seed(seed)
    return fit(
        model,
        objective,
        loader,
        loader if valid else None,
        phases,
        TrainConfig(**{"batch_norm": "train", "batch_size": 16} | settings),
        accelerator=accelerator,
        on_progress=on_progress,
    )


def test_training_lowers_loss_and_metric(tiny_model, tiny_loader, accelerator) -> None:
    longer = [PHASES[0], Phase("unfrozen", 30, 0, RateSlice(2e-2, 2e-3), 0.3, 5.0)]
    history = run(tiny_model, tiny_loader, accelerator, longer)
    first, last = history.epochs[0], history.epochs[-1]
    assert last.train_loss < first.train_loss
    assert last.valid_metric < 0.35 < first.valid_metric


def test_history_has_a_row_per_step_with_the_rate_of_each_group(
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


def test_history_without_a_validation_split(tiny_model, tiny_loader, accelerator) -> None:
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


def test_non_finite_loss_stops_the_run(tiny_model, tiny_loader, accelerator) -> None:
    tiny_loader.inputs[0, 0] = float("nan")
    with pytest.raises(PetsError, match=r"loss is nan at step"):
        run(tiny_model, tiny_loader, accelerator)


def test_progress_reports_every_epoch(tiny_model, tiny_loader, accelerator) -> None:
    reports = []
    run(tiny_model, tiny_loader, accelerator, on_progress=reports.append)
    epochs = [p for p in reports if p.unit == "epochs"]
    assert [p.done for p in epochs] == [1, 2, 3, 4]
    assert "valid error" in epochs[0].detail


def test_accumulation_does_not_change_the_losses(tiny_model, tiny_loader, accelerator) -> None:
    """Without dropout and with frozen batch norm, 16 x 1, 4 x 4 and 1 x 16 give the same losses."""
    tiny_model.second[1].p = 0.0
    losses = [
        [
            row["loss"]
            for row in fit(
                copy.deepcopy(tiny_model), SingleLabel(), tiny_loader, None, PHASES,
                TrainConfig(batch_norm="frozen", micro_batch_size=size), accelerator=accelerator,
            ).steps
        ]
        for size in (0, 1, 4)
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_history_holds_throughput_data_time_and_gradient_norms(
    tiny_model, tiny_loader, accelerator
) -> None:
    history = run(tiny_model, tiny_loader, accelerator)
    for row in history.steps:
        assert row["samples_per_second"] > 0
        assert row["data_seconds"] >= 0
        assert row["grad_norm"] > 0
        assert 0.85 <= row["momentum"] <= 0.95


def test_zero_first_gradient_is_an_error(tiny_model, tiny_loader, accelerator) -> None:
    for weight in tiny_model.parameters():
        weight.register_hook(torch.zeros_like)
    with pytest.raises(RuntimeError, match="the first of its phase, is zero"):
        run(tiny_model, tiny_loader, accelerator)


def test_error_of_a_bad_batch_names_its_samples(tiny_model, tiny_loader, accelerator) -> None:
    tiny_loader.inputs[0, 0] = float("nan")
    with pytest.raises(PetsError, match=r"row-0\b"):
        run(tiny_model, tiny_loader, accelerator)


def test_fp16_gradients_that_always_overflow_stop_the_run(tiny_model, tiny_loader) -> None:
    """The scaler would skip every step, so nothing would be trained."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    accelerator.scaler = torch.amp.GradScaler("cpu")
    handle = tiny_model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    phases = [Phase("frozen", 10, -1, RateSlice(1e-2), 0.3, 25.0)]
    with pytest.raises(PetsError, match=r"changes the weights: set train\.mixed_precision = bf16"):
        run(tiny_model, tiny_loader, accelerator, phases)
    handle.remove()
    accelerator.scaler = torch.amp.GradScaler("cpu")
    run(tiny_model, tiny_loader, accelerator, phases)


def valid_loss(model, loader, accelerator):
    return validate(model, SingleLabel(), loader, accelerator)[0]


def test_best_weights_have_the_lowest_validation_loss(tiny_model, tiny_loader, accelerator) -> None:
    unstable = [Phase("unfrozen", 12, 0, RateSlice(2.0, uniform=True), 0.3, 25.0)]
    history = run(tiny_model, tiny_loader, accelerator, unstable)
    losses = [epoch.valid_loss for epoch in history.epochs]
    assert losses.index(min(losses)) < len(losses) - 1, "otherwise the test proves nothing"
    assert valid_loss(tiny_model, tiny_loader, accelerator) == pytest.approx(losses[-1], rel=1e-5)
    tiny_model.load_state_dict(history.best.weights)
    assert valid_loss(tiny_model, tiny_loader, accelerator) == pytest.approx(min(losses), rel=1e-5)


def test_early_stopping_ends_a_phase_and_starts_the_next(
    tiny_model, tiny_loader, accelerator
) -> None:
    tiny_rate = RateSlice(1e-12, uniform=True)
    phases = [
        Phase("frozen", 10, -1, tiny_rate, 0.3, 25.0),
        Phase("unfrozen", 10, 0, tiny_rate, 0.3, 25.0),
    ]

    class NeverBetter(SingleLabel):
        def valid_loss_sum(self, logits, targets):
            return super().valid_loss_sum(logits, targets) * 0 + len(targets)

    history = run(
        tiny_model, tiny_loader, accelerator, phases,
        early_stopping_epochs=3, objective=NeverBetter(),
    )  # fmt: skip
    assert [e.phase for e in history.epochs] == ["frozen"] * 4 + ["unfrozen"] * 3


def test_ema_is_the_running_mean_of_the_weights(tiny_model, tiny_loader, accelerator) -> None:
    """Compare with the mean over the weights of each step, with timm's warm-up of the decay."""
    mean, step = copy.deepcopy(tiny_model.state_dict()), 0

    def update_mean(model, *_):
        nonlocal step
        step += 1
        decay = 0.0 if step == 1 else min(0.9, 1 - (1 + (step - 1)) ** (-2 / 3))
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                mean[name] = decay * mean[name] + (1 - decay) * weight

    original = torch.optim.AdamW.step

    def step_and_update(self, *args, **keywords):
        result = original(self, *args, **keywords)
        update_mean(tiny_model)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step_and_update)
        history = run(tiny_model, tiny_loader, accelerator, ema_decay=0.9)
    assert step == 4 * tiny_loader.num_batches
    for name, weight in tiny_model.state_dict().items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, mean[name], rtol=1e-4, atol=1e-6)
    loss, _ = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    assert history.epochs[-1].valid_loss == pytest.approx(loss), "validation uses the mean"


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tiny_model, tiny_loader, accelerator) -> None:
    tiny_model.second[1].p = 0.0
    twin = copy.deepcopy(tiny_model)
    plain = run(tiny_model, tiny_loader, accelerator)
    compiled = run(twin, tiny_loader, accelerator, compile=True)
    assert [r["loss"] for r in compiled.steps] == pytest.approx(
        [r["loss"] for r in plain.steps], rel=1e-3
    )
    assert twin._compiled_call_impl is None, "the returned model is not compiled"


def test_lr_finder_restores_weights_and_random_state(tiny_model, tiny_loader, accelerator) -> None:
    """The dropout of the training that follows draws the same random numbers."""
    twin = copy.deepcopy(tiny_model)
    torch.manual_seed(1)
    plain = run(twin, tiny_loader, accelerator, seed=None)
    torch.manual_seed(1)
    lr_find(
        tiny_model,
        SingleLabel(),
        tiny_loader,
        LRFindConfig(num_steps=30),
        TrainConfig(freeze_epochs=0, batch_norm="train", batch_size=16),
        accelerator=accelerator,
    )
    after = run(tiny_model, tiny_loader, accelerator, seed=None)
    assert [r["loss"] for r in plain.steps] == [r["loss"] for r in after.steps]
