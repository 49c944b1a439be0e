"""Labels and splits of photos, by the folders that they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pets_core.config import ClassFolder
from pets_core.data.catalogue import Official
from pets_core.data.images import may_be_photo_name, missing_decoder
from pets_core.errors import PetsError

__all__ = ["FolderLayout", "read_layout", "split_of_name"]

_SPLITS: dict[str, Official] = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
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
    """

    labels: dict[str, str] = field(default_factory=dict)
    official: dict[str, Official] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)


def split_of_name(name: str) -> Official | None:
    """The split that one word of a folder's or file's name stands for, as of "seg_train"."""
    found = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def read_layout(paths: Iterable[str], class_folder: ClassFolder) -> FolderLayout:
    """Take each photo's class, and its split, from its folders.

    Folders that hold one folder and no photo are passed over, as archives often have one around
    all. Where the folders below are `train`, `val` and `test`, they are the splits and the classes
    lie in them. A folder in which no file's name may be a photo's is no class.

    Args:
        paths: The files.
        class_folder: Which folder names the class; auto: the first.

    Raises:
        PetsError: With class_folder = auto, all candidate classes hold the same sub-folders.
    """
    files = [tuple(path.split("/")) for path in paths]
    photos = [parts for parts in files if _is_photo(parts[-1])]
    depth = _depth(photos)
    splits = _split_folders(photos, depth)
    if not splits:
        return _without_splits(files, photos, depth, class_folder)
    return _with_splits(files, photos, depth, splits, class_folder)


def _is_photo(name: str) -> bool:
    return may_be_photo_name(name) or missing_decoder(name) is not None


def _depth(photos: Sequence[Parts], start: int = 0) -> int:
    """How many folders around all others to pass over."""
    depth = start
    while True:
        folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
        holds_photos = any(len(parts) == depth + 2 for parts in photos)
        if len(folders) != 1 or holds_photos:
            return depth
        depth += 1


def _split_folders(photos: Sequence[Parts], depth: int) -> dict[str, Official]:
    """The folders that are splits; none where the folders are classes."""
    folders = {parts[depth] for parts in photos if len(parts) > depth + 1}
    exact = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
    if len(exact) > 1 and len(exact) == len(folders) and "train" in exact.values():
        return exact
    # Classes may be called "train", and folders "seg_train": the classes inside must show it.
    named = {name: split for name in folders if (split := split_of_name(name))}
    training = [parts for parts in photos if _split(parts, depth, named) == "train"]
    inner = _depth(training, depth + 1)
    classes = {parts[inner] for parts in training if len(parts) > inner + 1}
    are_labelled = len(classes) > 1 and all(len(parts) > inner + 1 for parts in training)
    return named if len(set(named.values())) > 1 and are_labelled else {}


def _without_splits(
    files: Sequence[Parts], photos: Sequence[Parts], depth: int, class_folder: ClassFolder
) -> FolderLayout:
    classes = {parts[depth] for parts in photos if len(parts) > depth + 1}
    if class_folder == "auto":
        _refuse_ambiguous(photos, depth)
    layout = FolderLayout()
    for parts in files:
        if len(parts) > depth + 1 and parts[depth] in classes:
            layout.labels["/".join(parts)] = _class(parts, depth, class_folder)
    return layout


def _class(parts: Parts, depth: int, class_folder: ClassFolder) -> str:
    return (parts[-2] if class_folder == "last" else parts[depth]).strip()


def _refuse_ambiguous(photos: Sequence[Parts], depth: int) -> None:
    """Refuse folders as 2023/cat, 2023/dog, 2024/cat, 2024/dog, whose classes may be either."""
    inside: dict[str, set[str]] = {}
    for parts in photos:
        if len(parts) == depth + 2:
            return
        if len(parts) > depth + 2:
            inside.setdefault(parts[depth], set()).add(parts[depth + 1])
    candidates = sorted(inside)
    if len(candidates) < 2:
        return
    shared = set.intersection(*inside.values())
    if len(shared) > 1 or all(names == shared for names in inside.values()):
        raise PetsError(
            f"source.class_folder = auto: {_listed(candidates)} all hold the folders "
            f"{_listed(sorted(shared))}, and either may be the classes. Set source.class_folder = "
            f"first for the classes {_listed(candidates)}, or last for {_listed(sorted(shared))}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _with_splits(
    files: Sequence[Parts],
    photos: Sequence[Parts],
    depth: int,
    splits: Mapping[str, Official],
    class_folder: ClassFolder,
) -> FolderLayout:
    """The layout of splits with classes in them."""
    depths = _class_depths(photos, depth, splits, class_folder)
    layout = FolderLayout()
    for parts in files:
        path, split = "/".join(parts), _split(parts, depth, splits)
        start = depths.get(split) if split else None
        if split and start and len(parts) > start + 1:
            layout.labels[path] = _class(parts, start, class_folder)
            layout.official[path] = split
        elif split and _is_photo(parts[-1]):
            layout.skipped[path] = ("unlabelled", f"{parts[depth]} holds it in no class's folder")
        elif len(parts) > depth + 1 and _is_photo(parts[-1]):
            layout.skipped[path] = _IN_NO_SPLIT
    if len(set(layout.official.values())) == 1:
        layout.official = {}
    elif "valid" not in depths:
        # The test photos are given; validation photos are drawn from the others.
        layout.official = {p: "trainval" if s == "train" else s for p, s in layout.official.items()}
    return layout


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
        return {_class(p, start, class_folder) for p in of[split] if len(p) > start + 1}

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
            if len(classes(split, depth + 1)) > 1:
                depths[split] = depth + 1
    return depths
