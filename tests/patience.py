"""Limits in seconds that fit the machine: a busy or slow one makes no test wrong, an idle one finds failures soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

T = TypeVar("T")
VARIABLE = "CROSSFED_PATIENCE"  # set by hand it is the factor, in place of what is measured
TRIAL_S = 0.0125  # CPU time of the work in ``_slowness`` on the cores that the limits were chosen on


def patience(seconds: float) -> float:
    """Return the limit for something that never takes so many seconds on an idle machine with two cores."""
    return seconds * factor()


def factor() -> float:
    """Return how much longer things take here and now: by the speed of a core, and by the processes that want one."""
    if VARIABLE in os.environ:
        return float(os.environ[VARIABLE])
    return _slowness() * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@cache
def _slowness() -> float:
    began = time.process_time()
    sum(n * n for n in range(400_000))
    return max(1.0, (time.process_time() - began) / TRIAL_S)


def wait_until(condition: Callable[[], T], seconds: float = 60.0, *, unless: Callable[[], object] = lambda: None) -> T:
    """Wait for the first true value of a condition and return it.

    Args:
        condition: called again and again.
        seconds: see ``patience``.
        unless: a true value, or an error, ends the wait at once: the condition cannot become true any more.

    Raises:
        AssertionError: the condition was never true.
    """
    began = time.monotonic()
    while not (value := condition()):
        reason = unless()
        if reason and not condition():
            raise AssertionError(f"it will not happen any more: {reason}")
        limit = patience(seconds)  # of this moment: others may have begun to use the machine
        if time.monotonic() - began > limit:
            raise AssertionError(f"it did not happen within {limit:.0f} s")
        time.sleep(0.02)
    return value
