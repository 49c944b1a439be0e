"""Records of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pets_core.errors import format_list
from pets_core.records.base import Record, Split, renamed
from pets_core.records.target_spec import target_spec

__all__ = [
    "Baseline",
    "Champion",
    "Comparison",
    "EvalReport",
    "Highlights",
    "Interval",
    "LabelChange",
    "Metric",
    "Section",
    "Verdict",
    "unseen_text",
]

_MAX_UNSEEN_NAMED = 20


def unseen_text(names: Sequence[str]) -> str:
    """Return a phrase with the classes or tags that no evaluated photo has; empty if none."""
    return f"without an evaluated photo: {format_list(names, _MAX_UNSEEN_NAMED)}" if names else ""


class Interval(Record):
    """A value with its 95% confidence interval."""

    value: float
    low: float
    high: float


class Metric(Record):
    """One metric of an evaluation.

    Attributes:
        name: Name, such as "error rate".
        value: Value over all evaluated samples.
        low: Lower end of the 95% confidence interval; None: not computed.
        high: Upper end of the 95% confidence interval; None: not computed.
        higher_is_better: Whether higher values are better.
        unit: "%" or "% of ..." if the value is a share from 0 to 1; otherwise the unit of the
            value; empty: none.
        baseline: Value of always predicting the mean of the training samples; None: not computed.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = False
    unit: str = ""
    baseline: float | None = None

    def format(self, value: float | None = None, digits: int = 1) -> str:
        """Format a value of this metric with its unit.

        Args:
            value: The value; None: `self.value`.
            digits: Decimals of a percentage; other values have four significant digits.
        """
        value = self.value if value is None else value
        if self.unit.startswith("%"):
            return f"{100 * value:.{digits}f}{self.unit}"
        return f"{value:.4g} {self.unit}".rstrip()

    def format_change(self, change: float) -> str:
        """Format a difference of two values of this metric, with its sign and unit."""
        if self.unit.startswith("%"):
            return f"{100 * change:+.2f} percentage points"
        return f"{change:+.4g} {self.unit}".rstrip()

    @property
    def interval_text(self) -> str:
        """Text of the confidence interval; empty if there is none."""
        if self.low is None or self.high is None:
            return ""
        suffix = self.unit.removeprefix("%")
        low = self.format(self.low).removesuffix(suffix).rstrip()
        return f"95% interval {low} to {self.format(self.high)}"


class LabelChange(Record):
    """Change of a label's recall against the champion; `support` is its number of samples."""

    name: str
    support: int
    champion_recall: float
    recall: float


class Comparison(Record):
    """Comparison of a model with the champion on the same samples.

    Attributes:
        champion_url: Model folder of the champion.
        num_rows: Number of samples compared.
        num_excluded: Number of samples excluded because one of the models was trained on them;
            None: unknown.
        metric: Primary metric of the model on the compared samples.
        champion_metric: Primary metric of the champion on the compared samples.
        num_better: Number of samples with a better score than the champion's.
        num_worse: Number of samples with a worse score than the champion's.
        improvement: Improvement of the metric over the champion; below 0: worse.
        p_value: Two-sided p-value of the improvement.
        test: Name of the statistical test.
        better: The labels with the largest gain of recall, largest first.
        worse: The labels with the largest drop of recall, largest first.
        largest_drop: Largest drop of any label's recall; 0: none dropped.
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
        """Improvement as text: "1.20 percentage points better", "... worse", or "equal"."""
        gain = self.improvement.value
        size = self.metric.format_change(abs(gain)).removeprefix("+")
        if size in ("0.00 percentage points", f"0 {self.metric.unit}".rstrip()):
            return "equal"
        return f"{size} {'better' if gain > 0 else 'worse'}"

    @property
    def interval_text(self) -> str:
        """Text of the 95% confidence interval of the improvement."""
        low = self.metric.format_change(self.improvement.low).split(" ")[0]
        return f"{low} to {self.metric.format_change(self.improvement.high)}"

    @property
    def excluded_text(self) -> str:
        """Sentence about samples that one of the models was trained on; empty if there are none."""
        if self.num_excluded is None:
            return (
                "Whether one of the models was trained on some of them is unknown: a model, or the "
                "version of the data set it was trained on, is not in the store."
            )
        if not self.num_excluded:
            return ""
        return f"{self.num_excluded} more are excluded: one of the models was trained on them."

    @property
    def p_text(self) -> str:
        """Text of the p-value; values below 0.001 give "p < 0.001"."""
        return f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"


class Baseline(Record):
    """Comparison of a model with a baseline on the same samples.

    Attributes:
        name: Name of the baseline, such as "linear probe".
        metric: Primary metric of the baseline, without interval.
        improvement: Improvement of the model over the baseline; below 0: worse.
        p_value: Two-sided p-value of the improvement.
    """

    name: str
    metric: Metric
    improvement: Interval
    p_value: float

    @property
    def text(self) -> str:
        """Text such as "linear probe 8.8%"."""
        return f"{self.name} {self.metric.format()}"

    @property
    def warning(self) -> str:
        """Sentence if the model is not significantly better, otherwise empty."""
        if self.improvement.low > 0:
            return ""
        if self.improvement.low == self.improvement.high == 0:
            return f"The model is exactly as good as the {self.name} ({self.metric.format()})."
        values = self.improvement.model_dump().values()
        value, low, high = map(self.metric.format_change, values)
        value, low = (text.split(" ")[0] for text in (value, low))
        interval = f"improvement {value}, 95% interval {low} to {high}"
        baseline = f"the {self.name} ({self.metric.format()})"
        if self.improvement.high < 0:
            return f"The model is worse than {baseline}: {interval}."
        return f"The model is not significantly better than {baseline}: {interval}."


class Verdict(Record):
    """Result of the gate: whether a model may be promoted.

    Attributes:
        passed: Whether the model passes the gate.
        reasons: All reasons against the model.
        has_condition: Whether the gate has a condition: a limit or a champion to compare with.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    has_condition: bool = True

    @property
    def text(self) -> str:
        """Text of the verdict, without the reasons."""
        if not self.passed:
            return "does not pass the gate"
        return "passes the gate" if self.has_condition else "gate not configured, no champion"

    @property
    def summary(self) -> str:
        """Text of the verdict after the word "Gate", with the reasons."""
        if not self.passed:
            return f"not passed: {'; '.join(self.reasons)}"
        return "passed" if self.has_condition else "not configured"


