"""What an ingest leaves to look at in the Prefect UI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.data.gallery import class_warnings, read_leaks, read_quarantine, thumbnails
from pets_core.records.dataset import DatasetManifest
from pets_core.storage.markdown import literal
from tasks.artifacts.publisher import Publisher, jpeg, table

__all__ = [
    "MAX_PAIRS",
    "pairs",
    "publish_dataset",
]

MAX_PAIRS = 20
"""Of photos side by side: more make an artifact too large."""
_THUMBNAIL_PX = 112


@task(name="publish data set", cache_policy=NO_CACHE)
def publish_dataset(manifest: DatasetManifest) -> None:
    """Artifacts `dataset-summary`, `quarantine` and `duplicates`."""
    splits = table(
        ["split", "photos", "fewest of a class", "most of a class", "shards"],
        ([s, i.num_rows, *i.class_range, len(i.shards)] for s, i in manifest.splits.items()),
    )  # fmt: skip
    numbers = table(
        ["learnt", "unit", "mean of training photos", "standard deviation", "least", "greatest"],
        ([literal(n.name), literal(n.unit), *(f"{v:.4g}" for v in (n.mean, n.std, n.low, n.high))]
         for n in manifest.numbers),
    )  # fmt: skip
    left_out = table(["left out", "files"], manifest.quarantine_reasons.items())
    alike = table(["photos that are (nearly) another", "photos"], manifest.duplicates.items())
    after = f", after `{manifest.parent}`" if manifest.parent else ", the first"
    text = (
        f"# {literal(manifest.name)}\n\n{manifest.num_rows} photos of "
        f"{literal(manifest.contents)}, version `{manifest.fingerprint}`{after}, label contract "
        f"{manifest.contract_version}\n\n{splits}\n\n"
        + (f"{numbers}\n\n" if manifest.numbers else "")
        + (f"{left_out}\n\n" if manifest.quarantine_reasons else "Nothing was left out.\n\n")
        + "".join(f"**{literal(warning)}**\n\n" for warning in class_warnings(manifest))
        + (f"{alike}\n\n" if any(manifest.duplicates.values()) else "")
        + f"From `{manifest.source_url}`, stored at `{manifest.url}`\n"
    )
    rows = read_quarantine(manifest)
    with Publisher(manifest.url) as publisher:
        publisher.markdown("dataset-summary", text, "The data set of this run")
        publisher.table(
            "quarantine", rows, f"{len(rows)} files left out", f"{manifest.url}/quarantine.parquet"
        )
        alike_in = "Photos that are (nearly) in two splits"
        publisher.markdown("duplicates", _gallery(manifest), alike_in)


def _gallery(manifest: DatasetManifest) -> str:
    """Pairs of photos, one in an earlier split and its like in a later one."""
    leaks = read_leaks(manifest)
    head = f"# {len(leaks)} photos of an earlier split are (nearly) in a later one\n\n"
    if not leaks:
        return head + "A model is judged on no photo that it was trained on.\n"
    shown = leaks[:MAX_PAIRS]
    header = ["earlier split", "later split", "perceptual hash"]
    beside = pairs(manifest, shown, header, _distance)
    more = f"\n\nThe first {len(shown)} are shown.\n" if len(leaks) > len(shown) else "\n"
    remedy = "A model that has learnt them by heart looks better than it is. "
    remedy += "`ingest.duplicates = drop` leaves the earlier ones out.\n\n"
    return head + remedy + beside + more


def _distance(row: dict[str, Any]) -> str:
    return "the same file" if row["exact"] else f"{row['distance']} of 64 bits differ"


def pairs(
    manifest: DatasetManifest,
    rows: Sequence[dict[str, Any]],
    header: Sequence[str],
    tell: Callable[[dict[str, Any]], str],
) -> str:
    """Photos beside their likes, small, in a table in markdown.

    Args:
        manifest: Of the version that has them.
        rows: At most `MAX_PAIRS`; each names two photos, as `DUPLICATES_SCHEMA` does.
        header: Of the three columns.
        tell: What the third says of a row.
    """
    ids = {row[key] for row in rows for key in ("id", "match_id")}
    small = thumbnails(manifest, ids, _THUMBNAIL_PX)

    def shown(photo: str, split: str) -> str:
        return f"{jpeg(small[photo], split)} {literal(photo)}, {split}"

    cells = (
        [shown(row["id"], row["split"]), shown(row["match_id"], row["match_split"]), tell(row)]
        for row in rows
    )
    return table(header, cells)
