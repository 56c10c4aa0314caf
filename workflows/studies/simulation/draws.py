"""Chance that depends on what it is for and not on the order of asking: same seed and key, same number."""

from __future__ import annotations

import random


def keyed(seed: int, *key: object) -> random.Random:
    """A generator of its own for every key."""
    return random.Random("/".join(str(part) for part in (seed, *key)))
