"""Labels and splits of photos, by the folders that they lie in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from unicodedata import normalize

from pets_core.config.source import ClassFolder
from pets_core.data.sources.catalogue import Official
from pets_core.data.sources.formats import is_named_as_photo, is_named_otherwise, may_be_photo
from pets_core.errors import PetsError, listed

__all__ = ["FolderLayout", "read_layout", "split_of_path"]

_SPLITS: dict[str, Official] = {
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
"""A path, cut at its slashes; the last part is the file's name."""


@dataclass
class FolderLayout:
    """What the folders say.

    Attributes:
        labels: Each labelled photo's class, by path.
        official: Its split, where the folders are splits.
        skipped: Reason and detail for each photo that the folders give no label.
        warnings: What is odd about the folders, a sentence each.
    """

    labels: dict[str, str] = field(default_factory=dict)
    official: dict[str, Official] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def split_of_path(path: str) -> Official | None:
    """The split that a path stands for, or else its innermost folder that names one."""
    named = (_split_of_name(part) for part in reversed(path.split("/")))
    return next(filter(None, named), None)


def _split_of_name(name: str) -> Official | None:
    """The split that one word of a folder's or file's name stands for, as of "seg_train"."""
    found = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def read_layout(paths: Iterable[str], class_folder: ClassFolder) -> FolderLayout:
    """Take each photo's class, and its split, from its folders.

    Folders that hold one folder and hardly a photo are passed over, as archives often have one
    around all. Where the folders below are `train`, `val` and `test`, they are the splits and the
    classes lie in them. A folder in which no file's name may be a photo's is no class.

    Args:
        paths: The files.
        class_folder: Which folder names the class; auto: the first.

    Raises:
        PetsError: With class_folder = auto, several candidate classes hold the same sub-folders.
    """
    files = [tuple(path.split("/")) for path in paths]
    photos = [parts for parts in files if may_be_photo(parts[-1])]
    # A LICENSE without a suffix may be a photo, but does not decide what the folders are.
    named = [parts for parts in photos if is_named_as_photo(parts[-1])] or photos
    depth = _depth(named)
    if splits := _split_folders(named, depth):
        return _with_splits(files, named, depth, splits, class_folder)
    return _without_splits(files, named, depth, class_folder)


def _depth(photos: Sequence[Parts], start: int = 0) -> int:
    """How many folders around all others to pass over."""
    depth = start
    while True:
        folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
        if len(folders) != 1 or not _lie_in_folders(photos, depth):
            return depth
        depth += 1


def _lie_in_folders(photos: Sequence[Parts], depth: int) -> bool:
    """Whether most photos of the folders at a depth lie in sub-folders of these, but for strays."""
    num_direct = sum(len(parts) == depth + 2 for parts in photos)
    num_nested = sum(len(parts) > depth + 2 for parts in photos)
    return num_nested > 2 * num_direct


def _split_folders(photos: Sequence[Parts], depth: int) -> dict[str, Official]:
    """The folders that are splits; none where the folders are classes."""
    folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
    exact = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
    if len(exact) > 1 and len(exact) == len(folders) and "train" in exact.values():
        return exact
    # Classes may be called "train", and folders "seg_train": the classes inside must show it.
    named = {name: split for name in folders if (split := _split_of_name(name))}
    training = [parts for parts in photos if _split(parts, depth, named) == "train"]
    inner = _depth(training, depth + 1)
    classes = {parts[inner] for parts in training if len(parts) > inner + 1}
    are_labelled = len(classes) > 1 and _lie_in_folders(training, inner - 1)
    return named if len(set(named.values())) > 1 and are_labelled else {}


def _without_splits(
    files: Sequence[Parts], photos: Sequence[Parts], depth: int, class_folder: ClassFolder
) -> FolderLayout:
    """The layout of classes that do not lie in splits, though splits may lie in them."""
    classes = {
        parts[depth] for parts in files if len(parts) > depth + 1 and may_be_photo(parts[-1])
    }
    nested = [parts for parts in photos if len(parts) > depth + 2]
    inner = {parts[depth + 1].lower() for parts in nested}
    is_split_inside = (
        "train" in inner
        and inner <= _SPLITS.keys()
        and all(len(parts) == depth + 3 for parts in nested)
        and _lie_in_folders(photos, depth)
    )
    if class_folder == "auto" and not is_split_inside:
        _refuse_ambiguous(photos, depth)
    layout = FolderLayout()
    for parts in files:
        if len(parts) > depth + 1 and parts[depth] in classes:
            path = "/".join(parts)
            layout.labels[path] = _class(parts, depth, class_folder)
            if is_split_inside and class_folder != "last":
                split = _SPLITS.get(parts[depth + 1].lower()) if len(parts) == depth + 3 else None
                layout.official[path] = split or "train"
    layout.warnings = _ignored(files, depth, classes)
    return _with_validation(layout)


