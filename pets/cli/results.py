"""Print the results of flows."""

from __future__ import annotations

from pets.cli.tables import print_table
from pets_core.progress import speed_text
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import BatchSummary, NearDuplicates
from pets_core.records.training import LRSuggestion, SweepResult, TrainResult
from pets_core.storage.layout import REPORT

__all__ = [
    "show_batch",
    "show_embeddings",
    "show_evaluation",
    "show_lr_suggestion",
    "show_sweep",
    "show_training",
]


def show_evaluation(report: EvalReport) -> None:
    """Print metrics, champion comparison, gate and files of an evaluation."""
    primary = report.primary
    notes = [report.samples_text]
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
    print(f"Gate         {report.verdict.summary}")
    for warning in report.warnings:
        print(f"Warning      {warning}")
    if report.highlights and report.highlights.rows:
        print(report.highlights.title)
        print_table(list(report.highlights.columns), report.highlights.rows, indent=2)
    print(f"Model        {report.model_url}")
    print(f"Report       {report.file(REPORT)}")


def show_batch(summary: BatchSummary) -> None:
    """Print the summary of a batch prediction."""
    print(f"\nPhotos       {summary.num_photos:,} ({summary.num_unreadable:,} unreadable)")
    if speed := speed_text(summary.photos_per_second, "photos/s"):
        print(f"Speed        {speed}")
    if summary.num_skipped:
        print(f"Skipped      {summary.num_skipped:,} other files: {summary.url}/skipped.parquet")
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


def show_lr_suggestion(found: LRSuggestion) -> None:
    """Print the chosen learning rate, the suggestions, and the files."""
    origin = found.suggestion if found.rates else "train.base_lr, no suggestion"
    print(f"\nbase_lr      {found.chosen:.2e}  ({origin}; {found.num_steps} steps)")
    for name, value in found.rates.items():
        print(f"  {name:10} {value:.2e}")
    print(f"Curve        {found.curve_url}\nPlot         {found.plot_url}")


def show_training(result: TrainResult) -> None:
    """Print losses and validation metric of each epoch, and the files."""
    epochs = result.epochs
    metric = next((e.metric.name for e in epochs if e.metric_text), "metric")
    print()
    print_table(
        ["epoch", "phase", "train loss", "valid loss", f"valid {metric}", "seconds"],
        (
            [
                e.epoch + 1 if e.epoch >= 0 else "-",
                e.phase,
                f"{e.train_loss:.3f}",
                "-" if e.valid_loss is None else f"{e.valid_loss:.3f}",
                e.metric_text or "-",
                f"{e.seconds:.0f}",
            ]
            for e in epochs
        ),
    )
    rate = "" if result.base_lr is None else f", base_lr {result.base_lr:.2e}"
    print(
        f"Training     {result.num_steps:,} optimizer steps in {result.seconds:.0f} s on "
        f"{result.num_processes} x {result.device}, mixed precision {result.mixed_precision}{rate}"
    )
    if result.unfrozen_text:
        print(f"Unfrozen     {result.unfrozen_text}")
    print(f"Model        {result.model_url}\nPlot         {result.plot_url}")
