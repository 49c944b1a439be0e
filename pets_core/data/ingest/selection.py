"""Which file of a source is which photo, and why each other file is left out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from pets_core.data.sources.catalogue import Catalogue, LabelledPhoto, Source
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.fixes import STRUCK_OUT
from pets_core.data.sources.formats import is_named_as_photo, is_photo_name
from pets_core.records.dataset import LeftOut

__all__ = ["left_out_row", "select_files"]

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
"""What to do or what was found, by reason."""


def select_files(
    source: Source, catalogue: Catalogue, struck_out: Collection[str]
) -> tuple[dict[str, FileEntry], list[LeftOut]]:
    """Choose a file for each listed photo; say why each other file, and photo, is left out."""
    files: dict[str, FileEntry] = {}
    left_out = []
    # Where two files have one id, the one that is named like a photo comes first.
    for entry in sorted(source.files.entries(), key=lambda e: not is_photo_name(e.path)):
        photo_id = source.photo_id(entry.path)
        photo = catalogue.photos.get(photo_id) or LabelledPhoto(photo_id, "")
        if entry.refusal:
            detail = _DETAILS.get(entry.refusal, f"{entry.size} bytes")
            left_out.append(left_out_row(entry, photo, entry.refusal, detail))
        elif photo_id in catalogue.photos and photo_id not in files:
            files[photo_id] = entry
        elif photo_id in struck_out:
            detail = "source.label_fixes gives it no label"
            left_out.append(left_out_row(entry, photo, STRUCK_OUT, detail))
        elif photo_id in catalogue.skipped:
            left_out.append(left_out_row(entry, photo, *catalogue.skipped[photo_id]))
        elif not is_named_as_photo(entry.path):
            detail = f"a {PurePosixPath(entry.path).suffix or 'nameless'} file"
            left_out.append(left_out_row(entry, photo, "not_a_photo", detail))
        elif photo_id in files:
            is_same = files[photo_id].path == entry.path
            detail = f"the id is taken by {files[photo_id].path}"
            detail = "the source holds it twice, and the first counts" if is_same else detail
            left_out.append(left_out_row(entry, photo, "same_id", detail))
        else:
            detail = "the annotations do not name this photo"
            left_out.append(left_out_row(entry, photo, "unlisted", detail))
    refused = {row.id for row in left_out}
    left_out += [
        left_out_row(FileEntry("", 0, ""), photo, "missing", _DETAILS["missing"])
        for photo_id, photo in catalogue.photos.items()
        if photo_id not in files and photo_id not in refused
    ]
    return files, left_out


def left_out_row(entry: FileEntry, photo: LabelledPhoto, reason: str, detail: str) -> LeftOut:
    return LeftOut(id=photo.id, path=entry.path, reason=reason, detail=detail, label=photo.label)
