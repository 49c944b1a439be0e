"""Tables and HTML page of a comparison of runs."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pets_core.evaluation.template import load_template
from pets_core.records.comparison import ComparedRun, RunComparison

__all__ = [
    "ComparisonTable",
    "changed_table",
    "render_comparison",
    "results_table",
    "settings_table",
]


_ID_CHARS = 8


class ComparisonTable(NamedTuple):
    """Columns and rows of text."""

    columns: list[str]
    rows: list[list[str]]


def results_table(comparison: RunComparison) -> ComparisonTable:
    """Return metric, comparison with the first run, and cost of each run."""
    stages = list(dict.fromkeys(name for run in comparison.runs for name in run.seconds))
    metric = comparison.runs[0].metric.name
    columns = ["run", "id", "samples", metric, "95% interval", "against the first", "p"]
    rows = [
        [
            run.name,
            run.run_id[:_ID_CHARS],
            f"{run.split} of {run.dataset} {run.fingerprint[:_ID_CHARS]}",
            _metric_text(run, metric),
            run.metric.interval_text.removeprefix("95% interval "),
            _delta_text(run, is_first=run is comparison.runs[0]),
            run.baseline.p_text.removeprefix("p = ") if run.baseline else "",
            *(f"{run.seconds[name]:.1f}" if name in run.seconds else "-" for name in stages),
        ]
        for run in comparison.runs
    ]
    return ComparisonTable([*columns, *(f"{name}, s" for name in stages)], rows)


def _metric_text(run: ComparedRun, name: str) -> str:
    text = run.metric.format(digits=2)
    return text if run.metric.name == name else f"{run.metric.name} {text}"


def _delta_text(run: ComparedRun, *, is_first: bool) -> str:
    if is_first:
        return ""
    if run.baseline is None:
        return "not compared"
    return f"{run.baseline.delta_text} ({run.baseline.interval_text})"


def settings_table(comparison: RunComparison) -> ComparisonTable:
    """Return the settings that differ, one column per run."""
    rows = [
        [each.name, *("-" if value is None else str(value) for value in each.values)]
        for each in comparison.settings
    ]
    return ComparisonTable(["setting", *_names(comparison)], rows)


def changed_table(comparison: RunComparison) -> ComparisonTable:
    """Return the samples whose scores differ, with the prediction of each comparable run."""
    names = _names(comparison)
    compared = [
        name
        for name, run in zip(names, comparison.runs, strict=True)
        if run.baseline or run is comparison.runs[0]
    ]
    rows = [[each.id, each.actual, *each.predictions] for each in comparison.changed]
    return ComparisonTable(["sample", "actual", *compared], rows)


def _names(comparison: RunComparison) -> list[str]:
    """Return the names of the runs; equal names get the start of the run's id."""
    counts = Counter(run.name for run in comparison.runs)
    return [
        run.name if counts[run.name] == 1 else f"{run.name} ({run.run_id[:_ID_CHARS]})"
        for run in comparison.runs
    ]


def render_comparison(comparison: RunComparison, generated_at: str) -> str:
    """Render a self-contained HTML page; text is escaped.

    Args:
        comparison: The comparison.
        generated_at: Time of the page, as text.
    """
    from pets_core.plots.runs import compared_curves

    names = _names(comparison)
    curves = [(name, run.epochs) for name, run in zip(names, comparison.runs, strict=True)]
    return load_template("comparison.html").render(
        comparison=comparison,
        generated_at=generated_at,
        results=results_table(comparison),
        settings=settings_table(comparison),
        changed=changed_table(comparison),
        curves=compared_curves(curves),
    )
