"""Artifacts of an ingest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.data.gallery import class_warnings, read_leaks, read_quarantine, thumbnails
from pets_core.records.dataset import DatasetManifest
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import Publisher, jpeg, table

__all__ = [
    "MAX_PAIRS",
    "pair_table",
    "publish_dataset",
]

MAX_PAIRS = 20
"""Maximum number of photo pairs in an artifact, which bounds its size."""
_THUMBNAIL_PX = 112


@task(name="publish data set", cache_policy=NO_CACHE)
def publish_dataset(manifest: DatasetManifest) -> None:
    """Publish the artifacts `dataset-summary`, `quarantine` and `duplicates`."""
    splits = table(
        ["split", "photos", "smallest class", "largest class", "shards"],
        ([s, i.num_rows, *i.class_range, len(i.shards)] for s, i in manifest.splits.items()),
    )  # fmt: skip
    numbers = table(
        ["target", "unit", "mean (training split)", "standard deviation", "minimum", "maximum"],
        (
            [
                *map(escape_markdown, (n.name, n.unit)),
                *(f"{value:.4g}" for value in (n.mean, n.std, n.low, n.high)),
            ]
            for n in manifest.numbers
        ),
    )
    quarantined = table(["quarantine reason", "files"], manifest.quarantine_reasons.items())
    duplicates = table(["(near-)duplicates", "photos"], manifest.duplicates.items())
    parent = f"parent `{manifest.parent}`" if manifest.parent else "the first version"
    text = (
        f"# {escape_markdown(manifest.name)}\n\n{manifest.num_rows} photos of "
        f"{escape_markdown(manifest.contents)}, version `{manifest.fingerprint}` ({parent}), label "
        f"schema version {manifest.contract_version}\n\n{splits}\n\n"
        + (f"{numbers}\n\n" if manifest.numbers else "")
        + (f"{quarantined}\n\n" if manifest.quarantine_reasons else "No files quarantined.\n\n")
        + "".join(f"**{escape_markdown(warning)}**\n\n" for warning in class_warnings(manifest))
        + (f"{duplicates}\n\n" if any(manifest.duplicates.values()) else "")
        + f"Source: `{manifest.source_url}`. Stored at: `{manifest.url}`\n"
    )
    rows = read_quarantine(manifest)
    with Publisher(manifest.url) as publisher:
        publisher.markdown("dataset-summary", text, "Data set of this run")
        publisher.table(
            "quarantine", rows, f"{len(rows)} quarantined files",
            f"{manifest.url}/quarantine.parquet",
        )  # fmt: skip
        publisher.markdown("duplicates", _gallery(manifest), "(Near-)duplicates across splits")


def _gallery(manifest: DatasetManifest) -> str:
    """Return markdown of the photos of an earlier split that have a duplicate in a later one."""
    leaks = read_leaks(manifest)
    head = f"# {len(leaks)} photos of an earlier split have a (near-)duplicate in a later split\n\n"
    if not leaks:
        return head + "No (near-)duplicates across splits.\n"
    shown = leaks[:MAX_PAIRS]
    header = ["earlier split", "later split", "perceptual hash"]
    rows = pair_table(manifest, shown, header, _format_distance)
    more = f"\n\nShowing the first {len(shown)}.\n" if len(leaks) > len(shown) else "\n"
    remedy = "This leak inflates the metrics of a model that memorised them. "
    remedy += "Set `ingest.duplicates = drop` to exclude the photos of the earlier split.\n\n"
    return head + remedy + rows + more


def _format_distance(row: dict[str, Any]) -> str:
    return "identical files" if row["exact"] else f"{row['distance']} of 64 bits differ"


def pair_table(
    manifest: DatasetManifest,
    rows: Sequence[dict[str, Any]],
    header: Sequence[str],
    format_row: Callable[[dict[str, Any]], str],
) -> str:
    """Return a markdown table of photo pairs with thumbnails.

    Args:
        manifest: Manifest of the version with the photos.
        rows: At most `MAX_PAIRS` rows; each names two photos, in the form of `DUPLICATES_SCHEMA`.
        header: Names of the three columns.
        format_row: Returns the text of the third column for a row.
    """
    ids = {row[key] for row in rows for key in ("id", "match_id")}
    images = thumbnails(manifest, ids, _THUMBNAIL_PX)

    def cell(photo: str, split: str) -> str:
        return f"{jpeg(images[photo], split)} {escape_markdown(photo)}, {split}"

    cells = (
        [cell(row["id"], row["split"]), cell(row["match_id"], row["match_split"]), format_row(row)]
        for row in rows
    )
    return table(header, cells)
