"""What the command line says of a flow's result."""

from __future__ import annotations

from pydantic import BaseModel

from pets_core.numbers.records import NumbersReport
from pets_core.ratings.records import RatingsReport
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import BatchSummary, NearDuplicates
from pets_core.records.training import SweepResult
from pets_core.tags.records import TagsReport

__all__ = [
    "show_batch",
    "show_embeddings",
    "show_numbers",
    "show_ratings",
    "show_record",
    "show_report",
    "show_review",
    "show_sweep",
    "show_tags",
]

_NUM_NUMBERS = 12
_NUM_TAGS = 5


def show_review(report: EvalReport | TagsReport | NumbersReport) -> None:
    """How a model did on photos, whatever it tells."""
    if isinstance(report, TagsReport):
        show_tags(report)
    elif isinstance(report, NumbersReport):
        show_numbers(report)
    else:
        show_report(report)


def show_report(report: EvalReport) -> None:
    """How a model did on photos."""
    rate = report.error_rate
    wrong = round(report.num_rows * rate.value)
    print(
        f"\nError rate   {rate.value:.1%}  ({wrong} of {report.num_rows} {report.split} photos "
        f"wrong; 95% interval {rate.low:.1%} to {rate.high:.1%})"
    )
    if report.comparison:
        beside = report.comparison
        print(
            f"Champion     {beside.champion_error_rate:.1%} on the same photos: this model is "
            f"{beside.outcome}, {beside.chance}"
        )
        if beside.left_out:
            print(f"             {beside.left_out}")
    elif report.is_champion:
        print("Champion     this very model")
    if not report.verdict.passed:
        print(f"Gate         not passed: {'; '.join(report.verdict.reasons)}")
    for caution in report.cautions:
        print(f"Caution      {caution}")
    print("Most confused")
    for pair in report.most_confused[:3]:
        print(f"  {pair.count:3d}  {pair.actual}, taken for {pair.predicted}")
    if not report.most_confused:
        print("  no pair of breeds, or none as often as evaluate.most_confused_min_count")
    print(f"Model        {report.model_url}")
    print(f"Report       {report.file('report.html')}")


def show_batch(summary: BatchSummary) -> None:
    """What was seen on many photos."""
    print(
        f"\nPhotos       {summary.num_photos}, of which {summary.num_unreadable} could not be "
        f"looked at\nSpeed        {summary.photos_per_second:.0f} photos/s\n"
        f"Skipped      {summary.num_skipped} other files: {summary.url}/skipped.parquet\nMost seen"
    )
    for name, count in list(summary.breeds.items())[:3]:
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
    print("\nerror    base_lr   backbone")
    for trial in result.trials:
        error = f"{trial.error_rate:6.2%}" if trial.error_rate is not None else "failed"
        print(f"{error:7}  {trial.base_lr:<8g}  {trial.backbone}  {trial.fault}".rstrip())
    print(f"Model    {result.trials[0].model_urls[0]}")


def show_ratings(report: RatingsReport) -> None:
    """How a model of ratings did, beside the baselines."""
    print(f"\n{report.num_rows:,} {report.split} ratings, RMSE:")
    for row in report.errors:
        print(f"  {row.rmse:.4f}  {row.name}")
    print(f"Model        {report.model_url}\nReview       {report.url}")


def show_tags(report: TagsReport) -> None:
    """How a model of tags did."""
    print(f"\n{report.headline} on {report.num_rows:,} {report.split} photos")
    for line in (*report.details, *report.cautions):
        print(f"  {line}")
    known = sorted((t for t in report.tags if t.f1 is not None), key=lambda tag: tag.f1 or 0.0)
    print("Worst tags: F1, and photos that have them")
    for tag in known[:_NUM_TAGS]:
        print(f"  {tag.f1:6.1%} {tag.support:6d}  {tag.name}")
    print(f"Model        {report.model_url}\nReview       {report.url}")


def show_numbers(report: NumbersReport) -> None:
    """How a model of numbers or places did, beside the mean of the training photos."""
    print(
        f"\n{report.headline} on {report.num_rows:,} {report.split} photos; "
        f"always saying the mean: {report.baseline}"
    )
    for line in (*report.details, *report.cautions):
        print(f"  {line}")
    print("MAE, and that of always saying the mean")
    for number in report.numbers[:_NUM_NUMBERS]:
        name = f"{number.name}, {number.unit}" if number.unit else number.name
        print(f"  {number.mae:<10.4g} {number.baseline_mae:<10.4g} {name}")
    if len(report.numbers) > _NUM_NUMBERS:
        print(f"  and {len(report.numbers) - _NUM_NUMBERS} more: {report.file('numbers.csv')}")
    print(f"Model        {report.model_url}\nReview       {report.url}")


def show_record(record: BaseModel) -> None:
    """As JSON, for a program to read."""
    print(record.model_dump_json(indent=2))
