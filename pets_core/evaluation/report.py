"""HTML report of an evaluation, self-contained, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pets_core.evaluation.gallery import Gallery
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.template import load_template
from pets_core.records.evaluation import EvalReport
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


def render_report(context: ReportContext) -> str:
    """Render the HTML page; text is escaped, images are embedded."""
    return load_template("report.html").render(
        context=context, report=context.report, info=context.info
    )


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
