"""Optimizers by name: every usable one of timm resumes exactly."""

import copy

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from pets_core.errors import PetsError
from pets_core.training.optimizer import (
    build_optimizer,
    check_optimizer,
    group_state,
    parameter_state,
    restore_group_state,
    set_rates,
    with_numbers,
)

CPU = torch.device("cpu")
UNUSABLE = {
    name
    for name in list_optimizers()
    # These need CUDA, a second derivative, or keep lists of matrices.
    if name.startswith(("bnb", "fused", "kron")) or name == "adahessian"
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    set_rates(optimizer, 1 - 0.1 * number, 0.9 - 0.01 * number)
    generator = torch.Generator().manual_seed(number)
    model(torch.randn(8, 4, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", sorted(set(list_optimizers()) - UNUSABLE))
def test_restored_optimizer_continues_exactly(tiny_model, name) -> None:
    tiny_model.eval()  # without dropout
    rates = [1e-4, 1e-3, 1e-2]
    optimizer = build_optimizer(tiny_model, rates, 0.01, name)
    for number in range(3):
        step(tiny_model, optimizer, number)
    twin = copy.deepcopy(tiny_model)
    restored = build_optimizer(twin, rates, 0.01, name)
    pairs = zip(tiny_model.parameters(), twin.parameters(), strict=True)
    for parameter, own in pairs:
        state = with_numbers(copy.deepcopy(parameter_state(optimizer, parameter)))
        if state:
            restored.state[own] = state
    restore_group_state(restored, copy.deepcopy(group_state(optimizer)))
    for number in range(3, 6):
        step(tiny_model, optimizer, number)
        step(twin, restored, number)
    for weight, own in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        assert weight.isfinite().all()
        assert torch.equal(weight, own)


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_unusable_optimizer_is_refused(name) -> None:
    with pytest.raises(PetsError, match=rf"train.optimizer = {name} cannot be used"):
        check_optimizer(name, CPU)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "muon", "adan"])
def test_usable_optimizer_passes_the_check(name) -> None:
    check_optimizer(name, CPU)


def test_unknown_optimizer_lists_similar_names() -> None:
    with pytest.raises(PetsError, match=r"'adamv' is not an optimizer of timm. Did you mean adam"):
        check_optimizer("adamv", CPU)


@pytest.mark.parametrize(("name", "key"), [("sgd", "momentum"), ("lion", "betas")])
def test_momentum_follows_the_schedule(tiny_model, name, key) -> None:
    optimizer = build_optimizer(tiny_model, [1e-4, 1e-3, 1e-2], 0.01, name)
    set_rates(optimizer, 1.0, 0.7)
    found = {group[key] if key == "momentum" else group[key][0] for group in optimizer.param_groups}
    assert found == {0.7}


def test_optimizer_without_momentum_keeps_none(tiny_model) -> None:
    optimizer = build_optimizer(tiny_model, [1e-4, 1e-3, 1e-2], 0.01, "adadelta")
    set_rates(optimizer, 1.0, 0.7)
    assert all("momentum" not in group for group in optimizer.param_groups)
