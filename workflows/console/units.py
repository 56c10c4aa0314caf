"""Numbers as people read them: bytes, seconds, ratios, counts."""

from __future__ import annotations

import math
import time

HOUR_S, DAY_S = 3600.0, 86_400.0
# unit, its length, and up to which length of time it reads well, both in seconds
TIME_UNITS = (("s", 1.0, 600.0), ("min", 60.0, 3 * HOUR_S), ("h", HOUR_S, 96 * HOUR_S), ("d", 24 * HOUR_S, math.inf))
UNIT_NAMES = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


def bytes_text(nbytes: float) -> str:
    """A number of bytes in the unit people would use, to three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(nbytes) < 999.5 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 99.5 else f"{nbytes:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    unit, size = time_unit(2 * seconds)  # words change to the larger unit sooner than an axis
    return f"{seconds / size:.0f} {unit}" if unit == "s" and seconds >= 10 else f"{seconds / size:.3g} {unit}"


def times_text(times: float) -> str:
    """How a ratio reads."""
    if 0.95 < times < 1.05:
        return "the same"
    return f"{times:,.0f} times as much" if times >= 9.95 else f"{times:.2g} times as much"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a stretch of time reads best, and its size in seconds."""
    return next((unit, size) for unit, size, limit in TIME_UNITS if seconds <= limit)


def clock_text(moment: float, now: float) -> str:
    """When something was, both in UNIX time: ``at 14:03``, with the day where that was another one."""
    then = time.localtime(moment)
    day = "" if then[:3] == time.localtime(now)[:3] else f"on {time.strftime('%Y-%m-%d', then)} "
    return f"{day}at {time.strftime('%H:%M', then)}"


def plural(count: int, thing: str, things: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {things or thing + 's'}"
