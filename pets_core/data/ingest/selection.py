"""Select the file of each photo, and quarantine all other files of a source."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from pets_core.data.sources.catalogue import Catalogue, LabelledPhoto, Source
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.fixes import EXCLUDED
from pets_core.data.sources.formats import has_decodable_suffix, has_photo_suffix
from pets_core.records.dataset import QuarantinedFile

__all__ = ["quarantine_row", "select_files"]

_DETAILS = {
    "encrypted": "pack the archive without a password",
    "hidden": "a dot begins its name or its folder's",
    "link": "archives may hold files, no links",
    "missing": "listed, but the source has no such file",
    "name_not_utf8": "rename it in UTF-8",
    "system_folder": "a folder that a system makes",
    "too_large": "larger than 256 MiB",
    "unsafe_path": "absolute, or with ..",
}
"""Finding or remedy by reason code; stored, and part of the fingerprint."""


def select_files(
    source: Source, catalogue: Catalogue, excluded: Collection[str]
) -> tuple[dict[str, FileEntry], list[QuarantinedFile]]:
    """Select a file for each listed photo.

    Args:
        source: The source.
        catalogue: Its labelled photos.
        excluded: Ids of photos that `source.label_fixes` excludes.

    Returns:
        The selected file by photo id, and the quarantined files and missing photos.
    """
    files: dict[str, FileEntry] = {}
    quarantined = []
    # Of two files with the same id, the one with a photo's name comes first.
    for entry in sorted(source.files.entries(), key=lambda e: not has_decodable_suffix(e.path)):
        photo_id = source.photo_id(entry.path)
        photo = catalogue.photos.get(photo_id) or LabelledPhoto(photo_id, "")
        if entry.skip_reason:
            detail = _DETAILS.get(entry.skip_reason, f"{entry.size} bytes")
            quarantined.append(quarantine_row(entry, photo, entry.skip_reason, detail))
        elif photo_id in catalogue.photos and photo_id not in files:
            files[photo_id] = entry
        elif photo_id in excluded:
            detail = "source.label_fixes gives it no label"
            quarantined.append(quarantine_row(entry, photo, EXCLUDED, detail))
        elif photo_id in catalogue.skipped:
            quarantined.append(quarantine_row(entry, photo, *catalogue.skipped[photo_id]))
        elif not has_photo_suffix(entry.path):
            detail = f"a {PurePosixPath(entry.path).suffix or 'nameless'} file"
            quarantined.append(quarantine_row(entry, photo, "not_a_photo", detail))
        elif photo_id in files:
            is_same = files[photo_id].path == entry.path
            detail = f"the id is taken by {files[photo_id].path}"
            detail = "the source holds it twice, and the first counts" if is_same else detail
            quarantined.append(quarantine_row(entry, photo, "same_id", detail))
        else:
            detail = "the annotations do not name this photo"
            quarantined.append(quarantine_row(entry, photo, "unlisted", detail))
    quarantined_ids = {row.id for row in quarantined}
    quarantined += [
        quarantine_row(FileEntry("", 0, ""), photo, "missing", _DETAILS["missing"])
        for photo_id, photo in catalogue.photos.items()
        if photo_id not in files and photo_id not in quarantined_ids
    ]
    return files, quarantined


def quarantine_row(
    entry: FileEntry, photo: LabelledPhoto, reason: str, detail: str
) -> QuarantinedFile:
    """Return the quarantine row of a file or a missing photo."""
    return QuarantinedFile(
        id=photo.id, path=entry.path, reason=reason, detail=detail, label=photo.label
    )
