"""Spans of time, each a start and an end: their union, their difference, and how much they cover."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Span = tuple[float, float]  # start, end


def covered_s(spans: Iterable[Span], length_s: float) -> float:
    """Return the seconds of [0, length_s] that lie in at least one span."""
    total = reached = 0.0
    for start, end in sorted(spans):
        start, end = max(start, reached), min(end, length_s)
        if end > start:
            total, reached = total + end - start, end
    return total


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Return the parts of the spans that are in none of ``taken``, in order."""
    holes, first = joined(taken), 0
    left: list[Span] = []
    for start, end in joined(spans):
        while first < len(holes) and holes[first][1] <= start:
            first += 1  # this hole lies before all further spans
        while first < len(holes) and holes[first][0] < end:
            hole_start, hole_end = holes[first]
            left += [(start, hole_start)] if hole_start > start else []
            start = hole_end
            if hole_end > end:  # it may reach into the next span
                break
            first += 1
        left += [(start, end)] if end > start else []
    return left


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the union of the spans as disjoint spans, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif end > start:
            found.append((start, end))
    return found


def overlapping(spans: Sequence[Span], window: Span) -> Sequence[Span]:
    """Return those of some disjoint spans, in order, that reach into a window."""
    first = bisect_right(spans, window[0], key=lambda span: span[1])
    last = bisect_right(spans, window[1], key=lambda span: span[0])
    return spans[first:last]
