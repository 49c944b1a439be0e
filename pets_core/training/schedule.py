"""Schedules of learning rate and momentum, and the phases of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pets_core.config.automatic import automatic_batch_size
from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig

__all__ = [
    "OneCycle",
    "Phase",
    "cosine",
    "few_steps_warning",
    "fine_tune_phases",
    "first_trained_group",
    "group_rates",
]

_FEW_STEPS = 30
_MIN_RATE = 0.1
"""Lowest peak rate of a trained layer group, as a share of the head's, if no group is set."""


def cosine(start: float, end: float, progress: float) -> float:
    """Cosine annealing from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass
class OneCycle:
    """One-cycle policy with cosine annealing (Smith 2018, arXiv:1803.09820; fastai's variant).

    The rate, as a factor of its peak, rises from 1/div to 1 over the first `pct_start` of the
    steps, then falls to 1/div_final. beta1 follows `momenta`: start, at the peak rate, end.
    """

    num_steps: int
    pct_start: float = 0.3
    div: float = 25.0
    div_final: float = 1e5
    momenta: tuple[float, float, float] = (0.95, 0.85, 0.95)
    step: int = 0

    def advance(self) -> tuple[float, float]:
        """Return rate factor and beta1 of the next optimizer step."""
        step, self.step = self.step, self.step + 1
        return self.lr_factor(step), self.momentum(step)

    def lr_factor(self, step: int) -> float:
        """Return the factor of the peak rate at a step from 0 to num_steps - 1."""
        return self._two_phases(step, 1 / self.div, 1.0, 1 / self.div_final)

    def momentum(self, step: int) -> float:
        """Return beta1 at a step from 0 to num_steps - 1."""
        return self._two_phases(step, *self.momenta)

    def _two_phases(self, step: int, start: float, peak: float, end: float) -> float:
        progress = step / self.num_steps
        if progress < self.pct_start:
            return cosine(start, peak, progress / self.pct_start)
        return cosine(peak, end, (progress - self.pct_start) / (1 - self.pct_start))


def group_rates(rates: RateSlice, num_groups: int) -> list[float]:
    """Return the peak rate of each layer group, earliest first (Howard and Ruder 2018).

    `slice(lo, hi)` gives a geometric series from lo to hi, `slice(hi)` gives hi / 10 and hi for
    the last group, and a plain number gives the same rate for all groups.
    """
    if rates.uniform or num_groups == 1:
        return [rates.hi] * num_groups
    if rates.lo is None:
        return [rates.hi / 10] * (num_groups - 1) + [rates.hi]
    ratio = (rates.hi / rates.lo) ** (1 / (num_groups - 1))
    return [rates.lo * ratio**group for group in range(num_groups - 1)] + [rates.hi]


def first_trained_group(rates: Sequence[float]) -> int:
    """Return the first layer group whose peak rate is at least a tenth of the head's.

    At least one group before the head is trained, also in models with one group per backbone.

    Args:
        rates: Peak rate of each layer group, earliest first, head last.
    """
    # The tolerance is for the rounding of the series.
    least = _MIN_RATE * rates[-1] * (1 - 1e-6)
    first = next(group for group, rate in enumerate(rates) if rate >= least)
    return min(first, max(len(rates) - 2, 0))


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs with one one-cycle schedule.

    Attributes:
        name: frozen (body) or unfrozen.
        epochs: Number of epochs.
        freeze_to: First layer group to train, counted as by `groups.freeze_to`.
        lr_max: Peak learning rates.
        pct_start: Share of the steps in which the rate rises.
        div: Peak rate divided by the initial rate.
    """

    name: Literal["frozen", "unfrozen"]
    epochs: int
    freeze_to: int
    lr_max: RateSlice
    pct_start: float
    div: float


def fine_tune_phases(config: TrainConfig, base_lr: float, num_groups: int) -> list[Phase]:
    """Return the phases of fastai's `fine_tune`: first the head, then also other layer groups.

    The peak rate is `base_lr` in the first phase. In the second it is `config.lr_max`, by default
    `slice(top / lr_mult, top)` with top = `base_lr / unfrozen_lr_div`. fastai divides by 2, warms
    up over nearly all steps of the frozen phase and then trains all groups; the defaults here gave
    better results (docs/recipe.md).

    Args:
        config: Settings without automatic values, except `unfreeze_to`.
        base_lr: Peak learning rate of the head.
        num_groups: Number of layer groups of the model.
    """
    assert config.unfrozen_lr_div is not None, "automatic values are resolved"
    assert config.lr_mult is not None, "automatic values are resolved"
    top = base_lr / config.unfrozen_lr_div
    unfrozen = config.lr_max or RateSlice(top, top / config.lr_mult)
    unfreeze_to = config.unfreeze_to
    if unfreeze_to is None:
        first = first_trained_group(group_rates(unfrozen, num_groups))
        # Groups that the frozen epochs train stay trainable.
        unfreeze_to = 0 if config.lr_max else min(first, config.freeze_to % num_groups)
    phases = [
        Phase(
            "frozen",
            config.num_frozen_epochs,
            config.freeze_to,
            RateSlice(base_lr),
            config.pct_start,
            25.0,
        ),
        Phase(
            "unfrozen",
            config.num_unfrozen_epochs,
            unfreeze_to,
            unfrozen,
            config.pct_start,
            5.0,
        ),
    ]
    return [phase for phase in phases if phase.epochs]


def few_steps_warning(config: TrainConfig, num_rows: int) -> str:
    """Return a warning if the recipe takes too few optimizer steps to train a model, else "".

    Args:
        config: Settings without automatic values.
        num_rows: Number of training samples.
    """
    num_steps = config.num_epochs * -(-num_rows // config.batch_size)
    # A probe is trained before any step.
    if config.starts_from_probe or num_steps >= _FEW_STEPS:
        return ""
    batch_size = min(automatic_batch_size(num_rows), config.batch_size)
    epochs = max(-(-_FEW_STEPS // -(-num_rows // batch_size)), config.num_unfrozen_epochs)
    changes = [
        f"train.{name} = {value} (now {now})"
        for name, value, now in (
            ("batch_size", batch_size, config.batch_size),
            ("epochs", epochs, config.num_unfrozen_epochs),
        )
        if value != now
    ]
    return (
        f"Training takes only {num_steps} optimizer steps. With {num_rows} training samples, set "
        f"{' and '.join(changes)}."
    )
