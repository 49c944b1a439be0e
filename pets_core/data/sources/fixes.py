"""Label corrections: a CSV that overrides the labels of a source."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from pets_core import storage
from pets_core.data.sources.catalogue import Catalogue
from pets_core.errors import PetsError, did_you_mean
from pets_core.storage.csv import unescape_cell

__all__ = ["EXCLUDED", "apply_fixes", "read_fixes"]

EXCLUDED = "excluded"
"""Reason code of photos that an empty label in `source.label_fixes` excludes."""


def read_fixes(url: str | None) -> dict[str, str]:
    """Read label corrections from a CSV with the columns id and label; others are ignored.

    Args:
        url: Path or URL of the CSV; None: no corrections.

    Returns:
        Label by photo id; an empty label excludes the photo.

    Raises:
        PetsError: The file does not exist or is not UTF-8, a column is missing, or an id has two
            labels.
    """
    if url is None:
        return {}
    try:
        text = storage.read_bytes(storage.absolute(url)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PetsError(
            f"source.label_fixes = {url}: the file is not UTF-8 ({error}). Save it as CSV UTF-8"
        ) from error
    rows = csv.DictReader(io.StringIO(text))
    if missing := {"id", "label"} - set(rows.fieldnames or ()):
        raise PetsError(
            f"source.label_fixes = {url}: missing column {', '.join(sorted(missing))}. Use a CSV "
            "with the columns id and label"
        )
    fixes: dict[str, str] = {}
    for row in rows:
        photo, label = unescape_cell(row["id"] or ""), unescape_cell((row["label"] or "").strip())
        if not photo:
            continue
        if fixes.setdefault(photo, label) != label:
            raise PetsError(
                f"source.label_fixes = {url}: {photo} has two labels, {fixes[photo]!r} and "
                f"{label!r}. Remove one of the rows"
            )
    return fixes


def apply_fixes(catalogue: Catalogue, fixes: dict[str, str]) -> tuple[Catalogue, set[str]]:
    """Replace labels by their corrections, and remove excluded photos.

    Returns:
        The corrected catalogue, and the ids of the excluded photos.

    Raises:
        PetsError: An id or a label does not exist in the source.
    """
    if not fixes:
        return catalogue, set()
    unknown = sorted(fixes.keys() - catalogue.photos.keys())
    if unknown:
        near = did_you_mean(unknown[0], catalogue.photos)
        raise PetsError(
            f"source.label_fixes: {len(unknown)} ids are not in the source, such as "
            f"{unknown[0]!r}.{near} Correct or remove their rows"
        )
    for photo, label in fixes.items():
        if label and label not in catalogue.vocabulary:
            raise PetsError(
                f"source.label_fixes: {photo} has the label {label!r}, which is not a class of the "
                f"source.{did_you_mean(label, catalogue.vocabulary)} Correct or remove its row"
            )
    photos = {
        photo.id: replace(photo, label=label, species=catalogue.vocabulary[label])
        for photo in catalogue.photos.values()
        if (label := fixes.get(photo.id, photo.label))
    }
    return replace(catalogue, photos=photos), catalogue.photos.keys() - photos.keys()
