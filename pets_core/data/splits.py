"""Which photo goes to which split: a pure function of its id and a seed."""

from __future__ import annotations

from hashlib import sha256

__all__ = ["draw"]


def draw(seed: int, photo_id: str) -> float:
    """A number from 0 to below 1 that looks random and depends on the arguments alone.

    A photo is held out when its number is below the fraction to hold out. So its split depends on
    no other photo, and never changes when photos are added; the share held out of a class is exact
    only on average.
    """
    digest = sha256(f"{seed}:{photo_id}".encode()).digest()
    # 53 bits are what a float holds.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
