"""Linear probe: the head of a model fitted on the features of its frozen body."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pets_core.errors import PetsError
from pets_core.targets.objective import Objective
from pets_core.training.features import Features

__all__ = ["LinearProbe", "fit_linear_probe"]

_RIDGES = tuple(10.0**exponent for exponent in np.arange(1.0, -4.5, -0.5).tolist())
"""Ridge strengths to try, strongest first."""
_PATIENCE = 2
"""Weaker ridges to try after the best one."""
_HELD_OUT = 5
"""Without validation photos, one photo in this many is held out to choose the ridge strength."""
_MAX_ITERATIONS = 100
_BLOCK = 65_536
"""Rows per forward pass, which limits the memory of the logits."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted head.

    Attributes:
        state: State dict of the head, on the host.
        num_samples: Number of training samples.
        ridge: Strength of the L2 penalty.
        tried: Strengths that were tried, each with the loss on validation or held-out photos.
        train_loss: Mean training loss, without the penalty.
        valid_loss: Mean validation loss; None without validation photos.
        valid_metric: Validation metric; None without validation photos.
    """

    state: dict[str, Tensor]
    num_samples: int
    ridge: float
    tried: tuple[tuple[float, float], ...]
    train_loss: float
    valid_loss: float | None
    valid_metric: float | None


@dataclass(frozen=True)
class _Samples:
    """Normalised features, float32 (N, D), and targets, on the device."""

    inputs: Tensor
    targets: Tensor

    def __getitem__(self, rows: Tensor) -> _Samples:
        return _Samples(self.inputs[rows], self.targets[rows])


def fit_linear_probe(
    head: nn.Sequential, objective: Objective, train: Features, valid: Features | None
) -> LinearProbe:
    """Fit a new head with L-BFGS and choose its L2 penalty.

    The objective is that of the kind of target: for classes this is multinomial logistic
    regression, for tags one logistic regression each, for numbers ridge regression. L-BFGS (Liu and
    Nocedal 1989) minimises mean loss + ridge / 2 * sum of squared weights, from the strongest ridge
    to the weakest; the one with the lowest validation loss is used. Without validation photos, it
    is chosen on every fifth training photo, and the head is fitted again on all.

    Args:
        head: Layer normalisation, dropout and a linear layer, as created; not changed.
        objective: Loss and metric.
        train: Training features.
        valid: Validation features, if there are validation photos.

    Raises:
        PetsError: The features of all photos are equal.
    """
    head = copy.deepcopy(head).eval()
    linear = head[-1]
    assert isinstance(linear, nn.Linear)
    samples = _normalise(head, train)
    _check_variation(samples.inputs)
    fitted, evaluated = _split(samples) if valid is None else (samples, _normalise(head, valid))
    ridge, best, tried = _choose_ridge(linear, objective, fitted, evaluated)
    linear.load_state_dict(best)
    if valid is None:
        _minimise(linear, objective, samples, ridge)
    with torch.no_grad():
        train_loss = _mean(objective.loss_sum, linear, samples)
        scores = None
        if valid is not None:
            metric = objective.metric_value(_mean(objective.metric_sum, linear, evaluated))
            scores = _mean(objective.valid_loss_sum, linear, evaluated), metric
    state = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
    return LinearProbe(state, len(train), ridge, tried, train_loss, *(scores or (None, None)))


@torch.no_grad()
def _normalise(head: nn.Sequential, features: Features) -> _Samples:
    device = next(head.parameters()).device
    inputs = torch.empty(features.values.shape, device=device)
    for start in range(0, len(features), _BLOCK):
        block = torch.from_numpy(np.array(features.values[start : start + _BLOCK]))
        inputs[start : start + _BLOCK] = head[0](block.to(device))
    return _Samples(inputs, features.targets.to(device))


def _split(samples: _Samples) -> tuple[_Samples, _Samples]:
    """Hold out every fifth sample; with fewer than five, evaluate on the fitted ones."""
    rows = torch.arange(len(samples.inputs), device=samples.inputs.device)
    is_held_out = rows % _HELD_OUT == _HELD_OUT - 1
    if not is_held_out.any():
        return samples, samples
    return samples[rows[~is_held_out]], samples[rows[is_held_out]]


def _check_variation(inputs: Tensor) -> None:
    if torch.equal(inputs, inputs[:1].expand_as(inputs)) and len(inputs) > 1:
        raise PetsError(
            "the backbone returns the same features for all training photos, so no head can be "
            "fitted: check model.weights and the photos"
        )


def _choose_ridge(
    linear: nn.Linear, objective: Objective, fitted: _Samples, evaluated: _Samples
) -> tuple[float, dict[str, Tensor], tuple[tuple[float, float], ...]]:
    """Return the ridge strength of the lowest loss on `evaluated`, its weights, and all losses."""
    best_loss, best_ridge, best = math.inf, _RIDGES[0], copy.deepcopy(linear.state_dict())
    worse, tried = 0, list[tuple[float, float]]()
    for ridge in _RIDGES:
        _minimise(linear, objective, fitted, ridge)
        with torch.no_grad():
            loss = _mean(objective.valid_loss_sum, linear, evaluated)
        tried.append((ridge, loss))
        if loss < best_loss:
            best_loss, best_ridge, best = loss, ridge, copy.deepcopy(linear.state_dict())
            worse = 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best_ridge, best, tuple(tried)


def _minimise(linear: nn.Linear, objective: Objective, samples: _Samples, ridge: float) -> None:
    """Minimise the penalised loss over the weights and biases, in place."""
    parameters = list(linear.parameters())
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = ridge / 2 * linear.weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        for inputs, targets in _blocks(samples):
            loss = objective.loss_sum(linear(inputs), targets) / len(samples.inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total.detach() + loss.detach()
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _blocks(samples: _Samples) -> list[tuple[Tensor, Tensor]]:
    starts = range(0, len(samples.inputs), _BLOCK)
    return [
        (samples.inputs[start : start + _BLOCK], samples.targets[start : start + _BLOCK])
        for start in starts
    ]


def _mean(
    statistic: Callable[[Tensor, Tensor], Tensor], linear: nn.Linear, samples: _Samples
) -> float:
    """Return a statistic of the head's outputs, averaged over the samples."""
    sums = [float(statistic(linear(inputs), targets)) for inputs, targets in _blocks(samples)]
    return sum(sums) / len(samples.inputs)
