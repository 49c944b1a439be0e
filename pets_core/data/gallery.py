"""What people look at of a stored data set: photos, leaks, what was left out."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from unicodedata import category, normalize

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pets_core import storage
from pets_core.data.dataset import open_parquet, read_table
from pets_core.data.ingest.duplicates import leaking
from pets_core.data.ingest.images import open_rgb
from pets_core.errors import listed
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import target_spec

__all__ = ["class_warnings", "read_leaks", "read_quarantine", "thumbnails"]

_FEW_PHOTOS = 10
_UNBALANCED = 10
_MISSING = frozenset({"na", "n/a", "none", "null"})


def thumbnails(manifest: DatasetManifest, ids: Iterable[str], side: int) -> dict[str, bytes]:
    """Read some photos of a version and make them small.

    Args:
        manifest: The version.
        ids: Which photos; those it does not hold are passed over.
        side: Longer side of a thumbnail, pixels.

    Returns:
        JPEG by photo id.
    """
    wanted = set(ids)
    index = read_table(storage.join(manifest.url, "photos.parquet"), ["id", "shard"])
    by_shard: dict[str, set[str]] = defaultdict(set)
    for photo_id, shard in zip(*(c.to_pylist() for c in index.columns), strict=True):
        if photo_id in wanted:
            by_shard[shard].add(photo_id)
    found = {}
    shards = {s.path: s for info in manifest.splits.values() for s in info.shards}
    for path, own in by_shard.items():
        with storage.open_read(manifest.shard_url(shards[path])) as file:
            for photo_id, data in _photos(open_parquet(file), own):
                found[photo_id] = _small(data, side)
    return found


def _photos(shard: pq.ParquetFile, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Some photos of a shard, from the row groups alone that have them."""
    values = pa.array(sorted(wanted))
    for group in range(shard.num_row_groups):
        ids = shard.read_row_group(group, ["id"])["id"]
        own = pc.is_in(ids, values)
        if pc.any(own).as_py():
            images = shard.read_row_group(group, ["image"])["image"].filter(own).to_pylist()
            for photo_id, image in zip(ids.filter(own).to_pylist(), images, strict=True):
                yield photo_id, image["bytes"]


def read_quarantine(manifest: DatasetManifest) -> list[dict[str, str]]:
    """What a version leaves out: id, path, reason, detail."""
    table = read_table(storage.join(manifest.url, "quarantine.parquet"))
    return table.to_pylist()  # type: ignore[no-any-return]


def read_leaks(manifest: DatasetManifest) -> list[dict[str, Any]]:
    """Photos of a version whose like is in a later split, by `DUPLICATES_SCHEMA`."""
    table = read_table(storage.join(manifest.url, "duplicates.parquet"))
    return leaking(table).to_pylist()  # type: ignore[no-any-return]


def class_warnings(manifest: DatasetManifest) -> list[str]:
    """What of the data set may harm training, a sentence each."""
    train = manifest.splits["train"].class_counts
    lost = [f"{label} ({n} of {total})" for label, (n, total) in manifest.lost_of_classes.items()]
    warnings = [*manifest.warnings, *_odd_names(manifest.class_names)]
    if lost:
        warnings.append(f"Classes that lost most of their photos: {listed(lost, 5)}.")
    if manifest.narrow_fraction > 0.5:
        warnings.append(
            f"{manifest.narrow_fraction:.0%} of the photos use less than a quarter of the range "
            "from black to white, as 12 bits in a 16-bit file do, and a model sees little of them: "
            "rescale the files to their full range."
        )
    if not train:
        return warnings
    what = target_spec(manifest.targets).noun
    few = [
        f"{info.name} ({count})"
        for info, count in zip(manifest.classes, train, strict=True)
        if count < _FEW_PHOTOS
    ]
    if few:
        warnings.append(
            f"Few training photos, below {_FEW_PHOTOS}, to learn from: {listed(few, 5)}."
        )
    if max(train) > _UNBALANCED * min(train):
        warnings.append(
            f"The largest {what} has {max(train)} training photos, the smallest {min(train)}: the "
            "model will lean to the large ones."
        )
    for split, info in manifest.splits.items():
        if split != "train" and (lacking := info.class_counts.count(0)):
            warnings.append(f"{split} has no photo of {lacking} of the {manifest.contents}.")
    return warnings


def _odd_names(names: Iterable[str]) -> list[str]:
    """Warnings of names that differ by case, Unicode form or blanks only, or stand for no label."""
    alike = defaultdict(list)
    for name in names:
        plain = "".join(c for c in normalize("NFKC", name).casefold() if category(c) != "Cf")
        alike["".join(plain.split())].append(name)
    groups = [" and ".join(map(repr, own)) for own in alike.values() if len(own) > 1]
    missing = [repr(name) for key, own in alike.items() if key in _MISSING for name in own]
    warnings = []
    if groups:
        warnings.append(
            "Classes whose names differ by case, Unicode form or blanks only: "
            f"{listed(groups, 5)}. If they are the same, correct the source or set "
            "source.label_fixes."
        )
    if missing:
        warnings.append(
            f"Classes whose names may stand for no label: {', '.join(missing)}. If they do, leave "
            "their rows empty."
        )
    return warnings


def _small(data: bytes, side: int) -> bytes:
    image, _ = open_rgb(data, at_least=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
