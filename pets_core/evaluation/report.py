"""The report of one evaluation: a single HTML page that asks nothing of the network."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from pets_core.evaluation.interpret import ClassRow
from pets_core.records import ConfusedPair, Split, TrainResult

__all__ = ["ReportContext", "Thumbnail", "render_report"]

_NUM_HEADLINE_PAIRS = 3
_MAX_LISTED_PAIRS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A photo the model did badly on.

    Attributes:
        jpeg: The photo, small.
        photo_id: Its id in the data set.
        actual: Its class.
        predicted: The most probable class.
        probability: The model's probability of `predicted`, 0 to 1.
        loss: Cross-entropy, nats.
    """

    jpeg: bytes
    photo_id: str
    actual: str
    predicted: str
    probability: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What the report tells.

    Attributes:
        title: Heading of the page.
        run_id: The run that was judged.
        backbone: Name of the model's backbone.
        dataset_name: Name of the data set.
        dataset_fingerprint: Its fingerprint.
        split: The photos judged on.
        num_rows: How many they are.
        error_rate: Share of them taken for another class, 0 to 1; NaN where there are none.
        loss: Mean cross-entropy, nats; NaN where there are none.
        classes: How each class did, in index order.
        most_confused: Pairs, most frequent first.
        confusion_png: The confusion matrix.
        top_losses: Photos of greatest loss, greatest first.
        settings_yaml: The run's settings.
        generated_at: When, as it shall be read.
        training: The training of the model, where it is known.
        training_png: Its curves.
        lr_png: The range test's curve.
    """

    title: str
    run_id: str
    backbone: str
    dataset_name: str
    dataset_fingerprint: str
    split: Split
    num_rows: int
    error_rate: float
    loss: float
    classes: Sequence[ClassRow]
    most_confused: Sequence[ConfusedPair]
    confusion_png: bytes
    top_losses: Sequence[Thumbnail]
    settings_yaml: str
    generated_at: str
    training: TrainResult | None = None
    training_png: bytes | None = None
    lr_png: bytes | None = None


def render_report(context: ReportContext) -> str:
    """Render the page; every text is escaped, every picture is inside it."""
    support = {row.name: row.support for row in context.classes}
    return _template().render(
        report=context,
        num_correct=sum(row.correct for row in context.classes),
        worst_first=sorted(context.classes, key=_worst_first),
        # A pair's share means something only where the actual class's photos are known.
        pairs=[(p, support.get(p.actual, 0)) for p in context.most_confused[:_MAX_LISTED_PAIRS]],
        num_headline=_NUM_HEADLINE_PAIRS,
        has_species=any(row.species for row in context.classes),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pets_core", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        data_uri=_data_uri,
        decimal=_decimal,
        duration=_duration,
        percent=_percent,
    )
    return environment.get_template("report.html")


def _worst_first(row: ClassRow) -> float:
    """Order by error rate, highest first; a class without photos comes last."""
    return 1.0 if row.error_rate is None else -row.error_rate


def _breakable(name: str) -> Markup:
    """The escaped name; a line may break after its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"
