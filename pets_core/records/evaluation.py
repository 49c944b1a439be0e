"""Records of predictions and of their evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pets_core.records.base import Record, Split
from pets_core.records.target_spec import target_spec

__all__ = [
    "UNKNOWN_TRAINING",
    "Champion",
    "Comparison",
    "EvalReport",
    "Highlights",
    "Interval",
    "LabelChange",
    "Metric",
    "PredictResult",
    "Section",
    "Verdict",
    "unseen_text",
]

_MAX_UNSEEN_NAMED = 20

UNKNOWN_TRAINING = (
    "Whether the model was trained on some of these photos is not known: it, or the version of "
    "the data set it was trained on, is not in the store."
)


def unseen_text(names: Sequence[str]) -> str:
    """Name the classes or tags that no evaluated photo has; empty where there are none."""
    if not names:
        return ""
    num_more = len(names) - _MAX_UNSEEN_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return f"without an evaluated photo: {', '.join(names[:_MAX_UNSEEN_NAMED])}{more}"


class PredictResult(Record):
    """Files of predictions.

    Attributes:
        targets: Kind of target.
        model_url: Folder of the model.
        predictions_url: Predictions of the split to evaluate.
        valid_url: Of the validation split; the same where this is to be evaluated.
        champion_url: The champion's predictions of the split, where it had to make them.
        champion_refused: Why it could not.
        maps_url: Activation maps of the photos of greatest loss.
        photos_per_second: Of the split to evaluate.
    """

    targets: str = "class"
    model_url: str
    predictions_url: str
    valid_url: str | None = None
    champion_url: str | None = None
    champion_refused: str | None = None
    maps_url: str | None = None
    photos_per_second: float


class Interval(Record):
    """A value and the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


class Metric(Record):
    """One figure of an evaluation.

    Attributes:
        name: What the field calls it.
        value: Over all samples evaluated.
        low: Lower end of its 95% confidence interval; None where none was computed.
        high: Upper end of the same.
        higher_is_better: Direction.
        unit: "%" where the value is a share, from 0 to 1, or "% of" what; else the unit of the
            value; empty: none.
        baseline: The same of always predicting the mean of the training samples, where that is
            computed.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = False
    unit: str = ""
    baseline: float | None = None

    def format(self, value: float | None = None, digits: int = 1) -> str:
        """Return the value, or another one of this metric, with its unit.

        Args:
            value: Of this metric; None: its own.
            digits: After the decimal point of a percentage; other values have four figures.
        """
        value = self.value if value is None else value
        if self.unit.startswith("%"):
            return f"{100 * value:.{digits}f}{self.unit}"
        return f"{value:.4g} {self.unit}".rstrip()

    def format_change(self, change: float) -> str:
        """Return a difference of two values of this metric, with its sign."""
        if self.unit.startswith("%"):
            return f"{100 * change:+.2f} percentage points"
        return f"{change:+.4g} {self.unit}".rstrip()

    @property
    def interval_text(self) -> str:
        """The confidence interval; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        shared = self.unit.removeprefix("%")
        low = self.format(self.low).removesuffix(shared).rstrip()
        return f"95% interval {low} to {self.format(self.high)}"


class LabelChange(Record):
    """A label that is found in more or fewer samples than by the champion."""

    name: str
    support: int
    champion_recall: float
    recall: float


class Comparison(Record):
    """A model and the champion, on the very same samples.

    Attributes:
        champion_url: Model folder of the champion.
        num_rows: Samples that both were evaluated on.
        num_excluded: Samples besides these that one of both was trained on, which do not count;
            None where that is not known.
        metric: Primary metric of the model, on these samples.
        champion_metric: The same of the champion.
        num_better: Samples with a better score than the champion's.
        num_worse: Samples with a worse score.
        improvement: By how much the metric is better than the champion's; below 0: worse.
        p_value: Two-sided: how likely a difference as large is by chance.
        test: Name of the test that computed it.
        better: The first labels with a higher recall, the largest gain first.
        worse: The first labels with a lower recall, the largest drop first.
        largest_drop: Of any label's recall; 0 where none dropped.
    """

    champion_url: str
    num_rows: int
    num_excluded: int | None = 0
    metric: Metric
    champion_metric: Metric
    num_better: int
    num_worse: int
    improvement: Interval
    p_value: float
    test: str
    better: tuple[LabelChange, ...] = ()
    worse: tuple[LabelChange, ...] = ()
    largest_drop: float = 0.0

    @property
    def delta_text(self) -> str:
        """The improvement in words."""
        gained = self.improvement.value
        size = self.metric.format_change(abs(gained)).removeprefix("+")
        if size in ("0.00 percentage points", f"0 {self.metric.unit}".rstrip()):
            return "as good"
        return f"{size} {'better' if gained > 0 else 'worse'}"

    @property
    def interval_text(self) -> str:
        """The 95% interval of the improvement, its unit once."""
        low = self.metric.format_change(self.improvement.low).split(" ")[0]
        return f"{low} to {self.metric.format_change(self.improvement.high)}"

    @property
    def excluded_text(self) -> str:
        """A sentence on samples that one of both models was trained on; often empty."""
        if self.num_excluded is None:
            return (
                "Whether one of both was trained on some of them is not known: a model, or the "
                "version of the data set it was trained on, is gone."
            )
        if not self.num_excluded:
            return ""
        return f"{self.num_excluded} more are excluded, because one of both was trained on them."

    @property
    def p_text(self) -> str:
        """The p-value as people write it."""
        return f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"


