"""Checks of the photos and splits of a plan, before any photo is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.label_schema import Contract
from pets_core.data.ingest.quarantine import find_class_losses
from pets_core.data.ingest.splits import SplitRow, largest_fraction, smallest_fraction
from pets_core.data.sources.archives import ARCHIVE_SUFFIXES
from pets_core.data.sources.catalogue import LabelledPhoto
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.formats import has_decodable_suffix, may_be_photo
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.dataset import QuarantinedFile, choose_evaluation_split
from pets_core.records.target_spec import target_spec

__all__ = ["check_photos", "check_splits"]

_MAX_ERRORS = 5
"""Number of classes that a message names."""


def check_photos(
    contract: Contract,
    photos: Mapping[str, LabelledPhoto],
    files: Mapping[str, FileEntry],
    quarantined: Sequence[QuarantinedFile],
) -> None:
    """Check that the source has labelled photos, and each class or tag at least two.

    Files without a photo's name are not counted.

    Args:
        contract: The vocabulary.
        photos: Labelled photos by id.
        files: File of each photo, by id.
        quarantined: The other files of the source.

    Raises:
        PetsError: Lists all errors found.
    """
    counted = [photo for photo_id, photo in photos.items() if may_be_photo(files[photo_id].path)]
    spec = target_spec(contract.targets)
    if not counted:
        noun = {"label": "a label", "labels": "a row of tags", "numbers": "numbers"}[spec.storage]
        raise PetsError(f"the source has no photo with {noun}{_describe_files(quarantined)}")
    if contract.numbers:
        return
    if not contract.vocabulary:
        raise PetsError("no photo of the source has a tag")
    noun = spec.noun
    total = Counter(name for photo in counted for name in photo.label_names(contract.targets))
    lost = find_class_losses(quarantined, total)
    errors = [
        f"{noun} {info.name!r} has {total[info.name]} photo{'s' * (total[info.name] != 1)}"
        + (f" ({lost[info.name][0]} more are quarantined)" if info.name in lost else "")
        + f", at least 2 are required: add photos, remove the {noun}, or, if earlier versions of "
        "the data set have it, set source.name to start a new data set"
        for info in contract.vocabulary
        if total[info.name] < 2
    ]
    if len(contract.vocabulary) == 1 and noun == "class":
        errors.append(
            f"the source has a single class, {contract.vocabulary[0].name!r}; a classifier needs "
            "at least 2. Each class is a folder of photos: set source.url to the parent of the "
            "class folders"
        )
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise PetsError("\n".join([*errors[:_MAX_ERRORS], *more]))


def _describe_files(quarantined: Sequence[QuarantinedFile]) -> str:
    """Return a hint about archives or photos that the source has instead of labelled photos."""
    archives = [row.path for row in quarantined if row.path.lower().endswith(ARCHIVE_SUFFIXES)]
    if archives:
        return (
            f", but {len(archives)} archive{'s' * (len(archives) > 1)}, such as {archives[0]}: "
            "unpack the source, and set source.url to one of them or to the folder of all photos"
        )
    photos = [row for row in quarantined if has_decodable_suffix(row.path)]
    if photos:
        return (
            f", but {len(photos)} photos outside class folders, such as {photos[0].path}: put each "
            "in a folder named after its class, or use a table of photos and labels"
        )
    return ""


def check_splits(
    contract: Contract,
    photos: Mapping[str, LabelledPhoto],
    rows: Mapping[str, SplitRow],
    splits: Mapping[str, Split | None],
    config: PipelineConfig,
) -> None:
    """Check that each class has training photos and that the evaluation split is not empty.

    Raises:
        PetsError: A class has no training photo, or there is none to evaluate on; the message gives
            a fraction that works, if there is one.
    """
    source = config.source
    training = [photo for photo_id, photo in photos.items() if splits[photo_id] == "train"]
    trained = {name for photo in training for name in photo.label_names(contract.targets)}
    lacking = [info.name for info in contract.vocabulary if info.name not in trained]
    if lacking or not training:
        names = ", ".join(map(repr, lacking[:_MAX_ERRORS])) + ", ..." * (len(lacking) > _MAX_ERRORS)
        spec = target_spec(contract.targets)
        subject = (
            f"{len(lacking)} of {len(contract.vocabulary)} {spec.plural} ({names}) "
            "have no training photos"
        )
        if len(lacking) == 1:
            subject = f"{spec.noun} {names} has no training photos"
        elif not lacking:
            subject = "there are no training photos"
        remedy = _lower_fraction(photos, rows, contract.targets, config)
        raise PetsError(
            f"{subject} in this split: {remedy}change source.split or source.seed, or add photos"
        )
    present = sorted({split for photo_id in photos if (split := splits[photo_id])})
    if present == ["train"] and source.valid_fraction + source.test_fraction:
        keys = {rows[photo_id].key for photo_id in photos}
        if len(keys) < len(photos) and len(keys) <= 2 * len(contract.vocabulary):
            raise PetsError(
                f"the {len(photos)} photos form only {len(keys)} groups, too few to hold some out "
                "for validation: set source.group_column or source.group_pattern to smaller groups"
            )
        fraction = smallest_fraction(keys, source.seed)
        raise PetsError(
            f"none of the {len(photos)} photos is in the validation split with "
            f"source.valid_fraction = {source.valid_fraction:g}: set it to {fraction:g} or more or "
            "add photos (each class of at least 5 photos gets a validation photo)"
        )
    choose_evaluation_split(config.evaluate.split, present)


def _lower_fraction(
    photos: Mapping[str, LabelledPhoto],
    rows: Mapping[str, SplitRow],
    targets: str,
    config: PipelineConfig,
) -> str:
    """Return advice on the fractions that leave each class a training photo.

    Empty if the source's predefined split is used.
    """
    if any(row.predefined_split for row in rows.values()) and config.source.split != "random":
        return ""
    keys: dict[str, set[str]] = {}
    for photo_id, photo in photos.items():
        for name in photo.label_names(targets) or ("",):
            keys.setdefault(name, set()).add(rows[photo_id].key)
    fraction = largest_fraction(list(keys.values()), config.source.seed)
    now = config.source.valid_fraction + config.source.test_fraction
    return f"lower source.valid_fraction + source.test_fraction from {now:g} to {fraction:g}, "
