"""What the command line says of a flow's result."""

from __future__ import annotations

from pydantic import BaseModel

from pets.cli.tables import print_table
from pets_core.ratings.records import RatingsReport
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import BatchSummary, NearDuplicates
from pets_core.records.training import SweepResult

__all__ = [
    "show_batch",
    "show_embeddings",
    "show_evaluation",
    "show_ratings",
    "show_record",
    "show_sweep",
]


def show_evaluation(report: EvalReport) -> None:
    """How a model did on photos, whatever it predicts."""
    primary = report.primary
    notes = [f"{report.num_rows:,} {report.split} photos"]
    notes += [primary.interval_text] if primary.interval_text else []
    if primary.baseline is not None:
        notes.append(f"baseline {primary.format(primary.baseline)}")
    name = primary.name[:1].upper() + primary.name[1:]
    print(f"\n{name:12} {primary.format()}  ({'; '.join(notes)})")
    for metric in report.metrics:
        print(f"  {metric.name:28} {metric.format()}")
    for detail in report.details:
        print(f"  {detail}")
    if report.comparison:
        compared = report.comparison
        print(
            f"Champion     {compared.champion_metric.format()} on the same photos: this model is "
            f"{compared.delta_text}, {compared.p_text}"
        )
        if compared.excluded_text:
            print(f"             {compared.excluded_text}")
    elif report.is_champion:
        print("Champion     this very model")
    if not report.verdict.passed:
        print(f"Gate         not passed: {'; '.join(report.verdict.reasons)}")
    for warning in report.warnings:
        print(f"Warning      {warning}")
    if report.highlights and report.highlights.rows:
        print(report.highlights.title)
        print_table(list(report.highlights.columns), report.highlights.rows, indent=2)
    print(f"Model        {report.model_url}")
    print(f"Report       {report.file('report.html')}")


def show_batch(summary: BatchSummary) -> None:
    """What was seen on many photos."""
    print(
        f"\nPhotos       {summary.num_photos}, of which {summary.num_unreadable} could not be "
        f"looked at\nSpeed        {summary.photos_per_second:.0f} photos/s\n"
        f"Skipped      {summary.num_skipped} other files: {summary.url}/skipped.parquet"
    )
    if summary.counts:
        print("Most frequent")
    for name, count in list(summary.counts.items())[:3]:
        print(f"  {count:6d}  {name}")
    print(f"Predictions  {summary.url}/predictions")


def show_embeddings(found: NearDuplicates) -> None:
    """How many photos are nearly another one."""
    print(
        f"\nPhotos       {found.num_photos}\n"
        f"Alike        {found.num_both + found.num_only_embedding} with a cosine of at least "
        f"{found.min_similarity:g}, {found.num_only_embedding} of them not by the perceptual hash, "
        f"which alone found {found.num_only_hash}\n"
        f"Leaking      {found.num_leaking} are nearly a photo of a later split, "
        f"{found.num_leaking_only_embedding} of them not by the perceptual hash\n"
        f"Pairs        {found.url}\nEmbeddings   {found.embeddings_url}"
    )


def show_sweep(result: SweepResult) -> None:
    """All trials, the best first."""
    print()
    print_table(
        [f"validation {result.trials[0].metric.name}", "base_lr", "backbone", ""],
        ([t.value_text, f"{t.base_lr:g}", t.backbone, t.error] for t in result.trials),
    )
    print(f"Model    {result.trials[0].model_urls[0]}")


def show_ratings(report: RatingsReport) -> None:
    """How a model of ratings did, beside the baselines."""
    print(f"\n{report.num_rows:,} {report.split} ratings, RMSE:")
    for row in report.errors:
        print(f"  {row.rmse:.4f}  {row.name}")
    print(f"Model        {report.model_url}\nReview       {report.url}")


def show_record(record: BaseModel) -> None:
    """As JSON, for a program to read."""
    print(record.model_dump_json(indent=2))
