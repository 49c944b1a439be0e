"""The report of one evaluation as an HTML page that loads nothing, and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pets_core.evaluation.gallery import Gallery, Picture
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.template import template
from pets_core.records.evaluation import EvalReport, Section, unseen_text
from pets_core.records.training import TrainResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ReportContext", "model_card", "render_report"]


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What the report shows.

    Attributes:
        run_id: The run that was evaluated.
        info: The model and the samples.
        report: The metrics and sections.
        tables: Tables by name, as sections refer to them.
        figures: PNGs by name, likewise.
        gallery: Pictures by part, likewise.
        generated_at: When, as it is to be read.
        training: The training of the model, where it is known.
        training_png: Its curves.
        lr_png: Curve of the range test.
        settings_yaml: Settings of the run that made the predictions.
    """

    run_id: str
    info: PredictionsInfo
    report: EvalReport
    generated_at: str
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    gallery: Gallery = field(default_factory=dict)
    training: TrainResult | None = None
    training_png: bytes | None = None
    lr_png: bytes | None = None
    settings_yaml: str | None = None


@dataclass(frozen=True)
class _Column:
    """A column of a table, and how its cells are shown."""

    name: str
    is_number: bool
    is_share: bool


@dataclass(frozen=True)
class _Part:
    """A section with its content."""

    section: Section
    figure: bytes | None
    columns: list[_Column]
    rows: list[list[Any]]
    num_rows: int
    groups: list[tuple[str, list[Picture]]]


def render_report(context: ReportContext) -> str:
    """Render the page; every text is escaped, every picture is inside it."""
    return template("report.html").render(
        context=context,
        report=context.report,
        info=context.info,
        parts=[_part(context, each) for each in context.report.sections if each.in_report],
    )


def _part(context: ReportContext, section: Section) -> _Part:
    frame = context.tables[section.table] if section.table else None
    return _Part(
        section=section,
        figure=context.figures[section.figure] if section.figure else None,
        columns=[] if frame is None else _columns(frame, section.percent),
        rows=[] if frame is None else _rows(frame[: section.max_rows]),
        num_rows=0 if frame is None else len(frame),
        groups=_by_group(context.gallery.get(section.gallery or "", ())),
    )


def _columns(frame: pd.DataFrame, percent: Sequence[str]) -> list[_Column]:
    from pandas.api.types import is_numeric_dtype

    return [
        _Column(name, is_number=is_numeric_dtype(frame[name]), is_share=name in percent)
        for name in frame.columns
    ]


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    """Return the cells; None where a value is missing."""
    cells = frame.astype(object)
    rows: list[list[Any]] = cells.where(cells.notna(), None).to_numpy().tolist()
    return rows


def _by_group(pictures: Sequence[Picture]) -> list[tuple[str, list[Picture]]]:
    """Return the pictures below each heading."""
    return [(group, list(own)) for group, own in groupby(pictures, key=lambda p: p.group)]


def model_card(context: ReportContext, task: str, pipeline_tag: str) -> str:
    """Return the model card (Mitchell and others 2019): Markdown with the YAML head of model hubs.

    Args:
        context: What the report shows.
        task: What the model does, after "that".
        pipeline_tag: Of model hubs.
    """
    return template("model_card.md").render(
        info=context.info,
        report=context.report,
        training=context.training,
        task=task,
        pipeline_tag=pipeline_tag,
        unseen_text=unseen_text,
    )
