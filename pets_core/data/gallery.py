"""Read parts of a stored data set for reports: thumbnails, quarantine, leaks, warnings."""

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
from pets_core.data.dataset import DUPLICATES_SCHEMA, open_parquet, read_photo_table, read_table
from pets_core.data.ingest.duplicates import leaking
from pets_core.data.ingest.images import open_rgb
from pets_core.errors import format_list
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import DUPLICATES, PHOTOS, QUARANTINE

__all__ = ["class_warnings", "read_leaks", "read_quarantine", "thumbnails"]

_FEW_PHOTOS = 10
_UNBALANCED = 10
_MISSING = frozenset({"na", "n/a", "none", "null"})


def thumbnails(manifest: DatasetManifest, ids: Iterable[str], side: int) -> dict[str, bytes]:
    """Return JPEG thumbnails of some photos of a version, by id.

    Args:
        manifest: The version.
        ids: Photo ids; unknown ids are skipped.
        side: Longer side of a thumbnail, pixels.
    """
    wanted = set(ids)
    index = read_table(storage.join(manifest.url, PHOTOS), ["id", "shard"])
    by_shard: dict[str, set[str]] = defaultdict(set)
    for photo_id, shard in zip(*(c.to_pylist() for c in index.columns), strict=True):
        if photo_id in wanted:
            by_shard[shard].add(photo_id)
    found = {}
    shards = {s.path: s for info in manifest.splits.values() for s in info.shards}
    for path, own in by_shard.items():
        with storage.open_read(manifest.shard_url(shards[path])) as file:
            for photo_id, data in _photos(open_parquet(file), own):
                found[photo_id] = _make_thumbnail(data, side)
    return found


def _photos(shard: pq.ParquetFile, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield id and bytes of some photos of a shard; reads only row groups that hold them."""
    values = pa.array(sorted(wanted))
    for group in range(shard.num_row_groups):
        ids = shard.read_row_group(group, ["id"])["id"]
        own = pc.is_in(ids, values)
        if pc.any(own).as_py():
            images = shard.read_row_group(group, ["image"])["image"].filter(own).to_pylist()
            for photo_id, image in zip(ids.filter(own).to_pylist(), images, strict=True):
                yield photo_id, image["bytes"]


def read_quarantine(manifest: DatasetManifest) -> list[dict[str, str]]:
    """Return the rows of a version's quarantine.parquet."""
    table = read_table(storage.join(manifest.url, QUARANTINE))
    return table.to_pylist()  # type: ignore[no-any-return]


def read_leaks(manifest: DatasetManifest) -> list[dict[str, Any]]:
    """Return the photos with a duplicate in a later split, as rows of `DUPLICATES_SCHEMA`."""
    table = read_photo_table(storage.join(manifest.url, DUPLICATES), DUPLICATES_SCHEMA.names)
    return leaking(table).to_pylist()  # type: ignore[no-any-return]


def class_warnings(manifest: DatasetManifest) -> list[str]:
    """Return warnings about properties of the data set that may harm training."""
    train = manifest.splits["train"].class_counts
    lost = [
        f"{label} ({n} of {total})" for label, (n, total) in manifest.quarantined_by_class.items()
    ]
    warnings = [*manifest.warnings, *_odd_names(manifest.class_names)]
    if lost:
        warnings.append(f"Classes that lost at least half of their photos: {format_list(lost, 5)}.")
    if manifest.low_contrast_fraction > 0.5:
        warnings.append(
            f"{manifest.low_contrast_fraction:.0%} of the photos have low contrast: they use less "
            "than a quarter of the range from black to white (for example 12-bit data in 16-bit "
            "files). Rescale the files to the full range."
        )
    if not train:
        return warnings
    noun = target_spec(manifest.targets).noun
    few = [
        f"{info.name} ({count})"
        for info, count in zip(manifest.vocabulary, train, strict=True)
        if count < _FEW_PHOTOS
    ]
    if few:
        warnings.append(f"Fewer than {_FEW_PHOTOS} training photos: {format_list(few, 5)}.")
    if max(train) > _UNBALANCED * min(train):
        warnings.append(
            f"Imbalanced training set: the largest {noun} has {max(train)} photos, the smallest "
            f"{min(train)}. Predictions will be biased towards the large ones."
        )
    for split, info in manifest.splits.items():
        if split != "train" and (lacking := info.class_counts.count(0)):
            warnings.append(f"Split {split} has no photos of {lacking} of {manifest.contents}.")
    return warnings


def _odd_names(names: Iterable[str]) -> list[str]:
    """Return warnings about near-identical class names and names that mean a missing label.

    Near-identical names differ only by case, Unicode form or whitespace.
    """
    alike = defaultdict(list)
    for name in names:
        plain = "".join(c for c in normalize("NFKC", name).casefold() if category(c) != "Cf")
        alike["".join(plain.split())].append(name)
    groups = [" and ".join(map(repr, own)) for own in alike.values() if len(own) > 1]
    missing = [repr(name) for key, own in alike.items() if key in _MISSING for name in own]
    warnings = []
    if groups:
        warnings.append(
            "Class names that differ only by case, Unicode form or whitespace: "
            f"{format_list(groups, 5)}. If they are the same class, correct the source or set "
            "source.label_fixes."
        )
    if missing:
        warnings.append(
            f"Class names that may mean a missing label: {', '.join(missing)}. If so, leave these "
            "labels empty in the source."
        )
    return warnings


def _make_thumbnail(data: bytes, side: int) -> bytes:
    image = open_rgb(data, at_least=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
