"""One optimizer step: accumulation, clipping, non-finite values and step metrics."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.targets.classes.objective import SingleLabel, balanced_weights
from pets_core.training.loop import train_step
from pets_core.training.prepared import prepare
from pets_core.training.step_metrics import StepRows


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


def prepare_all(model, loader, accelerator, objective=None, **settings):
    """Prepare all layers for training; evaluation mode keeps the samples independent."""
    config = TrainConfig(weight_decay=0.0, **settings)
    rates = RateSlice(1e-2, uniform=True)
    prepared = prepare(model, objective or SingleLabel(), loader, config, accelerator, 0, rates)
    prepared.model.eval()
    return prepared


def one_step(model, loader, accelerator, **settings):
    prepared = prepare_all(model, loader, accelerator, **settings)
    return train_step(prepared, next(loader.epoch(0)))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5, 8, 16, 99])
def test_accumulation_does_not_change_the_step(
    tiny_model, tiny_loader, accelerator, micro_batch_size
):
    twin = copy.deepcopy(tiny_model)
    whole = one_step(tiny_model, tiny_loader, accelerator)
    parts = one_step(twin, tiny_loader, accelerator, micro_batch_size=micro_batch_size)
    torch.testing.assert_close(parts.loss_sum, whole.loss_sum)
    torch.testing.assert_close(parts.grad_norm, whole.grad_norm)
    for name, weight in tiny_model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_large_gradient_is_clipped_and_its_norm_returned(tiny_model, tiny_loader, accelerator):
    clipped = []

    class LargeLoss(SingleLabel):
        def loss_sum(self, logits, targets):
            return 1e3 * super().loss_sum(logits, targets)

    prepared = prepare_all(tiny_model, tiny_loader, accelerator, LargeLoss(), max_grad_norm=0.5)
    prepared.optimizer.optimizer.register_step_pre_hook(
        lambda *_: clipped.extend(p.grad.clone() for p in tiny_model.parameters())
    )
    result = train_step(prepared, next(tiny_loader.epoch(0)))
    norm = torch.cat([g.flatten() for g in clipped]).norm()
    assert result.grad_norm > 100
    assert norm.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradient_does_not_change_the_weights(
    tiny_model, tiny_loader, accelerator, value, optimizer
):
    """A fused optimizer skips the step on the device, another one on the host."""
    before = copy.deepcopy(tiny_model.state_dict())
    tiny_loader.inputs[:] = value
    result = one_step(tiny_model, tiny_loader, accelerator, optimizer=optimizer)
    assert not result.grad_norm.isfinite()
    for name, weight in before.items():
        assert torch.equal(weight, tiny_model.state_dict()[name]), name


def step_rows(first_step, num_steps, *, scaled=False, starts_phase=False):
    """Return empty rows, on a CPU; the scaler of a scaled training has a scale of 1."""
    scaler = SimpleNamespace(get_scale=lambda: 1.0) if scaled else None
    accelerator = SimpleNamespace(device=torch.device("cpu"), scaler=scaler)
    return StepRows([], first_step, num_steps, accelerator, starts_phase=starts_phase)


def add_step(loss, norm, scaled=False):
    rows, rates = step_rows(41, 1, scaled=scaled), {0: 1e-5, 1: 1e-3}
    rows.add(torch.tensor(loss), torch.tensor(norm), ["a.jpg", "b.jpg"], rates, {}, 2)


def test_error_names_step_rates_and_photos():
    with pytest.raises(PetsError) as caught:
        add_step(float("nan"), 1.0)
    for text in ("loss is nan at step 41", "1.00e-05, 1.00e-03", "a.jpg, b.jpg", "train.base_lr"):
        assert text in str(caught.value)
    with pytest.raises(PetsError, match="gradient norm is inf at step 41"):
        add_step(1.0, float("inf"))


def test_gradient_scaler_handles_infinite_gradients_but_not_infinite_losses():
    add_step(1.0, float("inf"), scaled=True)
    with pytest.raises(PetsError, match="loss is inf"):
        add_step(float("inf"), 1.0, scaled=True)


def add_first_step(loss, norm, *, starts_phase=True):
    rows = step_rows(7, 2, starts_phase=starts_phase)
    rows.add(torch.tensor(loss), torch.tensor(norm), ["a.jpg"], {0: 1e-5}, {}, 1)
    return rows


def test_zero_first_gradient_is_an_error():
    """Nothing would be trained, and no later step would show it."""
    with pytest.raises(RuntimeError, match="gradient at step 7, the first of its phase, is zero"):
        add_first_step(1.0, 0.0)
    add_first_step(0.0, 0.0)
    add_first_step(1.0, 0.0, starts_phase=False)
    later = add_first_step(1.0, 0.5)
    later.add(torch.tensor(1.0), torch.tensor(0.0), ["b.jpg"], {0: 1e-5}, {}, 1)


def test_label_smoothing_and_class_weights():
    logits, targets = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    log = logits.log_softmax(1)
    smoothed = -(0.9 * log[[0, 1], targets] + 0.1 * log.mean(1)).sum()
    torch.testing.assert_close(SingleLabel(0.1).loss_sum(logits, targets), smoothed)
    weights = torch.tensor([3.0, 1.0, 0.5])
    weighted = -(weights[targets] * log[[0, 1], targets]).sum()
    torch.testing.assert_close(SingleLabel(0.0, weights).loss_sum(logits, targets), weighted)
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    mixed = -(shares * log).sum()
    torch.testing.assert_close(SingleLabel().loss_sum(logits, shares), mixed)
    plain = -log[[0, 1], targets].sum()
    torch.testing.assert_close(SingleLabel(0.1, weights).valid_loss_sum(logits, targets), plain)


def test_balanced_weights_match_scikit_learn_and_average_to_one():
    counts = [10, 40, 0, 50]
    weights = balanced_weights(counts)
    assert weights.tolist() == pytest.approx([100 / 30, 100 / 120, 0, 100 / 150])
    assert np.average(weights[[0, 1, 3]], weights=[10, 40, 50]) == pytest.approx(1)
