"""Text of numbers for people: bytes, seconds, ratios, counts."""

from __future__ import annotations

import math
import time

HOUR_S, DAY_S = 3600.0, 86_400.0
# unit, its length, and the longest time that is written in it, both in seconds
TIME_UNITS = (("s", 1.0, 600.0), ("min", 60.0, 3 * HOUR_S), ("h", HOUR_S, 96 * HOUR_S), ("d", 24 * HOUR_S, math.inf))
UNIT_NAMES = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


def bytes_text(nbytes: float) -> str:
    """Return a number of bytes in a suitable unit, to three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(nbytes) < 999.5 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 99.5 else f"{nbytes:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    """Return a length of time in a suitable unit, to three digits."""
    unit, size = time_unit(2 * seconds)  # text changes to the larger unit sooner than an axis
    return f"{seconds / size:.0f} {unit}" if unit == "s" and seconds >= 10 else f"{seconds / size:.3g} {unit}"


def times_text(times: float) -> str:
    """Return a ratio as text."""
    if 0.95 < times < 1.05:
        return "the same"
    return f"{times:,.0f} times as much" if times >= 9.95 else f"{times:.2g} times as much"


def time_unit(seconds: float) -> tuple[str, float]:
    """Return a suitable unit for a length of time, and its size in seconds."""
    return next((unit, size) for unit, size, limit in TIME_UNITS if seconds <= limit)


def clock_text(moment: float, now: float) -> str:
    """Return a time of day, ``at 14:03``, with the date if it is not today's; both arguments are UNIX times."""
    then = time.localtime(moment)
    day = "" if then[:3] == time.localtime(now)[:3] else f"on {time.strftime('%Y-%m-%d', then)} "
    return f"{day}at {time.strftime('%H:%M', then)}"


def plural(count: int, thing: str, things: str = "") -> str:
    """Return a count with its noun."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {things or thing + 's'}"
