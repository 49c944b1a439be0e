"""A model beside the champion, on the same photos; and whether it may go out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import Predictions
from pets_core.records.evaluation import ClassChange, Comparison, Share, Verdict, unseen_text

__all__ = ["compare", "judge"]

_MAX_LISTED = 20
_ROUNDING = 1e-9


def compare(
    predictions: Predictions,
    champion: Predictions,
    trained_on: NDArray[np.bool_] | None = None,
) -> Comparison:
    """Compare two models photo by photo.

    Args:
        predictions: Of the model.
        champion: Of the champion; photos that only one of both has are left out, and the labels are
            those of `predictions`.
        trained_on: Photos of `predictions` that one of both was trained on, (N,): left out, for
            they flatter it. None where that is not known.

    Raises:
        PetsError: The classes are not the same, or no photo is, or all were trained on.
    """
    if predictions.names != champion.names:
        raise PetsError(
            f"it knows {len(champion.names)} classes and the model {len(predictions.names)}, not "
            "the same ones in the same order"
        )
    place = {photo: row for row, photo in enumerate(champion.ids)}
    own = np.array([row for row, photo in enumerate(predictions.ids) if photo in place], np.int64)
    if not len(own):
        raise PetsError("it was judged on none of these photos")
    num_left_out = None
    if trained_on is not None:
        num_left_out = int(trained_on[own].sum())
        own = own[~trained_on[own]]
    if not len(own):
        raise PetsError(f"it, or this model, was trained on all of the {num_left_out} photos")
    theirs = np.array([place[predictions.ids[row]] for row in own], np.int64)
    targets = predictions.targets[own]
    wrong = predictions.predicted[own] != targets
    champion_wrong = champion.predicted[theirs] != targets
    only_champion = int((champion_wrong & ~wrong).sum())
    only_model = int((wrong & ~champion_wrong).sum())
    changes = _changes(predictions.names, targets, wrong, champion_wrong)
    return Comparison(
        champion_url=champion.info.model_url,
        num_rows=len(own),
        num_left_out=num_left_out,
        champion_error_rate=float(champion_wrong.mean()),
        error_rate=float(wrong.mean()),
        only_champion_wrong=only_champion,
        only_model_wrong=only_model,
        improvement=_improvement(only_champion, only_model, len(own)),
        p_value=_mcnemar(only_champion, only_model),
        better=tuple(c for c in reversed(changes) if c.recall > c.champion_recall)[:_MAX_LISTED],
        worse=tuple(c for c in changes if c.recall < c.champion_recall)[:_MAX_LISTED],
        largest_drop=max(0.0, *(c.champion_recall - c.recall for c in changes)),
    )


def _mcnemar(only_champion: int, only_model: int) -> float:
    """McNemar's exact test (1947): photos that only one gets wrong are as likely to be either's."""
    if not only_champion + only_model:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_model, only_champion + only_model, 0.5).pvalue)


def _improvement(only_champion: int, only_model: int, total: int) -> Share:
    """Difference of two paired shares with Agresti and Min's interval (2005, adjusted Wald)."""
    from scipy.stats import norm

    value = (only_champion - only_model) / total
    # Half a photo more in each of the four cells.
    first, second, size = only_champion + 0.5, only_model + 0.5, total + 2
    centre = (first - second) / size
    spread = norm.ppf(0.975) * np.sqrt((first + second) / size - centre**2) / np.sqrt(size)
    low, high = max(-1.0, float(centre - spread)), min(1.0, float(centre + spread))
    return Share(value=value, low=low, high=high)


def _changes(
    names: list[str],
    targets: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    champion_wrong: NDArray[np.bool_],
) -> list[ClassChange]:
    """Recall of each class that has photos, what got worse first."""
    support = np.bincount(targets, minlength=len(names))
    right = np.bincount(targets, weights=~wrong, minlength=len(names))
    champion_right = np.bincount(targets, weights=~champion_wrong, minlength=len(names))
    changes = [
        ClassChange(
            name=name,
            support=int(support[i]),
            champion_recall=float(champion_right[i] / support[i]),
            recall=float(right[i] / support[i]),
        )
        for i, name in enumerate(names)
        if support[i]
    ]
    return sorted(changes, key=lambda change: change.recall - change.champion_recall)


def judge(
    config: GateConfig,
    error_rate: float,
    comparison: Comparison | None = None,
    not_compared: str | None = None,
    num_trained_on: int | None = 0,
    unseen_classes: Sequence[str] = (),
) -> Verdict:
    """Say whether a model may go out, with every reason against it.

    Args:
        config: The gate.
        error_rate: Of the model, on all photos judged.
        comparison: With the champion, if there is one that can be compared.
        not_compared: Why there is one that cannot; a reason against.
        num_trained_on: Photos judged that the model was trained on; a reason against.
        unseen_classes: Classes without an evaluated photo; a reason against where there is a
            champion or any setting of the gate, unless they are allowed.
    """
    reasons = []
    if config.max_error_rate is not None and not error_rate <= config.max_error_rate + _ROUNDING:
        most = f"{config.max_error_rate:.2%}"
        reasons.append(f"error rate {error_rate:.2%}, at most gate.max_error_rate = {most}")
    if num_trained_on:
        reasons.append(
            f"{num_trained_on} of the photos judged are among those it was trained on, so its "
            "error rate is too good: judge it on the version of the data set it was trained on"
        )
    if not_compared:
        reasons.append(not_compared)
    if comparison:
        reasons += _reasons_beside_champion(config, comparison)
    has_gate = config.is_configured or comparison is not None or not_compared is not None
    if unseen_classes and has_gate and not config.allow_unseen_classes:
        reasons.append(
            f"classes {unseen_text(unseen_classes)}. Evaluate on photos of every class, or set "
            "gate.allow_unseen_classes"
        )
    asked = config.max_error_rate is not None or comparison is not None
    return Verdict(passed=not reasons, reasons=tuple(reasons), asked=asked)


def _reasons_beside_champion(config: GateConfig, comparison: Comparison) -> list[str]:
    reasons, gained = [], comparison.improvement.value
    if gained < config.min_improvement - _ROUNDING:
        reasons.append(
            f"error rate {comparison.error_rate:.2%} against the champion's "
            f"{comparison.champion_error_rate:.2%}, improved by {gained:+.2%}, at least "
            f"gate.min_improvement = {config.min_improvement:+.2%}"
        )
    most = config.max_drop_per_class
    if most is not None and comparison.largest_drop > most + _ROUNDING:
        worst = comparison.worse[0]
        reasons.append(
            f"of {worst.name} {worst.recall:.1%} are recognised, by the champion "
            f"{worst.champion_recall:.1%}: {comparison.largest_drop:.1%} less, at most "
            f"gate.max_drop_per_class = {most:.1%}"
        )
    return reasons
