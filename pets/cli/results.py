"""Print the results of flows."""

from __future__ import annotations

from pydantic import BaseModel

from pets.cli.tables import print_table
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import BatchSummary, NearDuplicates
from pets_core.records.training import SweepResult
from pets_core.storage.layout import REPORT

__all__ = [
    "show_batch",
    "show_embeddings",
    "show_evaluation",
    "show_record",
    "show_sweep",
]


def show_evaluation(report: EvalReport) -> None:
    """Print metrics, champion comparison, gate and files of an evaluation."""
    primary = report.primary
    notes = [f"{report.num_rows:,} {report.split} {report.samples}"]
    notes += [primary.interval_text] if primary.interval_text else []
    if primary.baseline is not None:
        notes.append(f"baseline {primary.format(primary.baseline)}")
    name = primary.name[:1].upper() + primary.name[1:]
    print(f"\n{name:12} {primary.format()}  ({'; '.join(notes)})")
    for metric in report.metrics:
        print(f"  {metric.name:28} {metric.format()}")
    for detail in report.details:
        print(f"  {detail}")
    if report.baselines:
        print(f"Baselines    {report.baselines_text}")
    if report.comparison:
        compared = report.comparison
        print(
            f"Champion     {compared.champion_metric.format()} on the same {report.samples}: this "
            f"model is {compared.delta_text}, {compared.p_text}"
        )
        if compared.excluded_text:
            print(f"             {compared.excluded_text}")
    elif report.is_champion:
        print("Champion     this model")
    if not report.verdict.passed:
        print(f"Gate         not passed: {'; '.join(report.verdict.reasons)}")
    for warning in report.warnings:
        print(f"Warning      {warning}")
    if report.highlights and report.highlights.rows:
        print(report.highlights.title)
        print_table(list(report.highlights.columns), report.highlights.rows, indent=2)
    print(f"Model        {report.model_url}")
    print(f"Report       {report.file(REPORT)}")


def show_batch(summary: BatchSummary) -> None:
    """Print the summary of a batch prediction."""
    print(
        f"\nPhotos       {summary.num_photos} ({summary.num_unreadable} unreadable)\n"
        f"Speed        {summary.photos_per_second:.0f} photos/s\n"
        f"Skipped      {summary.num_skipped} other files: {summary.url}/skipped.parquet"
    )
    if summary.counts:
        print("Most frequent")
    for name, count in list(summary.counts.items())[:3]:
        print(f"  {count:6d}  {name}")
    print(f"Predictions  {summary.url}/predictions")


def show_embeddings(found: NearDuplicates) -> None:
    """Print the numbers of near-duplicates."""
    print(
        f"\nPhotos           {found.num_photos}\n"
        f"Near-duplicates  {found.num_both + found.num_only_embedding} with a cosine of at least "
        f"{found.min_similarity:g} ({found.num_only_embedding} not found by the perceptual hash; "
        f"{found.num_only_hash} found only by the hash)\n"
        f"Leaking          {found.num_leaking} have a near-duplicate in a later split "
        f"({found.num_leaking_only_embedding} not found by the hash)\n"
        f"Pairs            {found.url}\nEmbeddings       {found.embeddings_url}"
    )


def show_sweep(result: SweepResult) -> None:
    """Print all trials, best first."""
    print()
    print_table(
        [f"validation {result.trials[0].metric.name}", "base_lr", "backbone", ""],
        ([t.value_text, f"{t.base_lr:g}", t.backbone, t.error] for t in result.trials),
    )
    print(f"Model    {result.trials[0].model_urls[0]}")


def show_record(record: BaseModel) -> None:
    """Print a record as JSON."""
    print(record.model_dump_json(indent=2))
