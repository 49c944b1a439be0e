"""Files that are not in a data set: which count as damage, and what they cost each class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from pets_core.config.source import IngestConfig
from pets_core.data.sources.fixes import STRUCK_OUT
from pets_core.data.sources.formats import NO_DECODER
from pets_core.errors import PetsError
from pets_core.records.dataset import LeftOut

__all__ = ["NO_NUMBERS", "check_quarantine", "lost_of_classes", "summarize"]

NO_NUMBERS = "no_numbers"
"""Reason of a photo without numbers, where numbers are the target."""
_BY_RULE = frozenset(
    {
        "duplicate",
        "hidden",
        "in_no_list",
        "in_no_split",
        "label_outside_contract",
        NO_NUMBERS,
        "not_a_photo",
        "same_id",
        STRUCK_OUT,
        "system_folder",
        "unlabelled",
        "unlisted",
    }
)
"""Reasons that do not count as damage."""
_PHRASES = {
    "encrypted": "are encrypted",
    "missing": "are missing",
    NO_DECODER: "have no decoder",
    "name_not_utf8": "have a name that is not UTF-8",
    "too_large": "are too large",
}


def check_quarantine(
    left_out: Sequence[LeftOut],
    num_kept: int,
    config: IngestConfig,
    find_hint: Callable[[], str] = str,
) -> None:
    """Refuse a source too much of which is damaged.

    Args:
        left_out: Every file that is not used; those left out by a rule do not count.
        num_kept: Photos that are used.
        config: The bound.
        find_hint: Returns what may be the cause, a sentence for the message; called for it alone.

    Raises:
        PetsError: More than `ingest.max_quarantined_fraction` of the photos cannot be used.
    """
    bad = [row for row in left_out if row.reason not in _BY_RULE]
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
        "Correct the source or raise the bound",
    ]
    raise PetsError("\n".join(lines))


def summarize(rows: Sequence[LeftOut], total: int) -> list[str]:
    """A line for each reason: how many of how many photos, the first of them, and its detail."""
    by_reason = defaultdict(list)
    for row in rows:
        by_reason[row.reason].append(row)
    lines = []
    for reason, own in sorted(by_reason.items()):
        first = min(own, key=lambda row: row.path or row.id)
        phrase = _PHRASES.get(reason, f"cannot be used ({reason})")
        lines.append(
            f"  {len(own)} of {total} photos {phrase}, the first {first.path or first.id}: "
            f"{first.detail}"
        )
    return lines


def lost_of_classes(
    left_out: Sequence[LeftOut], kept: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Photos lost and photos in all, of each class that loses at least half of its photos.

    Args:
        left_out: Every file that is not used.
        kept: Photos that are used, by class.
    """
    losses = Counter(row.label for row in left_out if row.label and row.reason != "not_a_photo")
    totals = {label: lost + kept.get(label, 0) for label, lost in losses.items()}
    return {
        label: (lost, totals[label])
        for label, lost in sorted(losses.items())
        if 2 * lost >= totals[label]
    }