class Verdict(Record):
    """Whether a model may be promoted.

    Attributes:
        passed: Whether it may.
        reasons: Every one against it.
        has_condition: Whether the gate had any: a limit, or a champion to compare with.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    has_condition: bool = True

    @property
    def text(self) -> str:
        """The verdict in words."""
        if not self.passed:
            return "does not pass the gate"
        return "passes the gate" if self.has_condition else "gate not configured, no champion"


class Champion(Record):
    """The model that a new one is compared with.

    Attributes:
        model_url: Its folder.
        predictions_url: Its predictions of the very samples, where these are in the store already.
        version: Name of the alias version that made it champion.
    """

    model_url: str
    predictions_url: str | None = None
    version: str | None = None

    def url_to_predict(self, model_url: str) -> str | None:
        """Return its folder if it has still to predict the samples that a model is evaluated on."""
        is_needed = self.predictions_url is None and self.model_url != model_url
        return self.model_url if is_needed else None


class Section(Record):
    """One part of an evaluation as people see it: in the report, and as a Prefect artifact.

    Its figure, table and photos lie in files of the evaluation's folder.

    Attributes:
        key: Of the artifact, and the anchor in the report.
        title: Its heading.
        text: Plain sentences below the heading.
        description: Of the artifact, in the list of artifacts.
        figure: Name of a PNG, without suffix.
        figure_alt: What the figure shows, for those who do not see it.
        table: Name of a table, without suffix: .parquet and .csv.
        max_rows: Rows of the table that the report shows; the file has all.
        percent: Columns of the table that hold shares.
        gallery: Part of the gallery.
        in_report: Whether the report has it, too.
    """

    key: str
    title: str
    text: str = ""
    description: str = ""
    figure: str | None = None
    figure_alt: str = ""
    table: str | None = None
    max_rows: int = 1000
    percent: tuple[str, ...] = ()
    gallery: str | None = None
    in_report: bool = True


class Highlights(Record):
    """The few rows that summarise where a model is worst.

    Attributes:
        title: What they are.
        columns: Their names.
        rows: Cells as text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class EvalReport(Record):
    """Evaluation of a model on one split.

    Attributes:
        target: Kind of target.
        samples: What the samples are, in the plural.
        model_url: Folder of the model.
        split: The samples evaluated.
        num_rows: How many.
        primary: The metric that gate, champion comparison and registry use.
        metrics: The others.
        details: Figures behind these, a sentence each.
        notes: What to know before relying on the model, a sentence each; often empty.
        highlights: Where the model is worst.
        sections: What the report and the artifacts show.
        num_label_issues: Samples whose label is probably wrong; None where none were looked for.
        num_trained_on: Samples evaluated that the model was trained on; None where not known.
        is_champion: Whether it is the champion itself.
        comparison: With the champion, where there is another one that can be compared.
        not_compared: Why there is one that cannot.
        champion_version: Name of the alias version that made it champion.
        unseen_labels: The model's labels that no evaluated sample carries, in index order.
        verdict: Of the gate.
        predictions_url: All this is computed from.
        url: Folder with all files of the evaluation.
        photos_per_second: Of the prediction.
        seconds: Of the evaluation, without the prediction.
    """

    format_version: Literal[2] = 2
    target: str
    samples: str = "photos"
    model_url: str
    split: Split
    num_rows: int
    primary: Metric
    metrics: tuple[Metric, ...] = ()
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    highlights: Highlights | None = None
    sections: tuple[Section, ...] = ()
    num_label_issues: int | None = None
    num_trained_on: int | None = 0
    is_champion: bool = False
    comparison: Comparison | None = None
    not_compared: str | None = None
    champion_version: str | None = None
    unseen_labels: tuple[str, ...] = ()
    verdict: Verdict
    predictions_url: str
    url: str
    photos_per_second: float
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Limits of the evaluation that are not among the verdict's reasons; often empty."""
        warnings = list(self.notes)
        if self.num_trained_on is None:
            warnings.append(UNKNOWN_TRAINING)
        elif self.num_trained_on and self.verdict.passed:
            warnings.append(f"The model was trained on {self.num_trained_on} of these samples.")
        unseen = unseen_text(self.unseen_labels)
        if unseen and not any(unseen in reason for reason in self.verdict.reasons):
            warnings.append(f"{target_spec(self.target).plural.capitalize()} {unseen}.")
        return tuple(warnings)

    def metric(self, name: str) -> float:
        """Return the value of a metric by its name.

        Raises:
            KeyError: There is none of that name.
        """
        return {metric.name: metric.value for metric in (self.primary, *self.metrics)}[name]

    def file(self, name: str) -> str:
        """Return the URL of a file of the evaluation."""
        return f"{self.url}/{name}"
