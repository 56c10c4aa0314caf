"""Limit how often a piece of work is repeated, so that it costs a small share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.02


class Pace:
    """Limit on a repeated piece of work: it takes at most a share of the time.

    Args:
        share: of the time.
        least_s: seconds that must lie between two repetitions in any case.
        clock: monotonic, in seconds.
    """

    def __init__(self, share: float = SHARE, least_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.share, self.least_s, self.clock = share, least_s, clock
        self.next_s = clock()

    def due(self) -> bool:
        return self.clock() >= self.next_s

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time one repetition of the work."""
        began = self.clock()
        try:
            yield
        finally:
            self.took(self.clock() - began)

    def took(self, seconds: float) -> None:
        """Count one repetition that has just ended."""
        self.next_s = self.clock() + max(self.least_s, seconds / self.share)
