"""What a run leaves to look at in the Prefect UI, made from the files the ranks wrote."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data.gallery import class_warnings, read_leaks, read_quarantine, thumbnails
from pets_core.evaluation.tables import read_confusion
from pets_core.records import DatasetManifest, EvalReport, LRSuggestion, TrainResult

__all__ = [
    "publish_dataset",
    "publish_evaluation",
    "publish_lr",
    "publish_summary",
    "publish_training",
]

_MAX_ROWS = 500
_MAX_PAIRS = 20
_THUMBNAIL_PX = 112
"""An artifact beyond 300 kB makes the UI slow: its lists fetch all of them."""


@task(name="publish data set", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_dataset(manifest: DatasetManifest) -> None:
    """Artifacts `dataset-summary`, `quarantine` and `duplicates`."""
    splits = _table(
        ["split", "photos", "fewest of a class", "most of a class", "shards"],
        ([s, i.num_rows, min(i.class_counts), max(i.class_counts), len(i.shards)] for s, i in
         manifest.splits.items()),
    )  # fmt: skip
    left_out = _table(["left out", "files"], manifest.quarantine_reasons.items())
    alike = _table(["photos that are (nearly) another", "photos"], manifest.duplicates.items())
    after = f", after `{manifest.parent}`" if manifest.parent else ", the first"
    text = (
        f"# {_text(manifest.name)}\n\n{manifest.num_rows} photos of {len(manifest.classes)} "
        f"classes, version `{manifest.fingerprint}`{after}, label contract "
        f"{manifest.contract_version}\n\n{splits}\n\n"
        + (f"{left_out}\n\n" if manifest.quarantine_reasons else "Nothing was left out.\n\n")
        + "".join(f"**{_text(warning)}**\n\n" for warning in class_warnings(manifest))
        + (f"{alike}\n\n" if any(manifest.duplicates.values()) else "")
        + f"From `{manifest.source_url}`, stored at `{manifest.url}`\n"
    )
    create_markdown_artifact(text, key="dataset-summary", description="The data set of this run")
    rows = read_quarantine(manifest)
    create_table_artifact(
        rows[:_MAX_ROWS],
        key="quarantine",
        description=f"{len(rows)} files left out, {_MAX_ROWS} shown at most; all are in "
        f"{manifest.url}/quarantine.parquet",
    )
    create_markdown_artifact(
        _gallery(manifest), key="duplicates", description="Photos that are (nearly) in two splits"
    )


def _gallery(manifest: DatasetManifest) -> str:
    """Pairs of photos, one in an earlier split and its like in a later one."""
    leaks = read_leaks(manifest)
    head = f"# {len(leaks)} photos of an earlier split are (nearly) in a later one\n\n"
    if not leaks:
        return head + "A model is judged on no photo that it was trained on.\n"
    shown = leaks[:_MAX_PAIRS]
    ids = {row[key] for row in shown for key in ("id", "match_id")}
    small = thumbnails(manifest, ids, _THUMBNAIL_PX)
    pairs = _table(
        ["earlier split", "later split", "perceptual hash"],
        (
            [
                f"{_jpeg(small[row['id']], row['split'])} {_text(row['id'])}, {row['split']}",
                f"{_jpeg(small[row['match_id']], row['match_split'])} {_text(row['match_id'])}, "
                f"{row['match_split']}",
                "the same file" if row["exact"] else f"{row['distance']} of 64 bits differ",
            ]
            for row in shown
        ),
    )
    more = f"\n\nThe first {len(shown)} are shown.\n" if len(leaks) > len(shown) else "\n"
    remedy = "A model that has learnt them by heart looks better than it is. "
    remedy += "`ingest.duplicates = drop` leaves the earlier ones out.\n\n"
    return head + remedy + pairs + more


@task(name="publish learning rate", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_lr(suggestion: LRSuggestion) -> None:
    """Artifact `lr-finder`: the curve with its suggestions."""
    rows = [
        [f"**{name}** (taken)" if name == suggestion.suggestion else name, f"{rate:.2e}"]
        for name, rate in (
            ("minimum", suggestion.minimum),
            ("steepest", suggestion.steepest),
            ("valley", suggestion.valley),
            ("slide", suggestion.slide),
        )
    ]
    text = (
        "# Learning-rate finder\n\n"
        f"{_picture(suggestion.plot_url, 'Loss against learning rate')}\n\n"
        f"{_table(['suggestion', 'learning rate'], rows)}\n"
    )
    create_markdown_artifact(text, key="lr-finder", description="Loss against learning rate")


@task(name="publish training", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_training(result: TrainResult) -> None:
    """Artifact `training-curves`: losses and rates over steps, a row an epoch."""
    rows = [
        [
            epoch.epoch + 1,
            epoch.phase,
            f"{epoch.train_loss:.3f}",
            "" if epoch.valid_loss is None else f"{epoch.valid_loss:.3f}",
            "" if epoch.valid_error_rate is None else f"{epoch.valid_error_rate:.1%}",
            f"{epoch.seconds:.0f}",
            f"{epoch.photos_per_second:.0f}",
        ]
        for epoch in result.epochs
    ]
    header = ["epoch", "phase", "train loss", "valid loss", "valid error", "s", "photos/s"]
    text = (
        f"# Training\n\n{_picture(result.plot_url, 'Losses and learning rates')}\n\n"
        f"{_table(header, rows)}\n\nBase learning rate {result.base_lr:.2e}, "
        f"mixed precision {result.mixed_precision}, {result.num_processes} rank(s) on "
        f"{_text(result.device)}. Every step: `{result.history_url}`\n"
    )
    create_markdown_artifact(text, key="training-curves", description="Losses and rates")


@task(name="publish evaluation", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_evaluation(report: EvalReport) -> None:
    """Artifacts `confusion-matrix` (picture), `confusion-table` and `most-confused`."""
    picture = _picture(report.confusion_plot_url, "Confusion matrix")
    create_markdown_artifact(
        f"# Confusion matrix, {report.split}\n\nRows: what it is. Columns: what the model said. "
        f"The diagonal is right.\n\n{picture}\n",
        key="confusion-matrix",
        description=f"{report.num_rows} {report.split} photos",
    )
    create_table_artifact(
        read_confusion(report.confusion_url),
        key="confusion-table",
        description="Every pair of actual and predicted class that occurs",
    )
    create_table_artifact(
        [pair.model_dump() for pair in report.most_confused],
        key="most-confused",
        description="Classes taken for others, most first",
    )


@task(name="publish summary", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def publish_summary(
    config: PipelineConfig, manifest: DatasetManifest, result: TrainResult, report: EvalReport
) -> None:
    """Artifact `run-summary`: the first thing to look at."""
    pairs = _table(
        ["what it is", "what the model said", "photos"],
        ([_text(p.actual), _text(p.predicted), p.count] for p in report.most_confused[:3]),
    )
    right = round(report.num_rows * (1 - report.error_rate))
    text = (
        f"# Error rate {report.error_rate:.1%}\n\n{right} of {report.num_rows} {report.split} "
        f"photos right, cross-entropy {report.loss:.3f}.\n\n{pairs}\n\n"
        + _table(
            ["", ""],
            [
                ["data set", f"{_text(manifest.name)} `{manifest.fingerprint}`"],
                ["backbone", f"{_text(config.model.backbone)} at {config.model.image_size} px"],
                ["training", f"{result.seconds:.0f} s, {result.num_steps} steps"],
                ["model", f"`{report.model_url}`"],
                ["report", f"`{report.report_url}`"],
            ],
        )
    )
    create_markdown_artifact(text, key="run-summary", description="How the run came out")


def _jpeg(data: bytes, alt: str) -> str:
    return f"![{alt}](data:image/jpeg;base64,{base64.b64encode(data).decode()})"


def _picture(url: str, alt: str) -> str:
    data = base64.b64encode(storage.read_bytes(url)).decode()
    return f"![{alt}](data:image/png;base64,{data})"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _text(value: str) -> str:
    """A name as markdown shows it literally: no markup, no table cell's end."""
    safe = escape(value)
    for mark in "\\`*_[]|#":
        safe = safe.replace(mark, f"\\{mark}")
    return safe
