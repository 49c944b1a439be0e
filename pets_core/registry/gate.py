"""Whether a model may be promoted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.records.evaluation import Comparison, Metric, Verdict, unseen_text

__all__ = ["Gated", "check_gate", "judge"]

_ROUNDING = 1e-9


class Gated(Protocol):
    """What the gate has to know of a kind of target."""

    @property
    def name(self) -> str:
        """Of the kind."""
        ...

    @property
    def metric(self) -> str:
        """Name of the primary metric."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Its direction."""
        ...

    @property
    def metric_range(self) -> tuple[float, float] | None:
        """Its bounds, if it has any."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether samples of this kind carry labels."""
        ...


def check_gate(config: GateConfig, kind: Gated) -> None:
    """Refuse gate settings that have no meaning for a kind of target.

    Raises:
        PetsError: A setting has no meaning, or is outside the metric's bounds.
    """
    limit = "min_score" if kind.higher_is_better else "max_value"
    if kind.metric == "error rate":
        limit = "max_error_rate"
    for name in ("max_error_rate", "min_score", "max_value"):
        value = getattr(config, name)
        if value is not None and name != limit:
            direction = "higher" if kind.higher_is_better else "lower"
            raise PetsError(
                f"gate.{name} = {value:g} has no meaning for targets = {kind.name}, whose metric "
                f"is the {kind.metric} ({direction} is better): set gate.{limit}"
            )
    if kind.metric_range is not None:
        low, high = kind.metric_range
        for name, least in ((limit, low), ("min_improvement", low - high)):
            value = getattr(config, name)
            if value is not None and not least <= value <= high:
                raise PetsError(
                    f"gate.{name} = {value:g}: the {kind.metric} goes from {low:g} to {high:g}; "
                    f"set gate.{name} from {least:g} to {high:g}"
                )
    for name in ("max_drop_per_class", "allow_unseen_classes"):
        if not kind.has_labels and getattr(config, name) not in (None, False):
            raise PetsError(
                f"gate.{name} has no meaning for targets = {kind.name}, which has no classes: "
                "leave it out"
            )


def judge(
    config: GateConfig,
    primary: Metric,
    comparison: Comparison | None = None,
    not_compared: str | None = None,
    num_trained_on: int | None = 0,
    unseen: Sequence[str] = (),
) -> Verdict:
    """Decide whether a model may be promoted, with every reason against it.

    Args:
        config: The gate.
        primary: Primary metric of the model, on all samples.
        comparison: With the champion, if there is one that can be compared.
        not_compared: Why there is one that cannot; a reason against.
        num_trained_on: Samples evaluated that the model was trained on; a reason against.
        unseen: Labels without an evaluated sample; a reason against where there is a champion or
            any setting of the gate, unless they are allowed.
    """
    reasons = _reasons_of_limits(config, primary)
    if num_trained_on:
        reasons.append(
            f"{num_trained_on} of the samples evaluated are among those it was trained on, so its "
            f"{primary.name} is too good: evaluate it on the version of the data set it was "
            "trained on"
        )
    if not_compared:
        reasons.append(not_compared)
    if comparison:
        reasons += _reasons_of_comparison(config, comparison)
    has_gate = config.is_configured or comparison is not None or not_compared is not None
    if unseen and has_gate and not config.allow_unseen_classes:
        reasons.append(
            f"classes {unseen_text(unseen)}. Evaluate on photos of every class, or set "
            "gate.allow_unseen_classes"
        )
    limits = (config.max_error_rate, config.min_score, config.max_value)
    has_condition = any(limit is not None for limit in limits) or comparison is not None
    return Verdict(passed=not reasons, reasons=tuple(reasons), has_condition=has_condition)


def _reasons_of_limits(config: GateConfig, primary: Metric) -> list[str]:
    if not math.isfinite(primary.value):
        return [f"{primary.name} is not a finite number"]
    reasons = []
    for name in ("max_error_rate", "max_value"):
        limit = getattr(config, name)
        if limit is not None and primary.value > limit + _ROUNDING:
            reasons.append(
                f"{primary.name} {primary.format(digits=2)}, at most gate.{name} = "
                f"{primary.format(limit, digits=2)}"
            )
    if config.min_score is not None and primary.value < config.min_score - _ROUNDING:
        reasons.append(
            f"{primary.name} {primary.format(digits=2)}, at least gate.min_score = "
            f"{primary.format(config.min_score, digits=2)}"
        )
    return reasons


def _reasons_of_comparison(config: GateConfig, comparison: Comparison) -> list[str]:
    reasons, gained = [], comparison.improvement.value
    own, champion = comparison.metric, comparison.champion_metric
    if gained < config.min_improvement - _ROUNDING:
        reasons.append(
            f"{own.name} {own.format(digits=2)}, the champion's {champion.format(digits=2)}: "
            f"improved by {own.format_change(gained)}, at least gate.min_improvement = "
            f"{own.format_change(config.min_improvement)}"
        )
    most = config.max_drop_per_class
    if most is not None and comparison.largest_drop > most + _ROUNDING:
        worst = comparison.worse[0]
        reasons.append(
            f"recall of {worst.name} {worst.recall:.1%}, the champion's "
            f"{worst.champion_recall:.1%}: {comparison.largest_drop:.1%} less, at most "
            f"gate.max_drop_per_class = {most:.1%}"
        )
    return reasons
