"""Artifact of a comparison of runs."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from pets_core.evaluation.comparison import (
    ComparisonTable,
    changed_table,
    results_table,
    settings_table,
)
from pets_core.records.comparison import RunComparison
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import table

__all__ = ["publish_comparison"]

_MAX_CHANGED = 50


def publish_comparison(comparison: RunComparison) -> None:
    """Create the artifact `run-comparison` on the configured Prefect server."""
    changed = changed_table(comparison)
    text = (
        f"# Comparison of {len(comparison.runs)} runs\n\n{_markdown(results_table(comparison))}\n\n"
        f"## Settings that differ\n\n{_markdown(settings_table(comparison))}\n\n"
        f"## Changed samples\n\n{comparison.num_changed:,} of {comparison.num_common:,} samples "
        f"have different scores.\n\n"
        f"{_markdown(ComparisonTable(changed.columns, changed.rows[:_MAX_CHANGED]))}\n"
    )
    create_markdown_artifact(markdown=text, key="run-comparison", description="Comparison of runs")


def _markdown(content: ComparisonTable) -> str:
    columns = [escape_markdown(name) for name in content.columns]
    return table(columns, ([escape_markdown(cell) for cell in row] for row in content.rows))
