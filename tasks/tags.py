"""What people look at in the Prefect UI of a model of tags."""

from __future__ import annotations

from collections.abc import Iterator

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.storage.markdown import literal
from pets_core.tags.gallery import TaggedPhoto, read_top_losses
from pets_core.tags.records import TagMeasures, TagsReport
from tasks.artifacts.publisher import Publisher, links, photo, picture, table, within

__all__ = ["publish_tags"]

_NUM_WORST = 5


@task(name="publish review", cache_policy=NO_CACHE)
def publish_tags(report: TagsReport) -> None:
    """Artifacts of the evaluation, the `run-summary` last, so that it comes first in the UI."""
    with Publisher(report.url) as publisher:
        worst_first = sorted(report.tags, key=_f1)
        publisher.table(
            "tags", [_row(tag) for tag in worst_first], "Every tag, by F1", report.file("tags.csv")
        )
        if report.has_curve:
            publisher.markdown("thresholds", _thresholds(report), "Scores over the threshold")
        shown = read_top_losses(report.file("gallery.parquet"))
        head = (
            "# Top losses\n\nThe photos whose tags the model did worst on.\n\n"
            "| photo | said | is | loss |\n|---|---|---|---|\n"
        )
        publisher.markdown(
            "top-losses", within(head, _losses(shown)), "The photos the model did worst on"
        )
        publisher.markdown("run-summary", _summary(report), "How the run came out")


def _f1(tag: TagMeasures) -> tuple[bool, float]:
    """Worst first; tags that no photo has come last."""
    return tag.f1 is None, tag.f1 or 0.0


def _row(tag: TagMeasures) -> dict[str, object]:
    def short(value: float | None) -> object:
        return "" if value is None else round(value, 4)

    return {
        "tag": tag.name,
        "photos": tag.support,
        "average precision": short(tag.average_precision),
        "F1": short(tag.f1),
        "precision": short(tag.precision),
        "recall": short(tag.recall),
        "threshold": round(tag.threshold, 2),
    }


def _thresholds(report: TagsReport) -> str:
    drawn = picture(report.file("thresholds.png"), "scores over the threshold")
    return (
        f"# Thresholds\n\nA tag is given where its probability is at least its threshold: "
        f"{report.threshold_text}, by F1. Low thresholds give tags to photos that have them not, "
        f"high ones leave them out.\n\n{drawn}\n\nEvery threshold: "
        f"`{report.file('thresholds.parquet')}`\n"
    )


def _losses(shown: list[TaggedPhoto]) -> Iterator[str]:
    for tagged in shown:
        said = ", ".join(
            f"{literal(tag)} {value:.0%}"
            for tag, value in zip(tagged.given, tagged.probabilities, strict=True)
        )
        actual = ", ".join(map(literal, tagged.actual))
        cells = [
            f"{photo(tagged.jpeg)} {literal(tagged.photo_id)}",
            said or "no tag",
            actual or "no tag",
            f"{tagged.loss:.3f}",
        ]
        yield f"| {' | '.join(cells)} |\n"


def _summary(report: TagsReport) -> str:
    cautions = "".join(f"**{literal(caution)}**\n\n" for caution in report.cautions)
    untagged = f" {report.num_untagged:,} of them have no tag." if report.num_untagged else ""
    known = sorted((tag for tag in report.tags if tag.f1 is not None), key=_f1)
    worst = table(
        ["worst tags", "photos", "F1", "precision", "recall"],
        ([literal(t.name), t.support, *_shares(t.f1, t.precision, t.recall)]
         for t in known[:_NUM_WORST]),
    )  # fmt: skip
    return (
        f"# {report.headline}\n\n{cautions}On {report.num_rows:,} {report.split} photos of "
        f"{len(report.tags)} tags.{untagged} {literal(' '.join(report.details))}\n\n{worst}\n\n"
        f"{links(report)}\n"
    )


def _shares(*values: float | None) -> list[str]:
    return ["" if value is None else f"{value:.1%}" for value in values]
