"""The report of one evaluation: a single HTML page that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pets_core.evaluation.gallery import Gallery, Picture
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.template import template
from pets_core.records.evaluation import ClassMeasures, EvalReport
from pets_core.records.training import TrainResult

__all__ = ["ReportContext", "SpeciesCounts", "render_report"]

_NUM_HEADLINE_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class SpeciesCounts:
    """What species was taken for what: names, and counts with the actual species in rows."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What the report tells.

    Attributes:
        run_id: The run that was judged.
        info: The model and the photos.
        report: The figures.
        classes: How each class did, in index order.
        species: Where the data set tells species, two at least.
        gallery: Photos worth looking at.
        confusion_png: The confusion matrix.
        reliability_png: Confidence against accuracy.
        generated_at: When, as it shall be read.
        training: The training of the model, where it is known.
        training_png: Its curves.
        lr_png: The range test's curve.
        settings_yaml: The settings of the run that made the predictions.
    """

    run_id: str
    info: PredictionsInfo
    report: EvalReport
    classes: Sequence[ClassMeasures]
    confusion_png: bytes
    reliability_png: bytes
    generated_at: str
    species: SpeciesCounts | None = None
    gallery: Gallery = field(default_factory=Gallery)
    training: TrainResult | None = None
    training_png: bytes | None = None
    lr_png: bytes | None = None
    settings_yaml: str | None = None


def render_report(context: ReportContext) -> str:
    """Render the page; every text is escaped, every picture is inside it."""
    return template("report.html").render(
        context=context,
        report=context.report,
        info=context.info,
        gallery=context.gallery,
        num_correct=sum(row.correct for row in context.classes),
        worst_first=sorted(context.classes, key=_worst_first),
        pair_photos=_by_pair(context.gallery.pairs),
        num_headline=_NUM_HEADLINE_PAIRS,
        has_species=any(row.species for row in context.classes),
    )


def _worst_first(row: ClassMeasures) -> float:
    """Order by recall, lowest first; a class without photos comes last."""
    return 2.0 if row.recall is None else row.recall


def _by_pair(pictures: Sequence[Picture]) -> list[tuple[str, str, list[Picture]]]:
    """Photos of each confused pair: actual and predicted class, and the photos."""
    pairs = groupby(pictures, key=lambda picture: (picture.actual, picture.predicted))
    return [(actual, predicted, list(own)) for (actual, predicted), own in pairs]