def _class(parts: Parts, depth: int, class_folder: ClassFolder) -> str:
    return (parts[-2] if class_folder == "last" else parts[depth]).strip()


def _refuse_ambiguous(photos: Sequence[Parts], depth: int) -> None:
    """Refuse folders as 2023/cat, 2023/dog, 2024/cat, whose classes may be either."""
    if not _lie_in_folders(photos, depth):
        return
    inside: dict[str, set[str]] = {}
    for parts in photos:
        if len(parts) > depth + 2:
            inside.setdefault(parts[depth], set()).add(_key(parts[depth + 1]))
    counts = Counter(name for names in inside.values() for name in names)
    shared = sorted(name for name, count in counts.items() if count > 1)
    if shared:
        candidates = listed(sorted(inside), _MAX_LISTED)
        raise PetsError(
            f"source.class_folder = auto: {candidates} hold folders of the same names "
            f"({listed(shared, _MAX_LISTED)}), and either may be the classes. Set "
            f"source.class_folder = first for the classes {candidates}, or last for the folders in "
            "them"
        )


def _key(name: str) -> str:
    """A name for comparison: without case, in one Unicode form."""
    return normalize("NFKC", name).casefold()


def _ignored(files: Sequence[Parts], depth: int, classes: Collection[str]) -> tuple[str, ...]:
    """A warning of folders that hold files of unknown types and no photo by its name."""
    ignored = Counter(
        parts[depth]
        for parts in files
        if len(parts) > depth + 1
        and parts[depth] not in classes
        and not is_named_otherwise(parts[-1])
    )
    if not ignored:
        return ()
    named = [f"{name} ({count} files)" for name, count in sorted(ignored.items())]
    return (
        "Folders that are no classes, as no file there is named as a photo: "
        f"{listed(named, _MAX_LISTED)}.",
    )


def _with_validation(layout: FolderLayout) -> FolderLayout:
    """Have validation photos drawn from those for training where no folder holds any."""
    named = set(layout.official.values())
    if len(named) == 1:
        layout.official = {}
    elif "valid" not in named:
        layout.official = {p: "trainval" if s == "train" else s for p, s in layout.official.items()}
    return layout


def _with_splits(
    files: Sequence[Parts],
    photos: Sequence[Parts],
    depth: int,
    splits: Mapping[str, Official],
    class_folder: ClassFolder,
) -> FolderLayout:
    """The layout of splits with classes in them."""
    depths = _class_depths(photos, depth, splits, class_folder)
    training = [parts for parts in photos if _split(parts, depth, splits) == "train"]
    if class_folder == "auto":
        _refuse_ambiguous(training, depths["train"])
    classes = {
        (split, parts[depths[split]])
        for parts in files
        if (split := _split(parts, depth, splits)) in depths
        and len(parts) > depths[split] + 1
        and may_be_photo(parts[-1])
    }
    layout = FolderLayout()
    for parts in files:
        path, split = "/".join(parts), _split(parts, depth, splits)
        start = depths.get(split) if split else None
        if split and start and len(parts) > start + 1 and (split, parts[start]) in classes:
            layout.labels[path] = _class(parts, start, class_folder)
            layout.official[path] = split
        elif split and may_be_photo(parts[-1]):
            layout.skipped[path] = ("unlabelled", f"{parts[depth]} holds it in no class's folder")
        elif len(parts) > depth + 1 and may_be_photo(parts[-1]):
            layout.skipped[path] = _IN_NO_SPLIT
    own = [parts for parts in files if _split(parts, depth, splits) == "train"]
    names = {name for split, name in classes if split == "train"}
    layout.warnings = _ignored(own, depths["train"], names)
    return _with_validation(layout)


def _split(parts: Parts, depth: int, splits: Mapping[str, Official]) -> Official | None:
    return splits.get(parts[depth]) if len(parts) > depth + 1 else None


def _class_depths(
    photos: Sequence[Parts], depth: int, splits: Mapping[str, Official], class_folder: ClassFolder
) -> dict[Official, int]:
    """How deep the classes lie in each split that has any."""
    of: dict[Official, list[Parts]] = {"train": [], "valid": [], "test": []}
    for parts in photos:
        if own := _split(parts, depth, splits):
            of[own].append(parts)

    def classes(split: Official, start: int) -> set[str]:
        return {_key(_class(p, start, class_folder)) for p in of[split] if len(p) > start + 1}

    depths: dict[Official, int] = {"train": _depth(of["train"], depth + 1)}
    known = classes("train", depths["train"])
    others: tuple[Official, ...] = ("valid", "test")
    for split in others:
        # Some archives have a folder around the classes, or one around photos without any.
        for start in (depth + 1, _depth(of[split], depth + 1)):
            if known & classes(split, start):
                depths[split] = start
                break
        else:
            # Several folders are classes, though unknown ones, which is an error later.
            if len(classes(split, depth + 1)) > (0 if split == "valid" else 1):
                depths[split] = depth + 1
    return depths
