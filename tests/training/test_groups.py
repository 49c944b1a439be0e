"""Freezing, training modes and optimizer groups."""

import pytest
import torch
from torch import nn

from pets_core.models.grouped import GroupedModel
from pets_core.training.groups import freeze_to, set_train_mode
from pets_core.training.optimizer import build_optimizer, set_rates


def trainable(model) -> list[list[bool]]:
    return [[p.requires_grad for p in group] for group in model.layer_groups()]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (-1, [False, False, True]),
        (-2, [False, True, True]),
        (0, [True] * 3),
        (2, [False, False, True]),
    ],
)
def test_freeze_to(tiny_model, first: int, expected: list[bool]) -> None:
    freeze_to(tiny_model, first)
    assert [all(group) for group in trainable(tiny_model)] == expected
    assert [any(group) for group in trainable(tiny_model)] == expected


def test_freeze_then_unfreeze(tiny_model) -> None:
    freeze_to(tiny_model, -1)
    freeze_to(tiny_model, 0)
    assert all(p.requires_grad for p in tiny_model.parameters())


@pytest.mark.parametrize("first", [3, -4])
def test_unknown_group_is_an_error(tiny_model, first: int) -> None:
    with pytest.raises(ValueError, match=r"3 layer groups"):
        freeze_to(tiny_model, first)


def test_frozen_layers_are_in_evaluation_mode(tiny_model) -> None:
    freeze_to(tiny_model, -1)
    set_train_mode(tiny_model, "train")
    assert tiny_model.head.training
    assert not tiny_model.first[1].training, "a frozen batch norm must not move"
    assert not tiny_model.second[1].training, "a frozen body must not drop units"


def test_frozen_batch_norm_in_an_unfrozen_body(tiny_model) -> None:
    freeze_to(tiny_model, 0)
    set_train_mode(tiny_model, "frozen")
    assert not tiny_model.first[1].training
    assert tiny_model.second[1].training, "dropout of trainable layers is on"
    set_train_mode(tiny_model, "train")
    assert tiny_model.first[1].training


def test_tensors_that_train_drops_are_dropped():
    """As LeViT, which caches attention biases in evaluation mode."""

    class Caching(nn.Linear):
        cache = None

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.cache = None if mode else "biases"
            return self

    body = nn.Sequential(Caching(2, 2))
    body.eval()
    set_train_mode(body, "frozen")
    assert body[0].cache is None
    body.requires_grad_(False)
    set_train_mode(body, "frozen")
    assert body[0].cache == "biases"


def test_weight_decay_excludes_biases_and_norms(tiny_model) -> None:
    freeze_to(tiny_model, 0)
    optimizer = build_optimizer(tiny_model, [1e-5, 1e-4, 1e-3], weight_decay=0.01)
    num_parameters = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
            num_parameters += 1
        assert group["lr"] == pytest.approx(10.0 ** (group["layer_group"] - 5))
    assert num_parameters == len(list(tiny_model.parameters()))


def test_weight_decay_excludes_embeddings_of_biases() -> None:
    class Model(GroupedModel):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Embedding(5, 1)
            self.factors = nn.Embedding(5, 3)
            self.layer = nn.Linear(3, 1)

        def layer_groups(self) -> list[list[nn.Parameter]]:
            return [list(self.parameters())]

    model = Model()
    optimizer = build_optimizer(model, [0.1], weight_decay=0.5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups
              for p in group["params"]}  # fmt: skip
    found = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {
        "bias.weight": 0.0, "factors.weight": 0.5, "layer.weight": 0.5, "layer.bias": 0.0
    }  # fmt: skip


def test_frozen_parameters_are_not_in_the_optimizer(tiny_model) -> None:
    freeze_to(tiny_model, -1)
    optimizer = build_optimizer(tiny_model, [1e-5, 1e-4, 1e-3], weight_decay=0.01)
    assert {group["layer_group"] for group in optimizer.param_groups} == {2}


def test_weight_decay_is_decoupled(tiny_model) -> None:
    """With a zero gradient, a step multiplies weights by 1 - lr * weight_decay."""
    freeze_to(tiny_model, 0)
    before = tiny_model.head.weight.detach().clone()
    optimizer = build_optimizer(tiny_model, [0.1, 0.1, 0.1], weight_decay=0.5)
    for parameter in tiny_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(tiny_model.head.weight, before * (1 - 0.1 * 0.5))


def test_set_rates_keeps_the_proportions(tiny_model) -> None:
    freeze_to(tiny_model, 0)
    optimizer = build_optimizer(tiny_model, [1e-5, 1e-4, 1e-3], weight_decay=0.0)
    assert set_rates(optimizer, 0.5, 0.9) == pytest.approx({0: 5e-6, 1: 5e-5, 2: 5e-4})
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99)}
