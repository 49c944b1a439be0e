"""Checks of photos and their split, before any photo is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.label_schema import Contract
from pets_core.data.ingest.quarantine import lost_of_classes
from pets_core.data.ingest.splits import SplitRow, largest_fraction, smallest_fraction
from pets_core.data.sources.archives import ARCHIVE_SUFFIXES
from pets_core.data.sources.catalogue import LabelledPhoto
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.formats import is_photo_name, may_be_photo
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.dataset import LeftOut, choose_evaluation_split
from pets_core.records.target_spec import target_spec

__all__ = ["check_photos", "check_splits"]

_MAX_FAULTS = 5
"""Classes that a message names."""


def check_photos(
    contract: Contract,
    photos: Mapping[str, LabelledPhoto],
    files: Mapping[str, FileEntry],
    left_out: Sequence[LeftOut],
) -> None:
    """Refuse a source without photos, and classes or tags that too few photos have.

    Files that are not named like photos are not counted on.

    Args:
        contract: The vocabulary.
        photos: By id.
        files: Of each photo.
        left_out: What the source holds besides.

    Raises:
        PetsError: With all faults.
    """
    counted = [photo for photo_id, photo in photos.items() if may_be_photo(files[photo_id].path)]
    spec = target_spec(contract.targets)
    if not counted:
        what = {"label": "a label", "labels": "a row of tags", "numbers": "numbers"}[spec.storage]
        raise PetsError(f"the source holds no photo with {what}{_instead(left_out)}")
    if contract.numbers:
        return
    if not contract.classes:
        raise PetsError("no photo of the source has a tag")
    what = spec.noun
    total = Counter(name for photo in counted for name in photo.names(contract.targets))
    lost = lost_of_classes(left_out, total)
    faults = [
        f"{what} {info.name!r} has {total[info.name]} photo{'s' * (total[info.name] != 1)}"
        + (f" ({lost[info.name][0]} more are left out)" if info.name in lost else "")
        + f", at least 2 are needed: add photos, remove the {what}, or, where earlier versions of "
        "the data set have it, set source.name to start another"
        for info in contract.classes
        if total[info.name] < 2
    ]
    if len(contract.classes) == 1 and what == "class":
        faults.append(
            f"the source has the single class {contract.classes[0].name!r}; a classifier needs at "
            "least 2. A class is a folder of photos: set source.url to the folder around the class "
            "folders"
        )
    if faults:
        more = [f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else []
        raise PetsError("\n".join([*faults[:_MAX_FAULTS], *more]))


def _instead(left_out: Sequence[LeftOut]) -> str:
    """What the source holds in place of labelled photos, for a message."""
    archives = [row.path for row in left_out if row.path.lower().endswith(ARCHIVE_SUFFIXES)]
    if archives:
        return (
            f", but {len(archives)} archive{'s' * (len(archives) > 1)}, as {archives[0]}: unpack "
            "the source, and set source.url to one of them or to the folder with all photos"
        )
    photos = [row for row in left_out if is_photo_name(row.path)]
    if photos:
        return (
            f", but {len(photos)} photos in no class's folder, as {photos[0].path}: put each in a "
            "folder named after its class, or give a table that names photos and labels"
        )
    return ""


def check_splits(
    contract: Contract,
    photos: Mapping[str, LabelledPhoto],
    rows: Mapping[str, SplitRow],
    splits: Mapping[str, Split | None],
    config: PipelineConfig,
) -> None:
    """Refuse a split without photos to train on, of some class or at all, or to judge on.

    Raises:
        PetsError: With the fraction that would do, where there is one.
    """
    source = config.source
    training = [photo for photo_id, photo in photos.items() if splits[photo_id] == "train"]
    trained = {name for photo in training for name in photo.names(contract.targets)}
    lacking = [info.name for info in contract.classes if info.name not in trained]
    if lacking or not training:
        names = ", ".join(map(repr, lacking[:_MAX_FAULTS])) + ", ..." * (len(lacking) > _MAX_FAULTS)
        spec = target_spec(contract.targets)
        what, whats = spec.noun, spec.plural
        subject = (
            f"{len(lacking)} of {len(contract.classes)} {whats} ({names}) have no training photos"
        )
        if len(lacking) == 1:
            subject = f"{what} {names} has no training photos"
        elif not lacking:
            subject = "there are no training photos"
        remedy = _lower_fraction(photos, rows, contract.targets, config)
        raise PetsError(
            f"{subject} in this split: {remedy}change source.split or source.seed, or add photos"
        )
    present = sorted({split for photo_id in photos if (split := splits[photo_id])})
    if present == ["train"] and source.valid_fraction + source.test_fraction:
        keys = {rows[photo_id].key for photo_id in photos}
        if len(keys) < len(photos) and len(keys) <= 2 * len(contract.classes):
            raise PetsError(
                f"the {len(photos)} photos are in {len(keys)} groups only, too few to hold some "
                "out for validation: set source.group_column or group_pattern to smaller groups"
            )
        fraction = smallest_fraction(keys, source.seed)
        raise PetsError(
            f"none of the {len(photos)} photos falls into validation with source.valid_fraction = "
            f"{source.valid_fraction:g}: set it to {fraction:g} or more, or add photos: each class "
            "of 5 photos has one"
        )
    choose_evaluation_split(config.evaluate.split, present)


def _lower_fraction(
    photos: Mapping[str, LabelledPhoto],
    rows: Mapping[str, SplitRow],
    targets: str,
    config: PipelineConfig,
) -> str:
    """The fractions that leave each class a training photo, for a message; empty with lists."""
    if any(row.official for row in rows.values()) and config.source.split != "random":
        return ""
    keys: dict[str, set[str]] = {}
    for photo_id, photo in photos.items():
        for name in photo.names(targets) or ("",):
            keys.setdefault(name, set()).add(rows[photo_id].key)
    fraction = largest_fraction(list(keys.values()), config.source.seed)
    now = config.source.valid_fraction + config.source.test_fraction
    return f"lower source.valid_fraction + source.test_fraction from {now:g} to {fraction:g}, "
