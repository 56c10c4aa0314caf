"""Limit of the requests to Globus Compute, shared by everything that one driver asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

REQUESTS, PERIOD_S = 18, 10.0  # the service allows 20; the rest is for other programs under the same login


class RateLimiter:
    """Limit of requests per period.

    Args:
        requests: per period.
        period_s: length of the period.
        clock: seconds.
        wait: waits so many seconds, or until the driver stops; default an event's that ``stop`` sets.
    """

    def __init__(
        self,
        requests: int = REQUESTS,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.requests, self.period_s, self.clock = requests, period_s, clock
        self.stopped = threading.Event()
        self.wait = wait or self.stopped.wait
        self.recent: list[float] = []

    def delay_s(self, reserve: int = 0) -> float:
        """Return the seconds until a request is allowed that leaves a reserve for more important ones."""
        now = self.clock()
        self.recent = [moment for moment in self.recent if now - moment < self.period_s]
        over = len(self.recent) - max(1, self.requests - reserve)
        return self.recent[over] + self.period_s - now if over >= 0 else 0.0

    def __call__(self) -> bool:
        """Wait until a request is allowed and count it; return False at once if the driver stops."""
        while not self.stopped.is_set() and (delay_s := self.delay_s()) > 0:
            self.wait(delay_s)
        self.recent.append(self.clock())
        return not self.stopped.is_set()

    def stop(self) -> None:
        """End all waits; no further request is allowed."""
        self.stopped.set()
