"""Promotion gate: the conditions a model must meet to be promoted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.records.evaluation import Comparison, Metric, Verdict, unseen_text
from pets_core.targets.base import Target

__all__ = ["check_gate", "evaluate_gate"]

_ROUNDING = 1e-9


def check_gate(config: GateConfig, kind: Target) -> None:
    """Check that the gate settings apply to a kind of target.

    Raises:
        PetsError: A setting does not apply, or is outside the bounds of the metric.
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
        for name, lowest in ((limit, low), ("min_improvement", low - high)):
            value = getattr(config, name)
            if value is not None and not lowest <= value <= high:
                raise PetsError(
                    f"gate.{name} = {value:g}: the {kind.metric} goes from {low:g} to {high:g}; "
                    f"set gate.{name} from {lowest:g} to {high:g}"
                )
    for name in ("max_drop_per_class", "allow_unseen_classes"):
        if not kind.has_labels and getattr(config, name) not in (None, False):
            raise PetsError(
                f"gate.{name} has no meaning for targets = {kind.name}, which has no classes: "
                "remove it"
            )


def evaluate_gate(
    config: GateConfig,
    primary: Metric,
    comparison: Comparison | None = None,
    comparison_error: str | None = None,
    num_trained_on: int | None = 0,
    unseen: Sequence[str] = (),
) -> Verdict:
    """Return the gate's verdict on a model, with all reasons against its promotion.

    Args:
        config: Settings of the gate.
        primary: Primary metric of the model on all samples.
        comparison: Comparison with the champion, if there is one and it is comparable.
        comparison_error: Why the champion cannot be compared; this fails the gate.
        num_trained_on: Number of evaluated samples that the model was trained on; a number above 0
            fails the gate.
        unseen: Labels without an evaluated sample. They fail the gate if there is a champion or any
            setting of the gate, unless `config.allow_unseen_classes` is set.
    """
    reasons = _reasons_of_limits(config, primary)
    if num_trained_on:
        reasons.append(
            f"the model was trained on {num_trained_on} of the evaluated samples, which makes its "
            f"{primary.name} too optimistic: evaluate it on the version of the data set it was "
            "trained on"
        )
    if comparison_error:
        reasons.append(comparison_error)
    if comparison:
        reasons += _reasons_of_comparison(config, comparison)
    has_gate = config.is_configured or comparison is not None or comparison_error is not None
    if unseen and has_gate and not config.allow_unseen_classes:
        reasons.append(
            f"labels {unseen_text(unseen)}. Evaluate a split that has photos of each of them, "
            "or set gate.allow_unseen_classes"
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
                f"{primary.name} {primary.format(digits=2)} exceeds gate.{name} = "
                f"{primary.format(limit, digits=2)}"
            )
    if config.min_score is not None and primary.value < config.min_score - _ROUNDING:
        reasons.append(
            f"{primary.name} {primary.format(digits=2)} is below gate.min_score = "
            f"{primary.format(config.min_score, digits=2)}"
        )
    return reasons


def _reasons_of_comparison(config: GateConfig, comparison: Comparison) -> list[str]:
    reasons, gained = [], comparison.improvement.value
    own, champion = comparison.metric, comparison.champion_metric
    if gained < config.min_improvement - _ROUNDING:
        reasons.append(
            f"{own.name} {own.format(digits=2)} (champion: {champion.format(digits=2)}): "
            f"improvement {own.format_change(gained)} is below gate.min_improvement = "
            f"{own.format_change(config.min_improvement)}"
        )
    max_drop = config.max_drop_per_class
    if max_drop is not None and comparison.largest_drop > max_drop + _ROUNDING:
        worst = comparison.worse[0]
        reasons.append(
            f"recall of {worst.name} {worst.recall:.1%} (champion: {worst.champion_recall:.1%}): "
            f"drop {comparison.largest_drop:.1%} exceeds gate.max_drop_per_class = {max_drop:.1%}"
        )
    return reasons
