"""Search of the weight decay with the lowest validation error."""

from __future__ import annotations

from collections.abc import Mapping

from pets_core.ratings.config import DEFAULT_WEIGHT_DECAY, WEIGHT_DECAYS

__all__ = ["next_weight_decay"]


def next_weight_decay(errors: Mapping[float, float]) -> float | None:
    """Return the weight decay to try next, or None if the search is over.

    Hill climbing over `WEIGHT_DECAYS` from the default: the larger neighbour of the best value so
    far is tried first, then the smaller one, until neither is better. The error has a single
    minimum in practice, and a search takes three trainings if the default is the best.

    Args:
        errors: Validation error of each value tried.
    """
    if not errors:
        return DEFAULT_WEIGHT_DECAY
    best = WEIGHT_DECAYS.index(min(errors, key=lambda decay: errors[decay]))
    for position in (best + 1, best - 1):
        is_value = 0 <= position < len(WEIGHT_DECAYS)
        if is_value and WEIGHT_DECAYS[position] not in errors:
            return WEIGHT_DECAYS[position]
    return None
