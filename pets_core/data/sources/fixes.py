"""Labels that somebody has mended: what photos are, whatever their source says."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from pets_core import storage
from pets_core.data.sources.catalogue import Catalogue
from pets_core.errors import PetsError, did_you_mean
from pets_core.storage.csv import cell_text

__all__ = ["STRUCK_OUT", "apply_fixes", "read_fixes"]

STRUCK_OUT = "struck_out"
"""Why a photo whose mended label is empty is left out."""


def read_fixes(url: str | None) -> dict[str, str]:
    """Read a CSV with the columns id and label; other columns are passed over.

    Returns:
        Label by photo id, empty where the photo is to be left out; nothing where there is no file.

    Raises:
        PetsError: There is no such file, it is not UTF-8, a column is missing, or an id has two
            labels.
    """
    if url is None:
        return {}
    try:
        text = storage.read_bytes(storage.absolute(url)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PetsError(
            f"source.label_fixes = {url}: not UTF-8 ({error}); save it as CSV UTF-8"
        ) from error
    rows = csv.DictReader(io.StringIO(text))
    if lacking := {"id", "label"} - set(rows.fieldnames or ()):
        raise PetsError(
            f"source.label_fixes = {url}: no column {', '.join(sorted(lacking))}; expected a CSV "
            "with the columns id and label"
        )
    fixes: dict[str, str] = {}
    for row in rows:
        photo, label = cell_text(row["id"] or ""), cell_text((row["label"] or "").strip())
        if not photo:
            continue
        if fixes.setdefault(photo, label) != label:
            raise PetsError(
                f"source.label_fixes = {url}: {photo} has two labels, {fixes[photo]!r} and "
                f"{label!r}: leave one of them"
            )
    return fixes


def apply_fixes(catalogue: Catalogue, fixes: dict[str, str]) -> tuple[Catalogue, set[str]]:
    """Give photos their mended labels.

    Returns:
        The catalogue without the photos to be left out, and the ids of these.

    Raises:
        PetsError: An id or a label is not in the source.
    """
    if not fixes:
        return catalogue, set()
    unknown = sorted(fixes.keys() - catalogue.photos.keys())
    if unknown:
        near = did_you_mean(unknown[0], catalogue.photos)
        raise PetsError(
            f"source.label_fixes: {len(unknown)} ids are not in the source, {unknown[0]!r} for "
            f"one.{near} Remove their rows"
        )
    for photo, label in fixes.items():
        if label and label not in catalogue.classes:
            raise PetsError(
                f"source.label_fixes: {photo} is to be {label!r}, which no photo of the source is."
                f"{did_you_mean(label, catalogue.classes)}"
            )
    photos = {
        photo.id: replace(photo, label=label, species=catalogue.classes[label])
        for photo in catalogue.photos.values()
        if (label := fixes.get(photo.id, photo.label))
    }
    return replace(catalogue, photos=photos), catalogue.photos.keys() - photos.keys()
