"""Quarantined files: which ones count as damage, and how many photos each class loses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from pets_core.config.source import IngestConfig
from pets_core.data.sources.fixes import EXCLUDED
from pets_core.data.sources.formats import NO_DECODER
from pets_core.errors import PetsError
from pets_core.records.dataset import QuarantinedFile

__all__ = ["NO_NUMBERS", "check_quarantine", "find_class_losses", "summarize"]

NO_NUMBERS = "no_numbers"
"""Reason code of a photo without numbers, if the target is numbers."""
_EXPECTED_REASONS = frozenset(
    {
        "duplicate",
        "hidden",
        "not_in_split_lists",
        "in_no_split",
        "label_outside_contract",
        NO_NUMBERS,
        "not_a_photo",
        "same_id",
        EXCLUDED,
        "system_folder",
        "unlabelled",
        "unlisted",
    }
)
"""Reason codes that do not count as damage."""
_PHRASES = {
    "encrypted": "are encrypted",
    "missing": "are missing",
    NO_DECODER: "have no decoder",
    "name_not_utf8": "have a name that is not UTF-8",
    "too_large": "are too large",
}


def check_quarantine(
    quarantined: Sequence[QuarantinedFile],
    num_kept: int,
    config: IngestConfig,
    find_hint: Callable[[], str],
) -> None:
    """Check that the damaged fraction of a source is within the limit.

    Args:
        quarantined: All quarantined files; those with a reason in `_EXPECTED_REASONS` do not count.
        num_kept: Number of usable photos.
        config: Provides the limit.
        find_hint: Returns a sentence on the likely cause; called only if the check fails.

    Raises:
        PetsError: More than `ingest.max_quarantined_fraction` of the photos cannot be used.
    """
    bad = [row for row in quarantined if row.reason not in _EXPECTED_REASONS]
    total = num_kept + len(bad)
    if len(bad) <= config.max_quarantined_fraction * total:
        return
    counts = sorted(Counter(row.reason for row in bad).items())
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    hint = find_hint()
    lines = [
        f"{len(bad)} of {total} photos ({len(bad) / total:.1%}) cannot be used ({listed}), more "
        f"than ingest.max_quarantined_fraction = {config.max_quarantined_fraction:g}:",
        *summarize(bad, total),
        *([hint] if hint else []),
        "Correct the source or raise ingest.max_quarantined_fraction",
    ]
    raise PetsError("\n".join(lines))


def summarize(rows: Sequence[QuarantinedFile], total: int) -> list[str]:
    """Return a line per reason: the number of photos, the first of them, and its detail."""
    by_reason = defaultdict(list)
    for row in rows:
        by_reason[row.reason].append(row)
    lines = []
    for reason, own in sorted(by_reason.items()):
        first = min(own, key=lambda row: row.path or row.id)
        phrase = _PHRASES.get(reason, f"cannot be used ({reason})")
        lines.append(
            f"  {len(own)} of {total} photos {phrase}, the first is {first.path or first.id}: "
            f"{first.detail}"
        )
    return lines


def find_class_losses(
    quarantined: Sequence[QuarantinedFile], kept: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Return lost and total photos of each class that loses at least half of its photos.

    Args:
        quarantined: All quarantined files.
        kept: Number of usable photos by class.
    """
    losses = Counter(row.label for row in quarantined if row.label and row.reason != "not_a_photo")
    totals = {label: lost + kept.get(label, 0) for label, lost in losses.items()}
    return {
        label: (lost, totals[label])
        for label, lost in sorted(losses.items())
        if 2 * lost >= totals[label]
    }
