"""The model card: what a model is, and how it did (Mitchell and others 2019)."""

from __future__ import annotations

from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.template import template
from pets_core.records.evaluation import ClassMeasures, EvalReport, unseen_text
from pets_core.records.training import TrainResult

__all__ = ["model_card"]

_NUM_WORST = 5


def model_card(
    info: PredictionsInfo,
    report: EvalReport,
    classes: list[ClassMeasures],
    training: TrainResult | None,
) -> str:
    """Markdown with a YAML head, as model hubs read it.

    Args:
        info: The model and what it was judged on.
        report: How it did.
        classes: How it did on each class.
        training: How it was trained, where that is known.
    """
    known = [row for row in classes if row.recall is not None]
    worst = sorted(known, key=lambda row: row.recall or 0.0)[:_NUM_WORST]
    return template("model_card.md").render(
        info=info,
        report=report,
        num_classes=len(classes),
        worst=worst,
        training=training,
        unseen_text=unseen_text,
    )
