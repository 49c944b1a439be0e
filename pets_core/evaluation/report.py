"""HTML report of an evaluation, self-contained, and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pets_core.evaluation.gallery import Gallery, Picture
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.template import load_template
from pets_core.records.evaluation import EvalReport, Section
from pets_core.records.training import TrainResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ReportContext", "model_card", "render_report"]


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """Content of the report.

    Attributes:
        run_id: The evaluated run.
        info: The model and the evaluated samples.
        report: Metrics and sections.
        tables: Tables by name, as referenced by sections.
        figures: PNGs by name, as referenced by sections.
        gallery: Pictures by part, as referenced by sections.
        generated_at: Time of the report, as text.
        training: Training result of the model, if available.
        training_png: Training curves.
        lr_png: Curve of the learning-rate range test.
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
    """A column of a table and its number format."""

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
    """Render the HTML page; text is escaped, images are embedded."""
    return load_template("report.html").render(
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
    """Return the cells, row by row; missing values are None."""
    cells = frame.astype(object)
    rows: list[list[Any]] = cells.where(cells.notna(), None).to_numpy().tolist()
    return rows


def _by_group(pictures: Sequence[Picture]) -> list[tuple[str, list[Picture]]]:
    """Return the pictures of each group."""
    return [(group, list(own)) for group, own in groupby(pictures, key=lambda p: p.group)]


def model_card(context: ReportContext, task: str, pipeline_tag: str) -> str:
    """Return the model card (Mitchell et al., 2019): Markdown with YAML metadata for model hubs.

    Args:
        context: Content of the report.
        task: Task of the model, a phrase after "that".
        pipeline_tag: Pipeline tag of model hubs.
    """
    return load_template("model_card.md").render(
        info=context.info,
        report=context.report,
        training=context.training,
        task=task,
        pipeline_tag=pipeline_tag,
    )
