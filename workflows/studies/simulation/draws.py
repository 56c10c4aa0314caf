"""Random numbers that depend on their purpose and not on the order of the draws: same seed and key, same number."""

from __future__ import annotations

import random


def keyed(seed: int, *key: object) -> random.Random:
    """Return the random generator of a key."""
    return random.Random("/".join(str(part) for part in (seed, *key)))
