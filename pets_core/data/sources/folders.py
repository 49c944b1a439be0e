"""Infer labels and predefined splits of photos from their folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from unicodedata import normalize

from pets_core.config.source import ClassFolder
from pets_core.data.sources.catalogue import Catalogue, LabelledPhoto, PredefinedSplit
from pets_core.data.sources.formats import has_non_image_suffix, has_photo_suffix, may_be_photo
from pets_core.errors import PetsError, format_list

__all__ = ["read_layout", "split_of_path"]

_SPLITS: dict[str, PredefinedSplit] = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
_MAX_LISTED = 4
_IN_NO_SPLIT = ("in_no_split", "neither in a train, a validation nor a test folder")

Parts = tuple[str, ...]
"""A path split at its slashes; the last part is the file name."""


def split_of_path(path: str) -> PredefinedSplit | None:
    """Return the split in the file name, or else in the innermost folder that names one."""
    named = (_split_of_name(part) for part in reversed(path.split("/")))
    return next(filter(None, named), None)


def _split_of_name(name: str) -> PredefinedSplit | None:
    """Return the split that a word of a name stands for, such as "train" in "seg_train"."""
    found = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def read_layout(paths: Iterable[str], class_folder: ClassFolder) -> Catalogue:
    """Infer the class and the predefined split of each photo from its folders.

    Skips outer folders that contain a single folder and few photos; archives often have one. If
    the next folders are `train`, `val` and `test`, they are splits that contain class folders. A
    folder is not a class if none of its file names may be a photo's.

    Args:
        paths: Paths of all files.
        class_folder: The folder that names the class; "auto": the first.

    Raises:
        PetsError: `class_folder` is "auto" and several candidate classes contain subfolders of the
            same name.
    """
    files = [tuple(path.split("/")) for path in paths]
    photos = [parts for parts in files if may_be_photo(parts[-1])]
    # Files without a suffix, such as LICENSE, may be photos but do not determine the layout.
    named = [parts for parts in photos if has_photo_suffix(parts[-1])] or photos
    depth = _classes_depth(named)
    if splits := _split_folders(named, depth):
        return _with_splits(files, named, depth, splits, class_folder)
    return _without_splits(files, named, depth, class_folder)


def _classes_depth(photos: Sequence[Parts], start: int = 0) -> int:
    """Return the depth of the first folders that are not a wrapper around all others."""
    depth = start
    while True:
        folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
        if len(folders) != 1 or not _is_nested(photos, depth):
            return depth
        depth += 1


def _is_nested(photos: Sequence[Parts], depth: int) -> bool:
    """Whether most photos of the folders at `depth` are in subfolders of these."""
    num_direct = sum(len(parts) == depth + 2 for parts in photos)
    num_nested = sum(len(parts) > depth + 2 for parts in photos)
    return num_nested > 2 * num_direct


def _split_folders(photos: Sequence[Parts], depth: int) -> dict[str, PredefinedSplit]:
    """Return the split of each folder at `depth`; empty if the folders are classes."""
    folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
    exact = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
    if len(exact) > 1 and len(exact) == len(folders) and "train" in exact.values():
        return exact
    # "train" may be a class, and "seg_train" a split: require several classes inside.
    named = {name: split for name in folders if (split := _split_of_name(name))}
    training = [parts for parts in photos if _split_at(parts, depth, named) == "train"]
    inner = _classes_depth(training, depth + 1)
    classes = {parts[inner] for parts in training if len(parts) > inner + 1}
    has_classes = len(classes) > 1 and _is_nested(training, inner - 1)
    return named if len(set(named.values())) > 1 and has_classes else {}


def _without_splits(
    files: Sequence[Parts], photos: Sequence[Parts], depth: int, class_folder: ClassFolder
) -> Catalogue:
    """Read class folders, which may contain split folders."""
    classes = {
        parts[depth] for parts in files if len(parts) > depth + 1 and may_be_photo(parts[-1])
    }
    nested = [parts for parts in photos if len(parts) > depth + 2]
    inner = {parts[depth + 1].lower() for parts in nested}
    is_split_inside = (
        "train" in inner
        and inner <= _SPLITS.keys()
        and all(len(parts) == depth + 3 for parts in nested)
        and _is_nested(photos, depth)
    )
    if class_folder == "auto" and not is_split_inside:
        _check_unambiguous(photos, depth)
    labels: dict[str, str] = {}
    predefined_splits: dict[str, PredefinedSplit] = {}
    for parts in files:
        if len(parts) > depth + 1 and parts[depth] in classes:
            path = "/".join(parts)
            labels[path] = _class_name(parts, depth, class_folder)
            if is_split_inside and class_folder != "last":
                split = _SPLITS.get(parts[depth + 1].lower()) if len(parts) == depth + 3 else None
                predefined_splits[path] = split or "train"
    warnings = _ignored_folder_warnings(files, depth, classes)
    return _to_catalogue(labels, predefined_splits, {}, warnings)


def _class_name(parts: Parts, depth: int, class_folder: ClassFolder) -> str:
    return (parts[-2] if class_folder == "last" else parts[depth]).strip()


def _check_unambiguous(photos: Sequence[Parts], depth: int) -> None:
    """Raise an error for folders such as 2023/cat and 2024/cat: either level may be the classes."""
    if not _is_nested(photos, depth):
        return
    inside: dict[str, set[str]] = {}
    for parts in photos:
        if len(parts) > depth + 2:
            inside.setdefault(parts[depth], set()).add(_normalize_name(parts[depth + 1]))
    counts = Counter(name for names in inside.values() for name in names)
    shared = sorted(name for name, count in counts.items() if count > 1)
    if shared:
        candidates = format_list(sorted(inside), _MAX_LISTED)
        raise PetsError(
            f"source.class_folder = auto: ambiguous, because {candidates} contain folders of the "
            f"same names ({format_list(shared, _MAX_LISTED)}). Set source.class_folder = first to "
            f"use {candidates} as classes, or last to use the folders inside them"
        )


def _normalize_name(name: str) -> str:
    """Return a name for comparison: case-folded, in Unicode NFKC."""
    return normalize("NFKC", name).casefold()


def _ignored_folder_warnings(
    files: Sequence[Parts], depth: int, classes: Collection[str]
) -> tuple[str, ...]:
    """Return a warning that names the folders without photos that contain files of unknown type.

    Args:
        files: Parts of the path of each file.
        depth: Position of the class folder in a path.
        classes: Names of the class folders.
    """
    ignored = Counter(
        parts[depth]
        for parts in files
        if len(parts) > depth + 1
        and parts[depth] not in classes
        and not has_non_image_suffix(parts[-1])
    )
    if not ignored:
        return ()
    named = [f"{name} ({count} of unknown type)" for name, count in sorted(ignored.items())]
    folders = format_list(named, _MAX_LISTED)
    return (
        f"No file in these folders has the suffix of a photo, so they are ignored: {folders}. "
        "Rename the photos, or remove the folders.",
    )


def _to_catalogue(
    labels: Mapping[str, str],
    splits: Mapping[str, PredefinedSplit],
    skipped: Mapping[str, tuple[str, str]],
    warnings: tuple[str, ...],
) -> Catalogue:
    """Return the catalogue with a sorted vocabulary.

    A single split is not a predefined split. Training photos are "trainval" if no folder contains
    validation photos.

    Args:
        labels: Class by path.
        splits: Split by path; empty if the folders define no splits.
        skipped: Reason and detail by path of each photo without a label.
        warnings: Warnings about the folders, one sentence each.
    """
    named = set(splits.values())
    if len(named) == 1:
        splits = {}
    elif "valid" not in named:
        splits = {p: "trainval" if s == "train" else s for p, s in splits.items()}
    photos = {
        path: LabelledPhoto(path, label, predefined_split=splits.get(path))
        for path, label in labels.items()
    }
    vocabulary = dict.fromkeys(sorted(set(labels.values())))
    return Catalogue(photos, vocabulary, warnings=warnings, skipped=skipped)


def _with_splits(
    files: Sequence[Parts],
    photos: Sequence[Parts],
    depth: int,
    splits: Mapping[str, PredefinedSplit],
    class_folder: ClassFolder,
) -> Catalogue:
    """Read split folders that contain class folders."""
    depths = _class_depths(photos, depth, splits, class_folder)
    training = [parts for parts in photos if _split_at(parts, depth, splits) == "train"]
    if class_folder == "auto":
        _check_unambiguous(training, depths["train"])
    classes = {
        (split, parts[depths[split]])
        for parts in files
        if (split := _split_at(parts, depth, splits)) in depths
        and len(parts) > depths[split] + 1
        and may_be_photo(parts[-1])
    }
    labels: dict[str, str] = {}
    predefined_splits: dict[str, PredefinedSplit] = {}
    skipped: dict[str, tuple[str, str]] = {}
    for parts in files:
        path, split = "/".join(parts), _split_at(parts, depth, splits)
        start = depths.get(split) if split else None
        if split and start and len(parts) > start + 1 and (split, parts[start]) in classes:
            labels[path] = _class_name(parts, start, class_folder)
            predefined_splits[path] = split
        elif split and may_be_photo(parts[-1]):
            skipped[path] = ("unlabelled", f"{parts[depth]} holds it in no class's folder")
        elif len(parts) > depth + 1 and may_be_photo(parts[-1]):
            skipped[path] = _IN_NO_SPLIT
    training = [parts for parts in files if _split_at(parts, depth, splits) == "train"]
    names = {name for split, name in classes if split == "train"}
    warnings = _ignored_folder_warnings(training, depths["train"], names)
    return _to_catalogue(labels, predefined_splits, skipped, warnings)


def _split_at(
    parts: Parts, depth: int, splits: Mapping[str, PredefinedSplit]
) -> PredefinedSplit | None:
    return splits.get(parts[depth]) if len(parts) > depth + 1 else None


def _class_depths(
    photos: Sequence[Parts],
    depth: int,
    splits: Mapping[str, PredefinedSplit],
    class_folder: ClassFolder,
) -> dict[PredefinedSplit, int]:
    """Return the depth of the class folders of each split that has any."""
    by_split: dict[PredefinedSplit, list[Parts]] = {"train": [], "valid": [], "test": []}
    for parts in photos:
        if split := _split_at(parts, depth, splits):
            by_split[split].append(parts)

    def classes(split: PredefinedSplit, start: int) -> set[str]:
        names = (_class_name(p, start, class_folder) for p in by_split[split] if len(p) > start + 1)
        return set(map(_normalize_name, names))

    depths: dict[PredefinedSplit, int] = {"train": _classes_depth(by_split["train"], depth + 1)}
    known = classes("train", depths["train"])
    others: tuple[PredefinedSplit, ...] = ("valid", "test")
    for split in others:
        # Some archives have a wrapper folder around the classes, or around unlabelled photos.
        for start in (depth + 1, _classes_depth(by_split[split], depth + 1)):
            if known & classes(split, start):
                depths[split] = start
                break
        else:
            # Several folders are classes, but unknown ones; planning reports these as an error.
            if len(classes(split, depth + 1)) > (0 if split == "valid" else 1):
                depths[split] = depth + 1
    return depths
