"""What people look at in the Prefect UI before a model goes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.evaluation.gallery import Gallery, Picture, read_gallery
from pets_core.numbers.records import NumbersReport
from pets_core.records.evaluation import Comparison, EvalReport
from pets_core.storage.markdown import literal
from pets_core.tags.records import TagsReport
from tasks.artifacts.publisher import Publisher, jpeg, links, photo, picture, table, within
from tasks.numbers import publish_numbers
from tasks.review import Report
from tasks.tags import publish_tags

__all__ = ["publish_classes", "publish_review"]

_NUM_WORST = 3
_ERROR_HEAD = "| photo | said | is |\n|---|---|---|\n"


def publish_review(config: PipelineConfig, report: Report) -> None:
    """Publish what a review found; to be called in a flow."""
    if isinstance(report, TagsReport):
        publish_tags(report)
    elif isinstance(report, NumbersReport):
        publish_numbers(report)
    else:
        publish_classes(config, report)


@task(name="publish review", cache_policy=NO_CACHE)
def publish_classes(config: PipelineConfig, report: EvalReport) -> None:
    """Artifacts of the evaluation, the `run-summary` last, so that it comes first in the UI."""
    gallery = read_gallery(report.file("gallery.parquet"))
    with Publisher(report.url) as publisher:
        _publish_tables(publisher, report)
        publisher.markdown("calibration", _calibration(report), "Confidence against accuracy")
        _publish_galleries(publisher, report, gallery)
        if report.comparison:
            compared = _comparison(report.comparison)
            publisher.markdown("champion", compared, "Beside the champion, on the same photos")
        publisher.markdown("run-summary", _summary(config, report), "How the run came out")


def _publish_tables(publisher: Publisher, report: EvalReport) -> None:
    drawn = picture(report.file("confusion.png"), "Confusion matrix")
    publisher.markdown(
        "confusion-matrix",
        f"# Confusion matrix, {report.split}\n\nRows: what it is. Columns: what the model said. "
        "The diagonal is right; classes that are confused lie side by side.\n\n"
        f"{drawn}\n\nFull size: `{report.file('confusion.png')}`\n",
        f"{report.num_rows} {report.split} photos",
    )
    for key, name, description in (
        ("confusion-table", "confusion", "Every pair of actual and predicted class that occurs"),
        ("most-confused", "most_confused", "Classes taken for others, most first"),
        ("classes", "classes", "Precision, recall and F1 of every class"),
    ):
        rows = sorted(read_table(report.file(f"{name}.parquet")).to_pylist(), key=_worst_first)
        whole = report.file(f"{name}.csv")
        publisher.table(key, [_rounded(row) for row in rows], description, whole)


def _worst_first(row: dict[str, Any]) -> tuple[bool, float]:
    """Mistakes before what is right, the most frequent first; classes by recall."""
    if "recall" in row:
        return row["recall"] is None, row["recall"] or 0.0
    return row["actual"] == row["predicted"], -row["count"]


def _rounded(row: dict[str, object]) -> dict[str, object]:
    """Floats that people read; what is not known stays out of the table."""
    return {
        name: round(value, 4) if isinstance(value, float) else "" if value is None else value
        for name, value in row.items()
    }


def _publish_galleries(publisher: Publisher, report: EvalReport, gallery: Gallery) -> None:
    publisher.markdown(
        "top-losses",
        within("# Top losses\n\nThe photos the model did worst on, and where it looked.\n\n"
                "| photo | where it looked | said | is | loss |\n|---|---|---|---|---|\n",
                map(_loss_row, gallery.top_losses)),
        "The photos the model did worst on",
    )  # fmt: skip
    publisher.markdown(
        "confident-errors",
        within("# Confident errors\n\nWrong, and the model was surest of them.\n\n" + _ERROR_HEAD,
               map(_error_row, gallery.confident_errors)),
        "Wrong answers that the model was surest of",
    )  # fmt: skip
    publisher.markdown(
        "confused-pairs",
        within("# Photos of the pairs confused most\n\n", _pairs(gallery.pairs)),
        "Photos of the pairs confused most",
    )
    if report.num_label_issues is not None:
        publisher.markdown(
            "label-issues",
            within(f"# {report.num_label_issues} labels that are probably wrong\n\nOf validation "
                    "photos, by confident learning. Look at them, strike the rows of "
                    f"`{report.file('label_fixes.csv')}` that are right as they are, and ingest "
                    f"with `source.label_fixes` set to it.\n\n{_ERROR_HEAD}",
                    map(_error_row, gallery.label_issues)),
            "Labels that are probably wrong",
        )  # fmt: skip


def _loss_row(shown: Picture) -> str:
    looked = jpeg(shown.map_jpeg, "where it looked") if shown.map_jpeg else ""
    said = f"{literal(shown.predicted)}, {shown.probability:.0%}"
    cells = [
        f"{photo(shown.jpeg)} {literal(shown.photo_id)}", looked, said,
        literal(shown.actual), f"{shown.loss:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _error_row(shown: Picture) -> str:
    seen = f"{photo(shown.jpeg)} {literal(shown.photo_id)}"
    said = f"{literal(shown.predicted)}, {shown.probability:.0%}"
    return f"| {seen} | {said} | {literal(shown.actual)} |\n"


def _pairs(pictures: Sequence[Picture]) -> Iterator[str]:
    for (actual, predicted), own in groupby(pictures, key=lambda p: (p.actual, p.predicted)):
        photos = " ".join(photo(shown.jpeg) for shown in own)
        yield f"**{literal(actual)}**, taken for **{literal(predicted)}**\n\n{photos}\n\n"


def _calibration(report: EvalReport) -> str:
    calibration = report.calibration
    mended = ""
    if calibration.temperature is not None:
        mended = (
            f" With logits divided by {calibration.temperature:.2f}, fitted on the validation "
            f"photos, it is {calibration.ece_after:.1%}."
        )
    drawn = picture(report.file("reliability.png"), "Share of right answers against confidence")
    return (
        "# Calibration\n\nHow often the model is right when it says it is so sure. Expected "
        f"calibration error {calibration.ece:.1%}.{mended}\n\n{drawn}\n"
    )


def _comparison(beside: Comparison) -> str:
    gained = beside.improvement
    changes = table(
        ["class", "recognised", "by the champion", "photos"],
        (
            [literal(c.name), f"{c.recall:.1%}", f"{c.champion_recall:.1%}", c.support]
            for c in (*beside.worse[:5], *beside.better[:5])
        ),
    )
    return (
        f"# Beside the champion: {beside.outcome}\n\nError rate "
        f"{beside.error_rate:.2%}, the champion's {beside.champion_error_rate:.2%}, on the same "
        f"{beside.num_rows} photos; improved by {100 * gained.value:+.2f} points, 95% interval "
        f"{100 * gained.low:+.2f} to {100 * gained.high:+.2f}; McNemar's test "
        f"{beside.chance}. Only the champion is wrong on {beside.only_champion_wrong} photos, "
        f"only this model on {beside.only_model_wrong}. {beside.left_out}\n\n"
        f"Worse, then better:\n\n{changes}\n\n"
        f"Champion: `{beside.champion_url}`\n"
    )


def _summary(config: PipelineConfig, report: EvalReport) -> str:
    rate = report.error_rate
    right = round(report.num_rows * (1 - rate.value))
    pairs = table(
        ["what it is", "what the model said", "photos", "share"],
        ([literal(p.actual), literal(p.predicted), p.count, f"{p.share:.0%}"]
         for p in report.most_confused[:_NUM_WORST]),
    )  # fmt: skip
    page = ("report, complete in one page", report.file("report.html"))
    return (
        f"# Error rate {rate.value:.1%}: {_verdict(config, report)}\n\n"
        f"{_beside(report)}{right} of {report.num_rows} {report.split} photos right, 95% interval "
        f"of the error rate {rate.low:.1%} to {rate.high:.1%}, cross-entropy {report.loss:.3f}.\n\n"
        f"{pairs}\n\n{links(report, page)}\n"
    )


def _verdict(config: PipelineConfig, report: EvalReport) -> str:
    if config.gate.promote and report.verdict.passed:
        return f"passes, {config.gate.alias} points at it"
    return report.verdict.words


def _beside(report: EvalReport) -> str:
    """Reasons against, and the champion, a paragraph each."""
    lines = [f"**{literal(reason)}**" for reason in report.verdict.reasons]
    lines += map(literal, report.cautions)
    if report.comparison:
        beside = report.comparison
        lines.append(
            f"Against the champion's {beside.champion_error_rate:.1%}: {beside.outcome} "
            f"({beside.chance}). {beside.left_out}".rstrip()
        )
    elif report.is_champion:
        lines.append("It is the champion.")
    elif not report.not_compared:
        lines.append("There is no champion to compare with.")
    return "".join(f"{line}\n\n" for line in lines)