class Champion(Record):
    """Model that a new model is compared with.

    Attributes:
        model_url: Folder of the champion.
        predictions_url: The champion's predictions of the same samples, if the store has them.
        evaluation_url: Folder of the evaluation that made the model champion.
        version: Name of the alias version that made the model champion.
    """

    model_url: str
    predictions_url: str | None = None
    evaluation_url: str | None = None
    version: str | None = None

    def url_to_predict(self, model_url: str) -> str | None:
        """Return the champion's folder if it still has to predict the samples, otherwise None."""
        is_needed = self.predictions_url is None and self.model_url != model_url
        return self.model_url if is_needed else None


class Section(Record):
    """One section of an evaluation, shown in the report and as a Prefect artifact.

    Figure, table and photos are files in the evaluation's folder.

    Attributes:
        key: Key of the artifact, and anchor in the report.
        title: Heading.
        text: Plain text below the heading.
        description: Description of the artifact.
        figure: Name of a PNG, without suffix.
        figure_alt: Alternative text of the figure.
        table: Name of a table, without suffix (.parquet and .csv).
        max_rows: Maximum number of rows in the report; the file has all rows.
        percent: Columns of the table with shares, shown as percentages.
        gallery: Name of a part of the gallery.
        in_report: Whether the section is also in the report.
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
    """Short table of where a model is worst.

    Attributes:
        title: Title.
        columns: Column names.
        rows: Cells as text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class EvalReport(Record):
    """Evaluation of a model on one split.

    Attributes:
        target: Kind of target.
        samples: Plural noun for the samples, such as "photos".
        model_url: Folder of the model.
        split: The evaluated split.
        num_rows: Number of evaluated samples.
        primary: Metric that gate, champion comparison and registry use.
        metrics: Other metrics.
        details: Supporting numbers, one sentence each.
        notes: Limits of the model that a user must know, one sentence each.
        highlights: Where the model is worst.
        sections: Sections of the report and the artifacts.
        num_label_issues: Number of samples whose label is probably wrong; None: not computed.
        num_trained_on: Number of evaluated samples that the model was trained on; None: unknown.
        is_champion: Whether the model is the champion.
        comparison: Comparison with the champion; None: no other champion, or not comparable.
        comparison_error: Why the champion cannot be compared.
        champion_version: Name of the alias version of the champion.
        baselines: Comparisons with the nearest neighbours, then with the linear probe.
        unseen_labels: Labels of the model that no evaluated sample has, by index.
        verdict: Result of the gate.
        predictions_url: Predictions that are evaluated.
        url: Folder with all files of the evaluation.
        photos_per_second: Throughput of the prediction.
        seconds: Duration of the evaluation, without the prediction.
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
    comparison_error: str | None = renamed("comparison_error", "not_compared", None)
    champion_version: str | None = None
    baselines: tuple[Baseline, ...] = ()
    unseen_labels: tuple[str, ...] = ()
    verdict: Verdict
    predictions_url: str
    url: str
    photos_per_second: float
    seconds: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the evaluation that are not among the verdict's reasons."""
        warnings = [*self.notes, *filter(None, (each.warning for each in self.baselines))]
        if self.num_trained_on is None:
            warnings.append(
                f"Whether the model was trained on some of these {self.samples} is unknown: the "
                "model, or the version of the data set it was trained on, is not in the store."
            )
        elif self.num_trained_on and self.verdict.passed:
            warnings.append(f"The model was trained on {self.num_trained_on} of these samples.")
        unseen = unseen_text(self.unseen_labels)
        if unseen and not any(unseen in reason for reason in self.verdict.reasons):
            warnings.append(self.unseen_warning)
        return tuple(warnings)

    @property
    def unseen_warning(self) -> str:
        """Sentence about the classes or tags that no evaluated photo has; empty if none."""
        unseen = unseen_text(self.unseen_labels)
        return f"{target_spec(self.target).plural.capitalize()} {unseen}." if unseen else ""

    @property
    def baselines_text(self) -> str:
        """The baselines and the model, such as "linear probe 8.8%, this model 8.0%"; or empty."""
        if not self.baselines:
            return ""
        texts = [baseline.text for baseline in self.baselines]
        return ", ".join([*texts, f"this model {self.primary.format()}"])

    @property
    def samples_text(self) -> str:
        """Number, split and kind of the samples, such as "592 test photos"."""
        split = "validation" if self.split == "valid" else self.split
        return f"{self.num_rows:,} {split} {self.samples}"

    def metric(self, name: str) -> float:
        """Return the value of a metric by name, or raise KeyError."""
        return {metric.name: metric.value for metric in (self.primary, *self.metrics)}[name]

    def file(self, name: str) -> str:
        """Return the URL of a file of the evaluation."""
        return f"{self.url}/{name}"
