"""Which photo goes to which split: pure functions of ids, labels and a seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from hashlib import sha256

__all__ = ["hold_out"]


def hold_out(labels: Mapping[str, str], fraction: float, *, seed: int) -> set[str]:
    """Pick `fraction` of each class, rounded to whole photos, never all of a class.

    The choice within a class follows a hash of seed and id, so it depends neither on the order of
    the photos nor on those of other classes.

    Args:
        labels: Class name of each photo id.
        fraction: Share to hold out, 0 to 1.
        seed: Another seed, another choice.

    Returns:
        The ids held out.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for photo_id, label in labels.items():
        by_class[label].append(photo_id)
    chosen: set[str] = set()
    for ids in by_class.values():
        count = min(round(len(ids) * fraction), len(ids) - 1)
        if fraction > 0 and len(ids) > 1:
            count = max(count, 1)
        chosen.update(sorted(ids, key=lambda i: sha256(f"{seed}:{i}".encode()).digest())[:count])
    return chosen
